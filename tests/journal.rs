//! The journal with several threads and with a failing device.

mod common;

use common::journal_rig::*;
use shoal::base::{AgNo, BlockNo, Error, LockName, TxnId, Version};
use shoal::device::BlockDevice;
use shoal::format::{Block, BlockKind};
use shoal::journal::{DeviceSink, Journal, JournalConfig, ReplaySink, journal_is_clean, replay};
use shoal::store::Store;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

#[test]
fn a_dropped_handle_leaves_no_trace() {
    let disk = disk(4);
    let (store, journal) = open_with(&disk, by_hand());
    bump(&journal, 0);
    let before = store.read(block(0), BlockKind::Inode, cover(0)).unwrap();
    {
        let mut h = journal.begin(4).unwrap();
        h.modify(block(0), BlockKind::Inode, cover(0), &mut add_one).unwrap();
        h.modify(block(1), BlockKind::Inode, cover(1), &mut add_one).unwrap();
        h.create(block(9), BlockKind::Blob, 0, cover(0), Version(7)).unwrap();
        h.tombstone(block(1), AgNo(1), None, Version(100)).unwrap();
    }
    let after = store.read(block(0), BlockKind::Inode, cover(0)).unwrap();
    assert_eq!((value(&before), before.version()), (value(&after), after.version()));
    assert_eq!(store.read(block(1), BlockKind::Inode, cover(1)).unwrap().version(), Version(1));
    assert!(store.read(block(9), BlockKind::Blob, cover(0)).is_err());
    store.drop_cover(cover(1));
    store.halt().check().unwrap();
    assert_eq!(store.cache_counts().1, 1, "only block 0 is dirty");
    let mut h = journal.begin(2).unwrap();
    h.modify(block(1), BlockKind::Inode, cover(1), &mut add_one).unwrap();
    h.finish();
    assert_eq!(store.read(block(1), BlockKind::Inode, cover(1)).unwrap().version(), Version(2));
}

/// Many handles that reserve much and use little wait for each other, not for the disk.
#[test]
fn worst_case_reservations_do_not_cost_commits() {
    let disk = disk(8);
    let (_, journal) = open_with(&disk, by_hand());
    let flushes = disk.requests().2;
    std::thread::scope(|s| {
        for n in 0..8 {
            let journal = journal.clone();
            s.spawn(move || {
                for _ in 0..200 {
                    let mut h = journal.begin(journal.handle_max()).unwrap();
                    h.modify(block(n), BlockKind::Inode, cover(n), &mut add_one).unwrap();
                    h.finish();
                }
            });
        }
    });
    assert_eq!(disk.requests().2, flushes);
    journal.shutdown().unwrap();
}

#[test]
fn a_panic_inside_a_change_is_undone() {
    let disk = disk(2);
    let (store, journal) = open_with(&disk, by_hand());
    let j = journal.clone();
    let crash = std::thread::spawn(move || {
        let mut h = j.begin(1).unwrap();
        let _ = h.modify(block(0), BlockKind::Inode, cover(0), &mut |b| {
            b.body_mut().fill(9);
            panic!("half-way");
        });
    });
    assert!(crash.join().is_err());
    let b = store.read(block(0), BlockKind::Inode, cover(0)).unwrap();
    assert_eq!((value(&b), b.version()), (0, Version(1)));
    journal.shutdown().unwrap();
}

#[test]
fn more_than_was_reserved_is_refused() {
    let disk = disk(4);
    let (_, journal) = open_with(&disk, by_hand());
    let mut h = journal.begin(1).unwrap();
    h.modify(block(0), BlockKind::Inode, cover(0), &mut add_one).unwrap();
    h.modify(block(0), BlockKind::Inode, cover(0), &mut add_one).unwrap();
    let e = h.modify(block(1), BlockKind::Inode, cover(1), &mut add_one).unwrap_err();
    assert!(matches!(e, Error::ChangeTooLarge { limit: 1, .. }));
    drop(h);
    assert!(matches!(journal.begin(journal.handle_max() + 1), Err(Error::ChangeTooLarge { .. })));
    journal.begin(journal.handle_max()).unwrap();
}

