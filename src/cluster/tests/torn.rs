//! Sectors of the cells that cannot be read until somebody writes them, as a power cut may leave them.

use super::starved::unless_starved;
use super::takeover::{die, heir, is_clean};
use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::status::{heartbeat_row, moved_cells};
use crate::cluster::view::exclude;

const PITCH: u64 = 512;

/// With such a sector two hosts go on, a third joins, one dies and another takes over, all leave, and one comes back.
fn life_goes_on(at: u64, length: u64) {
    let medium = Medium::formatted();
    let [a, b] = ["a", "b"].map(|name| Arc::new(join(&medium, name, Where::Elsewhere)));
    heir(&a, Duration::ZERO);
    adopt(&b, 1).unwrap();
    medium.tear(at, length);
    let c = Arc::new(join(&medium, "c", Where::Elsewhere));
    adopt(&c, 2).unwrap();
    die(b);
    eventually("b is recovered", || is_clean(&a, 1) && is_clean(&c, 1));
    assert_eq!(adopt(&a, 1), Ok(Token(3)), "above what it wrote last");
    for host in [&a, &c] {
        assert_eq!(host.lease.lost.lock().clone(), None);
        host.cluster.leave().unwrap();
    }
    medium.tear(at, length);
    let d = join(&medium, "d", Where::Elsewhere);
    assert!(d.report.replay.is_empty());
    d.cluster.leave().unwrap();
}

#[test]
fn a_heartbeat_cell_that_nobody_writes() {
    unless_starved(|| life_goes_on(geometry().heartbeat_cell(SlotId(3)), PITCH));
}

#[test]
fn the_heartbeat_cell_of_a_host_that_lives() {
    unless_starved(|| life_goes_on(geometry().heartbeat_cell(SlotId(0)), PITCH));
}

#[test]
fn one_copy_of_a_ballot() {
    unless_starved(|| life_goes_on(geometry().ballot(SlotId(1), 0).byte(), 4096));
    unless_starved(|| life_goes_on(geometry().ballot(SlotId(3), 1).byte(), 4096));
}

#[test]
fn one_copy_of_a_ledger_page() {
    unless_starved(|| life_goes_on(geometry().ledger(SlotId(1), 0, 1).byte(), 4096));
}

#[test]
fn a_lobby_cell() {
    unless_starved(|| life_goes_on(geometry().lobby_cell(LOBBY_CELLS - 1), PITCH));
}

/// Nothing is learnt from it: who died is recovered, and its slot can be had, though its cell is lost with it.
#[test]
fn the_heartbeat_cell_of_the_dead() {
    unless_starved(|| {
        let medium = Medium::formatted();
        let [a, b] = ["a", "b"].map(|name| Arc::new(join(&medium, name, Where::Elsewhere)));
        heir(&a, Duration::ZERO);
        let begun = now();
        die(b);
        medium.tear(geometry().heartbeat_cell(SlotId(1)), PITCH);
        eventually("b is recovered", || is_clean(&a, 1));
        assert!(now() - begun >= QUICK.lease, "it says nothing of how old its last beat is");
        let c = join(&medium, "c", Where::Elsewhere);
        assert_eq!(c.report.slot, SlotId(1));
        assert!(!medium.is_torn(geometry().heartbeat_cell(SlotId(1))));
    });
}

/// Nobody is there to recover it: the next first mount does, as soon as it is gone for certain.
#[test]
fn the_heartbeat_cell_of_the_last_one() {
    unless_starved(|| {
        let medium = Medium::formatted();
        drop(join(&medium, "a", Where::Elsewhere));
        medium.tear(geometry().heartbeat_cell(SlotId(0)), PITCH);
        let begun = now();
        let b = join(&medium, "b", Where::Elsewhere);
        assert!(now() - begun >= QUICK.wait(), "it says nothing of how old its last beat is");
        assert_eq!((b.report.first, b.report.replay), (true, vec![SlotId(0)]));
    });
}

