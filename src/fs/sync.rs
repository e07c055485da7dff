//! syncfs: everything that this host has changed, durable.

use super::*;
use invalidation::Invalidation;
use std::sync::atomic::AtomicBool;

/// How long to wait for an inode whose lock is being given up: that flushes it too.
const PAUSE: Duration = Duration::from_millis(1);

/// Who wants to know that nothing can be lost here any more.
#[derive(Default)]
pub struct Safe {
    tell: Mutex<Vec<Arc<Tell>>>,
    told: AtomicBool,
}

type Tell = dyn Fn() + Send + Sync;

impl Safe {
    fn set(&self) {
        let tell = self.tell.lock();
        self.told.store(true, Ordering::Release);
        tell.iter().for_each(|tell| tell());
    }
}

impl Fs {
    /// Calls `tell` once a host that leaves has all that was written here on the disk, so that nothing is lost
    /// whatever becomes of it; or once it halts, and can do nothing about it any more. Perhaps twice.
    pub fn when_safe(&self, tell: impl Fn() + Send + Sync + 'static) {
        let safe = &self.core.safe;
        let tell: Arc<Tell> = Arc::new(tell);
        let mut all = safe.tell.lock();
        match safe.told.load(Ordering::Acquire) {
            true => tell(),
            false => all.push(tell.clone()),
        }
        drop(all);
        self.on_halt(move |_| tell());
    }

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
        if self.is_read_only() {
            return Ok(());
        }
        self.launder();
        let mut written = Ok(());
        for ino in self.writeback.dirty() {
            let flushed = self.sync_inode(ino);
            written = written.and(flushed);
        }
        self.commit_all()?;
        written
    }

    /// Nothing is written any more: makes what was written durable. One inode's failure is not another's.
    pub(super) fn make_safe(self: &Arc<Self>) -> Result<()> {
        let mut written = Ok(());
        self.nodes.forget_all();
        for node in self.nodes.all_awake() {
            let flushed = self.flush_dirty(&node);
            written = written.and(flushed);
        }
        if !self.is_read_only() {
            self.commit_all()?;
        }
        self.safe.set();
        written
    }

    /// Nothing more can be done for what was written here.
    pub(super) fn give_up_safety(&self) {
        self.safe.set();
    }

    fn commit_all(&self) -> Result<()> {
        self.journal.commit(self.journal.running())?;
        // Data that replaced a file's own blocks may have needed no commit.
        self.store.flush_since(self.store.flush_mark())
    }

    /// Have the kernel write what was stored through shared mappings: newer kernels do not wait for that before they
    /// ask a FUSE filesystem to sync. It writes the dirty pages of an inode that it drops. Pages of requests that wait
    /// for a lock are left out: there is nothing in them, and the lock may be a dead host's.
    fn launder(self: &Arc<Self>) {
        let mapped = |node: &Arc<Node>| node.has_writers() && !node.filled.lock().is_empty();
        for node in self.nodes.open().into_iter().filter(mapped) {
            Invalidation::start(self, node, Mode::X).finish(self);
        }
    }

    fn sync_inode(self: &Arc<Self>, ino: InodeNo) -> Result<()> {
        self.nodes.find(ino).map_or(Ok(()), |node| self.flush_dirty(&node))
    }

    /// Flush an inode unless it is clean. A lock that is given up meanwhile is not asked for again, for whoever has it
    /// next may be dead: dirty data is flushed before.
    pub(super) fn flush_dirty(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        let flushed = self.flush_waiting(node, || {
            loop {
                if node.state.lock().is_clean() {
                    return Ok(None);
                }
                self.store.halt().check()?;
                let pins = self.locks.try_pin(&inode(node.ino, Mode::X));
                let revoked = || self.locks.try_pin_revoked(LockName::Inode(node.ino), Mode::X);
                if let Some(pins) = pins.or_else(revoked) {
                    return Ok(Some(pins));
                }
                std::thread::sleep(PAUSE);
            }
        });
        if let Err(e) = &flushed {
            tracing::error!(inode = node.ino.0, "writing what was not synced failed: {e}");
        }
        flushed
    }
}
