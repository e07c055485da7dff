//! Cases that the model does not reach, or not often enough.

use super::super::*;
use super::disk::*;
use crate::base::{AgNo, BlockNo, Error};
use crate::format::extent::{Extent, FILE_BLOCKS_MAX};
use crate::inode::{Attr, INLINE_MAX, ItemKey, ItemKind};
use crate::txn::BlockRun;
use crate::txn::memory::MemoryTxn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

pub const ALL: TakeLimit =
    TakeLimit { bytes: FLUSH_IO_BYTES, new_blocks: u64::MAX, changes: 64, mark: FlushMark::ALL };

pub struct Host {
    disk: Disk,
    pub meta: MemoryTxn,
    pub attr: Attr,
    pool: Arc<PagePool>,
    pub file: FileState,
    pub next: BlockNo,
    /// Blocks left free behind each run.
    gap: u64,
}

impl Host {
    pub fn new() -> Host {
        let (meta, attr) = empty_file();
        let pool = PagePool::new(1 << 30);
        let file = FileState::new_empty(tree(), &geometry(), pool.clone());
        Host { disk: Disk::default(), meta, attr, pool, file, next: geometry().ag_start(AgNo(1)), gap: 0 }
    }

    pub fn write(&mut self, off: u64, data: &[u8]) {
        let plan = self.file.plan_write(&self.meta, off, data.len() as u64).unwrap();
        self.file.write(plan, &self.disk, &self.meta, data).unwrap();
    }

    pub fn take(&mut self, limit: TakeLimit) -> FlushBatch {
        let mut batch = self.file.flush_take(&self.meta, limit).unwrap().expect("something is dirty");
        let run = BlockRun { start: self.next, blocks: batch.blocks_wanted() };
        self.next = self.next.plus(run.blocks + self.gap);
        self.file.flush_place(&mut batch, &[run]);
        batch
    }

    pub fn finish(&mut self, batch: FlushBatch) {
        batch.write_data(&self.pool, &self.disk).unwrap();
        self.file.flush_apply(&batch, &mut self.meta, &mut self.attr).unwrap();
        self.file.flush_done(batch);
    }

    pub fn flush(&mut self) {
        while self.file.is_dirty() {
            let batch = self.take(ALL);
            self.finish(batch);
        }
    }

    pub fn reload(&mut self) {
        let size = tree().read_attr(&self.meta).unwrap().size;
        self.file = FileState::load(&self.meta, tree(), &geometry(), self.pool.clone(), size).unwrap();
    }

    pub fn read(&self, off: u64, len: usize) -> Vec<u8> {
        self.file
            .plan_read(&self.meta, off, len)
            .unwrap()
            .read(self.file.pages.pool(), &self.disk)
            .unwrap()
            .to_vec()
    }

    fn extents(&self) -> Vec<Span> {
        let spans = Extents::new(tree(), &geometry()).map(&self.meta, 0..FILE_BLOCKS_MAX).unwrap();
        spans.into_iter().filter(|s| s.backing != Backing::Hole).collect()
    }
}

#[test]
fn the_size_follows_the_data() {
    let mut host = Host::new();
    host.write(0, &[1; 40_000]);
    let batch = host.take(TakeLimit { bytes: 3 * PAGE, ..ALL });
    host.finish(batch);
    assert_eq!((host.attr.size, host.file.disk_size(), host.file.size()), (3 * PAGE, 3 * PAGE, 40_000));
    let batch = host.take(ALL);
    host.write(40_000, &[2; 10]);
    host.finish(batch);
    assert_eq!((host.attr.size, host.file.size()), (40_000, 40_010));
}

#[test]
fn nothing_overtakes_the_page_that_growth_waits_for() {
    // 100 bytes lie in the inode, 6000 end in a block with an old tail.
    for size in [100, 6000] {
        let mut host = Host::new();
        host.write(0, &vec![1; size]);
        host.flush();
        host.write(20_000, &[2; 20_000]);
        let one = TakeLimit { bytes: PAGE, ..ALL };
        let first = host.take(one);
        assert!(host.file.flush_take(&host.meta, ALL).unwrap().is_none());
        host.file.flush_failed(first);
        let first = host.take(one);
        host.finish(first);
        let (second, third) = (host.take(one), host.take(one));
        host.finish(third);
        host.finish(second);
        host.flush();
        host.reload();
        let bytes = host.read(0, 50_000);
        assert_eq!((&bytes[..size], &bytes[20_000..]), (&vec![1; size][..], &[2; 20_000][..]));
        assert!(bytes[size..20_000].iter().all(|b| *b == 0));
    }
}

