//! Hosts kept off by a command: who it is run for, and who need not, or cannot, be kept off by it.

use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::command::Command;
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::cluster::former::victim_of;
use crate::cluster::known::Known;
use crate::cluster::view::{bit, live, slot_of};
use crate::format::cluster::heartbeat::Refusal;
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::view::{PROTOCOL, PROTOCOL_MIN};
use crate::format::cluster::{Claim, FenceClass, Heartbeat, SlotState, SlotView};
use crate::format::layout::LOBBY_CELLS;
use std::path::PathBuf;

pub const MACHINE_A: ([u8; 16], [u8; 16]) = ([0xa; 16], [1; 16]);
pub const MACHINE_B: ([u8; 16], [u8; 16]) = ([0xb; 16], [2; 16]);
pub const MACHINE_C: ([u8; 16], [u8; 16]) = ([0xc; 16], [3; 16]);

/// The real thing, which would switch off its own machine, with a program that succeeds; notes for whom.
pub struct Noted {
    command: Command,
    pub victims: Mutex<Vec<Victim>>,
    during: Box<dyn Fn() + Send + Sync>,
}

impl Fence for Noted {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        self.victims.lock().push(victim.clone());
        (self.during)();
        self.command.cut(victim)
    }
}

pub fn join_with(port: &Arc<Port>, name: &str, machine: ([u8; 16], [u8; 16])) -> (Result<Host>, Arc<Noted>) {
    join_by_program(port, name, machine, "/bin/true", Box::new(|| ()))
}

pub fn join_by_program(
    port: &Arc<Port>,
    name: &str,
    (host, boot): ([u8; 16], [u8; 16]),
    program: &str,
    during: Box<dyn Fn() + Send + Sync>,
) -> (Result<Host>, Arc<Noted>) {
    let path = PathBuf::from(program);
    let command = Command::new(path, "memory".into(), host, boot, name.into(), &QUICK).unwrap();
    let noted = Arc::new(Noted { command, victims: Mutex::default(), during });
    (join_by_fence(port, name, (host, boot), noted.clone()), noted)
}

pub fn join_by_fence(
    port: &Arc<Port>,
    name: &str,
    (host, boot): ([u8; 16], [u8; 16]),
    fence: Arc<dyn Fence>,
) -> Result<Host> {
    let lease = Arc::new(Lease::default());
    let mut options = options(name, Where::Elsewhere, port, &lease);
    (options.host, options.boot, options.file.rdev) = (host, boot, 7);
    options.fence.wanted = Wanted::Class(FenceClass::Command);
    options.fence.command = Some(fence);
    options.patience = Duration::from_secs(4);
    let joined = Cluster::join(disk_of(port.clone()), options);
    joined.map(|(cluster, report)| Host { cluster, report, lease, port: port.clone() })
}

fn victims(noted: &Noted) -> Vec<SlotId> {
    noted.victims.lock().iter().map(|v| v.slot).collect()
}

#[test]
fn after_the_death_of_all_who_was_here_is_gone_and_the_others_are_cut() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    drop((a, b));
    let (again, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let again = again.unwrap();
    assert_eq!(again.report.replay, [SlotId(0), SlotId(1)]);
    assert_eq!(victims(&noted), [SlotId(1)]);
    assert!(noted.victims.lock().iter().all(|v| v.host == MACHINE_B.0 && v.name == "b"));
}

#[test]
fn dead_hosts_of_this_machine_that_an_adopter_left_are_gone() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    // b excludes a, and dies before it recovers it.
    b.cluster.on_fenced(Box::new(|_| ()));
    drop(a);
    let dead = || {
        matches!(b.cluster.membership().view.slots[0].state, crate::format::cluster::SlotState::Dead { .. })
    };
    eventually("a is dead", dead);
    drop(b);
    let (again, noted) = join_with(&medium.port(), "a", MACHINE_A);
    assert!(again.is_ok() && victims(&noted) == [SlotId(1)], "{:?}", victims(&noted));
}

