//! Directories: names to inodes, in the item tree of the directory's inode. Level 8.
//!
//! Key of an entry: the upper 54 bits of SipHash-2-4 of the name under the volume's seed, then an
//! 8-bit index that tells names of one hash apart and never changes in the entry's life. Cookies
//! (key + 3; 0 is the start, 1 and 2 follow '.' and '..') are therefore stable over any change, host
//! and remount.
//! Keys and values are declared in `format/value.rs`.

use crate::base::{Error, Generation, InodeNo, Result};
use crate::format::value::{Dirent, KEYS_PER_HASH, dirent_key, is_possible_name};
use crate::inode::{FileKind, ItemKey, ItemKind, Tree};
use crate::txn::{BlockSource, BlockTxn};
use std::ops::ControlFlow;

pub use crate::format::value::NAME_MAX;

const COOKIE_BASE: u64 = 3;

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub ino: InodeNo,
    pub generation: Generation,
    pub kind: FileKind,
    pub name: Vec<u8>,
    /// Where a listing goes on behind this entry.
    pub cookie: u64,
}

/// A directory's names. The caller holds the inode's lock (X for changes).
#[derive(Clone, Copy, Debug)]
pub struct Directory<'a> {
    pub tree: Tree,
    /// The volume's hash seed.
    pub seed: &'a [u8; 16],
}

/// Where a new name goes.
#[derive(Clone, Copy, Debug)]
pub struct Vacancy(u64);

/// An entry with its key, if it is there, and the first key that its hash has free.
type Found = (Option<(u64, DirEntry)>, Option<u64>);

impl DirEntry {
    /// From an item.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn decode(id: u64, value: &[u8]) -> std::result::Result<DirEntry, String> {
        let Dirent { ino, generation, kind, name } = Dirent::decode(id, value)?;
        Ok(DirEntry { ino, generation, kind, name, cookie: id + COOKIE_BASE })
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    match is_possible_name(name) {
        true => Ok(()),
        false => Err(Error::Invalid("a name that no directory can hold")),
    }
}

impl Directory<'_> {
    fn damaged(&self, what: String) -> Error {
        Error::Damaged { inode: self.tree.ino, what }
    }

    /// The entry called `name`, and the first index that its hash has free.
    fn find(&self, src: &dyn BlockSource, name: &[u8]) -> Result<Found> {
        let first = dirent_key(self.seed, name);
        let (mut found, mut free, mut expected, mut bad) = (None, None, first, None);
        let (from, end) =
            (ItemKey::new(ItemKind::Dirent, first), ItemKey::new(ItemKind::Dirent, first + KEYS_PER_HASH));
        self.tree.scan(src, from, Some(end), &mut |key, value| {
            if key.id != expected && free.is_none() {
                free = Some(expected);
            }
            expected = key.id + 1;
            match DirEntry::decode(key.id, value) {
                Ok(entry) if entry.name == name => found = Some((key.id, entry)),
                Ok(_) => {}
                Err(e) => bad = Some(e),
            }
            if found.is_some() || bad.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(what) = bad {
            return Err(self.damaged(what));
        }
        Ok((found, free.or((expected < first + KEYS_PER_HASH).then_some(expected))))
    }

    /// Find a name.
    pub fn lookup(&self, src: &dyn BlockSource, name: &[u8]) -> Result<Option<DirEntry>> {
        Ok(self.find(src, name)?.0.map(|(_, entry)| entry))
    }

    /// Add a name.
    ///
    /// # Errors
    /// `Exists`; `NameTooLong`; `Invalid` for names that no directory can hold; `NoSpace` in the
    /// case that 256 names share one hash.
    pub fn insert(
        &self,
        txn: &mut dyn BlockTxn,
        name: &[u8],
        ino: InodeNo,
        generation: Generation,
        kind: FileKind,
    ) -> Result<()> {
        check_name(name)?;
        let vacancy = self.vacancy(txn, name)?;
        self.fill(txn, vacancy, name, ino, generation, kind)
    }

    /// Where a new name goes.
    ///
    /// # Errors
    /// `Exists`; `NoSpace` as for [`Directory::insert`].
    pub fn vacancy(&self, src: &dyn BlockSource, name: &[u8]) -> Result<Vacancy> {
        match self.find(src, name)? {
            (Some(_), _) => Err(Error::Exists),
            (None, None) => Err(Error::NoSpace),
            (None, Some(id)) => Ok(Vacancy(id)),
        }
    }

    /// [`Directory::insert`] at a vacancy for that name, found since the directory was locked.
    ///
    /// # Errors
    /// Those of [`Directory::insert`].
    pub fn fill(
        &self,
        txn: &mut dyn BlockTxn,
        vacancy: Vacancy,
        name: &[u8],
        ino: InodeNo,
        generation: Generation,
        kind: FileKind,
    ) -> Result<()> {
        check_name(name)?;
        let entry = Dirent::encode(ino, generation, kind, name);
        self.tree.insert(txn, ItemKey::new(ItemKind::Dirent, vacancy.0), &entry)
    }

    /// Remove an entry found since the directory was locked.
    ///
    /// # Errors
    /// `Damaged` if it is not there.
    pub fn remove_entry(&self, txn: &mut dyn BlockTxn, entry: &DirEntry) -> Result<()> {
        let key = ItemKey::new(ItemKind::Dirent, entry.cookie - COOKIE_BASE);
        match self.tree.remove(txn, key)? {
            true => Ok(()),
            false => Err(self.damaged("an entry that was there is not".into())),
        }
    }

    /// Remove a name; answers with what it was.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, txn: &mut dyn BlockTxn, name: &[u8]) -> Result<DirEntry> {
        let (id, entry) = self.find(txn, name)?.0.ok_or(Error::NotFound)?;
        self.tree.remove(txn, ItemKey::new(ItemKind::Dirent, id))?;
        Ok(entry)
    }

    /// Let an existing name mean another inode; answers with what it was.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn replace(
        &self,
        txn: &mut dyn BlockTxn,
        name: &[u8],
        ino: InodeNo,
        generation: Generation,
        kind: FileKind,
    ) -> Result<DirEntry> {
        let (id, entry) = self.find(txn, name)?.0.ok_or(Error::NotFound)?;
        self.tree.put(
            txn,
            ItemKey::new(ItemKind::Dirent, id),
            &Dirent::encode(ino, generation, kind, name),
        )?;
        Ok(entry)
    }

    /// Visit the entries behind `cookie` (2 or less: all) until `visit` breaks.
    pub fn list(
        &self,
        src: &dyn BlockSource,
        cookie: u64,
        visit: &mut dyn FnMut(DirEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        // A cookie names an entry that may be gone: go on with the next greater key.
        let from = ItemKey::new(ItemKind::Dirent, cookie.saturating_add(1).saturating_sub(COOKIE_BASE));
        let mut bad = None;
        let end = ItemKey::new(ItemKind::Orphan, 0);
        self.tree.scan(src, from, Some(end), &mut |key, value| match DirEntry::decode(key.id, value) {
            Ok(entry) => visit(entry),
            Err(e) => {
                bad = Some(e);
                ControlFlow::Break(())
            }
        })?;
        bad.map_or(Ok(()), |what| Err(self.damaged(what)))
    }

    /// Is there no name in it?
    pub fn is_empty(&self, src: &dyn BlockSource) -> Result<bool> {
        let mut empty = true;
        self.list(src, 2, &mut |_| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }
}

#[cfg(test)]
mod tests;
