//! Who decides a lock: the way from the desk to the two machines of the conversation.

use super::{Desk, Effect, Shed};
use crate::base::{AgNo, Incarnation, LockName, Mode, SlotId, Token};
use crate::cluster::{Entry, EntryKind, Membership, Owner};
use crate::format::cluster::SlotState;
use crate::lock::holder::{HolderAction, HolderEvent};
use crate::lock::master::{MasterAction, MasterEvent};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// For so long a reader's lock is asked for as a writer's: hosts that only keep it to read may not answer.
const GUESS_MAX: Duration = Duration::from_millis(50);
/// How often it is logged that a host's declaration is awaited.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Where requests for a group were last sent.
pub(super) type Routed = Option<(SlotId, Token, Option<Incarnation>)>;

impl Desk {
    /// Members or owners have changed.
    pub fn on_view(&mut self, now: Duration, membership: Arc<Membership>) {
        if self.halted.is_some() {
            return;
        }
        let before = self.membership.replace(membership.clone());
        let died = before.as_ref().is_some_and(|b| dead(&membership).any(|slot| dead(b).all(|d| d != slot)));
        let before = before.map(|m| holders(&m)).unwrap_or_default();
        let after = holders(&membership);
        for (slot, incarnation) in before.clone() {
            if after.get(&slot) != Some(&incarnation) {
                self.registers.remove(&slot);
                self.files_gone(slot);
                self.step_master(now, MasterEvent::Gone { peer: slot });
            }
        }
        self.files.streams.keep(|slot| before.get(&slot) == after.get(&slot) && after.contains_key(&slot));
        for slot in dead(&membership) {
            // Its last words ask for what it cannot take any more; what it holds, the master knows.
            if self.registers.remove(&slot).is_some() {
                self.files_dead(slot);
                self.step_master(now, MasterEvent::Dead { peer: slot });
            }
        }
        let me = self.me;
        self.adopting.retain(|ag| membership.owner_of(*ag).0 == Owner::Adopter(me));
        self.learned.retain(|ag, (_, token)| membership.owner_of(*ag).1 < *token);
        for ag in self.holder.groups() {
            self.route(now, ag, self.wants(ag));
        }
        for from in self.registers.keys().copied().collect::<Vec<_>>() {
            self.take_up_requests(now, from);
        }
        self.take_up_files(now);
        if died {
            self.shed_direct(now);
        }
        self.run(now);
    }

    /// Somebody died, who may have written directly beside us to what he decided himself or a third host decides:
    /// ask anew for what we write directly. It is granted when nothing of his can land there any more.
    fn shed_direct(&mut self, now: Duration) {
        let direct = self.table.all().into_iter().filter(|(_, held)| held.mode == Mode::DW);
        let mut names: Vec<_> = direct.map(|(name, _)| name).collect();
        names.sort_unstable();
        self.shed(now, &names, Shed::Must);
    }

    /// The whole register of a peer.
    pub fn on_entries(&mut self, now: Duration, from: SlotId, entries: &[Entry]) {
        if self.halted.is_some() {
            return;
        }
        let entries: Vec<_> = entries.iter().map(|e| (self.group_of(e.lock), *e)).collect();
        self.registers.insert(from, entries.clone());
        self.take_up_requests(now, from);
        self.step_master(now, MasterEvent::Register { from, entries: entries.clone() });
        if self.step_holder(now, HolderEvent::Register { from, entries: entries.clone() }) {
            // Something was learned on the way; read it again in that light.
            self.step_holder(now, HolderEvent::Register { from, entries: entries.clone() });
        }
        self.files_receive(now, from, &entries);
        self.take_up_files(now);
        self.run(now);
    }

    /// An adoption has succeeded, or failed. The group is opened only when a snapshot of the members
    /// shows it as ours: ours may be older than the one that the adoption rests on, and everybody
    /// who may hold locks of the group must be asked.
    pub fn adopted(&mut self, now: Duration, ag: AgNo, done: bool) {
        if self.halted.is_some() {
            return;
        }
        if !done {
            self.adopting.remove(&ag);
            self.route(now, ag, self.wants(ag)); // it may be somebody else's turn now, or try again
            for from in self.registers.keys().copied().collect::<Vec<_>>() {
                self.take_up_requests(now, from);
            }
            self.take_up_files(now);
        }
        self.run(now);
    }

    /// The register for `to`.
    pub fn outgoing(&self, to: SlotId) -> Vec<Entry> {
        let mut entries = self.master.outgoing(to);
        entries.extend(self.holder.outgoing(to));
        entries.extend(self.files.streams.outgoing(to));
        entries
    }

