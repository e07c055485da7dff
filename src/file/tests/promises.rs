//! What is counted for dirty data lasts until the last of it is on the disk.

use super::cases::{ALL, Host};
use crate::base::BlockNo;
use crate::file::{PAGE, TakeLimit};
use crate::txn::BlockRun;

/// Scattered blocks make an extent of each page. What other runs were promised is theirs all the same.
#[test]
fn scattered_blocks_take_nothing_from_other_runs() {
    let mut host = Host::new();
    host.write(0, &[1; 40 * PAGE as usize]);
    for far in 1..10 {
        host.write(far * 1000 * PAGE, &[2; 10]);
    }
    let (held, one) = (host.file.space_want(), TakeLimit { changes: 1, ..ALL });
    let mut batch = host.file.flush_take(&host.meta, one).unwrap().unwrap();
    let scattered: Vec<BlockRun> =
        (0..40).map(|n| BlockRun { start: BlockNo(host.next.0 + 2 * n), blocks: 1 }).collect();
    host.next = BlockNo(host.next.0 + 100);
    host.file.flush_place(&mut batch, &scattered);
    let space = batch.space();
    assert!(space.data == 40 && space.meta < 10, "{space:?} of {held:?}");
    host.finish(batch);
    // Nine runs of one page each.
    assert_eq!(host.file.space_want().data, 9);
    assert_eq!(host.file.space_want().meta, 4 + 10);
    host.flush();
    assert!(host.file.space_want().is_zero());
}

/// A long run goes out in many flushes: what it was promised counts for it until its end.
#[test]
fn a_long_run_is_counted_until_its_end() {
    let mut host = Host::new();
    host.write(0, &[1; 64 * PAGE as usize]);
    for far in 1..4 {
        host.write(far * 1000 * PAGE, &[2; 10]);
    }
    for _ in 0..7 {
        let batch = host.take(TakeLimit { bytes: 8 * PAGE, ..ALL });
        host.finish(batch);
        assert_eq!(host.file.space_want().meta, 4 + 4 + host.file.space_want().data.div_ceil(32) as u32);
    }
    let batch = host.take(TakeLimit { bytes: 8 * PAGE, ..ALL });
    host.finish(batch);
    assert_eq!((host.file.space_want().data, host.file.space_want().meta), (3, 4 + 3 + 1));
}

/// A flush may get fewer blocks than it wants: the rest stays dirty, in order.
#[test]
fn a_flush_that_gets_fewer_blocks_leaves_the_rest() {
    let mut host = Host::new();
    host.write(0, &[1; 10 * PAGE as usize]);
    host.write(20 * PAGE, &[2; 10 * PAGE as usize]);
    let mut batch = host.file.flush_take(&host.meta, ALL).unwrap().unwrap();
    assert_eq!(batch.blocks_wanted(), 20);
    let run = BlockRun { start: host.next, blocks: 13 };
    host.next = host.next.plus(13);
    host.file.flush_place(&mut batch, &[run]);
    assert_eq!((batch.blocks_wanted(), batch.bytes()), (0, 13 * PAGE));
    host.finish(batch);
    assert_eq!((host.attr.size, host.file.size()), (23 * PAGE, 30 * PAGE));
    assert_eq!(host.file.space_want().data, 7);
    host.flush();
    host.reload();
    assert_eq!(host.read(0, 30 << 12)[..10 << 12], vec![1; 10 << 12]);
    assert_eq!(host.read(20 * PAGE, 10 << 12), vec![2; 10 << 12]);
}

/// So may a preallocation.
#[test]
fn a_preallocation_that_gets_fewer_blocks_goes_on_from_there() {
    let mut host = Host::new();
    host.write(4 * PAGE, &[1; PAGE as usize]);
    host.flush();
    for (blocks, data, rest) in [(2, 2, 2), (4, 4, 5), (5, 5, 6), (9, 9, 10)] {
        let range = (0, 10 * PAGE);
        let mut plan = host.file.plan_allocate(&host.meta, range, 9, 100).unwrap();
        assert_eq!((plan.space().data, plan.rest), (9, None));
        plan.cut(blocks, range);
        let left = (rest < 10).then_some((rest * PAGE, (10 - rest) * PAGE));
        assert_eq!((plan.space().data, plan.rest), (data, left), "{blocks} blocks");
    }
}

/// The bytes of a small file may push other items out of the inode.
#[test]
fn bytes_in_the_inode_may_need_a_block() {
    let mut host = Host::new();
    host.write(0, &[1; 100]);
    let held = host.file.space_want();
    let batch = host.take(ALL);
    assert!(batch.space().data == 0 && batch.space().meta > 0 && batch.space().meta <= held.meta);
    host.finish(batch);
    assert!(host.file.space_want().is_zero());
}
