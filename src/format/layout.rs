//! Where everything is. One declaration per place; mkfs, the daemon and fsck ask here.
//!
//! ```text
//! block 0              superblock
//! block 1, 2           volume block, copies A and B
//! block 3 ..           heartbeat row: max_slots cells of `cell_pitch` bytes
//!                      ballots: per slot 2 copies of one block
//!                      ledgers: per slot `ledger_pages` pages of 2 copies each
//!                      inbox rows: per destination max_slots cells of `cell_pitch` bytes
//!                      inbox overflow: per destination and sender 4 blocks
//!                      lobby: 64 cells of `cell_pitch` bytes
//! groups_start ..      allocation groups of `ag_blocks` blocks, the last one may be short
//! block 4094           backup superblock (second-last block of the first 16 MiB); regions and groups
//!                      step around it
//! ```
//! Each region begins at a block boundary. In a group: block 0 is a second backup superblock in
//! group 1 (unused elsewhere), block 1 the group header, then the chunk pages. `groups_start` and
//! group sizes are multiples of a chunk.

use crate::base::{AgNo, BLOCK_SIZE, BlockNo, SlotId};

/// Blocks in a chunk (2 MiB).
pub const CHUNK_BLOCKS: u64 = 512;
/// Chunk entries on one chunk page.
pub const CHUNKS_PER_PAGE: u64 = 31;
/// Most slots the format has room for.
pub const SLOTS_MAX: u16 = 64;
/// Most allocation groups.
pub const GROUPS_MAX: u32 = 16384;
/// Claim cells in the lobby.
pub const LOBBY_CELLS: u16 = 64;
/// Blocks of overflow per (destination, sender) pair.
pub const OVERFLOW_BLOCKS: u64 = 4;
/// Ledger entries on one ledger page.
pub const LEDGER_ENTRIES_PER_PAGE: u64 = 252;
/// The fixed backup superblock, unless the volume ends before it (it never does: 64 MiB at least).
pub const BACKUP_SUPERBLOCK: BlockNo = BlockNo(4094);
/// The primary superblock.
pub const SUPERBLOCK: BlockNo = BlockNo(0);
/// The two copies of the volume block.
pub const VOLUME_BLOCKS: [BlockNo; 2] = [BlockNo(1), BlockNo(2)];

/// The sizes that the superblock and the volume block fix; all places follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks of the volume.
    pub total_blocks: u64,
    /// Slots with coordination cells (not all need have a journal).
    pub max_slots: u16,
    /// Bytes from one single-writer cell to the next: 512 or 4096.
    pub cell_pitch: u32,
    /// Ledger pages per slot and copy.
    pub ledger_pages: u32,
    /// Blocks of a full allocation group: a power of two, 2048 (8 MiB) to 2^24 (64 GiB).
    pub ag_blocks: u64,
    /// Allocation groups.
    pub ag_count: u32,
}

/// The regions' first blocks, computed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    pub heartbeat: u64,
    pub ballots: u64,
    pub ledgers: u64,
    pub inbox: u64,
    pub overflow: u64,
    pub lobby: u64,
    /// First block behind the lobby.
    pub end: u64,
}

impl Geometry {
    fn cells(&self, n: u64) -> u64 {
        (n * u64::from(self.cell_pitch)).div_ceil(BLOCK_SIZE as u64)
    }

    /// First blocks of the coordination regions.
    pub fn regions(&self) -> Regions {
        let slots = u64::from(self.max_slots);
        let mut next = 3;
        let mut take = |len: u64| {
            let backup = BACKUP_SUPERBLOCK.0;
            if next <= backup && backup < next + len {
                next = backup + 1;
            }
            let at = next;
            next += len;
            at
        };
        let heartbeat = take(self.cells(slots));
        let ballots = take(slots * 2);
        let ledgers = take(slots * u64::from(self.ledger_pages) * 2);
        let inbox = take(slots * self.row_blocks());
        let overflow = take(slots * slots * OVERFLOW_BLOCKS);
        let lobby = take(self.cells(LOBBY_CELLS.into()));
        Regions { heartbeat, ballots, ledgers, inbox, overflow, lobby, end: next }
    }

    /// Blocks of one inbox row.
    pub fn row_blocks(&self) -> u64 {
        self.cells(self.max_slots.into())
    }

    /// First block of the first allocation group.
    pub fn groups_start(&self) -> BlockNo {
        BlockNo(self.regions().end.next_multiple_of(CHUNK_BLOCKS))
    }

    /// Byte offset of a slot's heartbeat cell. The whole row starts at slot 0's.
    pub fn heartbeat_cell(&self, slot: SlotId) -> u64 {
        BlockNo(self.regions().heartbeat).byte() + u64::from(slot.0) * u64::from(self.cell_pitch)
    }

