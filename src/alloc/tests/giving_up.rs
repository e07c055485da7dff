//! Groups on their way out, and what still knows them afterwards.

use super::*;
use crate::base::Error;
use std::time::Duration;

/// A group without a free chunk whose metadata has emptied: all pages are worth reading.
fn full_but_for_draining(rig: &Rig, ag: AgNo) {
    let (g, chunks) = (&rig.geometry, rig.geometry.ag_chunks(ag));
    let own = g.ag_own_chunks(ag);
    let mut header = group::header_block(FORMAT, g, ag, Version(2));
    let h = header.body_as_mut::<GroupHeader>();
    h.vclock.set(2);
    h.init_chunks.set(chunks as u32);
    h.free_meta.set(2 * CHUNK_BLOCKS);
    put(&*rig.device, header);
    put(&*rig.device, page(rig, ag, own, Version(2)));
}

/// Chunks of a full group: system, two that are draining, data.
fn page(rig: &Rig, ag: AgNo, own: u64, version: Version) -> Block {
    let mut page = group::page_block(FORMAT, &rig.geometry, ag, 0, version);
    let entries = &mut page.body_as_mut::<ChunkPage>().entries;
    let (own, chunks) = (own as usize, rig.geometry.ag_chunks(ag) as usize);
    entries[..own].fill(ChunkEntry::full(ChunkKind::System));
    entries[own..own + 2].fill(ChunkEntry::empty(ChunkKind::Draining));
    entries[own + 2..chunks].fill(ChunkEntry::full(ChunkKind::Data));
    page
}

/// Whoever found the group before it was given up must not read it afterwards: that would bring back
/// what the next holder changes.
#[test]
fn a_group_that_was_given_up_is_not_read_any_more() {
    let rig = Rig::granted(2, 8);
    let (first, second) = (AgNo(0), AgNo(1));
    full_but_for_draining(&rig, second);
    // The walk over the groups stops at the first while the second goes.
    let stop = rig.alloc.cell(first).unwrap();
    let held = stop.state.lock();
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.alloc.find_draining());
        std::thread::sleep(Duration::from_millis(100));
        rig.give_up(second);
        drop(held);
        walk.join().unwrap().unwrap();
    });
    // Another host takes a draining chunk for data.
    let own = rig.geometry.ag_own_chunks(second);
    let mut changed = page(&rig, second, own, Version(3));
    changed.body_as_mut::<ChunkPage>().entries[own as usize] = ChunkEntry::full(ChunkKind::Data);
    put(&*rig.device, changed);
    let place = rig.geometry.chunk_page(second, 0);
    let seen = rig.store.read(place, BlockKind::ChunkPage, LockName::Ag(second)).unwrap();
    assert_eq!(seen.version(), Version(3), "a page read without the lock has stayed in the cache");
}

#[test]
fn a_cell_outlives_its_group_without_a_use() {
    let rig = Rig::granted(2, 8);
    let cell = rig.alloc.cell(AgNo(1)).unwrap();
    rig.give_up(AgNo(1));
    assert!(cell.open(&rig.store).is_err());
    let granted_again = || rig.alloc.cell(AgNo(1)).unwrap();
    rig.alloc.ag_granted(AgNo(1));
    assert!(!Arc::ptr_eq(&cell, &granted_again()));
    assert!(granted_again().open(&rig.store).is_ok());
    assert!(cell.open(&rig.store).is_err());
}

/// A reservation remembers groups that it has used up its share of. They may be given up beside a
/// transaction that is begun with it.
#[test]
fn a_part_that_is_used_up_does_not_keep_its_group() {
    let rig = Rig::granted(2, 8);
    let mut res = rig.alloc.reserve(Want { data: 1, meta: 0, near: Some(AgNo(1)) }).unwrap();
    drop(rig.alloc.take_data(&mut res, 1, None).unwrap());
    assert_eq!(res.groups(), [AgNo(1)]);
    assert_eq!(rig.alloc.ag_demote(AgNo(1)), DemoteReady::Ready);
    let txn = rig.alloc.begin(res, 1).unwrap();
    // A seal would wait for it: what the group has changed was made durable before.
    rig.alloc.ag_released(AgNo(1));
    rig.store.halt().check().expect("nothing was promised in the group");
    drop(txn);
}

