//! Client and table of file locks, each by itself.

use super::client::{Answers, Client, Home, Send};
use super::message::{Answer, Ask};
use super::server::{Required, Server, Told};
use super::steps::Steps;
use super::table::{FileTable, PATIENCE_MIN, Verdict, Waiter};
use super::{FileAnswer, FileLock, FileRequest, Job, LockKind, Owner, RequestNo, Span};
use crate::base::{InodeNo, Mode, SlotId, Token};
use std::time::Duration;

pub(super) fn lock(id: u64, mode: Mode, start: u64, end: u64) -> FileLock {
    let owner = Owner { host: SlotId(0), id };
    FileLock { kind: LockKind::Range, owner, mode, span: Span { start, end } }
}

pub(super) const NOW: Duration = Duration::from_secs(10);

fn settle(table: &mut FileTable, now: Duration) -> Vec<Waiter> {
    table.settle(now, &mut Steps::of_call())
}

pub(super) fn work(server: &mut Server, now: Duration, required: &Required, told: &mut Vec<Told>) {
    server.work(now, INO, required, &Client::new(SlotId(0)), &mut Steps::of_call(), told);
}

#[test]
fn shared_requests_let_an_exclusive_one_go_first_but_not_for_ever() {
    let mut table = FileTable::default();
    let id = |n| (SlotId(0), n);
    assert_eq!(table.ask(NOW, lock(1, Mode::S, 0, 9), None), Verdict::Granted);
    assert_eq!(table.ask(NOW, lock(2, Mode::X, 0, 9), Some(id(2))), Verdict::Waiting);
    let later = NOW + Duration::from_millis(300);
    assert_eq!(table.ask(later, lock(3, Mode::S, 5, 5), Some(id(3))), Verdict::Waiting, "behind it");
    assert_eq!(table.ask(later, lock(4, Mode::S, 5, 5), None), Verdict::Granted, "one that would not wait");
    // Who has a lock that the exclusive one waits for may have more.
    assert_eq!(table.ask(later, lock(1, Mode::S, 5, 20), Some(id(1))), Verdict::Granted);
    assert!(settle(&mut table, later + PATIENCE_MIN).is_empty(), "as long as that one had waited");
    assert_eq!(table.deadline(), Some(later + Duration::from_millis(300)));
    let passed = settle(&mut table, later + Duration::from_millis(300));
    assert_eq!(passed.iter().map(|w| w.id).collect::<Vec<_>>(), [id(3)]);
    for owner in [1, 3, 4] {
        table.set(&lock(owner, Mode::N, 0, 99));
    }
    assert_eq!(settle(&mut table, later).len(), 1, "and now its turn has come");
}

#[test]
fn flock_gives_up_what_it_has_before_it_waits_and_fcntl_does_not() {
    for (kind, left) in [(LockKind::Whole, 0), (LockKind::Range, 1)] {
        let of = |id, mode| FileLock { kind, span: Span::ALL, ..lock(id, mode, 0, 0) };
        let mut table = FileTable::default();
        table.ask(NOW, of(1, Mode::S), None);
        table.ask(NOW, of(2, Mode::S), None);
        assert_eq!(table.ask(NOW, of(1, Mode::X), Some((SlotId(0), 7))), Verdict::Waiting);
        assert_eq!(table.of(kind, of(1, Mode::X).owner).len(), left);
        assert!(table.cancel((SlotId(0), 7)));
        assert_eq!(table.ask(NOW, of(2, Mode::X), None) == Verdict::Granted, left == 0);
    }
}

pub(super) const INO: InodeNo = InodeNo(4711);

/// A client under a server of which nothing but its answers is seen.
struct Alone {
    client: Client,
    sent: Vec<Ask>,
    answers: Answers,
}

impl Alone {
    fn new() -> Alone {
        Alone { client: Client::new(SlotId(0)), sent: Vec::new(), answers: Vec::new() }
    }

    fn ask(&mut self, lock: FileLock, wait: bool) -> RequestNo {
        self.ask_by(9, lock, wait)
    }

    fn ask_by(&mut self, handle: u64, lock: FileLock, wait: bool) -> RequestNo {
        let no = self.client.number(INO);
        let job = Job::Set { wait };
        let new = self.client.submit(no, &FileRequest { ino: INO, job, lock, handle, process: 9 });
        if new {
            self.client.pinned(INO);
            self.serve(Home::Peer(SlotId(1)), Token(1));
        }
        self.with(|client, out, send| client.pump(INO, out, send));
        no
    }

