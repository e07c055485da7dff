//! Locks asked for ahead: of what an operation is about to need, in the same message as what it needs.
//!
//! It is as if an operation waited for each of them that goes away once it has its lock: nothing is
//! pinned, so nobody ever waits for such a want but for the time it takes to give an idle lock up again.

use super::Desk;
use super::case::Case;
use crate::base::{LockName, Mode};
use std::time::Duration;

/// Most locks asked for ahead at a time: what operations wait for must find room in the register too.
pub const AHEAD_MAX: usize = 96;

impl Desk {
    /// Ask for up to `most` of these, and for no more than have room. What is held or free to take is
    /// passed over, and so is what something is going on about. Returns how many were looked at.
    pub fn ask_ahead(&mut self, now: Duration, names: &[LockName], mode: Mode, most: usize) -> usize {
        let under_way = self.cases.values().filter(|case| case.ahead != Mode::N).count();
        let mut room = most.min(AHEAD_MAX.saturating_sub(under_way));
        let mut looked_at = 0;
        for name in names {
            if room == 0 {
                break;
            }
            looked_at += 1;
            let free = self.master.is_free(self.group_of(*name), *name);
            let busy = self.cases.contains_key(name);
            let refused = || self.may_ask(&[(*name, mode)]).is_err();
            let held = self.table.mode(*name);
            if free || busy || held.covers(mode) || held.crosses(mode) || refused() {
                continue;
            }
            self.cases.insert(*name, Case { ahead: mode, ..Case::default() });
            self.evaluate_soon(*name);
            room -= 1;
        }
        self.run(now);
        looked_at
    }

    /// This host is leaving: a grant that comes from now on is not taken.
    pub(super) fn forget_ahead(&mut self) {
        let asked = self.cases.iter_mut().filter(|(_, case)| case.ahead != Mode::N);
        let names: Vec<LockName> = asked
            .map(|(name, case)| {
                case.ahead = Mode::N;
                *name
            })
            .collect();
        names.into_iter().for_each(|name| self.evaluate_soon(name));
    }
}
