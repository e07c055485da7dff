//! The superblock: what never changes while anybody has the volume mounted.

use crate::base::{AgNo, BLOCK_SIZE, BlockDevice, BlockNo, Error, LockName, Result, Version};
use crate::format::block::{Block, BlockKind, MAGIC};
use crate::format::foreign;
use crate::format::layout::{
    BACKUP_SUPERBLOCK, GROUPS_MAX, Geometry, LEDGER_ENTRIES_PER_PAGE, SLOTS_MAX, SUPERBLOCK, VOLUME_BLOCKS,
};
use crate::format::volume::Volume;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Incompatible features this code knows.
pub const INCOMPAT_KNOWN: u64 = 0;
/// Features that only writing needs.
pub const RO_COMPAT_KNOWN: u64 = 0;
/// Format version; bumped when an older program would misread what a newer one wrote.
pub const FORMAT_VERSION: u32 = 1;

/// Heartbeat and lease times, the same for all hosts of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[repr(u8)]
#[serde(rename_all = "lowercase")]
pub enum TimingProfile {
    /// Cloud disks: a dead host is given up after about 21 s.
    Default = 0,
    /// Storage networks with slow failover: about 51 s.
    San = 1,
    /// One machine: 2 to 3 s.
    Test = 2,
}

impl TimingProfile {
    /// As it is written on command lines and in listings.
    pub fn name(self) -> &'static str {
        match self {
            TimingProfile::Default => "default",
            TimingProfile::San => "san",
            TimingProfile::Test => "test",
        }
    }

    /// From its name.
    ///
    /// # Errors
    /// Which names there are.
    pub fn parse(name: &str) -> std::result::Result<TimingProfile, String> {
        let known = [TimingProfile::Default, TimingProfile::San, TimingProfile::Test];
        known.into_iter().find(|p| p.name() == name).ok_or_else(|| "default, san or test".into())
    }

    /// From the on-disk byte.
    pub fn from_raw(raw: u8) -> Option<TimingProfile> {
        [TimingProfile::Default, TimingProfile::San, TimingProfile::Test]
            .into_iter()
            .find(|p| *p as u8 == raw)
    }
}

/// The body, behind the block header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiskSuperblock {
    pub version: U32,
    pub block_size: U32,
    pub uuid: [u8; 16],
    pub hash_seed: [u8; 16],
    pub compat: U64,
    pub ro_compat: U64,
    pub incompat: U64,
    pub total_blocks: U64,
    pub ag_blocks: U64,
    pub ag_count: U32,
    pub ledger_pages: U32,
    pub cell_pitch: U32,
    pub max_slots: U16,
    pub timing: u8,
    pub zero: u8,
    /// Seconds since 1970.
    pub created: U64,
    pub root_inode: U64,
    pub spare: [u8; 256],
}

/// The superblock in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub format_id: u64,
    pub uuid: [u8; 16],
    pub hash_seed: [u8; 16],
    pub compat: u64,
    pub ro_compat: u64,
    pub incompat: u64,
    pub geometry: Geometry,
    pub timing: TimingProfile,
    pub created: u64,
    pub root_inode: u64,
}

/// Where a superblock was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadedFrom {
    Primary,
    /// The primary is damaged; this copy was used.
    Backup(BlockNo),
}

impl Superblock {
    /// The block to write at `place`, sealed.
    pub fn to_block(&self, place: BlockNo) -> Block {
        let mut block =
            Block::init(self.format_id, place, BlockKind::Superblock, 0, LockName::Volume, Version(1));
        let g = &self.geometry;
        *block.body_as_mut::<DiskSuperblock>() = DiskSuperblock {
            version: U32::new(FORMAT_VERSION),
            block_size: U32::new(BLOCK_SIZE as u32),
            uuid: self.uuid,
            hash_seed: self.hash_seed,
            compat: U64::new(self.compat),
            ro_compat: U64::new(self.ro_compat),
            incompat: U64::new(self.incompat),
            total_blocks: U64::new(g.total_blocks),
            ag_blocks: U64::new(g.ag_blocks),
            ag_count: U32::new(g.ag_count),
            ledger_pages: U32::new(g.ledger_pages),
            cell_pitch: U32::new(g.cell_pitch),
            max_slots: U16::new(g.max_slots),
            timing: self.timing as u8,
            zero: 0,
            created: U64::new(self.created),
            root_inode: U64::new(self.root_inode),
            spare: [0; 256],
        };
        block.seal();
        block
    }

