//! One change of blocks that becomes part of the running transaction, or of nothing.

use super::Journal;
use crate::base::{AgNo, BlockNo, Error, LockName, Result, TxnId, Version};
use crate::format::block::BlockHeader;
use crate::format::{Block, BlockKind};
use crate::store::{Image, Undo};
use smallvec::SmallVec;
use std::sync::Arc;

/// Most change no more than so many blocks, whatever they reserve.
const HANDLE_BLOCKS: usize = 8;

/// Made by [`Journal::begin`]. [`Handle::finish`] joins the running transaction; dropping it
/// instead undoes every change in memory, also when a change panicked half-way.
///
/// Two handles never change one block at the same time (the caller's local exclusion sees to it),
/// so putting back the image from before the first change is right. The thread that holds a handle
/// must not wait for a commit or begin another one: a seal waits for open handles.
pub struct Handle {
    journal: Arc<Journal>,
    txn: TxnId,
    /// Block images of log space.
    reserved: u32,
    undo: Vec<Undo>,
    /// Freed blocks, each with the lock that covered it until now.
    freed: Vec<(BlockNo, LockName)>,
    /// The blocks in `undo`, close together for the search.
    touched: SmallVec<[BlockNo; HANDLE_BLOCKS]>,
    open: bool,
}

impl Handle {
    pub(super) fn new(journal: Arc<Journal>, txn: TxnId, reserved: u32) -> Handle {
        let undo = Vec::with_capacity(HANDLE_BLOCKS.min(reserved as usize));
        let touched = SmallVec::new();
        Handle { journal, txn, reserved, undo, freed: Vec::new(), touched, open: true }
    }

    /// The transaction it will be part of.
    pub fn txn(&self) -> TxnId {
        self.txn
    }

    /// Blocks of log space not used yet.
    pub fn left(&self) -> u32 {
        self.reserved - self.touched.len() as u32
    }

    /// The newest image, own changes included.
    pub fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        self.journal.store().read(block, kind, cover)
    }

    /// Is this the handle's first change of `block`? Then there must be log space for it.
    fn first_touch(&self, block: BlockNo) -> Result<bool> {
        if self.touched.contains(&block) {
            return Ok(false);
        }
        if self.touched.len() >= self.reserved as usize {
            let limit = self.reserved.into();
            tracing::error!("a change touches more than the {limit} blocks it reserved");
            return Err(Error::ChangeTooLarge { blocks: limit + 1, limit });
        }
        Ok(true)
    }

    /// Change `block`; `change` sees the whole block, its changes of the header are taken back. It
    /// must not read other blocks. The version grows once per transaction.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Halted`; `ChangeTooLarge` if more blocks are touched than were reserved.
    pub fn modify(
        &mut self,
        block: BlockNo,
        kind: BlockKind,
        cover: LockName,
        change: &mut dyn FnMut(&mut Block),
    ) -> Result<()> {
        let store = self.journal.store();
        store.halt().check()?;
        store.check_place(block, kind)?;
        let first = self.first_touch(block)?;
        let undo = if first { Some(&mut self.undo) } else { None };
        let mark = &mut self.touched;
        store.cache().change(
            block,
            kind,
            cover,
            self.txn,
            undo,
            &|| store.read_fresh(block, kind, cover),
            &mut |b| {
                // Marked before the change runs, together with the undo that exists by now.
                if first {
                    mark.push(block);
                }
                change(b);
            },
        )
    }

    /// A block that was free becomes a block of `kind` with a zeroed body. What it held is ignored.
    ///
    /// # Errors
    /// `Corrupt` if `version` is not above the block's last one; `Halted`, `ChangeTooLarge`.
    pub fn create(
        &mut self,
        block: BlockNo,
        kind: BlockKind,
        owner: u64,
        cover: LockName,
        version: Version,
    ) -> Result<()> {
        let store = self.journal.store();
        store.halt().check()?;
        store.check_place(block, kind)?;
        let first = self.first_touch(block)?;
        // Nothing else is written to one that is free.
        let header = BlockHeader::new(store.format_id(), block, kind, owner, cover, version);
        let mut image = Image::of_header(&header);
        if kind != BlockKind::Free {
            image.unpacked();
        }
        store.cache().install(block, image, self.txn, first.then_some(&mut self.undo))?;
        if first {
            self.touched.push(block);
        } else if let Some(u) = self.undo.iter_mut().find(|u| u.block == block) {
            // The block changed hands within this change: the lock that covers it now counts.
            u.cover = cover;
        }
        Ok(())
    }

    /// A metadata block is freed: its tombstone, covered by its group's lock, replaces it.
    ///
    /// It is listed under the block's `former` lock as well, if the caller knows it: whoever has that next
    /// may still look for the block (it knows an inode by its number), and must not find what stood there
    /// before. It is not enough that blocks stay listed under their earlier locks as long as they are
    /// dirty: this one may have been clean.
    ///
    /// # Errors
    /// As [`Handle::create`].
    pub fn tombstone(
        &mut self,
        block: BlockNo,
        ag: AgNo,
        former: Option<LockName>,
        version: Version,
    ) -> Result<()> {
        self.create(block, BlockKind::Free, ag.0.into(), LockName::Ag(ag), version)?;
        self.freed.extend(former.map(|cover| (block, cover)));
        Ok(())
    }

    /// Join the running transaction. Durable once [`Journal::durable`] has reached the result.
    pub fn finish(mut self) -> TxnId {
        self.open = false;
        for undo in self.undo.iter().filter(|undo| undo.rests) {
            self.journal.store().cache().rest(undo.block);
        }
        self.journal.join(&self.undo, &self.freed, self.reserved);
        self.txn
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.open {
            // Newest first, before the handle is off the transaction: a seal must not see the rest.
            while let Some(undo) = self.undo.pop() {
                self.journal.store().cache().undo(undo);
            }
            self.journal.abandon(self.reserved);
        }
    }
}
