//! The desk: where this host's operations meet the lock conversation. A machine without clock,
//! threads or I/O: events go in with the time they happen at, [`Effect`]s come out.
//!
//! It keeps a *ticket* for every operation that waits for locks and a *case* for every lock about
//! which something is going on (waiting operations, a cap, a demotion). Locks that are merely held
//! have an entry in the [`PinTable`] and nothing else.
//!
//! - An operation takes its locks in the lock order and keeps those it has while it waits for the
//!   next: whoever wants an earlier one waits for it, never the other way round.
//! - A cap closes the lock for new pins once the minimum hold is over, or at once if nobody uses
//!   it; when the last pin above the cap is gone the demotion runs; then the lower mode is told.
//! - After a grant all operations that waited and are satisfied get their pins before any cap is
//!   looked at, so each grant serves at least one; where times of direct writes are handed in under a cap, those.
//! - `IOpen` stays open for new shared pins while there is one: an exclusive want waits for the
//!   last one without stopping the next.

mod ahead;
mod case;
mod files;
mod fork;
mod habits;
mod routes;

use crate::base::{AgNo, Error, LockName, Mode, Result, SlotId, Token};
use crate::cluster::{Entry, Membership};
use crate::format::layout::Geometry;
use crate::lock::files::steps::Steps;
use crate::lock::files::{FileAnswer, Files, RequestNo};
use crate::lock::holder::Holder;
use crate::lock::master::{Master, unshared};
use crate::lock::table::PinTable;
use crate::lock::{DemoteAnswer, DemoteJob, LockSet};
pub use ahead::AHEAD_MAX;
use case::Case;
pub use case::Shed;
use files::FileWork;
use habits::Habits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The number of a waiting operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketNo(pub u64);

/// What the driver of the desk must do, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Tell the file system of a grant, then call [`Desk::told`].
    Tell { name: LockName, mode: Mode },
    /// Tell it that a busy demotion is not needed any more, then call [`Desk::told`].
    Kept { name: LockName, mode: Mode },
    /// Have this demoted, then call [`Desk::demoted`].
    Demote(DemoteJob),
    /// The ticket's locks are all pinned (the pins are the receiver's now), or never will be.
    Complete { ticket: TicketNo, result: Result<LockSet> },
    /// Become the owner of a group, then call [`Desk::adopted`].
    Adopt(AgNo),
    /// A request for a file lock is answered.
    FileLock { request: RequestNo, answer: FileAnswer },
}

/// What the desk is set to.
#[derive(Clone, Copy, Debug)]
pub struct DeskConfig {
    /// Bounds of the minimum hold.
    pub hold_min: Duration,
    pub hold_max: Duration,
    /// A held lock that is not pinned anew for so long is idle.
    pub idle: Duration,
    /// From a busy demotion to its repetition, and from a failed adoption.
    pub busy_retry: Duration,
    /// Most requests, and most caps nobody asked for, in one register.
    pub requests_max: usize,
    pub caps_max: usize,
    /// Most messages about file locks in one register.
    pub files_max: usize,
    /// Most inodes of which it is remembered how they were used; 0: all are used as if for the first time.
    pub habits_max: usize,
}

/// A class of locks that is not given out any more because the host leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Closing {
    Nothing,
    /// Everything but groups and slots.
    Names,
    /// Everything but slots.
    Groups,
    Everything,
}

#[derive(Clone, Hash)]
struct Ticket {
    set: LockSet,
    next: usize,
    /// Before all others of this host.
    first: bool,
}

#[derive(Clone, Hash)]
enum Work {
    Evaluate(LockName),
    Advance(TicketNo),
}

/// See the head of the file. A clone shares the table until [`Desk::part`].
#[derive(Clone)]
pub struct Desk {
    table: Arc<PinTable>,
    geometry: Geometry,
    me: SlotId,
    times: DeskConfig,
    master: Master,
    holder: Holder,
    membership: Option<Arc<Membership>>,
    /// Masters that told us themselves, before our own reading of the ledgers did.
    learned: BTreeMap<AgNo, (SlotId, Token)>,
    routed: BTreeMap<AgNo, routes::Routed>,
    registers: BTreeMap<SlotId, Vec<(AgNo, Entry)>>,
    adopting: BTreeSet<AgNo>,
    cases: BTreeMap<LockName, Case>,
    tickets: BTreeMap<TicketNo, Ticket>,
    last_ticket: u64,
    timers: BTreeSet<(Duration, LockName)>,
    work: VecDeque<Work>,
    effects: VecDeque<Effect>,
    dirty: BTreeSet<SlotId>,
    closing: Closing,
    halted: Option<String>,
    complained: Duration,
    files: Files,
    file_work: FileWork,
    habits: Habits,
}

