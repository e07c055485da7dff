//! Hard links, and the first name of a file that was made without one.

use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;

/// Log blocks: both inodes and the directory's path, and the path of the orphan's item if there is one.
const BLOCKS: u32 = 4 + tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS;
const FIRST_BLOCKS: u32 = BLOCKS + tree_costs::REMOVE_BLOCKS + tree_costs::LOG_BLOCKS;

impl Core {
    /// The name of `ino` in `dir`. Both are pinned X.
    fn add_link(&self, op: &mut Op<'_>, ino: InodeNo, dir: InodeNo, name: &[u8]) -> Step<EntryReply> {
        check_name(name)?;
        let space = op.space(Want { data: 0, meta: tree_costs::NEW_BLOCKS, near: self.group(dir) })?;
        let (parent, child) = (self.nodes.get(dir), self.nodes.get(ino));
        let mut states = lock_states(&[&parent, &child]);
        let mut dir_attr = self.load_dir(&parent, state_of(&mut states, dir))?.clone();
        let mut attr = self.load(&child, state_of(&mut states, ino))?.clone();
        // What has no link may have had one: that is on its way out. One that never had can get it only where it
        // was made, and there the kernel knows whether it may (O_EXCL).
        let first = attr.nlink == 0 && child.is_open() && child.nameless.load(Ordering::Acquire);
        if dir_attr.nlink == 0 || attr.nlink == 0 && !first {
            return Err(Error::NotFound.into());
        }
        if attr.kind == FileKind::Directory {
            return Err(Error::NotPermitted.into());
        }
        flags::may_change(&dir_attr).and(flags::may_lose(&attr))?;
        if attr.nlink == u32::MAX {
            return Err(Error::TooManyLinks.into());
        }
        let now = self.now();
        attr.nlink += 1;
        touch_ctime(&mut attr, now);
        touch(&mut dir_attr, now);
        let generation = attr.generation;
        let put = |txn: &mut Transaction| {
            self.dir(dir).insert(txn, name, ino, generation, attr.kind)?;
            self.tree(ino).write_attr(txn, &attr)?;
            self.tree(dir).write_attr(txn, &dir_attr)
        };
        let id = if first {
            let mut change = self.change_freeing(Some(space), FIRST_BLOCKS)?;
            put(&mut change.txn)?;
            self.adopt_nameless(&mut change, ino)?;
            change.txn.finish()?
        } else {
            let mut txn = self.change(space, BLOCKS)?;
            put(&mut txn)?;
            txn.finish()?
        };
        child.nameless.store(false, Ordering::Release);
        for (ino, attr) in [(dir, dir_attr), (ino, attr)] {
            let state = state_of(&mut states, ino);
            state.attr = Some(attr);
            state.last_txn = id;
        }
        let visible = self.visible(&child, state_of(&mut states, ino))?;
        Ok(self.entry_of(&child, visible))
    }
}

impl Fs {
    /// Give an inode one more name.
    pub fn link(
        &self,
        nodeid: NodeId,
        new_parent: NodeId,
        name: Vec<u8>,
        reply: impl FnOnce(Result<EntryReply>) + Send + 'static,
    ) {
        let (ino, dir) = (self.core.ino(nodeid), self.core.ino(new_parent));
        let mut locks = inode(dir, Mode::X);
        locks.add(LockName::Inode(ino), Mode::X);
        let body =
            move |op: &mut Op<'_>| -> Step<EntryReply> { op.core.clone().add_link(op, ino, dir, &name) };
        op::run(&self.core, locks, body, reply);
    }
}
