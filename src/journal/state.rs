//! What the journal knows about transactions and dirty blocks; everything under its one mutex.

use super::ring::{Mark, Ring};
use crate::base::{BlockNo, LockName, TxnId};
use crate::store::{BlockHash, Covered, Image};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

/// The transaction that handles join now.
pub(super) struct Running {
    pub id: TxnId,
    /// Blocks of finished handles, each once.
    pub blocks: Vec<BlockNo>,
    /// Log space of open handles, in block images.
    pub reserved: u64,
    pub open_handles: u32,
    /// When its first change was finished.
    pub since: Option<Instant>,
}

impl Running {
    pub fn new(id: TxnId) -> Running {
        Running { id, blocks: Vec::new(), reserved: 0, open_handles: 0, since: None }
    }
}

/// A block that differs from its place on disk.
struct Dirty {
    /// The newest transaction it belongs to.
    newest: TxnId,
    /// The newest durable image, not yet in place.
    logged: Option<(TxnId, Image)>,
    /// Locks that have covered it since it was last clean; nearly always one, or two.
    covers: SmallVec<[LockName; 2]>,
}

/// A durable image that is to be written in place.
pub(super) struct InPlace {
    pub block: BlockNo,
    pub txn: TxnId,
    pub image: Image,
}

pub(super) struct State {
    pub running: Running,
    /// A seal is waiting for open handles: no new ones meanwhile.
    pub sealing: bool,
    /// A transaction's log is being written (or it is being sealed).
    pub committing: bool,
    /// All transactions up to this one are durable.
    pub durable: TxnId,
    pub last_commit: Instant,
    pub ring: Ring,
    /// All up to this one are in place and flushed.
    pub checkpointed: TxnId,
    /// Counts batches written in place, and how many of them a flush has followed.
    pub in_place_written: u64,
    pub in_place_flushed: u64,
    pub closed: bool,
    /// Threads that wait in `begin` for open handles to give back what they do not need.
    pub waiting_for_room: u32,
    dirty: HashMap<BlockNo, Dirty, BlockHash>,
    /// Inodes are found under their own locks without it.
    by_cover: BTreeSet<Covered>,
    /// How many blocks have their logged image in each transaction.
    logged: BTreeMap<TxnId, usize>,
}

impl State {
    /// Nothing dirty, the next transaction at `next`.
    pub fn new(ring_blocks: u64, next: Mark) -> State {
        let before = TxnId(next.txn.0 - 1);
        State {
            running: Running::new(next.txn),
            sealing: false,
            committing: false,
            durable: before,
            last_commit: Instant::now(),
            ring: Ring::new(ring_blocks, next),
            checkpointed: before,
            in_place_written: 0,
            in_place_flushed: 0,
            closed: false,
            waiting_for_room: 0,
            dirty: HashMap::default(),
            by_cover: BTreeSet::new(),
            logged: BTreeMap::new(),
        }
    }

    /// A finished handle changed `block`, which now belongs to the running transaction.
    /// `joined`: for the first time in it.
    pub fn changed(&mut self, block: BlockNo, cover: LockName, joined: bool) {
        let newest = self.running.id;
        if joined {
            self.running.blocks.push(block);
        }
        let d = self.dirty.entry(block).or_insert_with(|| Dirty {
            newest,
            logged: None,
            covers: SmallVec::new(),
        });
        d.newest = newest;
        // Under an earlier cover it stays listed too: giving that one up writes the block as well.
        if !d.covers.contains(&cover) {
            d.covers.push(cover);
            if cover.own_block() != Some(block) {
                self.by_cover.insert(Covered::new(cover, block));
            }
        }
    }

    /// The images of `txn` are durable. Returns blocks whose older logged image is not needed now.
    pub fn became_durable(&mut self, txn: TxnId, images: Vec<(BlockNo, Image)>) -> Vec<BlockNo> {
        debug_assert_eq!(txn.0, self.durable.0 + 1);
        self.durable = txn;
        let mut replaced = Vec::new();
        let count = images.len();
        for (block, image) in images {
            let d = self.dirty.get_mut(&block).expect("blocks of a sealed transaction are dirty");
            if let Some((old, _)) = d.logged.replace((txn, image)) {
                forget_one(&mut self.logged, old);
                replaced.push(block);
            }
        }
        if count > 0 {
            self.logged.insert(txn, count);
        }
        replaced
    }

