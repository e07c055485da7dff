//! Disk Paxos (Gafni and Lamport) for one slot, on one disk: who decides the view after the newest.
//! Pure: [`Proposer::step`] takes what happened and says what to do next.
//!
//! Each slot has one register, its [`Ballot`]; `mbal`, `bal` and `input` speak of the epoch after its
//! `decided`, so a register that is behind has no say in a newer epoch and one that is ahead tells
//! the outcome. Phase 1: write mbal, read all; phase 2: adopt the input of the highest bal (else the
//! own proposal), write it with bal = mbal, read all; then the value is decided and published in
//! the own register. A higher mbal in any read loses the ballot. A register that cannot be read is
//! read again by the driver, never left out.

use crate::base::SlotId;
use crate::format::cluster::{Ballot, View};
use crate::format::layout::SLOTS_MAX;

/// Where a ballot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    Idle,
    /// The first phase of the paper; `written` once its write is complete.
    One {
        written: bool,
    },
    Two {
        written: bool,
    },
    Publish,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Try to make this the view after the newest. Its epoch must be that of `decided` + 1.
    Propose(View),
    /// The write asked for is complete (and durable).
    Written,
    /// All registers, read after the last write completed; ours among them.
    Row(Vec<(SlotId, Ballot)>),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write our register, then say [`Event::Written`].
    Write(Ballot),
    /// Read all registers, then say [`Event::Row`].
    Read,
    /// A view was decided, by us or by another; perhaps not the one proposed. The ballot is over.
    Decided(View),
    /// Another ballot is under way. Wait a random while and propose again.
    Lost,
}

/// One slot's part in the decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    slot: SlotId,
    own: Ballot,
    proposal: Option<View>,
    phase: Phase,
    /// Highest ballot number seen anywhere.
    highest: u64,
}

impl Proposer {
    /// Take up the register as it stands on disk: promises of an earlier mount hold.
    pub fn new(slot: SlotId, own: Ballot) -> Proposer {
        let highest = own.mbal;
        Proposer { slot, own, proposal: None, phase: Phase::Idle, highest }
    }

    /// The newest decided view known.
    pub fn decided(&self) -> &View {
        &self.own.decided
    }

    /// A decided view became known otherwise. Ends a ballot for an older epoch.
    pub fn learn(&mut self, view: &View) {
        if view.epoch > self.own.decided.epoch {
            self.own = Ballot::idle(view.clone());
            self.phase = Phase::Idle;
            self.proposal = None;
            self.highest = 0;
        }
    }

    /// One step.
    ///
    /// # Panics
    /// On an event that the last action did not ask for: a bug of the driver.
    pub fn step(&mut self, event: Event) -> Action {
        match event {
            Event::Propose(view) => self.start(view),
            Event::Written => match &mut self.phase {
                Phase::One { written } | Phase::Two { written } => {
                    *written = true;
                    Action::Read
                }
                Phase::Publish => {
                    let view = self.own.input.clone().expect("phase 1 set it");
                    self.learn(&view);
                    Action::Decided(view)
                }
                Phase::Idle => panic!("nothing was being written"),
            },
            Event::Row(row) => self.row(&row),
        }
    }

    fn start(&mut self, view: View) -> Action {
        assert_eq!(view.epoch.0, self.own.decided.epoch.0 + 1, "a proposal is for the next epoch");
        self.proposal = Some(view);
        let slots = u64::from(SLOTS_MAX);
        self.own.mbal = (self.highest.max(self.own.mbal) / slots + 1) * slots + u64::from(self.slot.0);
        self.highest = self.own.mbal;
        self.phase = Phase::One { written: false };
        Action::Write(self.own.clone())
    }

    fn row(&mut self, row: &[(SlotId, Ballot)]) -> Action {
        let (Phase::One { written: true } | Phase::Two { written: true }) = self.phase else {
            panic!("no row was asked for");
        };
        let newest = row.iter().map(|(_, b)| &b.decided).max_by_key(|v| v.epoch).expect("our own is there");
        if newest.epoch > self.own.decided.epoch {
            let view = newest.clone();
            self.learn(&view);
            return Action::Decided(view);
        }
        if row.iter().any(|(slot, b)| *slot == self.slot && *b != self.own) {
            // A late duplicate of an older write of ours reverted the register: what others read
            // meanwhile lacked our promise, so the phase begins again with the write.
            if let Phase::One { written } | Phase::Two { written } = &mut self.phase {
                *written = false;
            }
            return Action::Write(self.own.clone());
        }
        let peers = || row.iter().filter(|(_, b)| b.decided.epoch == self.own.decided.epoch).map(|(_, b)| b);
        let highest = peers().map(|b| b.mbal).max().unwrap_or(0);
        self.highest = self.highest.max(highest);
        if highest > self.own.mbal {
            self.phase = Phase::Idle;
            return Action::Lost;
        }
        if matches!(self.phase, Phase::One { .. }) {
            let accepted = peers().filter(|b| b.bal > 0).max_by_key(|b| b.bal).and_then(|b| b.input.clone());
            self.own.input = accepted.or_else(|| self.proposal.clone());
            self.own.bal = self.own.mbal;
            self.phase = Phase::Two { written: false };
        } else {
            // Ours remains as it is until the view is published: should that write fail, a later
            // ballot finds the value accepted and publishes it.
            let view = self.own.input.clone().expect("phase 1 set it");
            self.phase = Phase::Publish;
            return Action::Write(Ballot::idle(view));
        }
        Action::Write(self.own.clone())
    }
}

#[cfg(test)]
mod tests;
