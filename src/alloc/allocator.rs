//! The groups this host holds, reservations in them, and their way in and out with the group locks.

use super::cell::Cell;
use super::counts::Counts;
use super::deferred::{DeferredFrees, DrainOracle, NeverDrains, SlotLock};
use super::group::{EMERGENCY_META, Group};
use super::reservation::{Part, PendingRuns, Reservation};
use super::transaction::Transaction;
use super::trim::Turns;
use crate::base::{AgNo, BlockNo, Error, InodeNo, Result};
use crate::journal::Journal;
use crate::store::Store;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What a reservation is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Data blocks.
    pub data: u64,
    /// Metadata blocks, inodes included.
    pub meta: u32,
    /// The group to prefer.
    pub near: Option<AgNo>,
}

/// May the lock of a group be given up?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoteReady {
    /// Nothing is promised in it, and nothing will be.
    Ready,
    /// So many blocks are promised, or transactions are under way. Write-back frees them; ask again.
    Busy { reserved: u64 },
}

/// How much of a wish a group must be able to give.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Whole,
    Part,
}

/// The allocator of one mount.
pub struct Allocator {
    pub(super) store: Arc<Store>,
    pub(super) journal: Arc<Journal>,
    pub(super) deferred: Arc<dyn DeferredFrees>,
    pub(super) oracle: Arc<dyn DrainOracle>,
    pub(super) slot_lock: Arc<SlotLock>,
    /// Most log blocks of one transaction.
    pub(super) handle_max: u32,
    groups: RwLock<BTreeMap<AgNo, Arc<Cell>>>,
    /// The group that served last.
    last: AtomicU32,
    /// The groups at home had nothing when somebody last looked.
    home_full: AtomicBool,
    /// Numbers of inodes that are gone while the kernel still knows them. Locked after a group.
    withheld: Mutex<BTreeSet<BlockNo>>,
    pub(super) trims: Turns,
}

impl Allocator {
    /// Holds no group yet, and keeps emptied metadata chunks (see [`Allocator::with_oracle`]).
    pub fn new(store: Arc<Store>, journal: Arc<Journal>, deferred: Arc<dyn DeferredFrees>) -> Arc<Allocator> {
        Allocator::with_oracle(store, journal, deferred, Arc::new(NeverDrains))
    }

    /// As [`Allocator::new`]; emptied metadata chunks become free when `oracle` permits.
    pub fn with_oracle(
        store: Arc<Store>,
        journal: Arc<Journal>,
        deferred: Arc<dyn DeferredFrees>,
        oracle: Arc<dyn DrainOracle>,
    ) -> Arc<Allocator> {
        Arc::new(Allocator {
            handle_max: journal.handle_max(),
            store,
            journal,
            deferred,
            oracle,
            slot_lock: Arc::default(),
            groups: RwLock::default(),
            last: AtomicU32::new(u32::MAX),
            home_full: AtomicBool::new(false),
            withheld: Mutex::default(),
            trims: Turns::default(),
        })
    }

    /// The number of an inode that is about to be freed is not to be used again until it is admitted. Only
    /// as long as its group stays here: another host knows nothing of what this one's kernel knows.
    pub fn withhold(&self, ino: InodeNo) {
        self.withheld.lock().insert(ino.block());
    }

    /// The kernel does not know the inode any more that had this number, or it was not freed after all.
    pub fn admit(&self, ino: InodeNo) {
        let block = ino.block();
        if !self.withheld.lock().contains(&block) {
            return;
        }
        let cell = self.store.geometry().ag_of(block).and_then(|ag| self.cell(ag));
        // Whoever settles the group has the cell, and whoever finds the number gone finds the block when it has it.
        let mut state = cell.as_ref().map(|cell| cell.state.lock());
        let withheld = self.withheld.lock().remove(&block);
        if let Some(group) = state.as_mut().and_then(|state| state.group.as_mut()).filter(|_| withheld) {
            group.admit(block);
        }
    }

    /// Free blocks that are kept from use because the kernel still knows their inodes.
    pub fn withheld(&self) -> BTreeSet<BlockNo> {
        self.withheld.lock().clone()
    }

    /// Freed blocks become reusable as far as they can.
    pub(super) fn settle(&self, group: &mut Group) {
        let withheld = self.withheld.lock();
        group.settle(self.journal.durable(), self.journal.checkpointed(), &|block| withheld.contains(&block));
    }

