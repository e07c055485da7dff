//! The extents of one file: looking them up, adding, converting and removing runs.
//!
//! Extents never overlap, and neighbours that can be one extent are one (so a file written front to
//! back onto one run costs one item, however many flushes it took). All of it goes through the item
//! tree; nothing here touches data.

use super::StepLimit;
use crate::base::{BlockNo, Error, Result};
use crate::format::Geometry;
use crate::format::extent::{Extent, FILE_BLOCKS_MAX, UNWRITTEN_BLOCKS_MAX};
use crate::inode::{ItemKey, ItemKind, Tree};
use crate::txn::{BlockRun, BlockSource, BlockTxn};
use std::ops::{ControlFlow, Range};

/// What lies behind a run of file blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: reads as zeros.
    Hole,
    /// Data, from this block on.
    Written(BlockNo),
    /// Blocks that were never written: reads as zeros.
    Unwritten(BlockNo),
}

/// A run of file blocks with one backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: u64,
    pub blocks: u64,
    pub backing: Backing,
}

impl Span {
    /// The file block behind the last one.
    pub fn end(&self) -> u64 {
        self.first + self.blocks
    }

    /// The blocks of the volume behind it, if it is not a hole.
    pub fn run(&self) -> Option<BlockRun> {
        match self.backing {
            Backing::Hole => None,
            Backing::Written(start) | Backing::Unwritten(start) => {
                Some(BlockRun { start, blocks: self.blocks })
            }
        }
    }

    fn of(extent: &Extent) -> Span {
        let backing = match extent.unwritten {
            true => Backing::Unwritten(extent.physical),
            false => Backing::Written(extent.physical),
        };
        Span { first: extent.logical, blocks: extent.blocks, backing }
    }

    /// The part inside `range`, which it overlaps.
    pub fn clip(&self, range: &Range<u64>) -> Span {
        let (first, end) = (self.first.max(range.start), self.end().min(range.end));
        let moved = first - self.first;
        let backing = match self.backing {
            Backing::Hole => Backing::Hole,
            Backing::Written(at) => Backing::Written(at.plus(moved)),
            Backing::Unwritten(at) => Backing::Unwritten(at.plus(moved)),
        };
        Span { first, blocks: end - first, backing }
    }
}

/// What one bounded step of a removal or conversion did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Stepped {
    /// File blocks that are as they shall be now.
    pub pages: Range<u64>,
    /// Blocks freed or converted.
    pub blocks: u64,
    /// Whether something of the range is left.
    pub more: bool,
}

/// The extents of one file.
#[derive(Clone, Copy)]
pub struct Extents {
    tree: Tree,
    /// Blocks that data may lie on.
    bounds: (BlockNo, BlockNo),
}

fn key(logical: u64) -> ItemKey {
    ItemKey { kind: ItemKind::Extent, id: logical }
}

impl Extents {
    /// The extents in `tree`, on a volume of this geometry.
    pub fn new(tree: Tree, geometry: &Geometry) -> Extents {
        Extents { tree, bounds: (geometry.groups_start(), BlockNo(geometry.total_blocks)) }
    }

