//! File data: extents, delayed allocation, write-back, holes. Level 8.
//!
//! Gives: [`FileState`], what one mount knows about one regular file's data: its size in memory and
//! on disk, its dirty pages, and the ways to read, write, flush, cut and preallocate it. It owns no
//! lock: the inode layer keeps it under the inode's mutex and its data gate.
//!
//! Promises:
//! - *The size on disk never passes the data.* A flush writes data first and raises the size, sets
//!   the extents and takes the blocks in one transaction afterwards. No data moves inside one.
//! - *Bytes beyond the size on disk are never seen.* In the last block they are whatever they were:
//!   reads zero them, and whatever raises the size writes the block with zeros there first.
//! - *A write that was accepted has its space.* [`WritePlan`] names what must be reserved before.
//! - Small files live in the inode block (`INLINE`) and cost no data block.
//!
//! A write and its flush:
//! ```text
//! under the mutex    plan = file.plan_write(..)   reserve plan.need   file.write(plan, ..)
//! under the mutex    batch = file.flush_take(..)  batch.place(blocks out of the reservation)
//! gate shared        batch.write_data(..)
//! under the mutex    file.flush_apply(&batch, txn, attr)  txn.finish()  file.flush_done(batch)
//! ```
//! Every change of the tree comes in two halves: `.._apply` changes the transaction and leaves the
//! state alone, so that an error can still undo everything; `.._done` follows the finished
//! transaction and cannot fail. Truncating, punching and preallocating want the gate alone and no
//! flush in flight (`Busy` otherwise), and go in bounded steps.

mod allocate;
mod buffer;
mod direct;
mod extents;
mod flush;
mod mark;
mod pages;
mod read;
mod seek;
mod state;
mod truncate;
mod write;

#[cfg(test)]
mod tests;

pub use allocate::AllocatePlan;
pub use buffer::DataBuf;
pub use direct::DirectWrite;
pub use extents::{Backing, Extents, Span, Stepped};
pub use flush::{FLUSH_IO_BYTES, FlushBatch, TakeLimit};
pub use mark::FlushMark;
pub use pages::{PAGE, PagePool};
pub use read::ReadPlan;
pub use state::{FileState, sectors_in_inode};
pub use write::WritePlan;

use crate::base::{BlockNo, Result};
use crate::format::layout::{CHUNK_BLOCKS, CHUNKS_PER_PAGE};
use crate::store::Store;

pub use crate::format::extent::FILE_SIZE_MAX;

/// Data blocks of the volume: whole blocks, no verification.
pub trait DataDevice: Send + Sync {
    /// Fills `buf`, a whole number of blocks, from `start` on.
    fn read_data(&self, start: BlockNo, buf: &mut [u8]) -> Result<()>;
    /// Writes `data`, a whole number of blocks, from `start` on. No transaction that is committed later
    /// becomes durable before it.
    fn write_data(&self, start: BlockNo, data: &[u8]) -> Result<()>;
    /// The same for blocks that the file has already, below its size on disk, without that order.
    fn overwrite_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        self.write_data(start, data)
    }
}

impl DataDevice for Store {
    fn read_data(&self, start: BlockNo, buf: &mut [u8]) -> Result<()> {
        Store::read_data(self, start, buf)
    }

    fn write_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        Store::write_data(self, start, data)
    }

    fn overwrite_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        Store::overwrite_data(self, start, data)
    }
}

/// Space that must be reserved before a change is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceNeed {
    /// Data blocks.
    pub data: u64,
    /// Metadata blocks the item tree may grow by.
    pub meta: u32,
}

impl SpaceNeed {
    /// What `self` needs beyond `held`.
    pub fn beyond(self, held: SpaceNeed) -> SpaceNeed {
        SpaceNeed { data: self.data.saturating_sub(held.data), meta: self.meta.saturating_sub(held.meta) }
    }

    /// Nothing needed?
    pub fn is_zero(self) -> bool {
        self == SpaceNeed::default()
    }
}

/// How much one transaction of a long removal or conversion may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimit {
    /// Extents touched.
    pub changes: u32,
    /// Blocks freed.
    pub blocks: u64,
}

impl StepLimit {
    /// What fits a transaction of `log_blocks` changed blocks: tree pages for the descent and a
    /// merge, per change a tree page, a group header and a chunk page, per 31 chunks of a long run
    /// another chunk page.
    pub const fn within(log_blocks: u32) -> StepLimit {
        let spare = log_blocks.saturating_sub(12) / 4;
        let changes = if spare == 0 { 1 } else { spare };
        StepLimit { changes, blocks: changes as u64 * CHUNKS_PER_PAGE * CHUNK_BLOCKS }
    }
}

/// Whether a long change is finished; if not, it goes on in another transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    Done,
    More,
}
