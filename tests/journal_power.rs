//! Power cuts of a journal that several threads use, and of the tail's moves; blocks that they leave unreadable.

mod common;

use common::journal_rig::*;
use common::simdisk::{Event, SimDisk, Unflushed};
use shoal::base::{Error, Version};
use shoal::device::BlockDevice;
use shoal::format::{Block, BlockKind};
use shoal::journal::{DeviceSink, JournalConfig, replay};
use shoal::store::Store;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Threads change all of their blocks together, commit and release; the disk is cut at random
/// moments of that. Each thread's blocks must be equal then, and not older than what it was told.
#[test]
fn crashes_under_threads() {
    const THREADS: u64 = 4;
    const EACH: u64 = 12;
    let disk = disk(THREADS * EACH);
    let history = disk.record();
    let config = JournalConfig {
        commit_interval: Duration::from_millis(3),
        checkpoint_quiet: Duration::from_millis(10),
        ..JournalConfig::default()
    };
    let (_, journal) = open_with(&disk, config);
    let told = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for t in 0..THREADS {
            let (journal, disk, told) = (journal.clone(), disk.clone(), &told);
            s.spawn(move || {
                for round in 1..=150 {
                    let mut h = journal.begin(EACH as u32).unwrap();
                    for n in t * EACH..(t + 1) * EACH {
                        h.modify(block(n), BlockKind::Inode, cover(n), &mut fill_one).unwrap();
                    }
                    let txn = h.finish();
                    match (round + t) % 6 {
                        0 => journal.commit(txn).unwrap(),
                        1 => journal.release(&BTreeSet::from([cover(t * EACH + round % EACH)])).unwrap(),
                        3 => journal.checkpoint_durable().unwrap(),
                        _ => continue,
                    }
                    if journal.durable() >= txn {
                        told.lock().push((disk.event_count(), t, round));
                    }
                }
            });
        }
    });
    let (events, told) = (disk.events(), told.into_inner());
    for cut in 0..80usize {
        let at = events.len() * (cut + 1) / 80;
        let how =
            [Unflushed::Lost, Unflushed::Kept, Unflushed::Torn(cut as u64), Unflushed::Subset(cut as u64)];
        let crashed = history.crash_at(&events, at, how[cut % 4]);
        let store = Store::new(crashed, FORMAT, geometry(), 1 << 20);
        replay(&store, extent(), SLOT, &mut DeviceSink::new(&store, Duration::ZERO)).unwrap();
        for t in 0..THREADS {
            let read = |n| value(&store.read(block(n), BlockKind::Inode, cover(n)).unwrap());
            let values: BTreeSet<u64> = (t * EACH..(t + 1) * EACH).map(read).collect();
            assert_eq!(values.len(), 1, "cut {cut} at {at}: thread {t} has {values:?}");
            let least = told.iter().filter(|x| x.0 <= at && x.1 == t).map(|x| x.2).max().unwrap_or(0);
            assert!(values.first() >= Some(&least), "cut {cut}: thread {t} was told {least}: {values:?}");
        }
    }
}

/// The newest header copy may be lost at any time.
#[test]
fn one_header_copy_is_enough() {
    let disk = disk(4);
    let (_, journal) = open_with(&disk, by_hand());
    for n in 0..4 {
        bump(&journal, n);
        journal.checkpoint_all().unwrap();
    }
    for n in 0..4 {
        journal.commit(bump(&journal, n)).unwrap();
    }
    for copy in 0..2 {
        let rotten = disk.snapshot();
        rotten.damage(extent().0.plus(copy).byte(), &[0; 4096]);
        crash_and_expect(&rotten, 4, 2);
    }
}