    /// This host now holds the group's lock X. Its blocks are read when they are needed.
    pub fn ag_granted(&self, ag: AgNo) {
        let cell = || Arc::new(Cell::new(ag, self.store.geometry().ag_start(ag)));
        self.groups.write().entry(ag).or_insert_with(cell).state.lock().demoting = false;
        self.home_full.store(false, Ordering::Relaxed);
    }

    /// Whether this host decides the locks of a group it holds. Where it does not, each new inode costs
    /// a word with the host that does: [`Allocator::reserve_at_home`] leaves such groups alone.
    pub fn set_abroad(&self, ag: AgNo, abroad: bool) {
        if let Some(cell) = self.cell(ag) {
            cell.abroad.store(abroad, Ordering::Relaxed);
        }
    }

    /// Whether the groups at home have nothing any more. Forgotten when one is granted; to be withdrawn
    /// now and then, for something may have been freed.
    pub fn set_home_full(&self, full: bool) {
        self.home_full.store(full, Ordering::Relaxed);
    }

    /// The lock is wanted elsewhere: promise nothing more in this group. Once `Ready`, release the
    /// group's blocks through the journal, then call [`Allocator::ag_released`]; otherwise ask again
    /// after write-back, or call [`Allocator::ag_keep`].
    pub fn ag_demote(&self, ag: AgNo) -> DemoteReady {
        let Some(cell) = self.cell(ag) else { return DemoteReady::Ready };
        let mut state = cell.state.lock();
        state.demoting = true;
        let reserved = state.group.as_ref().map_or(0, Group::outstanding);
        if reserved == 0 && state.pins == 0 { DemoteReady::Ready } else { DemoteReady::Busy { reserved } }
    }

    /// The group is kept after all.
    pub fn ag_keep(&self, ag: AgNo) {
        if let Some(cell) = self.cell(ag) {
            cell.state.lock().demoting = false;
        }
    }

    /// The lock is gone. Freed blocks that waited for a commit or checkpoint need not: the release
    /// brought everything in place.
    pub fn ag_released(&self, ag: AgNo) {
        let Some(cell) = self.groups.write().remove(&ag) else { return };
        self.withheld.lock().retain(|block| self.store.geometry().ag_of(*block) != Some(ag));
        if let Some(promised) = cell.close() {
            // A transaction that finishes now would write under another host's lock.
            let what = format!("group {ag} was given up with {promised} blocks promised in it");
            self.store.halt().trip(what);
        }
    }

    /// The groups held, those that are being given up included.
    pub fn held(&self) -> Vec<AgNo> {
        self.groups.read().keys().copied().collect()
    }

    pub(super) fn cell(&self, ag: AgNo) -> Option<Arc<Cell>> {
        self.groups.read().get(&ag).cloned()
    }

    pub(super) fn cells(&self) -> Vec<Arc<Cell>> {
        self.groups.read().values().cloned().collect()
    }

    /// Free space of a group; `None` if it is not held or cannot be read.
    pub fn counts(&self, ag: AgNo) -> Option<Counts> {
        let cell = self.cell(ag)?;
        let mut state = cell.open(&self.store).ok()?;
        let g = state.group();
        Some(Counts {
            chunks: g.chunks().into(),
            free_chunks: g.truth.free_chunks,
            free_data: g.truth.free_data,
            free_meta: g.truth.free_meta,
            promised: g.outstanding(),
        })
    }

    /// Free blocks of a group, promised ones deducted; `None` if it is not held or cannot be read.
    pub fn free_blocks(&self, ag: AgNo) -> Option<u64> {
        self.counts(ag).map(|c| c.free_blocks().saturating_sub(c.promised))
    }

    /// Free space of all groups held.
    pub fn totals(&self) -> Counts {
        let mut sum = Counts::default();
        self.held().into_iter().filter_map(|ag| self.counts(ag)).for_each(|c| sum.add(&c));
        sum
    }

    /// The held group with the most free blocks: where a new directory goes.
    pub fn roomiest(&self) -> Option<AgNo> {
        let counted = self.held().into_iter().filter_map(|ag| Some((self.counts(ag)?.free_blocks(), ag)));
        counted.max_by_key(|(free, ag)| (*free, std::cmp::Reverse(*ag))).map(|(_, ag)| ag)
    }

