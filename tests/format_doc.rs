//! docs/FORMAT.md against the code: every record's fields, every number on the disk, no more, no less.

use shoal::base::{LockName, Mode};
use shoal::format::block::{BlockHeader, BlockKind};
use shoal::format::cluster::{CELL_SIZE, CellHeader, ballot, heartbeat, inbox, ledger, lobby, view};
use shoal::format::group::{ChunkEntry, ChunkKind, ChunkPage, GroupHeader};
use shoal::format::inode::{DiskAttr, DiskTime, ROOT_PAGE, TREE_PAGE};
use shoal::format::item::{ItemKind, PageHeader, Slot, VALUE_MAX};
use shoal::format::journal::{JournalHeader, TxnCommit, TxnEntry, TxnHeader};
use shoal::format::layout::*;
use shoal::format::superblock::{DiskSuperblock, FORMAT_VERSION, TimingProfile};
use shoal::format::volume::{DiskSlot, DiskVolume, LABEL_MAX};
use shoal::inode::FileKind;
use std::collections::BTreeMap;
use std::fmt::Debug;

const DOCUMENT: &str = include_str!("../docs/FORMAT.md");

/// Rows of the first table under each heading: cells trimmed.
fn tables() -> BTreeMap<String, Vec<Vec<String>>> {
    let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let (mut heading, mut ended) = (String::new(), false);
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")) {
            (heading, ended) = (title.replace('`', ""), false);
        } else if line.starts_with('|') && !ended {
            let cells = line.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect();
            tables.entry(heading.clone()).or_default().push(cells);
        } else if tables.contains_key(&heading) {
            ended = true;
        }
    }
    // The title row and the ruler.
    tables.values_mut().for_each(|rows| drop(rows.drain(..2)));
    tables
}

/// A field as the code has it.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    offset: usize,
    size: usize,
    name: String,
}

fn size_behind<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! record {
    ($records:ident, $title:literal, $type:ty { $($field:ident),* $(,)? }) => {
        let fields = vec![$(Field {
            offset: std::mem::offset_of!($type, $field),
            size: size_behind::<$type, _>(|r| &r.$field),
            name: stringify!($field).into(),
        }),*];
        let mut end = 0;
        for f in &fields {
            assert_eq!(f.offset, end, "{}: a field before {} is missing from the list", $title, f.name);
            end += f.size;
        }
        assert_eq!(end, size_of::<$type>(), "{}: fields are missing from the list", $title);
        $records.insert($title.to_string(), fields);
    };
}

fn volume_records() -> BTreeMap<String, Vec<Field>> {
    let mut r = BTreeMap::new();
    record!(
        r,
        "BlockHeader",
        BlockHeader { magic, crc, format_id, block, owner, cover_id, version, kind, cover_class, zero }
    );
    record!(
        r,
        "DiskSuperblock",
        DiskSuperblock {
            version,
            block_size,
            uuid,
            hash_seed,
            compat,
            ro_compat,
            incompat,
            total_blocks,
            ag_blocks,
            ag_count,
            ledger_pages,
            cell_pitch,
            max_slots,
            timing,
            zero,
            created,
            root_inode,
            spare
        }
    );
    record!(
        r,
        "DiskVolume",
        DiskVolume { features, total_blocks, ag_count, slots, timing, zero, label, spare, slot_table }
    );
    record!(r, "DiskSlot", DiskSlot { journal_start, journal_blocks, inode, zero });
    record!(
        r,
        "GroupHeader",
        GroupHeader { vclock, init_chunks, zero, free_chunks, free_data, free_meta, reserved_roots, spare }
    );
    record!(r, "ChunkEntry", ChunkEntry { kind, zero, free, zero2, bitmap, spare });
    r
}

