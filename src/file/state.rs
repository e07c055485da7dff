//! What one mount knows about the data of one file: sizes, dirty pages, how the disk holds it.

use super::extents::{Backing, Extents, Span};
use super::pages::{Cost, DirtyPages, PAGE, PageBuf, PagePool};
use super::{DataDevice, SpaceNeed};
use crate::base::{BlockNo, Error, Result};
use crate::format::Geometry;
use crate::inode::{ItemKey, ItemKind, Tree};
use crate::txn::BlockSource;
use std::ops::Range;
use std::sync::Arc;

/// The key of the item that holds a small file's bytes.
pub(super) const INLINE: ItemKey = ItemKey { kind: ItemKind::Inline, id: 0 };

/// Bytes of what stat(2) counts.
const SECTOR: u64 = 512;
/// Most bytes of a file that may lie in its inode.
pub(super) const INLINE_MAX: u64 = crate::inode::INLINE_MAX as u64;
// Such a file is page 0 and nothing else.
const _: () = assert!(INLINE_MAX <= PAGE);

/// One file's data on one mount. Kept under the inode's mutex; dropped, with nothing dirty, when
/// the inode's lock is given up.
pub struct FileState {
    pub(super) extents: Extents,
    pub(super) pages: DirtyPages,
    /// The size every caller sees.
    pub(super) mem_size: u64,
    /// The size in the inode; raised by flushes only.
    pub(super) disk_size: u64,
    /// The disk holds the bytes in the inode.
    pub(super) inline: bool,
    /// The disk holds extents. Never together with `inline`.
    pub(super) has_extents: bool,
    /// Data shall not go (back) into the inode.
    pub(super) no_inline: bool,
    /// A page without which the size on disk must not grow: the block that the size ends in (its
    /// tail may hold old bytes), or page 0 while the disk holds the bytes in the inode.
    pub(super) guard: Option<u64>,
    /// Flushes between take and done.
    pub(super) flushes: u32,
    /// One of them goes into the inode.
    pub(super) inline_flush: bool,
    /// A truncation whose extents are not all gone yet.
    pub(super) truncating: bool,
    /// Separate runs of dirty pages that will change extents; an upper bound.
    pub(super) runs: u64,
    /// The last span looked up; forgotten whenever extents change.
    pub(super) last_span: Option<Span>,
    /// Behind the blocks given to the last flush: in the file, and on the volume.
    pub(super) placed_to: Option<(u64, BlockNo)>,
    /// Most bytes of the next flush: after one that failed less is tried at a time.
    pub(super) flush_max: u64,
    /// The last flush failed; its pages.
    pub(super) refused: Option<Range<u64>>,
    /// The page that was alone in a flush that failed, and how often it has been.
    pub(super) refused_alone: (u64, u32),
}

impl FileState {
    /// The state of a file that is `size` bytes on disk. A truncation left unfinished
    /// (`Attr::truncating`) must be finished through it before anything else.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Damaged`.
    pub fn load(
        src: &dyn BlockSource,
        tree: Tree,
        geometry: &Geometry,
        pool: Arc<PagePool>,
        size: u64,
    ) -> Result<FileState> {
        let mut state = FileState::new_empty(tree, geometry, pool);
        state.inline = tree.get(src, INLINE)?.is_some();
        state.has_extents = state.extents.any(src)?;
        (state.mem_size, state.disk_size) = (size, size);
        Ok(state)
    }

    /// Does the inode hold bytes of the file?
    ///
    /// # Errors
    /// What reading the tree gives.
    pub fn has_bytes_in_inode(tree: &Tree, src: &dyn BlockSource) -> Result<bool> {
        tree.get(src, INLINE).map(|bytes| bytes.is_some())
    }

    /// The state of a file just created: empty.
    pub fn new_empty(tree: Tree, geometry: &Geometry, pool: Arc<PagePool>) -> FileState {
        FileState {
            extents: Extents::new(tree, geometry),
            pages: DirtyPages::new(pool),
            mem_size: 0,
            disk_size: 0,
            inline: false,
            has_extents: false,
            no_inline: false,
            guard: None,
            flushes: 0,
            inline_flush: false,
            truncating: false,
            runs: 0,
            last_span: None,
            placed_to: None,
            flush_max: u64::MAX,
            refused: None,
            refused_alone: (0, 0),
        }
    }

    /// The file's size in bytes as every caller on this host sees it.
    pub fn size(&self) -> u64 {
        self.mem_size
    }

    /// The size that every transaction writes into the inode.
    pub fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// Bytes of dirty pages, those in flight included.
    pub fn dirty_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Whether the disk lacks anything: pages, or the size.
    pub fn is_dirty(&self) -> bool {
        !self.pages.is_empty() || self.mem_size != self.disk_size
    }

    /// Flushes taken and not yet done or failed.
    pub fn flushes_in_flight(&self) -> u32 {
        self.flushes
    }

    /// What stat shows on top of the inode's count: blocks that dirty pages will take, or take already without being
    /// the file's; and sectors of a file whose bytes lie in its inode, or will (see [`sectors_in_inode`]).
    pub fn blocks_on_top(&self) -> (u64, u64) {
        let in_inode = if self.mem_size <= INLINE_MAX && !self.has_extents && !self.no_inline {
            self.inline || !self.pages.is_empty()
        } else {
            self.inline && self.pages.blocks_to_come() == 0
        };
        match in_inode {
            true => (0, sectors_in_inode(self.mem_size)),
            false => (self.pages.blocks_to_come(), 0),
        }
    }

    /// All the space that must stay reserved for what is dirty now (flushes in flight hold their own
    /// data blocks). What is held beyond it may be given back.
    pub fn space_want(&self) -> SpaceNeed {
        space_for(self.pages.unplaced(), self.runs)
    }

