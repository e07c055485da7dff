//! Ledger tokens: [`Ownership`] of up to three mounts over ledgers of two copies, heartbeat cells and
//! views that are decided at once (how is `views.rs`'s matter) but learnt at everybody's leisure.
//!
//! Mounts join, take groups of clean slots and of their own, leave, fall silent and come back; a
//! ledger write fails with unknown outcome, or lands once more, late. I2: a group has at most one
//! master among mounts that may act, and no token is taken twice.

use crate::check::{Protocol, catches, holds};
use acts::{fresh, stamp};
use shoal::base::{AgNo, Incarnation, SlotId, Token};
use shoal::cluster::Owner;
use shoal::cluster::ownership::{Ownership, Taking};
use shoal::cluster::view;
use shoal::format::cluster::{Heartbeat, LedgerEntry, LedgerPage, View};
use stateright::{Model, Property};
use std::collections::BTreeMap;
use std::sync::Arc;

mod acts;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// A joiner reads the ledgers at once.
    BarrierSkipped,
    /// A view is installed and acknowledged while a ledger write is under way.
    ViewDuringWrite,
    /// The silent mount that looked after the joiner's slot is passed over like any other.
    FormerPassedOver,
    /// The ledgers of mounts that left are not read again.
    HeirDoesNotLook,
    /// They are if the mount is in the view known before, not if it came and went since.
    HeirLooksAtKnown,
    /// A mount that leaves may still be taking a group.
    LeavesWhileTaking,
    /// A page counts as written when one copy is.
    WrittenOnce,
    /// Own pages are not looked at before a view is installed.
    NoScrub,
    /// A group is taken under the token it has.
    NumberKept,
    /// Ledger writes that heartbeats announce are not read.
    NewsIgnored,
    /// What waits for the next joiner is left to him when a silent member is back.
    NobodyInherits,
    /// A mount whose lease had ended goes on without looking for a newer view.
    RenewsBlindly,
    /// The ledger of a dead mount is not read again when it is recovered.
    LastWordsMissed,
    /// The dead are recovered while members write under views in which they lived.
    NotAcknowledged,
    /// What the members wrote until they acknowledged is not read.
    AnnouncedUnread,
    /// The dead are recovered while they may still write.
    NotFenced,
    /// What the dead looked after is another's before they are recovered.
    ChargesTakenEarly,
}

const SLOTS: usize = 3;
/// Group `g` is slot `g`'s at first; group 0 is of no interest.
const GROUPS_END: u32 = 3;

