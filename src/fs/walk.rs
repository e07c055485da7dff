//! Which inodes are read before anybody asks for them.
//!
//! Who goes through a directory looks its entries up in the order that a listing gave them, or in the
//! order they were made in, which is mostly that of their numbers. Either is noticed by the second
//! inode that has to be read, and from then on more and more come with one request. Whoever gets to what
//! came last has the next read meanwhile, by a thread of their own: as long as the walk goes on, nobody
//! waits for the device.
//!
//! An inode read ahead is cached like any other, so its lock is taken first; where that would have to be
//! waited for, or asked of another host, the inode is left out.

use super::*;
use crate::format::BlockKind;
use crate::format::layout::CHUNK_BLOCKS;
use parking_lot::Condvar;
use std::collections::VecDeque;
use std::ops::Range;

/// Inodes by number: first, and most.
const BY_NUMBER: (u64, u64) = (8, CHUNK_BLOCKS);
/// An inode so far behind the expected one is still in order: not every block holds an inode.
const SKIPPED_MAX: u64 = 16;
/// Listed entries, with several requests: first, and most.
const LISTED: (usize, usize) = (256, 1024);
/// Listed entries that are remembered.
const LISTED_MAX: usize = 4096;
/// Inodes by number, most, where somebody waits for the first of them.
const AWAITED: u64 = 64;
/// Listed entries of what was read last that are the first of it: some may be skipped.
const ARRIVAL: usize = SKIPPED_MAX as usize;
/// Reads that wait for the thread. Beyond them, who walks reads for itself.
const QUEUED_MAX: usize = 4;
/// What has been read, or is about to be, and is missing all the same: so many are read again with the first, and
/// only those that come so far behind it are not read singly. The thread may be late, locks may not have been to
/// be had then (a fresh mount has yet to learn who decides them), or may never be.
const AGAIN: (usize, usize) = (256, 32);
/// Inodes that the thread reads, and keeps the locks of, at a time.
const PIECE: usize = 512;

/// How the entries of one directory are being gone through.
#[derive(Debug, Default)]
pub struct Walk {
    /// What was listed last, in that order.
    listed: Vec<InodeNo>,
    /// Of these, what was read last, or passed over, or is being read.
    last_listed: Range<usize>,
    /// How many come next time.
    listed_window: usize,
    /// The numbers that were read last, or are being read; the inode expected next follows them.
    last: Range<u64>,
    window: u64,
    /// Entries, and numbers, up to which what should be here and is not is read one by one.
    singly: (Range<usize>, Range<u64>),
}

impl Walk {
    /// A listing gave these out; it began anew, or went on.
    fn list(&mut self, entries: impl Iterator<Item = InodeNo>, anew: bool) {
        if anew {
            self.listed.clear();
            (self.last_listed, self.listed_window, self.singly.0) = (0..0, 0, 0..0);
        }
        self.listed.extend(entries);
        if let Some(excess) = self.listed.len().checked_sub(LISTED_MAX) {
            self.listed.drain(..excess);
            let moved = |at: usize| at.saturating_sub(excess);
            self.last_listed = moved(self.last_listed.start)..moved(self.last_listed.end);
        }
    }

    /// `ino` has to be read: what to read with it, `ino` included.
    fn miss(&mut self, ino: InodeNo) -> Vec<InodeNo> {
        if let Some(at) = self.listed.iter().position(|i| *i == ino) {
            if at >= self.last_listed.end {
                return self.next_listed(at).to_vec();
            }
            if self.singly.0.contains(&at) {
                return vec![ino];
            }
            self.singly.0 = at..at + AGAIN.1;
            return self.listed[at..self.last_listed.end.min(at + AGAIN.0)].to_vec();
        }
        if self.last.contains(&ino.0) {
            if self.singly.1.contains(&ino.0) {
                return vec![ino];
            }
            self.singly.1 = ino.0..ino.0 + AGAIN.1 as u64;
            return numbered(ino.0..self.last.end.min(ino.0 + AGAIN.0 as u64));
        }
        let expected = self.last.end;
        let in_order = (expected..=expected.saturating_add(SKIPPED_MAX)).contains(&ino.0);
        self.window = if in_order { (self.window * 2).clamp(BY_NUMBER.0, BY_NUMBER.1) } else { 1 };
        self.next_numbers(ino.0, self.window.min(AWAITED))
    }

