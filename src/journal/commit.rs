//! Sealing the running transaction and writing it to the log. The commit point is [`Journal::log`].

use super::record::{Stream, encode};
use super::state::{Running, State};
use super::{DIRTY_BLOCKS, Journal};
use crate::base::{BLOCK_SIZE, BlockNo, Error, Result, TxnId};
use crate::store::{Image, Segment};
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of one log write; several are in flight.
const LOG_WRITE_BYTES: usize = 1 << 20;

impl Journal {
    /// Make every finished handle of the transactions up to `upto` durable. One caller does the
    /// work for all that wait; what is finished while a log is being written goes with the next.
    /// The caller holds no handle.
    ///
    /// # Errors
    /// `Halted` if the log could not be written, now or earlier.
    pub fn commit(&self, upto: TxnId) -> Result<()> {
        let mut s = self.state.lock();
        loop {
            if s.durable >= upto {
                return Ok(());
            }
            self.store().halt().check()?;
            if s.committing {
                self.changed.wait(&mut s);
                continue;
            }
            if upto < s.running.id {
                // Sealed, neither durable nor on its way: its log could not be written, and whoever knows why is
                // about to halt this host.
                return Err(Error::Halted(format!("transaction {upto} could not be committed")));
            }
            if s.running.blocks.is_empty() && s.running.open_handles == 0 {
                return Ok(());
            }
            if !self.commit_running(s)? {
                return Ok(());
            }
            s = self.state.lock();
        }
    }

    /// Seal and write the running transaction. False if it turned out to be empty.
    pub(super) fn commit_running(&self, mut s: MutexGuard<'_, State>) -> Result<bool> {
        s.committing = true;
        s.sealing = true;
        while s.running.open_handles > 0 {
            self.changed.wait(&mut s);
        }
        if s.running.blocks.is_empty() {
            s.committing = false;
            s.sealing = false;
            drop(s);
            self.changed.notify_all();
            return Ok(false);
        }
        let next = Running::new(TxnId(s.running.id.0 + 1));
        let sealed = std::mem::replace(&mut s.running, next);
        s.ring.sealed(sealed.blocks.len() as u64);
        let position = s.ring.head();
        drop(s);
        // New handles wait for no more than this: taking a reference to each image.
        let images: Vec<_> =
            sealed.blocks.iter().map(|b| (*b, self.store().cache().seal(*b, sealed.id))).collect();
        self.state.lock().sealing = false;
        self.changed.notify_all();

        let written = self.log(sealed.id, position, &images);
        let mut s = self.state.lock();
        s.committing = false;
        let blocks = match written {
            Ok(blocks) => blocks,
            Err(e) => {
                drop(s);
                self.changed.notify_all();
                return Err(e);
            }
        };
        s.ring.committed(sealed.id, blocks);
        s.last_commit = Instant::now();
        // Under the lock: a block that is not dirty here is never seen pinned in the cache.
        for block in s.became_durable(sealed.id, images) {
            self.store().cache().unpin(block);
        }
        let checkpoint_due = s.ring.used() > s.ring.size() / 2 || s.dirty_blocks() > DIRTY_BLOCKS;
        drop(s);
        self.changed.notify_all();
        self.signal.committed(checkpoint_due);
        Ok(true)
    }

    /// **The commit point.** FLUSH if file data is on its way that images refer to; stream and commit
    /// block in one go; FLUSH: with that the transaction counts. If power fails before, the commit
    /// block may stand without the whole stream: the stream's crc in it tells, and the transaction
    /// never happened. It can only be the last one, since the next is written after this flush.
    ///
    /// Returns the ring blocks used.
    fn log(&self, txn: TxnId, position: u64, images: &[(BlockNo, Image)]) -> Result<u64> {
        let stream = encode(&self.place, txn, position, images);
        let blocks = stream.blocks + 1;
        self.store().flush_ordered()?;
        self.store().write_segments(self.segments(position, stream))?;
        self.store().flush()?;
        Ok(blocks)
    }

    /// The writes of a stream with its commit block: cut at the end of the ring and into pieces.
    fn segments(&self, position: u64, stream: Stream) -> Vec<Segment> {
        let total = (stream.blocks as usize + 1) * BLOCK_SIZE;
        let ring = self.place.ring_blocks();
        let until_wrap = (ring - position % ring) as usize * BLOCK_SIZE;
        let buf = Arc::new(stream.buf);
        let mut out = Vec::new();
        let mut from = 0;
        while from < total {
            let end = if from < until_wrap { until_wrap.min(total) } else { total };
            let len = (end - from).min(LOG_WRITE_BYTES);
            let offset = self.place.block_at(position + (from / BLOCK_SIZE) as u64).byte();
            out.push(Segment { offset, buf: buf.clone(), from, len });
            from += len;
        }
        out
    }
}
