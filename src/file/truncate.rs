//! Cutting: a shorter size, holes punched, ranges zeroed. All of it wants the gate alone.
//!
//! A truncation shows at once: its first transaction sets the size, and a target while extents
//! remain beyond it; whoever finds the target goes on from there. A hole or a zeroed range needs no
//! such mark: half of it is as good a state as any after a crash.

use super::extents::{Backing, Stepped};
use super::pages::PAGE;
use super::state::{INLINE, pages_of, whole_pages};
use super::{FileState, Progress, StepLimit, WritePlan};
use crate::base::Result;
use crate::format::extent::FILE_BLOCKS_MAX;
use crate::inode::Attr;
use crate::txn::{BlockSource, BlockTxn};
use std::ops::Range;

impl FileState {
    /// One step of cutting the file to `size` bytes, at most its present size. After a first step
    /// that says `More` the same is called with further transactions until it is done. Also finishes
    /// a truncation found in the inode, with the target found there. `attr` as for
    /// [`FileState::flush_apply`].
    ///
    /// # Errors
    /// `Busy` while a flush is in flight; those of the tree.
    pub fn truncate_apply(
        &self,
        txn: &mut dyn BlockTxn,
        attr: &mut Attr,
        size: u64,
        limit: StepLimit,
    ) -> Result<Progress> {
        self.alone()?;
        let tree = self.extents.tree();
        if self.inline {
            let value = self.inline_bytes(txn)?;
            match usize::try_from(size) {
                Ok(0) => drop(tree.remove(txn, INLINE)?),
                Ok(size) if size < value.len() => tree.put(txn, INLINE, &value[..size])?,
                _ => (),
            }
        }
        let done = self.extents.remove(txn, size.div_ceil(PAGE)..FILE_BLOCKS_MAX, limit)?;
        attr.size = self.disk_size.min(size);
        attr.blocks = attr.blocks.saturating_sub(done.blocks);
        attr.truncating = done.more.then_some(size);
        tree.write_attr(txn, attr)?;
        Ok(if done.more { Progress::More } else { Progress::Done })
    }

    /// Follows each finished step of a truncation.
    pub fn truncate_done(&mut self, size: u64, progress: Progress) {
        self.truncating = progress == Progress::More;
        self.discard(size.div_ceil(PAGE)..u64::MAX);
        let tail = (size % PAGE) as usize;
        if tail > 0 {
            self.pages.overwrite(size / PAGE, tail, &[0; PAGE as usize][tail..]);
        }
        self.mem_size = self.mem_size.min(size);
        self.disk_size = self.disk_size.min(size);
        if size == 0 {
            self.inline = false;
            if progress == Progress::Done {
                (self.has_extents, self.no_inline) = (false, false);
            }
        }
    }

    /// The bytes that punching or zeroing `len` bytes at `off` must write as zeros, because they do
    /// not fill a block: at most a page each, at most two. Each to be done with
    /// [`FileState::plan_edge`] and [`FileState::write`] before the rest. They need no space, except
    /// in a file that lies in its inode.
    ///
    /// # Errors
    /// Those of reading the tree.
    pub fn edges(&self, src: &dyn BlockSource, off: u64, len: u64) -> Result<Vec<Range<u64>>> {
        let end = off.saturating_add(len).min(self.mem_size);
        let whole = self.cut_pages(off, len);
        let edges = if off >= end {
            return Ok(Vec::new());
        } else if whole.is_empty() {
            // Inside of one page, or over the end of one and the start of the next.
            let middle = (off / PAGE + 1) * PAGE;
            [off..end.min(middle), middle..end]
        } else {
            [off..end.min(whole.start * PAGE), whole.end * PAGE..end]
        };
        let mut needed = Vec::new();
        for edge in edges.into_iter().filter(|r| !r.is_empty()) {
            if self.has_bytes(src, edge.start / PAGE)? {
                needed.push(edge);
            }
        }
        Ok(needed)
    }

    /// Plans the write of zeros for one of the [`FileState::edges`].
    pub fn plan_edge(&mut self, src: &dyn BlockSource, edge: &Range<u64>) -> Result<WritePlan> {
        self.plan_write(src, edge.start, edge.end - edge.start)
    }

    /// Whole pages that punching bytes `off..off + len` cuts; the last page counts as whole if all
    /// of it that belongs to the file is cut.
    fn cut_pages(&self, off: u64, len: u64) -> Range<u64> {
        let end = off.saturating_add(len);
        let mut pages = whole_pages(off, end - off);
        if off < self.mem_size && end >= self.mem_size {
            let last = pages_of(off, end - off).end;
            pages.end = last.max(pages.end);
        }
        if self.inline {
            // Page 0 has no block to be cut off.
            pages.start = pages.start.max(1);
        }
        pages.start..pages.end.min(FILE_BLOCKS_MAX).max(pages.start)
    }

    /// Whether a page may hold anything but zeros.
    fn has_bytes(&self, src: &dyn BlockSource, page: u64) -> Result<bool> {
        if self.pages.contains(page) || self.inline {
            return Ok(page == 0 || self.pages.contains(page));
        }
        let spans = self.extents.map(src, page..page + 1)?;
        Ok(matches!(spans[0].backing, Backing::Written(_)))
    }

    /// One step of freeing the whole blocks in bytes `off..off + len`, beyond the end of the file as
    /// well. The same again until nothing is left.
    ///
    /// # Errors
    /// `Busy` while a flush is in flight; those of the tree.
    pub fn punch_apply(
        &self,
        txn: &mut dyn BlockTxn,
        attr: &mut Attr,
        (off, len): (u64, u64),
        limit: StepLimit,
    ) -> Result<Stepped> {
        self.alone()?;
        let step = self.extents.remove(txn, self.cut_pages(off, len), limit)?;
        attr.blocks = attr.blocks.saturating_sub(step.blocks);
        attr.size = self.disk_size;
        self.extents.tree().write_attr(txn, attr)?;
        Ok(step)
    }

    /// One step of making the whole written blocks in bytes `off..off + len` unwritten. Holes stay
    /// holes: allocation follows for those. The same again until nothing is left.
    ///
    /// # Errors
    /// `Busy` while a flush is in flight; those of the tree.
    pub fn zero_apply(
        &self,
        txn: &mut dyn BlockTxn,
        attr: &mut Attr,
        (off, len): (u64, u64),
        limit: StepLimit,
    ) -> Result<Stepped> {
        self.alone()?;
        let step = self.extents.set_unwritten(txn, self.cut_pages(off, len), true, limit)?;
        attr.size = self.disk_size;
        self.extents.tree().write_attr(txn, attr)?;
        Ok(step)
    }

    /// Follows each finished step of a punch or a zeroing: what was dirty there is gone.
    pub fn punch_done(&mut self, step: &Stepped) {
        self.discard(step.pages.clone());
    }

    /// Drops dirty pages whose blocks are gone or zero.
    fn discard(&mut self, pages: Range<u64>) {
        self.guard = self.guard.filter(|g| !pages.contains(g));
        self.pages.discard(pages);
        (self.last_span, self.placed_to) = (None, None);
        self.forget_runs(0);
    }
}
