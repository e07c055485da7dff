//! Names of the cluster locks and their one total order; the modes and their conflicts.
//!
//! The derived `Ord` *is* the lock order: an operation waits only for names greater than those it
//! holds. Group space comes before inode locks by reservation, never by waiting (docs/ARCHITECTURE.md).

use crate::base::{AgNo, BlockNo, InodeNo, SlotId};
use serde::{Deserialize, Serialize};

/// A cluster lock. Declared in the lock order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockName {
    /// Held shared by every changing operation; exclusive while the volume is frozen.
    Freeze,
    /// Covers the volume block.
    Volume,
    /// Covers a slot's system inode (orphans, deferred frees). Held by membership, never asked for.
    Slot(SlotId),
    /// Serialises moves of directories between parents.
    Rename,
    /// Covers an inode, its tree, its data and its xattrs.
    Inode(InodeNo),
    /// Held shared while any handle is open on a host.
    IOpen(InodeNo),
    /// Held while programs of a host have, or ask for, file locks of an inode: in X by one host that
    /// serves itself, in S by all who are served by whoever decides this name.
    FileLocks(InodeNo),
    /// Covers a group's header and chunk pages: the right to allocate and free in it.
    Ag(AgNo),
}

impl LockName {
    /// The on-disk form: class and number.
    pub fn to_raw(self) -> (u8, u64) {
        match self {
            LockName::Freeze => (1, 0),
            LockName::Volume => (2, 0),
            LockName::Slot(s) => (3, s.0.into()),
            LockName::Rename => (4, 0),
            LockName::Inode(i) => (5, i.0),
            LockName::IOpen(i) => (6, i.0),
            LockName::Ag(a) => (7, a.0.into()),
            LockName::FileLocks(i) => (8, i.0),
        }
    }

    /// For the lock of an inode: the inode's block, as a rule all that it covers.
    pub fn own_block(self) -> Option<BlockNo> {
        match self {
            LockName::Inode(ino) => Some(ino.block()),
            _ => None,
        }
    }

    /// The inverse of [`LockName::to_raw`]; `None` for a class or number that does not exist.
    pub fn from_raw(class: u8, id: u64) -> Option<LockName> {
        Some(match class {
            1 => LockName::Freeze,
            2 => LockName::Volume,
            3 => LockName::Slot(SlotId(u16::try_from(id).ok()?)),
            4 => LockName::Rename,
            5 => LockName::Inode(InodeNo(id)),
            6 => LockName::IOpen(InodeNo(id)),
            7 => LockName::Ag(AgNo(u32::try_from(id).ok()?)),
            8 => LockName::FileLocks(InodeNo(id)),
            _ => return None,
        })
    }
}

/// What a holder may do. `N` < `S` < `X`; `DW` (shared direct write) goes with itself only, and is neither
/// stronger nor weaker than `S` and `X`: whoever changes over gives up the one before it has the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[repr(u8)]
pub enum Mode {
    /// Nothing.
    #[default]
    N = 0,
    /// Read and cache.
    S = 1,
    /// Read, change and cache.
    X = 2,
    /// Direct writes to allocated blocks, several hosts at once, no caching.
    DW = 3,
}

impl Mode {
    /// May two hosts hold these modes at once?
    pub fn compatible(self, other: Mode) -> bool {
        use Mode::*;
        matches!((self, other), (N, _) | (_, N) | (S, S) | (DW, DW))
    }

    /// Does holding `self` permit what `wanted` permits?
    pub fn covers(self, wanted: Mode) -> bool {
        use Mode::*;
        matches!((self, wanted), (_, N) | (S, S) | (X, S) | (X, X) | (DW, DW))
    }

    /// Is neither of the two enough where the other is needed?
    pub fn crosses(self, other: Mode) -> bool {
        !self.covers(other) && !other.covers(self)
    }

    /// Is this no more than `cap` lets a holder keep? `X` as a cap is none.
    pub fn is_within(self, cap: Mode) -> bool {
        cap == Mode::X || cap.covers(self)
    }

    /// The strongest mode that a holder may keep beside another's `wanted`.
    pub fn cap_beside(wanted: Mode) -> Mode {
        match wanted {
            Mode::N => Mode::X,
            Mode::S => Mode::S,
            Mode::X => Mode::N,
            Mode::DW => Mode::DW,
        }
    }

    /// From the on-disk byte.
    pub fn from_raw(raw: u8) -> Option<Mode> {
        Some(match raw {
            0 => Mode::N,
            1 => Mode::S,
            2 => Mode::X,
            3 => Mode::DW,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_documented_one() {
        let names = [
            LockName::Freeze,
            LockName::Volume,
            LockName::Slot(SlotId(9)),
            LockName::Rename,
            LockName::Inode(InodeNo(7)),
            LockName::Inode(InodeNo(8)),
            LockName::IOpen(InodeNo(2)),
            LockName::FileLocks(InodeNo(1)),
            LockName::Ag(AgNo(0)),
        ];
        assert!(names.is_sorted());
        for name in names {
            let (class, id) = name.to_raw();
            assert_eq!(LockName::from_raw(class, id), Some(name));
        }
    }

    #[test]
    fn conflicts() {
        use Mode::*;
        for (a, b, ok) in
            [(S, S, true), (S, X, false), (X, X, false), (DW, DW, true), (DW, S, false), (N, X, true)]
        {
            assert_eq!(a.compatible(b), ok, "{a:?} {b:?}");
            assert_eq!(b.compatible(a), ok, "{b:?} {a:?}");
            assert_eq!(Mode::cap_beside(b).covers(a), ok || a == N, "cap of {a:?} beside {b:?}");
        }
    }

    #[test]
    fn direct_writes_cross_what_is_cached() {
        use Mode::*;
        let crossing = |a: Mode| [N, S, X, DW].map(|b| a.crosses(b));
        assert_eq!(crossing(DW), [false, true, true, false]);
        assert_eq!(crossing(S), [false, false, false, true]);
        assert_eq!(crossing(X), [false, false, false, true]);
        assert!([N, S, X, DW].iter().all(|m| m.is_within(X)), "which is no cap");
        assert!(
            DW.is_within(DW) && !DW.is_within(S) && !DW.is_within(N) && !X.is_within(DW) && N.is_within(N)
        );
    }
}