/// The tail has moved, but not to the head; the next transaction is written over what stood before
/// the tail; power fails before its first flush. The header must have been durable by then, or
/// the transaction at the new tail is not found.
#[test]
fn log_space_is_reused_only_behind_a_durable_header() {
    let disk = disk(300);
    let history = disk.record();
    let (_, journal) = open_with(&disk, by_hand());
    let change = |from: u64, count: u64| {
        let mut h = journal.begin(count as u32).unwrap();
        for n in from..from + count {
            h.modify(block(n), BlockKind::Inode, cover(n), &mut fill_one).unwrap();
        }
        h.finish()
    };
    for _ in 0..17 {
        journal.commit(change(0, 50)).unwrap();
    }
    assert!(journal.fill().0 > 850);
    // In the middle of the checkpoint another transaction becomes durable.
    let (armed, other) = (AtomicBool::new(true), Arc::downgrade(&journal));
    disk.on_request(move |op, offset, _| {
        if op == "write" && offset >= block(0).byte() && armed.swap(false, Ordering::SeqCst) {
            let journal = other.upgrade().unwrap();
            journal.commit(bump(&journal, 299)).unwrap();
        }
    });
    journal.checkpoint_durable().unwrap();
    let used = journal.fill().0;
    assert!(used > 0 && used < 10, "the tail stands at the transaction in between: {used}");
    let before = disk.event_count();
    for n in 0..4 {
        change(n * 50, 50);
    }
    journal.commit(journal.running()).unwrap();
    let events = disk.events();
    let flush = before + events[before..].iter().position(|e| matches!(e, Event::Flush)).unwrap();
    // A copy of the header may be torn, too, or not be readable just now.
    for (seed, copy) in (0..40).flat_map(|seed| (0..3).map(move |copy| (seed, copy))) {
        let crashed = history.crash_at(&events, flush, Unflushed::Subset(seed));
        if copy < 2 {
            crashed.damage(extent().0.plus(copy).byte(), &[0; 4096]);
        }
        let store = Store::new(crashed, FORMAT, geometry(), 1 << 20);
        replay(&store, extent(), SLOT, &mut DeviceSink::new(&store, Duration::ZERO)).unwrap();
        let found = value(&store.read(block(299), BlockKind::Inode, cover(299)).unwrap());
        assert_eq!(found, 1, "seed {seed}, without copy {copy}: an acknowledged change is gone");
    }
}

/// Data that a transaction refers to is durable before the transaction is, wherever power is cut; data
/// of an overwrite need not be, and costs no flush of its own.
#[test]
fn a_transaction_does_not_overtake_the_data_it_refers_to() {
    const ROUNDS: u64 = 6;
    let disk = disk(1);
    let history = disk.record();
    let (store, journal) = open_with(&disk, by_hand());
    // Far behind the blocks of the test.
    let place = |round: u64| block(500 + round);
    for round in 1..=ROUNDS {
        store.write_data(place(round), &[round as u8; 4096]).unwrap();
        journal.commit(bump(&journal, 0)).unwrap();
    }
    let events = disk.events();
    for at in 0..=events.len() {
        for seed in 0..8 {
            for how in [Unflushed::Kept, Unflushed::Torn(seed), Unflushed::Subset(seed)] {
                let crashed = history.crash_at(&events, at, how);
                let after = Store::new(crashed, FORMAT, geometry(), 1 << 20);
                replay(&after, extent(), SLOT, &mut DeviceSink::new(&after, Duration::ZERO)).unwrap();
                let committed = value(&after.read(block(0), BlockKind::Inode, cover(0)).unwrap());
                for round in 1..=committed {
                    let mut data = [0; 4096];
                    after.read_data(place(round), &mut data).unwrap();
                    assert_eq!(
                        data, [round as u8; 4096],
                        "cut at {at}, {how:?}: round {round} of {committed}"
                    );
                }
            }
        }
    }
    let flushes = |from: usize| disk.events()[from..].iter().filter(|e| matches!(e, Event::Flush)).count();
    let before = disk.event_count();
    store.overwrite_data(place(1), &[99; 4096]).unwrap();
    journal.commit(bump(&journal, 0)).unwrap();
    assert_eq!(flushes(before), 1);
    store.write_data(place(1), &[98; 4096]).unwrap();
    journal.commit(bump(&journal, 0)).unwrap();
    assert_eq!(flushes(before), 3);
}

