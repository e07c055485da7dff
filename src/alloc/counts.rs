//! Free space, counted.

use super::group::EMERGENCY_META;
use crate::format::layout::CHUNK_BLOCKS;

/// Free space of a group, or of all groups held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chunks, system chunks included.
    pub chunks: u64,
    pub free_chunks: u64,
    /// Free blocks in data chunks.
    pub free_data: u64,
    /// Free blocks in metadata and draining chunks.
    pub free_meta: u64,
    /// Blocks promised and not yet allocated, of either class.
    pub promised: u64,
}

impl Counts {
    /// Free blocks of any kind, promised ones included.
    pub fn free_blocks(&self) -> u64 {
        self.free_chunks * CHUNK_BLOCKS + self.free_data + self.free_meta
    }

    /// Free blocks that file data can have. Metadata chunks stay what they are for a while, and a group
    /// whose metadata is used up takes one more chunk for it with the next data.
    pub fn free_for_data(&self) -> u64 {
        let next = if self.free_meta < EMERGENCY_META { CHUNK_BLOCKS } else { 0 };
        (self.free_chunks * CHUNK_BLOCKS).saturating_sub(next) + self.free_data
    }

    /// Blocks that new inodes can have: each takes one for metadata. A group keeps some to free with.
    pub fn free_for_inodes(&self) -> u64 {
        let free = self.free_chunks * CHUNK_BLOCKS + self.free_meta;
        free.saturating_sub(EMERGENCY_META + self.promised)
    }

    /// Sum up.
    pub(super) fn add(&mut self, other: &Counts) {
        self.chunks += other.chunks;
        self.free_chunks += other.free_chunks;
        self.free_data += other.free_data;
        self.free_meta += other.free_meta;
        self.promised += other.promised;
    }
}
