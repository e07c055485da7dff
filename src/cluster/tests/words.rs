//! What is said in the lobby of mounts that are over: by who has seen that for certain, and only as long as it is so.

use super::command::{MACHINE_A, MACHINE_B, MACHINE_C, join_by_fence, join_by_program, recover_at_once};
use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::cluster::former::KeptOff;
use crate::cluster::join::Joiner;
use crate::cluster::view::{dead, first};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::{Claim, FenceClass, SlotState};
use crate::format::layout::LOBBY_CELLS;
use std::sync::atomic::AtomicI64;

type Machine = ([u8; 16], [u8; 16]);

/// Its command never succeeds.
fn member(medium: &Arc<Medium>, name: &str, machine: Machine) -> Host {
    join_by_program(&medium.port(), name, machine, "/bin/false", Box::new(|| ())).0.unwrap()
}

/// Another boot of machine A, or a clone of it, on its way in.
fn joiner(port: &Arc<Port>) -> Joiner {
    let mut options = options("a", Where::Elsewhere, port, &Arc::default());
    (options.host, options.boot, options.file.rdev) = (MACHINE_A.0, [9; 16], 7);
    options.fence.wanted = Wanted::Class(FenceClass::Command);
    Joiner::new(disk_of(port.clone()), options).unwrap()
}

fn poll_until(joiner: &mut Joiner, what: &str, test: impl Fn(&Joiner) -> bool) {
    let limit = now() + Duration::from_secs(20);
    while !test(joiner) {
        assert!(now() < limit, "never: {what}");
        std::thread::sleep(QUICK.heartbeat / 4);
        joiner.poll().unwrap();
    }
}

/// All that is said.
fn words(medium: &Arc<Medium>) -> Vec<Incarnation> {
    let lobby = medium.disk().read_lobby().unwrap();
    lobby.into_iter().flatten().flat_map(|claim| claim.over).collect()
}

/// What it last saw is long ago, but it has seen nobody stand still.
#[test]
fn who_could_not_look_for_long_says_nothing_of_who_lives() {
    let medium = &Medium::formatted();
    let a = member(medium, "a", MACHINE_A);
    let (port, looks) = (medium.port(), AtomicU64::new(0));
    port.set_hook(move |op, at| {
        let look = match op == "read" && is_row(at) {
            true => looks.fetch_add(1, Ordering::Relaxed),
            false => 0,
        };
        if look == 1 {
            std::thread::sleep(QUICK.wait() * 2);
        }
        !(1..=ROW_READS).contains(&look)
    });
    let clone = join_by_program(&port, "a", (MACHINE_A.0, [9; 16]), "/bin/false", Box::new(|| ())).0;
    let why = clone.err().expect("it was let in").to_string();
    assert!(why.contains("hooked"), "{why}");
    assert!(!words(medium).contains(&a.report.incarnation));
    assert_eq!(a.lease.lost.lock().clone(), None);
}

/// No view was made without it, so it goes on as the mount that it was.
#[test]
fn what_was_said_of_who_goes_on_is_taken_back() {
    for renews in [false, true] {
        let medium = &Medium::formatted();
        let a = member(medium, "a", MACHINE_A);
        let over = vec![a.report.incarnation];
        let mut clone = joiner(&medium.port());
        let gate = a.port.gate.write();
        poll_until(&mut clone, "it is silent", |clone| !clone.over().is_empty());
        let claim = clone.new_claim(ClaimKind::First);
        clone.disk.write_claim(1, &claim).unwrap();
        clone.set_claim(1, claim);
        assert_eq!(words(medium), over);
        // Nobody takes it back but who said it.
        let lobby = geometry().lobby_cell(0)..geometry().lobby_cell(LOBBY_CELLS);
        a.port.set_hook(move |op, at| op != "read" || !lobby.contains(&at));
        drop(gate);
        poll_until(&mut clone, "it goes on", |clone| clone.is_anybody_alive());
        match renews {
            true => assert!(clone.renew_claim(SlotId(1)).unwrap()),
            false => clone.withdraw().unwrap(),
        }
        assert_eq!(words(medium), []);
    }
}