fn inode_records() -> BTreeMap<String, Vec<Field>> {
    let mut r = BTreeMap::new();
    record!(
        r,
        "DiskAttr",
        DiskAttr {
            generation,
            size,
            blocks,
            mode,
            uid,
            gid,
            nlink,
            rdev,
            flags,
            parent,
            truncate_target,
            atime,
            mtime,
            ctime,
            btime,
            project,
            zero,
            spare,
            zero2
        }
    );
    record!(r, "DiskTime", DiskTime { seconds, nanos });
    record!(r, "PageHeader", PageHeader { level, zero, count, spare });
    record!(r, "item::Slot", Slot { id, kind, zero, offset, length });
    record!(r, "ExtentRecord", shoal::format::extent::ExtentRecord { logical, physical, length, flags });
    record!(r, "DeferredFreeRecord", shoal::format::group::DeferredFreeRecord { start, blocks, version });
    r
}

fn journal_records() -> BTreeMap<String, Vec<Field>> {
    let mut r = BTreeMap::new();
    record!(
        r,
        "JournalHeader",
        JournalHeader {
            magic,
            crc,
            format_id,
            extent_start,
            extent_blocks,
            sequence,
            tail_txn,
            tail_position,
            slot,
            version,
            zero
        }
    );
    record!(
        r,
        "TxnHeader",
        TxnHeader {
            magic,
            crc,
            format_id,
            txn,
            position,
            stream_bytes,
            stream_blocks,
            entries,
            slot,
            version,
            zero
        }
    );
    record!(r, "TxnEntry", TxnEntry { block, version, cover_id, lines, kind, cover_class, zero });
    record!(
        r,
        "TxnCommit",
        TxnCommit { magic, crc, format_id, txn, position, stream_crc, slot, version, zero }
    );
    r
}

fn cluster_records() -> BTreeMap<String, Vec<Field>> {
    let mut r = BTreeMap::new();
    record!(r, "CellHeader", CellHeader { magic, crc, format_id, place, incarnation, sequence, slot, zero });
    record!(
        r,
        "RawHeartbeat",
        heartbeat::RawHeartbeat {
            header,
            host,
            boot,
            epoch,
            ack,
            excluded,
            ledger_sequence,
            refused,
            refusal,
            protocol_min,
            protocol_max,
            flags,
            journal_head,
            journal_tail,
            free_data,
            free_meta,
            groups,
            wall_ms,
            dev,
            ino,
            rdev,
            reservation_key,
            replay_since,
            replay_done,
            replay_total,
            replay_slot,
            zero,
            name,
            device,
            fence_attempts,
            fence_slot,
            zero2,
            fence_error
        }
    );
    record!(r, "RawBallot", ballot::RawBallot { mbal, bal, incarnation, zero, decided, input });
    record!(
        r,
        "RawView",
        view::RawView { epoch, features, protocol, slot_count, fence, fenced, timing, zero, slots }
    );
    record!(r, "RawSlotView", view::RawSlotView { state, zero, adopter, zero2, incarnation });
    record!(r, "ledger::RawEntry", ledger::RawEntry { token, kind, zero, to, incarnation_low });
    record!(r, "RawHead", inbox::RawHead { header, count, entries_crc, meant_for, zero });
    record!(
        r,
        "inbox::RawEntry",
        inbox::RawEntry { class, kind, mode, held, cap, flags, zero, id, token, number, seq }
    );
    r
}

fn lobby_records() -> BTreeMap<String, Vec<Field>> {
    let mut r = BTreeMap::new();
    record!(
        r,
        "RawClaim",
        lobby::RawClaim {
            header,
            host,
            kind,
            protocol_min,
            protocol_max,
            zero,
            name,
            boot,
            dev,
            ino,
            rdev,
            over,
            zero2
        }
    );
    r
}

/// All numbers of an enumeration, with the names that `Debug` gives them up to a bracket.
fn numbers<T: Debug>(from_raw: impl Fn(u16) -> Option<T>) -> Vec<Vec<String>> {
    let name = |value: T| format!("{value:?}").split('(').next().unwrap_or_default().to_string();
    (0..=u16::MAX).filter_map(|n| Some(vec![n.to_string(), name(from_raw(n)?)])).collect()
}

fn of_byte<T>(from_raw: impl Fn(u8) -> Option<T>) -> impl Fn(u16) -> Option<T> {
    move |n| from_raw(u8::try_from(n).ok()?)
}

