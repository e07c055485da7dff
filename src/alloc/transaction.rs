//! The transaction that the rooms above work with: a journal handle plus the blocks it takes and
//! gives. Group blocks change only in [`Transaction::finish`], under the groups' mutexes.

use super::group::{Group, apply_run, split_at_chunks};
use super::{Allocator, PendingRuns, Reservation};
use crate::base::{AgNo, BlockNo, Error, Generation, InodeNo, LockName, Result, TxnId, Version};
use crate::format::group::{ChunkKind, GroupHeader};
use crate::format::layout::{CHUNK_BLOCKS, CHUNKS_PER_PAGE, Geometry};
use crate::format::{Block, BlockKind};
use crate::journal::Handle;
use crate::txn::{BlockRun, BlockSource, BlockTxn};
use parking_lot::{ArcMutexGuard, Mutex, RawMutex};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Blocks of its own that a transaction may change per group: the header and chunk pages.
const GROUP_BLOCKS: u32 = 12;

#[derive(Clone, Copy, Debug)]
enum Change {
    /// Blocks picked: used from now on.
    Take { run: BlockRun, kind: ChunkKind },
    /// A metadata block freed; its last version.
    FreeMeta { block: BlockNo, version: Version },
    FreeData { run: BlockRun },
}

/// One atomic change of blocks and of their allocation.
pub struct Transaction {
    alloc: Arc<Allocator>,
    handle: Option<Handle>,
    reservation: Reservation,
    /// May use the emergency share.
    making_room: bool,
    changes: Vec<(AgNo, Change)>,
    /// Groups that count us as a user, how often.
    users: BTreeMap<AgNo, u32>,
}

impl Transaction {
    pub(super) fn begin(
        alloc: Arc<Allocator>,
        reservation: Reservation,
        blocks: u32,
        making_room: bool,
    ) -> Result<Transaction> {
        let handle = Some(alloc.journal.begin(blocks + GROUP_BLOCKS)?);
        Ok(Transaction { alloc, handle, reservation, making_room, changes: Vec::new(), users: BTreeMap::new() })
    }

    fn handle(&mut self) -> &mut Handle {
        self.handle.as_mut().expect("present until finish or drop")
    }

    /// The journal transaction it will be part of.
    pub fn txn_id(&self) -> TxnId {
        self.handle.as_ref().expect("present until finish or drop").txn()
    }

    /// Become a user of a held group; `None` if it is not held or is being given up.
    fn enter(&mut self, ag: AgNo) -> Option<Arc<Mutex<Group>>> {
        let group = self.alloc.find(ag)?;
        if !self.users.contains_key(&ag) {
            let mut g = group.lock();
            if g.stopping && !g.is_idle() && self.reservation.meta_part() != Some(ag) {
                return None;
            }
            if g.stopping && g.is_idle() {
                return None;
            }
            g.users += 1;
            drop(g);
            self.users.insert(ag, 1);
        }
        Some(group)
    }

    /// Pick a metadata block; its version is the group's vclock.
    fn pick(&mut self, near: Option<BlockNo>) -> Result<(BlockNo, Version)> {
        let geometry = self.alloc.store.geometry();
        let (ag, promised) = match self.reservation.meta_part() {
            Some(ag) => (ag, true),
            None if self.making_room => (self.emergency_group().ok_or(Error::NoSpace)?, false),
            None => return Err(Error::NoSpace),
        };
        let group = self.enter(ag).ok_or(Error::NoSpace)?;
        let mut g = group.lock();
        self.alloc.collect(&mut g);
        let store = self.alloc.store.clone();
        let near = near.filter(|b| geometry.ag_of(*b) == Some(ag));
        let block = g.pick_meta(&geometry, near, &mut |chunk| {
            store.device().write_zeros(chunk.byte(), BlockNo(CHUNK_BLOCKS).byte())?;
            store.device().flush()
        })?;
        if promised {
            g.reserved_meta -= 1;
            self.reservation.spend_meta(ag);
        }
        let run = BlockRun { start: block, blocks: 1 };
        let version = Version(g.vclock);
        drop(g);
        self.changes.push((ag, Change::Take { run, kind: ChunkKind::Metadata }));
        Ok((block, version))
    }

