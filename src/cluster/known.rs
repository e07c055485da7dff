//! What mounts said of themselves in the heartbeats that this host has read, for when they are dead and must be
//! kept off: a cell has one copy, which their last write may have torn, or a late one of the mount before may
//! stand in again. Pure.

use crate::base::{Incarnation, SlotId};
use crate::cluster::member::Watch;
use crate::cluster::view::slots;
use crate::format::cluster::{Heartbeat, View};
use std::collections::BTreeMap;

/// A mount that was seen to beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquaintance {
    /// Its first heartbeat that was read: who it is stays the same.
    pub beat: Heartbeat,
    /// Its heartbeat was seen to move, more than one late write does.
    pub lived: bool,
}

/// Those in a view, and those that stand in a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known(BTreeMap<(SlotId, Incarnation), Acquaintance>);

impl Known {
    /// The row was read; `watch` has observed it. `view` is the newest one known.
    pub fn note(&mut self, row: &[Option<Heartbeat>], watch: &Watch, view: &View) {
        let stands = |slot: SlotId| row.get(usize::from(slot.0)).and_then(|cell| cell.as_ref());
        let member = |slot: SlotId| view.slots.get(usize::from(slot.0)).map(|s| s.incarnation);
        self.0.retain(|(slot, incarnation), _| {
            // In a cell that cannot be read may stand whoever stood there before.
            member(*slot) == Some(*incarnation)
                || stands(*slot).is_none_or(|beat| beat.incarnation == *incarnation)
        });
        for (slot, _) in slots(view) {
            let Some(beat) = stands(slot).filter(|beat| beat.incarnation != Incarnation(0)) else { continue };
            let known = || Acquaintance { beat: beat.clone(), lived: false };
            let known = self.0.entry((slot, beat.incarnation)).or_insert_with(known);
            known.lived |= watch.has_lived(slot);
        }
    }

    /// What is known of this mount of `slot`.
    pub fn of(&self, slot: SlotId, incarnation: Incarnation) -> Option<&Acquaintance> {
        self.0.get(&(slot, incarnation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::timing::Timing;
    use std::time::Duration;

    #[test]
    fn who_was_seen_is_known_as_long_as_it_is_in_the_view_or_in_its_cell() {
        const SLOT: SlotId = SlotId(0);
        let view = |member| {
            let mut view = View::initial(1, 1);
            view.slots[0].incarnation = Incarnation(member);
            view
        };
        let beat = |incarnation, counter| {
            Some(Heartbeat { incarnation: Incarnation(incarnation), counter, ..Heartbeat::default() })
        };
        let mut watch = Watch::new(Timing::TEST, 1);
        let mut known = Known::default();
        let mut see = |cell: Option<Heartbeat>, member| {
            watch.observe(Duration::ZERO, std::slice::from_ref(&cell));
            known.note(&[cell], &watch, &view(member));
            [7, 8].map(|n| known.of(SLOT, Incarnation(n)).map(|a| (a.beat.counter, a.lived)))
        };
        assert_eq!(see(beat(0, 0), 0), [None, None], "nobody ever");
        // Its first heartbeat may be read before the view that let it in.
        assert_eq!(see(beat(7, 1), 0), [Some((1, false)), None]);
        assert_eq!(see(None, 7), [Some((1, false)), None], "it cannot be read");
        assert_eq!(see(beat(7, 2), 7), [Some((1, false)), None]);
        assert_eq!(see(beat(7, 3), 7), [Some((1, true)), None]);
        assert_eq!(see(None, 7), [Some((1, true)), None]);
        assert_eq!(see(beat(8, 9), 7), [Some((1, true)), Some((9, false))], "a late one of the mount before");
        assert_eq!(see(beat(7, 4), 7), [Some((1, true)), None]);
        assert_eq!(see(beat(8, 1), 8), [None, Some((1, false))], "the next mount of the slot");
    }
}
