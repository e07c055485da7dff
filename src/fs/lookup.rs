//! lookup, forget, getattr, readlink: what only reads names and attributes.

use super::*;

impl Fs {
    /// Find `name` in a directory.
    pub fn lookup(
        &self,
        parent: NodeId,
        name: Vec<u8>,
        reply: impl FnOnce(Result<LookupReply>) + Send + 'static,
    ) {
        let dir = self.core.ino(parent);
        let body = move |op: &mut Op<'_>| -> Step<LookupReply> {
            check_name(&name)?;
            let core = op.core.clone();
            if name == b"." {
                return Ok(LookupReply::Found(core.entry_by_number(dir)?));
            }
            let node = core.nodes.get(dir);
            let found = {
                let mut state = node.state.lock();
                let attr = core.load_dir(&node, &mut state)?;
                match &name[..] {
                    b".." => Some(attr.parent),
                    _ => core.dir(dir).lookup(&*core.store, &name)?.map(|e| e.ino),
                }
            };
            let Some(ino) = found else {
                return Ok(LookupReply::Missing { entry_valid: NAMES_VALID });
            };
            op.need_entry(dir, ino, Mode::S)?;
            core.read_ahead(&node, ino);
            Ok(LookupReply::Found(core.entry(ino)?))
        };
        let core = self.core.clone();
        let reply = move |found| match &found {
            Ok(LookupReply::Found(entry)) => {
                let ino = core.ino(entry.ino);
                // Whoever asks: that is not known here.
                core.after_hearing(ino, 0, move || reply(found));
            }
            _ => reply(found),
        };
        op::run(&self.core, inode(dir, Mode::S), body, reply);
    }

    /// The kernel drops `n` lookups of an inode.
    pub fn forget(&self, nodeid: NodeId, n: u64) {
        let ino = self.core.ino(nodeid);
        if let Some(node) = self.core.nodes.forget(ino, n) {
            let dead = node.state.try_lock().is_some_and(|s| s.attr.as_ref().is_some_and(|a| a.nlink == 0));
            self.core.forgotten(&node);
            drop(node);
            if dead {
                self.core.reaper.push(ino);
            } else {
                self.core.nodes.shed(ino);
            }
        }
    }

    /// Keep little of inodes that nobody is using, down to so many of which more is kept, as it is done from time to
    /// time where there are very many.
    pub fn quieten(&self, most: usize) {
        self.core.nodes.quieten(most);
    }

    /// The attributes. By a handle (`by_handle`) the kernel asks before reads and for the end of a file, and wants the
    /// size; programs do not.
    pub fn getattr(
        &self,
        node: NodeId,
        by_handle: bool,
        caller: Caller,
        reply: impl FnOnce(Result<AttrReply>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        if let Some(told) = self.core.answer_own(caller.pid, node) {
            return reply(told);
        }
        let asked = (ino == self.core.root).then(|| self.core.looks.root_asked());
        let reply = move |told| {
            reply(told);
            drop(asked);
        };
        let core = self.core.clone();
        let reply = move |told| core.after_hearing(ino, caller.pid, move || reply(told));
        // Its number, and the lock, may be another host's by now.
        if let Some(last) = self.core.last_of_gone(ino) {
            return reply(last);
        }
        let body = move |op: &mut Op<'_>| -> Step<AttrReply> {
            let node = op.core.nodes.get(ino);
            let mut state = node.state.lock();
            match op.core.last_of_gone(ino) {
                Some(last) => Ok(last?),
                None => {
                    let mut told = op.core.attr_reply(&node, &mut state)?;
                    if op.is_shared(ino) {
                        // The times are anybody's.
                        told.attr_valid = Duration::ZERO;
                    }
                    Ok(told)
                }
            }
        };
        let mode = if by_handle { self.core.looking_mode(ino) } else { Mode::S };
        // Whoever has the file open may go by the size after this, without asking again.
        if by_handle || self.core.nodes.find(ino).is_some_and(|node| node.is_open()) {
            return size::run_told(&self.core, ino, mode, None, Box::new(body), Box::new(reply));
        }
        op::run(&self.core, inode(ino, mode), body, reply);
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, nodeid: NodeId, reply: impl FnOnce(Result<Vec<u8>>) + Send + 'static) {
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
        op::run(&self.core, inode(ino, Mode::S), body, reply);
    }
}

impl Core {
    /// An inode that is asked for by nothing but its number, from a file handle (name_to_handle_at(2))
    /// that may be as old as it likes; the kernel compares generations. Its lock is pinned.
    ///
    /// # Errors
    /// `Stale` if there is no such inode, or it has no name any more.
    fn entry_by_number(&self, ino: InodeNo) -> Result<EntryReply> {
        let linked = self.group(ino).ok_or(Error::Stale).and_then(|_| {
            let node = self.nodes.get(ino);
            let mut state = node.state.lock();
            match self.load_named(&node, &mut state) {
                // By now the block may hold anything, file data too.
                Err(Error::Corrupt { .. }) => Err(Error::Stale),
                other => other.map(|attr| attr.nlink > 0),
            }
        });
        match linked {
            Ok(true) => self.entry(ino),
            other => {
                self.nodes.shed(ino);
                Err(other.err().unwrap_or(Error::Stale))
            }
        }
    }
}
