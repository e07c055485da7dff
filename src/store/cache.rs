//! The buffer cache: the newest image of metadata blocks, found by block number.
//!
//! A buffer is *pinned* once per reason for which its image must not be forgotten: it belongs to the
//! running transaction, to one whose log is being written, or it is in the log but not yet in place.
//! The journal keeps the older images it still needs itself (they are shared, copied on change).
//! Unpinned buffers are packed where that saves much (`image`), and forgotten by the CLOCK rule when
//! they take more than their share.
//!
//! Cached images of changed blocks do not have a valid crc: it is set in the copy that is written.

use crate::base::{BLOCK_SIZE, BlockNo, Error, LockName, Result, TxnId, Version};
use crate::format::{Block, BlockKind};
use crate::store::image::Image;
use crate::store::index::{BlockHash, CoverIndex};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const SHARDS: usize = 64;
/// What one cached block takes beside its image: reference counts, entry, index.
const BYTES_BESIDE: usize = 384;
/// A shard holds at least so many clean whole buffers, whatever the limit.
const SHARD_BUFFERS_MIN: usize = 16;

pub(crate) struct Buffer {
    newest: Image,
    cover: LockName,
    /// The running transaction that `newest` belongs to; 0 if it has not been changed in it.
    running: TxnId,
    pins: u32,
    /// Read since the clock hand last passed.
    used: bool,
    /// In the clock queue.
    queued: bool,
}

impl Buffer {
    /// Bytes that count against the limit: pinned ones do not.
    fn cost(&self) -> usize {
        if self.pins > 0 { 0 } else { BYTES_BESIDE + self.newest.bytes() }
    }

    /// As a rule.
    fn is_mostly_zeros(&self) -> bool {
        matches!(self.newest.kind(), Some(BlockKind::Inode | BlockKind::Free))
    }

    fn pack(&mut self) {
        if self.is_mostly_zeros() {
            self.newest.pack();
        }
    }
}

enum Entry {
    /// Somebody is reading it from the device; `doomed` if the image must not be kept.
    Loading {
        cover: LockName,
        doomed: bool,
    },
    Ready(Buffer),
}

#[derive(Default)]
struct ShardState {
    map: HashMap<BlockNo, Entry, BlockHash>,
    clock: VecDeque<BlockNo>,
    /// What the unpinned buffers cost.
    bytes: usize,
}

impl ShardState {
    /// Take a buffer out.
    fn remove(&mut self, block: BlockNo) {
        if let Some(Entry::Ready(b)) = self.map.remove(&block) {
            self.bytes -= b.cost();
        }
    }
}

#[derive(Default)]
struct Shard {
    state: Mutex<ShardState>,
    loaded: Condvar,
}

/// How to put a block back as it was before a handle first changed it.
pub(crate) struct Undo {
    pub block: BlockNo,
    /// Covers the block now.
    pub cover: LockName,
    /// This change made the block a member of the running transaction.
    pub joined: bool,
    /// It is new, or nobody had used it for long: it will rest again when the handle is finished.
    pub rests: bool,
    before: Option<(Image, LockName, TxnId)>,
}

pub(crate) struct Cache {
    shards: Vec<Shard>,
    covers: CoverIndex,
    shard_bytes_max: usize,
}

