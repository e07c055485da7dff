//! Ceasing to be a member: in order, or as if this host had crashed.

use super::*;

/// How long leaving waits for unlinked files to be freed.
const REAP_PATIENCE: Duration = Duration::from_secs(5);

impl Fs {
    /// Stop as in a crash, but for what has changed so far, which is committed. The next mount replays
    /// the journal.
    ///
    /// # Errors
    /// If the commit failed.
    pub fn shut_down(&self) -> Result<()> {
        let core = &self.core;
        let committed = core.journal.commit(core.journal.running());
        core.store.halt().trip("shut down on request");
        committed
    }

    /// Leave: write out everything, give up all locks, be a member no more. After the kernel has
    /// let go of the mount.
    ///
    /// # Errors
    /// What kept it from a clean leave; to the others this host has crashed then, and the next
    /// mount replays its journal.
    pub fn stop(&self) -> Result<()> {
        self.end_with(Core::leave)
    }

    pub(super) fn end_with(&self, leave: impl FnOnce(&Arc<Core>) -> Result<()>) -> Result<()> {
        let core = &self.core;
        let left = core.store.halt().check().and_then(|()| leave(core));
        if left.is_err() {
            // What is ended now may wait for hosts that are dead: nobody is to wait for that.
            core.give_up_safety();
        }
        core.stop_workers();
        core.stop_recovery();
        core.locks.shutdown();
        // The lock room's last way back to us: without it the memory of this mount can go.
        *core.hook.core.write() = None;
        left
    }

    /// Write nothing any more, as if the lease were lost: to the others this host is dead. What waits
    /// fails. Only [`Fs::stop`] is of use afterwards.
    pub fn halt(&self, reason: &str) {
        self.core.store.cut_off(reason);
    }
}

impl Core {
    fn leave(self: &Arc<Self>) -> Result<()> {
        self.close_all();
        self.make_safe()?;
        self.hand_in_all(REAP_PATIENCE);
        let deadline = self.clock.now() + REAP_PATIENCE;
        while !self.is_read_only() && self.has_leftovers()? && self.clock.now() < deadline {
            if let Err(e) = self.reap_now() {
                tracing::warn!("unlinked files are left for the next mount: {e}");
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.withdraw()
    }

    /// Give everything back that the cluster knows of.
    pub(super) fn withdraw(self: &Arc<Self>) -> Result<()> {
        self.stop_workers();
        // Who waits still, holding locks, may be waiting for what a dead host has.
        self.locks.release_names_and_groups()?;
        self.stop_recovery();
        self.locks.release_all()?;
        self.journal.shutdown()?;
        self.cluster.leave()
    }
}
