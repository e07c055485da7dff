//! Group ownership as this mount keeps it: the ledgers last read, the own ledger's pages, adoption,
//! and the snapshot that others see.
//!
//! One mutex covers all of it and is held over the I/O of an adoption. A new view is installed under
//! the same mutex, so a view is acknowledged only when no ledger write under an older one is in
//! flight: that is what a joiner waits for before it trusts the ledgers.

use crate::base::{AgNo, Clock, Error, Incarnation, Result, SlotId, Token};
use crate::cluster::disk::Disk;
use crate::cluster::ledger::Ledgers;
use crate::cluster::membership::{Membership, Owner};
use crate::cluster::view::is_member;
use crate::format::cluster::{LedgerEntry, LedgerPage, View};
use crate::format::layout::LEDGER_ENTRIES_PER_PAGE;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Shared between the protocol thread and everybody who asks for owners.
pub struct Groups {
    disk: Disk,
    clock: Arc<dyn Clock>,
    me: SlotId,
    incarnation: Incarnation,
    state: Mutex<State>,
    snapshot: Mutex<Arc<Membership>>,
    /// Boot-time nanoseconds until which shared and ledger writes may be submitted.
    write_until: AtomicU64,
    /// Own ledger writes of this life, as the heartbeat publishes it.
    sequence: AtomicU64,
}

struct State {
    view: Arc<View>,
    silent: u64,
    ledgers: Ledgers,
    /// Own pages as on disk, with their sequence numbers.
    own: Vec<(LedgerPage, u64)>,
    /// Own pages written in this life.
    written: BTreeSet<u32>,
    /// Groups whose current entry we wrote in this life.
    taken: BTreeSet<AgNo>,
    owners: Arc<Vec<(Owner, Token)>>,
}

impl Groups {
    /// Nothing read yet; `view` contains us.
    pub fn new(
        disk: Disk,
        clock: Arc<dyn Clock>,
        me: SlotId,
        incarnation: Incarnation,
        view: Arc<View>,
    ) -> Groups {
        let owners = Arc::new(vec![(Owner::Nobody, Token(0)); disk.geometry.ag_count as usize]);
        let state = State {
            view: view.clone(),
            silent: 0,
            ledgers: Ledgers::new(disk.geometry.max_slots),
            own: vec![],
            written: BTreeSet::new(),
            taken: BTreeSet::new(),
            owners: owners.clone(),
        };
        let snapshot = Arc::new(Membership { me, incarnation, view, silent: 0, owners });
        Groups {
            disk,
            clock,
            me,
            incarnation,
            state: Mutex::new(state),
            snapshot: Mutex::new(snapshot),
            write_until: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
        }
    }

    /// The newest snapshot.
    pub fn membership(&self) -> Arc<Membership> {
        self.snapshot.lock().clone()
    }

    /// Own ledger writes of this life.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// Ledger writes may be submitted until then (boot time).
    pub fn permit(&self, write_until: Duration) {
        self.write_until.store(write_until.as_nanos() as u64, Ordering::Release);
    }

    /// May shared places and registers be written now?
    pub fn is_permitted(&self) -> bool {
        self.clock.now().as_nanos() as u64 <= self.write_until.load(Ordering::Acquire)
    }

    fn publish(&self, state: &State) {
        *self.snapshot.lock() = Arc::new(Membership {
            me: self.me,
            incarnation: self.incarnation,
            view: state.view.clone(),
            silent: state.silent,
            owners: state.owners.clone(),
        });
    }

    fn recompute(&self, state: &mut State) {
        let taken = |ag| state.taken.contains(&ag);
        let owner = |ag| state.ledgers.owner(ag, &state.view, self.me, taken(ag));
        let owners: Vec<_> = self.disk.groups().map(owner).collect();
        state.owners = Arc::new(owners);
        self.publish(state);
    }

    /// Read every ledger. Done once, after the barrier of the view that let us in.
    pub fn load(&self) -> Result<()> {
        let mut state = self.state.lock();
        for slot in (0..self.disk.geometry.max_slots).map(SlotId) {
            let pages = self.disk.read_ledger(slot)?;
            state.ledgers.set(slot, self.disk.ledger_entries(&pages));
            if slot == self.me {
                state.own = pages;
            }
        }
        self.recompute(&mut state);
        Ok(())
    }

