//! Adding to the item tree: insertion, replacement, page splits, growth of the root.

use super::tree::{Fence, INLINE_MAX, Step, Tree};
use crate::base::{BlockNo, Error, Result};
use crate::format::BlockKind;
use crate::format::item::{CHILD_SIZE, ItemKey, ItemKind, Key, LEVEL_MAX, Page, VALUE_MAX, item_size};
use crate::txn::BlockTxn;

/// A child pointer to be put behind the step's child: the outcome of a split below.
struct Separator {
    key: Key,
    child: [u8; CHILD_SIZE],
}

impl Tree {
    /// Insert a new item.
    ///
    /// # Errors
    /// `Exists` if the key is there; `TooBig` for a value longer than `VALUE_MAX` (inline data:
    /// [`INLINE_MAX`]); `Damaged`, `Corrupt`, and what the transaction answers.
    pub fn insert(&self, txn: &mut dyn BlockTxn, key: ItemKey, value: &[u8]) -> Result<()> {
        self.add(txn, key, value, false)
    }

    /// Insert an item or replace its value.
    ///
    /// # Errors
    /// As [`Tree::insert`], but for `Exists`.
    pub fn put(&self, txn: &mut dyn BlockTxn, key: ItemKey, value: &[u8]) -> Result<()> {
        self.add(txn, key, value, true)
    }

