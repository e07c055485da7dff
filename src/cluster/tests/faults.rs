//! Requests that fail, blocks that are rotten, mounts that come too late: nothing stays behind that
//! others would wait for, and nobody mixes up who has a slot.

use super::starved::unless_starved;
use super::takeover::{heir, is_clean};
use super::*;
use crate::base::SlotId;
use crate::cluster::view::{live, slot_of};
use crate::format::cluster::View;

fn newest(medium: &Arc<Medium>) -> View {
    let ballots = medium.disk().read_ballots().unwrap();
    ballots.into_iter().map(|(b, _)| b.decided).max_by_key(|v| v.epoch).unwrap()
}

fn ledger_of(slot: u16) -> u64 {
    geometry().ledger(SlotId(slot), 0, 0).byte()
}

/// Either copy of it, so that a read of both fails piece by piece as well.
fn is_ledger_of(slot: u16, at: u64) -> bool {
    (ledger_of(slot)..ledger_of(slot) + 2 * 4096).contains(&at)
}

#[test]
fn who_fails_after_the_admission_leaves_again() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let port = medium.port();
    port.set_hook(|op, at| op != "read" || !is_ledger_of(3, at));
    let error = join_by(port, "b", Where::Elsewhere).err().unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(live(&newest(&medium)), 1, "only a is a member");
    eventually("a knows", || a.cluster.membership().alone());
    assert_eq!(adopt(&a, 1).map(|t| t.0 > 1), Ok(true), "a looks after the slot again");
    // The same beside nobody.
    a.cluster.leave().unwrap();
    let port = medium.port();
    port.set_hook(|op, at| op != "read" || !is_ledger_of(3, at));
    assert!(join_by(port, "c", Where::Here).is_err());
    assert!(read_status(&medium.disk(), None).unwrap().is_clean());
}

/// Its slot was not left in order, so that it waits once more when it is in a view already.
#[test]
fn who_is_told_to_end_when_it_is_a_member_already_does_not_wait_for_its_slot() {
    let medium = Medium::formatted();
    let timing = Timing { write_life: Duration::from_millis(1000), ..QUICK };
    let join_first = |name: &str, lease: &Arc<Lease>| {
        let port = medium.port();
        let options = JoinOptions { usable: 1, timing, ..options(name, Where::Elsewhere, &port, lease) };
        Cluster::join(disk_of(port), options)
    };
    drop(join_first("a", &Arc::default()).unwrap());
    let lease = Arc::<Lease>::default();
    let (told, ended) = std::thread::scope(|scope| {
        let joining = scope.spawn(|| join_first("b", &lease).err().expect("it was mounted"));
        eventually("it is a member", || lease.renewals.load(Ordering::Relaxed) > 0);
        lease.unwanted.store(true, Ordering::Relaxed);
        let told = now();
        let why = joining.join().unwrap().to_string();
        assert!(why.contains("told to end"), "{why}");
        (told, now())
    });
    assert!(ended - told < timing.wait() / 2, "{:?}", ended - told);
    // It is one more that has not left in order.
    let (c, report) = join_first("c", &Arc::default()).unwrap();
    assert_eq!((report.first, report.replay), (true, vec![SlotId(0)]));
    c.recovered(&[SlotId(0)]).unwrap();
    c.leave().unwrap();
}

/// Stands still where it is put.
struct Still(AtomicU64);

impl Clock for Still {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
    fn wall(&self) -> Duration {
        self.now()
    }
}

