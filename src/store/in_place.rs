//! Metadata blocks go to their places: unpacked, sealed, neighbours in one write, several writes at once.

use super::batch::Segment;
use super::{AlignedBuf, Image, Store};
use crate::base::{BLOCK_SIZE, BlockNo, Result};
use crate::format::{Block, BlockKind};
use parking_lot::Mutex;
use std::sync::Arc;

/// Blocks of one merged write at most (1 MiB).
const RUN_BLOCKS_MAX: usize = 256;
/// Buffers that are kept, and blocks of the largest: memory that is used for the first time costs more
/// than all else here.
const BUFFERS: usize = 2;
const KEPT_BLOCKS_MAX: usize = 1024;

/// Buffers between two uses. A thread that helped with a batch may have one a little longer.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Arc<AlignedBuf>>>);

impl Buffers {
    /// One of at least `blocks` blocks that is nobody else's, with whatever is in it.
    fn take(&self, blocks: usize) -> AlignedBuf {
        let mut kept = self.0.lock();
        let free = |buffer: &mut Arc<AlignedBuf>| {
            buffer.bytes().len() >= blocks * BLOCK_SIZE && Arc::get_mut(buffer).is_some()
        };
        let found = kept.iter_mut().position(free).map(|at| kept.swap_remove(at));
        found.and_then(Arc::into_inner).unwrap_or_else(|| AlignedBuf::new(blocks))
    }

    fn keep(&self, buffer: Arc<AlignedBuf>) {
        let mut kept = self.0.lock();
        if buffer.bytes().len() <= KEPT_BLOCKS_MAX * BLOCK_SIZE {
            // The newest are the ones that a batch of today's size needs.
            kept.insert(0, buffer);
            kept.truncate(BUFFERS);
        }
    }
}

impl Store {
    /// Write metadata blocks in place: sealed, neighbours merged, several at once. `blocks` ascend.
    ///
    /// # Errors
    /// Any failure halts the host.
    pub(crate) fn write_blocks(&self, blocks: &[(BlockNo, Image)]) -> Result<()> {
        self.put_blocks(blocks).inspect_err(|e| self.halt_for(e, "a metadata write failed"))
    }

    /// The same of another host, whose journal has them.
    ///
    /// # Errors
    /// A failed write does not halt this host: it leaves nothing unknown that the journal does not tell.
    pub(crate) fn put_blocks(&self, blocks: &[(BlockNo, Image)]) -> Result<()> {
        let mut buffer = self.in_place.take(blocks.len());
        let mut whole = Block::zeroed();
        for ((block, image), page) in blocks.iter().zip(buffer.bytes_mut().chunks_exact_mut(BLOCK_SIZE)) {
            image.unpack(&mut whole);
            self.seal(*block, &mut whole)?;
            page.copy_from_slice(&whole.0);
        }
        let buffer = Arc::new(buffer);
        let mut from = 0;
        let segment = |run: &[(BlockNo, Image)]| {
            let len = run.len() * BLOCK_SIZE;
            from += len;
            Segment { offset: run[0].0.byte(), buf: buffer.clone(), from: from - len, len }
        };
        let segments = runs(blocks).into_iter().map(segment).collect();
        let written = self.put_segments(segments);
        self.in_place.keep(buffer);
        written
    }

    /// Make an image ready for the device; refuses one that does not belong at `block`.
    fn seal(&self, block: BlockNo, image: &mut Block) -> Result<()> {
        image.seal();
        let kind = image.kind().unwrap_or(BlockKind::Free);
        image
            .verify(self.format_id, block, kind)
            .inspect_err(|e| self.halt.trip(format!("a bad block was to be written: {e}")))
    }
}

/// Runs of neighbouring blocks, at most [`RUN_BLOCKS_MAX`] long.
fn runs(blocks: &[(BlockNo, Image)]) -> Vec<&[(BlockNo, Image)]> {
    let mut out = Vec::new();
    let mut rest = blocks;
    while !rest.is_empty() {
        let neighbours = rest.windows(2).take_while(|w| w[1].0.0 == w[0].0.0 + 1).count() + 1;
        let (run, tail) = rest.split_at(neighbours.min(RUN_BLOCKS_MAX));
        out.push(run);
        rest = tail;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_nobody_has_it_any_more() {
        let buffers = Buffers::default();
        let place = |buffer: &AlignedBuf| buffer.bytes().as_ptr();
        let (small, large) = (buffers.take(3), buffers.take(8));
        let at = place(&large);
        buffers.keep(Arc::new(small));
        let large = Arc::new(large);
        buffers.keep(large.clone());
        assert_ne!(place(&buffers.take(8)), at);
        drop(large);
        let again = buffers.take(5);
        assert_eq!((place(&again), again.bytes().len()), (at, 8 * BLOCK_SIZE));
        let mut too_large = AlignedBuf::new(KEPT_BLOCKS_MAX + 1);
        too_large.bytes_mut().fill(7);
        buffers.keep(Arc::new(too_large));
        assert!(buffers.take(KEPT_BLOCKS_MAX + 1).bytes().iter().all(|b| *b == 0), "it was not kept");
    }
}
