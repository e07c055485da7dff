//! Power is cut at every flush boundary and at sampled places between, in the middle of random
//! transactions; after replay the blocks must be exactly those of one point in history that is not
//! before what had been acknowledged.

mod common;

use common::simdisk::{Event, History, SimDisk, Unflushed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::{AgNo, BlockNo, Error, InodeNo, LockName, SlotId, TxnId, Version};
use shoal::device::BlockDevice;
use shoal::format::journal::{COMMIT_MAGIC, JournalPlace, TXN_MAGIC};
use shoal::format::{Block, BlockKind, Geometry};
use shoal::journal::{DeviceSink, Journal, JournalConfig, OverlaySink, journal_is_clean, replay};
use shoal::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const FORMAT: u64 = 0xfeed_f00d;
const SLOT: SlotId = SlotId(1);
const BLOCKS: u64 = 40;
/// The smallest: the log turns often.
const EXTENT_BLOCKS: u64 = 256;

fn geometry() -> Geometry {
    Geometry {
        total_blocks: 16384,
        max_slots: 2,
        cell_pitch: 512,
        ledger_pages: 1,
        ag_blocks: 2048,
        ag_count: 7,
    }
}

fn extent() -> (BlockNo, u64) {
    (geometry().ag_start(AgNo(0)).plus(512), EXTENT_BLOCKS)
}

/// The test's blocks lie in group 1; four neighbours share a lock.
fn block(n: u64) -> BlockNo {
    geometry().ag_start(AgNo(1)).plus(600 + n)
}

fn cover(n: u64) -> LockName {
    LockName::Inode(InodeNo(block(n / 4 * 4).0))
}

fn ag_cover() -> LockName {
    LockName::Ag(AgNo(1))
}

/// A block's content to the test: alive with this stamp, or freed; and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    stamp: Option<u64>,
    version: u64,
}

type Model = BTreeMap<u64, Content>;

fn fresh_disk() -> (Arc<SimDisk>, Model) {
    let disk = SimDisk::new(geometry().total_blocks * 4096);
    let place = JournalPlace { format_id: FORMAT, slot: SLOT, start: extent().0, blocks: extent().1 };
    for (i, b) in place.empty().iter().enumerate() {
        disk.write(extent().0.plus(i as u64).byte(), &b.0).unwrap();
    }
    let mut model = Model::new();
    for n in 0..BLOCKS {
        let mut b = Block::init(FORMAT, block(n), BlockKind::Blob, 0, cover(n), Version(1));
        b.seal();
        disk.write(block(n).byte(), &b.0).unwrap();
        model.insert(n, Content { stamp: Some(0), version: 1 });
    }
    (disk, model)
}

fn open_store(disk: &Arc<SimDisk>) -> Arc<Store> {
    Store::new(disk.clone(), FORMAT, geometry(), 1 << 20)
}

fn open(disk: &Arc<SimDisk>) -> (Arc<Store>, Arc<Journal>) {
    let store = open_store(disk);
    let config = JournalConfig { background: false, ..Default::default() };
    let journal = Journal::open(store.clone(), extent(), SLOT, config).unwrap();
    (store, journal)
}

fn stamp_of(b: &Block) -> u64 {
    u64::from_le_bytes(b.body()[..8].try_into().unwrap())
}

/// The content that stands on the device itself.
fn on_disk(disk: &Arc<SimDisk>, n: u64) -> Result<Content, String> {
    let mut b = Block::zeroed();
    disk.read(block(n).byte(), &mut b.0).unwrap();
    let kind = b.kind().ok_or("no kind")?;
    b.verify(FORMAT, block(n), kind).map_err(|e| e.to_string())?;
    let stamp = match kind {
        BlockKind::Blob => Some(stamp_of(&b)),
        BlockKind::Free => None,
        other => return Err(format!("block {n} is a {other}")),
    };
    if let Some(stamp) = stamp {
        // The stamp is repeated all over the block: a mix of two images would show.
        let uniform = b.body().chunks_exact(8).all(|c| c == stamp.to_le_bytes());
        if !uniform {
            return Err(format!("block {n} is a mix of images"));
        }
    }
    Ok(Content { stamp, version: b.version().0 })
}

