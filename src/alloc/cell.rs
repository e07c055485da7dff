//! The place of one group while its lock is held: loaded on first use, closed when the lock goes.

use super::group::Group;
use crate::base::{AgNo, BlockNo, Error, Result};
use crate::store::Store;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};

/// A group whose lock this host holds X.
pub(super) struct Cell {
    pub ag: AgNo,
    /// First block of the group.
    pub start: BlockNo,
    pub state: Mutex<CellState>,
    /// Held while chunks get a type, journal waits included; never by the holder of a handle.
    pub typing: Mutex<()>,
    /// Another host decides the locks of the group.
    pub abroad: AtomicBool,
}

/// What is known of the group, and who uses it.
#[derive(Default)]
pub(super) struct CellState {
    /// The lock is wanted elsewhere: no new promises.
    pub demoting: bool,
    /// The lock has gone. Whoever still knows the cell must not read the group's blocks: they would
    /// stay in the cache while other hosts change them. A lock that comes back brings another cell.
    gone: bool,
    /// Transactions and type changes under way.
    pub pins: u32,
    /// Its blocks on disk are damaged: nothing is allocated or freed here.
    pub damaged: Option<Error>,
    pub group: Option<Group>,
}

impl Cell {
    /// A group whose lock has just been granted.
    pub fn new(ag: AgNo, start: BlockNo) -> Cell {
        Cell { ag, start, state: Mutex::default(), typing: Mutex::new(()), abroad: AtomicBool::new(false) }
    }

    /// Does another host decide the group's locks?
    pub fn is_abroad(&self) -> bool {
        self.abroad.load(Ordering::Relaxed)
    }

    /// The group in memory, which must be loaded: for guards, whose making loaded it.
    pub fn with<T>(&self, f: impl FnOnce(&mut Group) -> T) -> T {
        f(self.state.lock().group.as_mut().expect("a group with promises is loaded"))
    }

    /// Lock, and load the group if it is not.
    ///
    /// # Errors
    /// `NeedSpace` if the group's lock has gone; `Corrupt`, `Io`.
    pub fn open(&self, store: &Store) -> Result<MutexGuard<'_, CellState>> {
        let mut state = self.state.lock();
        if state.gone {
            return Err(Error::NeedSpace);
        }
        if let Some(e) = &state.damaged {
            return Err(e.clone());
        }
        if state.group.is_none() {
            match Group::load(store, self.ag) {
                Ok(group) => state.group = Some(group),
                Err(e) => {
                    state.note(&e);
                    return Err(e);
                }
            }
        }
        Ok(state)
    }

    /// The lock is gone. Answers with what was still promised in the group if it was in use, which is
    /// then kept for those guards to end.
    pub fn close(&self) -> Option<u64> {
        let mut state = self.state.lock();
        (state.demoting, state.gone) = (true, true);
        let promised = state.group.as_ref().map_or(0, Group::outstanding);
        if promised > 0 || state.pins > 0 {
            return Some(promised);
        }
        state.group = None;
        None
    }

    /// One transaction or type change less.
    pub fn unpin(&self) {
        self.state.lock().pins -= 1;
    }
}

impl CellState {
    pub fn group(&mut self) -> &mut Group {
        self.group.as_mut().expect("opened")
    }

    /// Damage closes the group; the rest of the volume stays usable.
    pub fn note(&mut self, e: &Error) {
        if matches!(e, Error::Corrupt { .. }) && self.damaged.is_none() {
            self.damaged = Some(e.clone());
        }
    }
}
