//! What the rooms above see of the cluster: a snapshot of members and group owners.

use crate::base::{AgNo, Epoch, Incarnation, SlotId, Token};
use crate::format::cluster::{SlotState, View};
use std::sync::Arc;

/// Who decides the locks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// This member's ledger has the highest token.
    Master(SlotId),
    /// This member may take the group ([`crate::cluster::Cluster::adopt`]) and is asked meanwhile,
    /// under the token it has now. Our own slot's groups of an earlier mount are of this kind too.
    Adopter(SlotId),
    /// Nobody until the cluster changes: its host is dead and not recovered, or no ledger names it.
    Nobody,
}

impl Owner {
    /// The member that requests go to.
    pub fn slot(self) -> Option<SlotId> {
        match self {
            Owner::Master(slot) | Owner::Adopter(slot) => Some(slot),
            Owner::Nobody => None,
        }
    }
}

/// A snapshot. A new one is made whenever any part of it changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Our own slot.
    pub me: SlotId,
    /// Our own incarnation.
    pub incarnation: Incarnation,
    /// The newest decided view we know.
    pub view: Arc<View>,
    /// Bit s: slot s is a member whose heartbeat stands still.
    pub silent: u64,
    /// By group number.
    pub owners: Arc<Vec<(Owner, Token)>>,
}

impl Membership {
    /// The number of the view.
    pub fn epoch(&self) -> Epoch {
        self.view.epoch
    }

    /// Is `slot` a member?
    pub fn is_live(&self, slot: SlotId) -> bool {
        let slot = self.view.slots.get(usize::from(slot.0));
        slot.is_some_and(|s| matches!(s.state, SlotState::Live { .. }))
    }

    /// All members, ourselves and silent ones included, ascending.
    pub fn live(&self) -> impl Iterator<Item = SlotId> + '_ {
        (0..self.view.slots.len() as u16).map(SlotId).filter(|s| self.is_live(*s))
    }

    /// All members but ourselves.
    pub fn peers(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.live().filter(|s| *s != self.me)
    }

    /// Are we the only member?
    pub fn alone(&self) -> bool {
        self.peers().next().is_none()
    }

    /// Is `slot` a member that has not been heard for the suspicion time?
    pub fn is_silent(&self, slot: SlotId) -> bool {
        self.silent >> slot.0 & 1 == 1
    }

    /// The mount that has `slot` now; `None` if it is not a member.
    pub fn incarnation_of(&self, slot: SlotId) -> Option<Incarnation> {
        self.is_live(slot).then(|| self.view.slots[usize::from(slot.0)].incarnation)
    }

    /// Who masters `ag`, and under which token; `(Nobody, 0)` for groups that do not exist.
    pub fn owner_of(&self, ag: AgNo) -> (Owner, Token) {
        self.owners.get(ag.0 as usize).copied().unwrap_or((Owner::Nobody, Token(0)))
    }
}
