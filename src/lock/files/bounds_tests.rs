//! What one program can make a server compute; who comes first; circles that have just ended.

use super::client::Client;
use super::cycle::Waits;
use super::message::{Answer, Ask};
use super::server::{CIRCLE_STANDS, Server, Told};
use super::steps::Steps;
use super::table::{FileTable, WaitId};
use super::{FileAnswer, FileLock, LockKind, Owner, Span};
use crate::base::{InodeNo, Mode, SlotId, Token};
use std::collections::BTreeMap;
use std::time::Duration;

const INO: InodeNo = InodeNo(4711);
const NOW: Duration = Duration::from_secs(10);
const HOST: SlotId = SlotId(0);

fn lock(id: u64, mode: Mode, start: u64, end: u64) -> FileLock {
    let owner = Owner { host: HOST, id };
    FileLock { kind: LockKind::Range, owner, mode, span: Span { start, end } }
}

/// A server with one client, which has declared nothing but that.
struct One {
    server: Server,
    number: u64,
}

impl One {
    fn new() -> One {
        let mut one = One { server: Server::default(), number: 0 };
        one.say(Ask::Begin(Token(1), 0));
        one.say(Ask::End);
        one
    }

    fn say(&mut self, ask: Ask) -> u64 {
        self.number += 1;
        self.server.receive(NOW, HOST, INO, self.number, ask);
        self.number
    }

    fn set(&mut self, lock: FileLock, wait: bool) -> u64 {
        self.say(Ask::Set { lock, wait })
    }

    /// One look at the table.
    fn work(&mut self, now: Duration) -> Vec<(u64, Answer)> {
        let (mut told, required) = (Vec::new(), Some((BTreeMap::from([(HOST, 0)]), Token(1))));
        let mut steps = Steps::of_call();
        self.server.work(now, INO, &required, &Client::new(HOST), &mut steps, &mut told);
        told.iter().map(|t: &Told| (t.request, t.answer)).collect()
    }

    /// Looks until nothing is due. How many, and what was granted.
    fn work_off(&mut self) -> (usize, Vec<u64>) {
        let (mut looks, mut granted) = (0, Vec::new());
        loop {
            let answers = self.work(NOW);
            let done = |(_, answer): &&(u64, Answer)| *answer == GRANTED;
            granted.extend(answers.iter().filter(done).map(|(request, _)| *request));
            looks += 1;
            if self.server.due(NOW).is_empty() {
                return (looks, granted);
            }
        }
    }
}

const GRANTED: Answer = Answer::Done(FileAnswer::Granted);

/// Each waits for all that come later, and gives something up when it is granted: all are looked at each time.
#[test]
fn who_waits_is_looked_at_in_parts() {
    const N: u64 = 300;
    let mut one = One::new();
    one.set(lock(N, Mode::X, N, N), false);
    (0..N).for_each(|id| _ = one.set(lock(id, Mode::X, id, id), false));
    one.work_off();
    let waits: Vec<u64> = (0..N).map(|id| one.set(lock(id, Mode::S, id, N), true)).collect();
    assert!(one.work_off().1.is_empty());
    let unlock = one.set(lock(N, Mode::N, N, N), false);
    let (looks, granted) = one.work_off();
    assert!(looks > 5, "{looks}");
    assert_eq!(granted[0], unlock);
    assert_eq!(granted[1..], waits.into_iter().rev().collect::<Vec<_>>());
}

/// Requests that had to wait until all had declared may be very many.
#[test]
fn what_has_been_asked_meanwhile_is_met_in_parts_and_in_order() {
    const N: u64 = 3000;
    let mut one = One::new();
    let asked: Vec<u64> = (0..N).map(|id| one.set(lock(id, Mode::X, id, id), false)).collect();
    let (looks, granted) = one.work_off();
    assert!(looks > 5, "{looks}");
    assert_eq!(granted, asked);
}

/// Many shared locks, an exclusive wait, and many shared waits behind it: what changes nothing for those costs
/// little.
#[test]
fn many_shared_locks_cost_a_message_little() {
    const N: u64 = 2000;
    let mut table = FileTable::default();
    let mut ask = |id, mode, wait: bool| {
        table.ask(NOW, lock(id, mode, 0, 9), wait.then_some((HOST, id)));
    };
    (0..N).for_each(|id| ask(id, Mode::S, false));
    ask(N, Mode::X, true);
    (0..N).for_each(|id| ask(N + 1 + id, Mode::S, true));
    let mut steps = Steps::of_call();
    let mut looks = 0;
    for id in 0..24 {
        table.set(&lock(id, Mode::N, 0, 9));
        assert!(table.settle(NOW, &mut steps).is_empty());
        looks += usize::from(table.is_loose());
        assert_eq!(table.ask(NOW, lock(9 * N + id, Mode::S, 0, 9), None), super::table::Verdict::Granted);
    }
    assert!(!steps.are_over() && looks == 0);
    assert!(!table.is_loose(), "a shared lock beside shared ones sets nobody free");
}

