//! Free space of the whole volume: exact for groups held here, from the headers on the disk for
//! the others (as of their last checkpoint, a few seconds at most).

use super::*;
use crate::alloc::Counts;
use crate::format::group::GroupHeader;
use crate::format::layout::CHUNK_BLOCKS;
use crate::format::{Block, BlockKind};
use std::collections::HashMap;

/// How long a header read for this is good: at first, and doubled with each read that found nothing new
/// up to this time, or more on volumes of many groups. Somebody may ask for free space all the time.
const FRESH: Duration = Duration::from_secs(1);
const FRESH_MAX: Duration = Duration::from_secs(10);
const FRESH_PER_GROUP: Duration = Duration::from_millis(250);

/// What a group's header said.
#[derive(Clone, Copy)]
struct Seen {
    at: Duration,
    counts: Counts,
    good_for: Duration,
}

/// Free space by group as last read.
#[derive(Default)]
pub struct Cache {
    seen: Mutex<HashMap<AgNo, Seen>>,
}

impl Cache {
    /// Free blocks of a group, possibly some seconds old.
    pub fn free_hint(&self, core: &Core, ag: AgNo) -> u64 {
        let counts = self.counts(core, ag);
        counts.free_blocks().saturating_sub(counts.promised)
    }

    fn counts(&self, core: &Core, ag: AgNo) -> Counts {
        if let Some(counts) = core.alloc.counts(ag) {
            return counts;
        }
        let now = core.clock.now();
        let last = self.seen.lock().get(&ag).copied();
        if let Some(seen) = last
            && now.saturating_sub(seen.at) < seen.good_for
        {
            return seen.counts;
        }
        let counts = read_counts(core, ag);
        let longest = FRESH_MAX.max(FRESH_PER_GROUP.saturating_mul(core.geometry.ag_count));
        let good_for = match last {
            Some(seen) if seen.counts == counts => (seen.good_for * 2).min(longest),
            _ => FRESH,
        };
        self.seen.lock().insert(ag, Seen { at: now, counts, good_for });
        counts
    }
}

fn read_counts(core: &Core, ag: AgNo) -> Counts {
    let place = core.geometry.ag_header(ag);
    let mut block = Block::zeroed();
    let read = core.store.device().read(place.byte(), &mut block.0);
    if read.and_then(|()| block.verify(core.store.format_id(), place, BlockKind::GroupHeader)).is_err() {
        return Counts::default();
    }
    let h = block.body_as::<GroupHeader>();
    Counts {
        free_chunks: h.free_chunks.get(),
        free_data: h.free_data.get(),
        free_meta: h.free_meta.get(),
        ..Counts::default()
    }
}

impl Fs {
    /// Size and free space.
    pub fn statfs(&self, reply: impl FnOnce(Result<Statfs>) + Send + 'static) {
        let core = &self.core;
        let groups = || (0..core.geometry.ag_count).map(AgNo);
        let blocks = groups().map(|ag| core.geometry.ag_chunks(ag) * CHUNK_BLOCKS).sum();
        let (mut free, mut available, mut inodes, mut data) = (0, 0, 0, 0);
        for counts in groups().map(|ag| core.statfs.counts(core, ag)) {
            free += counts.free_blocks().saturating_sub(counts.promised);
            available += counts.free_for_data().saturating_sub(counts.promised);
            inodes += counts.free_for_inodes();
            data += counts.free_data;
        }
        reply(Ok(Statfs {
            blocks,
            blocks_free: free,
            blocks_available: available,
            // Inodes are blocks: as many as there is room for. What else is used counts as if it were inodes, but
            // not the free blocks of chunks that are for data alone.
            files: blocks - data.min(blocks),
            files_free: inodes,
            block_size: 4096,
            name_max: 255,
            fragment_size: 4096,
        }));
    }
}
