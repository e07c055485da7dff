//! The transaction that all changes of metadata go through: a journal handle, and the allocations
//! and frees that become true with it.

use super::allocator::Allocator;
use super::apply::{self, Change};
use super::cell::{Cell, CellState};
use super::deferred::{DEFERRED_PER_ITEM, DeferredFree, SlotGuard};
use super::group::Piece;
use super::page::{Class, PAGE_CHUNKS};
use super::reservation::{Part, PendingRuns, PickedInode, Reservation};
use crate::base::{AgNo, BlockNo, Error, Generation, InodeNo, LockName, Result, TxnId, Version};
use crate::format::{Block, BlockKind};
use crate::journal::Handle;
use crate::txn::{BlockRun, BlockSource, BlockTxn};
use parking_lot::MutexGuard;
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// Group blocks that frees of one transaction may touch; what lies further apart is deferred. Data blocks
/// to be used come out of the same.
pub(super) const FREE_TOUCH: u32 = 12;
/// Group blocks for an inode number picked before the transaction began.
const PICKED_TOUCH: u32 = 2;
/// Frees that free tree pages that are deferred again: more rounds than this are a bug.
const DEFER_ROUNDS_MAX: u32 = 8;

/// What changes in each group, by its place in `pinned`. Most transactions change little, and of one group.
type Work = SmallVec<[(usize, SmallVec<[Change; 2]>); 1]>;

/// One atomic change. Allocated blocks are busy in memory at once and become used on disk when it is
/// finished; dropped unfinished, everything is as before.
///
/// Whoever holds one must not reserve, nor begin another: both may wait for it to end.
pub struct Transaction {
    pub(super) alloc: Arc<Allocator>,
    pub(super) handle: Option<Handle>,
    pub(super) res: Reservation,
    /// Groups that are not given up before this ends.
    pub(super) pinned: SmallVec<[Arc<Cell>; 2]>,
    pub(super) metas: SmallVec<[(usize, BlockNo); 2]>,
    pub(super) pending: Vec<PendingRuns>,
    frees: SmallVec<[(usize, Class, Piece); 2]>,
    deferred: Vec<DeferredFree>,
    /// Group blocks that frees will touch: pages, and `u32::MAX` for the header.
    touched: SmallVec<[(usize, u32); 4]>,
    free_budget: u32,
    /// May take metadata blocks from the emergency share.
    emergency: bool,
    slot: Option<SlotGuard>,
}

impl Transaction {
    pub(super) fn begin(
        alloc: &Arc<Allocator>,
        res: Reservation,
        log_blocks: u32,
        emergency: bool,
    ) -> Result<Transaction> {
        let geometry = alloc.store.geometry();
        let per_part = |p: &Part| {
            let pages = geometry.chunk_pages(p.cell.ag).min(p.meta) as u32;
            if p.meta > 0 { 1 + pages } else { 0 }
        };
        let needed = log_blocks + PICKED_TOUCH + res.parts.iter().map(per_part).sum::<u32>();
        let deferral = alloc.deferred.log_blocks();
        // A small journal gives less room to frees: more of them are deferred.
        let room = alloc.handle_max.saturating_sub(needed + deferral);
        let free_budget = FREE_TOUCH.min(room);
        let total = (needed + deferral + free_budget).min(alloc.handle_max.max(needed));
        let handle = alloc.journal.begin(total)?;
        let mut txn = Transaction {
            alloc: alloc.clone(),
            handle: Some(handle),
            res: Reservation::empty(),
            pinned: SmallVec::new(),
            metas: SmallVec::new(),
            pending: Vec::new(),
            frees: SmallVec::new(),
            deferred: Vec::new(),
            touched: SmallVec::new(),
            free_budget,
            emergency,
            slot: None,
        };
        // A group that nothing is promised in any more may be on its way out.
        for part in res.parts.iter().filter(|p| p.data + p.meta > 0) {
            txn.pin(&part.cell);
        }
        txn.res = res;
        Ok(txn)
    }

    /// Keep a group from being given up; it must not be on its way out unless something in it is
    /// promised to this transaction.
    pub(super) fn pin(&mut self, cell: &Arc<Cell>) -> usize {
        if let Some(at) = self.pinned.iter().position(|c| Arc::ptr_eq(c, cell)) {
            return at;
        }
        cell.state.lock().pins += 1;
        self.pinned.push(cell.clone());
        self.pinned.len() - 1
    }

    fn handle(&mut self) -> &mut Handle {
        self.handle.as_mut().expect("a transaction has a handle until it ends")
    }

