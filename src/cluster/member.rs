//! Renewal of the own lease and suspicion of others, from what the heartbeat row shows. Pure.
//!
//! Rules, by the names the tests use:
//! - R1: the own lease runs until `t + lease`, t taken before the heartbeat was written, once a read
//!   of the whole row *after* that write shows neither a newer view (the driver learns it first) nor
//!   an exclusion mask that excludes us.
//! - R4: a slot is silent if its cell stood still for the suspicion time of gap-free polling; a gap
//!   in our own polling (a stall of the store, a pause) starts the count again, and so does the arrival
//!   of a new mount, whose first heartbeat is still to come.
//! - R6: what counts for acting on a dead slot is when the value now seen was *first* read.

use crate::base::{Epoch, Incarnation, SlotId};
use crate::cluster::timing::Timing;
use crate::cluster::view::{bit, is_member};
use crate::format::cluster::{Heartbeat, View};
use std::time::Duration;

/// What is known of one slot's cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Beat {
    incarnation: Incarnation,
    counter: u64,
    /// When a read first returned this value (R6's `o`).
    first_seen: Duration,
    /// Has it moved since we watch?
    moved: bool,
    /// How often this mount has moved it.
    moves: u32,
    /// It is what the first poll showed.
    found: bool,
    /// When its mount was first expected to write.
    expected: Duration,
    /// Did the last read show a value?
    readable: bool,
}

/// The outcome of a renewal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Renewal {
    /// The lease runs until then.
    Confirmed { lease_end: Duration },
    /// We are out, for ever.
    Excluded(String),
    /// Our own cell does not show what we wrote; beat again.
    Unconfirmed,
}

/// What one host knows of all heartbeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watch {
    timing: Timing,
    beats: Vec<Option<Beat>>,
    last_poll: Option<Duration>,
    /// When the last one began.
    last_begun: Duration,
    /// Since when polling has had no gap.
    gap_free_since: Duration,
}

impl Watch {
    /// Nothing seen yet of `slots` cells.
    pub fn new(timing: Timing, slots: u16) -> Watch {
        Watch {
            timing,
            beats: vec![None; usize::from(slots)],
            last_poll: None,
            last_begun: Duration::ZERO,
            gap_free_since: Duration::ZERO,
        }
    }

    /// As [`Watch::look`], for a read that took no time.
    pub fn observe(&mut self, now: Duration, row: &[Option<Heartbeat>]) {
        self.look(now, now, row);
    }

    /// A read of the row that was begun at `begun` completed at `now`. Cells that could not be read are `None`:
    /// nothing is learnt of them, but that they stand still like any other as long as that is all we ever saw.
    /// A host that lives writes its cell anew with every beat, and gets no lease while it cannot read it.
    pub fn look(&mut self, begun: Duration, now: Duration, row: &[Option<Heartbeat>]) {
        let gap = self.last_poll.is_none_or(|last| now.saturating_sub(last) > self.timing.gap_max());
        if gap {
            self.gap_free_since = now;
        }
        (self.last_poll, self.last_begun) = (Some(now), begun);
        for (known, cell) in self.beats.iter_mut().zip(row) {
            let Some(cell) = cell else {
                known.get_or_insert(Beat { first_seen: now, ..Beat::default() }).readable = false;
                continue;
            };
            if let Some(beat) = known {
                beat.readable = true;
            }
            let seen = (cell.incarnation, cell.counter);
            match known {
                Some(beat) if (beat.incarnation, beat.counter) == seen => {}
                // A read that overlapped a write may show the older value once more.
                Some(beat) if beat.incarnation == seen.0 && beat.counter > seen.1 => {}
                _ => {
                    let moved = known.is_some_and(|beat| beat.incarnation != Beat::default().incarnation);
                    let expected = known.map_or(Duration::ZERO, |beat| beat.expected);
                    let found = known.is_none();
                    let (incarnation, counter) = seen;
                    let moves = known.filter(|b| b.incarnation == seen.0).map_or(0, |b| b.moves + 1);
                    let first_seen = now;
                    *known = Some(Beat {
                        incarnation,
                        counter,
                        first_seen,
                        moved,
                        moves,
                        found,
                        expected,
                        readable: true,
                    });
                }
            }
        }
    }

    fn beat(&self, slot: SlotId) -> Option<&Beat> {
        self.beats.get(usize::from(slot.0))?.as_ref()
    }

    /// Has the cell of `slot` changed since the watch began?
    pub fn has_moved(&self, slot: SlotId) -> bool {
        self.beat(slot).is_some_and(|b| b.moved)
    }

