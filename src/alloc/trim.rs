//! Free blocks that the device is told of: taken out of use meanwhile, in memory alone.
//!
//! To discard a block is to write to it. What may be written without further ado is what is ready: a data block
//! whose free is durable (`Group::settle`), or one of a chunk without a type. Write-back takes just such blocks,
//! writes to them, and may die before any transaction says so. Blocks of metadata and draining chunks are never ready in
//! this sense: replay reads their versions.

use super::allocator::Allocator;
use super::cell::Cell;
use super::group::{Group, Piece};
use super::page::{BITS, Class, PAGE_CHUNKS};
use crate::base::{AgNo, BLOCK_SIZE, BlockNo, Error, Result};
use crate::format::group::ChunkKind;
use crate::format::layout::CHUNK_BLOCKS;
use crate::store::Store;
use crate::txn::BlockRun;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Which runs are worth it.
#[derive(Clone, Copy, Debug)]
pub struct TrimWish {
    /// Blocks of the shortest.
    pub least: u64,
    /// Blocks that are taken out of use at a time, at most.
    pub most: u64,
    /// Bytes, from the device's start on, that go together: a longer run is not cut within them.
    pub granule: u64,
}

impl TrimWish {
    /// Where to cut a run from `start` on so that `most` blocks at most come before: between two granules, if it has one.
    pub fn cut(&self, start: BlockNo, most: u64) -> BlockNo {
        let most = BlockNo(start.0 + most);
        let granule = (self.granule / BLOCK_SIZE as u64).max(1);
        let between = BlockNo(most.0 / granule * granule);
        if between > start { between } else { most }
    }
}

/// How far one has got in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    pub ag: AgNo,
    at: BlockNo,
    end: BlockNo,
    /// What comes next goes on with a run that was long enough.
    within: bool,
}

impl Sweep {
    /// Through those blocks of a group that lie between `from` and `end`.
    pub fn new(ag: AgNo, from: BlockNo, end: BlockNo) -> Sweep {
        Sweep { ag, at: from, end, within: false }
    }

    /// Is it through?
    pub fn is_done(&self) -> bool {
        self.at >= self.end
    }

    /// Of the last run nothing from here on was discarded.
    pub fn back_to(&mut self, at: BlockNo) {
        (self.at, self.within) = (at, true);
    }
}

/// Who takes blocks out of use only to discard them gives way to whoever has found no others.
#[derive(Default)]
pub(super) struct Turns {
    turn: Mutex<()>,
    sought: AtomicU32,
}

impl Turns {
    /// From here on nothing is out of use for this, until the answer is dropped.
    pub fn all_there(&self) -> MutexGuard<'_, ()> {
        self.sought.fetch_add(1, Ordering::AcqRel);
        let turn = self.turn.lock();
        self.sought.fetch_sub(1, Ordering::AcqRel);
        turn
    }
}

/// Free blocks in a row that nobody else gets before this is dropped. Their group is not given up meanwhile, and nothing
/// on the disk says that they are taken.
pub struct Unused<'a> {
    turns: &'a Turns,
    _turn: MutexGuard<'a, ()>,
    cell: Arc<Cell>,
    run: BlockRun,
    pieces: Vec<Piece>,
    chunks: Vec<u32>,
}

impl Unused<'_> {
    /// Where they are.
    pub fn run(&self) -> BlockRun {
        self.run
    }

    /// Is somebody waiting because there is nothing else?
    pub fn is_sought(&self) -> bool {
        self.turns.sought.load(Ordering::Acquire) > 0
    }
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        let mut state = self.cell.state.lock();
        let g = state.group();
        for piece in &self.pieces {
            g.make_ready(Class::Data, *piece);
        }
        for chunk in &self.chunks {
            g.loaded_claim(*chunk, false);
        }
        state.pins -= 1;
    }
}

impl Group {
    /// The first run of blocks in this chunk from `bit` on that nobody has: bit and length.
    fn unused_in(&mut self, store: &Store, chunk: u32, bit: usize) -> Result<Option<(usize, usize)>> {
        let map = self.page(store, chunk / PAGE_CHUNKS as u32)?;
        let c = chunk as usize % PAGE_CHUNKS;
        Ok(match map.chunk(c) {
            state if state.claimed => None,
            state if state.kind == ChunkKind::Free => Some((bit, BITS - bit)),
            state if state.kind == ChunkKind::Data => {
                map.first_ready(c, bit).map(|first| (first, map.run_at(c, first, BITS)))
            }
            _ => None,
        })
    }

