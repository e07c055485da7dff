use super::*;
use crate::base::{BlockNo, Error, Generation, InodeNo, LockName};
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

/// Walk every page: fences, order, no empty page but the root, nothing lost, slack zero. Answers
/// with the bytes that all leaves use and could use.
fn sound(tree: &Tree, txn: &MemoryTxn) -> (usize, usize) {
    use crate::format::item::{Key, Page};
    let mut todo = vec![(tree.ino.block(), None, Key::LOWEST, None::<Key>)];
    let (mut seen, mut used, mut room) = (0, 0, 0);
    while let Some((block, level, low, high)) = todo.pop() {
        seen += 1;
        let root = block == tree.ino.block();
        let kind = if root { BlockKind::Inode } else { BlockKind::TreePage };
        let image = txn.read(block, kind, tree.cover).unwrap();
        let page = Page::check(&image.0[if root { 320 } else { 64 }..]).unwrap();
        assert!(page.slack_is_zero());
        assert!(root || page.count() > 0, "an empty page");
        assert!(level.is_none_or(|l| l == page.level()));
        for i in 0..page.count() {
            let key = page.key(i);
            assert!(key >= low || page.level() > 0 && i == 0, "below its fence");
            assert!(high.is_none_or(|h| key < h), "above its fence");
            if page.level() > 0 {
                let from = if i == 0 { low } else { key };
                let to = if i + 1 < page.count() { Some(page.key(i + 1)) } else { high };
                todo.push((BlockNo(page.child(i)), Some(page.level() - 1), from, to));
            }
        }
        if page.level() == 0 {
            used += page.used();
            room += page.capacity();
        }
    }
    assert_eq!(seen, txn.in_use(), "pages reachable and pages allocated");
    (used, room)
}

fn scattered(i: u64) -> ItemKey {
    // A mixer without the evenness of a plain multiplication, under which all pages fill at once.
    let mut z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ItemKey::new(ItemKind::Dirent, (z ^ (z >> 31)) >> 2)
}

#[test]
fn removal_gives_pages_back() {
    let (mut txn, tree) = fresh();
    for i in 0..5000 {
        tree.insert(&mut txn, scattered(i), &[1; 40]).unwrap();
    }
    for i in 0..4990 {
        assert!(tree.remove(&mut txn, scattered(i)).unwrap());
    }
    assert_eq!(txn.in_use(), 1, "ten small items fit the inode block");
    assert_eq!(contents(&tree, &txn).len(), 10);
}

#[test]
fn scattered_growth_keeps_pages_well_filled() {
    let (mut txn, tree) = fresh();
    let n = 60_000;
    for i in 0..n {
        tree.insert(&mut txn, scattered(i), &[1; 30]).unwrap();
    }
    let (used, room) = sound(&tree, &txn);
    assert!(used * 100 > room * 62, "{} %", used * 100 / room);
    assert_eq!(tree.level(&txn).unwrap(), 2);
    for i in (0..n).rev() {
        assert!(tree.remove(&mut txn, scattered(i)).unwrap());
        if i % 6000 == 0 {
            let (used, room) = sound(&tree, &txn);
            assert!(used * 100 >= room * 30 || room < 8000, "{} %", used * 100 / room);
            assert_eq!(contents(&tree, &txn).len() as u64, i);
        }
    }
    assert_eq!(txn.in_use(), 1);
}

#[test]
fn removal_from_the_front_and_the_back() {
    for front in [true, false] {
        let (mut txn, tree) = fresh();
        for i in 0..20_000u64 {
            tree.insert(&mut txn, ItemKey::new(ItemKind::Extent, i), &[7; 24]).unwrap();
        }
        for i in 0..20_000u64 {
            let id = if front { i } else { 19_999 - i };
            assert!(tree.remove(&mut txn, ItemKey::new(ItemKind::Extent, id)).unwrap());
            if i % 2500 == 0 {
                sound(&tree, &txn);
            }
        }
        assert_eq!(txn.in_use(), 1);
    }
}

#[test]
fn inline_data_fits_among_other_items() {
    let (mut txn, tree) = fresh();
    let inline = ItemKey::new(ItemKind::Inline, 0);
    for i in 0..3 {
        tree.insert(&mut txn, ItemKey::new(ItemKind::Xattr, i), &[1; 600]).unwrap();
        tree.insert(&mut txn, ItemKey::new(ItemKind::Dirent, i), &[2; 600]).unwrap();
    }
    for len in [0, 3000, 10, INLINE_MAX, 0, INLINE_MAX] {
        tree.put(&mut txn, inline, &vec![3; len]).unwrap();
        assert_eq!(tree.get(&txn, inline).unwrap(), Some(vec![3; len]));
        sound(&tree, &txn);
    }
    for i in 3..9 {
        tree.insert(&mut txn, ItemKey::new(ItemKind::Xattr, i), &[1; VALUE_MAX]).unwrap();
        tree.insert(&mut txn, ItemKey::new(ItemKind::Dirent, i), &[2; VALUE_MAX]).unwrap();
    }
    sound(&tree, &txn);
    assert_eq!(tree.put(&mut txn, inline, &[0; INLINE_MAX + 1]), Err(Error::TooBig));
    assert_eq!(tree.get(&txn, inline).unwrap(), Some(vec![3; INLINE_MAX]));
    let one = ItemKey::new(ItemKind::Xattr, 99);
    assert_eq!(tree.put(&mut txn, one, &[0; VALUE_MAX + 1]), Err(Error::TooBig));
}

