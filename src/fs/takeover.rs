//! Taking over from hosts that die while this one lives: replay their journals, take their orphans and
//! deferred frees, and have the cluster told that they are recovered. The cluster room says who is fenced.
//!
//! Every step may be repeated: images are applied by version, items of a slot inode move in transactions
//! of this host, which whoever recovers this host replays before it looks at the same slot. Journals of
//! all hosts of a batch are replayed before the slot inodes of any are looked at, because one of them may
//! have been recovering another when it died.

use super::*;
use crate::base::SystemClock;
use crate::cluster::Timing;
use crate::format::cluster::heartbeat::Replaying;
use crate::format::volume::{SlotExtents, Volume};
use crate::journal::{DeviceSink, Wanted, replay};
use parking_lot::Condvar;
use std::collections::BTreeSet;

/// What the recovery thread works with.
pub struct Recovery {
    extents: Vec<SlotExtents>,
    /// The longest time that a write of a living host may take to land.
    pub settle: Duration,
    /// How long after the end of its lease a mount that is not complete waits for the device.
    pub patience: Duration,
    /// All features of the volume are known, so that replay may write.
    able: bool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    fenced: Vec<SlotId>,
    stop: bool,
}

impl Recovery {
    /// Nobody is dead yet.
    pub fn new(volume: &Volume, timing: Timing, able: bool) -> Recovery {
        Recovery {
            extents: volume.slots.clone(),
            settle: timing.claim_wait(),
            patience: timing.wait(),
            able,
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// May this host recover others?
    pub fn is_able(&self) -> bool {
        self.able
    }

    /// These hosts are fenced: nothing they wrote can land any more.
    pub fn fenced(&self, slots: &[SlotId]) {
        self.state.lock().fenced = slots.to_vec();
        self.wake.notify_one();
    }

    /// End the thread when it is done with what it is at.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_one();
    }

    fn next(&self) -> Option<Vec<SlotId>> {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return None;
            }
            if !state.fenced.is_empty() {
                return Some(std::mem::take(&mut state.fenced));
            }
            self.wake.wait(&mut state);
        }
    }

    fn extents(&self, slot: SlotId) -> Result<&SlotExtents> {
        let found = self.extents.get(usize::from(slot.0));
        found.ok_or_else(|| Error::Device(format!("slot {slot} has no journal that this mount knows of")))
    }

    /// A slot's journal: first block and length.
    pub fn journal(&self, slot: SlotId) -> Result<(BlockNo, u64)> {
        self.extents(slot).map(|e| (e.journal_start, e.journal_blocks))
    }

    /// A slot's system inode.
    pub fn tree(&self, slot: SlotId) -> Result<Tree> {
        self.extents(slot).map(|e| Tree { ino: e.inode, cover: LockName::Slot(slot) })
    }

    /// Replay the journals of `slots`, all of them gone, while that is `wanted`; `settle`: how long a torn block may
    /// be under the hands of a host that lives, `None` if none does.
    pub fn replay_all(
        &self,
        store: &Store,
        cluster: &Cluster,
        slots: &[SlotId],
        settle: Option<Duration>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        for slot in slots {
            wanted()?;
            let begun = std::time::Instant::now();
            let since_ms = SystemClock.wall().as_millis() as u64;
            let tell = |done: u64, total: u64| {
                let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                let (done, total) = (count(done), count(total));
                cluster.set_replaying(Some(Replaying { slot: *slot, since_ms, done, total }));
            };
            tell(0, 0);
            let sink = DeviceSink::new(store, settle.unwrap_or_default()).telling(&tell).while_wanted(wanted);
            let mut sink = if settle.is_none() { sink.last_resort(self.settle) } else { sink };
            let report = replay(store, self.journal(*slot)?, *slot, &mut sink)?;
            tracing::info!(
                "slot {slot}: replayed {} transactions of its journal in {:.2} s, {} of {} blocks written",
                report.txns,
                begun.elapsed().as_secs_f32(),
                report.applied,
                report.blocks
            );
        }
        Ok(())
    }
}

impl Core {
    /// The recovery thread.
    pub(super) fn run_recovery(self: &Arc<Self>) {
        while let Some(slots) = self.recovery.next() {
            let done = self.take_over(&slots);
            self.cluster.set_replaying(None);
            if let Err(e) = done {
                if self.store.halt().is_tripped() {
                    return;
                }
                let names: Vec<_> = slots.iter().map(|slot| self.name_of(*slot)).collect();
                tracing::error!(
                    "dead hosts cannot be recovered now ({}), what they held stays locked, it is tried again: {e}",
                    names.join(", ")
                );
                // Another member may be the next to try: it must find on the disk what was moved so far.
                if let Err(e) = slots.iter().try_for_each(|slot| self.let_go_of(*slot)) {
                    self.store.halt().trip(format!("what was moved from a dead host cannot be written: {e}"));
                    return;
                }
                self.cluster.unrecovered();
            }
        }
    }

    /// A slot with the name of the host that was there last.
    fn name_of(&self, slot: SlotId) -> String {
        let row = self.cluster.heartbeats().1;
        let beat = row.get(usize::from(slot.0)).and_then(|cell| cell.as_ref());
        beat.map_or_else(|| format!("slot {slot}"), |b| format!("{} (slot {slot})", b.name))
    }

    fn take_over(self: &Arc<Self>, slots: &[SlotId]) -> Result<()> {
        self.recovery.replay_all(
            &self.store,
            &self.cluster,
            slots,
            Some(self.recovery.settle),
            &|| Ok(()),
        )?;
        self.adopt_slots(slots)?;
        self.cluster.recovered(slots)?;
        self.reaper.look_soon();
        Ok(())
    }

    /// Take over the orphans and deferred frees of these slots, whose journals are replayed; nothing under
    /// their locks stays here. A read-only mount leaves them to the slots' next hosts.
    pub(super) fn adopt_slots(&self, slots: &[SlotId]) -> Result<()> {
        for slot in slots.iter().filter(|s| **s != self.slot && !self.is_read_only()) {
            let other = self.recovery.tree(*slot)?;
            match self.adopt_slot(other) {
                Ok(0) => {}
                Ok(n) => {
                    let name = self.name_of(*slot);
                    tracing::info!("{name}: {n} unlinked files and freed ranges of its are freed here now");
                }
                Err(e @ (Error::Io { .. } | Error::TimedOut(_) | Error::Halted(_))) => return Err(e),
                // No space, or damage: they stay where they are, for the next host with that slot.
                Err(e) => tracing::warn!(slot = slot.0, "orphans are left for the slot's next host: {e}"),
            }
            self.let_go_of(*slot)?;
        }
        Ok(())
    }

    /// Nothing under the lock of a dead host's slot stays in memory or only in the journal.
    fn let_go_of(&self, slot: SlotId) -> Result<()> {
        let cover = LockName::Slot(slot);
        self.journal.release(&BTreeSet::from([cover]))?;
        self.store.drop_cover(cover);
        Ok(())
    }
}
