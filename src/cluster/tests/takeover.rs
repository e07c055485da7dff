//! Hosts that die while others live: suspicion, exclusion, fence, and who recovers whom.

use super::starved::unless_starved;
use super::*;
use crate::base::SlotId;
use crate::cluster::view::{bit, dead, is_member};
use crate::format::cluster::heartbeat::{FLAG_FENCING, FLAG_REPLAYING};
use crate::format::cluster::{Adopter, SlotState};

/// A host that recovers whomever it is asked to, after `pause`; the answer counts the batches.
pub fn heir(host: &Arc<Host>, pause: Duration) -> Arc<Mutex<Vec<Vec<SlotId>>>> {
    let asked = Arc::<Mutex<Vec<Vec<SlotId>>>>::default();
    let (host, batches) = (Arc::downgrade(host), asked.clone());
    let this = host.upgrade().unwrap();
    this.cluster.on_fenced(Box::new(move |slots| {
        batches.lock().push(slots.to_vec());
        let (host, slots) = (host.clone(), slots.to_vec());
        std::thread::spawn(move || {
            std::thread::sleep(pause);
            if let Some(host) = host.upgrade() {
                // An error means that it has died itself meanwhile.
                let _ = host.cluster.recovered(&slots);
            }
        });
    }));
    asked
}

fn member(medium: &Arc<Medium>, name: &str, place: Where) -> Arc<Host> {
    Arc::new(join(medium, name, place))
}

fn state(host: &Host, slot: u16) -> SlotState {
    host.cluster.membership().view.slots[usize::from(slot)].state
}

pub fn is_clean(host: &Host, slot: u16) -> bool {
    matches!(state(host, slot), SlotState::Clean { .. })
}

/// What the host that dies has to be: nobody else holds it.
pub fn die(host: Arc<Host>) {
    assert_eq!(Arc::strong_count(&host), 1);
    drop(Arc::try_unwrap(host).ok().unwrap().cluster);
}

#[test]
fn a_dead_host_is_fenced_recovered_and_its_groups_are_taken() {
    let medium = Medium::formatted();
    let [a, b, c] = ["a", "b", "c"].map(|name| member(&medium, name, Where::Elsewhere));
    let (asked, others) = (heir(&a, Duration::ZERO), heir(&c, Duration::ZERO));
    assert_eq!(adopt(&b, 1), Ok(Token(2)));
    let begun = now();
    die(b);
    eventually("b is recovered", || is_clean(&a, 1) && is_clean(&c, 1));
    assert!(now() - begun >= QUICK.lease, "its lease may have been renewed just before");
    assert_eq!(state(&c, 1), SlotState::Clean { adopter: Adopter::Slot(SlotId(0)) });
    assert_eq!((asked.lock().clone(), others.lock().len()), (vec![vec![SlotId(1)]], 0));
    assert_eq!(adopt(&a, 1), Ok(Token(3)), "above what it wrote last");
    let d = join(&medium, "d", Where::Elsewhere);
    assert!(!d.report.first && d.report.replay.is_empty());
    assert_eq!(a.lease.lost.lock().clone(), None);
}

#[test]
fn whose_process_is_gone_from_this_machine_is_not_waited_for() {
    unless_starved(the_process_of_a_member_is_gone);
}

fn the_process_of_a_member_is_gone() {
    let medium = Medium::formatted();
    let [a, b] = ["a", "b"].map(|name| member(&medium, name, Where::Here));
    heir(&a, Duration::ZERO);
    let begun = now();
    let port = b.port.clone();
    die(b);
    std::thread::sleep(QUICK.suspicion * 2);
    assert!(!is_clean(&a, 1) || now() - begun >= QUICK.wait(), "its file is still open");
    drop(port);
    eventually("b is recovered", || is_clean(&a, 1));
    // The same slot, at once: its byte range is free again.
    let [b, c] = ["b", "c"].map(|name| member(&medium, name, Where::Here));
    let begun = now();
    die(b);
    eventually("b is recovered again", || is_clean(&c, 1) || is_clean(&c, 2));
    assert!(now() - begun < QUICK.suspicion, "{:?}", now() - begun);
}

/// On a block device, as which it has the device node of this machine to itself.
pub fn member_of_boot(medium: &Arc<Medium>, name: &str) -> Result<Arc<Host>> {
    let (port, lease) = (medium.port(), Arc::new(Lease::default()));
    let mut options = options(name, Where::Elsewhere, &port, &lease);
    (options.boot, options.file.rdev) = ([2; 16], 7);
    let (cluster, report) = Cluster::join(disk_of(port.clone()), options)?;
    Ok(Arc::new(Host { cluster, report, lease, port }))
}

/// Virtual machines that go on from one snapshot of memory have the boot and the device node in common.
#[test]
fn a_copy_of_this_machine_is_not_taken_for_gone() {
    let medium = Medium::formatted();
    let [a, b] = ["a", "b"].map(|name| member_of_boot(&medium, name).unwrap());
    let asked = heir(&a, Duration::ZERO);
    let pause = b.port.gate.write();
    let stopped = now();
    eventually("it is recovered", || !asked.lock().is_empty());
    let waited = now() - stopped;
    assert!(waited >= QUICK.wait() - QUICK.heartbeat * 2, "acted upon after {waited:?}");
    drop(pause);
}

