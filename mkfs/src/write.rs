//! The writes of mkfs, in the order that makes a cut harmless.

use crate::Summary;
use crate::plan::{Given, GroupPlan};
use shoal::base::{BLOCK_SIZE, BlockNo, Error, LockName, Result, SlotId, Version};
use shoal::device::BlockDevice;
use shoal::format::group::{self, ChunkKind, ChunkPage, GroupHeader};
use shoal::format::inode::{DiskAttr, DiskTime, ROOT_PAGE};
use shoal::format::item::PageMut;
use shoal::format::journal::{HEADER_BLOCKS, JournalPlace};
use shoal::format::layout::{BACKUP_SUPERBLOCK, CHUNK_BLOCKS, CHUNKS_PER_PAGE, SUPERBLOCK, VOLUME_BLOCKS};
use shoal::format::superblock::Superblock;
use shoal::format::volume::Volume;
use shoal::format::{Block, BlockKind, Geometry, cluster, foreign};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

const DIRECTORY: u32 = 0o040_755;
const SYSTEM_FILE: u32 = 0o100_600;

/// Write the volume that `summary` describes.
///
/// # Errors
/// `Io`: the device holds no volume then, neither the old nor the new.
pub fn write(dev: &dyn BlockDevice, summary: &Summary, keep_content: bool) -> Result<()> {
    let maker =
        Maker { dev, summary, geometry: &summary.layout.geometry, format_id: summary.identity.format_id };
    maker.wipe(keep_content)?;
    maker.regions()?;
    for plan in &summary.layout.groups {
        maker.group(plan)?;
    }
    maker.journals()?;
    maker.inodes()?;
    dev.flush()?;
    maker.superblocks()
}

struct Maker<'a> {
    dev: &'a dyn BlockDevice,
    summary: &'a Summary,
    geometry: &'a Geometry,
    format_id: u64,
}