    /// `batch` was written in place. Returns the blocks whose logged image is not needed now.
    pub fn became_in_place(&mut self, batch: &[InPlace]) -> Vec<BlockNo> {
        self.in_place_written += 1;
        let mut done = Vec::with_capacity(batch.len());
        for w in batch {
            let Some(d) = self.dirty.get_mut(&w.block) else { continue };
            // A newer image became durable meanwhile: that one is still to be written.
            if d.logged.as_ref().is_none_or(|(txn, _)| *txn != w.txn) {
                continue;
            }
            d.logged = None;
            forget_one(&mut self.logged, w.txn);
            done.push(w.block);
            if d.newest == w.txn {
                for cover in d.covers.iter().filter(|cover| cover.own_block() != Some(w.block)) {
                    self.by_cover.remove(&Covered::new(*cover, w.block));
                }
                self.dirty.remove(&w.block);
            }
        }
        done
    }

    /// Blocks with a durable image not yet in place, ascending.
    pub fn logged_blocks(&self) -> Vec<BlockNo> {
        let mut blocks: Vec<_> =
            self.dirty.iter().filter(|(_, d)| d.logged.is_some()).map(|(b, _)| *b).collect();
        blocks.sort_unstable();
        blocks
    }

    /// The durable images of `blocks`, as far as they are not yet in place.
    pub fn to_write(&self, blocks: impl IntoIterator<Item = BlockNo>) -> Vec<InPlace> {
        let image = |block: BlockNo| {
            let (txn, image) = self.dirty.get(&block)?.logged.as_ref()?;
            Some(InPlace { block, txn: *txn, image: image.clone() })
        };
        blocks.into_iter().filter_map(image).collect()
    }

    /// Blocks under `covers` that are dirty, ascending.
    pub fn dirty_under(&self, covers: &BTreeSet<LockName>) -> BTreeSet<BlockNo> {
        let others = |c: &LockName| self.by_cover.range(Covered::all(*c)).map(|c| c.block());
        let own = |c: &LockName| {
            c.own_block().filter(|block| self.dirty.get(block).is_some_and(|d| d.covers.contains(c)))
        };
        covers.iter().flat_map(|c| own(c).into_iter().chain(others(c))).collect()
    }

    /// The newest transaction that touches blocks under `covers`, if any of them is dirty.
    pub fn newest_under(&self, covers: &BTreeSet<LockName>) -> Option<TxnId> {
        self.dirty_under(covers).into_iter().map(|b| self.dirty[&b].newest).max()
    }

    /// Where the tail may stand once everything written in place so far has been flushed.
    pub fn tail_candidate(&self) -> Mark {
        let next = TxnId(self.durable.0 + 1);
        let oldest = self.logged.keys().next().copied().unwrap_or(next);
        self.ring.mark_from(oldest, next)
    }

    /// Blocks that differ from their places on disk.
    pub fn dirty_blocks(&self) -> usize {
        self.dirty.len()
    }

    /// Is any durable image not in place?
    pub fn has_logged(&self) -> bool {
        !self.logged.is_empty()
    }

    /// Is the log empty on disk too?
    pub fn is_clean(&self) -> bool {
        !self.has_logged() && self.ring.used() == 0 && self.running.blocks.is_empty() && !self.committing
    }
}

fn forget_one(logged: &mut BTreeMap<TxnId, usize>, txn: TxnId) {
    if let Some(count) = logged.get_mut(&txn) {
        *count -= 1;
        if *count == 0 {
            logged.remove(&txn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{AgNo, InodeNo, Version};
    use crate::format::BlockKind;
    use crate::format::block::BlockHeader;

    fn under(state: &State, cover: LockName) -> Vec<u64> {
        state.dirty_under(&BTreeSet::from([cover])).into_iter().map(|b| b.0).collect()
    }

    /// An inode that becomes a tombstone is listed under both locks until it is in place.
    #[test]
    fn a_dirty_block_is_listed_under_every_lock_that_covered_it() {
        let mut state = State::new(4096, Mark { txn: TxnId(1), position: 0 });
        let (inode, page) = (BlockNo(7), BlockNo(8));
        let (own, group) = (LockName::Inode(InodeNo(7)), LockName::Ag(AgNo(0)));
        state.changed(inode, own, true);
        state.changed(page, own, true);
        assert_eq!((under(&state, own), under(&state, group)), (vec![7, 8], vec![]));
        assert!(under(&state, LockName::Inode(InodeNo(8))).is_empty(), "covered by another's");
        state.changed(inode, group, false);
        assert_eq!((under(&state, own), under(&state, group)), (vec![7, 8], vec![7]));

        let header = |block: BlockNo| BlockHeader::new(1, block, BlockKind::Free, 0, group, Version(2));
        let images = [inode, page].map(|block| (block, Image::of_header(&header(block))));
        state.became_durable(TxnId(1), images.to_vec());
        let batch = state.to_write([inode]);
        state.running.id = TxnId(2);
        state.became_in_place(&batch);
        assert_eq!((under(&state, own), under(&state, group)), (vec![8], vec![]));
        let batch = state.to_write([page]);
        state.became_in_place(&batch);
        assert!(state.by_cover.is_empty() && state.dirty.is_empty() && under(&state, own).is_empty());
    }
}
