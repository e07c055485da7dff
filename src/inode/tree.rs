//! The item tree: reading it. `insert.rs`, `remove.rs` and `reap.rs` change it.
//!
//! The root page lies in the inode block; pages below it are `TreePage` blocks owned by the inode.
//! Every page is checked whenever it is read: its own order and bounds, its level, its owner, and
//! that its keys lie between the fences its parent sets. So a damaged tree answers with an error,
//! never with a panic, an endless walk or another inode's items.

use crate::base::{BlockNo, Error, InodeNo, LockName, Result};
use crate::format::inode::{DiskAttr, ROOT_PAGE, TREE_PAGE};
use crate::format::item::{ItemKey, Key, LEVEL_MAX, Page, PageMut};
use crate::format::{Block, BlockKind};
use crate::inode::Attr;
use crate::txn::{BlockSource, BlockTxn};
use std::ops::ControlFlow;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// The item tree of one inode. Names it only: the content is read anew by every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The inode.
    pub ino: InodeNo,
    /// The lock that covers all its blocks: `Inode(ino)`, or `Slot(s)` for a slot's inode.
    pub cover: LockName,
}

/// What one change of a tree of unknown height may cost at worst, for reservations. The allocator's
/// own blocks come on top. [`Tree::insert_cost`] is closer where the level is known.
pub mod tree_costs {
    use super::{Cost, LEVEL_MAX, Tree};

    // Level 4 has room for over 10^8 items; beyond, a change may be refused (undone), never torn.
    const INSERT: Cost = Tree::insert_cost(4, 1);
    /// Most pages on the way from the root to a leaf.
    pub const DEPTH_MAX: u32 = LEVEL_MAX as u32 + 1;
    /// New blocks that one insert may allocate.
    pub const NEW_BLOCKS: u32 = INSERT.new_blocks;
    /// Blocks that one insert or removal may change, new and freed ones included.
    pub const LOG_BLOCKS: u32 = INSERT.log_blocks;
    /// Blocks that one removal may change, freed ones included.
    pub const REMOVE_BLOCKS: u32 = Tree::remove_cost(4);
    const _: () = assert!(LOG_BLOCKS >= REMOVE_BLOCKS);
}

/// Longest inline value: leaves room for a few small attributes beside it in the inode block.
pub const INLINE_MAX: usize = 3584;

/// Blocks that a change may need in the worst case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// Metadata blocks that may be allocated.
    pub new_blocks: u32,
    /// Metadata blocks that may be changed, new ones included; the allocator's own come on top.
    pub log_blocks: u32,
}

/// The range that a page's keys must lie in: `low` <= key < `high`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    pub low: Key,
    pub high: Option<Key>,
}

/// Where a descent ended.
pub(super) struct Leaf {
    pub block: BlockNo,
    pub image: Arc<Block>,
    pub fence: Fence,
}

/// One step of a descent: child `index` of the page in `block` was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub block: BlockNo,
    pub index: usize,
}

/// Which child a descent takes.
#[derive(Clone, Copy)]
enum Toward {
    /// The one whose range holds the key.
    At(Key),
    /// The one whose range holds the greatest keys below the key.
    Below(Key),
}

impl Tree {
    /// The tree of an ordinary inode, covered by its inode lock.
    pub fn of(ino: InodeNo) -> Tree {
        Tree { ino, cover: LockName::Inode(ino) }
    }

    /// The attributes.
    ///
    /// # Errors
    /// `Damaged`, `Corrupt`, and what the source answers.
    pub fn read_attr(&self, src: &dyn BlockSource) -> Result<Attr> {
        let image = self.load(src, self.ino.block())?;
        let (disk, _) =
            DiskAttr::ref_from_prefix(image.body()).expect("the attributes are smaller than a block");
        Attr::from_disk(self.ino, disk)
    }

    /// Write the attributes.
    ///
    /// # Errors
    /// What the transaction answers.
    pub fn write_attr(&self, txn: &mut dyn BlockTxn, attr: &Attr) -> Result<()> {
        let disk = attr.to_disk();
        self.change(txn, self.ino.block(), |b| {
            b.body_mut()[..size_of::<DiskAttr>()].copy_from_slice(disk.as_bytes());
        })
    }

