//! Hard links.

use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;

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
        let body = move |op: &mut Op<'_>| -> Step<EntryReply> {
            check_name(&name)?;
            let core = op.core.clone();
            let space = op.space(Want { data: 0, meta: tree_costs::NEW_BLOCKS, near: core.group(dir) })?;
            let (parent, child) = (core.nodes.get(dir), core.nodes.get(ino));
            let mut states = lock_states(&[&parent, &child]);
            let mut dir_attr = core.load_dir(&parent, state_of(&mut states, dir))?.clone();
            let mut attr = core.load(&child, state_of(&mut states, ino))?.clone();
            if dir_attr.nlink == 0 || attr.nlink == 0 {
                return Err(Error::NotFound.into());
            }
            if attr.kind == FileKind::Directory {
                return Err(Error::NotPermitted.into());
            }
            if attr.nlink == u32::MAX {
                return Err(Error::TooManyLinks.into());
            }
            let now = core.now();
            let mut txn = core.change(space, 4 + tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS)?;
            core.dir(dir).insert(&mut txn, &name, ino, attr.generation, attr.kind)?;
            attr.nlink += 1;
            touch_ctime(&mut attr, now);
            touch(&mut dir_attr, now);
            core.tree(ino).write_attr(&mut txn, &attr)?;
            core.tree(dir).write_attr(&mut txn, &dir_attr)?;
            let id = txn.finish()?;
            for (ino, attr) in [(dir, dir_attr), (ino, attr)] {
                let state = state_of(&mut states, ino);
                state.attr = Some(attr);
                state.last_txn = id;
            }
            let visible = core.visible(&child, state_of(&mut states, ino))?;
            Ok(core.entry_of(&child, visible))
        };
        op::run(&self.core, locks, body, reply);
    }
}