    fn with(&mut self, f: impl FnOnce(&mut Client, &mut Answers, Send<'_>)) {
        let Alone { client, sent, answers } = self;
        f(client, answers, &mut |_, _, ask| {
            sent.push(ask);
            sent.len() as u64
        });
    }

    fn serve(&mut self, home: Home, token: Token) {
        self.with(|client, out, send| client.rehome(INO, (home, token, 0), out, send));
    }

    /// The server answers the newest request, or what was said of the request of that number.
    fn answer(&mut self, at: u64, answer: Answer) {
        let from = Home::Peer(SlotId(1));
        self.with(|client, out, send| client.answered(from, INO, at, answer, false, out, send));
    }

    fn newest(&self) -> u64 {
        self.sent.len() as u64
    }

    fn withdraw(&mut self, no: RequestNo) {
        self.with(|client, out, send| client.withdraw(no, out, send));
    }

    fn take(&mut self, lock: FileLock) {
        self.ask(lock, false);
        self.answer(self.newest(), Answer::Done(FileAnswer::Granted));
        assert_eq!(self.answers.pop().unwrap().1, FileAnswer::Granted);
    }
}

#[test]
fn an_interrupted_wait_for_less_leaves_what_was_there() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::X, 0, 10));
    let no = host.ask(lock(1, Mode::S, 0, 20), true);
    let at = host.newest();
    host.answer(at, Answer::Waiting);
    host.withdraw(no);
    assert_eq!(host.sent.last(), Some(&Ask::Cancel(at)));
    assert!(host.answers.is_empty(), "it may have been granted, and others have the rest");
    host.answer(at, Answer::Done(FileAnswer::Interrupted));
    assert_eq!(host.answers, [(no, FileAnswer::Interrupted)]);
    assert_eq!(host.client.held(INO), [lock(1, Mode::X, 0, 10)]);
}

#[test]
fn a_wait_for_less_that_is_granted_before_it_is_interrupted_stands() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::X, 0, 10));
    let no = host.ask(lock(1, Mode::S, 0, 20), true);
    host.withdraw(no);
    host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
    assert_eq!(host.answers, [(no, FileAnswer::Granted)]);
    assert_eq!(host.client.held(INO), [lock(1, Mode::S, 0, 20)]);
}

#[test]
fn an_interrupted_wait_for_less_is_answered_when_the_server_is_lost() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::X, 0, 10));
    let no = host.ask(lock(1, Mode::S, 0, 20), true);
    host.answer(host.newest(), Answer::Waiting);
    host.withdraw(no);
    host.serve(Home::Nobody, Token(1));
    assert_eq!(host.answers, [(no, FileAnswer::Halted)], "its program hears of the loss");
    let left: Vec<_> = host.client.held(INO);
    assert_eq!(left, [lock(1, Mode::S, 0, 10)], "the server may have granted it, and more to others");
}

#[test]
fn a_refusal_after_a_loss_of_the_server_says_that_something_was_lost() {
    for (answer, told) in
        [(FileAnswer::Denied, FileAnswer::Halted), (FileAnswer::Granted, FileAnswer::Granted)]
    {
        let mut host = Alone::new();
        host.take(lock(1, Mode::X, 0, 10));
        let no = host.ask(lock(1, Mode::S, 0, 20), false);
        host.serve(Home::Peer(SlotId(1)), Token(2));
        assert!(host.sent.contains(&Ask::Held(lock(1, Mode::S, 0, 10))));
        host.answer(host.newest(), Answer::Done(answer));
        assert_eq!(host.answers, [(no, told)]);
    }
}

#[test]
fn what_is_granted_after_its_end_is_given_back_without_a_word_about_others() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::S, 4, 5));
    host.take(lock(2, Mode::X, 30, 40));
    let waits = host.ask(lock(2, Mode::S, 30, 50), true);
    host.answer(host.newest(), Answer::Waiting);
    let no = host.ask(lock(1, Mode::X, 0, 10), true);
    let at = host.newest();
    host.answer(at, Answer::Waiting);
    host.withdraw(no);
    assert_eq!(host.answers.pop(), Some((no, FileAnswer::Interrupted)));
    assert_eq!(host.sent.pop(), Some(Ask::Cancel(at)));
    let before = host.sent.len();
    host.answer(at, Answer::Done(FileAnswer::Granted));
    let back = [(Mode::N, 0, 3), (Mode::S, 4, 5), (Mode::N, 6, 10)];
    let back = back.map(|(mode, a, b)| Ask::Set { lock: lock(1, mode, a, b), wait: false });
    assert_eq!(host.sent[before..], back);
    assert!(host.client.has(INO, LockKind::Range, 1));
    // Another's wait goes on, and what it had is whole.
    assert_eq!(host.client.held(INO), [lock(1, Mode::S, 4, 5), lock(2, Mode::X, 30, 40)]);
    host.withdraw(waits);
    assert!(host.answers.is_empty(), "it may be granted yet");
}

