//! Taking from the item tree: removal, merging of sparse pages, shrinking of the root, reaping.
//!
//! A tree without items has no pages: whoever removes the last item is left with the inode block.

use super::tree::{Fence, Step, Tree};
use crate::base::{BlockNo, Result};
use crate::format::BlockKind;
use crate::format::item::{ItemKey, Key};
use crate::txn::BlockTxn;

/// A page emptier than a third looks for a neighbour to merge with; both together must fill three
/// quarters of a page at most, so that the next insertion does not split them again.
const SPARSE: (usize, usize) = (1, 3);
const MERGED: (usize, usize) = (3, 4);

const EVERYTHING: Fence = Fence { low: Key::LOWEST, high: None };

/// How a page stands after something was taken from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Full,
    Sparse,
    /// Nothing in it: to be freed.
    Empty,
}

impl Tree {
    /// Remove an item. `false` if it is not there.
    ///
    /// # Errors
    /// `Damaged`, `Corrupt`, and what the transaction answers.
    pub fn remove(&self, txn: &mut dyn BlockTxn, key: ItemKey) -> Result<bool> {
        let (path, leaf) = self.path_to(txn, key.into())?;
        let page = self.leaf_page(&leaf)?;
        let Ok(at) = page.search(key.into()) else { return Ok(false) };
        let left = page.used() - crate::format::item::item_size(page.value(at).len());
        let state = state(page.count() - 1, left, page.capacity());
        let block = leaf.block;
        drop(leaf);
        self.change_page(txn, block, |p| p.remove_at(at))?;
        self.rebalance(txn, path, block, state)?;
        Ok(true)
    }

    /// Free pages of the tree, at most `limit` blocks a call, and with each leaf the items in it;
    /// what they refer to must have been freed before. The tree stays valid between calls. `true`
    /// when only the inode block is left, its page empty.
    ///
    /// # Errors
    /// As [`Tree::remove`].
    pub fn free_pages(&self, txn: &mut dyn BlockTxn, limit: usize) -> Result<bool> {
        let mut freed = 0;
        loop {
            let (path, leaf) = self.path_to(txn, Key::LOWEST)?;
            // Also this leaf must be one before it is freed by its number.
            self.leaf_page(&leaf)?;
            let block = leaf.block;
            drop(leaf);
            if path.is_empty() {
                self.change_page(txn, block, |p| p.reset(0))?;
                return Ok(true);
            }
            if freed >= limit {
                return Ok(false);
            }
            // Interior pages that empty with their last leaf are freed in the same step.
            freed += 1;
            self.rebalance(txn, path, block, State::Empty)?;
        }
    }

    /// Mend the way up after a removal left the page `block`, which `path` leads to, in `state`.
    fn rebalance(
        &self,
        txn: &mut dyn BlockTxn,
        mut path: Vec<Step>,
        mut block: BlockNo,
        mut state: State,
    ) -> Result<()> {
        while let Some(step) = path.pop() {
            state = match state {
                State::Full => return self.shrink_root(txn),
                State::Sparse => self.merge(txn, step)?,
                State::Empty => {
                    txn.free_block(block, BlockKind::TreePage, self.cover)?;
                    self.unlink(txn, step)?
                }
            };
            block = step.block;
        }
        if state == State::Empty {
            // Nothing is left at all.
            return self.change_page(txn, block, |p| p.reset(0));
        }
        self.shrink_root(txn)
    }

    /// Take the step's child, which is gone, out of its parent; tells how that leaves the parent.
    /// A parent of nothing else is not touched: it is freed next (or reset, if it is the root).
    fn unlink(&self, txn: &mut dyn BlockTxn, step: Step) -> Result<State> {
        let image = self.load(txn, step.block)?;
        let page = self.page(&image, step.block, None, EVERYTHING)?;
        let count = page.count() - 1;
        if count == 0 {
            return Ok(State::Empty);
        }
        let left = page.used() * count / page.count();
        let state = state(count, left, page.capacity());
        drop(image);
        self.change_page(txn, step.block, |p| {
            p.remove_at(step.index);
            if step.index == 0 {
                // The next child takes over the range.
                p.set_key(0, Key::LOWEST);
            }
        })?;
        Ok(state)
    }

    /// Merge the step's child with a neighbour if they fit one page together; tells how that leaves
    /// the parent.
    fn merge(&self, txn: &mut dyn BlockTxn, step: Step) -> Result<State> {
        let image = self.load(txn, step.block)?;
        let parent = self.page(&image, step.block, None, EVERYTHING)?;
        let level = parent.level().saturating_sub(1);
        for left in [Some(step.index), step.index.checked_sub(1)].into_iter().flatten() {
            if left + 1 >= parent.count() {
                continue;
            }
            let (a, b) = (self.child_block(&parent, left)?, self.child_block(&parent, left + 1)?);
            let separator = parent.key(left + 1);
            let low = Fence { low: parent.key(left), high: Some(separator) };
            let high = (left + 2 < parent.count()).then(|| parent.key(left + 2));
            let (a_image, b_image) = (self.load(txn, a)?, self.load(txn, b)?);
            let a_page = self.page(&a_image, a, Some(level), low)?;
            let b_page = self.page(&b_image, b, Some(level), Fence { low: separator, high })?;
            if (a_page.used() + b_page.used()) * MERGED.1 > a_page.capacity() * MERGED.0 {
                continue;
            }
            // Above the leaves the first key of a page stands for the separator.
            let second = b_page
                .items()
                .enumerate()
                .map(|(i, (key, value))| (if i == 0 && level > 0 { separator } else { key }, value));
            self.change_page(txn, a, |p| p.rebuild(level, a_page.items().chain(second)))?;
            txn.free_block(b, BlockKind::TreePage, self.cover)?;
            return self.unlink(txn, Step { block: step.block, index: left + 1 });
        }
        Ok(State::Full)
    }

    /// A root with one child takes its content in, if that leaves some room.
    fn shrink_root(&self, txn: &mut dyn BlockTxn) -> Result<()> {
        let root = self.ino.block();
        loop {
            let image = self.load(txn, root)?;
            let page = self.page(&image, root, None, EVERYTHING)?;
            if page.level() == 0 || page.count() != 1 {
                return Ok(());
            }
            let child = self.child_block(&page, 0)?;
            let child_image = self.load(txn, child)?;
            let below = self.page(&child_image, child, Some(page.level() - 1), EVERYTHING)?;
            if below.used() * MERGED.1 > page.capacity() * MERGED.0 {
                return Ok(());
            }
            self.change_page(txn, root, |p| p.rebuild(below.level(), below.items()))?;
            txn.free_block(child, BlockKind::TreePage, self.cover)?;
        }
    }
}

fn state(count: usize, used: usize, capacity: usize) -> State {
    match count {
        0 => State::Empty,
        _ if used * SPARSE.1 < capacity * SPARSE.0 => State::Sparse,
        _ => State::Full,
    }
}