/// A run of random transactions with everything that happened.
struct Run {
    rng: StdRng,
    disk: Arc<SimDisk>,
    journal: Arc<Journal>,
    model: Model,
    /// Blocks already changed in the running transaction: their version does not grow again.
    touched: BTreeMap<u64, TxnId>,
    /// Blocks whose tombstone may not be in place yet are not reused.
    freed: BTreeMap<u64, TxnId>,
    vclock: u64,
    next_stamp: u64,
    /// The model after each transaction.
    states: BTreeMap<TxnId, Model>,
    /// (events, durable transaction) at each acknowledgement.
    acknowledged: Vec<(usize, TxnId)>,
    /// (events, lock, content) when a lock had been released.
    released: Vec<(usize, Vec<(u64, Content)>)>,
    /// (events, block, content) written by another host after a release.
    foreign: Vec<(usize, u64, Content)>,
}

impl Run {
    fn new(seed: u64, disk: Arc<SimDisk>, journal: Arc<Journal>, model: Model) -> Run {
        let vclock = model.values().map(|c| c.version).max().unwrap();
        let states = BTreeMap::from([(journal.durable(), model.clone())]);
        Run {
            rng: StdRng::seed_from_u64(seed),
            disk,
            journal,
            model,
            touched: BTreeMap::new(),
            freed: BTreeMap::new(),
            vclock: vclock + 1_000_000 * (seed + 1),
            next_stamp: seed * 1000 + 1,
            states,
            acknowledged: Vec::new(),
            released: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// One handle changing a few blocks; sometimes undone.
    fn change(&mut self) {
        let count = self.rng.random_range(1..16);
        let mut handle = self.journal.begin(16).unwrap();
        let txn = handle.txn();
        let (model, touched, freed) = (self.model.clone(), self.touched.clone(), self.freed.clone());
        for _ in 0..count {
            let n = self.rng.random_range(0..BLOCKS);
            self.next_stamp += 1;
            let stamp = self.next_stamp;
            let old = self.model[&n];
            let first = self.touched.get(&n) != Some(&txn);
            let write = move |b: &mut Block| {
                b.body_mut().chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&stamp.to_le_bytes()));
            };
            let new = match old.stamp {
                Some(_) if self.rng.random_bool(0.1) => {
                    self.vclock = self.vclock.max(old.version) + 1;
                    handle.tombstone(block(n), AgNo(1), Some(cover(n)), Version(self.vclock)).unwrap();
                    self.freed.insert(n, txn);
                    Content { stamp: None, version: self.vclock }
                }
                Some(_) => {
                    handle.modify(block(n), BlockKind::Blob, cover(n), &mut |b| write(b)).unwrap();
                    Content { stamp: Some(stamp), version: old.version + u64::from(first) }
                }
                None if self.freed.get(&n).is_none_or(|t| *t <= self.journal.checkpointed()) => {
                    self.vclock = self.vclock.max(old.version) + 1;
                    handle.create(block(n), BlockKind::Blob, 0, cover(n), Version(self.vclock)).unwrap();
                    handle.modify(block(n), BlockKind::Blob, cover(n), &mut |b| write(b)).unwrap();
                    Content { stamp: Some(stamp), version: self.vclock }
                }
                // Freed, and its tombstone not yet in place: not reusable.
                None => continue,
            };
            self.touched.insert(n, txn);
            self.model.insert(n, new);
        }
        if self.rng.random_bool(0.15) {
            drop(handle);
            (self.model, self.touched, self.freed) = (model, touched, freed);
        } else {
            assert_eq!(handle.finish(), txn);
        }
        self.states.insert(txn, self.model.clone());
    }

    fn commit(&mut self) {
        let running = self.journal.running();
        self.journal.commit(running).unwrap();
        self.acknowledged.push((self.disk.event_count(), self.journal.durable()));
    }

