//! Shared direct writes between desks: who has them at the same time, and who comes when somebody wants else.

use crate::base::{AgNo, InodeNo, LockName, Mode, SlotId};
use crate::lock::LockSet;
use crate::lock::desk::Effect;
use crate::lock::desk_rig::{Hosts, file, membership};
use crate::lock::manager_tests::GEOMETRY;
use std::collections::BTreeSet;

#[test]
fn hosts_have_it_at_the_same_time_and_need_no_words_then() {
    let mut hosts = Hosts::new();
    let all: Vec<_> = (0..3).map(|at| hosts.ask(at, Mode::DW)).collect();
    assert!(all.iter().all(|ticket| hosts.is_done(*ticket)));
    assert!((0..3).all(|at| hosts.mode(at) == Mode::DW && hosts.hosts[at].demotions.is_empty()));
    all.into_iter().for_each(|ticket| hosts.end(ticket));
    let silent = hosts.hosts.iter().all(|h| h.desk.outgoing(SlotId(0)).is_empty() && h.desk.is_quiet());
    assert!(silent, "a lock that is held is not spoken of");
    hosts.words = 0;
    for _ in 0..100 {
        for at in 0..3 {
            let ticket = hosts.ask(at, Mode::DW);
            hosts.end(ticket);
        }
    }
    assert_eq!(hosts.words, 0);
}

#[test]
fn alone_it_stays_what_was_asked_for() {
    let mut hosts = Hosts::new();
    let ticket = hosts.ask(0, Mode::DW);
    assert!(hosts.is_done(ticket) && hosts.mode(0) == Mode::DW);
    // Free as it is, there is no way around giving it up first.
    assert!(!hosts.hosts[0].desk.claim_pinned(file(), Mode::X));
    assert!(hosts.hosts[0].desk.claim(file(), Mode::S).is_none());
    hosts.end(ticket);
    let iopen = LockName::IOpen(InodeNo(GEOMETRY.ag_start(AgNo(0)).0 + 700));
    hosts.hosts[0].desk.acquire(hosts.now, LockSet::one(iopen, Mode::DW));
    let refused = hosts.hosts[0].desk.next_effect();
    assert!(matches!(refused, Some(Effect::Complete { result: Err(_), .. })), "{refused:?}");
}

#[test]
fn a_waiting_writer_is_passed_by_no_direct_one() {
    let mut hosts = Hosts::new();
    let (a, b) = (hosts.ask(0, Mode::DW), hosts.ask(1, Mode::DW));
    let x = hosts.ask(2, Mode::X);
    let (late_a, late_b) = (hosts.ask(0, Mode::DW), hosts.ask(1, Mode::DW));
    assert!(!hosts.is_done(x) && !hosts.is_done(late_a) && !hosts.is_done(late_b));
    hosts.end(a);
    assert_eq!(hosts.demote(0), (Mode::DW, Mode::N));
    assert!(!hosts.is_done(x), "the other has it still");
    hosts.end(b);
    assert_eq!(hosts.demote(1), (Mode::DW, Mode::N));
    assert!(hosts.is_done(x) && !hosts.is_done(late_a) && !hosts.is_done(late_b));
    hosts.end(x);
    assert_eq!(hosts.demote(2), (Mode::X, Mode::N));
    assert!(hosts.is_done(late_a) && hosts.is_done(late_b));
}

#[test]
fn readers_and_direct_writers_take_turns() {
    let mut hosts = Hosts::new();
    let (a, b) = (hosts.ask(1, Mode::S), hosts.ask(2, Mode::DW));
    hosts.end(a);
    assert_eq!(hosts.demote(1), (Mode::S, Mode::N));
    assert!(hosts.is_done(b));
    let reader = hosts.ask(1, Mode::S);
    hosts.end(b);
    assert_eq!(hosts.demote(2), (Mode::DW, Mode::N));
    assert!(hosts.is_done(reader));
}

/// On one host, too, the one is given up before there is the other, in the order of asking.
#[test]
fn operations_of_one_host_change_over_by_way_of_nothing() {
    for at in [0, 1] {
        let mut hosts = Hosts::new();
        let x = hosts.ask(at, Mode::X);
        let (direct, later) = (hosts.ask(at, Mode::DW), hosts.ask(at, Mode::X));
        assert!(hosts.is_done(x) && !hosts.is_done(direct) && !hosts.is_done(later));
        hosts.end(x);
        assert_eq!(hosts.demote(at), (Mode::X, Mode::N));
        assert!(hosts.is_done(direct) && hosts.mode(at) == Mode::DW && !hosts.is_done(later));
        hosts.end(direct);
        assert_eq!(hosts.demote(at), (Mode::DW, Mode::N));
        assert!(hosts.is_done(later) && hosts.mode(at) == Mode::X);
        hosts.end(later);
    }
}