/// A mount of machine B is let in, and dies before its first heartbeat is written.
pub fn die_before_the_first_beat(medium: &Arc<Medium>) {
    let port = medium.port();
    let beats = geometry().heartbeat_cell(SlotId(0))..geometry().heartbeat_cell(SlotId(SLOTS));
    let gone = AtomicBool::new(false);
    port.set_hook(move |op, at| {
        if op == "write" && beats.contains(&at) {
            gone.store(true, Ordering::Relaxed);
        }
        !gone.load(Ordering::Relaxed)
    });
    assert!(join_with(&port, "b", MACHINE_B).0.is_err());
}

/// Whoever dies is recovered as soon as it is kept off.
pub fn recover_at_once(host: &Arc<Host>) {
    let recover = Arc::downgrade(host);
    let (tell, told) = std::sync::mpsc::channel::<Vec<SlotId>>();
    host.cluster.on_fenced(Box::new(move |slots| drop(tell.send(slots.to_vec()))));
    std::thread::spawn(move || {
        for slots in told {
            if let Some(host) = recover.upgrade() {
                host.cluster.recovered(&slots).unwrap();
            }
        }
    });
}

#[test]
fn who_dies_before_its_first_beat_is_known_by_its_claim() {
    let medium = Medium::formatted();
    let (a, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let a = Arc::new(a.unwrap());
    recover_at_once(&a);
    die_before_the_first_beat(&medium);
    eventually("it is recovered", || {
        let slot = a.cluster.membership().view.slots[1];
        slot.incarnation != Incarnation(0)
            && matches!(slot.state, crate::format::cluster::SlotState::Clean { .. })
    });
    let victims = noted.victims.lock().clone();
    assert!(victims.iter().all(|v| v.host == MACHINE_B.0 && v.name == "b" && v.never_beat), "{victims:?}");
    assert!(!victims.is_empty());
}

#[test]
fn who_left_no_trace_is_waited_for() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    die_before_the_first_beat(&medium);
    // Somebody else's claim stands where its was.
    for cell in 0..crate::format::layout::LOBBY_CELLS {
        medium.disk().write_claim(cell, &Default::default()).unwrap();
    }
    drop(a);
    let begun = now();
    let (again, noted) = join_with(&medium.port(), "a", MACHINE_A);
    assert!(again.is_ok());
    assert!(now() - begun >= QUICK.wait() * 2, "once to see that nobody lives, once for it");
    assert_eq!(victims(&noted), [SlotId(1)]);
}

#[test]
fn two_machines_of_one_identity_are_not_let_in() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    let clone = join_with(&medium.port(), "clone", (MACHINE_A.0, MACHINE_B.1)).0;
    let why = clone.err().expect("it was let in").to_string();
    assert!(why.contains("machine-id"), "{why}");
    assert_eq!(a.lease.lost.lock().clone(), None);
    a.cluster.leave().unwrap();
}

/// By another path to the disk, which tells nobody that it is the same one.
#[test]
fn a_second_mount_of_one_machine_is_told_why_it_is_refused() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    let why = join_with(&medium.port(), "a", MACHINE_A).0.err().expect("it was let in").to_string();
    assert!(why.contains("a (slot 0)") && why.contains("this machine already"), "{why}");
    assert_eq!(a.lease.lost.lock().clone(), None);
}

/// The one that would tell it stands still just then.
#[test]
fn who_stands_still_is_not_joined_by_a_clone() {
    for _ in 0..5 {
        let medium = Medium::formatted();
        let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
        let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
        let gate = a.port.gate.write();
        let clone = std::thread::scope(|scope| {
            let clone = scope.spawn(|| join_with(&medium.port(), "clone", (MACHINE_A.0, MACHINE_B.1)).0);
            std::thread::sleep(QUICK.lease / 2);
            assert_eq!(b.cluster.membership().view.slots[2].incarnation, Incarnation(0), "it was let in");
            drop(gate);
            clone.join().unwrap()
        });
        if a.lease.lost.lock().is_some() {
            continue; // it stood still for too long
        }
        let why = clone.err().expect("it stayed").to_string();
        assert!(why.contains("machine-id"), "{why}");
        assert_eq!(live(&b.cluster.membership().view), bit(SlotId(0)) | bit(SlotId(1)));
        return;
    }
    panic!("the machine is too busy for this test");
}

