//! File locks at the desk: whose inode is served where, and what goes between clients and servers.
//!
//! A book's cluster lock decides: X, this host serves itself; S, whoever decides the name does. All that
//! follows from a change of it, from messages and from answers of the own server is done in
//! [`Desk::files_run`], in rounds until there is nothing left.

use super::{Desk, Effect, Shed, Ticket, TicketNo, Work};
use crate::base::{AgNo, InodeNo, LockName, Mode, SlotId, Token};
use crate::cluster::{Entry, EntryKind};
use crate::format::cluster::SlotState;
use crate::lock::LockSet;
use crate::lock::files::client::Home;
use crate::lock::files::message::{Answer, Ask, Message};
use crate::lock::files::server::{Required, Told, is_deadlock};
use crate::lock::files::steps::Steps;
use crate::lock::files::{FileAnswer, FileLock, FileRequest, Files, Job, LockKind, Owner, RequestNo, Span};
use crate::lock::table::Held;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long a book without use stays open beside other hosts'.
const LINGER: Duration = Duration::from_secs(1);

/// What is still to be done.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct FileWork {
    /// Books that wait for their cluster lock.
    pub tickets: BTreeMap<TicketNo, InodeNo>,
    /// Books to look at: is their home still the same, is anything to be sent?
    touched: BTreeSet<InodeNo>,
    /// Books whose server may have changed though it has the same name.
    moved: BTreeSet<InodeNo>,
    /// Tables to work on.
    served: BTreeSet<InodeNo>,
    /// Tables that were to be worked on when a call's steps were over: they come first the next time.
    passed_over: BTreeSet<InodeNo>,
    /// Messages to the own server.
    local: VecDeque<(InodeNo, u64, Ask)>,
    last_local: u64,
}

impl Desk {
    /// The file locks, to look at.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// A program asks; [`Effect::FileLock`] answers.
    pub fn file_request(&mut self, now: Duration, request: &FileRequest) -> RequestNo {
        if self.files.client.is_reborn(request) {
            self.file_unlock_all(now, request.ino, request.lock.kind, request.lock.owner.id);
        }
        let no = self.files.client.number(request.ino);
        let at_once = match self.may_ask(&[(LockName::FileLocks(request.ino), Mode::S)]) {
            Err(_) => Some(FileAnswer::Halted),
            Ok(()) => self.files.client.answer_at_once(request).or_else(|| self.deadlock(request)),
        };
        if let Some(answer) = at_once {
            self.effects.push_back(Effect::FileLock { request: no, answer });
            return no;
        }
        if self.files.client.submit(no, request) {
            self.pin_book(request.ino);
        }
        self.file_work.touched.insert(request.ino);
        self.run(now);
        let gives_up = matches!(request.job, Job::Set { .. }) && request.lock.mode == Mode::N;
        if gives_up && self.ends_turn(now, request.ino, request.lock.owner) {
            self.run(now);
        }
        no
    }

    /// A program gives up a lock that programs elsewhere take an interest in, and nobody else here does. If it was the
    /// last one to use the file in this turn, as far as habits tell, its content is wanted next: then what it wrote is
    /// on its way to the disk while they still hear of the lock, not only when they have asked for the content.
    fn ends_turn(&mut self, now: Duration, ino: InodeNo, owner: Owner) -> bool {
        let name = LockName::Inode(ino);
        let interest = self.table.mode(LockName::FileLocks(ino)) == Mode::S;
        let is_used_up = |held: Held| held.mode == Mode::X && held.written && held.pins() == 0;
        let is_open = self.cases.get(&name).is_none_or(|case| case.demoting.is_none() && case.telling == 0);
        let may = interest && is_open && self.table.get(name).is_some_and(is_used_up);
        if !may || self.files.client.is_wanted_beside(ino, owner) || !self.habits.is_brief(now, name) {
            return false;
        }
        self.cases.entry(name).or_default().shed = Shed::Idle;
        self.evaluate_soon(name);
        true
    }