    /// Drops every dirty page and the size that goes with them: for a host that has halted and
    /// cannot write any more, and for a file whose last link and handle are gone.
    pub fn abandon(&mut self) {
        debug_assert!(self.flushes == 0);
        self.pages.discard(0..u64::MAX);
        (self.mem_size, self.guard, self.runs) = (self.disk_size, None, 0);
    }

    /// A flush has failed, and will however often it is tried: gives up what it could not write, if that is one
    /// page, which has failed by itself some times. Of more the next flush tries less at a time, so that no page goes that
    /// can be written. Answers with the number of pages that are lost: there the file is what the disk has. `None` if it
    /// is not known what failed; with `all` everything goes then.
    ///
    /// No flush is in flight.
    pub fn give_up(&mut self, all: bool) -> Option<u64> {
        match self.refused.take() {
            None if !all => None,
            Some(pages) if !all && pages.end - pages.start > 1 => Some(0),
            Some(_) if !all && self.refused_alone.1 < REFUSED_TIMES => Some(0),
            // Nothing behind the guard may be seen on the disk without it.
            Some(pages) if !all && self.guard != Some(pages.start) => {
                self.pages.discard(pages);
                self.forget_runs(0);
                Some(1)
            }
            _ => {
                let lost = self.pages.len() as u64;
                self.abandon();
                Some(lost)
            }
        }
    }

    /// # Errors
    /// `Busy` while a flush is in flight.
    pub(super) fn alone(&self) -> Result<()> {
        if self.flushes > 0 {
            return Err(Error::Busy(format!("{} flushes of this file are in flight", self.flushes)));
        }
        Ok(())
    }

    /// The span that `page` lies in, from the last lookup if that will do.
    pub(super) fn span(&mut self, src: &dyn BlockSource, page: u64) -> Result<Span> {
        if let Some(span) = self.last_span
            && (span.first..span.end()).contains(&page)
        {
            return Ok(span);
        }
        let span = self.extents.span_at(src, page)?;
        self.last_span = Some(span);
        Ok(span)
    }

    /// What a clean page of the file costs when it becomes dirty.
    pub(super) fn cost(&mut self, src: &dyn BlockSource, pages: Range<u64>) -> Result<(u64, Cost)> {
        if !self.has_extents {
            return Ok((pages.end, Cost::Block));
        }
        let span = self.span(src, pages.start)?;
        let cost = match span.backing {
            Backing::Hole => Cost::Block,
            Backing::Written(_) => Cost::Free,
            Backing::Unwritten(_) => Cost::Convert,
        };
        Ok((span.end().min(pages.end), cost))
    }

    /// The content of a clean page, zeros from the end of the file on.
    pub(super) fn load_page(
        &mut self,
        io: &dyn DataDevice,
        src: &dyn BlockSource,
        page: u64,
    ) -> Result<Arc<PageBuf>> {
        let mut buf = self.pages.pool().page_zeroed();
        let valid = self.disk_size.saturating_sub(page * PAGE).min(PAGE) as usize;
        if valid == 0 {
            return Ok(buf);
        }
        let bytes = &mut Arc::get_mut(&mut buf).expect("new").0;
        if self.inline {
            if page == 0 {
                let value = self.inline_bytes(src)?;
                let n = valid.min(value.len());
                bytes[..n].copy_from_slice(&value[..n]);
            }
        } else if self.has_extents
            && let span = self.span(src, page)?
            && let Backing::Written(place) = span.backing
        {
            io.read_data(place.plus(page - span.first), bytes)?;
            bytes[valid..].fill(0);
        }
        Ok(buf)
    }

    /// The bytes that the inode holds; the file may be longer, with zeros.
    pub(super) fn inline_bytes(&self, src: &dyn BlockSource) -> Result<Vec<u8>> {
        let tree = self.extents.tree();
        let value = tree.get(src, INLINE)?;
        value.ok_or_else(|| Error::Damaged { inode: tree.ino, what: "its data item is gone".into() })
    }
}

/// So often a page must have been refused by itself before it is given up.
const REFUSED_TIMES: u32 = 4;
/// Sectors that stat shows of a file of `size` bytes that lie in its inode. Programs that copy files take one with
/// a size and no sectors for a hole, and do not read it.
pub fn sectors_in_inode(size: u64) -> u64 {
    size.min(INLINE_MAX).div_ceil(SECTOR)
}

/// Metadata blocks for the tree's growth at its inner pages and its root.
const TREE_GROWTH: u64 = 4;
/// New extents per new leaf when a run of pages falls into many extents.
const EXTENTS_PER_SPLIT: u64 = 32;

/// Worst case for the item tree: each run of pages may split a leaf, in the worst case every page of
/// a run becomes an extent of its own, and the leaves split need entries in inner pages.
pub(super) fn space_for(blocks: u64, runs: u64) -> SpaceNeed {
    if blocks == 0 && runs == 0 {
        return SpaceNeed::default();
    }
    let leaves = runs.max(1) + blocks.div_ceil(EXTENTS_PER_SPLIT);
    let meta = TREE_GROWTH + leaves + leaves / EXTENTS_PER_SPLIT;
    SpaceNeed { data: blocks, meta: u32::try_from(meta).unwrap_or(u32::MAX) }
}

/// Pages that bytes `off..off + len` touch.
pub(super) fn pages_of(off: u64, len: u64) -> Range<u64> {
    if len == 0 {
        return off / PAGE..off / PAGE;
    }
    off / PAGE..(off + len).div_ceil(PAGE)
}

/// Pages that lie wholly in bytes `off..off + len`.
pub(super) fn whole_pages(off: u64, len: u64) -> Range<u64> {
    let first = off.div_ceil(PAGE);
    first..((off + len) / PAGE).max(first)
}
