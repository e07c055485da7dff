//! Group ownership as this mount keeps it: [`Ownership`] with its reads and writes, and the snapshot
//! that others see.
//!
//! One mutex covers all of it and is held over the I/O of an adoption. A new view is installed under
//! the same mutex, so a view is acknowledged only when no ledger write under an older one is in
//! flight: that is what a joiner waits for before it trusts the ledgers.

use crate::base::{AgNo, Clock, Error, Incarnation, Result, SlotId, Token};
use crate::cluster::disk::{Disk, write_both};
use crate::cluster::membership::Membership;
use crate::cluster::ownership::{Ownership, Refused};
use crate::format::cluster::{LedgerPage, View};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Shared between the protocol thread and everybody who asks for owners.
pub struct Groups {
    disk: Disk,
    clock: Arc<dyn Clock>,
    me: SlotId,
    state: Mutex<State>,
    snapshot: Mutex<Arc<Membership>>,
    /// Boot-time nanoseconds until which shared and ledger writes may be submitted.
    write_until: AtomicU64,
    /// Own ledger writes of this life, as the heartbeat publishes it.
    sequence: AtomicU64,
}

struct State {
    silent: u64,
    ownership: Ownership,
    /// Sequence numbers of the own pages.
    sequences: Vec<u64>,
    /// This mount is leaving.
    closed: bool,
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
        let ownership = Ownership::new(me, incarnation, disk.geometry.ag_count, view);
        let snapshot = Mutex::new(Arc::new(ownership.membership(0)));
        Groups {
            disk,
            clock,
            me,
            state: Mutex::new(State { silent: 0, ownership, sequences: vec![], closed: false }),
            snapshot,
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
        self.is_permitted_at(self.clock.now())
    }

    /// `now` has just been looked at.
    pub fn is_permitted_at(&self, now: Duration) -> bool {
        now.as_nanos() as u64 <= self.write_until.load(Ordering::Acquire)
    }

    /// Asked before each single write of a ledger: what was read, and what was decided by it, may be old.
    fn ask(&self, until: Duration) -> Result<()> {
        match self.is_permitted() || self.clock.now() <= until {
            true => Ok(()),
            false => Err(Error::TimedOut("the lease ran out before the ledger was written".into())),
        }
    }

    fn publish(&self, state: &State) {
        *self.snapshot.lock() = Arc::new(state.ownership.membership(state.silent));
    }

    fn read(&self, slot: SlotId) -> Result<(Vec<LedgerPage>, Vec<u64>)> {
        Ok(self.disk.read_ledger(slot)?.into_iter().unzip())
    }

    /// Read every ledger. Done once, after the barrier of the view that let us in.
    pub fn load(&self) -> Result<()> {
        let mut state = self.state.lock();
        for slot in (0..self.disk.geometry.max_slots).map(SlotId) {
            let (pages, sequences) = self.read(slot)?;
            state.ownership.set(slot, pages);
            if slot == self.me {
                state.sequences = sequences;
            }
        }
        self.publish(&state);
        Ok(())
    }

    /// Another slot's ledger was written.
    pub fn reload(&self, slot: SlotId) -> Result<()> {
        let (pages, _) = self.read(slot)?;
        let mut state = self.state.lock();
        if state.ownership.set(slot, pages) {
            self.publish(&state);
        }
        Ok(())
    }

    /// Install a decided view. When this returns, every own ledger write under an older view is
    /// complete and stands on disk as written, so the view may be acknowledged. What must be written
    /// again for that may be submitted until `until` (boot time).
    ///
    /// # Errors
    /// The device's; `TimedOut` after `until`: the pages may be those of the slot's next mount.
    pub fn set_view(&self, view: Arc<View>, until: Duration) -> Result<()> {
        let mut state = self.state.lock();
        // Once we are out, the ledger is our heirs'.
        if state.ownership.is_in(&view) {
            self.scrub(&mut state, &|| self.ask(until))?;
        }
        for slot in state.ownership.departed(&view) {
            let (pages, _) = self.read(slot)?;
            state.ownership.set(slot, pages);
        }
        state.ownership.set_view(view);
        self.publish(&state);
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

    /// No more adoptions, for this mount leaves; none is under way when this returns, and the own pages
    /// stand on disk as we think they do: what is written later, some heirs may have read before.
    ///
    /// # Errors
    /// The device's; then it is not closed.
    pub fn close(&self) -> Result<()> {
        let mut state = self.state.lock();
        self.scrub(&mut state, &|| self.ask(Duration::ZERO))?;
        state.closed = true;
        Ok(())
    }

    /// It does not leave after all.
    pub fn reopen(&self) {
        self.state.lock().closed = false;
    }

    /// A late duplicate of an older write may have reverted a page, a failed write may have been done
    /// all the same: write it again, if `ask` says so. By the time of the answer to a read that hung others may
    /// have excluded us, and the page may be that of the slot's next mount.
    fn scrub(&self, state: &mut State, ask: &dyn Fn() -> Result<()>) -> Result<()> {
        if !state.ownership.has_written() {
            return Ok(());
        }
        let (on_disk, _) = self.read(self.me)?;
        for page in state.ownership.reverted(&on_disk) {
            tracing::warn!(page, "an own ledger page is not as we wrote it; writing it again");
            let (ownership, sequences) = (&state.ownership, &mut state.sequences);
            self.write(page, &mut sequences[page as usize], ownership.page(page), ask)?;
            // Somebody who passed us over while we were silent may have read what stood there.
            self.sequence.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    fn write(
        &self,
        page: u32,
        sequence: &mut u64,
        ledger: &LedgerPage,
        ask: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        write_both(sequence, |n| {
            ask()?;
            self.disk.write_ledger(self.me, page, n, ledger)
        })
    }

    /// See [`crate::cluster::Cluster::adopt`].
    pub fn adopt(&self, ag: AgNo) -> Result<Token> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Busy("this mount is leaving".into()));
        }
        let taking = match state.ownership.take(ag) {
            Ok(_) if !self.is_permitted() => {
                return Err(Error::Busy("the lease has run out; renewing".into()));
            }
            Ok(taking) => taking,
            Err(Refused::Ours(token)) => return Ok(token),
            Err(Refused::NotOurs) => return Err(Error::Busy(format!("group {ag} is not ours to take"))),
            Err(Refused::NoMember) => return Err(Error::Halted("no member any more".into())),
        };
        let sequence = &mut state.sequences[taking.page as usize];
        self.write(taking.page, sequence, &taking.ledger, &|| self.ask(Duration::ZERO))?;
        state.ownership.taken(taking);
        self.sequence.fetch_add(1, Ordering::AcqRel);
        self.publish(&state);
        Ok(state.ownership.owner_of(ag).1)
    }
}
