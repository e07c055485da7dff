//! What is noted of one inode's file locks, and requests that have no answer yet. See [`super::client`].

use super::client::{FileRequest, Home, Job};
use super::ranges::{Piece, Ranges};
use super::table::FileTable;
use super::{FileAnswer, FileLock, LockKind, Owner, Span};
use crate::base::{Mode, SlotId, Token};
use std::collections::{BTreeMap, BTreeSet};

/// If an owner took its ranges by handles in turn in so many more parts than twice their number, it is not noted any
/// more by which.
const TAKEN_MORE: usize = 16;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    New,
    Sent,
    /// The server has it under this number, and looks at it when everybody has declared.
    Queued(u64),
    /// It waits at the server, under this number.
    Waiting(u64),
}

/// An owner: by which handle it last asked, and its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Noted {
    pub handle: u64,
    pub process: u32,
    /// By which handles (each is an owner here) it took the ranges that it has.
    pub taken: Ranges,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub job: Job,
    pub lock: FileLock,
    pub handle: u64,
    pub state: State,
    /// Answered already: nobody waits for it.
    pub withdrawn: bool,
    /// An unlock that its program has been told of: what it gives up is not had here any more, and the server hears of it.
    pub given_up: bool,
    /// To be ended as soon as it can be told how: its program is interrupted.
    pub ending: bool,
    /// A server that is lost may have granted it, so that a lock of its owner was made less.
    pub lessened: bool,
}

impl Request {
    pub fn new(request: &FileRequest) -> Request {
        let FileRequest { job, lock, handle, .. } = *request;
        let state = State::New;
        let (withdrawn, given_up, ending, lessened) = (false, false, false, false);
        Request { job, lock, handle, state, withdrawn, given_up, ending, lessened }
    }

    pub fn whose(&self) -> (LockKind, Owner) {
        (self.lock.kind, self.lock.owner)
    }

    /// Withdrawn, and perhaps granted all the same.
    pub fn is_unknown(&self) -> bool {
        self.withdrawn && self.state != State::New
    }

    /// Does a program wait for the answer?
    pub fn is_awaited(&self) -> bool {
        !self.withdrawn && !self.given_up
    }

    pub fn unlocks(&self) -> bool {
        self.lock.mode == Mode::N && self.job != Job::Test
    }

