//! syncfs: everything that this host has changed, durable.

use super::*;

/// How long to wait for an inode whose lock is being given up: that flushes it too.
const PAUSE: Duration = Duration::from_millis(1);

impl Fs {
    /// Make durable all that was changed on this host before this call.
    pub fn syncfs(&self, reply: impl FnOnce(Result<()>) + Send + 'static) {
        let core = self.core.clone();
        // It takes as long as there is dirty data, and no thread that serves requests may.
        spawn::spawn("syncfs", move || reply(core.sync_all()));
    }
}

impl Core {
    fn sync_all(self: &Arc<Self>) -> Result<()> {
        self.store.halt().check()?;
        if self.read_only {
            return Ok(());
        }
        self.launder();
        let mut written = Ok(());
        for ino in self.writeback.dirty() {
            let flushed = self.sync_inode(ino);
            written = written.and(flushed);
        }
        self.journal.commit(self.journal.running())?;
        // Data that replaced a file's own blocks may have needed no commit.
        self.store.flush_since(self.store.flush_mark())?;
        written
    }

    /// Have the kernel write what was stored through shared mappings: newer kernels do not wait for that before they
    /// ask a FUSE filesystem to sync. It writes the dirty pages of an inode that it drops.
    fn launder(&self) {
        let mapped = |node: &Arc<Node>| node.has_writers() && !node.filled.lock().is_empty();
        for node in self.nodes.open().into_iter().filter(mapped) {
            if let Err(e) = self.kernel.inval_inode(self.nodeid(node.ino), 0, 0) {
                tracing::debug!(inode = node.ino.0, "pages that stay for syncfs: {e}");
            }
        }
    }

    fn sync_inode(self: &Arc<Self>, ino: InodeNo) -> Result<()> {
        let Some(node) = self.nodes.find(ino) else { return Ok(()) };
        let flushed = self.flush_waiting(&node, || {
            loop {
                if node.state.lock().is_clean() {
                    return Ok(None);
                }
                self.store.halt().check()?;
                if let Some(pins) = self.locks.try_pin(&inode(ino, Mode::X)) {
                    return Ok(Some(pins));
                }
                std::thread::sleep(PAUSE);
            }
        });
        if let Err(e) = &flushed {
            tracing::error!(inode = ino.0, "writing for syncfs failed: {e}");
            node.state.lock().write_errors.note(e.clone());
        }
        flushed
    }
}