    fn release(&mut self) {
        let n = self.rng.random_range(0..BLOCKS / 4) * 4;
        let mut covers = BTreeSet::from([cover(n)]);
        let mut blocks: Vec<u64> = (n..n + 4).collect(); // freed ones, too
        if self.rng.random_bool(0.2) {
            covers.insert(ag_cover());
            blocks.extend((0..BLOCKS).filter(|n| self.model[n].stamp.is_none()));
        }
        self.journal.release(&covers).unwrap();
        let contents = blocks.into_iter().map(|n| (n, self.model[&n])).collect();
        self.released.push((self.disk.event_count(), contents));
        for cover in covers {
            self.journal.store().drop_cover(cover);
        }
        self.journal.store().halt().check().unwrap();
        self.acknowledged.push((self.disk.event_count(), self.journal.durable()));
        if self.rng.random_bool(0.5) {
            self.foreign_change(n);
        }
    }

    /// Another host has taken the lock, changes a block, and gives it back.
    fn foreign_change(&mut self, n: u64) {
        let old = self.model[&n];
        if old.stamp.is_none() {
            return;
        }
        self.next_stamp += 1;
        let new = Content { stamp: Some(self.next_stamp), version: old.version + 1 };
        let mut b = Block::init(FORMAT, block(n), BlockKind::Blob, 0, cover(n), Version(new.version));
        b.body_mut().chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&self.next_stamp.to_le_bytes()));
        b.seal();
        self.disk.write_foreign(block(n).byte(), &b.0);
        self.model.insert(n, new);
        // Ours again, and it is in no transaction that still runs.
        self.touched.remove(&n);
        self.foreign.push((self.disk.event_count(), n, new));
    }

    /// A state of ours with what other hosts had written by then.
    fn with_foreign(&self, state: &Model, events: usize) -> Model {
        let mut state = state.clone();
        for (_, n, content) in self.foreign.iter().filter(|f| f.0 <= events) {
            if content.version > state[n].version {
                state.insert(*n, *content);
            }
        }
        state
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..70 => self.change(),
            70..88 => self.commit(),
            88..96 => self.release(),
            _ => self.journal.checkpoint_durable().unwrap(),
        }
    }

    /// Replay a crashed disk and find it in the history.
    fn check(&self, crashed: &Arc<SimDisk>, events: usize, what: &str) {
        // Before replay: what was released stands on the disk itself.
        for (at, contents) in &self.released {
            if *at > events {
                break;
            }
            for (n, content) in contents {
                let newer = self.released.iter().any(|(t, _)| t > at);
                match on_disk(crashed, *n) {
                    Ok(there) => assert!(there.version >= content.version, "{what}: released block {n}"),
                    // Torn by a later write in place; replay mends it.
                    Err(e) => assert!(newer || events > *at, "{what}: released block {n}: {e}"),
                }
            }
        }
        let store = open_store(crashed);
        let mut overlay = OverlaySink::new(&store, std::time::Duration::ZERO);
        let dry = replay(&store, extent(), SLOT, &mut overlay).unwrap();
        let report =
            replay(&store, extent(), SLOT, &mut DeviceSink::new(&store, Default::default())).unwrap();
        assert_eq!(dry, report, "{what}: the dry run says the same");
        assert!(journal_is_clean(&store, extent(), SLOT).unwrap());
        let found: Model =
            (0..BLOCKS).map(|n| (n, on_disk(crashed, n).unwrap_or_else(|e| panic!("{what}: {e}")))).collect();
        let least = self.acknowledged.iter().take_while(|(at, _)| *at <= events).last();
        let least = least.map_or(*self.states.keys().next().unwrap(), |(_, t)| *t);
        let matching =
            self.states.range(least..).find(|(_, state)| self.with_foreign(state, events) == found);
        assert!(
            matching.is_some(),
            "{what}: not a state at or after {least}\nfound {found:?}\nwanted {:?}",
            self.states.get(&least)
        );
        let again = replay(&store, extent(), SLOT, &mut DeviceSink::new(&store, Default::default())).unwrap();
        assert_eq!(again.txns, 0, "{what}: replay leaves an empty log");
    }
}

