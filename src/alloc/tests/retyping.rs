//! Chunks and their types.

use super::*;

/// What lies in a chunk that becomes metadata is zeroed, and flushed, before any log mentions it.
#[test]
fn a_chunk_is_clean_on_disk_before_it_holds_metadata() {
    let rig = Rig::granted(1, 40);
    let garbage = vec![0xa5u8; (CHUNK_BLOCKS as usize) * BLOCK_SIZE];
    let own = rig.geometry.ag_own_chunks(AgNo(0)) + 4;
    for chunk in own..40 {
        let start = group::chunk_start(&rig.geometry, AgNo(0), chunk);
        rig.device.write(start.byte(), &garbage).unwrap();
    }
    rig.device.events.lock().clear();
    let (inodes, _) = rig.create(1, 0);
    rig.journal.commit(rig.journal.running()).unwrap();
    let at = inodes[0].block().0;
    let chunk = at - (at - rig.geometry.groups_start().0) % CHUNK_BLOCKS;
    let events = rig.device.events.lock().clone();
    let zeroed = |b: u64| {
        let hit = |e: &Event| matches!(e, Event::Write(s, n, true) if (*s..s + n).contains(&b));
        events.iter().position(hit).unwrap_or_else(|| panic!("block {b} was not zeroed"))
    };
    let last = (chunk..chunk + CHUNK_BLOCKS).map(zeroed).max().unwrap();
    let flush = last + events[last..].iter().position(|e| *e == Event::Flush).unwrap();
    let logged = events.iter().position(|e| matches!(e, Event::Write(_, _, false))).unwrap();
    assert!(flush < logged, "{events:?}");
    let mut raw = vec![1u8; garbage.len()];
    rig.device.read(BlockNo(chunk).byte(), &mut raw).unwrap();
    assert!(raw.iter().all(|b| *b == 0));
}

#[test]
fn pages_are_made_as_chunks_are_needed() {
    // Two and a half pages; mkfs made an entry for the first chunks only.
    let rig = Rig::granted(1, 77);
    let (_, runs) = rig.create(0, 60 * 512);
    rig.journal.checkpoint_all().unwrap();
    assert_eq!(rig.audit().data, blocks(&runs).collect());
    rig.give_up(AgNo(0));
    rig.alloc.ag_granted(AgNo(0));
    let (inodes, more) = rig.create(5, 512);
    let audit = rig.audit();
    assert_eq!(audit.data.len(), 61 * 512);
    assert_eq!(audit.meta, inodes.iter().map(|i| i.block()).collect());
    assert!(blocks(&more).all(|b| !blocks(&runs).any(|r| r == b)));
    // Metadata stays low.
    let highest = inodes.iter().map(|i| i.0).max().unwrap();
    assert!((highest - rig.geometry.ag_start(AgNo(0)).0) / CHUNK_BLOCKS < 8);
}

#[test]
fn an_emptied_metadata_chunk_is_free_when_the_oracle_says_so() {
    let rig = Rig::granted(1, 10);
    let (mut inodes, _) = rig.create(40, 0);
    for _ in 0..40 {
        inodes.extend(rig.create(30, 0).0);
    }
    let chunks = rig.audit_group(AgNo(0)).count(ChunkKind::Metadata);
    assert_eq!(chunks, 3);
    for part in inodes.chunks(30) {
        rig.free(part, &[]).unwrap();
    }
    assert_eq!(rig.audit_group(AgNo(0)).count(ChunkKind::Draining), 3);
    let free = rig.alloc.totals().free_chunks;
    rig.alloc.maintain().unwrap();
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 0, "not even durable");
    rig.journal.commit(rig.journal.running()).unwrap();
    rig.alloc.maintain().unwrap();
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 0, "tombstones not in place");
    rig.journal.checkpoint_all().unwrap();
    rig.alloc.maintain().unwrap();
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 3);
    assert_eq!(rig.alloc.totals().free_chunks, free, "not passed");
    // One is used again meanwhile, and emptied again: what was asked for it is void.
    let (again, _) = rig.create(1, 0);
    rig.free(&again, &[]).unwrap();
    rig.journal.checkpoint_all().unwrap();
    rig.tickets.passed.store(3, Ordering::Relaxed);
    for _ in 0..4 {
        rig.alloc.maintain().unwrap();
    }
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 4);
    let audit = rig.audit_group(AgNo(0));
    assert_eq!(rig.alloc.totals().free_chunks, free + 2);
    assert_eq!(audit.count(ChunkKind::Draining), 1);
    // Data may have them now.
    let rest = rig.alloc.totals().free_chunks * CHUNK_BLOCKS;
    let (_, runs) = rig.create(0, rest);
    assert_eq!(rig.audit().data, blocks(&runs).collect());
}

/// Three metadata chunks that have been emptied, with their tombstones in place.
fn three_draining(rig: &Rig) {
    let inodes: Vec<_> = (0..41).flat_map(|_| rig.create(30, 0).0).collect();
    for part in inodes.chunks(30) {
        rig.free(part, &[]).unwrap();
    }
    rig.journal.checkpoint_all().unwrap();
    assert_eq!(rig.audit_group(AgNo(0)).count(ChunkKind::Draining), 3);
}

