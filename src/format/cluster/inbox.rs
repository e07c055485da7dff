//! The register that one slot writes for another: lock conversation entries. The first ones stand
//! in the inbox cell, the rest in the pair's overflow blocks, which are written before the cell.
//! A reader that finds old overflow behind a new cell or the reverse sees a wrong entries crc and
//! reads again.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 64 | cell header |
//! | 64 | 4 | entries in all |
//! | 68 | 4 | crc32c of all entries, those in the overflow included |
//! | 72 | 8 | incarnation of the slot it is meant for |
//! | 80 | 16 | zero |
//! | 96 | n x 40 | entries |

use super::{CELL_SIZE, CellHeader, Stamp, crc_of, open_cell, seal_cell};
use crate::base::{BLOCK_SIZE, Error, Incarnation, LockName, Mode, Result, SlotId, Token};
use crate::format::layout::{Geometry, OVERFLOW_BLOCKS};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"SHIN";
const HEAD: usize = 96;
const ENTRY: usize = 40;
/// Bytes of a pair's overflow.
const OVERFLOW: usize = OVERFLOW_BLOCKS as usize * BLOCK_SIZE;
/// Most entries a register holds, whatever the pitch.
pub const REGISTER_ENTRIES_MAX: usize = (CELL_SIZE - HEAD) / ENTRY + OVERFLOW / ENTRY;

/// What an entry says. Numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryKind {
    /// To the master: mode wanted, mode held, `number` = last grant acted on, `seq` = request number.
    Request = 1,
    /// To the holder: mode granted, cap, `number` = grant number, `seq` = last request seen.
    Grant = 2,
    /// From a new master: declare what you hold in group `id` under `token`.
    DeclareAsk = 3,
    /// From a holder: all is declared; `number` = how many entries.
    Declared = 4,
    /// From the master: the declaration was read.
    DeclaredSeen = 5,
    /// Before messages about file locks: `number` = that of the first, `seq` = the last one taken of the
    /// reader's.
    Stream = 6,
    /// A message about file locks (see `lock::files::message`).
    FileLock = 7,
}

impl EntryKind {
    /// From the on-disk byte.
    pub fn from_raw(raw: u8) -> Option<EntryKind> {
        use EntryKind::*;
        [Request, Grant, DeclareAsk, Declared, DeclaredSeen, Stream, FileLock]
            .into_iter()
            .find(|k| *k as u8 == raw)
    }
}

/// A file lock message's flag: nobody waits for it, so that it may go with the next word.
pub const FILE_LOCK_PATIENT: u8 = 0x20;

/// A request's flag: it comes before those without, for what direct writes have left to be handed in.
pub const HANDS_IN: u8 = 1;

/// One entry of a conversation. The lock is named by `class` and `id` as in
/// [`LockName::to_raw`]; declarations name the group's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub lock: LockName,
    pub kind: EntryKind,
    /// Request: wanted. Grant: the master's belief.
    pub mode: Mode,
    pub held: Mode,
    pub cap: Mode,
    /// Request: [`HANDS_IN`]. File lock message: what it says, and [`FILE_LOCK_PATIENT`].
    pub flags: u8,
    pub token: Token,
    /// Grant number or its acknowledgement.
    pub number: u64,
    /// Request number or the last one seen.
    pub seq: u64,
}

/// An entry as it stands on the disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    pub class: u8,
    pub kind: u8,
    pub mode: u8,
    pub held: u8,
    pub cap: u8,
    pub flags: u8,
    pub zero: U16,
    pub id: U64,
    pub token: U64,
    pub number: U64,
    pub seq: U64,
}

const _: () = assert!(size_of::<RawEntry>() == ENTRY);

/// What stands before the entries.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHead {
    pub header: CellHeader,
    pub count: U32,
    pub entries_crc: U32,
    pub meant_for: U64,
    pub zero: [u8; 16],
}

const _: () = assert!(size_of::<RawHead>() == HEAD);

/// A register ready to be written: the overflow first (if any), then the cell.
pub struct RegisterImage {
    pub cell: Vec<u8>,
    /// Whole blocks; empty if the cell holds everything.
    pub overflow: Vec<u8>,
}

/// A cell that was read and verified; the overflow may still be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterCell {
    pub stamp: Stamp,
    /// The incarnation of the reader it was written for.
    pub meant_for: Incarnation,
    entries_crc: u32,
    count: usize,
    inline: Vec<u8>,
}

fn inline_capacity(geometry: &Geometry) -> usize {
    ((geometry.cell_pitch as usize - HEAD) / ENTRY).min(REGISTER_ENTRIES_MAX)
}

