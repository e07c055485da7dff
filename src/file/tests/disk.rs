//! A data device in memory that is honest about what a power cut does, and what else the tests share.

use super::super::*;
use crate::base::{BLOCK_SIZE, BlockNo, Error, Generation, InodeNo, LockName, Result, Version};
use crate::format::{Block, BlockKind, Geometry};
use crate::inode::{Attr, FileKind, Timestamp, Tree};
use crate::txn::memory::MemoryTxn;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What never written and freed blocks hold.
pub const FOREIGN: u8 = 0xEE;
pub const INO: InodeNo = InodeNo(700);

pub type Blocks = BTreeMap<BlockNo, Arc<Block>>;
type Bytes = [u8; BLOCK_SIZE];

/// Data blocks: what was durable at the last sync, the writes since, and what comes of both.
#[derive(Default, Clone)]
struct DiskState {
    base: BTreeMap<u64, Bytes>,
    log: Vec<(u64, Bytes)>,
    newest: BTreeMap<u64, Bytes>,
}

#[derive(Default)]
pub struct Disk {
    state: Mutex<DiskState>,
    /// Writes fail.
    pub fail: Mutex<bool>,
    /// The length of each write.
    pub writes: Mutex<Vec<u64>>,
}

impl Disk {
    pub fn sync(&self) {
        let state = &mut *self.state.lock();
        state.log.clear();
        state.base.clone_from(&state.newest);
    }

    pub fn log_len(&self) -> usize {
        self.state.lock().log.len()
    }

    /// Another file writes there.
    pub fn spoil(&self, block: u64) {
        let state = &mut *self.state.lock();
        state.base.insert(block, [FOREIGN; BLOCK_SIZE]);
        state.newest.insert(block, [FOREIGN; BLOCK_SIZE]);
    }

    /// The disk after a power cut: the first `sure` writes since the sync and some of the others.
    pub fn crashed(&self, sure: usize, rng: &mut StdRng) -> Disk {
        let state = self.state.lock();
        let mut base = state.base.clone();
        base.extend(state.log.iter().enumerate().filter(|(i, _)| *i < sure || rng.random()).map(|(_, w)| *w));
        let state = DiskState { newest: base.clone(), base, log: Vec::new() };
        Disk { state: Mutex::new(state), ..Disk::default() }
    }
}

impl DataDevice for Disk {
    fn read_data(&self, start: BlockNo, buf: &mut [u8]) -> Result<()> {
        let state = self.state.lock();
        for (i, to) in buf.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            to.copy_from_slice(state.newest.get(&(start.0 + i as u64)).unwrap_or(&[FOREIGN; BLOCK_SIZE]));
        }
        Ok(())
    }

    fn write_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        if *self.fail.lock() {
            return Err(Error::Busy("the test says so".into()));
        }
        self.writes.lock().push(data.len() as u64);
        let state = &mut *self.state.lock();
        for (i, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
            let write = (start.0 + i as u64, block.try_into().unwrap());
            state.log.push(write);
            state.newest.insert(write.0, write.1);
        }
        Ok(())
    }
}

pub fn geometry() -> Geometry {
    Geometry {
        total_blocks: 1 << 20,
        max_slots: 4,
        cell_pitch: 4096,
        ledger_pages: 1,
        ag_blocks: 1 << 16,
        ag_count: 10,
    }
}

pub fn tree() -> Tree {
    Tree::of(INO)
}

pub fn copy(blocks: &Blocks, next: u64) -> MemoryTxn {
    MemoryTxn { blocks: blocks.clone(), next, ..MemoryTxn::default() }
}

/// Metadata with one empty file in it.
pub fn empty_file() -> (MemoryTxn, Attr) {
    let mut meta = MemoryTxn::new();
    let block = Block::init(1, INO.block(), BlockKind::Inode, INO.0, LockName::Inode(INO), Version(1));
    meta.blocks.insert(INO.block(), Arc::new(block));
    let attr = Attr::new(INO, Generation(1), FileKind::Regular, 0o644, Timestamp::default());
    tree().create(&mut meta, &attr).unwrap();
    (meta, attr)
}

pub fn assert_same(got: &[u8], want: &[u8], off: u64) {
    assert_eq!(got.len(), want.len());
    if let Some(i) = (0..got.len()).find(|i| got[*i] != want[*i]) {
        panic!("byte {} is {} and must be {}", off + i as u64, got[i], want[i]);
    }
}
