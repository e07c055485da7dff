//! A part of the device cannot be read for seconds while a journal is replayed, and can be afterwards: nothing of what
//! was committed may be taken for lost meanwhile.

mod common;

use common::journal_rig::*;
use common::simdisk::SimDisk;
use shoal::base::{Error, Version};
use shoal::device::BlockDevice;
use shoal::format::{Block, BlockKind};
use shoal::journal::{DeviceSink, ReplayReport, replay};
use shoal::store::Store;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One leg of the volume is away for so long; longer than what was once enough to be taken for lost.
const OUTAGE: Duration = Duration::from_secs(3);
/// So long single blocks must be unreadable at least.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Of the other leg; the journal's header is on the first one.
const STRIPE: u64 = 64 << 10;

/// The only mount there is replays.
fn run(disk: &Arc<SimDisk>) -> Result<ReplayReport, Error> {
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    let done = replay(
        &store,
        extent(),
        SLOT,
        &mut DeviceSink::new(&store, Duration::ZERO).last_resort(Duration::ZERO),
    );
    store.halt().check().unwrap();
    done
}

/// Reads of every second stripe fail from the first on that does, for so long.
fn lose_a_leg(disk: &Arc<SimDisk>) {
    let mut since = None;
    disk.fail_when(move |op, offset, length| {
        if op != "read" {
            return false;
        }
        let stripe = |at: u64| at.wrapping_sub(extent().0.byte()) / STRIPE % 2;
        let hit = stripe(offset) == 1 || stripe(offset + length as u64 - 1) == 1 || length as u64 > STRIPE;
        hit && since.get_or_insert_with(Instant::now).elapsed() < OUTAGE
    });
}

/// Reads of these blocks of the ring fail for ever.
fn lose_ring_blocks(disk: &Arc<SimDisk>, lost: &[u64]) {
    let lost: Vec<u64> = lost.iter().map(|at| extent().0.plus(2 + at).byte()).collect();
    disk.fail_when(move |op, offset, length| {
        op == "read" && lost.iter().any(|at| (offset..offset + length as u64).contains(at))
    });
}

/// Transactions of one block each, all durable; how many blocks each has in the ring.
fn small(count: u64) -> (Arc<SimDisk>, u64) {
    let disk = disk(count);
    let (_, journal) = open_with(&disk, by_hand());
    for n in 0..count {
        journal.commit(bump(&journal, n)).unwrap();
    }
    (disk, journal.fill().0 / count)
}

/// So many blocks changed by one durable transaction.
fn large(disk: &Arc<SimDisk>, count: u64) -> Arc<shoal::journal::Journal> {
    let (_, journal) = open_with(disk, by_hand());
    let mut handle = journal.begin(count as u32).unwrap();
    for n in 0..count {
        handle.modify(block(n), BlockKind::Inode, cover(n), &mut fill_one).unwrap();
    }
    journal.commit(handle.finish()).unwrap();
    journal
}

/// After an attempt in the middle of an outage another one, behind it, finds everything.
fn expect_all_at_the_second_attempt(disk: &Arc<SimDisk>, count: u64) {
    let begun = Instant::now();
    let first = run(disk);
    assert!(matches!(&first, Err(Error::Io { .. })), "it gave something up: {first:?}");
    let told = first.unwrap_err().to_string();
    assert!(told.contains("out of reach") && told.contains("try again"), "{told}");
    std::thread::sleep((OUTAGE + Duration::from_millis(100)).saturating_sub(begun.elapsed()));
    run(disk).expect("all can be read");
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    for n in 0..count {
        assert_eq!(value(&store.read(block(n), BlockKind::Inode, cover(n)).unwrap()), 1, "block {n}");
    }
}

/// The first block of the last transaction is on the leg that is away.
#[test]
fn a_transaction_on_a_leg_that_is_away_is_not_the_end_of_the_log() {
    let (disk, each) = small(8);
    assert_eq!(2 + 7 * each, STRIPE / 4096, "the last one begins elsewhere");
    lose_a_leg(&disk);
    expect_all_at_the_second_attempt(&disk, 8);
}

