//! What the master machine believes, for those who ask.

use super::Master;
use crate::base::{AgNo, InodeNo, LockName, Mode, SlotId};
use std::collections::BTreeSet;

impl Master {
    /// Has everybody declared what he holds of `ag`?
    pub fn is_open(&self, ag: AgNo) -> bool {
        self.groups.get(&ag).is_some_and(|g| g.awaited.is_empty())
    }

    /// Other hosts that are believed to hold something of a lock, and the number of each one's last grant.
    pub fn holders(&self, lock: LockName) -> impl Iterator<Item = (SlotId, u64)> + '_ {
        let parties = self.objects.get(&lock).into_iter().flat_map(|o| &o.parties);
        parties.filter(|(_, p)| p.belief != Mode::N).map(|(slot, p)| (*slot, p.last_grant))
    }

    /// Is `peer` the only host that holds a lock, or wants it?
    pub fn is_sole(&self, lock: LockName, peer: SlotId) -> bool {
        self.objects.get(&lock).is_some_and(|o| {
            o.own == Mode::N && o.queue.is_empty() && o.parties.keys().all(|slot| *slot == peer)
        })
    }

    /// `FileLocks` of which parties may have come or gone since the last call.
    pub fn take_served(&mut self) -> BTreeSet<InodeNo> {
        std::mem::take(&mut self.served)
    }

    /// Locks in which other hosts have an interest.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// What `peer` is believed to hold.
    pub fn belief(&self, lock: LockName, peer: SlotId) -> Mode {
        self.objects.get(&lock).and_then(|o| o.parties.get(&peer)).map_or(Mode::N, |p| p.belief)
    }
}
