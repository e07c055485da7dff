//! Every on-disk record, its checksum and its place. Level 1. `docs/FORMAT.md` tells every byte.
pub mod block;
pub mod cluster;
pub mod codec;
pub mod extent;
pub mod foreign;
pub mod group;
pub mod inode;
pub mod item;
pub mod journal;
pub mod layout;
pub mod superblock;
pub mod value;
pub mod volume;

pub use block::{Block, BlockHeader, BlockKind};
pub use layout::Geometry;
