//! Inodes: attributes, the item tree, long values. Level 7.
mod attr;
mod blob;
mod symlink;
mod tree;

pub use crate::format::item::{ItemKey, ItemKind, VALUE_MAX};
pub use attr::{Attr, FileKind, Timestamp};
pub use blob::{BLOB_BYTES_MAX, Blob};
pub use tree::{INLINE_MAX, Tree, init_inode, tree_costs};

#[cfg(test)]
mod tests;
