//! From a size and a few wishes to the whole layout. Pure: reads and writes nothing.

use crate::Options;
use shoal::base::{AgNo, BLOCK_SIZE, BlockNo, Error, InodeNo, Result, SlotId};
use shoal::format::Geometry;
use shoal::format::group::{self, ChunkEntry, ChunkKind};
use shoal::format::journal::EXTENT_BLOCKS_MIN;
use shoal::format::layout::{
    BACKUP_SUPERBLOCK, CHUNK_BLOCKS, CHUNKS_PER_PAGE, GROUPS_MAX, LEDGER_ENTRIES_PER_PAGE,
};
use shoal::format::volume::SlotExtents;
use std::collections::BTreeMap;

/// Smallest volume: 64 MiB.
pub const SIZE_MIN: u64 = 64 << 20;
/// Smallest and largest group, in blocks: 8 MiB and 64 GiB.
const AG_BLOCKS: (u64, u64) = (2048, 1 << 24);
/// Smallest journal, in blocks: 4 MiB.
const JOURNAL_BLOCKS_MIN: u64 = 1024;
/// Largest journal that is chosen without being asked for: 128 MiB.
const JOURNAL_BLOCKS_AUTO_MAX: u64 = 32768;
/// Largest journal at all: 4 GiB.
const JOURNAL_BLOCKS_MAX: u64 = 1 << 20;
/// Groups per slot where the size allows, so that no host depends on one group only.
const GROUPS_PER_SLOT: u64 = 4;
/// Room in the ledgers for a volume that grows to this many times its size.
const GROWTH: u64 = 16;
/// The first version that the group clocks give out is one more.
const FIRST_VCLOCK: u64 = 1;

/// A group as mkfs writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    pub ag: AgNo,
    /// Counts versions: one per metadata block given out.
    pub vclock: u64,
    /// Chunks that are not free, by number.
    pub kinds: BTreeMap<u64, ChunkKind>,
    /// Used blocks of metadata chunks, counted from the group's first block.
    pub used: Vec<u64>,
}

/// A metadata block given out by mkfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    pub ino: InodeNo,
    /// Its version, and the generation of the inode in it.
    pub version: u64,
}

/// Everything that is decided before the first write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub geometry: Geometry,
    pub groups: Vec<GroupPlan>,
    pub slots: Vec<SlotExtents>,
    pub root: Given,
    pub slot_inodes: Vec<Given>,
}

fn refuse<T>(what: String) -> Result<T> {
    Err(Error::Device(what))
}

/// Slots that a volume of this size has coordination cells for.
pub fn max_slots(size: u64) -> u16 {
    match size {
        s if s >= 4 << 30 => 64,
        s if s >= 512 << 20 => 16,
        _ => 4,
    }
}

/// Slots with a journal, unless asked otherwise.
fn default_slots(size: u64) -> u16 {
    match size {
        s if s >= 4 << 30 => 16,
        s if s >= 512 << 20 => 8,
        s if s >= 128 << 20 => 4,
        _ => 2,
    }
}

/// Plan a volume of `size` bytes whose single-writer cells stand `cell_pitch` bytes apart.
///
/// # Errors
/// `Device` in words: too small, too large, wishes that do not fit.
pub fn plan(size: u64, cell_pitch: u32, options: &Options) -> Result<Layout> {
    if size < SIZE_MIN {
        return refuse(format!("{size} bytes are too small: a volume has at least 64 MiB"));
    }
    if !matches!(cell_pitch, 512 | 4096) {
        return refuse(format!("a cell pitch of {cell_pitch} bytes: 512 or 4096 are possible"));
    }
    let total_blocks = size / BLOCK_SIZE as u64;
    let most = max_slots(size);
    let slots = options.slots.unwrap_or_else(|| default_slots(size));
    if slots == 0 || slots > most {
        return refuse(format!("{slots} slots: a volume of this size can have 1 to {most}"));
    }
    let journal = journal_blocks(total_blocks, slots, options.journal)?;
    let geometry = geometry(total_blocks, cell_pitch, most, slots, journal)?;
    place(geometry, slots, journal)
}

