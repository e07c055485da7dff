//! Which requests get a place in a register that has not enough of them.

use super::{Holder, Key};
use crate::base::{LockName, Mode, SlotId};
use std::collections::BTreeSet;

impl Holder {
    /// The requests with a place in the register for `to`. If there are more than places, those come
    /// first that a new master waits for before it grants anything, and a ninth goes to the greatest
    /// locks: all who hold what the others ask for may be waiting for greater ones, and the greatest
    /// of all is the one whose holders wait for nothing. A request that loses its place to such a
    /// one loses its turn at the master, never a grant.
    ///
    /// Exclusive wants of an `IOpen` may stand for as long as a file is open elsewhere. They leave
    /// half of the places of either sort to the others.
    pub(super) fn placed(&self, to: SlotId) -> Vec<Key> {
        let Some(open) = self.open.get(&to) else { return Vec::new() };
        if open.len() <= self.requests_max {
            return open.values().copied().collect();
        }
        let declares = |key: &Key| {
            let line = &self.lines[key];
            line.held != Mode::N && !line.confirmed && self.routes[&key.0].asked
        };
        let reserved = (self.requests_max / 9).max(1);
        let (mut by_age, others): (Vec<_>, Vec<_>) = open.values().copied().partition(declares);
        by_age.extend(others);
        let mut placed = Vec::new();
        self.place(&mut placed, &by_age, self.requests_max - reserved);
        let mut greatest = by_age;
        greatest.sort_by_key(|(_, lock)| std::cmp::Reverse(*lock));
        self.place(&mut placed, &greatest, reserved);
        placed
    }

    /// Give so many places to the first of `candidates` that have none, half of them to such as do not
    /// stand for ever, if there are so many.
    fn place(&self, placed: &mut Vec<Key>, candidates: &[Key], places: usize) {
        let mut has: BTreeSet<Key> = placed.iter().copied().collect();
        let end = placed.len() + places;
        let mut take = |end: usize, may: &dyn Fn(&Key) -> bool| {
            for key in candidates {
                if placed.len() < end && may(key) && has.insert(*key) {
                    placed.push(*key);
                }
            }
        };
        take(end - places / 2, &|_| true);
        take(end, &|key| !self.may_stand(key));
        take(end, &|_| true);
    }

    fn may_stand(&self, key: &Key) -> bool {
        matches!(key.1, LockName::IOpen(_)) && self.lines[key].wanted() == Mode::X
    }
}
