//! Write-back: flushing one inode, and the thread that does it in time.

use super::*;
use crate::alloc::{RUNS_MAX, Want};
use crate::file::{FLUSH_IO_BYTES, FlushBatch, FlushMark, TakeLimit};
use crate::inode::tree_costs;
use parking_lot::Condvar;
use serving::Parked;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// Dirty bytes of one file above which it is flushed at once.
pub const FILE_DIRTY_MAX: u64 = 8 << 20;
/// Age at which dirty data is flushed.
const AGE_MAX: Duration = Duration::from_secs(5);
/// How often ages are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a writer waits for dirty data to be written before it goes on regardless.
const THROTTLE_MAX: Duration = Duration::from_secs(30);
/// How often it asks for that again.
const THROTTLE_LOOK: Duration = Duration::from_millis(200);
/// Runs one flush transaction may change, its other blocks, and the pages for what is scattered.
const CHANGES: u32 = 8;
const FLUSH_BLOCKS: u32 = 8 + 3 * CHANGES + 2 * tree_costs::LOG_BLOCKS + RUNS_MAX as u32 / 16;

/// What the write-back thread is asked for.
#[derive(Default)]
pub struct Signal {
    state: Mutex<Asked>,
    wake: Condvar,
    throttled: Mutex<Throttled>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Writes that wait for dirty data to become less, and whether a thread looks after them. Not on the
/// threads that read requests: what is being waited for may be behind a request that nobody has read.
#[derive(Default)]
struct Throttled {
    /// Until when each waits at most, its pages, and the write.
    writes: VecDeque<(Duration, Option<Parked>, Job)>,
    looked_after: bool,
}

#[derive(Default)]
struct Asked {
    dirty: BTreeSet<InodeNo>,
    soon: BTreeSet<InodeNo>,
    all: bool,
    stop: bool,
}

impl Signal {
    /// An inode has something dirty. Called with its state locked.
    pub fn dirtied(&self, ino: InodeNo) {
        self.state.lock().dirty.insert(ino);
    }

    /// All inodes that have something dirty.
    pub fn dirty(&self) -> Vec<InodeNo> {
        self.state.lock().dirty.iter().copied().collect()
    }

    /// An inode is clean: with its state locked, so that nobody dirties it in between, or without a node.
    fn cleaned(&self, ino: InodeNo) {
        self.state.lock().dirty.remove(&ino);
    }

    /// Flush this inode now.
    pub fn flush_soon(&self, ino: InodeNo) {
        if self.state.lock().soon.insert(ino) {
            self.wake.notify_one();
        }
    }

    /// Flush everything now.
    pub fn flush_all_soon(&self) {
        let mut asked = self.state.lock();
        if !asked.all {
            asked.all = true;
            self.wake.notify_one();
        }
    }

    /// End the thread.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_all();
    }
}

/// Nothing could be taken for a flush: because nothing is left of what was there at `mark`, or flushes in flight
/// have it.
///
/// # Errors
/// `NeedSpace` if neither is the case: the space for what is dirty has been lost.
fn check_takeable(state: &NodeState, mark: FlushMark) -> Result<()> {
    let in_flight = state.file.as_ref().is_some_and(|f| f.flushes_in_flight() > 0);
    if !lacks(state, mark) || in_flight {
        return Ok(());
    }
    match state.space.as_ref().map_or(0, Reservation::data) {
        0 => Err(Error::NeedSpace),
        _ => Err(Error::Invalid("dirty data that cannot be written")),
    }
}

/// Does the disk lack data, or the size, of what was there at `mark`?
fn lacks(state: &NodeState, mark: FlushMark) -> bool {
    state.file.as_ref().is_some_and(|file| file.lacks(mark))
}

/// Up to where an inode is to be flushed now. Nothing matters if it has no data in memory.
fn mark_of(state: &NodeState) -> FlushMark {
    state.file.as_ref().map_or(FlushMark::ALL, FileState::flush_mark)
}

impl NodeState {
    /// What became of a flush, or a part of one: an error is noted for all handles, here and nowhere else.
    fn noted<T>(&mut self, done: Result<T>) -> Result<T> {
        if let Err(e) = &done
            && *e != Error::NeedSpace
        {
            self.write_errors.note(e.clone());
        }
        done
    }
}

