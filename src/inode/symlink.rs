//! Targets of symbolic links: in an item, long ones in value blocks.

use super::{Blob, ItemKey, ItemKind, Tree, VALUE_MAX};
use crate::base::{Error, Result};
use crate::format::value::Content;
use crate::txn::{BlockSource, BlockTxn};

const KEY: ItemKey = ItemKey { kind: ItemKind::Symlink, id: 0 };

impl Tree {
    /// The target.
    pub fn read_symlink(&self, src: &dyn BlockSource) -> Result<Vec<u8>> {
        let damaged = || Error::Damaged { inode: self.ino, what: "a symbolic link without a target".into() };
        let value = self.get(src, KEY)?.ok_or_else(damaged)?;
        match Content::decode_symlink(&value).ok_or_else(damaged)? {
            Content::Here(target) => Ok(target),
            Content::Long(blob) => blob.read(self, src),
        }
    }

    /// Set the target of a new link (at most 4095 bytes).
    pub fn write_symlink(&self, txn: &mut dyn BlockTxn, target: &[u8]) -> Result<()> {
        let content = if target.len() < VALUE_MAX {
            Content::Here(target.to_vec())
        } else {
            Content::Long(Blob::write(self, txn, target)?)
        };
        self.insert(txn, KEY, &content.encode_symlink())
    }

    /// Free what a link's target occupies outside the tree.
    pub fn free_symlink(&self, txn: &mut dyn BlockTxn) -> Result<()> {
        if let Some(value) = self.get(txn, KEY)?
            && let Some(Content::Long(blob)) = Content::decode_symlink(&value)
        {
            blob.free(self, txn)?;
            self.remove(txn, KEY)?;
        }
        Ok(())
    }
}