    /// `ino` has been asked for and is here: what to read now, so that it is here before it is asked for.
    fn arrive(&mut self, ino: InodeNo) -> Vec<InodeNo> {
        let last = &self.last_listed;
        let more = last.len() > 1 && last.end < self.listed.len();
        if more && self.listed[last.clone()].iter().take(ARRIVAL).any(|i| *i == ino) {
            return self.next_listed(self.last_listed.end).to_vec();
        }
        let Range { start, end } = self.last;
        let first = start..end.min(start.saturating_add(SKIPPED_MAX));
        // The next chunk may hold anything, file data too.
        if self.window < BY_NUMBER.0 || !first.contains(&ino.0) || end.is_multiple_of(CHUNK_BLOCKS) {
            return Vec::new();
        }
        self.window = (self.window * 2).min(BY_NUMBER.1);
        self.next_numbers(end, self.window)
    }

    /// So many numbers from `from` on, in its chunk; groups begin with a chunk.
    fn next_numbers(&mut self, from: u64, most: u64) -> Vec<InodeNo> {
        let end = (from.saturating_add(1)).checked_next_multiple_of(CHUNK_BLOCKS).unwrap_or(from);
        self.last = from..from.saturating_add(most).min(end);
        numbered(self.last.clone())
    }

    /// More and more of what was listed, from entry `from` on.
    fn next_listed(&mut self, from: usize) -> &[InodeNo] {
        let window = if self.listed_window == 0 { 1 } else { self.listed_window };
        self.last_listed = from..(from + window).min(self.listed.len());
        self.listed_window = (window * 4).clamp(LISTED.0, LISTED.1);
        &self.listed[self.last_listed.clone()]
    }
}

fn numbered(range: Range<u64>) -> Vec<InodeNo> {
    range.map(InodeNo).collect()
}

/// What is to be read by the thread that reads for all walks.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<InodeNo>>,
    stop: bool,
}

impl Queue {
    /// To be read when the thread comes to it. With much to do already it forgets this; whoever gets there reads
    /// for itself.
    fn push(&self, inodes: Vec<InodeNo>) {
        let mut state = self.state.lock();
        if state.waiting.len() < QUEUED_MAX {
            state.waiting.push_back(inodes);
            self.wake.notify_one();
        }
    }

    /// Wait for something to read. `None`: stop.
    fn next(&self) -> Option<Vec<InodeNo>> {
        let mut state = self.state.lock();
        self.wake.wait_while(&mut state, |s| s.waiting.is_empty() && !s.stop);
        if state.stop { None } else { state.waiting.pop_front() }
    }

