//! Which cached blocks a cluster lock covers, so that giving it up need not walk the cache.

use crate::base::{BlockNo, LockName};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::RangeInclusive;

/// Block numbers are spread by one multiplication; nobody outside chooses them to collide.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    #[inline]
    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// For maps keyed by [`BlockNo`].
pub(crate) type BlockHash = BuildHasherDefault<BlockHasher>;

/// A block and a lock that covers it, as one number: the blocks of one lock are neighbours, and comparing two costs
/// two instructions, of which a tree of them is mostly made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Covered(u128);

/// Bits for a block's number: a device has fewer than 2^64 bytes, and so fewer than 2^52 blocks.
const BLOCK_BITS: u32 = 56;

impl Covered {
    pub fn new(cover: LockName, block: BlockNo) -> Covered {
        debug_assert!(block.0 >> BLOCK_BITS == 0, "block {block} of no device");
        Covered(Covered::first(cover) | u128::from(block.0))
    }

    fn first(cover: LockName) -> u128 {
        let (class, id) = cover.to_raw();
        u128::from(id) << 64 | u128::from(class) << BLOCK_BITS
    }

    /// Every block under `cover`.
    pub fn all(cover: LockName) -> RangeInclusive<Covered> {
        let first = Covered::first(cover);
        Covered(first)..=Covered(first | ((1 << BLOCK_BITS) - 1))
    }

    pub fn block(self) -> BlockNo {
        BlockNo(self.0 as u64 & ((1 << BLOCK_BITS) - 1))
    }
}

const SHARDS: usize = 16;

/// (lock, block) pairs of everything cached or being read. That an inode's lock covers the inode itself, as a rule
/// all it covers, goes without saying.
#[derive(Default)]
pub(crate) struct CoverIndex {
    shards: [Mutex<BTreeSet<Covered>>; SHARDS],
}

impl CoverIndex {
    fn shard(&self, cover: LockName) -> &Mutex<BTreeSet<Covered>> {
        let (class, id) = cover.to_raw();
        let mut h = BlockHasher::default();
        h.write_u64(id.wrapping_add(u64::from(class) << 56));
        &self.shards[(h.finish() >> 7) as usize % SHARDS]
    }

    pub fn insert(&self, cover: LockName, block: BlockNo) {
        if cover.own_block() != Some(block) {
            self.shard(cover).lock().insert(Covered::new(cover, block));
        }
    }

    pub fn remove(&self, cover: LockName, block: BlockNo) {
        if cover.own_block() != Some(block) {
            self.shard(cover).lock().remove(&Covered::new(cover, block));
        }
    }

    /// The blocks under `cover`. An inode is among them whether or not it is cached.
    pub fn blocks(&self, cover: LockName) -> Vec<BlockNo> {
        let of_others =
            self.shard(cover).lock().range(Covered::all(cover)).map(|c| c.block()).collect::<Vec<_>>();
        cover.own_block().into_iter().chain(of_others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{AgNo, InodeNo, SlotId};

    #[test]
    fn blocks_are_listed_under_their_own_lock_alone() {
        let index = CoverIndex::default();
        let last = BlockNo((1 << 52) - 1);
        // One number, several classes.
        let covers =
            [LockName::Ag(AgNo(3)), LockName::Slot(SlotId(3)), LockName::IOpen(InodeNo(3)), LockName::Volume];
        for (i, cover) in covers.into_iter().enumerate() {
            for block in [BlockNo(0), BlockNo(i as u64 + 1), last] {
                index.insert(cover, block);
            }
        }
        for (i, cover) in covers.into_iter().enumerate() {
            assert_eq!(index.blocks(cover), [BlockNo(0), BlockNo(i as u64 + 1), last]);
        }
        index.remove(covers[0], last);
        assert_eq!(index.blocks(covers[0]), [BlockNo(0), BlockNo(1)]);
        assert!(
            index.blocks(LockName::Ag(AgNo(2))).is_empty() && index.blocks(LockName::Ag(AgNo(4))).is_empty()
        );
    }
}
