//! Newtypes for every integer that is not a count, so that one cannot be passed for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id!(/// A 4096-byte block of the volume, counted from its first byte.
    BlockNo(u64));
id!(/// An inode number: the number of the block that holds the inode. 0 and 1 are never inodes.
    InodeNo(u64));
id!(/// Tells two lives of one inode number apart (the allocating group's vclock at its birth).
    Generation(u64));
id!(/// An allocation group, from 0.
    AgNo(u32));
id!(/// A host's place in the cluster, from 0 to the volume's slot count - 1.
    SlotId(u16));
id!(/// One mount of the volume: random, never 0 for a live one.
    Incarnation(u64));
id!(/// Number of a membership view; decided ones only grow.
    Epoch(u64));
id!(/// Number of a group's ownership in the ledgers; the highest one counts.
    Token(u64));
id!(/// Version of a metadata block: grows with every commit that contains it, over reuse and hosts.
    Version(u64));
id!(/// A journal transaction of this slot; grows over the life of the volume.
    TxnId(u64));

impl BlockNo {
    /// Byte offset of the block on the device.
    pub fn byte(self) -> u64 {
        self.0 * crate::base::BLOCK_SIZE as u64
    }
    /// The block `n` further on.
    pub fn plus(self, n: u64) -> BlockNo {
        BlockNo(self.0 + n)
    }
}

impl InodeNo {
    /// The block that holds the inode.
    pub fn block(self) -> BlockNo {
        BlockNo(self.0)
    }
}

/// Bytes in a block of the volume, whatever the device's logical block is.
pub const BLOCK_SIZE: usize = 4096;
