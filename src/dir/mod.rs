//! Directories: names to inodes, in the item tree of the directory's inode. Level 8.
//!
//! Key of an entry: the upper 54 bits of SipHash-2-4 of the name under the volume's seed, then an
//! 8-bit index that tells names of one hash apart and never changes in the entry's life. Cookies
//! (key + 3; 0 is the start, 1 and 2 follow '.' and '..') are therefore stable over any change, host
//! and remount.
//!
//! Value: inode u64, generation u64, kind u8, name.

use crate::base::{Error, Generation, InodeNo, Result};
use crate::inode::{FileKind, ItemKey, ItemKind, Tree};
use crate::txn::{BlockSource, BlockTxn};
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use std::ops::ControlFlow;

const FIXED: usize = 17;
const COOKIE_BASE: u64 = 3;
/// Greatest key: 54 bits of hash, 8 of index.
const KEY_MAX: u64 = (1 << 62) - 1;
/// Longest name in bytes.
pub const NAME_MAX: usize = 255;

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

/// An entry with its key, if it is there, and the first key that its hash has free.
type Found = (Option<(u64, DirEntry)>, Option<u64>);

fn encode(ino: InodeNo, generation: Generation, kind: FileKind, name: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(FIXED + name.len());
    value.extend(ino.0.to_le_bytes());
    value.extend(generation.0.to_le_bytes());
    value.push(kind as u8);
    value.extend_from_slice(name);
    value
}

impl DirEntry {
    /// From an item.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn decode(id: u64, value: &[u8]) -> std::result::Result<DirEntry, String> {
        if value.len() <= FIXED || value.len() > FIXED + NAME_MAX {
            return Err(format!("a directory entry of {} bytes", value.len()));
        }
        if id > KEY_MAX {
            return Err(format!("a directory entry with the impossible key {id}"));
        }
        let number = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("8 bytes"));
        let kind = FileKind::from_raw(value[16])
            .ok_or_else(|| format!("a directory entry of kind {}", value[16]))?;
        let name = &value[FIXED..];
        if number(0) < 2 || !is_possible(name) {
            return Err(format!("a directory entry of inode {} called {}", number(0), name.escape_ascii()));
        }
        Ok(DirEntry {
            ino: InodeNo(number(0)),
            generation: Generation(number(8)),
            kind,
            name: name.to_vec(),
            cookie: id + COOKIE_BASE,
        })
    }
}

/// May a directory hold this name? The kernel sends no others; a damaged disk might.
fn is_possible(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// The key of the first entry with the hash of `name`; the others follow.
pub fn first_key(seed: &[u8; 16], name: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(seed);
    hasher.write(name);
    // 54 bits of hash and 8 of index leave cookies below 2^63.
    (hasher.finish() >> 10) << 8
}

impl Directory<'_> {
    fn damaged(&self, what: String) -> Error {
        Error::Damaged { inode: self.tree.ino, what }
    }

    /// The entry called `name`, and the first index that its hash has free.
    fn find(&self, src: &dyn BlockSource, name: &[u8]) -> Result<Found> {
        let first = first_key(self.seed, name);
        let (mut found, mut free, mut expected, mut bad) = (None, None, first, None);
        let (from, end) =
            (ItemKey::new(ItemKind::Dirent, first), ItemKey::new(ItemKind::Dirent, first + 256));
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
        Ok((found, free.or((expected < first + 256).then_some(expected))))
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
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if !is_possible(name) {
            return Err(Error::Invalid("a name that no directory can hold"));
        }
        match self.find(txn, name)? {
            (Some(_), _) => Err(Error::Exists),
            (None, None) => Err(Error::NoSpace),
            (None, Some(id)) => self.tree.insert(
                txn,
                ItemKey::new(ItemKind::Dirent, id),
                &encode(ino, generation, kind, name),
            ),
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
        self.tree.put(txn, ItemKey::new(ItemKind::Dirent, id), &encode(ino, generation, kind, name))?;
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
