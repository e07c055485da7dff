//! Which inodes are read before anybody asks for them.
//!
//! Who goes through a directory looks its entries up in the order that a listing gave them, or in the
//! order they were made in, which is mostly that of their numbers. Either is noticed by the second
//! inode that has to be read, and from then on more and more come with one request.
//!
//! An inode read ahead is cached like any other, so its lock is taken first; where that would have to be
//! waited for, or asked of another host, the inode is left out.

use super::*;
use crate::format::BlockKind;
use crate::format::layout::CHUNK_BLOCKS;

/// Inodes by number: first, and most.
const BY_NUMBER: (u64, u64) = (8, 256);
/// An inode so far behind the expected one is still in order: not every block holds an inode.
const SKIPPED_MAX: u64 = 16;
/// Listed entries, with several requests: first, and most.
const LISTED: (usize, usize) = (256, 1024);
/// Listed entries that are remembered.
const LISTED_MAX: usize = 4096;

/// How the entries of one directory are being gone through.
#[derive(Debug, Default)]
pub struct Walk {
    /// What was listed last, in that order.
    listed: Vec<InodeNo>,
    /// Of these, so many have been read or passed over.
    at: usize,
    /// How many come next time.
    listed_window: usize,
    /// The inode number expected next.
    expected: u64,
    window: u64,
}

impl Walk {
    /// A listing gave these out; it began anew, or went on.
    fn list(&mut self, entries: impl Iterator<Item = InodeNo>, anew: bool) {
        if anew {
            self.listed.clear();
            (self.at, self.listed_window) = (0, 0);
        }
        self.listed.extend(entries);
        if let Some(excess) = self.listed.len().checked_sub(LISTED_MAX) {
            self.listed.drain(..excess);
            self.at = self.at.saturating_sub(excess);
        }
    }

    /// `ino` has to be read: what to read with it, `ino` included.
    fn miss(&mut self, ino: InodeNo) -> Vec<InodeNo> {
        if let Some(skipped) = self.listed[self.at..].iter().position(|i| *i == ino) {
            let from = self.at + skipped;
            let window = if self.listed_window == 0 { 1 } else { self.listed_window };
            self.at = (from + window).min(self.listed.len());
            self.listed_window = (window * 4).clamp(LISTED.0, LISTED.1);
            return self.listed[from..self.at].to_vec();
        }
        let in_order = (self.expected..=self.expected + SKIPPED_MAX).contains(&ino.0);
        self.window = if in_order { (self.window * 2).clamp(BY_NUMBER.0, BY_NUMBER.1) } else { 1 };
        // The next chunk may hold anything, file data too; groups begin with a chunk.
        self.expected = (ino.0 + self.window).min((ino.0 + 1).next_multiple_of(CHUNK_BLOCKS));
        (ino.0..self.expected).map(InodeNo).collect()
    }
}

impl Core {
    /// Entries of a directory that a listing has just given out.
    pub(super) fn note_listed(&self, dir: InodeNo, entries: impl Iterator<Item = InodeNo>, anew: bool) {
        if let Some(node) = self.nodes.find(dir) {
            node.walk.lock().get_or_insert_default().list(entries, anew);
        }
    }

    /// An entry of `dir` has been looked up, and its inode, which is pinned, is about to be read.
    pub(super) fn read_ahead(&self, dir: &Node, ino: InodeNo) {
        if self.store.has(ino.block()) {
            return;
        }
        let mut inodes = dir.walk.lock().get_or_insert_default().miss(ino);
        if inodes.len() < 2 {
            return;
        }
        inodes.retain(|i| !self.store.has(i.block()));
        let pins = self.locks.try_pin_each(inodes.into_iter().map(LockName::Inode), Mode::S);
        let blocks: Vec<_> = pins
            .set()
            .iter()
            .filter_map(|(name, _)| match name {
                LockName::Inode(i) => Some((i.block(), name)),
                _ => None,
            })
            .collect();
        self.store.read_ahead(&blocks, BlockKind::Inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(inodes: Vec<InodeNo>) -> Vec<u64> {
        inodes.into_iter().map(|i| i.0).collect()
    }

    #[test]
    fn one_miss_reads_one_inode_and_a_walk_by_number_more_and_more() {
        let mut walk = Walk::default();
        assert_eq!(numbers(walk.miss(InodeNo(1024))), [1024]);
        assert_eq!(numbers(walk.miss(InodeNo(1025))), (1025..1033).collect::<Vec<_>>());
        // Two blocks that hold no inode lie between.
        assert_eq!(numbers(walk.miss(InodeNo(1035))), (1035..1051).collect::<Vec<_>>());
        let sizes: Vec<_> = (0..9).map(|_| walk.miss(InodeNo(walk.expected)).len()).collect();
        assert_eq!(sizes, [32, 64, 128, 256, 5, 256, 256, 256, 256], "none goes beyond its chunk");
        assert_eq!(numbers(walk.miss(InodeNo(500))), [500], "out of order");
    }

    #[test]
    fn a_walk_through_a_listing_reads_what_comes_next_in_it() {
        let mut walk = Walk::default();
        let listed: Vec<_> = (0..5000u64).map(|i| InodeNo(i * 7919 % 5003)).collect();
        walk.list(listed.iter().copied(), true);
        let first = listed.len() - LISTED_MAX;
        assert_eq!(walk.miss(listed[first]), listed[first..=first]);
        assert_eq!(walk.miss(listed[first + 1]), listed[first + 1..first + 257]);
        // Some were cached, or are not wanted.
        assert_eq!(walk.miss(listed[first + 270]), listed[first + 270..first + 270 + 1024]);
        walk.list(listed[..3].iter().copied(), true);
        assert_eq!(walk.miss(listed[1]), listed[1..2]);
        assert_eq!(walk.miss(listed[2]), listed[2..3]);
        assert_eq!(numbers(walk.miss(InodeNo(9999))).len(), 1);
    }
}
