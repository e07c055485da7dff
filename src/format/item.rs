//! The item page: sorted keys, each with a value. Root pages inside inode blocks and whole
//! `TreePage` blocks have this one layout, so there is one tree and one walker for fsck.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | level: 0 for a leaf, else 1 + the level of its children |
//! | 1 | 1 | zero |
//! | 2 | 2 | count of slots |
//! | 4 | 4 | zero |
//! | 8 | 14 * count | slots in ascending key order |
//! | .. | .. | zeros |
//! | .. | .. | values, the first slot's at the very end of the page, each next one below it |
//!
//! A slot is id u64, kind u8, zero u8, offset u16 (from the start of the page), length u16. Because
//! values lie without gaps in slot order, equal content is equal bytes, and one pass over the slots
//! proves that no value overlaps another or leaves the page.
//!
//! In pages above the leaves a value is the u64 number of a child block, and a key is the lowest
//! that the child may hold; the first key is always [`Key::LOWEST`] and stands for "everything
//! below the second".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before the first slot.
pub const PAGE_HEADER_SIZE: usize = 8;
/// Bytes of a slot.
pub const SLOT_SIZE: usize = 14;
/// Longest value; only an [`ItemKind::Inline`] item may be longer.
pub const VALUE_MAX: usize = 1000;
/// Bytes of the value of a page above the leaves.
pub const CHILD_SIZE: usize = 8;
/// Highest level of a root page. Far beyond what the largest volume can fill: it bounds the walk
/// through a damaged tree.
pub const LEVEL_MAX: u8 = 7;

/// What an item holds. Numbers are on disk; the order of kinds is the order of items. Numbers from
/// 128 on are reserved for features behind an incompat bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ItemKind {
    /// One extended attribute; id = hash of the name << 8 | index.
    Xattr = 1,
    /// The target of a symbolic link; id 0.
    Symlink = 2,
    /// The whole data of a small file; id 0.
    Inline = 3,
    /// A run of data blocks; id = first logical block.
    Extent = 4,
    /// A directory entry; id = hash of the name << 8 | index.
    Dirent = 5,
    /// In a slot's inode: an inode to be reaped; id = its number.
    Orphan = 6,
    /// In a slot's inode: blocks to be freed in a group not held; id = first block.
    DeferredFree = 7,
}

impl ItemKind {
    /// From the on-disk number.
    pub fn from_raw(raw: u8) -> Option<ItemKind> {
        use ItemKind::*;
        [Xattr, Symlink, Inline, Extent, Dirent, Orphan, DeferredFree].into_iter().find(|k| *k as u8 == raw)
    }
}

/// The key of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    pub kind: ItemKind,
    pub id: u64,
}

impl ItemKey {
    /// Shorthand.
    pub const fn new(kind: ItemKind, id: u64) -> ItemKey {
        ItemKey { kind, id }
    }
}

/// A key as a page holds it: any kind byte, known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: u8,
    pub id: u64,
}

impl Key {
    /// Below every key of an item.
    pub const LOWEST: Key = Key { kind: 0, id: 0 };

    /// The item key, if the kind is known.
    pub fn item(self) -> Option<ItemKey> {
        Some(ItemKey { kind: ItemKind::from_raw(self.kind)?, id: self.id })
    }
}

impl From<ItemKey> for Key {
    fn from(k: ItemKey) -> Key {
        Key { kind: k.kind as u8, id: k.id }
    }
}

/// First bytes of a page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PageHeader {
    pub level: u8,
    pub zero: u8,
    pub count: U16,
    pub spare: U32,
}

/// Where a key's value is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Slot {
    pub id: U64,
    pub kind: u8,
    pub zero: u8,
    pub offset: U16,
    pub length: U16,
}

const _: () = assert!(size_of::<PageHeader>() == PAGE_HEADER_SIZE);
const _: () = assert!(size_of::<Slot>() == SLOT_SIZE);

impl Slot {
    fn key(&self) -> Key {
        Key { kind: self.kind, id: self.id.get() }
    }

    fn start(&self) -> usize {
        self.offset.get().into()
    }