type Copy1 = Option<(Arc<LedgerPage>, u64)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    copies: [Copy1; 2],
    pending: Option<(Arc<LedgerPage>, u64)>,
    /// What each copy held before: the write of it may land once more.
    before: [Copy1; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Waits for acknowledgements.
    Barrier,
    /// Reads the ledgers from this slot on.
    Loading(usize),
    Member,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// Writes a page, once more after this if true.
    Taking(Taking, bool),
    Scrubbing(Arc<LedgerPage>, bool),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Mount {
    incarnation: Incarnation,
    joined: shoal::base::Epoch,
    ownership: Ownership,
    sequence: u64,
    /// Own ledger writes, as the heartbeat tells.
    writes: u64,
    read: Vec<(Incarnation, u64)>,
    phase: Phase,
    doing: Doing,
    /// Takes no steps; what it writes may still land.
    silent: bool,
    /// Silent so long that nothing of it can land any more.
    expired: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    view: Arc<View>,
    beats: Vec<Option<Heartbeat>>,
    ledgers: Vec<Place>,
    mounts: Vec<Option<Arc<Mount>>>,
    /// Who took a group under a token.
    tokens: BTreeMap<(u32, Token), Incarnation>,
    twice: bool,
    joins: u8,
    leaves: u8,
    silences: u8,
    deaths: u8,
    faults: u8,
    late: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Join,
    Leave(usize),
    /// Take over what waits for the next joiner.
    Inherit(usize),
    /// Have a silent mount excluded; recover those that are fenced.
    Exclude(usize, usize),
    Recover(usize),
    Beat(usize),
    /// Read the newest view and install it; `true`: what a mount that left is writing shows already.
    Learn(usize, bool),
    /// Read the ledger that a heartbeat of this slot announced.
    Reload(usize, usize, bool),
    Pass(usize),
    Load(usize, bool),
    Take(usize, u32),
    Written(usize),
    Fail(usize, bool),
    Silence(usize),
    Expire(usize),
    Return(usize),
    /// The lease had ended: read the newest view, then go on.
    Renew(usize),
    Late(usize, usize),
}

#[derive(Clone)]
struct Tokens {
    joins: u8,
    leaves: u8,
    silences: u8,
    deaths: u8,
    faults: u8,
    late: u8,
    groups: u32,
    mutant: Option<Mutant>,
}

impl Model for Tokens {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut ledgers = vec![];
        for slot in 0..SLOTS {
            // As long as there are groups: nothing but the encoding minds.
            let mut page = LedgerPage::empty();
            page.entries.truncate(GROUPS_END as usize);
            if let Some(entry) = page.entries.get_mut(slot) {
                *entry = LedgerEntry::Own(Token(1));
            }
            let page = Arc::new(page);
            let copies = [Some((page.clone(), 2)), Some((page, 1))];
            ledgers.push(Place { copies, pending: None, before: [None, None] });
        }
        let first = view::first(&View::initial(SLOTS as u16, SLOTS as u16), SlotId(0), Incarnation(1));
        let first = Arc::new(first);
        let mut mount = fresh(SlotId(0), Incarnation(1), &first, Phase::Member);
        for (slot, place) in ledgers.iter().enumerate() {
            mount.ownership.set(SlotId(slot as u16), vec![(*place.read(false)).clone()]);
        }
        mount.sequence = 2;
        let mut state = State {
            view: first,
            beats: vec![None; SLOTS],
            ledgers,
            mounts: vec![Some(Arc::new(mount)), None, None],
            tokens: BTreeMap::new(),
            twice: false,
            joins: self.joins,
            leaves: self.leaves,
            silences: self.silences,
            deaths: self.deaths,
            faults: self.faults,
            late: self.late,
        };
        self.beat(&mut state, 0);
        vec![state]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        let may_admit = |m: &Mount| !m.silent && m.phase == Phase::Member && *m.ownership.view() == *s.view;
        if s.joins > 0 && view::dead(&s.view) == 0 && s.mounts.iter().flatten().any(|m| may_admit(m)) {
            steps.push(Step::Join);
        }
        for slot in 0..SLOTS {
            let pending = s.ledgers[slot].pending.is_some();
            if pending {
                steps.push(Step::Written(slot));
            }
            for copy in (0..2).filter(|c| s.late > 0 && s.ledgers[slot].before[*c].is_some()) {
                steps.push(Step::Late(slot, copy));
            }
            let Some(mount) = &s.mounts[slot] else { continue };
            if mount.silent {
                if !pending && !mount.expired {
                    steps.push(Step::Expire(slot));
                }
                steps.push(Step::Return(slot));
            } else {
                self.steps_of(s, slot, mount, steps);
            }
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        let s = &mut next;
        match step {
            Step::Join => self.join(s)?,
            Step::Leave(slot) => self.leave(s, slot)?,
            Step::Inherit(slot) => s.view = Arc::new(view::inherit(&s.view, SlotId(slot as u16))?),
            Step::Exclude(slot, victim) => self.exclude(s, slot, victim)?,
            Step::Recover(slot) => self.recover(s, slot)?,
            Step::Beat(slot) => self.beat(s, slot),
            Step::Learn(slot, new) => self.learn(s, slot, new),
            Step::Reload(slot, of, new) => {
                let stamp = stamp(&s.beats[of]);
                let page = s.ledgers[of].read(new);
                let mount = self.mount(s, slot);
                mount.ownership.set(SlotId(of as u16), vec![(*page).clone()]);
                mount.read[of] = stamp;
            }
            Step::Pass(slot) => self.pass(s, slot)?,
            Step::Load(slot, new) => self.load(s, slot, new),
            Step::Take(slot, ag) => self.take(s, slot, ag)?,
            Step::Written(slot) => self.written(s, slot),
            Step::Fail(slot, done) => {
                s.faults -= 1;
                s.ledgers[slot].settle(done, false);
                let mount = self.mount(s, slot);
                mount.doing = Doing::Nothing;
                mount.sequence += 1;
            }
            Step::Silence(slot) => {
                s.silences -= 1;
                self.mount(s, slot).silent = true;
            }
            Step::Expire(slot) => self.mount(s, slot).expired = true,
            Step::Return(slot) => {
                let mount = self.mount(s, slot);
                mount.silent = false;
                mount.expired &= !self.is(Mutant::RenewsBlindly);
                if s.ledgers[slot].pending.is_none() && self.mount(s, slot).doing != Doing::Nothing {
                    // The write was done while it did not run.
                    self.written(s, slot);
                }
            }
            Step::Renew(slot) => {
                self.learn(s, slot, false);
                if s.mounts[slot].is_none() {
                    return Some(next);
                }
                let mount = self.mount(s, slot);
                mount.expired = mount.doing != Doing::Nothing;
            }
            Step::Late(slot, copy) => {
                s.late -= 1;
                s.ledgers[slot].copies[copy] = s.ledgers[slot].before[copy].take();
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I2 a group has one master", |m: &Tokens, s: &State| {
                (1..=m.groups).map(AgNo).all(|ag| {
                    let acts = s.mounts.iter().enumerate().filter_map(|(slot, m)| Some((slot, m.as_ref()?)));
                    let masters = acts.filter(|(slot, m)| {
                        !m.expired && m.ownership.owner_of(ag).0 == Owner::Master(SlotId(*slot as u16))
                    });
                    masters.count() <= 1
                })
            }),
            Property::always("I2 no token is taken twice", |_, s: &State| !s.twice),
            Property::always("the dead are one's to see to", |_, s: &State| {
                (0..SLOTS as u16)
                    .map(|at| view::dead_of(&s.view, SlotId(at)))
                    .all(|ours| ours == 0 || ours == view::dead(&s.view))
            }),
            Property::sometimes("a group is taken twice", |_, s: &State| {
                s.tokens.keys().any(|(_, token)| token.0 >= 3)
            }),
        ]
    }
}

