//! A transaction on blocks in memory, for unit tests of the rooms above.

use super::{BlockRun, BlockSource, BlockTxn};
use crate::base::{BlockNo, Error, InodeNo, LockName, Result, Version};
use crate::format::{Block, BlockKind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks in memory with a bump allocator. Not crash-safe, no undo: test use only.
#[derive(Default)]
pub struct MemoryTxn {
    pub blocks: BTreeMap<BlockNo, Arc<Block>>,
    pub next: u64,
    pub freed: Vec<BlockNo>,
    pub freed_data: Vec<BlockRun>,
}

impl MemoryTxn {
    /// Allocates from block 1000 on.
    pub fn new() -> MemoryTxn {
        MemoryTxn { next: 1000, ..Default::default() }
    }

    /// Blocks allocated and not freed.
    pub fn in_use(&self) -> usize {
        self.blocks.len()
    }
}

impl BlockSource for MemoryTxn {
    fn read(&self, block: BlockNo, kind: BlockKind, _cover: LockName) -> Result<Arc<Block>> {
        let b = self.blocks.get(&block).ok_or_else(|| Error::corrupt(block, kind, kind, "nothing"))?;
        if b.kind() != Some(kind) {
            return Err(Error::corrupt(block, kind, kind, format_args!("{:?}", b.kind())));
        }
        Ok(b.clone())
    }
}

impl BlockTxn for MemoryTxn {
    fn modify(
        &mut self,
        block: BlockNo,
        kind: BlockKind,
        cover: LockName,
        change: &mut dyn FnMut(&mut Block),
    ) -> Result<()> {
        self.read(block, kind, cover)?;
        let b = Arc::make_mut(self.blocks.get_mut(&block).expect("just read"));
        change(b);
        let version = b.header().version.get();
        b.header_mut().version.set(version + 1);
        Ok(())
    }

    fn alloc_block(
        &mut self,
        kind: BlockKind,
        owner: InodeNo,
        cover: LockName,
        _near: BlockNo,
    ) -> Result<BlockNo> {
        let block = BlockNo(self.next);
        self.next += 1;
        self.blocks.insert(block, Arc::new(Block::init(1, block, kind, owner.0, cover, Version(self.next))));
        Ok(block)
    }

    fn free_block(&mut self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<()> {
        self.read(block, kind, cover)?;
        self.blocks.remove(&block);
        self.freed.push(block);
        Ok(())
    }

    fn free_data(&mut self, run: BlockRun) -> Result<()> {
        self.freed_data.push(run);
        Ok(())
    }
}
