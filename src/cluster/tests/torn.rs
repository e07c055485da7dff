//! Sectors of the cells that cannot be read until somebody writes them, as a power cut may leave them.

use super::starved::unless_starved;
use super::takeover::{die, heir, is_clean};
use super::*;
use crate::base::SlotId;

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