    /// A slot's ballot, copy 0 or 1.
    pub fn ballot(&self, slot: SlotId, copy: u8) -> BlockNo {
        BlockNo(self.regions().ballots + u64::from(slot.0) * 2 + u64::from(copy))
    }

    /// A page of a slot's ledger, copy 0 or 1.
    pub fn ledger(&self, slot: SlotId, page: u32, copy: u8) -> BlockNo {
        let pages = u64::from(self.ledger_pages);
        BlockNo(self.regions().ledgers + (u64::from(slot.0) * pages + u64::from(page)) * 2 + u64::from(copy))
    }

    /// Byte offset of the inbox cell that `from` writes and `to` reads. A destination's row starts
    /// at sender 0's and is contiguous.
    pub fn inbox_cell(&self, to: SlotId, from: SlotId) -> u64 {
        BlockNo(self.regions().inbox + u64::from(to.0) * self.row_blocks()).byte()
            + u64::from(from.0) * u64::from(self.cell_pitch)
    }

    /// First of the [`OVERFLOW_BLOCKS`] blocks behind that cell.
    pub fn inbox_overflow(&self, to: SlotId, from: SlotId) -> BlockNo {
        let pair = u64::from(to.0) * u64::from(self.max_slots) + u64::from(from.0);
        BlockNo(self.regions().overflow + pair * OVERFLOW_BLOCKS)
    }

    /// Byte offset of a lobby cell.
    pub fn lobby_cell(&self, cell: u16) -> u64 {
        BlockNo(self.regions().lobby).byte() + u64::from(cell) * u64::from(self.cell_pitch)
    }

    /// The group that `block` lies in; `None` before the groups and behind the volume.
    pub fn ag_of(&self, block: BlockNo) -> Option<AgNo> {
        let from = block.0.checked_sub(self.groups_start().0)?;
        let ag = u32::try_from(from / self.ag_blocks).ok()?;
        (ag < self.ag_count && block.0 < self.total_blocks).then_some(AgNo(ag))
    }

    /// First block of a group.
    pub fn ag_start(&self, ag: AgNo) -> BlockNo {
        self.groups_start().plus(u64::from(ag.0) * self.ag_blocks)
    }

    /// Blocks of a group; less than `ag_blocks` for a short last one.
    pub fn ag_len(&self, ag: AgNo) -> u64 {
        self.ag_blocks.min(self.total_blocks - self.ag_start(ag).0)
    }

    /// Chunks of a group; a rest smaller than a chunk is not used.
    pub fn ag_chunks(&self, ag: AgNo) -> u64 {
        self.ag_len(ag) / CHUNK_BLOCKS
    }

    /// The group header.
    pub fn ag_header(&self, ag: AgNo) -> BlockNo {
        self.ag_start(ag).plus(1)
    }

    /// Chunk pages of a group.
    pub fn chunk_pages(&self, ag: AgNo) -> u64 {
        self.ag_chunks(ag).div_ceil(CHUNKS_PER_PAGE)
    }

    /// The `page`-th chunk page of a group.
    pub fn chunk_page(&self, ag: AgNo, page: u64) -> BlockNo {
        self.ag_start(ag).plus(2 + page)
    }

    /// Chunks at the start of a group that its own header and chunk pages fill (type system).
    pub fn ag_own_chunks(&self, ag: AgNo) -> u64 {
        (2 + self.chunk_pages(ag)).div_ceil(CHUNK_BLOCKS)
    }

    /// The second backup superblock: first block of group 1, if there is one.
    pub fn group_backup_superblock(&self) -> Option<BlockNo> {
        (self.ag_count > 1).then(|| self.ag_start(AgNo(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_step_around_the_backup() {
        for (slots, pitch) in [(2, 512), (4, 4096), (16, 512), (64, 512), (64, 4096)] {
            let g = Geometry {
                total_blocks: 1 << 24,
                max_slots: slots,
                cell_pitch: pitch,
                ledger_pages: 3,
                ag_blocks: 1 << 18,
                ag_count: 60,
            };
            let r = g.regions();
            let starts = [3, r.heartbeat, r.ballots, r.ledgers, r.inbox, r.overflow, r.lobby, r.end];
            assert!(starts.is_sorted(), "{starts:?}");
            assert!(g.lobby_cell(LOBBY_CELLS - 1) < BlockNo(r.end).byte());
            let last = g.inbox_overflow(SlotId(slots - 1), SlotId(slots - 1)).plus(OVERFLOW_BLOCKS);
            assert!(last.0 <= r.lobby);
            assert_eq!(g.groups_start().0 % CHUNK_BLOCKS, 0);
            assert_eq!(g.ag_of(g.ag_start(AgNo(5))), Some(AgNo(5)));
            assert_eq!(g.ag_of(BlockNo(g.groups_start().0 - 1)), None);
        }
    }
}