#[test]
fn of_clones_that_join_at_the_same_moment_one_gets_in() {
    for _ in 0..3 {
        let medium = Medium::formatted();
        let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
        let medium = &medium;
        let clones = std::thread::scope(|scope| {
            let clone =
                |boot| scope.spawn(move || join_with(&medium.port(), "b", (MACHINE_B.0, [boot; 16])).0);
            [8, 9].map(clone).map(|clone| clone.join().unwrap())
        });
        let refused: Vec<_> = clones.iter().filter_map(|c| c.as_ref().err()).collect();
        assert_eq!(refused.len(), 1, "how many were refused");
        assert!(refused[0].to_string().contains("machine-id"), "{}", refused[0]);
        assert_eq!(a.lease.lost.lock().clone(), None);
    }
}

/// The command would be run against a machine that is well.
#[test]
fn a_machine_is_let_in_again_once_its_last_mount_is_kept_off() {
    let medium = Medium::formatted();
    let (a, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let a = Arc::new(a.unwrap());
    recover_at_once(&a);
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    drop(b);
    let again = join_with(&medium.port(), "b", (MACHINE_B.0, [9; 16])).0.unwrap();
    assert_eq!(victims(&noted), [SlotId(1)], "before it was let in");
    std::thread::sleep(QUICK.wait());
    assert_eq!(victims(&noted).len(), 1, "and never again");
    assert!(again.lease.lost.lock().is_none());
}

/// Others would take the claim over, and run the command too.
#[test]
fn a_command_that_takes_long_is_run_by_one_host_alone() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    drop((a, b));
    let long = QUICK.claim_wait() * 4 + QUICK.suspicion * 3;
    let slow = Box::new(move || std::thread::sleep(long));
    let medium = &medium;
    let (c, d) = std::thread::scope(|scope| {
        let c = scope.spawn(move || join_by_program(&medium.port(), "c", MACHINE_C, "/bin/true", slow));
        std::thread::sleep(QUICK.wait() + QUICK.suspicion);
        let d = scope.spawn(move || join_with(&medium.port(), "d", ([0xd; 16], [4; 16])));
        (c.join().unwrap(), d.join().unwrap())
    });
    assert!(c.0.is_ok(), "{:?}", c.0.err());
    assert_eq!((victims(&c.1), victims(&d.1)), (vec![SlotId(0), SlotId(1)], vec![]));
    assert!(c.0.is_ok_and(|c| c.report.first));
}

fn other_claim() -> Claim {
    Claim { kind: ClaimKind::First, incarnation: Incarnation(77), sequence: 9, ..Claim::default() }
}

#[test]
fn a_first_mount_that_lost_its_claim_runs_the_command_no_further_and_never_twice() {
    let medium = Medium::formatted();
    let a = join_with(&medium.port(), "a", MACHINE_A).0.unwrap();
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    drop((a, b));
    let (disk, runs) = (medium.disk(), Arc::new(AtomicU64::new(0)));
    let astray = Arc::new(AtomicBool::new(false));
    let (count, wrong) = (runs.clone(), astray.clone());
    let during = move || {
        let lobby = disk.read_lobby().unwrap();
        let first = |c: &Option<Claim>| c.as_ref().is_some_and(|c| c.kind == ClaimKind::First);
        let cell = lobby.iter().position(first).expect("a claim");
        let others = lobby[cell].as_ref().is_some_and(|c| c.incarnation == Incarnation(77));
        wrong.fetch_or(others, Ordering::Relaxed);
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            disk.write_claim(cell as u16, &other_claim()).unwrap();
        }
    };
    let (c, noted) = join_by_program(&medium.port(), "c", MACHINE_C, "/bin/true", Box::new(during));
    assert!(c.is_ok(), "{:?}", c.err());
    assert_eq!(victims(&noted), [SlotId(0), SlotId(1)]);
    assert!(!astray.load(Ordering::Relaxed), "it was somebody else's to do");
}