/// What the oracle has said once counts, however long it takes until there is room to let the chunk go.
#[test]
fn chunks_that_cannot_go_when_their_ticket_passes_go_later() {
    let rig = Rig::granted(1, 10);
    three_draining(&rig);
    let free = rig.alloc.totals().free_chunks;
    let keep = rig.reserve(0, 1200).unwrap();
    rig.tickets.passed.store(3, Ordering::Relaxed);
    assert_eq!(rig.alloc.maintain().unwrap(), 0, "their blocks are promised");
    rig.tickets.forgotten.store(100, Ordering::Relaxed);
    drop(keep);
    (0..4).for_each(|_| _ = rig.alloc.maintain().unwrap());
    assert_eq!(rig.alloc.totals().free_chunks, free + 2, "all that need not be kept");
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 3);
}

#[test]
fn a_ticket_that_was_forgotten_is_asked_for_anew() {
    let rig = Rig::granted(1, 10);
    three_draining(&rig);
    let free = rig.alloc.totals().free_chunks;
    assert_eq!(rig.alloc.maintain().unwrap(), 0);
    rig.tickets.forgotten.store(3, Ordering::Relaxed);
    (0..2).for_each(|_| assert_eq!(rig.alloc.maintain().unwrap(), 0));
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 6);
    rig.tickets.passed.store(6, Ordering::Relaxed);
    rig.alloc.maintain().unwrap();
    assert_eq!(rig.alloc.totals().free_chunks, free + 2);
}

/// Between the look at it and its going a chunk was used and emptied again: other journals may have images
/// of that use, whatever has been said, or asked, of the former one.
#[test]
fn a_chunk_does_not_go_by_what_was_said_of_an_earlier_emptying() {
    let rig = Rig::granted(1, 10);
    three_draining(&rig);
    rig.tickets.passed.store(3, Ordering::Relaxed);
    let cell = rig.alloc.cell(AgNo(0)).unwrap();
    let look = || {
        cell.with(|g| {
            rig.alloc.settle(g);
            rig.alloc.drained_chunks(g)
        })
    };
    let ready = look();
    assert_eq!(ready.len(), 2);
    let (again, _) = rig.create(1, 0);
    rig.free(&again, &[]).unwrap();
    rig.journal.checkpoint_all().unwrap();
    let used = |chunk: u32| {
        let start = group::chunk_start(&rig.geometry, AgNo(0), chunk.into());
        (start.0..start.0 + CHUNK_BLOCKS).contains(&again[0].0)
    };
    assert!(ready.iter().any(|chunk| used(*chunk)), "{ready:?}, {again:?}");
    // The next one who looks asks for the new emptying, which has not passed.
    assert!(!look().iter().any(|chunk| used(*chunk)));
    assert_eq!(rig.tickets.asked.load(Ordering::Relaxed), 4);
    assert_eq!(rig.alloc.let_go(&cell, ready).unwrap(), 1);
    let audit = rig.audit_group(AgNo(0));
    let first = ((again[0].0 - rig.geometry.ag_start(AgNo(0)).0) / CHUNK_BLOCKS) as usize;
    assert_eq!(audit.kinds[first], ChunkKind::Draining);
}

#[test]
fn a_draining_chunk_is_metadata_again_at_once() {
    let rig = Rig::granted(1, 6);
    let (inodes, _) = rig.create(3, 0);
    rig.free(&inodes, &[]).unwrap();
    rig.journal.checkpoint_all().unwrap();
    assert_eq!(rig.audit_group(AgNo(0)).count(ChunkKind::Draining), 1);
    rig.device.events.lock().clear();
    let (again, _) = rig.create(1, 0);
    assert_eq!(rig.audit_group(AgNo(0)).count(ChunkKind::Metadata), 1);
    assert_eq!(again[0], inodes[0], "from the low end");
    assert!(rig.device.events.lock().is_empty(), "no zeroing");
}

#[test]
fn an_unused_data_chunk_becomes_metadata_when_no_chunk_is_free() {
    let rig = Rig::granted(1, 8);
    let chunks = rig.alloc.totals().free_chunks;
    let (_, runs) = rig.create(0, (chunks - 1) * CHUNK_BLOCKS);
    assert_eq!(rig.alloc.totals().free_chunks, 0);
    let mut held = Vec::new();
    while let Ok(res) = rig.reserve(0, 50) {
        held.push(res);
    }
    let before: u64 = held.iter().map(Reservation::meta).sum();
    assert!(rig.reserve(0, 50).is_err());
    // Its data is freed: after the commit the chunk may change sides.
    rig.free(&[], &[BlockRun { start: runs[0].start, blocks: CHUNK_BLOCKS }]).unwrap();
    assert!(rig.reserve(0, 50).is_err());
    rig.journal.commit(rig.journal.running()).unwrap();
    while let Ok(res) = rig.reserve(0, 50) {
        held.push(res);
    }
    let after: u64 = held.iter().map(Reservation::meta).sum();
    assert!(after > before + 400, "{before} {after}");
    assert_eq!(rig.audit_group(AgNo(0)).count(ChunkKind::Metadata), 2);
}