#[test]
fn a_search_for_a_circle_ends() {
    const N: u64 = 1000;
    let mut table = FileTable::default();
    (0..N).for_each(|id| table.set(&lock(id, Mode::X, id, id)));
    let mut waits = Waits::default();
    (0..N).for_each(|id| waits.add(&table, lock(id, Mode::S, 0, N)));
    let search = |wanted: FileLock| {
        let mut steps = Steps::of_search();
        (waits.close(wanted.owner, table.blockers(&wanted), &mut steps), steps.are_over())
    };
    assert_eq!(search(lock(N, Mode::S, 0, N)), (false, true), "all wait for all, and none for this one");
    assert!(search(lock(3, Mode::S, 0, N)).0, "but for this one all");
}

/// An unlock and a request that does not wait come together.
#[test]
fn who_waits_comes_before_who_asks_later() {
    for wait in [false, true] {
        let mut one = One::new();
        one.set(lock(1, Mode::X, 0, 9), false);
        one.set(lock(3, Mode::S, 20, 20), false);
        let waits = one.set(lock(2, Mode::X, 5, 5), true);
        one.work(NOW);
        let unlock = one.set(lock(1, Mode::N, 0, 9), false);
        let later = one.set(lock(3, Mode::S, 0, 9), wait);
        let refused = if wait { Answer::Waiting } else { Answer::Done(FileAnswer::Denied) };
        assert_eq!(one.work(NOW), [(unlock, GRANTED), (waits, GRANTED), (later, refused)]);
    }
}

/// Owners 1 and 2 each have a byte and wait for the other's.
fn circle() -> (One, [u64; 2]) {
    let mut one = One::new();
    one.set(lock(1, Mode::X, 1, 1), false);
    one.set(lock(2, Mode::X, 2, 2), false);
    one.work(NOW);
    let waits = [one.set(lock(1, Mode::X, 2, 2), true), one.set(lock(2, Mode::X, 1, 1), true)];
    assert_eq!(one.work(NOW), waits.map(|request| (request, Answer::Waiting)));
    (one, waits)
}

#[test]
fn a_circle_that_stands_is_refused() {
    let (mut one, [_, last]) = circle();
    let due = NOW + CIRCLE_STANDS;
    assert_eq!(one.server.deadline(), Some(due));
    assert_eq!(one.work(due - Duration::from_millis(1)), []);
    assert_eq!(one.server.deadline(), Some(due));
    assert_eq!(one.work(due), [(last, Answer::Done(FileAnswer::Deadlock))]);
    assert_eq!(one.server.deadline(), None);
}

/// A wait was interrupted; the word of it comes after the request that would have closed the circle.
#[test]
fn a_circle_that_has_just_ended_is_none() {
    let (mut one, [first, last]) = circle();
    one.say(Ask::Cancel(first));
    assert_eq!(one.work(NOW), [(first, Answer::Done(FileAnswer::Interrupted))]);
    assert_eq!(one.work(NOW + CIRCLE_STANDS), []);
    let unlock = one.set(lock(1, Mode::N, 1, 1), false);
    assert_eq!(one.work(NOW + CIRCLE_STANDS), [(unlock, GRANTED), (last, GRANTED)]);
}

/// Both halves of a circle are told to a new server.
#[test]
fn a_circle_of_waits_that_are_told_anew_is_refused() {
    let mut one = One { server: Server::default(), number: 0 };
    one.say(Ask::Begin(Token(1), 0));
    one.say(Ask::Held(lock(1, Mode::X, 1, 1)));
    one.say(Ask::Held(lock(2, Mode::X, 2, 2)));
    let first = one.say(Ask::Waits(lock(1, Mode::X, 2, 2)));
    one.say(Ask::Waits(lock(2, Mode::X, 1, 1)));
    one.say(Ask::End);
    assert_eq!(one.work(NOW), []);
    assert_eq!(one.work(NOW + CIRCLE_STANDS), [(first, Answer::Done(FileAnswer::Deadlock))]);
    assert_eq!(one.server.deadline(), None);
}

/// A look that is not through goes on where it was, whoever ends meanwhile.
#[test]
fn a_look_in_parts_leaves_nobody_out() {
    const N: u64 = 700;
    let id = |n: u64| -> WaitId { (HOST, n) };
    for gone in [0, 300, N - 1] {
        let mut table = FileTable::default();
        (0..N).for_each(|n| table.set(&lock(n, Mode::X, n, n)));
        table.set(&lock(N, Mode::X, 0, N));
        (0..N).for_each(|n| _ = table.ask(NOW, lock(2 * N + n, Mode::X, n, n), Some(id(n))));
        (0..=N).for_each(|n| table.set(&lock(n, Mode::N, 0, N)));
        // Others' locks make each look expensive.
        (0..1000).for_each(|n| table.set(&lock(9 * N + n, Mode::X, 5 * N + n, 5 * N + n)));
        let mut granted = table.settle(NOW, &mut Steps::of_call());
        assert!(table.is_loose() && (granted.len() as u64) < N - 1 && granted.len() > 300);
        let cancelled = table.cancel(id(gone));
        while table.is_loose() {
            granted.extend(table.settle(NOW, &mut Steps::of_call()));
        }
        let expected = (0..N).filter(|n| !cancelled || *n != gone).collect::<Vec<_>>();
        assert_eq!(granted.iter().map(|w| w.id.1).collect::<Vec<_>>(), expected);
        assert!(table.waiters().is_empty());
    }
}