    /// The next run of `least` blocks at least (where it is `within` one, what begins right at `from` is long enough),
    /// all of it if it has less than `most`, among the group's blocks from `from` to `end`; and where to look next. One
    /// that begins on a later page than `from` is not looked for.
    fn unused_run(
        &mut self,
        store: &Store,
        (from, end): (u64, u64),
        within: bool,
        (least, most): (u64, u64),
    ) -> Result<(Option<(u64, u64)>, u64)> {
        let next_page = (from / CHUNK_BLOCKS / PAGE_CHUNKS as u64 + 1) * PAGE_CHUNKS as u64 * CHUNK_BLOCKS;
        let is_long = |run: (u64, u64)| run.1 >= least || (within && run.0 == from);
        let (mut run, mut at) = ((from, 0), from);
        while at < end && (at < next_page || run.1 > 0) && run.1 < most {
            let (chunk, bit) = ((at / CHUNK_BLOCKS) as u32, (at % CHUNK_BLOCKS) as usize);
            let found = self.unused_in(store, chunk, bit)?;
            let begins = found.map(|(first, _)| at - bit as u64 + first as u64);
            if run.1 > 0 && begins != Some(at) {
                if is_long(run) {
                    break;
                }
                run.1 = 0;
            } else if let (Some(begins), Some((_, length))) = (begins, found) {
                if run.1 == 0 {
                    run.0 = begins;
                }
                at = (begins + length as u64).min(end);
                run.1 = at.saturating_sub(run.0);
            } else {
                at = (u64::from(chunk) + 1) * CHUNK_BLOCKS;
            }
        }
        let run = Some(run).filter(|run| run.1 > 0 && is_long(*run));
        Ok((run, at.min(end)))
    }

    /// Take a run of unused blocks out of use, or as much of it as nobody has been promised.
    fn take_unused(&mut self, start: u64, blocks: u64) -> (Vec<Piece>, Vec<u32>, u64) {
        let (mut pieces, mut chunks, mut at) = (Vec::new(), Vec::new(), start);
        while at < start + blocks {
            let (chunk, bit) = ((at / CHUNK_BLOCKS) as u32, (at % CHUNK_BLOCKS) as u16);
            let length = (CHUNK_BLOCKS - u64::from(bit)).min(start + blocks - at);
            let (map, c) = self.loaded(chunk);
            if map.chunk(c).kind == ChunkKind::Free {
                self.loaded_claim(chunk, true);
                chunks.push(chunk);
                at += length;
                continue;
            }
            let taken = length.min(self.data.unreserved());
            if taken > 0 {
                self.loaded(chunk).0.take(c, bit.into(), taken as usize);
                self.data.ready -= taken;
                pieces.push(Piece { chunk, bit, len: taken as u16 });
                at += taken;
            }
            if taken < length {
                break;
            }
        }
        (pieces, chunks, at - start)
    }
}

impl Allocator {
    /// Have blocks of data that were freed so far ready.
    ///
    /// # Errors
    /// `Halted`.
    pub fn ready_freed(&self) -> Result<()> {
        let cells = self.cells();
        let waiting = cells.iter().filter_map(|c| c.state.lock().group.as_ref()?.data.newest_waiting());
        if let Some(newest) = waiting.max() {
            self.journal.commit(newest)?;
        }
        for cell in &cells {
            if let Some(group) = &mut cell.state.lock().group {
                self.settle(group);
            }
        }
        Ok(())
    }

    /// The next free blocks of a group, out of use until they are dropped; `None` if there are none nearby: `sweep` has
    /// gone on. The caller has the group's lock X pinned, holds no handle, and drops them soon.
    ///
    /// # Errors
    /// `NeedSpace` if the group is not held or on its way out; `Corrupt`, `Io`.
    pub fn next_unused(&self, sweep: &mut Sweep, wish: &TrimWish) -> Result<Option<Unused<'_>>> {
        let turn = self.trims.turn.lock();
        let cell = self.cell(sweep.ag).ok_or(Error::NeedSpace)?;
        let mut state = cell.open(&self.store)?;
        if state.demoting {
            return Err(Error::NeedSpace);
        }
        let g = state.group();
        self.settle(g);
        let first = cell.start.0;
        let end = sweep.end.0.min(first + u64::from(g.chunks()) * CHUNK_BLOCKS).saturating_sub(first);
        let range = (sweep.at.0.max(first) - first, end);
        let bounds = (wish.least.min(wish.most), wish.most);
        let looked = g.unused_run(&self.store, range, sweep.within, bounds);
        let (run, next) = looked.inspect_err(|e| state.note(e))?;
        (sweep.at, sweep.within) = (BlockNo(first + next), false);
        if next >= end {
            sweep.at = sweep.end;
        }
        let Some((start, length)) = run else { return Ok(None) };
        let start = BlockNo(first + start);
        if length >= wish.most {
            let cut = wish.cut(start, wish.most).min(sweep.end);
            sweep.back_to(cut);
        }
        let length = length.min(wish.cut(start, wish.most).0 - start.0);
        let (pieces, chunks, blocks) = state.group().take_unused(start.0 - first, length);
        if blocks == 0 {
            return Ok(None);
        }
        state.pins += 1;
        drop(state);
        let run = BlockRun { start, blocks };
        Ok(Some(Unused { turns: &self.trims, _turn: turn, cell, run, pieces, chunks }))
    }
}
