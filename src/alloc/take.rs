//! From promises to places: which blocks of a group a reservation gets. Nothing is changed on disk.
//!
//! A group whose header could be read may have damaged chunk pages, which shows only here: data that was
//! promised there is promised in other groups then.

use super::allocator::{Allocator, Want};
use super::cell::Cell;
use super::page::Class;
use super::reservation::{Part, PendingRuns, PickedInode, Reservation};
use super::transaction::FREE_TOUCH;
use crate::base::{BlockNo, Error, Result};
use crate::store::Store;
use crate::txn::BlockRun;
use std::sync::Arc;

/// Most runs chosen at once: each becomes an extent, and all of them fit one transaction.
pub const RUNS_MAX: usize = 128;

impl Allocator {
    /// Choose data blocks for `blocks` of the reservation, in long runs, from `near` on if that is
    /// free; fewer, but one at least, where free space is so scattered that one transaction could not
    /// use them all. Nothing is changed on disk.
    ///
    /// # Errors
    /// `NoSpace` if the reservation holds less; `NeedSpace` if what was promised lies in a damaged group and
    /// the others have nothing; `Corrupt`, `Io`.
    pub fn take_data(
        &self,
        res: &mut Reservation,
        blocks: u64,
        mut near: Option<BlockNo>,
    ) -> Result<PendingRuns> {
        let mut pending = PendingRuns::default();
        let mut left = blocks;
        while left > 0 {
            let near_ag = near.and_then(|b| self.store.geometry().ag_of(b));
            let part = res.part(Class::Data, near_ag).ok_or(Error::NoSpace)?;
            let run = match Self::take_run(&self.store, part, left, near) {
                Err(damage @ Error::Corrupt { .. }) => {
                    self.move_promise(res, &damage)?;
                    continue;
                }
                other => other?,
            };
            left -= run.blocks;
            near = Some(run.start.plus(run.blocks));
            let cell = part.cell.clone();
            pending.push(&cell, run);
            // A further one may be on a chunk page of a further group.
            if pending.runs().len() >= RUNS_MAX || pending.log_blocks() + 2 > FREE_TOUCH {
                break;
            }
        }
        Ok(pending)
    }

    fn take_run(store: &Store, part: &mut Part, blocks: u64, near: Option<BlockNo>) -> Result<BlockRun> {
        let mut state = part.cell.open(store)?;
        let run = state.group().take_data(store, blocks.min(part.data), near);
        let run = run.inspect_err(|e| state.note(e))?;
        part.data -= run.blocks;
        Ok(run)
    }

    /// What was promised in groups that turned out to be damaged is promised in others instead.
    fn move_promise(&self, res: &mut Reservation, damage: &Error) -> Result<()> {
        let is_damaged = |p: &Part| p.cell.state.lock().damaged.is_some();
        let (lost, sound) = std::mem::take(&mut res.parts).into_iter().partition(is_damaged);
        res.parts = sound;
        let lost = Reservation { parts: lost };
        let meta = u32::try_from(lost.meta()).unwrap_or(u32::MAX);
        let elsewhere = self.reserve(Want { data: lost.data(), meta, near: None });
        // Groups that are not held may have it.
        res.merge(elsewhere.map_err(|e| if e == Error::NeedSpace { e } else { damage.clone() })?);
        Ok(())
    }

    /// Choose the number of an inode to be, in the reservation's groups, near `near` if possible.
    ///
    /// # Errors
    /// `NoSpace` if the reservation holds no metadata block; `Corrupt`, `Io`.
    pub fn pick_inode(&self, res: &mut Reservation, near: BlockNo) -> Result<PickedInode> {
        let (cell, block) = self.take_meta(res, near)?;
        Ok(PickedInode::new(cell, block))
    }

    /// A reserved metadata block becomes busy.
    pub(super) fn take_meta(&self, res: &mut Reservation, near: BlockNo) -> Result<(Arc<Cell>, BlockNo)> {
        let near_ag = self.store.geometry().ag_of(near);
        let part = res.part(Class::Meta, near_ag).ok_or(Error::NoSpace)?;
        let mut state = part.cell.open(&self.store)?;
        let block = state.group().take_meta(&self.store, near).inspect_err(|e| state.note(e))?;
        drop(state);
        part.meta -= 1;
        Ok((part.cell.clone(), block))
    }
}
