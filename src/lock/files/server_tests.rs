//! The server of file locks by itself.

use super::client::Client;
use super::machine_tests::{INO, NOW, lock, work};
use super::message::{Answer, Ask};
use super::server::{Server, Told};
use super::steps::Steps;
use super::table::PATIENCE_MIN;
use super::{FileAnswer, FileLock, Owner, Span};
use crate::base::{Mode, SlotId, Token};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn what_gives_up_does_not_wait_for_others_to_declare() {
    let (mut server, mut told) = (Server::default(), Vec::new());
    let (slow, host) = (SlotId(1), SlotId(0));
    let required = Some((BTreeMap::from([(slow, 3), (host, 2)]), Token(1)));
    server.receive(NOW, host, INO, 1, Ask::Begin(Token(1), 2));
    server.receive(NOW, host, INO, 2, Ask::Held(lock(1, Mode::X, 0, 9)));
    server.receive(NOW, host, INO, 3, Ask::End);
    server.receive(NOW, host, INO, 4, Ask::Set { lock: lock(1, Mode::N, 0, 4), wait: false });
    server.receive(NOW, host, INO, 5, Ask::Set { lock: lock(2, Mode::X, 0, 0), wait: false });
    server.receive(NOW, host, INO, 6, Ask::Set { lock: lock(3, Mode::X, 0, 0), wait: true });
    for _ in 0..2 {
        work(&mut server, NOW, &required, &mut told);
    }
    let answers: Vec<_> = told.drain(..).map(|t| (t.request, t.answer)).collect();
    let queued = |request| (request, Answer::Queued);
    assert_eq!(answers, [(4, Answer::Done(FileAnswer::Granted)), queued(5), queued(6)], "all can be ended");
    server.receive(NOW, host, INO, 7, Ask::Cancel(6));
    work(&mut server, NOW, &None, &mut told);
    let answers: Vec<_> = told.drain(..).map(|t| (t.request, t.answer)).collect();
    assert_eq!(answers, [(6, Answer::Done(FileAnswer::Interrupted))]);
    server.receive(NOW, slow, INO, 1, Ask::Begin(Token(1), 3));
    server.receive(NOW, slow, INO, 2, Ask::End);
    work(&mut server, NOW, &required, &mut told);
    let answers: Vec<_> = told.iter().map(|t| (t.request, t.answer)).collect();
    assert_eq!(answers, [(5, Answer::Done(FileAnswer::Granted))]);
}

/// An interrupted request was granted after all, and is given back in parts; then its owner unlocks all.
#[test]
fn an_unlock_does_not_overtake_what_is_given_back() {
    let (mut server, mut told) = (Server::default(), Vec::new());
    let (slow, host) = (SlotId(1), SlotId(0));
    let required = Some((BTreeMap::from([(slow, 3), (host, 2)]), Token(1)));
    server.receive(NOW, host, INO, 1, Ask::Begin(Token(1), 2));
    server.receive(NOW, host, INO, 2, Ask::Held(lock(1, Mode::X, 0, 10)));
    server.receive(NOW, host, INO, 3, Ask::End);
    let parts = [(Mode::N, 0, 3), (Mode::S, 4, 5), (Mode::N, 6, 10), (Mode::N, 0, 10)];
    for (number, (mode, start, end)) in (4..).zip(parts) {
        server.receive(NOW, host, INO, number, Ask::Set { lock: lock(1, mode, start, end), wait: false });
    }
    work(&mut server, NOW, &required, &mut told);
    server.receive(NOW, slow, INO, 1, Ask::Begin(Token(1), 3));
    server.receive(NOW, slow, INO, 2, Ask::End);
    server.receive(NOW, slow, INO, 3, Ask::Set { lock: lock(7, Mode::X, 0, 10), wait: false });
    told.clear();
    work(&mut server, NOW, &required, &mut told);
    let answers: Vec<_> = told.iter().map(|t| (t.to, t.request, t.answer)).collect();
    assert_eq!(answers, [(slow, 3, Answer::Done(FileAnswer::Granted))], "nobody has anything there");
}

/// A server to whom host 0 has told of a lock, and host 2 that it has none; this host is 1.
fn between_two() -> (Server, impl FnMut(&mut Server, Duration) -> Vec<Told>) {
    let mut server = Server::default();
    let hosts = [0, 1, 2].map(SlotId);
    for host in hosts {
        server.receive(NOW, host, INO, 1, Ask::Begin(Token(1), 0));
        if host == hosts[0] {
            server.receive(NOW, host, INO, 2, Ask::Held(lock(1, Mode::X, 0, 9)));
        }
        server.receive(NOW, host, INO, 3, Ask::End);
    }
    let required = Some((hosts.into_iter().map(|host| (host, 0)).collect(), Token(1)));
    let work = move |server: &mut Server, now| {
        let mut told = Vec::new();
        server.work(now, INO, &required, &Client::new(hosts[1]), &mut Steps::of_call(), &mut told);
        told
    };
    (server, work)
}

fn wanted(host: u16) -> FileLock {
    FileLock { owner: Owner { host: SlotId(host), id: 7 }, ..lock(0, Mode::X, 5, 5) }
}

