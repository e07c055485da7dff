//! What the programs of this host have locked and want, and who serves it.
//!
//! - A *book* exists for every inode of which a program of this host has or wants locks. Its pin keeps
//!   the cluster lock here, in S at least.
//! - What is granted is noted when the answer comes, so the notes are what the server has of this host
//!   but for the requests that are on their way. On another server, or under another token, all is told
//!   anew: what is noted, who waits; requests without an answer are made again.
//! - An unlock is noted when it is sent, and its program goes on; the book is open until the server has it.
//! - A request that is withdrawn while it is known to wait is answered at once. If it has been granted
//!   meanwhile, the grant is given back: whatever the owner had there before still stands. What the owner
//!   asks for next is not sent before it is known what has become of the one withdrawn.
//! - One of which nothing is known yet, or that may have made a lock less, is answered when the server has
//!   said what became of it. If the server is lost first, what the owner had is less, and unless the
//!   request is granted after all, its program is told of a loss.
//! - An owner of flock is an open file description, known by its handle. Numbers of owners are used
//!   again: under another handle it is another, and what the former had is given up first.

use super::book::{Book, Noted, Request, State};
use super::cycle::Waits;
use super::message::{Answer, Ask};
use super::{FileAnswer, FileLock, LockKind, Owner};
use crate::base::{InodeNo, Mode, SlotId, Token};
use std::collections::BTreeMap;
use std::time::Duration;

/// Most locked ranges of this host's programs, of one inode and in all, and most requests of an inode.
const BOOK_MAX: usize = 8_192;
const PIECES_MAX: usize = 65_536;
const REQUESTS_MAX: usize = 4_096;
/// How many unlocks of all inodes may be on their way that their programs have been told of: who is about to be refused by
/// what they give up waits behind them.
const GIVEN_UP_MAX: usize = 16;
/// Unlocks may leave more ranges than there were, up to so many times as many.
const SPLIT_MAX: usize = 2;

/// A request's name on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestNo {
    pub ino: InodeNo,
    pub number: u64,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// Take, change or give up (`N`).
    Set { wait: bool },
    /// Is anything in the way?
    Test,
}

/// A program's request. The owner's host is this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileRequest {
    pub ino: InodeNo,
    pub job: Job,
    pub lock: FileLock,
    /// The handle it came by, and the process.
    pub handle: u64,
    pub process: u32,
}

/// Who serves an inode's locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Home {
    Nobody,
    Here,
    Peer(SlotId),
}

/// How messages are sent: to whom, about what; returns the number of the message.
pub type Send<'a> = &'a mut dyn FnMut(Home, InodeNo, Ask) -> u64;
/// Requests that are answered.
pub type Answers = Vec<(RequestNo, FileAnswer)>;

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    me: SlotId,
    last: u64,
    pieces: usize,
    given_up: usize,
    books: BTreeMap<InodeNo, Book>,
    /// Books without use, and since when.
    idle: BTreeMap<InodeNo, Duration>,
}

impl Client {
    /// No locks yet.
    pub fn new(me: SlotId) -> Client {
        Client { me, last: 0, pieces: 0, given_up: 0, books: BTreeMap::new(), idle: BTreeMap::new() }
    }

    /// Is that this host?
    pub fn is_host(&self, slot: SlotId) -> bool {
        slot == self.me
    }

    /// Is there a book? Is it pinned?
    pub fn book(&self, ino: InodeNo) -> Option<bool> {
        self.books.get(&ino).map(|b| b.pinned)
    }

    /// Books of the inodes from `first` to `last`.
    pub fn books(&self, first: InodeNo, last: InodeNo) -> Vec<InodeNo> {
        self.books.range(first..=last).map(|(ino, _)| *ino).collect()
    }

    /// Who serves this inode, under which token, and the grant of the cluster lock that this rests on.
    pub fn home(&self, ino: InodeNo) -> (Home, Token, u64) {
        self.books.get(&ino).map_or((Home::Nobody, Token(0), 0), |b| (b.home, b.token, b.grant))
    }

