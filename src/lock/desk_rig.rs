//! Desks that hear each other at once, for tests of what happens to one inode.

use crate::base::{AgNo, Incarnation, InodeNo, LockName, Mode, SlotId, Token};
use crate::cluster::{Membership, Owner};
use crate::format::cluster::{SlotState, View};
use crate::lock::desk::{Desk, DeskConfig, Effect, TicketNo};
use crate::lock::files::{self, FileAnswer, FileLock, FileRequest, Job, LockKind, RequestNo, Span};
use crate::lock::manager_tests::GEOMETRY;
use crate::lock::table::PinTable;
use crate::lock::{DemoteAnswer, DemoteJob, LockSet};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const HOSTS: u16 = 3;

/// Who has not used a lock for so long does not need it now.
pub const IDLE: Duration = Duration::from_millis(2);

/// The inode that all is about.
pub fn file() -> LockName {
    LockName::Inode(InodeNo(GEOMETRY.ag_start(AgNo(0)).0 + 700))
}

pub struct Host {
    pub desk: Desk,
    pub table: Arc<PinTable>,
    /// Not demoted yet.
    pub demotions: Vec<DemoteJob>,
}

/// Hosts that hear each other at once; slot 0 decides the lock. Demotions are over when the test says so.
pub struct Hosts {
    pub now: Duration,
    pub hosts: Vec<Host>,
    /// Tickets in the order of their completion, not given back.
    done: Vec<(usize, TicketNo)>,
    modes: BTreeMap<(usize, TicketNo), Mode>,
    pub words: usize,
    /// What programs have been told about file locks.
    answers: Vec<(usize, RequestNo, FileAnswer)>,
    /// Neither speak nor hear any more.
    pub dead: BTreeSet<u16>,
    gone: BTreeSet<u16>,
}

pub fn membership(me: u16, dead: &BTreeSet<u16>, gone: &BTreeSet<u16>) -> Arc<Membership> {
    let mut view = View::initial(4, 4);
    for slot in (0..HOSTS).filter(|slot| !gone.contains(slot)) {
        let state = match dead.contains(&slot) {
            true => SlotState::Dead { adopter: SlotId(0) },
            false => SlotState::Live { former: None },
        };
        let entry = &mut view.slots[usize::from(slot)];
        (entry.state, entry.incarnation) = (state, Incarnation(7 + u64::from(slot)));
    }
    Arc::new(Membership {
        me: SlotId(me),
        incarnation: Incarnation(7 + u64::from(me)),
        view: Arc::new(view),
        silent: 0,
        owners: Arc::new((0..GEOMETRY.ag_count).map(|_| (Owner::Master(SlotId(0)), Token(2))).collect()),
    })
}

impl Hosts {
    /// Locks are held for no time, and nothing is learned of how they are used.
    pub fn new() -> Hosts {
        Hosts::with(Duration::ZERO, 0)
    }

    /// Locks are held for `hold` after they came, and habits of `habits_max` inodes are known.
    pub fn with(hold: Duration, habits_max: usize) -> Hosts {
        let times = DeskConfig {
            hold_min: hold,
            hold_max: hold,
            idle: IDLE,
            busy_retry: Duration::from_millis(7),
            requests_max: 20,
            caps_max: 20,
            files_max: 2,
            habits_max,
        };
        let host = |slot| {
            let table = Arc::new(PinTable::default());
            let mut desk = Desk::new(GEOMETRY, SlotId(slot), times, table.clone());
            desk.on_view(Duration::ZERO, membership(slot, &BTreeSet::new(), &BTreeSet::new()));
            Host { desk, table, demotions: Vec::new() }
        };
        let hosts = (0..HOSTS).map(host).collect();
        let now = Duration::from_secs(1);
        let mut all = Hosts {
            now,
            hosts,
            done: Vec::new(),
            modes: BTreeMap::new(),
            words: 0,
            answers: Vec::new(),
            dead: BTreeSet::new(),
            gone: BTreeSet::new(),
        };
        all.settle();
        all
    }