#[test]
fn nobody_is_refused_by_what_has_been_given_up() {
    for (host, unlocked) in [(1, true), (1, false), (2, true), (2, false)] {
        let (mut server, mut work) = between_two();
        let (asker, holder) = (SlotId(host), SlotId(0));
        let brief =
            |told: Vec<Told>| -> Vec<_> { told.iter().map(|t| (t.to, t.request, t.answer)).collect() };
        server.receive(NOW, asker, INO, 8, Ask::Set { lock: wanted(host), wait: false });
        server.receive(NOW, asker, INO, 9, Ask::Test(wanted(host)));
        let told = brief(work(&mut server, NOW));
        let check = |request| (holder, request, Answer::Check { asker });
        let queued = |request| (asker, request, Answer::Queued);
        assert_eq!(told, [check(8), queued(8), check(9), queued(9)]);
        assert!(work(&mut server, NOW).is_empty());
        if unlocked {
            server.receive(NOW, holder, INO, 4, Ask::Set { lock: lock(1, Mode::N, 0, 9), wait: false });
        }
        for (number, request) in [(5, 9), (6, 8)] {
            server.receive(NOW, holder, INO, number, Ask::Checked { asker, request });
        }
        let told: Vec<_> = brief(work(&mut server, NOW)).into_iter().filter(|t| t.0 == asker).collect();
        let (got, seen) = match unlocked {
            true => (FileAnswer::Granted, FileAnswer::Free),
            false => (FileAnswer::Denied, FileAnswer::Found(Mode::X, Span { start: 0, end: 9 }, None)),
        };
        assert_eq!(told, [(asker, 8, Answer::Done(got)), (asker, 9, Answer::Done(seen))]);
    }
}

#[test]
fn a_refusal_waits_neither_for_the_silent_for_ever_nor_for_the_dead() {
    let refused = |told: Vec<Told>| told.iter().any(|t| t.answer == Answer::Done(FileAnswer::Denied));
    let ask = |server: &mut Server, number| {
        server.receive(NOW, SlotId(2), INO, number, Ask::Set { lock: wanted(2), wait: false });
    };
    let (mut server, mut work) = between_two();
    ask(&mut server, 8);
    assert!(!refused(work(&mut server, NOW)));
    let due = server.deadline().expect("it will be answered");
    assert!(!refused(work(&mut server, due - Duration::from_millis(1))) && refused(work(&mut server, due)));
    assert_eq!(server.deadline(), None);
    for before in [true, false] {
        let (mut server, mut work) = between_two();
        if before {
            server.dead(SlotId(0));
        }
        ask(&mut server, 8);
        assert_eq!(refused(work(&mut server, NOW)), before, "what it has stands until it is recovered");
        server.dead(SlotId(0));
        assert_eq!(refused(work(&mut server, NOW)), !before);
        server.gone(SlotId(0));
        ask(&mut server, 9);
        assert!(!refused(work(&mut server, NOW)));
    }
}

#[test]
fn who_waits_for_a_refusal_can_be_interrupted() {
    let (mut server, mut work) = between_two();
    let asker = SlotId(2);
    server.receive(NOW, asker, INO, 8, Ask::Set { lock: wanted(2), wait: false });
    work(&mut server, NOW);
    server.receive(NOW, asker, INO, 9, Ask::Cancel(8));
    let told: Vec<_> = work(&mut server, NOW).iter().map(|t| (t.to, t.request, t.answer)).collect();
    assert_eq!(told, [(asker, 8, Answer::Done(FileAnswer::Interrupted))]);
    server.receive(NOW, SlotId(0), INO, 4, Ask::Checked { asker, request: 8 });
    assert!(work(&mut server, NOW).is_empty());
}

#[test]
fn what_was_told_under_an_earlier_grant_says_nothing() {
    let (mut server, mut told) = (Server::default(), Vec::new());
    let (me, peer) = (SlotId(1), SlotId(0));
    let required = |grant| Some((BTreeMap::from([(me, 0), (peer, grant)]), Token(1)));
    for (host, grant) in [(me, 0), (peer, 7)] {
        server.receive(NOW, host, INO, 1, Ask::Begin(Token(1), grant));
        server.receive(NOW, host, INO, 2, Ask::End);
    }
    // Since then the peer has had the cluster lock for itself and locked something.
    let own = FileLock { owner: Owner { host: me, id: 1 }, ..lock(1, Mode::X, 0, 9) };
    server.receive(NOW, me, INO, 3, Ask::Set { lock: own, wait: false });
    work(&mut server, NOW, &required(8), &mut told);
    assert_eq!(told.drain(..).map(|t| t.answer).collect::<Vec<_>>(), [Answer::Queued]);
    server.receive(NOW, peer, INO, 3, Ask::Begin(Token(1), 8));
    server.receive(NOW, peer, INO, 4, Ask::Held(lock(1, Mode::X, 5, 5)));
    server.receive(NOW, peer, INO, 5, Ask::End);
    work(&mut server, NOW, &required(8), &mut told);
    let answers: Vec<_> = told.iter().map(|t| t.answer).collect();
    assert_eq!(answers, [Answer::Done(FileAnswer::Denied)]);
}

#[test]
fn a_table_that_is_not_worked_on_has_no_timer() {
    let (mut server, mut told) = (Server::default(), Vec::new());
    let host = SlotId(0);
    let required = Some((BTreeMap::from([(host, 0)]), Token(1)));
    server.receive(NOW, host, INO, 1, Ask::Begin(Token(1), 0));
    server.receive(NOW, host, INO, 2, Ask::Held(lock(1, Mode::X, 0, 0)));
    server.receive(NOW, host, INO, 3, Ask::End);
    for (number, id, mode, at) in [(4, 2, Mode::X, 0), (5, 3, Mode::S, 5)] {
        server.receive(NOW, host, INO, number, Ask::Set { lock: lock(id, mode, at, 5), wait: true });
    }
    work(&mut server, NOW, &required, &mut told);
    assert!(server.deadline().is_some(), "the shared one passes the exclusive one later");
    work(&mut server, NOW + PATIENCE_MIN * 2, &None, &mut told);
    assert_eq!(server.deadline(), None);
}
