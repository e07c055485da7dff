//! Volumes made in image files, read back through the library's own readers.

use shoal::base::{AgNo, BLOCK_SIZE, BlockNo, LockName, SlotId, Token, TxnId};
use shoal::device::{Access, BlockDevice, FileDevice};
use shoal::format::cluster::{Adopter, Ballot, Claim, Heartbeat, LedgerEntry, LedgerPage, SlotState};
use shoal::format::group::{ChunkEntry, ChunkKind, ChunkPage, GroupHeader};
use shoal::format::inode::{DiskAttr, ROOT_PAGE};
use shoal::format::item::Page;
use shoal::format::journal::JournalPlace;
use shoal::format::layout::{
    BACKUP_SUPERBLOCK, CHUNK_BLOCKS, CHUNKS_PER_PAGE, LOBBY_CELLS, SUPERBLOCK, VOLUME_BLOCKS,
};
use shoal::format::superblock::{self, LoadedFrom, Superblock};
use shoal::format::volume::{self, Volume};
use shoal::format::{Block, BlockKind, Geometry};
use shoal_mkfs::{Options, make};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn image(size: u64) -> (tempfile::TempDir, FileDevice) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    FileDevice::create_image(&path, size).unwrap();
    let dev = FileDevice::open(&path, Access::Exclusive).unwrap();
    (dir, dev)
}

fn read(dev: &FileDevice, place: BlockNo) -> Block {
    let mut block = Block::zeroed();
    dev.read(place.byte(), &mut block.0).unwrap();
    block
}

fn cell(dev: &FileDevice, at: u64, pitch: u32) -> Vec<u8> {
    let mut bytes = vec![0; pitch as usize];
    dev.read(at, &mut bytes).unwrap();
    bytes
}

/// Everything a mount will read, read.
struct Check<'a> {
    dev: &'a FileDevice,
    sb: Superblock,
    volume: Volume,
    /// Blocks in use by something that was seen, metadata and system.
    seen: BTreeSet<u64>,
}