    fn end(&self) -> usize {
        self.start() + usize::from(self.length.get())
    }
}

/// What is wrong with a page.
pub type PageFault = &'static str;

/// Bytes that an item with a value of `len` bytes takes.
pub const fn item_size(len: usize) -> usize {
    SLOT_SIZE + len
}

fn header(bytes: &[u8]) -> &PageHeader {
    PageHeader::ref_from_prefix(bytes).expect("pages are longer than their header").0
}

fn slots(bytes: &[u8], count: usize) -> Option<&[Slot]> {
    <[Slot]>::ref_from_bytes(bytes.get(PAGE_HEADER_SIZE..PAGE_HEADER_SIZE + count * SLOT_SIZE)?).ok()
}

/// A page that was checked, to be read: none of its methods can fail on what the bytes say.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    bytes: &'a [u8],
    slots: &'a [Slot],
}

impl<'a> Page<'a> {
    /// Check the whole page: order, bounds, no gaps; child pointers above the leaves.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(bytes: &'a [u8]) -> Result<Page<'a>, PageFault> {
        if bytes.len() < PAGE_HEADER_SIZE || bytes.len() > usize::from(u16::MAX) {
            return Err("impossible page size");
        }
        let h = header(bytes);
        if h.level > LEVEL_MAX {
            return Err("level too high");
        }
        let slots = slots(bytes, h.count.get().into()).ok_or("more slots than the page can hold")?;
        let mut floor = bytes.len();
        let mut last = None;
        for slot in slots {
            if slot.end() != floor {
                return Err("a value is not where its neighbours leave room for it");
            }
            floor = slot.start();
            if last >= Some(slot.key()) {
                return Err("keys out of order");
            }
            if h.level > 0 && usize::from(slot.length.get()) != CHILD_SIZE {
                return Err("a child pointer of the wrong size");
            }
            last = Some(slot.key());
        }
        if floor < PAGE_HEADER_SIZE + slots.len() * SLOT_SIZE {
            return Err("values run into the slots");
        }
        if h.level > 0 && slots.first().is_none_or(|s| s.key() != Key::LOWEST) {
            return Err("no child for the lowest keys");
        }
        Ok(Page { bytes, slots })
    }

    /// A page that has passed [`Page::check`] before and is as it was then.
    pub fn checked(bytes: &'a [u8]) -> Page<'a> {
        debug_assert!(Page::check(bytes).is_ok());
        let count = header(bytes).count.get().into();
        Page { bytes, slots: slots(bytes, count).expect("found sound before") }
    }

    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        header(self.bytes).level
    }

    /// Number of items.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// The `i`-th key; `i < count`.
    pub fn key(&self, i: usize) -> Key {
        self.slots[i].key()
    }

    /// The `i`-th value; `i < count`.
    pub fn value(&self, i: usize) -> &'a [u8] {
        &self.bytes[self.slots[i].start()..self.slots[i].end()]
    }

    /// The `i`-th child's block number; above the leaves, `i < count`.
    pub fn child(&self, i: usize) -> u64 {
        u64::from_le_bytes(self.value(i).try_into().expect("checked: child pointers have 8 bytes"))
    }

    /// Index of `key`, or where it would have to be inserted.
    pub fn search(&self, key: Key) -> Result<usize, usize> {
        self.slots.binary_search_by(|s| s.key().cmp(&key))
    }

    /// Index of the child whose range holds `key`; above the leaves.
    pub fn child_for(&self, key: Key) -> usize {
        match self.search(key) {
            Ok(i) => i,
            // The first key is the lowest there is, so an insertion point is never 0; a leaf asked
            // by mistake must not underflow all the same.
            Err(i) => i.saturating_sub(1),
        }
    }

    /// Bytes of all items, without the header.
    pub fn used(&self) -> usize {
        let floor = self.slots.last().map_or(self.bytes.len(), Slot::start);
        self.bytes.len() - floor + self.slots.len() * SLOT_SIZE
    }

    /// Bytes that items may take in all.
    pub fn capacity(&self) -> usize {
        self.bytes.len() - PAGE_HEADER_SIZE
    }

    /// Bytes still free for items.
    pub fn free(&self) -> usize {
        self.capacity() - self.used()
    }

    /// All items in order.
    pub fn items(self) -> impl Iterator<Item = (Key, &'a [u8])> + Clone {
        (0..self.count()).map(move |i| (self.key(i), self.value(i)))
    }

    /// Is every byte that holds nothing zero? (For fsck: old content must not leak.)
    pub fn slack_is_zero(&self) -> bool {
        let from = PAGE_HEADER_SIZE + self.slots.len() * SLOT_SIZE;
        let to = self.slots.last().map_or(self.bytes.len(), Slot::start);
        let h = header(self.bytes);
        h.zero == 0
            && h.spare.get() == 0
            && self.slots.iter().all(|s| s.zero == 0)
            && self.bytes[from..to].iter().all(|b| *b == 0)
    }
}

