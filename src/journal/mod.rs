//! The journal of one slot: physical redo of block images, group commit, write-back in place.
//! Level 3.
//!
//! Gives: [`Journal::begin`] -> change blocks through the [`Handle`] -> [`Handle::finish`], all of it
//! on the disk after a crash or nothing; [`Journal::commit`]; [`Journal::release`] for handing locks
//! over; [`replay`] for whoever finds the journal of a host that is gone.
//!
//! Promises:
//! 1. A finished handle is durable when `commit` of its transaction returns, and with it everything
//!    written to the device before the commit began.
//! 2. A block is written in place only from a durable transaction.
//! 3. Log space is reused only after the images in it (or newer ones) are in place and flushed.
//! 4. When `release` returns, the disk holds every covered block at least as new as the log does.
//! 5. Transaction numbers and positions never restart over the life of the volume.
//!
//! Lock order inside: `header` or `in_place` < `flushing` < `state` < the cache's shards.

mod checkpoint;
mod commit;
mod handle;
mod reach;
mod record;
mod replay;
mod ring;
mod scan;
mod state;
mod threads;

pub use handle::Handle;
pub use replay::{
    Decision, DeviceSink, OverlaySink, ReplayReport, ReplaySink, Wanted, decide, journal_is_clean, replay,
};

use crate::base::{BlockNo, Error, LockName, Result, SlotId, TxnId};
use crate::format::journal::{EXTENT_BLOCKS_MIN, JournalPlace};
use crate::store::{Store, Undo};
use checkpoint::HeaderWriter;
use parking_lot::{Condvar, Mutex};
use ring::Mark;
use state::State;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use threads::Signal;

/// Transaction numbers skipped at each opening: a transaction that a dead incarnation had begun to
/// write, and that may still land late, never bears a number that is expected.
const TXN_SKIP: u64 = 1 << 16;

/// Blocks not yet in place above which the checkpoint begins, whatever the log still holds: in memory
/// each takes its whole size, in the log an inode takes a twentieth.
const DIRTY_BLOCKS: usize = 8192;
/// Above this, changes wait for it. More than the running and the committing transaction can hold.
const DIRTY_BLOCKS_MAX: usize = 3 * DIRTY_BLOCKS;

/// How a journal behaves.
#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    /// A change is durable after this time at the latest.
    pub commit_interval: Duration,
    /// The log is emptied after so much time without a commit.
    pub checkpoint_quiet: Duration,
    /// Nothing stays in the log for longer than about this, quiet or not: other hosts wait for what is in it
    /// as well (chunks that become free).
    pub checkpoint_latest: Duration,
    /// Commit and checkpoint by themselves; without it only callers do (tools, tests).
    pub background: bool,
}

impl Default for JournalConfig {
    fn default() -> Self {
        JournalConfig {
            commit_interval: Duration::from_secs(1),
            checkpoint_quiet: Duration::from_secs(4),
            checkpoint_latest: Duration::from_secs(30),
            background: true,
        }
    }
}