/// Times of writes are handed in before anybody can look.
#[test]
fn who_comes_down_and_asks_first_has_it_before_those_who_wait() {
    for holder in [0, 1] {
        let mut hosts = Hosts::new();
        let (a, b) = (hosts.ask(holder, Mode::DW), hosts.ask(2, Mode::DW));
        let reader = hosts.ask(1 - holder, Mode::S);
        let queued = hosts.ask(holder, Mode::DW);
        hosts.end(a);
        let note = hosts.ask_first(holder, Mode::X);
        hosts.demote(holder);
        hosts.end(b);
        let other_note = hosts.ask_first(2, Mode::X);
        hosts.demote(2);
        let mut order = Vec::new();
        while order.len() < 3 {
            let next = [note, other_note, reader].into_iter().find(|t| hosts.is_done(*t)).expect("somebody");
            order.push(next);
            assert!(!hosts.is_done(queued));
            hosts.end(next);
            while let Some(at) = (0..3).find(|at| !hosts.hosts[*at].demotions.is_empty()) {
                hosts.demote(at);
            }
        }
        assert_eq!(order[2], reader, "it looks when all have told");
        assert!(hosts.is_done(queued), "who had it comes last");
    }
}

/// An operation that waits here looks after all others have handed in, not under what this host hands in with.
#[test]
fn who_hands_in_before_others_serves_nothing_else_then() {
    for (asker, last, mode) in [(0, 1, Mode::X), (1, 0, Mode::X), (1, 2, Mode::S), (2, 1, Mode::X)] {
        let mut hosts = Hosts::new();
        let (a, b) = (hosts.ask(asker, Mode::DW), hosts.ask(last, Mode::DW));
        let early = hosts.ask(asker, mode);
        hosts.end(a);
        let note = hosts.ask_first(asker, Mode::X);
        hosts.demote(asker);
        hosts.end(b);
        let (last_note, utimes) = (hosts.ask_first(last, Mode::X), hosts.ask(last, mode));
        hosts.demote(last);
        let mut left = vec![note, last_note, early, utimes];
        while !left.is_empty() {
            let done: Vec<_> = left.iter().copied().filter(|ticket| hosts.is_done(*ticket)).collect();
            assert!(!done.is_empty(), "{left:?} of {note:?}, {last_note:?}, {early:?}, {utimes:?}");
            let notes = [note, last_note].iter().filter(|ticket| left.contains(ticket)).count();
            for ticket in done {
                assert!(notes < 2 || ticket == last_note, "before all notes were handed in");
                assert!(notes < 1 || ticket == note || ticket == last_note || ticket == early, "{ticket:?}");
                hosts.end(ticket);
                left.retain(|t| *t != ticket);
            }
            while let Some(at) = (0..3).find(|at| !hosts.hosts[*at].demotions.is_empty()) {
                hosts.demote(at);
            }
        }
    }
}

/// What it wrote last may still land: over nothing that was written after its death.
#[test]
fn what_a_dead_direct_writer_has_stands_until_it_is_recovered() {
    for survivor in [0, 1] {
        let mut hosts = Hosts::new();
        let (dead, beside) = (hosts.ask(2, Mode::DW), hosts.ask(survivor, Mode::DW));
        assert!(hosts.is_done(dead) && hosts.is_done(beside));
        hosts.learn(&[2], &[]);
        let next = hosts.ask(survivor, Mode::DW);
        assert!(!hosts.is_done(next), "what is under way ends, what is new waits");
        hosts.end(beside);
        assert_eq!(hosts.demote(survivor), (Mode::DW, Mode::N));
        let (third, x) = (hosts.ask(1 - survivor, Mode::DW), hosts.ask(survivor, Mode::X));
        assert!(![next, third, x].iter().any(|ticket| hosts.is_done(*ticket)), "its writes may still land");
        hosts.learn(&[], &[2]);
        assert!(hosts.is_done(next) && hosts.is_done(third));
        hosts.end(next);
        hosts.end(third);
        [survivor, 1 - survivor].into_iter().for_each(|at| _ = hosts.demote(at));
        assert!(hosts.is_done(x));
    }
}

/// The master hears of a death later than the holder, or the other way round.
#[test]
fn direct_writers_stop_whoever_hears_of_a_death_first() {
    let (dead, gone) = (BTreeSet::from([2]), BTreeSet::new());
    for first in [0u16, 1] {
        let mut hosts = Hosts::new();
        let tickets = [2, 1].map(|at| hosts.ask(at, Mode::DW));
        hosts.end(tickets[1]);
        hosts.dead = dead.clone();
        hosts.hosts[usize::from(first)].desk.on_view(hosts.now, membership(first, &dead, &gone));
        hosts.settle();
        assert_eq!(hosts.demote(1), (Mode::DW, Mode::N));
        hosts.learn(&[2], &[]);
        let next = hosts.ask(1, Mode::DW);
        assert!(!hosts.is_done(next));
        hosts.learn(&[], &[2]);
        assert!(hosts.is_done(next));
    }
}
