//! Who owns which group as one mount knows it, and what the mount may write into its own ledger.
//! Pure; [`crate::cluster::groups`] does the reading and writing.
//!
//! Rules, by the names the tests use:
//! - T2 A mount takes a group under a token above all it knows, if the view makes it the adopter.
//! - T3 It counts as taken when the page is written; until then no view is installed.
//! - T4 Before a view is installed, our pages stand on the disk as we think they do, and the
//!   ledgers of all mounts that are no members in it any more were read again: their last words
//!   decide which tokens are used up, and no heartbeat announces them.
//! - T5 A joiner reads the ledgers when everybody has acknowledged the view that let it in.
//! - T6 A mount that leaves takes nothing more before it proposes to leave, and its pages stand as
//!   under T4 by then: nobody reads them before and after they were put right.

use crate::base::{AgNo, Epoch, Incarnation, SlotId, Token};
use crate::cluster::ledger::Ledgers;
use crate::cluster::membership::{Membership, Owner};
use crate::cluster::view::{bit, dead, is_member, live, slots};
use crate::format::cluster::{Heartbeat, LedgerEntry, LedgerPage, SlotState, View};
use crate::format::layout::LEDGER_ENTRIES_PER_PAGE;
use std::collections::BTreeSet;
use std::sync::Arc;

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ownership {
    me: SlotId,
    incarnation: Incarnation,
    view: Arc<View>,
    ledgers: Ledgers,
    /// Own pages as they should stand on the disk.
    own: Vec<LedgerPage>,
    /// Own pages whose writing was begun in this life.
    written: BTreeSet<u32>,
    /// Groups whose current entry we wrote in this life.
    taken: BTreeSet<AgNo>,
    owners: Arc<Vec<(Owner, Token)>>,
}

/// What [`Ownership::take`] wants written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taking {
    pub page: u32,
    pub ledger: LedgerPage,
    /// What is ours once that is written.
    pub groups: Vec<(AgNo, Token)>,
}

/// Why a group is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    NoMember,
    /// It is ours already, under this token.
    Ours(Token),
    NotOurs,
}

impl Ownership {
    /// Nothing read yet; `view` contains us.
    pub fn new(me: SlotId, incarnation: Incarnation, groups: u32, view: Arc<View>) -> Ownership {
        Ownership {
            me,
            incarnation,
            ledgers: Ledgers::new(view.slots.len() as u16),
            own: vec![],
            written: BTreeSet::new(),
            taken: BTreeSet::new(),
            owners: Arc::new(vec![(Owner::Nobody, Token(0)); groups as usize]),
            view,
        }
    }

    /// The snapshot for others.
    pub fn membership(&self, silent: u64) -> Membership {
        Membership {
            me: self.me,
            incarnation: self.incarnation,
            view: self.view.clone(),
            silent,
            owners: self.owners.clone(),
        }
    }

    /// The newest view installed.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Does `view` contain us?
    pub fn is_in(&self, view: &View) -> bool {
        is_member(view, self.me, self.incarnation)
    }

    /// Who masters `ag`, under which token.
    pub fn owner_of(&self, ag: AgNo) -> (Owner, Token) {
        self.owners.get(ag.0 as usize).copied().unwrap_or((Owner::Nobody, Token(0)))
    }

    /// A page of our own, as it should stand.
    pub fn page(&self, page: u32) -> &LedgerPage {
        &self.own[page as usize]
    }

    fn recompute(&mut self) {
        let groups = 0..self.owners.len() as u32;
        let owner = |ag| self.ledgers.owner(ag, &self.view, self.me, self.taken.contains(&ag));
        self.owners = Arc::new(groups.map(AgNo).map(owner).collect());
    }

    /// The ledger of `slot` was read. Our own is taken up once, from the mount before us. Returns
    /// whether anything changed.
    pub fn set(&mut self, slot: SlotId, pages: Vec<LedgerPage>) -> bool {
        if slot == self.me && !self.own.is_empty() {
            return false;
        }
        let groups = self.owners.len();
        let entries = pages.iter().flat_map(|page| page.entries.iter().copied()).take(groups).collect();
        if slot == self.me {
            self.own = pages;
        }
        let differs = self.ledgers.set(slot, entries);
        if differs {
            self.recompute();
        }
        differs
    }

    /// T4: our pages that do not stand on the disk as they should; they must be written again before
    /// the next view is installed.
    pub fn reverted(&self, on_disk: &[LedgerPage]) -> Vec<u32> {
        let differs = |page: &u32| on_disk[*page as usize] != self.own[*page as usize];
        self.written.iter().copied().filter(differs).collect()
    }

