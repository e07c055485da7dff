//! Nodes that become quiet and come back.

use super::*;
use crate::inode::{FileKind, Timestamp};

fn known(table: &NodeTable, ino: u64, generation: u64) -> InodeNo {
    let ino = InodeNo(ino);
    table.remember(&table.get(ino), Generation(generation));
    ino
}

#[test]
fn quiet_nodes_come_back_as_the_kernel_knows_them() {
    let table = NodeTable::default();
    let ino = known(&table, 5, 77);
    known(&table, 5, 77);
    let node = table.get(ino);
    node.stale_pages.store(false, Ordering::Release);
    node.state.lock().last_txn = TxnId(9);
    table.quieten(0);
    assert_eq!(table.awake(), 1, "somebody holds it");
    drop(node);
    table.quieten(0);
    assert_eq!(table.awake(), 0);
    let node = table.find(ino).unwrap();
    assert_eq!((node.lookups(), node.generation.load(Ordering::Acquire)), (2, 77));
    assert!(!node.stale_pages.load(Ordering::Acquire));
    assert_eq!(node.state.lock().last_txn, TxnId(9), "fsync still waits for it");
    drop(node);
    table.quieten(0);
    assert!(table.forget(ino, 1).is_none());
    assert!(table.find(ino).is_some());
    table.quieten(0);
    assert!(table.forget(ino, 1).is_none());
    assert!(table.find(ino).is_none());
}

#[test]
fn a_number_used_again_is_mixed_until_all_is_forgotten() {
    let table = NodeTable::default();
    let ino = known(&table, 5, 1);
    known(&table, 5, 1);
    assert!(table.find(ino).unwrap().is_known());
    known(&table, 5, 2);
    table.quieten(0);
    assert_eq!(table.awake(), 0);
    let node = table.find(ino).unwrap();
    assert!(node.is_mixed() && !node.is_known());
    assert!(table.forget(ino, 2).is_none());
    known(&table, 5, 2);
    assert!(node.is_mixed(), "which ones were forgotten?");
    assert!(table.forget(ino, 2).is_some());
    known(&table, 5, 3);
    assert!(node.is_known() && !node.is_mixed());
}

#[test]
fn nodes_with_something_to_lose_stay_awake() {
    let table = NodeTable::default();
    let inos: Vec<InodeNo> = (16..22).map(|n| known(&table, n, 1)).collect();
    table.get(inos[0]).opens.store(1, Ordering::Release);
    table.get(inos[1]).state.lock().attr_dirty = true;
    table.get(inos[2]).state.lock().write_errors.note(Error::NoSpace);
    let mut unlinked = Attr::new(inos[3], Generation(1), FileKind::Regular, 0o644, Timestamp::default());
    unlinked.nlink = 0;
    table.get(inos[3]).state.lock().attr = Some(unlinked);
    table
        .get(inos[4])
        .parked
        .lock()
        .push(ParkedRange { id: 1, pages: Pages { start: 0, end: 1, locked: true } });
    table.quieten(0);
    assert_eq!(table.awake(), 5);
    assert!(inos[..5].iter().all(|ino| table.shard(*ino).lock().nodes.contains_key(ino)));
    assert_eq!(table.all_awake().len(), 5);
    let mut quiet = Vec::new();
    table.each_quiet(|ino, known| quiet.push((ino, known)));
    assert_eq!(quiet, [(inos[5], true)]);
    table.forget_all();
    assert!(!table.knows(inos[5]) && table.all_awake().iter().all(|node| node.lookups() == 0));
}

#[test]
fn the_root_stays_although_nobody_looks_it_up() {
    let table = NodeTable::new(InodeNo(7));
    let other = InodeNo(8);
    drop(table.get(other));
    table.quieten(0);
    table.shed(InodeNo(7));
    assert!(table.knows(InodeNo(7)) && !table.knows(other));
}

#[test]
fn what_was_just_used_stays_if_there_is_room() {
    let table = NodeTable::default();
    let inos: Vec<InodeNo> = (0..160).map(|n| known(&table, n, 1)).collect();
    table.quieten(1000);
    assert_eq!(table.awake(), 160);
    drop(table.find(inos[3]));
    table.quieten(1000);
    assert_eq!(table.awake(), 1);
}
