//! A small volume in memory, and an audit of its groups that shares no code with the allocator.

mod cases;
mod giving_up;
mod model;
mod retyping;
mod trimming;

use super::*;
use crate::base::{AgNo, BLOCK_SIZE, BlockNo, Error, Generation, InodeNo, LockName, Result, SlotId, Version};
use crate::device::BlockDevice;
use crate::format::group::{self, ChunkEntry, ChunkKind, ChunkPage, GroupHeader};
use crate::format::journal::JournalPlace;
use crate::format::layout::{CHUNK_BLOCKS, CHUNKS_PER_PAGE};
use crate::format::{Block, BlockKind, Geometry};
use crate::journal::{Journal, JournalConfig};
use crate::store::Store;
use crate::txn::{BlockRun, BlockTxn};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const FORMAT: u64 = 0x5ea1;

impl Transaction {
    /// A new inode without cluster locks.
    fn alloc_inode(&mut self, near: BlockNo) -> Result<(InodeNo, Generation)> {
        let (at, block) = self.take_meta(near)?;
        let ino = InodeNo(block.0);
        let version = self.create(at, block, BlockKind::Inode, ino, LockName::Inode(ino))?;
        Ok((ino, Generation(version.0)))
    }
}

/// Sparse memory, with a log of what was done to it.
#[derive(Default)]
struct MemoryDevice {
    blocks: Mutex<BTreeMap<u64, Box<[u8; BLOCK_SIZE]>>>,
    size: u64,
    events: Mutex<Vec<Event>>,
    /// Blocks that it does not take.
    refuses: Mutex<std::ops::Range<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// First block and number of blocks; all zeros?
    Write(u64, u64, bool),
    Flush,
    /// First block and number of blocks.
    Discard(u64, u64),
}