#[test]
fn what_cannot_be_kept_off_is_named_to_who_waits_for_it() {
    let medium = Medium::formatted();
    let fails =
        |name, machine| join_by_program(&medium.port(), name, machine, "/bin/false", Box::new(|| ())).0;
    let a = fails("a", MACHINE_A).unwrap();
    let b = fails("b", MACHINE_B).unwrap();
    a.cluster.on_fenced(Box::new(|_| ()));
    drop(b);
    let b_is_dead = || {
        matches!(a.cluster.membership().view.slots[1].state, crate::format::cluster::SlotState::Dead { .. })
    };
    eventually("b is dead", b_is_dead);
    let why = fails("c", MACHINE_C).err().expect("it was let in").to_string();
    assert!(why.contains("a cannot keep b (slot 1) off the disk") && why.contains("/bin/false"), "{why}");
    drop(a);
    let why = fails("c", MACHINE_C).err().expect("it was mounted").to_string();
    assert!(why.contains("a (slot 0) cannot be kept off") && why.contains("/bin/false"), "{why}");
}

/// Each host may have another program.
#[test]
fn whom_one_host_cannot_keep_off_another_one_does() {
    let medium = Medium::formatted();
    let by = |name, machine, program| {
        let (host, noted) = join_by_program(&medium.port(), name, machine, program, Box::new(|| ()));
        (Arc::new(host.unwrap()), noted)
    };
    let (a, failing) = by("a", MACHINE_A, "/bin/false");
    let (b, able) = by("b", MACHINE_B, "/bin/true");
    recover_at_once(&a);
    recover_at_once(&b);
    drop(by("c", MACHINE_C, "/bin/true"));
    let is_clean = || {
        let view = b.cluster.membership().view.clone();
        matches!(view.slots[2].state, SlotState::Clean { .. })
    };
    let limit = now() + Duration::from_secs(60);
    while !is_clean() {
        assert!(now() < limit, "c stays dead");
        std::thread::sleep(QUICK.heartbeat);
    }
    assert!(victims(&failing).len() >= 5 && victims(&failing).iter().all(|slot| *slot == SlotId(2)));
    assert_eq!(victims(&able), [SlotId(2)]);
}

fn protocol_of(host: &Host) -> u16 {
    host.cluster.membership().view.protocol
}

/// It would decide views in which the times do not stand.
#[test]
fn who_speaks_an_older_protocol_is_let_in_nowhere() {
    for class in [FenceClass::Lease, FenceClass::Command] {
        let medium = Medium::formatted();
        let a = match class {
            FenceClass::Lease => super::join(&medium, "a", Where::Elsewhere),
            _ => join_with(&medium.port(), "a", MACHINE_A).0.unwrap(),
        };
        assert_eq!(protocol_of(&a), PROTOCOL);
        let disk = medium.disk();
        let old = Incarnation(4711);
        for sequence in 1..40 {
            let claim = Claim {
                kind: ClaimKind::Join,
                incarnation: old,
                sequence,
                host: [9; 16],
                protocols: (2, 3),
                name: "old".into(),
                ..Claim::default()
            };
            disk.write_claim(5, &claim).unwrap();
            std::thread::sleep(QUICK.heartbeat);
        }
        let refused = disk.read_heartbeat(SlotId(0)).unwrap().expect("a heartbeat").refused;
        let is_in = slot_of(&a.cluster.membership().view, old).is_some();
        assert!(!is_in && refused == Some((old, Refusal::Protocol)), "{class:?}: {refused:?}");
    }
}

/// The hosts of a view that nobody has left behind spoke this.
fn spoken(medium: &Arc<Medium>, protocol: u16) {
    let disk = medium.disk();
    let (mut ballot, sequence) = disk.read_ballots().unwrap()[0].clone();
    ballot.decided.epoch.0 += 1;
    ballot.decided.protocol = protocol;
    for next in 1..=2 {
        disk.write_ballot(SlotId(0), Incarnation(7), sequence + next, &ballot).unwrap();
    }
}

