//! Writing into dirty pages: what a write will cost, and the write itself.

use super::pages::{Cost, PAGE, PageBuf};
use super::state::{INLINE_MAX, pages_of, space_for};
use super::{DataDevice, FILE_SIZE_MAX, FileState, SpaceNeed};
use crate::base::{BLOCK_SIZE, Error, Result};
use crate::txn::BlockSource;
use std::ops::Range;
use std::sync::Arc;

/// A write or growth that was looked into and not yet done. Valid until the state changes.
pub struct WritePlan {
    off: u64,
    len: u64,
    /// The size afterwards, if it grows.
    size: u64,
    /// Clean pages it makes dirty, and at what cost.
    fresh: Vec<(Range<u64>, Cost)>,
    /// A page outside of the range that must become dirty as well, so that its tail is zeroed.
    extra: Option<(u64, Cost)>,
    guard: Option<u64>,
    runs: u64,
    /// What must be reserved, beyond what is, before the write is done.
    pub need: SpaceNeed,
}

impl WritePlan {
    /// Pages over unwritten blocks that it makes dirty, if space is needed for nothing else.
    pub(super) fn to_convert(&self) -> Option<impl Iterator<Item = Range<u64>> + '_> {
        let costs = || self.fresh.iter().map(|(_, cost)| *cost).chain(self.extra.map(|(_, cost)| cost));
        let is_only_that =
            costs().any(|cost| cost == Cost::Convert) && costs().all(|cost| cost != Cost::Block);
        let pages = self.fresh.iter().filter(|(_, cost)| *cost == Cost::Convert);
        is_only_that.then(|| pages.map(|(pages, _)| pages.clone()))
    }

    /// Can it be done without space when [`FileState::plan_zero_out`] is followed?
    pub fn only_converts(&self) -> bool {
        self.to_convert().is_some()
    }
}

