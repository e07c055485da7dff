//! Guards of promised blocks. Dropping one gives everything back.

use super::cell::Cell;
use super::page::{Class, PAGE_CHUNKS};
use crate::base::{AgNo, BLOCK_SIZE, BlockNo, Error, InodeNo};
use crate::format::layout::CHUNK_BLOCKS;
use crate::txn::BlockRun;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A part of a reservation in one group.
pub(super) struct Part {
    pub cell: Arc<Cell>,
    pub data: u64,
    pub meta: u64,
}

/// Blocks promised to the holder, by number, not by place. While any is outstanding, the lock of the
/// group it is in is not given up.
#[derive(Default)]
pub struct Reservation {
    pub(super) parts: Vec<Part>,
}

impl Reservation {
    /// Nothing; to be merged into.
    pub fn empty() -> Reservation {
        Reservation::default()
    }

    /// Data blocks left.
    pub fn data(&self) -> u64 {
        self.parts.iter().map(|p| p.data).sum()
    }

    /// Metadata blocks left.
    pub fn meta(&self) -> u64 {
        self.parts.iter().map(|p| p.meta).sum()
    }

    /// Is nothing left?
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|p| p.data == 0 && p.meta == 0)
    }

    /// The groups it is in.
    pub fn groups(&self) -> Vec<AgNo> {
        self.parts.iter().map(|p| p.cell.ag).collect()
    }

    /// Take over what `other` holds.
    pub fn merge(&mut self, mut other: Reservation) {
        for part in std::mem::take(&mut other.parts) {
            self.add(part);
        }
    }

    pub(super) fn add(&mut self, part: Part) {
        match self.parts.iter_mut().find(|p| Arc::ptr_eq(&p.cell, &part.cell)) {
            Some(p) => {
                p.data += part.data;
                p.meta += part.meta;
            }
            None => self.parts.push(part),
        }
    }

    /// A reservation of its own with so much of this one, or as much as there is.
    pub fn split(&mut self, mut data: u64, mut meta: u64) -> Reservation {
        let mut out = Reservation::empty();
        for p in &mut self.parts {
            let (d, m) = (p.data.min(data), p.meta.min(meta));
            if d + m > 0 {
                out.parts.push(Part { cell: p.cell.clone(), data: d, meta: m });
            }
            (p.data, p.meta) = (p.data - d, p.meta - m);
            (data, meta) = (data - d, meta - m);
        }
        out
    }

    /// Give back what exceeds `data` and `meta`.
    pub fn shrink(&mut self, data: u64, meta: u64) {
        let (more_data, more_meta) = (self.data().saturating_sub(data), self.meta().saturating_sub(meta));
        if more_data + more_meta > 0 {
            drop(self.split(more_data, more_meta));
        }
    }

    /// The part to take a block of `class` from: in group `near` if there is one.
    pub(super) fn part(&mut self, class: Class, near: Option<AgNo>) -> Option<&mut Part> {
        let has = |p: &Part| if class == Class::Data { p.data > 0 } else { p.meta > 0 };
        let at = self.parts.iter().position(|p| has(p) && Some(p.cell.ag) == near);
        let at = at.or_else(|| self.parts.iter().position(has))?;
        Some(&mut self.parts[at])
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for p in &self.parts {
            if p.data + p.meta > 0 {
                p.cell.with(|g| {
                    g.data.reserved -= p.data;
                    g.meta.reserved -= p.meta;
                });
            }
        }
    }
}

/// Concrete data blocks, chosen but not yet allocated on disk: the data is written first, then
/// [`super::Transaction::use_data`] makes them the file's.
#[derive(Default)]
pub struct PendingRuns {
    pub(super) taken: Vec<(Arc<Cell>, BlockRun)>,
    runs: Vec<BlockRun>,
}

impl PendingRuns {
    pub(super) fn push(&mut self, cell: &Arc<Cell>, run: BlockRun) {
        self.taken.push((cell.clone(), run));
        match self.runs.last_mut() {
            Some(last) if last.start.plus(last.blocks) == run.start => last.blocks += run.blocks,
            _ => self.runs.push(run),
        }
    }

    /// The runs in the order of the file, neighbours merged.
    pub fn runs(&self) -> &[BlockRun] {
        &self.runs
    }

    /// Blocks in all runs.
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|r| r.blocks).sum()
    }

    /// Log space that a transaction needs to use them, besides its own changes:
    /// [`super::Allocator::begin_with`] adds it.
    pub fn log_blocks(&self) -> u32 {
        let page = |c: &Cell, b: BlockNo| (b.0 - c.start.0) / CHUNK_BLOCKS / PAGE_CHUNKS as u64;
        let pages: BTreeSet<_> = self.taken.iter().map(|(c, r)| (c.ag, page(c, r.start))).collect();
        let groups: BTreeSet<_> = self.taken.iter().map(|(c, _)| c.ag).collect();
        (pages.len() + groups.len()) as u32
    }

    /// Give the blocks back into `reservation`, for another attempt.
    pub fn give_back(mut self, reservation: &mut Reservation) {
        for (cell, run) in std::mem::take(&mut self.taken) {
            cell.with(|g| {
                g.give_back(Class::Data, run);
                g.data.reserved += run.blocks;
            });
            reservation.add(Part { cell, data: run.blocks, meta: 0 });
        }
    }

    /// As [`PendingRuns::give_back`] after `failed`. Blocks that the device has refused to write are not chosen
    /// again as long as their group stays here; what was promised is less by them.
    pub fn give_back_after(mut self, failed: Option<&Error>, reservation: &mut Reservation) {
        let block = BLOCK_SIZE as u64;
        let refused = match failed {
            Some(Error::Io { op: "write", offset, length, .. }) => {
                offset / block..offset.saturating_add(*length).div_ceil(block)
            }
            _ => 0..0,
        };
        let mut sound = PendingRuns::default();
        for (cell, run) in std::mem::take(&mut self.taken) {
            let (start, end) = (run.start.0, run.start.0 + run.blocks);
            let from = refused.start.clamp(start, end);
            let to = refused.end.clamp(from, end);
            for (from, to, bad) in [(start, from, false), (from, to, true), (to, end, false)] {
                let part = BlockRun { start: BlockNo(from), blocks: to - from };
                if part.blocks == 0 {
                    continue;
                }
                if bad && cell.with(|g| g.refuse(part)) {
                    tracing::warn!("blocks {from} to {} cannot be written, they are left unused", to - 1);
                } else {
                    sound.push(&cell, part);
                }
            }
        }
        sound.give_back(reservation);
    }
}

impl Drop for PendingRuns {
    fn drop(&mut self) {
        for (cell, run) in &self.taken {
            cell.with(|g| g.give_back(Class::Data, *run));
        }
    }
}

/// An inode number chosen in memory, so that its lock can be taken before the transaction begins.
pub struct PickedInode {
    pub(super) cell: Arc<Cell>,
    pub(super) block: Option<BlockNo>,
    ino: InodeNo,
}

impl PickedInode {
    pub(super) fn new(cell: Arc<Cell>, block: BlockNo) -> PickedInode {
        PickedInode { cell, block: Some(block), ino: InodeNo(block.0) }
    }

    /// The number.
    pub fn ino(&self) -> InodeNo {
        self.ino
    }
}

impl Drop for PickedInode {
    fn drop(&mut self) {
        if let Some(start) = self.block {
            self.cell.with(|g| g.give_back(Class::Meta, BlockRun { start, blocks: 1 }));
        }
    }
}
