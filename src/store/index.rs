//! Which cached blocks a cluster lock covers, so that giving it up need not walk the cache.

use crate::base::{BlockNo, LockName};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::hash::{BuildHasherDefault, Hasher};

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

const SHARDS: usize = 16;

/// (lock, block) pairs of everything cached or being read. That an inode's lock covers the inode itself, as a rule
/// all it covers, goes without saying.
#[derive(Default)]
pub(crate) struct CoverIndex {
    shards: [Mutex<BTreeSet<(LockName, BlockNo)>>; SHARDS],
}

impl CoverIndex {
    fn shard(&self, cover: LockName) -> &Mutex<BTreeSet<(LockName, BlockNo)>> {
        let (class, id) = cover.to_raw();
        let mut h = BlockHasher::default();
        h.write_u64(id.wrapping_add(u64::from(class) << 56));
        &self.shards[(h.finish() >> 7) as usize % SHARDS]
    }

    pub fn insert(&self, cover: LockName, block: BlockNo) {
        if cover.own_block() != Some(block) {
            self.shard(cover).lock().insert((cover, block));
        }
    }

    pub fn remove(&self, cover: LockName, block: BlockNo) {
        if cover.own_block() != Some(block) {
            self.shard(cover).lock().remove(&(cover, block));
        }
    }

    /// The blocks under `cover`. An inode is among them whether or not it is cached.
    pub fn blocks(&self, cover: LockName) -> Vec<BlockNo> {
        let range = (cover, BlockNo(0))..=(cover, BlockNo(u64::MAX));
        let of_others = self.shard(cover).lock().range(range).map(|(_, b)| *b).collect::<Vec<_>>();
        cover.own_block().into_iter().chain(of_others).collect()
    }
}
