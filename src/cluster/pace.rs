//! How soon the next heartbeat is due: each is a look at the others as well, and what a death waits for shows
//! only then.

use crate::base::SlotId;
use crate::cluster::Timing;
use crate::cluster::node::Node;
use crate::cluster::view::{bit, dead_of, live, slots};
use std::time::Duration;

/// When the heartbeat after the one of `last` is due, at the earliest a quarter of the time between two after it:
/// that soon while hosts that this one sees to are being fenced (a command returns, a lease ends, others
/// acknowledge the view), and where one is suspect if it stands still until then.
fn next(
    timing: &Timing,
    last: Duration,
    fencing: bool,
    suspect_at: impl Iterator<Item = Duration>,
) -> Duration {
    let soonest = last + timing.heartbeat / 4;
    if fencing {
        return soonest;
    }
    let coming = suspect_at.filter(|at| *at > last);
    coming.fold(last + timing.heartbeat, Duration::min).max(soonest)
}

impl Node {
    /// How many others that answer come before this host in having somebody excluded, `out` aside.
    pub fn turn(&self, out: u64) -> u32 {
        let answering = live(&self.view) & !self.silent() & !out;
        (answering & (bit(self.slot) - 1)).count_ones()
    }

    /// How long `slot` may stand still before this host proposes to exclude it (R4): the lowest that answers
    /// first, the others in turn, should it not.
    pub fn patience(&self, slot: SlotId) -> Duration {
        self.timing.suspicion + self.timing.heartbeat * 2 * self.turn(bit(slot))
    }

    /// When the next heartbeat is due.
    pub fn next_beat(&self) -> Duration {
        let takeover = &self.takeover;
        if takeover.successor.get().is_none() || self.leaving {
            return self.last_beat + self.timing.heartbeat;
        }
        let ours = dead_of(&self.view, self.slot) != 0;
        let fencing = ours && takeover.batch == 0 && self.last_beat >= takeover.not_before;
        let others = live(&self.view) & !bit(self.slot);
        let others = slots(&self.view).map(|(slot, _)| slot).filter(|slot| others & bit(*slot) != 0);
        let suspect_at = others.map(|slot| self.watch.still_since(slot) + self.patience(slot));
        next(&self.timing, self.last_beat, fencing, suspect_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Timing = Timing::DEFAULT;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn due(fencing: bool, suspect_at: &[u64]) -> Duration {
        next(&T, ms(5000), fencing, suspect_at.iter().map(|at| ms(*at)))
    }

    #[test]
    fn nothing_awaited_is_a_heartbeat_time() {
        assert_eq!(due(false, &[]), ms(6000));
        assert_eq!(due(false, &[16_000, 17_000]), ms(6000), "they are well");
        assert_eq!(due(false, &[4_000, 5_000]), ms(6000), "the last beat has seen that already");
    }

    #[test]
    fn who_becomes_suspect_between_two_is_looked_at_then() {
        assert_eq!(due(false, &[5_700, 17_000, 5_600]), ms(5600));
        assert_eq!(due(false, &[5_010]), ms(5250), "but not at once again");
    }

    #[test]
    fn a_fence_is_looked_after_four_times_as_often() {
        assert_eq!(due(true, &[5_700]), ms(5250));
    }
}