    /// Everything that this host's programs have of an inode.
    pub fn held(&self, ino: InodeNo) -> Vec<FileLock> {
        self.books.get(&ino).map_or(Vec::new(), |b| b.held.all().collect())
    }

    /// How many parts of what they have are noted with the handle by which they took it.
    pub fn noted(&self, ino: InodeNo) -> usize {
        self.books.get(&ino).map_or(0, |b| b.noted.values().map(|noted| noted.taken.len()).sum())
    }

    /// Has a request of this inode no answer yet?
    pub fn is_asking(&self, ino: InodeNo) -> bool {
        self.books.get(&ino).is_some_and(|b| !b.requests.is_empty())
    }

    /// Has any?
    pub fn is_waiting(&self) -> bool {
        self.books.values().any(|b| !b.requests.is_empty())
    }

    /// The owner of a lock of this host.
    pub fn owner(&self, id: u64) -> Owner {
        Owner { host: self.me, id }
    }

    /// Has this owner any lock of this kind, or asks for one?
    pub fn has(&self, ino: InodeNo, kind: LockKind, id: u64) -> bool {
        self.books.get(&ino).is_some_and(|b| b.has(kind, self.owner(id)))
    }

    /// Has another owner than this one any lock, or waits for one?
    pub fn is_wanted_beside(&self, ino: InodeNo, owner: Owner) -> bool {
        self.books.get(&ino).is_some_and(|b| b.is_wanted_beside(owner))
    }

    /// Owners of flock that last asked by this handle.
    pub fn of_handle(&self, ino: InodeNo, handle: u64) -> Vec<u64> {
        let Some(book) = self.books.get(&ino) else { return Vec::new() };
        let whole = |((kind, _), noted): &(&(LockKind, u64), &Noted)| {
            *kind == LockKind::Whole && noted.handle == handle
        };
        book.noted.iter().filter(whole).map(|((_, id), _)| *id).collect()
    }

    /// A handle is closed for good; what ranges are left of it, [`Client::leftovers`] says.
    pub fn end_handle(&mut self, ino: InodeNo, handle: u64) {
        if let Some(book) = self.books.get_mut(&ino) {
            book.end(handle);
        }
    }

    /// Unlocks to be asked for.
    pub fn leftovers(&mut self, ino: InodeNo) -> Vec<FileRequest> {
        let left = self.books.get_mut(&ino).map_or(Vec::new(), Book::leftovers);
        let job = Job::Set { wait: false };
        left.into_iter().map(|(handle, lock)| FileRequest { ino, job, lock, handle, process: 0 }).collect()
    }

    /// Has an open file description of the same number, that is gone, flock locks there still?
    pub fn is_reborn(&self, request: &FileRequest) -> bool {
        let FileRequest { ino, lock, handle, .. } = *request;
        let key = (lock.kind, lock.owner.id);
        let former = |b: &Book| b.noted.get(&key).is_some_and(|noted| noted.handle != handle);
        lock.kind == LockKind::Whole
            && lock.mode != Mode::N
            && request.job != Job::Test
            && self.books.get(&ino).is_some_and(former)
    }

    /// A number for a request.
    pub fn number(&mut self, ino: InodeNo) -> RequestNo {
        self.last += 1;
        RequestNo { ino, number: self.last }
    }

    /// What can be said without anybody else.
    pub fn answer_at_once(&self, request: &FileRequest) -> Option<FileAnswer> {
        let FileRequest { lock, .. } = request;
        let book = self.books.get(&request.ino);
        if request.job == Job::Test {
            let (owner, piece) = book?.held.conflict(lock)?;
            let process = book?.noted.get(&(lock.kind, owner.id)).map(|noted| u64::from(noted.process));
            return Some(FileAnswer::Found(piece.mode, piece.span, process));
        }
        if lock.mode == Mode::N && !self.has(request.ino, lock.kind, lock.owner.id) {
            return Some(FileAnswer::Granted);
        }
        let full = |b: &Book| b.held.len() >= BOOK_MAX || b.requests.len() >= REQUESTS_MAX;
        let split = |b: &Book| {
            let many = self.pieces >= PIECES_MAX * SPLIT_MAX || b.held.len() >= BOOK_MAX * SPLIT_MAX;
            many && b.splits(lock)
        };
        let refused = match lock.mode {
            Mode::N => book.is_some_and(split),
            _ => self.pieces >= PIECES_MAX || book.is_some_and(full),
        };
        refused.then_some(FileAnswer::NoLocks)
    }

