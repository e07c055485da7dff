//! Taking chunks of a group out of use while their type changes.

use super::group::{EMERGENCY_META, Group, Pool};
use super::page::PAGE_CHUNKS;
use crate::base::Result;
use crate::format::group::ChunkKind;
use crate::format::layout::CHUNK_BLOCKS;
use crate::store::Store;

/// Largest part at a group's start that data leaves to metadata while there is other room.
const META_ZONE_MAX: u32 = 62;

impl Group {
    /// Chunks that data leaves to metadata.
    fn meta_zone(&self) -> u32 {
        (self.chunks() / 16).min(META_ZONE_MAX)
    }

    /// Free chunks that may be given a type.
    pub fn free_chunks(&self) -> u64 {
        self.truth.free_chunks.saturating_sub(self.free_claimed)
    }

    /// Take a free chunk (or an unused data chunk) out of use, to give it the type `to`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn claim(&mut self, store: &Store, to: ChunkKind) -> Result<Option<u32>> {
        let (zone, end) = (self.meta_zone(), self.chunks());
        let ranges = if to == ChunkKind::Data {
            let from = self.type_cursor.max(zone);
            [(from, end), (zone, from), (0, zone)]
        } else {
            [(self.free_low, end), (0, 0), (0, 0)]
        };
        for (from, end) in ranges {
            if self.free_chunks() == 0 {
                break;
            }
            if let Some(chunk) = self.find_empty(store, from, end, false)? {
                if to == ChunkKind::Data {
                    self.type_cursor = chunk + 1;
                } else {
                    self.free_low = chunk + 1;
                }
                self.loaded_claim(chunk, true);
                return Ok(Some(chunk));
            }
        }
        if to == ChunkKind::Data || self.data.unreserved() < CHUNK_BLOCKS {
            return Ok(None);
        }
        let found = self.find_empty(store, 0, end, true)?;
        if let Some(chunk) = found {
            self.loaded_claim(chunk, true);
        }
        Ok(found)
    }

    fn find_empty(&mut self, store: &Store, from: u32, end: u32, empty_data: bool) -> Result<Option<u32>> {
        let mut chunk = from;
        while chunk < end {
            let first = chunk / PAGE_CHUNKS as u32 * PAGE_CHUNKS as u32;
            let map = self.page(store, chunk / PAGE_CHUNKS as u32)?;
            if let Some(c) = map.find_empty((chunk - first) as usize, empty_data) {
                let found = first + c as u32;
                return Ok((found < end).then_some(found));
            }
            chunk = first + PAGE_CHUNKS as u32;
        }
        Ok(None)
    }

    /// Take a chunk of any kind out of use or put it back, with the sums.
    pub fn loaded_claim(&mut self, chunk: u32, claimed: bool) {
        let (map, c) = self.loaded(chunk);
        let kind = map.chunk(c).kind;
        let ready = u64::from(map.chunk(c).ready);
        map.set_claimed(c, claimed);
        let count = |sum: &mut u64, n: u64| *sum = if claimed { *sum - n } else { *sum + n };
        match kind {
            ChunkKind::Data => count(&mut self.data.ready, ready),
            ChunkKind::Metadata | ChunkKind::Draining => count(&mut self.meta.ready, ready),
            ChunkKind::Free => {
                self.free_claimed = if claimed { self.free_claimed + 1 } else { self.free_claimed - 1 };
                if !claimed {
                    self.free_low = self.free_low.min(chunk);
                }
            }
            ChunkKind::System => {}
        }
    }

    /// A claimed chunk has become `to`, without a used block. It stays claimed.
    pub fn retyped(&mut self, chunk: u32, to: ChunkKind) {
        let (map, c) = self.loaded(chunk);
        let from = map.chunk(c).kind;
        map.set_kind(c, to);
        match (from, to) {
            (ChunkKind::Free, ChunkKind::Free) => {}
            (ChunkKind::Free, _) => self.free_claimed -= 1,
            (_, ChunkKind::Free) => self.free_claimed += 1,
            _ => {}
        }
    }

    /// Chunks that must get a type before `data` and `meta` blocks more can be promised. Those for
    /// metadata include the emergency share.
    pub fn lacking(&self, data: u64, meta: u64) -> (u64, u64) {
        let short = |pool: &Pool, more: u64| (pool.reserved + more).saturating_sub(pool.ready);
        let meta = short(&self.meta, meta + EMERGENCY_META);
        (short(&self.data, data).div_ceil(CHUNK_BLOCKS), meta.div_ceil(CHUNK_BLOCKS))
    }
}
