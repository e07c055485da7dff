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
        dir.insert(&mut txn, &name, InodeNo(i + 10), Generation(i), FileKind::Regular).unwrap();
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

#[test]
fn impossible_names_stay_out() {
    let (mut txn, dir) = fresh();
    let mut add = |name: &[u8]| dir.insert(&mut txn, name, InodeNo(7), Generation(1), FileKind::Regular);
    assert_eq!(add(&[b'x'; 256]), Err(Error::NameTooLong));
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert!(matches!(add(name), Err(Error::Invalid(_))), "{name:?}");
    }
    for cookie in [0, 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX] {
        assert!(all(&dir, &txn, cookie).is_empty());
    }
}

#[test]
fn damaged_entries_are_errors() {
    let good = Dirent::encode(InodeNo(7), Generation(1), FileKind::Regular, b"name");
    assert!(DirEntry::decode(5 << 8, &good).is_ok());
    assert!(DirEntry::decode(u64::MAX, &good).is_err(), "a key that no hash gives");
    for at in 0..good.len() {
        for byte in 0..=255 {
            let mut bad = good.clone();
            bad[at] = byte;
            let decoded = DirEntry::decode(5 << 8, &bad);
            assert!(decoded.is_err() || at != 17 || byte != b'/');
        }
        assert!(at > 17 || DirEntry::decode(5 << 8, &good[..at]).is_err());
    }
}

#[test]
fn names_of_one_hash_share_it_and_reuse_indices() {
    let (mut txn, dir) = fresh();
    let first = dirent_key(&SEED, b"wanted");
    // As if 255 other names had the same hash.
    for i in 0..255 {
        let value =
            Dirent::encode(InodeNo(50 + i), Generation(1), FileKind::Regular, format!("other{i}").as_bytes());
        dir.tree.insert(&mut txn, ItemKey::new(ItemKind::Dirent, first + i), &value).unwrap();
    }
    dir.insert(&mut txn, b"wanted", InodeNo(7), Generation(1), FileKind::Regular).unwrap();
    assert_eq!(dir.lookup(&txn, b"wanted").unwrap().unwrap().cookie, first + 255 + COOKIE_BASE);
    dir.remove(&mut txn, b"wanted").unwrap();
    let full = Dirent::encode(InodeNo(9), Generation(1), FileKind::Regular, b"last");
    dir.tree.insert(&mut txn, ItemKey::new(ItemKind::Dirent, first + 255), &full).unwrap();
    let add = |txn: &mut MemoryTxn| dir.insert(txn, b"wanted", InodeNo(7), Generation(1), FileKind::Regular);
    assert_eq!(add(&mut txn), Err(Error::NoSpace));
    dir.tree.remove(&mut txn, ItemKey::new(ItemKind::Dirent, first + 17)).unwrap();
    add(&mut txn).unwrap();
    assert_eq!(dir.lookup(&txn, b"wanted").unwrap().unwrap().cookie, first + 17 + COOKIE_BASE);
}

/// Not a benchmark, a look: `cargo test --lib dir::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "takes seconds; prints times"]
fn cost_of_a_million_entries() {
    let (mut txn, dir) = fresh();
    let n = 1_000_000u64;
    let name = |i: u64| format!("file-{i:07}").into_bytes();
    let start = std::time::Instant::now();
    for i in 0..n {
        dir.insert(&mut txn, &name(i), InodeNo(i + 10), Generation(i), FileKind::Regular).unwrap();
    }
    let per = |t: std::time::Instant| t.elapsed().as_nanos() as u64 / n;
    println!("insert {} ns, {} blocks, level {}", per(start), txn.in_use(), dir.tree.level(&txn).unwrap());
    let start = std::time::Instant::now();
    for i in 0..n {
        assert!(dir.lookup(&txn, &name(i * 7 % n)).unwrap().is_some());
    }
    println!("lookup {} ns", per(start));
    let start = std::time::Instant::now();
    assert_eq!(all(&dir, &txn, 0).len() as u64, n);
    println!("list {} ns per entry", per(start));
    let start = std::time::Instant::now();
    for i in 0..n {
        dir.remove(&mut txn, &name(i * 7 % n)).unwrap();
    }
    println!("remove {} ns", per(start));
    assert_eq!(txn.in_use(), 1);
}
