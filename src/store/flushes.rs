//! Which flush covers which write, so that those who wait for one can share it. Pure bookkeeping.

use crate::base::Result;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A moment among the flushes: what was written before it is durable when a flush that began after it
/// has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark(u64);

/// Flushes are numbered as they begin.
#[derive(Default)]
pub(super) struct Flushes {
    begun: AtomicU64,
    /// The highest number that has ended.
    ended: AtomicU64,
    /// The mark behind the last write that transactions must not overtake, plus one; 0 if there was none.
    ordered: AtomicU64,
    /// Held over a flush that others may share.
    shared: Mutex<()>,
}

impl Flushes {
    /// Now.
    pub fn mark(&self) -> FlushMark {
        FlushMark(self.begun.load(Ordering::Acquire))
    }

    /// A write that transactions must not overtake has ended.
    pub fn ordered(&self) {
        self.ordered.fetch_max(self.mark().0 + 1, Ordering::AcqRel);
    }

    /// The mark behind the last such write.
    pub fn last_ordered(&self) -> Option<FlushMark> {
        self.ordered.load(Ordering::Acquire).checked_sub(1).map(FlushMark)
    }

    /// Has a flush ended that began after `mark`?
    pub fn cover(&self, mark: FlushMark) -> bool {
        self.ended.load(Ordering::Acquire) > mark.0
    }

    /// One flush.
    pub fn run(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        flush()?;
        self.ended.fetch_max(number, Ordering::AcqRel);
        Ok(())
    }

    /// One flush, unless one has covered `mark` by the time it is this caller's turn.
    pub fn run_since(&self, mark: FlushMark, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let _one_at_a_time = self.shared.lock();
        if self.cover(mark) { Ok(()) } else { self.run(flush) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;
    use std::sync::Barrier;

    #[test]
    fn only_a_flush_that_began_later_and_succeeded_covers_a_mark() {
        let f = Flushes::default();
        let early = f.mark();
        f.run(|| {
            // Written while a flush is under way: that one need not have it.
            let during = f.mark();
            assert!(!f.cover(early) && !f.cover(during));
            Ok(())
        })
        .unwrap();
        assert!(f.cover(early));
        assert_eq!(f.last_ordered(), None);
        f.ordered();
        assert!(f.last_ordered().is_some_and(|mark| !f.cover(mark)));
        let late = f.mark();
        assert!(f.run(|| Err(Error::Device("broken".into()))).is_err());
        assert!(!f.cover(late));
        let mut flushed = 0;
        for _ in 0..2 {
            f.run_since(late, || {
                flushed += 1;
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(flushed, 1);
        assert!(f.last_ordered().is_some_and(|mark| f.cover(mark)));
    }

    #[test]
    fn a_write_during_a_flush_waits_for_another() {
        let f = Flushes::default();
        let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|s| {
            s.spawn(|| {
                f.run(|| {
                    begun.wait();
                    go_on.wait();
                    Ok(())
                })
            });
            begun.wait();
            let mark = f.mark();
            go_on.wait();
            let mut own = false;
            f.run_since(mark, || {
                own = true;
                Ok(())
            })
            .unwrap();
            assert!(own);
        });
    }
}