/// Write-back leads out of a group what is promised in it. The tree that it changes may take a block more
/// than was foreseen: the emergency share is there for it, also when the group is on its way out.
#[test]
fn what_is_promised_in_a_group_may_draw_its_emergency_share() {
    let rig = Rig::granted(1, 16);
    let (ag, promised) = (AgNo(0), rig.reserve(1, 1).unwrap());
    assert!(matches!(rig.alloc.ag_demote(ag), DemoteReady::Busy { reserved: 2 }));
    let mut txn = rig.alloc.begin_sure(Reservation::empty(), 1).unwrap();
    assert_eq!(txn.alloc_inode(BlockNo(0)).err(), Some(Error::NeedSpace), "no group but one on its way out");
    txn.lean_on(&promised);
    txn.alloc_inode(BlockNo(0)).unwrap();
    txn.finish().unwrap();
    drop(promised);
    assert_eq!(rig.alloc.ag_demote(ag), DemoteReady::Ready);
    rig.audit();
}

/// What was promised for several transactions lasts for all of them.
#[test]
fn a_transaction_gives_back_what_it_was_given_and_has_not_used() {
    let rig = Rig::granted(1, 16);
    let mut res = rig.reserve(30, 6).unwrap();
    for (failing, left) in [(true, (30, 6)), (false, (20, 5))] {
        let pending = rig.alloc.take_data(&mut res, 10, None).unwrap();
        let mut txn = rig.alloc.begin_sure(res.split(0, 4), 8).unwrap();
        txn.use_data(pending);
        txn.alloc_inode(BlockNo(0)).unwrap();
        let (done, unused) = if failing { (Ok(txn.txn_id()), txn.undo()) } else { txn.finish_keeping() };
        done.unwrap();
        res.merge(unused);
        assert_eq!((res.data(), res.meta()), left, "failing: {failing}");
        assert_eq!(rig.alloc.counts(AgNo(0)).unwrap().promised, left.0 + left.1);
    }
    drop(res);
    assert_eq!(rig.alloc.counts(AgNo(0)).unwrap().promised, 0);
    let audit = rig.audit();
    assert_eq!((audit.meta.len(), audit.data.len()), (1, 10));
}

/// One transaction can use what was chosen at once, however scattered it is.
#[test]
fn no_more_is_chosen_than_a_transaction_can_use() {
    let rig = Rig::granted(1, 8);
    let (_, runs) = rig.create(1, 1024);
    let single: Vec<BlockRun> = blocks(&runs).step_by(2).map(|start| BlockRun { start, blocks: 1 }).collect();
    rig.free(&[], &single).unwrap();
    rig.journal.commit(rig.journal.running()).unwrap();
    let mut res = rig.reserve(200, 0).unwrap();
    let pending = rig.alloc.take_data(&mut res, 200, None).unwrap();
    assert_eq!((pending.runs().len(), pending.blocks()), (RUNS_MAX, RUNS_MAX as u64));
    // A little in each of many groups.
    let rig = Rig::granted(20, 8);
    let parts = (0..20).map(|ag| rig.alloc.reserve(Want { data: 3, meta: 0, near: Some(AgNo(ag)) }).unwrap());
    let mut all = parts.fold(Reservation::empty(), |mut all, part| {
        all.merge(part);
        all
    });
    let pending = rig.alloc.take_data(&mut all, 60, None).unwrap();
    assert!(pending.blocks() >= 15 && pending.log_blocks() <= 12, "{} blocks", pending.blocks());
    let mut txn = rig.alloc.begin_sure(Reservation::empty(), 0).unwrap();
    txn.use_data(pending);
    txn.finish().unwrap();
    rig.audit();
}