/// While the log is being written new handles begin, change and finish; they are in the next
/// transaction.
#[test]
fn a_commit_does_not_stop_new_changes() {
    let disk = disk(8);
    let (_, journal) = open_with(&disk, by_hand());
    let first = bump(&journal, 0);
    let (entered, in_flush) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = parking_lot::Mutex::new(wait);
    let armed = AtomicBool::new(true);
    disk.on_request(move |op, _, _| {
        if op == "flush" && armed.swap(false, Ordering::SeqCst) {
            entered.send(()).unwrap();
            wait.lock().recv().unwrap();
        }
    });
    let committer = journal.clone();
    let t = std::thread::spawn(move || committer.commit(first));
    in_flush.recv().unwrap();
    for n in 0..8 {
        assert_eq!(bump(&journal, n), TxnId(first.0 + 1));
    }
    assert!(journal.durable() < first);
    go.send(()).unwrap();
    t.join().unwrap().unwrap();
    assert_eq!(journal.durable(), first);
    journal.shutdown().unwrap();
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    assert_eq!(value(&store.read(block(0), BlockKind::Inode, cover(0)).unwrap()), 2);
}

/// Many threads that each commit after each change share commits, and lose nothing.
#[test]
fn commits_are_shared() {
    const THREADS: u64 = 16;
    const ROUNDS: u64 = 40;
    let disk = disk(THREADS);
    let (_, journal) = open_with(&disk, by_hand());
    disk.on_request(|op, _, _| {
        if op == "flush" {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let before = disk.requests().2;
    std::thread::scope(|s| {
        for n in 0..THREADS {
            let journal = journal.clone();
            s.spawn(move || {
                for _ in 0..ROUNDS {
                    let txn = bump(&journal, n);
                    journal.commit(txn).unwrap();
                    assert!(journal.durable() >= txn);
                }
            });
        }
    });
    let flushes = disk.requests().2 - before;
    assert!(flushes < THREADS * ROUNDS / 2, "{flushes} flushes for {} commits", THREADS * ROUNDS);
    crash_and_expect(&disk, THREADS, ROUNDS);
}

/// Changers, releasers and checkpoints all at once on a log that turns many times, with a cache
/// that holds a fraction of the blocks.
#[test]
fn everything_at_once() {
    const THREADS: u64 = 6;
    const EACH: u64 = 50;
    let disk = disk(THREADS * EACH);
    let config = JournalConfig {
        commit_interval: Duration::from_millis(5),
        checkpoint_quiet: Duration::from_millis(50),
        ..JournalConfig::default()
    };
    let store = Store::new(disk.clone(), FORMAT, geometry(), 64 << 10);
    let journal = Journal::open(store.clone(), extent(), SLOT, config).unwrap();
    let done = AtomicU64::new(0);
    std::thread::scope(|s| {
        for t in 0..THREADS {
            let (journal, store, disk, done) = (journal.clone(), store.clone(), disk.clone(), &done);
            s.spawn(move || {
                for round in 0..60 {
                    let mut h = journal.begin(EACH as u32).unwrap();
                    for n in t * EACH..(t + 1) * EACH {
                        h.modify(block(n), BlockKind::Inode, cover(n), &mut add_one).unwrap();
                    }
                    if round % 7 == 3 {
                        drop(h);
                    } else {
                        h.finish();
                        done.fetch_add(u64::from(t == 0), Ordering::Relaxed);
                    }
                    if round % 5 == t % 5 {
                        let n = t * EACH + round % EACH;
                        journal.release(&BTreeSet::from([cover(n)])).unwrap();
                        let newest = value(&store.read(block(n), BlockKind::Inode, cover(n)).unwrap());
                        store.drop_cover(cover(n));
                        store.halt().check().unwrap();
                        let mut b = Block::zeroed();
                        disk.read(block(n).byte(), &mut b.0).unwrap();
                        b.verify(FORMAT, block(n), BlockKind::Inode).unwrap();
                        assert_eq!(value(&b), newest);
                    }
                }
            });
        }
    });
    let want = done.load(Ordering::Relaxed);
    journal.shutdown().unwrap();
    assert!(journal_is_clean(&store, extent(), SLOT).unwrap());
    assert_eq!(journal.positions().0, journal.positions().1);
    assert_eq!(store.cache_counts().1, 0, "nothing is pinned in the end");
    crash_and_expect(&disk, THREADS * EACH, want);
    assert!(matches!(journal.begin(1), Err(Error::Busy(_))));
}

#[test]
fn an_idle_journal_commits_and_empties_itself() {
    let disk = disk(2);
    let config = JournalConfig {
        commit_interval: Duration::from_millis(20),
        checkpoint_quiet: Duration::from_millis(40),
        ..JournalConfig::default()
    };
    let (store, journal) = open_with(&disk, config);
    let txn = bump(&journal, 0);
    let give_up = Instant::now() + Duration::from_secs(10);
    while journal.checkpointed() < txn {
        assert!(Instant::now() < give_up, "still not in place");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(journal.fill().0, 0);
    assert!(journal_is_clean(&store, extent(), SLOT).unwrap());
    drop(journal);
    assert_eq!(
        value(
            &Store::new(disk, FORMAT, geometry(), 1 << 20)
                .read(block(0), BlockKind::Inode, cover(0))
                .unwrap()
        ),
        1
    );
}

/// What others wait for leaves the log also while this host commits now and then, never quiet.
#[test]
fn light_steady_commits_do_not_keep_the_log_from_emptying() {
    let disk = disk(2);
    let config = JournalConfig {
        checkpoint_quiet: Duration::from_secs(60),
        checkpoint_latest: Duration::from_millis(300),
        ..JournalConfig::default()
    };
    let (_, journal) = open_with(&disk, config);
    let first = bump(&journal, 0);
    let begun = Instant::now();
    while journal.checkpointed() < first {
        let txn = bump(&journal, 1);
        journal.commit(txn).unwrap();
        let (used, size) = journal.fill();
        assert!(used < size / 4, "still not in place");
        std::thread::sleep(Duration::from_millis(40));
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "at each commit");
    journal.shutdown().unwrap();
}

/// The log of a transaction could not be written, because others have taken this host for dead. Whoever waits for it
/// is not told that it is durable, however late the halt is.
#[test]
fn a_transaction_whose_log_was_not_written_never_counts() {
    let disk = disk(4);
    let (store, journal) = open_with(&disk, by_hand());
    let txn = bump(&journal, 0);
    store.permit().revoke();
    assert!(matches!(journal.commit(txn), Err(Error::Halted(_))));
    store.halt().check().expect("whoever revokes the permit tells why, but has not yet");
    assert!(matches!(journal.commit(txn), Err(Error::Halted(_))), "nothing is left to be committed");
    assert!(journal.durable() < txn);
}

/// The first failed journal write, or flush, ends all writing; nobody hangs.
#[test]
fn a_failed_write_halts() {
    for failing in ["write", "flush"] {
        let disk = disk(4);
        let (store, journal) = open_with(&disk, by_hand());
        let txn = bump(&journal, 0);
        disk.fail_when(move |op, _, _| op == failing);
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let journal = journal.clone();
                std::thread::spawn(move || journal.commit(txn))
            })
            .collect();
        for w in waiters {
            assert!(w.join().unwrap().is_err());
        }
        disk.heal();
        assert!(store.halt().is_tripped());
        assert!(matches!(journal.begin(1), Err(Error::Halted(_))));
        assert!(matches!(store.write_data(block(3), &[0; 4096]), Err(Error::Halted(_))));
        assert!(matches!(journal.shutdown(), Err(Error::Halted(_))));
    }
}

#[test]
fn a_corrupt_block_is_an_error_and_read_by_many_only_once() {
    let disk = disk(2);
    disk.damage(block(1).byte() + 1000, &[1]);
    let (store, _journal) = open_with(&disk, by_hand());
    assert!(matches!(store.read(block(1), BlockKind::Inode, cover(1)), Err(Error::Corrupt { .. })));
    assert!(matches!(store.read(block(0), BlockKind::TreePage, cover(0)), Err(Error::Corrupt { .. })));
    assert!(matches!(store.read(block(0), BlockKind::Inode, cover(1)), Err(Error::Corrupt { .. })));
    assert!(store.read(BlockNo(1 << 40), BlockKind::Inode, cover(1)).is_err());
    disk.on_request(|op, _, _| {
        if op == "read" {
            std::thread::sleep(Duration::from_millis(30));
        }
    });
    let before = disk.requests().0;
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| store.read(block(0), BlockKind::Inode, cover(0)).unwrap());
        }
    });
    assert_eq!(disk.requests().0 - before, 1);
}

