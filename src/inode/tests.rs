use super::*;
use crate::base::{BlockNo, Generation, InodeNo, LockName};
use crate::format::BlockKind;
use crate::txn::memory::MemoryTxn;
use crate::txn::{BlockSource, BlockTxn};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

fn fresh() -> (MemoryTxn, Tree) {
    let mut txn = MemoryTxn::new();
    let cover = LockName::Inode(InodeNo(1000));
    let block = txn.alloc_block(BlockKind::Inode, InodeNo(1000), cover, BlockNo(0)).unwrap();
    let tree = Tree { ino: InodeNo(block.0), cover };
    let attr = Attr::new(tree.ino, Generation(1), FileKind::Regular, 0o644, Timestamp::default());
    tree.create(&mut txn, &attr).unwrap();
    (txn, tree)
}

fn contents(tree: &Tree, src: &dyn BlockSource) -> Vec<(ItemKey, Vec<u8>)> {
    let mut all = Vec::new();
    tree.scan(src, ItemKey::new(ItemKind::Xattr, 0), None, &mut |k, v| {
        all.push((k, v.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

#[test]
fn attributes_survive() {
    let (mut txn, tree) = fresh();
    let mut attr = tree.read_attr(&txn).unwrap();
    attr.size = 12345;
    attr.mtime = Timestamp { seconds: -5, nanos: 7 };
    attr.truncating = Some(99);
    attr.kind = FileKind::CharDevice;
    attr.rdev = 0x501;
    tree.write_attr(&mut txn, &attr).unwrap();
    assert_eq!(tree.read_attr(&txn).unwrap(), attr);
}

#[test]
fn ascending_inserts_fill_pages() {
    let (mut txn, tree) = fresh();
    for i in 0..20_000u64 {
        tree.insert(&mut txn, ItemKey::new(ItemKind::Extent, i), &[7; 24]).unwrap();
    }
    let least = 20_000 * 40 / 4024;
    assert!(txn.in_use() < least * 11 / 10, "{} pages for at least {least}", txn.in_use());
    let mut done = false;
    while !done {
        done = tree.free_pages(&mut txn, 10).unwrap();
    }
    assert_eq!(txn.in_use(), 1);
    assert!(contents(&tree, &txn).is_empty());
}

#[test]
fn removal_gives_pages_back() {
    let (mut txn, tree) = fresh();
    let key = |i: u64| ItemKey::new(ItemKind::Dirent, i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2);
    for i in 0..5000 {
        tree.insert(&mut txn, key(i), &[1; 40]).unwrap();
    }
    for i in 0..4990 {
        assert!(tree.remove(&mut txn, key(i)).unwrap());
    }
    assert_eq!(txn.in_use(), 1, "ten small items fit the inode block");
    assert_eq!(contents(&tree, &txn).len(), 10);
}

#[test]
fn damaged_pages_are_errors() {
    let (mut txn, tree) = fresh();
    for i in 0..500u64 {
        tree.insert(&mut txn, ItemKey::new(ItemKind::Extent, i), &[7; 24]).unwrap();
    }
    let blocks: Vec<BlockNo> = txn.blocks.keys().copied().collect();
    for seed in 0..3000u64 {
        let block = blocks[(seed % blocks.len() as u64) as usize];
        let good = txn.blocks[&block].clone();
        let mut bad = (*good).clone();
        let at = 64 + (seed.wrapping_mul(2654435761) % 4000) as usize;
        bad.0[at] ^= 1 << (seed % 8);
        txn.blocks.insert(block, bad.into());
        let _ = tree.read_attr(&txn);
        let _ = tree.get(&txn, ItemKey::new(ItemKind::Extent, seed % 500));
        let _ = tree.floor(&txn, ItemKey::new(ItemKind::Extent, u64::MAX));
        let _ =
            tree.scan(&txn, ItemKey::new(ItemKind::Xattr, 0), None, &mut |_, _| ControlFlow::Continue(()));
        txn.blocks.insert(block, good);
    }
}

#[derive(Clone, Debug)]
enum Change {
    Insert(u64, usize),
    Put(u64, usize),
    Remove(u64),
    Floor(u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..400u64, 0..=VALUE_MAX).prop_map(|(k, n)| Change::Insert(k, n)),
        2 => (0..400u64, 0..60usize).prop_map(|(k, n)| Change::Put(k, n)),
        4 => (0..400u64).prop_map(Change::Remove),
        1 => (0..420u64).prop_map(Change::Floor),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_sorted_map(changes in prop::collection::vec(change(), 1..600)) {
        let (mut txn, tree) = fresh();
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let key = |id| ItemKey::new(ItemKind::Extent, id);
        for c in changes {
            match c {
                Change::Insert(k, n) => {
                    let done = tree.insert(&mut txn, key(k), &vec![k as u8; n]);
                    prop_assert_eq!(done.is_ok(), !model.contains_key(&k));
                    model.entry(k).or_insert_with(|| vec![k as u8; n]);
                }
                Change::Put(k, n) => {
                    tree.put(&mut txn, key(k), &vec![!k as u8; n]).unwrap();
                    model.insert(k, vec![!k as u8; n]);
                }
                Change::Remove(k) => {
                    prop_assert_eq!(tree.remove(&mut txn, key(k)).unwrap(), model.remove(&k).is_some());
                }
                Change::Floor(k) => {
                    let found = tree.floor(&txn, key(k)).unwrap().map(|(k, v)| (k.id, v));
                    prop_assert_eq!(found, model.range(..=k).next_back().map(|(k, v)| (*k, v.clone())));
                }
            }
        }
        let all: Vec<(u64, Vec<u8>)> = contents(&tree, &txn).into_iter().map(|(k, v)| (k.id, v)).collect();
        prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
    }
}
