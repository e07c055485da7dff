//! What the rooms above change blocks through. Level 5.
//!
//! The rooms that keep structures in blocks (item trees, directories, xattrs, files) see only these
//! traits: the real implementations are the buffer cache, and the allocator's transaction; unit
//! tests use [`memory::MemoryTxn`].

use crate::base::{BlockNo, InodeNo, LockName, Result};
use crate::format::{Block, BlockKind};
use crate::journal::Handle;
use crate::store::Store;
use std::sync::Arc;

#[cfg(test)]
pub mod memory;

/// Where verified metadata blocks come from.
pub trait BlockSource {
    /// The newest image of `block`, which must be of `kind` and is covered by `cover` (held at
    /// least S). The image is a snapshot: later changes do not show in it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Halted`.
    fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>>;
}

/// A run of data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    pub start: BlockNo,
    pub blocks: u64,
}

/// One atomic change of blocks. All of it reaches the disk or none: dropping it without finishing
/// undoes every change in memory, so `?` is safe anywhere in the middle.
///
/// The caller holds X on every lock that covers a block it changes.
pub trait BlockTxn: BlockSource {
    /// Change `block` in place. The header is kept by the transaction (version, crc); `change` sees
    /// the whole block and must leave the header alone. It may run only once per call.
    fn modify(
        &mut self,
        block: BlockNo,
        kind: BlockKind,
        cover: LockName,
        change: &mut dyn FnMut(&mut Block),
    ) -> Result<()>;

    /// A new metadata block near `near`, its body zeroed, its header filled in (owner, cover).
    ///
    /// # Errors
    /// `NoSpace` if the reservation the transaction was begun with is used up.
    fn alloc_block(
        &mut self,
        kind: BlockKind,
        owner: InodeNo,
        cover: LockName,
        near: BlockNo,
    ) -> Result<BlockNo>;

    /// Give a metadata block back. Its tombstone replaces it.
    fn free_block(&mut self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<()>;

    /// Give data blocks back; reusable once this transaction is durable.
    fn free_data(&mut self, run: BlockRun) -> Result<()>;
}

impl BlockSource for Store {
    fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        Store::read(self, block, kind, cover)
    }
}

impl BlockSource for Arc<Store> {
    fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        Store::read(self, block, kind, cover)
    }
}

impl BlockSource for Handle {
    fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        Handle::read(self, block, kind, cover)
    }
}