    fn emergency_group(&self) -> Option<AgNo> {
        self.alloc.held().into_iter().find(|ag| {
            let Some(group) = self.alloc.find(*ag) else { return false };
            let mut g = group.lock();
            self.alloc.collect(&mut g);
            !g.stopping && g.fits(0, 1, 0)
        })
    }

    /// A new inode block near `near`: its number and generation.
    ///
    /// # Errors
    /// `NoSpace` if the reservation is used up.
    pub fn alloc_inode(&mut self, near: BlockNo) -> Result<(InodeNo, Generation)> {
        let (block, version) = self.pick(Some(near))?;
        let ino = InodeNo(block.0);
        self.handle().create(block, BlockKind::Inode, ino.0, LockName::Inode(ino), version)?;
        Ok((ino, Generation(version.0)))
    }

    /// Make picked data blocks used; their data must be on the device already.
    pub fn use_data(&mut self, pending: PendingRuns) {
        for (ag, run) in pending.into_runs() {
            *self.users.entry(ag).or_insert(0) += 1;
            self.changes.push((ag, Change::Take { run, kind: ChunkKind::Data }));
        }
    }

    /// Finish: all of it takes effect, to be committed with the running journal transaction.
    ///
    /// # Errors
    /// If a group's pages cannot be read; then nothing takes effect.
    pub fn finish(mut self) -> Result<TxnId> {
        let ags: BTreeSet<AgNo> = self.changes.iter().map(|(ag, _)| *ag).collect();
        let mut groups: BTreeMap<AgNo, ArcMutexGuard<RawMutex, Group>> = BTreeMap::new();
        for ag in ags {
            let group = self.alloc.find(ag).ok_or(Error::Busy(format!("group {ag} is gone")))?;
            groups.insert(ag, group.lock_arc());
        }
        let changes = std::mem::take(&mut self.changes);
        let mut handle = self.handle.take().expect("present until finish or drop");
        let geometry = self.alloc.store.geometry();
        for (i, (ag, change)) in changes.iter().enumerate() {
            let group = groups.get_mut(ag).expect("locked above");
            if let Err(e) = apply(&mut handle, &geometry, group, change) {
                drop((handle, i));
                drop(groups);
                self.changes = changes;
                return Err(e);
            }
        }
        let txn = handle.finish();
        for (ag, change) in &changes {
            let group = groups.get_mut(ag).expect("locked above");
            match *change {
                Change::Take { .. } => {}
                Change::FreeMeta { block, .. } => group.freed(txn, true, BlockRun { start: block, blocks: 1 }),
                Change::FreeData { run } => group.freed(txn, false, run),
            }
        }
        for (ag, n) in std::mem::take(&mut self.users) {
            match groups.get_mut(&ag) {
                Some(group) => group.users -= n,
                None => {
                    if let Some(group) = self.alloc.find(ag) {
                        group.lock().users -= n;
                    }
                }
            }
        }
        Ok(txn)
    }
}

/// Carry one change into the group's blocks.
fn apply(handle: &mut Handle, geometry: &Geometry, group: &mut Group, change: &Change) -> Result<()> {
    let ag = group.ag;
    match *change {
        Change::Take { run, kind } => set_bits(handle, geometry, group, run, true, kind),
        Change::FreeData { run } => set_bits(handle, geometry, group, run, false, ChunkKind::Data),
        Change::FreeMeta { block, version } => {
            group.vclock = group.vclock.max(version.0) + 1;
            handle.tombstone(block, ag.0.into(), LockName::Ag(ag), Version(group.vclock))?;
            set_bits(handle, geometry, group, BlockRun { start: block, blocks: 1 }, false, ChunkKind::Metadata)
        }
    }
}

fn set_bits(
    handle: &mut Handle,
    geometry: &Geometry,
    group: &Group,
    run: BlockRun,
    used: bool,
    kind: ChunkKind,
) -> Result<()> {
    let (ag, cover) = (group.ag, LockName::Ag(group.ag));
    let start = geometry.ag_start(ag);
    for part in split_at_chunks(start, run) {
        let from = part.start.0 - start.0;
        let (chunk, first) = (from / CHUNK_BLOCKS, from % CHUNK_BLOCKS);
        let page = chunk / CHUNKS_PER_PAGE;
        extend_pages(handle, geometry, ag, chunk)?;
        let mut delta = (0, 0, 0);
        handle.modify(geometry.chunk_page(ag, page), BlockKind::ChunkPage, cover, &mut |b: &mut Block| {
            delta = apply_run(b, (chunk % CHUNKS_PER_PAGE) as usize, first, part.blocks, used, kind);
        })?;
        handle.modify(geometry.ag_header(ag), BlockKind::GroupHeader, cover, &mut |b: &mut Block| {
            let h = b.body_as_mut::<GroupHeader>();
            let add = |n: u64, d: i64| n.saturating_add_signed(d);
            h.free_chunks.set(add(h.free_chunks.get(), delta.0));
            h.free_data.set(add(h.free_data.get(), delta.1));
            h.free_meta.set(add(h.free_meta.get(), delta.2));
            h.vclock.set(h.vclock.get().max(group.vclock));
        })?;
    }
    Ok(())
}

