//! Hosts kept off by a command: who it is run for, and who need not, or cannot, be kept off by it.

use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::command::Command;
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::format::cluster::FenceClass;
use std::path::PathBuf;

const MACHINE_A: ([u8; 16], [u8; 16]) = ([0xa; 16], [1; 16]);
const MACHINE_B: ([u8; 16], [u8; 16]) = ([0xb; 16], [2; 16]);

/// The real thing, which would switch off its own machine, with a program that succeeds; notes for whom.
struct Noted {
    command: Command,
    victims: Mutex<Vec<Victim>>,
}

impl Fence for Noted {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        self.victims.lock().push(victim.clone());
        self.command.cut(victim)
    }
}

fn join_with(port: &Arc<Port>, name: &str, machine: ([u8; 16], [u8; 16])) -> (Result<Host>, Arc<Noted>) {
    let (host, boot) = machine;
    let command = Command::new(PathBuf::from("/bin/true"), "memory".into(), host, boot, &QUICK).unwrap();
    let noted = Arc::new(Noted { command, victims: Mutex::default() });
    let lease = Arc::new(Lease::default());
    let mut options = options(name, Where::Elsewhere, port, &lease);
    (options.host, options.boot, options.file.rdev) = (host, boot, 7);
    options.fence.wanted = Wanted::Class(FenceClass::Command);
    options.fence.command = Some(noted.clone());
    let joined = Cluster::join(disk_of(port.clone()), options);
    let host = joined.map(|(cluster, report)| Host { cluster, report, lease, port: port.clone() });
    (host, noted)
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
fn die_before_the_first_beat(medium: &Arc<Medium>) {
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

#[test]
fn who_dies_before_its_first_beat_is_known_by_its_claim() {
    let medium = Medium::formatted();
    let (a, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let a = Arc::new(a.unwrap());
    let recover = Arc::downgrade(&a);
    let (tell, told) = std::sync::mpsc::channel::<Vec<SlotId>>();
    a.cluster.on_fenced(Box::new(move |slots| drop(tell.send(slots.to_vec()))));
    std::thread::spawn(move || {
        for slots in told {
            if let Some(a) = recover.upgrade() {
                a.cluster.recovered(&slots).unwrap();
            }
        }
    });
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
