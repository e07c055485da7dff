//! Orphans and deferred frees: what has lost its last name, and what was freed in groups that this
//! host did not hold. Both are items of the slot's system inode.
//!
//! Orphan items are hints: the reaper acts only if the generation fits and the link count is 0, and
//! only with the inode's iopen lock held exclusively, that is, open nowhere. It first waits for
//! that lock alone, holding nothing, so that a reader elsewhere is not locked out of the inode.

use super::attr::STEP_BLOCKS;
use super::*;
use crate::alloc::{DeferredFree, DeferredFrees};
use crate::cluster::{Membership, Owner};
use crate::format::value::encode_orphan;
use crate::inode::{ItemKey, ItemKind, tree_costs};
use crate::txn::BlockTxn;
use parking_lot::Condvar;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

/// How often the slot inode is looked through for what was left.
const LOOK: Duration = Duration::from_secs(5);
/// How soon after a free had to be deferred: many come together.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// Others come soon after the first; they are freed together.
const GATHER: Duration = Duration::from_millis(3);
/// How long a squeeze waits for inodes that are being freed.
const SQUEEZE_MAX: Duration = Duration::from_millis(500);
/// Items handled in one pass.
const BATCH: usize = 2000;

/// Inodes to be reaped soon.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    ready: BTreeSet<InodeNo>,
    /// Being reaped or waited for.
    busy: BTreeSet<InodeNo>,
    /// Frees have been deferred since the last look.
    deferred: bool,
    last_look: Option<Instant>,
    /// To run when everything that can be freed has been.
    squeezes: Vec<Squeeze>,
    /// To run at its time.
    later: Vec<(Instant, Job)>,
    stop: bool,
}

type Job = Box<dyn FnOnce() + Send>;
/// A pause, and what to run after it.
type Squeeze = (Duration, Job);

/// Something to do.
struct Task {
    reap: BTreeSet<InodeNo>,
    squeezes: Vec<Squeeze>,
    /// Whose pauses are over.
    due: Vec<Job>,
    /// It is time to look through the slot inode.
    look: bool,
}
/// An item of the slot inode.
type Item = (ItemKey, Vec<u8>);

impl Queue {
    /// The last name or handle of an orphan is gone on this host.
    pub fn push(&self, ino: InodeNo) {
        let mut state = self.state.lock();
        let first = state.ready.is_empty();
        if !state.busy.contains(&ino) && state.ready.insert(ino) && first {
            self.wake.notify_one();
        }
    }

    /// An inode has become an orphan; if the kernel still knows it, its forgetting says when.
    pub fn unlinked(&self, core: &Core, ino: InodeNo) {
        if core.nodes.find(ino).is_none_or(|n| !n.is_open() && n.lookups() == 0) {
            self.push(ino);
        }
    }

    /// Free on this host whatever can be freed, then, after a pause, run `then` on the reaper's thread.
    pub fn squeeze(&self, pause: Duration, then: Job) {
        let mut state = self.state.lock();
        if state.stop {
            drop(state);
            return then();
        }
        state.squeezes.push((pause, then));
        self.wake.notify_one();
    }

    /// There may be something new in the slot inode.
    pub fn look_soon(&self) {
        self.has_deferred();
    }

