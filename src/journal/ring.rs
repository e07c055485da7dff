//! Space in the log: who may take how much of the ring, and where its tail stands. Pure.
//!
//! Rules: the running transaction with everything its open handles reserved, and the one being
//! written, take at most a quarter of the ring each; what is reserved is there, so a commit never
//! looks for space. Blocks behind the tail become free only when the header that says so is durable.

use super::record::log_blocks_max;
use crate::base::TxnId;
use std::collections::VecDeque;

/// A handle may always ask for so many blocks, however small the ring.
const HANDLE_BLOCKS_MIN: u64 = 200;

/// Where in the log something begins: a transaction and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub txn: TxnId,
    pub position: u64,
}

pub(super) struct Ring {
    /// Blocks of the ring.
    size: u64,
    /// Where the next transaction goes.
    head: u64,
    /// The durable header's tail.
    tail: Mark,
    /// Transactions in the log from the tail on, oldest first.
    txns: VecDeque<Mark>,
    /// Most that the transaction being written may take; 0 if none is.
    committing: u64,
}

impl Ring {
    /// An empty ring whose next transaction is `tail.txn` at `tail.position`.
    pub fn new(size: u64, tail: Mark) -> Ring {
        Ring { size, head: tail.position, tail, txns: VecDeque::new(), committing: 0 }
    }

    /// Most block images one handle may reserve: 1/64 of the ring, 200 at least, but never more than
    /// a transaction can hold.
    pub fn handle_max(&self) -> u64 {
        (self.size / 64).max(HANDLE_BLOCKS_MIN).min((self.size / 4).saturating_sub(4) * 99 / 100)
    }

    /// May the running transaction grow to `images` block images without a seal?
    pub fn fits_running(&self, images: u64) -> bool {
        log_blocks_max(images) <= self.size / 4
    }

    /// Is there space for that now?
    pub fn has_space(&self, images: u64) -> bool {
        log_blocks_max(images) <= self.size - self.used()
    }

    /// Blocks in use, the transaction being written at its largest included.
    pub fn used(&self) -> u64 {
        self.head - self.tail.position + self.committing
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn head(&self) -> u64 {
        self.head
    }

    pub fn tail(&self) -> Mark {
        self.tail
    }

    /// A transaction of `images` images is being written at the head.
    pub fn sealed(&mut self, images: u64) {
        self.committing = log_blocks_max(images);
    }

    /// It is durable and took `blocks`.
    pub fn committed(&mut self, txn: TxnId, blocks: u64) {
        debug_assert!(blocks <= self.committing);
        self.txns.push_back(Mark { txn, position: self.head });
        self.head += blocks;
        self.committing = 0;
    }

    /// The mark of the oldest transaction in the log that is not older than `txn`; the head (where
    /// `next` will stand) if there is none.
    pub fn mark_from(&self, txn: TxnId, next: TxnId) -> Mark {
        let at = self.txns.partition_point(|m| m.txn < txn);
        self.txns.get(at).copied().unwrap_or(Mark { txn: next, position: self.head })
    }

    /// A header with this tail is durable.
    pub fn move_tail(&mut self, to: Mark) {
        debug_assert!(to.position >= self.tail.position && to.position <= self.head);
        self.tail = to;
        while self.txns.front().is_some_and(|m| m.txn < to.txn) {
            self.txns.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_comes_back_with_the_tail() {
        let mut r = Ring::new(1022, Mark { txn: TxnId(7), position: 5000 });
        assert!(r.handle_max() >= 64);
        assert!(r.fits_running(r.handle_max()));
        for id in 7..10 {
            r.sealed(250);
            r.committed(TxnId(id), 200);
        }
        assert_eq!(r.used(), 600);
        assert!(!r.has_space(450));
        let mark = r.mark_from(TxnId(9), TxnId(10));
        assert_eq!(mark, Mark { txn: TxnId(9), position: 5400 });
        r.move_tail(mark);
        assert_eq!(r.used(), 200);
        let end = r.mark_from(TxnId(10), TxnId(10));
        assert_eq!(end, Mark { txn: TxnId(10), position: 5600 });
        r.move_tail(end);
        assert_eq!(r.used(), 0);
    }

    #[test]
    fn the_largest_handle_fits_the_smallest_ring() {
        for size in [254, 1022, 4094, 32766, 1 << 20] {
            let r = Ring::new(size, Mark { txn: TxnId(1), position: 0 });
            assert!(r.fits_running(r.handle_max()), "{size}");
            assert!(r.has_space(r.handle_max()), "{size}");
        }
    }
}