    /// Does anything of `ag` have to be asked for?
    fn wants(&self, ag: AgNo) -> bool {
        self.holder.wants(ag) || self.files_want(ag)
    }

    /// Ask for what operations wait for, from whoever decides it.
    pub(super) fn request(&mut self, now: Duration, name: LockName) {
        let Some(case) = self.cases.get_mut(&name) else { return };
        if case.telling > 0 || case.demoting.is_some() {
            return; // said when that is over
        }
        let held = self.table.mode(name);
        if held.covers(case.wanted(name, held)) {
            (case.asked_at, case.to_write) = (None, false);
        } else if case.asked_at.is_none() {
            self.habits.asked(now, name);
            case.asked_at = Some(now);
            case.to_write = held == Mode::N && !case.waiters.is_empty() && self.habits.migrates(name);
            if case.to_write {
                self.set_timer(name, now + GUESS_MAX);
            }
        }
        let case = self.cases.get_mut(&name).expect("just seen");
        if case.to_write && case.asked_at.is_some_and(|at| now >= at + GUESS_MAX) {
            case.to_write = false;
        }
        let want = case.wanted(name, held);
        let first = want == Mode::X && self.hands_in(name);
        if matches!(name, LockName::Slot(_)) {
            if !held.covers(want) {
                self.arrive(now, name, Mode::X); // by membership, without a word
            }
            return;
        }
        let ag = self.group_of(name);
        if self.master.token(ag).is_none() {
            self.route(now, ag, !held.covers(want));
        }
        if self.master.token(ag).is_some() {
            self.step_master(now, MasterEvent::Own { ag, lock: name, held, want, first });
        } else {
            self.step_holder(now, HolderEvent::Want { ag, lock: name, want, first });
        }
    }

    pub(super) fn tell_lowering(&mut self, name: LockName) {
        let ag = self.group_of(name);
        self.holder.step(HolderEvent::Lowering { ag, lock: name });
    }

    pub(super) fn tell_lowered(&mut self, now: Duration, name: LockName) {
        if matches!(name, LockName::Slot(_)) {
            return;
        }
        let (ag, held) = (self.group_of(name), self.table.mode(name));
        let want = self.cases.get(&name).map_or(Mode::N, |c| c.wanted(name, held));
        let first = want == Mode::X && self.hands_in(name);
        if self.master.token(ag).is_some() {
            self.step_master(now, MasterEvent::Own { ag, lock: name, held, want, first });
        } else {
            self.step_holder(now, HolderEvent::Lowered { ag, lock: name, held, want, first });
        }
    }

    /// Log, now and then, on whom groups wait.
    pub(super) fn complain(&mut self, now: Duration) {
        if now < self.complained + COMPLAIN_EVERY {
            return;
        }
        if self.complained != Duration::ZERO {
            for (ag, awaited) in self.master.opening() {
                tracing::warn!(%ag, ?awaited, "waiting for hosts to declare their locks of a group");
            }
        }
        self.complained = now;
    }

    /// Find out who decides `ag`, if we do not; open it if it is ours, adopt it if it could be and
    /// something is `wanted` of it.
    pub(super) fn route(&mut self, now: Duration, ag: AgNo, wanted: bool) {
        if self.master.token(ag).is_some() {
            return;
        }
        let membership = self.membership.clone();
        let (owner, token) = membership.as_ref().map_or((Owner::Nobody, Token(0)), |m| m.owner_of(ag));
        let mut to = match owner {
            Owner::Master(slot) if slot == self.me => return self.open(now, ag, token),
            // What is merely held needs no master. Taken only when something is wanted, a group is still
            // there for the next host of its slot.
            Owner::Adopter(slot) if slot == self.me => {
                if wanted {
                    self.adopt(ag);
                }
                None
            }
            Owner::Master(slot) | Owner::Adopter(slot) => Some((slot, token)),
            Owner::Nobody => None,
        };
        if let Some((slot, newer)) = self.learned.get(&ag).copied()
            && newer > token
        {
            to = Some((slot, newer));
        }
        let routed =
            to.map(|(slot, token)| (slot, token, membership.as_ref().and_then(|m| m.incarnation_of(slot))));
        if self.routed.get(&ag) != Some(&routed) {
            self.routed.insert(ag, routed);
            self.step_holder(now, HolderEvent::Route { ag, to });
            self.files_rerouted(ag);
        }
    }

    fn adopt(&mut self, ag: AgNo) {
        if self.adopting.insert(ag) {
            self.effects.push_back(Effect::Adopt(ag));
        }
    }