#[test]
fn a_signal_does_not_end_what_is_not_known_to_wait() {
    let mut host = Alone::new();
    for wait in [false, true] {
        let no = host.ask(lock(1, Mode::X, 0, 10), wait);
        host.withdraw(no);
        assert!(host.answers.is_empty());
        host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
        assert_eq!(host.answers.pop(), Some((no, FileAnswer::Granted)));
    }
    let no = host.ask(lock(2, Mode::X, 0, 10), true);
    host.answer(host.newest(), Answer::Queued);
    host.withdraw(no);
    assert_eq!(host.answers.pop(), Some((no, FileAnswer::Interrupted)));
}

#[test]
fn an_open_file_description_ends_with_its_handle_and_not_with_its_number() {
    let mut host = Alone::new();
    let flock = |mode| FileLock { kind: LockKind::Whole, span: Span::ALL, ..lock(1, mode, 0, 0) };
    host.take(flock(Mode::X));
    let again = |handle| FileRequest {
        ino: INO,
        job: Job::Set { wait: true },
        lock: flock(Mode::X),
        handle,
        process: 9,
    };
    assert!(!host.client.is_reborn(&again(9)));
    assert!(host.client.is_reborn(&again(10)), "the kernel has given the number to another");
    let no = host.client.number(INO);
    host.client.submit(no, &again(10));
    assert!(host.client.of_handle(INO, 9).is_empty(), "so its end says nothing about that one");
    assert_eq!(host.client.of_handle(INO, 10), [1]);
}

/// The same number, as a process with two descriptors or as two descriptions, one after the other.
#[test]
fn ranges_end_with_the_handle_that_took_them() {
    let mut host = Alone::new();
    let unlocks = |host: &mut Alone| -> Vec<FileLock> {
        host.client.leftovers(INO).iter().map(|unlock| unlock.lock).collect()
    };
    host.take(lock(1, Mode::X, 0, 20));
    host.take(lock(1, Mode::N, 6, 14));
    let next = host.ask_by(10, lock(1, Mode::S, 15, 30), false);
    let at = host.newest();
    // The end of the first is heard of after the second has asked.
    host.client.end_handle(INO, 9);
    assert_eq!(unlocks(&mut host), [lock(1, Mode::N, 0, 5)], "the rest may be the second's soon");
    let no = host.ask(lock(1, Mode::N, 0, 5), false);
    assert_eq!(unlocks(&mut host), [], "it is on its way");
    host.answer(at, Answer::Done(FileAnswer::Denied));
    host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
    assert_eq!(host.answers.drain(..).map(|(no, _)| no).collect::<Vec<_>>(), [next, no]);
    let everything = FileLock { span: Span::ALL, ..lock(1, Mode::N, 0, 0) };
    assert_eq!(unlocks(&mut host), [everything], "it was not");
    host.ask_by(10, lock(1, Mode::S, 15, 30), false);
    host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
    assert_eq!(unlocks(&mut host), [], "it is");
    assert_eq!(host.client.held(INO), [lock(1, Mode::S, 15, 30)]);
    // Nothing is left to a handle of what was unlocked, by whichever.
    host.take(lock(1, Mode::N, 0, u64::MAX));
    host.client.end_handle(INO, 10);
    assert_eq!(unlocks(&mut host), []);
}

/// As if it was closed with a range in every other byte: one unlock, and not one for each, which would keep others waiting.
#[test]
fn the_end_of_a_handle_with_many_ranges_is_one_unlock() {
    let mut host = Alone::new();
    (0..1000).for_each(|at| host.take(lock(1, Mode::X, 2 * at, 2 * at)));
    host.client.end_handle(INO, 9);
    let left = host.client.leftovers(INO);
    assert_eq!(left.len(), 1);
    host.take(left[0].lock);
    assert_eq!((host.client.held(INO), host.client.leftovers(INO)), (vec![], vec![]));
}

