//! Writing the empty volume. The superblock goes last: until then the device is no Shoal volume.

use crate::plan::{Plan, Use};
use shoal::base::{AgNo, BlockNo, Generation, InodeNo, LockName, Result, SlotId, Version};
use shoal::device::BlockDevice;
use shoal::format::block::{Block, BlockKind};
use shoal::format::cluster::initial_regions;
use shoal::format::group::{self, ChunkEntry, ChunkKind, ChunkPage, GroupHeader};
use shoal::format::journal::JournalPlace;
use shoal::format::layout::{BACKUP_SUPERBLOCK, CHUNK_BLOCKS, CHUNKS_PER_PAGE, SUPERBLOCK};
use shoal::inode::{Attr, FileKind, Timestamp, init_inode};
use std::time::Duration;
use zerocopy::little_endian::{U16, U32, U64};

/// Version of every block that mkfs writes, and the first generation.
const FIRST: u64 = 1;

/// Write the volume.
///
/// # Errors
/// `Io`.
pub fn write(dev: &dyn BlockDevice, plan: &Plan) -> Result<()> {
    let sb = &plan.superblock;
    let g = &sb.geometry;
    // Nothing of an older life may be taken for this one while we write.
    dev.write_zeros(0, BlockNo(3).byte())?;
    dev.flush()?;
    let _ = dev.discard(BlockNo(3).byte(), BlockNo(g.total_blocks - 3).byte());
    initial_regions(sb.format_id, g, plan.volume.slots.len() as u16, &mut |offset, bytes| {
        dev.write(offset, bytes)
    })?;
    for ag in (0..g.ag_count).map(AgNo) {
        write_group(dev, plan, ag)?;
    }
    write_inodes(dev, plan)?;
    write_journals(dev, plan)?;
    for sequence in [0, 1] {
        let (place, block) =
            shoal::format::volume::Volume { sequence, ..plan.volume.clone() }.to_block(sb.format_id);
        put(dev, place, &block)?;
    }
    for place in [Some(BACKUP_SUPERBLOCK), g.group_backup_superblock()].into_iter().flatten() {
        put(dev, place, &sb.to_block(place))?;
    }
    dev.flush()?;
    put(dev, SUPERBLOCK, &sb.to_block(SUPERBLOCK))?;
    dev.flush()
}

fn put(dev: &dyn BlockDevice, place: BlockNo, block: &Block) -> Result<()> {
    dev.write(place.byte(), &block.0)
}

/// The entries of a group's chunks up to the last one used.
fn entries(plan: &Plan, ag: AgNo) -> Vec<ChunkEntry> {
    let own = plan.superblock.geometry.ag_own_chunks(ag);
    let mut entries = vec![ChunkEntry::full(ChunkKind::System); own as usize];
    for (chunk, what) in plan.chunks.get(&ag).into_iter().flatten() {
        let chunk = *chunk as usize;
        if entries.len() <= chunk {
            entries.resize(chunk + 1, ChunkEntry::empty(ChunkKind::Free));
        }
        entries[chunk] = match what {
            Use::System => ChunkEntry::full(ChunkKind::System),
            Use::Inodes(used) => {
                let mut entry = ChunkEntry::empty(ChunkKind::Metadata);
                (0..*used as usize).for_each(|i| entry.set(i, true));
                entry.free = U16::new((CHUNK_BLOCKS - used) as u16);
                entry
            }
        };
    }
    entries
}

fn write_group(dev: &dyn BlockDevice, plan: &Plan, ag: AgNo) -> Result<()> {
    let sb = &plan.superblock;
    let g = &sb.geometry;
    let entries = entries(plan, ag);
    let count = |kind: ChunkKind| entries.iter().filter(move |e| e.kind == kind as u8);
    let free_of = |kind| count(kind).map(|e| u64::from(e.free.get())).sum::<u64>();
    let mut header = group::header_block(sb.format_id, g, ag, Version(FIRST));
    let body = header.body_as_mut::<GroupHeader>();
    body.vclock = U64::new(FIRST);
    body.init_chunks = U32::new(entries.len() as u32);
    let untouched = g.ag_chunks(ag) - entries.len() as u64;
    body.free_chunks = U64::new(untouched + count(ChunkKind::Free).count() as u64);
    body.free_data = U64::new(0);
    body.free_meta = U64::new(free_of(ChunkKind::Metadata));
    for (page, part) in entries.chunks(CHUNKS_PER_PAGE as usize).enumerate() {
        let mut block = group::page_block(sb.format_id, g, ag, page as u64, Version(FIRST));
        block.body_as_mut::<ChunkPage>().entries[..part.len()].copy_from_slice(part);
        block.seal();
        put(dev, g.chunk_page(ag, page as u64), &block)?;
    }
    header.seal();
    put(dev, g.ag_header(ag), &header)
}

fn inode_block(plan: &Plan, ino: InodeNo, cover: LockName, mode: u32, parent: InodeNo) -> Block {
    let sb = &plan.superblock;
    let now = Timestamp::from(Duration::from_secs(sb.created));
    let mut attr = Attr::new(ino, Generation(FIRST), FileKind::Directory, mode, now);
    attr.nlink = 2;
    attr.parent = parent;
    let mut block = Block::init(sb.format_id, ino.block(), BlockKind::Inode, ino.0, cover, Version(FIRST));
    init_inode(&mut block, &attr.to_disk());
    block.seal();
    block
}

/// The root directory and one system inode per slot, in a chunk that was zeroed first: what it held
/// before must not look like a version.
fn write_inodes(dev: &dyn BlockDevice, plan: &Plan) -> Result<()> {
    let root = InodeNo(plan.superblock.root_inode);
    dev.write_zeros(root.block().byte(), BlockNo(CHUNK_BLOCKS).byte())?;
    put(dev, root.block(), &inode_block(plan, root, LockName::Inode(root), 0o755, root))?;
    for (slot, extents) in plan.volume.slots.iter().enumerate() {
        let cover = LockName::Slot(SlotId(slot as u16));
        put(dev, extents.inode.block(), &inode_block(plan, extents.inode, cover, 0, extents.inode))?;
    }
    Ok(())
}

fn write_journals(dev: &dyn BlockDevice, plan: &Plan) -> Result<()> {
    for (slot, extents) in plan.volume.slots.iter().enumerate() {
        let place = JournalPlace {
            format_id: plan.superblock.format_id,
            slot: SlotId(slot as u16),
            start: extents.journal_start,
            blocks: extents.journal_blocks,
        };
        for (i, block) in place.empty().iter().enumerate() {
            put(dev, place.start.plus(i as u64), block)?;
        }
    }
    Ok(())
}
