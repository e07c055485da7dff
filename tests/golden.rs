//! Golden bytes: one record of each kind, held byte for byte in `tests/golden/v1`.
//!
//! A difference means that older volumes would be misread. If the change is meant, follow the rule at
//! the head of docs/FORMAT.md first; then `SHOAL_GOLDEN=write cargo test --test golden` renews them.

use shoal::base::*;
use shoal::dir::Directory;
use shoal::format::block::{Block, BlockKind};
use shoal::format::cluster::inbox::{self, Entry, EntryKind, encode_register};
use shoal::format::cluster::lobby::ClaimKind;
use shoal::format::cluster::view::{Adopter, SlotState, SlotView, View};
use shoal::format::cluster::{Ballot, Claim, Heartbeat, LedgerEntry, LedgerPage, Stamp, heartbeat};
use shoal::format::extent::Extent;
use shoal::format::group::{self, ChunkEntry, ChunkKind, ChunkPage, GroupHeader};
use shoal::format::inode::ROOT_PAGE;
use shoal::format::item::{ItemKey, ItemKind, PageMut};
use shoal::format::journal::{JournalPlace, TxnEntry};
use shoal::format::superblock::{Superblock, TimingProfile};
use shoal::format::volume::{SlotExtents, Volume};
use shoal::format::{Geometry, codec};
use shoal::inode::{Attr, Blob, FileKind, Timestamp, Tree, init_inode};
use shoal::txn::{BlockRun, BlockSource, BlockTxn};
use shoal::xattr;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use zerocopy::IntoBytes;

const ID: u64 = 0x1122_3344_5566_7788;

fn geometry() -> Geometry {
    Geometry {
        total_blocks: 16384,
        max_slots: 4,
        cell_pitch: 512,
        ledger_pages: 1,
        ag_blocks: 2048,
        ag_count: 8,
    }
}

/// Bytes as lines of sixteen; lines of zeros are left out.
fn dump(bytes: &[u8]) -> String {
    let mut out = format!("{} bytes\n", bytes.len());
    for (i, line) in bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|b| *b != 0)) {
        write!(out, "{:04x}:", i * 16).unwrap();
        line.iter().for_each(|b| write!(out, " {b:02x}").unwrap());
        out.push('\n');
    }
    out
}

fn holds(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name);
    let now = dump(bytes);
    if std::env::var_os("SHOAL_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(golden, now, "{name}: the bytes on the disk have changed");
}

fn superblock() -> Superblock {
    Superblock {
        format_id: ID,
        uuid: *b"0123456789abcdef",
        hash_seed: *b"fedcba9876543210",
        compat: 1,
        ro_compat: 0,
        incompat: 0,
        geometry: geometry(),
        timing: TimingProfile::San,
        created: 1_700_000_000,
        root_inode: 1024,
    }
}

#[test]
fn superblock_and_volume() {
    holds("superblock", &superblock().to_block(BlockNo(4094)).0);
    let slot = |start, inode| SlotExtents {
        journal_start: BlockNo(start),
        journal_blocks: 1024,
        inode: InodeNo(inode),
    };
    let volume = Volume {
        sequence: 3,
        features: 1,
        total_blocks: 16384,
        ag_count: 8,
        timing: TimingProfile::Test,
        label: "schön".into(),
        slots: vec![slot(1536, 1025), slot(7680, 7168)],
    };
    let (place, block) = volume.to_block(ID);
    assert_eq!(place, BlockNo(2));
    assert_eq!(Volume::from_block(&block, &superblock(), place).unwrap(), volume);
    holds("volume", &block.0);
}

#[test]
fn groups() {
    let g = geometry();
    let mut header = group::header_block(ID, &g, AgNo(1), Version(9));
    let h = header.body_as_mut::<GroupHeader>();
    h.vclock.set(12);
    h.init_chunks.set(4);
    h.free_chunks.set(1);
    h.free_data.set(511);
    h.free_meta.set(510);
    header.seal();
    holds("group_header", &header.0);
    let mut page = group::page_block(ID, &g, AgNo(1), 0, Version(9));
    let entries = &mut page.body_as_mut::<ChunkPage>().entries;
    let kinds = [ChunkKind::System, ChunkKind::Metadata, ChunkKind::Data, ChunkKind::Draining];
    for (entry, kind) in entries.iter_mut().zip(kinds) {
        *entry = ChunkEntry::empty(kind);
    }
    entries[0] = ChunkEntry::full(ChunkKind::System);
    entries[1].set(0, true);
    entries[1].set(9, true);
    entries[1].free.set(510);
    entries[2].set(511, true);
    entries[2].free.set(511);
    page.seal();
    holds("chunk_page", &page.0);
}

