//! Extended attributes, in the item tree of the inode. Level 8.
//!
//! Keys and values of its items are declared in `format/value.rs`.

use crate::base::{Error, Result};
use crate::format::value::{KEYS_PER_HASH, xattr_key};
use crate::inode::{BLOB_BYTES_MAX, Blob, ItemKey, ItemKind, Tree, VALUE_MAX};
use crate::txn::{BlockSource, BlockTxn};
use std::ops::ControlFlow;

pub mod acl;

pub use crate::format::value::{Content, Xattr};

/// Longest name, prefix included.
pub const NAME_MAX: usize = 255;
/// Most bytes of names that one listing gives (as the kernel's XATTR_LIST_MAX).
pub const LIST_MAX: usize = 65536;
/// Blocks that the longest value takes.
pub const VALUE_BLOCKS_MAX: u32 = 17;

/// New blocks that a value of `length` bytes takes beside the tree's.
pub fn value_blocks(length: usize) -> u32 {
    Blob::blocks_for(length) as u32
}

const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const ACLS: [&[u8]; 2] = [acl::ACCESS, acl::DEFAULT];

/// Must the attribute be new, or there already?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetHow {
    Either,
    Create,
    Replace,
}

impl SetHow {
    /// From the flags of setxattr(2).
    ///
    /// # Errors
    /// `Invalid` for unknown flags.
    pub fn from_flags(flags: i32) -> Result<SetHow> {
        match flags {
            0 => Ok(SetHow::Either),
            1 => Ok(SetHow::Create),
            2 => Ok(SetHow::Replace),
            _ => Err(Error::Invalid("setxattr flags")),
        }
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::Range);
    }
    if ACLS.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p) && name.len() > p.len()) {
        Ok(())
    } else {
        Err(Error::Unsupported("this extended attribute namespace"))
    }
}

/// An attribute with its key, if it is there, and the first key that its hash has free.
type Found = (Option<(u64, Xattr)>, Option<u64>);

fn damaged(tree: &Tree, what: String) -> Error {
    Error::Damaged { inode: tree.ino, what }
}