impl Core {
    /// Write out everything of an inode that is dirty now; what is written to it meanwhile may stay dirty. Its lock is
    /// pinned X, or being given up.
    ///
    /// # Errors
    /// `NeedSpace` if it must be got from a group that is not held (`aside` has what to do then); so for
    /// the others.
    pub(super) fn flush_node(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        let _io = node.gate.read();
        self.flush_pages(node)?;
        let mut state = node.state.lock();
        self.flush_attr(node, &mut state)
    }

    /// The same until nothing is dirty: nobody writes to it any more but who was let in before.
    pub(super) fn flush_whole(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        loop {
            self.flush_node(node)?;
            if !node.state.lock().is_data_dirty() {
                return Ok(());
            }
        }
    }

    /// Write out data and size, but not times that alone have changed: what fdatasync(2) asks for.
    pub(super) fn flush_data(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        let _io = node.gate.read();
        self.flush_pages(node)
    }

    fn flush_pages(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        let mut state = node.state.lock();
        let mark = mark_of(&state);
        while lacks(&state, mark) {
            self.flush_batch(node, &mut state, mark)?;
            // Writers get on meanwhile.
            MutexGuard::bump(&mut state);
        }
        Ok(())
    }

    /// One batch of what was dirty at `mark`, or just now. `Some` if there is more of that; else the attributes are
    /// written as well.
    fn flush_some(self: &Arc<Self>, node: &Arc<Node>, mark: Option<FlushMark>) -> Result<Option<FlushMark>> {
        let _io = node.gate.read();
        let mut state = node.state.lock();
        let mark = mark.unwrap_or_else(|| mark_of(&state));
        if lacks(&state, mark) {
            self.flush_batch(node, &mut state, mark)?;
        }
        if lacks(&state, mark) {
            return Ok(Some(mark));
        }
        self.flush_attr(node, &mut state).map(|()| None)
    }

    /// The same with the state locked throughout; the gate is held.
    pub(super) fn flush_locked(self: &Arc<Self>, node: &Arc<Node>, state: &mut NodeState) -> Result<()> {
        while self.flush_one(node, state)? {}
        let takeable = check_takeable(state, FlushMark::ALL);
        state.noted(takeable)?;
        self.flush_attr(node, state)
    }

    fn flush_attr(&self, node: &Node, state: &mut NodeState) -> Result<()> {
        if !state.is_data_dirty() {
            // A group with space promised in it is not handed over.
            state.space = None;
        }
        match state.attr.clone() {
            Some(attr) if state.attr_dirty => {
                let stored = self.store_attr(node, state, attr);
                state.noted(stored)
            }
            _ => Ok(()),
        }
    }

    fn take(
        &self,
        node: &Node,
        state: &mut NodeState,
        mark: FlushMark,
    ) -> Result<Option<(FlushBatch, Option<PendingRuns>)>> {
        self.reserve_lost(node, state);
        let promised = state.space.as_ref().map_or(0, Reservation::data);
        let limit = TakeLimit { bytes: FLUSH_IO_BYTES, new_blocks: promised, changes: CHANGES, mark };
        let Some(file) = &mut state.file else { return Ok(None) };
        let Some(mut batch) = file.flush_take(&*self.store, limit)? else { return Ok(None) };
        let wanted = batch.blocks_wanted();
        if wanted == 0 {
            return Ok(Some((batch, None)));
        }
        let near = batch.near().or(Some(node.ino.block()));
        let space = state.space.as_mut().expect("new blocks are bounded by it");
        match self.alloc.take_data(space, wanted, near) {
            Ok(pending) => {
                file.flush_place(&mut batch, pending.runs());
                Ok(Some((batch, Some(pending))))
            }
            Err(e) => {
                file.flush_failed(batch);
                Err(e)
            }
        }
    }

    /// A flush that failed may have lost what was reserved for its pages.
    fn reserve_lost(&self, node: &Node, state: &mut NodeState) {
        let want = state.file.as_ref().map_or(0, |file| file.space_want().data);
        let held = state.space.as_ref().map_or(0, Reservation::data);
        if want > held
            && let Ok(more) =
                self.alloc.reserve(Want { data: want - held, meta: 0, near: self.group(node.ino) })
        {
            state.space.get_or_insert_default().merge(more);
        }
    }