/// An open journal; one per mount.
pub struct Journal {
    store: Arc<Store>,
    place: JournalPlace,
    config: JournalConfig,
    state: Mutex<State>,
    /// Something in `state` changed that somebody may wait for.
    changed: Condvar,
    /// Held while images are collected and written in place, so that an older image of a block
    /// never lands after a newer one.
    in_place: Mutex<()>,
    /// Held over a flush, so that those who come meanwhile share the next one.
    flushing: Mutex<()>,
    header: Mutex<HeaderWriter>,
    signal: Arc<Signal>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Journal {
    /// Open the journal in `extent` (first block, length) of `slot` for writing. It must have been
    /// replayed.
    ///
    /// # Errors
    /// `Busy` if it holds transactions, `Corrupt` if neither header copy is valid, `Io`, `Halted`.
    pub fn open(
        store: Arc<Store>,
        extent: (BlockNo, u64),
        slot: SlotId,
        config: JournalConfig,
    ) -> Result<Arc<Journal>> {
        let place = JournalPlace { format_id: store.format_id(), slot, start: extent.0, blocks: extent.1 };
        if place.blocks < EXTENT_BLOCKS_MIN {
            return Err(Error::Device(format!("the journal of slot {slot} is too small")));
        }
        // Its header tells which numbers were never used: an older copy of it must not count.
        let log = scan::Log::new(&store, &place, Some(reach::LOST_AFTER));
        let header = log.read_header()?;
        if !log.was_left_empty(&header)? {
            return Err(Error::Busy(format!("the journal of slot {slot} has not been replayed")));
        }
        let next = Mark { txn: skip(TxnId(header.tail_txn.get())), position: header.tail_position.get() };
        let journal = Arc::new(Journal {
            place,
            config,
            state: Mutex::new(State::new(place.ring_blocks(), next)),
            changed: Condvar::new(),
            in_place: Mutex::new(()),
            flushing: Mutex::new(()),
            header: Mutex::new(HeaderWriter { sequence: header.sequence.get() }),
            signal: Arc::default(),
            threads: Mutex::default(),
            store,
        });
        journal.header.lock().write(&journal, next)?;
        let weak = Arc::downgrade(&journal);
        journal.store.halt().on_trip(move |_| {
            if let Some(j) = weak.upgrade() {
                j.changed.notify_all();
            }
        });
        if config.background {
            *journal.threads.lock() = threads::start(&journal)
                .map_err(|e| Error::Device(format!("cannot start a journal thread: {e}")))?;
        }
        Ok(journal)
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Most blocks one handle may reserve.
    pub fn handle_max(&self) -> u32 {
        u32::try_from(self.state.lock().ring.handle_max()).unwrap_or(u32::MAX)
    }

    /// Begin a change of at most `blocks` metadata blocks. Waits for log space and for the moment of
    /// a seal, never while a log is being written, never for a cluster lock. The calling thread
    /// holds no other handle, and nothing that the holder of one may wait for.
    ///
    /// # Errors
    /// `ChangeTooLarge` above [`Journal::handle_max`]; `Halted`; `Busy` after shutdown.
    pub fn begin(self: &Arc<Self>, blocks: u32) -> Result<Handle> {
        let want = u64::from(blocks);
        let mut s = self.state.lock();
        loop {
            self.store.halt().check()?;
            if s.closed {
                return Err(Error::Busy("the journal is closed".into()));
            }
            if want > s.ring.handle_max() {
                return Err(Error::ChangeTooLarge { blocks: want, limit: s.ring.handle_max() });
            }
            if s.sealing {
                self.changed.wait(&mut s);
                continue;
            }
            let images = s.running.blocks.len() as u64 + s.running.reserved + want;
            let fits = s.ring.fits_running(images);
            if fits && s.ring.has_space(images) && s.dirty_blocks() < DIRTY_BLOCKS_MAX {
                break;
            }
            let done = s.running.blocks.len() as u64 + want;
            if !fits && s.running.open_handles > 0 && s.ring.fits_running(done) {
                // What open handles reserve at worst is in the way, and mostly comes back: wait for
                // that rather than pay a commit.
                s.waiting_for_room += 1;
                self.changed.wait(&mut s);
                s.waiting_for_room -= 1;
            } else if s.committing {
                self.changed.wait(&mut s);
            } else if !fits || (s.ring.has_space(images) && !s.has_logged()) {
                // The second: memory is full of what this very transaction has changed.
                self.commit_running(s)?;
                s = self.state.lock();
            } else {
                drop(s);
                self.checkpoint_durable()?;
                s = self.state.lock();
            }
        }
        s.running.open_handles += 1;
        s.running.reserved += want;
        let txn = s.running.id;
        drop(s);
        Ok(Handle::new(self.clone(), txn, blocks))
    }

    /// A handle is finished: its blocks belong to the running transaction. Those it has `freed` were under
    /// other locks before.
    fn join(&self, changes: &[Undo], freed: &[(BlockNo, LockName)], reserved: u32) {
        let mut s = self.state.lock();
        for c in changes {
            s.changed(c.block, c.cover, c.joined);
        }
        for (block, former) in freed {
            s.changed(*block, *former, false);
        }
        let first = s.running.since.is_none() && !s.running.blocks.is_empty();
        if first {
            s.running.since = Some(Instant::now());
        }
        self.close_handle(s, reserved);
        if first {
            self.signal.changed(self.config.commit_interval);
        }
    }

    /// A handle was undone.
    fn abandon(&self, reserved: u32) {
        self.close_handle(self.state.lock(), reserved);
    }

    fn close_handle(&self, mut s: parking_lot::MutexGuard<'_, State>, reserved: u32) {
        s.running.open_handles -= 1;
        s.running.reserved -= u64::from(reserved);
        let tell = s.waiting_for_room > 0 || (s.sealing && s.running.open_handles == 0);
        drop(s);
        if tell {
            self.changed.notify_all();
        }
    }

    /// The transaction that handles begun now will be part of.
    pub fn running(&self) -> TxnId {
        self.state.lock().running.id
    }

    /// All transactions up to this one are durable.
    pub fn durable(&self) -> TxnId {
        self.state.lock().durable
    }

    /// All transactions up to this one are in place, durably.
    pub fn checkpointed(&self) -> TxnId {
        self.state.lock().checkpointed
    }

    /// Head and tail as transaction numbers: the last durable one, and the last one that is behind
    /// the durable tail. Both only grow, also over mounts; equal when the log is empty. A foreign
    /// journal whose tail has reached a head noted earlier holds nothing of that time any more.
    pub fn positions(&self) -> (u64, u64) {
        let s = self.state.lock();
        (s.durable.0, s.ring.tail().txn.0 - 1)
    }

    /// Used and total blocks of the ring.
    pub fn fill(&self) -> (u64, u64) {
        let s = self.state.lock();
        (s.ring.used(), s.ring.size())
    }

    /// Commit, write everything in place, leave an empty log, end the threads. The journal takes no
    /// handles afterwards.
    ///
    /// # Errors
    /// `Halted`; the log then needs replay.
    pub fn shutdown(&self) -> Result<()> {
        self.state.lock().closed = true;
        self.changed.notify_all();
        let result = self.checkpoint_all().and_then(|()| self.store.flush());
        self.signal.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A journal thread that panicked has said so; the log decides what counts.
            let _ = thread.join();
        }
        debug_assert!(result.is_err() || self.state.lock().is_clean());
        result
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.signal.stop();
    }
}

/// The first transaction number of the next opening.
fn skip(last: TxnId) -> TxnId {
    TxnId((last.0 / TXN_SKIP + 1) * TXN_SKIP)
}
