//! The lock conversation: whole [`Desk`]s (master, holder, pins) of up to three hosts, with
//! [`Inbox`] and [`Outbox`] over registers of which contents are missed and old ones come back.
//!
//! Hosts run operations on one lock; under it lies a value that an exclusive operation changes in
//! the host's cache and a demotion writes back. One that writes directly changes it on the disk. The host that masters the lock may leave or die; the
//! next one takes its group. Times of the minimum hold are all zero, so there is no clock.
//! I3: modes go together, those of the dead who are not recovered included. I6: an operation sees
//! the last change. I9: from everywhere a state can be reached where all operations are through.

mod acts;

use crate::check::{Protocol, catches, holds, is_full_run};
use shoal::base::{AgNo, Incarnation, InodeNo, LockName, Mode, SlotId, Token};
use shoal::cluster::ledger::Ledgers;
use shoal::cluster::mailbox::{Inbox, Outbox};
use shoal::cluster::{Entry, Membership, Owner};
use shoal::format::cluster::{Adopter, LedgerEntry, SlotState, Stamp, View};
use shoal::format::layout::Geometry;
use shoal::lock::desk::{Closing, Desk, TicketNo};
use shoal::lock::table::PinTable;
use shoal::lock::{DemoteAnswer, DemoteJob, LockSet};
use stateright::{Model, Property};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

const GEOMETRY: Geometry = Geometry {
    total_blocks: 40_000,
    max_slots: 3,
    cell_pitch: 512,
    ledger_pages: 1,
    ag_blocks: 8192,
    ag_count: 3,
};
/// Slot 0 masters it at first.
const GROUP: AgNo = AgNo(0);
const NOW: Duration = Duration::ZERO;

fn lock() -> LockName {
    LockName::Inode(InodeNo(GEOMETRY.ag_start(GROUP).0 + 700))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// What a request says is held is believed whatever grants it has seen.
    HeldBelievedUnacked,
    /// A new master takes anything it hears of a member for the declaration.
    SilenceIsDeclaration,
    /// The declaration leaves out what is held.
    HeldNotDeclared,
    /// An operation that waits for X keeps the S of its host.
    WaiterKeepsShared,
    /// The lower mode is told before the change is written back.
    ReleasedBeforeFlush,
    /// The cache outlives the lock.
    CacheKept,
    /// An old content that comes back is read as news.
    OldRegisterTaken,
    /// A register that was reverted is not written again.
    NoScrub,
    /// A dead host's locks are free before it is recovered.
    DeadIsGone,
    /// A host leaves without giving up what it holds.
    LeavesHolding,
    /// What is said under another token counts as if it were said under the present one.
    TokenIgnored,
    /// A grant is taken whichever request it answers.
    EarlierGrantTaken,
    /// Direct writes are granted beside whoever reads.
    DirectBesideShared,
}

/// What one host last wrote for another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Register {
    stamp: Stamp,
    meant_for: Incarnation,
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Host {
    incarnation: Incarnation,
    desk: Desk,
    table: Arc<PinTable>,
    membership: Arc<Membership>,
    inbox: Inbox,
    outbox: Outbox,
    /// Peers for whom there is something new to write.
    unsent: Vec<SlotId>,
    /// The state of members and owners that it has learnt of.
    known: u8,
    /// Registers last read, for the mutants.
    heard: BTreeMap<SlotId, Vec<Entry>>,
    tells: VecDeque<LockName>,
    demotions: Vec<DemoteJob>,
    adoptions: Vec<AgNo>,
    /// Operations still to start.
    script: VecDeque<Mode>,
    waiting: BTreeMap<TicketNo, Mode>,
    running: VecDeque<LockSet>,
    /// The value as this host knows it, and whether it changed it.
    cache: Option<(u8, bool)>,
    /// Told as released, not yet written back (a mutant's).
    owed: Option<u8>,
    leaving: bool,
}

