//! The volume block: what may change while the volume is mounted. Two copies, written alternately
//! under the volume lock, never journaled, so that replay needs nothing else.

use crate::base::{BlockNo, Error, InodeNo, LockName, Result, Version};
use crate::device::BlockDevice;
use crate::format::block::{Block, BlockKind};
use crate::format::layout::{SLOTS_MAX, VOLUME_BLOCKS};
use crate::format::superblock::Superblock;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a label.
pub const LABEL_MAX: usize = 64;

/// A slot's extents. Append-only; an extent never moves while its slot is in use.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiskSlot {
    pub journal_start: U64,
    pub journal_blocks: U64,
    /// The system inode with the slot's orphans and deferred frees.
    pub inode: U64,
    pub zero: U64,
}

/// The body, behind the block header. The header's version is the copy's sequence.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiskVolume {
    pub features: U64,
    pub ag_count: U32,
    pub slots: U16,
    pub zero: U16,
    pub label: [u8; LABEL_MAX],
    pub slot_table: [DiskSlot; SLOTS_MAX as usize],
}

const _: () = assert!(size_of::<DiskVolume>() <= 4096 - 64);

/// A slot with a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotExtents {
    pub journal_start: BlockNo,
    pub journal_blocks: u64,
    pub inode: InodeNo,
}

/// The volume block in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub sequence: u64,
    pub features: u64,
    pub ag_count: u32,
    pub label: String,
    pub slots: Vec<SlotExtents>,
}

impl Volume {
    /// The copy that write number `sequence` goes to, and the block to write there, sealed.
    pub fn to_block(&self, format_id: u64) -> (BlockNo, Block) {
        let place = VOLUME_BLOCKS[(self.sequence % 2) as usize];
        let mut block =
            Block::init(format_id, place, BlockKind::Volume, 0, LockName::Volume, Version(self.sequence));
        let d = block.body_as_mut::<DiskVolume>();
        d.features = U64::new(self.features);
        d.ag_count = U32::new(self.ag_count);
        d.slots = U16::new(self.slots.len() as u16);
        let n = self.label.len().min(LABEL_MAX);
        d.label[..n].copy_from_slice(&self.label.as_bytes()[..n]);
        for (disk, slot) in d.slot_table.iter_mut().zip(&self.slots) {
            disk.journal_start = U64::new(slot.journal_start.0);
            disk.journal_blocks = U64::new(slot.journal_blocks);
            disk.inode = U64::new(slot.inode.0);
        }
        block.seal();
        (place, block)
    }

    fn from_block(block: &Block, sb: &Superblock, place: BlockNo) -> Result<Volume> {
        block.verify(sb.format_id, place, BlockKind::Volume)?;
        let d = block.body_as::<DiskVolume>();
        let count = usize::from(d.slots.get());
        if count == 0 || count > usize::from(sb.geometry.max_slots) {
            return Err(Error::corrupt(place, BlockKind::Volume, "1 or more slots", count));
        }
        let slots = d.slot_table[..count].iter().map(|s| SlotExtents {
            journal_start: BlockNo(s.journal_start.get()),
            journal_blocks: s.journal_blocks.get(),
            inode: InodeNo(s.inode.get()),
        });
        let label = d.label.split(|b| *b == 0).next().unwrap_or_default();
        Ok(Volume {
            sequence: block.version().0,
            features: d.features.get(),
            ag_count: d.ag_count.get(),
            label: String::from_utf8_lossy(label).into_owned(),
            slots: slots.collect(),
        })
    }
}

/// The newest valid copy.
///
/// # Errors
/// The second copy's `Corrupt` if neither is valid.
pub fn load(dev: &dyn BlockDevice, sb: &Superblock) -> Result<Volume> {
    let copy = |place: BlockNo| {
        let mut block = Block::zeroed();
        dev.read(place.byte(), &mut block.0)?;
        Volume::from_block(&block, sb, place)
    };
    match VOLUME_BLOCKS.map(copy) {
        [Ok(a), Ok(b)] => Ok(if a.sequence > b.sequence { a } else { b }),
        [Ok(v), Err(_)] | [Err(_), Ok(v)] => Ok(v),
        [Err(_), Err(e)] => Err(e),
    }
}
