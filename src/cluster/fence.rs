//! When the dead may be acted upon. Pure.
//!
//! Rules, by the names the tests use:
//! - R5: only what a decided view excludes is acted upon, and only by the adopter that it names.
//! - R6: the adopter publishes the exclusion in its heartbeat, reads the row after that, and counts from
//!   when it first saw the value that the victim's cell shows *then*: a renewal that it does not see there
//!   begins its own look at the row later, finds the exclusion, and is none. So the victim's lease ended,
//!   and its last write has landed or never will, when the wait is over.
//! - F1: whose process is provably gone writes nothing any more; no time is waited for.
//! - F2: before a dead host's groups can be anybody's, all members have acknowledged that it is dead: none
//!   of them is still writing into its own ledger what it took as the adopter of that host's slot; and what
//!   the heartbeats that say so announce has been read. A member that does not answer will be dead itself;
//!   then its wait must be over, too.

use crate::base::{Epoch, SlotId};
use crate::cluster::member::Watch;
use crate::cluster::view::{bit, dead, dead_of, live, slots};
use crate::format::cluster::{Heartbeat, View};
use std::time::Duration;

/// What this host has told of the dead that it sees to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fences {
    /// Epoch and exclusions of the last beat behind which the row was read.
    told: (Epoch, u64),
    /// Slots whose last mount is proven gone.
    proven: u64,
}

impl Fences {
    /// The row was read after a heartbeat with this epoch and these exclusions was complete.
    pub fn told(&mut self, epoch: Epoch, excluded: u64) {
        self.told = (epoch, excluded);
    }

    /// The process that was the last mount of `slot` is gone for certain.
    pub fn prove(&mut self, slot: SlotId) {
        self.proven |= bit(slot);
    }

    /// The slot is another mount's now, or nobody's.
    pub fn forget_proof(&mut self, slot: SlotId) {
        self.proven &= !bit(slot);
    }

    /// Slots whose last mount is proven gone.
    pub fn proven(&self) -> u64 {
        self.proven
    }

    /// R6, F1: can nothing of the dead host of `slot` land any more?
    pub fn is_fenced(&self, slot: SlotId, watch: &Watch, now: Duration) -> bool {
        self.told.1 & bit(slot) != 0 && (self.proven & bit(slot) != 0 || watch.is_past_wait(slot, now))
    }

    /// The dead that `me` may recover now (with `row`, the ledgers that it announces have been read): all that it sees to, or none. One of them may have been
    /// recovering another when it died: its changes to that one's slot are found only with its own journal.
    pub fn ready(
        &self,
        view: &View,
        me: SlotId,
        row: &[Option<Heartbeat>],
        watch: &Watch,
        now: Duration,
    ) -> Option<u64> {
        let ours = dead_of(view, me);
        let fenced = |mask: u64| {
            slots(view).filter(|(s, _)| mask & bit(*s) != 0).all(|(s, _)| self.is_fenced(s, watch, now))
        };
        // Others' dead: they may have been adopters of ours.
        let theirs = dead(view) & !ours;
        let over = |mask: u64| {
            slots(view).filter(|(s, _)| mask & bit(*s) != 0).all(|(s, _)| watch.is_past_wait(s, now))
        };
        let told = self.told.0 >= view.epoch;
        let ready = ours != 0 && told && fenced(ours) && over(theirs) && is_acknowledged(view, me, row);
        ready.then_some(ours)
    }
}

/// F2, as far as members are concerned: all have acknowledged `view`.
pub fn is_acknowledged(view: &View, me: SlotId, row: &[Option<Heartbeat>]) -> bool {
    let members = live(view) & !bit(me);
    slots(view).filter(|(s, _)| members & bit(*s) != 0).all(|(s, member)| {
        let cell = row.get(usize::from(s.0)).and_then(|cell| cell.as_ref());
        cell.is_some_and(|h| h.incarnation == member.incarnation && h.ack >= view.epoch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Incarnation;
    use crate::cluster::timing::Timing;
    use crate::cluster::view::{admit, exclude, first};

    const T: Timing = Timing::TEST;
    const ME: SlotId = SlotId(0);
    const VICTIM: SlotId = SlotId(1);
    const THIRD: SlotId = SlotId(2);

    /// Slots 0 to 2 live, slot 1 excluded.
    fn excluded() -> View {
        let view = first(&View::initial(3, 3), ME, Incarnation(1));
        let view = admit(&view, &[Incarnation(2), Incarnation(3)], !0, 0).unwrap();
        exclude(&view, ME, &[(VICTIM, Incarnation(2))]).unwrap()
    }

    fn row(view: &View, ack: Epoch) -> Vec<Option<Heartbeat>> {
        let cell = |(slot, s): (SlotId, &crate::format::cluster::SlotView)| {
            Some(Heartbeat { slot, incarnation: s.incarnation, counter: 1, ack, ..Heartbeat::default() })
        };
        slots(view).map(cell).collect()
    }

    #[test]
    fn the_wait_counts_from_the_last_beat_seen_and_only_when_all_know() {
        let view = excluded();
        let mut watch = Watch::new(T, 3);
        let row = row(&view, view.epoch);
        watch.observe(Duration::from_secs(1), &row);
        let over = Duration::from_secs(1) + T.wait();
        let mut fences = Fences::default();
        let ready = |f: &Fences, at| f.ready(&view, ME, &row, &watch, at);
        assert_eq!(ready(&fences, over), None, "nothing was published");
        fences.told(Epoch(view.epoch.0 - 1), 0);
        assert_eq!(ready(&fences, over), None, "published before the exclusion");
        fences.told(view.epoch, bit(VICTIM));
        assert_eq!(ready(&fences, over - Duration::from_millis(1)), None);
        assert_eq!(ready(&fences, over), Some(bit(VICTIM)));
        fences.prove(VICTIM);
        assert_eq!(ready(&fences, Duration::from_secs(1)), Some(bit(VICTIM)), "gone for certain");
        fences.forget_proof(VICTIM);
        assert_eq!(ready(&fences, Duration::from_secs(1)), None);
        assert_eq!(fences.ready(&view, THIRD, &row, &watch, over), None, "not its to recover");
    }

    #[test]
    fn a_member_that_does_not_know_keeps_the_dead_waiting() {
        let view = excluded();
        let mut watch = Watch::new(T, 3);
        let old = row(&view, Epoch(view.epoch.0 - 1));
        watch.observe(Duration::ZERO, &old);
        let mut fences = Fences::default();
        fences.told(view.epoch, bit(VICTIM));
        let late = T.wait() * 3;
        assert_eq!(fences.ready(&view, ME, &old, &watch, late), None);
        // It dies as well: both are recovered together.
        let view = exclude(&view, ME, &[(THIRD, Incarnation(3))]).unwrap();
        assert_eq!(fences.ready(&view, ME, &old, &watch, late), None, "that is not published yet");
        fences.told(view.epoch, bit(VICTIM) | bit(THIRD));
        assert_eq!(fences.ready(&view, ME, &old, &watch, late), Some(bit(VICTIM) | bit(THIRD)));
    }
}