    /// End the thread.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_all();
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
            let next = dir.walk.lock().as_mut().map_or_else(Vec::new, |walk| walk.arrive(ino));
            if !next.is_empty() {
                self.walks.push(next);
            }
            return;
        }
        let inodes = dir.walk.lock().get_or_insert_default().miss(ino);
        if inodes.len() > 1 {
            self.read_inodes(inodes);
        }
    }

    /// The thread that reads what walks will come to.
    pub(super) fn run_walks(self: &Arc<Self>) {
        while let Some(mut inodes) = self.walks.next() {
            // What lies together stays together.
            inodes.sort_unstable();
            for piece in inodes.chunks(PIECE).take_while(|_| !self.stopping.load(Ordering::Acquire)) {
                self.read_inodes(piece.to_vec());
            }
        }
    }

    /// Bring inodes into the cache, those whose locks can be had now.
    fn read_inodes(&self, mut inodes: Vec<InodeNo>) {
        let end = self.geometry.total_blocks;
        inodes.retain(|i| i.0 < end && !self.store.has(i.block()));
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
        let sizes: Vec<_> = (0..10).map(|_| walk.miss(InodeNo(walk.last.end)).len()).collect();
        assert_eq!(sizes, [32, 64, 64, 64, 64, 64, 64, 64, 5, 64], "none goes beyond its chunk");
        assert_eq!(numbers(walk.miss(InodeNo(500))), [500], "out of order");
        assert_eq!(walk.miss(InodeNo(u64::MAX)).len(), 0, "no inode");
    }

    #[test]
    fn who_gets_to_what_was_read_last_has_the_next_read() {
        let mut walk = Walk::default();
        assert_eq!(walk.arrive(InodeNo(1040)), []);
        walk.miss(InodeNo(1040));
        assert_eq!(walk.arrive(InodeNo(1040)), [], "one is no walk");
        assert_eq!(numbers(walk.miss(InodeNo(1041))), (1041..1049).collect::<Vec<_>>());
        assert_eq!(numbers(walk.arrive(InodeNo(1043))), (1049..1065).collect::<Vec<_>>());
        assert_eq!(walk.arrive(InodeNo(1044)), [], "not yet there");
        let sizes: Vec<_> = (0..5).map(|_| walk.arrive(InodeNo(walk.last.start)).len()).collect();
        assert_eq!(sizes, [32, 64, 128, 247, 0], "none goes beyond its chunk");
        assert_eq!(walk.miss(InodeNo(1536)).len(), 64, "somebody waits for it");
        assert_eq!(walk.arrive(InodeNo(1536 + SKIPPED_MAX)), [], "somewhere in it");
        assert_eq!(walk.arrive(InodeNo(1537)).len(), 448);

        let listed: Vec<_> = (0..2000u64).map(|i| InodeNo(i * 7919 % 5003)).collect();
        walk.list(listed.iter().copied(), true);
        assert_eq!(walk.miss(listed[0]), listed[..1]);
        assert_eq!(walk.miss(listed[1]), listed[1..257]);
        assert_eq!(walk.arrive(listed[4]), listed[257..1281]);
        assert_eq!(walk.arrive(listed[100]), []);
        assert_eq!(walk.arrive(listed[257 + ARRIVAL - 1]), listed[1281..]);
        assert_eq!(walk.arrive(listed[1281]), [], "no more was listed");
    }

    #[test]
    fn what_should_be_here_and_is_not_is_read_again_now_and_then() {
        let mut walk = Walk::default();
        walk.miss(InodeNo(1024));
        walk.miss(InodeNo(1025));
        walk.arrive(InodeNo(1025));
        walk.arrive(InodeNo(1033));
        walk.arrive(InodeNo(1049));
        assert_eq!(walk.last, 1081..1145);
        assert_eq!(numbers(walk.miss(InodeNo(1083))), (1083..1145).collect::<Vec<_>>());
        assert_eq!(numbers(walk.miss(InodeNo(1084))), [1084], "its lock may be another host's");
        assert_eq!(numbers(walk.miss(InodeNo(1114))), [1114]);
        assert_eq!(numbers(walk.miss(InodeNo(1115))), (1115..1145).collect::<Vec<_>>());
        assert_eq!(walk.miss(InodeNo(1145)).len(), 64, "the walk goes on");

        let listed: Vec<_> = (0..900u64).map(|i| InodeNo(i * 7919 % 5003)).collect();
        walk.list(listed.iter().copied(), true);
        walk.miss(listed[0]);
        assert_eq!(walk.miss(listed[1]), listed[1..257]);
        assert_eq!(walk.arrive(listed[2]), listed[257..]);
        assert_eq!(walk.arrive(listed[257]), [], "no more was listed");
        assert_eq!(walk.miss(listed[3]), listed[3..259], "of what was read before the last");
        assert_eq!(walk.miss(listed[34]), listed[34..35]);
        assert_eq!(walk.miss(listed[300]), listed[300..556]);
        assert_eq!(walk.miss(listed[333]), listed[333..589]);
        assert_eq!(walk.miss(listed[899]), listed[899..]);
    }

    #[test]
    fn the_thread_forgets_what_is_too_much_and_ends() {
        let queue = Queue::default();
        (0..QUEUED_MAX as u64 + 2).for_each(|n| queue.push(vec![InodeNo(n)]));
        assert_eq!(queue.next(), Some(vec![InodeNo(0)]));
        assert_eq!(queue.state.lock().waiting.len(), QUEUED_MAX - 1);
        queue.stop();
        assert_eq!(queue.next(), None);
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