    /// What its program is told. One that was refused changes nothing; if that is not so, it is told of a loss.
    pub fn told(&self, result: FileAnswer) -> FileAnswer {
        if self.lessened && result != FileAnswer::Granted { FileAnswer::Halted } else { result }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Book {
    pub home: Home,
    pub token: Token,
    /// The grant of the cluster lock that this rests on.
    pub grant: u64,
    pub pinned: bool,
    /// What this host's programs have.
    pub held: FileTable,
    pub requests: BTreeMap<u64, Request>,
    /// Requests on their way or waiting, by their number at the server.
    pub flight: BTreeMap<u64, u64>,
    /// Owners, as they last asked.
    pub noted: BTreeMap<(LockKind, u64), Noted>,
    /// Handles that are closed though ranges taken by them are left.
    pub ended: BTreeSet<u64>,
    /// Parts that are given back, by their number at the server, and whose they were.
    pub returned: BTreeMap<u64, (LockKind, Owner)>,
    /// Nobody else has to do with this inode's locks, as the server last said.
    pub alone: bool,
}

impl Book {
    pub fn new() -> Book {
        Book {
            home: Home::Nobody,
            token: Token(0),
            grant: 0,
            pinned: false,
            held: FileTable::default(),
            requests: BTreeMap::new(),
            flight: BTreeMap::new(),
            noted: BTreeMap::new(),
            ended: BTreeSet::new(),
            returned: BTreeMap::new(),
            alone: false,
        }
    }

    /// Has this owner any lock of this kind, or asks for one?
    pub fn has(&self, kind: LockKind, owner: Owner) -> bool {
        let asks = |r: &Request| r.whose() == (kind, owner) && r.lock.mode != Mode::N;
        !self.held.of(kind, owner).is_empty()
            || self.requests.values().any(asks)
            || self.returned.values().any(|whose| *whose == (kind, owner))
    }

    /// Has another owner than this one any lock, or waits for one?
    pub fn is_wanted_beside(&self, owner: Owner) -> bool {
        let waits = |r: &Request| r.is_awaited() && r.lock.mode != Mode::N && r.lock.owner != owner;
        self.held.has_other(owner) || self.requests.values().any(waits)
    }

    /// The owner has it so, by this handle.
    pub fn have(&mut self, lock: &FileLock, handle: u64) {
        self.held.set(lock);
        let noted = self.noted.get_mut(&(lock.kind, lock.owner.id)).filter(|_| lock.kind == LockKind::Range);
        if let Some(Noted { taken, .. }) = noted {
            taken.owners().into_iter().for_each(|by| taken.set(by, Mode::N, lock.span));
            if lock.mode != Mode::N {
                taken.set(Owner { id: handle, ..lock.owner }, Mode::S, lock.span);
            }
            // A process may lock byte after byte by one handle and another, and have but one range. Only by what it
            // takes: the handle that gives something back may be closed, and what is noted by it goes with it.
            if lock.mode != Mode::N
                && taken.len() > 2 * self.held.of(lock.kind, lock.owner).len() + TAKEN_MORE
            {
                *taken = Ranges::default();
                taken.set(Owner { id: handle, ..lock.owner }, Mode::S, Span { start: 0, end: u64::MAX });
            }
        }
    }

    /// A handle is closed. Of processes nothing is left then; of an open file description is what it had itself,
    /// even if its number is another's by now.
    pub fn end(&mut self, handle: u64) {
        let took = |noted: &Noted| noted.taken.owners().iter().any(|by| by.id == handle);
        if self.noted.values().any(took) {
            self.ended.insert(handle);
        }
    }

    /// Unlocks of what is left of closed handles: for each owner one of everything, as mostly nothing else is there, or
    /// as few as spare what its other handles have. What is just asked for there, by the number's next owner, is
    /// left out until that is answered.
    pub fn leftovers(&mut self) -> Vec<(u64, FileLock)> {
        let ended = std::mem::take(&mut self.ended);
        if ended.is_empty() {
            return Vec::new();
        }
        let mut asked: BTreeMap<(LockKind, Owner), Vec<Span>> = BTreeMap::new();
        for request in self.requests.values().filter(|r| r.job != Job::Test) {
            asked.entry(request.whose()).or_default().push(request.lock.span);
        }
        let mut left = Vec::new();
        for ((kind, id), noted) in &self.noted {
            let (gone, others): (Vec<_>, Vec<_>) =
                noted.taken.all().partition(|(by, _)| ended.contains(&by.id));
            let Some((by, _)) = gone.first().copied() else { continue };
            self.ended.extend(gone.iter().map(|(by, _)| by.id));
            let owner = Owner { id: *id, ..by };
            let asked = asked.get(&(*kind, owner)).map_or(&[][..], Vec::as_slice);
            let spared = others.iter().map(|(_, piece)| piece.span).chain(asked.iter().copied()).collect();
            let spans = between(gone.iter().map(|(_, piece)| piece.span).collect(), spared);
            left.extend(spans.map(|span| (by.id, FileLock { kind: *kind, owner, mode: Mode::N, span })));
        }
        left
    }

    /// Would the unlock leave one more range than there was?
    pub fn splits(&self, lock: &FileLock) -> bool {
        let inside = |p: &Piece| p.span.start < lock.span.start && lock.span.end < p.span.end;
        lock.mode == Mode::N && self.held.of(lock.kind, lock.owner).iter().any(inside)
    }

    /// Will it be known only from the server what the owner of a request that is sent has in the end: because
    /// it may be less than it was, or because another thread of the program has asked as well?
    pub fn is_open(&self, number: u64, request: &Request) -> bool {
        let sibling = |(n, r): (&u64, &Request)| {
            *n != number && r.job != Job::Test && r.state != State::New && r.whose() == request.whose()
        };
        let takes = request.job != Job::Test && request.state != State::New;
        takes && (self.held.would_lower(&request.lock) || self.requests.iter().any(sibling))
    }

    /// May the program of an unlock go on as soon as it is sent? Who is refused by what it gives up asks this host first
    /// whether that still stands. Not if its owner asks for something else, of which nobody knows whether the server
    /// will have met it before.
    pub fn is_had_at_once(&self, number: u64) -> bool {
        let request = &self.requests[&number];
        let other = |(n, r): (&u64, &Request)| *n != number && !r.given_up && r.whose() == request.whose();
        request.unlocks()
            && matches!(self.home, Home::Peer(_))
            && !self.requests.iter().any(other)
            && !self.returned.values().any(|whose| *whose == request.whose())
    }

    /// How many unlocks are on their way that their programs have been told of.
    pub fn given_up(&self) -> usize {
        self.requests.values().filter(|r| r.given_up).count()
    }

    /// By which handle an owner last asked is of interest while it has something or asks for it.
    pub fn forget_idle(&mut self, kind: LockKind, owner: Owner) {
        let asks = |r: &Request| r.whose() == (kind, owner);
        if self.held.of(kind, owner).is_empty() && !self.requests.values().any(asks) {
            self.noted.remove(&(kind, owner.id));
        }
    }

    pub fn forget_idle_owners(&mut self, me: SlotId) {
        for (kind, id) in self.noted.keys().copied().collect::<Vec<_>>() {
            self.forget_idle(kind, Owner { host: me, id });
        }
    }

    /// A lost server may have granted what was on its way to it: what that would have made less is less, and
    /// others may have got the rest.
    pub fn lessen(&mut self) {
        let sets = |r: &&mut Request| r.job != Job::Test && r.state != State::New && !r.given_up;
        for request in self.requests.values_mut().filter(sets) {
            self.held.give_up_other_mode(&request.lock);
            request.lessened |= !request.unlocks() && self.held.would_lower(&request.lock);
            self.held.lower(&request.lock);
        }
    }
}

/// The fewest spans that have all of `wanted` in them, but what overlaps one of `spared`, and nothing of those.
fn between(mut wanted: Vec<Span>, mut spared: Vec<Span>) -> impl Iterator<Item = Span> {
    wanted.sort_unstable_by_key(|span| span.start);
    spared.sort_unstable_by_key(|span| span.start);
    let mut spans: Vec<Span> = Vec::new();
    // How far what is spared and begins before the wanted one reaches, and whether any was passed since the last one.
    let (mut next, mut reach, mut cut) = (0, None, true);
    for span in wanted {
        while spared.get(next).is_some_and(|s| s.start <= span.end) {
            reach = reach.max(Some(spared[next].end));
            (next, cut) = (next + 1, true);
        }
        if reach.is_some_and(|end| end >= span.start) {
            cut = true;
            continue;
        }
        match spans.last_mut().filter(|_| !cut) {
            Some(last) => last.end = last.end.max(span.end),
            None => spans.push(span),
        }
        cut = false;
    }
    if spared.is_empty() && !spans.is_empty() {
        spans = vec![Span::ALL];
    }
    spans.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_spans_spare_what_is_others() {
        let of = |spans: &[(u64, u64)]| {
            spans.iter().map(|(start, end)| Span { start: *start, end: *end }).collect()
        };
        let left = |wanted: &[(u64, u64)], spared: &[(u64, u64)]| -> Vec<_> {
            between(of(wanted), of(spared)).map(|span| (span.start, span.end)).collect()
        };
        let wanted = [(20, 25), (0, 0), (2, 4), (10, 12)];
        assert_eq!(left(&wanted, &[]), [(Span::ALL.start, Span::ALL.end)]);
        assert_eq!(left(&wanted, &[(100, 200)]), [(0, 25)]);
        assert_eq!(left(&wanted, &[(6, 6)]), [(0, 4), (10, 25)]);
        assert_eq!(left(&wanted, &[(1, 1), (11, 11)]), [(0, 0), (2, 4), (20, 25)]);
        assert_eq!(left(&wanted, &[(3, 22)]), [(0, 0)]);
        assert_eq!(left(&wanted, &[(0, 30), (1, 1)]), []);
        assert_eq!(left(&wanted, &[(13, 19), (1, 1)]), [(0, 0), (2, 12), (20, 25)]);
        assert_eq!(left(&[], &[]), []);
    }
}
