//! Writing durable images in place, and moving the tail behind them.
//!
//! Needs no cluster lock: a block that is dirty is covered by a lock this host still holds. Only
//! durable images are written, never one of a transaction that could still be lost.

use super::Journal;
use super::ring::Mark;
use super::state::InPlace;
use crate::base::{Error, LockName, Result, TxnId};
use std::collections::BTreeSet;

/// Blocks written in place before others (a release) get their turn.
const BATCH_BLOCKS: usize = 1024;
/// Rounds a release makes before it concludes that its blocks are still being changed.
const RELEASE_ROUNDS: u32 = 8;

impl Journal {
    /// Handing locks over: commit what touches blocks under `covers`, write them in place, FLUSH.
    /// Afterwards none of them is dirty, and each is on disk at least as new as in this journal.
    /// No I/O if nothing was dirty and nothing written in place awaits its flush. Nobody may change
    /// blocks under `covers` meanwhile.
    ///
    /// # Errors
    /// `Halted`; `Busy` if blocks under `covers` went on being changed.
    pub fn release(&self, covers: &BTreeSet<LockName>) -> Result<()> {
        for _ in 0..RELEASE_ROUNDS {
            let newest = self.state.lock().newest_under(covers);
            let Some(newest) = newest else {
                return self.flush_in_place();
            };
            self.commit(newest)?;
            let one_at_a_time = self.in_place.lock();
            let batch = {
                let s = self.state.lock();
                s.to_write(s.dirty_under(covers))
            };
            self.write_in_place(batch)?;
            drop(one_at_a_time);
        }
        Err(Error::Busy(format!("blocks under {} locks being given up are still changed", covers.len())))
    }

    /// Is every block under `cover` on disk at least as new as in this journal? Holds for as long as
    /// nobody can change them.
    pub fn is_clean_under(&self, cover: LockName) -> bool {
        self.state.lock().newest_under(&BTreeSet::from([cover])).is_none()
    }

    /// Write `batch` (ascending) in place. The caller holds `in_place`, under which `batch` was collected:
    /// otherwise an older image could overtake a newer one.
    fn write_in_place(&self, batch: Vec<InPlace>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let blocks: Vec<_> = batch.iter().map(|w| (w.block, w.image.clone())).collect();
        self.store().write_blocks(&blocks)?;
        let mut s = self.state.lock();
        // Under the lock: a block that is not dirty here is never seen pinned in the cache.
        for block in s.became_in_place(&batch) {
            self.store().cache().unpin(block);
        }
        Ok(())
    }

    /// FLUSH, unless one has followed the last write in place already.
    fn flush_in_place(&self) -> Result<()> {
        let wanted = self.state.lock().in_place_written;
        let _one_at_a_time = self.flushing.lock();
        let (written, flushed) = {
            let s = self.state.lock();
            (s.in_place_written, s.in_place_flushed)
        };
        if flushed >= wanted {
            return Ok(());
        }
        self.store().flush()?;
        let mut s = self.state.lock();
        s.in_place_flushed = s.in_place_flushed.max(written);
        Ok(())
    }

    /// Write everything durable in place and move the tail behind it. Frees log space; what is not
    /// durable yet stays.
    ///
    /// # Errors
    /// `Halted`.
    pub fn checkpoint_durable(&self) -> Result<()> {
        let due = self.state.lock().logged_blocks();
        for blocks in due.chunks(BATCH_BLOCKS) {
            let one_at_a_time = self.in_place.lock();
            let batch = self.state.lock().to_write(blocks.iter().copied());
            self.write_in_place(batch)?;
            // Fair: a release that waits meanwhile goes first.
            parking_lot::MutexGuard::unlock_fair(one_at_a_time);
        }
        self.advance_tail()
    }

    /// Commit everything and write it in place. Blocks of freeing transactions are reusable then.
    ///
    /// # Errors
    /// `Halted`.
    pub fn checkpoint_all(&self) -> Result<()> {
        let upto = self.running();
        self.commit(upto)?;
        self.checkpoint_durable()
    }

    /// FLUSH what was written in place, then say so in the header; only then is log space free.
    pub(super) fn advance_tail(&self) -> Result<()> {
        let mut header = self.header.lock();
        let (to, from, written) = {
            let s = self.state.lock();
            (s.tail_candidate(), s.ring.tail(), s.in_place_written)
        };
        if to == from {
            return Ok(());
        }
        self.store().flush()?;
        {
            let mut s = self.state.lock();
            s.in_place_flushed = s.in_place_flushed.max(written);
            s.checkpointed = s.checkpointed.max(TxnId(to.txn.0 - 1));
        }
        header.write(self, to)?;
        self.state.lock().ring.move_tail(to);
        self.changed.notify_all();
        Ok(())
    }
}

/// The one writer of the header copies.
pub(super) struct HeaderWriter {
    /// Of the last header written.
    pub sequence: u64,
}

impl HeaderWriter {
    /// Copy A, FLUSH, copy B, FLUSH: at any time one copy is whole, and both are durable before space behind the former
    /// tail is written: where A cannot be read after a power cut, an older B would point at what is no log any more.
    pub fn write(&mut self, journal: &Journal, tail: Mark) -> Result<()> {
        self.sequence += 1;
        let block = journal.place.header(self.sequence, tail.txn, tail.position);
        journal.store().write_critical(journal.place.start, &block.0)?;
        journal.store().flush()?;
        journal.store().write_critical(journal.place.start.plus(1), &block.0)?;
        journal.store().flush()
    }
}