#[test]
fn inodes_and_items() {
    let ino = InodeNo(1024);
    let time = |seconds| Timestamp { seconds, nanos: 999_999_999 };
    let attr = Attr {
        mode: 0o6755,
        uid: 1,
        gid: 2,
        nlink: 3,
        size: 4,
        blocks: 5,
        rdev: 6,
        parent: InodeNo(7),
        truncating: Some(8),
        atime: time(-1),
        mtime: time(10),
        ctime: time(11),
        btime: time(12),
        project: 13,
        ..Attr::new(ino, Generation(14), FileKind::Directory, 0, time(0))
    };
    let mut block = Block::init(ID, ino.block(), BlockKind::Inode, ino.0, LockName::Inode(ino), Version(14));
    init_inode(&mut block, &attr.to_disk());
    let extent =
        Extent { logical: 3, physical: BlockNo(5000), blocks: 17, unwritten: true, shared: true }.encode();
    let items = [
        (ItemKey::new(ItemKind::Inline, 0), b"inline data".as_slice()),
        (ItemKey::new(ItemKind::Extent, 3), &extent),
        (ItemKey::new(ItemKind::Dirent, 0x0123_4567_89ab_cd00), b""),
    ];
    PageMut::new(&mut block.0[ROOT_PAGE..]).rebuild(0, items.into_iter().map(|(k, v)| (k.into(), v)));
    block.seal();
    holds("inode", &block.0);
    let mut page =
        Block::init(ID, BlockNo(1100), BlockKind::TreePage, 1024, LockName::Inode(ino), Version(2));
    let lowest = shoal::format::item::Key::LOWEST;
    let child = |n: u64| n.to_le_bytes();
    let children = [(lowest, child(1101)), (ItemKey::new(ItemKind::Dirent, 77).into(), child(1102))];
    PageMut::new(page.body_mut()).rebuild(1, children.iter().map(|(k, v)| (*k, v.as_slice())));
    page.seal();
    holds("tree_page", &page.0);
    let mut tombstone =
        Block::init(ID, BlockNo(1101), BlockKind::Free, 1, LockName::Ag(AgNo(1)), Version(15));
    tombstone.seal();
    holds("tombstone", &tombstone.0);
}

/// One block and what a small change of it needs.
struct OneBlock(Arc<Block>);

impl BlockSource for OneBlock {
    fn read(&self, _: BlockNo, _: BlockKind, _: LockName) -> Result<Arc<Block>> {
        Ok(self.0.clone())
    }
}

impl BlockTxn for OneBlock {
    fn modify(
        &mut self,
        _: BlockNo,
        _: BlockKind,
        _: LockName,
        change: &mut dyn FnMut(&mut Block),
    ) -> Result<()> {
        change(Arc::make_mut(&mut self.0));
        Ok(())
    }
    fn alloc_block(&mut self, _: BlockKind, _: InodeNo, _: LockName, _: BlockNo) -> Result<BlockNo> {
        Err(Error::NoSpace)
    }
    fn free_block(&mut self, _: BlockNo, _: BlockKind, _: LockName) -> Result<()> {
        Err(Error::NoSpace)
    }
    fn free_data(&mut self, _: BlockRun) -> Result<()> {
        Err(Error::NoSpace)
    }
}

/// Hashes, keys and values of names: what must be found again by every later version.
#[test]
fn names_and_attributes() {
    let ino = InodeNo(1024);
    let tree = Tree::of(ino);
    let block = Block::init(ID, ino.block(), BlockKind::Inode, ino.0, LockName::Inode(ino), Version(14));
    let mut txn = OneBlock(Arc::new(block));
    let now = Timestamp { seconds: 1, nanos: 2 };
    tree.create(&mut txn, &Attr::new(ino, Generation(14), FileKind::Directory, 0o755, now)).unwrap();
    let directory = Directory { tree, seed: b"fedcba9876543210" };
    for (name, kind) in [("file", FileKind::Regular), ("a longer name", FileKind::Symlink)] {
        directory.insert(&mut txn, name.as_bytes(), InodeNo(2000), Generation(7), kind).unwrap();
    }
    xattr::set(&tree, &mut txn, b"user.colour", b"blue", xattr::SetHow::Either).unwrap();
    tree.write_symlink(&mut txn, b"../target").unwrap();
    let mut block = (*txn.0).clone();
    block.seal();
    holds("inode_names", &block.0);
    let blob = Blob { length: 4033, crc: 0xdead_beef, blocks: vec![BlockNo(1100), BlockNo(1101)] };
    holds("blob_descriptor", &blob.encode());
}

