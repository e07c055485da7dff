//! What is noted of one inode's file locks, and requests that have no answer yet. See [`super::client`].

use super::client::{FileRequest, Home, Job};
use super::table::FileTable;
use super::{FileAnswer, FileLock, LockKind, Owner};
use crate::base::{Mode, SlotId, Token};
use std::collections::BTreeMap;

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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub job: Job,
    pub lock: FileLock,
    pub state: State,
    /// Answered already: nobody waits for it.
    pub withdrawn: bool,
    /// To be ended as soon as it can be told how: its program is interrupted.
    pub ending: bool,
    /// A server that is lost may have granted it, so that a lock of its owner was made less.
    pub lessened: bool,
}

impl Request {
    pub fn new(request: &FileRequest) -> Request {
        let FileRequest { job, lock, .. } = *request;
        Request { job, lock, state: State::New, withdrawn: false, ending: false, lessened: false }
    }

    pub fn whose(&self) -> (LockKind, Owner) {
        (self.lock.kind, self.lock.owner)
    }

    /// Withdrawn, and perhaps granted all the same.
    pub fn is_unknown(&self) -> bool {
        self.withdrawn && self.state != State::New
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
    /// By owner: the handle by which it last asked, and its process.
    pub handles: BTreeMap<(LockKind, u64), (u64, u32)>,
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
            handles: BTreeMap::new(),
            alone: false,
        }
    }

    /// Would the unlock leave one more range than there was?
    pub fn splits(&self, lock: &FileLock) -> bool {
        let inside = |p: &super::ranges::Piece| p.span.start < lock.span.start && lock.span.end < p.span.end;
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

    /// By which handle an owner last asked is of interest while it has something or asks for it.
    pub fn forget_idle(&mut self, kind: LockKind, owner: Owner) {
        let asks = |r: &Request| r.whose() == (kind, owner);
        if self.held.of(kind, owner).is_empty() && !self.requests.values().any(asks) {
            self.handles.remove(&(kind, owner.id));
        }
    }

    pub fn forget_idle_owners(&mut self, me: SlotId) {
        for (kind, id) in self.handles.keys().copied().collect::<Vec<_>>() {
            self.forget_idle(kind, Owner { host: me, id });
        }
    }

    /// A lost server may have granted what was on its way to it: what that would have made less is less, and
    /// others may have got the rest.
    pub fn lessen(&mut self) {
        let sets = |r: &&mut Request| r.job != Job::Test && r.state != State::New;
        for request in self.requests.values_mut().filter(sets) {
            self.held.give_up_other_mode(&request.lock);
            request.lessened |= !request.unlocks() && self.held.would_lower(&request.lock);
            self.held.lower(&request.lock);
        }
    }
}