/// Cost of a change of a hot block; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_change() {
    let disk = disk(64);
    let (_, journal) = open_with(&disk, by_hand());
    let rounds = 200_000u64;
    let start = Instant::now();
    for i in 0..rounds {
        let mut h = journal.begin(4).unwrap();
        for n in 0..4 {
            let n = (i + n) % 64;
            h.modify(block(n), BlockKind::Inode, cover(n), &mut add_one).unwrap();
        }
        h.finish();
    }
    let each = start.elapsed().as_nanos() as u64 / rounds;
    println!("handle of 4 hot blocks: {each} ns");
}

/// Small images fill memory long before they fill the log: changes wait for a checkpoint then.
#[test]
fn memory_is_bounded_before_the_log_is_full() {
    const EACH: u64 = 200;
    const PINNED_MAX: usize = 24_576;
    let disk = disk(0);
    let (store, journal) = open_with(&disk, by_hand());
    for n in 0..140 {
        let mut h = journal.begin(EACH as u32).unwrap();
        for b in n * EACH..(n + 1) * EACH {
            h.create(block(b), BlockKind::Blob, 0, LockName::Ag(AgNo(1)), Version(1)).unwrap();
        }
        journal.commit(h.finish()).unwrap();
        let (_, pinned) = store.cache_counts();
        assert!(pinned <= PINNED_MAX + EACH as usize, "{pinned} blocks are kept in memory");
    }
    assert!(journal.checkpointed() > TxnId(1), "by want of log space?");
    let (used, size) = journal.fill();
    assert!(used < size / 2);
}