impl Check<'_> {
    fn all(dev: &FileDevice) -> Superblock {
        let (sb, from) = superblock::load(dev).unwrap();
        assert_eq!(from, LoadedFrom::Primary);
        let volume = volume::load(dev, &sb).unwrap();
        let mut c = Check { dev, sb, volume, seen: BTreeSet::new() };
        c.superblocks();
        c.coordination();
        c.inodes();
        c.journals();
        (0..c.geometry().ag_count).for_each(|ag| c.group(AgNo(ag)));
        c.sb
    }

    fn geometry(&self) -> Geometry {
        self.sb.geometry
    }

    fn superblocks(&mut self) {
        let places =
            [SUPERBLOCK, BACKUP_SUPERBLOCK].into_iter().chain(self.geometry().group_backup_superblock());
        for place in places {
            assert_eq!(Superblock::from_block(&read(self.dev, place), place).unwrap(), self.sb);
        }
        assert_eq!(self.volume.ag_count, self.geometry().ag_count);
        for place in VOLUME_BLOCKS {
            read(self.dev, place).verify(self.sb.format_id, place, BlockKind::Volume).unwrap();
        }
    }

    fn coordination(&self) {
        let (g, id, dev) = (self.geometry(), self.sb.format_id, self.dev);
        let with_journal = self.volume.slots.len() as u16;
        let mut owned = vec![0; g.ag_count as usize];
        for slot in (0..g.max_slots).map(SlotId) {
            let beat = cell(dev, g.heartbeat_cell(slot), g.cell_pitch);
            assert_eq!(Heartbeat::from_cell(&beat, id, &g, slot).unwrap().incarnation.0, 0);
            for copy in [0, 1] {
                let (ballot, _) =
                    Ballot::from_block(&read(dev, g.ballot(slot, copy)), id, &g, slot, copy).unwrap();
                let clean = SlotState::Clean { adopter: Adopter::NextJoiner };
                for (i, s) in ballot.decided.slots.iter().enumerate() {
                    let expected = if i < with_journal.into() { clean } else { SlotState::Empty };
                    assert_eq!(s.state, expected, "slot {i}");
                }
                for page in 0..g.ledger_pages {
                    let block = read(dev, g.ledger(slot, page, copy));
                    let (ledger, _) = LedgerPage::from_block(&block, id, &g, slot, page, copy).unwrap();
                    for ag in (0..g.ag_count).map(AgNo).filter(|ag| LedgerPage::place(*ag).0 == page) {
                        if ledger.entries[LedgerPage::place(ag).1] == LedgerEntry::Own(Token(1)) {
                            assert_eq!(ag.0 % u32::from(with_journal), u32::from(slot.0));
                            owned[ag.0 as usize] += 1;
                        }
                    }
                }
            }
        }
        assert!(owned.iter().all(|n| *n == 2), "each group has one owner, in both copies");
        for i in 0..LOBBY_CELLS {
            let claim = cell(dev, g.lobby_cell(i), g.cell_pitch);
            assert_eq!(Claim::from_cell(&claim, id, &g, i).unwrap().incarnation.0, 0);
        }
    }

    fn inode(&mut self, place: BlockNo, cover: LockName) -> DiskAttr {
        let block = read(self.dev, place);
        block.verify(self.sb.format_id, place, BlockKind::Inode).unwrap();
        assert_eq!((block.header().owner.get(), block.cover()), (place.0, Some(cover)));
        assert_eq!(Page::check(&block.0[ROOT_PAGE..]).unwrap().count(), 0);
        let attr = *block.body_as::<DiskAttr>();
        assert_eq!(attr.generation.get(), block.version().0);
        assert!(self.seen.insert(place.0));
        attr
    }

    fn inodes(&mut self) {
        let root = shoal::base::InodeNo(self.sb.root_inode);
        let attr = self.inode(root.block(), LockName::Inode(root));
        assert_eq!((attr.mode.get(), attr.nlink.get(), attr.parent.get()), (0o40755, 2, root.0));
        for (i, slot) in self.volume.slots.clone().iter().enumerate() {
            self.inode(slot.inode.block(), LockName::Slot(SlotId(i as u16)));
        }
    }

    fn journals(&mut self) {
        for (i, slot) in self.volume.slots.iter().enumerate() {
            let place = JournalPlace {
                format_id: self.sb.format_id,
                slot: SlotId(i as u16),
                start: slot.journal_start,
                blocks: slot.journal_blocks,
            };
            for copy in 0..2 {
                let header = place.read_header(&read(self.dev, slot.journal_start.plus(copy))).unwrap();
                assert_eq!(TxnId(header.tail_txn.get()), TxnId(1));
            }
            for b in slot.journal_start.0..slot.journal_start.0 + slot.journal_blocks {
                assert!(self.seen.insert(b), "journals overlap something at {b}");
            }
        }
    }

    fn entries(&self, ag: AgNo, init: u64) -> Vec<ChunkEntry> {
        let g = self.geometry();
        let pages = (0..init.div_ceil(CHUNKS_PER_PAGE)).map(|page| {
            let place = g.chunk_page(ag, page);
            let block = read(self.dev, place);
            block.verify(self.sb.format_id, place, BlockKind::ChunkPage).unwrap();
            block.body_as::<ChunkPage>().entries
        });
        pages.flatten().take(init as usize).collect()
    }

    fn group(&self, ag: AgNo) {
        let g = self.geometry();
        let place = g.ag_header(ag);
        let block = read(self.dev, place);
        block.verify(self.sb.format_id, place, BlockKind::GroupHeader).unwrap();
        let header = block.body_as::<GroupHeader>();
        let init = u64::from(header.init_chunks.get());
        assert!(init <= g.ag_chunks(ag));
        let entries = self.entries(ag, init);
        let mut free_chunks = g.ag_chunks(ag) - init;
        let mut free_meta = 0;
        for (i, entry) in entries.iter().enumerate() {
            assert_eq!(u32::from(entry.free.get()) + entry.used(), CHUNK_BLOCKS as u32);
            let blocks = self
                .seen
                .range(g.ag_start(ag).0 + i as u64 * CHUNK_BLOCKS..)
                .take_while(|b| **b < g.ag_start(ag).0 + (i as u64 + 1) * CHUNK_BLOCKS);
            for b in blocks.clone() {
                assert!(entry.is_used((b % CHUNK_BLOCKS) as usize), "block {b} is in use");
            }
            match ChunkKind::from_raw(entry.kind).unwrap() {
                ChunkKind::Free => free_chunks += 1,
                ChunkKind::Metadata => {
                    assert_eq!(blocks.count() as u32, entry.used());
                    free_meta += u64::from(entry.free.get());
                }
                ChunkKind::System => assert_eq!(entry.free.get(), 0),
                kind => panic!("{kind:?}"),
            }
        }
        assert_eq!((header.free_chunks.get(), header.free_meta.get()), (free_chunks, free_meta));
        assert_eq!(header.free_data.get(), 0);
        let highest = self.seen.iter().filter(|b| g.ag_of(BlockNo(**b)) == Some(ag)).filter_map(|b| {
            let block = read(self.dev, BlockNo(*b));
            (block.kind() == Some(BlockKind::Inode)).then(|| block.version().0)
        });
        assert!(highest.max().unwrap_or(0).max(block.version().0) <= header.vclock.get());
        if g.ag_of(BACKUP_SUPERBLOCK) == Some(ag) {
            let chunk = (BACKUP_SUPERBLOCK.0 - g.ag_start(ag).0) / CHUNK_BLOCKS;
            assert_eq!(entries[chunk as usize].kind, ChunkKind::System as u8);
        }
    }
}

