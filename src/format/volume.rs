//! The volume block: what may change while the volume is mounted. Two copies, written alternately
//! under the volume lock, never journaled, so that replay needs nothing else.

use crate::base::{BlockDevice, BlockNo, Error, InodeNo, LockName, Result, Version};
use crate::format::block::{Block, BlockKind};
use crate::format::journal::EXTENT_BLOCKS_MIN;
use crate::format::layout::{Geometry, SLOTS_MAX, VOLUME_BLOCKS};
use crate::format::superblock::{Superblock, TimingProfile, check_geometry};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a label.
pub const LABEL_MAX: usize = 64;
/// Features that may be switched on after the volume was made and that this code knows.
pub const FEATURES_KNOWN: u64 = 0;

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
    /// Features switched on since the volume was made; bits as in the view.
    pub features: U64,
    pub total_blocks: U64,
    pub ag_count: U32,
    pub slots: U16,
    pub timing: u8,
    pub zero: u8,
    /// UTF-8, padded with NUL.
    pub label: [u8; LABEL_MAX],
    pub spare: [u8; 40],
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
    /// Blocks and groups as of now; the superblock has those of the day the volume was made.
    pub total_blocks: u64,
    pub ag_count: u32,
    pub timing: TimingProfile,
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
        d.total_blocks = U64::new(self.total_blocks);
        d.ag_count = U32::new(self.ag_count);
        d.timing = self.timing as u8;
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

    /// Verify and decode a copy read from `place`.
    ///
    /// # Errors
    /// `Corrupt` if it is torn, or names extents that cannot be.
    pub fn from_block(block: &Block, sb: &Superblock, place: BlockNo) -> Result<Volume> {
        block.verify(sb.format_id, place, BlockKind::Volume)?;
        let d = block.body_as::<DiskVolume>();
        let bad = |what: &str, found: u64| Error::corrupt(place, BlockKind::Volume, what, found);
        let count = usize::from(d.slots.get());
        if count == 0 || count > usize::from(sb.geometry.max_slots) {
            return Err(bad("1 or more slots, as many as have cells", count as u64));
        }
        let slots = d.slot_table[..count].iter().map(|s| SlotExtents {
            journal_start: BlockNo(s.journal_start.get()),
            journal_blocks: s.journal_blocks.get(),
            inode: InodeNo(s.inode.get()),
        });
        let label = d.label.split(|b| *b == 0).next().unwrap_or_default();
        let volume = Volume {
            sequence: block.version().0,
            features: d.features.get(),
            total_blocks: d.total_blocks.get(),
            ag_count: d.ag_count.get(),
            timing: TimingProfile::from_raw(d.timing)
                .ok_or_else(|| bad("a timing profile", d.timing.into()))?,
            label: String::from_utf8_lossy(label).into_owned(),
            slots: slots.collect(),
        };
        let g = volume.geometry(sb);
        check_geometry(&g).map_err(|what| bad(what, g.total_blocks))?;
        for slot in &volume.slots {
            slot.check(&g).map_err(|what| bad(what, slot.journal_start.0))?;
        }
        Ok(volume)
    }

    /// Refuse features switched on since, by their bits.
    ///
    /// # Errors
    /// `Device`: this program knows none.
    pub fn check_features(&self) -> Result<()> {
        match self.features & !FEATURES_KNOWN {
            0 => Ok(()),
            unknown => Err(Error::Device(format!(
                "features that this program does not know were switched on (feature bits {unknown:#x}): \
                 use a newer Shoal release"
            ))),
        }
    }

    /// The sizes of the volume as of now.
    pub fn geometry(&self, sb: &Superblock) -> Geometry {
        Geometry { total_blocks: self.total_blocks, ag_count: self.ag_count, ..sb.geometry }
    }
}

impl SlotExtents {
    /// Inside one group each, so that nobody follows them into other structures or off the device.
    fn check(&self, g: &Geometry) -> std::result::Result<(), &'static str> {
        let last = self.journal_blocks.checked_sub(1).and_then(|n| self.journal_start.0.checked_add(n));
        let first = g.ag_of(self.journal_start);
        if first.is_none() || last.is_none_or(|b| g.ag_of(BlockNo(b)) != first) {
            return Err("a journal inside a group");
        }
        if self.journal_blocks < EXTENT_BLOCKS_MIN {
            return Err("a journal of a possible size");
        }
        g.ag_of(self.inode.block()).map(|_| ()).ok_or("a slot inode inside a group")
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

/// Write `volume` as the successor of the copy it was loaded from: its sequence grows by one, the
/// older copy is overwritten. The caller holds the volume lock X; everything that the new content
/// speaks of is in place already.
///
/// # Errors
/// `Io`; the newer copy is still what it was.
pub fn store(dev: &dyn BlockDevice, sb: &Superblock, volume: &mut Volume) -> Result<()> {
    volume.sequence += 1;
    let (place, block) = volume.to_block(sb.format_id);
    dev.flush()?;
    dev.write(place.byte(), &block.0)?;
    dev.flush()
}

#[cfg(test)]
mod tests;