/// Whoever said it is gone, and cannot take it back.
#[test]
fn members_take_back_what_is_said_of_those_who_live() {
    let medium = &Medium::formatted();
    let hosts = [("a", MACHINE_A), ("b", MACHINE_B)].map(|(name, machine)| member(medium, name, machine));
    let said =
        |kind, over| Claim { kind, incarnation: Incarnation(77), sequence: 5, over, ..Claim::default() };
    let [a, b] = [0, 1].map(|host: usize| hosts[host].report.incarnation);
    let other = Incarnation(4711);
    medium.disk().write_claim(LOBBY_CELLS - 1, &said(ClaimKind::None, vec![a, other])).unwrap();
    medium.disk().write_claim(LOBBY_CELLS - 2, &said(ClaimKind::Join, vec![b])).unwrap();
    medium.disk().write_claim(3, &said(ClaimKind::First, vec![b])).unwrap();
    eventually("it is taken back", || words(medium) == [other]);
    assert!(hosts.iter().all(|host| host.lease.lost.lock().is_none()));
}

/// A command may lie, or its machine be let through again.
#[test]
fn who_was_kept_off_and_beats_counts_as_kept_off_no_more() {
    let medium = &Medium::formatted();
    let a = member(medium, "a", MACHINE_A);
    let (slot, mount) = (a.report.slot, a.report.incarnation);
    let mut joiner = joiner(&medium.port());
    let gate = a.port.gate.write();
    poll_until(&mut joiner, "it is silent", |joiner| joiner.watch.silence(slot) >= QUICK.heartbeat * 3);
    joiner.cut.insert(slot, KeptOff::new(mount));
    joiner.poll().unwrap();
    assert!(joiner.cut.contains_key(&slot));
    assert_eq!(joiner.cut_in(&joiner.view), [], "it is a member, and was let through again perhaps");
    let view = first(&joiner.view, SlotId(1), Incarnation(9));
    assert_ne!(dead(&view), 0);
    assert_eq!(joiner.cut_in(&view), [(slot, mount)]);
    drop(gate);
    poll_until(&mut joiner, "it is forgotten", |joiner| joiner.cut.is_empty());
}

/// Believes what is said, and nothing else.
#[derive(Default)]
struct Believes(AtomicU64);

impl Fence for Believes {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        match victim.over {
            true => Ok(Cut { how: "it is over".into(), settle: QUICK.claim_wait() }),
            false => {
                self.0.fetch_add(1, Ordering::Relaxed);
                Err(Error::Device("its power switch does not answer".into()))
            }
        }
    }
}

/// A member takes its time over the view in which it is.
#[test]
fn who_is_let_in_after_it_has_given_up_is_not_cut() {
    for _ in 0..5 {
        let medium = &Medium::formatted();
        let command = Arc::new(Believes::default());
        let a = Arc::new(join_by_fence(&medium.port(), "a", MACHINE_A, command.clone()).unwrap());
        recover_at_once(&a);
        let (port, lease) = (medium.port(), Arc::new(Lease::default()));
        let mut options = options("b", Where::Elsewhere, &port, &lease);
        (options.host, options.boot, options.file.rdev) = (MACHINE_B.0, MACHINE_B.1, 7);
        options.fence.wanted = Wanted::Class(FenceClass::Command);
        options.fence.command = Some(command.clone());
        let ballot = geometry().ballot(SlotId(0), 0).byte();
        let gone = Arc::new(AtomicBool::new(false));
        let has_gone = gone.clone();
        a.port.set_hook(move |op, at| {
            if op == "write" && at >= ballot && at < ballot + 2 * 4096 {
                lease.unwanted.store(true, Ordering::Relaxed);
                eventually("it has given up", || has_gone.load(Ordering::Relaxed));
            }
            true
        });
        let why = Cluster::join(disk_of(port), options).err().expect("it was mounted").to_string();
        gone.store(true, Ordering::Relaxed);
        assert!(why.contains("told to end"), "{why}");
        let b = || a.cluster.membership().view.slots[1];
        eventually("it is let in", || b().incarnation != Incarnation(0) || a.lease.lost.lock().is_some());
        if a.lease.lost.lock().is_some() {
            continue; // it stood still for too long
        }
        eventually("it is recovered", || matches!(b().state, SlotState::Clean { .. }));
        assert_eq!(command.0.load(Ordering::Relaxed), 0, "its machine is well");
        return;
    }
    panic!("the machine is too busy for this test");
}