/// Make the entries up to `chunk` valid; new chunk pages are made as they are reached.
fn extend_pages(handle: &mut Handle, geometry: &Geometry, ag: AgNo, chunk: u64) -> Result<()> {
    let cover = LockName::Ag(ag);
    let header = handle.read(geometry.ag_header(ag), BlockKind::GroupHeader, cover)?;
    let init = u64::from(header.body_as::<GroupHeader>().init_chunks.get());
    if chunk < init {
        return Ok(());
    }
    for page in init.div_ceil(CHUNKS_PER_PAGE)..=chunk / CHUNKS_PER_PAGE {
        let fresh = crate::format::group::page_block(0, geometry, ag, page, Version(1));
        handle.create(geometry.chunk_page(ag, page), BlockKind::ChunkPage, ag.0.into(), cover, Version(1))?;
        handle.modify(geometry.chunk_page(ag, page), BlockKind::ChunkPage, cover, &mut |b: &mut Block| {
            b.body_mut().copy_from_slice(fresh.body());
        })?;
    }
    handle.modify(geometry.ag_header(ag), BlockKind::GroupHeader, cover, &mut |b: &mut Block| {
        b.body_as_mut::<GroupHeader>().init_chunks.set(chunk as u32 + 1);
    })
}

impl BlockSource for Transaction {
    fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        self.alloc.store.read(block, kind, cover)
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

    fn alloc_block(&mut self, kind: BlockKind, owner: InodeNo, cover: LockName, near: BlockNo) -> Result<BlockNo> {
        let (block, version) = self.pick(Some(near))?;
        self.handle().create(block, kind, owner.0, cover, version)?;
        Ok(block)
    }

    fn free_block(&mut self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<()> {
        let version = self.read(block, kind, cover)?.version();
        let ag = self.alloc.store.geometry().ag_of(block).ok_or_else(|| {
            Error::corrupt(block, kind, "a block of an allocation group", "one outside them")
        })?;
        if self.enter(ag).is_some() {
            self.changes.push((ag, Change::FreeMeta { block, version }));
            return Ok(());
        }
        let deferred = self.alloc.deferred.clone();
        deferred.defer(self, BlockRun { start: block, blocks: 1 }, true)
    }

    fn free_data(&mut self, run: BlockRun) -> Result<()> {
        let geometry = self.alloc.store.geometry();
        let outside = || Error::corrupt(run.start, "data run", "blocks of one allocation group", run.blocks);
        let ag = geometry.ag_of(run.start).ok_or_else(outside)?;
        if run.blocks == 0 || geometry.ag_of(run.start.plus(run.blocks - 1)) != Some(ag) {
            return Err(outside());
        }
        match self.enter(ag) {
            Some(group) => {
                // Two owners of one block would be found by fsck; here they must not free it twice.
                if group.lock().kind_at(run.start) != ChunkKind::Data {
                    return Err(Error::corrupt(run.start, "data run", "a data chunk", "another kind"));
                }
                self.changes.push((ag, Change::FreeData { run }));
                Ok(())
            }
            None => {
                let deferred = self.alloc.deferred.clone();
                deferred.defer(self, run, false)
            }
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // Without finish: the handle undoes the blocks, we the picks.
        drop(self.handle.take());
        for (ag, change) in std::mem::take(&mut self.changes) {
            if let (Change::Take { run, .. }, Some(group)) = (change, self.alloc.find(ag)) {
                group.lock().unpick(run);
            }
        }
        for (ag, n) in std::mem::take(&mut self.users) {
            if let Some(group) = self.alloc.find(ag) {
                group.lock().users -= n;
            }
        }
    }
}
