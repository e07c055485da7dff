//! Waits that would never end.

use super::steps::Steps;
use super::table::FileTable;
use super::{FileLock, Owner};
use std::collections::{BTreeMap, BTreeSet};

/// Who waits for what, and the tables that say who has it.
#[derive(Default)]
pub struct Waits<'a>(BTreeMap<Owner, Vec<(&'a FileTable, FileLock)>>);

impl<'a> Waits<'a> {
    /// One that waits.
    pub fn add(&mut self, table: &'a FileTable, lock: FileLock) {
        self.0.entry(lock.owner).or_default().push((table, lock));
    }

    /// Owners that wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nobody?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does one of `blockers`, or whoever they wait for, wait for `owner`? No, if that is not found in so many
    /// steps.
    pub fn close(&self, owner: Owner, blockers: Vec<Owner>, steps: &mut Steps) -> bool {
        let mut seen = BTreeSet::new();
        let mut next = Vec::new();
        let mut found = blockers;
        loop {
            steps.take(found.len());
            next.extend(found.into_iter().filter(|at| seen.insert(*at)));
            let Some(at) = next.pop() else { return false };
            if at == owner {
                return true;
            }
            if steps.are_over() {
                return false;
            }
            found = Vec::new();
            for (table, lock) in self.0.get(&at).into_iter().flatten() {
                steps.take(1 + table.cost(lock));
                found.extend(table.blockers(lock));
            }
        }
    }
}
