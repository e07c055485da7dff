//! Allocation: groups, chunks, choice of place, reservations, deferred frees. Level 6.
//!
//! The way of a change: [`Allocator::reserve`] (holding nothing) -> take the cluster locks ->
//! [`Allocator::begin`] -> change blocks through the [`Transaction`] -> [`Transaction::finish`].
//! File data: [`Allocator::take_data`] -> write the data -> [`Allocator::begin_with`] -> extents ->
//! finish.
//!
//! Promises:
//! 1. A block is used once: what is promised, chosen, used or freed too recently is never handed out.
//! 2. A transaction that is dropped leaves no trace, in memory or on disk.
//! 3. Versions of a block number only grow: the group's clock passes every version of a block that
//!    is freed, and gives every new block a higher one.
//! 4. A freed data block is reused when the free is durable, a freed metadata block when its
//!    tombstone is in place; a chunk becomes a metadata chunk only when it has been zeroed and
//!    flushed, and leaves that state only when no journal knows an image of it.
//! 5. While something is promised in a group, [`Allocator::ag_demote`] says `Busy`.
//! 6. The counts in the group headers are exact with every transaction.
//!
//! 7. Blocks that are discarded are ready ones, as those that file data is written to.
//!
//! Local locks: `trims` < a group's `typing` < any journal wait < the slot inode's < a group's state (ascending
//! by group) < the journal's and the cache's own. The holder of a journal handle takes only those
//! from the slot inode's on.

mod allocator;
mod apply;
mod cell;
mod claim;
mod counts;
mod deferred;
mod group;
mod keep;
mod page;
mod reservation;
mod take;
mod transaction;
mod trim;
mod typing;

#[cfg(test)]
mod tests;

pub use allocator::{Allocator, DemoteReady, Want};
pub use counts::Counts;
pub use deferred::{DEFERRED_PER_ITEM, DeferredFree, DeferredFrees, DrainOracle, NeverDrains, TicketState};
pub use reservation::{PendingRuns, PickedInode, Reservation};
pub use take::RUNS_MAX;
pub use transaction::Transaction;
pub use trim::{Sweep, TrimWish, Unused};
