//! Targets of symbolic links: in an item, long ones in value blocks.
//!
//! Item value: 0 and the target, or 1 and a descriptor (`blob`).

use super::{Blob, ItemKey, ItemKind, Tree, VALUE_MAX};
use crate::base::{Error, Result};
use crate::txn::{BlockSource, BlockTxn};

const KEY: ItemKey = ItemKey { kind: ItemKind::Symlink, id: 0 };

impl Tree {
    /// The target.
    pub fn read_symlink(&self, src: &dyn BlockSource) -> Result<Vec<u8>> {
        let damaged = || Error::Damaged { inode: self.ino, what: "a symbolic link without a target".into() };
        let value = self.get(src, KEY)?.ok_or_else(damaged)?;
        match value.split_first() {
            Some((0, target)) => Ok(target.to_vec()),
            Some((1, descriptor)) => Blob::decode(descriptor).ok_or_else(damaged)?.read(self, src),
            _ => Err(damaged()),
        }
    }

    /// Set the target of a new link (at most 4095 bytes).
    pub fn write_symlink(&self, txn: &mut dyn BlockTxn, target: &[u8]) -> Result<()> {
        let mut value = vec![0];
        if target.len() < VALUE_MAX {
            value.extend_from_slice(target);
        } else {
            value[0] = 1;
            value.extend(Blob::write(self, txn, target)?.encode());
        }
        self.insert(txn, KEY, &value)
    }

    /// Free what a link's target occupies outside the tree.
    pub fn free_symlink(&self, txn: &mut dyn BlockTxn) -> Result<()> {
        if let Some(value) = self.get(txn, KEY)?
            && let Some((1, descriptor)) = value.split_first()
            && let Some(blob) = Blob::decode(descriptor)
        {
            blob.free(self, txn)?;
            self.remove(txn, KEY)?;
        }
        Ok(())
    }
}
