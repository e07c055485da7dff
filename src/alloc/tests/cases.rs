//! One rule each.

use super::*;
use crate::base::Error;
use crate::txn::BlockSource;

#[test]
fn what_is_finished_is_used_and_what_is_freed_is_free() {
    let rig = Rig::granted(2, 8);
    let before = rig.alloc.totals();
    let (inodes, runs) = rig.create(3, 700);
    let audit = rig.audit();
    assert_eq!(audit.meta, inodes.iter().map(|i| i.block()).collect());
    assert_eq!(audit.data, blocks(&runs).collect());
    assert_eq!(rig.alloc.totals().free_blocks(), before.free_blocks() - 703);
    rig.free(&inodes, &runs).unwrap();
    let audit = rig.audit();
    assert!(audit.meta.is_empty() && audit.data.is_empty());
    assert_eq!(rig.alloc.totals().free_blocks(), before.free_blocks());
    assert_eq!(rig.alloc.totals().promised, 0);
}

#[test]
fn what_is_dropped_leaves_no_trace() {
    let rig = Rig::granted(1, 12);
    let (inodes, runs) = rig.create(2, 10);
    rig.journal.checkpoint_all().unwrap();
    let counts = rig.alloc.totals();
    let dirty = rig.store.cache_counts().1;
    {
        let mut res = rig.reserve(20, 5).unwrap();
        let pending = rig.alloc.take_data(&mut res, 20, None).unwrap();
        let mut txn = rig.alloc.begin_with(res, 20, pending).unwrap();
        let (new, _) = txn.alloc_inode(inodes[0].block()).unwrap();
        let page = txn.alloc_block(BlockKind::TreePage, new, LockName::Inode(new), new.block()).unwrap();
        txn.modify(page, BlockKind::TreePage, LockName::Inode(new), &mut |b| b.body_mut()[0] = 1).unwrap();
        txn.free_block(inodes[1].block(), BlockKind::Inode, LockName::Inode(inodes[1])).unwrap();
        txn.free_block(page, BlockKind::TreePage, LockName::Inode(new)).unwrap();
        txn.free_data(runs[0]).unwrap();
    }
    assert_eq!(rig.alloc.totals(), counts);
    assert_eq!(rig.store.cache_counts().1, dirty);
    let audit = rig.audit();
    assert_eq!(audit.meta.len(), 2);
    assert_eq!(audit.data.len(), 10);
    // The inode stands as it was.
    rig.store.read(inodes[1].block(), BlockKind::Inode, LockName::Inode(inodes[1])).unwrap();
    // And its number is not given out.
    for _ in 0..10 {
        let (more, _) = rig.create(40, 0);
        assert!(!more.contains(&inodes[1]));
    }
}

#[test]
fn guards_give_back_what_they_hold() {
    let rig = Rig::granted(1, 12);
    rig.create(1, 1);
    let counts = rig.alloc.totals();
    let mut a = rig.reserve(100, 10).unwrap();
    let b = rig.reserve(50, 5).unwrap();
    assert_eq!(rig.alloc.totals().promised, 165);
    a.merge(b);
    assert_eq!((a.data(), a.meta()), (150, 15));
    let part = a.split(30, 20);
    assert_eq!((part.data(), part.meta(), a.data(), a.meta()), (30, 15, 120, 0));
    drop(part);
    a.shrink(100, 7);
    assert_eq!(rig.alloc.totals().promised, 100);
    let pending = rig.alloc.take_data(&mut a, 60, None).unwrap();
    assert_eq!((pending.blocks(), a.data()), (60, 40));
    pending.give_back(&mut a);
    assert_eq!(a.data(), 100);
    drop(rig.alloc.take_data(&mut a, 60, None).unwrap());
    assert_eq!(rig.alloc.take_data(&mut a, 41, None).err(), Some(Error::NoSpace));
    drop(a);
    let mut m = rig.reserve(0, 2).unwrap();
    let picked = rig.alloc.pick_inode(&mut m, BlockNo(0)).unwrap();
    let other = rig.alloc.pick_inode(&mut m, BlockNo(0)).unwrap();
    assert_ne!(picked.ino(), other.ino());
    let ino = picked.ino();
    let mut txn = rig.alloc.begin(m, 1).unwrap();
    let generation = txn.use_inode(picked).unwrap();
    let image = txn.read(ino.block(), BlockKind::Inode, LockName::Inode(ino)).unwrap();
    assert_eq!(image.version().0, generation.0);
    txn.finish().unwrap();
    drop(other);
    assert_eq!(rig.alloc.totals(), Counts { free_meta: counts.free_meta - 1, ..counts });
    rig.audit();
}