    /// Another slot's ledger was written.
    pub fn reload(&self, slot: SlotId) -> Result<()> {
        let entries = self.disk.ledger_entries(&self.disk.read_ledger(slot)?);
        let mut state = self.state.lock();
        if slot != self.me && state.ledgers.set(slot, entries) {
            self.recompute(&mut state);
        }
        Ok(())
    }

    /// Install a decided view. When this returns, every own ledger write under an older view is
    /// complete and stands on disk as written, so the view may be acknowledged.
    pub fn set_view(&self, view: Arc<View>) -> Result<()> {
        let mut state = self.state.lock();
        self.scrub(&mut state)?;
        state.view = view;
        self.recompute(&mut state);
        Ok(())
    }

    /// Slots whose heartbeat stands still.
    pub fn set_silent(&self, silent: u64) {
        let mut state = self.state.lock();
        if state.silent != silent {
            state.silent = silent;
            self.publish(&state);
        }
    }

    /// A late duplicate of an older write may have reverted one copy of a page: write it again.
    fn scrub(&self, state: &mut State) -> Result<()> {
        if state.written.is_empty() {
            return Ok(());
        }
        let on_disk = self.disk.read_ledger(self.me)?;
        for page in state.written.clone() {
            let (own, sequence) = &mut state.own[page as usize];
            if on_disk[page as usize].0 != *own {
                tracing::warn!(page, "an own ledger page was reverted below us; writing it again");
                *sequence += 1;
                self.disk.write_ledger(self.me, page, *sequence, own)?;
            }
        }
        Ok(())
    }

    /// See [`crate::cluster::Cluster::adopt`].
    pub fn adopt(&self, ag: AgNo) -> Result<Token> {
        let mut state = self.state.lock();
        if !is_member(&state.view, self.me, self.incarnation) {
            return Err(Error::Halted("no member any more".into()));
        }
        match state.owners.get(ag.0 as usize) {
            Some((Owner::Master(slot), token)) if *slot == self.me => return Ok(*token),
            Some((Owner::Adopter(slot), _)) if *slot == self.me => {}
            _ => return Err(Error::Busy(format!("group {ag} is not ours to take"))),
        }
        if !self.is_permitted() {
            return Err(Error::Busy("the lease has run out; renewing".into()));
        }
        let (page, _) = LedgerPage::place(ag);
        let mut ledger = state.own[page as usize].clone();
        let groups = self.to_take(&state, ag, page);
        for (ag, token) in &groups {
            ledger.0.entries[LedgerPage::place(*ag).1] = LedgerEntry::Own(*token);
        }
        ledger.1 += 1;
        self.disk.write_ledger(self.me, page, ledger.1, &ledger.0)?;
        state.own[page as usize] = ledger;
        state.written.insert(page);
        for (ag, token) in &groups {
            state.ledgers.set_one(self.me, *ag, LedgerEntry::Own(*token));
            state.taken.insert(*ag);
            Arc::make_mut(&mut state.owners)[ag.0 as usize] = (Owner::Master(self.me), *token);
        }
        self.sequence.fetch_add(1, Ordering::AcqRel);
        self.publish(&state);
        let token = state.owners[ag.0 as usize].1;
        Ok(token)
    }

    /// What one page write takes: `ag`, and with it all groups of our own slot on the same page that
    /// an earlier mount left: they cost nothing more. Clean slots' groups are taken one by one, so
    /// that a later joiner finds its slot's groups still there.
    fn to_take(&self, state: &State, ag: AgNo, page: u32) -> Vec<(AgNo, Token)> {
        let first = page * LEDGER_ENTRIES_PER_PAGE as u32;
        let last = (first + LEDGER_ENTRIES_PER_PAGE as u32).min(state.owners.len() as u32);
        let ours = |g: &AgNo| {
            let (owner, _) = state.owners[g.0 as usize];
            *g == ag || owner == Owner::Adopter(self.me) && self.left_by_us(state, *g)
        };
        let next = |g: AgNo| (g, Token(state.owners[g.0 as usize].1.0 + 1));
        (first..last).map(AgNo).filter(ours).map(next).collect()
    }

    fn left_by_us(&self, state: &State, ag: AgNo) -> bool {
        matches!(state.ledgers.current(ag), Some((slot, LedgerEntry::Own(_))) if slot == self.me)
    }
}
