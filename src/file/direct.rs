//! Direct writes: whole blocks over written extents, straight to their place.
//!
//! Everything else that comes with O_DIRECT (holes, unwritten extents, growth, edges) goes through
//! dirty pages and a flush. Direct reads are ordinary ones: nothing clean is cached here.

use super::extents::Backing;
use super::pages::PAGE;
use super::state::pages_of;
use super::{DataDevice, FileState};
use crate::base::{BlockNo, Result};
use crate::txn::BlockSource;

/// Where a direct write goes. Valid while the gate is held.
pub struct DirectWrite {
    /// First block and bytes, in order.
    parts: Vec<(BlockNo, usize)>,
}

impl FileState {
    /// Looks into a direct write; `None` if it must go through dirty pages: not whole blocks, not
    /// all below the size on disk and written, or partly dirty.
    ///
    /// # Errors
    /// What reading the tree gives.
    pub fn plan_direct(&self, src: &dyn BlockSource, off: u64, len: usize) -> Result<Option<DirectWrite>> {
        let end = off.saturating_add(len as u64);
        let aligned = off.is_multiple_of(PAGE) && end.is_multiple_of(PAGE) && len > 0;
        if !aligned || end > self.disk_size || self.inline || !self.has_extents {
            return Ok(None);
        }
        let pages = pages_of(off, len as u64);
        if self.pages.range(pages.clone()).next().is_some() {
            return Ok(None);
        }
        let mut parts = Vec::new();
        for span in self.extents.map(src, pages)? {
            let Backing::Written(place) = span.backing else { return Ok(None) };
            parts.push((place, (span.blocks * PAGE) as usize));
        }
        Ok(Some(DirectWrite { parts }))
    }
}

impl DirectWrite {
    /// Writes `data`, of the length planned. Not durable before the device is flushed.
    ///
    /// # Errors
    /// What the device gives; part of it may have been written.
    pub fn write(&self, io: &dyn DataDevice, mut data: &[u8]) -> Result<()> {
        for (place, bytes) in &self.parts {
            let (now, rest) = data.split_at(*bytes);
            io.overwrite_data(*place, now)?;
            data = rest;
        }
        Ok(())
    }
}
