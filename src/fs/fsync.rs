//! fsync: one inode durable.

use super::*;

impl Fs {
    /// Make an inode's data durable, and unless `data_only` its attributes as well, whichever host has
    /// changed them: one that did must write back and commit before there can be a lock here.
    pub fn fsync(
        &self,
        node: NodeId,
        fh: u64,
        data_only: bool,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        let core = self.core.clone();
        if core.is_durable_by_flush(ino) {
            return reply(core.commit_node(ino, fh, true));
        }
        let clean = {
            let node = core.nodes.get(ino);
            let state = node.state.lock();
            state.is_clean() || (data_only && !state.is_data_dirty())
        };
        if clean && let Some(pins) = core.locks.try_pin(&inode(ino, Mode::S)) {
            drop(pins);
            return reply(core.commit_node(ino, fh, false));
        }
        if !clean {
            return core.fsync_dirty(ino, fh, data_only, reply);
        }
        let finish = move |pinned: Result<()>| {
            let committed = core.commit_node(ino, fh, false);
            reply(pinned.and(committed));
        };
        op::run(&self.core, inode(ino, Mode::S), |_: &mut Op<'_>| Ok(()), finish);
    }
}

impl Core {
    /// Flush and commit an inode in which something is dirty: X is held, perhaps only just, and a demotion
    /// would flush as well.
    pub(super) fn fsync_dirty(
        self: &Arc<Self>,
        ino: InodeNo,
        fh: u64,
        data_only: bool,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let (core, node) = (op.core.clone(), op.core.nodes.get(ino));
            core.flush_in(op, &node, if data_only { Core::flush_data } else { Core::flush_node })
        };
        let core = self.clone();
        let finish = move |flushed: Result<()>| {
            let committed = core.commit_node(ino, fh, false);
            reply(flushed.and(committed));
        };
        op::run(self, inode(ino, Mode::X), body, finish);
    }

    /// Do `then` when what a request has `done` by a handle is durable, if it was opened so. Its lock may be pinned.
    pub(super) fn after_sync<T: Send + 'static>(
        self: &Arc<Self>,
        (ino, fh): (InodeNo, u64),
        done: Result<T>,
        then: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        match self.handles.get(fh).and_then(|handle| handle.sync) {
            Some(data_only) if done.is_ok() => {
                self.fsync_dirty(ino, fh, data_only, move |durable| then(durable.and(done)));
            }
            _ => then(done),
        }
    }

    /// Flush and commit an inode whose lock is pinned X.
    pub(super) fn sync_node(self: &Arc<Self>, ino: InodeNo, fh: u64, data_only: bool) -> Result<()> {
        let node = self.nodes.get(ino);
        if data_only {
            self.flush_data(&node)?;
        } else {
            self.flush_node(&node)?;
        }
        self.commit_node(ino, fh, false)
    }

    /// Wait for what changed the inode to be durable; everything of it has been flushed. `shared`: others may have
    /// written it directly. Tells the handle an error of write-back that it has not heard of.
    fn commit_node(&self, ino: InodeNo, fh: u64, shared: bool) -> Result<()> {
        let node = self.nodes.get(ino);
        let handle = self.handles.get(fh);
        let (last, data, told) = {
            let mut state = node.state.lock();
            let told = state.write_errors.tell(handle.as_ref().map(|handle| &handle.heard));
            (state.last_txn, state.data_txn, told)
        };
        if self.journal.durable() < last {
            self.journal.commit(last)?;
        }
        // A commit flushes what was written before it was sealed; without one, that is done here.
        if shared || self.journal.durable() < data {
            self.store.flush_since(self.store.flush_mark())?;
        }
        told
    }
}
