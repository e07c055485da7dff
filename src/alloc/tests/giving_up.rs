//! Groups on their way out, and what still knows them afterwards.

use super::*;
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
