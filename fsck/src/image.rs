//! The volume as it is after replay: the device, with what replay would change laid over it.

use shoal::base::{BLOCK_SIZE, BlockNo, Error, LockName, Result};
use shoal::device::BlockDevice;
use shoal::format::superblock::Superblock;
use shoal::format::volume::Volume;
use shoal::format::{Block, BlockKind, Geometry};
use shoal::store::AlignedBuf;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reads blocks; shared by all threads.
pub struct Image {
    pub device: Arc<dyn BlockDevice>,
    pub superblock: Superblock,
    pub volume: Volume,
    /// Blocks as replay would leave them, where they differ.
    pub overlay: BTreeMap<BlockNo, Arc<Block>>,
}

impl Image {
    /// Sizes of the volume as of now.
    pub fn geometry(&self) -> Geometry {
        self.volume.geometry(&self.superblock)
    }

    /// A block, whatever it holds.
    ///
    /// # Errors
    /// `Io`; `Corrupt` for a block behind the end of the volume.
    pub fn read(&self, block: BlockNo) -> Result<Block> {
        if block.0 >= self.volume.total_blocks {
            let what = "a reference behind its end";
            return Err(Error::corrupt(block, "block", "a block of the volume", what));
        }
        if let Some(changed) = self.overlay.get(&block) {
            return Ok((**changed).clone());
        }
        let mut b = Block::zeroed();
        self.device.read(block.byte(), &mut b.0)?;
        Ok(b)
    }

    /// Blocks from `start` on into `buf`.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_run(&self, start: BlockNo, buf: &mut AlignedBuf) -> Result<()> {
        let bytes = buf.bytes_mut();
        let end = start.plus((bytes.len() / BLOCK_SIZE) as u64);
        self.device.read(start.byte(), bytes)?;
        for (block, changed) in self.overlay.range(start..end) {
            let at = (block.0 - start.0) as usize * BLOCK_SIZE;
            bytes[at..at + BLOCK_SIZE].copy_from_slice(&changed.0);
        }
        Ok(())
    }

    /// A metadata block that must be what it is said to be: kind, owner, covering lock, checksum.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn read_verified(
        &self,
        block: BlockNo,
        kind: BlockKind,
        owner: u64,
        cover: LockName,
    ) -> Result<Block> {
        let b = self.read(block)?;
        verify(&b, self.superblock.format_id, block, kind, owner, cover)?;
        Ok(b)
    }
}

/// Is `b` what must stand at `block`?
///
/// # Errors
/// `Corrupt`.
pub fn verify(
    b: &Block,
    format_id: u64,
    block: BlockNo,
    kind: BlockKind,
    owner: u64,
    cover: LockName,
) -> Result<()> {
    b.verify(format_id, block, kind)?;
    if b.header().owner.get() != owner {
        return Err(Error::corrupt(block, kind, format_args!("owner {owner}"), b.header().owner.get()));
    }
    if b.cover() != Some(cover) {
        let found = format!("covered by {:?}", b.cover());
        return Err(Error::corrupt(block, kind, format_args!("covered by {cover:?}"), found));
    }
    Ok(())
}

/// What an error says, without the advice that is meant for a mount.
pub fn words(e: &Error) -> String {
    match e {
        Error::Corrupt { block, kind, expected, found } => {
            format!("block {block} is no valid {kind}: expected {expected}, found {found}")
        }
        other => other.to_string(),
    }
}