    /// Promise blocks, in one group if one has them, else in several. Call it holding no handle: it
    /// may write and wait for log space (a chunk gets a type).
    ///
    /// # Errors
    /// `NeedSpace` if the groups held cannot give it; `Io`, `Halted`.
    pub fn reserve(&self, want: Want) -> Result<Reservation> {
        match self.reserve_near(want, false)? {
            Some(got) => Ok(got),
            None => self.reserve_in(&self.candidates(want.near), want),
        }
    }

    /// As [`Allocator::reserve`] from groups that this host decides the locks of, or from all if those
    /// are known to be full.
    ///
    /// # Errors
    /// Those of `reserve`.
    pub fn reserve_at_home(&self, want: Want) -> Result<Reservation> {
        let at_home = !self.home_full.load(Ordering::Relaxed);
        if let Some(got) = self.reserve_near(want, at_home)? {
            return Ok(got);
        }
        let mut cells = self.candidates(want.near);
        if at_home {
            cells.retain(|cell| !cell.is_abroad());
        }
        self.reserve_in(&cells, want)
    }

    /// All of it in the group that was asked for: mostly that one is held and has it, and there may be
    /// thousands of others.
    fn reserve_near(&self, want: Want, at_home: bool) -> Result<Option<Reservation>> {
        let Some(cell) = want.near.and_then(|ag| self.cell(ag)) else { return Ok(None) };
        if at_home && cell.is_abroad() {
            return Ok(None);
        }
        let mut got = Reservation::empty();
        let whole = self.gather(&cell, want, Fit::Whole, &mut got)?;
        if whole {
            self.last.store(cell.ag.0, Ordering::Relaxed);
        }
        Ok(whole.then_some(got))
    }

    fn reserve_in(&self, cells: &[Arc<Cell>], want: Want) -> Result<Reservation> {
        let mut got = Reservation::empty();
        for cell in cells {
            if self.gather(cell, want, Fit::Whole, &mut got)? {
                self.last.store(cell.ag.0, Ordering::Relaxed);
                return Ok(got);
            }
        }
        for cell in cells {
            if self.gather(cell, want, Fit::Part, &mut got)? {
                return Ok(got);
            }
        }
        Err(Error::NeedSpace)
    }

    /// As [`Allocator::reserve`] when no other group can help: waits until freed blocks have become
    /// reusable.
    ///
    /// # Errors
    /// `NoSpace` if even then the groups held cannot give it, `Corrupt` if one of them is damaged;
    /// `Io`, `Halted`.
    pub fn reserve_last(&self, want: Want) -> Result<Reservation> {
        let _all_there = self.trims.all_there();
        if self.has_waiting() {
            match self.reserve(want) {
                Err(Error::NeedSpace) => self.force_freed()?,
                other => return other,
            }
        }
        self.reserve(want).map_err(|e| if e == Error::NeedSpace { self.no_space() } else { e })
    }

    /// Full; or not known to be, where a group could not be asked.
    fn no_space(&self) -> Error {
        let damaged = self.cells().iter().find_map(|cell| cell.state.lock().damaged.clone());
        damaged.unwrap_or(Error::NoSpace)
    }

    /// Are freed blocks waiting to become reusable?
    pub fn has_waiting(&self) -> bool {
        self.cells().iter().any(|cell| cell.state.lock().group.as_ref().is_some_and(Group::has_waiting))
    }

    /// The groups in the order to ask them: those at home first.
    pub(super) fn candidates(&self, near: Option<AgNo>) -> Vec<Arc<Cell>> {
        let groups = self.groups.read();
        let last = AgNo(self.last.load(Ordering::Relaxed));
        let first = near.and_then(|ag| groups.get(&ag));
        let second = groups.get(&last).filter(|_| near != Some(last));
        let rest = groups.iter().filter(|(ag, _)| Some(**ag) != near && **ag != last).map(|(_, c)| c);
        let mut cells: Vec<_> = first.into_iter().chain(second).chain(rest).cloned().collect();
        // Which are abroad may change meanwhile, and a sort that notices ends the host.
        cells.sort_by_cached_key(|cell| cell.is_abroad());
        cells
    }