/// The attribute called `name`, and a free index of its hash.
fn find(tree: &Tree, src: &dyn BlockSource, name: &[u8]) -> Result<Found> {
    let first = xattr_key(name);
    let (mut found, mut free, mut expected, mut bad) = (None, None, first, None);
    let (from, end) =
        (ItemKey::new(ItemKind::Xattr, first), ItemKey::new(ItemKind::Xattr, first + KEYS_PER_HASH));
    tree.scan(src, from, Some(end), &mut |key, value| {
        if key.id != expected && free.is_none() {
            free = Some(expected);
        }
        expected = key.id + 1;
        match Xattr::decode(value) {
            Ok(stored) if stored.name == name => found = Some((key.id, stored)),
            Ok(_) => {}
            Err(e) => bad = Some(e),
        }
        if found.is_some() || bad.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(what) = bad {
        return Err(damaged(tree, what));
    }
    Ok((found, free.or((expected < first + KEYS_PER_HASH).then_some(expected))))
}

/// The value of `name`.
///
/// # Errors
/// `NoAttribute`.
pub fn get(tree: &Tree, src: &dyn BlockSource, name: &[u8]) -> Result<Vec<u8>> {
    check_name(name)?;
    match find(tree, src, name)?.0.ok_or(Error::NoAttribute)?.1.content {
        Content::Here(value) => Ok(value),
        Content::Long(blob) => blob.read(tree, src),
    }
}

/// Set `name`. The transaction must have room for [`VALUE_BLOCKS_MAX`] new blocks beside the tree's.
///
/// # Errors
/// `Exists`, `NoAttribute` (by `how`), `TooBig`, `NoSpace` if all names together outgrow a listing.
pub fn set(tree: &Tree, txn: &mut dyn BlockTxn, name: &[u8], value: &[u8], how: SetHow) -> Result<()> {
    check_name(name)?;
    if value.len() > BLOB_BYTES_MAX {
        return Err(Error::TooBig);
    }
    let (old, free) = find(tree, txn, name)?;
    match (&old, how) {
        (Some(_), SetHow::Create) => return Err(Error::Exists),
        (None, SetHow::Replace) => return Err(Error::NoAttribute),
        _ => {}
    }
    if old.is_none() && list(tree, txn)?.len() + name.len() + 1 > LIST_MAX {
        return Err(Error::NoSpace);
    }
    let id = match old {
        Some((id, stored)) => {
            if let Content::Long(blob) = stored.content {
                blob.free(tree, txn)?;
            }
            id
        }
        None => free.ok_or(Error::NoSpace)?,
    };
    let content = if 2 + name.len() + value.len() <= VALUE_MAX {
        Content::Here(value.to_vec())
    } else {
        Content::Long(Blob::write(tree, txn, value)?)
    };
    tree.put(txn, ItemKey::new(ItemKind::Xattr, id), &Xattr { name: name.to_vec(), content }.encode())
}

/// Remove `name`.
///
/// # Errors
/// `NoAttribute`.
pub fn remove(tree: &Tree, txn: &mut dyn BlockTxn, name: &[u8]) -> Result<()> {
    check_name(name)?;
    let (id, stored) = find(tree, txn, name)?.0.ok_or(Error::NoAttribute)?;
    if let Content::Long(blob) = stored.content {
        blob.free(tree, txn)?;
    }
    tree.remove(txn, ItemKey::new(ItemKind::Xattr, id)).map(|_| ())
}

/// All names, each followed by a zero byte.
pub fn list(tree: &Tree, src: &dyn BlockSource) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    for (_, stored) in all(tree, src)? {
        names.extend(stored.name);
        names.push(0);
    }
    Ok(names)
}

/// All attributes with their keys, long values not read.
pub fn all(tree: &Tree, src: &dyn BlockSource) -> Result<Vec<(u64, Xattr)>> {
    let mut found = Vec::new();
    let mut bad = None;
    let (from, end) = (ItemKey::new(ItemKind::Xattr, 0), ItemKey::new(ItemKind::Symlink, 0));
    tree.scan(src, from, Some(end), &mut |key, value| match Xattr::decode(value) {
        Ok(stored) => {
            found.push((key.id, stored));
            ControlFlow::Continue(())
        }
        Err(e) => {
            bad = Some(e);
            ControlFlow::Break(())
        }
    })?;
    bad.map_or(Ok(found), |what| Err(damaged(tree, what)))
}

/// Free what long values occupy, one attribute at a time. `true` when none is left.
pub fn free_one_long(tree: &Tree, txn: &mut dyn BlockTxn) -> Result<bool> {
    for (id, stored) in all(tree, txn)? {
        if let Content::Long(blob) = stored.content {
            blob.free(tree, txn)?;
            tree.remove(txn, ItemKey::new(ItemKind::Xattr, id))?;
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockNo, Generation, InodeNo, LockName};
    use crate::format::BlockKind;
    use crate::inode::{Attr, FileKind, Timestamp};
    use crate::txn::memory::MemoryTxn;

    fn fresh() -> (MemoryTxn, Tree) {
        let mut txn = MemoryTxn::new();
        let cover = LockName::Inode(InodeNo(1000));
        let block = txn.alloc_block(BlockKind::Inode, InodeNo(1000), cover, BlockNo(0)).unwrap();
        let tree = Tree { ino: InodeNo(block.0), cover };
        let attr = Attr::new(tree.ino, Generation(1), FileKind::Regular, 0o644, Timestamp::default());
        tree.create(&mut txn, &attr).unwrap();
        (txn, tree)
    }

    #[test]
    fn values_of_all_sizes_and_their_blocks() {
        let (mut txn, tree) = fresh();
        for size in [0, 1, 700, 980, 1000, 4032, 4033, 65536] {
            let value: Vec<u8> = (0..size).map(|i| (i * 7) as u8).collect();
            set(&tree, &mut txn, b"user.a", &value, SetHow::Either).unwrap();
            assert_eq!(get(&tree, &txn, b"user.a").unwrap(), value, "{size} bytes");
        }
        assert_eq!(set(&tree, &mut txn, b"user.a", &[0; 65537], SetHow::Either), Err(Error::TooBig));
        remove(&tree, &mut txn, b"user.a").unwrap();
        assert_eq!(txn.in_use(), 1);
    }

    #[test]
    fn create_and_replace_mean_it() {
        let (mut txn, tree) = fresh();
        assert_eq!(set(&tree, &mut txn, b"user.a", b"", SetHow::Replace), Err(Error::NoAttribute));
        set(&tree, &mut txn, b"user.a", b"1", SetHow::Create).unwrap();
        assert_eq!(set(&tree, &mut txn, b"user.a", b"2", SetHow::Create), Err(Error::Exists));
        set(&tree, &mut txn, b"security.b", b"2", SetHow::Either).unwrap();
        assert_eq!(list(&tree, &txn).unwrap().split(|b| *b == 0).filter(|n| !n.is_empty()).count(), 2);
        assert_eq!(get(&tree, &txn, b"user.none"), Err(Error::NoAttribute));
        assert!(matches!(get(&tree, &txn, b"system.other"), Err(Error::Unsupported(_))));
        assert!(matches!(set(&tree, &mut txn, b"user.", b"", SetHow::Either), Err(Error::Unsupported(_))));
    }

    #[test]
    fn a_thousand_attributes() {
        let (mut txn, tree) = fresh();
        let name = |i: u32| format!("user.attribute-{i}").into_bytes();
        for i in 0..1000 {
            set(&tree, &mut txn, &name(i), &i.to_le_bytes(), SetHow::Create).unwrap();
        }
        for i in 0..1000 {
            assert_eq!(get(&tree, &txn, &name(i)).unwrap(), i.to_le_bytes());
            remove(&tree, &mut txn, &name(i)).unwrap();
        }
        assert_eq!(txn.in_use(), 1);
    }

    #[test]
    fn damage_is_an_error() {
        let (mut txn, tree) = fresh();
        set(&tree, &mut txn, b"user.long", &[5; 5000], SetHow::Create).unwrap();
        let id = all(&tree, &txn).unwrap()[0].0;
        let good = tree.get(&txn, ItemKey::new(ItemKind::Xattr, id)).unwrap().unwrap();
        // Not the form byte: a descriptor taken for a value is only found by the page's crc.
        for at in 1..good.len() {
            for flip in [1u8, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                tree.put(&mut txn, ItemKey::new(ItemKind::Xattr, id), &bad).unwrap();
                assert!(get(&tree, &txn, b"user.long").is_err(), "byte {at} changed by {flip:02x}");
            }
        }
        for len in 0..good.len() {
            let _ = Xattr::decode(&good[..len]);
        }
        tree.put(&mut txn, ItemKey::new(ItemKind::Xattr, id), &good).unwrap();
        assert!(get(&tree, &txn, b"user.long").is_ok());
        // A block of the value that belongs to somebody else is neither read nor freed.
        let Content::Long(blob) = all(&tree, &txn).unwrap()[0].1.content.clone() else { panic!("not long") };
        let block = std::sync::Arc::make_mut(txn.blocks.get_mut(&blob.blocks[1]).unwrap());
        block.header_mut().owner.set(77);
        assert!(get(&tree, &txn, b"user.long").is_err());
        assert!(remove(&tree, &mut txn, b"user.long").is_err());
        assert!(txn.blocks.contains_key(&blob.blocks[1]));
    }

    #[test]
    fn reaping_long_values() {
        let (mut txn, tree) = fresh();
        for i in 0..40u32 {
            let name = format!("user.{i}").into_bytes();
            set(&tree, &mut txn, &name, &vec![1; 900 * i as usize], SetHow::Create).unwrap();
        }
        while !free_one_long(&tree, &mut txn).unwrap() {}
        while !tree.free_pages(&mut txn, 2).unwrap() {}
        assert_eq!(txn.in_use(), 1);
    }
}
