//! Freeing inodes that have no name left and are open nowhere: a small one with its last name, small ones
//! together, in one transaction, any other in as many bounded ones as it takes.

use super::attr::{STEP, STEP_BLOCKS};
use super::*;
use crate::file::{Extents, Progress};
use crate::format::BlockKind;
use crate::format::extent::FILE_BLOCKS_MAX;
use crate::format::item::LEVEL_MAX;
use crate::format::value::{Content, Xattr, decode_orphan};
use crate::inode::{ItemKey, ItemKind};
use crate::lock::Pins;
use crate::txn::{BlockRun, BlockTxn};
use crate::xattr;
use parking_lot::RwLockWriteGuard;
use std::ops::ControlFlow;

/// Most inodes of one transaction.
const TOGETHER: u32 = 16;
/// Runs of data blocks up to which an inode counts as small.
const RUNS_MAX: usize = 4;

/// An inode about to be freed; nobody else looks at it meanwhile.
struct Doomed<'a> {
    ino: InodeNo,
    generation: Generation,
    /// Its data.
    runs: Vec<BlockRun>,
    state: MutexGuard<'a, NodeState>,
    _gate: RwLockWriteGuard<'a, ()>,
}

/// An inode that can go together with its last name; nobody comes to it meanwhile.
pub(super) struct Unused<'a> {
    /// Its data.
    runs: Vec<BlockRun>,
    _iopen: MutexGuard<'a, Option<Pins>>,
    _gate: RwLockWriteGuard<'a, ()>,
    /// It is open nowhere, and its group stays.
    _pins: [Pins; 2],
}