/// A mount reads its own ledger, and the answer comes when its lease is over: what it finds there may be the
/// ledger of the slot's next mount, and stays.
#[test]
fn a_ledger_is_not_put_right_without_a_lease() {
    let medium = Medium::formatted();
    let (me, incarnation) = (SlotId(0), crate::base::Incarnation(7));
    let view = Arc::new(crate::cluster::view::first(&newest(&medium), me, incarnation));
    let (disk, clock) = (medium.disk(), Arc::new(Still(AtomicU64::new(10))));
    let groups = groups::Groups::new(disk.clone(), clock.clone(), me, incarnation, view.clone());
    groups.load().unwrap();
    groups.permit(Duration::from_secs(20));
    groups.adopt(AgNo(1)).unwrap();
    let ours = disk.read_ledger(me).unwrap()[0].clone();
    let theirs = disk.read_ledger(SlotId(1)).unwrap()[0].0.clone();
    assert_ne!(ours.0, theirs);
    for n in 1..=2 {
        disk.write_ledger(me, 0, ours.1 + n, &theirs).unwrap();
    }
    clock.0.store(30, Ordering::Relaxed);
    let until = Duration::from_secs;
    assert!(matches!(groups.set_view(view.clone(), until(25)), Err(Error::TimedOut(_))));
    assert!(matches!(groups.close(), Err(Error::TimedOut(_))));
    assert!(groups.adopt(AgNo(2)).is_err());
    assert_eq!(disk.read_ledger(me).unwrap()[0].0, theirs);
    // A beat since has said that it is a member still.
    groups.set_view(view, until(35)).unwrap();
    assert_eq!(disk.read_ledger(me).unwrap()[0].0, ours.0);
}

#[test]
fn a_request_that_fails_while_joining_is_made_again() {
    let medium = Medium::formatted();
    let port = medium.port();
    let (decided, failures) = (AtomicBool::new(false), AtomicU64::new(0));
    let row = geometry().heartbeat_cell(SlotId(0));
    // From the first own heartbeat on, which is written once a view contains us.
    port.set_hook(move |op, at| {
        if op == "write" && at == row {
            decided.store(true, Ordering::Relaxed);
        }
        let is_hit = decided.load(Ordering::Relaxed) && is_row(at);
        !(is_hit && failures.fetch_add(1, Ordering::Relaxed) < 3 * ROW_READS)
    });
    let a = join_by(port, "a", Where::Here).unwrap();
    assert_eq!(adopt(&a, 0), Ok(Token(2)));
}

#[test]
fn who_gives_up_asking_is_no_member_afterwards() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let port = medium.port();
    let left = AtomicU64::new(0);
    // Its claim arrives, then reads fail until it has given up.
    let lobby = geometry().lobby_cell(0)..geometry().lobby_cell(crate::format::layout::LOBBY_CELLS);
    port.set_hook(move |op, at| {
        if op == "write" && lobby.contains(&at) {
            left.store(ROW_READS, Ordering::Relaxed);
        }
        let count = |left: u64| left.checked_sub(1);
        !(op == "read"
            && is_row(at)
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok())
    });
    assert!(join_by(port, "b", Where::Elsewhere).is_err());
    eventually("a is alone", || live(&newest(&medium)) == 1);
    std::thread::sleep(QUICK.heartbeat * 4);
    assert_eq!(live(&newest(&medium)), 1);
    a.cluster.leave().unwrap();
}

#[test]
fn a_view_that_could_not_be_installed_is_installed_later() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let failures = AtomicU64::new(0);
    // a decides the view with b in it, then cannot read what b's slot owned last.
    a.port.set_hook(move |op, at| {
        op != "read" || !is_ledger_of(1, at) || failures.fetch_add(1, Ordering::Relaxed) >= 12
    });
    let b = join(&medium, "b", Where::Elsewhere);
    assert_eq!(b.report.slot, SlotId(1));
    eventually("a knows b", || slot_of(&a.cluster.membership().view, b.report.incarnation).is_some());
    assert_eq!(adopt(&b, 1), Ok(Token(2)));
    assert_eq!(a.lease.lost.lock().clone(), None);
    b.cluster.leave().unwrap();
    a.cluster.leave().unwrap();
}

#[test]
fn a_view_of_its_own_that_is_long_past_is_not_installed_late() {
    unless_starved(its_own_view_is_long_past);
}