/// Data may be written to the chunk at once. If the log lost that the chunk is free, it would be a draining
/// one after a crash, whose blocks become metadata as they are: with that data in them.
#[test]
fn a_chunk_is_handed_out_when_it_is_free_for_sure() {
    let rig = Rig::granted(1, 8);
    let (inodes, _) = rig.create(3, 0);
    let (more, _) = rig.create(0, (rig.alloc.totals().free_chunks - 1) * CHUNK_BLOCKS);
    assert!(more.is_empty());
    // A second metadata chunk, so that one can go.
    let mut res = rig.reserve(0, 500).unwrap();
    drop(res.split(0, 500));
    rig.free(&inodes, &[]).unwrap();
    rig.journal.checkpoint_all().unwrap();
    rig.tickets.passed.store(100, Ordering::Relaxed);
    let before = rig.journal.durable();
    assert_eq!(rig.alloc.maintain().unwrap(), 1);
    assert_eq!(rig.alloc.totals().free_chunks, 1);
    let cell = rig.alloc.cell(AgNo(0)).unwrap();
    assert_eq!(cell.with(|g| g.free_chunks()), 1);
    assert!(rig.journal.durable() > before, "its change of type is not durable");
    let (_, runs) = rig.create(0, CHUNK_BLOCKS);
    assert!(rig.audit().data.is_superset(&blocks(&runs).collect()));
}

/// A chunk that cannot be zeroed is passed over: metadata has the next one, and the group goes on.
#[test]
fn a_free_chunk_that_cannot_be_written_is_passed_over() {
    let rig = Rig::granted(1, 16);
    let free = rig.alloc.totals().free_chunks;
    let first = 16 - free;
    let bad = group::chunk_start(&rig.geometry, AgNo(0), first);
    *rig.device.refuses.lock() = bad.0 + 100..bad.0 + 101;
    let (inodes, _) = rig.create(3, 0);
    let chunk = |ino: &InodeNo| (ino.0 - rig.geometry.ag_start(AgNo(0)).0) / CHUNK_BLOCKS;
    assert!(inodes.iter().all(|ino| chunk(ino) == first + 1), "{inodes:?}");
    let (_, runs) = rig.create(0, (free - 2) * CHUNK_BLOCKS);
    assert!(blocks(&runs).all(|b| !(bad.0..bad.0 + CHUNK_BLOCKS).contains(&b.0)));
    assert_eq!(rig.reserve(1, 0).err(), Some(Error::NeedSpace), "the bad one is not given away");
    rig.give_up(AgNo(0));
    rig.alloc.ag_granted(AgNo(0));
    assert_eq!(rig.alloc.totals().free_chunks, 1, "it is free on the disk, for whoever finds it sound");
    rig.audit();
}

/// What a failed write leaves out of use is what it wrote to, and is free for the next holder of the group. A
/// device that takes nothing costs a part of the group only.
#[test]
fn blocks_of_a_failed_write_are_left_unused_within_bounds() {
    let rig = Rig::granted(1, 16);
    let failed = |start: u64, blocks: u64| {
        let (offset, length) = (start * BLOCK_SIZE as u64, blocks * BLOCK_SIZE as u64);
        Error::Io { op: "write", offset, length, cause: "refused".into() }
    };
    let mut res = rig.reserve(40, 0).unwrap();
    let pending = rig.alloc.take_data(&mut res, 40, None).unwrap();
    let start = pending.runs()[0].start;
    assert_eq!(pending.runs(), [BlockRun { start, blocks: 40 }]);
    pending.give_back_after(Some(&failed(start.0 + 10, 5)), &mut res);
    assert_eq!(res.data(), 35);
    let pending = rig.alloc.take_data(&mut res, 35, Some(start)).unwrap();
    assert_eq!(pending.runs()[0], BlockRun { start, blocks: 10 });
    assert!(blocks(pending.runs()).all(|b| !(start.0 + 10..start.0 + 15).contains(&b.0)));
    pending.give_back_after(Some(&Error::NeedSpace), &mut res);
    assert_eq!(res.data(), 35);
    drop(res);
    let mut lost = 0;
    for _ in 0..40 {
        let mut res = rig.reserve(100, 0).unwrap();
        let pending = rig.alloc.take_data(&mut res, 100, None).unwrap();
        let run = pending.runs()[0];
        pending.give_back_after(Some(&failed(run.start.0, run.blocks)), &mut res);
        lost += 100 - res.data();
    }
    assert!((500..=1024).contains(&lost), "{lost} of {} blocks", 16 * CHUNK_BLOCKS);
    assert_eq!(rig.alloc.totals().promised, 0);
    rig.give_up(AgNo(0));
    rig.alloc.ag_granted(AgNo(0));
    let mut res = rig.reserve(40, 0).unwrap();
    let pending = rig.alloc.take_data(&mut res, 40, Some(start)).unwrap();
    assert_eq!(pending.runs(), [BlockRun { start, blocks: 40 }]);
}