    /// A free waits for its group.
    fn has_deferred(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.deferred, true) {
            self.wake.notify_one();
        }
    }

    /// What has been squeezed for is run after its pause, for which nobody else waits.
    fn run_after(&self, squeezes: Vec<Squeeze>) {
        for (pause, then) in squeezes {
            let mut state = self.state.lock();
            if pause.is_zero() || state.stop {
                drop(state);
                then();
            } else {
                state.later.push((Instant::now() + pause, then));
            }
        }
    }

    /// End the thread; what waits runs.
    pub fn stop(&self) {
        let (squeezes, later) = {
            let mut state = self.state.lock();
            state.stop = true;
            (std::mem::take(&mut state.squeezes), std::mem::take(&mut state.later))
        };
        self.wake.notify_all();
        squeezes.into_iter().for_each(|(_, then)| then());
        later.into_iter().for_each(|(_, then)| then());
    }

    /// Wait for something to do. `None`: stop.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        if state.ready.is_empty() && state.squeezes.is_empty() && !state.stop {
            let pause = if state.deferred { LOOK_SOON } else { LOOK };
            let first = state.later.iter().map(|(at, _)| at.saturating_duration_since(Instant::now())).min();
            self.wake.wait_for(&mut state, first.map_or(pause, |first| first.min(pause)));
        }
        if !state.ready.is_empty() {
            let mut none_waits = |s: &mut State| s.squeezes.is_empty() && !s.stop;
            self.wake.wait_while_for(&mut state, &mut none_waits, GATHER);
        }
        if state.stop {
            return None;
        }
        let reap = std::mem::take(&mut state.ready);
        state.busy.extend(&reap);
        let squeezes = std::mem::take(&mut state.squeezes);
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut state.later).into_iter().partition(|(at, _)| *at <= now);
        state.later = later;
        let due: Vec<_> = due.into_iter().map(|(_, then)| then).collect();
        // However much there is to reap: others may be waiting for the blocks.
        let waited_for = state.deferred && state.last_look.is_none_or(|at| at.elapsed() >= LOOK_SOON);
        let idle = reap.is_empty() && due.is_empty();
        let look = idle || !squeezes.is_empty() || waited_for;
        if look {
            (state.deferred, state.last_look) = (false, Some(now));
        }
        Some(Task { reap, squeezes, due, look })
    }

    fn done(&self, ino: InodeNo) {
        self.state.lock().busy.remove(&ino);
    }

    fn is_busy(&self, ino: InodeNo) -> bool {
        self.state.lock().busy.contains(&ino)
    }
}

/// Nobody answers for the groups of a host that is silent: a free there must not keep others waiting.
fn is_answered_for(members: &Membership, ag: AgNo) -> bool {
    match members.owner_of(ag).0 {
        Owner::Master(slot) | Owner::Adopter(slot) => slot == members.me || !members.is_silent(slot),
        _ => false,
    }
}

/// Insert the orphan item; the slot inode is locked.
pub fn insert_orphan(
    tree: &Tree,
    txn: &mut dyn BlockTxn,
    ino: InodeNo,
    generation: Generation,
) -> Result<()> {
    tree.put(txn, ItemKey::new(ItemKind::Orphan, ino.0), &encode_orphan(generation))
}

/// Deferred frees as items of the slot inode.
pub struct SlotDeferral {
    pub tree: Tree,
    pub reaper: Arc<Queue>,
}

impl DeferredFrees for SlotDeferral {
    fn add(&self, txn: &mut dyn BlockTxn, frees: &[DeferredFree]) -> Result<()> {
        let Some(first) = frees.first() else { return Ok(()) };
        let key = ItemKey::new(ItemKind::DeferredFree, first.start.0);
        self.tree.put(txn, key, &DeferredFree::encode(frees))?;
        self.reaper.has_deferred();
        Ok(())
    }

    fn log_blocks(&self) -> u32 {
        tree_costs::LOG_BLOCKS
    }
}

impl Core {
    /// The reaper thread.
    pub(super) fn run_reaper(self: &Arc<Self>) {
        while let Some(Task { reap, squeezes, due, look }) = self.reaper.next() {
            if self.store.halt().is_tripped() {
                squeezes.into_iter().for_each(|(_, then)| then());
                due.into_iter().for_each(|then| then());
                // What comes now, perhaps from those, finds no thread.
                return self.reaper.stop();
            }
            due.into_iter().for_each(|then| then());
            // A read-only mount frees nothing; whoever has its slot next does.
            let ready: Vec<InodeNo> = match self.is_read_only() {
                true => {
                    reap.into_iter().for_each(|ino| self.reaper.done(ino));
                    Vec::new()
                }
                false => reap.into_iter().collect(),
            };
            let (together, each) = self.free_together_max();
            for batch in ready.chunks(together) {
                self.reap_batch(batch, each);
            }
            if look
                && !self.is_read_only()
                && let Err(e) = self.look_through_slot()
            {
                tracing::warn!("looking for orphans: {e}");
            }
            if !squeezes.is_empty() {
                self.squeeze();
                self.reaper.run_after(squeezes);
            }
        }
    }