    /// Of waits that other hosts end one may have ended a moment ago: where this host serves, its server looks
    /// at those, and twice.
    fn deadlock(&self, request: &FileRequest) -> Option<FileAnswer> {
        let FileRequest { ino, lock, .. } = request;
        let Files { client, server, .. } = &self.files;
        let blockers = || client.blockers(*ino, lock);
        let of = if let Home::Peer(_) = client.home(*ino).0 { None } else { Some(self.me) };
        let waits = request.job == Job::Set { wait: true };
        let circle = || is_deadlock(lock, blockers, (server, of), client, &mut Steps::of_call());
        (waits && circle()).then_some(FileAnswer::Deadlock)
    }

    /// Nobody waits for the answer any more.
    pub fn file_withdraw(&mut self, now: Duration, request: RequestNo) {
        let mut answers = Vec::new();
        self.with_sender(|files, send| files.client.withdraw(request, &mut answers, send));
        self.file_answers(answers);
        self.file_work.touched.insert(request.ino);
        self.run(now);
    }

    /// The owner's locks of this kind end. `None`: it has none.
    /// Answered by the server, or as interrupted when there is none; the locks end with the next one then.
    pub fn file_unlock_all(
        &mut self,
        now: Duration,
        ino: InodeNo,
        kind: LockKind,
        id: u64,
    ) -> Option<RequestNo> {
        if !self.files.client.has(ino, kind, id) {
            return None;
        }
        let owner = self.files.client.owner(id);
        let lock = FileLock { kind, owner, mode: Mode::N, span: Span { start: 0, end: u64::MAX } };
        let job = Job::Set { wait: false };
        let no = self.file_request(now, &FileRequest { ino, job, lock, handle: 0, process: 0 });
        // Nobody can interrupt it, so it waits for no server that is lost.
        self.file_withdraw(now, no);
        Some(no)
    }

    /// A handle is closed for good: its flock lock ends, and so do ranges that were taken by it and are left. By
    /// the handle, not by the owner: the kernel may have given the owner's number to another by now.
    pub fn file_release(&mut self, now: Duration, ino: InodeNo, handle: u64) {
        for id in self.files.client.of_handle(ino, handle) {
            self.file_unlock_all(now, ino, LockKind::Whole, id);
        }
        self.files.client.end_handle(ino, handle);
        self.file_work.touched.insert(ino);
        self.run(now);
    }

    fn pin_book(&mut self, ino: InodeNo) {
        let name = LockName::FileLocks(ino);
        if self.table.pin(name, Mode::S) || self.claim_pinned(name, Mode::S) {
            return self.files_pinned(ino);
        }
        self.last_ticket += 1;
        let ticket = TicketNo(self.last_ticket);
        self.tickets.insert(ticket, Ticket { set: LockSet::one(name, Mode::S), next: 0, first: false });
        self.file_work.tickets.insert(ticket, ino);
        self.work.push_back(Work::Advance(ticket));
    }

    /// The book's cluster lock is there, pinned.
    pub(super) fn files_pinned(&mut self, ino: InodeNo) {
        match self.files.client.book(ino) {
            Some(false) => {
                self.files.client.pinned(ino);
                self.file_work.touched.insert(ino);
                self.file_work.served.insert(ino);
            }
            // Closed meanwhile, or opened anew and pinned already.
            _ => self.unpin_book(ino),
        }
    }

    fn unpin_book(&mut self, ino: InodeNo) {
        let name = LockName::FileLocks(ino);
        if self.table.unpin(name, Mode::S) {
            self.evaluate_soon(name);
        }
        if self.table.mode(name) == Mode::S {
            self.cases.entry(name).or_default().shed = Shed::Idle;
            self.evaluate_soon(name);
        }
    }

