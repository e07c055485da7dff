//! Allocation: groups, chunks, promises of space, transactions that take and give blocks. Level 6.
//!
//! Space is promised ([`Reservation`]) before an operation takes inode locks, out of a group whose
//! lock this host holds; a group with open promises keeps its lock. Blocks are picked in memory and
//! become used on the disk when the transaction that uses them finishes.

use crate::base::{AgNo, BlockNo, Error, Result};
use crate::format::layout::CHUNK_BLOCKS;
use crate::journal::Journal;
use crate::store::Store;
use crate::txn::{BlockRun, BlockTxn};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;

mod group;
mod reservation;
mod transaction;

pub use group::Counts;
pub use reservation::{PendingRuns, Reservation};
pub use transaction::Transaction;

use group::{EMERGENCY, Group};

/// What an operation asks to be promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Data blocks.
    pub data: u64,
    /// Metadata blocks.
    pub meta: u32,
    /// The group it would like best.
    pub near: Option<AgNo>,
}

/// May a group's lock be given up?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoteReady {
    Ready,
    /// Promises are open; write-back ends them.
    Busy { reserved: u64 },
}

/// Where frees go whose group this host does not hold: an item of its slot's system inode, in the
/// same transaction.
pub trait DeferredFrees: Send + Sync {
    /// Remember a run to be freed later.
    fn defer(&self, txn: &mut dyn BlockTxn, run: BlockRun, metadata: bool) -> Result<()>;
}

/// The allocator of one mount.
pub struct Allocator {
    store: Arc<Store>,
    journal: Arc<Journal>,
    deferred: Arc<dyn DeferredFrees>,
    groups: RwLock<BTreeMap<AgNo, Arc<Mutex<Group>>>>,
    /// Groups that could not be read: asked for once, refused until the next mount.
    broken: Mutex<BTreeMap<AgNo, Error>>,
}

impl Allocator {
    /// An allocator that holds no group yet.
    pub fn new(store: Arc<Store>, journal: Arc<Journal>, deferred: Arc<dyn DeferredFrees>) -> Arc<Allocator> {
        Arc::new(Allocator { store, journal, deferred, groups: RwLock::default(), broken: Mutex::default() })
    }

    /// This host now holds the group's lock exclusively.
    pub fn ag_granted(&self, ag: AgNo) {
        if let Some(group) = self.find(ag) {
            group.lock().stopping = false;
            return;
        }
        match Group::load(&self.store, &self.store.geometry(), ag) {
            Ok(group) => {
                self.broken.lock().remove(&ag);
                self.groups.write().insert(ag, Arc::new(Mutex::new(group)));
            }
            Err(e) => {
                tracing::error!("allocation group {ag} cannot be used: {e}");
                self.broken.lock().insert(ag, e);
            }
        }
    }

    /// The lock is wanted elsewhere: promise nothing more; say whether it can go.
    pub fn ag_demote(&self, ag: AgNo) -> DemoteReady {
        let Some(group) = self.find(ag) else { return DemoteReady::Ready };
        let mut group = group.lock();
        group.stopping = true;
        if group.is_idle() {
            DemoteReady::Ready
        } else {
            DemoteReady::Busy { reserved: group.reserved_data + group.reserved_meta }
        }
    }

    /// The demotion was called off.
    pub fn ag_keep(&self, ag: AgNo) {
        if let Some(group) = self.find(ag) {
            group.lock().stopping = false;
        }
    }

    /// The lock is gone.
    pub fn ag_released(&self, ag: AgNo) {
        self.groups.write().remove(&ag);
    }

    /// Groups held now.
    pub fn held(&self) -> Vec<AgNo> {
        self.groups.read().keys().copied().collect()
    }

    /// Free space of a group held, promises deducted, freed blocks not final yet included.
    pub fn free_blocks(&self, ag: AgNo) -> Option<u64> {
        let group = self.find(ag)?;
        let group = group.lock();
        Some(group.unpromised() + group.waiting())
    }

    fn find(&self, ag: AgNo) -> Option<Arc<Mutex<Group>>> {
        self.groups.read().get(&ag).cloned()
    }

    fn collect(&self, group: &mut MutexGuard<'_, Group>) {
        group.collect(self.journal.durable(), self.journal.checkpointed());
    }

    /// Promise space out of one of the groups held, `want.near` if that can.
    ///
    /// # Errors
    /// `NeedSpace` if none of them has it.
    pub fn reserve(self: &Arc<Self>, want: Want) -> Result<Reservation> {
        if want.data == 0 && want.meta == 0 {
            return Ok(Reservation::empty(self.clone()));
        }
        let groups = self.groups.read();
        let near = want.near.and_then(|ag| groups.get(&ag));
        let all: Vec<Arc<Mutex<Group>>> = near.into_iter().chain(groups.values()).cloned().collect();
        drop(groups);
        for pass in 0..2 {
            for group in &all {
                let mut g = group.lock();
                if g.stopping {
                    continue;
                }
                if pass > 0 {
                    self.collect(&mut g);
                }
                if g.fits(want.data, want.meta.into(), EMERGENCY) {
                    g.reserved_data += want.data;
                    g.reserved_meta += u64::from(want.meta);
                    return Ok(Reservation::new(self.clone(), g.ag, want.data, want.meta.into()));
                }
            }
        }
        Err(Error::NeedSpace)
    }

    /// Are freed blocks of groups held waiting for the journal?
    pub fn has_waiting(&self) -> bool {
        self.groups.read().values().any(|g| g.lock().waiting() > 0)
    }

    /// Promise as [`Allocator::reserve`], after everything freed here has become final.
    ///
    /// # Errors
    /// `NoSpace`, or what the journal gives.
    pub fn reserve_last(self: &Arc<Self>, want: Want) -> Result<Reservation> {
        if self.has_waiting() {
            self.journal.checkpoint_all()?;
        }
        self.reserve(want).map_err(|e| if e == Error::NeedSpace { Error::NoSpace } else { e })
    }

    /// Pick `blocks` data blocks out of `reservation`, contiguous and at `near` where possible.
    pub fn take_data(
        self: &Arc<Self>,
        reservation: &mut Reservation,
        blocks: u64,
        near: Option<BlockNo>,
    ) -> Result<PendingRuns> {
        let mut pending = PendingRuns::new(self.clone());
        let mut left = blocks;
        while left > 0 {
            let (ag, available) = reservation.data_part().ok_or(Error::NoSpace)?;
            let group = self.find(ag).ok_or(Error::NoSpace)?;
            let mut g = group.lock();
            self.collect(&mut g);
            let near = pending.last_end().or(near);
            let run = g.pick_data(left.min(available).min(CHUNK_BLOCKS), near).ok_or(Error::NoSpace)?;
            g.reserved_data -= run.blocks;
            reservation.spend_data(ag, run.blocks);
            pending.push(&mut g, run);
            left -= run.blocks;
        }
        Ok(pending)
    }

    /// A transaction that changes at most `blocks` blocks beside the groups' own.
    pub fn begin(self: &Arc<Self>, reservation: Reservation, blocks: u32) -> Result<Transaction> {
        Transaction::begin(self.clone(), reservation, blocks, false)
    }

    /// A transaction that makes room: it needs no promise and may use the emergency share.
    pub fn begin_for_free(self: &Arc<Self>, blocks: u32) -> Result<Transaction> {
        Transaction::begin(self.clone(), Reservation::empty(self.clone()), blocks, true)
    }
}