#[test]
fn a_process_that_was_gone_before_we_came_is_not_waited_for() {
    let medium = Medium::formatted();
    let a = member(&medium, "a", Where::Elsewhere);
    die(member_of_boot(&medium, "b").unwrap());
    // Before it is suspected by others.
    let c = member_of_boot(&medium, "c").unwrap();
    let asked = heir(&c, Duration::ZERO);
    let begun = now();
    eventually("it is recovered", || !asked.lock().is_empty());
    assert!(now() - begun < QUICK.suspicion, "{:?}", now() - begun);
    assert!(a.lease.lost.lock().is_none());
}

/// Writes may land so late that the wait is much longer than it takes to be suspected.
const SLOW_WRITES: Timing = Timing { write_life: Duration::from_millis(1500), ..QUICK };

fn member_slow(medium: &Arc<Medium>, name: &str, place: Where) -> Arc<Host> {
    let (port, lease) = (medium.port(), Arc::new(Lease::default()));
    let options = JoinOptions { timing: SLOW_WRITES, ..options(name, place, &port, &lease) };
    let (cluster, report) = Cluster::join(disk_of(port.clone()), options).unwrap();
    Arc::new(Host { cluster, report, lease, port })
}

#[test]
fn what_was_proven_of_one_mount_is_not_of_the_next_in_its_slot() {
    let medium = Medium::formatted();
    // Both processes are gone from this machine: the first mount need not wait.
    let [a, b] = ["a", "b"].map(|name| member_slow(&medium, name, Where::Here));
    let ports = [a.port.clone(), b.port.clone()];
    [a, b].into_iter().for_each(die);
    drop(ports);
    let begun = now();
    let c = member_slow(&medium, "c", Where::Here);
    assert!(now() - begun < SLOW_WRITES.wait(), "{:?}", now() - begun);
    assert_eq!(c.report.replay, [SlotId(0), SlotId(1)]);
    c.cluster.recovered(&c.report.replay).unwrap();
    let asked = heir(&c, Duration::ZERO);
    // Mounts of other machines have these slots now. They are stopped in the middle of whatever they do.
    let strangers = ["d", "e"].map(|name| member_slow(&medium, name, Where::Elsewhere));
    assert_eq!(strangers.each_ref().map(|s| s.report.slot), [SlotId(0), SlotId(1)]);
    let pauses = strangers.each_ref().map(|s| s.port.gate.write());
    let stopped = now();
    eventually("they are recovered", || !asked.lock().is_empty());
    let waited = now() - stopped;
    assert!(waited >= SLOW_WRITES.wait() - QUICK.heartbeat * 2, "acted upon after {waited:?}");
    drop(pauses);
}

#[test]
fn a_host_that_comes_back_too_late_halts() {
    let medium = Medium::formatted();
    let [a, b] = ["a", "b"].map(|name| member(&medium, name, Where::Elsewhere));
    heir(&a, Duration::ZERO);
    heir(&b, Duration::ZERO);
    let pause = b.port.gate.write();
    eventually("b is recovered", || is_clean(&a, 1));
    assert!(*b.lease.write_until.lock() < now(), "its permit was over by then");
    drop(pause);
    eventually("b knows", || b.lease.lost.lock().is_some());
    std::thread::sleep(QUICK.suspicion * 2);
    assert_eq!(a.lease.lost.lock().clone(), None, "the late one expels nobody");
    assert_eq!(join(&medium, "b", Where::Elsewhere).report.replay, []);
}

#[test]
fn a_stall_of_the_store_expels_nobody() {
    let medium = Medium::formatted();
    let hosts = ["a", "b", "c"].map(|name| member(&medium, name, Where::Elsewhere));
    hosts.iter().for_each(|h| drop(heir(h, Duration::ZERO)));
    for _ in 0..3 {
        let pauses: Vec<_> = hosts.iter().map(|h| h.port.gate.write()).collect();
        std::thread::sleep(QUICK.wait() * 2);
        drop(pauses);
        for host in &hosts {
            eventually("it goes on", || *host.lease.write_until.lock() > now());
        }
        std::thread::sleep(QUICK.suspicion * 2);
        for host in &hosts {
            assert_eq!(host.lease.lost.lock().clone(), None);
            assert_eq!(dead(&host.cluster.membership().view), 0);
        }
    }
}