impl BlockDevice for MemoryDevice {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let blocks = self.blocks.lock();
        for (i, page) in buf.chunks_mut(BLOCK_SIZE).enumerate() {
            match blocks.get(&(offset / BLOCK_SIZE as u64 + i as u64)) {
                Some(b) => page.copy_from_slice(&b[..page.len()]),
                None => page.fill(0),
            }
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        assert_eq!(data.len() % BLOCK_SIZE, 0);
        let first = offset / BLOCK_SIZE as u64;
        let (refused, end) = (self.refuses.lock().clone(), first + (data.len() / BLOCK_SIZE) as u64);
        if first < refused.end && end > refused.start {
            return Err(Error::Io {
                op: "write",
                offset,
                length: data.len() as u64,
                cause: "refused".into(),
            });
        }
        let mut blocks = self.blocks.lock();
        for (i, page) in data.chunks(BLOCK_SIZE).enumerate() {
            blocks.insert(first + i as u64, Box::new(page.try_into().unwrap()));
        }
        let zeros = data.iter().all(|b| *b == 0);
        self.events.lock().push(Event::Write(first, (data.len() / BLOCK_SIZE) as u64, zeros));
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.events.lock().push(Event::Flush);
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let block = BLOCK_SIZE as u64;
        self.events.lock().push(Event::Discard(offset / block, length / block));
        Ok(())
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn logical_block(&self) -> u32 {
        4096
    }
    fn physical_block(&self) -> u32 {
        4096
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

/// Keeps deferred frees in memory.
#[derive(Default)]
struct Keeper(Mutex<Vec<DeferredFree>>);

impl DeferredFrees for Keeper {
    fn add(&self, _txn: &mut dyn BlockTxn, frees: &[DeferredFree]) -> Result<()> {
        assert_eq!(DeferredFree::decode(&DeferredFree::encode(frees)).unwrap(), frees);
        self.0.lock().extend_from_slice(frees);
        Ok(())
    }
    fn log_blocks(&self) -> u32 {
        4
    }
}

/// Passes tickets up to a number that the test sets, and forgets those up to another.
#[derive(Default)]
struct Tickets {
    asked: AtomicU64,
    passed: AtomicU64,
    forgotten: AtomicU64,
}

impl DrainOracle for Tickets {
    fn ask(&self) -> Option<u64> {
        Some(self.asked.fetch_add(1, Ordering::Relaxed) + 1)
    }
    fn look(&self, ticket: u64) -> TicketState {
        if ticket <= self.forgotten.load(Ordering::Relaxed) {
            TicketState::Unknown
        } else if ticket <= self.passed.load(Ordering::Relaxed) {
            TicketState::Passed
        } else {
            TicketState::Waits
        }
    }
}

struct Rig {
    device: Arc<MemoryDevice>,
    geometry: Geometry,
    store: Arc<Store>,
    journal: Arc<Journal>,
    alloc: Arc<Allocator>,
    keeper: Arc<Keeper>,
    tickets: Arc<Tickets>,
}

impl Rig {
    /// `groups` of `chunks` chunks; the journal fills chunks 1.. of group 0 (so much of it that the
    /// group keeps `chunks - 5`). Nothing is granted.
    fn new(groups: u32, chunks: u64) -> Rig {
        let mut geometry = Geometry {
            total_blocks: 0,
            max_slots: 2,
            cell_pitch: 4096,
            ledger_pages: 1,
            ag_blocks: chunks * CHUNK_BLOCKS,
            ag_count: groups,
        };
        geometry.total_blocks = geometry.groups_start().0 + u64::from(groups) * geometry.ag_blocks;
        let size = geometry.total_blocks * BLOCK_SIZE as u64;
        let device = Arc::new(MemoryDevice { size, ..MemoryDevice::default() });
        let journal_chunks = 4;
        for ag in (0..groups).map(AgNo) {
            let own = geometry.ag_own_chunks(ag);
            let system = own + if ag.0 == 0 { journal_chunks } else { 0 };
            format_group(&*device, &geometry, ag, system);
        }
        let start = group::chunk_start(&geometry, AgNo(0), geometry.ag_own_chunks(AgNo(0)));
        let blocks = journal_chunks * CHUNK_BLOCKS;
        let place = JournalPlace { format_id: FORMAT, slot: SlotId(0), start, blocks };
        for (i, block) in place.empty().iter().enumerate() {
            device.write(start.plus(i as u64).byte(), &block.0).unwrap();
        }
        let store = Store::new(device.clone(), FORMAT, geometry, 4 << 20);
        let config = JournalConfig { background: false, ..JournalConfig::default() };
        let journal = Journal::open(store.clone(), (start, blocks), SlotId(0), config).unwrap();
        let (keeper, tickets) = (Arc::<Keeper>::default(), Arc::<Tickets>::default());
        let alloc = Allocator::with_oracle(store.clone(), journal.clone(), keeper.clone(), tickets.clone());
        Rig { device, geometry, store, journal, alloc, keeper, tickets }
    }

    fn granted(groups: u32, chunks: u64) -> Rig {
        let rig = Rig::new(groups, chunks);
        (0..groups).for_each(|ag| rig.alloc.ag_granted(AgNo(ag)));
        rig
    }

    fn reserve(&self, data: u64, meta: u32) -> Result<Reservation> {
        self.alloc.reserve(Want { data, meta, near: None })
    }

    /// Give a group up the way a demotion does.
    fn give_up(&self, ag: AgNo) {
        assert_eq!(self.alloc.ag_demote(ag), DemoteReady::Ready);
        self.journal.release(&BTreeSet::from([LockName::Ag(ag)])).unwrap();
        self.alloc.ag_released(ag);
        self.store.drop_cover(LockName::Ag(ag));
    }

    /// A finished transaction with `meta` new inodes and `data` blocks.
    fn create(&self, meta: u32, data: u64) -> (Vec<InodeNo>, Vec<BlockRun>) {
        let mut res = self.reserve(data, meta).unwrap();
        let pending = self.alloc.take_data(&mut res, data, None).unwrap();
        let runs = pending.runs().to_vec();
        let mut txn = self.alloc.begin_with(res, meta, pending).unwrap();
        let inodes = (0..meta).map(|_| txn.alloc_inode(BlockNo(0)).unwrap().0).collect();
        txn.finish().unwrap();
        (inodes, runs)
    }

    fn free(&self, inodes: &[InodeNo], runs: &[BlockRun]) -> Result<()> {
        let mut txn = self.alloc.begin_for_free(inodes.len() as u32)?;
        for ino in inodes {
            txn.free_block(ino.block(), BlockKind::Inode, LockName::Inode(*ino))?;
        }
        runs.iter().try_for_each(|r| txn.free_data(*r))?;
        txn.finish().map(|_| ())
    }

    /// What the newest images of a group say, and that they agree with themselves.
    fn audit_group(&self, ag: AgNo) -> Audit {
        let g = &self.geometry;
        let lock = LockName::Ag(ag);
        let header = self.store.read(g.ag_header(ag), BlockKind::GroupHeader, lock).unwrap();
        let h = *header.body_as::<GroupHeader>();
        let mut audit = Audit { vclock: h.vclock.get(), ..Audit::default() };
        let mut counts = [0u64; 3];
        for chunk in 0..g.ag_chunks(ag) {
            let entry = if chunk < h.init_chunks.get().into() {
                let place = g.chunk_page(ag, chunk / CHUNKS_PER_PAGE);
                let page = self.store.read(place, BlockKind::ChunkPage, lock).unwrap();
                page.body_as::<ChunkPage>().entries[(chunk % CHUNKS_PER_PAGE) as usize]
            } else {
                ChunkEntry::empty(ChunkKind::Free)
            };
            let free = 512 - entry.used();
            assert_eq!(u32::from(entry.free.get()), free, "group {ag}, chunk {chunk}");
            let start = group::chunk_start(g, ag, chunk).0;
            let used = (0..512).filter(|i| entry.is_used(*i)).map(|i| BlockNo(start + i as u64));
            let kind = ChunkKind::from_raw(entry.kind).unwrap();
            match kind {
                ChunkKind::Free => counts[0] += 1,
                ChunkKind::Data => {
                    counts[1] += u64::from(free);
                    audit.data.extend(used);
                }
                ChunkKind::Metadata | ChunkKind::Draining => {
                    counts[2] += u64::from(free);
                    audit.meta.extend(used);
                }
                ChunkKind::System => assert_eq!(free, 0),
            }
            assert!(kind != ChunkKind::Draining || free == 512);
            audit.kinds.push(kind);
        }
        assert_eq!([h.free_chunks.get(), h.free_data.get(), h.free_meta.get()], counts, "group {ag}");
        if let Some(c) = self.alloc.counts(ag) {
            assert_eq!([c.free_chunks, c.free_data, c.free_meta], counts, "group {ag}");
        }
        audit
    }

    fn audit(&self) -> Audit {
        let mut all = Audit::default();
        for ag in (0..self.geometry.ag_count).map(AgNo) {
            let a = self.audit_group(ag);
            all.meta.extend(a.meta);
            all.data.extend(a.data);
        }
        all
    }
}

#[derive(Default)]
struct Audit {
    vclock: u64,
    kinds: Vec<ChunkKind>,
    meta: BTreeSet<BlockNo>,
    data: BTreeSet<BlockNo>,
}

impl Audit {
    fn count(&self, kind: ChunkKind) -> usize {
        self.kinds.iter().filter(|k| **k == kind).count()
    }
}

fn put(device: &dyn BlockDevice, mut block: Block) {
    block.seal();
    device.write(BlockNo(block.header().block.get()).byte(), &block.0).unwrap();
}

fn format_group(device: &dyn BlockDevice, g: &Geometry, ag: AgNo, system: u64) {
    let mut header = group::header_block(FORMAT, g, ag, Version(1));
    let h = header.body_as_mut::<GroupHeader>();
    h.vclock.set(1);
    h.init_chunks.set(system as u32);
    h.free_chunks.set(g.ag_chunks(ag) - system);
    put(device, header);
    let mut page = group::page_block(FORMAT, g, ag, 0, Version(1));
    page.body_as_mut::<ChunkPage>().entries[..system as usize].fill(ChunkEntry::full(ChunkKind::System));
    put(device, page);
}

fn blocks(runs: &[BlockRun]) -> impl Iterator<Item = BlockNo> + '_ {
    runs.iter().flat_map(|r| (0..r.blocks).map(|i| r.start.plus(i)))
}