/// A page to be changed. The bytes passed [`Page::check`], or are all zero (an empty leaf). Callers
/// see to it that an item fits; every method leaves a page that passes the check again.
pub struct PageMut<'a> {
    bytes: &'a mut [u8],
}

impl<'a> PageMut<'a> {
    /// See the type's conditions.
    pub fn new(bytes: &'a mut [u8]) -> PageMut<'a> {
        PageMut { bytes }
    }

    fn count(&self) -> usize {
        header(self.bytes).count.get().into()
    }

    fn header_mut(&mut self) -> &mut PageHeader {
        PageHeader::mut_from_prefix(self.bytes).expect("pages are longer than their header").0
    }

    fn slots_mut(&mut self, count: usize) -> &mut [Slot] {
        let range = PAGE_HEADER_SIZE..PAGE_HEADER_SIZE + count * SLOT_SIZE;
        <[Slot]>::mut_from_bytes(&mut self.bytes[range]).expect("a whole number of slots")
    }

    /// Start of the lowest value.
    fn floor(&mut self) -> usize {
        let n = self.count();
        let end = self.bytes.len();
        self.slots_mut(n).last().map_or(end, Slot::start)
    }

    /// Empty the page and make it one of `level`.
    pub fn reset(&mut self, level: u8) {
        self.bytes.fill(0);
        self.header_mut().level = level;
    }

    /// Empty the page, then fill it with `items`, which are in order and fit.
    pub fn rebuild<'i>(&mut self, level: u8, items: impl Iterator<Item = (Key, &'i [u8])>) {
        self.reset(level);
        let (mut n, mut floor) = (0, self.bytes.len());
        for (key, value) in items {
            let start = floor - value.len();
            self.bytes[start..floor].copy_from_slice(value);
            self.slots_mut(n + 1)[n] = slot(key, start, value.len());
            (n, floor) = (n + 1, start);
        }
        assert!(PAGE_HEADER_SIZE + n * SLOT_SIZE <= floor, "items overflow the page");
        self.header_mut().count = U16::new(n as u16);
    }

    /// Insert an item at index `at`, where [`Page::search`] said it belongs.
    pub fn insert_at(&mut self, at: usize, key: Key, value: &[u8]) {
        let (n, floor, len) = (self.count(), self.floor(), value.len());
        assert!(PAGE_HEADER_SIZE + (n + 1) * SLOT_SIZE + len <= floor, "the item does not fit the page");
        let end = self.bytes.len();
        let slots = self.slots_mut(n + 1);
        let top = if at == 0 { end } else { slots[at - 1].start() };
        slots.copy_within(at..n, at + 1);
        for s in &mut slots[at + 1..] {
            s.offset -= U16::new(len as u16);
        }
        slots[at] = slot(key, top - len, len);
        self.bytes.copy_within(floor..top, floor - len);
        self.bytes[top - len..top].copy_from_slice(value);
        self.header_mut().count = U16::new((n + 1) as u16);
    }

    /// Remove the item at index `at`. Its bytes become zero.
    pub fn remove_at(&mut self, at: usize) {
        let (n, floor) = (self.count(), self.floor());
        let slots = self.slots_mut(n);
        let (start, len) = (slots[at].start(), slots[at].length);
        for s in &mut slots[at + 1..] {
            s.offset += len;
        }
        slots.copy_within(at + 1.., at);
        slots[n - 1].as_mut_bytes().fill(0);
        let len = usize::from(len.get());
        self.bytes.copy_within(floor..start, floor + len);
        self.bytes[floor..floor + len].fill(0);
        self.header_mut().count = U16::new((n - 1) as u16);
    }

    /// Give the item at index `at` a new value, which fits.
    pub fn replace_at(&mut self, at: usize, value: &[u8]) {
        let n = self.count();
        let s = self.slots_mut(n)[at];
        if usize::from(s.length.get()) == value.len() {
            self.bytes[s.start()..s.end()].copy_from_slice(value);
        } else {
            self.remove_at(at);
            self.insert_at(at, s.key(), value);
        }
    }

    /// Give the item at index `at` another key that keeps the order.
    pub fn set_key(&mut self, at: usize, key: Key) {
        let n = self.count();
        let s = &mut self.slots_mut(n)[at];
        (s.kind, s.id) = (key.kind, U64::new(key.id));
    }
}