    /// Promise in one group what is missing in `got`; true if nothing is missing any more.
    fn gather(&self, cell: &Arc<Cell>, want: Want, fit: Fit, got: &mut Reservation) -> Result<bool> {
        let (mut data, mut meta) = (want.data - got.data(), u64::from(want.meta) - got.meta());
        // Others may take what a new chunk brought: try a few times, then it is their turn.
        for attempt in 0..3 {
            let mut state = match cell.open(&self.store) {
                Ok(state) => state,
                Err(Error::Corrupt { .. } | Error::NeedSpace) => return Ok(false),
                Err(e) => return Err(e),
            };
            if state.demoting {
                return Ok(false);
            }
            let g = state.group();
            if g.has_waiting() {
                self.settle(g);
            }
            let (lack_data, lack_meta) = g.lacking(data, meta);
            let whole = lack_data == 0 && (lack_meta == 0 || meta == 0);
            if !whole && attempt < 2 {
                drop(state);
                match self.make_room(cell, data, meta, fit) {
                    Ok(true) => continue,
                    Err(Error::NeedSpace) => return Ok(false),
                    Ok(false) | Err(Error::Corrupt { .. }) if fit == Fit::Whole => return Ok(false),
                    Ok(false) | Err(Error::Corrupt { .. }) => {}
                    Err(e) => return Err(e),
                }
                state = cell.state.lock();
                if state.demoting || state.damaged.is_some() {
                    return Ok(false);
                }
            }
            let g = state.group();
            if fit == Fit::Part {
                data = data.min(g.data.unreserved());
                meta = meta.min(g.meta.unreserved().saturating_sub(EMERGENCY_META));
            } else if !whole {
                return Ok(false);
            }
            g.data.reserved += data;
            g.meta.reserved += meta;
            drop(state);
            if data + meta > 0 {
                got.add(Part { cell: cell.clone(), data, meta });
            }
            break;
        }
        Ok(got.data() == want.data && got.meta() == u64::from(want.meta))
    }

    /// Make freed blocks reusable: commit and, for metadata, checkpoint.
    fn force_freed(&self) -> Result<()> {
        let mut metadata = false;
        let mut newest = None;
        let cells = self.cells();
        for cell in &cells {
            if let Some(g) = &cell.state.lock().group {
                metadata |= g.meta.newest_waiting().is_some();
                newest = newest.max(g.data.newest_waiting());
            }
        }
        if metadata {
            self.journal.checkpoint_all()?;
        } else if let Some(txn) = newest {
            self.journal.commit(txn)?;
        }
        for cell in &cells {
            if let Some(g) = &mut cell.state.lock().group {
                self.settle(g);
            }
        }
        Ok(())
    }

    /// Begin a transaction that may allocate what `res` holds; what it does not use is given back
    /// when it ends. `log_blocks`: metadata blocks that the caller itself will change, create or
    /// free, at most; the group blocks are added to it.
    ///
    /// # Errors
    /// `ChangeTooLarge`, `Halted`.
    pub fn begin(self: &Arc<Self>, res: Reservation, log_blocks: u32) -> Result<Transaction> {
        Transaction::begin(self, res, log_blocks, false)
    }

    /// As [`Allocator::begin`], and use the data blocks of `pending` in it.
    ///
    /// # Errors
    /// `ChangeTooLarge`, `Halted`.
    pub fn begin_with(
        self: &Arc<Self>,
        res: Reservation,
        log_blocks: u32,
        pending: PendingRuns,
    ) -> Result<Transaction> {
        let mut txn = Transaction::begin(self, res, log_blocks + pending.log_blocks(), false)?;
        txn.use_data_paid(pending);
        Ok(txn)
    }

    /// Begin a transaction that gives space back. It needs no reservation; the few metadata blocks it
    /// may have to allocate on the way come from the groups' emergency share.
    ///
    /// # Errors
    /// `ChangeTooLarge`, `Halted`.
    pub fn begin_for_free(self: &Arc<Self>, log_blocks: u32) -> Result<Transaction> {
        self.begin_sure(Reservation::empty(), log_blocks)
    }

    /// Begin a transaction that must not fail for want of a few metadata blocks: what `res` lacks
    /// comes from the emergency share.
    ///
    /// # Errors
    /// `ChangeTooLarge`, `Halted`.
    pub fn begin_sure(self: &Arc<Self>, res: Reservation, log_blocks: u32) -> Result<Transaction> {
        Transaction::begin(self, res, log_blocks, true)
    }
}