impl Maker<'_> {
    /// Whatever was here before is not to be found any more, neither by us nor by `blkid`.
    fn wipe(&self, keep_content: bool) -> Result<()> {
        let found = foreign::signatures(self.dev)?;
        for place in self.superblock_places() {
            self.dev.write(place.byte(), &Block::zeroed().0)?;
        }
        for signature in &found {
            let (start, length) = signature.sectors(self.dev.logical_block());
            self.dev.write(start, &vec![0; length as usize])?;
        }
        self.dev.flush()?;
        if !keep_content {
            self.discard()?;
            // What a device answers for a discarded block is its own affair.
            for place in self.superblock_places() {
                self.dev.write(place.byte(), &Block::zeroed().0)?;
            }
        }
        self.dev.flush()
    }

    /// In steps, so that a large device answers in between.
    fn discard(&self) -> Result<()> {
        const STEP: u64 = 64 << 30;
        let end = self.geometry.total_blocks * BLOCK_SIZE as u64;
        let mut at = 0;
        while at < end {
            let length = STEP.min(end - at);
            match self.dev.discard(at, length) {
                // A device that cannot is as good as one that need not.
                Err(Error::Unsupported(_)) => return Ok(()),
                done => done?,
            }
            at += length;
        }
        Ok(())
    }

    fn superblock_places(&self) -> impl Iterator<Item = BlockNo> {
        [SUPERBLOCK, BACKUP_SUPERBLOCK].into_iter().chain(self.geometry.group_backup_superblock())
    }

    /// Volume block and coordination regions.
    fn regions(&self) -> Result<()> {
        let layout = &self.summary.layout;
        let slots = layout.slots.len() as u16;
        // Copies alternate by sequence; both are written so that neither is ever anything else.
        for sequence in 1..=VOLUME_BLOCKS.len() as u64 {
            let volume = Volume {
                sequence,
                features: 0,
                total_blocks: self.geometry.total_blocks,
                ag_count: self.geometry.ag_count,
                timing: self.summary.timing,
                label: self.summary.label.clone(),
                slots: layout.slots.clone(),
            };
            let (place, block) = volume.to_block(self.format_id);
            self.dev.write(place.byte(), &block.0)?;
        }
        cluster::initial_regions(self.format_id, self.geometry, slots, &mut |at, bytes| {
            self.dev.write(at, bytes)
        })
    }

    /// Header and chunk pages of one group, in one write.
    fn group(&self, plan: &GroupPlan) -> Result<()> {
        let g = self.geometry;
        let init_chunks = plan.init_chunks(g);
        let mut header = group::header_block(self.format_id, g, plan.ag, Version(1));
        let h = header.body_as_mut::<GroupHeader>();
        h.vclock = U64::new(plan.vclock);
        h.init_chunks = U32::new(init_chunks as u32);
        h.free_chunks = U64::new(plan.free_chunks(g));
        h.free_meta = U64::new(plan.free_meta());
        header.seal();
        let mut bytes = header.0.to_vec();
        for page in 0..init_chunks.div_ceil(CHUNKS_PER_PAGE) {
            let mut block = group::page_block(self.format_id, g, plan.ag, page, Version(1));
            let entries = &mut block.body_as_mut::<ChunkPage>().entries;
            let first = page * CHUNKS_PER_PAGE;
            for (entry, chunk) in entries.iter_mut().zip(first..g.ag_chunks(plan.ag)) {
                *entry = plan.entry(chunk);
            }
            block.seal();
            bytes.extend_from_slice(&block.0);
        }
        self.dev.write(g.ag_header(plan.ag).byte(), &bytes)?;
        // No block of a metadata chunk may look as if it had a version already.
        let metadata = plan.kinds.iter().filter(|(_, kind)| **kind == ChunkKind::Metadata);
        for (chunk, _) in metadata {
            let start = group::chunk_start(g, plan.ag, *chunk).byte();
            self.dev.write_zeros(start, CHUNK_BLOCKS * BLOCK_SIZE as u64)?;
        }
        Ok(())
    }

    /// Empty journals. The ring needs no content: records of an earlier life bear another format id.
    fn journals(&self) -> Result<()> {
        for (i, slot) in self.summary.layout.slots.iter().enumerate() {
            let place = JournalPlace {
                format_id: self.format_id,
                slot: SlotId(i as u16),
                start: slot.journal_start,
                blocks: slot.journal_blocks,
            };
            let headers: [Block; HEADER_BLOCKS as usize] = place.empty();
            let bytes: Vec<u8> = headers.iter().flat_map(|b| b.0).collect();
            self.dev.write(slot.journal_start.byte(), &bytes)?;
        }
        Ok(())
    }

    /// The root directory, and each slot's system inode.
    fn inodes(&self) -> Result<()> {
        let layout = &self.summary.layout;
        self.inode(layout.root, LockName::Inode(layout.root.ino), DIRECTORY, 2, layout.root.ino.0)?;
        for (i, given) in layout.slot_inodes.iter().enumerate() {
            self.inode(*given, LockName::Slot(SlotId(i as u16)), SYSTEM_FILE, 1, 0)?;
        }
        Ok(())
    }

    fn inode(&self, given: Given, cover: LockName, mode: u32, nlink: u32, parent: u64) -> Result<()> {
        let place = given.ino.block();
        let version = Version(given.version);
        let mut block = Block::init(self.format_id, place, BlockKind::Inode, given.ino.0, cover, version);
        let now = DiskTime { seconds: I64::new(self.summary.identity.created as i64), nanos: U32::new(0) };
        let attr = DiskAttr {
            generation: U64::new(given.version),
            mode: U32::new(mode),
            nlink: U32::new(nlink),
            parent: U64::new(parent),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..DiskAttr::new_zeroed()
        };
        block.body_mut()[..size_of::<DiskAttr>()].copy_from_slice(attr.as_bytes());
        PageMut::new(&mut block.0[ROOT_PAGE..]).reset(0);
        block.seal();
        self.dev.write(place.byte(), &block.0)
    }

    /// Backups, then the superblock: with it the volume exists.
    fn superblocks(&self) -> Result<()> {
        let identity = &self.summary.identity;
        let superblock = Superblock {
            format_id: self.format_id,
            uuid: identity.uuid,
            hash_seed: identity.hash_seed,
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            geometry: *self.geometry,
            timing: self.summary.timing,
            created: identity.created,
            root_inode: self.summary.layout.root.ino.0,
        };
        for place in self.superblock_places().skip(1) {
            self.dev.write(place.byte(), &superblock.to_block(place).0)?;
        }
        self.dev.flush()?;
        self.dev.write(SUPERBLOCK.byte(), &superblock.to_block(SUPERBLOCK).0)?;
        self.dev.flush()
    }
}
