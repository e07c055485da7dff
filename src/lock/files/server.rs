//! The tables that this host keeps for everybody.
//!
//! - A table is worked on only when all hosts that may have locks in it have told what they have, under
//!   the present token of the group and the last grant of the cluster lock: the desk says who they are.
//!   What is asked before that waits. A host that gave the cluster lock up and got it again may have
//!   locked in between without a word, so what it told under an earlier grant says nothing.
//! - A host's requests are met in the order in which it made them; but what gives something up, or ends a
//!   wait, need not wait until others have told anything.
//! - A program goes on when its unlock is sent, so what is in the way of a request that does not wait may be gone: the
//!   hosts that have it are asked before the refusal ([`super::doubts`]).
//! - No more is computed at once than [`Steps`] allow; the rest is due at once, after whatever else waits.
//! - What looks like a circle of waits is looked at again after [`CIRCLE_STANDS`]: one of the waits may have
//!   ended, and the word of that be on its way. The same for waits that are told anew.
//! - What a host has is forgotten when the cluster lock says that it has nothing, or when it begins to
//!   tell anew.

use super::client::Client;
use super::cycle::Waits;
use super::doubts::Doubts;
use super::message::{Answer, Ask};
use super::steps::Steps;
use super::table::{FileTable, Verdict, WaitId};
use super::{FileAnswer, FileLock, LockKind, Owner};
use crate::base::{InodeNo, Mode, SlotId, Token};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long a circle of waits stands before one of them is refused.
pub const CIRCLE_STANDS: Duration = Duration::from_millis(150);

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Queued {
    pub from: SlotId,
    pub number: u64,
    pub ask: Ask,
    /// The client has been told that it may take a while.
    pub told: bool,
    /// Those who are in its way have been asked.
    pub sure: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Service {
    table: FileTable,
    /// Who began to tell, under which token and grant, and is he through?
    declared: BTreeMap<SlotId, (Token, u64, bool)>,
    /// Requests that came before everybody had declared, or that there was no time for.
    queued: VecDeque<Queued>,
    doubts: Doubts,
    /// Waits that may be part of a circle, and when that is looked at (again).
    suspects: VecDeque<(Duration, WaitId)>,
}

/// See the head of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    services: BTreeMap<InodeNo, Service>,
    /// Hosts that are excluded and not recovered.
    dead: BTreeSet<SlotId>,
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
        if let Ask::Checked { asker, request } = ask {
            let service = self.services.get_mut(&ino);
            return service.into_iter().for_each(|s| s.doubts.checked(from, asker, request));
        }
        let service = self.services.entry(ino).or_default();
        match ask {
            Ask::Begin(token, grant) => {
                service.forget(from);
                service.declared.insert(from, (token, grant, false));
            }
            Ask::Held(lock) => service.table.set(&lock),
            Ask::Waits(lock) => {
                service.table.wait(now, (from, number), lock);
                if lock.kind == LockKind::Range {
                    service.suspects.push_back((now + CIRCLE_STANDS, (from, number)));
                }
                self.unready.insert(ino);
            }
            Ask::End => {
                if let Some((_, _, done)) = service.declared.get_mut(&from) {
                    *done = true;
                }
            }
            Ask::Set { .. } | Ask::GiveUp(_) | Ask::Test(_) | Ask::Cancel(_) => {
                service.queued.push_back(Queued { from, number, ask, told: false, sure: false });
                self.unready.insert(ino);
            }
            Ask::Checked { .. } => unreachable!("seen above"),
        }
    }

    /// Meet requests of an inode and grant what has become free, if everybody who must has declared. `client`
    /// knows for what the programs of this host wait elsewhere.
    pub fn work(
        &mut self,
        now: Duration,
        ino: InodeNo,
        required: &Required,
        client: &Client,
        steps: &mut Steps,
        out: &mut Vec<Told>,
    ) {
        self.timers.remove(&ino);
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
        // Who is not among them has nothing to do with it any more.
        service.queued.retain(|q| hosts.contains_key(&q.from));
        service.doubts.keep(|host| hosts.contains_key(&host));
        // Behind what came before the last answer.
        service.queued.extend(service.doubts.take_sure(now));
        while let Some(service) = self.services.get_mut(&ino)
            && let Some(request) = service.queued.front().copied()
        {
            // Who waits comes before who asks later.
            if matches!(request.ask, Ask::Set { lock, .. } if lock.mode != Mode::N) {
                service.settle(now, ino, steps, out);
            }
            if steps.are_over() {
                break;
            }
            service.queued.pop_front();
            steps.take(service.table.len() + service.table.waiters().len());
            if self.is_doubtful(now, ino, &request, client, out) {
                continue;
            }
            let (from, id) = (request.from, (request.from, request.number));
            if let Some((request, answer)) = self.meet(now, ino, id, request.ask, client, steps) {
                out.push(Told { to: from, ino, request, answer });
            }
        }
        self.services.get_mut(&ino).expect("just seen").settle(now, ino, steps, out);
        self.refuse_circles(now, ino, client, steps, out);
        let service = &self.services[&ino];
        if service.queued.is_empty() {
            self.unready.remove(&ino);
        }
        if let Some(at) = service.deadline() {
            self.timers.insert(ino, at.max(now));
        }
        self.drop_if_idle(ino);
    }

    /// Would it be refused by what other hosts have, that they have not been asked about? They are now.
    fn is_doubtful(
        &mut self,
        now: Duration,
        ino: InodeNo,
        request: &Queued,
        client: &Client,
        out: &mut Vec<Told>,
    ) -> bool {
        let (Ask::Set { lock, wait: false } | Ask::Test(lock)) = request.ask else { return false };
        let Some(service) = self.services.get_mut(&ino).filter(|_| !request.sure) else { return false };
        let Queued { from, number, .. } = *request;
        // What hosts say comes in order, so of the asker's own and of this host's nothing is on its way.
        let elsewhere = |host: &SlotId| *host != from && !client.is_host(*host) && !self.dead.contains(host);
        let blockers = service.table.blockers(&lock);
        let hosts: BTreeSet<SlotId> = blockers.iter().map(|owner| owner.host).filter(elsewhere).collect();
        if hosts.is_empty() || service.table.asks_nobody(&lock) {
            return false;
        }
        let mut tell = |to, request, answer| out.push(Told { to, ino, request, answer });
        hosts.iter().for_each(|host| tell(*host, number, Answer::Check { asker: from }));
        if !request.told {
            tell(from, number, Answer::Queued);
        }
        if let Ask::Set { .. } = request.ask {
            service.table.give_up_other_mode(&lock);
        }
        service.doubts.add(now, Queued { told: true, ..*request }, hosts);
        true
    }

    /// The answer to a request, and which one.
    fn meet(
        &mut self,
        now: Duration,
        ino: InodeNo,
        id: WaitId,
        ask: Ask,
        client: &Client,
        steps: &mut Steps,
    ) -> Option<(u64, Answer)> {
        let service = self.services.get_mut(&ino)?;
        let table = &mut service.table;
        let done = |answer| Some((id.1, Answer::Done(answer)));
        match ask {
            Ask::Set { lock, wait } => match table.ask(now, lock, wait.then_some(id)) {
                Verdict::Granted => done(FileAnswer::Granted),
                Verdict::Denied => done(FileAnswer::Denied),
                Verdict::NoLocks => done(FileAnswer::NoLocks),
                Verdict::Waiting => {
                    if self.is_deadlock(ino, &lock, client, steps) {
                        self.services.get_mut(&ino)?.suspects.push_back((now + CIRCLE_STANDS, id));
                    }
                    Some((id.1, Answer::Waiting))
                }
            },
            Ask::GiveUp(lock) => {
                table.set(&lock);
                Some((id.1, Answer::Noted))
            }
            Ask::Test(lock) => done(match table.conflict(&lock) {
                Some((_, piece)) => FileAnswer::Found(piece.mode, piece.span, None),
                None => FileAnswer::Free,
            }),
            // One that does not wait has been answered: that crosses this.
            Ask::Cancel(request) => {
                let waited = table.cancel((id.0, request)) || service.doubts.cancel(id.0, request);
                waited.then_some((request, Answer::Done(FileAnswer::Interrupted)))
            }
            Ask::Begin(..) | Ask::Held(_) | Ask::Waits(_) | Ask::End | Ask::Checked { .. } => None,
        }
    }

    /// Refuse what has been part of a circle for a while.
    fn refuse_circles(
        &mut self,
        now: Duration,
        ino: InodeNo,
        client: &Client,
        steps: &mut Steps,
        out: &mut Vec<Told>,
    ) {
        while let Some(service) = self.services.get_mut(&ino)
            && let Some((_, id)) = service.suspects.front().copied().filter(|(at, _)| *at <= now)
            && !service.table.is_loose()
            && !steps.are_over()
        {
            service.suspects.pop_front();
            steps.take(1 + service.table.waiters().len());
            let Some(lock) = service.table.waits(id) else { continue };
            if self.is_deadlock(ino, &lock, client, steps) {
                let service = self.services.get_mut(&ino).expect("just seen");
                service.table.cancel(id);
                let answer = Answer::Done(FileAnswer::Deadlock);
                out.push(Told { to: id.0, ino, request: id.1, answer });
                service.settle(now, ino, steps, out);
            }
        }
    }

    fn is_deadlock(&self, ino: InodeNo, lock: &FileLock, client: &Client, steps: &mut Steps) -> bool {
        let blockers = || self.services.get(&ino).map_or(Vec::new(), |s| s.table.blockers(lock));
        is_deadlock(lock, blockers, (self, None), client, steps)
    }

    /// Has the owner any range locked, in any table?
    pub fn has_ranges(&self, owner: Owner) -> bool {
        self.services.values().any(|s| !s.table.of(LockKind::Range, owner).is_empty())
    }

    /// Who waits for ranges here (of one host, if that is given).
    pub fn waits<'a>(&'a self, of: Option<SlotId>, waits: &mut Waits<'a>) {
        for table in self.services.values().map(|s| &s.table) {
            let listed =
                |l: &FileLock| l.kind == LockKind::Range && of.is_none_or(|host| l.owner.host == host);
            let locks = table.waiters().iter().map(|w| w.lock).filter(listed);
            locks.for_each(|lock| waits.add(table, lock));
        }
    }

    /// A host has no locks of this inode any more, nor asks for any.
    pub fn purge(&mut self, ino: InodeNo, host: SlotId) {
        if let Some(service) = self.services.get_mut(&ino) {
            service.forget(host);
            service.doubts.forget(host);
            self.drop_if_idle(ino);
        }
    }

    /// A host has died: it waits for nothing any more. What it has counts until it is recovered.
    pub fn dead(&mut self, host: SlotId) {
        self.dead.insert(host);
        for service in self.services.values_mut() {
            service.table.drop_waiters(host);
            service.queued.retain(|q| q.from != host);
            service.doubts.forget(host);
        }
    }

    /// A mount has left, or is recovered.
    pub fn gone(&mut self, host: SlotId) {
        self.dead.remove(&host);
        self.inodes().into_iter().for_each(|ino| self.purge(ino, host));
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
        let is_idle = |s: &Service| s.declared.is_empty() && s.queued.is_empty() && s.doubts.is_empty();
        if self.services.get(&ino).is_some_and(is_idle) {
            self.services.remove(&ino);
            self.unready.remove(&ino);
            self.timers.remove(&ino);
        }
    }
}

