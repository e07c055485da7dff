//! The item page: a small sorted map, the same in inode blocks and tree pages.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | items |
//! | 2 | 2 | offset of the lowest value, from the start of the page |
//! | 4 | 1 | level: 0 leaf, else interior (values are child block numbers) |
//! | 5 | 3 | zero |
//! | 8 | 16 each | slots in key order: id u64, kind u8, zero u8, value offset u16, value length u16, zero u16 |
//! | ... | | free, zero |
//! | | | values, from the end of the page downwards, no gaps |
//!
//! In an interior page the key of a slot is not greater than any key below it; the first slot also
//! takes everything smaller.

/// Bytes before the first slot.
pub const PAGE_HEADER: usize = 8;
/// Bytes of a slot.
pub const SLOT: usize = 16;
/// Longest value of any kind but inline data.
pub const VALUE_MAX: usize = 1000;

/// What an item is. Numbers are on disk; the order is the order in the page. From 128 on reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ItemKind {
    Xattr = 1,
    Symlink = 2,
    Inline = 3,
    Extent = 4,
    Dirent = 5,
    Orphan = 6,
    DeferredFree = 7,
}

impl ItemKind {
    /// From the on-disk byte.
    pub fn from_raw(raw: u8) -> Option<ItemKind> {
        use ItemKind::*;
        [Xattr, Symlink, Inline, Extent, Dirent, Orphan, DeferredFree].into_iter().find(|k| *k as u8 == raw)
    }
}

/// Key of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    pub kind: ItemKind,
    pub id: u64,
}

impl ItemKey {
    /// Shorthand.
    pub fn new(kind: ItemKind, id: u64) -> ItemKey {
        ItemKey { kind, id }
    }
}

fn get16(page: &[u8], at: usize) -> usize {
    u16::from_le_bytes([page[at], page[at + 1]]).into()
}

fn put16(page: &mut [u8], at: usize, value: usize) {
    page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

/// A page whose content has been checked: no accessor can go wrong.
#[derive(Clone, Copy)]
pub struct Page<'a>(&'a [u8]);

impl<'a> Page<'a> {
    /// Check everything a reader relies on.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(page: &'a [u8]) -> Result<Page<'a>, String> {
        let (count, low) = (get16(page, 0), get16(page, 2));
        if PAGE_HEADER + count * SLOT > low || low > page.len() {
            return Err(format!(
                "{count} items and values from {low} on do not fit a page of {}",
                page.len()
            ));
        }
        let this = Page(page);
        let mut previous = None;
        let mut bytes = 0;
        for i in 0..count {
            let at = PAGE_HEADER + i * SLOT;
            let Some(kind) = ItemKind::from_raw(page[at + 8]) else {
                return Err(format!("item {i} has unknown kind {}", page[at + 8]));
            };
            let key = ItemKey { kind, id: this.raw_id(i) };
            if previous.is_some_and(|p| p >= key) {
                return Err(format!("item {i} is out of order"));
            }
            previous = Some(key);
            let (offset, length) = (get16(page, at + 10), get16(page, at + 12));
            if offset < low || offset + length > page.len() || (this.level() > 0 && length != 8) {
                return Err(format!("the value of item {i} lies outside the page"));
            }
            bytes += length;
        }
        if bytes != page.len() - low {
            return Err("values overlap or leave gaps".into());
        }
        Ok(this)
    }

    /// Items in the page.
    pub fn count(self) -> usize {
        get16(self.0, 0)
    }

    /// 0 for a leaf.
    pub fn level(self) -> u8 {
        self.0[4]
    }

    fn raw_id(self, i: usize) -> u64 {
        let at = PAGE_HEADER + i * SLOT;
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    /// Key of the `i`-th item.
    pub fn key(self, i: usize) -> ItemKey {
        let kind = self.0[PAGE_HEADER + i * SLOT + 8];
        ItemKey { kind: ItemKind::from_raw(kind).unwrap_or(ItemKind::DeferredFree), id: self.raw_id(i) }
    }

    /// Value of the `i`-th item.
    pub fn value(self, i: usize) -> &'a [u8] {
        let at = PAGE_HEADER + i * SLOT;
        let (offset, length) = (get16(self.0, at + 10), get16(self.0, at + 12));
        &self.0[offset..offset + length]
    }

    /// Interior pages: the child of the `i`-th slot.
    pub fn child(self, i: usize) -> u64 {
        u64::from_le_bytes(self.value(i).try_into().unwrap_or([0; 8]))
    }

    /// Where `key` is, or where it would be inserted.
    pub fn search(self, key: ItemKey) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = (low + high) / 2;
            match self.key(middle).cmp(&key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Interior pages: the slot to descend into for `key`.
    pub fn descend(self, key: ItemKey) -> usize {
        match self.search(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        }
    }

    /// Bytes that slots and values take.
    pub fn used(self) -> usize {
        self.count() * SLOT + self.0.len() - get16(self.0, 2)
    }

    /// Bytes a page of this size has for slots and values.
    pub fn capacity(self) -> usize {
        self.0.len() - PAGE_HEADER
    }

    /// All items, copied.
    pub fn items(self) -> Vec<(ItemKey, Vec<u8>)> {
        (0..self.count()).map(|i| (self.key(i), self.value(i).to_vec())).collect()
    }
}

