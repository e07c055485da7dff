//! The item tree: a B+tree of item pages whose root page lies in the inode block.
//!
//! Everything an inode contains is in it. The first page is the inode's own, so small inodes are
//! one block; when it overflows, its content moves to a new page and the root becomes interior.

use super::attr::Attr;
use crate::base::{BlockNo, Error, InodeNo, LockName, Result};
use crate::format::inode::{DiskAttr, ROOT_PAGE, TREE_PAGE};
use crate::format::item::{self, ItemKey, ItemKind, Page, VALUE_MAX};
use crate::format::{Block, BlockKind};
use crate::txn::{BlockSource, BlockTxn};
use std::ops::ControlFlow;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// What a change of a tree may cost at worst, for reservations.
pub mod tree_costs {
    /// Deepest tree that one volume can need (each level holds at least 50 children).
    pub const DEPTH_MAX: u32 = 8;
    /// New blocks that one insert may allocate.
    pub const NEW_BLOCKS: u32 = DEPTH_MAX + 1;
    /// Blocks that one insert or removal may change, new ones included.
    pub const LOG_BLOCKS: u32 = 2 * DEPTH_MAX + 2;
}

/// A page fuller than this is not merged with its neighbour (of its capacity, in percent).
const MERGE_PERCENT: usize = 30;
/// Largest inline value: it must share a tree page with any one other item.
pub const INLINE_MAX: usize = 2960;

/// The tree of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    pub ino: InodeNo,
    /// The lock that covers its blocks: the inode's, or a slot's for system inodes.
    pub cover: LockName,
}

/// One step on the way down: the page and the slot taken.
#[derive(Clone, Copy, Debug)]
struct Visit {
    block: BlockNo,
    slot: usize,
}

impl Tree {
    /// The tree of an ordinary inode.
    pub fn of(ino: InodeNo) -> Tree {
        Tree { ino, cover: LockName::Inode(ino) }
    }

    fn place(&self, block: BlockNo) -> (BlockKind, usize) {
        if block == self.ino.block() {
            (BlockKind::Inode, ROOT_PAGE)
        } else {
            (BlockKind::TreePage, TREE_PAGE)
        }
    }

    fn load(&self, src: &dyn BlockSource, block: BlockNo) -> Result<Arc<Block>> {
        let (kind, _) = self.place(block);
        let image = src.read(block, kind, self.cover)?;
        if image.header().owner.get() != self.ino.0 {
            return Err(self.damaged(format!("block {block} belongs to {}", image.header().owner.get())));
        }
        Ok(image)
    }