/// It may be in the middle of being written.
#[test]
fn what_cannot_be_read_is_not_written_over_at_once() {
    let medium = &Medium::formatted();
    let _c = member(medium, "c", MACHINE_C);
    let joiner = joiner(&medium.port());
    let mut lobby = vec![Some(Claim::default()); usize::from(LOBBY_CELLS)];
    lobby[40..].fill(None);
    for _ in 0..100 {
        assert!(joiner.free_cell(Joiner::CELLS, &lobby).unwrap() < 40);
    }
    assert_eq!(joiner.free_cell(40..50, &lobby), None);
}

/// How many beats of a host still get through; it waits where none does, and is dead once they are used up.
struct Beats(AtomicI64);

const DEAD: i64 = -1;

impl Beats {
    fn allow(&self, beats: i64) {
        self.0.store(beats, Ordering::Relaxed);
    }

    fn are_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == DEAD
    }

    fn pass(&self, beats: bool) -> bool {
        eventually("it goes on", || self.0.load(Ordering::Relaxed) != 0);
        if beats && !self.are_over() && self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.allow(DEAD);
            return true;
        }
        !self.are_over()
    }
}

/// Lets its victim beat while it runs for the first time, and after that.
struct Leaks {
    beats: Arc<Beats>,
    meanwhile: i64,
    after: i64,
    runs: AtomicU64,
}

impl Fence for Leaks {
    fn cut(&self, _: &Victim) -> Result<Cut> {
        if self.runs.fetch_add(1, Ordering::Relaxed) == 0 {
            if self.meanwhile > 0 {
                self.beats.allow(self.meanwhile);
                eventually("it beats", || self.beats.are_over());
            }
            self.beats.allow(self.after);
        }
        Ok(Cut { how: "off".into(), settle: QUICK.suspicion * 2 })
    }
}

/// How often the command runs for a host that beats so often while it runs, and so often after it.
fn runs_for(meanwhile: i64, after: i64) -> u64 {
    let medium = &Medium::formatted();
    let a = member(medium, "a", MACHINE_A);
    let beats = Arc::new(Beats(AtomicI64::new(0)));
    let (of_a, cell) = (beats.clone(), geometry().heartbeat_cell(a.report.slot));
    a.port.set_hook(move |op, at| of_a.pass(op == "write" && at == cell));
    let leaks = Arc::new(Leaks { beats, meanwhile, after, runs: AtomicU64::new(0) });
    let b = join_by_fence(&medium.port(), "b", MACHINE_B, leaks.clone()).unwrap();
    assert!(b.report.first);
    leaks.runs.load(Ordering::Relaxed)
}

#[test]
fn who_beats_on_after_it_was_kept_off_is_kept_off_once_more() {
    assert_eq!(runs_for(0, 5), 2);
}

#[test]
fn who_beat_until_it_was_kept_off_is_not_hit_again() {
    assert_eq!(runs_for(4, DEAD), 1);
}

/// It may have been on its way.
#[test]
fn one_beat_of_a_host_that_is_kept_off_does_not_have_it_hit_again() {
    assert_eq!(runs_for(0, 1), 1);
}