#[test]
fn sizes_and_pitches() {
    for size in [64 * MIB, 65 * MIB + 12345, 200 * MIB, 512 * MIB, 1024 * MIB] {
        for pitch in [512, 4096] {
            let (_dir, dev) = image(size.next_multiple_of(4096));
            let options = Options { size: Some(size), cell_pitch: Some(pitch), ..Options::default() };
            let summary = make(&dev, &options).unwrap();
            let sb = Check::all(&dev);
            assert_eq!(sb.geometry, summary.layout.geometry);
            assert_eq!(sb.geometry.cell_pitch, pitch);
            assert_eq!(sb.geometry.total_blocks, size / BLOCK_SIZE as u64);
        }
    }
}

#[test]
fn sixteen_sparse_tebibytes_in_seconds() {
    // One block less: the longest file that ext4 has.
    let (dir, dev) = image((16 << 40) - 4096);
    let start = Instant::now();
    make(&dev, &Options::default()).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let used = std::fs::metadata(dir.path().join("image")).unwrap().blocks() * 512;
    assert!(used < 256 * MIB, "{} MiB were written", used / MIB);
    let (sb, _) = superblock::load(&dev).unwrap();
    assert_eq!(sb.geometry.ag_blocks, 1 << 24);
    Check::all(&dev);
}

#[test]
fn the_same_identity_is_the_same_volume() {
    let identity = shoal_mkfs::Identity { format_id: 7, uuid: [1; 16], hash_seed: [2; 16], created: 3 };
    let options = Options { identity: Some(identity), label: "twin".into(), ..Options::default() };
    let bytes = |junk: u8| {
        let (_dir, dev) = image(64 * MIB);
        let g = shoal_mkfs::dry_run(&dev, &options).unwrap().layout.geometry;
        dev.write(0, &vec![junk; g.groups_start().byte() as usize]).unwrap();
        make(&dev, &options).unwrap();
        let mut out = vec![0; g.groups_start().byte() as usize];
        dev.read(0, &mut out).unwrap();
        out
    };
    assert_eq!(bytes(0), bytes(0xff), "nothing of the old content is left in the regions");
}