    fn reader(&self) -> &Handle {
        self.handle.as_ref().expect("a transaction has a handle until it ends")
    }

    /// The journal transaction it will be part of.
    pub fn txn_id(&self) -> TxnId {
        self.reader().txn()
    }

    /// What may still be allocated.
    pub fn reservation(&self) -> &Reservation {
        &self.res
    }

    /// Exclude other transactions of this host from the own slot's inode until this one ends. To be
    /// called before the first look at its tree that leads to a change, after all other local locks
    /// have been taken. May be called again.
    pub fn lock_slot_inode(&mut self) {
        if self.slot.is_none() {
            self.slot = Some(self.alloc.slot_lock.lock());
        }
    }

    /// The data blocks chosen before are used from now on. Their group blocks come out of what is
    /// set aside for frees; [`Allocator::begin_with`] has room for scattered ones.
    pub fn use_data(&mut self, pending: PendingRuns) {
        self.free_budget = self.free_budget.saturating_sub(pending.log_blocks());
        self.use_data_paid(pending);
    }

    pub(super) fn use_data_paid(&mut self, pending: PendingRuns) {
        for (cell, _) in &pending.taken {
            self.pin(cell);
        }
        self.pending.push(pending);
    }

    /// The block of a new inode, header and zeroed body. Its lock is held X by now, from before the number
    /// was sure: what is cached under a lock that is being given up must not change.
    ///
    /// # Errors
    /// `Corrupt`, `Halted`, `ChangeTooLarge`.
    pub fn use_inode(&mut self, mut picked: PickedInode) -> Result<Generation> {
        let at = self.pin(&picked.cell);
        let block = picked.block.take().expect("a pick is used once");
        let ino = picked.ino();
        let version = self.create(at, block, BlockKind::Inode, ino, LockName::Inode(ino))?;
        Ok(Generation(version.0))
    }

    /// A reserved metadata block becomes busy; the group's place in `pinned`.
    pub(super) fn take_meta(&mut self, near: BlockNo) -> Result<(usize, BlockNo)> {
        if self.emergency && self.res.meta() == 0 && !self.draw_emergency() {
            // Other groups may have some.
            return Err(Error::NeedSpace);
        }
        let (cell, block) = self.alloc.take_meta(&mut self.res, near)?;
        Ok((self.pin(&cell), block))
    }

    /// Promise a block that is kept for freeing transactions, also in a group on its way out that waits
    /// for this very transaction.
    fn draw_emergency(&mut self) -> bool {
        let mut cells = self.pinned.clone();
        cells.extend(self.alloc.cells());
        for cell in cells {
            let Ok(mut state) = cell.open(&self.alloc.store) else { continue };
            let mine = self.pinned.iter().any(|c| Arc::ptr_eq(c, &cell));
            if (state.demoting && !mine) || state.group().meta.unreserved() == 0 {
                continue;
            }
            state.group().meta.reserved += 1;
            drop(state);
            self.res.add(Part { cell, data: 0, meta: 1 });
            return true;
        }
        false
    }

    /// Write the header of a block that has just become busy.
    pub(super) fn create(
        &mut self,
        at: usize,
        block: BlockNo,
        kind: BlockKind,
        owner: InodeNo,
        cover: LockName,
    ) -> Result<Version> {
        // From here on the transaction's end decides: given back, or used.
        self.metas.push((at, block));
        let version = self.pinned[at].with(|g| {
            g.truth.vclock += 1;
            Version(g.truth.vclock)
        });
        let created = self.handle().create(block, kind, owner.0, cover, version);
        if created.is_err() {
            // Nothing stands in it: a caller that goes on must not make it used.
            self.metas.pop();
            let run = BlockRun { start: block, blocks: 1 };
            self.pinned[at].with(|g| g.give_back(Class::Meta, run));
        }
        created.map(|()| version)
    }

    /// The place in `pinned` of the group of `block`, if it is held and stays.
    fn pin_for_free(&mut self, block: BlockNo) -> Result<Option<usize>> {
        let ag = self.alloc.store.geometry().ag_of(block);
        let ag = ag.ok_or_else(|| Error::corrupt(block, "freed block", "a block of a group", "none"))?;
        if let Some(at) = self.pinned.iter().position(|c| c.ag == ag) {
            return Ok(Some(at));
        }
        let Some(cell) = self.alloc.cell(ag) else { return Ok(None) };
        let mut state = match cell.open(&self.alloc.store) {
            Err(Error::NeedSpace) => return Ok(None),
            other => other?,
        };
        if state.demoting {
            return Ok(None);
        }
        state.pins += 1;
        drop(state);
        self.pinned.push(cell);
        Ok(Some(self.pinned.len() - 1))
    }