impl Service {
    /// Grant what has become free, as far as the steps last.
    fn settle(&mut self, now: Duration, ino: InodeNo, steps: &mut Steps, out: &mut Vec<Told>) {
        while self.table.deadline().is_some_and(|at| at <= now) && !steps.are_over() {
            for granted in self.table.settle(now, steps) {
                let ((to, request), answer) = (granted.id, Answer::Done(FileAnswer::Granted));
                out.push(Told { to, ino, request, answer });
            }
        }
    }

    /// When there is something to do, whatever happens.
    fn deadline(&self) -> Option<Duration> {
        let left = (!self.queued.is_empty()).then_some(Duration::ZERO);
        let suspect = self.suspects.front().map(|(at, _)| *at);
        [left, suspect, self.doubts.deadline(), self.table.deadline()].into_iter().flatten().min()
    }

    /// What need not wait until everybody has declared: what takes nothing that its owner has not (in order:
    /// the parts of a grant that is given back come before an unlock of all), and the end of what waits. To
    /// all others it is said that it may take a while: they can be interrupted then.
    fn meet_early(&mut self, ino: InodeNo, out: &mut Vec<Told>) {
        let mut tell = |to, request, answer| out.push(Told { to, ino, request, answer });
        let mut rest: VecDeque<Queued> = VecDeque::new();
        for mut queued in std::mem::take(&mut self.queued) {
            let Queued { from, number, ask, told, .. } = queued;
            if !self.declared.get(&from).is_some_and(|(_, _, done)| *done) {
                rest.push_back(queued);
                continue;
            }
            match ask {
                Ask::Set { lock, .. } if self.table.asks_nobody(&lock) => {
                    self.table.set(&lock);
                    tell(from, number, Answer::Done(FileAnswer::Granted));
                }
                Ask::GiveUp(lock) => {
                    self.table.set(&lock);
                    tell(from, number, Answer::Noted);
                }
                Ask::Cancel(request) => {
                    let before = rest.len();
                    rest.retain(|q| (q.from, q.number) != (from, request));
                    let doubted = self.doubts.cancel(from, request);
                    if self.table.cancel((from, request)) || doubted || rest.len() < before {
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
        self.doubts.drop_requests(host);
    }
}

/// Would `wanted`, were it waited for, close a circle of waits as far as this host can see them: among all that
/// it serves (of one host, if that is given), and among its own programs wherever they are served?
pub fn is_deadlock(
    wanted: &FileLock,
    blockers: impl FnOnce() -> Vec<Owner>,
    (server, of): (&Server, Option<SlotId>),
    client: &Client,
    steps: &mut Steps,
) -> bool {
    let owner = wanted.owner;
    if wanted.kind != LockKind::Range {
        return false;
    }
    // Who has nothing is in nobody's way.
    let blockers = blockers();
    if blockers.is_empty() || !(server.has_ranges(owner) || client.has_ranges(owner)) {
        return false;
    }
    let mut waits = Waits::default();
    server.waits(of, &mut waits);
    client.waits(&mut waits);
    let mut search = Steps::of_search();
    let closes = waits.close(owner, blockers, &mut search);
    steps.take(server.services.len() + waits.len() + search.searched());
    closes
}
