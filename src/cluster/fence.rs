//! When the dead may be acted upon. Pure.
//!
//! Rules, by the names the tests use:
//! - R5: only what a decided view excludes is acted upon, and only by the adopter that it names.
//! - R6: the adopter publishes the exclusion in its heartbeat, reads the row after that, and counts from
//!   when it first saw the value that the victim's cell shows *then*: a renewal that it does not see there
//!   begins its own look at the row later, finds the exclusion, and is none. So the victim's lease ended,
//!   and its last write has landed or never will, when the wait is over. A cell that cannot be read may
//!   hide a beat from just before that look: then the wait counts from the look.
//! - F1: whose process is provably gone writes nothing any more; no time is waited for. That is proven of one
//!   mount, never of a slot: the next mount of the slot may be another machine's.
//! - F2: before a dead host's groups can be anybody's, all members have acknowledged that it is dead: none
//!   of them is still writing into its own ledger what it took as the adopter of that host's slot; and what
//!   the heartbeats that say so announce has been read. A member that does not answer will be dead itself;
//!   then its wait must be over, too.
//! - F8: where a device or a command keeps hosts off, no time does: the dead are acted upon once that is done,
//!   told after their death was published, and their lease is over (which it was when they were suspected: it
//!   is for what they may tell from memory).

use crate::base::{Epoch, Incarnation, SlotId};
use crate::cluster::member::Watch;
use crate::cluster::view::{bit, dead, dead_of, live, slots};
use crate::format::cluster::{FenceClass, Heartbeat, View};
use std::collections::BTreeMap;
use std::time::Duration;

/// What this host has told of the dead that it sees to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fences {
    /// Epoch and exclusions of the last beat behind which the row was read.
    told: (Epoch, u64),
    /// When the row was first read behind a beat of that epoch.
    told_at: Duration,
    /// By slot, the mount of it that is proven gone.
    proven: BTreeMap<SlotId, Incarnation>,
    /// By slot, the mount of it that the device or a command keeps off.
    cut: BTreeMap<SlotId, Incarnation>,
}

impl Fences {
    /// The row was read, until `now`, after a heartbeat with this epoch and these exclusions was complete.
    pub fn told(&mut self, epoch: Epoch, excluded: u64, now: Duration) {
        if self.told != (epoch, excluded) {
            self.told_at = now;
        }
        self.told = (epoch, excluded);
    }

    /// The process that was this mount of `slot` is gone for certain.
    pub fn prove(&mut self, slot: SlotId, incarnation: Incarnation) {
        self.proven.insert(slot, incarnation);
    }

    /// The slot is another mount's now, or nobody's.
    pub fn forget_proof(&mut self, slot: SlotId) {
        self.proven.remove(&slot);
    }

    /// Which mount of `slot` is proven gone.
    pub fn proven(&self, slot: SlotId) -> Option<Incarnation> {
        self.proven.get(&slot).copied()
    }

    /// Is the mount that `view` has in `slot` proven gone?
    pub fn is_proven(&self, view: &View, slot: SlotId) -> bool {
        let there = view.slots.get(usize::from(slot.0)).map(|s| s.incarnation);
        there.is_some() && self.proven(slot) == there
    }

    /// R6: can nothing land any more of the mount that the victim's cell showed when `view` had been told of?
    /// It could have renewed only by finding that view, so also a member counts that does not answer: what
    /// it wrote under an older view is over.
    pub fn is_past_wait(&self, view: &View, slot: SlotId, watch: &Watch, now: Duration) -> bool {
        self.told.0 >= view.epoch && watch.is_past_wait(slot, self.told_at, now)
    }

    /// F8: this mount of `slot` is kept off by other means than time.
    pub fn cut(&mut self, slot: SlotId, incarnation: Incarnation) {
        self.cut.insert(slot, incarnation);
    }

    /// Is the mount that `view` has in `slot` kept off so?
    pub fn is_cut(&self, view: &View, slot: SlotId) -> bool {
        let there = view.slots.get(usize::from(slot.0)).map(|s| s.incarnation);
        there.is_some() && self.cut.get(&slot).copied() == there
    }

    /// F8: those that `me` has to keep off and has not yet.
    pub fn due(&self, view: &View, me: SlotId) -> Vec<SlotId> {
        let ours = dead_of(view, me) & self.told.1;
        let due = |s: &SlotId| ours & bit(*s) != 0 && !self.is_proven(view, *s) && !self.is_cut(view, *s);
        slots(view).map(|(slot, _)| slot).filter(due).collect()
    }

