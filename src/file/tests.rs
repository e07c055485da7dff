//! One file against a `Vec<u8>`: random operations, flushes in flight, failed flushes, crashes.
//!
//! The disk is honest about what a power cut does: data written before a transaction commits is
//! there with it, data written after the last commit may or may not be. Blocks that were freed hold
//! another file's bytes (0xEE) as soon as their transaction is durable.

use super::*;
use crate::base::{AgNo, BLOCK_SIZE, BlockNo, Error, Generation, InodeNo, LockName, Result, Version};
use crate::format::{Block, BlockKind, Geometry};
use crate::inode::{Attr, FileKind, Timestamp, Tree};
use crate::txn::memory::MemoryTxn;
use crate::txn::{BlockRun, BlockTxn};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const FOREIGN: u8 = 0xEE;
const INO: InodeNo = InodeNo(700);
const MODEL_MAX: u64 = 300_000;

type Blocks = BTreeMap<BlockNo, Arc<Block>>;

type Bytes = [u8; BLOCK_SIZE];

/// Data blocks: what was durable at the last sync, the writes since, and what comes of both.
#[derive(Default, Clone)]
struct DiskState {
    base: BTreeMap<u64, Bytes>,
    log: Vec<(u64, Bytes)>,
    newest: BTreeMap<u64, Bytes>,
}

#[derive(Default)]
struct Disk {
    state: Mutex<DiskState>,
    fail: Mutex<bool>,
    writes: Mutex<Vec<u64>>,
}

impl Disk {
    fn sync(&self) {
        let state = &mut *self.state.lock();
        state.log.clear();
        state.base.clone_from(&state.newest);
    }

    fn log_len(&self) -> usize {
        self.state.lock().log.len()
    }

    /// Another file writes there.
    fn spoil(&self, block: u64) {
        let state = &mut *self.state.lock();
        state.base.insert(block, [FOREIGN; BLOCK_SIZE]);
        state.newest.insert(block, [FOREIGN; BLOCK_SIZE]);
    }

    /// The disk after a power cut: the first `sure` writes since the sync and some of the others.
    fn crashed(&self, sure: usize, rng: &mut StdRng) -> Disk {
        let state = self.state.lock();
        let mut base = state.base.clone();
        base.extend(state.log.iter().enumerate().filter(|(i, _)| *i < sure || rng.random()).map(|(_, w)| *w));
        let state = DiskState { newest: base.clone(), base, log: Vec::new() };
        Disk { state: Mutex::new(state), ..Disk::default() }
    }
}

impl DataDevice for Disk {
    fn read_data(&self, start: BlockNo, buf: &mut [u8]) -> Result<()> {
        let state = self.state.lock();
        for (i, to) in buf.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            to.copy_from_slice(state.newest.get(&(start.0 + i as u64)).unwrap_or(&[FOREIGN; BLOCK_SIZE]));
        }
        Ok(())
    }

    fn write_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        if *self.fail.lock() {
            return Err(Error::Busy("the test says so".into()));
        }
        self.writes.lock().push(data.len() as u64);
        let state = &mut *self.state.lock();
        for (i, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
            let write = (start.0 + i as u64, block.try_into().unwrap());
            state.log.push(write);
            state.newest.insert(write.0, write.1);
        }
        Ok(())
    }
}

fn geometry() -> Geometry {
    Geometry {
        total_blocks: 1 << 20,
        max_slots: 4,
        cell_pitch: 4096,
        ledger_pages: 1,
        ag_blocks: 1 << 16,
        ag_count: 10,
    }
}

fn tree() -> Tree {
    Tree::of(INO)
}

fn copy(blocks: &Blocks, next: u64) -> MemoryTxn {
    MemoryTxn { blocks: blocks.clone(), next, ..MemoryTxn::default() }
}

/// One host with one file.
struct World {
    rng: StdRng,
    disk: Disk,
    meta: MemoryTxn,
    attr: Attr,
    pool: Arc<PagePool>,
    file: FileState,
    model: Vec<u8>,
    /// Per byte a set of the values it had since the last sync (all below 128).
    past: Vec<u128>,
    sizes: BTreeSet<u64>,
    /// The committed states since the last sync, each with the data writes that came before.
    commits: Vec<(Blocks, u64, usize)>,
    held: SpaceNeed,
    free: BTreeSet<u64>,
    freed: Vec<BlockRun>,
    flights: Vec<(FlushBatch, bool)>,
    tag: u8,
}

