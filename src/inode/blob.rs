//! Long values: writing, reading and freeing the metadata blocks that an item's descriptor lists.

use super::Tree;
use crate::base::{Error, Result};
use crate::format::block::crc32c;
use crate::format::value::{BLOB_BYTES_PER_BLOCK, Blob};
use crate::format::{Block, BlockKind};
use crate::txn::{BlockSource, BlockTxn};

impl Blob {
    /// Write a value into new blocks near the inode.
    pub fn write(tree: &Tree, txn: &mut dyn BlockTxn, value: &[u8]) -> Result<Blob> {
        let mut blocks = Vec::new();
        for part in value.chunks(BLOB_BYTES_PER_BLOCK) {
            let block = txn.alloc_block(BlockKind::Blob, tree.ino, tree.cover, tree.ino.block())?;
            txn.modify(block, BlockKind::Blob, tree.cover, &mut |b: &mut Block| {
                b.body_mut()[..part.len()].copy_from_slice(part);
            })?;
            blocks.push(block);
        }
        Ok(Blob { length: value.len() as u32, crc: crc32c(value), blocks })
    }

    /// The value.
    ///
    /// # Errors
    /// `Damaged` if the crc does not fit.
    pub fn read(&self, tree: &Tree, src: &dyn BlockSource) -> Result<Vec<u8>> {
        let mut value = Vec::with_capacity(self.length as usize);
        for block in &self.blocks {
            let image = src.read(*block, BlockKind::Blob, tree.cover)?;
            tree.check_owner(&image, *block, BlockKind::Blob)?;
            let n = BLOB_BYTES_PER_BLOCK.min(self.length as usize - value.len());
            value.extend_from_slice(&image.body()[..n]);
        }
        if crc32c(&value) != self.crc {
            return Err(Error::Damaged {
                inode: tree.ino,
                what: "a long value has the wrong checksum".into(),
            });
        }
        Ok(value)
    }

    /// Give the blocks back.
    pub fn free(&self, tree: &Tree, txn: &mut dyn BlockTxn) -> Result<()> {
        self.blocks.iter().try_for_each(|b| {
            // A damaged descriptor must not free another inode's value.
            tree.check_owner(&*txn.read(*b, BlockKind::Blob, tree.cover)?, *b, BlockKind::Blob)?;
            txn.free_block(*b, BlockKind::Blob, tree.cover)
        })
    }
}
