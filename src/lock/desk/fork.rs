//! Another desk in the same state, and that state as a hash: for those who search everything that
//! desks can do to each other.

use super::Desk;
use crate::lock::table::PinTable;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

impl Desk {
    /// A desk in the same state, with a table of its own.
    pub fn fork(&self) -> (Desk, Arc<PinTable>) {
        let table = Arc::new(PinTable::clone(&self.table));
        (Desk { table: table.clone(), ..self.clone() }, table)
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
    }
}