#[test]
fn freed_data_is_reused_when_the_free_is_durable() {
    let rig = Rig::granted(1, 8);
    let all = rig.alloc.totals().free_blocks() - CHUNK_BLOCKS;
    let (_, runs) = rig.create(0, all);
    assert_eq!(rig.reserve(1, 0).err(), Some(Error::NeedSpace));
    rig.free(&[], &runs[..1]).unwrap();
    assert_eq!(rig.reserve(1, 0).err(), Some(Error::NeedSpace), "not durable yet");
    assert!(rig.alloc.has_waiting());
    let res = rig.alloc.reserve_last(Want { data: runs[0].blocks, meta: 0, near: None }).unwrap();
    assert!(rig.journal.durable() >= rig.journal.checkpointed());
    drop(res);
    let last = rig.alloc.reserve_last(Want { data: runs[0].blocks + 1, meta: 0, near: None });
    assert_eq!(last.err(), Some(Error::NoSpace));
}

#[test]
fn freed_metadata_is_reused_when_its_tombstone_is_in_place() {
    let rig = Rig::granted(1, 6);
    // One chunk for all: 512 less the emergency share.
    let (inodes, _) = rig.create(60, 0);
    let rest = 512 - 16 - 60;
    let keep = rig.reserve(0, rest).unwrap();
    assert_eq!(rig.reserve(0, 1).err(), Some(Error::NeedSpace));
    rig.free(&inodes[..1], &[]).unwrap();
    rig.journal.commit(rig.journal.running()).unwrap();
    assert_eq!(rig.reserve(0, 1).err(), Some(Error::NeedSpace), "durable, not in place");
    rig.journal.checkpoint_all().unwrap();
    let mut raw = Block::zeroed();
    rig.device.read(inodes[0].block().byte(), &mut raw.0).unwrap();
    assert_eq!(raw.kind(), Some(BlockKind::Free));
    let res = rig.reserve(0, 1).unwrap();
    let mut txn = rig.alloc.begin(res, 1).unwrap();
    let (ino, generation) = txn.alloc_inode(inodes[0].block()).unwrap();
    assert_eq!(ino, inodes[0], "the only one");
    assert!(generation.0 > raw.version().0);
    txn.finish().unwrap();
    drop(keep);
}

#[test]
fn versions_of_a_number_grow_over_its_lives() {
    let rig = Rig::granted(1, 6);
    let (ino, _) = rig.create(1, 0);
    let cover = LockName::Inode(ino[0]);
    // Many transactions later the block's version is far ahead of the group's clock.
    for i in 0..40 {
        let mut txn = rig.alloc.begin(Reservation::empty(), 1).unwrap();
        txn.modify(ino[0].block(), BlockKind::Inode, cover, &mut |b| b.body_mut()[0] = i).unwrap();
        let id = txn.finish().unwrap();
        rig.journal.commit(id).unwrap();
    }
    let last = rig.store.read(ino[0].block(), BlockKind::Inode, cover).unwrap().version();
    assert!(last.0 > rig.audit_group(AgNo(0)).vclock);
    rig.free(&ino, &[]).unwrap();
    assert!(rig.audit_group(AgNo(0)).vclock > last.0);
    rig.journal.checkpoint_all().unwrap();
    let res = rig.reserve(0, 1).unwrap();
    let mut txn = rig.alloc.begin(res, 1).unwrap();
    let (again, generation) = txn.alloc_inode(ino[0].block()).unwrap();
    assert_eq!(again, ino[0]);
    assert!(generation.0 > last.0 + 1);
}