    /// The mode of a cluster lock has changed.
    pub(super) fn files_touch(&mut self, name: LockName) {
        if let LockName::FileLocks(ino) = name {
            self.file_work.touched.insert(ino);
            self.file_work.served.insert(ino);
        }
    }

    /// Another host decides the names of `ag`, or the same under another token.
    pub(super) fn files_rerouted(&mut self, ag: AgNo) {
        let (first, last) = self.inodes_of(ag);
        let books = self.files.client.books(first, last);
        self.file_work.moved.extend(&books);
        self.file_work.touched.extend(books);
    }

    /// Everybody has declared the cluster locks of `ag`, which this host decides.
    pub(super) fn files_opened(&mut self, ag: AgNo) {
        let (first, last) = self.inodes_of(ag);
        let known = self.files.server.inodes().into_iter().filter(|ino| (first..=last).contains(ino));
        self.file_work.served.extend(known);
    }

    fn inodes_of(&self, ag: AgNo) -> (InodeNo, InodeNo) {
        let start = self.geometry.ag_start(ag).0;
        (InodeNo(start), InodeNo(start + self.geometry.ag_blocks - 1))
    }

    /// Does a book of `ag` need somebody who serves it?
    pub(super) fn files_want(&self, ag: AgNo) -> bool {
        let (first, last) = self.inodes_of(ag);
        self.files.client.books(first, last).into_iter().any(|ino| self.is_unserved(ino))
    }

    fn is_unserved(&self, ino: InodeNo) -> bool {
        self.files.client.is_asking(ino) && self.table.mode(LockName::FileLocks(ino)) == Mode::S
    }

    /// What the master machine believes of `FileLocks` has changed: who has nothing has no locks.
    pub(super) fn files_parties(&mut self) {
        for ino in self.master.take_served() {
            let name = LockName::FileLocks(ino);
            // Before everybody has declared, nothing is known of those who have not.
            let known = self.master.is_open(self.group_of(name));
            for host in self.files.server.hosts(ino) {
                if known && host != self.me && self.master.belief(name, host) == Mode::N {
                    self.files.server.purge(ino, host);
                }
            }
            self.file_work.served.insert(ino);
        }
    }

    /// A mount has left, or is recovered: it has nothing, and what it says from now on is another's.
    pub(super) fn files_gone(&mut self, host: SlotId) {
        self.files.streams.reset(host);
        self.file_work.served.extend(self.files.server.inodes());
        self.files.server.gone(host);
    }

    /// A host is excluded: it waits for nothing.
    pub(super) fn files_dead(&mut self, host: SlotId) {
        self.files.server.dead(host);
        self.file_work.served.extend(self.files.server.inodes());
    }

    /// The register of a peer.
    pub(super) fn files_receive(&mut self, now: Duration, from: SlotId, entries: &[(AgNo, Entry)]) {
        let membership = self.membership.as_ref();
        let live = |m: &crate::cluster::Membership| {
            matches!(m.view.slots[usize::from(from.0)].state, SlotState::Live { .. })
        };
        if !membership.is_some_and(|m| live(m)) {
            return;
        }
        let about_files = |e: &&(AgNo, Entry)| matches!(e.1.kind, EntryKind::Stream | EntryKind::FileLock);
        let entries: Vec<Entry> = entries.iter().filter(about_files).map(|(_, e)| *e).collect();
        let (messages, place) = self.files.streams.incoming(from, &entries);
        if place || !messages.is_empty() {
            self.dirty.insert(from);
        }
        for (number, message) in messages {
            match message {
                Message::Ask(ino, ask) => {
                    self.files.server.receive(now, from, ino, number, ask);
                    self.file_work.served.insert(ino);
                }
                Message::Answer { ino, request, answer, alone } => {
                    self.file_answered(Home::Peer(from), ino, (request, answer), alone);
                }
            }
        }
    }