    /// Verify and decode a block read from `place`.
    ///
    /// # Errors
    /// `Corrupt` if it is no valid superblock; `Device` for a version or feature we do not know.
    pub fn from_block(block: &Block, place: BlockNo) -> Result<Superblock> {
        let format_id = block.header().format_id.get();
        block.verify(format_id, place, BlockKind::Superblock)?;
        let d = block.body_as::<DiskSuperblock>();
        if d.version.get() != FORMAT_VERSION || d.block_size.get() != BLOCK_SIZE as u32 {
            return Err(Error::Device(format!(
                "the volume has format version {} with blocks of {} bytes; this program knows version {FORMAT_VERSION} \
                 with blocks of {BLOCK_SIZE}: use the Shoal release that made it",
                d.version, d.block_size
            )));
        }
        let bad = |what: &str| Error::corrupt(place, BlockKind::Superblock, what, "something else");
        let geometry = Geometry {
            total_blocks: d.total_blocks.get(),
            max_slots: d.max_slots.get(),
            cell_pitch: d.cell_pitch.get(),
            ledger_pages: d.ledger_pages.get(),
            ag_blocks: d.ag_blocks.get(),
            ag_count: d.ag_count.get(),
        };
        check_geometry(&geometry).map_err(bad)?;
        Ok(Superblock {
            format_id,
            uuid: d.uuid,
            hash_seed: d.hash_seed,
            compat: d.compat.get(),
            ro_compat: d.ro_compat.get(),
            incompat: d.incompat.get(),
            geometry,
            timing: TimingProfile::from_raw(d.timing).ok_or_else(|| bad("a timing profile"))?,
            created: d.created.get(),
            root_inode: d.root_inode.get(),
        })
    }

    /// Refuse features that this program does not know, by their bits.
    pub fn check_features(&self, writing: bool) -> Result<()> {
        let unknown = self.incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(Error::Device(format!(
                "the volume uses features this program does not know (incompat bits {unknown:#x}): \
                 use a newer Shoal release"
            )));
        }
        let unknown = self.ro_compat & !RO_COMPAT_KNOWN;
        if writing && unknown != 0 {
            return Err(Error::Device(format!(
                "the volume uses features that this program can only read (ro_compat bits {unknown:#x}): \
                 mount with -o ro, or use a newer Shoal release"
            )));
        }
        Ok(())
    }
}

/// Can a volume have these sizes?
pub(super) fn check_geometry(g: &Geometry) -> std::result::Result<(), &'static str> {
    if g.max_slots == 0 || g.max_slots > SLOTS_MAX {
        return Err("1 to 64 slots");
    }
    if !matches!(g.cell_pitch, 512 | 4096) {
        return Err("a cell pitch of 512 or 4096");
    }
    if !g.ag_blocks.is_power_of_two() || !(2048..=1 << 24).contains(&g.ag_blocks) {
        return Err("groups of 8 MiB to 64 GiB");
    }
    if g.ag_count == 0 || g.ag_count > GROUPS_MAX {
        return Err("1 to 16384 groups");
    }
    let ledger = u64::from(g.ledger_pages) * LEDGER_ENTRIES_PER_PAGE;
    if g.ledger_pages > 128 || ledger < g.ag_count.into() {
        return Err("ledgers with room for every group");
    }
    let last = AgNo(g.ag_count - 1);
    if g.total_blocks >= 1 << 52
        || g.ag_start(last).0 >= g.total_blocks
        || g.ag_chunks(last) <= g.ag_own_chunks(last)
    {
        return Err("groups within the volume");
    }
    Ok(())
}

fn read(dev: &dyn BlockDevice, place: BlockNo) -> Result<Block> {
    let mut block = Block::zeroed();
    dev.read(place.byte(), &mut block.0)?;
    Ok(block)
}

/// Find the superblock: the primary, else a backup (named, so that the caller can warn).
///
/// # Errors
/// `Device` if this is no Shoal volume, is newer than this program, or is truncated.
pub fn load(dev: &dyn BlockDevice) -> Result<(Superblock, LoadedFrom)> {
    let name = dev.name();
    if dev.size() < (BACKUP_SUPERBLOCK.0 + 1) * BLOCK_SIZE as u64 {
        return Err(Error::Device(format!("{name}: not a Shoal volume (only {} bytes)", dev.size())));
    }
    let (sb, from) = match read(dev, SUPERBLOCK) {
        Ok(block) if block.0[..4] != MAGIC => overwritten(dev, &block)?,
        Ok(block) => match Superblock::from_block(&block, SUPERBLOCK) {
            Ok(sb) => (sb, LoadedFrom::Primary),
            Err(Error::Device(why)) => return Err(Error::Device(format!("{name}: {why}"))),
            Err(damage) => backup_instead(dev, &damage)?,
        },
        Err(unreadable) => backup_instead(dev, &unreadable)?,
    };
    fits(dev, &sb)?;
    Ok((sb, from))
}