/// Encode the register that `stamp.slot` writes for `to`.
///
/// # Panics
/// More than [`REGISTER_ENTRIES_MAX`] entries are a bug of the caller.
pub fn encode_register(
    format_id: u64,
    geometry: &Geometry,
    to: SlotId,
    meant_for: Incarnation,
    stamp: Stamp,
    entries: &[Entry],
) -> RegisterImage {
    assert!(entries.len() <= REGISTER_ENTRIES_MAX, "{} entries", entries.len());
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY);
    for entry in entries {
        bytes.extend_from_slice(entry.to_raw().as_bytes());
    }
    let inline = bytes.len().min(inline_capacity(geometry) * ENTRY);
    let mut head = RawHead::new_zeroed();
    head.count = U32::new(entries.len() as u32);
    head.entries_crc = U32::new(crc_of(&[&bytes]));
    head.meant_for = U64::new(meant_for.0);
    let mut cell = vec![0; geometry.cell_pitch as usize];
    cell[..HEAD].copy_from_slice(head.as_bytes());
    cell[HEAD..HEAD + inline].copy_from_slice(&bytes[..inline]);
    seal_cell(&mut cell, MAGIC, format_id, geometry.inbox_cell(to, stamp.slot), stamp);
    let mut overflow = bytes[inline..].to_vec();
    overflow.resize(overflow.len().next_multiple_of(BLOCK_SIZE), 0);
    RegisterImage { cell, overflow }
}

impl RegisterCell {
    /// Verify and decode the cell that `from` wrote for `to`.
    ///
    /// # Errors
    /// [`Error::Device`]: torn or damaged, read again.
    pub fn from_cell(
        cell: &[u8],
        format_id: u64,
        geometry: &Geometry,
        to: SlotId,
        from: SlotId,
    ) -> Result<RegisterCell> {
        let stamp = open_cell(cell, MAGIC, format_id, geometry.inbox_cell(to, from))?;
        let head = RawHead::ref_from_prefix(cell).expect("open_cell checked the length").0;
        let count = head.count.get() as usize;
        if count > REGISTER_ENTRIES_MAX {
            return Err(Error::Device(format!("inbox cell of slot {from} for {to} counts {count} entries")));
        }
        let inline = count.min(inline_capacity(geometry)) * ENTRY;
        Ok(RegisterCell {
            stamp,
            meant_for: Incarnation(head.meant_for.get()),
            entries_crc: head.entries_crc.get(),
            count,
            inline: cell[HEAD..HEAD + inline].to_vec(),
        })
    }

    /// Bytes of overflow to read (whole blocks) before [`RegisterCell::entries`]; 0 = none.
    pub fn overflow_bytes(&self) -> usize {
        (self.count * ENTRY - self.inline.len()).next_multiple_of(BLOCK_SIZE)
    }

    /// The entries, given the overflow.
    ///
    /// # Errors
    /// [`Error::Device`] if the overflow belongs to another write (read both again), or if an entry
    /// has values that no version of this code writes.
    pub fn entries(&self, overflow: &[u8]) -> Result<Vec<Entry>> {
        let rest = self.count * ENTRY - self.inline.len();
        let Some(rest) = overflow.get(..rest) else {
            return Err(Error::Device("inbox overflow is short".into()));
        };
        if crc_of(&[&self.inline, rest]) != self.entries_crc {
            return Err(Error::Device(format!("inbox of slot {}: torn overflow", self.stamp.slot)));
        }
        let raw = |bytes: &[u8]| RawEntry::read_from_bytes(bytes).expect("chunks are of that size");
        self.inline
            .chunks_exact(ENTRY)
            .chain(rest.chunks_exact(ENTRY))
            .map(|bytes| Entry::from_raw(&raw(bytes)))
            .collect()
    }
}

impl Entry {
    fn to_raw(self) -> RawEntry {
        let (class, id) = self.lock.to_raw();
        RawEntry {
            class,
            kind: self.kind as u8,
            mode: self.mode as u8,
            held: self.held as u8,
            cap: self.cap as u8,
            flags: self.flags,
            zero: U16::new(0),
            id: U64::new(id),
            token: U64::new(self.token.0),
            number: U64::new(self.number),
            seq: U64::new(self.seq),
        }
    }

    fn from_raw(raw: &RawEntry) -> Result<Entry> {
        let decoded = || {
            Some(Entry {
                lock: LockName::from_raw(raw.class, raw.id.get())?,
                kind: EntryKind::from_raw(raw.kind)?,
                mode: Mode::from_raw(raw.mode)?,
                held: Mode::from_raw(raw.held)?,
                cap: Mode::from_raw(raw.cap)?,
                flags: raw.flags,
                token: Token(raw.token.get()),
                number: raw.number.get(),
                seq: raw.seq.get(),
            })
        };
        decoded().ok_or_else(|| {
            Error::Device(format!("inbox entry of unknown class {}, kind {} or mode", raw.class, raw.kind))
        })
    }
}

/// A register that was never written by a mount.
pub fn empty_cell(format_id: u64, geometry: &Geometry, to: SlotId, from: SlotId) -> Vec<u8> {
    let stamp = Stamp { slot: from, ..Stamp::default() };
    encode_register(format_id, geometry, to, Incarnation(0), stamp, &[]).cell
}