    /// Was anything of our own ledger written in this life?
    pub fn has_written(&self) -> bool {
        !self.written.is_empty()
    }

    /// T4: the slots whose ledgers must be read before `view` is installed. A mount may have come and
    /// gone in views that we never saw; the slot still bears its incarnation. Of one that was excluded the
    /// last word is known only when it is recovered: until it was fenced it may have written on.
    pub fn departed(&self, view: &View) -> Vec<SlotId> {
        let left = |slot: SlotId| {
            let (old, new) = (self.view.slots[usize::from(slot.0)], view.slots[usize::from(slot.0)]);
            let was_there = is_member(&self.view, slot, old.incarnation);
            let is_dead = |s: SlotState| matches!(s, SlotState::Dead { .. });
            old.incarnation != new.incarnation
                || was_there && !is_member(view, slot, old.incarnation)
                || is_dead(old.state) && !is_dead(new.state)
        };
        slots(view).map(|(slot, _)| slot).filter(|slot| *slot != self.me && left(*slot)).collect()
    }

    /// Install a decided view; what it needs has been read and written.
    pub fn set_view(&mut self, view: Arc<View>) {
        self.view = view;
        self.recompute();
    }

    /// T2: what must be written so that `ag` is ours.
    ///
    /// # Errors
    /// [`Refused`], which may mean that there is nothing to do.
    pub fn take(&mut self, ag: AgNo) -> Result<Taking, Refused> {
        if !self.is_in(&self.view) {
            return Err(Refused::NoMember);
        }
        match self.owner_of(ag) {
            (Owner::Master(slot), token) if slot == self.me => return Err(Refused::Ours(token)),
            (Owner::Adopter(slot), _) if slot == self.me => {}
            _ => return Err(Refused::NotOurs),
        }
        let (page, _) = LedgerPage::place(ag);
        let mut ledger = self.own[page as usize].clone();
        let groups = self.to_take(ag, page);
        for (ag, token) in &groups {
            ledger.entries[LedgerPage::place(*ag).1] = LedgerEntry::Own(*token);
        }
        // Even if the write fails: it may have been done all the same.
        self.written.insert(page);
        Ok(Taking { page, ledger, groups })
    }

    /// T3: the page is written.
    pub fn taken(&mut self, taking: Taking) {
        self.own[taking.page as usize] = taking.ledger;
        let owners = Arc::make_mut(&mut self.owners);
        for (ag, token) in taking.groups {
            self.ledgers.set_one(self.me, ag, LedgerEntry::Own(token));
            self.taken.insert(ag);
            owners[ag.0 as usize] = (Owner::Master(self.me), token);
        }
    }

    /// What one page write takes: `ag`, and with it all groups of our own slot on the same page that
    /// an earlier mount left: they cost nothing more. Clean slots' groups are taken one by one, so
    /// that a later joiner finds its slot's groups still there.
    fn to_take(&self, ag: AgNo, page: u32) -> Vec<(AgNo, Token)> {
        let first = page * LEDGER_ENTRIES_PER_PAGE as u32;
        let last = (first + LEDGER_ENTRIES_PER_PAGE as u32).min(self.owners.len() as u32);
        let ours =
            |g: &AgNo| *g == ag || self.owner_of(*g).0 == Owner::Adopter(self.me) && self.left_by_us(*g);
        let next = |g: AgNo| (g, Token(self.owner_of(g).1.0 + 1));
        (first..last).map(AgNo).filter(ours).map(next).collect()
    }

    fn left_by_us(&self, ag: AgNo) -> bool {
        matches!(self.ledgers.current(ag), Some((slot, LedgerEntry::Own(_))) if slot == self.me)
    }
}