impl Desk {
    /// A desk that knows no members yet.
    pub fn new(geometry: Geometry, me: SlotId, times: DeskConfig, table: Arc<PinTable>) -> Desk {
        Desk {
            table,
            geometry,
            me,
            times,
            master: Master::new(times.caps_max),
            holder: Holder::new(times.requests_max),
            membership: None,
            learned: BTreeMap::new(),
            routed: BTreeMap::new(),
            registers: BTreeMap::new(),
            adopting: BTreeSet::new(),
            cases: BTreeMap::new(),
            tickets: BTreeMap::new(),
            last_ticket: 0,
            timers: BTreeSet::new(),
            work: VecDeque::new(),
            effects: VecDeque::new(),
            dirty: BTreeSet::new(),
            closing: Closing::Nothing,
            halted: None,
            complained: Duration::ZERO,
            files: Files::new(me, times.files_max),
            file_work: FileWork::default(),
            habits: Habits::new(times.habits_max, times.idle),
        }
    }

    /// The next effect to carry out.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Peers whose register has changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<SlotId> {
        std::mem::take(&mut self.dirty)
    }

    /// When [`Desk::tick`] must be called.
    pub fn deadline(&self) -> Option<Duration> {
        if self.halted.is_some() {
            return None;
        }
        [self.timers.first().map(|(at, _)| *at), self.files_deadline()].into_iter().flatten().min()
    }

    /// Operations that have come so far.
    pub fn tickets_given(&self) -> u64 {
        self.last_ticket
    }

    /// Has nothing to wait for: no ticket, no demotion, no cap.
    pub fn is_quiet(&self) -> bool {
        self.tickets.is_empty() && self.cases.is_empty() && self.effects.is_empty() && self.files_quiet()
    }

    /// The master machine, to look at.
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// The holder machine, to look at.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// An operation needs `set`; [`Effect::Complete`] answers.
    pub fn acquire(&mut self, now: Duration, set: LockSet) -> TicketNo {
        self.acquire_as(now, set, false)
    }

    /// The same, before all that wait on this host: for what a demotion that runs leaves to be done as soon as
    /// the lock is here again.
    pub fn acquire_first(&mut self, now: Duration, set: LockSet) -> TicketNo {
        self.acquire_as(now, set, true)
    }

    fn acquire_as(&mut self, now: Duration, set: LockSet, first: bool) -> TicketNo {
        self.last_ticket += 1;
        let ticket = TicketNo(self.last_ticket);
        if let Err(error) = self.may_ask(set.as_slice()) {
            self.effects.push_back(Effect::Complete { ticket, result: Err(error) });
            return ticket;
        }
        self.tickets.insert(ticket, Ticket { set, next: 0, first });
        self.work.push_back(Work::Advance(ticket));
        self.run(now);
        ticket
    }

    fn may_ask(&self, set: &[(LockName, Mode)]) -> Result<()> {
        if let Some(reason) = &self.halted {
            return Err(Error::Halted(reason.clone()));
        }
        for (name, mode) in set {
            if *mode == Mode::DW && !matches!(name, LockName::Inode(_)) {
                return Err(Error::Unsupported("shared direct writes of what is no inode"));
            }
            if self.closing >= closing_of(*name) {
                return Err(Error::Halted("unmounting".into()));
            }
        }
        Ok(())
    }

    /// Take a lock that no other host has an interest in, for the fast path: the caller tells the
    /// file system of the mode returned and then calls [`Desk::told`].
    pub fn claim(&mut self, name: LockName, mode: Mode) -> Option<Mode> {
        let grant = self.claimable(name, mode)?;
        if self.table.mode(name).covers(grant) {
            return None;
        }
        self.table.change(name, |held| held.mode = grant);
        self.cases.insert(name, Case { telling: 1, ..Case::default() });
        Some(grant)
    }

    /// [`Desk::claim`] for a lock whose grants the file system need not hear of: pinned in one go.
    pub fn claim_pinned(&mut self, name: LockName, mode: Mode) -> bool {
        self.claimable(name, mode).is_some_and(|grant| self.table.claim(name, grant, mode))
    }

    /// What may be taken of a lock about which nothing goes on here or elsewhere.
    fn claimable(&self, name: LockName, mode: Mode) -> Option<Mode> {
        if self.cases.contains_key(&name) || self.may_ask(&[(name, mode)]).is_err() {
            return None;
        }
        // Nothing but giving it up leads from direct writes to another mode, or from another to them.
        if mode == Mode::DW || self.table.mode(name) == Mode::DW {
            return None;
        }
        match name {
            LockName::Slot(_) => Some(Mode::X),
            _ if self.master.is_free(self.group_of(name), name) => Some(unshared(name, mode)),
            _ => None,
        }
    }

    /// The file system knows of a grant.
    pub fn told(&mut self, now: Duration, name: LockName) {
        if let Some(case) = self.cases.get_mut(&name) {
            case.telling = case.telling.checked_sub(1).expect("told once for each telling");
            if case.telling == 0 {
                self.serve_grant(name);
            }
        }
        self.evaluate_soon(name);
        self.run(now);
    }

    /// A pin is gone that somebody may wait for.
    pub fn unpinned(&mut self, now: Duration, name: LockName) {
        self.evaluate_soon(name);
        self.run(now);
    }

    /// A demotion is over.
    pub fn demoted(&mut self, now: Duration, name: LockName, answer: DemoteAnswer) {
        self.finish_demotion(now, name, answer);
        self.evaluate_soon(name);
        self.run(now);
    }

    /// Run the timers that are due.
    pub fn tick(&mut self, now: Duration) {
        if self.halted.is_some() {
            return;
        }
        while let Some((at, name)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(case) = self.cases.get_mut(&name) {
                case.timer = None;
            }
            self.evaluate_soon(name);
        }
        self.files_tick(now);
        self.complain(now);
        self.run(now);
    }

    /// Give these up, in the given manner.
    pub fn shed(&mut self, now: Duration, names: &[LockName], how: Shed) {
        for name in names {
            if self.table.mode(*name) != Mode::N {
                self.cases.entry(*name).or_default().shed = how;
                self.evaluate_soon(*name);
            }
        }
        self.run(now);
    }

    /// From now on refuse new requests for these classes.
    pub fn close(&mut self, what: Closing) {
        self.closing = self.closing.max(what);
        self.forget_ahead();
        self.files_close_all();
    }

    /// Answer all waiting operations with an error, and take part in nothing any more. The
    /// registers stay as they are.
    pub fn halt(&mut self, reason: &str) {
        if self.halted.is_some() {
            return;
        }
        self.halted = Some(reason.to_owned());
        self.work.clear();
        self.timers.clear();
        for (ticket, waiting) in std::mem::take(&mut self.tickets) {
            for (name, mode) in &waiting.set.as_slice()[..waiting.next] {
                let _ = self.table.unpin(*name, *mode);
            }
            let result = Err(Error::Halted(reason.to_owned()));
            if self.file_work.tickets.remove(&ticket).is_none() {
                self.effects.push_back(Effect::Complete { ticket, result });
            }
        }
        self.files_close_all();
    }

    /// Why the desk has halted, if it has.
    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    /// Is anything going on about `name`? (waiting operations, a demotion runs)
    pub fn state_of(&self, name: LockName) -> (u32, bool) {
        self.cases.get(&name).map_or((0, false), |c| (c.waiters.len() as u32, c.demoting.is_some() || c.busy))
    }

    /// The group whose master decides `name`.
    pub fn group_of(&self, name: LockName) -> AgNo {
        match name {
            LockName::Freeze | LockName::Volume | LockName::Slot(_) | LockName::Rename => AgNo(0),
            LockName::Inode(ino) | LockName::IOpen(ino) | LockName::FileLocks(ino) => {
                self.geometry.ag_of(ino.block()).unwrap_or(AgNo(0))
            }
            LockName::Ag(ag) => ag,
        }
    }

    fn evaluate_soon(&mut self, name: LockName) {
        self.work.push_back(Work::Evaluate(name));
    }

    fn run(&mut self, now: Duration) {
        if self.halted.is_some() {
            self.work.clear();
            return;
        }
        let mut steps = Steps::of_call();
        loop {
            while let Some(work) = self.work.pop_front() {
                match work {
                    Work::Evaluate(name) => self.evaluate(now, name),
                    Work::Advance(ticket) => self.advance(ticket),
                }
            }
            if !self.files_run(now, &mut steps) {
                return;
            }
        }
    }

    /// Pin the ticket's next locks; wait at the first that cannot be pinned.
    fn advance(&mut self, number: TicketNo) {
        let Some(ticket) = self.tickets.get_mut(&number) else { return };
        while let Some((name, mode)) = ticket.set.as_slice().get(ticket.next).copied() {
            if !self.table.pin(name, mode) {
                let case = self.cases.entry(name).or_default();
                match ticket.first {
                    true => case.waiters.push_front((number, mode)),
                    false => case.waiters.push_back((number, mode)),
                }
                if case.demoting.is_some() {
                    self.habits.asked_too_late(name);
                }
                self.evaluate_soon(name);
                return;
            }
            ticket.next += 1;
        }
        let ticket = self.tickets.remove(&number).expect("just looked at");
        if let Some(ino) = self.file_work.tickets.remove(&number) {
            return self.files_pinned(ino);
        }
        self.effects.push_back(Effect::Complete { ticket: number, result: Ok(ticket.set) });
    }
}

/// The step of leaving at which `name` is no longer given out.
fn closing_of(name: LockName) -> Closing {
    match name {
        LockName::Ag(_) => Closing::Groups,
        LockName::Slot(_) => Closing::Everything,
        _ => Closing::Names,
    }
}