    /// Owners on this host that are in the way of a lock.
    pub fn blockers(&self, ino: InodeNo, lock: &FileLock) -> Vec<Owner> {
        self.books.get(&ino).map_or(Vec::new(), |b| b.held.blockers(lock))
    }

    /// The handles by which they took that; of ranges also others by which the same owners took some.
    pub fn blocking_handles(&self, ino: InodeNo, lock: &FileLock) -> Vec<u64> {
        let Some(book) = self.books.get(&ino) else { return Vec::new() };
        let noted = |owner: Owner| book.noted.get(&(lock.kind, owner.id));
        let by = |noted: &Noted| match lock.kind {
            LockKind::Whole => vec![noted.handle],
            LockKind::Range => noted.taken.owners().into_iter().map(|by| by.id).collect(),
        };
        book.held.blockers(lock).into_iter().filter_map(noted).flat_map(by).collect()
    }

    /// Has the owner any range locked, as far as this host has heard?
    pub fn has_ranges(&self, owner: Owner) -> bool {
        self.books.values().any(|b| !b.held.of(LockKind::Range, owner).is_empty())
    }

    /// Who of this host waits for ranges that others serve.
    pub fn waits<'a>(&'a self, waits: &mut Waits<'a>) {
        for book in self.books.values().filter(|b| b.home != Home::Here) {
            let waiting = |r: &&Request| {
                let State::Waiting(_) = r.state else { return false };
                r.lock.kind == LockKind::Range && !r.withdrawn
            };
            book.requests.values().filter(waiting).for_each(|r| waits.add(&book.held, r.lock));
        }
    }

    /// Take up a request of the host's own, in a book that is there.
    pub fn take_up(&mut self, request: &FileRequest) -> RequestNo {
        let no = self.number(request.ino);
        self.submit(no, request);
        no
    }

    /// Take up a request. True: its book is new, and needs its pin.
    pub fn submit(&mut self, no: RequestNo, request: &FileRequest) -> bool {
        let new = !self.books.contains_key(&no.ino);
        let book = self.books.entry(no.ino).or_insert_with(Book::new);
        let FileRequest { job, lock, handle, process, .. } = *request;
        book.requests.insert(no.number, Request::new(request));
        self.idle.remove(&no.ino);
        if lock.mode != Mode::N && job != Job::Test {
            let noted = book.noted.entry((lock.kind, lock.owner.id)).or_default();
            (noted.handle, noted.process) = (handle, process);
        }
        new
    }

    /// The book has its pin.
    pub fn pinned(&mut self, ino: InodeNo) {
        if let Some(book) = self.books.get_mut(&ino) {
            book.pinned = true;
        }
    }

    /// Send what has not been sent.
    pub fn pump(&mut self, ino: InodeNo, out: &mut Answers, send: Send<'_>) {
        let Some(book) = self.books.get_mut(&ino) else { return };
        if book.home == Home::Nobody {
            return;
        }
        let unknown: Vec<_> = book.requests.values().filter(|r| r.is_unknown()).map(Request::whose).collect();
        let may = |r: &Request| r.state == State::New && !unknown.contains(&r.whose());
        let unsent: Vec<u64> = book.requests.iter().filter(|(_, r)| may(r)).map(|(n, _)| *n).collect();
        let before = book.held.len();
        for number in unsent {
            let at_once = self.given_up < GIVEN_UP_MAX && book.is_had_at_once(number);
            let request = book.requests.get_mut(&number).expect("just listed");
            let lock = request.lock;
            let ask = match request.job {
                _ if at_once => Ask::GiveUp(lock),
                Job::Set { wait } => Ask::Set { lock, wait },
                Job::Test => Ask::Test(lock),
            };
            request.state = State::Sent;
            book.flight.insert(send(book.home, ino, ask), number);
            if at_once {
                request.given_up = true;
                self.given_up += 1;
                let answer = request.told(FileAnswer::Granted);
                book.have(&lock, 0);
                out.push((RequestNo { ino, number }, answer));
            }
        }
        self.pieces = self.pieces + book.held.len() - before;
    }

    /// Somebody serves the inode from now on (perhaps the same, who has forgotten).
    pub fn rehome(
        &mut self,
        ino: InodeNo,
        (home, token, grant): (Home, Token, u64),
        out: &mut Answers,
        send: Send<'_>,
    ) {
        let Some(book) = self.books.get_mut(&ino) else { return };
        // What is said to the own server is answered before anything else happens.
        let unheard = matches!(book.home, Home::Peer(_));
        (book.home, book.token, book.grant, book.alone) = (home, token, grant, false);
        self.tell_anew(ino, unheard, out, send);
    }

    /// Tell the server everything. `unheard`: requests may have been granted without our hearing of it.
    fn tell_anew(&mut self, ino: InodeNo, unheard: bool, out: &mut Answers, send: Send<'_>) {
        let Some(book) = self.books.get_mut(&ino) else { return };
        book.flight.clear();
        book.returned.clear();
        // What was withdrawn is not asked for again. Without a server, what is given up is simply not told.
        let before = book.held.len();
        if unheard {
            book.lessen();
        }
        let lost = book.home == Home::Nobody || unheard;
        let mut given_up = Vec::new();
        for (number, request) in book.requests.iter_mut().filter(|(_, r)| r.ending && r.is_awaited()) {
            let unlocks = request.unlocks();
            if if unlocks { book.home == Home::Nobody } else { lost } {
                request.withdrawn = true;
                if unlocks {
                    given_up.push(request.lock);
                }
                out.push((RequestNo { ino, number: *number }, request.told(FileAnswer::Interrupted)));
            }
        }
        given_up.iter().for_each(|lock| book.have(lock, 0));
        self.pieces = self.pieces + book.held.len() - before;
        self.given_up -= book.given_up();
        book.requests.retain(|_, r| r.is_awaited());
        book.forget_idle_owners(self.me);
        let unseen = |r: &&mut Request| matches!(r.state, State::Sent | State::Queued(_));
        book.requests.values_mut().filter(unseen).for_each(|r| r.state = State::New);
        if book.home == Home::Nobody {
            return;
        }
        send(book.home, ino, Ask::Begin(book.token, book.grant));
        for lock in book.held.all() {
            send(book.home, ino, Ask::Held(lock));
        }
        let mut ending = Vec::new();
        for (number, request) in &mut book.requests {
            if let State::Waiting(at) = &mut request.state {
                *at = send(book.home, ino, Ask::Waits(request.lock));
                book.flight.insert(*at, *number);
                if request.ending {
                    ending.push(*at);
                }
            }
        }
        send(book.home, ino, Ask::End);
        ending.into_iter().for_each(|at| _ = send(book.home, ino, Ask::Cancel(at)));
        self.pump(ino, out, send);
    }

    /// The server of an inode, `from`, answers.
    #[allow(clippy::too_many_arguments)]
    pub fn answered(
        &mut self,
        from: Home,
        ino: InodeNo,
        at: u64,
        answer: Answer,
        alone: bool,
        out: &mut Answers,
        send: Send<'_>,
    ) {
        if let Answer::Check { asker } = answer {
            // What was given up before is on its way before this.
            send(from, ino, Ask::Checked { asker, request: at });
            return;
        }
        let Some(book) = self.books.get_mut(&ino) else { return };
        // An earlier server's words, or about what was said anew since.
        if book.home != from {
            return;
        }
        book.returned.remove(&at);
        let Some(number) = book.flight.get(&at).copied() else { return };
        book.alone = alone;
        let before = book.held.len();
        let request = book.requests.get_mut(&number).expect("what is on its way is listed");
        let answer = if answer == Answer::Noted { Answer::Done(FileAnswer::Granted) } else { answer };
        let Answer::Done(result) = answer else {
            request.state = if answer == Answer::Waiting { State::Waiting(at) } else { State::Queued(at) };
            book.held.give_up_other_mode(&request.lock);
            if request.withdrawn || request.ending {
                send(from, ino, Ask::Cancel(at));
            }
            let now = book.held.len();
            self.pieces = self.pieces + now - before;
            return;
        };
        book.flight.remove(&at);
        let request = book.requests.remove(&number).expect("just seen");
        self.given_up -= usize::from(request.given_up);
        let lock = request.lock;
        let sets = matches!(request.job, Job::Set { .. });
        match result {
            FileAnswer::Granted if sets && request.withdrawn && lock.mode != Mode::N => {
                for part in book.held.parts(&lock) {
                    let part = send(from, ino, Ask::Set { lock: part, wait: false });
                    book.returned.insert(part, request.whose());
                }
            }
            FileAnswer::Granted if sets && !request.given_up => book.have(&lock, request.handle),
            _ if sets && request.state == State::Sent => _ = book.held.give_up_other_mode(&lock),
            _ => {}
        }
        book.forget_idle(lock.kind, lock.owner);
        if request.is_awaited() {
            out.push((RequestNo { ino, number }, request.told(result)));
        }
        self.pieces = self.pieces + book.held.len() - before;
    }

    /// Nobody waits for this request any more. If it is known to wait, it is answered at once, and if it has been
    /// granted, given back; else, if there is a server, when that has said how it ended.
    pub fn withdraw(&mut self, no: RequestNo, out: &mut Answers, send: Send<'_>) {
        let Some(book) = self.books.get_mut(&no.ino) else { return };
        let Some(request) = book.requests.get_mut(&no.number).filter(|r| r.is_awaited() && !r.ending) else {
            return;
        };
        request.ending = true;
        let request = request.clone();
        let (lock, unlocks) = (request.lock, request.unlocks());
        let at = match request.state {
            State::Waiting(at) | State::Queued(at) => book.flight.contains_key(&at).then_some(at),
            State::New | State::Sent => None,
        };
        if let Some(at) = at {
            send(book.home, no.ino, Ask::Cancel(at));
        }
        let open = unlocks || request.state == State::Sent || book.is_open(no.number, &request);
        if book.home != Home::Nobody && open {
            return;
        }
        out.push((no, request.told(FileAnswer::Interrupted)));
        if at.is_some() {
            book.requests.get_mut(&no.number).expect("just seen").withdrawn = true;
            return;
        }
        book.requests.remove(&no.number);
        if unlocks {
            let before = book.held.len();
            book.have(&lock, 0);
            self.pieces = self.pieces + book.held.len() - before;
        }
        book.forget_idle(lock.kind, lock.owner);
    }

    /// May the book be closed? With a server elsewhere, or others about, only after a while without use.
    pub fn is_done(&mut self, now: Duration, ino: InodeNo, sole: bool, linger: Duration) -> bool {
        let Some(book) = self.books.get_mut(&ino) else { return false };
        if !book.pinned || !book.requests.is_empty() || !book.held.is_empty() {
            self.idle.remove(&ino);
            return false;
        }
        let since = *self.idle.entry(ino).or_insert(now);
        sole || book.alone || now >= since + linger
    }

    /// When a book without use is to be closed.
    pub fn deadline(&self, linger: Duration) -> Option<Duration> {
        self.idle.values().min().map(|since| *since + linger)
    }

    /// Books without use.
    pub fn idle(&self) -> Vec<InodeNo> {
        self.idle.keys().copied().collect()
    }

    /// Close a book. True: it was pinned.
    pub fn close(&mut self, ino: InodeNo, out: &mut Answers) -> bool {
        let Some(book) = self.books.remove(&ino) else { return false };
        self.idle.remove(&ino);
        self.pieces -= book.held.len();
        self.given_up -= book.given_up();
        let waiting = book.requests.into_iter().filter(|(_, r)| r.is_awaited());
        out.extend(waiting.map(|(number, _)| (RequestNo { ino, number }, FileAnswer::Halted)));
        book.pinned
    }
}
