//! Another desk in the same state, and that state as a hash: for those who search everything that
//! desks can do to each other.

use super::Desk;
use crate::lock::table::PinTable;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

impl Desk {
    /// Part from the desk this is a clone of: from now on it has a table of its own, which is returned.
    pub fn part(&mut self) -> Arc<PinTable> {
        self.table = Arc::new(PinTable::clone(&self.table));
        self.table.clone()
    }
}

/// Everything that decides what the desk does next, its settings aside. Effects that nobody has
/// carried out yet are told apart by their number only.
impl Hash for Desk {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.table, &self.master, &self.holder, &self.membership).hash(state);
        (&self.learned, &self.routed, &self.registers, &self.adopting).hash(state);
        (&self.cases, &self.tickets, self.last_ticket, &self.timers).hash(state);
        (&self.work, self.effects.len(), &self.dirty, self.closing, &self.halted).hash(state);
        (&self.files, &self.file_work, &self.habits).hash(state);
    }
}