#[test]
fn a_number_that_somebody_still_knows_is_not_used_again() {
    let rig = Rig::granted(2, 12);
    let (inodes, _) = rig.create(2, 1);
    rig.alloc.withhold(inodes[0]);
    let mut txn = rig.alloc.begin_for_free(2).unwrap();
    for ino in &inodes {
        assert!(txn.free_block_now(ino.block(), BlockKind::Inode, LockName::Inode(*ino)).unwrap());
    }
    txn.finish().unwrap();
    rig.journal.checkpoint_all().unwrap();
    let next = || {
        rig.alloc.maintain().unwrap();
        let near = rig.geometry.ag_of(inodes[0].block());
        let mut res = rig.alloc.reserve(Want { data: 0, meta: 1, near }).unwrap();
        rig.alloc.pick_inode(&mut res, inodes[0].block()).unwrap().ino()
    };
    assert_eq!(next(), inodes[1]);
    rig.alloc.admit(inodes[0]);
    assert_eq!(next(), inodes[0]);
}

#[test]
fn the_lock_stays_while_anything_is_promised() {
    let rig = Rig::granted(2, 12);
    let (inodes, runs) = rig.create(1, 1);
    let ag = rig.geometry.ag_of(inodes[0].block()).unwrap();
    let near = Some(ag);
    let busy = |what: &str| {
        assert!(matches!(rig.alloc.ag_demote(ag), DemoteReady::Busy { .. }), "{what}");
        rig.alloc.ag_keep(ag);
    };
    let mut res = rig.alloc.reserve(Want { data: 4, meta: 2, near }).unwrap();
    assert_eq!(res.groups(), [ag]);
    busy("reservation");
    let pending = rig.alloc.take_data(&mut res, 4, None).unwrap();
    let picked = rig.alloc.pick_inode(&mut res, inodes[0].block()).unwrap();
    let rest = res.split(0, 1);
    drop(res);
    drop(rest);
    busy("pending, picked");
    drop(pending);
    busy("picked");
    drop(picked);
    let mut txn = rig.alloc.begin_for_free(1).unwrap();
    assert_eq!(rig.alloc.ag_demote(ag), DemoteReady::Ready);
    rig.alloc.ag_keep(ag);
    txn.free_data(runs[0]).unwrap();
    busy("freed into");
    // On its way out it takes no promises, but the transaction goes on.
    rig.alloc.ag_demote(ag);
    let elsewhere = rig.alloc.reserve(Want { data: 1, meta: 1, near }).unwrap();
    assert_ne!(elsewhere.groups(), [ag]);
    txn.free_block(inodes[0].block(), BlockKind::Inode, LockName::Inode(inodes[0])).unwrap();
    txn.finish().unwrap();
    assert!(rig.keeper.0.lock().is_empty());
    rig.give_up(ag);
    assert_eq!(rig.audit_group(ag).meta.len(), 0);
    drop(elsewhere);
}

#[test]
fn frees_without_the_group_are_deferred_and_done_later() {
    let rig = Rig::granted(2, 12);
    let (inodes, runs) = rig.create(2, 30);
    let ag = rig.geometry.ag_of(inodes[0].block()).unwrap();
    rig.give_up(ag);
    rig.free(&inodes, &runs).unwrap();
    let deferred = std::mem::take(&mut *rig.keeper.0.lock());
    assert_eq!(deferred.len(), 3, "{deferred:?}");
    assert_eq!(rig.audit_group(ag).meta.len(), 2, "still used");

    let mut txn = rig.alloc.begin_for_free(4).unwrap();
    assert_eq!(txn.free_deferred(&deferred[0]), Err(Error::NeedSpace));
    drop(txn);
    rig.alloc.ag_granted(ag);
    let mut txn = rig.alloc.begin_for_free(4).unwrap();
    deferred.iter().for_each(|d| txn.free_deferred(d).unwrap());
    txn.finish().unwrap();
    let audit = rig.audit_group(ag);
    assert!(audit.meta.is_empty() && audit.data.is_empty());
    let tomb = rig.store.read(inodes[0].block(), BlockKind::Free, LockName::Ag(ag)).unwrap();
    assert!(tomb.version() > deferred[0].version.unwrap());
    assert!(rig.keeper.0.lock().is_empty());
}