    /// Has the mount that stands in the cell of `slot` lived since the watch began? A write that was held up on
    /// its way shows as one change at most.
    pub fn has_lived(&self, slot: SlotId) -> bool {
        self.beat(slot).is_some_and(|b| b.moves >= 2)
    }

    /// Has the cell of `slot` stood still ever since the first poll?
    pub fn is_as_found(&self, slot: SlotId) -> bool {
        self.beat(slot).is_some_and(|b| b.found)
    }

    /// A new mount has `slot` since `now`: what its cell shows of the one before says nothing of it.
    pub fn expect(&mut self, slot: SlotId, now: Duration) {
        if let Some(beat) = self.beats.get_mut(usize::from(slot.0)) {
            beat.get_or_insert_default().expected = now;
        }
    }

    /// With other times from now on.
    pub fn going_by(&self, timing: Timing) -> Watch {
        Watch { timing, ..self.clone() }
    }

    /// The same for a host that has just become a member: some of `members` may be as new as it is.
    pub fn expecting_all(&self, members: u64, now: Duration) -> Watch {
        let mut watch = self.clone();
        let slots = (0..watch.beats.len() as u16).map(SlotId);
        slots.filter(|slot| members & bit(*slot) != 0).for_each(|slot| watch.expect(slot, now));
        watch
    }

    /// R4: how long the cell of `slot` has stood still, counted to the last poll: our own pause makes
    /// nobody silent.
    pub fn silence(&self, slot: SlotId) -> Duration {
        self.last_poll.map_or(Duration::ZERO, |last| self.still_until(slot, last))
    }

    fn still_until(&self, slot: SlotId, end: Duration) -> Duration {
        end.saturating_sub(self.still_since(slot))
    }

    /// R4: since when the cell of `slot` has stood still, as far as was seen under gap-free polling.
    pub fn still_since(&self, slot: SlotId) -> Duration {
        let since = self.beat(slot).map_or(Duration::ZERO, |b| b.first_seen.max(b.expected));
        since.max(self.gap_free_since)
    }

    /// F1: has the cell of `slot` stood still under gap-free polling for so many heartbeats? Counted to when the last
    /// poll began: what it shows may be as old as that.
    pub fn has_missed(&self, slot: SlotId, beats: u32) -> bool {
        self.last_poll.is_some() && self.still_until(slot, self.last_begun) >= self.timing.heartbeat * beats
    }

    /// R4: for as long as makes it suspect?
    pub fn is_silent(&self, slot: SlotId) -> bool {
        self.last_poll.is_some() && self.silence(slot) >= self.timing.suspicion
    }

    /// R6: at `now`, can no write of the mount whose cell this is land any more (if it cannot renew)?
    /// At `told`, the row was read after the exclusion had become visible: if the cell does not show now
    /// what it bears, that may be from just before then. A gap in our own polling may have hidden beats, of
    /// which a late duplicate of an older one leaves no trace; and the first beats of a new mount may hide
    /// behind what its cell showed before.
    pub fn is_past_wait(&self, slot: SlotId, told: Duration, now: Duration) -> bool {
        self.is_past(slot, told, now, self.timing.wait())
    }

    /// The same for its lease alone, whatever it wrote.
    pub fn is_past_lease(&self, slot: SlotId, told: Duration, now: Duration) -> bool {
        self.is_past(slot, told, now, self.timing.lease_wait())
    }

    fn is_past(&self, slot: SlotId, told: Duration, now: Duration, wait: Duration) -> bool {
        let seen = |b: &Beat| b.first_seen.max(b.expected).max(self.gap_free_since);
        let from = |b: &Beat| if b.readable { seen(b) } else { seen(b).max(told) };
        self.beat(slot).is_some_and(|b| now >= from(b) + wait)
    }

    /// When the value now seen was first read.
    pub fn first_seen(&self, slot: SlotId) -> Option<Duration> {
        self.beat(slot).map(|b| b.first_seen)
    }

