//! Write-back: taking dirty pages, writing them to their blocks, and the transaction that follows.
//!
//! Several flushes of one file may be in flight; a page is in one of them at most. Pages over
//! written blocks are overwritten in place; runs over holes get blocks out of the reservation
//! before they are written; what turns the blocks into part of the file is the transaction after
//! the data. A death in between leaves free blocks with data nobody can see.

use super::extents::Backing;
use super::mark::FlushMark;
use super::pages::{PAGE, PageBuf, PagePool};
use super::state::{INLINE, INLINE_MAX, space_for};
use super::{DataDevice, FileState, SpaceNeed, StepLimit};
use crate::base::{BlockNo, Result};
use crate::format::extent::Extent;
use crate::inode::Attr;
use crate::txn::{BlockRun, BlockSource, BlockTxn};
use std::ops::Range;
use std::sync::Arc;

/// Most bytes in one write to the device.
pub const FLUSH_IO_BYTES: u64 = 4 << 20;

/// How much one flush may take.
#[derive(Clone, Copy, Debug)]
pub struct TakeLimit {
    /// Bytes of pages; [`FLUSH_IO_BYTES`] is a good one.
    pub bytes: u64,
    /// Blocks that can be had from the reservation.
    pub new_blocks: u64,
    /// Runs that change the item tree: bounds the transaction.
    pub changes: u32,
    /// Only what was dirty at this mark.
    pub mark: FlushMark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A hole: needs blocks.
    New,
    /// Blocks out of the reservation, not yet part of the file.
    Placed(BlockNo),
    Written(BlockNo),
    Unwritten(BlockNo),
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    first: u64,
    blocks: u64,
    place: Place,
}

/// Pages on their way to the volume. Must end in [`FileState::flush_done`] or
/// [`FileState::flush_failed`].
#[must_use]
pub struct FlushBatch {
    /// Ascending.
    pages: Vec<(u64, Arc<PageBuf>)>,
    /// What lies behind them, in the same order.
    pieces: Vec<Piece>,
    /// Runs of pages that change extents, and how many of them end here: of the others more is dirty.
    runs: (u64, u64),
    /// The first page goes into the inode, this many bytes of it.
    inline: Option<usize>,
    /// The disk held the bytes in the inode before.
    leaves_inode: bool,
    /// The size that the disk has the bytes for afterwards.
    size: u64,
    old_size: u64,
    near: Option<BlockNo>,
}

impl FlushBatch {
    /// Blocks that [`FileState::flush_place`] must be given.
    pub fn blocks_wanted(&self) -> u64 {
        self.pieces.iter().filter(|p| p.place == Place::New).map(|p| p.blocks).sum()
    }

    /// Where they should begin, to continue what is there.
    pub fn near(&self) -> Option<BlockNo> {
        self.near
    }

    /// Metadata blocks the transaction may need, in the worst case, and data blocks it makes used.
    pub fn space(&self) -> SpaceNeed {
        if self.inline.is_some() {
            // The bytes may push other items out of the inode.
            return SpaceNeed { data: 0, meta: space_for(0, 1).meta };
        }
        let placed = |p: &&Piece| matches!(p.place, Place::New | Place::Placed(_));
        space_for(self.pieces.iter().filter(placed).map(|p| p.blocks).sum(), self.runs.0)
    }

    fn changes(&self) -> u64 {
        self.pieces.iter().filter(|p| !matches!(p.place, Place::Written(_))).count() as u64
    }

    /// Whether a transaction must follow the data; otherwise [`FileState::flush_done`] may follow at
    /// once (the times in the inode are the caller's).
    pub fn needs_txn(&self) -> bool {
        self.inline.is_some() || self.changes() > 0 || self.size > self.old_size
    }

    /// Bytes of its pages.
    pub fn bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// The write to one run of blocks; transactions may overtake it if none follows it.
    fn write_run(
        &self,
        pool: &PagePool,
        io: &dyn DataDevice,
        start: BlockNo,
        pages: &[(u64, Arc<PageBuf>)],
    ) -> Result<()> {
        let overwrites = !self.needs_txn();
        write_pages(pool, start, pages, &mut |at, bytes| match overwrites {
            true => io.overwrite_data(at, bytes),
            false => io.write_data(at, bytes),
        })
    }

