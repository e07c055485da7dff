//! Whether the kernel's idea of a file's size may be an old one.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An answer that bears a size may be taken over by the kernel so much later than others: the thread that asked has not
/// run again. Until then the kernel is not sure to have kept what it was told after another size had come back.
const SETTLES: Duration = Duration::from_secs(1);

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
    /// Since when it has not been another one that came back.
    since: Duration,
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
        left.size = size;
    }

    /// The size is this one under the lock that came back: if it was lost with it, it is as if it had not been.
    pub(super) fn is_back(&self, now: Duration, number: u64, size: u64) -> bool {
        let is_back = {
            let mut left = self.left.lock();
            if left.size != Some(size) {
                left.since = now;
            }
            left.was_sure && left.size == Some(size)
        };
        if is_back {
            self.ends(now, number);
        }
        is_back
    }

    /// Is it worth while to see whether it is?
    pub(super) fn may_be_back(&self) -> bool {
        let left = self.left.lock();
        left.was_sure && left.size.is_some()
    }

    pub(super) fn get(&self) -> Option<u64> {
        Some(self.now.load(Ordering::Acquire)).filter(|number| *number > 0)
    }

    pub(super) fn is_being_told(&self) -> bool {
        self.tellers.load(Ordering::Acquire) > 0
    }

    /// The kernel has been seen to know the size under the lock that came back after this doubt.
    pub(super) fn ends(&self, now: Duration, number: u64) {
        let mut left = self.left.lock();
        let is_over = self.now.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        left.sure |= is_over && now >= left.since + SETTLES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(60);

    #[test]
    fn a_doubt_ends_with_what_was_told_after_it() {
        let doubt = Doubt::default();
        assert_eq!(doubt.get(), None);
        doubt.rises();
        let first = doubt.get().unwrap();
        doubt.rises();
        doubt.ends(LATE, first);
        let second = doubt.get().unwrap();
        doubt.ends(LATE, second);
        assert_eq!(doubt.get(), None);
        doubt.rises();
        doubt.ends(LATE, second);
        assert!(doubt.get().is_some());
    }

    #[test]
    fn a_size_that_was_not_changed_meanwhile_ends_a_doubt() {
        let doubt = Doubt::default();
        let (lost, seen) = (|size| (doubt.rises(), doubt.left_with(Some(size))), || doubt.get().unwrap());
        let told = |now| doubt.ends(now, seen());
        lost(7);
        assert!(!doubt.is_back(LATE, seen(), 7), "the kernel has never been seen to know it");
        told(LATE);
        lost(7);
        assert!(doubt.may_be_back() && doubt.is_back(LATE, seen(), 7) && doubt.get().is_none());
        lost(7);
        assert!(doubt.may_be_back() && !doubt.is_back(LATE, seen(), 8));
        told(LATE);
        lost(8);
        assert!(
            !doubt.may_be_back() && !doubt.is_back(LATE + SETTLES / 2, seen(), 8),
            "7 may still come late"
        );
        told(LATE + SETTLES / 2);
        lost(8);
        assert!(!doubt.is_back(LATE + SETTLES, seen(), 8), "nobody has looked since it can have come");
        told(LATE + SETTLES);
        lost(8);
        assert!(doubt.may_be_back());
        doubt.rises();
        assert!(!doubt.is_back(LATE + SETTLES, seen(), 8), "before it is known with what the lock goes");
    }
}