/// Its first block and its commit block can be read, what lies between them cannot.
#[test]
fn a_transaction_whose_middle_is_away_was_not_cut_short() {
    let disk = disk(40);
    let used = large(&disk, 40).fill().0;
    assert!((32..48).contains(&(1 + used)), "the commit block stands elsewhere: {used}");
    lose_a_leg(&disk);
    expect_all_at_the_second_attempt(&disk, 40);
}

/// A block of a stream is lost, and the commit block of the transaction behind it: that it was begun tells that the
/// first one was durable.
#[test]
fn a_lost_block_in_a_stream_that_another_follows_is_damage() {
    let disk = self::disk(40);
    let journal = large(&disk, 40);
    let first = journal.fill().0;
    journal.commit(bump(&journal, 0)).unwrap();
    lose_ring_blocks(&disk, &[20, journal.fill().0 - 1]);
    assert!(first > 30);
    assert!(matches!(run(&disk), Err(Error::Corrupt { .. })));

    // Without the other it need not have been durable, and keeps nobody from mounting.
    let disk = self::disk(40);
    large(&disk, 40);
    lose_ring_blocks(&disk, &[20]);
    assert_eq!(run(&disk).unwrap().txns, 0);
}

/// The one behind a lost one is lost as well, and the one behind that tells of both.
#[test]
fn two_lost_transactions_that_another_follows_are_damage() {
    let (disk, each) = small(4);
    lose_ring_blocks(&disk, &[each, 2 * each]);
    assert!(matches!(run(&disk), Err(Error::Corrupt { .. })));
}

/// What was given up can be read again before the journal is emptied.
#[test]
fn what_was_given_up_too_soon_is_found_before_the_journal_is_emptied() {
    let (disk, each) = small(3);
    let bad = extent().0.plus(2 + 2 * each).byte();
    let mut back = false;
    disk.fail_when(move |op, offset, length| {
        back |= op == "write";
        op == "read" && !back && (offset..offset + length as u64).contains(&bad)
    });
    assert!(matches!(run(&disk), Err(Error::Io { .. })));
    assert_eq!(run(&disk).unwrap().txns, 3);
    crash_and_expect(&disk, 3, 1);
}

/// Block 1 as another host has left it, newer than what the journal has.
fn newer(disk: &Arc<SimDisk>) {
    let mut newer = Block::init(FORMAT, block(1), BlockKind::Inode, block(1).0, cover(1), Version(9));
    newer.body_mut()[..8].copy_from_slice(&7u64.to_le_bytes());
    newer.seal();
    disk.write(block(1).byte(), &newer.0).unwrap();
}

fn expect_newer(disk: &Arc<SimDisk>) {
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    let found = store.read(block(1), BlockKind::Inode, cover(1)).unwrap();
    assert_eq!(value(&found), 7, "an older image was written over a newer one");
}

/// A newer block is on a leg that is away.
#[test]
fn a_newer_block_on_a_leg_that_is_away_stays() {
    let (disk, _) = small(3);
    newer(&disk);
    let (away, mut since) = (block(1).byte() - STRIPE / 2..block(1).byte() + STRIPE / 2, None);
    disk.fail_when(move |op, offset, length| {
        let hit = offset < away.end && offset + length as u64 > away.start;
        op == "read" && hit && since.get_or_insert_with(Instant::now).elapsed() < OUTAGE
    });
    let first = run(&disk);
    expect_newer(&disk.snapshot());
    assert!(matches!(first, Err(Error::Io { .. })), "{first:?}");
    std::thread::sleep(OUTAGE);
    assert_eq!(run(&disk).unwrap().torn, 0);
    expect_newer(&disk);
}

/// A newer block comes back in the very last moment before it would be written over.
#[test]
fn a_block_is_read_once_more_right_before_it_is_written_over() {
    let (disk, _) = small(3);
    newer(&disk);
    let (bad, mut since, mut back) = (block(1).byte(), None::<Instant>, false);
    disk.fail_when(move |op, offset, length| {
        if op != "read" {
            return false;
        }
        if !(offset..offset + length as u64).contains(&bad) {
            back |= since.is_some_and(|since| since.elapsed() >= LOST_AFTER);
            return false;
        }
        since.get_or_insert_with(Instant::now);
        !back
    });
    assert_eq!(run(&disk).unwrap().torn, 0);
    expect_newer(&disk);
}