fn slot(key: Key, start: usize, len: usize) -> Slot {
    Slot {
        id: U64::new(key.id),
        kind: key.kind,
        zero: 0,
        offset: U16::new(start as u16),
        length: U16::new(len as u16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(id: u64) -> Key {
        Key { kind: (id % 3) as u8 + 4, id: id / 3 }
    }

    proptest! {
        #[test]
        fn a_page_is_a_small_sorted_map(ops in proptest::collection::vec((0u64..60, 0usize..300, any::<bool>()), 1..200)) {
            let mut bytes = vec![0u8; 3776];
            let mut model = BTreeMap::new();
            for (id, len, add) in ops {
                let page = Page::check(&bytes).unwrap();
                let (found, free) = (page.search(key(id)), page.free());
                let value = vec![id as u8 + 1; len];
                match found {
                    Err(at) if add && free >= item_size(len) => {
                        PageMut::new(&mut bytes).insert_at(at, key(id), &value);
                        model.insert(key(id), value);
                    }
                    Ok(at) if add && free >= len => {
                        PageMut::new(&mut bytes).replace_at(at, &value);
                        model.insert(key(id), value);
                    }
                    Ok(at) if !add => {
                        PageMut::new(&mut bytes).remove_at(at);
                        model.remove(&key(id));
                    }
                    _ => {}
                }
                let page = Page::check(&bytes).unwrap();
                prop_assert!(page.slack_is_zero());
                prop_assert!(page.items().eq(model.iter().map(|(k, v)| (*k, v.as_slice()))));
                let mut again = vec![7u8; 3776];
                PageMut::new(&mut again).rebuild(0, page.items());
                prop_assert_eq!(&again, &bytes, "equal content is equal bytes");
            }
        }

        #[test]
        fn damage_is_found_or_harmless(at in 0usize..600, byte in any::<u8>(), level in 0u8..3, want in 0u64..100) {
            let mut bytes = vec![0u8; 600];
            let child = 7u64.to_le_bytes();
            let first = std::iter::once((Key::LOWEST, &child[..]));
            PageMut::new(&mut bytes).rebuild(level, first.chain((1..20).map(|i| (Key { kind: 5, id: i }, &child[..]))));
            bytes[at] = byte;
            if let Ok(page) = Page::check(&bytes) {
                let _ = page.search(Key { kind: 5, id: want });
                prop_assert_eq!(page.items().map(|(_, v)| item_size(v.len())).sum::<usize>(), page.used());
                if page.level() > 0 {
                    page.child(page.child_for(Key { kind: 5, id: want }));
                }
                if page.count() > 0 {
                    let mut copy = bytes.clone();
                    PageMut::new(&mut copy).remove_at(want as usize % page.count());
                }
            }
        }
    }

    #[test]
    fn kinds_sort_as_declared_and_are_stable_on_disk() {
        assert!(ItemKind::Xattr < ItemKind::Symlink && ItemKind::Extent < ItemKind::Dirent);
        for raw in 0..=255 {
            assert!(ItemKind::from_raw(raw).is_none_or(|k| k as u8 == raw && raw < 128));
        }
    }
}