fn is_block(image: &Image, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<()> {
    let header = image.header();
    if header.kind.get() == kind as u16 && (header.cover_class, header.cover_id.get()) == cover.to_raw() {
        return Ok(());
    }
    if image.kind() != Some(kind) {
        let found = image.kind().map_or_else(|| "unknown kind".to_string(), |k| k.to_string());
        return Err(Error::corrupt(block, kind, kind, found));
    }
    let expected = format!("covered by {cover:?}");
    Err(Error::corrupt(block, kind, expected, format_args!("covered by {:?}", image.cover())))
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            covers: CoverIndex::default(),
            shard_bytes_max: (bytes_max / SHARDS).max(SHARD_BUFFERS_MIN * (BLOCK_SIZE + BYTES_BESIDE)),
        }
    }

    #[inline]
    fn shard(&self, block: BlockNo) -> &Shard {
        &self.shards[(block.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % SHARDS]
    }

    /// The newest image; `load` reads and verifies it if it is not cached. Callers that come while
    /// it is being read wait for that one read.
    pub fn get(
        &self,
        block: BlockNo,
        kind: BlockKind,
        cover: LockName,
        load: &dyn Fn() -> Result<Arc<Block>>,
    ) -> Result<Arc<Block>> {
        let shard = self.shard(block);
        let mut guard = shard.state.lock();
        loop {
            let s = &mut *guard;
            match s.map.get_mut(&block) {
                Some(Entry::Ready(b)) => match is_block(&b.newest, block, kind, cover) {
                    Ok(()) => {
                        if let Image::Whole(image) = &b.newest {
                            b.used = true;
                            return Ok(image.clone());
                        }
                        let before = b.cost();
                        // One look is mostly the only one; what is looked at again stays whole.
                        let image = if b.used { b.newest.unpacked().clone() } else { b.newest.whole() };
                        s.bytes = s.bytes - before + b.cost();
                        b.used = true;
                        self.evict(s);
                        return Ok(image);
                    }
                    Err(e) => self.forget_other(s, block, e)?,
                },
                Some(Entry::Loading { .. }) => shard.loaded.wait(&mut guard),
                None => break,
            }
        }
        self.announce_in(&mut guard, block, cover);
        drop(guard);
        let loaded = load();
        self.loaded(block, cover, loaded.as_ref().ok().map(Image::of));
        loaded
    }

    /// Forget a clean block that has become another since, as `e` says: whoever freed it, and whoever has it now, did
    /// so under locks of their own, and the lock that covered it then need not have been asked for. The device decides.
    fn forget_other(&self, s: &mut ShardState, block: BlockNo, e: Error) -> Result<()> {
        match s.map.get(&block) {
            Some(Entry::Ready(b)) if b.pins == 0 => {
                self.covers.remove(b.cover, block);
                s.remove(block);
                trim_queue(s);
                Ok(())
            }
            _ => Err(e),
        }
    }

    /// Is the block here, or being read?
    pub fn has(&self, block: BlockNo) -> bool {
        self.shard(block).state.lock().map.contains_key(&block)
    }

    /// The caller is going to read this block: who wants it waits for [`Cache::loaded`]. False if it is
    /// here or being read already.
    pub fn announce(&self, block: BlockNo, cover: LockName) -> bool {
        let mut s = self.shard(block).state.lock();
        let missing = !s.map.contains_key(&block);
        if missing {
            self.announce_in(&mut s, block, cover);
        }
        missing
    }

    fn announce_in(&self, s: &mut ShardState, block: BlockNo, cover: LockName) {
        s.map.insert(block, Entry::Loading { cover, doomed: false });
        self.covers.insert(cover, block);
    }

    /// An announced block has been read, or could not be.
    pub fn loaded(&self, block: BlockNo, cover: LockName, image: Option<Image>) {
        let shard = self.shard(block);
        let mut s = shard.state.lock();
        let doomed = !matches!(s.map.remove(&block), Some(Entry::Loading { doomed: false, .. }));
        match image {
            Some(newest) if !doomed => {
                let buffer = Buffer { newest, cover, running: TxnId(0), pins: 0, used: false, queued: true };
                s.bytes += buffer.cost();
                s.map.insert(block, Entry::Ready(buffer));
                s.clock.push_back(block);
                self.evict(&mut s);
            }
            _ => self.covers.remove(cover, block),
        }
        shard.loaded.notify_all();
    }

    /// Change a block of transaction `txn`. `keep` says whether this handle already has an undo for
    /// it; if not one is pushed before `change` runs. `change` runs under the shard's lock and must
    /// not read other blocks.
    #[allow(clippy::too_many_arguments)]
    pub fn change(
        &self,
        block: BlockNo,
        kind: BlockKind,
        cover: LockName,
        txn: TxnId,
        undo: Option<&mut Vec<Undo>>,
        load: &dyn Fn() -> Result<Arc<Block>>,
        change: &mut dyn FnMut(&mut Block),
    ) -> Result<()> {
        let shard = self.shard(block);
        let mut guard = shard.state.lock();
        let is_it = |b: &Buffer| is_block(&b.newest, block, kind, cover).is_ok();
        while !matches!(guard.map.get(&block), Some(Entry::Ready(b)) if is_it(b)) {
            drop(guard);
            self.get(block, kind, cover, load)?;
            guard = shard.state.lock();
        }
        let s = &mut *guard;
        let Some(Entry::Ready(b)) = s.map.get_mut(&block) else {
            unreachable!("found just before under the same lock")
        };
        s.bytes -= b.cost();
        let rests = matches!(b.newest, Image::Packed(..));
        let joined = b.running != txn;
        if let Some(undo) = undo {
            // As it is: what is packed need not be copied once more to be changed.
            let before = Some((b.newest.clone(), b.cover, b.running));
            undo.push(Undo { block, cover, joined, rests, before });
        } else {
            debug_assert!(!joined, "a block that the handle changed left its transaction");
        }
        let image = Arc::make_mut(b.newest.unpacked());
        if joined {
            let version = image.version().0 + 1;
            image.header_mut().version.set(version);
            b.running = txn;
            b.pins += 1;
        }
        b.used = true;
        debug_assert!(b.pins > 0, "a member of a transaction is pinned");
        let header = *image.header();
        change(image);
        // The header is the transaction's alone: whatever the change did to it is taken back.
        *image.header_mut() = header;
        Ok(())
    }

    /// Put a whole new image in place of whatever the block was.
    pub fn install(
        &self,
        block: BlockNo,
        newest: Image,
        txn: TxnId,
        undo: Option<&mut Vec<Undo>>,
    ) -> Result<()> {
        let cover = newest.cover().expect("images are built with a lock name");
        let shard = self.shard(block);
        let mut s = shard.state.lock();
        while let Some(Entry::Loading { .. }) = s.map.get(&block) {
            shard.loaded.wait(&mut s);
        }
        let s = &mut *s;
        let Some(Entry::Ready(b)) = s.map.get_mut(&block) else {
            if let Some(undo) = undo {
                undo.push(Undo { block, cover, joined: true, rests: true, before: None });
            }
            self.covers.insert(cover, block);
            let buffer = Buffer { newest, cover, running: txn, pins: 1, used: true, queued: false };
            s.bytes += buffer.cost();
            s.map.insert(block, Entry::Ready(buffer));
            return Ok(());
        };
        if b.newest.header().version.get() >= newest.header().version.get() {
            return Err(version_falls(block, &newest, &b.newest));
        }
        s.bytes -= b.cost();
        let joined = b.running != txn;
        if b.cover != cover {
            self.covers.remove(b.cover, block);
            self.covers.insert(cover, block);
        }
        let old = std::mem::replace(&mut b.newest, newest);
        let before =
            Some((old, std::mem::replace(&mut b.cover, cover), std::mem::replace(&mut b.running, txn)));
        if let Some(undo) = undo {
            undo.push(Undo { block, cover, joined, rests: true, before });
        }
        b.pins += u32::from(joined);
        b.used = true;
        s.bytes += b.cost();
        Ok(())
    }

    /// Put a block back as it was. Undos of a handle are applied in reverse order.
    pub fn undo(&self, undo: Undo) {
        let shard = self.shard(undo.block);
        let mut s = shard.state.lock();
        let state = &mut *s;
        let Some(Entry::Ready(b)) = state.map.get_mut(&undo.block) else {
            debug_assert!(false, "a block of a running transaction left the cache");
            return;
        };
        state.bytes -= b.cost();
        b.pins -= u32::from(undo.joined);
        let now_cover = b.cover;
        // What it was before is not covered by a lock that this handle's owner holds, and may be given up by now.
        let before = undo.before.filter(|(_, cover, _)| *cover == now_cover || b.pins > 0);
        match before {
            Some((image, cover, running)) => {
                b.newest = image;
                b.cover = cover;
                b.running = running;
                state.bytes += b.cost();
                if cover != now_cover {
                    self.covers.remove(now_cover, undo.block);
                    self.covers.insert(cover, undo.block);
                }
                self.enqueue_if_clean(state, undo.block);
            }
            None => {
                debug_assert_eq!(b.pins, 0, "a block that was not cached was dirty");
                state.bytes += b.cost();
                state.remove(undo.block);
                self.covers.remove(now_cover, undo.block);
            }
        }
    }

    /// The image of a block of the sealed transaction `txn`; later changes belong to the next one.
    /// The pin stays: it is the committing transaction's now.
    pub fn seal(&self, block: BlockNo, txn: TxnId) -> Image {
        let mut s = self.shard(block).state.lock();
        match s.map.get_mut(&block) {
            Some(Entry::Ready(b)) => {
                assert_eq!(b.running, txn, "block {block} of a sealed transaction is not its member");
                b.running = TxnId(0);
                // What is changed again and again stays whole here.
                match &b.newest {
                    Image::Whole(block) if b.is_mostly_zeros() => Image::of(block),
                    newest => newest.clone(),
                }
            }
            _ => panic!("block {block} of a sealed transaction is not cached"),
        }
    }

    /// A block that has been changed will not be changed again soon.
    pub fn rest(&self, block: BlockNo) {
        if let Some(Entry::Ready(b)) = self.shard(block).state.lock().map.get_mut(&block)
            && b.pins > 0
        {
            b.pack();
        }
    }

    /// One reason less to keep the block.
    pub fn unpin(&self, block: BlockNo) {
        let s = &mut *self.shard(block).state.lock();
        if let Some(Entry::Ready(b)) = s.map.get_mut(&block) {
            b.pins -= 1;
            if b.pins == 0 {
                b.pack();
            }
            s.bytes += b.cost();
            self.enqueue_if_clean(s, block);
        }
    }

    fn enqueue_if_clean(&self, s: &mut ShardState, block: BlockNo) {
        if let Some(Entry::Ready(b)) = s.map.get_mut(&block)
            && b.pins == 0
            && !b.queued
        {
            b.queued = true;
            s.clock.push_back(block);
        }
        self.evict(s);
    }

    /// Forget clean blocks until the shard is within its limit. Pinned ones leave the queue; they
    /// come back when they are clean.
    fn evict(&self, s: &mut ShardState) {
        while s.bytes > self.shard_bytes_max {
            let Some(block) = s.clock.pop_front() else { return };
            let Some(Entry::Ready(b)) = s.map.get_mut(&block) else { continue };
            if b.pins > 0 {
                b.queued = false;
            } else if b.used {
                b.used = false;
                s.clock.push_back(block);
            } else {
                let cover = b.cover;
                s.remove(block);
                self.covers.remove(cover, block);
            }
        }
    }

    /// Forget everything under `cover`.
    ///
    /// # Errors
    /// The first block that is dirty; the others are forgotten all the same.
    pub fn drop_cover(&self, cover: LockName) -> std::result::Result<(), BlockNo> {
        let mut dirty = Ok(());
        for block in self.covers.blocks(cover) {
            if !self.forget(block, Some(cover)) {
                dirty = dirty.and(Err(block));
            }
        }
        dirty
    }

    /// Forget one block (if it is under `cover`, when given). False if it is dirty.
    pub fn forget(&self, block: BlockNo, under: Option<LockName>) -> bool {
        let mut s = self.shard(block).state.lock();
        match s.map.get_mut(&block) {
            Some(Entry::Ready(b)) if under.is_none_or(|c| c == b.cover) => {
                if b.pins > 0 {
                    return false;
                }
                let (cover, queued) = (b.cover, b.queued);
                s.remove(block);
                self.covers.remove(cover, block);
                if queued {
                    trim_queue(&mut s);
                }
            }
            Some(Entry::Loading { cover, doomed }) if under.is_none_or(|c| c == *cover) => *doomed = true,
            _ => {}
        }
        true
    }

    /// Cached blocks, pinned blocks.
    pub fn counts(&self) -> (usize, usize) {
        let mut counts = (0, 0);
        for shard in &self.shards {
            for e in shard.state.lock().map.values() {
                counts.0 += 1;
                counts.1 += usize::from(matches!(e, Entry::Ready(b) if b.pins > 0));
            }
        }
        counts
    }
}

/// Forgotten blocks stay in the queue until the hand passes; a block that is read again would stand
/// there twice. Rebuild the queue when half of it is such rests.
fn trim_queue(s: &mut ShardState) {
    if s.clock.len() > 2 * s.map.len() + SHARD_BUFFERS_MIN {
        let map = &s.map;
        let mut seen = std::collections::HashSet::with_hasher(BlockHash::default());
        s.clock.retain(|b| matches!(map.get(b), Some(Entry::Ready(x)) if x.queued) && seen.insert(*b));
    }
}

fn version_falls(block: BlockNo, image: &Image, old: &Image) -> Error {
    let version = |image: &Image| Version(image.header().version.get());
    let kind = image.kind().map_or_else(|| "block".to_string(), |k| k.to_string());
    Error::corrupt(block, kind, format_args!("a version above {}", version(old)), version(image))
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