#[test]
fn records() {
    let mut records = volume_records();
    records.extend(inode_records());
    records.extend(journal_records());
    records.extend(cluster_records());
    records.extend(lobby_records());
    let documented: BTreeMap<String, Vec<Field>> = tables()
        .into_iter()
        .filter(|(_, rows)| rows[0][0] == "0" && rows[0].len() == 4)
        .map(|(title, rows)| {
            let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{title}: {text}"));
            let field = |row: &Vec<String>| Field {
                offset: number(&row[0]),
                size: number(&row[1]),
                name: row[2].clone(),
            };
            let fields = rows.iter().map(field).collect();
            (title, fields)
        })
        .collect();
    for (title, fields) in &records {
        assert_eq!(documented.get(title), Some(fields), "docs/FORMAT.md, {title}");
    }
    let unknown: Vec<_> = documented.keys().filter(|title| !records.contains_key(*title)).collect();
    assert!(unknown.is_empty(), "documented, but not in the code: {unknown:?}");
}

#[test]
fn enumerations() {
    let lock = |n: u16| LockName::from_raw(n.try_into().ok()?, 0);
    let code = BTreeMap::from([
        ("BlockKind", numbers(BlockKind::from_raw)),
        ("LockName", numbers(lock)),
        ("TimingProfile", numbers(of_byte(TimingProfile::from_raw))),
        ("Refusal", numbers(heartbeat::Refusal::from_raw)),
        ("EntryKind", numbers(of_byte(inbox::EntryKind::from_raw))),
        ("Mode", numbers(of_byte(Mode::from_raw))),
        ("ChunkKind", numbers(of_byte(ChunkKind::from_raw))),
        ("ItemKind", numbers(of_byte(ItemKind::from_raw))),
        ("FileKind", numbers(of_byte(FileKind::from_raw))),
    ]);
    let tables = tables();
    let documented: BTreeMap<&str, &Vec<Vec<String>>> =
        tables.iter().filter_map(|(t, rows)| Some((t.strip_prefix("Numbers: ")?, rows))).collect();
    assert_eq!(documented, code.iter().map(|(name, rows)| (*name, rows)).collect());
}

#[test]
fn constants() {
    let code: [(&str, u64); 10] = [
        ("CHUNK_BLOCKS", CHUNK_BLOCKS),
        ("CHUNKS_PER_PAGE", CHUNKS_PER_PAGE),
        ("SLOTS_MAX", SLOTS_MAX.into()),
        ("GROUPS_MAX", GROUPS_MAX.into()),
        ("LOBBY_CELLS", LOBBY_CELLS.into()),
        ("OVERFLOW_BLOCKS", OVERFLOW_BLOCKS),
        ("LEDGER_ENTRIES_PER_PAGE", LEDGER_ENTRIES_PER_PAGE),
        ("LABEL_MAX", LABEL_MAX as u64),
        ("CELL_SIZE", CELL_SIZE as u64),
        ("VALUE_MAX", VALUE_MAX as u64),
    ];
    let tables = tables();
    let documented: BTreeMap<&str, u64> =
        tables["Constants"].iter().map(|row| (row[0].as_str(), row[1].parse().unwrap())).collect();
    assert_eq!(documented, BTreeMap::from(code));
}

#[test]
fn what_the_prose_says() {
    assert!(DOCUMENT.contains(&format!("Format version {FORMAT_VERSION}.")));
    let body = 4096 - size_of::<BlockHeader>();
    assert_eq!(size_of::<ledger::RawPage>(), 252 * size_of::<ledger::RawEntry>());
    assert_eq!(size_of::<ChunkPage>(), 31 * size_of::<ChunkEntry>());
    assert!(size_of::<ledger::RawPage>() <= body && size_of::<ballot::RawBallot>() <= body);
    assert_eq!((ROOT_PAGE, 4096 - ROOT_PAGE, TREE_PAGE, 4096 - TREE_PAGE), (320, 3776, 64, 4032));
    assert_eq!((SUPERBLOCK.0, BACKUP_SUPERBLOCK.0, VOLUME_BLOCKS.map(|b| b.0)), (0, 4094, [1, 2]));
}