/// Blocks of one journal: whole chunks.
fn journal_blocks(total_blocks: u64, slots: u16, asked: Option<u64>) -> Result<u64> {
    const _: () = assert!(JOURNAL_BLOCKS_MIN >= EXTENT_BLOCKS_MIN);
    let auto = total_blocks / 32 / u64::from(slots);
    let blocks = match asked {
        None => auto.clamp(JOURNAL_BLOCKS_MIN, JOURNAL_BLOCKS_AUTO_MAX),
        Some(bytes) => bytes / BLOCK_SIZE as u64,
    };
    if !(JOURNAL_BLOCKS_MIN..=JOURNAL_BLOCKS_MAX).contains(&blocks) {
        return refuse(format!("a journal of {} MiB: 4 to 4096 MiB are possible", blocks >> 8));
    }
    Ok(blocks.next_multiple_of(CHUNK_BLOCKS))
}

/// Group size and count, ledger size.
fn geometry(
    total_blocks: u64,
    cell_pitch: u32,
    max_slots: u16,
    slots: u16,
    journal: u64,
) -> Result<Geometry> {
    let wanted = (total_blocks / (GROUPS_PER_SLOT * u64::from(slots))).max(1);
    // Its own chunks, one of metadata and the journal must fit a group; a large group's own chunks
    // are three at most.
    let least = (journal + 4 * CHUNK_BLOCKS).next_power_of_two().max(AG_BLOCKS.0);
    let least = if journal == JOURNAL_BLOCKS_MIN { AG_BLOCKS.0 } else { least };
    let ag_blocks = (1 << wanted.ilog2()).clamp(least, AG_BLOCKS.1.max(least));
    let groups = total_blocks.div_ceil(ag_blocks);
    let for_growth = (groups * GROWTH).min(GROUPS_MAX.into());
    let mut g = Geometry {
        total_blocks,
        max_slots,
        cell_pitch,
        ledger_pages: for_growth.div_ceil(LEDGER_ENTRIES_PER_PAGE) as u32,
        ag_blocks,
        ag_count: 1,
    };
    let room = total_blocks.saturating_sub(g.groups_start().0);
    // A rest that is not worth a group of its own is left unused.
    let count = room / ag_blocks + u64::from(room % ag_blocks >= 2 * CHUNK_BLOCKS);
    if count == 0 {
        return refuse("the volume is too small for journals of this size".into());
    }
    if count > GROUPS_MAX.into() {
        return refuse(format!("{} TiB are too large: a volume has at most 1 PiB", total_blocks >> 28));
    }
    g.ag_count = count as u32;
    Ok(g)
}

impl GroupPlan {
    fn new(g: &Geometry, ag: AgNo) -> GroupPlan {
        let mut kinds: BTreeMap<_, _> = (0..g.ag_own_chunks(ag)).map(|c| (c, ChunkKind::System)).collect();
        if g.ag_of(BACKUP_SUPERBLOCK) == Some(ag) {
            let chunk = (BACKUP_SUPERBLOCK.0 - g.ag_start(ag).0) / CHUNK_BLOCKS;
            kinds.insert(chunk, ChunkKind::System);
        }
        kinds.retain(|c, _| *c < g.ag_chunks(ag));
        GroupPlan { ag, vclock: FIRST_VCLOCK, kinds, used: Vec::new() }
    }

    /// First of `count` free chunks in a row.
    fn free_run(&self, g: &Geometry, count: u64) -> Option<u64> {
        let last = g.ag_chunks(self.ag).checked_sub(count)?;
        let is_free = |first: &u64| self.kinds.range(*first..first + count).next().is_none();
        // Only a few chunks are ever taken, all near the start.
        (0..=last).find(is_free)
    }

    fn metadata_chunk(&self) -> Option<u64> {
        self.kinds.iter().find(|(_, kind)| **kind == ChunkKind::Metadata).map(|(c, _)| *c)
    }

    /// See to it that there is a metadata chunk.
    fn ensure_metadata(&mut self, g: &Geometry) -> Option<u64> {
        self.metadata_chunk().or_else(|| {
            let chunk = self.free_run(g, 1)?;
            self.kinds.insert(chunk, ChunkKind::Metadata);
            Some(chunk)
        })
    }

