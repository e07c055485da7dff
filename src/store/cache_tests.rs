//! The cache against a model: whatever is packed, evicted, changed and undone, the newest image is what it
//! should be, and what the buffers cost is what is counted.

use super::*;
use crate::base::InodeNo;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const BLOCKS: u64 = 300;
const TXN: u64 = 5;

/// What a block holds: its version, and a byte of each line behind the header's.
type Marks = BTreeMap<usize, u8>;

struct Model {
    cache: Cache,
    now: BTreeMap<BlockNo, (u64, Marks)>,
    txn: TxnId,
    /// Members of the running transaction; what has been sealed and is not in place.
    running: Vec<BlockNo>,
    sealed: Vec<BlockNo>,
}

fn cover(block: BlockNo) -> LockName {
    LockName::Inode(InodeNo(block.0))
}

fn image(block: BlockNo, version: u64, marks: &Marks) -> Block {
    let mut b = Block::init(1, block, BlockKind::Inode, block.0, cover(block), Version(version));
    marks.iter().for_each(|(line, mark)| b.0[line * 64] = *mark);
    b
}

fn whole(block: Block) -> Image {
    Image::Whole(Arc::new(block))
}

impl Model {
    fn new(bytes_max: usize) -> Model {
        let cache = Cache::new(bytes_max);
        Model { cache, now: BTreeMap::new(), txn: TxnId(TXN), running: Vec::new(), sealed: Vec::new() }
    }

    /// What stands there; what is not cached is in place.
    fn at(&mut self, block: BlockNo) -> (u64, Marks) {
        self.now.entry(block).or_insert((1, Marks::new())).clone()
    }

    fn read(&mut self, block: BlockNo) {
        let (version, marks) = self.at(block);
        let load = || Ok(Arc::new(image(block, version, &marks)));
        let found = self.cache.get(block, BlockKind::Inode, cover(block), &load).unwrap();
        assert!(found.0 == image(block, version, &marks).0, "block {block}");
    }

    fn change(&mut self, block: BlockNo, rng: &mut StdRng) {
        let (version, mut marks) = self.at(block);
        let load = || Ok(Arc::new(image(block, version, &marks)));
        let mut undo = Vec::new();
        let (line, mark, fill) = (rng.random_range(1..64), rng.random(), rng.random_bool(0.1));
        let mut change = |b: &mut Block| {
            b.0[line * 64] = mark;
            if fill {
                (1..64).for_each(|line| b.0[line * 64] = 1);
            }
        };
        let (kind, lock) = (BlockKind::Inode, cover(block));
        self.cache.change(block, kind, lock, self.txn, Some(&mut undo), &load, &mut change).unwrap();
        if rng.random_bool(0.2) {
            return undo.into_iter().rev().for_each(|u| self.cache.undo(u));
        }
        let joined = !self.running.contains(&block);
        marks.insert(line, mark);
        if fill {
            marks.extend((1..64).map(|line| (line, 1)));
        }
        self.keep(block, version + u64::from(joined), marks, joined);
    }

    fn install(&mut self, block: BlockNo, rng: &mut StdRng) {
        let version = self.at(block).0 + 10;
        let marks = Marks::from([(3, 9)]);
        let mut undo = Vec::new();
        self.cache.install(block, whole(image(block, version, &marks)), self.txn, Some(&mut undo)).unwrap();
        if rng.random_bool(0.2) {
            return undo.into_iter().for_each(|u| self.cache.undo(u));
        }
        self.cache.rest(block);
        let joined = !self.running.contains(&block);
        self.keep(block, version, marks, joined);
    }

    fn keep(&mut self, block: BlockNo, version: u64, marks: Marks, joined: bool) {
        self.now.insert(block, (version, marks));
        if joined {
            self.running.push(block);
        }
    }

    fn seal(&mut self) {
        for block in std::mem::take(&mut self.running) {
            let sealed = self.cache.seal(block, self.txn);
            let (version, marks) = self.at(block);
            assert!(sealed.whole().0 == image(block, version, &marks).0, "block {block}");
            self.sealed.push(block);
        }
        self.txn.0 += 1;
    }

    fn check_counts(&self) {
        for shard in &self.cache.shards {
            let s = shard.state.lock();
            let cost = |e: &Entry| if let Entry::Ready(b) = e { b.cost() } else { 0 };
            assert_eq!(s.bytes, s.map.values().map(cost).sum::<usize>());
        }
    }

    fn step(&mut self, rng: &mut StdRng) {
        let block = BlockNo(1000 + rng.random_range(0..BLOCKS));
        match rng.random_range(0..100) {
            0..50 => self.read(block),
            50..75 => self.change(block, rng),
            75..85 => self.install(block, rng),
            85..87 => self.seal(),
            87..95 => {
                let some = self.sealed.len().min(8);
                self.sealed.drain(..some).for_each(|block| self.cache.unpin(block));
            }
            _ => {
                let pinned = self.running.contains(&block) || self.sealed.contains(&block);
                assert_eq!(self.cache.drop_cover(cover(block)).is_err(), pinned, "block {block}");
            }
        }
    }
}