/// Cut behind every flush, and at sampled places between.
fn sweep(run: &Run, history: &History, events: &[Event], seed: u64, every: usize) -> usize {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let mut cuts = 0;
    for at in 0..=events.len() {
        let boundary = at > 0 && matches!(events[at - 1], Event::Flush);
        let before_flush = events.get(at).is_some_and(|e| matches!(e, Event::Flush));
        if !boundary && !before_flush && rng.random_range(0..every) != 0 {
            continue;
        }
        for unflushed in [
            Unflushed::Lost,
            Unflushed::Kept,
            Unflushed::Torn(rng.random()),
            Unflushed::Torn(rng.random()),
            Unflushed::Subset(rng.random()),
        ] {
            if boundary && unflushed != Unflushed::Lost {
                continue;
            }
            let crashed = history.crash_at(events, at, unflushed);
            run.check(&crashed, at, &format!("seed {seed} cut at {at} {unflushed:?}"));
            cuts += 1;
        }
    }
    cuts
}

#[test]
fn every_crash_is_a_point_in_history() {
    let seeds: u64 = std::env::var("SHOAL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    for seed in 0..seeds {
        let (disk, model) = fresh_disk();
        let history = disk.record();
        let (_, journal) = open(&disk);
        let mut run = Run::new(seed, disk.clone(), journal, model);
        for _ in 0..120 {
            run.step();
        }
        let cuts = sweep(&run, &history, &disk.events(), seed, 3);
        assert!(cuts > 100, "seed {seed}: only {cuts} cuts");
    }
}

/// The log turns several times; then the host crashes, is replayed, goes on, and crashes again:
/// rests of the first life must not be taken for records of the second.
#[test]
fn a_second_life_does_not_see_the_first() {
    for seed in 100..104u64 {
        let (disk, model) = fresh_disk();
        let history = disk.record();
        let (_, journal) = open(&disk);
        let mut run = Run::new(seed, disk.clone(), journal, model);
        for _ in 0..600 {
            run.step();
        }
        let events = disk.events();
        assert!(run.journal.positions().1 > 0);
        let crashed = history.crash_at(&events, events.len(), Unflushed::Torn(seed));
        run.check(&crashed, events.len(), &format!("seed {seed}, first life"));
        let model: Model = (0..BLOCKS).map(|n| (n, on_disk(&crashed, n).unwrap())).collect();

        let history = crashed.record();
        let (_, journal) = open(&crashed);
        let mut second = Run::new(seed + 1000, crashed.clone(), journal, model);
        for _ in 0..60 {
            second.step();
        }
        sweep(&second, &history, &crashed.events(), seed, 6);
    }
}

/// A crash in the middle of replay itself: replaying again ends in the same place.
#[test]
fn replay_may_be_cut_at_any_write() {
    for seed in 200..206u64 {
        let (disk, model) = fresh_disk();
        let history = disk.record();
        let (_, journal) = open(&disk);
        let mut run = Run::new(seed, disk.clone(), journal, model);
        for _ in 0..40 {
            run.change();
            if run.rng.random_bool(0.3) {
                run.commit();
            }
        }
        let events = disk.events();
        let crashed = history.crash_at(&events, events.len(), Unflushed::Lost);
        let inner = crashed.record();
        let store = open_store(&crashed);
        replay(&store, extent(), SLOT, &mut DeviceSink::new(&store, Default::default())).unwrap();
        let replay_events = crashed.events();
        for at in 0..=replay_events.len() {
            for unflushed in [Unflushed::Lost, Unflushed::Kept, Unflushed::Torn(seed + at as u64)] {
                let twice = inner.crash_at(&replay_events, at, unflushed);
                run.check(&twice, events.len(), &format!("seed {seed}, replay cut at {at} {unflushed:?}"));
            }
        }
    }
}