fn its_own_view_is_long_past() {
    let medium = Medium::formatted();
    let [a, b] = ["a", "b"].map(|name| Arc::new(join(&medium, name, Where::Elsewhere)));
    heir(&b, Duration::ZERO);
    adopt(&a, 0).unwrap();
    // a decides the view with c in it, then loses its way to the device. When it is back it gets stuck in its beat.
    let (well, gone, back, stuck, free) = (0, 1, 2, 3, 4);
    let phase = Arc::new(AtomicU64::new(well));
    let (at_hook, row) = (phase.clone(), geometry().heartbeat_cell(SlotId(0)));
    a.port.set_hook(move |op, at| {
        if op == "read" && at == ledger_of(2) {
            let _ = at_hook.compare_exchange(well, gone, Ordering::Relaxed, Ordering::Relaxed);
        }
        if op == "write" && at == row && at_hook.load(Ordering::Relaxed) == back {
            at_hook.store(stuck, Ordering::Relaxed);
            eventually("the test goes on", || at_hook.load(Ordering::Relaxed) == free);
        }
        at_hook.load(Ordering::Relaxed) != gone
    });
    let _c = join(&medium, "c", Where::Elsewhere);
    eventually("a is recovered", || is_clean(&b, 0));
    phase.store(back, Ordering::Relaxed);
    eventually("a beats again", || phase.load(Ordering::Relaxed) == stuck);
    // It has found its own cell as it was. Now its slot has another host, which owns groups.
    let d = join(&medium, "d", Where::Elsewhere);
    assert_eq!(d.report.slot, SlotId(0));
    adopt(&d, 0).unwrap();
    let ledger = || -> Vec<_> {
        let pages = medium.disk().read_ledger(SlotId(0)).unwrap();
        pages.into_iter().map(|(page, _)| page).collect()
    };
    let before = ledger();
    phase.store(free, Ordering::Relaxed);
    eventually("a halts", || a.lease.lost.lock().is_some());
    assert!(ledger() == before, "it has written what is another's");
}

#[test]
fn a_rotten_heartbeat_cell_costs_the_wait_and_no_more() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Here);
    drop(a);
    let rot = [0x77; 512];
    medium.port().write(geometry().heartbeat_cell(SlotId(0)), &rot).unwrap();
    let begun = now();
    let b = join(&medium, "b", Where::Here);
    assert!(now() - begun >= QUICK.wait(), "nothing proves that a is gone");
    assert_eq!(b.report.replay, [SlotId(0)]);
    b.cluster.recovered(&b.report.replay).unwrap();
    b.cluster.leave().unwrap();
    assert!(read_status(&medium.disk(), None).unwrap().is_clean());
}

#[test]
fn a_half_written_adoption_is_put_right_before_its_writer_leaves() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let b = join(&medium, "b", Where::Elsewhere);
    assert_eq!(adopt(&a, 0), Ok(Token(2)));
    let ledger = |medium: &Arc<Medium>| medium.disk().read_ledger(SlotId(0)).unwrap()[0].0.clone();
    let wanted = ledger(&medium);
    let pair = ledger_of(0)..ledger_of(0) + 2 * 4096;
    let ballots = geometry().ballot(SlotId(0), 0).byte()..geometry().ballot(SlotId(1), 0).byte();
    let (writes, early) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    a.port.set_hook({
        let (medium, wanted, early) = (medium.clone(), wanted.clone(), early.clone());
        move |op, at| {
            if op == "write" && ballots.contains(&at) && ledger(&medium) != wanted {
                early.store(true, Ordering::Relaxed);
            }
            // a fails to take another group, but one copy of the page says that it did.
            !(op == "write" && pair.contains(&at) && writes.fetch_add(1, Ordering::Relaxed) == 1)
        }
    });
    eventually("a tries", || matches!(a.cluster.adopt(AgNo(2)), Err(Error::Io { .. })));
    assert_ne!(ledger(&medium), wanted);
    a.cluster.leave().unwrap();
    assert!(!early.load(Ordering::Relaxed), "its ledger was wrong while it proposed to leave");
    assert_eq!(ledger(&medium), wanted);
    b.cluster.leave().unwrap();
}