impl World {
    fn new(seed: u64) -> World {
        let mut meta = MemoryTxn::new();
        let block = Block::init(1, INO.block(), BlockKind::Inode, INO.0, LockName::Inode(INO), Version(1));
        meta.blocks.insert(INO.block(), Arc::new(block));
        let attr = new_attr();
        tree().create(&mut meta, &attr).unwrap();
        let pool = PagePool::new(1 << 30);
        let start = geometry().ag_start(AgNo(1)).0;
        World {
            rng: StdRng::seed_from_u64(seed),
            disk: Disk::default(),
            attr,
            file: FileState::new_empty(tree(), &geometry(), pool.clone()),
            pool,
            model: Vec::new(),
            past: Vec::new(),
            sizes: BTreeSet::from([0]),
            commits: vec![(meta.blocks.clone(), meta.next, 0)],
            meta,
            held: SpaceNeed::default(),
            free: (start..start + 4000).collect(),
            freed: Vec::new(),
            flights: Vec::new(),
            tag: 0,
        }
    }

    fn reserve(&mut self, need: SpaceNeed) {
        self.held.data += need.data;
        self.held.meta += need.meta;
    }

    /// Every accepted change has its space.
    fn check_space(&self) {
        let want = self.file.space_want();
        assert!(want.beyond(self.held).is_zero(), "wants {want:?}, holds {:?}", self.held);
    }

    /// Blocks in runs of random length.
    fn take_blocks(&mut self, mut blocks: u64) -> Vec<BlockRun> {
        let mut runs = Vec::new();
        while blocks > 0 {
            let skip = if self.rng.random_bool(0.3) { self.rng.random_range(0..50) } else { 0 };
            let start = *self.free.iter().nth(skip).unwrap();
            let most = self.rng.random_range(1..=blocks);
            let n = (1..=most).take_while(|n| self.free.contains(&(start + n - 1))).count() as u64;
            self.free.retain(|b| !(start..start + n).contains(b));
            runs.push(BlockRun { start: BlockNo(start), blocks: n });
            blocks -= n;
        }
        runs
    }

    /// Runs a transaction: all of it, or, now and then, an error that undoes it.
    fn transact<T>(
        &mut self,
        may_fail: bool,
        change: impl FnOnce(&FileState, &mut dyn BlockTxn, &mut Attr) -> Result<T>,
    ) -> Option<T> {
        let mut txn = copy(&self.meta.blocks, self.meta.next);
        let mut attr = self.attr.clone();
        let result = change(&self.file, &mut txn, &mut attr).unwrap();
        if may_fail && self.rng.random_bool(0.1) {
            return None;
        }
        self.freed.append(&mut txn.freed_data);
        (self.meta, self.attr) = (txn, attr);
        self.commits.push((self.meta.blocks.clone(), self.meta.next, self.disk.log_len()));
        Some(result)
    }

    fn note(&mut self) {
        let len = self.model.len();
        if self.past.len() < len {
            // A byte that was beyond the end may be a zero of a hole.
            self.past.resize(len, 1);
        }
        for (values, value) in self.past.iter_mut().zip(&self.model) {
            *values |= 1 << *value;
        }
        // And one that is beyond it now may be one later on.
        for values in &mut self.past[len..] {
            *values |= 1;
        }
        self.sizes.insert(len as u64);
    }

    fn next_tag(&mut self) -> u8 {
        self.tag = if self.tag >= 126 { 1 } else { self.tag + 1 };
        self.tag
    }

    fn range(&mut self, longest: u64) -> (u64, u64) {
        let size = self.model.len() as u64;
        let near = [0, size, size / 4096 * 4096, 4096, 3700, self.rng.random_range(0..MODEL_MAX)];
        let mut off = near[self.rng.random_range(0..near.len())];
        if self.rng.random() {
            off = (off + self.rng.random_range(0..3000)).saturating_sub(1500);
        }
        let mut len = self.rng.random_range(1..longest);
        if self.rng.random_bool(0.3) {
            (off, len) = (off / 4096 * 4096, len.next_multiple_of(4096));
        }
        let off = off.min(MODEL_MAX - 1);
        (off, len.min(MODEL_MAX - off))
    }

    fn write(&mut self, off: u64, data: &[u8]) {
        let plan = self.file.plan_write(&self.meta, off, data.len() as u64).unwrap();
        self.reserve(plan.need);
        self.file.write(plan, &self.disk, &self.meta, data).unwrap();
        let end = off as usize + data.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[off as usize..end].copy_from_slice(data);
    }

    fn grow(&mut self, size: u64) {
        let plan = self.file.plan_grow(&self.meta, size).unwrap();
        self.reserve(plan.need);
        self.file.write(plan, &self.disk, &self.meta, &[]).unwrap();
        if self.model.len() < size as usize {
            self.model.resize(size as usize, 0);
        }
    }