#[test]
fn nothing_is_freed_into_a_group_on_its_way_out() {
    let rig = Rig::granted(1, 12);
    let (inodes, runs) = rig.create(1, 3);
    assert_eq!(rig.alloc.ag_demote(AgNo(0)), DemoteReady::Ready);
    let mut txn = rig.alloc.begin_for_free(1).unwrap();
    txn.free_block(inodes[0].block(), BlockKind::Inode, LockName::Inode(inodes[0])).unwrap();
    txn.free_data(runs[0]).unwrap();
    assert_eq!(rig.alloc.ag_demote(AgNo(0)), DemoteReady::Ready, "it was promised to the other host");
    txn.finish().unwrap();
    assert_eq!(rig.keeper.0.lock().len(), 2);
    assert_eq!(rig.audit().data.len(), 3);
}

#[test]
fn frees_too_far_apart_for_one_transaction_are_deferred() {
    // 40 chunk pages: a transaction does not touch all of them.
    let rig = Rig::granted(1, 31 * 40);
    let mut res = rig.reserve(31 * 39 * 512, 0).unwrap();
    let mut kept = Vec::new();
    while res.data() > 0 {
        let pending = rig.alloc.take_data(&mut res, 31 * 512, None).unwrap();
        kept.push(pending.runs()[0]);
        let txn = rig.alloc.begin_with(Reservation::empty(), 0, pending).unwrap();
        txn.finish().unwrap();
    }
    let used = rig.audit().data.len() as u64;
    rig.free(&[], &kept).unwrap();
    let deferred = std::mem::take(&mut *rig.keeper.0.lock());
    let later: u64 = deferred.iter().map(|d| d.blocks).sum();
    let freed: u64 = kept.iter().map(|r| r.blocks).sum();
    assert!(later > 0 && later < freed, "{later} of {freed}");
    assert_eq!(rig.audit().data.len() as u64, used - freed + later);
    for d in deferred {
        let mut txn = rig.alloc.begin_for_free(1).unwrap();
        txn.free_deferred(&d).unwrap();
        txn.finish().unwrap();
    }
    while !rig.keeper.0.lock().is_empty() {
        let more = std::mem::take(&mut *rig.keeper.0.lock());
        let mut txn = rig.alloc.begin_for_free(1).unwrap();
        more.iter().for_each(|d| txn.free_deferred(d).unwrap());
        txn.finish().unwrap();
    }
    assert_eq!(rig.audit().data.len() as u64, used - freed);
}

#[test]
fn a_full_volume_can_still_free() {
    let rig = Rig::granted(2, 8);
    let mut held = Vec::new();
    while let Ok(res) = rig.reserve(64, 0) {
        held.push(res);
    }
    while let Ok(res) = rig.reserve(1, 0) {
        held.push(res);
    }
    while let Ok(res) = rig.reserve(0, 1) {
        held.push(res);
    }
    let mut txn = rig.alloc.begin_for_free(12).unwrap();
    for _ in 0..10 {
        txn.alloc_block(BlockKind::TreePage, InodeNo(7), LockName::Slot(SlotId(0)), BlockNo(0)).unwrap();
    }
    txn.finish().unwrap();
    let mut txn = rig.alloc.begin(Reservation::empty(), 1).unwrap();
    assert_eq!(txn.alloc_inode(BlockNo(0)).err(), Some(Error::NoSpace), "not for others");
    drop(txn);
    drop(held);
    assert_eq!(rig.alloc.totals().promised, 0);
    rig.audit();
}