    fn settle(
        &self,
        node: &Node,
        state: &mut NodeState,
        batch: FlushBatch,
        mut pending: Option<PendingRuns>,
        written: Result<()>,
    ) -> Result<()> {
        let applied = written.and_then(|()| self.apply(node, state, &batch, &mut pending));
        if let Some(unused) = pending {
            unused.give_back_after(applied.as_ref().err(), state.space.get_or_insert_default());
        }
        let Some(file) = &mut state.file else { return applied };
        match &applied {
            Ok(()) => {
                file.flush_done(batch);
                let want = file.space_want();
                if let Some(space) = &mut state.space {
                    space.shrink(want.data, want.meta.into());
                }
                if state.is_clean() {
                    state.dirty_since = None;
                }
            }
            Err(_) => file.flush_failed(batch),
        }
        state.noted(applied)
    }

    fn apply(
        &self,
        node: &Node,
        state: &mut NodeState,
        batch: &FlushBatch,
        pending: &mut Option<PendingRuns>,
    ) -> Result<()> {
        state.data_txn = self.journal.running();
        if !batch.needs_txn() {
            return Ok(());
        }
        let Some(mut attr) = state.attr.clone() else {
            return Err(Error::Damaged { inode: node.ino, what: "dirty data without attributes".into() });
        };
        let Some(file) = &state.file else { return Ok(()) };
        let held = state.space.get_or_insert_default();
        let meta = batch.space().meta;
        let mut space = held.split(0, meta.into());
        // Promised for all of the file's dirty data, not batch by batch; the emergency share is the last resort.
        let short = meta.saturating_sub(u32::try_from(space.meta()).unwrap_or(u32::MAX));
        if short > 0
            && let Ok(more) = self.alloc.reserve(Want { data: 0, meta: short, near: self.group(node.ino) })
        {
            space.merge(more);
        }
        let FreeingChange { mut txn, _slot } = self.change_freeing(Some(space), FLUSH_BLOCKS)?;
        txn.lean_on(held);
        if let Some(pending) = pending.take() {
            txn.use_data(pending);
        }
        let (done, unused) = match file.flush_apply(batch, &mut txn, &mut attr) {
            Ok(()) => txn.finish_keeping(),
            Err(e) => (Err(e), txn.undo()),
        };
        held.merge(unused);
        state.last_txn = match done {
            // What was promised in a damaged group must be had elsewhere.
            Err(Error::Corrupt { .. }) if held.leave_damaged() => return Err(Error::NeedSpace),
            done => done?,
        };
        state.attr = Some(attr);
        state.attr_dirty = false;
        Ok(())
    }

    /// Flush one batch with the state locked. `false` if there was nothing to take.
    fn flush_one(self: &Arc<Self>, node: &Arc<Node>, state: &mut NodeState) -> Result<bool> {
        let taken = self.take(node, state, FlushMark::ALL);
        let Some((batch, pending)) = state.noted(taken)? else { return Ok(false) };
        let written = batch.write_data(&self.pool, &*self.store);
        self.settle(node, state, batch, pending, written)?;
        Ok(true)
    }

    /// Flush one batch, the state unlocked while the data goes out; or wait for one in flight, if that
    /// has all there is.
    fn flush_batch(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &mut MutexGuard<'_, NodeState>,
        mark: FlushMark,
    ) -> Result<()> {
        let taken = self.take(node, state, mark);
        let Some((batch, pending)) = state.noted(taken)? else {
            let takeable = check_takeable(state, mark);
            state.noted(takeable)?;
            MutexGuard::unlocked(state, || std::thread::sleep(Duration::from_micros(300)));
            return Ok(());
        };
        let written = MutexGuard::unlocked(state, || batch.write_data(&self.pool, &*self.store));
        self.settle(node, state, batch, pending, written)
    }

