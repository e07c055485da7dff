//! When the lease is over: mapped pages must not be believed any more.
//!
//! Whatever the kernel asks for waits for a renewal then (`op`), and its attributes and names are valid for
//! no longer than the lease. But a program that has mapped a file asks for nothing: it would go on seeing
//! what the file was, while others may have taken over from this host and changed it. So its pages are
//! dropped at that moment, by calls that need neither the disk nor a lock, and touching them waits like any
//! read. Files that are open for writing are left out: what is dirty in a mapping would come back as
//! writes, which would fail if the lease were not renewed in time, and be lost.
//!
//! A call may have to wait for reads on their way (whose pages are locked), and they for the disk: it is given
//! a moment, then it is left to itself on its thread and the next inode's turn comes.

use super::*;
use crossbeam::channel;
use spawn::spawn_alone;

/// How long one inode's pages hold up the next one's.
const ONE_MAX: Duration = Duration::from_millis(20);
/// Calls left to themselves: with more, all that follow wait for one to be done.
const STUCK_MAX: usize = 256;
/// How often a lapse that goes on is looked at.
const LOOK: Duration = Duration::from_millis(100);

impl Core {
    /// The thread that sees leases end.
    pub(super) fn run_lapse(self: &Arc<Self>) {
        // Not delayed by whatever keeps this machine busy: see the guardian's pulse.
        // SAFETY: a system call about the calling thread with numbers; it may fail.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        let mut lapsed = None;
        while !self.stopping.load(Ordering::Acquire) {
            let nap = match self.store.permit().lease_end() {
                Some(end) if lapsed == Some(end) => LOOK,
                Some(end) if self.clock.now() > end => {
                    self.drop_mapped_pages();
                    lapsed = Some(end);
                    continue;
                }
                Some(end) => end.saturating_sub(self.clock.now()) + Duration::from_millis(1),
                None => LOOK,
            };
            std::thread::park_timeout(nap);
        }
    }

    fn drop_mapped_pages(&self) {
        let open: Vec<_> = self.nodes.open().into_iter().filter(|node| !node.has_writers()).collect();
        if open.is_empty() {
            return;
        }
        tracing::debug!("the lease is over: the kernel drops the pages of {} open files", open.len());
        let (sender, done) = channel::unbounded();
        let mut stuck = 0;
        for node in open {
            let (kernel, nodeid, sender) = (self.kernel.clone(), self.nodeid(node.ino), sender.clone());
            spawn_alone("lapse", move || {
                let _ = kernel.inval_inode(nodeid, 0, 0);
                let _ = sender.send(());
            });
            stuck += 1;
            while stuck > 0 {
                match done.recv_timeout(ONE_MAX) {
                    Ok(()) => stuck -= 1,
                    Err(_) if stuck < STUCK_MAX || self.stopping.load(Ordering::Acquire) => break,
                    Err(_) => {}
                }
            }
        }
    }
}