    /// Give out a metadata block, as an allocation does: the clock ticks.
    fn give(&mut self, g: &Geometry) -> Option<Given> {
        let chunk = self.ensure_metadata(g)?;
        let block = chunk * CHUNK_BLOCKS + self.used.len() as u64;
        self.used.push(block);
        self.vclock += 1;
        Some(Given { ino: InodeNo(g.ag_start(self.ag).0 + block), version: self.vclock })
    }

    /// Take chunks in a row for a journal, leaving room for metadata.
    fn take_journal(&mut self, g: &Geometry, chunks: u64) -> Option<BlockNo> {
        let mut trial = self.clone();
        trial.ensure_metadata(g)?;
        let first = trial.free_run(g, chunks)?;
        trial.kinds.extend((first..first + chunks).map(|c| (c, ChunkKind::System)));
        *self = trial;
        Some(group::chunk_start(g, self.ag, first))
    }

    /// Chunks with an entry on disk: those of all pages up to the last chunk that is not free.
    pub fn init_chunks(&self, g: &Geometry) -> u64 {
        let pages = self.kinds.keys().next_back().map_or(0, |last| last / CHUNKS_PER_PAGE + 1);
        (pages * CHUNKS_PER_PAGE).min(g.ag_chunks(self.ag))
    }

    /// The entry of a chunk.
    pub fn entry(&self, chunk: u64) -> ChunkEntry {
        match self.kinds.get(&chunk) {
            None => ChunkEntry::empty(ChunkKind::Free),
            Some(ChunkKind::Metadata) => {
                let mut entry = ChunkEntry::empty(ChunkKind::Metadata);
                for block in self.used.iter().filter(|b| **b / CHUNK_BLOCKS == chunk) {
                    entry.set((block % CHUNK_BLOCKS) as usize, true);
                }
                entry.free.set(CHUNK_BLOCKS as u16 - entry.used() as u16);
                entry
            }
            Some(kind) => ChunkEntry::full(*kind),
        }
    }

    /// Free chunks, those without an entry included.
    pub fn free_chunks(&self, g: &Geometry) -> u64 {
        g.ag_chunks(self.ag) - self.kinds.len() as u64
    }

    /// Free blocks in metadata chunks.
    pub fn free_meta(&self) -> u64 {
        let chunks = self.kinds.values().filter(|k| **k == ChunkKind::Metadata).count() as u64;
        chunks * CHUNK_BLOCKS - self.used.len() as u64
    }
}

