//! A block as the cache keeps it: whole, or without its lines of zeros where that saves much. An inode
//! without items takes a tenth of its block then, the tombstone of a freed one a sixtieth.

use crate::base::{BLOCK_SIZE, LockName};
use crate::format::block::{BlockHeader, HEADER_SIZE};
use crate::format::journal::LINE_SIZE;
use crate::format::{Block, BlockKind};
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Lines up to which a block is kept packed.
const PACKED_LINES_MAX: u32 = 24;

const _: () = assert!(LINE_SIZE * 64 == BLOCK_SIZE && HEADER_SIZE == LINE_SIZE);

/// Bit i is set if line i has a byte that is not zero.
fn lines_of(image: &Block) -> u64 {
    let mut lines = 0;
    for (i, line) in image.0.chunks_exact(LINE_SIZE).enumerate() {
        let any = line.chunks_exact(8).fold(0, |a, w| a | u64::from_ne_bytes(w.try_into().expect("8 bytes")));
        lines |= u64::from(any != 0) << i;
    }
    lines
}

/// See the head of the file.
#[derive(Clone)]
pub(crate) enum Image {
    Whole(Arc<Block>),
    /// Which lines there are, the header's among them, and these one behind the other.
    Packed(u64, Arc<[u8]>),
}

impl Image {
    /// The block without its zeros, if that is worth it.
    pub fn packed(block: &Block) -> Option<Image> {
        let lines = lines_of(block);
        if lines & 1 == 0 || lines.count_ones() > PACKED_LINES_MAX {
            return None;
        }
        let mut bytes = [0; PACKED_LINES_MAX as usize * LINE_SIZE];
        let present = block.0.chunks_exact(LINE_SIZE).enumerate().filter(|(i, _)| lines & (1 << i) != 0);
        for ((_, line), to) in present.zip(bytes.chunks_exact_mut(LINE_SIZE)) {
            to.copy_from_slice(line);
        }
        Some(Image::Packed(lines, bytes[..lines.count_ones() as usize * LINE_SIZE].into()))
    }

    /// Of a block of which there is nothing but the header.
    pub fn of_header(header: &BlockHeader) -> Image {
        Image::Packed(1, header.as_bytes().into())
    }

    /// Of a block that nobody is about to change.
    pub fn of(block: &Arc<Block>) -> Image {
        Image::packed(block).unwrap_or_else(|| Image::Whole(block.clone()))
    }

    /// The whole block.
    pub fn whole(&self) -> Arc<Block> {
        match self {
            Image::Whole(block) => block.clone(),
            Image::Packed(..) => {
                let mut block = Arc::<Block>::default();
                self.put_lines(Arc::get_mut(&mut block).expect("not shared yet"));
                block
            }
        }
    }

    /// The whole block, into `block`.
    pub fn unpack(&self, block: &mut Block) {
        match self {
            Image::Whole(whole) => block.0 = whole.0,
            Image::Packed(..) => {
                block.0.fill(0);
                self.put_lines(block);
            }
        }
    }

    /// The lines of a packed one at their places; the others of `block` are zeros.
    fn put_lines(&self, block: &mut Block) {
        if let Image::Packed(lines, bytes) = self {
            let places = block.0.chunks_exact_mut(LINE_SIZE).enumerate();
            let present = places.filter(|(i, _)| lines & (1 << i) != 0);
            present.zip(bytes.chunks_exact(LINE_SIZE)).for_each(|((_, to), line)| to.copy_from_slice(line));
        }
    }

    /// Make it whole and give access to it.
    pub fn unpacked(&mut self) -> &mut Arc<Block> {
        if let Image::Packed(..) = self {
            *self = Image::Whole(self.whole());
        }
        match self {
            Image::Whole(block) => block,
            Image::Packed(..) => unreachable!("just made whole"),
        }
    }

    /// Pack it, if that is worth it.
    pub fn pack(&mut self) {
        if let Image::Whole(block) = self
            && let Some(packed) = Image::packed(block)
        {
            *self = packed;
        }
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Image::Whole(_) => BLOCK_SIZE,
            Image::Packed(_, bytes) => bytes.len(),
        }
    }

    /// Which lines are not all zeros.
    pub fn lines(&self) -> u64 {
        match self {
            Image::Whole(block) => lines_of(block),
            Image::Packed(lines, _) => *lines,
        }
    }

    /// Put these lines of it, all that [`Image::lines`] told, at the front of `out`; answers with their length.
    pub fn copy_lines(&self, lines: u64, out: &mut [u8]) -> usize {
        match self {
            Image::Whole(block) => {
                let present =
                    block.0.chunks_exact(LINE_SIZE).enumerate().filter(|(i, _)| lines & (1 << i) != 0);
                for ((_, line), to) in present.zip(out.chunks_exact_mut(LINE_SIZE)) {
                    to.copy_from_slice(line);
                }
            }
            Image::Packed(_, bytes) => out[..bytes.len()].copy_from_slice(bytes),
        }
        lines.count_ones() as usize * LINE_SIZE
    }

    /// The header.
    pub fn header(&self) -> &BlockHeader {
        match self {
            Image::Whole(block) => block.header(),
            Image::Packed(_, bytes) => {
                BlockHeader::ref_from_bytes(&bytes[..HEADER_SIZE]).expect("the header's line is there")
            }
        }
    }

    /// The kind in the header, if it is one.
    pub fn kind(&self) -> Option<BlockKind> {
        BlockKind::from_raw(self.header().kind.get())
    }

    /// The covering lock, if it is one.
    pub fn cover(&self) -> Option<LockName> {
        LockName::from_raw(self.header().cover_class, self.header().cover_id.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockNo, InodeNo, Version};

    #[test]
    fn what_was_packed_comes_out_as_it_was() {
        let cover = LockName::Inode(InodeNo(9));
        let mut block = Block::init(1, BlockNo(9), BlockKind::Inode, 9, cover, Version(3));
        for (at, packs) in [(100, true), (BLOCK_SIZE - 1, true), (0, true)] {
            block.0[at] |= 0x40;
            let image = Image::of(&Arc::new(block.clone()));
            assert_eq!(matches!(image, Image::Packed(..)), packs);
            assert!(image.bytes() <= 3 * LINE_SIZE && image.whole().0 == block.0);
            assert_eq!((image.kind(), image.cover()), (Some(BlockKind::Inode), Some(cover)));
        }
        block.0[64..].fill(1);
        let mut image = Image::of(&Arc::new(block.clone()));
        assert_eq!(image.bytes(), BLOCK_SIZE);
        image.pack();
        assert!(matches!(image, Image::Whole(_)) && image.unpacked().0 == block.0);
    }
}