impl Core {
    /// Can the inode, whose lock is pinned X and one of whose names is going, be freed in the same transaction?
    ///
    /// Only if it is a regular file, for nothing else is opened before it is used: the kernel follows a
    /// symbolic link, and reaches a pipe, a socket or a device by its node, and a directory is somebody's
    /// current one, without a word to us. Only if its count says that this is its last name.
    pub(super) fn unused<'a>(&self, node: &'a Node, attr: &Attr) -> Option<Unused<'a>> {
        if attr.nlink != 1 || attr.kind != FileKind::Regular {
            return None;
        }
        // Whoever is opening it here has this until the handle counts, and looks at the inode after that: it
        // comes before, or finds the inode gone. Whoever has it open elsewhere has its iopen lock shared.
        // The order of gates and states is kept by not waiting.
        let iopen = node.iopen.try_lock()?;
        if iopen.is_some() || node.is_open() {
            return None;
        }
        let gate = node.gate.try_write()?;
        let runs = self.small_content(self.tree(node.ino)).ok()??;
        let pin = |name| self.locks.try_pin(&LockSet::one(name, Mode::X));
        let pins = [pin(LockName::IOpen(node.ino))?, pin(LockName::Ag(self.group(node.ino)?))?];
        Some(Unused { runs, _iopen: iopen, _gate: gate, _pins: pins })
    }

    /// Free it. `false`: that would have to be deferred, and nothing has happened.
    pub(super) fn free_unused(
        &self,
        change: &mut FreeingChange<'_>,
        ino: InodeNo,
        unused: &Unused<'_>,
    ) -> Result<bool> {
        if !change.txn.free_block_now(ino.block(), BlockKind::Inode, LockName::Inode(ino))? {
            return Ok(false);
        }
        unused.runs.iter().try_for_each(|run| change.txn.free_data(*run))?;
        Ok(true)
    }

    /// Most inodes that [`Core::free_together`] takes, and the log blocks that each may take: its tombstone
    /// and the path of the orphan's item.
    pub(super) fn free_together_max(&self) -> (usize, u32) {
        let level = {
            let _slot = self.slot_lock.lock();
            self.slot_tree.level(&*self.store)
        };
        // Should it be too little, because the tree has grown by two levels meanwhile, each goes by itself.
        let each = 1 + Tree::remove_cost(level.unwrap_or(LEVEL_MAX).saturating_add(1));
        // What a change asks for at worst must have room in the running transaction: in a small journal
        // one that asks for much would have it committed early.
        let together = (self.journal.handle_max() / 4 / each).clamp(1, TOGETHER);
        (together as usize, each)
    }

    /// Free those that are small and nowhere in use, in one transaction of `each` log blocks for each;
    /// answers with these. The inodes and their iopen locks are pinned X. On an error none has been freed.
    pub(super) fn free_together(&self, nodes: &[Arc<Node>], each: u32) -> Result<Vec<InodeNo>> {
        // Nothing is waited for: there is no order among gates.
        let mut doomed: Vec<Doomed<'_>> = nodes.iter().filter_map(|node| self.doom(node)).collect();
        if doomed.is_empty() {
            return Ok(Vec::new());
        }
        let mut freed = Vec::with_capacity(doomed.len());
        let mut change = self.change_freeing(None, doomed.len() as u32 * each)?;
        for d in &doomed {
            let key = ItemKey::new(ItemKind::Orphan, d.ino.0);
            let item = self.slot_tree.get(&change.txn, key)?;
            if item.as_deref().and_then(decode_orphan) != Some(d.generation) {
                continue;
            }
            self.slot_tree.remove(&mut change.txn, key)?;
            d.runs.iter().try_for_each(|run| change.txn.free_data(*run))?;
            change.txn.free_block(d.ino.block(), BlockKind::Inode, LockName::Inode(d.ino))?;
            freed.push(d.ino);
        }
        change.txn.finish()?;
        for d in doomed.iter_mut().filter(|d| freed.contains(&d.ino)) {
            if let Some(file) = &mut d.state.file {
                file.abandon();
            }
            d.state.forget();
        }
        Ok(freed)
    }

    /// The node, if it is an inode that one transaction can free among others, and nobody is at it.
    fn doom<'a>(&self, node: &'a Arc<Node>) -> Option<Doomed<'a>> {
        let gate = node.gate.try_write()?;
        let mut state = node.state.try_lock()?;
        // Under the state, as lookups are counted.
        if node.is_open() || node.lookups() > 0 {
            return None;
        }
        let attr = self.load_named(node, &mut state).ok()?;
        if attr.nlink > 0 {
            return None;
        }
        let generation = attr.generation;
        let runs = self.small_content(self.tree(node.ino)).ok()??;
        Some(Doomed { ino: node.ino, generation, runs, state, _gate: gate })
    }

    /// The data of an inode whose own block holds all else; `None` if it refers to more.
    fn small_content(&self, tree: Tree) -> Result<Option<Vec<BlockRun>>> {
        let store = &*self.store;
        let (mut data, mut small) = (false, true);
        let flat = tree.scan_flat(store, &mut |key, value| {
            let long = |content: Option<Content>| !matches!(content, Some(Content::Here(_)));
            match key.kind {
                ItemKind::Inline => {}
                ItemKind::Extent => data = true,
                ItemKind::Xattr => small &= !long(Xattr::decode(value).ok().map(|x| x.content)),
                ItemKind::Symlink => small &= !long(Content::decode_symlink(value)),
                _ => small = false,
            }
            if small { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !flat || !small || !data {
            return Ok((flat && small).then(Vec::new));
        }
        let spans = Extents::new(tree, &self.geometry).map(store, 0..FILE_BLOCKS_MAX)?;
        let runs: Vec<_> = spans.iter().filter_map(|s| s.run()).collect();
        Ok((runs.len() <= RUNS_MAX).then_some(runs))
    }

    /// Which life of an inode is an orphan of ours.
    pub(super) fn orphaned(&self, ino: InodeNo) -> Result<Option<Generation>> {
        let _slot = self.slot_lock.lock();
        let item = self.slot_tree.get(&*self.store, ItemKey::new(ItemKind::Orphan, ino.0))?;
        Ok(item.as_deref().and_then(decode_orphan))
    }

    /// Free an orphan. The inode and its iopen lock are pinned X.
    ///
    /// Only with our item for it: an inode without a link may be the orphan of another host, which
    /// has perhaps emptied it already and waits for the group to free its block. Freed twice, the
    /// block could be somebody else's in between.
    pub(super) fn reap(&self, ino: InodeNo) -> Result<()> {
        let node = self.nodes.get(ino);
        let gate = node.gate.write();
        let mut state = node.state.lock();
        if node.is_open() || node.lookups() > 0 {
            return Ok(());
        }
        let Some(generation) = self.orphaned(ino)? else { return Ok(()) };
        let found = match self.load_named(&node, &mut state) {
            Ok(attr) => (attr.generation == generation).then_some((attr.kind, attr.nlink)),
            Err(Error::Stale) => None,
            Err(e) => return Err(e),
        };
        let Some((kind, 0)) = found else {
            drop((state, gate));
            return self.drop_orphan(ino);
        };
        self.empty_inode(&node, &mut state, kind)?;
        let mut change = self.change_freeing(None, STEP_BLOCKS)?;
        self.slot_tree.remove(&mut change.txn, ItemKey::new(ItemKind::Orphan, ino.0))?;
        change.txn.free_block(ino.block(), BlockKind::Inode, LockName::Inode(ino))?;
        change.txn.finish()?;
        state.forget();
        drop((state, gate));
        drop(node);
        self.nodes.shed(ino);
        Ok(())
    }

    /// Free everything the inode contains, in bounded transactions.
    fn empty_inode(&self, node: &Node, state: &mut NodeState, kind: FileKind) -> Result<()> {
        let tree = self.tree(node.ino);
        if kind == FileKind::Regular {
            if let Some(file) = &mut state.file {
                file.abandon();
            }
            let mut progress = Progress::More;
            while progress == Progress::More {
                self.file(node, state)?;
                progress =
                    self.change_file(state, None, |file, txn, attr| file.truncate_apply(txn, attr, 0, STEP))?;
                self.file(node, state)?.truncate_done(0, progress);
            }
            state.space = None;
        }
        let mut done = false;
        while !done {
            let mut change = self.change_freeing(None, STEP_BLOCKS)?;
            tree.free_symlink(&mut change.txn)?;
            done = xattr::free_one_long(&tree, &mut change.txn)?;
            state.last_txn = change.txn.finish()?;
        }
        done = false;
        while !done {
            let mut change = self.change_freeing(None, STEP_BLOCKS)?;
            done = tree.free_pages(&mut change.txn, 16)?;
            state.last_txn = change.txn.finish()?;
        }
        Ok(())
    }

    fn drop_orphan(&self, ino: InodeNo) -> Result<()> {
        let mut change = self.change_freeing(None, STEP_BLOCKS)?;
        self.slot_tree.remove(&mut change.txn, ItemKey::new(ItemKind::Orphan, ino.0))?;
        change.txn.finish().map(|_| ())
    }
}
