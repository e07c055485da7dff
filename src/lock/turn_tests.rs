//! The end of a turn between desks: what is written under a lock of programs, by one host after the other.

use crate::base::Mode;
use crate::lock::desk_rig::{Hosts, IDLE};
use std::time::Duration;

const HOLD: Duration = Duration::from_millis(10);
/// What writing back takes: who waits for it holds the lock for a while then.
const WRITE_BACK: Duration = Duration::from_micros(250);
/// Longer than any of a turn's waits.
const LATER: Duration = Duration::from_secs(1);

/// Two hosts of which each has programs with locks of the file, so that none is alone with those.
fn two() -> Hosts {
    let mut hosts = Hosts::with(HOLD, 4);
    (0..2).for_each(|at| hosts.lock_file(at, Mode::S));
    (0..2).for_each(|at| hosts.lock_file(at, Mode::N));
    hosts
}

fn write(hosts: &mut Hosts, at: usize) {
    let ticket = hosts.ask(at, Mode::X);
    while !hosts.is_done(ticket) {
        match (0..2).find(|other| !hosts.hosts[*other].demotions.is_empty()) {
            Some(other) => write_back(hosts, other),
            None => hosts.wait(IDLE),
        }
    }
    hosts.end(ticket);
}

fn turn(hosts: &mut Hosts, at: usize) {
    hosts.lock_file(at, Mode::X);
    write(hosts, at);
    hosts.lock_file(at, Mode::N);
}

/// Both have learned that a turn is over when the file was written.
fn after_some_turns() -> Hosts {
    let mut hosts = two();
    for turn_of in [0, 1].repeat(4) {
        turn(&mut hosts, turn_of);
        hosts.now += IDLE / 2;
    }
    hosts
}

fn write_back(hosts: &mut Hosts, at: usize) {
    hosts.now += WRITE_BACK;
    hosts.demote(at);
}

fn writes_back(hosts: &Hosts, at: usize) -> bool {
    !hosts.hosts[at].demotions.is_empty()
}

#[test]
fn what_was_written_is_on_its_way_with_the_lock_and_not_only_when_it_is_asked_for() {
    let mut hosts = two();
    turn(&mut hosts, 0);
    assert!(!writes_back(&hosts, 0), "nobody has wanted the file yet");
    let mut hosts = after_some_turns();
    for at in [0, 1].repeat(4) {
        turn(&mut hosts, at);
        assert!(writes_back(&hosts, at));
        write_back(&mut hosts, at);
        assert_eq!(hosts.mode(at), Mode::N);
    }
}

#[test]
fn what_is_in_use_is_kept() {
    let mut hosts = after_some_turns();
    hosts.lock_file(0, Mode::X);
    write(&mut hosts, 0);
    let under_way = hosts.ask(0, Mode::X);
    hosts.lock_file(0, Mode::N);
    assert!(!writes_back(&hosts, 0));
    hosts.end(under_way);
    assert!(!writes_back(&hosts, 0) && hosts.mode(0) == Mode::X);
}

#[test]
fn what_was_only_read_is_kept() {
    let mut hosts = after_some_turns();
    while let Some(at) = (0..2).find(|at| writes_back(&hosts, *at)) {
        hosts.demote(at);
    }
    hosts.lock_file(0, Mode::X);
    let reader = hosts.ask(0, Mode::S);
    assert!(hosts.is_done(reader));
    hosts.end(reader);
    hosts.lock_file(0, Mode::N);
    assert!(!writes_back(&hosts, 0) && hosts.mode(0) == Mode::X, "alone, it is exclusive though only read");
}

/// Others have only locks: so it is given up a few times in vain, until one of them wants the file.
#[test]
fn a_file_that_only_one_host_writes_stays_there() {
    let mut hosts = after_some_turns();
    let mut given_up = 0;
    for at in [0, 1].repeat(100) {
        hosts.lock_file(at, Mode::X);
        if at == 0 {
            write(&mut hosts, 0);
        }
        hosts.lock_file(at, Mode::N);
        if writes_back(&hosts, 0) {
            given_up += 1;
            write_back(&mut hosts, 0);
        }
        hosts.now += LATER;
    }
    assert!((1..=16).contains(&given_up), "{given_up}");
    assert_eq!(hosts.mode(0), Mode::X);
}

#[test]
fn who_goes_on_with_the_file_after_the_lock_is_believed() {
    let mut hosts = after_some_turns();
    turn(&mut hosts, 0);
    // At once again, while it is being given up.
    let again = hosts.ask(0, Mode::X);
    assert!(writes_back(&hosts, 0));
    hosts.demote(0);
    assert!(hosts.is_done(again));
    hosts.end(again);
    turn(&mut hosts, 0);
    assert!(!writes_back(&hosts, 0));
}

#[test]
fn it_stays_with_the_host_whose_other_program_is_next() {
    let mut hosts = after_some_turns();
    hosts.lock_file(0, Mode::S);
    write(&mut hosts, 0);
    hosts.lock_file_of(0, 2, Mode::S);
    hosts.lock_file(0, Mode::N);
    assert!(!writes_back(&hosts, 0), "one that has a lock, too");
    hosts.lock_file_of(0, 2, Mode::N);
    assert!(writes_back(&hosts, 0), "the last one");
    write_back(&mut hosts, 0);
}

/// Nobody waits for it, so nobody may lose by it: it is neither given up for good nor tried again and again.
#[test]
fn what_cannot_be_written_stays_until_it_is_asked_for() {
    let mut hosts = after_some_turns();
    turn(&mut hosts, 0);
    assert!(hosts.hosts[0].demotions[0].may_stay);
    hosts.refuse(0);
    hosts.wait(LATER);
    assert!(!writes_back(&hosts, 0) && hosts.mode(0) == Mode::X);
    let again = hosts.ask(0, Mode::X);
    assert!(hosts.is_done(again), "it can be used");
    hosts.end(again);
    let other = hosts.ask(1, Mode::X);
    hosts.wait(LATER);
    assert!(!hosts.hosts[0].demotions[0].may_stay);
    hosts.refuse(0);
    hosts.wait(LATER);
    assert!(writes_back(&hosts, 0), "somebody waits for it");
    hosts.demote(0);
    assert!(hosts.is_done(other));
}