    /// Start to master `ag`; all who may hold locks of it must declare them first.
    fn open(&mut self, now: Duration, ag: AgNo, token: Token) {
        let Some(membership) = self.membership.clone() else { return };
        if self.master.token(ag).is_some() {
            return;
        }
        let own = self.holder.of_group(ag);
        self.step_holder(now, HolderEvent::Forget { ag });
        self.routed.remove(&ag);
        self.learned.remove(&ag);
        let awaited: BTreeSet<_> = holders(&membership).into_keys().collect();
        self.step_master(now, MasterEvent::Open { ag, token, awaited, own });
        for (from, entries) in self.registers.clone() {
            self.step_master(now, MasterEvent::Register { from, entries });
        }
        self.files_rerouted(ag);
    }

    /// A peer asks for locks of groups that are for us but not opened yet.
    fn take_up_requests(&mut self, now: Duration, from: SlotId) {
        let Some(entries) = self.registers.get(&from) else { return };
        let asked = entries.iter().filter(|(_, e)| e.kind == EntryKind::Request).map(|(ag, _)| *ag);
        let new: BTreeSet<_> = asked.filter(|ag| self.master.token(*ag).is_none()).collect();
        self.take_up(now, new);
    }

    /// A peer asks for file locks there. (That does not stand in its register any more.)
    fn take_up_files(&mut self, now: Duration) {
        let asked = self.files.server.unready().into_iter();
        let groups = asked.map(|ino| self.group_of(LockName::FileLocks(ino)));
        let new: BTreeSet<_> = groups.filter(|ag| self.master.token(*ag).is_none()).collect();
        self.take_up(now, new);
    }

    fn take_up(&mut self, now: Duration, groups: BTreeSet<AgNo>) {
        for ag in groups {
            let owner = self.membership.as_ref().map(|m| m.owner_of(ag));
            match owner {
                Some((Owner::Master(slot), token)) if slot == self.me => self.open(now, ag, token),
                Some((Owner::Adopter(slot), _)) if slot == self.me => self.adopt(ag),
                _ => {}
            }
        }
    }

    fn step_master(&mut self, now: Duration, event: MasterEvent) {
        let table = self.table.clone();
        for action in self.master.step(event, &|lock| table.mode(lock)) {
            match action {
                MasterAction::Grant { lock, mode } => self.arrive(now, lock, mode),
                MasterAction::Cap { lock, cap } => self.set_cap(lock, cap),
                MasterAction::Publish { to } => _ = self.dirty.insert(to),
                MasterAction::Opened { ag } => {
                    tracing::debug!(%ag, "group opened");
                    self.files_opened(ag);
                }
            }
        }
        self.files_parties();
    }

    /// True if a peer was found to be the master of a group.
    fn step_holder(&mut self, now: Duration, event: HolderEvent) -> bool {
        let mut learned = false;
        for action in self.holder.step(event) {
            match action {
                HolderAction::Granted { lock, mode } => self.arrive(now, lock, mode),
                HolderAction::Cap { lock, cap } => self.set_cap(lock, cap),
                HolderAction::Publish { to } => _ = self.dirty.insert(to),
                HolderAction::Learned { ag, from, token } => {
                    let known = self.membership.as_ref().map_or(Token(0), |m| m.owner_of(ag).1);
                    let before = self.learned.get(&ag).map_or(known, |(_, token)| *token);
                    if token > before && self.master.token(ag).is_none() {
                        self.learned.insert(ag, (from, token));
                        self.route(now, ag, self.wants(ag));
                        learned = true;
                    } else if !self.routed.contains_key(&ag) {
                        self.route(now, ag, self.wants(ag));
                        learned = true;
                    }
                }
            }
        }
        learned
    }
}

/// All other hosts that may hold locks: the members, and the dead that are not recovered yet.
fn holders(membership: &Membership) -> BTreeMap<SlotId, Incarnation> {
    let slots = (0u16..).map(SlotId).zip(&membership.view.slots);
    slots
        .filter(|(slot, _)| *slot != membership.me)
        .filter(|(_, s)| matches!(s.state, SlotState::Live { .. } | SlotState::Dead { .. }))
        .map(|(slot, s)| (slot, s.incarnation))
        .collect()
}

/// Those of them that are excluded.
fn dead(membership: &Membership) -> impl Iterator<Item = SlotId> + '_ {
    let slots = (0u16..).map(SlotId).zip(&membership.view.slots);
    slots.filter(|(_, s)| matches!(s.state, SlotState::Dead { .. })).map(|(slot, _)| slot)
}

impl Desk {
    /// Do others wait for this host to come down?
    pub fn is_capped(&self, name: LockName) -> bool {
        self.cases.get(&name).is_some_and(|case| !self.table.mode(name).is_within(case.cap))
    }

    /// Does this host decide `name`?
    pub fn masters(&self, name: LockName) -> bool {
        self.master.token(self.group_of(name)).is_some()
    }
}
