//! Preallocation: unwritten extents over the holes of a range. Wants the gate alone.

use super::extents::Backing;
use super::pages::PAGE;
use super::state::{pages_of, space_for};
use super::{FILE_SIZE_MAX, FileState, SpaceNeed, Span, WritePlan};
use crate::base::{BlockNo, Error, Result};
use crate::format::extent::{Extent, UNWRITTEN_BLOCKS_MAX};
use crate::inode::Attr;
use crate::txn::{BlockRun, BlockSource, BlockTxn};
use std::ops::Range;

/// One step of a preallocation: holes to be filled.
pub struct AllocatePlan {
    holes: Vec<Range<u64>>,
    near: Option<BlockNo>,
    /// Where the next step goes on: byte offset and length.
    pub rest: Option<(u64, u64)>,
}

impl AllocatePlan {
    /// What must be reserved.
    pub fn space(&self) -> SpaceNeed {
        let blocks = self.holes.iter().map(|hole| hole.end - hole.start).sum();
        space_for(blocks, self.holes.len() as u64)
    }

    /// Leaves out what comes after so many blocks; `range` is that of which it was planned.
    pub fn cut(&mut self, mut blocks: u64, (off, len): (u64, u64)) {
        for at in 0..self.holes.len() {
            let hole = &mut self.holes[at];
            let end = hole.end.min(hole.start + blocks);
            if end < hole.end {
                let from = (end * PAGE).max(off);
                self.rest = Some((from, off + len - from));
                hole.end = end;
                let kept = if hole.start == end { at } else { at + 1 };
                return self.holes.truncate(kept);
            }
            blocks -= end - hole.start;
        }
    }

    /// Where the blocks should begin.
    pub fn near(&self) -> Option<BlockNo> {
        self.near
    }
}

impl FileState {
    /// Looks for holes in bytes `off..off + len`: at most `changes` of them and `blocks` blocks. The
    /// size is left alone; growing is [`FileState::plan_grow`]'s.
    ///
    /// # Errors
    /// `FileTooLarge`; `Busy` while a flush is in flight, a truncation unfinished or the bytes are
    /// in the inode ([`FileState::plan_leave_inode`], a write and a flush bring them out).
    pub fn plan_allocate(
        &self,
        src: &dyn BlockSource,
        (off, len): (u64, u64),
        changes: usize,
        blocks: u64,
    ) -> Result<AllocatePlan> {
        self.alone()?;
        if self.inline || self.truncating {
            return Err(Error::Busy("the file's data is on the move".into()));
        }
        let end = off.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Error::FileTooLarge)?;
        let pages = pages_of(off, len);
        let mut plan = AllocatePlan { holes: Vec::new(), near: None, rest: None };
        let (mut at, mut left) = (pages.start, blocks);
        while at < pages.end {
            let span = self.extents.span_at(src, at)?;
            let mut to = span.end().min(pages.end);
            if span.backing == Backing::Hole {
                to = to.min(at + left);
                if to == at || plan.holes.len() == changes {
                    let from = (at * PAGE).max(off);
                    plan.rest = Some((from, end - from));
                    break;
                }
                left -= to - at;
                plan.holes.push(at..to);
            }
            at = to;
        }
        if let Some(hole) = plan.holes.first() {
            plan.near = self.extents.near(src, hole.start)?;
        }
        Ok(plan)
    }

    /// Fills the holes with unwritten extents over `runs`, which hold the blocks planned.
    ///
    /// # Errors
    /// Those of the tree.
    pub fn allocate_apply(
        &self,
        plan: &AllocatePlan,
        runs: &[BlockRun],
        txn: &mut dyn BlockTxn,
        attr: &mut Attr,
    ) -> Result<()> {
        self.alone()?;
        let mut runs = runs.iter().copied().filter(|run| run.blocks > 0);
        let mut run = BlockRun { start: BlockNo(0), blocks: 0 };
        for hole in &plan.holes {
            let mut at = hole.start;
            while at < hole.end {
                if run.blocks == 0 {
                    run = runs.next().expect("a preallocation is given all the blocks it planned");
                }
                let n = run.blocks.min(hole.end - at);
                let new =
                    Extent { logical: at, physical: run.start, blocks: n, unwritten: true, shared: false };
                self.extents.insert(txn, new)?;
                run = BlockRun { start: run.start.plus(n), blocks: run.blocks - n };
                attr.blocks += n;
                at += n;
            }
        }
        attr.size = self.disk_size;
        self.extents.tree().write_attr(txn, attr)
    }

    /// Follows the finished transaction. Dirty pages over the holes give back their reservation.
    pub fn allocate_done(&mut self, plan: AllocatePlan) {
        self.has_extents |= !plan.holes.is_empty();
        (self.last_span, self.placed_to) = (None, None);
        for hole in plan.holes {
            self.pages.allocated(hole);
        }
    }

    /// Blocks that [`FileState::zero_out_apply`] would make written, and that are to be written with zeros before: the
    /// unwritten extents, whole, that a write needs a part of. `None` if that cannot be: the write needs more, an extent
    /// is too large, or it goes beyond the size on the disk, where what is written is not to be found after a crash.
    ///
    /// # Errors
    /// `Busy` while a flush is in flight; what reading the tree gives.
    pub fn plan_zero_out(&self, src: &dyn BlockSource, write: &WritePlan) -> Result<Option<Vec<Span>>> {
        self.alone()?;
        let Some(pages) = write.to_convert() else { return Ok(None) };
        let mut spans: Vec<Span> = Vec::new();
        for pages in pages {
            let mut at = pages.start;
            while at < pages.end {
                let span = self.extents.span_at(src, at)?;
                if matches!(span.backing, Backing::Unwritten(_)) && spans.last() != Some(&span) {
                    let is_behind = span.end() > self.disk_size.div_ceil(PAGE);
                    if is_behind || span.blocks > UNWRITTEN_BLOCKS_MAX.into() {
                        return Ok(None);
                    }
                    spans.push(span);
                }
                at = span.end();
            }
        }
        Ok(Some(spans))
    }

    /// Makes one of the extents planned a written one, which takes no block.
    ///
    /// # Errors
    /// `Busy` while a flush is in flight; those of the tree.
    pub fn zero_out_apply(&self, span: &Span, txn: &mut dyn BlockTxn, attr: &mut Attr) -> Result<()> {
        self.alone()?;
        self.extents.set_written_whole(txn, span.first)?;
        attr.size = self.disk_size;
        self.extents.tree().write_attr(txn, attr)
    }

    /// Follows each finished transaction.
    pub fn zero_out_done(&mut self) {
        self.last_span = None;
    }
}