/// A host with its hash: only the one that acts is copied and hashed anew.
#[derive(Clone)]
struct Frozen(Arc<Host>, u64);

impl PartialEq for Frozen {
    fn eq(&self, other: &Frozen) -> bool {
        self.1 == other.1
    }
}

impl Hash for Frozen {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.1.hash(state);
    }
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} cache {:?}", self.0.desk.master(), self.0.desk.holder(), self.0.cache)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    hosts: Vec<Option<Frozen>>,
    /// Dead, not recovered: what it holds, and its change that the journal has.
    dead: BTreeMap<SlotId, (Mode, Option<u8>)>,
    registers: BTreeMap<(SlotId, SlotId), Arc<Register>>,
    /// The first content of one of them, which may land once more.
    late: BTreeMap<(SlotId, SlotId), Arc<Register>>,
    view: Arc<View>,
    ledgers: Ledgers,
    owner: Incarnation,
    /// Counts the changes of members and owners.
    changes: u8,
    on_disk: u8,
    truth: u8,
    stale: bool,
    lates: u8,
    exits: u8,
    aheads: u8,
}

/// Sequence numbers of registers are only compared: which comparison holds is the state.
impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.hosts, &self.dead, &self.view, &self.ledgers, self.owner, self.changes).hash(state);
        (self.on_disk, self.truth, self.stale, self.lates, self.exits, self.aheads).hash(state);
        for ((from, to), r) in self.registers.iter().chain(&self.late) {
            (from, to, r.stamp.incarnation, r.meant_for, &r.entries).hash(state);
            let host = |slot: &SlotId| self.hosts[usize::from(slot.0)].as_ref();
            host(to).map(|h| h.0.inbox.is_news(r.stamp)).hash(state);
            host(from).map(|h| h.0.outbox.published(*to).sequence == r.stamp.sequence).hash(state);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Start(usize),
    /// Ask for the lock in X though no operation waits for it.
    Ahead(usize),
    End(usize),
    Tell(usize),
    Demote(usize),
    /// A mutant's late write-back.
    Flush(usize),
    Write(usize, usize),
    Read(usize, usize),
    /// Learn of the newest view and owners.
    Learn(usize),
    Adopt(usize),
    /// Give everything up; once more when that is done: gone.
    Leave(usize),
    Die(usize),
    Recover(usize),
    Late(usize, usize),
    Scrub(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    Leave,
    Death,
}

#[derive(Clone)]
struct Locks {
    scripts: Vec<Vec<Mode>>,
    /// This slot may do this; slot 0 masters the lock at first.
    exit: Option<Exit>,
    exit_slot: usize,
    lates: u8,
    /// How often hosts ask ahead.
    aheads: u8,
    /// Grants are told to the file system in a step of their own.
    slow_tells: bool,
    mutant: Option<Mutant>,
}

impl Model for Locks {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.first_state()]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        for (slot, host) in s.hosts.iter().enumerate() {
            if let Some(host) = host {
                self.steps_of(s, slot, &host.0, steps);
            } else if s.dead.contains_key(&SlotId(slot as u16)) {
                steps.push(Step::Recover(slot));
            }
        }
        if s.lates > 0 {
            steps.extend(s.late.keys().map(|(from, to)| Step::Late(from.0.into(), to.0.into())));
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        let s = &mut next;
        match step {
            Step::Start(slot) => self.act(s, slot, |h, _| {
                let mode = h.script.pop_front().expect("offered");
                let ticket = h.desk.acquire(NOW, LockSet::one(lock(), mode));
                h.waiting.insert(ticket, mode);
            }),
            Step::Ahead(slot) => {
                s.aheads -= 1;
                self.act(s, slot, |h, _| _ = h.desk.ask_ahead(NOW, &[lock()], Mode::X, 1));
            }
            Step::End(slot) => self.act(s, slot, |h, s| h.end(s)),
            Step::Tell(slot) => self.act(s, slot, |h, _| {
                let name = h.tells.pop_front().expect("offered");
                h.desk.told(NOW, name);
            }),
            Step::Demote(slot) => self.act(s, slot, |h, s| self.demote(h, s)),
            Step::Flush(slot) => self.act(s, slot, |h, s| {
                s.on_disk = h.owed.take().expect("offered");
            }),
            Step::Write(from, to) => self.write(s, from, to),
            Step::Read(to, from) => self.read(s, to, from),
            Step::Learn(slot) => self.learn(s, slot),
            Step::Adopt(slot) => self.adopt(s, slot),
            Step::Leave(slot) => self.leave(s, slot),
            Step::Die(slot) => self.die(s, slot),
            Step::Recover(slot) => self.recover(s, slot),
            Step::Late(from, to) => {
                let key = (SlotId(from as u16), SlotId(to as u16));
                s.lates -= 1;
                let old = s.late.remove(&key)?;
                s.registers.insert(key, old);
                if s.lates == 0 {
                    s.late.clear();
                }
            }
            Step::Scrub(from, to) => self.act(s, from, |h, _| h.outbox.lost(SlotId(to as u16))),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I3 modes go together", |_, s: &State| {
                let live = s.hosts.iter().flatten().map(|h| h.0.table.mode(lock()));
                let modes: Vec<_> = live.chain(s.dead.values().map(|(mode, _)| *mode)).collect();
                modes.iter().enumerate().all(|(i, a)| modes[i + 1..].iter().all(|b| a.compatible(*b)))
            }),
            Property::always("I6 operations see the last change", |_, s: &State| !s.stale),
            Property::sometimes("everything is done", |m: &Locks, s: &State| {
                m.is_goal(s) && (m.exit.is_none() || s.exits == 0)
            }),
        ]
    }
}