    /// Is there log space for another free in this chunk? Then it is set aside.
    fn afford(&mut self, at: usize, chunk: u32) -> bool {
        let wanted = [(at, u32::MAX), (at, chunk / PAGE_CHUNKS as u32)];
        let new: SmallVec<[_; 2]> = wanted.into_iter().filter(|t| !self.touched.contains(t)).collect();
        if new.len() as u32 > self.free_budget {
            return false;
        }
        self.free_budget -= new.len() as u32;
        self.touched.extend(new);
        true
    }

    fn defer(&mut self, start: BlockNo, blocks: u64, version: Option<Version>) {
        if let Some(last) = self.deferred.last_mut()
            && version.is_none()
            && last.version.is_none()
            && last.start.plus(last.blocks) == start
        {
            last.blocks += blocks;
            return;
        }
        self.deferred.push(DeferredFree { start, blocks, version });
    }

    /// Free a metadata block whose last version is `last`, and the lock that covered it until now, where that
    /// is known.
    fn free_meta(&mut self, block: BlockNo, last: Version, former: Option<LockName>) -> Result<()> {
        if !self.free_meta_now(block, last, former)? {
            self.defer(block, 1, Some(last));
        }
        Ok(())
    }

    /// As [`BlockTxn::free_block`], but only if that need not be deferred. Answers whether it is freed.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Halted`.
    pub fn free_block_now(&mut self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<bool> {
        let image = self.reader().read(block, kind, cover)?;
        self.free_meta_now(block, image.version(), Some(cover))
    }

    fn free_meta_now(&mut self, block: BlockNo, last: Version, former: Option<LockName>) -> Result<bool> {
        let Some(at) = self.pin_for_free(block)? else { return Ok(false) };
        let cell = self.pinned[at].clone();
        let run = BlockRun { start: block, blocks: 1 };
        let piece = cell.with(|g| g.pieces_in_use(&self.alloc.store, Class::Meta, run))?[0];
        if !self.afford(at, piece.chunk) {
            return Ok(false);
        }
        let version = cell.with(|g| {
            g.truth.vclock = g.truth.vclock.max(last.0) + 1;
            Version(g.truth.vclock)
        });
        self.handle().tombstone(block, cell.ag, former, version)?;
        self.frees.push((at, Class::Meta, piece));
        Ok(true)
    }

    /// Do a free that was deferred; the caller removes its item in this transaction.
    ///
    /// # Errors
    /// `NeedSpace` if the group is not held now; `Corrupt`, `Io`, `Halted`.
    pub fn free_deferred(&mut self, free: &DeferredFree) -> Result<()> {
        if self.pin_for_free(free.start)?.is_none() {
            return Err(Error::NeedSpace);
        }
        match free.version {
            // That lock was held when the free was deferred, and may be anywhere by now.
            Some(version) => self.free_meta(free.start, version, None),
            None => self.free_data(BlockRun { start: free.start, blocks: free.blocks }),
        }
    }

    /// Put the frees that cannot be done now into the slot inode.
    fn store_deferred(&mut self) -> Result<()> {
        for _ in 0..DEFER_ROUNDS_MAX {
            if self.deferred.is_empty() {
                return Ok(());
            }
            self.lock_slot_inode();
            self.emergency = true;
            let keeper = self.alloc.deferred.clone();
            let frees = std::mem::take(&mut self.deferred);
            let geometry = self.alloc.store.geometry();
            for group in frees.chunk_by(|a, b| geometry.ag_of(a.start) == geometry.ag_of(b.start)) {
                group.chunks(DEFERRED_PER_ITEM).try_for_each(|part| keeper.add(self, part))?;
            }
        }
        Err(Error::Invalid("deferring frees frees blocks that must be deferred without end"))
    }

    /// All of it becomes part of the running journal transaction; durable when that is.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Halted`, `ChangeTooLarge`, `NeedSpace`, `NoSpace`; everything has been undone then.
    pub fn finish(mut self) -> Result<TxnId> {
        self.complete()
    }

    pub(super) fn complete(&mut self) -> Result<TxnId> {
        self.store_deferred()?;
        let mut work = self.changes();
        // Groups are locked in ascending order.
        work.sort_by_key(|(at, _)| self.pinned[*at].ag);
        let mut handle = self.handle.take().expect("finished once");
        let mut states: SmallVec<[_; 2]> = work.iter().map(|(at, _)| self.pinned[*at].state.lock()).collect();
        let mut applied = SmallVec::<[_; 2]>::new();
        for ((_, changes), state) in work.iter_mut().zip(&mut states) {
            match apply::write(&mut handle, state.group(), changes) {
                Ok(a) => applied.push(a),
                Err(e) => {
                    // Undone before anybody else can look at the group blocks.
                    drop(handle);
                    state.note(&e);
                    return Err(e);
                }
            }
        }
        let txn = handle.finish();
        for (((_, changes), state), applied) in work.iter().zip(&mut states).zip(applied) {
            adopt(state, changes, applied, txn);
        }
        drop(states);
        self.metas.clear();
        self.pending.iter_mut().for_each(|p| p.taken.clear());
        Ok(txn)
    }

    /// What changes in each group, by its place in `pinned`.
    fn changes(&self) -> Work {
        let mut work = Work::new();
        let mut add = |at: usize, change: Change| match work.iter_mut().find(|(a, _)| *a == at) {
            Some((_, changes)) => changes.push(change),
            None => work.push((at, smallvec![change])),
        };
        let geometry = self.alloc.store.geometry();
        let piece = |ag: AgNo, start: BlockNo, len: u64| {
            let from = start.0 - geometry.ag_start(ag).0;
            let per = crate::format::layout::CHUNK_BLOCKS;
            Piece { chunk: (from / per) as u32, bit: (from % per) as u16, len: len as u16 }
        };
        for &(at, block) in &self.metas {
            let piece = piece(self.pinned[at].ag, block, 1);
            add(at, Change { class: Class::Meta, piece, free: false });
        }
        for (cell, run) in self.pending.iter().flat_map(|p| &p.taken) {
            let at = self.pinned.iter().position(|c| Arc::ptr_eq(c, cell)).expect("pinned when used");
            let piece = piece(cell.ag, run.start, run.blocks);
            add(at, Change { class: Class::Data, piece, free: false });
        }
        for &(at, class, piece) in &self.frees {
            add(at, Change { class, piece, free: true });
        }
        work
    }
}

/// The handle is finished: what it did to one group's blocks is the truth now.
fn adopt(state: &mut MutexGuard<'_, CellState>, changes: &[Change], applied: apply::Applied, txn: TxnId) {
    let g = state.group();
    g.truth = applied.truth;
    for c in changes {
        if c.free {
            g.free_later(c.class, txn, c.piece);
        } else {
            g.taken -= u64::from(c.piece.len);
        }
    }
    for (chunk, kind) in applied.kinds {
        let (map, c) = g.loaded(chunk);
        map.set_kind(c, kind);
        if kind == crate::format::group::ChunkKind::Draining {
            Allocator::note_drain(g, chunk, txn);
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // Images first: a block must not be handed out while its old image is still to be put back.
        drop(self.handle.take());
        for &(at, start) in &self.metas {
            self.pinned[at].with(|g| g.give_back(Class::Meta, BlockRun { start, blocks: 1 }));
        }
        // Promises before pins: a group without either may be given up at once.
        self.pending.clear();
        drop(std::mem::take(&mut self.res));
        self.pinned.iter().for_each(|c| c.unpin());
    }
}

impl BlockSource for Transaction {
    fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        self.reader().read(block, kind, cover)
    }
}

impl BlockTxn for Transaction {
    fn modify(
        &mut self,
        block: BlockNo,
        kind: BlockKind,
        cover: LockName,
        change: &mut dyn FnMut(&mut Block),
    ) -> Result<()> {
        self.handle().modify(block, kind, cover, change)
    }

    fn alloc_block(
        &mut self,
        kind: BlockKind,
        owner: InodeNo,
        cover: LockName,
        near: BlockNo,
    ) -> Result<BlockNo> {
        let (at, block) = self.take_meta(near)?;
        self.create(at, block, kind, owner, cover)?;
        Ok(block)
    }

    fn free_block(&mut self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<()> {
        let image = self.reader().read(block, kind, cover)?;
        self.free_meta(block, image.version(), Some(cover))
    }

    fn free_data(&mut self, run: BlockRun) -> Result<()> {
        let Some(at) = self.pin_for_free(run.start)? else {
            self.defer(run.start, run.blocks, None);
            return Ok(());
        };
        let cell = self.pinned[at].clone();
        let pieces = cell.with(|g| g.pieces_in_use(&self.alloc.store, Class::Data, run))?;
        let mut start = run.start;
        for piece in pieces {
            if self.afford(at, piece.chunk) {
                self.frees.push((at, Class::Data, piece));
            } else {
                self.defer(start, piece.len.into(), None);
            }
            start = start.plus(piece.len.into());
        }
        Ok(())
    }
}