#[test]
fn a_stream_is_one_extent_and_few_writes() {
    let mut host = Host::new();
    for i in 0..16 {
        host.write(i << 20, &vec![i as u8 + 1; 1 << 20]);
    }
    host.flush();
    assert_eq!(*host.disk.writes.lock(), [FLUSH_IO_BYTES; 4]);
    assert_eq!(host.extents().len(), 1);
    host.write(8 << 20, &vec![99; 4 << 20]);
    let batch = host.take(ALL);
    assert!(!batch.needs_txn() && batch.space().is_zero());
    batch.write_data(&host.pool, &host.disk).unwrap();
    host.file.flush_done(batch);
    assert!(!host.file.is_dirty());
    host.reload();
    assert_eq!(host.read(8 << 20, 4 << 20), vec![99; 4 << 20]);
    assert_eq!(host.read((16 << 20) - 1, 10), [16]);
}

#[test]
fn small_files_live_in_their_inode() {
    let mut host = Host::new();
    host.write(0, &[7; INLINE_MAX]);
    host.flush();
    assert!(host.disk.writes.lock().is_empty() && host.extents().is_empty());
    assert_eq!((host.attr.blocks, host.attr.size), (0, INLINE_MAX as u64));
    host.reload();
    assert_eq!(host.read(0, 5000), vec![7; INLINE_MAX]);
    host.write(5000, b"x");
    host.flush();
    assert_eq!((host.attr.blocks, host.attr.size), (2, 5001));
    let inline = ItemKey { kind: ItemKind::Inline, id: 0 };
    assert_eq!(tree().get(&host.meta, inline).unwrap(), None);
    host.reload();
    let bytes = host.read(0, 9999);
    assert_eq!((&bytes[..INLINE_MAX], bytes[INLINE_MAX], bytes[5000]), (&[7; INLINE_MAX][..], 0, b'x'));
}

#[test]
fn the_far_end_of_the_largest_file() {
    let mut host = Host::new();
    host.write(FILE_SIZE_MAX - 5, b"the e");
    assert!(matches!(host.file.plan_write(&host.meta, FILE_SIZE_MAX - 4, 5), Err(Error::FileTooLarge)));
    assert!(matches!(host.file.plan_write(&host.meta, u64::MAX, 5), Err(Error::FileTooLarge)));
    assert!(matches!(host.file.plan_grow(&host.meta, FILE_SIZE_MAX + 1), Err(Error::FileTooLarge)));
    host.flush();
    host.reload();
    assert_eq!(host.file.size(), FILE_SIZE_MAX);
    assert_eq!(host.read(FILE_SIZE_MAX - 7, 100), b"\0\0the e");
    assert_eq!(host.file.seek_data(&host.meta, 0), Ok((FILE_SIZE_MAX - 5) / PAGE * PAGE));
    assert_eq!(host.attr.blocks, 1);
    let edges = host.file.edges(&host.meta, 0, u64::MAX).unwrap();
    let all = StepLimit::within(16);
    assert!(edges.is_empty(), "{edges:?}");
    let step = host.file.punch_apply(&mut host.meta, &mut host.attr, (0, u64::MAX), all).unwrap();
    host.file.punch_done(&step);
    assert_eq!((host.attr.blocks, step.more), (0, false));
    assert_eq!(host.file.seek_data(&host.meta, 0), Err(Error::NoData));
}