/// A commit block of the dead host lands late, after its journal was replayed and opened again.
#[test]
fn a_late_commit_block_is_not_believed() {
    let (disk, model) = fresh_disk();
    let history = disk.record();
    let (_, journal) = open(&disk);
    let mut run = Run::new(1, disk.clone(), journal, model);
    run.change();
    run.commit();
    let events = disk.events();
    let is_commit =
        |e: &Event| matches!(e, Event::Write { data, .. } if data[data.len() - 4096..][..4] == COMMIT_MAGIC);
    let at = events.iter().rposition(is_commit).unwrap();
    let crashed = history.crash_at(&events, at, Unflushed::Kept);
    run.check(&crashed, at, "before the commit block");
    let (_store, _journal) = open(&crashed);
    let Event::Write { offset, data } = &events[at] else { unreachable!("found as a write") };
    crashed.write(*offset, data).unwrap();
    assert!(journal_is_clean(&open_store(&crashed), extent(), SLOT).unwrap());
}

/// What was committed and is then damaged by the medium is reported, not passed over.
#[test]
fn a_damaged_transaction_is_reported() {
    let (disk, model) = fresh_disk();
    disk.record();
    let (_, journal) = open(&disk);
    let mut run = Run::new(2, disk.clone(), journal, model);
    for _ in 0..2 {
        run.change();
        run.commit();
    }
    let offset = *streams(&disk).first().unwrap();
    disk.damage(offset + 200, &[0xff; 3]);
    let store = open_store(&disk);
    let mut sink = DeviceSink::new(&store, Default::default());
    assert!(matches!(replay(&store, extent(), SLOT, &mut sink), Err(Error::Corrupt { .. })));
    let mut overlay = OverlaySink::new(&store, std::time::Duration::ZERO);
    overlay.tolerate_damage = true;
    let report = replay(&store, extent(), SLOT, &mut overlay).unwrap();
    assert_eq!((report.damaged.len(), report.txns), (1, 2));
    assert!(Journal::open(store, extent(), SLOT, JournalConfig::default()).is_err());
}

/// Stream and commit block are written together: a commit block may stand without its stream after a
/// power failure. Such a transaction was never acknowledged and does not count; those before it do.
#[test]
fn a_last_transaction_without_its_stream_never_happened() {
    let (disk, model) = fresh_disk();
    let history = disk.record();
    let (_, journal) = open(&disk);
    let mut run = Run::new(3, disk.clone(), journal, model);
    for _ in 0..3 {
        run.change();
        run.commit();
    }
    let (events, last) = (disk.events(), *streams(&disk).last().unwrap());
    let starts = |e: &Event| matches!(e, Event::Write { offset, .. } if *offset == last);
    let at = events.iter().rposition(starts).unwrap();
    let crashed = history.crash_at(&events, events.len(), Unflushed::Kept);
    crashed.damage(last + 200, &[0xff; 3]);
    run.check(&crashed, at, "the commit block alone");
}

/// Where the streams begin that were written, oldest first.
fn streams(disk: &SimDisk) -> Vec<u64> {
    let start = |e: &Event| match e {
        Event::Write { offset, data } if data[..4] == TXN_MAGIC => Some(*offset),
        _ => None,
    };
    disk.events().iter().filter_map(start).collect()
}

/// The canary: the sweep must notice a device that ignores flushes.
#[test]
fn a_lying_device_is_found_out() {
    let mut caught = 0;
    for seed in 0..6u64 {
        let (disk, model) = fresh_disk();
        let history = disk.record();
        let (_, journal) = open(&disk);
        let mut run = Run::new(seed, disk.clone(), journal, model);
        for _ in 0..60 {
            run.step();
        }
        // Without its flushes everything is unflushed, acknowledged or not.
        let lies: Vec<Event> = disk.events().into_iter().filter(|e| !matches!(e, Event::Flush)).collect();
        let crashed = history.crash_at(&lies, lies.len(), Unflushed::Torn(seed));
        let check = || run.check(&crashed, usize::MAX, "lies");
        caught += u32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err());
    }
    assert!(caught >= 5, "only {caught} of 6 crashes of a lying device were noticed");
}
