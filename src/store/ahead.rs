//! Reading metadata blocks before they are asked for: many with one request, several requests at once.
//!
//! They become cached blocks like any other, so the caller must hold the lock that covers each of them
//! while this runs. What cannot be used is passed over: whoever asks for it reads it again, and hears
//! what is wrong.

use super::image::Image;
use super::{AlignedBuf, Store};
use crate::base::{BLOCK_SIZE, BlockNo, LockName};
use crate::format::{Block, BlockKind};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks of one request: where three quarters or more are wanted, and where less are. Of the latter there are
/// several at once, and what is wanted of them should still be in the processor's cache.
const DENSE_BLOCKS: u64 = 256;
const SPARSE_BLOCKS: u64 = 64;
/// So many blocks that nobody asked for are read along rather than begin another request behind them.
const GAP_BLOCKS: u64 = 8;
/// Requests at once. What lies scattered takes many, and a disk or a network answers several as fast as one.
const AT_ONCE: usize = 8;
/// So many one thread reads faster than another begins.
const ALONE: usize = 2;
/// Buffers that are kept (8 MiB at most).
const BUFFERS: usize = AT_ONCE;

/// Buffers between two uses.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<AlignedBuf>>);

impl Store {
    /// Is the block cached, or being read?
    pub fn has(&self, block: BlockNo) -> bool {
        self.cache.has(block)
    }

    /// Bring blocks of one kind into the cache, each given with the lock that covers it, ascending.
    pub fn read_ahead(&self, blocks: &[(BlockNo, LockName)], kind: BlockKind) {
        let inside = |block: BlockNo| block.0 < self.geometry.total_blocks;
        let missing = |(block, _): &&(BlockNo, LockName)| inside(*block) && !self.cache.has(*block);
        let missing: Vec<_> = blocks.iter().filter(missing).copied().collect();
        let runs = runs(&missing);
        let next = AtomicUsize::new(0);
        let work = || self.read_runs(&runs, &next, kind);
        std::thread::scope(|scope| {
            for _ in ALONE..runs.len().min(AT_ONCE) {
                // Where no thread can be had, there are fewer requests at once.
                let _ = std::thread::Builder::new().name("shoal-ahead".into()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// Read runs until none is left to begin.
    fn read_runs(&self, runs: &[&[(BlockNo, LockName)]], next: &AtomicUsize, kind: BlockKind) {
        let kept = self.ahead.0.lock().pop();
        let mut buffer = kept.unwrap_or_else(|| AlignedBuf::new(SPARSE_BLOCKS as usize));
        while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Only now: whoever wants one of them waits for this request, not for all.
            let announced = |(block, cover): &&(BlockNo, LockName)| self.cache.announce(*block, *cover);
            let run: Vec<_> = run.iter().filter(announced).copied().collect();
            if !run.is_empty() {
                self.read_run(&run, kind, &mut buffer);
            }
        }
        let mut kept = self.ahead.0.lock();
        if kept.len() < BUFFERS {
            kept.push(buffer);
        }
    }

    /// Read announced blocks that lie together.
    fn read_run(&self, run: &[(BlockNo, LockName)], kind: BlockKind, buffer: &mut AlignedBuf) {
        let start = run[0].0;
        let bytes = (run[run.len() - 1].0.0 - start.0 + 1) as usize * BLOCK_SIZE;
        if bytes > buffer.bytes().len() {
            *buffer = AlignedBuf::new(DENSE_BLOCKS as usize);
        }
        let buffer = &mut buffer.bytes_mut()[..bytes];
        let read = self.halt.check().and_then(|()| self.device.read(start.byte(), buffer));
        let mut image = Arc::<Block>::default();
        for (block, cover) in run {
            let at = (block.0 - start.0) as usize * BLOCK_SIZE;
            let into = Arc::get_mut(&mut image).expect("not shared");
            into.0.copy_from_slice(&buffer[at..at + BLOCK_SIZE]);
            let sound = read.is_ok() && self.verify(into, *block, kind, *cover).is_ok();
            let found = sound.then(|| Image::of(&image));
            if let Some(Image::Whole(_)) = found {
                // This one is kept as it is, and with it what is found out about it.
                image = Arc::default();
            }
            self.cache.loaded(*block, *cover, found);
        }
    }
}

/// Blocks, ascending, by the requests that read them.
fn runs(blocks: &[(BlockNo, LockName)]) -> Vec<&[(BlockNo, LockName)]> {
    let mut runs = Vec::new();
    let mut rest = blocks;
    while let Some(((first, _), _)) = rest.split_first() {
        let mut wanted = 1;
        let near = |pair: &&[(BlockNo, LockName)]| {
            wanted += 1;
            let span = pair[1].0.0 - first.0 + 1;
            let most = if wanted * 4 >= span * 3 { DENSE_BLOCKS } else { SPARSE_BLOCKS };
            pair[1].0.0 <= pair[0].0.0 + GAP_BLOCKS && span <= most
        };
        let (run, behind) = rest.split_at(rest.windows(2).take_while(near).count() + 1);
        runs.push(run);
        rest = behind;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InodeNo;

    #[test]
    fn a_request_reads_what_lies_together_and_not_too_much() {
        let at = |n: u64| (BlockNo(n), LockName::Inode(InodeNo(n)));
        let blocks: Vec<_> = [3, 4, 12, 21, 100]
            .into_iter()
            .chain(200..500)
            .chain((1000..1100).step_by(2))
            .chain((2000..2200).filter(|n| n % 50 > 2))
            .map(at)
            .collect();
        let found: Vec<_> = runs(&blocks).iter().map(|r| (r[0].0.0, r.len())).collect();
        assert_eq!(
            found,
            [(3, 3), (21, 1), (100, 1), (200, 256), (456, 44), (1000, 32), (1064, 18), (2003, 188)]
        );
        assert!(runs(&[]).is_empty());
    }
}