    fn start_flush(&mut self, all: bool) -> bool {
        let limit = TakeLimit {
            bytes: if all { FLUSH_IO_BYTES } else { self.rng.random_range(1..30) * PAGE },
            new_blocks: self.held.data,
            changes: if all { 64 } else { self.rng.random_range(1..10) },
        };
        let Some(mut batch) = self.file.flush_take(&self.meta, limit).unwrap() else { return false };
        let blocks = batch.blocks_wanted();
        assert!(blocks <= limit.new_blocks && batch.bytes() <= limit.bytes);
        self.held.data -= blocks;
        let runs = self.take_blocks(blocks);
        self.file.flush_place(&mut batch, &runs);
        assert_eq!(batch.blocks_wanted(), 0);
        self.flights.push((batch, false));
        true
    }

    /// Moves a random flush on: its data, then its transaction, or a failure of either.
    fn step_flush(&mut self, may_fail: bool) {
        let i = self.rng.random_range(0..self.flights.len());
        if !self.flights[i].1 {
            *self.disk.fail.lock() = may_fail && self.rng.random_bool(0.1);
            let result = self.flights[i].0.write_data(&self.pool, &self.disk);
            *self.disk.fail.lock() = false;
            if result.is_err() {
                let (batch, _) = self.flights.swap_remove(i);
                return self.failed(batch);
            }
            self.flights[i].1 = true;
            return;
        }
        let (batch, _) = self.flights.swap_remove(i);
        if batch.needs_txn() {
            let before = self.meta.next;
            let space = batch.space();
            if self.transact(may_fail, |file, txn, attr| file.flush_apply(&batch, txn, attr)).is_none() {
                return self.failed(batch);
            }
            let grown = self.meta.next - before;
            assert!(grown <= space.meta.into(), "{grown} new tree blocks where {space:?} was planned");
        }
        self.file.flush_done(batch);
    }

    fn failed(&mut self, batch: FlushBatch) {
        // Its blocks are lost to the test, which has plenty.
        self.file.flush_failed(batch);
        let lack = self.file.space_want().beyond(self.held);
        self.reserve(lack);
    }

    fn quiesce(&mut self) {
        while !self.flights.is_empty() {
            self.step_flush(true);
        }
        if self.rng.random() {
            self.held = self.file.space_want();
        }
    }

    fn sync(&mut self) {
        while self.file.is_dirty() || !self.flights.is_empty() {
            if !self.start_flush(true) || self.rng.random() {
                assert!(!self.flights.is_empty(), "dirty, and nothing to take");
                self.step_flush(true);
            }
        }
        assert_eq!((self.file.disk_size(), self.attr.size), (self.file.size(), self.file.size()));
        assert_eq!(self.pool.dirty_bytes(), 0);
        assert!(self.file.space_want().is_zero());
        self.held = SpaceNeed::default();
        self.disk.sync();
        for run in std::mem::take(&mut self.freed) {
            for block in run.start.0..run.start.0 + run.blocks {
                assert!(self.free.insert(block), "freed twice");
                self.disk.spoil(block);
            }
        }
        self.commits = vec![(self.meta.blocks.clone(), self.meta.next, 0)];
        (self.past, self.sizes) = (Vec::new(), BTreeSet::new());
        self.past = self.model.iter().map(|b| 1 << *b).collect();
        self.note();
    }

    fn truncate(&mut self, size: u64) {
        self.quiesce();
        loop {
            let limit = StepLimit { changes: self.rng.random_range(1..4), blocks: 20 };
            let step = self.transact(true, |file, txn, attr| file.truncate_apply(txn, attr, size, limit));
            let Some(progress) = step else { continue };
            self.file.truncate_done(size, progress);
            self.model.truncate(size as usize);
            self.note();
            if self.rng.random_bool(0.2) {
                self.crash();
            }
            if progress == Progress::Done {
                break;
            }
            let more = self.file.plan_write(&self.meta, size, 1);
            assert!(matches!(more, Err(Error::Busy(_))));
        }
    }

