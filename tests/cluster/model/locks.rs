//! File locks of one file: who has locked which byte, and how. One cell per byte, the last one for all bytes from
//! there to the end.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes with a cell of their own.
pub const BYTES: usize = 60;
const CELLS: usize = BYTES + 1;

/// Whose lock: a process's, or an open file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Program(usize),
    Open(u64),
}

/// A range in cells, the end being outside. Up to [`CELLS`]: to the end of all files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: usize,
    pub end: usize,
}

impl Range {
    /// As fcntl has it; length 0 means to the end. Neither passes [`BYTES`].
    pub fn new(start: usize, length: usize) -> Range {
        assert!(start + length <= BYTES);
        Range { start, end: if length == 0 { CELLS } else { start + length } }
    }

    /// What fcntl would say: start and length.
    pub fn fcntl(self) -> (i64, i64) {
        let length = if self.end == CELLS { 0 } else { self.end - self.start };
        (self.start as i64, length as i64)
    }
}

/// The locks of a file. A lock is exclusive (`true`) or shared.
#[derive(Default)]
pub struct Locks {
    cells: BTreeMap<Owner, [Option<bool>; CELLS]>,
    /// flock(2), by open file.
    whole: BTreeMap<u64, bool>,
}

impl Locks {
    /// Owners of locks that are in the way.
    fn in_the_way(&self, owner: Owner, exclusive: bool, range: Range) -> BTreeSet<Owner> {
        let others = self.cells.iter().filter(|(other, _)| **other != owner);
        let conflicts = |cells: &[Option<bool>; CELLS]| {
            cells[range.start..range.end].iter().any(|cell| cell.is_some_and(|other| exclusive || other))
        };
        others.filter(|(_, cells)| conflicts(cells)).map(|(other, _)| *other).collect()
    }

    /// Lock, or unlock (`None`), without waiting. Is it done?
    pub fn set(&mut self, owner: Owner, how: Option<bool>, range: Range) -> bool {
        if how.is_some_and(|exclusive| !self.in_the_way(owner, exclusive, range).is_empty()) {
            return false;
        }
        let cells = self.cells.entry(owner).or_insert([None; CELLS]);
        cells[range.start..range.end].fill(how);
        if *cells == [None; CELLS] {
            self.cells.remove(&owner);
        }
        true
    }

    /// All that a test for a lock may rightly name: whole locks of others, of which one is named.
    pub fn test(&self, owner: Owner, exclusive: bool, range: Range) -> Vec<(Owner, bool, Range)> {
        let mut found = Vec::new();
        for other in self.in_the_way(owner, exclusive, range) {
            let cells = &self.cells[&other];
            let mut start = 0;
            while start < CELLS {
                let end = (start..CELLS).find(|i| cells[*i] != cells[start]).unwrap_or(CELLS);
                if let Some(held) = cells[start]
                    && (exclusive || held)
                    && start < range.end
                    && end > range.start
                {
                    found.push((other, held, Range { start, end }));
                }
                start = end;
            }
        }
        found
    }

    /// Does this owner have any?
    pub fn has(&self, owner: Owner) -> bool {
        self.cells.contains_key(&owner)
    }

    /// A process has closed the file, or an open file has ended.
    pub fn release(&mut self, owner: Owner) {
        self.cells.remove(&owner);
        if let Owner::Open(open) = owner {
            self.whole.remove(&open);
        }
    }

    /// flock without waiting. Is it done? Who changes a lock gives up the old one first, as Linux has it.
    pub fn flock(&mut self, open: u64, how: Option<bool>) -> bool {
        let old = self.whole.remove(&open);
        let Some(exclusive) = how else { return true };
        if old == how || !self.whole.values().any(|other| exclusive || *other) {
            self.whole.insert(open, exclusive);
            return true;
        }
        false
    }

    /// Has this open file a flock lock?
    pub fn has_whole(&self, open: u64) -> bool {
        self.whole.contains_key(&open)
    }

    /// Would flock succeed for somebody new?
    pub fn may_flock(&self, exclusive: bool) -> bool {
        !self.whole.values().any(|other| exclusive || *other)
    }
}