    /// Writes the pages to their blocks, in writes as long as the places allow. To be called without
    /// the inode's mutex, under its gate. Not durable before the device is flushed.
    ///
    /// # Errors
    /// What the device gives; then [`FileState::flush_failed`] follows.
    pub fn write_data(&self, pool: &PagePool, io: &dyn DataDevice) -> Result<()> {
        let mut pages = self.pages.as_slice();
        let mut group: Option<(BlockNo, usize)> = None;
        for piece in &self.pieces {
            let place = match piece.place {
                Place::Placed(b) | Place::Written(b) | Place::Unwritten(b) => b,
                Place::New => unreachable!("a flush is placed before it is written"),
            };
            group = match group {
                Some((start, n)) if start.plus(n as u64) == place => Some((start, n + piece.blocks as usize)),
                Some((start, n)) => {
                    self.write_run(pool, io, start, &pages[..n])?;
                    pages = &pages[n..];
                    Some((place, piece.blocks as usize))
                }
                None => Some((place, piece.blocks as usize)),
            };
        }
        match group {
            Some((start, n)) => self.write_run(pool, io, start, &pages[..n]),
            None => Ok(()),
        }
    }
}

/// Writes pages to one run of blocks.
fn write_pages(
    pool: &PagePool,
    start: BlockNo,
    pages: &[(u64, Arc<PageBuf>)],
    write: &mut dyn FnMut(BlockNo, &[u8]) -> Result<()>,
) -> Result<()> {
    let most = (FLUSH_IO_BYTES / PAGE) as usize;
    let mut buffer = pool.buffer(pages.len().min(most) * PAGE as usize);
    let mut at = start;
    let mut result = Ok(());
    for some in pages.chunks(most) {
        let bytes = buffer.slice_mut(some.len() * PAGE as usize);
        for (to, (_, page)) in bytes.chunks_exact_mut(PAGE as usize).zip(some) {
            to.copy_from_slice(&page.0);
        }
        result = write(at, bytes);
        if result.is_err() {
            break;
        }
        at = at.plus(some.len() as u64);
    }
    pool.return_buffer(buffer);
    result
}

impl FileState {
    /// Takes dirty pages for a flush, lowest first; `None` if there is nothing to take now (all is
    /// clean, or what is left must wait for a flush in flight or for space).
    ///
    /// # Errors
    /// What reading the tree gives; nothing is taken then.
    pub fn flush_take(&mut self, src: &dyn BlockSource, limit: TakeLimit) -> Result<Option<FlushBatch>> {
        if self.inline_flush {
            return Ok(None);
        }
        self.refused = None;
        if self.fits_inode() {
            if self.pages.is_empty() {
                return Ok(self.take_size());
            }
            return Ok(Some(self.take_inline()));
        }
        if self.pages.is_empty() {
            return Ok(self.take_size());
        }
        let mut pieces = Vec::new();
        let mut left = limit;
        let runs = self.runs_to_take(limit.bytes.min(self.flush_max) / PAGE, limit.mark);
        if runs.is_empty() {
            return Ok(self.take_size_before(limit.mark));
        }
        for run in runs {
            if !self.add_pieces(src, run, &mut left, &mut pieces)? {
                break;
            }
        }
        let Some(last) = pieces.last() else { return Ok(None) };
        let end = (last.first + last.blocks) * PAGE;
        let near = match pieces.iter().find(|p| p.place == Place::New) {
            Some(piece) => self.near(src, piece.first)?,
            None => None,
        };
        let runs = self.runs_of(&pieces);
        let mut pages = Vec::new();
        for page in pieces.iter().flat_map(|p| p.first..p.first + p.blocks) {
            pages.push((page, self.pages.take(page)));
        }
        // With everything else on the disk, a hole at the end of the file comes along.
        let all = self.flushes == 0 && pages.len() == self.pages.len();
        let size = if all { self.mem_size } else { self.mem_size.min(end) };
        self.flushes += 1;
        let leaves_inode = self.inline && pages[0].0 == 0;
        Ok(Some(FlushBatch {
            pages,
            pieces,
            inline: None,
            leaves_inode,
            size,
            old_size: self.disk_size,
            near,
            runs,
        }))
    }

    /// How many runs pieces not yet placed are of, and how many end with them: what is counted for a run is
    /// kept until its last page is on the disk.
    fn runs_of(&self, pieces: &[Piece]) -> (u64, u64) {
        let runs = pieces.iter().filter(|p| !matches!(p.place, Place::Written(_))).count() as u64;
        let goes_on = |last: &Piece| self.pages.get(last.first + last.blocks).is_some_and(|p| !p.in_flight);
        (runs, if pieces.last().is_some_and(goes_on) { runs.saturating_sub(1) } else { runs })
    }