#[test]
fn journals() {
    let p = JournalPlace { format_id: ID, slot: SlotId(3), start: BlockNo(1536), blocks: 1024 };
    holds("journal_header", &p.header(9, TxnId(8), 7).0);
    holds("journal_txn_header", &p.txn_header(TxnId(8), 7, 5000, 2));
    holds("journal_commit", &p.commit_block(TxnId(8), 7, 0xdead_beef).0);
    let image = Block::init(ID, BlockNo(1100), BlockKind::Inode, 1100, LockName::Slot(SlotId(2)), Version(6));
    holds("journal_txn_entry", TxnEntry::of(image.header(), 0x8000_0000_0000_0001).as_bytes());
}

fn view() -> View {
    let slots = [
        SlotState::Live { former: Some(SlotId(2)) },
        SlotState::Dead { adopter: SlotId(0) },
        SlotState::Clean { adopter: Adopter::NextJoiner },
        SlotState::Empty,
    ];
    View {
        epoch: Epoch(5),
        features: 1,
        protocol: 1,
        fence: 2,
        fenced: false,
        timing: None,
        slots: (10..).zip(slots).map(|(i, state)| SlotView { state, incarnation: Incarnation(i) }).collect(),
    }
}

#[test]
fn membership() {
    let g = geometry();
    let ballot = Ballot { mbal: 6, bal: 5, input: Some(View { epoch: Epoch(6), ..view() }), decided: view() };
    holds("ballot", &ballot.to_block(ID, &g, SlotId(1), Incarnation(10), 4).1.0);
    let mut ledger = LedgerPage::empty();
    ledger.entries[0] = LedgerEntry::Own(Token(3));
    ledger.entries[7] = LedgerEntry::Pass { token: Token(4), to: SlotId(2), incarnation_low: 5 };
    holds("ledger", &ledger.to_block(ID, &g, SlotId(1), 0, 7).1.0);
    let beat = Heartbeat {
        slot: SlotId(1),
        incarnation: Incarnation(2),
        counter: 3,
        host: [4; 16],
        boot: [5; 16],
        epoch: Epoch(6),
        ack: Epoch(7),
        excluded: 8,
        ledger_sequence: 9,
        refused: Some((Incarnation(10), heartbeat::Refusal::Protocol)),
        protocols: (1, 2),
        flags: heartbeat::FLAG_LEAVING,
        journal_head: 11,
        journal_tail: 12,
        free_data: 13,
        free_meta: 14,
        groups: 15,
        wall_ms: 16,
        file: heartbeat::DeviceFile { dev: 17, ino: 18, rdev: 19 },
        reservation_key: 20,
        fencing: None,
        replaying: None,
        name: "host-a".into(),
        device: "/dev/sdb".into(),
    };
    holds("heartbeat", &beat.to_cell(ID, &g));
    let claim = Claim {
        kind: ClaimKind::First,
        incarnation: Incarnation(1),
        sequence: 2,
        host: [3; 16],
        protocols: (1, 2),
        name: "host-b".into(),
        over: vec![Incarnation(4), Incarnation(5)],
        ..Claim::default()
    };
    holds("lobby", &claim.to_cell(ID, &g, 5));
}

#[test]
fn conversation() {
    let g = geometry();
    let entry = |i: u64| Entry {
        lock: LockName::Inode(InodeNo(1000 + i)),
        kind: EntryKind::Grant,
        mode: Mode::S,
        held: Mode::N,
        cap: Mode::X,
        flags: 1,
        token: Token(2),
        number: 3,
        seq: i,
    };
    let stamp = Stamp { slot: SlotId(1), incarnation: Incarnation(2), sequence: 3 };
    let entries: Vec<Entry> = (0..12).map(entry).collect();
    let image = encode_register(ID, &g, SlotId(0), Incarnation(4), stamp, &entries);
    holds("inbox_cell", &image.cell);
    holds("inbox_overflow", &image.overflow);
    holds("inbox_empty", &inbox::empty_cell(ID, &g, SlotId(0), SlotId(1)));
}

#[test]
fn variable_records() {
    let value = (1u8, Some(2u64), vec![3u16, 4], "five".to_string());
    holds("codec", &codec::encode_record(6, 7, &value).unwrap());
}

#[test]
fn values_of_a_slots_inode() {
    use shoal::format::value::{DeferredFree, encode_orphan};
    holds("orphan", &encode_orphan(Generation(0x0102_0304)));
    let frees = [
        DeferredFree { start: BlockNo(0x1111), blocks: 0x22, version: None },
        DeferredFree { start: BlockNo(0x3333), blocks: 1, version: Some(Version(0x44)) },
    ];
    holds("deferred_free", &DeferredFree::encode(&frees));
}