#[test]
fn wishes_larger_than_a_group_are_spread() {
    let rig = Rig::granted(3, 8);
    let res = rig.reserve(12 * 512, 4).unwrap();
    assert!(res.groups().len() > 1);
    assert_eq!((res.data(), res.meta()), (12 * 512, 4));
    assert_eq!(rig.reserve(1 << 20, 0).err(), Some(Error::NeedSpace));
    drop(res);
    assert_eq!(rig.alloc.totals().promised, 0);
}

#[test]
fn data_continues_where_it_ended_and_in_long_runs() {
    let rig = Rig::granted(1, 64);
    let (_, first) = rig.create(0, 100);
    let (_, _other) = rig.create(0, 100);
    let mut res = rig.reserve(4000, 0).unwrap();
    let pending = rig.alloc.take_data(&mut res, 4000, None).unwrap();
    assert!(pending.runs().len() <= 3, "{:?}", pending.runs());
    let end = pending.runs().last().map(|r| r.start.plus(r.blocks)).unwrap();
    rig.alloc.begin_with(res, 0, pending).unwrap().finish().unwrap();
    let mut res = rig.reserve(10, 0).unwrap();
    let next = rig.alloc.take_data(&mut res, 10, Some(end)).unwrap();
    assert_eq!(next.runs(), [BlockRun { start: end, blocks: 10 }]);
    // Near a used block is anywhere.
    let mut res = rig.reserve(10, 0).unwrap();
    let taken = rig.alloc.take_data(&mut res, 10, Some(first[0].start)).unwrap();
    assert_ne!(taken.runs()[0].start, first[0].start);
}

#[test]
fn damage_is_an_error_and_closes_its_group_only() {
    let rig = Rig::granted(2, 12);
    let (inodes, runs) = rig.create(1, 10);
    let ag = rig.geometry.ag_of(runs[0].start).unwrap();
    let free = BlockRun { start: runs[0].start.plus(9), blocks: 2 };
    assert!(matches!(rig.free(&[], &[free]), Err(Error::Corrupt { .. })), "free already");
    assert!(matches!(
        rig.free(&[], &[BlockRun { start: BlockNo(1), blocks: 1 }]),
        Err(Error::Corrupt { .. })
    ));
    let meta = BlockRun { start: inodes[0].block(), blocks: 1 };
    assert!(matches!(rig.free(&[], &[meta]), Err(Error::Corrupt { .. })), "another class");
    assert!(matches!(rig.free(&[], &[runs[0], runs[0]]), Err(Error::Corrupt { .. })), "twice in one");
    rig.audit();
    assert_eq!(rig.alloc.totals().promised, 0);
    // That last one showed only when the bits were to be cleared: the group is closed now.
    assert!(rig.alloc.counts(ag).is_none());
    assert!(matches!(rig.free(&[], &runs), Err(Error::Corrupt { .. })));
    let res = rig.alloc.reserve(Want { data: 5, meta: 5, near: Some(ag) }).unwrap();
    assert_ne!(res.groups(), [ag]);

    let rig = Rig::new(2, 12);
    let mut header = group::header_block(FORMAT, &rig.geometry, AgNo(1), Version(1));
    header.body_as_mut::<GroupHeader>().free_chunks.set(13);
    header.seal();
    rig.device.write(rig.geometry.ag_header(AgNo(1)).byte(), &header.0).unwrap();
    rig.alloc.ag_granted(AgNo(1));
    assert_eq!(rig.reserve(1, 0).err(), Some(Error::NeedSpace));
    rig.alloc.ag_granted(AgNo(0));
    assert!(rig.reserve(1, 1).is_ok());
}

/// Groups go abroad and come home while space is looked for in all of them.
#[test]
fn groups_change_their_place_while_they_are_put_in_order() {
    const GROUPS: u32 = 64;
    let rig = Rig::granted(GROUPS, 8);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0u32.. {
                if over.load(Ordering::Acquire) {
                    break;
                }
                rig.alloc.set_abroad(AgNo(n.wrapping_mul(7) % GROUPS), n % 3 == 0);
            }
        });
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..20_000).for_each(|_| assert_eq!(rig.alloc.candidates(None).len(), GROUPS as usize));
        }));
        over.store(true, Ordering::Release);
        looked.unwrap();
    });
}
