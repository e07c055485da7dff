//! SEEK_DATA and SEEK_HOLE: dirty pages and written extents are data, all else is a hole.

use super::FileState;
use super::extents::Backing;
use super::pages::PAGE;
use crate::base::{Error, Result};
use crate::txn::BlockSource;

impl FileState {
    /// The first byte of data at or behind `off`.
    ///
    /// # Errors
    /// `NoData` if there is none before the end of the file, or `off` is not before it.
    pub fn seek_data(&self, src: &dyn BlockSource, off: u64) -> Result<u64> {
        self.seek(src, off, true)?.ok_or(Error::NoData)
    }

    /// The first byte of a hole at or behind `off`; the end of the file counts as one.
    ///
    /// # Errors
    /// `NoData` if `off` is not before the end of the file.
    pub fn seek_hole(&self, src: &dyn BlockSource, off: u64) -> Result<u64> {
        Ok(self.seek(src, off, false)?.unwrap_or(self.mem_size))
    }

    fn seek(&self, src: &dyn BlockSource, off: u64, data: bool) -> Result<Option<u64>> {
        if off >= self.mem_size {
            return Err(Error::NoData);
        }
        let (mut page, end) = (off / PAGE, self.mem_size.div_ceil(PAGE));
        while page < end {
            let (is_data, to) = self.kind_at(src, page)?;
            if is_data == data {
                return Ok(Some(off.max(page * PAGE)));
            }
            page = to;
        }
        Ok(None)
    }

    /// Whether `page` is data, and the page up to which that is so at least.
    fn kind_at(&self, src: &dyn BlockSource, page: u64) -> Result<(bool, u64)> {
        let next_dirty = self.pages.range(page..u64::MAX).next().map_or(u64::MAX, |(n, _)| n);
        let disk_end = self.disk_size.div_ceil(PAGE);
        if next_dirty == page {
            Ok((true, page + 1))
        } else if page >= disk_end {
            Ok((false, next_dirty))
        } else if self.inline {
            Ok((page == 0, next_dirty.min(page + 1)))
        } else {
            let span = self.extents.span_at(src, page)?;
            let to = span.end().min(next_dirty).min(disk_end);
            Ok((matches!(span.backing, Backing::Written(_)), to))
        }
    }
}
