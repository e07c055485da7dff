//! Allocation groups on disk: the group header and the chunk pages.
//!
//! A chunk is 512 blocks (2 MiB). Its entry holds its type and its bitmap, so that both change in
//! one block. Chunks from `init_chunks` on have no entry yet and are free: mkfs writes headers only.

use crate::base::{AgNo, BlockDevice, BlockNo, LockName, Result, Version};
use crate::format::block::{Block, BlockKind};
use crate::format::layout::{CHUNK_BLOCKS, CHUNKS_PER_PAGE, Geometry};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The group header's body.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupHeader {
    /// Not below any version of a metadata block of this group; grows with each allocation and free.
    pub vclock: U64,
    /// Chunks whose entries are valid.
    pub init_chunks: U32,
    pub zero: U32,
    /// Free chunks, the ones without an entry included.
    pub free_chunks: U64,
    /// Free blocks in data chunks.
    pub free_data: U64,
    /// Free blocks in metadata and draining chunks.
    pub free_meta: U64,
    /// Roots reserved for reference counts and data checksums; 0.
    pub reserved_roots: [U64; 4],
    pub spare: [u8; 256],
}

impl GroupHeader {
    /// Blocks that can still be given out, for data or metadata.
    pub fn free_blocks(&self) -> u64 {
        let chunks = self.free_chunks.get().saturating_mul(CHUNK_BLOCKS);
        chunks.saturating_add(self.free_data.get()).saturating_add(self.free_meta.get())
    }
}

/// What a chunk holds. Numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    Free = 0,
    /// File data: never a replay target.
    Data = 1,
    Metadata = 2,
    /// Journals, group headers, chunk pages, backups: one owner each, never a replay target.
    System = 3,
    /// Metadata chunk without used blocks whose tombstones may still be in a journal.
    Draining = 4,
}

impl ChunkKind {
    /// From the on-disk byte.
    pub fn from_raw(raw: u8) -> Option<ChunkKind> {
        use ChunkKind::*;
        [Free, Data, Metadata, System, Draining].into_iter().find(|k| *k as u8 == raw)
    }
}

/// Bytes of a chunk's bitmap.
pub const BITMAP_BYTES: usize = 64;

/// Entry of one chunk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkEntry {
    pub kind: u8,
    pub zero: u8,
    /// Blocks whose bit is clear.
    pub free: U16,
    pub zero2: [u8; 12],
    /// One bit per block, lowest bit first; 1 = used. All clear in a free chunk.
    pub bitmap: [u8; BITMAP_BYTES],
    pub spare: [u8; 48],
}

const _: () = assert!(size_of::<ChunkEntry>() == 128);
const _: () = assert!(size_of::<GroupHeader>() <= 4096 - 64);

/// A chunk page's body.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkPage {
    pub entries: [ChunkEntry; CHUNKS_PER_PAGE as usize],
}

const _: () = assert!(size_of::<ChunkPage>() <= 4096 - 64);

impl ChunkEntry {
    /// An empty chunk of a kind.
    pub fn empty(kind: ChunkKind) -> ChunkEntry {
        ChunkEntry {
            kind: kind as u8,
            zero: 0,
            free: U16::new(512),
            zero2: [0; 12],
            bitmap: [0; BITMAP_BYTES],
            spare: [0; 48],
        }
    }

    /// A chunk that is used whole.
    pub fn full(kind: ChunkKind) -> ChunkEntry {
        ChunkEntry { free: U16::new(0), bitmap: [0xff; BITMAP_BYTES], ..ChunkEntry::empty(kind) }
    }

    /// Is block `i` (0 to 511) used?
    pub fn is_used(&self, i: usize) -> bool {
        self.bitmap[i / 8] >> (i % 8) & 1 == 1
    }

    /// Set or clear block `i`; the free count is the caller's.
    pub fn set(&mut self, i: usize, used: bool) {
        let bit = 1 << (i % 8);
        if used {
            self.bitmap[i / 8] |= bit;
        } else {
            self.bitmap[i / 8] &= !bit;
        }
    }

    /// Used blocks by the bitmap.
    pub fn used(&self) -> u32 {
        self.bitmap.iter().map(|b| b.count_ones()).sum()
    }
}

/// A group header block, its body zeroed.
pub fn header_block(format_id: u64, geometry: &Geometry, ag: AgNo, version: Version) -> Block {
    let place = geometry.ag_header(ag);
    Block::init(format_id, place, BlockKind::GroupHeader, ag.0.into(), LockName::Ag(ag), version)
}

/// A chunk page block, all its entries free.
pub fn page_block(format_id: u64, geometry: &Geometry, ag: AgNo, page: u64, version: Version) -> Block {
    let place = geometry.chunk_page(ag, page);
    let mut block =
        Block::init(format_id, place, BlockKind::ChunkPage, ag.0.into(), LockName::Ag(ag), version);
    block.body_as_mut::<ChunkPage>().entries = [ChunkEntry::empty(ChunkKind::Free); CHUNKS_PER_PAGE as usize];
    block
}

/// A group's header as it stands on the device; of a group that a host works in, seconds old.
///
/// # Errors
/// `Corrupt` (also where a write was under way), `Io`.
pub fn read_header(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    format_id: u64,
    ag: AgNo,
) -> Result<GroupHeader> {
    let place = geometry.ag_header(ag);
    let mut block = Block::zeroed();
    device.read(place.byte(), &mut block.0)?;
    block.verify(format_id, place, BlockKind::GroupHeader)?;
    Ok(*block.body_as::<GroupHeader>())
}

/// First block of a chunk.
pub fn chunk_start(geometry: &Geometry, ag: AgNo, chunk: u64) -> BlockNo {
    geometry.ag_start(ag).plus(chunk * crate::format::layout::CHUNK_BLOCKS)
}

/// A free that waits for its group, in an item of a slot's inode (an item holds up to 40).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DeferredFreeRecord {
    pub start: U64,
    pub blocks: U64,
    /// Last version of a freed metadata block; 0 for data.
    pub version: U64,
}

const _: () = assert!(size_of::<DeferredFreeRecord>() == 24);