    fn page<'b>(&self, block: BlockNo, image: &'b Block) -> Result<Page<'b>> {
        Page::check(&image.0[self.place(block).1..])
            .map_err(|e| self.damaged(format!("item page {block}: {e}")))
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged { inode: self.ino, what }
    }

    /// The path to the leaf for `key`, the leaf last (its slot is 0), and the leaf's image.
    fn path(&self, src: &dyn BlockSource, key: ItemKey) -> Result<(Vec<Visit>, Arc<Block>)> {
        let mut path = Vec::with_capacity(4);
        let mut block = self.ino.block();
        let mut above: Option<u8> = None;
        loop {
            let image = self.load(src, block)?;
            let page = self.page(block, &image)?;
            if above.is_some_and(|level| page.level() + 1 != level) {
                return Err(self.damaged(format!("page {block} has level {}", page.level())));
            }
            if page.level() == 0 {
                path.push(Visit { block, slot: 0 });
                return Ok((path, image));
            }
            if page.count() == 0 {
                return Err(self.damaged(format!("interior page {block} is empty")));
            }
            let slot = page.descend(key);
            path.push(Visit { block, slot });
            above = Some(page.level());
            block = BlockNo(page.child(slot));
        }
    }

    /// The value of `key`.
    pub fn get(&self, src: &dyn BlockSource, key: ItemKey) -> Result<Option<Vec<u8>>> {
        let (path, image) = self.path(src, key)?;
        let page = self.page(path[path.len() - 1].block, &image)?;
        Ok(page.search(key).ok().map(|i| page.value(i).to_vec()))
    }

    /// The item with the greatest key of the same kind that is not greater than `key`.
    pub fn floor(&self, src: &dyn BlockSource, key: ItemKey) -> Result<Option<(ItemKey, Vec<u8>)>> {
        let mut look = key;
        loop {
            let (path, image) = self.path(src, look)?;
            let page = self.page(path[path.len() - 1].block, &image)?;
            let found = match page.search(key) {
                Ok(i) => Some(i),
                Err(i) => i.checked_sub(1),
            };
            if let Some(i) = found {
                let at = page.key(i);
                return Ok((at.kind == key.kind).then(|| (at, page.value(i).to_vec())));
            }
            // Everything here is greater: the answer is the last item of the leaf before.
            match self.before(src, &path)? {
                Some(last) => look = last,
                None => return Ok(None),
            }
        }
    }

    /// The last key of the leaf before the one that `path` leads to.
    fn before(&self, src: &dyn BlockSource, path: &[Visit]) -> Result<Option<ItemKey>> {
        let Some(up) = path[..path.len() - 1].iter().rposition(|v| v.slot > 0) else { return Ok(None) };
        let image = self.load(src, path[up].block)?;
        let mut block = BlockNo(self.page(path[up].block, &image)?.child(path[up].slot - 1));
        loop {
            let image = self.load(src, block)?;
            let page = self.page(block, &image)?;
            if page.count() == 0 {
                return Err(self.damaged(format!("page {block} is empty")));
            }
            if page.level() == 0 {
                return Ok(Some(page.key(page.count() - 1)));
            }
            block = BlockNo(page.child(page.count() - 1));
        }
    }

    /// Visit items from `from` on in key order, up to and without `end`, until `visit` breaks.
    pub fn scan(
        &self,
        src: &dyn BlockSource,
        from: ItemKey,
        end: Option<ItemKey>,
        visit: &mut dyn FnMut(ItemKey, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut next = Some(from);
        while let Some(start) = next.take() {
            let (path, image) = self.path(src, start)?;
            let page = self.page(path[path.len() - 1].block, &image)?;
            let first = page.search(start).unwrap_or_else(|i| i);
            for i in first..page.count() {
                let key = page.key(i);
                if end.is_some_and(|e| key >= e) || visit(key, page.value(i)).is_break() {
                    return Ok(());
                }
            }
            next = self.after(src, &path)?;
        }
        Ok(())
    }

    /// The separator of the leaf behind the one that `path` leads to.
    fn after(&self, src: &dyn BlockSource, path: &[Visit]) -> Result<Option<ItemKey>> {
        for visit in path[..path.len() - 1].iter().rev() {
            let image = self.load(src, visit.block)?;
            let page = self.page(visit.block, &image)?;
            if visit.slot + 1 < page.count() {
                return Ok(Some(page.key(visit.slot + 1)));
            }
        }
        Ok(None)
    }

    fn modify(
        &self,
        txn: &mut dyn BlockTxn,
        block: BlockNo,
        change: &mut dyn FnMut(&mut [u8]),
    ) -> Result<()> {
        let (kind, at) = self.place(block);
        txn.modify(block, kind, self.cover, &mut |b: &mut Block| change(&mut b.0[at..]))
    }

    /// Insert a new item.
    ///
    /// # Errors
    /// `Exists` if the key is there.
    pub fn insert(&self, txn: &mut dyn BlockTxn, key: ItemKey, value: &[u8]) -> Result<()> {
        let limit = if key.kind == ItemKind::Inline { INLINE_MAX } else { VALUE_MAX };
        if value.len() > limit {
            return Err(Error::TooBig);
        }
        let (path, image) = self.path(txn, key)?;
        let leaf = path[path.len() - 1].block;
        let slot = match self.page(leaf, &image)?.search(key) {
            Ok(_) => return Err(Error::Exists),
            Err(slot) => slot,
        };
        drop(image);
        self.insert_at(txn, &path, slot, key, value)
    }

    /// Insert into the page at the end of `path`, splitting upwards as far as it takes.
    fn insert_at(
        &self,
        txn: &mut dyn BlockTxn,
        path: &[Visit],
        slot: usize,
        key: ItemKey,
        value: &[u8],
    ) -> Result<()> {
        let block = path[path.len() - 1].block;
        let mut fits = false;
        {
            let image = self.load(txn, block)?;
            let page = self.page(block, &image)?;
            let room = page.used() + item::item_size(value) <= page.capacity();
            drop(image);
            if room {
                self.modify(txn, block, &mut |p| fits = item::insert(p, slot, key, value))?;
            }
        }
        if fits {
            return Ok(());
        }
        if path.len() == 1 {
            return self.grow_root(txn, slot, key, value);
        }
        let (least, separator, sibling) = self.split(txn, block, slot, key, value)?;
        let up = &path[..path.len() - 1];
        let Visit { block: parent, slot: own } = up[up.len() - 1];
        if own == 0 {
            // The first slot also takes smaller keys: its own must stay below the new separator.
            self.modify(txn, parent, &mut |p| {
                item::remove(p, 0);
                item::insert(p, 0, least, &block.0.to_le_bytes());
            })?;
        }
        self.insert_at(txn, up, own + 1, separator, &sibling.0.to_le_bytes())
    }

    /// The root is full: its content moves into a new page below it.
    fn grow_root(&self, txn: &mut dyn BlockTxn, slot: usize, key: ItemKey, value: &[u8]) -> Result<()> {
        let root = self.ino.block();
        let image = self.load(txn, root)?;
        let page = self.page(root, &image)?;
        let (level, items) = (page.level(), page.items());
        if u32::from(level) + 1 >= tree_costs::DEPTH_MAX {
            return Err(self.damaged(format!("the tree is {level} levels deep")));
        }
        let child = txn.alloc_block(BlockKind::TreePage, self.ino, self.cover, root)?;
        self.modify(txn, child, &mut |p| {
            item::fill(p, level, &items);
        })?;
        let first = items.first().map_or(key, |(k, _)| (*k).min(key));
        let pointer = vec![(first, child.0.to_le_bytes().to_vec())];
        self.modify(txn, root, &mut |p| {
            item::fill(p, level + 1, &pointer);
        })?;
        let path = [Visit { block: root, slot: 0 }, Visit { block: child, slot: 0 }];
        self.insert_at(txn, &path, slot, key, value)
    }

    /// Split a page that is not the root, with a new item in it. Returns the first keys of both and
    /// the new right sibling.
    fn split(
        &self,
        txn: &mut dyn BlockTxn,
        block: BlockNo,
        slot: usize,
        key: ItemKey,
        value: &[u8],
    ) -> Result<(ItemKey, ItemKey, BlockNo)> {
        let image = self.load(txn, block)?;
        let page = self.page(block, &image)?;
        let (level, capacity, mut items) = (page.level(), page.capacity(), page.items());
        items.insert(slot, (key, value.to_vec()));
        let at = split_point(&items, capacity, slot + 1 == items.len())
            .ok_or_else(|| self.damaged(format!("page {block} cannot be split")))?;
        let right = items.split_off(at);
        let sibling = txn.alloc_block(BlockKind::TreePage, self.ino, self.cover, block)?;
        self.modify(txn, sibling, &mut |p| {
            item::fill(p, level, &right);
        })?;
        self.modify(txn, block, &mut |p| {
            item::fill(p, level, &items);
        })?;
        Ok((items[0].0, right[0].0, sibling))
    }

    /// Insert or replace.
    pub fn put(&self, txn: &mut dyn BlockTxn, key: ItemKey, value: &[u8]) -> Result<()> {
        let (path, image) = self.path(txn, key)?;
        let leaf = path[path.len() - 1].block;
        let same_size = match self.page(leaf, &image)?.search(key) {
            Ok(i) => self.page(leaf, &image)?.value(i).len() == value.len(),
            Err(_) => {
                drop(image);
                return self.insert(txn, key, value);
            }
        };
        drop(image);
        if !same_size {
            self.remove(txn, key)?;
            return self.insert(txn, key, value);
        }
        self.modify(txn, leaf, &mut |p| {
            let Ok(i) = Page::check(p).map_or(Err(0), |page| page.search(key)) else { return };
            item::remove(p, i);
            item::insert(p, i, key, value);
        })
    }

    /// Remove an item. `false` if it is not there.
    pub fn remove(&self, txn: &mut dyn BlockTxn, key: ItemKey) -> Result<bool> {
        let (path, image) = self.path(txn, key)?;
        let leaf = path[path.len() - 1].block;
        let Ok(slot) = self.page(leaf, &image)?.search(key) else { return Ok(false) };
        drop(image);
        self.remove_at(txn, &path, slot)?;
        Ok(true)
    }

    fn remove_at(&self, txn: &mut dyn BlockTxn, path: &[Visit], slot: usize) -> Result<()> {
        let block = path[path.len() - 1].block;
        self.modify(txn, block, &mut |p| item::remove(p, slot))?;
        if path.len() == 1 {
            return self.shrink_root(txn);
        }
        let image = self.load(txn, block)?;
        let page = self.page(block, &image)?;
        let (empty, sparse) = (page.count() == 0, page.used() * 100 < page.capacity() * MERGE_PERCENT);
        drop(image);
        let up = &path[..path.len() - 1];
        let own_slot = up[up.len() - 1].slot;
        if empty {
            txn.free_block(block, BlockKind::TreePage, self.cover)?;
            return self.remove_at(txn, up, own_slot);
        }
        if sparse {
            return self.merge(txn, up, own_slot);
        }
        Ok(())
    }

    /// Merge a sparse page with a neighbour under the same parent, if both fit one page.
    fn merge(&self, txn: &mut dyn BlockTxn, up: &[Visit], own_slot: usize) -> Result<()> {
        let parent = up[up.len() - 1].block;
        let image = self.load(txn, parent)?;
        let page = self.page(parent, &image)?;
        for left in [own_slot.checked_sub(1), Some(own_slot)].into_iter().flatten() {
            if left + 1 >= page.count() {
                continue;
            }
            let (a, b) = (BlockNo(page.child(left)), BlockNo(page.child(left + 1)));
            let (left_image, right_image) = (self.load(txn, a)?, self.load(txn, b)?);
            let (l, r) = (self.page(a, &left_image)?, self.page(b, &right_image)?);
            // Room is left so that the next insert does not split it again.
            if l.used() + r.used() > l.capacity() * 4 / 5 {
                continue;
            }
            let (level, mut items) = (l.level(), l.items());
            items.extend(r.items());
            self.modify(txn, a, &mut |p| {
                item::fill(p, level, &items);
            })?;
            txn.free_block(b, BlockKind::TreePage, self.cover)?;
            return self.remove_at(txn, up, left + 1);
        }
        Ok(())
    }

    /// An interior root with one child takes its content in when it fits; an empty one becomes a leaf.
    fn shrink_root(&self, txn: &mut dyn BlockTxn) -> Result<()> {
        let root = self.ino.block();
        loop {
            let image = self.load(txn, root)?;
            let page = self.page(root, &image)?;
            if page.level() == 0 || page.count() > 1 {
                return Ok(());
            }
            if page.count() == 0 {
                return self.modify(txn, root, &mut |p| item::clear(p, 0));
            }
            let child = BlockNo(page.child(0));
            let child_image = self.load(txn, child)?;
            let below = self.page(child, &child_image)?;
            if below.used() > page.capacity() {
                return Ok(());
            }
            let (level, items) = (below.level(), below.items());
            self.modify(txn, root, &mut |p| {
                item::fill(p, level, &items);
            })?;
            txn.free_block(child, BlockKind::TreePage, self.cover)?;
        }
    }

    /// The attributes.
    pub fn read_attr(&self, src: &dyn BlockSource) -> Result<Attr> {
        let image = self.load(src, self.ino.block())?;
        let (disk, _) =
            DiskAttr::ref_from_prefix(image.body()).expect("the attributes are smaller than a block");
        Attr::from_disk(self.ino, disk)
    }

    /// Write the attributes.
    pub fn write_attr(&self, txn: &mut dyn BlockTxn, attr: &Attr) -> Result<()> {
        let disk = attr.to_disk();
        txn.modify(self.ino.block(), BlockKind::Inode, self.cover, &mut |b: &mut Block| {
            b.body_mut()[..size_of::<DiskAttr>()].copy_from_slice(disk.as_bytes());
        })
    }

    /// Fill a freshly allocated inode block: attributes and an empty root page.
    pub fn create(&self, txn: &mut dyn BlockTxn, attr: &Attr) -> Result<()> {
        let disk = attr.to_disk();
        txn.modify(self.ino.block(), BlockKind::Inode, self.cover, &mut |b: &mut Block| init_inode(b, &disk))
    }

    /// Free pages of the tree, at most about `limit` blocks a call, deepest first; what it held
    /// must have been freed before. `true` when only the inode block is left, its page empty.
    pub fn free_pages(&self, txn: &mut dyn BlockTxn, limit: usize) -> Result<bool> {
        for _ in 0..limit {
            let image = self.load(txn, self.ino.block())?;
            let page = self.page(self.ino.block(), &image)?;
            if page.level() == 0 {
                self.modify(txn, self.ino.block(), &mut |p| item::clear(p, 0))?;
                return Ok(true);
            }
            drop(image);
            self.free_one(txn)?;
        }
        Ok(false)
    }

    /// Free the last leaf, or the last interior page that has become empty.
    fn free_one(&self, txn: &mut dyn BlockTxn) -> Result<()> {
        let mut path = vec![self.ino.block()];
        loop {
            let block = path[path.len() - 1];
            let image = self.load(txn, block)?;
            let page = self.page(block, &image)?;
            if page.level() == 0 || page.count() == 0 {
                break;
            }
            path.push(BlockNo(page.child(page.count() - 1)));
            if path.len() > tree_costs::DEPTH_MAX as usize + 1 {
                return Err(self.damaged("the tree is too deep".into()));
            }
        }
        let last = path.pop().expect("the root is in it");
        let Some(parent) = path.last().copied() else {
            return self.modify(txn, last, &mut |p| item::clear(p, 0));
        };
        txn.free_block(last, BlockKind::TreePage, self.cover)?;
        let image = self.load(txn, parent)?;
        let slot = self.page(parent, &image)?.count() - 1;
        drop(image);
        self.modify(txn, parent, &mut |p| item::remove(p, slot))?;
        if path.len() == 1 { self.shrink_empty_root(txn) } else { Ok(()) }
    }

    fn shrink_empty_root(&self, txn: &mut dyn BlockTxn) -> Result<()> {
        let root = self.ino.block();
        let image = self.load(txn, root)?;
        if self.page(root, &image)?.count() > 0 {
            return Ok(());
        }
        drop(image);
        self.modify(txn, root, &mut |p| item::clear(p, 0))
    }
}

/// Fill an inode block whose header is in place.
pub fn init_inode(block: &mut Block, disk: &DiskAttr) {
    block.body_mut()[..size_of::<DiskAttr>()].copy_from_slice(disk.as_bytes());
    item::clear(&mut block.0[ROOT_PAGE..], 0);
}

/// Where to split so that both halves fit: in the middle by bytes, or, for ascending inserts, as
/// far right as possible so that pages stay full.
fn split_point(items: &[(ItemKey, Vec<u8>)], capacity: usize, ascending: bool) -> Option<usize> {
    let sizes: Vec<usize> = items.iter().map(|(_, v)| item::item_size(v)).collect();
    let total: usize = sizes.iter().sum();
    let mut left = 0;
    let mut best: Option<(usize, usize)> = None;
    for at in 1..items.len() {
        left += sizes[at - 1];
        if left > capacity || total - left > capacity {
            continue;
        }
        let distance = if ascending { total - left } else { left.abs_diff(total - left) };
        if best.is_none_or(|(_, d)| distance < d) {
            best = Some((at, distance));
        }
    }
    best.map(|(at, _)| at)
}
