//! Transactions of those who may try again: what was promised to them and is not used stays theirs.

use super::page::Class;
use super::reservation::{Part, Reservation};
use super::transaction::Transaction;
use crate::base::{Result, TxnId};
use crate::txn::BlockRun;

impl Transaction {
    /// The groups in which something is promised to the caller by `promised`: until this ends they are not
    /// given up, and their emergency shares may be drawn from although they are wanted elsewhere. What is
    /// promised there keeps them here anyway.
    pub fn lean_on(&mut self, promised: &Reservation) {
        for part in promised.parts.iter().filter(|p| p.data + p.meta > 0) {
            self.pin(&part.cell);
        }
    }

    /// As [`Transaction::finish`]. What it has not used of what it was given comes back, after an error
    /// all of it.
    pub fn finish_keeping(mut self) -> (Result<TxnId>, Reservation) {
        match self.complete() {
            Ok(txn) => (Ok(txn), std::mem::take(&mut self.res)),
            Err(e) => (Err(e), self.undo()),
        }
    }

    /// Undo everything. What it was given is promised again: to the caller, for another attempt.
    pub fn undo(mut self) -> Reservation {
        // Images first: a block must not be handed out while its old image is still to be put back.
        drop(self.handle.take());
        let mut back = std::mem::take(&mut self.res);
        for (at, start) in std::mem::take(&mut self.metas) {
            let cell = self.pinned[at].clone();
            cell.with(|g| {
                g.give_back(Class::Meta, BlockRun { start, blocks: 1 });
                g.meta.reserved += 1;
            });
            back.add(Part { cell, data: 0, meta: 1 });
        }
        std::mem::take(&mut self.pending).into_iter().for_each(|pending| pending.give_back(&mut back));
        back
    }
}

impl Reservation {
    /// Forget what is promised in groups that turned out to be damaged: it can be had elsewhere. Tells
    /// whether there was anything.
    pub fn leave_damaged(&mut self) -> bool {
        let is_damaged = |p: &Part| p.data + p.meta > 0 && p.cell.state.lock().damaged.is_some();
        let (lost, sound) = std::mem::take(&mut self.parts).into_iter().partition(is_damaged);
        self.parts = sound;
        !(Reservation { parts: lost }).is_empty()
    }
}