    fn add(&self, txn: &mut dyn BlockTxn, key: ItemKey, value: &[u8], replace: bool) -> Result<()> {
        let limit = if key.kind == ItemKind::Inline { INLINE_MAX } else { VALUE_MAX };
        if value.len() > limit {
            return Err(Error::TooBig);
        }
        let raw = Key::from(key);
        // Every round that does not end it leaves less around the place of the item: a second split
        // of the leaf, for an inline value between other items, is the last.
        loop {
            let (mut path, leaf) = self.path_to(txn, raw)?;
            let page = self.leaf_page(&leaf)?;
            let free = page.free();
            match page.search(raw) {
                Ok(_) if !replace => return Err(Error::Exists),
                Ok(at) if value.len() <= free + page.value(at).len() => {
                    let block = leaf.block;
                    drop(leaf);
                    return self.change_page(txn, block, |p| p.replace_at(at, value));
                }
                Ok(at) => {
                    // Too long for its page: it moves like a new one.
                    let block = leaf.block;
                    drop(leaf);
                    self.change_page(txn, block, |p| p.remove_at(at))?;
                }
                Err(at) if item_size(value.len()) <= free => {
                    let block = leaf.block;
                    drop(leaf);
                    return self.change_page(txn, block, |p| p.insert_at(at, raw, value));
                }
                Err(_) => {
                    let (block, fence) = (leaf.block, leaf.fence);
                    drop(leaf);
                    if self.split(txn, &mut path, block, fence, raw, value)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Split the full page `block`, which `path` leads to, and put the item into the half it
    /// belongs to; `false` if even a half had no room for it.
    fn split(
        &self,
        txn: &mut dyn BlockTxn,
        path: &mut Vec<Step>,
        block: BlockNo,
        fence: Fence,
        key: Key,
        value: &[u8],
    ) -> Result<bool> {
        if block == self.ino.block() {
            let child = self.grow_root(txn)?;
            path.push(Step { block, index: 0 });
            return self.add_below_root(txn, path, child, fence, key, value);
        }
        let image = self.load(txn, block)?;
        let page = self.page(&image, block, None, fence)?;
        let (level, capacity) = (page.level(), page.capacity());
        let Err(at) = page.search(key) else { return Err(self.damaged("a page splits at a key it has")) };
        let plan = split_point(&page, at, value.len(), capacity);
        // What cannot be cut in two with the item in it is cut before the item, without it.
        let (cut, placed) = plan.map_or((at, false), |cut| (cut, true));
        let mut items: Vec<(Key, &[u8])> = page.items().collect();
        if placed {
            items.insert(at, (key, value));
        }
        if cut == 0 || cut >= items.len() {
            return Err(self.damaged("a page that cannot be split"));
        }
        let separator = items[cut].0;
        let right = txn.alloc_block(BlockKind::TreePage, self.ino, self.cover, block)?;
        let (left_items, right_items) = items.split_at(cut);
        // Above the leaves the first key of a page is its parent's: the lowest.
        let first = if level > 0 { Key::LOWEST } else { separator };
        let lowered = right_items.iter().enumerate().map(|(i, (k, v))| (if i == 0 { first } else { *k }, *v));
        self.change_page(txn, right, |p| p.rebuild(level, lowered))?;
        self.change_page(txn, block, |p| p.rebuild(level, left_items.iter().copied()))?;
        self.link(txn, path, Separator { key: separator, child: right.0.to_le_bytes() })?;
        Ok(placed)
    }

    /// The root has given its content to `child`, where there is a little more room.
    fn add_below_root(
        &self,
        txn: &mut dyn BlockTxn,
        path: &mut Vec<Step>,
        child: BlockNo,
        fence: Fence,
        key: Key,
        value: &[u8],
    ) -> Result<bool> {
        let image = self.load(txn, child)?;
        let page = self.page(&image, child, None, fence)?;
        let fits = item_size(value.len()) <= page.free();
        let found = page.search(key);
        drop(image);
        match found {
            Err(at) if fits => {
                self.change_page(txn, child, |p| p.insert_at(at, key, value))?;
                Ok(true)
            }
            _ => self.split(txn, path, child, fence, key, value),
        }
    }

    /// Put the outcome of a split into the page above.
    fn link(&self, txn: &mut dyn BlockTxn, path: &mut Vec<Step>, separator: Separator) -> Result<()> {
        let Some(Step { block, index }) = path.pop() else {
            return Err(self.damaged("a page below the root without a parent"));
        };
        let image = self.load(txn, block)?;
        let fence = Fence { low: Key::LOWEST, high: None };
        let page = self.page(&image, block, None, fence)?;
        if page.search(separator.key) != Err(index + 1) {
            return Err(self.damaged("a separator out of order"));
        }
        let fits = item_size(CHILD_SIZE) <= page.free();
        drop(image);
        if fits {
            return self.change_page(txn, block, |p| p.insert_at(index + 1, separator.key, &separator.child));
        }
        match self.split(txn, path, block, fence, separator.key, &separator.child)? {
            true => Ok(()),
            false => Err(self.damaged("a page without room for a child pointer")),
        }
    }

    /// Move the root's content into a new page, the root's only child. Returns that page.
    fn grow_root(&self, txn: &mut dyn BlockTxn) -> Result<BlockNo> {
        let root = self.ino.block();
        let image = self.load(txn, root)?;
        let page = self.page(&image, root, None, Fence { low: Key::LOWEST, high: None })?;
        let level = page.level();
        if level == LEVEL_MAX {
            return Err(Error::FileTooLarge);
        }
        let child = txn.alloc_block(BlockKind::TreePage, self.ino, self.cover, root)?;
        self.change_page(txn, child, |p| p.rebuild(level, page.items()))?;
        let pointer = child.0.to_le_bytes();
        self.change_page(txn, root, |p| {
            p.rebuild(level + 1, std::iter::once((Key::LOWEST, &pointer[..])));
        })?;
        Ok(child)
    }
}

/// How many items stay left when `page` is cut in two with a new item of `len` bytes at index `at`:
/// in the middle by bytes; but behind everything if the new item comes last, for keys that ascend
/// would leave half-empty pages behind them for ever. `None` if one half always overflows, which
/// only an inline value between other items brings about.
fn split_point(page: &Page<'_>, at: usize, len: usize, capacity: usize) -> Option<usize> {
    let n = page.count();
    if at == n {
        return Some(n);
    }
    let size = |i: usize| match i.cmp(&at) {
        std::cmp::Ordering::Less => item_size(page.value(i).len()),
        std::cmp::Ordering::Equal => item_size(len),
        std::cmp::Ordering::Greater => item_size(page.value(i - 1).len()),
    };
    let total = page.used() + item_size(len);
    let mut left = 0;
    let mut best = None;
    for cut in 1..=n {
        left += size(cut - 1);
        let right = total - left;
        if left <= capacity && right <= capacity && best.is_none_or(|(_, d)| left.abs_diff(right) < d) {
            best = Some((cut, left.abs_diff(right)));
        }
    }
    best.map(|(cut, _)| cut)
}
