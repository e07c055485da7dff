//! Walking the item tree of one inode: every page is checked, every item handed on in order.
//!
//! Written apart from the daemon's reading on purpose: a mistake in the one shows in the other.

use crate::image::{Image, words};
use shoal::base::{BlockNo, InodeNo, LockName};
use shoal::format::inode::{ROOT_PAGE, TREE_PAGE};
use shoal::format::item::{ItemKey, Key, LEVEL_MAX, Page};
use shoal::format::{Block, BlockKind};

/// What a walk meets.
pub trait Visitor {
    /// An item; in ascending order over all calls.
    fn item(&mut self, key: ItemKey, value: &[u8]);
    /// A page below the root is at `block`. False: somebody else has it, do not follow.
    fn page(&mut self, block: BlockNo) -> bool;
    /// Something is wrong with the tree itself.
    fn broken(&mut self, what: String);
    /// An item of a kind that is not known.
    fn unknown(&mut self, key: Key);
}

/// An inode whose tree is walked.
#[derive(Clone, Copy)]
pub struct Root<'a> {
    pub ino: InodeNo,
    pub cover: LockName,
    /// Its verified block.
    pub block: &'a Block,
}

/// The range that a page's keys must lie in: `low` <= key < `high`.
#[derive(Clone, Copy)]
struct Range {
    low: Key,
    high: Option<Key>,
}

impl Range {
    fn holds(&self, key: Key) -> bool {
        key >= self.low && self.high.is_none_or(|high| key < high)
    }
}

/// Walk the whole tree.
pub fn walk(image: &Image, root: Root<'_>, visitor: &mut dyn Visitor) {
    let range = Range { low: Key::LOWEST, high: None };
    let from = root.ino.block();
    Walk { image, root, visitor }.page(from, &root.block.0[ROOT_PAGE..], None, range);
}

/// The value of one key; `None` also where the way to it is damaged.
pub fn find(image: &Image, root: Root<'_>, key: ItemKey) -> Option<Vec<u8>> {
    let mut block = root.block.clone();
    let mut from = ROOT_PAGE;
    // Levels fall by one from page to page.
    for _ in 0..=LEVEL_MAX {
        let page = Page::check(&block.0[from..]).ok()?;
        if page.level() == 0 {
            return page.search(key.into()).ok().map(|i| page.value(i).to_vec());
        }
        let child = BlockNo(page.child(page.child_for(key.into())));
        block = image.read_verified(child, BlockKind::TreePage, root.ino.0, root.cover).ok()?;
        from = TREE_PAGE;
    }
    None
}

struct Walk<'a> {
    image: &'a Image,
    root: Root<'a>,
    visitor: &'a mut dyn Visitor,
}

impl Walk<'_> {
    /// Levels fall by one from page to page and are bounded, so this ends.
    fn page(&mut self, at: BlockNo, bytes: &[u8], level: Option<u8>, range: Range) {
        let page = match Page::check(bytes) {
            Ok(page) => page,
            Err(fault) => return self.visitor.broken(format!("the item page in block {at}: {fault}")),
        };
        if let Some(level) = level.filter(|l| *l != page.level()) {
            let what = format!("the item page in block {at} is of level {}, not {level}", page.level());
            return self.visitor.broken(what);
        }
        // Above the leaves the first key stands for the parent's.
        let inside = |i: usize| range.holds(page.key(i)) || (i == 0 && page.level() > 0);
        if !(0..page.count()).all(inside) {
            let what = format!("the item page in block {at} has keys outside the range it stands for");
            self.visitor.broken(what);
        }
        if !page.slack_is_zero() {
            self.visitor.broken(format!("the item page in block {at} has remains of old content"));
        }
        for i in 0..page.count() {
            if page.level() > 0 {
                self.child(&page, i, range);
                continue;
            }
            match page.key(i).item() {
                Some(key) => self.visitor.item(key, page.value(i)),
                None => self.visitor.unknown(page.key(i)),
            }
        }
    }

    fn child(&mut self, page: &Page<'_>, i: usize, range: Range) {
        let block = BlockNo(page.child(i));
        let low = if i == 0 { range.low } else { page.key(i) };
        let high = if i + 1 < page.count() { Some(page.key(i + 1)) } else { range.high };
        if !self.visitor.page(block) {
            return;
        }
        let (kind, owner) = (BlockKind::TreePage, self.root.ino.0);
        match self.image.read_verified(block, kind, owner, self.root.cover) {
            Ok(b) => self.page(block, &b.0[TREE_PAGE..], Some(page.level() - 1), Range { low, high }),
            Err(e) => self.visitor.broken(words(&e)),
        }
    }
}