fn backup_instead(dev: &dyn BlockDevice, damage: &Error) -> Result<(Superblock, LoadedFrom)> {
    let (sb, place) = load_backup(dev)
        .ok_or_else(|| Error::Device(format!("{}: its superblocks are damaged: {damage}", dev.name())))?;
    Ok((sb, LoadedFrom::Backup(place)))
}

/// Is the device as long as the volume, and can it write a cell without its neighbours?
fn fits(dev: &dyn BlockDevice, sb: &Superblock) -> Result<()> {
    let name = dev.name();
    let wanted = sb.geometry.total_blocks * BLOCK_SIZE as u64;
    if dev.size() < wanted {
        return Err(Error::Device(format!(
            "{name}: truncated: the volume has {wanted} bytes, the device {}; restore its full size",
            dev.size()
        )));
    }
    let (pitch, logical) = (sb.geometry.cell_pitch, dev.logical_block());
    if pitch < logical {
        return Err(Error::Device(format!(
            "{name}: the volume was made for blocks of {pitch} bytes, the device has blocks of {logical}; \
             copy it to a device that can write {pitch} bytes"
        )));
    }
    Ok(())
}

/// The first block is not ours: a blank disk, another owner's by now, or a volume that lost just this
/// block. A backup that survived the making of another filesystem must not bring the old volume back
/// to life over it, so it stands in only where the block bears nobody's signature and both blocks
/// behind it are whole: whoever takes a disk over writes there. Looks at the fixed backup only: this
/// is every blank disk's way, and a search over the disk takes minutes where seeks are slow.
fn overwritten(dev: &dyn BlockDevice, first: &Block) -> Result<(Superblock, LoadedFrom)> {
    let refuse = |why: String| Err(Error::Device(format!("{}: {why}", dev.name())));
    let Some(sb) = superblock_at(dev, BACKUP_SUPERBLOCK) else {
        return refuse("not a Shoal volume (mkfs.shoal makes one)".into());
    };
    let whole =
        |place| matches!(read(dev, place), Ok(block) if Volume::from_block(&block, &sb, place).is_ok());
    if foreign::in_head(&first.0).is_none() && VOLUME_BLOCKS.into_iter().all(whole) {
        return Ok((sb, LoadedFrom::Backup(BACKUP_SUPERBLOCK)));
    }
    refuse(format!(
        "not a Shoal volume; one was here before (its backup superblock is at block {BACKUP_SUPERBLOCK}), but its \
         beginning was overwritten: restore the device from a copy, or make a new volume with mkfs.shoal"
    ))
}

/// What stands at the place of the superblock where [`load`] finds none that it can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// A volume of a format version that this program does not know.
    OtherVersion,
    /// A volume that is damaged, or that the device does not fit.
    Unreadable,
}

/// Does the device still begin as a Shoal volume does?
///
/// # Errors
/// `Io`.
pub fn remains(dev: &dyn BlockDevice) -> Result<Option<Remains>> {
    if dev.size() < BLOCK_SIZE as u64 {
        return Ok(None);
    }
    let block = read(dev, SUPERBLOCK)?;
    if block.0[..4] != MAGIC {
        return Ok(None);
    }
    Ok(Some(match Superblock::from_block(&block, SUPERBLOCK) {
        Err(Error::Device(_)) => Remains::OtherVersion,
        _ => Remains::Unreadable,
    }))
}

fn superblock_at(dev: &dyn BlockDevice, place: BlockNo) -> Option<Superblock> {
    let block = read(dev, place).ok()?;
    (block.0[..4] == MAGIC).then_some(())?;
    Superblock::from_block(&block, place).ok()
}

/// The fixed backup, else the one at the start of group 1, looked for at every possible place. For
/// fsck: what stands there may be the remains of a volume that was overwritten on purpose.
pub fn load_backup(dev: &dyn BlockDevice) -> Option<(Superblock, BlockNo)> {
    let try_at = |place| Some((superblock_at(dev, place)?, place));
    try_at(BACKUP_SUPERBLOCK).or_else(|| {
        let blocks = dev.size() / BLOCK_SIZE as u64;
        // Group starts are whole chunks; group 1 begins within the first 64 GiB and a bit.
        (1..)
            .map(|c| BlockNo(c * 512))
            .take_while(|b| b.0 < blocks && b.0 < (1 << 24) + (1 << 16))
            .find_map(try_at)
    })
}

#[cfg(test)]
mod tests;
