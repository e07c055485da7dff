//! Inodes: attributes, the item tree, long values. Level 7.
//!
//! [`Tree`] is a sorted map of small items in the inode's own block, grown into a B+tree of blocks
//! when it must be. Directories, extended attributes and file extents are items of it. Nothing here
//! locks or logs: changes go through a [`crate::txn::BlockTxn`], whose undo covers every error.
mod attr;
mod blob;
mod insert;
mod remove;
mod symlink;
mod tree;

pub use crate::format::item::{ItemKey, ItemKind, VALUE_MAX};
pub use crate::format::value::{BLOB_BYTES_MAX, Blob, FileKind};
pub use attr::{Attr, Timestamp};
pub use tree::{Cost, INLINE_MAX, Tree, init_inode, tree_costs};

#[cfg(test)]
mod tests;
