//! The tables that this host keeps for everybody.
//!
//! - A table is worked on only when all hosts that may have locks in it have told what they have, under
//!   the present token of the group and the last grant of the cluster lock: the desk says who they are.
//!   What is asked before that waits. A host that gave the cluster lock up and got it again may have
//!   locked in between without a word, so what it told under an earlier grant says nothing.
//! - A host's requests are met in the order in which it made them; but what gives something up, or ends a
//!   wait, need not wait until others have told anything.
//! - What a host has is forgotten when the cluster lock says that it has nothing, or when it begins to
//!   tell anew.

use super::cycle;
use super::message::{Answer, Ask};
use super::table::{FileTable, Verdict, Waiter};
use super::{FileAnswer, FileLock, LockKind, Owner};
use crate::base::{InodeNo, SlotId, Token};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// An answer on its way to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Told {
    pub to: SlotId,
    pub ino: InodeNo,
    pub request: u64,
    pub answer: Answer,
}

/// Who must have declared before a table is worked on: hosts with the cluster lock, each with the number of
/// its last grant, and the token they must know. `None`: this host does not serve it now.
pub type Required = Option<(BTreeMap<SlotId, u64>, Token)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Queued {
    from: SlotId,
    number: u64,
    ask: Ask,
    /// The client has been told that it may take a while.
    told: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Service {
    table: FileTable,
    /// Who began to tell, under which token and grant, and is he through?
    declared: BTreeMap<SlotId, (Token, u64, bool)>,
    /// Requests that came before everybody had declared.
    queued: VecDeque<Queued>,
}

/// See the head of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    services: BTreeMap<InodeNo, Service>,
    /// Those with requests that wait until everybody has declared.
    unready: BTreeSet<InodeNo>,
    /// Those that have something to grant at a later time, whatever happens.
    timers: BTreeMap<InodeNo, Duration>,
}

impl Server {
    /// Inodes of which anything is known here.
    pub fn inodes(&self) -> Vec<InodeNo> {
        self.services.keys().copied().collect()
    }

    /// Inodes with requests that nobody has looked at since they came, until everybody has declared.
    pub fn unready(&self) -> Vec<InodeNo> {
        self.unready.iter().copied().collect()
    }

    /// Who of this inode has declared, or begun to.
    pub fn hosts(&self, ino: InodeNo) -> Vec<SlotId> {
        self.services.get(&ino).map_or(Vec::new(), |s| s.declared.keys().copied().collect())
    }

    /// The table of an inode, to look at.
    pub fn table(&self, ino: InodeNo) -> Option<&FileTable> {
        self.services.get(&ino).map(|s| &s.table)
    }

    /// A message of a client; `me` is a client like any other. What follows from it is told by
    /// [`Server::work`].
    pub fn receive(&mut self, now: Duration, from: SlotId, ino: InodeNo, number: u64, ask: Ask) {
        let service = self.services.entry(ino).or_default();
        match ask {
            Ask::Begin(token, grant) => {
                service.forget(from);
                service.declared.insert(from, (token, grant, false));
            }
            Ask::Held(lock) => service.table.set(&lock),
            Ask::Waits(lock) => {
                service.table.wait(now, (from, number), lock);
                self.unready.insert(ino);
            }
            Ask::End => {
                if let Some((_, _, done)) = service.declared.get_mut(&from) {
                    *done = true;
                }
            }
            Ask::Set { .. } | Ask::Test(_) | Ask::Cancel(_) => {
                service.queued.push_back(Queued { from, number, ask, told: false });
                self.unready.insert(ino);
            }
        }
    }

    /// Meet requests of an inode and grant what has become free, if everybody who must has declared.
    pub fn work(&mut self, now: Duration, ino: InodeNo, required: &Required, out: &mut Vec<Told>) {
        let due = self.timers.remove(&ino).is_some_and(|at| at <= now);
        let Some(service) = self.services.get_mut(&ino) else { return };
        let ready = required.as_ref().filter(|(hosts, token)| {
            let known =
                |(host, grant): (&SlotId, &u64)| Some(&(*token, *grant, true)) == service.declared.get(host);
            hosts.iter().all(known)
        });
        let Some((hosts, _)) = ready else { return service.meet_early(ino, out) };
        // What others once said here is of another time, when somebody took this host for the server.
        let declared: Vec<SlotId> = service.declared.keys().copied().collect();
        declared.into_iter().filter(|host| !hosts.contains_key(host)).for_each(|host| service.forget(host));
        // What has become free is looked at once for all that have come: who waits comes before them anyway.
        while let Some(queued) = self.services.get_mut(&ino).and_then(|s| s.queued.pop_front()) {
            let Queued { from, number, ask, .. } = queued;
            // Who is not among them has nothing to do with it any more.
            if hosts.contains_key(&from)
                && let Some((request, answer)) = self.meet(now, ino, (from, number), ask)
            {
                out.push(Told { to: from, ino, request, answer });
            }
        }
        let Some(service) = self.services.get_mut(&ino) else { return };
        if service.table.is_loose() || due {
            for granted in service.table.settle(now) {
                let ((to, request), answer) = (granted.id, Answer::Done(FileAnswer::Granted));
                out.push(Told { to, ino, request, answer });
            }
        }
        self.unready.remove(&ino);
        if let Some(at) = self.services[&ino].table.deadline() {
            self.timers.insert(ino, at);
        }
        self.drop_if_idle(ino);
    }