#[test]
fn scattered_writes_stay_inside_their_reservation() {
    let mut host = Host::new();
    host.gap = 1;
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..60 {
        let mut held = host.file.space_want();
        for _ in 0..64 {
            let page = rng.random_range(0..40_000u64) * 2;
            let plan = host.file.plan_write(&host.meta, page * PAGE, 1).unwrap();
            (held.data, held.meta) = (held.data + plan.need.data, held.meta + plan.need.meta);
            host.file.write(plan, &host.disk, &host.meta, &[round as u8 + 1]).unwrap();
        }
        assert!(host.file.space_want().beyond(held).is_zero());
        while host.file.is_dirty() {
            let batch = host.take(TakeLimit { changes: 40, ..ALL });
            let (space, before) = (batch.space(), host.meta.next);
            assert!(space.meta <= held.meta, "{space:?} out of {held:?}");
            host.finish(batch);
            assert!(host.meta.next - before <= space.meta.into());
        }
        assert!(host.file.space_want().is_zero());
    }
    assert!(host.extents().len() > 3000);
    let before = host.meta.in_use();
    let mut steps = 0;
    while host.file.truncate_apply(&mut host.meta, &mut host.attr, 1, StepLimit::within(100)).unwrap()
        == Progress::More
    {
        host.file.truncate_done(1, Progress::More);
        assert_eq!((host.attr.size, host.attr.truncating), (1, Some(1)));
        steps += 1;
    }
    host.file.truncate_done(1, Progress::Done);
    assert!(steps > 100 && before > 20 && host.meta.in_use() <= 2, "{steps} steps, {before} pages");
    assert!(host.attr.blocks <= 1 && host.attr.truncating.is_none());
}

#[test]
fn every_write_may_split_a_full_leaf() {
    let mut host = Host::new();
    host.gap = 1;
    for page in 0..4000 {
        host.write(page * 4 * PAGE, &[1]);
        if page % 500 == 499 {
            host.flush();
        }
    }
    for page in 0..60 {
        host.write((page * 4 * 64 + 2) * PAGE, &[2]);
    }
    let (held, before) = (host.file.space_want(), host.meta.next);
    let batch = host.take(ALL);
    let space = batch.space();
    assert!((space.data, space.meta) == (60, held.meta), "{space:?} out of {held:?}");
    host.finish(batch);
    let grown = host.meta.next - before;
    assert!(grown > 20 && grown <= space.meta.into(), "{grown} new pages");
}

#[test]
fn a_huge_extent_is_freed_in_parts() {
    let mut host = Host::new();
    let blocks = 60_000;
    let plan = host.file.plan_allocate(&host.meta, (0, blocks * PAGE), 1, u64::MAX).unwrap();
    let run = BlockRun { start: host.next, blocks };
    host.file.allocate_apply(&plan, &[run], &mut host.meta, &mut host.attr).unwrap();
    host.file.allocate_done(plan);
    assert_eq!((host.attr.blocks, host.file.size()), (blocks, 0));
    let limit = StepLimit::within(16);
    assert!(limit.blocks < blocks / 3);
    let mut steps = 0;
    loop {
        let done = host.file.truncate_apply(&mut host.meta, &mut host.attr, 0, limit).unwrap();
        host.file.truncate_done(0, done);
        steps += 1;
        if done == Progress::Done {
            break;
        }
    }
    assert!(steps > 3 && host.attr.blocks == 0);
    let freed: u64 = host.meta.freed_data.iter().map(|r| r.blocks).sum();
    assert_eq!(freed, blocks);
}

#[test]
fn damaged_extents_are_refused() {
    let extent = Extent {
        logical: 5,
        physical: geometry().ag_start(AgNo(1)),
        blocks: 3,
        unwritten: false,
        shared: false,
    };
    let filed = |id: u64, extent: Extent| {
        let (mut meta, _) = empty_file();
        let key = ItemKey { kind: ItemKind::Extent, id };
        tree().insert(&mut meta, key, &extent.encode()).unwrap();
        let extents = Extents::new(tree(), &geometry());
        (extents.map(&meta, 0..10), extents.insert(&mut meta, Extent { logical: 6, ..extent }))
    };
    let damaged = |result: Result<_>| matches!(result, Err(Error::Damaged { inode: INO, .. }));
    let (map, overlapping) = filed(5, extent);
    assert!(map.is_ok() && damaged(overlapping.map(|()| Vec::new())));
    assert!(damaged(filed(4, extent).0));
    assert!(damaged(filed(5, Extent { physical: BlockNo(0), ..extent }).0));
    assert!(damaged(filed(5, Extent { physical: BlockNo(geometry().total_blocks - 1), ..extent }).0));
    assert!(matches!(filed(5, Extent { shared: true, ..extent }).0, Err(Error::Unsupported(_))));
}