impl Tokens {
    fn steps_of(&self, s: &State, slot: usize, mount: &Mount, steps: &mut Vec<Step>) {
        let idle = mount.doing == Doing::Nothing;
        if mount.expired {
            if idle {
                steps.push(Step::Renew(slot));
            }
            return;
        }
        let news = mount.ownership.view().epoch < s.view.epoch;
        if s.beats[slot].as_ref().is_none_or(|b| {
            b.incarnation != mount.incarnation
                || b.ledger_sequence != mount.writes
                || b.ack != mount.ownership.view().epoch
        }) {
            steps.push(Step::Beat(slot));
        }
        if news && (idle || self.is(Mutant::ViewDuringWrite)) {
            steps.push(Step::Learn(slot, false));
            if s.ledgers.iter().any(|l| l.pending.is_some()) {
                steps.push(Step::Learn(slot, true));
            }
        }
        match mount.phase {
            Phase::Barrier => steps.push(Step::Pass(slot)),
            Phase::Loading(at) => {
                steps.push(Step::Load(slot, false));
                if s.ledgers[at].pending.is_some() {
                    steps.push(Step::Load(slot, true));
                }
            }
            Phase::Member => self.member_steps(s, slot, mount, steps),
        }
        if s.silences > 0 && (mount.phase == Phase::Member || self.deaths > 0) {
            steps.push(Step::Silence(slot));
        }
        if s.faults > 0 && s.ledgers[slot].pending.is_some() {
            steps.extend([Step::Fail(slot, false), Step::Fail(slot, true)]);
        }
    }

    fn member_steps(&self, s: &State, slot: usize, mount: &Mount, steps: &mut Vec<Step>) {
        let idle = mount.doing == Doing::Nothing && s.ledgers[slot].pending.is_none();
        for of in (0..SLOTS).filter(|of| *of != slot && !self.is(Mutant::NewsIgnored)) {
            if s.beats[of].is_some() && mount.read[of] != stamp(&s.beats[of]) {
                steps.push(Step::Reload(slot, of, false));
                if s.ledgers[of].pending.is_some() {
                    steps.push(Step::Reload(slot, of, true));
                }
            }
        }
        if idle {
            for ag in 1..=self.groups {
                if mount.ownership.owner_of(AgNo(ag)).0 == Owner::Adopter(SlotId(slot as u16)) {
                    steps.push(Step::Take(slot, ag));
                }
            }
        }
        let inherits =
            !self.is(Mutant::NobodyInherits) && view::inherit(&s.view, SlotId(slot as u16)).is_some();
        let others = s.mounts.iter().flatten().count() > 1;
        let current = mount.ownership.view().epoch == s.view.epoch;
        if s.leaves > 0 && others && current && (idle || self.is(Mutant::LeavesWhileTaking)) {
            steps.push(Step::Leave(slot));
        }
        if inherits && current && idle {
            steps.push(Step::Inherit(slot));
        }
        if current && idle {
            let silent = |at: &usize| s.mounts[*at].as_ref().is_some_and(|m| m.silent);
            let victims = (0..SLOTS).filter(|at| s.deaths > 0 && *at != slot && silent(at));
            steps.extend(victims.map(|victim| Step::Exclude(slot, victim)));
            if view::dead_of(&s.view, SlotId(slot as u16)) != 0 {
                steps.push(Step::Recover(slot));
            }
        }
    }
}

