//! How far a flush goes: up to what was dirty at a moment, however much is written meanwhile.

use super::FileState;
use super::flush::FlushBatch;
use super::pages::{Cost, PAGE};
use std::ops::Range;

/// A moment of a file.
#[derive(Clone, Copy, Debug)]
pub struct FlushMark {
    pages: u64,
    size: u64,
}

impl FlushMark {
    /// Behind everything: the flush goes on until nothing is dirty.
    pub const ALL: FlushMark = FlushMark { pages: u64::MAX, size: u64::MAX };
}

impl FileState {
    /// The present moment.
    pub fn flush_mark(&self) -> FlushMark {
        FlushMark { pages: self.pages.pool().mark(), size: self.mem_size }
    }

    /// Does the disk lack anything of what was there at `mark`?
    pub fn lacks(&self, mark: FlushMark) -> bool {
        self.mem_size.min(mark.size) > self.disk_size || self.pages.any_before(mark.pages)
    }

    /// Only the size is left of what was there at `mark`: what is dirty has come since, into a hole or over what the
    /// disk has, and that is what is found after a crash. Nothing older shows: the block that the size on the disk
    /// ends in has been written with zeros behind that.
    pub(super) fn take_size_before(&mut self, mark: FlushMark) -> Option<FlushBatch> {
        let size = self.mem_size.min(mark.size);
        let tail = self.tail().is_some_and(|page| self.pages.contains(page));
        let settled = self.guard.is_none() && !tail && !self.inline && !self.pages.any_before(mark.pages);
        (settled && size > self.disk_size).then(|| self.size_batch(size))
    }

    /// The page that the size on the disk ends in.
    fn tail(&self) -> Option<u64> {
        (!self.disk_size.is_multiple_of(PAGE)).then_some(self.disk_size / PAGE)
    }

    /// Runs of dirty pages not in flight, lowest first, `most` pages of them: those that were dirty at `mark`, and what
    /// the size waits for. A run that changes extents is not taken out of its middle, for what was
    /// promised for it is for one run; taken once, its pages change none any more, so this comes to an end.
    pub(super) fn runs_to_take(&self, most: u64, mark: FlushMark) -> Vec<Range<u64>> {
        let (mut taken, mut run) = (Vec::new(), Vec::new());
        let (mut guard, mut run_is_due, mut last) = (self.guard, false, None);
        for (page, dirty) in self.pages.range(0..u64::MAX).filter(|(_, dirty)| !dirty.in_flight) {
            // Pages behind the guard raise the size: not before the guard itself.
            if taken.len() as u64 >= most || guard.is_some_and(|g| page > g) {
                break;
            }
            guard = guard.filter(|g| *g != page);
            let changes = dirty.cost != Cost::Free;
            if !changes || last.is_none_or(|last: u64| last + 1 != page) {
                (run_is_due, run) = (false, Vec::new());
            }
            run.push(page);
            last = changes.then_some(page);
            run_is_due |= dirty.is_before(mark.pages) || [self.guard, self.tail()].contains(&Some(page));
            if run_is_due {
                taken.append(&mut run);
            }
        }
        taken.truncate(most as usize);
        ranges(&taken)
    }
}

/// Ascending numbers as ranges.
fn ranges(pages: &[u64]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(range) if range.end == *page => range.end += 1,
            _ => ranges.push(*page..page + 1),
        }
    }
    ranges
}