#[test]
fn abandoning_forgets_what_was_not_flushed() {
    let mut host = Host::new();
    host.write(0, &[1; 9000]);
    host.flush();
    host.write(3, &[2; 20_000]);
    host.file.abandon();
    assert!(!host.file.is_dirty() && host.pool.dirty_bytes() == 0);
    assert_eq!(host.read(0, 10_000), vec![1; 9000]);
}

/// While one flush goes on, as much is written as it writes, before and behind.
#[test]
fn a_flush_ends_with_what_was_dirty_when_it_began() {
    for whole in [false, true] {
        let mut host = Host::new();
        host.write(0, &vec![1; 64 * PAGE as usize]);
        if whole {
            // Blocks that are written change nothing: any page may be left out.
            host.flush();
            host.write(32 * PAGE, &vec![1; 32 * PAGE as usize]);
        }
        let mark = host.file.flush_mark();
        let limit = TakeLimit { bytes: 8 * PAGE, mark, ..ALL };
        let mut batches = 0;
        while host.file.lacks(mark) {
            assert!(batches < 20, "it does not end");
            let batch = host.take(limit);
            host.write(0, &vec![2; 8 * PAGE as usize]);
            host.write((64 + batches * 8) * PAGE, &vec![3; 8 * PAGE as usize]);
            host.finish(batch);
            batches += 1;
        }
        assert!(batches >= 4 && host.file.is_dirty() && host.attr.size >= 64 * PAGE, "{batches}");
        host.flush();
        host.reload();
        let bytes = host.read(8 * PAGE, 56 * PAGE as usize);
        assert_eq!(bytes, vec![1; 56 * PAGE as usize]);
    }
}

/// A page that is changed again on its way is as old as that change.
#[test]
fn what_was_changed_on_its_way_is_flushed_again_for_a_later_mark() {
    let mut host = Host::new();
    host.write(0, &[1; 8192]);
    let first = host.file.flush_mark();
    let batch = host.take(ALL);
    host.write(0, &[2; 4096]);
    let second = host.file.flush_mark();
    host.write(0, &[3; 4096]);
    host.finish(batch);
    assert!(!host.file.lacks(first) && host.file.lacks(second));
    let batch = host.take(TakeLimit { mark: second, ..ALL });
    host.finish(batch);
    assert!(!host.file.lacks(second) && !host.file.is_dirty());
}

/// Made long at first, and then written all the time.
#[test]
fn the_size_is_flushed_while_its_file_is_written_all_the_time() {
    let mut host = Host::new();
    host.write(0, &[1; 5000]);
    let plan = host.file.plan_grow(&host.meta, 1 << 20).unwrap();
    host.file.write(plan, &host.disk, &host.meta, &[]).unwrap();
    let mark = host.file.flush_mark();
    host.write(40_000, &[2; 5000]);
    let batch = host.take(TakeLimit { mark, ..ALL });
    host.finish(batch);
    assert!(host.file.lacks(mark) && host.attr.size < 1 << 20);
    let batch = host.take(TakeLimit { mark, ..ALL });
    assert_eq!(batch.bytes(), 0);
    host.finish(batch);
    assert!(!host.file.lacks(mark) && host.file.is_dirty());
    assert_eq!(host.attr.size, 1 << 20);
}

#[test]
fn what_has_bytes_has_sectors() {
    let mut host = Host::new();
    assert_eq!(host.file.blocks_on_top(), (0, 0));
    host.write(0, &[1; 1300]);
    assert_eq!(host.file.blocks_on_top(), (0, 3));
    let batch = host.take(ALL);
    assert_eq!(host.file.blocks_on_top(), (0, 3));
    host.finish(batch);
    host.reload();
    assert_eq!((host.file.blocks_on_top(), host.attr.blocks), ((0, 3), 0));
    host.write(1300, &[1; 5000]);
    assert_eq!(host.file.blocks_on_top(), (2, 0));
    let batch = host.take(ALL);
    assert_eq!((host.file.blocks_on_top(), host.attr.blocks), ((2, 0), 0), "on its way");
    host.write(4096, &[2; 10]);
    host.finish(batch);
    assert_eq!((host.file.blocks_on_top(), host.attr.blocks), ((0, 0), 2), "its block is there");
    let mut hole = Host::new();
    let plan = hole.file.plan_grow(&hole.meta, 3000).unwrap();
    hole.file.write(plan, &hole.disk, &hole.meta, &[]).unwrap();
    assert_eq!(hole.file.blocks_on_top(), (0, 0));
}