/// The number of a description that is closed is the next one's already, and the two have every other byte: what goes is
/// what the first had, however many parts that is.
#[test]
fn the_next_owner_of_a_number_keeps_what_it_has() {
    let mut host = Alone::new();
    (0..4).for_each(|i| host.take(lock(1, Mode::X, 10 * i, 10 * i)));
    (0..11).for_each(|i| host.take(lock(1, Mode::X, 1000 + 2 * i, 1000 + 2 * i)));
    for at in (1001..1021).step_by(2) {
        host.ask_by(10, lock(1, Mode::X, at, at), false);
        host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
    }
    assert_eq!(host.client.held(INO).len(), 5);
    host.client.end_handle(INO, 9);
    for unlock in host.client.leftovers(INO) {
        assert_eq!(unlock.handle, 9);
        host.take(unlock.lock);
        assert!(host.client.noted(INO) > 0);
    }
    assert_eq!(host.client.leftovers(INO), []);
    let kept: Vec<_> = (1001..1021).step_by(2).map(|at| lock(1, Mode::X, at, at)).collect();
    assert_eq!(host.client.held(INO), kept);
}

/// One range, taken byte by byte by two handles in turn.
#[test]
fn by_which_handles_a_range_was_taken_is_not_noted_without_bound() {
    let mut host = Alone::new();
    for at in 0..1000 {
        host.ask_by(9 + at % 2, lock(1, Mode::X, at, at), false);
        host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
    }
    assert_eq!(host.client.held(INO), [lock(1, Mode::X, 0, 999)]);
    assert!(host.client.noted(INO) < 40, "{}", host.client.noted(INO));
}

#[test]
fn an_unlock_waits_for_what_is_given_back_and_one_of_nothing_for_nobody() {
    let mut host = Alone::new();
    host.take(lock(2, Mode::X, 30, 40));
    let unlock = |id| FileRequest {
        ino: INO,
        job: Job::Set { wait: false },
        lock: lock(id, Mode::N, 0, 99),
        handle: 9,
        process: 9,
    };
    assert_eq!(host.client.answer_at_once(&unlock(1)), Some(FileAnswer::Granted));
    assert_eq!(host.client.answer_at_once(&unlock(2)), None);
    assert_eq!(Client::new(SlotId(0)).answer_at_once(&unlock(2)), Some(FileAnswer::Granted));
    let no = host.ask(lock(1, Mode::X, 0, 10), true);
    let at = host.newest();
    host.answer(at, Answer::Waiting);
    host.withdraw(no);
    host.answer(at, Answer::Done(FileAnswer::Granted));
    assert_eq!(host.client.answer_at_once(&unlock(1)), None, "the server has not heard of it");
    host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
    assert_eq!(host.client.answer_at_once(&unlock(1)), Some(FileAnswer::Granted));
}

/// A waiter has to let an earlier one go first, until its own owner has something in the way of that one.
#[test]
fn a_waiter_whose_owner_has_become_the_one_waited_for_is_looked_at() {
    let mut table = FileTable::default();
    let id = |n| Some((SlotId(0), n));
    assert_eq!(table.ask(NOW, lock(3, Mode::S, 0, 0), None), Verdict::Granted);
    assert_eq!(table.ask(NOW, lock(1, Mode::X, 0, 9), id(1)), Verdict::Waiting);
    let later = NOW + Duration::from_secs(3600);
    assert_eq!(table.ask(later, lock(2, Mode::S, 5, 5), id(2)), Verdict::Waiting);
    assert_eq!(table.ask(later, lock(2, Mode::X, 7, 7), None), Verdict::Granted);
    assert!(table.deadline().is_some_and(|at| at <= later), "it would sleep on");
    let granted: Vec<_> = settle(&mut table, later).iter().map(|w| w.id.1).collect();
    assert_eq!(granted, [2]);
}

#[test]
fn unlocks_do_not_split_without_bound() {
    let mut host = Alone::new();
    let mut request = FileRequest {
        ino: INO,
        job: Job::Set { wait: false },
        lock: lock(1, Mode::S, 0, 1 << 40),
        handle: 9,
        process: 9,
    };
    host.take(request.lock);
    let refused = (0..1_000_000).find(|n| {
        request.lock = lock(1, Mode::N, 2 * n + 1, 2 * n + 1);
        let refused = host.client.answer_at_once(&request).is_some();
        if !refused {
            host.ask(request.lock, false);
            host.answer(host.newest(), Answer::Done(FileAnswer::Granted));
        }
        refused
    });
    assert!(refused.is_some_and(|n| n < 20_000), "{refused:?}");
    request.lock = FileLock { span: Span { start: 0, end: u64::MAX }, ..lock(1, Mode::N, 0, 0) };
    assert_eq!(host.client.answer_at_once(&request), None, "the end of everything is never refused");
}

