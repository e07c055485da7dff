//! Long values: a list of metadata blocks, their total length and crc, named by an item.
//!
//! Descriptor, little-endian: length u32, crc32c u32, then one u64 block number per 4032 bytes.

use super::Tree;
use crate::base::{BLOCK_SIZE, BlockNo, Error, Result};
use crate::format::block::{HEADER_SIZE, crc32c};
use crate::format::{Block, BlockKind};
use crate::txn::{BlockSource, BlockTxn};

/// Bytes of value in one block.
const PER_BLOCK: usize = BLOCK_SIZE - HEADER_SIZE;
/// Longest value.
pub const BLOB_BYTES_MAX: usize = 65536;

/// Where a long value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub length: u32,
    pub crc: u32,
    pub blocks: Vec<BlockNo>,
}

impl Blob {
    /// Blocks that a value of `length` bytes takes.
    pub fn blocks_for(length: usize) -> usize {
        length.div_ceil(PER_BLOCK)
    }

    /// The descriptor's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 8 * self.blocks.len());
        out.extend(self.length.to_le_bytes());
        out.extend(self.crc.to_le_bytes());
        for b in &self.blocks {
            out.extend(b.0.to_le_bytes());
        }
        out
    }

    /// From a descriptor; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Blob> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        if length as usize > BLOB_BYTES_MAX || rest.len() != 8 * Blob::blocks_for(length as usize) {
            return None;
        }
        let blocks =
            rest.chunks_exact(8).map(|c| BlockNo(u64::from_le_bytes(c.try_into().expect("8 bytes"))));
        Some(Blob { length, crc: u32::from_le_bytes(*crc), blocks: blocks.collect() })
    }

    /// Write a value into new blocks near the inode.
    pub fn write(tree: &Tree, txn: &mut dyn BlockTxn, value: &[u8]) -> Result<Blob> {
        let mut blocks = Vec::new();
        for part in value.chunks(PER_BLOCK) {
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
            let n = PER_BLOCK.min(self.length as usize - value.len());
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
