//! The image seen past the daemons: finding blocks and damaging them.

use shoal::base::{BLOCK_SIZE, BlockNo};
use shoal::device::{Access, FileDevice};
use shoal::format::superblock::{self, Superblock};
use shoal::format::volume::{self, Volume};
use shoal::format::{Block, BlockKind};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub struct Disk {
    file: File,
    pub superblock: Superblock,
    pub volume: Volume,
}

impl Disk {
    pub fn open(image: &Path) -> Disk {
        let device = FileDevice::open(image, Access::Read).unwrap();
        let (superblock, _) = superblock::load(&device).unwrap();
        let volume = volume::load(&device, &superblock).unwrap();
        let file = File::options().read(true).write(true).open(image).unwrap();
        Disk { file, superblock, volume }
    }

    pub fn read(&self, block: BlockNo) -> Block {
        let mut image = Block::zeroed();
        self.file.read_exact_at(&mut image.0, block.byte()).unwrap();
        image
    }

    pub fn write(&self, block: BlockNo, image: &Block) {
        self.file.write_all_at(&image.0, block.byte()).unwrap();
    }

    /// Blocks of this volume of a kind that belong to `owner`, ascending.
    pub fn find(&self, kind: BlockKind, owner: u64) -> Vec<BlockNo> {
        let blocks = (0..self.superblock.geometry.total_blocks).map(BlockNo);
        let is_wanted = |place: &BlockNo| {
            let image = self.read(*place);
            image.header().owner.get() == owner
                && image.verify(self.superblock.format_id, *place, kind).is_ok()
        };
        blocks.filter(is_wanted).collect()
    }

    /// Turn one bit behind the header.
    pub fn spoil(&self, block: BlockNo) {
        let mut image = self.read(block);
        image.0[1000] ^= 4;
        self.write(block, &image);
    }

    /// Put `count` blocks from `start` of another image in the place of ours.
    pub fn transplant(&self, other: &Disk, start: u64, count: u64) {
        let mut bytes = vec![0; count as usize * BLOCK_SIZE];
        other.file.read_exact_at(&mut bytes, BlockNo(start).byte()).unwrap();
        self.file.write_all_at(&bytes, BlockNo(start).byte()).unwrap();
    }
}

/// `log` has a line of severity `level` that tells where the damage is, of what kind, and both what
/// had to be there and what was found.
#[track_caller]
pub fn assert_told(log: &str, block: BlockNo, kind: BlockKind) {
    let wanted = format!("block {block} is corrupt: {kind}: expected ");
    let told = log.lines().any(|l| l.contains("ERROR") && l.contains(&wanted) && l.contains(", found "));
    assert!(told, "no line with '{wanted}' in\n{log}");
}
