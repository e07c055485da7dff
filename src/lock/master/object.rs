//! One lock in which another host has an interest: who holds it, who waits. Rules: `master`.

use super::{MasterAction, Party};
use crate::base::{AgNo, LockName, Mode, SlotId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    /// `None` is this host.
    pub who: Option<SlotId>,
    pub mode: Mode,
    /// It has been put before the others.
    pub first: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub ag: AgNo,
    pub own: Mode,
    pub own_cap: Mode,
    pub parties: BTreeMap<SlotId, Party>,
    pub queue: VecDeque<Waiting>,
}

impl Object {
    pub fn new(ag: AgNo, own: Mode) -> Object {
        Object { ag, own, own_cap: Mode::X, parties: BTreeMap::new(), queue: VecDeque::new() }
    }

    /// What `who` is believed to hold.
    fn belief(&self, who: Option<SlotId>) -> Mode {
        who.map_or(self.own, |slot| self.parties.get(&slot).map_or(Mode::N, |p| p.belief))
    }

    /// Who is known to hold `belief` wants `mode` (perhaps no more than it holds), to hand something in: then
    /// `first`.
    pub fn ask(&mut self, who: Option<SlotId>, belief: Mode, mode: Mode, first: bool) {
        let place = self.queue.iter().position(|waiting| waiting.who == who);
        let ahead = place.is_some_and(|at| self.queue[at].first);
        match place {
            _ if belief.covers(mode) => self.forget(who),
            // Before anybody can look at the times, and never again before it has had DW again: nobody starves.
            _ if first && !ahead => {
                self.forget(who);
                self.queue.push_front(Waiting { who, mode, first });
            }
            Some(at) => (self.queue[at].mode, self.queue[at].first) = (mode, first),
            None => self.queue.push_back(Waiting { who, mode, first }),
        }
    }

    /// It waits no longer.
    pub fn forget(&mut self, who: Option<SlotId>) {
        self.queue.retain(|waiting| waiting.who != who);
    }

    /// Does everybody but `who` hold what goes with `mode`, and `who` no other mode than one that `mode`
    /// includes? It may act on what it was granted at any moment, so a grant never takes anything away.
    fn fits(&self, who: Option<SlotId>, mode: Mode) -> bool {
        mode.covers(self.belief(who))
            && (who.is_none() || self.own.compatible(mode))
            && self.parties.iter().all(|(slot, p)| Some(*slot) == who || p.belief.compatible(mode))
            && !(mode == Mode::DW && self.is_haunted(who))
    }

    /// Did somebody but `who` die with direct writes under way that may still land? They would undo newer ones.
    fn is_haunted(&self, who: Option<SlotId>) -> bool {
        self.ghosts().any(|ghost| Some(ghost) != who)
    }

    fn ghosts(&self) -> impl Iterator<Item = SlotId> {
        self.parties.iter().filter(|(_, p)| p.dead && p.belief == Mode::DW).map(|(slot, _)| *slot)
    }

    /// M2. The answer is who waits and is entitled to caps.
    pub fn grant(
        &mut self,
        lock: LockName,
        last_grant: &mut u64,
        changed: &mut BTreeSet<SlotId>,
        out: &mut Vec<MasterAction>,
    ) -> Vec<(Option<SlotId>, Mode)> {
        let mut blocked = Vec::new();
        let mut at = 0;
        while let Some(Waiting { who, mode, .. }) = self.queue.get(at).copied() {
            if !self.fits(who, mode) {
                blocked.push((who, mode));
                if matches!(lock, LockName::IOpen(_)) && mode == Mode::X {
                    at += 1;
                    continue;
                }
                break;
            }
            self.queue.remove(at);
            // Alone, a host serves its programs' file locks itself.
            let alone = matches!(lock, LockName::FileLocks(_)) && self.queue.is_empty();
            let mode = if alone && self.fits(who, Mode::X) { Mode::X } else { mode };
            match who {
                None => {
                    self.own = mode;
                    out.push(MasterAction::Grant { lock, mode });
                }
                Some(slot) => {
                    *last_grant += 1;
                    let party = self.parties.get_mut(&slot).expect("a waiting host has a record");
                    party.belief = mode;
                    party.last_grant = *last_grant;
                    changed.insert(slot);
                }
            }
        }
        blocked
    }

    /// M3: whoever stands in the way of a blocked want gets a cap, and who writes directly beside one that died
    /// doing so; all others lose theirs.
    pub fn set_caps(
        &mut self,
        lock: LockName,
        blocked: &[(Option<SlotId>, Mode)],
        changed: &mut BTreeSet<SlotId>,
        out: &mut Vec<MasterAction>,
    ) {
        let ghosts: Vec<_> = self.ghosts().collect();
        let cap_of = |who: Option<SlotId>, holds: Mode| {
            if holds == Mode::DW && ghosts.iter().any(|ghost| Some(*ghost) != who) {
                return Mode::N;
            }
            let in_the_way = |(by, want): &&(Option<SlotId>, Mode)| match *by == who {
                true => !want.covers(holds),
                false => !holds.compatible(*want),
            };
            let caps = blocked.iter().filter(in_the_way).map(|(_, want)| Mode::cap_beside(*want));
            caps.fold(Mode::X, |a, b| if a.covers(b) { b } else { Mode::N })
        };
        let cap = cap_of(None, self.own);
        if cap != self.own_cap {
            self.own_cap = cap;
            out.push(MasterAction::Cap { lock, cap });
        }
        for (slot, party) in &mut self.parties {
            let cap = cap_of(Some(*slot), party.belief);
            if cap != party.cap {
                party.cap = cap;
                changed.insert(*slot);
            }
        }
    }
}
