//! A small volume with a journal and blocks that hold a number, for the journal's tests.

use super::simdisk::SimDisk;
use shoal::base::{AgNo, BlockNo, InodeNo, LockName, SlotId, TxnId, Version};
use shoal::device::BlockDevice;
use shoal::format::journal::JournalPlace;
use shoal::format::{Block, BlockKind, Geometry};
use shoal::journal::{DeviceSink, Journal, JournalConfig, replay};
use shoal::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// The volume's format id.
pub const FORMAT: u64 = 0xabcd;
/// The slot whose journal is tested.
pub const SLOT: SlotId = SlotId(0);

/// A volume of three groups.
pub fn geometry() -> Geometry {
    Geometry {
        total_blocks: 65536,
        max_slots: 2,
        cell_pitch: 512,
        ledger_pages: 1,
        ag_blocks: 16384,
        ag_count: 3,
    }
}

/// The journal's place.
pub fn extent() -> (BlockNo, u64) {
    (geometry().ag_start(AgNo(0)).plus(512), 1024)
}

/// The n-th test block, in group 1.
pub fn block(n: u64) -> BlockNo {
    geometry().ag_start(AgNo(1)).plus(600 + n)
}

/// Each test block has a lock of its own.
pub fn cover(n: u64) -> LockName {
    LockName::Inode(InodeNo(block(n).0))
}

/// A disk with an empty journal and so many test blocks of value 0.
pub fn disk(blocks: u64) -> Arc<SimDisk> {
    let disk = SimDisk::new(geometry().total_blocks * 4096);
    let place = JournalPlace { format_id: FORMAT, slot: SLOT, start: extent().0, blocks: extent().1 };
    for (i, b) in place.empty().iter().enumerate() {
        disk.write(extent().0.plus(i as u64).byte(), &b.0).unwrap();
    }
    for n in 0..blocks {
        let mut b = Block::init(FORMAT, block(n), BlockKind::Inode, block(n).0, cover(n), Version(1));
        b.seal();
        disk.write(block(n).byte(), &b.0).unwrap();
    }
    disk
}

/// A store with a large cache, and the journal.
pub fn open_with(disk: &Arc<SimDisk>, config: JournalConfig) -> (Arc<Store>, Arc<Journal>) {
    let store = Store::new(disk.clone(), FORMAT, geometry(), 8 << 20);
    let journal = Journal::open(store.clone(), extent(), SLOT, config).unwrap();
    (store, journal)
}

/// Without background threads.
pub fn by_hand() -> JournalConfig {
    JournalConfig { background: false, ..Default::default() }
}

/// A transaction that adds one to a block.
pub fn bump(journal: &Arc<Journal>, n: u64) -> TxnId {
    let mut h = journal.begin(1).unwrap();
    h.modify(block(n), BlockKind::Inode, cover(n), &mut add_one).unwrap();
    h.finish()
}

/// The value grows; the rest of the block stays zeros.
pub fn add_one(b: &mut Block) {
    let v = value(b) + 1;
    b.body_mut()[..8].copy_from_slice(&v.to_le_bytes());
}

/// A test block's value.
pub fn value(b: &Block) -> u64 {
    u64::from_le_bytes(b.body()[..8].try_into().unwrap())
}

/// The value grows and fills the block.
pub fn fill_one(b: &mut Block) {
    let v = value(b) + 1;
    b.body_mut().chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&v.to_le_bytes()));
}

/// After a crash now, with every write kept: all blocks have this value.
pub fn crash_and_expect(disk: &Arc<SimDisk>, blocks: u64, want: u64) {
    let crashed = disk.snapshot();
    let store = Store::new(crashed, FORMAT, geometry(), 1 << 20);
    replay(&store, extent(), SLOT, &mut DeviceSink::new(&store, Duration::ZERO)).unwrap();
    for n in 0..blocks {
        assert_eq!(value(&store.read(block(n), BlockKind::Inode, cover(n)).unwrap()), want, "block {n}");
    }
}