    /// Until nobody has anything to say. What was said before is no word.
    pub fn settle(&mut self) {
        let mut said: BTreeMap<_, Vec<_>> = BTreeMap::new();
        loop {
            let mut quiet = true;
            for at in 0..self.hosts.len() {
                let host = &mut self.hosts[at];
                while let Some(effect) = host.desk.next_effect() {
                    quiet = false;
                    match effect {
                        Effect::Tell { name, .. } | Effect::Kept { name, .. } => {
                            host.desk.told(self.now, name)
                        }
                        Effect::Demote(job) => host.demotions.push(job),
                        Effect::Complete { ticket, result } => {
                            result.expect("granted");
                            self.done.push((at, ticket));
                        }
                        Effect::FileLock { request, answer } => self.answers.push((at, request, answer)),
                        Effect::Adopt(_) => unreachable!(),
                    }
                }
            }
            let speak: Vec<u16> = (0..HOSTS).filter(|slot| !self.dead.contains(slot)).collect();
            for (from, to) in speak.iter().flat_map(|from| speak.iter().map(move |to| (*from, *to))) {
                let entries = self.hosts[usize::from(from)].desk.outgoing(SlotId(to));
                let before = said.insert((from, to), entries.clone());
                if from != to && before.as_ref() != Some(&entries) {
                    self.words += usize::from(before.is_some());
                    quiet = false;
                    self.hosts[usize::from(to)].desk.on_entries(self.now, SlotId(from), &entries);
                }
            }
            let counts = (0..HOSTS).zip(&self.hosts).filter(|(slot, _)| !self.gone.contains(slot));
            let modes: Vec<_> = counts.map(|(_, h)| h.table.mode(file())).collect();
            let pairs =
                modes.iter().enumerate().flat_map(|(i, a)| modes[i + 1..].iter().map(move |b| (a, b)));
            pairs.for_each(|(a, b)| assert!(a.compatible(*b), "{modes:?}"));
            if quiet {
                return;
            }
        }
    }

    pub fn ask(&mut self, at: usize, mode: Mode) -> (usize, TicketNo) {
        let ticket = self.hosts[at].desk.acquire(self.now, LockSet::one(file(), mode));
        self.modes.insert((at, ticket), mode);
        self.settle();
        (at, ticket)
    }

    pub fn ask_first(&mut self, at: usize, mode: Mode) -> (usize, TicketNo) {
        let ticket = self.hosts[at].desk.acquire_first(self.now, LockSet::one(file(), mode));
        self.modes.insert((at, ticket), mode);
        self.settle();
        (at, ticket)
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
        self.hosts.iter_mut().for_each(|host| host.desk.tick(self.now));
        self.settle();
    }

    /// The first program of this host has or gives up (`N`) the lock of the whole file, at once.
    pub fn lock_file(&mut self, at: usize, mode: Mode) {
        self.lock_file_of(at, 1, mode);
    }

    /// The same for another one.
    pub fn lock_file_of(&mut self, at: usize, id: u64, mode: Mode) {
        let owner = files::Owner { host: SlotId(at as u16), id };
        let lock = FileLock { kind: LockKind::Whole, owner, mode, span: Span::ALL };
        let LockName::Inode(ino) = file() else { unreachable!() };
        let request = FileRequest { ino, job: Job::Set { wait: true }, lock, handle: 1, process: 1 };
        let no = self.hosts[at].desk.file_request(self.now, &request);
        self.settle();
        let told = self.answers.iter().position(|(host, of, _)| (*host, *of) == (at, no));
        let (_, _, answer) = self.answers.remove(told.expect("nobody is in the way"));
        assert_eq!(answer, FileAnswer::Granted);
    }

    pub fn is_done(&self, ticket: (usize, TicketNo)) -> bool {
        self.done.contains(&ticket)
    }

    /// The operation is over.
    pub fn end(&mut self, ticket: (usize, TicketNo)) {
        let at = self.done.iter().position(|t| *t == ticket).expect("granted before");
        self.done.remove(at);
        let host = &mut self.hosts[ticket.0];
        if host.table.unpin(file(), self.modes[&ticket]) {
            host.desk.unpinned(self.now, file());
        }
        self.settle();
    }

    pub fn demote(&mut self, at: usize) -> (Mode, Mode) {
        self.end_demotion(at, DemoteAnswer::Done)
    }

    /// What is dirty cannot be written.
    pub fn refuse(&mut self, at: usize) {
        self.end_demotion(at, DemoteAnswer::Busy);
    }

    fn end_demotion(&mut self, at: usize, answer: DemoteAnswer) -> (Mode, Mode) {
        let job = self.hosts[at].demotions.remove(0);
        self.hosts[at].desk.demoted(self.now, file(), answer);
        self.settle();
        (job.from, job.to)
    }

    /// These are dead, or were and are recovered.
    pub fn learn(&mut self, dead: &[u16], gone: &[u16]) {
        self.gone = gone.iter().copied().collect();
        let waiting: BTreeSet<u16> = dead.iter().copied().collect();
        self.dead = &waiting | &self.gone;
        for (slot, host) in (0..HOSTS).zip(&mut self.hosts).filter(|(slot, _)| !self.dead.contains(slot)) {
            host.desk.on_view(self.now, membership(slot, &waiting, &self.gone));
        }
        self.settle();
    }

    pub fn mode(&self, at: usize) -> Mode {
        self.hosts[at].table.mode(file())
    }
}