/// Bytes that an item takes in a page.
pub fn item_size(value: &[u8]) -> usize {
    SLOT + value.len()
}

/// Make an empty page.
pub fn clear(page: &mut [u8], level: u8) {
    page.fill(0);
    let end = page.len();
    put16(page, 2, end);
    page[4] = level;
}

/// Insert at slot `i` (from [`Page::search`]). `false`, and nothing changed, if there is no room.
pub fn insert(page: &mut [u8], i: usize, key: ItemKey, value: &[u8]) -> bool {
    let (count, low) = (get16(page, 0), get16(page, 2));
    if PAGE_HEADER + (count + 1) * SLOT + value.len() > low {
        return false;
    }
    let at = PAGE_HEADER + i * SLOT;
    page.copy_within(at..PAGE_HEADER + count * SLOT, at + SLOT);
    let offset = low - value.len();
    page[offset..low].copy_from_slice(value);
    page[at..at + 8].copy_from_slice(&key.id.to_le_bytes());
    page[at + 8] = key.kind as u8;
    page[at + 9] = 0;
    put16(page, at + 10, offset);
    put16(page, at + 12, value.len());
    put16(page, at + 14, 0);
    put16(page, 0, count + 1);
    put16(page, 2, offset);
    true
}

/// Remove the `i`-th item; freed bytes are zeroed.
pub fn remove(page: &mut [u8], i: usize) {
    let (count, low) = (get16(page, 0), get16(page, 2));
    let at = PAGE_HEADER + i * SLOT;
    let (offset, length) = (get16(page, at + 10), get16(page, at + 12));
    page.copy_within(low..offset, low + length);
    page[low..low + length].fill(0);
    page.copy_within(at + SLOT..PAGE_HEADER + count * SLOT, at);
    let end = PAGE_HEADER + (count - 1) * SLOT;
    page[end..end + SLOT].fill(0);
    for j in 0..count - 1 {
        let slot = PAGE_HEADER + j * SLOT;
        let other = get16(page, slot + 10);
        // An empty value's offset may equal another's; moving it is harmless.
        if other < offset || (other == offset && get16(page, slot + 12) == 0) {
            put16(page, slot + 10, other + length);
        }
    }
    put16(page, 0, count - 1);
    put16(page, 2, low + length);
}

/// Replace the whole content.
pub fn fill(page: &mut [u8], level: u8, items: &[(ItemKey, Vec<u8>)]) -> bool {
    clear(page, level);
    items.iter().enumerate().all(|(i, (key, value))| insert(page, i, *key, value))
}
