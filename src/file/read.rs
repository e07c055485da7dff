//! Reading: dirty pages, holes and blocks put together.
//!
//! The plan is made under the inode's mutex and keeps what it needs of memory; the device is read
//! afterwards without it, under the gate, which keeps blocks from being freed meanwhile.

use super::extents::Backing;
use super::pages::{PAGE, PageBuf};
use super::state::pages_of;
use super::{DataBuf, DataDevice, FileState, PagePool};
use crate::base::{BLOCK_SIZE, BlockNo, Result};
use crate::txn::BlockSource;
use std::ops::Range;
use std::sync::Arc;

enum Source {
    Zeros,
    /// A dirty page, from this byte of it on.
    Page(Arc<PageBuf>, usize),
    /// Bytes out of the inode.
    Bytes(Vec<u8>),
    /// Blocks from this one on, from this byte of the first on.
    Blocks(BlockNo, usize),
}

struct Part {
    /// Bytes of the result.
    at: Range<usize>,
    source: Source,
}

/// What a read found: fills a buffer when executed.
pub struct ReadPlan {
    parts: Vec<Part>,
    len: usize,
}

impl FileState {
    /// Looks into a read of `len` bytes at `off`; shorter at the end of the file, empty behind it.
    ///
    /// # Errors
    /// What reading the tree gives.
    pub fn plan_read(&self, src: &dyn BlockSource, off: u64, len: usize) -> Result<ReadPlan> {
        let len = (len as u64).min(self.mem_size.saturating_sub(off));
        let mut plan = ReadPlan { parts: Vec::new(), len: len as usize };
        let bytes = off..off + len;
        let pages = pages_of(off, len);
        let mut clean_from = pages.start;
        for (page, dirty) in self.pages.range(pages.clone()) {
            self.plan_clean(src, &bytes, clean_from..page, &mut plan)?;
            let part = page * PAGE..(page + 1) * PAGE;
            let within = bytes.start.saturating_sub(part.start) as usize;
            plan.add(&bytes, part, Source::Page(dirty.data.clone(), within));
            clean_from = page + 1;
        }
        self.plan_clean(src, &bytes, clean_from..pages.end, &mut plan)?;
        Ok(plan)
    }

    /// Adds what lies behind clean pages.
    fn plan_clean(
        &self,
        src: &dyn BlockSource,
        bytes: &Range<u64>,
        pages: Range<u64>,
        plan: &mut ReadPlan,
    ) -> Result<()> {
        // Nothing on the volume behind the size on disk is the file's.
        let on_disk = pages.start..pages.end.min(self.disk_size.div_ceil(PAGE));
        if self.inline && on_disk.contains(&0) {
            let value = self.inline_bytes(src)?;
            let end = (value.len() as u64).min(self.disk_size);
            if bytes.start < end {
                let value = value[bytes.start as usize..end as usize].to_vec();
                plan.add(bytes, 0..end, Source::Bytes(value));
            }
        } else if self.has_extents && !on_disk.is_empty() {
            for span in self.extents.map(src, on_disk)? {
                let Backing::Written(place) = span.backing else { continue };
                let part = span.first * PAGE..(span.end() * PAGE).min(self.disk_size);
                let skip = bytes.start.saturating_sub(part.start);
                let first = place.plus(skip / PAGE);
                plan.add(bytes, part, Source::Blocks(first, (skip % PAGE) as usize));
            }
        }
        // The rest are zeros.
        plan.add(bytes, plan.end(bytes)..pages.end * PAGE, Source::Zeros);
        Ok(())
    }
}

impl ReadPlan {
    /// Bytes it will give.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The byte of the file up to which it is planned.
    fn end(&self, bytes: &Range<u64>) -> u64 {
        bytes.start + self.parts.last().map_or(0, |part| part.at.end as u64)
    }

    /// Adds bytes `part` of the file, behind what is planned; a gap before it reads as zeros.
    fn add(&mut self, bytes: &Range<u64>, part: Range<u64>, source: Source) {
        let (start, end) = (part.start.max(bytes.start), part.end.min(bytes.end));
        if start >= end {
            return;
        }
        let planned = self.end(bytes);
        debug_assert!(planned <= start);
        let at = |pos: u64| (pos - bytes.start) as usize;
        if planned < start {
            self.parts.push(Part { at: at(planned)..at(start), source: Source::Zeros });
        }
        self.parts.push(Part { at: at(start)..at(end), source });
    }

    /// The bytes.
    ///
    /// # Errors
    /// What the device gives.
    pub fn read(&self, pool: &Arc<PagePool>, io: &dyn DataDevice) -> Result<DataBuf> {
        // Whole blocks, so that the end of a file needs no read of its own.
        let mut buf = DataBuf::new(pool, self.len.next_multiple_of(BLOCK_SIZE));
        self.fill(io, &mut buf)?;
        buf.truncate(self.len);
        Ok(buf)
    }

    /// Fills `buf`, of at least [`ReadPlan::len`] bytes; what lies behind them may be overwritten.
    ///
    /// # Errors
    /// What the device gives.
    pub fn fill(&self, io: &dyn DataDevice, buf: &mut [u8]) -> Result<()> {
        // In order, so that a read of a whole last block that spills over is overwritten by what
        // follows.
        for part in &self.parts {
            let n = part.at.len();
            match &part.source {
                Source::Zeros => buf[part.at.clone()].fill(0),
                Source::Page(page, from) => buf[part.at.clone()].copy_from_slice(&page.0[*from..from + n]),
                Source::Bytes(bytes) => buf[part.at.clone()].copy_from_slice(&bytes[..n]),
                Source::Blocks(first, from) => read_blocks(io, *first, *from, part.at.clone(), buf)?,
            }
        }
        Ok(())
    }
}

/// Reads bytes from byte `from` of block `first` on into `buf[at]`.
fn read_blocks(
    io: &dyn DataDevice,
    mut first: BlockNo,
    from: usize,
    mut at: Range<usize>,
    buf: &mut [u8],
) -> Result<()> {
    let mut bounce = [0; BLOCK_SIZE];
    if from > 0 {
        io.read_data(first, &mut bounce)?;
        let n = (BLOCK_SIZE - from).min(at.len());
        buf[at.start..at.start + n].copy_from_slice(&bounce[from..from + n]);
        (first, at.start) = (first.plus(1), at.start + n);
    }
    let room = (buf.len() - at.start) / BLOCK_SIZE;
    let whole = at.len().div_ceil(BLOCK_SIZE).min(room);
    if whole > 0 {
        io.read_data(first, &mut buf[at.start..at.start + whole * BLOCK_SIZE])?;
        (first, at.start) = (first.plus(whole as u64), at.start + whole * BLOCK_SIZE);
    }
    if at.start < at.end {
        io.read_data(first, &mut bounce)?;
        buf[at.clone()].copy_from_slice(&bounce[..at.len()]);
    }
    Ok(())
}