#[test]
fn an_heir_that_dies_is_recovered_with_those_it_was_to_recover() {
    let medium = Medium::formatted();
    let [a, b, c] = ["a", "b", "c"].map(|name| member(&medium, name, Where::Elsewhere));
    // a never gets done.
    let asked = Arc::<Mutex<u32>>::default();
    let count = asked.clone();
    a.cluster.on_fenced(Box::new(move |_| *count.lock() += 1));
    let batches = heir(&c, Duration::from_millis(100));
    die(b);
    eventually("a is asked", || *asked.lock() == 1);
    let flags = || c.cluster.heartbeats().1[0].as_ref().map_or(0, |h| h.flags);
    eventually("a says what it does", || flags() & FLAG_REPLAYING != 0 && flags() & FLAG_FENCING == 0);
    let d = std::thread::spawn({
        let medium = medium.clone();
        move || join(&medium, "d", Where::Elsewhere)
    });
    let former = a.report.incarnation;
    die(a);
    // Slot 0 may have the one who came meanwhile by now.
    let view = || c.cluster.membership().view.clone();
    eventually("both are recovered", || !is_member(&view(), SlotId(0), former) && dead(&view()) == 0);
    assert_eq!(batches.lock().clone(), [vec![SlotId(0), SlotId(1)]], "in one batch");
    // Who came meanwhile was let in afterwards.
    assert!(d.join().unwrap().report.replay.is_empty());
}

#[test]
fn two_at_once_and_an_heir_that_cannot_and_leaves() {
    two_at_once_and_an_heir_that_cannot(true);
}

#[test]
fn two_at_once_and_an_heir_that_cannot_and_stays() {
    two_at_once_and_an_heir_that_cannot(false);
}

fn two_at_once_and_an_heir_that_cannot(leaves: bool) {
    let medium = Medium::formatted();
    let hosts = ["a", "b", "c", "d"].map(|name| member(&medium, name, Where::Elsewhere));
    let [a, b, c, d] = hosts;
    let asked = Arc::<Mutex<u32>>::default();
    let (count, cluster) = (asked.clone(), Arc::downgrade(&a));
    a.cluster.on_fenced(Box::new(move |_| {
        *count.lock() += 1;
        let cluster = cluster.clone();
        std::thread::spawn(move || cluster.upgrade().inspect(|a| a.cluster.unrecovered()));
    }));
    let batches = heir(&d, Duration::ZERO);
    die(b);
    die(c);
    eventually("a is asked", || *asked.lock() >= 1);
    std::thread::sleep(QUICK.lease / 3);
    assert_eq!(*asked.lock(), 1, "not again at once");
    assert_eq!(dead(&d.cluster.membership().view), bit(SlotId(1)) | bit(SlotId(2)));
    // It gives up: they are the next one's.
    if leaves {
        a.cluster.leave().unwrap();
    }
    eventually("d recovers them", || is_clean(&d, 1) && is_clean(&d, 2));
    assert_eq!((*asked.lock(), batches.lock().len()), (if leaves { 1 } else { 2 }, 1));
    assert_eq!(adopt(&d, 1), Ok(Token(2)));
}

/// The others act upon its death while it waits, in the middle of leaving, for the row of ballots.
#[test]
fn who_is_excluded_while_it_leaves_has_not_left() {
    let medium = Medium::formatted();
    let [a, b] = ["a", "b"].map(|name| member(&medium, name, Where::Elsewhere));
    // It never gets done.
    let asked = Arc::<Mutex<u32>>::default();
    let count = asked.clone();
    a.cluster.on_fenced(Box::new(move |_| *count.lock() += 1));
    let (written, gone) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let regions = geometry().regions();
    let ballots = regions.ballots * 4096..regions.ledgers * 4096;
    let (begun, over) = (written.clone(), gone.clone());
    b.port.set_hook(move |op, offset| {
        if ballots.contains(&offset) && op == "write" {
            begun.store(true, Ordering::Release);
        }
        while begun.load(Ordering::Acquire) && !over.load(Ordering::Acquire) && op == "read" {
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    });
    std::thread::scope(|scope| {
        let leaving = scope.spawn(|| b.cluster.leave());
        eventually("b is dead to a", || *asked.lock() > 0);
        gone.store(true, Ordering::Release);
        let left = leaving.join().unwrap();
        assert!(matches!(left, Err(Error::Halted(_))), "{left:?}");
    });
    assert!(b.lease.lost.lock().is_some());
    assert_eq!(state(&a, 1), SlotState::Dead { adopter: SlotId(0) });
}

/// It has proven another one gone when it halts, and stays there as a process.
#[test]
fn a_host_that_halts_keeps_nobody_out_of_anothers_slot() {
    let medium = Medium::formatted();
    let [a, b, c] = ["a", "b", "c"].map(|name| member(&medium, name, Where::Here));
    // It never gets done.
    let asked = Arc::<Mutex<u32>>::default();
    let count = asked.clone();
    b.cluster.on_fenced(Box::new(move |_| *count.lock() += 1));
    die(a);
    eventually("b is asked, by proof", || *asked.lock() > 0);
    b.cluster.abandon();
    heir(&c, Duration::ZERO);
    eventually("both are recovered", || is_clean(&c, 0) && is_clean(&c, 1));
    let d = join(&medium, "d", Where::Here);
    assert_eq!(d.report.slot, SlotId(0));
    drop(b);
}
