//! File locks: whole [`Desk`]s of up to three hosts with the programs that lock one file, over registers of
//! which contents are missed and old ones come back. What serves the file may leave or die, and so may who
//! has told what it holds, and who is just telling it.
//!
//! A host writes its registers at once and reads those of others at any later time. Registers have places
//! for two messages, so that what is told anew takes several. Events are at time zero and ticks at the time
//! they are due.
//!
//! Checked against what programs have been told: no two have locks that do not go together, those of dead
//! hosts that are not recovered included; what a program has, its host knows of, also after a refusal; and
//! from everywhere a state can be reached where every request is answered, every program through, and nothing
//! locked that no program knows of.

mod acts;
mod bend;

use crate::check::{Protocol, catches, holds, is_full_run};
use bend::Notes;
use shoal::base::{AgNo, Incarnation, InodeNo, LockName, Mode, SlotId};
use shoal::cluster::ledger::Ledgers;
use shoal::cluster::mailbox::{Inbox, Outbox};
use shoal::cluster::{Entry, Membership};
use shoal::format::cluster::{Stamp, View};
use shoal::format::layout::Geometry;
use shoal::lock::desk::Desk;
use shoal::lock::files::ranges::Piece;
use shoal::lock::files::table::FileTable;
use shoal::lock::files::{FileLock, LockKind, RequestNo, Span};
use shoal::lock::table::PinTable;
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
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

fn file() -> InodeNo {
    InodeNo(GEOMETRY.ag_start(GROUP).0 + 700)
}

fn name() -> LockName {
    LockName::FileLocks(file())
}

/// Each is a rule that is not there, by the name of the rule in docs/PROTOCOL.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// L1: a host lets go of the cluster lock while its programs have locks.
    LetsGoWithLocks,
    /// L2: what was declared under an earlier grant of the cluster lock counts for the present one.
    EarlierGrantCounts,
    /// L2, M4: a new master takes anything it hears of a member for the declaration of its locks.
    SilenceIsDeclaration,
    /// L3: a new server is not told what is held.
    HeldNotTold,
    /// L3: nor who waits.
    WaitsNotTold,
    /// L4: the table is worked on before the last word of a declaration.
    FirstWordCounts,
    /// L4, L7: what is told anew is added to what was told.
    NothingReplaced,
    /// L5: a message that stands there is taken again.
    TakenTwice,
    /// L6: what a dead host has is free before it is recovered.
    DeadIsGone,
    /// L7: what was granted after its program had been told EINTR is kept.
    NotGivenBack,
}

/// What a program does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    /// Wait for this byte, by fcntl.
    Take(Mode, u64),
    /// Wait for both bytes in S.
    Widen,
    /// Give up everything.
    Clear,
    /// Close the file.
    Close,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Program {
    id: u64,
    script: VecDeque<Op>,
    /// What was asked, and what the program had when it did.
    asked: Option<(RequestNo, FileLock, Vec<Piece>)>,
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
    /// The state of members and owners that it has learnt of.
    known: u8,
    adoptions: Vec<AgNo>,
    programs: Vec<Program>,
    leaving: bool,
    /// Registers last read, and what a mutant remembers of them.
    notes: BTreeMap<SlotId, Notes>,
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
        write!(f, "{:?} {:?}", self.0.programs, self.0.desk.files())
    }
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    hosts: Vec<Option<Frozen>>,
    /// Dead, not recovered.
    dead: BTreeSet<SlotId>,
    registers: BTreeMap<(SlotId, SlotId), Arc<Register>>,
    /// The first content of one of them, which may land once more.
    late: BTreeMap<(SlotId, SlotId), Arc<Register>>,
    view: Arc<View>,
    ledgers: Ledgers,
    owner: Incarnation,
    /// Counts the changes of members and owners.
    changes: u8,
    /// What programs have, as they were told.
    told: FileTable,
    /// Two were told what does not go together.
    clash: bool,
    /// A program has a lock that its host does not know of.
    lost: bool,
    lates: u8,
    exits: u8,
    interrupts: u8,
}

