//! What the allocator asks of the rooms above: a place for frees that cannot be done now, and word
//! when no journal holds an old image any more.

use crate::base::{BlockNo, Error, InodeNo, Result, Version};
use crate::format::group::DeferredFreeRecord;
use crate::txn::BlockTxn;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// Blocks that are free but whose group was not held when they became so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredFree {
    pub start: BlockNo,
    pub blocks: u64,
    /// For one metadata block: its last version, which its tombstone must exceed.
    pub version: Option<Version>,
}

/// Most frees that one item of the slot inode holds.
pub const DEFERRED_PER_ITEM: usize = 40;

impl DeferredFree {
    /// The item value for at most [`DEFERRED_PER_ITEM`] frees.
    pub fn encode(frees: &[DeferredFree]) -> Vec<u8> {
        assert!(frees.len() <= DEFERRED_PER_ITEM);
        let record = |f: &DeferredFree| DeferredFreeRecord {
            start: U64::new(f.start.0),
            blocks: U64::new(f.blocks),
            version: U64::new(f.version.map_or(0, |v| v.0)),
        };
        frees.iter().flat_map(|f| record(f).as_bytes().to_vec()).collect()
    }

    /// The frees in the item value of `slot_inode`.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn decode(slot_inode: InodeNo, value: &[u8]) -> Result<Vec<DeferredFree>> {
        let damaged = || Error::Damaged { inode: slot_inode, what: "a deferred free of no length".into() };
        let records = <[DeferredFreeRecord]>::ref_from_bytes(value).map_err(|_| damaged())?;
        let free = |r: &DeferredFreeRecord| {
            let version = Some(Version(r.version.get())).filter(|v| v.0 != 0);
            let free = DeferredFree { start: BlockNo(r.start.get()), blocks: r.blocks.get(), version };
            (free.blocks > 0 && (version.is_none() || free.blocks == 1)).then_some(free)
        };
        records.iter().map(free).collect::<Option<_>>().ok_or_else(damaged)
    }
}

/// Keeps deferred frees in the own slot inode. Implemented above the item tree.
pub trait DeferredFrees: Send + Sync {
    /// Insert `frees`, at most [`DEFERRED_PER_ITEM`] and all of one group, into the slot inode's tree
    /// as part of `txn`. No block is in two of them, over all calls. The allocator holds the slot
    /// inode's mutex ([`super::Transaction::lock_slot_inode`]). Must not begin a transaction.
    ///
    /// # Errors
    /// What the tree answers; the transaction is undone then.
    fn add(&self, txn: &mut dyn BlockTxn, frees: &[DeferredFree]) -> Result<()>;

    /// Blocks that `add` may change at most, new ones included.
    fn log_blocks(&self) -> u32;
}

/// Says when all images of a chunk's old metadata have left all journals (an emptied metadata chunk
/// may hold data only then: an old image replayed later would overwrite it).
///
/// After `ask`, every slot that is neither EMPTY nor CLEAN, dead ones and the own included, must
/// show a heartbeat *started* after it (two counter steps); its journal head of then is noted; the
/// ticket has passed once every tail has reached that head.
pub trait DrainOracle: Send + Sync {
    /// Start watching. `None`: not possible now, ask again later.
    fn ask(&self) -> Option<u64>;
    /// Has it passed? A ticket that is not known (any more) has not.
    fn passed(&self, ticket: u64) -> bool;
}

/// Never lets an emptied chunk go; for mounts without a view of the other journals.
#[derive(Clone, Copy, Debug, Default)]
pub struct NeverDrains;

impl DrainOracle for NeverDrains {
    fn ask(&self) -> Option<u64> {
        None
    }
    fn passed(&self, _ticket: u64) -> bool {
        false
    }
}

/// Local exclusion on the own slot inode (orphans, deferred frees), which many operations change. A
/// guard may cross threads with its transaction.
#[derive(Default)]
pub(super) struct SlotLock {
    held: Mutex<bool>,
    free: Condvar,
}

pub(super) struct SlotGuard(Arc<SlotLock>);

impl SlotLock {
    pub fn lock(self: &Arc<Self>) -> SlotGuard {
        let mut held = self.held.lock();
        while *held {
            self.free.wait(&mut held);
        }
        *held = true;
        SlotGuard(self.clone())
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        *self.0.held.lock() = false;
        self.0.free.notify_one();
    }
}