impl FileState {
    /// Looks into a write of `len` bytes at `off`.
    ///
    /// # Errors
    /// `FileTooLarge` beyond [`FILE_SIZE_MAX`]; `Busy` if it grows the file while a truncation is
    /// not finished; what reading the tree gives.
    pub fn plan_write(&mut self, src: &dyn BlockSource, off: u64, len: u64) -> Result<WritePlan> {
        let end = off.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Error::FileTooLarge)?;
        let size = if len == 0 { self.mem_size } else { self.mem_size.max(end) };
        self.plan(src, off, len, size)
    }

    /// The same anew, after the state has changed.
    ///
    /// # Errors
    /// As before.
    pub fn plan_again(&mut self, src: &dyn BlockSource, plan: &WritePlan) -> Result<WritePlan> {
        self.plan(src, plan.off, plan.len, plan.size)
    }

    /// Looks into growing the file to `size` bytes by a hole; for a smaller size nothing happens.
    pub fn plan_grow(&mut self, src: &dyn BlockSource, size: u64) -> Result<WritePlan> {
        if size > FILE_SIZE_MAX {
            return Err(Error::FileTooLarge);
        }
        self.plan(src, 0, 0, self.mem_size.max(size))
    }

    /// Looks into moving the bytes out of the inode with the next flush, which preallocation wants
    /// before; `None` if they are not (going) there.
    pub fn plan_leave_inode(&mut self, src: &dyn BlockSource) -> Result<Option<WritePlan>> {
        self.no_inline = true;
        if !self.inline && !self.inline_flush {
            return Ok(None);
        }
        let mut plan = self.plan(src, 0, 0, self.mem_size)?;
        if self.inline && !self.pages.contains(0) {
            self.add_extra(&mut plan, 0, Cost::Block);
        }
        plan.guard = Some(0);
        Ok(Some(plan))
    }

    fn plan(&mut self, src: &dyn BlockSource, off: u64, len: u64, size: u64) -> Result<WritePlan> {
        if self.truncating && size > self.mem_size {
            return Err(Error::Busy("a truncation of this file is not finished".into()));
        }
        let pages = pages_of(off, len);
        let mut fresh = Vec::new();
        let mut at = pages.start;
        while at < pages.end {
            let gap_end = self.pages.range(at..pages.end).next().map_or(pages.end, |(n, _)| n);
            while at < gap_end {
                let (to, cost) = self.cost(src, at..gap_end)?;
                fresh.push((at..to, cost));
                at = to;
            }
            while at < pages.end && self.pages.contains(at) {
                at += 1;
            }
        }
        let (mut blocks, mut runs) = (0, 0);
        for (range, cost) in &fresh {
            let joined = range.start.checked_sub(1).and_then(|p| self.pages.get(p));
            match cost {
                Cost::Free => continue,
                Cost::Block => blocks += range.end - range.start,
                Cost::Convert => (),
            }
            if joined.is_none_or(|page| page.cost != *cost || page.in_flight) {
                runs += 1;
            }
        }
        let mut plan =
            WritePlan { off, len, size, fresh, extra: None, guard: None, runs, need: SpaceNeed::default() };
        plan.need = self.need_for(blocks, runs);
        self.plan_growth(src, pages, &mut plan)?;
        Ok(plan)
    }

    fn need_for(&self, blocks: u64, runs: u64) -> SpaceNeed {
        space_for(self.pages.unplaced() + blocks, self.runs + runs).beyond(self.space_want())
    }

    fn add_extra(&self, plan: &mut WritePlan, page: u64, cost: Cost) {
        plan.extra = Some((page, cost));
        if cost == Cost::Block {
            plan.runs += 1;
            plan.need = self.need_for(plan.need.data + 1, plan.runs);
        }
    }

    /// Growth makes the bytes visible that lie behind the size on disk in its last block: the page
    /// becomes dirty, with zeros there, and the size waits for it.
    fn plan_growth(&mut self, src: &dyn BlockSource, pages: Range<u64>, plan: &mut WritePlan) -> Result<()> {
        if plan.size <= self.mem_size {
            return Ok(());
        }
        let covered = |file: &FileState, page| pages.contains(&page) || file.pages.contains(page);
        if self.inline {
            if plan.size > INLINE_MAX {
                plan.guard = Some(0);
                if !covered(self, 0) {
                    self.add_extra(plan, 0, Cost::Block);
                }
            }
            return Ok(());
        }
        let last = self.disk_size / PAGE;
        let last_end = (last + 1) * PAGE;
        if self.disk_size.is_multiple_of(PAGE) || self.mem_size > last_end {
            return Ok(());
        }
        if !covered(self, last) {
            if !self.has_extents || self.cost(src, last..last + 1)?.1 != Cost::Free {
                return Ok(());
            }
            self.add_extra(plan, last, Cost::Free);
        }
        if plan.size > last_end {
            plan.guard = Some(last);
        }
        Ok(())
    }

    /// Does what `plan` says with `data`, of the length planned. Space is reserved.
    ///
    /// # Errors
    /// What reading the rest of a partly written block gives; nothing has changed then.
    pub fn write(
        &mut self,
        plan: WritePlan,
        io: &dyn DataDevice,
        src: &dyn BlockSource,
        data: &[u8],
    ) -> Result<()> {
        assert_eq!(data.len() as u64, plan.len, "a write as it was planned");
        let loaded = self.load_partial(&plan, io, src)?;
        // Nothing fails from here on.
        for (page, buf, cost) in loaded {
            self.pages.insert(page, buf, cost);
        }
        self.copy_in(&plan, data);
        self.mem_size = self.mem_size.max(plan.size);
        self.guard = plan.guard.or(self.guard);
        self.runs += plan.runs;
        Ok(())
    }

    /// The clean pages of which something is kept, as they are now.
    fn load_partial(
        &mut self,
        plan: &WritePlan,
        io: &dyn DataDevice,
        src: &dyn BlockSource,
    ) -> Result<Vec<(u64, Arc<PageBuf>, Cost)>> {
        let mut loaded = Vec::new();
        if let Some((page, cost)) = plan.extra {
            loaded.push((page, self.load_page(io, src, page)?, cost));
        }
        if plan.len == 0 {
            return Ok(loaded);
        }
        let end = plan.off + plan.len;
        let (first, last) = (plan.off / PAGE, (end - 1) / PAGE);
        for page in [first, last] {
            let starts = plan.off <= page * PAGE;
            let ends = end >= (page + 1) * PAGE || end >= self.mem_size;
            if (starts && ends) || loaded.iter().any(|(n, ..)| *n == page) {
                continue;
            }
            if let Some(cost) = plan.cost_of(page) {
                loaded.push((page, self.load_page(io, src, page)?, cost));
            }
        }
        Ok(loaded)
    }

    fn copy_in(&mut self, plan: &WritePlan, data: &[u8]) {
        let mut fresh = plan.fresh.iter().peekable();
        let mut done = 0;
        while done < data.len() {
            let off = plan.off + done as u64;
            let (page, at) = (off / PAGE, (off % PAGE) as usize);
            let n = (BLOCK_SIZE - at).min(data.len() - done);
            let bytes = &data[done..done + n];
            done += n;
            while fresh.next_if(|(range, _)| range.end <= page).is_some() {}
            let cost = fresh.peek().filter(|(range, _)| range.contains(&page)).map(|(_, cost)| *cost);
            if self.pages.overwrite(page, at, bytes) {
                continue;
            }
            let buf = match <&[u8; BLOCK_SIZE]>::try_from(bytes) {
                Ok(whole) => self.pages.pool().page_from(whole),
                Err(_) => {
                    let mut buf = self.pages.pool().page_zeroed();
                    Arc::get_mut(&mut buf).expect("new").0[at..at + n].copy_from_slice(bytes);
                    buf
                }
            };
            self.pages.insert(page, buf, cost.expect("a clean page of the range was planned"));
        }
    }
}

impl WritePlan {
    fn cost_of(&self, page: u64) -> Option<Cost> {
        self.fresh.iter().find(|(range, _)| range.contains(&page)).map(|(_, cost)| *cost)
    }
}
