//! Waits that would never end.

use super::Owner;
use std::collections::BTreeSet;

/// Owners looked at before a search gives up and finds nothing.
const LOOKED_AT_MAX: usize = 4096;

/// Does one of `blockers`, or whoever they wait for, wait for `owner`? `waits_for` adds those that an
/// owner waits for.
pub fn closes(owner: Owner, blockers: Vec<Owner>, mut waits_for: impl FnMut(Owner, &mut Vec<Owner>)) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = blockers;
    while let Some(at) = next.pop() {
        if at == owner {
            return true;
        }
        if seen.len() < LOOKED_AT_MAX && seen.insert(at) {
            waits_for(at, &mut next);
        }
    }
    false
}