    /// R1, for the beat written at `started` with `counter`; `row` was read after that write and
    /// `view` is the newest view that any cell of `row` knows. `joined` is the epoch that made us a
    /// member: masks of hosts that knew only older views speak of an earlier mount.
    pub fn renew(&self, own: &OwnBeat, view: &View, row: &[Option<Heartbeat>]) -> Renewal {
        if !is_member(view, own.slot, own.incarnation) {
            return Renewal::Excluded(format!("view {} does not contain this mount", view.epoch));
        }
        let masked = |h: &&Heartbeat| h.excluded & bit(own.slot) != 0 && h.epoch > own.joined;
        if let Some(by) = row.iter().flatten().find(masked) {
            return Renewal::Excluded(format!("slot {} ({}) acts on our exclusion", by.slot, by.name));
        }
        match row.get(usize::from(own.slot.0)) {
            Some(Some(cell)) if cell.incarnation == own.incarnation && cell.counter == own.counter => {
                Renewal::Confirmed { lease_end: own.started + self.timing.lease }
            }
            Some(Some(cell)) if cell.incarnation != own.incarnation => {
                Renewal::Excluded("another mount writes our heartbeat cell".into())
            }
            _ => Renewal::Unconfirmed,
        }
    }
}

/// The beat that a renewal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnBeat {
    pub slot: SlotId,
    pub incarnation: Incarnation,
    pub counter: u64,
    /// Own clock before the write was submitted.
    pub started: Duration,
    /// The epoch that made us a member.
    pub joined: Epoch,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cluster::SlotState;

    const T: Timing = Timing::TEST;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn cell(slot: u16, counter: u64) -> Option<Heartbeat> {
        Some(Heartbeat { slot: SlotId(slot), incarnation: Incarnation(7), counter, ..Heartbeat::default() })
    }

    #[test]
    fn one_late_heartbeat_is_no_life() {
        let mut w = Watch::new(T, 1);
        let lived = [3, 4, 4, 3, 5].map(|counter| {
            w.observe(ms(0), &[cell(0, counter)]);
            w.has_lived(SlotId(0))
        });
        assert_eq!(lived, [false, false, false, false, true]);
        let other = Heartbeat { incarnation: Incarnation(8), ..cell(0, 1).unwrap() };
        w.observe(ms(0), &[Some(other)]);
        assert!(w.has_moved(SlotId(0)) && !w.has_lived(SlotId(0)), "another mount's first");
    }

    #[test]
    fn standing_still_under_gap_free_polling_is_silence() {
        let mut w = Watch::new(T, 2);
        for t in (0..3000).step_by(100) {
            w.observe(ms(t), &[cell(0, t), cell(1, 1)]);
            assert_eq!(w.is_silent(SlotId(1)), t >= 2200, "{t}");
            assert!(!w.is_silent(SlotId(0)));
        }
        assert!(w.has_moved(SlotId(0)) && !w.has_moved(SlotId(1)));
        w.observe(ms(3000), &[cell(0, 9), cell(1, 2)]);
        assert!(!w.is_silent(SlotId(1)), "it is back");
        assert_eq!(w.first_seen(SlotId(1)), Some(ms(3000)));
    }

    #[test]
    fn a_stall_of_the_store_silences_nobody() {
        let mut w = Watch::new(T, 1);
        w.observe(ms(0), &[cell(0, 1)]);
        w.observe(ms(10_000), &[cell(0, 1)]);
        assert!(!w.is_silent(SlotId(0)));
        assert!(
            !w.is_past_wait(SlotId(0), ms(0), ms(10_000)),
            "what came in the gap may have been hidden again"
        );
        assert!(w.is_past_wait(SlotId(0), ms(0), ms(10_000) + T.wait()));
    }

    #[test]
    fn a_new_mount_that_is_slow_is_not_past_the_wait_of_the_one_before() {
        let mut w = Watch::new(T, 2);
        for t in (0..9000).step_by(100) {
            w.observe(ms(t), &[cell(0, 1), cell(1, 1)]);
        }
        let member = w.expecting_all(bit(SlotId(1)), ms(9000));
        assert!(member.is_past_wait(SlotId(0), ms(9000), ms(9000)), "nobody has that slot");
        assert!(!member.is_past_wait(SlotId(1), ms(9000), ms(9000) + T.wait() - ms(1)));
        assert!(member.is_past_wait(SlotId(1), ms(9000), ms(9000) + T.wait()));
    }

    #[test]
    fn a_new_mount_is_given_time_for_its_first_beat() {
        let mut w = Watch::new(T, 1);
        for t in (0..=9000).step_by(100) {
            w.observe(ms(t), &[cell(0, 1)]);
            if t == 5000 {
                assert!(w.is_silent(SlotId(0)));
                w.expect(SlotId(0), ms(t));
            }
            assert_eq!(w.is_silent(SlotId(0)), (2200..5000).contains(&t) || t >= 7200, "{t}");
        }
        assert_eq!(w.silence(SlotId(0)), ms(4000));
        assert_eq!(w.first_seen(SlotId(0)), Some(ms(0)), "no write of the one before is hidden by that");
    }

    #[test]
    fn unreadable_and_overtaken_cells_teach_nothing() {
        let mut w = Watch::new(T, 1);
        w.observe(ms(0), &[cell(0, 5)]);
        w.observe(ms(100), &[None]);
        w.observe(ms(200), &[cell(0, 4)]);
        assert_eq!(w.first_seen(SlotId(0)), Some(ms(0)));
    }

    #[test]
    fn what_an_unreadable_cell_hides_may_be_as_young_as_the_exclusion() {
        let mut w = Watch::new(T, 1);
        (0..3000).step_by(200).for_each(|t| w.observe(ms(t), &[cell(0, 5)]));
        let told = ms(3000);
        w.observe(told, &[None]);
        let past = |w: &Watch, now| w.is_past_wait(SlotId(0), told, now);
        assert!(!past(&w, T.wait()) && !past(&w, told + T.wait() - ms(1)) && past(&w, told + T.wait()));
        // The value known before stands there still: nothing was hidden.
        w.observe(ms(3100), &[cell(0, 5)]);
        assert!(past(&w, ms(3100)));
        w.observe(ms(3200), &[cell(0, 6)]);
        assert!(!past(&w, told + T.wait()) && past(&w, ms(3200) + T.wait()));
    }

    #[test]
    fn a_cell_that_was_never_readable_stands_still() {
        let mut w = Watch::new(T, 1);
        w.observe(ms(0), &[None]);
        w.observe(ms(100), &[None]);
        assert_eq!(w.first_seen(SlotId(0)), Some(ms(0)));
        let past = |told, now| w.is_past_wait(SlotId(0), told, now);
        assert!(!past(ms(0), T.wait() - ms(1)) && past(ms(0), T.wait()));
        assert!(!past(ms(50), T.wait()) && past(ms(50), T.wait() + ms(50)));
        // It becomes readable: the wait begins again, and that alone is no sign of life.
        w.observe(ms(200), &[cell(0, 3)]);
        assert_eq!((w.first_seen(SlotId(0)), w.has_moved(SlotId(0))), (Some(ms(200)), false));
        w.observe(ms(300), &[cell(0, 4)]);
        assert!(w.has_moved(SlotId(0)));
    }

    #[test]
    fn what_stands_as_it_was_found() {
        let mut w = Watch::new(T, 3);
        w.observe(ms(0), &[cell(0, 3), None, cell(2, 1)]);
        w.observe(ms(100), &[cell(0, 3), cell(1, 5), cell(2, 2)]);
        assert_eq!([0, 1, 2].map(|slot| w.is_as_found(SlotId(slot))), [true, false, false]);
        // One that cannot be read for a while has not moved.
        w.observe(ms(200), &[None, cell(1, 5), cell(2, 2)]);
        w.observe(ms(300), &[cell(0, 3), cell(1, 5), cell(2, 2)]);
        assert_eq!([0, 1, 2].map(|slot| w.is_as_found(SlotId(slot))), [true, false, false]);
        w.expect(SlotId(0), ms(400));
        assert!(w.is_as_found(SlotId(0)));
    }

    #[test]
    fn renewal_table() {
        let w = Watch::new(T, 2);
        let own = OwnBeat {
            slot: SlotId(0),
            incarnation: Incarnation(7),
            counter: 4,
            started: ms(500),
            joined: Epoch(3),
        };
        let mut view = View::initial(2, 2);
        view.epoch = Epoch(3);
        view.slots[0].incarnation = Incarnation(7);
        let row = [cell(0, 4), cell(1, 1)];
        assert!(matches!(w.renew(&own, &view, &row), Renewal::Excluded(_)), "clean is not live");
        view.slots[0].state = SlotState::Live { former: None };
        assert_eq!(w.renew(&own, &view, &row), Renewal::Confirmed { lease_end: ms(2500) });
        assert_eq!(w.renew(&own, &view, &[cell(0, 3), None]), Renewal::Unconfirmed);
        assert_eq!(w.renew(&own, &view, &[None, None]), Renewal::Unconfirmed);
        let mut row = row;
        let other = row[1].as_mut().unwrap();
        other.excluded = 1;
        other.epoch = Epoch(3);
        assert!(matches!(w.renew(&own, &view, &row), Renewal::Confirmed { .. }), "an old mask");
        row[1].as_mut().unwrap().epoch = Epoch(4);
        assert!(matches!(w.renew(&own, &view, &row), Renewal::Excluded(_)));
        view.slots[0].incarnation = Incarnation(8);
        assert!(matches!(w.renew(&own, &view, &row), Renewal::Excluded(_)), "another mount has the slot");
    }
}