impl Protocol for Locks {
    /// All operations are through, and nobody has anything to say.
    fn is_goal(&self, s: &State) -> bool {
        let quiet = |h: &Host| {
            h.script.is_empty()
                && h.waiting.is_empty()
                && h.running.is_empty()
                && !h.leaving
                && h.desk.is_quiet()
                && h.membership.peers().all(|to| h.desk.outgoing(to).is_empty())
        };
        s.hosts.iter().flatten().all(|h| quiet(&h.0))
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(step, Step::Late(..) | Step::Die(_))
    }
}

fn locks(scripts: [&[Mode]; 3]) -> Locks {
    let scripts = scripts.iter().map(|s| s.to_vec()).collect();
    Locks { scripts, exit: None, exit_slot: 0, lates: 0, aheads: 0, slow_tells: false, mutant: None }
}

const S: &[Mode] = &[Mode::S];
const X: &[Mode] = &[Mode::X];
const XX: &[Mode] = &[Mode::X, Mode::X];
const SX: &[Mode] = &[Mode::S, Mode::X];
const D: &[Mode] = &[Mode::DW];
const DX: &[Mode] = &[Mode::DW, Mode::X];
const XD: &[Mode] = &[Mode::X, Mode::DW];
const NONE: &[Mode] = &[];

#[test]
fn operations_of_three_hosts_get_through() {
    holds("locks, X and X and S", locks([X, X, S]));
    holds("locks, S and X beside X", locks([NONE, SX, X]));
    holds("locks, X and X, slow tells", Locks { slow_tells: true, ..locks([NONE, X, X]) });
    holds("locks, X X and X, 1 late register", Locks { lates: 1, ..locks([XX, X, NONE]) });
    holds("locks, S and X, 1 asked ahead", Locks { aheads: 1, ..locks([NONE, S, X]) });
}

