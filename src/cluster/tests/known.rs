//! Whom a host that dies is known to be: by what survivors saw of it, by its claim in the lobby, or not at all.

use super::command::{
    MACHINE_A, MACHINE_B, Noted, die_before_the_first_beat, join_by_program, join_with, recover_at_once,
};
use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::fencer::Victim;
use crate::format::cluster::{Heartbeat, SlotState};
use crate::format::layout::LOBBY_CELLS;

/// `a` lives, with a program that succeeds; `b` lives beside it for a while, dies, and `then` something happens
/// to its heartbeat. Its claim is another's by then. Whom is the command asked to keep off?
fn victims_of(then: impl Fn(&Medium, &Disk)) -> Vec<Victim> {
    let medium = Medium::formatted();
    let (a, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let a = Arc::new(a.unwrap());
    recover_at_once(&a);
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    let beats = || a.cluster.heartbeats().1[1].as_ref().map_or(0, |beat| beat.counter);
    let first = beats();
    eventually("it is seen to live", || beats() > first + 3);
    drop(b);
    (0..LOBBY_CELLS).for_each(|cell| medium.disk().write_claim(cell, &Default::default()).unwrap());
    then(&medium, &medium.disk());
    eventually("it is recovered", || is_clean(&a, 1));
    asked_for(&noted)
}

fn asked_for(noted: &Noted) -> Vec<Victim> {
    let victims = noted.victims.lock().clone();
    assert!(!victims.is_empty());
    victims
}

fn is_clean(host: &Host, slot: usize) -> bool {
    matches!(host.cluster.membership().view.slots[slot].state, SlotState::Clean { .. })
}

fn is_b(victim: &Victim) -> bool {
    let machine = (victim.host, victim.boot);
    machine == MACHINE_B && victim.name == "b" && victim.device == "memory" && victim.file.rdev == 7
}

/// Power was cut in the middle of it.
#[test]
fn whose_last_heartbeat_is_torn_is_who_it_was_a_second_before() {
    let victims = victims_of(|medium, _| {
        let cell = geometry().heartbeat_cell(SlotId(1)) as usize / 512;
        medium.sectors[cell].write()[100..].fill(0xff);
    });
    assert!(victims.iter().all(|v| is_b(v) && v.lived && !v.never_beat), "{victims:?}");
}

/// The farewell of the mount that had the slot before lands once more.
#[test]
fn who_was_seen_to_live_is_not_taken_for_one_that_never_did() {
    let victims = victims_of(|_, disk| {
        let (slot, incarnation) = (SlotId(1), Incarnation(3));
        let farewell = Heartbeat { slot, incarnation, counter: 99, name: "x".into(), ..Heartbeat::default() };
        disk.write_heartbeat(&farewell).unwrap();
    });
    assert!(victims.iter().all(|v| is_b(v) && v.lived && !v.never_beat), "{victims:?}");
}

/// A virtual machine that is paused in the middle of its mount, its first heartbeat queued below it: it would land
/// in the cell of whoever has the slot by then, which halts.
#[test]
fn who_never_beat_but_is_known_is_kept_off_by_the_program() {
    let medium = Medium::formatted();
    let a = join_by_program(&medium.port(), "a", MACHINE_A, "/bin/false", Box::new(|| ())).0;
    let a = Arc::new(a.unwrap());
    recover_at_once(&a);
    die_before_the_first_beat(&medium);
    let told = || a.cluster.heartbeats().1[0].as_ref().and_then(|beat| beat.fencing.clone());
    eventually("the program fails, and that is told", || told().is_some());
    let told = told().unwrap();
    assert!(told.slot == SlotId(1) && told.error.contains("/bin/false"), "{told:?}");
    assert!(!is_clean(&a, 1));
}

/// Nobody knows whether its machine asks to be let in, so the program is not run.
#[test]
fn a_lobby_that_cannot_be_read_is_told() {
    let medium = Medium::formatted();
    let (a, noted) = join_with(&medium.port(), "a", MACHINE_A);
    let a = a.unwrap();
    a.cluster.on_fenced(Box::new(|_| ()));
    let b = join_with(&medium.port(), "b", MACHINE_B).0.unwrap();
    let lobby = geometry().lobby_cell(0)..geometry().lobby_cell(LOBBY_CELLS);
    a.port.set_hook(move |_, at| !lobby.contains(&at));
    drop(b);
    let disk = medium.disk();
    let told = || disk.read_heartbeat(SlotId(0)).unwrap().and_then(|beat| beat.fencing);
    eventually("it is told", || told().is_some());
    let told = told().unwrap();
    assert!(told.slot == SlotId(1) && told.error.contains("lobby"), "{told:?}");
    assert_eq!(noted.victims.lock().clone(), []);
    a.port.set_hook(|_, _| true);
    eventually("the program is run", || !noted.victims.lock().is_empty());
}