    /// The answer to a request, and which one.
    fn meet(&mut self, now: Duration, ino: InodeNo, id: (SlotId, u64), ask: Ask) -> Option<(u64, Answer)> {
        if let Ask::Set { lock, wait: true } = &ask
            && self.is_deadlock(ino, lock)
        {
            return Some((id.1, Answer::Done(FileAnswer::Deadlock)));
        }
        let table = &mut self.services.get_mut(&ino)?.table;
        let done = |answer| Some((id.1, Answer::Done(answer)));
        match ask {
            Ask::Set { lock, wait } => match table.ask(now, lock, wait.then_some(id)) {
                Verdict::Granted => done(FileAnswer::Granted),
                Verdict::Denied => done(FileAnswer::Denied),
                Verdict::NoLocks => done(FileAnswer::NoLocks),
                Verdict::Waiting => Some((id.1, Answer::Waiting)),
            },
            Ask::Test(lock) => done(match table.conflict(&lock) {
                Some((_, piece)) => FileAnswer::Found(piece.mode, piece.span, None),
                None => FileAnswer::Free,
            }),
            // One that does not wait has been answered: that crosses this.
            Ask::Cancel(request) => {
                let waited = table.cancel((id.0, request));
                waited.then_some((request, Answer::Done(FileAnswer::Interrupted)))
            }
            Ask::Begin(..) | Ask::Held(_) | Ask::Waits(_) | Ask::End => None,
        }
    }

    fn is_deadlock(&self, ino: InodeNo, lock: &FileLock) -> bool {
        let Some(service) = self.services.get(&ino) else { return false };
        let blockers = service.table.blockers(lock);
        lock.kind == LockKind::Range
            && !blockers.is_empty()
            && cycle::closes(lock.owner, blockers, |owner, found| self.blockers_of(owner, found))
    }

    /// Whom an owner's waiting requests wait for, in all tables served here.
    pub fn blockers_of(&self, owner: Owner, found: &mut Vec<Owner>) {
        for service in self.services.values() {
            let of_owner = |w: &&Waiter| w.lock.owner == owner && w.lock.kind == LockKind::Range;
            for waiter in service.table.waiters().iter().filter(of_owner) {
                found.extend(service.table.blockers(&waiter.lock));
            }
        }
    }

    /// A host has no locks of this inode any more, nor asks for any.
    pub fn purge(&mut self, ino: InodeNo, host: SlotId) {
        if let Some(service) = self.services.get_mut(&ino) {
            service.forget(host);
            self.drop_if_idle(ino);
        }
    }

    /// A host has died: it waits for nothing any more. What it has counts until it is recovered.
    pub fn dead(&mut self, host: SlotId) {
        for service in self.services.values_mut() {
            service.table.drop_waiters(host);
            service.queued.retain(|q| q.from != host);
        }
    }

    /// When a table must be looked at again.
    pub fn deadline(&self) -> Option<Duration> {
        self.timers.values().min().copied()
    }

    /// Tables that must be looked at by now.
    pub fn due(&self, now: Duration) -> Vec<InodeNo> {
        self.timers.iter().filter(|(_, at)| **at <= now).map(|(ino, _)| *ino).collect()
    }

    fn drop_if_idle(&mut self, ino: InodeNo) {
        if self.services.get(&ino).is_some_and(|s| s.declared.is_empty() && s.queued.is_empty()) {
            self.services.remove(&ino);
            self.unready.remove(&ino);
            self.timers.remove(&ino);
        }
    }
}

impl Service {
    /// What need not wait until everybody has declared: what takes nothing that its owner has not (in order:
    /// the parts of a grant that is given back come before an unlock of all), and the end of what waits. To
    /// all others it is said that it may take a while: they can be interrupted then.
    fn meet_early(&mut self, ino: InodeNo, out: &mut Vec<Told>) {
        let mut tell = |to, request, answer| out.push(Told { to, ino, request, answer });
        let mut rest: VecDeque<Queued> = VecDeque::new();
        for mut queued in std::mem::take(&mut self.queued) {
            let Queued { from, number, ask, told } = queued;
            if !self.declared.get(&from).is_some_and(|(_, _, done)| *done) {
                rest.push_back(queued);
                continue;
            }
            match ask {
                Ask::Set { lock, .. } if self.table.asks_nobody(&lock) => {
                    self.table.set(&lock);
                    tell(from, number, Answer::Done(FileAnswer::Granted));
                }
                Ask::Cancel(request) => {
                    let before = rest.len();
                    rest.retain(|q| (q.from, q.number) != (from, request));
                    if self.table.cancel((from, request)) || rest.len() < before {
                        tell(from, request, Answer::Done(FileAnswer::Interrupted));
                    }
                }
                Ask::Set { .. } | Ask::Test(_) if !told => {
                    if let Ask::Set { lock, .. } = ask {
                        self.table.give_up_other_mode(&lock);
                    }
                    tell(from, number, Answer::Queued);
                    queued.told = true;
                    rest.push_back(queued);
                }
                _ => rest.push_back(queued),
            }
        }
        self.queued = rest;
    }

    fn forget(&mut self, host: SlotId) {
        self.table.drop_host(host);
        self.declared.remove(&host);
        self.queued.retain(|q| q.from != host);
    }
}
