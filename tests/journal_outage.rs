//! A part of the device cannot be read for seconds while a journal is replayed, and can be afterwards: nothing of what
//! was committed may be taken for lost meanwhile.

mod common;

use common::journal_rig::*;
use common::simdisk::{Event, History, SimDisk, Unflushed};
use shoal::base::{Error, Version};
use shoal::device::BlockDevice;
use shoal::format::{Block, BlockKind};
use shoal::journal::{DeviceSink, Journal, OverlaySink, ReplayReport, replay};
use shoal::store::Store;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
fn large(disk: &Arc<SimDisk>, count: u64) -> Arc<Journal> {
    let (_, journal) = open_with(disk, by_hand());
    fill(&journal, 0..count);
    journal
}

/// One durable transaction that changes all of these blocks.
fn fill(journal: &Arc<Journal>, blocks: std::ops::Range<u64>) {
    let mut handle = journal.begin((blocks.end - blocks.start) as u32).unwrap();
    for n in blocks {
        handle.modify(block(n), BlockKind::Inode, cover(n), &mut fill_one).unwrap();
    }
    journal.commit(handle.finish()).unwrap();
}

/// After an attempt in the middle of an outage another one, behind it, finds everything.
fn expect_all_at_the_second_attempt(disk: &Arc<SimDisk>, count: u64) {
    let begun = Instant::now();
    let first = run(disk);
    assert!(matches!(&first, Err(Error::Io { .. })), "it gave something up: {first:?}");
    let told = first.unwrap_err().to_string();
    assert!(told.contains("out of reach") && told.contains("try again"), "{told}");
    let leg = extent().0.0 + STRIPE / 4096;
    let numbers = told.split_once("blocks ").unwrap().1.split(", ").map_while(|n| n.parse().ok());
    let named: Vec<u64> = numbers.collect();
    assert!(named.len() == 5 && named.contains(&leg), "it does not name the blocks: {told}");
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
/// A transaction that was begun behind another one proves that one durable, though it is not whole itself: then what is
/// wrong in the former is damage, and not a power cut's.
#[test]
fn wrong_content_in_a_stream_is_damage_where_another_was_begun_behind_it() {
    let (disk, each) = small(4);
    let ring = |at: u64| extent().0.plus(2 + at).byte();
    disk.damage(ring(4 * each - 1), &[0; 4096]);
    let whole = disk.snapshot();
    assert_eq!(
        run(&whole).map(|report| (report.txns, report.lost)),
        Ok((3, Vec::new())),
        "the last was cut short"
    );
    disk.damage(ring(2 * each) + 4000, &[0x5a; 8]);
    assert!(
        matches!(run(&disk), Err(Error::Corrupt { .. })),
        "the third was durable when the last was begun"
    );
}

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

/// The second header copy's place.
fn copy_b() -> u64 {
    extent().0.plus(1).byte()
}

/// The log is full; block 1 was changed by an acknowledged transaction, and the next one was written over space that
/// the tail had left, when power is cut before its flush. Also how many events there were, and copy B as it was before
/// the tail moved.
fn wrapped() -> (History, Vec<Event>, Block) {
    let disk = disk(8);
    let (_, journal) = open_with(&disk, by_hand());
    for _ in 0..509 {
        journal.commit(bump(&journal, 0)).unwrap();
    }
    assert_eq!(journal.fill().0, 1018, "the next one does not begin at the end of the ring");
    let mut old = Block::zeroed();
    disk.read(copy_b(), &mut old.0).unwrap();
    let history = disk.record();
    // Another thread commits while the checkpoint writes in place.
    let (j, once) = (journal.clone(), AtomicBool::new(false));
    disk.on_request(move |op, offset, _| {
        if op == "write" && offset == block(0).byte() && !once.swap(true, Ordering::SeqCst) {
            j.commit(bump(&j, 1)).unwrap();
        }
    });
    journal.checkpoint_durable().unwrap();
    disk.on_request(|_, _, _| {});
    fill(&journal, 2..6);
    let mut events = disk.events();
    events.truncate(events.iter().rposition(|e| matches!(e, Event::Flush)).unwrap());
    (history, events, old)
}

fn expect_acknowledged(disk: &Arc<SimDisk>, how: &str) {
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    let got = value(&store.read(block(1), BlockKind::Inode, cover(1)).unwrap());
    assert_eq!(got, 1, "an acknowledged change is lost: {how}");
}

/// Reads of the first header copy fail, so often.
fn lose_copy_a(disk: &Arc<SimDisk>, mut times: u32) {
    disk.fail_when(move |op, offset, _| {
        let hit = op == "read" && offset == extent().0.byte() && times > 0;
        times -= u32::from(hit);
        hit
    });
}

/// The other copy may point at space that was used again, so one failed read does not give a copy up.
#[test]
fn a_header_copy_is_waited_for() {
    let (history, events, old) = wrapped();
    let disk = history.crash_at(&events, events.len(), Unflushed::Kept);
    disk.write(copy_b(), &old.0).unwrap();
    lose_copy_a(&disk, 1);
    run(&disk).unwrap();
    expect_acknowledged(&disk, "one failed read");
}

/// With nothing but an older copy left the log seems to be empty, and what stands behind its tail tells that it is not.
#[test]
fn an_older_header_copy_does_not_empty_the_log() {
    let (history, events, old) = wrapped();
    let disk = history.crash_at(&events, events.len(), Unflushed::Kept);
    disk.write(copy_b(), &old.0).unwrap();
    lose_copy_a(&disk, u32::MAX);
    assert!(matches!(run(&disk), Err(Error::Corrupt { .. })));
    disk.heal();
    run(&disk).unwrap();
    expect_acknowledged(&disk, "it was emptied");
}

/// Before space of the log is used again both header copies are durable: one is enough whatever happens to the other.
#[test]
fn both_header_copies_are_durable_before_log_space_is_used_again() {
    let (history, events, _) = wrapped();
    for seed in 0..16 {
        for copy in 0..2 {
            let disk = history.crash_at(&events, events.len(), Unflushed::Subset(seed));
            disk.damage(extent().0.plus(copy).byte(), &[0; 4096]);
            run(&disk).unwrap();
            expect_acknowledged(&disk, &format!("copy {copy} is lost, seed {seed}"));
        }
    }
}

/// Whatever cannot be read waits side by side.
#[test]
fn waits_for_lost_blocks_do_not_add_up() {
    let (disk, each) = small(3);
    lose_ring_blocks(&disk, &[3 * each, 300, 600, 900]);
    let begun = Instant::now();
    assert_eq!(run(&disk).unwrap().txns, 3);
    let took = begun.elapsed();
    assert!((LOST_AFTER..2 * LOST_AFTER).contains(&took), "it took {took:?}");
    crash_and_expect(&disk, 3, 1);
}

/// Nothing is at stake in the log of a journal that was left empty: to open it takes no wait and needs no look around.
#[test]
fn an_empty_journal_on_bad_blocks_can_be_opened() {
    let disk = self::disk(1);
    lose_ring_blocks(&disk, &(0..32).collect::<Vec<_>>());
    let begun = Instant::now();
    let (_, journal) = open_with(&disk, by_hand());
    assert!(begun.elapsed() < LOST_AFTER, "it took {:?}", begun.elapsed());
    journal.commit(bump(&journal, 0)).unwrap();
}

/// A check that writes nothing says nothing either of what was given up too soon.
#[test]
fn what_was_given_up_too_soon_is_found_by_a_replay_into_memory() {
    let (disk, each) = small(3);
    let bad = extent().0.plus(2 + 2 * each).byte();
    let mut back = false;
    disk.fail_when(move |op, offset, length| {
        // The log is behind it.
        back |= offset == block(0).byte();
        op == "read" && !back && (offset..offset + length as u64).contains(&bad)
    });
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    let mut sink = OverlaySink::new(&store, Duration::ZERO);
    assert!(matches!(replay(&store, extent(), SLOT, &mut sink), Err(Error::Io { .. })));
}

/// A transaction of which a block is lost, and the commit block of the one behind it, is damage that a tolerant sink
/// hears of; what comes before it counts.
#[test]
fn a_tolerant_replay_passes_over_a_lost_block_in_a_stream() {
    let disk = self::disk(41);
    let journal = open_with(&disk, by_hand()).1;
    journal.commit(bump(&journal, 40)).unwrap();
    let first = journal.fill().0;
    fill(&journal, 0..40);
    journal.commit(bump(&journal, 40)).unwrap();
    lose_ring_blocks(&disk, &[first + 20, journal.fill().0 - 1]);
    let store = Store::new(disk.clone(), FORMAT, geometry(), 1 << 20);
    let mut sink = OverlaySink::new(&store, Duration::ZERO);
    assert!(matches!(replay(&store, extent(), SLOT, &mut sink), Err(Error::Corrupt { .. })));
    sink.tolerate_damage = true;
    let done = replay(&store, extent(), SLOT, &mut sink).unwrap();
    assert_eq!((done.txns, done.damaged.len(), done.applied), (2, 1, 1));
}
