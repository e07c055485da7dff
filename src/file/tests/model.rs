//! One file against a `Vec<u8>`: random operations, flushes in flight, failed flushes, crashes.

use super::super::*;
use super::disk::*;
use crate::base::{AgNo, BlockNo, Error, Result};
use crate::inode::Attr;
use crate::txn::memory::MemoryTxn;
use crate::txn::{BlockRun, BlockTxn};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;

const MODEL_MAX: u64 = 300_000;

/// One host with one file.
pub struct World {
    pub(super) rng: StdRng,
    pub(super) disk: Disk,
    pub(super) meta: MemoryTxn,
    pub(super) attr: Attr,
    pub(super) pool: Arc<PagePool>,
    pub(super) file: FileState,
    pub(super) model: Vec<u8>,
    /// Per byte a set of the values it had since the last sync (all below 128).
    pub(super) past: Vec<u128>,
    pub(super) sizes: BTreeSet<u64>,
    /// The committed states since the last sync, each with the data writes that came before.
    pub(super) commits: Vec<(Blocks, u64, usize)>,
    pub(super) held: SpaceNeed,
    pub(super) free: BTreeSet<u64>,
    pub(super) freed: Vec<BlockRun>,
    pub(super) flights: Vec<(FlushBatch, bool)>,
    pub(super) tag: u8,
    /// Of a flush that was begun some time ago.
    pub(super) mark: FlushMark,
}

impl World {
    fn new(seed: u64) -> World {
        let (meta, attr) = empty_file();
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
            mark: FlushMark::ALL,
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
        let most = if self.rng.random() { 3 } else { 30 };
        if self.rng.random_bool(0.3) {
            self.mark = self.file.flush_mark();
        }
        let limit = TakeLimit {
            bytes: if all { FLUSH_IO_BYTES } else { self.rng.random_range(1..most) * PAGE },
            new_blocks: self.held.data,
            changes: if all { 64 } else { self.rng.random_range(1..10) },
            mark: if all || self.rng.random() { FlushMark::ALL } else { self.mark },
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
        let got = plan.read(self.file.pages.pool(), &self.disk).unwrap().to_vec();
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
        let inline = tree().get(&self.meta, state::INLINE).unwrap();
        assert!(inline.is_none() || used == 0, "bytes in the inode and in extents");
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