impl Protocol for Tokens {
    /// All members agree on the owners, and somebody acts for each group.
    fn is_goal(&self, s: &State) -> bool {
        let mounts: Vec<_> = s.mounts.iter().flatten().collect();
        let up = |m: &Arc<Mount>| !m.silent && !m.expired && m.phase == Phase::Member;
        mounts.iter().all(|m| up(m))
            && (1..=self.groups).map(AgNo).all(|ag| {
                let owner = |m: &Mount| {
                    let (owner, token) = m.ownership.owner_of(ag);
                    (owner.slot(), token)
                };
                let first = owner(mounts[0]);
                first.0.is_some_and(|slot| s.mounts[usize::from(slot.0)].is_some())
                    && mounts.iter().all(|m| owner(m) == first)
            })
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(
            step,
            Step::Fail(..)
                | Step::Silence(_)
                | Step::Late(..)
                | Step::Leave(_)
                | Step::Join
                | Step::Exclude(..)
        )
    }
}

const SMALL: Tokens =
    Tokens { joins: 1, leaves: 1, silences: 0, deaths: 0, faults: 0, late: 0, groups: 1, mutant: None };

#[test]
fn a_group_has_one_master() {
    holds("tokens, 1 join, 1 leave", SMALL);
    holds("tokens, 2 joins, 1 leave", Tokens { joins: 2, ..SMALL });
    holds("tokens, 1 join, 1 leave, 2 groups", Tokens { groups: 2, ..SMALL });
    holds("tokens, 2 joins, 1 leave, 1 silence", Tokens { joins: 2, silences: 1, ..SMALL });
    holds("tokens, 2 joins, 1 leave, 1 failed write", Tokens { joins: 2, faults: 1, ..SMALL });
    holds("tokens, 2 joins, 1 leave, 1 late write", Tokens { joins: 2, late: 1, ..SMALL });
    holds("tokens, 2 joins, 2 leaves, 2 groups", Tokens { joins: 2, leaves: 2, groups: 2, ..SMALL });
}

/// Two members and one more to come, of whom one dies.
const DEATH: Tokens = Tokens { joins: 2, leaves: 0, silences: 1, deaths: 1, groups: 2, ..SMALL };

#[test]
fn a_group_has_one_master_whoever_dies() {
    holds("tokens, 1 join, 1 death", Tokens { joins: 1, ..DEATH });
    holds("tokens, 1 join, 1 death, 1 failed write", Tokens { joins: 1, faults: 1, ..DEATH });
}

#[test]
fn every_rule_of_a_death_is_needed() {
    use Mutant::*;
    let all = [LastWordsMissed, NotFenced, ChargesTakenEarly, NotAcknowledged, AnnouncedUnread];
    catches("tokens", &all, |m| Tokens { mutant: Some(m), ..DEATH });
}

#[test]
fn every_rule_of_tokens_is_needed() {
    use Mutant::*;
    let plain =
        [BarrierSkipped, ViewDuringWrite, HeirDoesNotLook, LeavesWhileTaking, NumberKept, NewsIgnored];
    catches("tokens", &plain, |m| Tokens { joins: 2, mutant: Some(m), ..SMALL });
    catches("tokens", &[HeirLooksAtKnown], |m| Tokens { joins: 2, silences: 1, mutant: Some(m), ..SMALL });
    catches("tokens", &[FormerPassedOver, RenewsBlindly, NobodyInherits], |m| Tokens {
        silences: 1,
        mutant: Some(m),
        ..SMALL
    });
    catches("tokens", &[WrittenOnce], |m| Tokens { late: 1, mutant: Some(m), ..SMALL });
    catches("tokens", &[NoScrub], |m| Tokens { faults: 1, mutant: Some(m), ..SMALL });
}