/// T5: has every member of `view` acknowledged the view that let `me` in, so that no ledger write
/// under an older one is in flight? Silent members are passed over, but the one that looked after
/// our slot only when nothing it wrote can land any more, also if it was excluded meanwhile: until then an
/// adoption of its may.
pub fn is_barrier_passed(
    view: &View,
    me: SlotId,
    joined: Epoch,
    row: &[Option<Heartbeat>],
    is_silent: impl Fn(SlotId) -> bool,
    is_past_wait: impl Fn(SlotId) -> bool,
) -> bool {
    let former = match view.slots[usize::from(me.0)].state {
        SlotState::Live { former } => former,
        _ => None,
    };
    let former_dead = former.filter(|s| dead(view) & bit(*s) != 0);
    let members = live(view) & !bit(me);
    former_dead.is_none_or(&is_past_wait)
        && slots(view).filter(|(s, _)| members & bit(*s) != 0).all(|(s, member)| {
            let cell = row[usize::from(s.0)].as_ref();
            let acked = cell.is_some_and(|h| h.incarnation == member.incarnation && h.ack >= joined);
            acked || if former == Some(s) { is_past_wait(s) } else { is_silent(s) }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::view::{admit, exclude, first, leave, recovered};

    fn page(own: &[Option<u64>]) -> Vec<LedgerPage> {
        let mut page = LedgerPage::empty();
        for (entry, token) in page.entries.iter_mut().zip(own) {
            *entry = token.map_or(LedgerEntry::None, |t| LedgerEntry::Own(Token(t)));
        }
        vec![page]
    }

    /// Slot 0 with slots 1 and 2 to look after, each with the group of its number.
    fn alone() -> (Ownership, View) {
        let view = first(&View::initial(3, 3), SlotId(0), Incarnation(1));
        let mut o = Ownership::new(SlotId(0), Incarnation(1), 3, Arc::new(view.clone()));
        o.set(SlotId(0), page(&[Some(1)]));
        o.set(SlotId(1), page(&[None, Some(1)]));
        o.set(SlotId(2), page(&[None, None, Some(1)]));
        (o, view)
    }

    #[test]
    fn a_group_is_ours_once_it_is_written() {
        let (mut o, _) = alone();
        let taking = o.take(AgNo(1)).unwrap();
        assert_eq!(taking.groups, [(AgNo(0), Token(2)), (AgNo(1), Token(2))], "our slot's comes along");
        assert_eq!(o.owner_of(AgNo(1)), (Owner::Adopter(SlotId(0)), Token(1)));
        // Its write may have failed and been done all the same: that must not stay.
        assert_eq!(o.reverted(std::slice::from_ref(&taking.ledger)), [0]);
        o.taken(taking.clone());
        assert_eq!(o.owner_of(AgNo(1)), (Owner::Master(SlotId(0)), Token(2)));
        assert_eq!(o.take(AgNo(1)), Err(Refused::Ours(Token(2))));
        assert!(o.reverted(&[taking.ledger]).is_empty());
    }

    #[test]
    fn the_last_words_of_mounts_that_left_are_read_even_if_they_were_never_seen() {
        let (mut o, view) = alone();
        let joined = admit(&view, &[Incarnation(7)], !0, 0).unwrap();
        assert_eq!(o.departed(&joined), [SlotId(1)], "a new mount of the slot");
        // It took its group and left before we looked.
        let gone = leave(&joined, SlotId(1), Incarnation(7), 0).unwrap();
        assert_eq!(o.departed(&gone), [SlotId(1)]);
        o.set(SlotId(1), page(&[None, Some(2)]));
        o.set_view(Arc::new(gone.clone()));
        assert!(o.take(AgNo(1)).unwrap().groups.contains(&(AgNo(1), Token(3))));
        assert!(o.departed(&View { epoch: Epoch(9), ..gone }).is_empty());
    }

    #[test]
    fn the_last_words_of_the_dead_are_read_when_they_are_recovered() {
        let (mut o, view) = alone();
        let joined = admit(&view, &[Incarnation(7)], !0, 0).unwrap();
        o.set_view(Arc::new(joined.clone()));
        let dead = exclude(&joined, SlotId(0), &[(SlotId(1), Incarnation(7))]).unwrap();
        assert_eq!(o.departed(&dead), [SlotId(1)]);
        o.set_view(Arc::new(dead.clone()));
        assert_eq!(o.owner_of(AgNo(1)).0, Owner::Nobody);
        let clean = recovered(&dead, SlotId(0), !0).unwrap();
        assert_eq!(o.departed(&clean), [SlotId(1)], "it may have written until it was fenced");
        assert!(o.departed(&View { epoch: Epoch(9), ..dead }).is_empty());
    }

    #[test]
    fn a_dead_mount_that_looked_after_our_slot_is_waited_for() {
        let (_, view) = alone();
        let joined = admit(&view, &[Incarnation(7)], !0, 0).unwrap();
        let joined = admit(&joined, &[Incarnation(8)], !0, 0).unwrap();
        let row = [
            None,
            None,
            Some(Heartbeat { incarnation: Incarnation(8), ack: Epoch(99), ..Heartbeat::default() }),
        ];
        let passed = |view: &View, over: bool| {
            is_barrier_passed(view, SlotId(1), joined.epoch, &row, |_| false, |_| over)
        };
        assert!(!passed(&joined, false));
        let dead = exclude(&joined, SlotId(2), &[(SlotId(0), Incarnation(1))]).unwrap();
        assert!(!passed(&dead, false) && passed(&dead, true));
        assert!(passed(&recovered(&dead, SlotId(2), !0).unwrap(), false));
    }
}