#[test]
fn a_volume_of_hosts_that_speak_a_later_protocol_is_left_alone() {
    let medium = Medium::formatted();
    spoken(&medium, PROTOCOL + 1);
    let why = super::try_join(&medium, "a", Where::Elsewhere).err().expect("it was mounted").to_string();
    assert!(why.contains(&format!("protocol {}", PROTOCOL + 1)), "{why}");
}

#[test]
fn a_volume_of_hosts_that_spoke_an_older_protocol_speaks_ours_from_the_first_mount_on() {
    let medium = Medium::formatted();
    spoken(&medium, PROTOCOL_MIN - 1);
    let a = super::join(&medium, "a", Where::Elsewhere);
    assert_eq!(protocol_of(&a), PROTOCOL_MIN);
    let b = super::join(&medium, "b", Where::Elsewhere);
    assert_eq!(protocol_of(&b), PROTOCOL_MIN);
}

#[test]
fn whose_claim_cannot_be_read_is_not_known_to_have_never_beaten() {
    let medium = Medium::formatted();
    let port = medium.port();
    let lobby = geometry().lobby_cell(0)..geometry().lobby_cell(LOBBY_CELLS);
    port.set_hook(move |_, at| !lobby.contains(&at));
    let member = SlotView { state: SlotState::Live { former: None }, incarnation: Incarnation(4) };
    let other = Heartbeat { incarnation: Incarnation(3), ..Heartbeat::default() };
    let victim = |port| victim_of(&disk_of(port), SlotId(1), &member, Some(&other), &Known::default());
    assert!(!victim(port).never_beat, "its claim would tell which machine it was");
    assert!(victim(medium.port()).never_beat);
    medium.sectors[geometry().lobby_cell(9) as usize / 512].write()[100..].fill(0xff);
    assert!(!victim(medium.port()).never_beat, "that may be its claim");
    let claim = Claim { incarnation: Incarnation(4), host: MACHINE_B.0, ..Claim::default() };
    medium.disk().write_claim(8, &claim).unwrap();
    assert!(victim(medium.port()).never_beat && victim(medium.port()).host == MACHINE_B.0);
}

/// Whoever looked after a joiner's slot dies before it has acknowledged the joiner. The one that sees to it is at
/// it; the joiner would be the second.
#[test]
fn a_joiner_leaves_the_host_that_looked_after_its_slot_to_who_sees_to_it() {
    let medium = Medium::formatted();
    let f = join_with(&medium.port(), "f", MACHINE_A).0.unwrap();
    let slow = Box::new(|| std::thread::sleep(QUICK.wait() * 3));
    let (a, by_a) = join_by_program(&medium.port(), "a", MACHINE_B, "/bin/true", slow);
    let a = Arc::new(a.unwrap());
    recover_at_once(&a);
    let machine_x = ([0xe; 16], [5; 16]);
    join_with(&medium.port(), "x", machine_x).0.unwrap().cluster.leave().unwrap();
    let slot = |n: usize| a.cluster.membership().view.slots[n].state;
    eventually("f looks after it", || {
        slot(2) == SlotState::Clean { adopter: crate::format::cluster::Adopter::Slot(SlotId(0)) }
    });
    let (disk, gone) = (medium.disk(), AtomicBool::new(false));
    let cell = geometry().heartbeat_cell(SlotId(0));
    f.port.set_hook(move |op, at| {
        if op == "write" && at == cell {
            let newest =
                disk.read_ballots().unwrap().into_iter().map(|(b, _)| b.decided).max_by_key(|v| v.epoch);
            let joined = newest.is_some_and(|view| matches!(view.slots[2].state, SlotState::Live { .. }));
            gone.fetch_or(joined, Ordering::Relaxed);
        }
        !gone.load(Ordering::Relaxed)
    });
    let (joined, by_joiner) = join_with(&medium.port(), "c", MACHINE_C);
    let joined = joined.unwrap();
    assert_eq!((joined.report.slot, victims(&by_a)), (SlotId(2), vec![SlotId(0)]));
    assert_eq!(victims(&by_joiner), [], "run by two at once");
}