#[test]
fn images_and_counts_are_right_whatever_is_packed_or_forgotten() {
    for seed in 0..20 {
        let rng = &mut StdRng::seed_from_u64(seed);
        // Room for everything, and for a part of it.
        let mut model = Model::new(if seed % 2 == 0 { 64 << 20 } else { 0 });
        for step in 0..2000 {
            model.step(rng);
            if step % 100 == 0 {
                model.check_counts();
            }
        }
        model.seal();
        std::mem::take(&mut model.sealed).into_iter().for_each(|block| model.cache.unpin(block));
        model.check_counts();
        (0..BLOCKS).for_each(|n| assert!(model.cache.drop_cover(cover(BlockNo(1000 + n))).is_ok()));
        model.check_counts();
        assert_eq!(model.cache.counts(), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_limit_holds_ten_times_as_many_blocks_of_zeros() {
    let limit = 4 << 20;
    let count = |marks: Marks| {
        let cache = Cache::new(limit);
        for n in 0..20_000 {
            let block = BlockNo(n);
            let load = || Ok(Arc::new(image(block, 1, &marks)));
            cache.get(block, BlockKind::Inode, cover(block), &load).unwrap();
        }
        cache.counts().0
    };
    let (full, empty) = (count((1..64).map(|line| (line, 1)).collect()), count(Marks::from([(1, 1)])));
    assert!(full <= limit / BLOCK_SIZE && full > limit / BLOCK_SIZE * 3 / 4, "{full}");
    assert!((8 * full..limit / 400).contains(&empty), "{empty}");
}

fn get(cache: &Cache, block: BlockNo, image: &Block) -> Result<Arc<Block>> {
    let (kind, lock) = (image.kind().unwrap(), image.cover().unwrap());
    cache.get(block, kind, lock, &|| Ok(Arc::new(image.clone())))
}

/// An inode is found under its lock whatever becomes of it: while it is read, and when it is not cached.
#[test]
fn an_inode_goes_with_its_lock() {
    let cache = Cache::new(1 << 20);
    let block = BlockNo(7);
    let newest = || Some(whole(image(block, 20, &Marks::new())));
    assert!(cache.announce(block, cover(block)));
    cache.drop_cover(cover(block)).unwrap();
    cache.loaded(block, cover(block), newest());
    assert!(!cache.has(block), "read before the lock went");
    cache.announce(block, cover(block));
    cache.loaded(block, cover(block), newest());
    cache.drop_cover(cover(BlockNo(8))).unwrap();
    assert!(cache.has(block));
    cache.drop_cover(cover(block)).unwrap();
    assert!(!cache.has(block));
}

/// A cached inode is freed and used again, by others, as a page of another inode: nobody asks for its lock.
#[test]
fn a_clean_block_that_is_another_now_is_read_again() {
    let cache = Cache::new(1 << 20);
    let block = BlockNo(7);
    let page = Block::init(1, block, BlockKind::TreePage, 9, cover(BlockNo(9)), Version(30));
    for _ in 0..2 {
        get(&cache, block, &image(block, 20, &Marks::new())).unwrap();
        assert_eq!(get(&cache, block, &page).unwrap().version(), Version(30));
        get(&cache, block, &image(block, 40, &Marks::new())).unwrap();
    }
    let load = || Ok(Arc::new(page.clone()));
    let lock = cover(BlockNo(9));
    cache
        .change(block, BlockKind::TreePage, lock, TxnId(1), Some(&mut Vec::new()), &load, &mut |_| ())
        .unwrap();
    // It is dirty now: two that claim it are a fault.
    assert!(get(&cache, block, &image(block, 20, &Marks::new())).is_err());
    assert!(cache.drop_cover(cover(block)).is_ok() && cache.drop_cover(lock).is_err());
}

/// What a block was before it got another cover is not put back without being dirty: the old lock may be gone.
#[test]
fn an_undo_brings_nothing_back_under_another_lock() {
    let cache = Cache::new(1 << 20);
    let block = BlockNo(7);
    get(&cache, block, &image(block, 20, &Marks::new())).unwrap();
    let mut undo = Vec::new();
    let page = Block::init(1, block, BlockKind::TreePage, 9, cover(BlockNo(9)), Version(30));
    cache.install(block, whole(page), TxnId(1), Some(&mut undo)).unwrap();
    cache.drop_cover(cover(block)).unwrap();
    cache.undo(undo.pop().unwrap());
    let found = get(&cache, block, &image(block, 40, &Marks::new())).unwrap();
    assert_eq!(found.version(), Version(40), "as it is on the device");
}
