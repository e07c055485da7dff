//! One way of damage per finding, at least.

use crate::volume::Damaged;
use shoal::base::{AgNo, BlockNo, Generation, InodeNo, SlotId, Token, TxnId};
use shoal::format::block::{Block, crc32c};
use shoal::format::cluster::{Ballot, LedgerEntry, LedgerPage, View};
use shoal::format::extent::Extent;
use shoal::format::group::{ChunkKind, ChunkPage, GroupHeader};
use shoal::format::inode::{ROOT_PAGE, TREE_PAGE};
use shoal::format::item::{ItemKey, ItemKind, Key, Page, PageMut};
use shoal::format::journal::JournalPlace;
use shoal::format::layout::{BACKUP_SUPERBLOCK, CHUNK_BLOCKS, CHUNKS_PER_PAGE, SUPERBLOCK, VOLUME_BLOCKS};
use shoal::format::value::{Content, DeferredFree, Dirent, FileKind, Xattr, encode_orphan, xattr_key};
use shoal::format::volume::Volume;
use shoal_fsck::Code;

type Case = (&'static str, Code, fn(&Damaged));

/// Every code is in it.
pub const ALL: &[Case] = &[
    ("primary superblock", Code::SuperblockDamaged, |d| d.rot(SUPERBLOCK)),
    ("fixed backup", Code::BackupDamaged, |d| d.rot(BACKUP_SUPERBLOCK)),
    ("group backup", Code::BackupDamaged, |d| d.rot(d.g.group_backup_superblock().unwrap())),
    ("another backup", Code::BackupDiffers, |d| {
        let other = shoal::format::superblock::Superblock { created: 1, ..d.sb.clone() };
        d.put(BACKUP_SUPERBLOCK, &other.to_block(BACKUP_SUPERBLOCK));
    }),
    ("a volume copy", Code::VolumeCopyDamaged, |d| d.rot(VOLUME_BLOCKS[0])),
    ("both volume copies", Code::VolumeCopyDamaged, |d| VOLUME_BLOCKS.iter().for_each(|b| d.rot(*b))),
    ("journals over each other", Code::SlotExtents, |d| {
        let mut volume: Volume = d.volume.clone();
        volume.slots[1].journal_start = volume.slots[0].journal_start;
        volume.sequence += 1;
        let (at, block) = volume.to_block(d.sb.format_id);
        d.put(at, &block);
    }),
    ("journal headers", Code::JournalHeader, |d| {
        let start = d.volume.slots[0].journal_start;
        (0..2).for_each(|i| smash(d, start.plus(i)));
    }),
    ("a committed transaction", Code::JournalDamaged, rotten_transaction),
    ("a heartbeat", Code::HeartbeatDamaged, |d| {
        leave(d);
        d.rot_byte(d.g.heartbeat_cell(SlotId(1)));
    }),
    ("a ballot", Code::BallotDamaged, |d| (0..2).for_each(|c| d.rot(d.g.ballot(SlotId(1), c)))),
    ("two views of one epoch", Code::ViewsDisagree, two_views),
    ("a ledger", Code::LedgerDamaged, |d| (0..2).for_each(|c| d.rot(d.g.ledger(SlotId(1), 0, c)))),
    ("two owners", Code::OwnerConflict, |d| both_own(d, Token(99))),
    ("an inbox cell", Code::CellDamaged, |d| {
        leave(d);
        d.rot_byte(d.g.inbox_cell(SlotId(0), SlotId(1)));
    }),
    ("a lobby cell", Code::CellDamaged, |d| {
        leave(d);
        d.rot_byte(d.g.lobby_cell(5));
    }),
    ("a group header", Code::GroupHeader, |d| d.rot(d.g.ag_header(AgNo(1)))),
    ("too many entries", Code::GroupHeader, |d| header(d, AgNo(1), |h| h.init_chunks.set(1000))),
    ("free data count", Code::GroupCounts, |d| header(d, AgNo(0), |h| h.free_data += 1)),
    ("a clock of the past", Code::GroupClock, |d| {
        let ag = d.g.ag_of(d.ino("big").block()).unwrap();
        header(d, ag, |h| h.vclock.set(1));
    }),
    ("a chunk page", Code::ChunkPage, |d| d.rot(d.g.chunk_page(AgNo(0), 0))),
    ("a chunk's free count", Code::ChunkEntry, |d| entry(d, d.ino("big").block(), |e, _| e.free += 1)),
    ("a chunk's type", Code::ChunkEntry, |d| entry(d, d.ino("big").block(), |e, _| e.kind = 77)),
    ("a journal's chunk as data", Code::BlockMisplaced, |d| {
        entry(d, d.volume.slots[1].journal_start, |e, _| e.kind = ChunkKind::Data as u8);
    }),
    ("a system chunk of nothing", Code::SystemChunk, |d| {
        entry(d, data_of(d, "big").physical, |e, _| e.kind = ChunkKind::System as u8);
    }),
    ("an inode block", Code::BlockDamaged, |d| d.rot(d.ino("sub/deep/small").block())),
    ("a leaked block", Code::BlockLeaked, |d| {
        entry(d, data_of(d, "big").physical, |e, _| mark(e, free_bit(e), true));
    }),
    ("an unmarked block", Code::BlockUnmarked, |d| {
        let at = data_of(d, "big").physical;
        entry(d, at, |e, i| mark(e, i, false));
    }),
    ("data of two files", Code::BlockShared, |d| {
        let mut stolen = data_of(d, "big");
        stolen.blocks = 1;
        let ino = d.ino("many/a name of some length 7");
        d.attr("many/a name of some length 7", |a| (a.size, a.blocks) = (4096, 1));
        insert(d, ino.block(), ItemKey::new(ItemKind::Extent, 0), &Extent { logical: 0, ..stolen }.encode());
    }),
    ("data outside the groups", Code::BlockMisplaced, |d| {
        let extent = Extent { physical: BlockNo(1), ..data_of(d, "big") };
        replace(d, d.ino("big").block(), ItemKind::Extent, |_| extent.encode().to_vec());
    }),
    ("a freed block that lives", Code::FreedAlive, |d| {
        let at = d.ino("sub/deep/small").block();
        entry(d, at, |e, i| mark(e, i, false));
    }),
    ("the root", Code::RootDamaged, |d| d.rot(BlockNo(d.sb.root_inode))),
    ("the root's parent", Code::RootDamaged, |d| {
        let other = d.ino("sub");
        d.attr("/", |a| a.parent = other);
    }),
    ("a time", Code::InodeDamaged, |d| {
        d.edit(d.ino("big").block(), |b| {
            b.body_as_mut::<shoal::format::inode::DiskAttr>().mtime.nanos.set(2_000_000_000);
        });
    }),
    ("a tree page", Code::TreeDamaged, |d| d.rot(child_of(d, "many"))),
    ("a page's keys", Code::TreeDamaged, |d| {
        d.edit(child_of(d, "many"), |b| {
            let last = Page::check(&b.0[TREE_PAGE..]).unwrap().count() - 1;
            PageMut::new(&mut b.0[TREE_PAGE..]).set_key(last, Key { kind: 5, id: u64::MAX });
        });
    }),
    ("old content in a page", Code::TreeDamaged, |d| d.edit(d.ino("short").block(), |b| b.0[1000] = 1)),
    ("an item of another kind", Code::ItemWrong, |d| {
        let value = Dirent::encode(InodeNo(5), Generation(1), FileKind::Regular, b"x");
        insert(d, d.ino("big").block(), ItemKey::new(ItemKind::Dirent, 256), &value);
    }),
    ("an extent of no length", Code::ItemWrong, |d| {
        replace(d, d.ino("big").block(), ItemKind::Extent, |_| vec![0; 24]);
    }),
    ("overlapping extents", Code::ExtentsOverlap, |d| {
        let mut first = data_of(d, "big");
        first.logical = 3;
        insert(d, d.ino("big").block(), ItemKey::new(ItemKind::Extent, 3), &first.encode());
    }),
    ("a block count", Code::BlocksWrong, |d| d.attr("big", |a| a.blocks += 3)),
    ("data longer than the file", Code::InlineWrong, |d| d.attr("sub/deep/small", |a| a.size = 3)),
    ("a target's length", Code::SymlinkWrong, |d| d.attr("short", |a| a.size = 9)),
    ("no target", Code::SymlinkWrong, |d| remove(d, d.ino("short").block(), ItemKind::Symlink)),
    ("an attribute's key", Code::XattrWrong, |d| {
        let xattr = Xattr { name: b"user.other".to_vec(), content: Content::Here(vec![1]) };
        let key = ItemKey::new(ItemKind::Xattr, xattr_key(b"user.another"));
        insert(d, d.ino("short").block(), key, &xattr.encode());
    }),
    ("a long value's block", Code::BlobDamaged, |d| d.rot(blob_of(d))),
    ("a long value's content", Code::BlobDamaged, |d| d.edit(blob_of(d), |b| b.body_mut()[9] ^= 1)),
    ("an entry's key", Code::DirentMisfiled, |d| {
        d.edit(d.ino("sub").block(), |b| {
            let at = first_of(b, ItemKind::Dirent);
            PageMut::new(&mut b.0[ROOT_PAGE..]).set_key(at, Key { kind: 5, id: 0x1200 });
        });
    }),
    ("a name twice", Code::DirentTwice, |d| {
        let (dir, child) = (d.ino("sub"), d.ino("sub/deep"));
        let b = d.block(dir.block());
        let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
        let key = page.key(first_of(&b, ItemKind::Dirent)).id + 1;
        let value = Dirent::encode(child, generation(d, child), FileKind::Directory, b"deep");
        insert(d, dir.block(), ItemKey::new(ItemKind::Dirent, key), &value);
    }),
    ("a name of nothing", Code::DirentDangling, |d| {
        rename_target(d, "sub", |e| e.ino = InodeNo(4_000_000));
    }),
    ("a name of another life", Code::DirentDangling, |d| {
        rename_target(d, "sub", |e| e.generation = Generation(1 << 40));
    }),
    ("a name of another type", Code::DirentKind, |d| rename_target(d, "sub", |e| e.kind = FileKind::Fifo)),
    ("a parent", Code::DirectoryParent, |d| {
        let root = InodeNo(d.sb.root_inode);
        d.attr("sub/deep", |a| a.parent = root);
    }),
    ("a directory with two names", Code::DirectoryLinks, |d| {
        let child = d.ino("sub/deep");
        let entry = (child, generation(d, child), FileKind::Directory);
        rename_target(d, "sub/deep", |e| (e.ino, e.generation, e.kind) = entry);
    }),
    ("a link count", Code::LinkCount, |d| d.attr("big", |a| a.nlink = 7)),
    ("a directory's link count", Code::LinkCount, |d| d.attr("sub", |a| a.nlink = 2)),
    ("a lost inode", Code::Unreachable, |d| unlink(d, d.ino("sub/deep"), d.ino("sub/deep/small"))),
    ("a circle of directories", Code::Unreachable, |d| {
        // sub moves into sub/deep, and nothing else leads there.
        let (sub, deep) = (d.ino("sub"), d.ino("sub/deep"));
        let target = (sub, generation(d, sub), FileKind::Directory);
        d.edit(deep.block(), |b| {
            let at = first_of(b, ItemKind::Dirent);
            let value = Dirent::encode(target.0, target.1, target.2, b"small");
            PageMut::new(&mut b.0[ROOT_PAGE..]).replace_at(at, &value);
        });
        unlink(d, InodeNo(d.sb.root_inode), sub);
    }),
    ("an orphan that nobody lists", Code::OrphanUnlisted, |d| {
        let with = (0..2).map(SlotId).find(|s| orphan_in(d, *s)).expect("one slot has the orphan");
        remove(d, d.slot_inode(with).block(), ItemKind::Orphan);
    }),
    ("a slot's inode", Code::SlotInode, |d| d.rot(d.slot_inode(SlotId(1)).block())),
    ("a malformed orphan", Code::ItemWrong, |d| {
        insert(d, d.slot_inode(SlotId(1)).block(), ItemKey::new(ItemKind::Orphan, 77), b"short");
    }),
    ("a deferred free of free blocks", Code::DeferredWrong, |d| {
        let chunk = d.g.ag_start(AgNo(d.g.ag_count - 1)).plus(3 * CHUNK_BLOCKS);
        let free = DeferredFree { start: chunk, blocks: 2, version: None };
        let value = DeferredFree::encode(&[free]);
        let key = ItemKey::new(ItemKind::DeferredFree, chunk.0);
        insert(d, d.slot_inode(SlotId(1)).block(), key, &value);
    }),
    ("a deferred free of data in use", Code::BlockShared, |d| {
        let start = data_of(d, "big").physical;
        let value = DeferredFree::encode(&[DeferredFree { start, blocks: 1, version: None }]);
        let key = ItemKey::new(ItemKind::DeferredFree, start.0);
        insert(d, d.slot_inode(SlotId(1)).block(), key, &value);
    }),
];

fn smash(d: &Damaged, at: BlockNo) {
    d.put(at, &Block::new([0xa5; 4096]));
}

fn first_of(b: &Block, kind: ItemKind) -> usize {
    let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
    (0..page.count()).find(|i| page.key(*i).kind == kind as u8).expect("the inode has such an item")
}

/// Insert an item into the root page of an inode.
fn insert(d: &Damaged, at: BlockNo, key: ItemKey, value: &[u8]) {
    d.edit(at, |b| {
        let place = Page::check(&b.0[ROOT_PAGE..]).unwrap().search(key.into()).unwrap_err();
        PageMut::new(&mut b.0[ROOT_PAGE..]).insert_at(place, key.into(), value);
    });
}

/// Change the first item of a kind in the root page.
fn replace(d: &Damaged, at: BlockNo, kind: ItemKind, change: impl FnOnce(&[u8]) -> Vec<u8>) {
    d.edit(at, |b| {
        let i = first_of(b, kind);
        let new = change(Page::check(&b.0[ROOT_PAGE..]).unwrap().value(i));
        PageMut::new(&mut b.0[ROOT_PAGE..]).replace_at(i, &new);
    });
}

pub fn remove(d: &Damaged, at: BlockNo, kind: ItemKind) {
    d.edit(at, |b| {
        let i = first_of(b, kind);
        PageMut::new(&mut b.0[ROOT_PAGE..]).remove_at(i);
    });
}

/// Take the entry of an inode out of a small directory.
fn unlink(d: &Damaged, dir: InodeNo, child: InodeNo) {
    d.edit(dir.block(), |b| {
        let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
        let names = |i: &usize| Dirent::decode(0, page.value(*i)).is_ok_and(|e| e.ino == child);
        let at = (0..page.count()).find(names).expect("the directory has such an entry");
        PageMut::new(&mut b.0[ROOT_PAGE..]).remove_at(at);
    });
}

/// Let the first entry of the directory at `path` mean something else.
fn rename_target(d: &Damaged, path: &str, change: impl FnOnce(&mut Dirent)) {
    replace(d, d.ino(path).block(), ItemKind::Dirent, |old| {
        let mut entry = Dirent::decode(0, old).unwrap();
        change(&mut entry);
        Dirent::encode(entry.ino, entry.generation, entry.kind, &entry.name)
    });
}

fn generation(d: &Damaged, ino: InodeNo) -> Generation {
    shoal::inode::Tree::of(ino).read_attr(d).unwrap().generation
}

/// The first extent of a file that has few.
fn data_of(d: &Damaged, path: &str) -> Extent {
    let b = d.block(d.ino(path).block());
    let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
    Extent::decode(page.value(first_of(&b, ItemKind::Extent))).unwrap()
}

/// The first page below the root of an inode.
fn child_of(d: &Damaged, path: &str) -> BlockNo {
    let b = d.block(d.ino(path).block());
    let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
    assert!(page.level() > 0, "{path} has no page below its root");
    BlockNo(page.child(0))
}

/// A block of a long attribute.
fn blob_of(d: &Damaged) -> BlockNo {
    let b = d.block(d.ino("big").block());
    let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
    let blobs =
        page.items().filter(|(k, _)| k.kind == ItemKind::Xattr as u8).find_map(
            |(_, v)| match Xattr::decode(v).unwrap().content {
                Content::Long(blob) => Some(blob.blocks[1]),
                Content::Here(_) => None,
            },
        );
    blobs.expect("there is a long attribute")
}

fn orphan_in(d: &Damaged, slot: SlotId) -> bool {
    let b = d.block(d.slot_inode(slot).block());
    let page = Page::check(&b.0[ROOT_PAGE..]).unwrap();
    page.items()
        .any(|(k, v)| k.kind == ItemKind::Orphan as u8 && v.len() == encode_orphan(Generation(0)).len())
}

fn header(d: &Damaged, ag: AgNo, change: impl FnOnce(&mut GroupHeader)) {
    d.edit(d.g.ag_header(ag), |b| change(b.body_as_mut()));
}

type ChunkEntry = shoal::format::group::ChunkEntry;

/// Change the entry of the chunk that a block lies in; the closure gets the block's bit, too.
fn entry(d: &Damaged, of: BlockNo, change: impl FnOnce(&mut ChunkEntry, usize)) {
    let ag = d.g.ag_of(of).unwrap();
    let from = of.0 - d.g.ag_start(ag).0;
    let (chunk, bit) = (from / CHUNK_BLOCKS, (from % CHUNK_BLOCKS) as usize);
    d.edit(d.g.chunk_page(ag, chunk / CHUNKS_PER_PAGE), |b| {
        let page = b.body_as_mut::<ChunkPage>();
        change(&mut page.entries[(chunk % CHUNKS_PER_PAGE) as usize], bit);
    });
}

fn mark(e: &mut ChunkEntry, bit: usize, used: bool) {
    e.set(bit, used);
    e.free.set((CHUNK_BLOCKS - u64::from(e.used())) as u16);
}

fn free_bit(e: &ChunkEntry) -> usize {
    (0..CHUNK_BLOCKS as usize).find(|i| !e.is_used(*i)).expect("the chunk has a free block")
}

fn newest_view(d: &Damaged) -> (SlotId, Ballot, u64) {
    let all = (0..d.g.max_slots).map(SlotId).flat_map(|s| [(s, 0), (s, 1)]);
    let ballots = all.filter_map(|(s, c)| {
        let b = d.block(d.g.ballot(s, c));
        Ballot::from_block(&b, d.sb.format_id, &d.g, s, c).ok().map(|(ballot, n)| (s, ballot, n))
    });
    ballots.max_by_key(|(_, b, _)| b.decided.epoch).unwrap()
}

fn write_view(d: &Damaged, slot: SlotId, view: &View) {
    for sequence in [1 << 40, (1 << 40) + 1] {
        let ballot = Ballot::idle(view.clone());
        let incarnation = shoal::base::Incarnation(1);
        let (at, b) = ballot.to_block(d.sb.format_id, &d.g, slot, incarnation, sequence);
        d.put(at, &b);
    }
}

/// Let the newest view say that everybody has left.
fn leave(d: &Damaged) {
    let (slot, ballot, _) = newest_view(d);
    let mut view = ballot.decided;
    view.epoch.0 += 1;
    let initial = View::initial(d.g.max_slots, d.volume.slots.len() as u16);
    for (to, from) in view.slots.iter_mut().zip(initial.slots) {
        to.state = from.state;
    }
    write_view(d, slot, &view);
}

fn two_views(d: &Damaged) {
    let (slot, ballot, _) = newest_view(d);
    let mut other = ballot.decided;
    other.features ^= 1;
    write_view(d, SlotId(1 - slot.0.min(1)), &other);
}

fn both_own(d: &Damaged, token: Token) {
    for slot in [SlotId(0), SlotId(1)] {
        for sequence in [1 << 40, (1 << 40) + 1] {
            let mut page = LedgerPage::empty();
            page.entries[0] = LedgerEntry::Own(token);
            let (at, b) = page.to_block(d.sb.format_id, &d.g, slot, 0, sequence);
            d.put(at, &b);
        }
    }
}

/// A transaction that the medium has lost: its images are wrong, though another one was committed
/// behind it.
fn rotten_transaction(d: &Damaged) {
    let slot = d.volume.slots[1];
    let place = JournalPlace {
        format_id: d.sb.format_id,
        slot: SlotId(1),
        start: slot.journal_start,
        blocks: slot.journal_blocks,
    };
    let header = place.read_header(&d.block(place.start)).unwrap();
    let (first, at) = (header.tail_txn.get(), header.tail_position.get());
    for i in 0..2 {
        let (txn, position) = (TxnId(first + i), at + 2 * i);
        let mut stream = Block::zeroed();
        stream.0[..64].copy_from_slice(&place.txn_header(txn, position, 4096, 1));
        let crc = if i == 0 { 12345 } else { crc32c(&stream.0) };
        d.put(place.block_at(position), &stream);
        d.put(place.block_at(position + 1), &place.commit_block(txn, position, crc));
    }
}