#[test]
fn an_unlock_is_told_when_it_is_sent_and_the_next_server_hears_nothing_of_it() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::X, 0, 10));
    let no = host.ask(lock(1, Mode::N, 0, 10), false);
    assert_eq!(host.answers.pop(), Some((no, FileAnswer::Granted)));
    assert!(host.client.held(INO).is_empty());
    let long_ago = Duration::ZERO;
    assert!(!host.client.is_done(NOW, INO, true, long_ago), "the server has not heard of it");
    host.withdraw(no);
    host.serve(Home::Nobody, Token(1));
    host.serve(Home::Peer(SlotId(1)), Token(2));
    let told = &host.sent[host.sent.len() - 2..];
    assert_eq!(told, [Ask::Begin(Token(2), 0), Ask::End]);
    assert!(host.answers.is_empty() && host.client.is_done(NOW, INO, true, long_ago));
}

/// One that had to wait until it could be sent, and whose program was interrupted meanwhile.
#[test]
fn an_unlock_is_told_once() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::X, 20, 30));
    let waits = host.ask(lock(1, Mode::X, 0, 10), true);
    let at = host.newest();
    host.answer(at, Answer::Waiting);
    host.withdraw(waits);
    host.answers.clear();
    let no = host.ask(lock(1, Mode::N, 0, 30), false);
    host.withdraw(no);
    assert!(host.answers.is_empty(), "what was withdrawn is not known to have ended");
    host.answer(at, Answer::Done(FileAnswer::Interrupted));
    host.with(|client, out, send| client.pump(INO, out, send));
    assert_eq!(host.answers.pop(), Some((no, FileAnswer::Granted)));
    host.serve(Home::Nobody, Token(1));
    host.serve(Home::Peer(SlotId(1)), Token(2));
    assert!(host.answers.is_empty() && host.client.held(INO).is_empty());
}

/// Whichever the server meets first, the program must not count on a lock that the unlock has ended.
#[test]
fn an_unlock_beside_another_request_of_its_owner_waits_for_the_server() {
    let mut host = Alone::new();
    host.take(lock(1, Mode::X, 0, 10));
    host.ask(lock(1, Mode::X, 20, 30), true);
    let no = host.ask(lock(1, Mode::N, 0, 30), false);
    let at = host.newest();
    host.withdraw(no);
    assert!(host.answers.is_empty());
    host.answer(at - 1, Answer::Done(FileAnswer::Granted));
    host.answer(at, Answer::Done(FileAnswer::Granted));
    assert_eq!(
        host.answers.drain(..).map(|(_, answer)| answer).collect::<Vec<_>>(),
        [FileAnswer::Granted; 2]
    );
    assert!(host.client.held(INO).is_empty());
    // Nor without a server.
    host.take(lock(1, Mode::X, 0, 10));
    host.ask(lock(1, Mode::X, 20, 30), true);
    let no = host.ask(lock(1, Mode::N, 0, 30), false);
    host.withdraw(no);
    host.serve(Home::Nobody, Token(1));
    assert_eq!(host.answers.pop(), Some((no, FileAnswer::Interrupted)));
    assert!(host.client.held(INO).is_empty());
}

#[test]
fn unlocks_on_their_way_to_a_slow_server_are_few() {
    let mut host = Alone::new();
    (0..100).for_each(|id| host.take(lock(id, Mode::X, id, id)));
    (0..100).for_each(|id| _ = host.ask(lock(id, Mode::N, id, id), false));
    let told = host.answers.len();
    assert!((1..50).contains(&told), "{told}");
    (0..100).for_each(|back| host.answer(host.newest() - 99 + back, Answer::Done(FileAnswer::Granted)));
    assert_eq!(host.answers.len(), 100);
}

#[test]
fn owners_without_locks_are_forgotten() {
    let mut host = Alone::new();
    host.ask(lock(1, Mode::X, 0, 10), false);
    host.answer(host.newest(), Answer::Done(FileAnswer::Denied));
    let no = host.ask(lock(2, Mode::X, 0, 10), true);
    host.withdraw(no);
    host.answer(host.newest(), Answer::Done(FileAnswer::Denied));
    host.serve(Home::Nobody, Token(1));
    let no = host.ask(lock(3, Mode::X, 0, 10), true);
    host.withdraw(no);
    assert!(host.client.of_handle(INO, 9).is_empty());
}
