//! The lease of a mount, as those hear of it who may do nothing without it.

use super::*;
use crate::cluster::{LeaseSink, StoreLease};

/// The lease as the store sees it, and whoever watches over the kernel's caches.
pub struct Lease {
    store: StoreLease,
    kernel: Arc<dyn KernelCache>,
}

impl LeaseSink for Lease {
    fn renewed(&self, lease_end: Duration, write_until: Duration) {
        // First: it must not take for dead whom the store lets write.
        self.kernel.trusted_until(lease_end, lease_end - write_until);
        self.store.renewed(lease_end, write_until);
    }

    fn confirm(&self) -> Result<()> {
        self.store.confirm()
    }

    fn is_unwanted(&self) -> bool {
        self.kernel.is_unwanted()
    }

    fn renewed_here(&self) {
        // SAFETY: a system call about the calling thread with numbers. Without the privilege it stays as
        // it was: on a busy machine this host is then taken for dead a little sooner.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    }

    fn lost(&self, reason: &str) {
        self.store.lost(reason);
    }
}

impl Lease {
    /// Told to the store and to whoever watches over the kernel's caches.
    pub fn new(store: &Arc<Store>, kernel: &Arc<dyn KernelCache>) -> Lease {
        Lease { store: StoreLease(store.clone()), kernel: kernel.clone() }
    }
}
