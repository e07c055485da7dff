//! lookup, forget, getattr, readlink: what only reads names and attributes.

use super::*;

impl Fs {
    /// Find `name` in a directory. `Ok(None)`: it is not there, and the kernel may remember that for
    /// as long as positive entries.
    pub fn lookup(
        &self,
        parent: u64,
        name: Vec<u8>,
        reply: impl FnOnce(Result<Option<EntryReply>>) + Send + 'static,
    ) {
        let dir = self.core.ino(parent);
        let body = move |op: &mut Op<'_>| -> Step<Option<EntryReply>> {
            check_name(&name)?;
            let core = op.core.clone();
            let node = core.nodes.get(dir);
            let found = {
                let mut state = node.state.lock();
                let attr = core.load_dir(&node, &mut state)?;
                match &name[..] {
                    b"." => Some(dir),
                    b".." => Some(attr.parent),
                    _ => core.dir(dir).lookup(&*core.store, &name)?.map(|e| e.ino),
                }
            };
            let Some(ino) = found else { return Ok(None) };
            op.need_inode(ino, Mode::S)?;
            Ok(Some(core.entry(ino)?))
        };
        op::run(&self.core, inode(dir, Mode::S), Box::new(body), Box::new(reply));
    }

    /// The kernel drops `n` lookups of an inode.
    pub fn forget(&self, nodeid: u64, n: u64) {
        let ino = self.core.ino(nodeid);
        if let Some(node) = self.core.nodes.forget(ino, n) {
            let dead = node.state.try_lock().is_some_and(|s| s.attr.as_ref().is_some_and(|a| a.nlink == 0));
            drop(node);
            if dead {
                self.core.reaper.push(ino);
            } else {
                self.core.nodes.shed(ino);
            }
        }
    }

    /// The attributes, and how long the kernel may keep them.
    pub fn getattr(&self, nodeid: u64, reply: impl FnOnce(Result<(Attr, Duration)>) + Send + 'static) {
        let ino = self.core.ino(nodeid);
        let body = move |op: &mut Op<'_>| -> Step<(Attr, Duration)> {
            let node = op.core.nodes.get(ino);
            let mut state = node.state.lock();
            Ok((op.core.visible(&node, &mut state)?, KEEP))
        };
        op::run(&self.core, inode(ino, Mode::S), Box::new(body), Box::new(reply));
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, nodeid: u64, reply: impl FnOnce(Result<Vec<u8>>) + Send + 'static) {
        let ino = self.core.ino(nodeid);
        let body = move |op: &mut Op<'_>| -> Step<Vec<u8>> {
            let core = op.core;
            let node = core.nodes.get(ino);
            let mut state = node.state.lock();
            let attr = core.load(&node, &mut state)?;
            if attr.kind != FileKind::Symlink {
                return Err(Error::Invalid("not a symbolic link").into());
            }
            Ok(core.tree(ino).read_symlink(&*core.store)?)
        };
        op::run(&self.core, inode(ino, Mode::S), Box::new(body), Box::new(reply));
    }
}