    /// The volume looks full: dirty data may hold more space than it needs, and inodes that the last
    /// look has found are still on their way.
    fn squeeze(self: &Arc<Self>) {
        self.flush_all_now();
        let end = self.clock.now() + SQUEEZE_MAX;
        let in_vain = self.in_vain.inodes();
        loop {
            let found = {
                let mut state = self.reaper.state.lock();
                let ready = std::mem::take(&mut state.ready);
                state.busy.extend(&ready);
                if (ready.is_empty() && state.busy.is_subset(&in_vain)) || state.stop {
                    break;
                }
                ready
            };
            found.into_iter().for_each(|ino| self.reap_when_closed(ino));
            if self.clock.now() > end || self.store.halt().is_tripped() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // What those could not free themselves; then the chunks that have emptied, also where one item
        // could not be freed.
        for freed in [self.look_through_slot(), self.drain()] {
            if let Err(e) = freed {
                tracing::warn!("freeing what can be freed: {e}");
            }
        }
    }

    fn drain(&self) -> Result<()> {
        self.journal.checkpoint_all()?;
        self.alloc.find_draining()?;
        // The first time asks, the others get one chunk of each group.
        self.alloc.maintain()?;
        while self.alloc.maintain()? > 0 {}
        Ok(())
    }

    /// One look at all that this host has to free. What cannot be freed now does not keep the rest.
    fn look_through_slot(self: &Arc<Self>) -> Result<()> {
        let (orphans, frees) = self.leftovers()?;
        for ino in orphans {
            self.reaper.unlinked(self, ino);
        }
        let mut first = Ok(());
        for (key, value) in frees {
            let freed = self.free_deferred(key, &value);
            self.store.halt().check()?;
            first = first.and(freed);
        }
        first
    }

    /// Orphans to be looked after, and deferred frees whose group somebody answers for: a batch of each.
    /// The others are passed over, not counted: there can be any number of files that are unlinked and
    /// still open.
    fn leftovers(&self) -> Result<(Vec<InodeNo>, Vec<Item>)> {
        let (mut orphans, mut frees) = (Vec::new(), Vec::new());
        let more = |found: usize| match found < BATCH {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        let members = self.cluster.membership();
        let _slot = self.slot_lock.lock();
        let from = ItemKey::new(ItemKind::Orphan, 0);
        self.slot_tree.scan(&*self.store, from, None, &mut |key, _| {
            if key.kind != ItemKind::Orphan {
                return ControlFlow::Break(());
            }
            let ino = InodeNo(key.id);
            let known = |n: Arc<Node>| n.is_open() || n.lookups() > 0;
            if !self.reaper.is_busy(ino) && !self.nodes.find(ino).is_some_and(known) {
                orphans.push(ino);
            }
            more(orphans.len())
        })?;
        let from = ItemKey::new(ItemKind::DeferredFree, 0);
        self.slot_tree.scan(&*self.store, from, None, &mut |key, value| {
            let group = self.geometry.ag_of(BlockNo(key.id));
            if key.kind == ItemKind::DeferredFree && group.is_none_or(|ag| is_answered_for(&members, ag)) {
                frees.push((key, value.to_vec()));
            }
            more(frees.len())
        })?;
        Ok((orphans, frees))
    }

    /// Free what lies in a group that was not held when it was freed. Nothing is held now.
    fn free_deferred(self: &Arc<Self>, key: ItemKey, value: &[u8]) -> Result<()> {
        let frees = DeferredFree::decode(value).ok_or_else(|| Error::Damaged {
            inode: self.slot_tree.ino,
            what: "a deferred free that cannot be".into(),
        })?;
        let Some(ag) = frees.first().and_then(|f| self.geometry.ag_of(f.start)) else { return Ok(()) };
        if !is_answered_for(&self.cluster.membership(), ag) {
            return Ok(());
        }
        let _held = self.locks.acquire_wait(LockSet::one(LockName::Ag(ag), Mode::X))?;
        let mut change = self.change_freeing(None, STEP_BLOCKS)?;
        // Another thread may have been here since the look, and the number may name other frees now.
        if self.slot_tree.get(&change.txn, key)?.as_deref() != Some(value) {
            return Ok(());
        }
        self.slot_tree.remove(&mut change.txn, key)?;
        frees.iter().try_for_each(|f| change.txn.free_deferred(f))?;
        change.txn.finish().map(|_| ())
    }

    /// Free what can be freed at once, all in one transaction; the others as soon as they can be.
    fn reap_batch(self: &Arc<Self>, batch: &[InodeNo], each: u32) {
        let (mut nodes, mut pins) = (Vec::new(), Vec::new());
        // A free in a group that is not held is put off, and done again: worth a lock that nobody wants.
        let groups: BTreeSet<AgNo> = batch.iter().filter_map(|ino| self.group(*ino)).collect();
        let pin = |ag| self.locks.try_pin(&LockSet::one(LockName::Ag(ag), Mode::X));
        let held: Vec<_> = groups.into_iter().map(pin).collect();
        for ino in batch {
            let both = LockSet::one(LockName::IOpen(*ino), Mode::X).with(LockName::Inode(*ino), Mode::X);
            if let Some(pinned) = self.locks.try_pin(&both) {
                pins.push(pinned);
                nodes.push(self.nodes.get(*ino));
            }
        }
        let freed = self.free_together(&nodes, each).unwrap_or_else(|e| {
            tracing::debug!("freeing inodes one by one: {e}");
            Vec::new()
        });
        drop((nodes, pins, held));
        for ino in batch {
            if freed.contains(ino) {
                self.nodes.shed(*ino);
                self.reaper.done(*ino);
            } else {
                self.reap_when_closed(*ino);
            }
        }
    }

    /// Reap as soon as the inode is open nowhere; waits holding nothing.
    fn reap_when_closed(self: &Arc<Self>, ino: InodeNo) {
        let core = self.clone();
        let open = LockSet::one(LockName::IOpen(ino), Mode::X);
        self.locks.acquire(
            open,
            Box::new(move |pins| {
                let Ok(pins) = pins else { return core.reaper.done(ino) };
                drop(pins);
                let both = LockSet::one(LockName::IOpen(ino), Mode::X).with(LockName::Inode(ino), Mode::X);
                let again = core.clone();
                core.locks.acquire(
                    both,
                    Box::new(move |pins| {
                        let result = pins.and_then(|_pins| again.reap(ino));
                        again.reaper.done(ino);
                        if let Err(e) = result {
                            tracing::warn!(inode = ino.0, "an unlinked inode is not freed yet: {e}");
                        }
                    }),
                );
            }),
        );
    }

    /// Take over the orphans and deferred frees of another slot whose journal is replayed and which
    /// nobody else looks after: its items move into our own slot inode.
    pub(super) fn adopt_slot(&self, other: Tree) -> Result<u64> {
        let mut moved = 0;
        loop {
            let mut items = Vec::new();
            let from = ItemKey::new(ItemKind::Orphan, 0);
            other.scan(&*self.store, from, None, &mut |key, value| {
                items.push((key, value.to_vec()));
                if items.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if items.is_empty() {
                return Ok(moved);
            }
            let mut change = self.change_freeing(None, STEP_BLOCKS)?;
            for (key, value) in items {
                other.remove(&mut change.txn, key)?;
                self.slot_tree.put(&mut change.txn, key, &value)?;
                moved += 1;
            }
            change.txn.finish()?;
        }
    }

    /// Look through the slot inode now.
    pub(super) fn reap_now(self: &Arc<Self>) -> Result<()> {
        self.look_through_slot()
    }

    /// Does the own slot inode hold anything?
    pub(super) fn has_leftovers(&self) -> Result<bool> {
        let mut any = false;
        let _slot = self.slot_lock.lock();
        self.slot_tree.scan(&*self.store, ItemKey::new(ItemKind::Orphan, 0), None, &mut |_, _| {
            any = true;
            ControlFlow::Break(())
        })?;
        Ok(any)
    }
}