/// Sequence numbers of registers are only compared: which comparison holds is the state.
impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.hosts, &self.dead, &self.view, &self.ledgers, self.owner, self.changes).hash(state);
        (&self.told, self.clash, self.lost, self.lates, self.exits, self.interrupts).hash(state);
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
    /// A program goes on.
    Go(usize, usize),
    /// A signal for one that has asked.
    Interrupt(usize, usize),
    Read(usize, usize),
    /// Time passes until something is due.
    Tick(usize),
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Leave,
    Death,
}

type Scripts<'a> = [&'a [&'a [Op]]; 3];

#[derive(Clone)]
struct Files {
    /// By host and program.
    scripts: Vec<Vec<Vec<Op>>>,
    /// Hosts beyond this are not there.
    hosts: usize,
    /// This slot may do this; slot 0 serves the file at first.
    exit: Option<(usize, Exit)>,
    lates: u8,
    interrupts: u8,
    /// Messages in a register.
    window: usize,
    mutant: Option<Mutant>,
}

impl Model for Files {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.first_state()]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        for (slot, host) in s.hosts.iter().enumerate() {
            if let Some(host) = host {
                self.steps_of(s, slot, &host.0, steps);
            } else if s.dead.contains(&SlotId(slot as u16)) {
                steps.push(Step::Recover(slot));
            }
        }
        if s.lates > 0 {
            steps.extend(s.late.keys().map(|(from, to)| Step::Late(from.0.into(), to.0.into())));
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        self.step(&mut next, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("file locks of programs go together", |_, s: &State| !s.clash),
            Property::always("a lock that was granted is not lost", |_, s: &State| !s.lost),
            Property::sometimes("everything is done", |m: &Files, s: &State| {
                m.is_goal(s) && (m.exit.is_none() || s.exits == 0)
            }),
        ]
    }
}

impl Protocol for Files {
    /// All programs are through, and nobody has anything to say.
    fn is_goal(&self, s: &State) -> bool {
        let through = |p: &Program| p.script.is_empty() && p.asked.is_none();
        let quiet = |h: &Host| h.programs.iter().all(through) && !h.leaving && h.desk.is_quiet();
        // Nobody has what no program knows of.
        let tidy = |h: &Host| {
            let told = s.told.all().filter(|lock| lock.owner.host == h.membership.me);
            h.desk.files().client.held(file()) == told.collect::<Vec<_>>()
        };
        s.hosts.iter().flatten().all(|h| quiet(&h.0) && tidy(&h.0))
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(step, Step::Late(..) | Step::Die(_) | Step::Interrupt(..))
    }
}

fn files(scripts: Scripts<'_>) -> Files {
    let host = |programs: &&[&[Op]]| programs.iter().map(|ops| ops.to_vec()).collect();
    let hosts = 3 - scripts.iter().rev().take_while(|programs| programs.is_empty()).count();
    let scripts = scripts.iter().map(host).collect();
    Files { scripts, hosts: hosts.max(2), exit: None, lates: 0, interrupts: 0, window: 2, mutant: None }
}

fn with_exit(slot: usize, exit: Exit, scripts: Scripts<'_>) -> Files {
    Files { exit: Some((slot, exit)), ..files(scripts) }
}

use Exit::{Death, Leave};
use Op::{Clear, Close, Take, Widen};

/// Takes a byte and gives it up.
const ONCE: &[Op] = &[Take(Mode::X, 0), Clear];
const TWICE: &[Op] = &[Take(Mode::X, 0), Clear, Take(Mode::X, 0), Clear];
const CLOSES: &[Op] = &[Take(Mode::X, 0), Close];
/// Shares a byte.
const SHARES: &[Op] = &[Take(Mode::S, 0), Clear];
/// Two that lock each other out.
const UP: &[Op] = &[Take(Mode::X, 0), Take(Mode::X, 1), Clear];
const DOWN: &[Op] = &[Take(Mode::X, 1), Take(Mode::X, 0), Clear];
/// Keeps the last byte.
const BESIDE: &[Op] = &[Take(Mode::X, 2)];
/// Makes less of one byte while it waits for another.
const WIDENS: &[Op] = &[Take(Mode::X, 0), Widen, Clear];
const OTHER: &[Op] = &[Take(Mode::X, 1), Clear];