/// A block that cannot be read becomes what the journal has, if there is nobody else who might read it; one that can
/// be read a little later is compared with what stands there.
#[test]
fn an_unreadable_block_is_written_by_the_last_who_could() {
    let begin = || {
        let disk = disk(3);
        let (_, journal) = open_with(&disk, by_hand());
        for n in 0..3 {
            bump(&journal, n);
        }
        journal.commit(journal.running()).unwrap();
        drop(journal);
        disk
    };
    let run = |disk: &Arc<SimDisk>, last: bool| {
        let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
        let sink = DeviceSink::new(&store, Duration::ZERO);
        let mut sink = if last { sink.last_resort(Duration::ZERO) } else { sink };
        let done = replay(&store, extent(), SLOT, &mut sink);
        store.halt().check().unwrap();
        done
    };
    let bad = block(1).byte();
    let disk = begin();
    let mut written = false;
    disk.fail_when(move |op, offset, length| {
        let hit = (offset..offset + length as u64).contains(&bad);
        written |= hit && op == "write";
        hit && op == "read" && !written
    });
    assert!(matches!(run(&disk, false), Err(Error::Io { .. })), "another host may be able to");
    assert_eq!(run(&disk, true).unwrap().torn, 1);
    crash_and_expect(&disk, 3, 1);

    // Meanwhile another host has changed it.
    let disk = begin();
    let mut newer = Block::init(FORMAT, block(1), BlockKind::Inode, block(1).0, cover(1), Version(9));
    newer.body_mut()[..8].copy_from_slice(&7u64.to_le_bytes());
    newer.seal();
    disk.write(bad, &newer.0).unwrap();
    let begun = Instant::now();
    disk.fail_when(move |op, offset, _| {
        op == "read" && offset == bad && begun.elapsed() < Duration::from_millis(500)
    });
    assert_eq!(run(&disk, true).unwrap().torn, 0);
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    assert_eq!(
        value(&store.read(block(1), BlockKind::Inode, cover(1)).unwrap()),
        7,
        "the newer one was lost"
    );

    // It is the device that cannot be read.
    let disk = begin();
    disk.fail_when(|op, offset, _| op == "read" && offset >= extent().0.byte());
    assert!(matches!(run(&disk, true), Err(Error::Io { .. })));
}

/// A stripe of the device is out of reach for some seconds: what lies there is not given up.
#[test]
fn a_part_of_the_device_that_is_away_for_a_while_loses_nothing() {
    const STRIPE: u64 = 64 << 10;
    for leg in 0..2 {
        let disk = disk(3);
        let (_, journal) = open_with(&disk, by_hand());
        for n in 0..40 {
            let txn = bump(&journal, n % 3);
            journal.commit(txn).unwrap();
        }
        drop(journal);
        let away = Arc::new(AtomicBool::new(true));
        let is_away = away.clone();
        let header = extent().0.byte() / STRIPE % 2;
        disk.fail_when(move |op, offset, length| {
            let stripes = offset / STRIPE..(offset + length as u64).div_ceil(STRIPE);
            // The header's leg is there; of the other one a part, or all.
            let hit = stripes.into_iter().any(|stripe| stripe % 2 != header && stripe / 2 % 2 >= leg);
            op == "read" && hit && is_away.load(Ordering::Relaxed)
        });
        let run = || {
            let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
            let mut sink = DeviceSink::new(&store, Duration::ZERO).last_resort(Duration::ZERO);
            replay(&store, extent(), SLOT, &mut sink).map(|report| report.txns)
        };
        let first = run();
        assert!(matches!(first, Err(Error::Device(_) | Error::Io { .. })), "leg {leg}: {first:?}");
        away.store(false, Ordering::Relaxed);
        assert_eq!(run(), Ok(40), "leg {leg}");
    }
}

/// Where the next transaction would be nothing has to be readable; one that another follows was committed, and is missed.
#[test]
fn an_unreadable_end_of_the_log_is_its_end() {
    let begin = || {
        let disk = disk(3);
        let (_, journal) = open_with(&disk, by_hand());
        for n in 0..3 {
            let txn = bump(&journal, n);
            journal.commit(txn).unwrap();
        }
        (disk, journal.fill().0 / 3)
    };
    let run = |disk: &Arc<SimDisk>, at: u64, last: bool| {
        let bad = extent().0.plus(2 + at).byte();
        disk.fail_when(move |op, offset, length| {
            op == "read" && (offset..offset + length as u64).contains(&bad)
        });
        let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
        let sink = DeviceSink::new(&store, Duration::ZERO);
        let mut sink = if last { sink.last_resort(Duration::ZERO) } else { sink };
        let done = replay(&store, extent(), SLOT, &mut sink);
        done.map(|report| {
            assert!(report.lost.iter().any(|what| what.contains("is lost")), "it is not told: {report:?}");
            report.txns
        })
    };
    let (disk, each) = begin();
    assert!(
        matches!(run(&disk, 3 * each, false), Err(Error::Io { .. })),
        "another host may be able to read it"
    );
    assert_eq!(run(&disk, 3 * each, true), Ok(3));
    let (disk, each) = begin();
    assert_eq!(run(&disk, 2 * each, true), Ok(2), "as if it had been cut short");
    let (disk, each) = begin();
    assert!(matches!(run(&disk, each, true), Err(Error::Corrupt { .. })), "the third tells of it");
}