#[test]
fn an_older_volume_does_not_speak() {
    let (_dir, dev) = image(512 * MIB);
    make(&dev, &Options { slots: Some(2), ..Options::default() }).unwrap();
    let (old, _) = superblock::load(&dev).unwrap();
    make(&dev, &Options { slots: Some(5), keep_content: true, ..Options::default() }).unwrap();
    let new = Check::all(&dev);
    assert_ne!(old.format_id, new.format_id);
    assert_ne!(old.uuid, new.uuid);
    assert_ne!(old.hash_seed, new.hash_seed);
}

/// A device that stops taking writes after a number of them, and cannot discard.
struct Dying<'a> {
    inner: &'a FileDevice,
    left: std::sync::atomic::AtomicI64,
}

impl BlockDevice for Dying<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> shoal::base::Result<()> {
        self.inner.read(offset, buf)
    }
    fn write(&self, offset: u64, data: &[u8]) -> shoal::base::Result<()> {
        if self.left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0 {
            return Err(shoal::base::Error::Device("dead".into()));
        }
        self.inner.write(offset, data)
    }
    fn flush(&self) -> shoal::base::Result<()> {
        self.inner.flush()
    }
    fn discard(&self, _: u64, _: u64) -> shoal::base::Result<()> {
        Err(shoal::base::Error::Unsupported("by the test"))
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn logical_block(&self) -> u32 {
        self.inner.logical_block()
    }
    fn physical_block(&self) -> u32 {
        self.inner.physical_block()
    }
    fn name(&self) -> String {
        self.inner.name()
    }
}

#[test]
fn a_cut_at_any_write_leaves_no_volume_or_a_whole_one() {
    let (_dir, dev) = image(64 * MIB);
    make(&dev, &Options::default()).unwrap();
    let (old, _) = superblock::load(&dev).unwrap();
    let (mut whole, mut backed) = (0, 0);
    for writes in 0.. {
        let dying = Dying { inner: &dev, left: writes.into() };
        let done = make(&dying, &Options { slots: Some(3), ..Options::default() });
        match superblock::load(&dev) {
            // Nothing but the primary is gone: the old volume is whole, and its backup stands in.
            Ok((sb, _)) if sb.format_id == old.format_id => assert!(writes <= 1, "{writes} writes"),
            Ok((_, LoadedFrom::Primary)) => {
                Check::all(&dev);
                whole += 1;
            }
            // Groups, regions and flush were complete before the first backup was written.
            Ok((_, LoadedFrom::Backup(_))) => backed += 1,
            Err(_) => {}
        }
        if done.is_ok() {
            break;
        }
    }
    assert!(whole == 1 && backed <= 2, "only complete runs make a volume: {whole}, {backed} by a backup");
}

/// The image of format version 1, as a checksum over all of it. If a change of the format is meant,
/// follow the rule at the head of docs/FORMAT.md first.
#[test]
fn the_golden_image() {
    let identity =
        shoal_mkfs::Identity { format_id: 7, uuid: [1; 16], hash_seed: [2; 16], created: 1_700_000_000 };
    for (pitch, golden) in [(512, 0x1eca_89dc_u32), (4096, 0xeea3_0dec)] {
        let (_dir, dev) = image(64 * MIB);
        let options = Options {
            identity: Some(identity),
            label: "golden".into(),
            cell_pitch: Some(pitch),
            ..Options::default()
        };
        make(&dev, &options).unwrap();
        let mut bytes = vec![0; 64 << 20];
        dev.read(0, &mut bytes).unwrap();
        let crc = shoal::format::block::crc32c(&bytes);
        assert_eq!(crc, golden, "pitch {pitch}: a new volume has other bytes (crc {crc:#010x})");
    }
}
