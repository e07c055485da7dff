//! Which blocks are discarded: free ones that file data could be written to right now, and no others.

use super::*;
use crate::base::Error;
use std::time::Duration;

const ANY: TrimWish = TrimWish { least: 1, most: 4096, granule: 4096 };

/// Through a whole group.
pub fn all_of(rig: &Rig, ag: AgNo) -> Sweep {
    let start = rig.geometry.ag_start(ag);
    Sweep::new(ag, start, start.plus(rig.geometry.ag_len(ag)))
}

/// All runs that a trim of a group takes, each given back before the next.
fn runs(rig: &Rig, ag: AgNo, wish: &TrimWish) -> Vec<BlockRun> {
    let (mut sweep, mut found) = (all_of(rig, ag), Vec::new());
    while !sweep.is_done() {
        found.extend(rig.alloc.next_unused(&mut sweep, wish).unwrap().map(|unused| unused.run()));
    }
    found
}

fn set(runs: &[BlockRun]) -> BTreeSet<BlockNo> {
    let set: BTreeSet<_> = blocks(runs).collect();
    assert_eq!(set.len(), blocks(runs).count(), "a block twice");
    set
}

/// Blocks of a group in chunks of these kinds that the disk calls free.
fn free_on_disk(rig: &Rig, ag: AgNo, kinds: &[ChunkKind]) -> BTreeSet<BlockNo> {
    let audit = rig.audit_group(ag);
    let chunks = (0..).zip(&audit.kinds).filter(|(_, kind)| kinds.contains(kind));
    let all = chunks.flat_map(|(chunk, _)| {
        let start = group::chunk_start(&rig.geometry, ag, chunk);
        (0..CHUNK_BLOCKS).map(move |i| start.plus(i))
    });
    all.filter(|b| !audit.data.contains(b) && !audit.meta.contains(b)).collect()
}

#[test]
fn all_that_is_free_for_data_is_found_and_nothing_else() {
    // More than one page of chunks.
    let rig = Rig::granted(1, 70);
    let (inodes, data) = rig.create(5, 3000);
    let scattered: Vec<_> = blocks(&data).step_by(3).map(|start| BlockRun { start, blocks: 1 }).collect();
    rig.free(&inodes[..3], &scattered).unwrap();
    rig.journal.checkpoint_all().unwrap();
    let free = free_on_disk(&rig, AgNo(0), &[ChunkKind::Free, ChunkKind::Data]);
    let counts = rig.alloc.totals();
    for most in [1 << 20, 4096, 700, 512, 100] {
        assert_eq!(set(&runs(&rig, AgNo(0), &TrimWish { most, ..ANY })), free, "{most} at a time");
    }
    assert_eq!(rig.alloc.totals(), counts);
    let long = set(&runs(&rig, AgNo(0), &TrimWish { least: 2, ..ANY }));
    assert!(long.is_subset(&free) && blocks(&scattered).filter(|b| long.contains(b)).count() < 5);
    rig.audit();
}

/// The emptied chunk's tombstones bear the versions that replay compares with.
#[test]
fn blocks_that_have_been_metadata_are_left_alone() {
    let rig = Rig::granted(1, 20);
    let inodes: Vec<_> = (0..6).map(|_| rig.create(100, 1).0).collect();
    inodes.iter().for_each(|part| rig.free(part, &[]).unwrap());
    rig.journal.checkpoint_all().unwrap();
    rig.alloc.maintain().unwrap();
    let audit = rig.audit_group(AgNo(0));
    assert!(audit.count(ChunkKind::Draining) >= 1 && audit.meta.is_empty());
    let metadata = free_on_disk(&rig, AgNo(0), &[ChunkKind::Metadata, ChunkKind::Draining]);
    assert!(set(&runs(&rig, AgNo(0), &ANY)).is_disjoint(&metadata));
    // Once no journal has an image of them, and the disk says so, they are as any other.
    rig.tickets.passed.store(u64::MAX, Ordering::Relaxed);
    let before = audit.count(ChunkKind::Free);
    while rig.alloc.maintain().unwrap() > 0 {}
    assert!(rig.audit_group(AgNo(0)).count(ChunkKind::Free) > before);
    let free = free_on_disk(&rig, AgNo(0), &[ChunkKind::Free, ChunkKind::Data]);
    assert_eq!(set(&runs(&rig, AgNo(0), &ANY)), free);
}

/// After a power cut they would be the old file's again, with that file's name on the disk.
#[test]
fn what_is_not_durably_free_is_left_alone() {
    let rig = Rig::granted(1, 12);
    let (inodes, data) = rig.create(1, 500);
    rig.journal.checkpoint_all().unwrap();
    rig.free(&inodes, &data).unwrap();
    assert!(rig.audit().data.is_empty(), "they are free in memory");
    assert!(set(&runs(&rig, AgNo(0), &ANY)).is_disjoint(&set(&data)));
    rig.alloc.ready_freed().unwrap();
    assert!(rig.journal.durable() >= rig.journal.checkpointed());
    assert!(set(&runs(&rig, AgNo(0), &ANY)).is_superset(&set(&data)));
}

