//! The set of cluster locks an operation needs, in the lock order.

use crate::base::{LockName, Mode};
use smallvec::{SmallVec, smallvec};

/// Locks and the modes they are needed in, ascending by name.
///
/// A sorted vector, most in place: sets have one to six members, and building one is on the fast path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LockSet(SmallVec<[(LockName, Mode); 3]>);

impl LockSet {
    /// The empty set.
    pub fn new() -> LockSet {
        LockSet::default()
    }

    /// A set of one lock.
    pub fn one(name: LockName, mode: Mode) -> LockSet {
        LockSet(smallvec![(name, mode)])
    }

    /// Add a lock, or raise the mode of one that is there (never lowers). What needs direct writes and
    /// something else besides needs it exclusively.
    pub fn add(&mut self, name: LockName, mode: Mode) {
        if mode == Mode::N {
            return;
        }
        match self.0.binary_search_by_key(&name, |(n, _)| *n) {
            Ok(at) if self.0[at].1.covers(mode) => {}
            Ok(at) if self.0[at].1.crosses(mode) => self.0[at].1 = Mode::X,
            Ok(at) => self.0[at].1 = mode,
            Err(at) => self.0.insert(at, (name, mode)),
        }
    }

    /// [`LockSet::add`], chained.
    #[must_use]
    pub fn with(mut self, name: LockName, mode: Mode) -> LockSet {
        self.add(name, mode);
        self
    }

    /// Add all locks of `other`.
    pub fn merge(&mut self, other: &LockSet) {
        for (name, mode) in other.iter() {
            self.add(name, mode);
        }
    }

    /// The mode `name` is in, `N` if it is not a member.
    pub fn mode(&self, name: LockName) -> Mode {
        self.0.binary_search_by_key(&name, |(n, _)| *n).map_or(Mode::N, |at| self.0[at].1)
    }

    /// Is `name` in the set in `mode` or a stronger one?
    pub fn covers(&self, name: LockName, mode: Mode) -> bool {
        self.mode(name).covers(mode)
    }

    /// Members in the lock order.
    pub fn iter(&self) -> impl Iterator<Item = (LockName, Mode)> + '_ {
        self.0.iter().copied()
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there no member?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The members, in the lock order.
    pub fn as_slice(&self) -> &[(LockName, Mode)] {
        &self.0
    }
}

impl FromIterator<(LockName, Mode)> for LockSet {
    fn from_iter<T: IntoIterator<Item = (LockName, Mode)>>(iter: T) -> LockSet {
        let mut set = LockSet::new();
        for (name, mode) in iter {
            set.add(name, mode);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{AgNo, InodeNo};

    #[test]
    fn sorted_and_strongest() {
        let inode = LockName::Inode(InodeNo(9));
        let set = LockSet::new()
            .with(LockName::Ag(AgNo(1)), Mode::X)
            .with(inode, Mode::S)
            .with(LockName::Freeze, Mode::S)
            .with(inode, Mode::X)
            .with(inode, Mode::S)
            .with(LockName::Rename, Mode::N);
        assert!(set.iter().map(|(n, _)| n).is_sorted());
        assert_eq!(set.len(), 3);
        assert_eq!(set.mode(inode), Mode::X);
        assert!(!set.covers(LockName::Freeze, Mode::X));
        for (one, other) in [(Mode::DW, Mode::S), (Mode::S, Mode::DW), (Mode::X, Mode::DW)] {
            assert_eq!(LockSet::one(inode, one).with(inode, other).mode(inode), Mode::X);
        }
        assert_eq!(LockSet::one(inode, Mode::DW).with(inode, Mode::DW).mode(inode), Mode::DW);
    }
}