/// A part of the device is out of reach for one host, with the heartbeat of another, which lives: it is not taken for
/// gone.
#[test]
fn what_cannot_be_reached_is_not_gone() {
    unless_starved(|| {
        let medium = Medium::formatted();
        let a = join(&medium, "a", Where::Elsewhere);
        let port = medium.port();
        let row = geometry().heartbeat_cell(SlotId(0));
        port.set_hook(move |op, at| op != "read" || at > row);
        let error = join_by(port, "b", Where::Elsewhere).err().expect("it cannot know");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(adopt(&a, 1).is_ok());
        assert_eq!(a.lease.lost.lock().clone(), None);
    });
}

/// The cell that tells of its exclusion is out of reach for a member: it renews no more all the same.
#[test]
fn an_exclusion_that_cannot_be_seen_counts() {
    unless_starved(|| {
        let medium = Medium::formatted();
        let [_a, b] = ["a", "b"].map(|name| join(&medium, name, Where::Elsewhere));
        let (disk, row) = (medium.disk(), geometry().heartbeat_cell(SlotId(0)));
        b.port.set_hook(move |op, at| op != "read" || at != row);
        let ballots = disk.read_ballots().unwrap();
        let view = ballots.iter().map(|(ballot, _)| &ballot.decided).max_by_key(|view| view.epoch).unwrap();
        let victim = (SlotId(1), view.slots[1].incarnation);
        let (mut ballot, sequence) = ballots[2].clone();
        ballot.decided = exclude(view, SlotId(0), &[victim]).expect("it is a member");
        let renewals = || b.lease.renewals.load(Ordering::Relaxed);
        for n in 1..=2 {
            disk.write_ballot(SlotId(2), Incarnation(9), sequence + n, &ballot).unwrap();
        }
        let before = renewals();
        eventually("b knows", || b.lease.lost.lock().is_some());
        assert!(renewals() <= before + 1, "it has renewed {} times since", renewals() - before);
    });
}

/// A register that its reader cannot read is written again by who wrote it.
#[test]
fn a_register_is_mended_by_its_writer() {
    let medium = Medium::formatted();
    let [(a, _), (b, post)] = ["a", "b"].map(|name| mail::start(&medium, name));
    *post.out.lock() = mail::content(1, 1);
    b.cluster.wake();
    let cell = geometry().inbox_cell(SlotId(0), SlotId(1));
    eventually("b has written to a", || {
        medium.disk().read_inbox(SlotId(0), &[SlotId(1)]).is_ok_and(|cells| !cells.is_empty())
    });
    medium.tear(cell, PITCH);
    eventually("b writes it again", || !medium.is_torn(cell));
    for host in [&a, &b] {
        assert_eq!(host.lease.lost.lock().clone(), None);
        host.cluster.leave().unwrap();
    }
}

/// A device that reads nothing of a row is one that is gone.
#[test]
fn a_whole_row_is_an_error() {
    let medium = Medium::formatted();
    medium.tear(geometry().heartbeat_cell(SlotId(0)), PITCH * u64::from(SLOTS));
    assert!(matches!(medium.disk().read_heartbeats(), Err(Error::Io { .. })));
    assert!(matches!(medium.disk().read_heartbeat(SlotId(1)), Err(Error::Io { .. })));
}

/// Who only looks on gets to see everything else.
#[test]
fn tools_see_the_others() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    medium.tear(geometry().heartbeat_cell(SlotId(3)), PITCH);
    let before = heartbeat_row(&medium.disk()).unwrap();
    let moved = || moved_cells(&medium.disk(), &before, &heartbeat_row(&medium.disk()).unwrap());
    eventually("it beats", || {
        moved().first().is_some_and(|(slot, beat)| *slot == SlotId(0) && beat.is_some())
    });
    assert_eq!(moved().len(), 1);
    assert!(read_status(&medium.disk(), None).unwrap().occupied().all(|host| host.beat.is_some()));
    a.cluster.leave().unwrap();
    // What is out of reach may be beating.
    let _b = join(&medium, "b", Where::Elsewhere);
    let (port, row) = (medium.port(), geometry().heartbeat_cell(SlotId(0)));
    port.set_hook(move |op, at| op != "read" || at > row);
    assert!(matches!(heartbeat_row(&disk_of(port)), Err(Error::Io { .. })));
}