#[test]
fn what_is_chosen_or_promised_is_left_alone() {
    let rig = Rig::granted(1, 12);
    let all = rig.alloc.totals().free_for_data() - 2 * CHUNK_BLOCKS - 100;
    let mut res = rig.reserve(all, 1).unwrap();
    let chosen = rig.alloc.take_data(&mut res, 300, None).unwrap();
    let found = runs(&rig, AgNo(0), &ANY);
    assert!(set(&found).is_disjoint(&set(chosen.runs())));
    let typed = free_on_disk(&rig, AgNo(0), &[ChunkKind::Data]);
    let spare = typed.len() - all as usize;
    assert!(found.iter().all(|run| set(&[*run]).intersection(&typed).count() <= spare), "promised ones");
    // While they are out of use, the promise holds.
    let mut sweep = all_of(&rig, AgNo(0));
    let held = rig.alloc.next_unused(&mut sweep, &TrimWish { most: 1 << 20, ..ANY }).unwrap().unwrap();
    let rest = all - 300;
    let mut taken = chosen.blocks();
    while taken < all {
        let more = rig.alloc.take_data(&mut res, all - taken, None).unwrap();
        taken += more.blocks();
        assert!(set(more.runs()).is_disjoint(&set(&[held.run()])));
        rig.alloc.begin_with(Reservation::empty(), 0, more).unwrap().finish().unwrap();
    }
    assert_eq!(taken - 300, rest);
    drop(held);
    drop((chosen, res));
    assert_eq!(rig.alloc.totals().promised, 0);
    rig.audit();
}

#[test]
fn a_group_stays_while_its_blocks_are_out_of_use() {
    let rig = Rig::granted(2, 8);
    let mut sweep = all_of(&rig, AgNo(1));
    let unused = rig.alloc.next_unused(&mut sweep, &ANY).unwrap().unwrap();
    assert!(matches!(rig.alloc.ag_demote(AgNo(1)), DemoteReady::Busy { .. }));
    drop(unused);
    assert_eq!(rig.alloc.next_unused(&mut sweep, &ANY).err(), Some(Error::NeedSpace), "it is wanted");
    rig.give_up(AgNo(1));
    rig.store.halt().check().unwrap();
    assert_eq!(rig.alloc.next_unused(&mut sweep, &ANY).err(), Some(Error::NeedSpace), "it has gone");
    assert!(rig.alloc.next_unused(&mut all_of(&rig, AgNo(0)), &ANY).unwrap().is_some());
}

/// Nobody is told that the volume is full because of blocks that are out of use for a moment.
#[test]
fn who_finds_nothing_else_waits_for_what_is_out_of_use() {
    let rig = Rig::granted(1, 10);
    rig.create(1, 1);
    let want = Want { data: rig.alloc.totals().free_for_data(), meta: 0, near: None };
    let unused = rig.alloc.next_unused(&mut all_of(&rig, AgNo(0)), &ANY).unwrap().unwrap();
    assert_eq!(rig.alloc.reserve(want).err(), Some(Error::NeedSpace));
    std::thread::scope(|scope| {
        let last = scope.spawn(|| rig.alloc.reserve_last(want).map(|res| res.data()));
        while !unused.is_sought() {
            assert!(!last.is_finished(), "it did not wait");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!last.is_finished());
        drop(unused);
        assert_eq!(last.join().unwrap(), Ok(want.data));
    });
}

#[test]
fn long_runs_are_cut_between_granules() {
    let wish = TrimWish { least: 1, most: 1000, granule: 1 << 20 };
    for (start, most, cut) in
        [(0, 1000, 768), (100, 1000, 1024), (1, 255, 256), (1, 254, 255), (256, 256, 512)]
    {
        assert_eq!(wish.cut(BlockNo(start), most), BlockNo(cut), "{most} from {start}");
    }
    let rig = Rig::granted(1, 70);
    let free = free_on_disk(&rig, AgNo(0), &[ChunkKind::Free, ChunkKind::Data]);
    let found = runs(&rig, AgNo(0), &wish);
    assert_eq!(set(&found), free);
    let last = found.last().unwrap().start;
    assert!(found.iter().all(|run| run.start == last || (run.start.0 + run.blocks).is_multiple_of(256)));
    // What is left of a run is part of it, however short.
    let short = TrimWish { least: 600, most: 700, granule: 4096 };
    assert_eq!(set(&runs(&rig, AgNo(0), &short)), free);
}

#[test]
fn a_sweep_goes_back_to_what_was_not_discarded() {
    let rig = Rig::granted(1, 12);
    let mut sweep = all_of(&rig, AgNo(0));
    let wish = TrimWish { least: 512, ..ANY };
    let first = rig.alloc.next_unused(&mut sweep, &wish).unwrap().unwrap().run();
    let from = first.start.plus(first.blocks - 10);
    sweep.back_to(from);
    let rest = rig.alloc.next_unused(&mut sweep, &wish).unwrap().unwrap().run();
    assert_eq!((rest.start, rest.blocks), (from, 10));
}

/// A discard is a write: nothing of a host that is taken for dead may land.
#[test]
fn a_discard_asks_for_the_permit() {
    let rig = Rig::granted(1, 8);
    let run = runs(&rig, AgNo(0), &ANY)[0];
    rig.device.events.lock().clear();
    rig.store.discard(run.start, 1).unwrap();
    let sent = || rig.device.events.lock().clone();
    assert_eq!(sent(), [Event::Discard(run.start.0, 1)]);
    assert!(rig.store.discard(BlockNo(rig.geometry.total_blocks), 1).is_err(), "behind the end");
    rig.store.permit().revoke();
    assert!(matches!(rig.store.discard(run.start, 1), Err(Error::Halted(_))));
    assert_eq!(sent().len(), 1);
}