    /// Punches a hole, or zeroes.
    fn punch(&mut self, off: u64, len: u64, zero: bool) {
        self.quiesce();
        for edge in self.file.edges(&self.meta, off, len).unwrap() {
            let plan = self.file.plan_edge(&self.meta, &edge).unwrap();
            self.reserve(plan.need);
            let zeros = vec![0; (edge.end - edge.start) as usize];
            self.file.write(plan, &self.disk, &self.meta, &zeros).unwrap();
        }
        loop {
            let limit = StepLimit { changes: self.rng.random_range(1..4), blocks: 20 };
            let step = self.transact(false, |file, txn, attr| match zero {
                true => file.zero_apply(txn, attr, (off, len), limit),
                false => file.punch_apply(txn, attr, (off, len), limit),
            });
            let step = step.unwrap();
            self.file.punch_done(&step);
            if !step.more {
                break;
            }
        }
        let size = self.model.len() as u64;
        self.model[off.min(size) as usize..(off + len).min(size) as usize].fill(0);
        assert_eq!(self.file.size(), size);
    }

    fn allocate(&mut self, mut off: u64, mut len: u64, grow: bool) {
        while let Some(plan) = self.file.plan_leave_inode(&self.meta).unwrap() {
            self.reserve(plan.need);
            self.file.write(plan, &self.disk, &self.meta, &[]).unwrap();
            while self.start_flush(false) || !self.flights.is_empty() {
                self.quiesce();
            }
        }
        self.quiesce();
        let end = off + len;
        loop {
            let plan = self.file.plan_allocate(&self.meta, (off, len), 2, 10).unwrap();
            let runs = self.take_blocks(plan.space().data);
            self.transact(false, |file, txn, attr| file.allocate_apply(&plan, &runs, txn, attr)).unwrap();
            let rest = plan.rest;
            self.file.allocate_done(plan);
            match rest {
                Some(next) => (off, len) = next,
                None => break,
            }
        }
        if grow {
            self.grow(end);
        }
    }

    fn direct(&mut self, off: u64, len: u64) {
        let (off, len) = (off / PAGE * PAGE, len.next_multiple_of(PAGE));
        if let Some(plan) = self.file.plan_direct(&self.meta, off, len as usize).unwrap() {
            let data = vec![self.next_tag(); len as usize];
            plan.write(&self.disk, &data).unwrap();
            self.model[off as usize..(off + len) as usize].copy_from_slice(&data);
        }
    }

    fn check_read(&mut self, off: u64, len: u64) {
        let plan = self.file.plan_read(&self.meta, off, len as usize).unwrap();
        let got = plan.read(&self.disk).unwrap();
        let size = self.model.len() as u64;
        let want = &self.model[off.min(size) as usize..(off + len).min(size) as usize];
        assert_same(&got, want, off);
        let mut buf = vec![7; want.len()];
        plan.fill(&self.disk, &mut buf).unwrap();
        assert_same(&buf, want, off);
    }

    /// What lies where, by the tree: exactly the blocks that are not free.
    fn check_blocks(&mut self) {
        let extents = Extents::new(tree(), &geometry());
        let freed: BTreeSet<u64> = self.freed.iter().flat_map(|r| r.start.0..r.start.0 + r.blocks).collect();
        let mut used = 0;
        for span in extents.map(&self.meta, 0..1 << 40).unwrap() {
            let (Backing::Written(at) | Backing::Unwritten(at)) = span.backing else { continue };
            used += span.blocks;
            for block in at.0..at.0 + span.blocks {
                assert!(!self.free.contains(&block), "block {block} is free and used");
                assert!(!freed.contains(&block), "block {block} is freed and used");
            }
            if matches!(span.backing, Backing::Written(_)) {
                let end = self.file.disk_size().div_ceil(PAGE);
                assert!(span.end() <= end, "written blocks behind the size");
            }
        }
        assert_eq!(used, self.attr.blocks);
    }

    fn check_seek(&mut self, off: u64) {
        let size = self.model.len() as u64;
        if off >= size {
            assert_eq!(self.file.seek_data(&self.meta, off), Err(Error::NoData));
            return assert_eq!(self.file.seek_hole(&self.meta, off), Err(Error::NoData));
        }
        let data = self.file.seek_data(&self.meta, off).unwrap_or(size);
        assert!(data >= off && self.model[off as usize..data as usize].iter().all(|b| *b == 0));
        let hole = self.file.seek_hole(&self.meta, off).unwrap();
        assert!(off <= hole && hole <= size && (hole == size || hole == off || hole.is_multiple_of(PAGE)));
        assert!(data == off || hole == off);
    }