#[test]
fn costs_are_upper_bounds() {
    let (mut txn, tree) = fresh();
    for i in 0..30_000 {
        let cost = Tree::insert_cost(tree.level(&txn).unwrap(), 1);
        let (next, before) = (txn.next, txn.blocks.clone());
        tree.insert(&mut txn, scattered(i), &vec![1; (i % 300) as usize]).unwrap();
        assert!(txn.next - next <= cost.new_blocks.into());
        let changed = txn
            .blocks
            .iter()
            .filter(|(n, b)| before.get(n).is_none_or(|old| !std::sync::Arc::ptr_eq(old, b)));
        // Only now and then: counting is slow.
        assert!(i % 97 != 0 || changed.count() <= cost.log_blocks as usize);
    }
}

/// No content of a page makes any operation panic or run for ever.
#[test]
fn damaged_pages_are_errors() {
    let (mut txn, tree) = fresh();
    for i in 0..9000u64 {
        tree.insert(&mut txn, ItemKey::new(ItemKind::Extent, i * 2), &[7; 24]).unwrap();
    }
    assert_eq!(tree.level(&txn).unwrap(), 1);
    let blocks: Vec<BlockNo> = txn.blocks.keys().copied().collect();
    let mut random = 1u64;
    for round in 0..4000u64 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let r = (random >> 20) as usize;
        // Half of the damage is in the root, where it is worst.
        let block = if round % 2 == 0 { blocks[0] } else { blocks[r % blocks.len()] };
        let mut bad = MemoryTxn { blocks: txn.blocks.clone(), next: txn.next, ..Default::default() };
        let image = std::sync::Arc::make_mut(bad.blocks.get_mut(&block).unwrap());
        let at = if round % 3 == 0 { 64 + r % 600 } else { 64 + r % 4032 };
        image.0[at] = (random >> 56) as u8;
        let key = |n: usize| ItemKey::new(ItemKind::Extent, n as u64 % 18_000);
        let _ = tree.read_attr(&bad);
        let _ = tree.get(&bad, key(r));
        let _ = tree.floor(&bad, ItemKey::new(ItemKind::Extent, u64::MAX));
        let _ = tree.floor(&bad, key(r / 3));
        let mut visited = 0u64;
        let _ = tree.scan(&bad, ItemKey::new(ItemKind::Xattr, 0), None, &mut |_, _| {
            visited += 1;
            ControlFlow::Continue(())
        });
        assert!(visited <= 9001, "an item seen twice");
        let _ = tree.insert(&mut bad, key(r / 5), &[1; 900]);
        let _ = tree.put(&mut bad, key(r / 7), &[1; 900]);
        for i in 0..20 {
            let _ = tree.remove(&mut bad, key(r / 11 + i));
        }
        let _ = tree.free_pages(&mut bad, 1000);
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
        2 => (0..400u64, 0..=VALUE_MAX).prop_map(|(k, n)| Change::Put(k, n)),
        5 => (0..400u64).prop_map(Change::Remove),
        1 => (0..420u64).prop_map(Change::Floor),
    ]
}

/// Items of three kinds, so that searches meet neighbours of another kind.
fn mixed(id: u64) -> ItemKey {
    ItemKey::new([ItemKind::Xattr, ItemKind::Extent, ItemKind::Dirent][(id / 140 % 3) as usize], id)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_sorted_map(changes in prop::collection::vec(change(), 1..600)) {
        let (mut txn, tree) = fresh();
        let mut model: BTreeMap<ItemKey, Vec<u8>> = BTreeMap::new();
        for c in changes {
            match c {
                Change::Insert(k, n) => {
                    let done = tree.insert(&mut txn, mixed(k), &vec![k as u8; n]);
                    prop_assert_eq!(done.is_ok(), !model.contains_key(&mixed(k)));
                    model.entry(mixed(k)).or_insert_with(|| vec![k as u8; n]);
                }
                Change::Put(k, n) => {
                    tree.put(&mut txn, mixed(k), &vec![!k as u8; n]).unwrap();
                    model.insert(mixed(k), vec![!k as u8; n]);
                }
                Change::Remove(k) => {
                    let there = model.remove(&mixed(k)).is_some();
                    prop_assert_eq!(tree.remove(&mut txn, mixed(k)).unwrap(), there);
                }
                Change::Floor(k) => {
                    let found = tree.floor(&txn, mixed(k)).unwrap();
                    let of_kind = ItemKey::new(mixed(k).kind, 0)..=mixed(k);
                    prop_assert_eq!(found, model.range(of_kind).next_back().map(|(k, v)| (*k, v.clone())));
                }
            }
        }
        sound(&tree, &txn);
        prop_assert_eq!(contents(&tree, &txn), model.clone().into_iter().collect::<Vec<_>>());
        for key in model.keys() {
            prop_assert!(tree.get(&txn, *key).unwrap().is_some());
            prop_assert!(tree.remove(&mut txn, *key).unwrap());
        }
        prop_assert_eq!(txn.in_use(), 1);
    }
}