    fn file_answered(&mut self, from: Home, ino: InodeNo, (request, answer): (u64, Answer), alone: bool) {
        let mut answers = Vec::new();
        self.with_sender(|files, send| {
            files.client.answered(from, ino, request, answer, alone, &mut answers, send);
        });
        self.file_answers(answers);
        self.file_work.touched.insert(ino);
    }

    fn file_answers(&mut self, answers: Vec<(RequestNo, FileAnswer)>) {
        let effect = |(request, answer)| Effect::FileLock { request, answer };
        self.effects.extend(answers.into_iter().map(effect));
    }

    /// Have the client do something that sends messages.
    fn with_sender(
        &mut self,
        f: impl FnOnce(&mut FilesButStreams<'_>, &mut dyn FnMut(Home, InodeNo, Ask) -> u64),
    ) {
        let Files { client, streams, .. } = &mut self.files;
        let (work, dirty) = (&mut self.file_work, &mut self.dirty);
        let mut send = |home: Home, ino: InodeNo, ask: Ask| match home {
            Home::Peer(peer) => {
                dirty.insert(peer);
                streams.push(peer, Message::Ask(ino, ask))
            }
            _ => {
                work.last_local += 1;
                work.local.push_back((ino, work.last_local, ask));
                work.last_local
            }
        };
        f(&mut FilesButStreams { client }, &mut send);
    }

    /// Do what is to be done. False: there was nothing.
    pub(super) fn files_run(&mut self, now: Duration, steps: &mut Steps) -> bool {
        let work = &mut self.file_work;
        if work.touched.is_empty() && work.served.is_empty() && work.local.is_empty() {
            return false;
        }
        for ino in std::mem::take(&mut self.file_work.touched) {
            self.look_at_book(now, ino);
        }
        while let Some((ino, number, ask)) = self.file_work.local.pop_front() {
            self.files.server.receive(now, self.me, ino, number, ask);
            self.file_work.served.insert(ino);
        }
        let served = std::mem::take(&mut self.file_work.served);
        for ino in in_turn(&served, &self.file_work.passed_over) {
            match steps.are_over() {
                true => self.file_work.passed_over.insert(ino),
                false => self.file_work.passed_over.remove(&ino),
            };
            self.serve_files(now, ino, steps);
        }
        true
    }

    /// Is the book's home still the same? Is it still needed?
    fn look_at_book(&mut self, now: Duration, ino: InodeNo) {
        if self.files.client.book(ino) != Some(true) {
            return;
        }
        let (name, ag) = (LockName::FileLocks(ino), self.group_of(LockName::FileLocks(ino)));
        let sole = self.table.mode(name) == Mode::X;
        if self.is_unserved(ino) && self.master.token(ag).is_none() && self.holder.master_of(ag).is_none() {
            self.route(now, ag, true);
        }
        let home = match (self.master.token(ag), self.holder.master_of(ag)) {
            (token, _) if sole => (Home::Here, token.unwrap_or_default(), 0),
            (Some(token), _) => (Home::Here, token, 0),
            (None, Some((peer, token))) => (Home::Peer(peer), token, self.holder.acked(ag, name)),
            (None, None) => (Home::Nobody, Token(0), 0),
        };
        let before = self.files.client.home(ino);
        let moved = self.file_work.moved.remove(&ino) && matches!(home.0, Home::Peer(_));
        if before != home || moved {
            if before.0 == Home::Here {
                self.files.server.purge(ino, self.me);
            }
            let mut answers = Vec::new();
            self.with_sender(|files, send| files.client.rehome(ino, home, &mut answers, send));
            self.file_answers(answers);
        }
        let client = &mut self.files.client;
        let left: Vec<_> = client.leftovers(ino).iter().map(|unlock| client.take_up(unlock)).collect();
        let mut answers = Vec::new();
        self.with_sender(|files, send| {
            files.client.pump(ino, &mut answers, send);
            // Nobody can interrupt them, so they wait for no server that is lost.
            left.into_iter().for_each(|no| files.client.withdraw(no, &mut answers, send));
        });
        self.file_answers(answers);
        if self.files.client.is_done(now, ino, sole, LINGER) {
            self.close_book(ino);
        }
    }

    fn close_book(&mut self, ino: InodeNo) {
        let mut answers = Vec::new();
        if self.files.client.close(ino, &mut answers) {
            self.unpin_book(ino);
        }
        self.file_work.local.retain(|(of, _, _)| *of != ino);
        self.file_work.moved.remove(&ino);
        self.files.server.purge(ino, self.me);
        self.file_work.served.insert(ino);
        self.file_answers(answers);
    }

    /// Whoever may have file locks of an inode; `None` if this host does not serve it.
    fn required(&self, ino: InodeNo) -> Required {
        let name = LockName::FileLocks(ino);
        let ag = self.group_of(name);
        let token = self.master.token(ag);
        let own = self.files.client.book(ino) == Some(true);
        if self.table.mode(name) == Mode::X {
            return Some((own.then_some((self.me, 0)).into_iter().collect(), token.unwrap_or_default()));
        }
        let token = token.filter(|_| self.master.is_open(ag))?;
        Some((self.master.holders(name).chain(own.then_some((self.me, 0))).collect(), token))
    }

    fn serve_files(&mut self, now: Duration, ino: InodeNo, steps: &mut Steps) {
        let required = self.required(ino);
        let mut told = Vec::new();
        let Files { client, server, .. } = &mut self.files;
        server.work(now, ino, &required, client, steps, &mut told);
        for Told { to, ino, request, answer } in told {
            if to == self.me {
                self.file_answered(Home::Here, ino, (request, answer), false);
                continue;
            }
            let alone = self.master.is_sole(LockName::FileLocks(ino), to);
            self.files.streams.push(to, Message::Answer { ino, request, answer, alone });
            self.dirty.insert(to);
        }
    }

    /// When something is due, whatever happens.
    pub(super) fn files_deadline(&self) -> Option<Duration> {
        [self.files.server.deadline(), self.files.client.deadline(LINGER)].into_iter().flatten().min()
    }

    pub(super) fn files_tick(&mut self, now: Duration) {
        self.file_work.served.extend(self.files.server.due(now));
        if self.files.client.deadline(LINGER).is_some_and(|at| at <= now) {
            self.file_work.touched.extend(self.files.client.idle());
        }
    }

    /// Nothing is asked for, nothing to be said.
    pub(super) fn files_quiet(&self) -> bool {
        !self.files.client.is_waiting() && self.files.streams.is_quiet()
    }

    /// This host leaves, or has halted: programs have no locks any more, and get none.
    pub(super) fn files_close_all(&mut self) {
        for ino in self.files.client.books(InodeNo(0), InodeNo(u64::MAX)) {
            self.close_book(ino);
        }
    }
}

/// All of them, first those that were passed over: tables on which there is always something to do do not keep another from
/// ever being looked at.
fn in_turn(all: &BTreeSet<InodeNo>, passed_over: &BTreeSet<InodeNo>) -> Vec<InodeNo> {
    let (first, then): (Vec<_>, Vec<_>) = all.iter().partition(|ino| passed_over.contains(ino));
    [first, then].concat()
}

/// The client, apart from the streams that it sends by.
struct FilesButStreams<'a> {
    client: &'a mut crate::lock::files::Client,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_take_turns() {
        let of = |inodes: &[u64]| inodes.iter().copied().map(InodeNo).collect::<BTreeSet<_>>();
        let order =
            |passed: &[u64]| in_turn(&of(&[3, 5, 9]), &of(passed)).iter().map(|i| i.0).collect::<Vec<_>>();
        assert_eq!(order(&[]), [3, 5, 9]);
        assert_eq!(order(&[4, 9]), [9, 3, 5]);
        assert_eq!(order(&[5, 9]), [5, 9, 3]);
        assert_eq!(order(&[3, 5, 9, 11]), [3, 5, 9]);
    }
}
