use super::*;
use crate::base::{BlockNo, LockName};
use crate::format::BlockKind;
use crate::inode::{Attr, Timestamp};
use crate::txn::memory::MemoryTxn;
use std::collections::BTreeMap;

const SEED: [u8; 16] = [9; 16];

fn fresh() -> (MemoryTxn, Directory<'static>) {
    let mut txn = MemoryTxn::new();
    let cover = LockName::Inode(InodeNo(1000));
    let block = txn.alloc_block(BlockKind::Inode, InodeNo(1000), cover, BlockNo(0)).unwrap();
    let tree = Tree { ino: InodeNo(block.0), cover };
    tree.create(
        &mut txn,
        &Attr::new(tree.ino, Generation(1), FileKind::Directory, 0o755, Timestamp::default()),
    )
    .unwrap();
    (txn, Directory { tree, seed: &SEED })
}

fn all(dir: &Directory<'_>, txn: &MemoryTxn, from: u64) -> Vec<DirEntry> {
    let mut entries = Vec::new();
    dir.list(txn, from, &mut |e| {
        entries.push(e);
        ControlFlow::Continue(())
    })
    .unwrap();
    entries
}

#[test]
fn names_come_and_go() {
    let (mut txn, dir) = fresh();
    let mut model = BTreeMap::new();
    for i in 0..30_000u64 {
        let name = format!("file-{i}").into_bytes();
        dir.insert(&mut txn, &name, InodeNo(i + 10), Generation(i), FileKind::Regular).unwrap();
        model.insert(name, i + 10);
    }
    assert_eq!(
        dir.insert(&mut txn, b"file-7", InodeNo(5), Generation(0), FileKind::Regular),
        Err(Error::Exists)
    );
    for i in (0..30_000u64).step_by(3) {
        let name = format!("file-{i}").into_bytes();
        assert_eq!(dir.remove(&mut txn, &name).unwrap().ino, InodeNo(i + 10));
        model.remove(&name);
    }
    let listed: BTreeMap<Vec<u8>, u64> = all(&dir, &txn, 0).into_iter().map(|e| (e.name, e.ino.0)).collect();
    assert_eq!(listed, model);
    assert_eq!(dir.lookup(&txn, b"file-1").unwrap().unwrap().ino, InodeNo(11));
    assert_eq!(dir.lookup(&txn, b"file-0").unwrap(), None);
    assert_eq!(dir.remove(&mut txn, b"file-0"), Err(Error::NotFound));
}

#[test]
fn cookies_are_stable_over_changes() {
    let (mut txn, dir) = fresh();
    for i in 0..1000u64 {
        let name = format!("n{i}").into_bytes();
        dir.insert(&mut txn, &name, InodeNo(i), Generation(i), FileKind::Regular).unwrap();
    }
    let before = all(&dir, &txn, 0);
    let (seen, rest) = before.split_at(500);
    for e in &seen[..499] {
        dir.remove(&mut txn, &e.name).unwrap();
    }
    let after = all(&dir, &txn, seen[499].cookie);
    assert_eq!(after, rest);
    dir.remove(&mut txn, &seen[499].name).unwrap();
    assert_eq!(all(&dir, &txn, seen[499].cookie), rest, "also when the entry of the cookie is gone");
    assert!(before.iter().all(|e| e.cookie >= 3 && e.cookie < 1 << 63));
}

#[test]
fn a_name_can_change_its_inode() {
    let (mut txn, dir) = fresh();
    assert!(dir.is_empty(&txn).unwrap());
    dir.insert(&mut txn, &[b'x'; 255], InodeNo(7), Generation(1), FileKind::Regular).unwrap();
    let old = dir.replace(&mut txn, &[b'x'; 255], InodeNo(8), Generation(2), FileKind::Symlink).unwrap();
    assert_eq!(old.ino, InodeNo(7));
    let new = dir.lookup(&txn, &[b'x'; 255]).unwrap().unwrap();
    assert_eq!((new.ino, new.generation, new.kind), (InodeNo(8), Generation(2), FileKind::Symlink));
    assert!(!dir.is_empty(&txn).unwrap());
}
