//! Promises of space, and blocks picked but not used yet. Dropping either gives it back.

use super::Allocator;
use super::group::Group;
use crate::base::{AgNo, BlockNo};
use crate::txn::BlockRun;
use std::sync::Arc;

/// Space promised to one operation or file.
pub struct Reservation {
    alloc: Arc<Allocator>,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    ag: AgNo,
    data: u64,
    meta: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.parts).finish()
    }
}

impl Reservation {
    /// Of nothing.
    pub fn empty(alloc: Arc<Allocator>) -> Reservation {
        Reservation { alloc, parts: Vec::new() }
    }

    pub(super) fn new(alloc: Arc<Allocator>, ag: AgNo, data: u64, meta: u64) -> Reservation {
        Reservation { alloc, parts: vec![Part { ag, data, meta }] }
    }

    /// Data blocks left.
    pub fn data(&self) -> u64 {
        self.parts.iter().map(|p| p.data).sum()
    }

    /// Metadata blocks left.
    pub fn meta(&self) -> u64 {
        self.parts.iter().map(|p| p.meta).sum()
    }

    /// Take over another's promises.
    pub fn merge(&mut self, mut other: Reservation) {
        for part in std::mem::take(&mut other.parts) {
            match self.parts.iter_mut().find(|p| p.ag == part.ag) {
                Some(own) => (own.data, own.meta) = (own.data + part.data, own.meta + part.meta),
                None => self.parts.push(part),
            }
        }
    }

    /// Hand over so much of it, or all there is.
    pub fn split(&mut self, mut data: u64, mut meta: u64) -> Reservation {
        let mut parts = Vec::new();
        for part in &mut self.parts {
            let (d, m) = (part.data.min(data), part.meta.min(meta));
            (part.data, part.meta) = (part.data - d, part.meta - m);
            (data, meta) = (data - d, meta - m);
            if d + m > 0 {
                parts.push(Part { ag: part.ag, data: d, meta: m });
            }
        }
        self.parts.retain(|p| p.data + p.meta > 0);
        Reservation { alloc: self.alloc.clone(), parts }
    }

    /// Give back what exceeds this.
    pub fn shrink(&mut self, data: u64, meta: u64) {
        let (extra_data, extra_meta) = (self.data().saturating_sub(data), self.meta().saturating_sub(meta));
        if extra_data + extra_meta > 0 {
            drop(self.split(extra_data, extra_meta));
        }
    }

    pub(super) fn data_part(&self) -> Option<(AgNo, u64)> {
        self.parts.iter().find(|p| p.data > 0).map(|p| (p.ag, p.data))
    }

    pub(super) fn meta_part(&self) -> Option<AgNo> {
        self.parts.iter().find(|p| p.meta > 0).map(|p| p.ag)
    }

    pub(super) fn spend_data(&mut self, ag: AgNo, blocks: u64) {
        if let Some(part) = self.parts.iter_mut().find(|p| p.ag == ag) {
            part.data -= blocks;
        }
    }

    pub(super) fn spend_meta(&mut self, ag: AgNo) {
        if let Some(part) = self.parts.iter_mut().find(|p| p.ag == ag) {
            part.meta -= 1;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for part in &self.parts {
            if let Some(group) = self.alloc.find(part.ag) {
                let mut group = group.lock();
                group.reserved_data -= part.data;
                group.reserved_meta -= part.meta;
            }
        }
    }
}

/// Data blocks picked for data that is on its way to the disk. A transaction makes them used
/// (`Transaction::use_data`); dropped, they are free again.
pub struct PendingRuns {
    alloc: Arc<Allocator>,
    runs: Vec<BlockRun>,
    /// Per run: its group counts us among its users.
    groups: Vec<AgNo>,
}

impl PendingRuns {
    pub(super) fn new(alloc: Arc<Allocator>) -> PendingRuns {
        PendingRuns { alloc, runs: Vec::new(), groups: Vec::new() }
    }

    /// The runs, in the order of the data.
    pub fn runs(&self) -> &[BlockRun] {
        &self.runs
    }

    pub(super) fn push(&mut self, group: &mut Group, run: BlockRun) {
        group.users += 1;
        self.runs.push(run);
        self.groups.push(group.ag);
    }

    pub(super) fn last_end(&self) -> Option<BlockNo> {
        self.runs.last().map(|r| r.start.plus(r.blocks))
    }

    /// Hand the runs to a transaction, which counts as their groups' user from then on.
    pub(super) fn into_runs(mut self) -> Vec<(AgNo, BlockRun)> {
        let runs = std::mem::take(&mut self.runs);
        std::mem::take(&mut self.groups).into_iter().zip(runs).collect()
    }
}

impl Drop for PendingRuns {
    fn drop(&mut self) {
        for (run, ag) in self.runs.iter().zip(&self.groups) {
            if let Some(group) = self.alloc.find(*ag) {
                let mut group = group.lock();
                group.unpick(*run);
                group.users -= 1;
            }
        }
    }
}