#[test]
fn a_first_mount_that_was_overtaken_decides_nothing() {
    let medium = Medium::formatted();
    let port = medium.port();
    let (stalled, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let ballot = geometry().ballot(SlotId(0), 0).byte();
    let stage = AtomicU64::new(0);
    port.set_hook({
        let (stalled, go_on) = (stalled.clone(), go_on.clone());
        move |op, at| {
            match (stage.load(Ordering::Relaxed), op) {
                (0, "write") if (ballot..ballot + 2 * 4096).contains(&at) => {
                    stage.store(1, Ordering::Relaxed)
                }
                (1, "read") if at == ballot => stage.store(2, Ordering::Relaxed),
                // Behind the first phase, before whatever comes next: a pause of the whole host.
                (2, _) => {
                    stage.store(3, Ordering::Relaxed);
                    stalled.store(true, Ordering::Relaxed);
                    eventually("the other is in", || go_on.load(Ordering::Relaxed));
                }
                _ => {}
            }
            true
        }
    });
    let slow = std::thread::spawn(move || join_by(port, "slow", Where::Elsewhere));
    eventually("the slow one is in its ballot", || stalled.load(Ordering::Relaxed));
    let fast = join(&medium, "fast", Where::Elsewhere);
    assert_eq!((fast.report.slot, fast.report.first), (SlotId(0), true));
    go_on.store(true, Ordering::Relaxed);
    let slow = slow.join().unwrap().unwrap();
    assert_eq!((slow.report.slot, slow.report.first), (SlotId(1), false), "let in by the other");
    assert_eq!(fast.lease.lost.lock().clone(), None);
    slow.cluster.leave().unwrap();
    fast.cluster.leave().unwrap();
}

#[test]
fn another_mount_in_the_own_slot_is_noticed() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let look = || medium.disk().read_heartbeat(SlotId(0)).unwrap();
    // A look may fall into a write.
    let mut rival = std::iter::repeat_with(look).flatten().next().unwrap();
    rival.incarnation.0 ^= 1;
    // Once: the next beat of a would cover it.
    medium.disk().write_heartbeat(&rival).unwrap();
    eventually("a halts", || a.lease.lost.lock().is_some());
}

/// The other side of a migrated machine, or itself before it was put back in time.
#[test]
fn the_same_mount_in_another_machine_is_noticed() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let look = || medium.disk().read_heartbeat(SlotId(0)).unwrap();
    let mut other = std::iter::repeat_with(look).flatten().next().unwrap();
    other.counter += 5;
    medium.disk().write_heartbeat(&other).unwrap();
    eventually("a halts", || a.lease.lost.lock().clone().is_some_and(|why| why.contains("runs twice")));
}

#[test]
fn a_volume_that_is_made_anew_meanwhile_is_left_alone() {
    let medium = Medium::formatted();
    let (port, lease) = (medium.port(), Arc::new(Lease::default()));
    let claim = geometry().lobby_cell(0);
    port.set_hook({
        let lease = lease.clone();
        move |op, at| {
            lease.replaced.fetch_or(op == "write" && at == claim, Ordering::Relaxed);
            true
        }
    });
    let options = options("a", Where::Elsewhere, &port, &lease);
    let before = newest(&medium);
    let error = Cluster::join(disk_of(port), options).err().unwrap();
    assert_eq!(error, Error::Device("another volume".into()));
    assert_eq!(newest(&medium), before);
    assert!(medium.disk().read_ballots().unwrap().iter().all(|(b, _)| b.mbal == 0));
}

#[test]
fn a_host_that_halted_is_not_provably_gone_before_its_file_is_closed() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Here);
    a.cluster.abandon();
    let begun = now();
    // Its device is still open: what it had begun to write may land.
    let b = join(&medium, "b", Where::Here);
    assert!(now() - begun >= QUICK.wait());
    assert_eq!(b.report.replay, [a.report.slot]);
    drop((a, b));
    let begun = now();
    let c = join(&medium, "c", Where::Here);
    assert!(now() - begun < QUICK.wait(), "no waiting");
    assert_eq!(c.report.replay.len(), 2);
}
