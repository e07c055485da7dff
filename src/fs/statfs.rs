//! Free space of the whole volume: exact for groups held here, from the headers on the disk for
//! the others (as of their last checkpoint, a few seconds at most).

use super::*;
use crate::format::group::GroupHeader;
use crate::format::layout::CHUNK_BLOCKS;
use crate::format::{Block, BlockKind};
use std::collections::HashMap;

/// How long a header read for this is good.
const FRESH: Duration = Duration::from_secs(1);

/// Free blocks by group as last read.
#[derive(Default)]
pub struct Cache {
    seen: Mutex<HashMap<AgNo, (Duration, u64)>>,
}

impl Cache {
    /// Free blocks of a group, possibly a second old.
    pub fn free_hint(&self, core: &Core, ag: AgNo) -> u64 {
        if let Some(free) = core.alloc.free_blocks(ag) {
            return free;
        }
        let now = core.clock.now();
        if let Some((at, free)) = self.seen.lock().get(&ag)
            && now.saturating_sub(*at) < FRESH
        {
            return *free;
        }
        let free = read_free(core, ag);
        self.seen.lock().insert(ag, (now, free));
        free
    }
}

fn read_free(core: &Core, ag: AgNo) -> u64 {
    let place = core.geometry.ag_header(ag);
    let mut block = Block::zeroed();
    let read = core.store.device().read(place.byte(), &mut block.0);
    if read.and_then(|()| block.verify(core.store.format_id(), place, BlockKind::GroupHeader)).is_err() {
        return 0;
    }
    let h = block.body_as::<GroupHeader>();
    h.free_chunks.get() * CHUNK_BLOCKS + h.free_data.get() + h.free_meta.get()
}

impl Fs {
    /// Size and free space.
    pub fn statfs(&self, reply: impl FnOnce(Result<Statfs>) + Send + 'static) {
        let core = &self.core;
        let groups = || (0..core.geometry.ag_count).map(AgNo);
        let blocks = groups().map(|ag| core.geometry.ag_chunks(ag) * CHUNK_BLOCKS).sum();
        let free: u64 = groups().map(|ag| core.statfs.free_hint(core, ag)).sum();
        reply(Ok(Statfs {
            blocks,
            blocks_free: free,
            blocks_available: free,
            // Inodes are blocks: as many as there is room for.
            files: blocks,
            files_free: free,
            block_size: 4096,
            name_max: 255,
            fragment_size: 4096,
        }));
    }
}