    /// Do `write` when there is less dirty data, or regardless after a time.
    pub(super) fn run_with_room(
        self: &Arc<Self>,
        parked: Option<Parked>,
        write: impl FnOnce() + Send + 'static,
    ) {
        self.writeback.flush_all_soon();
        let mut throttled = self.writeback.throttled.lock();
        throttled.writes.push_back((self.clock.now() + THROTTLE_MAX, parked, Box::new(write)));
        if !std::mem::replace(&mut throttled.looked_after, true) {
            drop(throttled);
            let core = self.clone();
            spawn::spawn("throttle", move || core.run_throttled());
        }
    }

    fn run_throttled(&self) {
        loop {
            let next = {
                let mut throttled = self.writeback.throttled.lock();
                let next = throttled.writes.pop_front();
                throttled.looked_after = next.is_some();
                next
            };
            let Some((until, parked, write)) = next else { return };
            while self.clock.now() < until
                && !self.store.halt().is_tripped()
                && !self.pool.wait_for_room(THROTTLE_LOOK)
            {
                self.writeback.flush_all_soon();
            }
            drop(parked);
            write();
        }
    }

    /// The write-back thread: one batch of each file that is due after the other, so that none waits for the end of
    /// a large one, nor for that of one that is being written all the time.
    pub(super) fn run_writeback(self: &Arc<Self>) {
        let mut begun: HashMap<InodeNo, FlushMark> = HashMap::new();
        let mut next_look = Duration::ZERO;
        loop {
            let (due, now) = {
                let mut asked = self.writeback.state.lock();
                if !asked.stop && !asked.all && asked.soon.is_empty() && begun.is_empty() {
                    self.writeback.wake.wait_for(&mut asked, LOOK);
                }
                if asked.stop {
                    return;
                }
                let all = std::mem::take(&mut asked.all);
                let soon = std::mem::take(&mut asked.soon);
                let mut due: BTreeSet<InodeNo> = begun.keys().chain(&soon).copied().collect();
                let now = self.clock.now();
                if all || now >= next_look {
                    due.extend(&asked.dirty);
                    next_look = now + LOOK;
                }
                (due.into_iter().map(|ino| (ino, all || soon.contains(&ino))).collect::<Vec<_>>(), now)
            };
            let mut going_on = HashMap::new();
            for (ino, at_once) in due {
                let mark = begun.remove(&ino);
                if let Some(mark) = self.flush_if_due(ino, at_once || mark.is_some(), now, mark) {
                    going_on.insert(ino, mark);
                }
            }
            begun = going_on;
        }
    }

    /// Flush everything that is dirty and not on its way out already; for threads that hold nothing.
    pub(super) fn flush_all_now(self: &Arc<Self>) {
        let now = self.clock.now();
        for ino in self.writeback.dirty() {
            let mut mark = self.flush_if_due(ino, true, now, None);
            while mark.is_some() {
                mark = self.flush_if_due(ino, true, now, mark);
            }
        }
    }

    /// A batch of an inode, if it is time for it: of what was dirty at `mark`, if that was begun before. `Some` if
    /// there is more of that.
    fn flush_if_due(
        self: &Arc<Self>,
        ino: InodeNo,
        at_once: bool,
        now: Duration,
        mark: Option<FlushMark>,
    ) -> Option<FlushMark> {
        let node = self.nodes.find(ino).or_else(|| {
            self.writeback.cleaned(ino);
            // Made and dirtied before that, it would be forgotten while it is dirty.
            self.nodes.find(ino)
        });
        let node = node?;
        let (clean, old) = {
            let mut state = node.state.lock();
            match state.is_clean() {
                true => {
                    state.space = None;
                    self.writeback.cleaned(ino);
                }
                false => self.writeback.dirtied(ino),
            }
            (state.is_clean(), state.dirty_since.is_none_or(|t| now.saturating_sub(t) >= AGE_MAX))
        };
        if clean {
            drop(node);
            self.nodes.shed(ino);
            return None;
        }
        if !at_once && !old {
            return None;
        }
        // Not pinned: it is being given up, and flushed by that.
        let pins = self.locks.try_pin(&inode(ino, Mode::X))?;
        let flushed = self.flush_some(&node, mark);
        drop(pins);
        match flushed {
            Ok(more) => return more,
            Err(Error::NeedSpace) => self.seek_space(&node),
            Err(e) => tracing::error!(inode = ino.0, "write-back failed: {e}"),
        }
        None
    }
}