    /// Make the freshly allocated inode block an inode with these attributes and no items.
    ///
    /// # Errors
    /// What the transaction answers.
    pub fn create(&self, txn: &mut dyn BlockTxn, attr: &Attr) -> Result<()> {
        let disk = attr.to_disk();
        self.change(txn, self.ino.block(), |b| init_inode(b, &disk))
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// `Damaged`, `Corrupt`, and what the source answers. So for all reading.
    pub fn get(&self, src: &dyn BlockSource, key: ItemKey) -> Result<Option<Vec<u8>>> {
        let leaf = self.leaf_for(src, key.into())?;
        let page = self.leaf_page(&leaf)?;
        Ok(page.search(key.into()).ok().map(|i| page.value(i).to_vec()))
    }

    /// The item with the greatest key <= `key` among those of the same kind.
    pub fn floor(&self, src: &dyn BlockSource, key: ItemKey) -> Result<Option<(ItemKey, Vec<u8>)>> {
        let wanted = Key::from(key);
        let mut leaf = self.leaf_for(src, wanted)?;
        loop {
            let page = self.leaf_page(&leaf)?;
            let below = match page.search(wanted) {
                Ok(i) => i + 1,
                Err(i) => i,
            };
            if let Some(i) = below.checked_sub(1) {
                let found = page.key(i);
                let same = found.kind == wanted.kind;
                return Ok(same.then(|| (ItemKey { kind: key.kind, id: found.id }, page.value(i).to_vec())));
            }
            // Nothing here; the answer, if any, is the last item of the leaf before. Fences fall
            // strictly, so this ends.
            if leaf.fence.low.kind != wanted.kind {
                return Ok(None);
            }
            leaf = self.descend(src, Toward::Below(leaf.fence.low), &mut |_| ())?;
        }
    }

    /// Visit items with `from` <= key < `to_exclusive` (`None`: to the end) in ascending order
    /// until `visit` breaks. `visit` must not change the tree.
    pub fn scan(
        &self,
        src: &dyn BlockSource,
        from: ItemKey,
        to_exclusive: Option<ItemKey>,
        visit: &mut dyn FnMut(ItemKey, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let end = to_exclusive.map(Key::from);
        let mut next = Key::from(from);
        loop {
            let leaf = self.leaf_for(src, next)?;
            let page = self.leaf_page(&leaf)?;
            let (Ok(first) | Err(first)) = page.search(next);
            for i in first..page.count() {
                let key = page.key(i);
                if end.is_some_and(|end| key >= end) {
                    return Ok(());
                }
                let key = key.item().ok_or_else(|| self.damaged("an item of unknown kind"))?;
                if visit(key, page.value(i)).is_break() {
                    return Ok(());
                }
            }
            match leaf.fence.high {
                Some(high) if end.is_none_or(|end| high < end) => next = high,
                _ => return Ok(()),
            }
        }
    }

    /// Visit all items until `visit` breaks, if they lie in the inode block. `false`: they do not.
    ///
    /// # Errors
    /// As for all reading.
    pub fn scan_flat(
        &self,
        src: &dyn BlockSource,
        visit: &mut dyn FnMut(ItemKey, &[u8]) -> ControlFlow<()>,
    ) -> Result<bool> {
        let image = self.load(src, self.ino.block())?;
        let page = self.page(&image, self.ino.block(), None, Fence { low: Key::LOWEST, high: None })?;
        if page.level() > 0 {
            return Ok(false);
        }
        for (key, value) in page.items() {
            let key = key.item().ok_or_else(|| self.damaged("an item of unknown kind"))?;
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(true)
    }

    /// Level of the root page: 0 while all items fit the inode block.
    pub fn level(&self, src: &dyn BlockSource) -> Result<u8> {
        let image = self.load(src, self.ino.block())?;
        Ok(self.page(&image, self.ino.block(), None, Fence { low: Key::LOWEST, high: None })?.level())
    }

    /// What `inserts` insertions (or replacements by longer values) cost at most in a tree whose
    /// root is at `level` ([`Tree::level`]).
    pub const fn insert_cost(level: u8, inserts: u32) -> Cost {
        let height = level as u32;
        // Each insertion may split every page of its path below the root. The root gives its
        // content to a new page, which may split; the levels that grow within the batch are nearly
        // empty, so they split at most once in dozens of insertions. One more for a leaf that an
        // inline value cuts in three.
        let below = if height == 0 { 1 } else { height };
        let new_blocks = inserts * below + 3 + inserts / 32;
        Cost { new_blocks, log_blocks: new_blocks + inserts * height + 1 }
    }

    /// Blocks that a removal may change in a tree whose root is at `level`: the root, and two pages of each
    /// level below it.
    pub const fn remove_cost(level: u8) -> u32 {
        1 + 2 * level as u32
    }
}

/// What the other files of the tree share.
impl Tree {
    pub(super) fn damaged(&self, what: &str) -> Error {
        Error::Damaged { inode: self.ino, what: what.to_string() }
    }

    fn kind_of(&self, block: BlockNo) -> BlockKind {
        if block == self.ino.block() { BlockKind::Inode } else { BlockKind::TreePage }
    }

    fn page_offset(&self, block: BlockNo) -> usize {
        if block == self.ino.block() { ROOT_PAGE } else { TREE_PAGE }
    }

    /// Read a block of this tree and see that it is one.
    pub(super) fn load(&self, src: &dyn BlockSource, block: BlockNo) -> Result<Arc<Block>> {
        let kind = self.kind_of(block);
        let image = src.read(block, kind, self.cover)?;
        self.check_owner(&image, block, kind)?;
        Ok(image)
    }

    /// Is this block one of this inode's?
    pub(super) fn check_owner(&self, image: &Block, block: BlockNo, kind: BlockKind) -> Result<()> {
        let owner = image.header().owner.get();
        if owner != self.ino.0 {
            return Err(Error::corrupt(block, kind, format_args!("owner {}", self.ino), owner));
        }
        Ok(())
    }

    /// The checked page in `image`. `level` is what the parent says; the root's is its own.
    pub(super) fn page<'a>(
        &self,
        image: &'a Block,
        block: BlockNo,
        level: Option<u8>,
        fence: Fence,
    ) -> Result<Page<'a>> {
        let kind = self.kind_of(block);
        let fault = |what: &str| Error::corrupt(block, kind, "a sound item page", what);
        let bytes = &image.0[self.page_offset(block)..];
        let page = if image.is_sound() { Page::checked(bytes) } else { Page::check(bytes).map_err(fault)? };
        image.set_sound();
        if level.is_some_and(|l| l != page.level()) {
            return Err(fault("a page of the wrong level"));
        }
        // Above the leaves the first key stands for the parent's fence.
        let first = if page.level() > 0 { 1 } else { 0 };
        if first < page.count() {
            let low_ok = page.key(first) >= fence.low && (first == 0 || page.key(first) > fence.low);
            let high_ok = fence.high.is_none_or(|high| page.key(page.count() - 1) < high);
            if !low_ok || !high_ok {
                return Err(fault("keys outside the range the page stands for"));
            }
        }
        Ok(page)
    }

    /// The checked page of a leaf that a descent ended at.
    pub(super) fn leaf_page<'a>(&self, leaf: &'a Leaf) -> Result<Page<'a>> {
        self.page(&leaf.image, leaf.block, Some(0), leaf.fence)
    }

    /// The leaf whose range holds `key`.
    pub(super) fn leaf_for(&self, src: &dyn BlockSource, key: Key) -> Result<Leaf> {
        self.descend(src, Toward::At(key), &mut |_| ())
    }

    /// The leaf whose range holds `key`, and the way there from the root.
    pub(super) fn path_to(&self, src: &dyn BlockSource, key: Key) -> Result<(Vec<Step>, Leaf)> {
        let mut path = Vec::with_capacity(4);
        let leaf = self.descend(src, Toward::At(key), &mut |step| path.push(step))?;
        Ok((path, leaf))
    }

    /// Levels fall by one from page to page and start at LEVEL_MAX at most, so this ends. The leaf
    /// itself is not checked yet: whoever looks into it does ([`Tree::leaf_page`]).
    fn descend(&self, src: &dyn BlockSource, toward: Toward, on_step: &mut dyn FnMut(Step)) -> Result<Leaf> {
        let mut block = self.ino.block();
        let mut fence = Fence { low: Key::LOWEST, high: None };
        let mut level = None;
        loop {
            let image = self.load(src, block)?;
            if level == Some(0) {
                return Ok(Leaf { block, image, fence });
            }
            let page = self.page(&image, block, level, fence)?;
            if page.level() == 0 {
                return Ok(Leaf { block, image, fence });
            }
            let index = match toward {
                Toward::At(key) => page.child_for(key),
                Toward::Below(key) => page.search(key).unwrap_or_else(|i| i).saturating_sub(1),
            };
            if index > 0 {
                fence.low = page.key(index);
            }
            if index + 1 < page.count() {
                fence.high = Some(page.key(index + 1));
            }
            on_step(Step { block, index });
            level = Some(page.level() - 1);
            block = self.child_block(&page, index)?;
        }
    }

    /// The block of a page's child.
    pub(super) fn child_block(&self, page: &Page<'_>, index: usize) -> Result<BlockNo> {
        match page.child(index) {
            root if root == self.ino.0 => Err(self.damaged("the inode block is its own child")),
            child => Ok(BlockNo(child)),
        }
    }

    /// Change a block of this tree.
    pub(super) fn change(
        &self,
        txn: &mut dyn BlockTxn,
        block: BlockNo,
        change: impl FnOnce(&mut Block),
    ) -> Result<()> {
        let mut change = Some(change);
        txn.modify(block, self.kind_of(block), self.cover, &mut |b| {
            if let Some(change) = change.take() {
                change(b);
            }
        })
    }

    /// Change the page in a block of this tree, which was checked in this transaction.
    pub(super) fn change_page(
        &self,
        txn: &mut dyn BlockTxn,
        block: BlockNo,
        change: impl FnOnce(&mut PageMut<'_>),
    ) -> Result<()> {
        let from = self.page_offset(block);
        self.change(txn, block, |b| change(&mut PageMut::new(&mut b.0[from..])))
    }
}

/// Fill an inode block whose header is in place: attributes and an empty root page.
pub fn init_inode(block: &mut Block, disk: &DiskAttr) {
    block.body_mut()[..size_of::<DiskAttr>()].copy_from_slice(disk.as_bytes());
    PageMut::new(&mut block.0[ROOT_PAGE..]).reset(0);
}