/// Root inode, journals and slot inodes: each slot's in a group that it owns at first, if one has
/// room; groups before others so that journals spread over the volume.
fn place(geometry: Geometry, slots: u16, journal: u64) -> Result<Layout> {
    let mut groups: Vec<GroupPlan> =
        (0..geometry.ag_count).map(|ag| GroupPlan::new(&geometry, AgNo(ag))).collect();
    let full = || Error::Device("the volume is too small for journals of this size".into());
    let root = groups.iter_mut().find_map(|g| g.give(&geometry)).ok_or_else(full)?;
    let (mut extents, mut slot_inodes) = (Vec::new(), Vec::new());
    for slot in (0..slots).map(SlotId) {
        let stride = usize::from(slots);
        let own = (usize::from(slot.0)..groups.len()).step_by(stride);
        let order: Vec<usize> = own.chain(0..groups.len()).collect();
        let chunks = journal / CHUNK_BLOCKS;
        let (at, start) = order
            .into_iter()
            .find_map(|i| Some((i, groups[i].take_journal(&geometry, chunks)?)))
            .ok_or_else(full)?;
        let inode = groups[at].give(&geometry).ok_or_else(full)?;
        slot_inodes.push(inode);
        extents.push(SlotExtents { journal_start: start, journal_blocks: journal, inode: inode.ino });
    }
    let free: u64 = groups.iter().map(|g| g.free_chunks(&geometry)).sum();
    if free < u64::from(slots) {
        return Err(full());
    }
    Ok(Layout { geometry, groups, slots: extents, root, slot_inodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(size: u64, pitch: u32, options: &Options) -> Layout {
        let l = plan(size, pitch, options).unwrap_or_else(|e| panic!("{size} {options:?}: {e}"));
        check(&l);
        l
    }

    /// What must hold of every layout.
    fn check(l: &Layout) {
        let g = &l.geometry;
        let last = AgNo(g.ag_count - 1);
        assert!(g.ag_start(last).0 + g.ag_len(last) <= g.total_blocks);
        assert!(u64::from(g.ledger_pages) * LEDGER_ENTRIES_PER_PAGE >= g.ag_count.into());
        let mut system = 0;
        for p in &l.groups {
            assert!(g.ag_own_chunks(p.ag) < g.ag_chunks(p.ag), "group {} has no usable chunk", p.ag);
            assert!(p.kinds.keys().all(|c| *c < p.init_chunks(g)));
            assert!(p.vclock > p.used.len() as u64);
            system += p.kinds.values().filter(|k| **k == ChunkKind::System).count() as u64;
        }
        let own: u64 = l.groups.iter().map(|p| g.ag_own_chunks(p.ag)).sum();
        // The backup may share a chunk with its group's header, never a block.
        let backup = g.ag_of(BACKUP_SUPERBLOCK).map_or(0, |ag| {
            let within = BACKUP_SUPERBLOCK.0 - g.ag_start(ag).0;
            assert!(within >= 2 + g.chunk_pages(ag));
            u64::from(within / CHUNK_BLOCKS >= g.ag_own_chunks(ag))
        });
        let journals: u64 = l.slots.iter().map(|s| s.journal_blocks / CHUNK_BLOCKS).sum();
        assert_eq!(system, own + backup + journals, "journals, headers and the backup do not overlap");
        let mut inodes: Vec<u64> = l.slot_inodes.iter().chain([&l.root]).map(|i| i.ino.0).collect();
        inodes.sort_unstable();
        inodes.dedup();
        assert_eq!(inodes.len(), l.slots.len() + 1);
        for s in &l.slots {
            let first = g.ag_of(s.journal_start).unwrap();
            assert_eq!(g.ag_of(s.journal_start.plus(s.journal_blocks - 1)), Some(first));
        }
    }

    #[test]
    fn every_size_has_a_layout() {
        let sizes =
            (26..50).flat_map(|e| [0, 4096, 1 << 20, (1 << e) / 3, (1 << e) - 4096].map(|d| (1 << e) + d));
        for size in sizes {
            for pitch in [512, 4096] {
                let l = planned(size, pitch, &Options::default());
                assert_eq!(l.geometry.max_slots, max_slots(size));
                let used = l.geometry.groups_start().0 * 100 / l.geometry.total_blocks;
                assert!(used < 5, "{used} % of {size} bytes go to coordination");
            }
        }
    }

    #[test]
    fn any_slot_count_and_journal_that_fits() {
        for size in [64u64 << 20, 512 << 20, 1 << 30, 4 << 30, 1 << 40] {
            for slots in 1..=max_slots(size) {
                let options = Options { slots: Some(slots), ..Options::default() };
                match plan(size, 512, &options) {
                    Ok(l) => check(&l),
                    Err(e) => assert!(size < 1 << 30, "{size} {slots}: {e}"),
                }
            }
        }
        let options = Options { journal: Some(1 << 30), slots: Some(2), ..Options::default() };
        assert_eq!(planned(16 << 30, 512, &options).slots[1].journal_blocks, 1 << 18);
    }

    #[test]
    fn refusals() {
        let asks = |slots, journal| Options { slots, journal, ..Options::default() };
        for (size, pitch, options, why) in [
            (SIZE_MIN - 1, 512, asks(None, None), "too small"),
            (SIZE_MIN, 1024, asks(None, None), "pitch"),
            (SIZE_MIN, 512, asks(Some(0), None), "1 to 4"),
            (SIZE_MIN, 512, asks(Some(5), None), "1 to 4"),
            (SIZE_MIN, 512, asks(None, Some(1 << 20)), "4 to 4096"),
            (SIZE_MIN, 512, asks(None, Some(48 << 20)), "too small for journals"),
            (SIZE_MIN, 512, asks(None, Some(8 << 30)), "4 to 4096"),
            (1 << 52, 512, asks(None, None), "too large"),
        ] {
            let e = plan(size, pitch, &options).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}
