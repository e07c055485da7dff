//! Which slot owns which group: the highest token over all ledgers counts. Pure.

use crate::base::{AgNo, SlotId, Token};
use crate::cluster::membership::Owner;
use crate::cluster::view::{is_member, slots};
use crate::format::cluster::{Adopter, LedgerEntry, SlotState, View};

/// All ledgers as last read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledgers {
    /// By slot, then group; a ledger without entries is empty.
    slots: Vec<Vec<LedgerEntry>>,
}

impl Ledgers {
    /// No entries for `slots` slots.
    pub fn new(slots: u16) -> Ledgers {
        Ledgers { slots: vec![Vec::new(); usize::from(slots)] }
    }

    /// The ledger of `slot` was read (all groups, in order). Returns whether it differs.
    pub fn set(&mut self, slot: SlotId, mut entries: Vec<LedgerEntry>) -> bool {
        let used = entries.iter().rposition(|e| *e != LedgerEntry::None).map_or(0, |last| last + 1);
        entries.truncate(used);
        let known = &mut self.slots[usize::from(slot.0)];
        let differs = *known != entries;
        *known = entries;
        differs
    }

    /// One entry of our own ledger was written.
    pub fn set_one(&mut self, slot: SlotId, ag: AgNo, entry: LedgerEntry) {
        let ledger = &mut self.slots[usize::from(slot.0)];
        let at = ag.0 as usize;
        if ledger.len() <= at {
            ledger.resize(at + 1, LedgerEntry::None);
        }
        ledger[at] = entry;
    }

    /// T1: the entry with the highest token, and whose ledger has it.
    pub fn current(&self, ag: AgNo) -> Option<(SlotId, LedgerEntry)> {
        let entry = |ledger: &Vec<LedgerEntry>| ledger.get(ag.0 as usize).copied().unwrap_or_default();
        let all = self.slots.iter().enumerate().map(|(slot, ledger)| (SlotId(slot as u16), entry(ledger)));
        all.filter(|(_, e)| *e != LedgerEntry::None).max_by_key(|(_, e)| e.token())
    }

    /// Who masters `ag` in `view`, seen from `me`; `taken` tells whether we wrote its current entry in
    /// this life.
    pub fn owner(&self, ag: AgNo, view: &View, me: SlotId, taken: bool) -> (Owner, Token) {
        let Some((ledger, entry)) = self.current(ag) else { return (Owner::Nobody, Token(0)) };
        let (slot, passed) = match entry {
            LedgerEntry::Pass { to, .. } => (to, true),
            _ => (ledger, false),
        };
        let state = view.slots.get(usize::from(slot.0)).map(|s| s.state);
        let owner = match state {
            Some(SlotState::Live { .. }) if passed || (slot == me && !taken) => Owner::Adopter(slot),
            Some(SlotState::Live { .. }) => Owner::Master(slot),
            Some(SlotState::Clean { adopter: Adopter::Slot(a) }) if lives(view, a) => Owner::Adopter(a),
            _ => Owner::Nobody,
        };
        (owner, entry.token())
    }
}

fn lives(view: &View, slot: SlotId) -> bool {
    slots(view).any(|(s, v)| s == slot && is_member(view, s, v.incarnation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Incarnation;
    use crate::cluster::view;

    #[test]
    fn the_highest_token_counts_and_the_view_tells_who_acts() {
        let own = |n| LedgerEntry::Own(Token(n));
        let none = LedgerEntry::None;
        let mut l = Ledgers::new(4);
        assert!(l.set(SlotId(0), vec![own(1), none, none, own(1), none]));
        assert!(!l.set(SlotId(0), vec![own(1), none, none, own(1)]), "trailing emptiness is no change");
        l.set(SlotId(1), vec![own(3), own(1)]);
        l.set(SlotId(2), vec![none, none, own(1)]);
        let pass = LedgerEntry::Pass { token: Token(2), to: SlotId(1), incarnation_low: 0 };
        l.set_one(SlotId(2), AgNo(3), pass);
        assert_eq!(l.current(AgNo(0)), Some((SlotId(1), own(3))));
        assert_eq!(l.current(AgNo(9)), None);

        let v = View::initial(4, 4);
        assert_eq!(l.owner(AgNo(0), &v, SlotId(0), false), (Owner::Nobody, Token(3)));
        let v = view::first(&v, SlotId(0), Incarnation(1));
        assert_eq!(l.owner(AgNo(1), &v, SlotId(0), false).0, Owner::Adopter(SlotId(0)), "clean, ours");
        let v = view::admit(&v, &[Incarnation(2)], !0, 0).unwrap();
        let owner = |ag, me, taken| l.owner(AgNo(ag), &v, SlotId(me), taken).0;
        assert_eq!(owner(0, 0, false), Owner::Master(SlotId(1)));
        assert_eq!(owner(0, 1, false), Owner::Adopter(SlotId(1)), "ours of an earlier life");
        assert_eq!(owner(0, 1, true), Owner::Master(SlotId(1)));
        assert_eq!(owner(2, 1, false), Owner::Adopter(SlotId(0)));
        assert_eq!(owner(3, 0, false), Owner::Adopter(SlotId(1)), "passed, not taken yet");
        assert_eq!(owner(4, 0, false), Owner::Nobody);
    }
}
