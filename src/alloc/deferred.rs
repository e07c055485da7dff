//! What the allocator asks of the rooms above: a place for frees that cannot be done now, and word
//! when no journal holds an old image any more.

pub use crate::format::value::{DEFERRED_PER_ITEM, DeferredFree};

use crate::base::Result;
use crate::txn::BlockTxn;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

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
    /// Start watching. `None`: not possible now, ask again later. Questions that cannot have different
    /// answers may be given one ticket.
    fn ask(&self) -> Option<u64>;
    /// How a ticket stands; may be asked again after any answer.
    fn look(&self, ticket: u64) -> TicketState;
}

/// How a ticket of a [`DrainOracle`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketState {
    /// No journal has anything of the time before the question.
    Passed,
    /// Some journal may have.
    Waits,
    /// It has been forgotten, and must be asked for anew.
    Unknown,
}

/// Never lets an emptied chunk go; for mounts without a view of the other journals.
#[derive(Clone, Copy, Debug, Default)]
pub struct NeverDrains;

impl DrainOracle for NeverDrains {
    fn ask(&self) -> Option<u64> {
        None
    }
    fn look(&self, _ticket: u64) -> TicketState {
        TicketState::Waits
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