    /// Whether the bytes belong into the inode as things stand.
    fn fits_inode(&self) -> bool {
        self.mem_size <= INLINE_MAX && !self.has_extents && !self.no_inline && self.flushes == 0
    }

    fn take_inline(&mut self) -> FlushBatch {
        let page = self.pages.take_inline(0);
        (self.flushes, self.inline_flush) = (self.flushes + 1, true);
        FlushBatch {
            pages: vec![(0, page)],
            pieces: Vec::new(),
            inline: Some(self.mem_size as usize),
            leaves_inode: false,
            size: self.mem_size,
            old_size: self.disk_size,
            near: None,
            runs: (0, 0),
        }
    }

    /// Only the size is left: it grew by a hole.
    fn take_size(&mut self) -> Option<FlushBatch> {
        (self.mem_size > self.disk_size && self.flushes == 0).then(|| self.size_batch(self.mem_size))
    }

    pub(super) fn size_batch(&mut self, size: u64) -> FlushBatch {
        self.flushes += 1;
        FlushBatch {
            pages: Vec::new(),
            pieces: Vec::new(),
            inline: None,
            leaves_inode: false,
            size,
            old_size: self.disk_size,
            near: None,
            runs: (0, 0),
        }
    }

    /// What lies behind a run; false once a limit is reached.
    fn add_pieces(
        &self,
        src: &dyn BlockSource,
        run: Range<u64>,
        left: &mut TakeLimit,
        pieces: &mut Vec<Piece>,
    ) -> Result<bool> {
        let spans = match self.has_extents {
            true => self.extents.map(src, run)?,
            false => {
                vec![super::Span { first: run.start, blocks: run.end - run.start, backing: Backing::Hole }]
            }
        };
        for span in spans {
            let (place, mut blocks) = match span.backing {
                Backing::Hole => (Place::New, span.blocks.min(left.new_blocks)),
                Backing::Written(at) => (Place::Written(at), span.blocks),
                Backing::Unwritten(at) => (Place::Unwritten(at), span.blocks),
            };
            if !matches!(place, Place::Written(_)) {
                if left.changes == 0 {
                    blocks = 0;
                }
                left.changes = left.changes.saturating_sub(1);
            }
            if place == Place::New {
                left.new_blocks -= blocks;
            }
            if blocks > 0 {
                pieces.push(Piece { first: span.first, blocks, place });
            }
            if blocks < span.blocks {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn near(&self, src: &dyn BlockSource, page: u64) -> Result<Option<BlockNo>> {
        match self.placed_to {
            Some((end, at)) if end == page => Ok(Some(at)),
            _ if self.has_extents => self.extents.near(src, page),
            _ => Ok(None),
        }
    }

    /// Gives a flush the blocks it wants: `runs` hold [`FlushBatch::blocks_wanted`] blocks, or fewer. What
    /// comes after those is left out of it.
    pub fn flush_place(&mut self, batch: &mut FlushBatch, runs: &[BlockRun]) {
        self.flush_cut(batch, runs.iter().map(|run| run.blocks).sum());
        let mut runs = runs.iter().copied().filter(|run| run.blocks > 0);
        let mut run = BlockRun { start: BlockNo(0), blocks: 0 };
        let mut pieces = Vec::with_capacity(batch.pieces.len());
        for mut piece in std::mem::take(&mut batch.pieces) {
            while piece.place == Place::New && piece.blocks > 0 {
                if run.blocks == 0 {
                    run = runs.next().expect("a flush is given all the blocks it wants");
                }
                let n = run.blocks.min(piece.blocks);
                pieces.push(Piece { blocks: n, place: Place::Placed(run.start), ..piece });
                (piece.first, piece.blocks) = (piece.first + n, piece.blocks - n);
                run = BlockRun { start: run.start.plus(n), blocks: run.blocks - n };
                self.placed_to = Some((piece.first, run.start));
            }
            if piece.blocks > 0 {
                pieces.push(piece);
            }
        }
        batch.pieces = pieces;
    }

    /// Leaves out of a flush what comes after so many blocks.
    fn flush_cut(&mut self, batch: &mut FlushBatch, mut blocks: u64) {
        if batch.blocks_wanted() <= blocks {
            return;
        }
        let mut kept = 0;
        for piece in &mut batch.pieces {
            if piece.place == Place::New {
                piece.blocks = piece.blocks.min(blocks);
                blocks -= piece.blocks;
                if piece.blocks == 0 {
                    break;
                }
            }
            kept += 1;
            if blocks == 0 {
                break;
            }
        }
        batch.pieces.truncate(kept);
        let pages = batch.pieces.iter().map(|p| p.blocks).sum::<u64>() as usize;
        batch.pages.split_off(pages).into_iter().for_each(|(page, _)| self.pages.put_back(page));
        batch.runs = self.runs_of(&batch.pieces);
        let end = batch.pages.last().map_or(0, |(page, _)| (page + 1) * PAGE);
        batch.size = self.mem_size.min(end);
    }

    /// Makes the pages written part of the file, in the transaction that also makes their blocks
    /// used, and writes the inode. `attr` is what shall stand in the inode; its size and block count
    /// are set here.
    ///
    /// # Errors
    /// Those of the tree; the transaction must be dropped then, and the flush has failed.
    pub fn flush_apply(&self, batch: &FlushBatch, txn: &mut dyn BlockTxn, attr: &mut Attr) -> Result<()> {
        let tree = self.extents.tree();
        if let Some(bytes) = batch.inline {
            tree.put(txn, INLINE, &batch.pages[0].1.0[..bytes])?;
        }
        if batch.leaves_inode {
            tree.remove(txn, INLINE)?;
        }
        let all = StepLimit { changes: u32::MAX, blocks: u64::MAX };
        for piece in &batch.pieces {
            match piece.place {
                Place::Placed(physical) => {
                    let (logical, blocks) = (piece.first, piece.blocks);
                    let new = Extent { logical, physical, blocks, unwritten: false, shared: false };
                    self.extents.insert(txn, new)?;
                    attr.blocks += blocks;
                }
                Place::Unwritten(_) => {
                    let range = piece.first..piece.first + piece.blocks;
                    let _whole = self.extents.set_unwritten(txn, range, false, all)?;
                }
                Place::Written(_) => (),
                Place::New => unreachable!("a flush is placed before it is committed"),
            }
        }
        attr.size = self.disk_size.max(batch.size);
        tree.write_attr(txn, attr)
    }

    /// The flush is done: its transaction is finished, or it needed none.
    pub fn flush_done(&mut self, batch: FlushBatch) {
        self.flushes -= 1;
        self.refused_alone.1 = 0;
        self.flush_max = if self.flush_max < FLUSH_IO_BYTES { self.flush_max * 2 } else { u64::MAX };
        self.disk_size = self.disk_size.max(batch.size);
        if batch.changes() > 0 {
            (self.has_extents, self.last_span) = (true, None);
        }
        self.inline &= !batch.leaves_inode;
        if self.guard.is_some_and(|g| batch.pages.binary_search_by_key(&g, |(n, _)| *n).is_ok()) {
            self.guard = None;
        }
        for (page, buf) in batch.pages {
            drop(buf);
            match batch.inline {
                Some(_) => self.inline_done(page),
                None => self.pages.written(page),
            }
        }
        self.forget_runs(batch.runs.1);
    }

    /// The bytes are in the inode. If they do not belong there any more, the page stays dirty and
    /// the next flush moves them out.
    fn inline_done(&mut self, page: u64) {
        (self.inline, self.inline_flush) = (true, false);
        if self.fits_inode() {
            self.pages.written_inline(page);
        } else {
            self.pages.put_back(page);
            self.guard = Some(0);
        }
    }

    /// The flush failed, its transaction is undone: its pages are dirty as before, and want their
    /// blocks reserved anew.
    pub fn flush_failed(&mut self, batch: FlushBatch) {
        self.flushes -= 1;
        self.inline_flush &= batch.inline.is_none();
        self.placed_to = None;
        for (page, _) in &batch.pages {
            self.pages.put_back(*page);
        }
        self.flush_max = (batch.pages.len() as u64 / 2).max(1) * PAGE;
        let (first, last) = (batch.pages.first(), batch.pages.last());
        self.refused = first.zip(last).map(|((first, _), (last, _))| *first..last + 1);
        if let [(page, _)] = batch.pages[..] {
            let times = if self.refused_alone.0 == page { self.refused_alone.1 } else { 0 };
            self.refused_alone = (page, times + 1);
        }
    }

    pub(super) fn forget_runs(&mut self, runs: u64) {
        let some = u64::from(self.pages.unplaced() > 0);
        self.runs = if self.pages.is_empty() { 0 } else { self.runs.saturating_sub(runs).max(some) };
    }
}