    /// Looks at what another host would find after a power cut right now.
    fn crash(&mut self) {
        let i = self.rng.random_range(0..self.commits.len());
        let (blocks, next, sure) = self.commits[i].clone();
        let disk = self.disk.crashed(sure, &mut self.rng);
        let mut meta = copy(&blocks, next);
        let attr = tree().read_attr(&meta).unwrap();
        let pool = PagePool::new(1 << 30);
        let mut file = FileState::load(&meta, tree(), &geometry(), pool.clone(), attr.size).unwrap();
        let got = file.plan_read(&meta, 0, 1 << 30).unwrap().read(&disk).unwrap();
        assert_eq!(got.len() as u64, attr.size);
        // A flush in parts may leave a size in between, but never one beyond what was written.
        assert!(attr.size <= *self.sizes.last().unwrap() && attr.size >= *self.sizes.first().unwrap());
        for (at, value) in got.iter().enumerate() {
            let allowed = *value < 128 && self.past[at] >> *value & 1 == 1;
            assert!(allowed, "byte {at} is {value}, it was one of {:x} since the sync", self.past[at]);
        }
        // Growing shows zeros.
        let mut attr = attr;
        if let Some(target) = attr.truncating {
            let all = StepLimit { changes: u32::MAX, blocks: u64::MAX };
            let progress = file.truncate_apply(&mut meta, &mut attr, target, all).unwrap();
            assert_eq!((progress, attr.truncating), (Progress::Done, None));
            file.truncate_done(target, progress);
        }
        let size = attr.size + 5000;
        let plan = file.plan_grow(&meta, size).unwrap();
        file.write(plan, &disk, &meta, &[]).unwrap();
        while file.is_dirty() {
            let limit = TakeLimit { bytes: FLUSH_IO_BYTES, new_blocks: 9, changes: 9 };
            let mut batch = file.flush_take(&meta, limit).unwrap().unwrap();
            let run = BlockRun { start: BlockNo(900_000), blocks: batch.blocks_wanted() };
            file.flush_place(&mut batch, &[run]);
            batch.write_data(&pool, &disk).unwrap();
            file.flush_apply(&batch, &mut meta, &mut attr).unwrap();
            file.flush_done(batch);
        }
        let file = FileState::load(&meta, tree(), &geometry(), pool, size).unwrap();
        let grown = file.plan_read(&meta, 0, 1 << 30).unwrap().read(&disk).unwrap();
        assert_same(&grown[..got.len()], &got, 0);
        assert!(grown[got.len()..].iter().all(|b| *b == 0), "old bytes behind the end came back");
    }

    fn reload(&mut self) {
        self.sync();
        let size = tree().read_attr(&self.meta).unwrap().size;
        self.file = FileState::load(&self.meta, tree(), &geometry(), self.pool.clone(), size).unwrap();
    }

    fn step(&mut self, small: bool) {
        let longest = if small { 3000 } else { 40_000 };
        let (mut off, len) = self.range(longest);
        if small {
            off %= 6000;
        }
        match self.rng.random_range(0..32) {
            0..10 => {
                let data = vec![self.next_tag(); len as usize];
                self.write(off, &data);
            }
            10 => self.grow(off),
            11..13 if off <= self.file.size() => self.truncate(off),
            13 if self.rng.random_bool(0.2) => self.truncate(0),
            14..17 => drop(self.start_flush(false)),
            17..23 if !self.flights.is_empty() => self.step_flush(true),
            23 => self.sync(),
            24 => self.reload(),
            25 => self.punch(off, len, false),
            26 => self.punch(off, len, true),
            27 if self.rng.random_bool(0.3) => {
                let grow = self.rng.random();
                self.allocate(off, len, grow);
            }
            28 => self.direct(off, len),
            29 => self.check_seek(off),
            30 => self.crash(),
            _ => self.check_read(off, len),
        }
        self.note();
        self.check_space();
    }
}

fn new_attr() -> Attr {
    Attr::new(INO, Generation(1), FileKind::Regular, 0o644, Timestamp::default())
}

fn assert_same(got: &[u8], want: &[u8], off: u64) {
    assert_eq!(got.len(), want.len());
    if let Some(i) = (0..got.len()).find(|i| got[*i] != want[*i]) {
        panic!("byte {} is {} and must be {}", off + i as u64, got[i], want[i]);
    }
}

fn run(seeds: std::ops::Range<u64>, steps: u32, small: bool) {
    for seed in seeds {
        let mut world = World::new(seed);
        for step in 0..steps {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                world.step(small);
                world.check_blocks();
                if step % 4 == 0 {
                    world.check_read(0, MODEL_MAX * 2);
                }
            }));
            if let Err(panic) = result {
                eprintln!("seed {seed}, step {step}, small {small}");
                std::panic::resume_unwind(panic);
            }
        }
        world.reload();
        world.check_read(0, MODEL_MAX * 2);
    }
}

#[test]
fn a_file_is_its_bytes() {
    run(0..60, 400, false);
}

#[test]
fn a_small_file_is_its_bytes() {
    run(1000..1100, 300, true);
}