    /// R6, F1, F8: can nothing of the dead host that `view` has in `slot` land any more?
    fn is_fenced(&self, view: &View, slot: SlotId, watch: &Watch, now: Duration) -> bool {
        let told = self.told.1 & bit(slot) != 0;
        let fenced = match FenceClass::from_raw(view.fence) {
            Some(FenceClass::Lease) => self.is_past_wait(view, slot, watch, now),
            _ => self.is_cut(view, slot) && watch.is_past_lease(slot, self.told_at, now),
        };
        told && (self.is_proven(view, slot) || fenced)
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
        let all = |mask: u64, over: &dyn Fn(SlotId) -> bool| {
            slots(view).map(|(s, _)| s).filter(|s| mask & bit(*s) != 0).all(over)
        };
        // Others' dead: they may have been adopters of ours.
        let theirs = dead(view) & !ours;
        let ready = ours != 0
            && self.told.0 >= view.epoch
            && all(ours, &|s| self.is_fenced(view, s, watch, now))
            && (theirs == 0 || view.fence == FenceClass::Lease as u8)
            && all(theirs, &|s| self.is_past_wait(view, s, watch, now))
            && is_acknowledged(view, me, row);
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
        fences.told(Epoch(view.epoch.0 - 1), 0, over);
        assert_eq!(ready(&fences, over), None, "published before the exclusion");
        fences.told(view.epoch, bit(VICTIM), over);
        assert_eq!(ready(&fences, over - Duration::from_millis(1)), None);
        assert_eq!(ready(&fences, over), Some(bit(VICTIM)));
        fences.prove(VICTIM, Incarnation(9));
        assert_eq!(ready(&fences, Duration::from_secs(1)), None, "that was an earlier mount of the slot");
        fences.prove(VICTIM, Incarnation(2));
        assert_eq!(ready(&fences, Duration::from_secs(1)), Some(bit(VICTIM)), "gone for certain");
        fences.forget_proof(VICTIM);
        assert_eq!(ready(&fences, Duration::from_secs(1)), None);
        assert_eq!(fences.ready(&view, THIRD, &row, &watch, over), None, "not its to recover");
    }

    #[test]
    fn no_time_is_enough_where_a_device_keeps_hosts_off() {
        let mut view = excluded();
        view.fence = FenceClass::Reservation as u8;
        let mut watch = Watch::new(T, 3);
        let row = row(&view, view.epoch);
        watch.observe(Duration::ZERO, &row);
        let mut fences = Fences::default();
        let late = T.wait() * 9;
        assert!(fences.due(&view, ME).is_empty(), "its death is not published");
        fences.told(view.epoch, bit(VICTIM), Duration::ZERO);
        assert_eq!((fences.due(&view, ME), fences.due(&view, THIRD)), (vec![VICTIM], vec![]));
        assert_eq!(fences.ready(&view, ME, &row, &watch, late), None);
        fences.cut(VICTIM, Incarnation(9));
        assert_eq!(fences.ready(&view, ME, &row, &watch, late), None, "that was another mount of the slot");
        fences.cut(VICTIM, Incarnation(2));
        assert!(fences.due(&view, ME).is_empty());
        let lease = T.lease + Duration::from_millis(5);
        assert_eq!(fences.ready(&view, ME, &row, &watch, T.lease), None, "it may tell what it has in memory");
        assert_eq!(
            fences.ready(&view, ME, &row, &watch, lease),
            Some(bit(VICTIM)),
            "its writes are not waited for"
        );
    }

    #[test]
    fn a_member_that_does_not_know_keeps_the_dead_waiting() {
        let view = excluded();
        let mut watch = Watch::new(T, 3);
        let old = row(&view, Epoch(view.epoch.0 - 1));
        watch.observe(Duration::ZERO, &old);
        let late = T.wait() * 3;
        let mut fences = Fences::default();
        fences.told(view.epoch, bit(VICTIM), late);
        assert_eq!(fences.ready(&view, ME, &old, &watch, late), None);
        // It dies as well: both are recovered together.
        let view = exclude(&view, ME, &[(THIRD, Incarnation(3))]).unwrap();
        assert_eq!(fences.ready(&view, ME, &old, &watch, late), None, "that is not published yet");
        fences.told(view.epoch, bit(VICTIM) | bit(THIRD), late);
        assert_eq!(fences.ready(&view, ME, &old, &watch, late), Some(bit(VICTIM) | bit(THIRD)));
    }

    #[test]
    fn what_cannot_be_read_is_waited_for_from_the_look_on() {
        let view = excluded();
        let mut watch = Watch::new(T, 3);
        let mut row = row(&view, view.epoch);
        watch.observe(Duration::ZERO, &row);
        row[1] = None;
        let told = T.wait() * 3;
        watch.observe(told, &row);
        let mut fences = Fences::default();
        fences.told(view.epoch, bit(VICTIM), told);
        assert_eq!(fences.ready(&view, ME, &row, &watch, told), None);
        // The same said again changes nothing.
        fences.told(view.epoch, bit(VICTIM), told * 2);
        assert_eq!(fences.ready(&view, ME, &row, &watch, told + T.wait()), Some(bit(VICTIM)));
    }
}
