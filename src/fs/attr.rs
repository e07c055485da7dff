//! setattr: chmod, chown, utimes, truncate.

use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;

/// Blocks one bounded step of a truncation may change.
const TRUNCATE_BLOCKS: u32 = 8 + 2 * tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS;

impl SetAttr {
    /// Apply everything but the size.
    fn apply(&self, attr: &mut Attr, now: Timestamp) {
        if let Some(mode) = self.mode {
            attr.mode = mode & 0o7777;
        }
        let owner_changes = self.uid.is_some() || self.gid.is_some();
        if owner_changes && self.mode.is_none() && attr.kind == FileKind::Regular {
            // chown takes the privileges along (POSIX); setgid without group execute is not one.
            attr.mode &= !libc::S_ISUID;
            if attr.mode & libc::S_IXGRP != 0 {
                attr.mode &= !libc::S_ISGID;
            }
        }
        if let Some(uid) = self.uid {
            attr.uid = uid;
        }
        if let Some(gid) = self.gid {
            attr.gid = gid;
        }
        if let Some(atime) = self.atime {
            attr.atime = atime.or(now);
        }
        if let Some(mtime) = self.mtime {
            attr.mtime = mtime.or(now);
        }
        touch_ctime(attr, now);
    }
}

impl Core {
    /// Write changed attributes of an inode whose state is locked.
    pub(super) fn store_attr(&self, node: &Node, state: &mut NodeState, attr: Attr) -> Result<()> {
        let space = self.alloc.reserve(Want { data: 0, meta: 0, near: None })?;
        let mut txn = self.change(space, 2)?;
        self.tree(node.ino).write_attr(&mut txn, &attr)?;
        state.last_txn = txn.finish()?;
        state.attr = Some(attr);
        state.attr_dirty = false;
        Ok(())
    }

    /// Change the size of a regular file, in as many bounded transactions as it takes. The inode is
    /// pinned X and its gate is held exclusively.
    fn resize(&self, op: &mut Op<'_>, node: &Node, state: &mut NodeState, size: u64) -> Step<()> {
        let now = self.now();
        loop {
            let near = self.group(node.ino);
            let space = op.space(Want { data: 2, meta: tree_costs::NEW_BLOCKS, near })?;
            let mut attr = self.load(node, state)?.clone();
            touch(&mut attr, now);
            let mut change = self.change_freeing(Some(space), TRUNCATE_BLOCKS)?;
            let done = state.file.truncate(&self.files, &mut change.txn, &mut attr, size)?;
            self.tree(node.ino).write_attr(&mut change.txn, &attr)?;
            state.last_txn = change.txn.finish()?;
            state.attr = Some(attr);
            state.attr_dirty = false;
            if done {
                return Ok(());
            }
        }
    }
}

impl Fs {
    /// Change attributes; answers with the new ones.
    pub fn setattr(
        &self,
        nodeid: u64,
        set: SetAttr,
        reply: impl FnOnce(Result<(Attr, Duration)>) + Send + 'static,
    ) {
        let ino = self.core.ino(nodeid);
        let body = move |op: &mut Op<'_>| -> Step<(Attr, Duration)> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            let _alone = set.size.map(|_| node.gate.write());
            let mut state = node.state.lock();
            let kind = core.load(&node, &mut state)?.kind;
            if let Some(size) = set.size {
                match kind {
                    FileKind::Regular => core.resize(op, &node, &mut state, size)?,
                    FileKind::Directory => return Err(Error::IsDirectory.into()),
                    _ => return Err(Error::Invalid("only regular files have a size to set").into()),
                }
            }
            if set.changes_more_than_size() {
                let mut attr = core.load(&node, &mut state)?.clone();
                set.apply(&mut attr, core.now());
                core.store_attr(&node, &mut state, attr)?;
            }
            Ok((core.visible(&node, &mut state)?, KEEP))
        };
        self.run_serving(ino, Mode::X, Box::new(body), Box::new(reply));
    }
}
