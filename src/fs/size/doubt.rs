//! Whether the kernel's idea of a file's size may be an old one.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// May the kernel's idea of an inode's size be an old one? A number for each time the lock was lost; 0: it is right.
#[derive(Default)]
pub struct Doubt {
    now: AtomicU64,
    last: AtomicU64,
    left: Mutex<Left>,
    /// Threads that have the kernel take a size: it may still drop pages because of that.
    pub(super) tellers: AtomicU64,
}

/// With which size the lock was lost. Found again it is what the kernel goes by: without the lock it is told nothing.
#[derive(Default)]
struct Left {
    /// The kernel has been seen to have the right size, and was told of all that has changed it since.
    sure: bool,
    /// So it had when the present doubt arose.
    was_sure: bool,
    size: Option<u64>,
    /// The last time it was another one that came back.
    changes: bool,
}

impl Doubt {
    /// The lock goes, and others may change the size.
    pub fn rises(&self) {
        let mut left = self.left.lock();
        (left.was_sure, left.sure, left.size) = (left.sure, false, None);
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        self.now.store(number, Ordering::Release);
    }

    /// The lock is lost with this size, after the doubt of that arose: nothing here changes it any more.
    pub fn left_with(&self, size: Option<u64>) {
        let mut left = self.left.lock();
        left.size = size.filter(|_| left.was_sure);
    }

    /// The size is this one under the lock that came back: if it was lost with it, it is as if it had not been.
    pub(super) fn is_back(&self, number: u64, size: u64) -> bool {
        let is_same = {
            let mut left = self.left.lock();
            let is_same = left.size.map(|left| left == size);
            left.changes = is_same.map_or(left.changes, |is_same| !is_same);
            is_same == Some(true)
        };
        if is_same {
            self.ends(number);
        }
        is_same
    }

    /// Is it worth while to see whether it is?
    pub(super) fn may_be_back(&self) -> bool {
        let left = self.left.lock();
        left.size.is_some() && !left.changes
    }

    pub(super) fn get(&self) -> Option<u64> {
        Some(self.now.load(Ordering::Acquire)).filter(|number| *number > 0)
    }

    pub(super) fn is_being_told(&self) -> bool {
        self.tellers.load(Ordering::Acquire) > 0
    }

    /// The kernel has been seen to know the size under the lock that came back after this doubt.
    pub(super) fn ends(&self, number: u64) {
        let mut left = self.left.lock();
        left.sure |= self.now.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_ends_with_what_was_told_after_it() {
        let doubt = Doubt::default();
        assert_eq!(doubt.get(), None);
        doubt.rises();
        let first = doubt.get().unwrap();
        doubt.rises();
        doubt.ends(first);
        let second = doubt.get().unwrap();
        doubt.ends(second);
        assert_eq!(doubt.get(), None);
        doubt.rises();
        doubt.ends(second);
        assert!(doubt.get().is_some());
    }

    #[test]
    fn a_size_that_was_not_changed_meanwhile_ends_a_doubt() {
        let doubt = Doubt::default();
        let (lost, seen) = (|size| (doubt.rises(), doubt.left_with(Some(size))), || doubt.get().unwrap());
        lost(7);
        assert!(!doubt.is_back(seen(), 7), "the kernel has never been seen to know it");
        doubt.ends(seen());
        lost(7);
        assert!(doubt.may_be_back() && !doubt.is_back(seen(), 8));
        lost(7);
        assert!(!doubt.is_back(seen(), 7), "lost with 8 told in between, or not");
        doubt.ends(seen());
        lost(7);
        assert!(!doubt.may_be_back(), "it was another one the last time");
        assert!(doubt.is_back(seen(), 7) && doubt.get().is_none());
        lost(7);
        assert!(doubt.may_be_back());
        doubt.rises();
        assert!(!doubt.is_back(seen(), 7), "before it is known with what the lock goes");
    }
}