/// How long a torn block may be under somebody's hands.
const SETTLE: Duration = Duration::from_millis(200);

/// Replays onto a device where a test says what looks at the second block find.
struct Watched<'a> {
    inner: DeviceSink<'a>,
    /// When the second block was first looked at.
    first: Option<Instant>,
    /// By the time since then; `None`: what stands there.
    found: &'a dyn Fn(Duration) -> Option<Block>,
    /// How long a look at the first block takes.
    slow: Duration,
    written: Vec<(BlockNo, Instant)>,
}

impl ReplaySink for Watched<'_> {
    fn read(&mut self, at: BlockNo) -> shoal::base::Result<Block> {
        if at == block(0) {
            std::thread::sleep(self.slow);
        }
        if at == block(1) {
            let since = self.first.get_or_insert_with(Instant::now).elapsed();
            if let Some(found) = (self.found)(since) {
                return Ok(found);
            }
        }
        self.inner.read(at)
    }
    fn write(&mut self, blocks: &[(BlockNo, Arc<Block>)]) -> shoal::base::Result<()> {
        self.written.extend(blocks.iter().map(|(at, _)| (*at, Instant::now())));
        self.inner.write(blocks)
    }
    fn is_persistent(&self) -> bool {
        true
    }
    fn settle(&self) -> Duration {
        SETTLE
    }
}

/// The second block as a write that is under way may leave it, or, sealed, in version 9.
fn second(piece: u8, whole: bool) -> Block {
    let mut b = Block::init(FORMAT, block(1), BlockKind::Inode, block(1).0, cover(1), Version(9));
    b.seal();
    if !whole {
        b.body_mut()[8] = piece;
    }
    b
}

/// Which blocks were written, and how long after the first look at the second one.
fn replay_watched(slow: Duration, found: &dyn Fn(Duration) -> Option<Block>) -> Vec<(BlockNo, Duration)> {
    let disk = disk(3);
    let (_store, journal) = open_with(&disk, by_hand());
    (0..3).for_each(|n| _ = bump(&journal, n));
    journal.commit(journal.running()).unwrap();
    let store = Store::new(disk.snapshot(), FORMAT, geometry(), 1 << 20);
    // The third is torn by whoever died.
    let mut b = Block::zeroed();
    store.read_data(block(2), &mut b.0).unwrap();
    b.body_mut()[8] = 1;
    store.device().write(block(2).byte(), &b.0).unwrap();
    let inner = DeviceSink::new(&store, SETTLE);
    let mut sink = Watched { inner, first: None, found, slow, written: vec![] };
    let report = replay(&store, extent(), SLOT, &mut sink).unwrap();
    assert_eq!(report.applied, sink.written.len() as u64);
    let first = sink.first.unwrap();
    sink.written.iter().map(|(at, when)| (*at, when.saturating_duration_since(first))).collect()
}

#[test]
fn a_torn_block_is_left_to_a_writer_who_lives() {
    let writers: [&dyn Fn(Duration) -> Option<Block>; 2] = [
        // One write is under way when the block is first looked at; that may be late in the replay.
        &|since| Some(second(1, since > SETTLE / 2)),
        // And another after it, never seen whole in between.
        &|since| Some(second((since.as_millis() / 60) as u8 + 1, since > SETTLE * 2)),
    ];
    for writer in writers {
        for slow in [Duration::ZERO, SETTLE * 2] {
            let written: Vec<_> = replay_watched(slow, writer).into_iter().map(|(at, _)| at).collect();
            assert_eq!(written, [block(0), block(2)]);
        }
    }
}

#[test]
fn blocks_that_stay_torn_are_waited_for_side_by_side() {
    let written = replay_watched(Duration::ZERO, &|_| Some(second(1, false)));
    assert_eq!(written.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [block(0), block(1), block(2)]);
    let [_, (_, one), (_, other)] = written[..] else { panic!("{written:?}") };
    assert!(one >= SETTLE && other >= SETTLE && other - one < SETTLE, "{written:?}");
}