#[test]
fn direct_writers_get_through_beside_others() {
    holds("locks, DW and DW and X", locks([D, D, X]));
    holds("locks, DW and DW and S", locks([S, D, D]));
    holds("locks, DW X beside DW", locks([NONE, DX, D]));
    holds("locks, X DW and DW, slow tells", Locks { slow_tells: true, ..locks([XD, D, NONE]) });
    holds("locks, DW X and DW, 1 late register", Locks { lates: 1, ..locks([DX, D, NONE]) });
    holds("locks, DW and DW, 1 asked ahead", Locks { aheads: 1, ..locks([NONE, D, D]) });
    holds("locks, DW and DW, the master leaves", Locks { exit: Some(Exit::Leave), ..locks([D, DX, NONE]) });
    holds("locks, DW and DW, the master dies", Locks { exit: Some(Exit::Death), ..locks([D, DX, NONE]) });
    let death = Locks { exit: Some(Exit::Death), exit_slot: 1, ..locks([XD, D, NONE]) };
    holds("locks, DW and DW, who has it dies", death);
}

#[test]
fn a_master_may_leave_or_die() {
    if is_full_run() {
        holds("locks, the master leaves, 3 hosts", Locks { exit: Some(Exit::Leave), ..locks([NONE, X, X]) });
    }
    let asking = Locks { exit: Some(Exit::Leave), aheads: 1, ..locks([NONE, X, NONE]) };
    holds("locks, the master leaves, 1 asked ahead", asking);
    holds("locks, the master leaves", Locks { exit: Some(Exit::Leave), ..locks([X, X, NONE]) });
    holds("locks, the master dies", Locks { exit: Some(Exit::Death), ..locks([X, X, NONE]) });
    let death = Locks { exit: Some(Exit::Death), exit_slot: 1, ..locks([X, X, NONE]) };
    holds("locks, who holds it or waits for it dies", death.clone());
    if is_full_run() {
        holds("locks, the same beside a third", Locks { scripts: locks([NONE, X, X]).scripts, ..death });
    }
}

#[test]
fn every_rule_of_locks_is_needed() {
    use Mutant::*;
    let plain = [HeldBelievedUnacked, ReleasedBeforeFlush, CacheKept, WaiterKeepsShared];
    catches("locks", &plain, |m| Locks { mutant: Some(m), ..locks([NONE, SX, X]) });
    let direct = [DirectBesideShared, CacheKept, HeldBelievedUnacked];
    catches("locks, DW", &direct, |m| Locks { mutant: Some(m), ..locks([NONE, SX, D]) });
    let late = [OldRegisterTaken, NoScrub];
    catches("locks", &late, |m| Locks { mutant: Some(m), lates: 1, ..locks([XX, X, NONE]) });
}

#[test]
fn every_rule_of_a_change_of_master_is_needed() {
    use Mutant::*;
    let leave = [SilenceIsDeclaration, HeldNotDeclared];
    catches("locks", &leave, |m| Locks { exit: Some(Exit::Leave), mutant: Some(m), ..locks([NONE, X, X]) });
    let death = |m| Locks { exit: Some(Exit::Death), mutant: Some(m), ..locks([X, X, NONE]) };
    catches("locks", &[DeadIsGone], death);
    catches("locks", &[DeadIsGone], |m| Locks { exit_slot: 1, ..death(m) });
    let leave = |m| Locks { exit: Some(Exit::Leave), mutant: Some(m), ..locks([X, X, NONE]) };
    catches("locks", &[LeavesHolding], leave);
}

/// These rules stand behind others, each of which keeps out what they keep out: without them nothing
/// goes wrong within the bounds. Should another rule fall, that shows here.
#[test]
fn two_rules_of_locks_are_spare() {
    for mutant in [Mutant::TokenIgnored, Mutant::EarlierGrantTaken] {
        let leaves = Locks { exit: Some(Exit::Leave), mutant: Some(mutant), ..locks([X, X, NONE]) };
        holds(&format!("locks, the master leaves, {mutant:?}"), leaves);
        let late = Locks { mutant: Some(mutant), lates: 1, ..locks([XX, X, NONE]) };
        holds(&format!("locks, X X and X, 1 late register, {mutant:?}"), late);
    }
}