const NOBODY: &[&[Op]] = &[];

/// Programs that hear of signals, over registers for one message.
fn interrupted(scripts: Scripts<'_>) -> Files {
    Files { interrupts: 1, window: 1, ..files(scripts) }
}

#[test]
fn programs_that_lock_files_get_through() {
    holds("files, X and X X", files([&[ONCE], &[TWICE], NOBODY]));
    holds("files, X X and X X", files([&[TWICE], &[TWICE], NOBODY]));
    holds("files, X and X beside the server", files([NOBODY, &[ONCE], &[CLOSES]]));
    holds("files, S and S and X", files([&[SHARES], &[SHARES, ONCE], NOBODY]));
    holds("files, a circle", files([&[UP], &[DOWN], NOBODY]));
    holds("files, X and X X, 1 late register", Files { lates: 1, ..files([&[ONCE], &[TWICE], NOBODY]) });
    holds("files, X and X X, 1 signal", interrupted([&[ONCE], &[TWICE], NOBODY]));
    holds("files, X down to S, 1 signal", interrupted([&[OTHER], &[WIDENS], NOBODY]));
    if is_full_run() {
        holds("files, X X and X X, 1 signal", interrupted([&[TWICE], &[TWICE], NOBODY]));
        holds("files, X down to S beside X, 1 signal", interrupted([&[OTHER], &[WIDENS, BESIDE], NOBODY]));
    }
}

#[test]
fn whoever_serves_file_locks_or_has_some_may_leave_or_die() {
    for (exit, what) in [(Leave, "leaves"), (Death, "dies")] {
        let server = with_exit(0, exit, [&[ONCE], &[CLOSES], NOBODY]);
        holds(&format!("files, the server {what}"), server.clone());
        holds(&format!("files, the server {what}, 1 signal"), Files { interrupts: 1, ..server });
        let client = with_exit(1, exit, [&[ONCE], &[ONCE], NOBODY]);
        holds(&format!("files, a client {what}"), client.clone());
        holds(&format!("files, a client {what}, 1 late register"), Files { lates: 1, ..client });
        let widens = with_exit(0, exit, [&[OTHER], &[WIDENS], NOBODY]);
        holds(&format!("files, X down to S, the server {what}"), widens);
        if is_full_run() {
            let clients = with_exit(0, exit, [NOBODY, &[ONCE], &[ONCE]]);
            holds(&format!("files, the server {what} beside two"), clients);
        }
    }
}

#[test]
fn every_rule_of_file_locks_is_needed() {
    use Mutant::*;
    let plain = [LetsGoWithLocks, HeldNotTold, FirstWordCounts, NothingReplaced, TakenTwice];
    catches("files", &plain, |m| Files { mutant: Some(m), ..files([&[ONCE], &[TWICE], NOBODY]) });
    catches("files", &[EarlierGrantCounts], |m| Files {
        mutant: Some(m),
        ..interrupted([&[TWICE], &[TWICE], NOBODY])
    });
    let keeps = interrupted([&[TWICE], &[ONCE, BESIDE], NOBODY]);
    catches("files", &[NotGivenBack], |m| Files { mutant: Some(m), ..keeps.clone() });
}

#[test]
fn every_rule_of_a_new_server_of_file_locks_is_needed() {
    use Mutant::*;
    let two = |exit| with_exit(0, exit, [NOBODY, &[ONCE], &[ONCE]]);
    catches("files", &[SilenceIsDeclaration], |m| Files { mutant: Some(m), ..two(Leave) });
    let waits = files([&[BESIDE], &[ONCE, ONCE], NOBODY]);
    holds("files, one that serves itself tells another who waits", waits.clone());
    catches("files", &[WaitsNotTold], |m| Files { mutant: Some(m), ..waits.clone() });
    let dies = |slot| with_exit(slot, Death, [&[ONCE], &[ONCE], NOBODY]);
    catches("files", &[DeadIsGone], |m| Files { mutant: Some(m), ..dies(0) });
    catches("files", &[DeadIsGone], |m| Files { mutant: Some(m), ..dies(1) });
}
