//! Every on-disk record, its checksum and its place. Level 1. `docs/FORMAT.md` tells every byte.
pub mod block;
pub mod cluster;
pub mod layout;

pub use block::{Block, BlockHeader, BlockKind};
pub use layout::Geometry;