    /// The item tree they live in.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged { inode: self.tree.ino, what: what.into() }
    }

    fn decode(&self, key: ItemKey, value: &[u8]) -> Result<Extent> {
        let extent = Extent::decode(value).map_err(|what| self.damaged(what))?;
        if extent.logical != key.id {
            return Err(self.damaged("an extent filed under a wrong key"));
        }
        if extent.physical < self.bounds.0 || extent.physical.0 + extent.blocks > self.bounds.1.0 {
            return Err(self.damaged("an extent outside of the volume's groups"));
        }
        if extent.shared {
            return Err(Error::Unsupported("shared extents"));
        }
        Ok(extent)
    }

    /// The last extent that begins at or before `logical`.
    fn floor(&self, src: &dyn BlockSource, logical: u64) -> Result<Option<Extent>> {
        self.tree.floor(src, key(logical))?.map(|(k, value)| self.decode(k, &value)).transpose()
    }

    /// The first extent that begins at or behind `logical`.
    fn ceiling(&self, src: &dyn BlockSource, logical: u64) -> Result<Option<Extent>> {
        let mut found = None;
        self.tree.scan(src, key(logical), Some(key(u64::MAX)), &mut |k, value| {
            found = Some(self.decode(k, value));
            ControlFlow::Break(())
        })?;
        found.transpose()
    }

    /// Whether the file has any extent.
    pub fn any(&self, src: &dyn BlockSource) -> Result<bool> {
        Ok(self.floor(src, u64::MAX)?.is_some())
    }

    /// The whole extent, or the whole hole, that block `logical` lies in.
    pub fn span_at(&self, src: &dyn BlockSource, logical: u64) -> Result<Span> {
        let mut first = 0;
        if let Some(extent) = self.floor(src, logical)? {
            if extent.end() > logical {
                return Ok(Span::of(&extent));
            }
            first = extent.end();
        }
        let end = match self.ceiling(src, logical)? {
            Some(extent) => extent.logical,
            None => FILE_BLOCKS_MAX,
        };
        Ok(Span { first, blocks: end.saturating_sub(first), backing: Backing::Hole })
    }

    /// What lies behind `range`: spans in order that fill it exactly.
    pub fn map(&self, src: &dyn BlockSource, range: Range<u64>) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        if range.is_empty() {
            return Ok(spans);
        }
        let mut at = range.start;
        if let Some(extent) = self.floor(src, at)?
            && extent.end() > at
        {
            spans.push(Span::of(&extent).clip(&range));
            at = extent.end();
        }
        let mut wrong = None;
        if at < range.end {
            self.tree.scan(src, key(at), Some(key(range.end)), &mut |k, value| {
                match self.decode(k, value) {
                    Ok(extent) if extent.logical >= at => {
                        if extent.logical > at {
                            spans.push(Span {
                                first: at,
                                blocks: extent.logical - at,
                                backing: Backing::Hole,
                            });
                        }
                        spans.push(Span::of(&extent).clip(&range));
                        at = extent.end();
                        return ControlFlow::Continue(());
                    }
                    Ok(_) => wrong = Some(self.damaged("extents overlap")),
                    Err(e) => wrong = Some(e),
                }
                ControlFlow::Break(())
            })?;
        }
        if let Some(e) = wrong {
            return Err(e);
        }
        if at < range.end {
            spans.push(Span { first: at, blocks: range.end - at, backing: Backing::Hole });
        }
        Ok(spans)
    }

    /// Where the block of the volume should lie that comes next for file block `logical`: behind the
    /// extent before it, if there is one.
    pub fn near(&self, src: &dyn BlockSource, logical: u64) -> Result<Option<BlockNo>> {
        Ok(self.floor(src, logical)?.map(|before| before.physical.plus(before.blocks)))
    }

    /// Adds a run over a hole, joined with its neighbours where they fit.
    ///
    /// # Errors
    /// `Damaged` if part of it is no hole.
    pub fn insert(&self, txn: &mut dyn BlockTxn, mut new: Extent) -> Result<()> {
        if let Some(next) = self.ceiling(txn, new.logical)? {
            if next.logical < new.end() {
                return Err(self.damaged("an extent where a hole was"));
            }
            if new.joins(&next) {
                self.tree.remove(txn, key(next.logical))?;
                new.blocks += next.blocks;
            }
        }
        if let Some(before) = self.floor(txn, new.logical)? {
            if before.end() > new.logical {
                return Err(self.damaged("an extent where a hole was"));
            }
            if before.joins(&new) {
                let joined = Extent { blocks: before.blocks + new.blocks, ..before };
                return self.tree.put(txn, key(joined.logical), &joined.encode());
            }
        }
        self.tree.insert(txn, key(new.logical), &new.encode())
    }

    /// Takes the part `from..to` out of `extent`; what is left of it stays.
    fn cut(&self, txn: &mut dyn BlockTxn, extent: &Extent, from: u64, to: u64) -> Result<()> {
        if extent.logical < from {
            let left = extent.part(extent.logical, from);
            self.tree.put(txn, key(left.logical), &left.encode())?;
        } else {
            self.tree.remove(txn, key(extent.logical))?;
        }
        if to < extent.end() {
            let right = extent.part(to, extent.end());
            self.tree.insert(txn, key(right.logical), &right.encode())?;
        }
        Ok(())
    }

    /// Frees the blocks behind `range`, from its end downwards so that what is left is a prefix.
    pub fn remove(&self, txn: &mut dyn BlockTxn, range: Range<u64>, limit: StepLimit) -> Result<Stepped> {
        let (mut left, mut blocks, mut reached) = (limit, 0, range.end);
        loop {
            let last = match range.is_empty() {
                true => None,
                false => self.floor(txn, range.end - 1)?.filter(|e| e.end() > range.start),
            };
            let Some(extent) = last else { return Ok(Stepped { pages: range, blocks, more: false }) };
            if left.changes == 0 || left.blocks == 0 {
                return Ok(Stepped { pages: reached..range.end, blocks, more: true });
            }
            let to = extent.end().min(range.end);
            let from = extent.logical.max(range.start).max(to.saturating_sub(left.blocks));
            self.cut(txn, &extent, from, to)?;
            txn.free_data(BlockRun { start: extent.place_of(from), blocks: to - from })?;
            (reached, blocks) = (from, blocks + to - from);
            left = StepLimit { changes: left.changes - 1, blocks: left.blocks - (to - from) };
        }
    }

    /// Makes the unwritten extent that begins at `first` a written one, whole: its item stays where it is, and no block is
    /// needed for that.
    ///
    /// # Errors
    /// `Damaged` if there is none.
    pub fn set_written_whole(&self, txn: &mut dyn BlockTxn, first: u64) -> Result<()> {
        let found = self.floor(txn, first)?.filter(|extent| extent.logical == first && extent.unwritten);
        let Some(extent) = found else { return Err(self.damaged("no unwritten extent where one was")) };
        let mut written = Extent { unwritten: false, ..extent };
        if let Some(next) = self.ceiling(txn, written.end())?
            && written.joins(&next)
        {
            self.tree.remove(txn, key(next.logical))?;
            written.blocks += next.blocks;
        }
        let before = first.checked_sub(1).map(|last| self.floor(txn, last)).transpose()?.flatten();
        if let Some(before) = before.filter(|before| before.joins(&written)) {
            self.tree.remove(txn, key(first))?;
            written = Extent { blocks: before.blocks + written.blocks, ..before };
        }
        self.tree.put(txn, key(written.logical), &written.encode())
    }

    /// Makes every extent in `range` written, or every one unwritten; holes stay holes.
    pub fn set_unwritten(
        &self,
        txn: &mut dyn BlockTxn,
        range: Range<u64>,
        unwritten: bool,
        limit: StepLimit,
    ) -> Result<Stepped> {
        let (mut changes, mut blocks) = (limit.changes, 0);
        let mut at = range.start;
        while at < range.end {
            let span = self.span_at(txn, at)?;
            let (from, to) = (at, span.end().min(range.end));
            let place = match span.backing {
                Backing::Written(place) if unwritten => place,
                Backing::Unwritten(place) if !unwritten => place,
                _ => {
                    at = to;
                    continue;
                }
            };
            let to = if unwritten { to.min(from + u64::from(UNWRITTEN_BLOCKS_MAX)) } else { to };
            if changes == 0 {
                return Ok(Stepped { pages: range.start..at, blocks, more: true });
            }
            changes -= 1;
            let whole = Extent {
                logical: span.first,
                physical: place,
                blocks: span.blocks,
                unwritten: !unwritten,
                shared: false,
            };
            self.cut(txn, &whole, from, to)?;
            self.insert(txn, Extent { unwritten, ..whole.part(from, to) })?;
            (at, blocks) = (to, blocks + to - from);
        }
        Ok(Stepped { pages: range, blocks, more: false })
    }
}
