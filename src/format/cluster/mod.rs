//! Records of the coordination regions: heartbeat cells, ballots with views, ledgers, inbox cells,
//! lobby cells. Every place has one writer (the lobby aside, whose loss only delays).
//!
//! Ballots and ledger pages are whole blocks with the ordinary block header (owner and covering
//! lock: the slot; version: the write's sequence number) in two copies written alternately. Cells
//! are [`CELL_SIZE`] bytes at a pitch of 512 or 4096 and bear this header:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic: `SHHB`, `SHIN` or `SHLO` |
//! | 4 | 4 | crc32c of the cell up to the pitch with this field as zero |
//! | 8 | 8 | format_id |
//! | 16 | 8 | own byte offset on the device |
//! | 24 | 8 | incarnation of the writer, 0 = never written |
//! | 32 | 8 | sequence: grows with each write of an incarnation |
//! | 40 | 2 | slot of the writer |
//! | 42 | 22 | zero |

pub mod ballot;
pub mod heartbeat;
pub mod inbox;
pub mod ledger;
pub mod lobby;
pub mod view;

pub use ballot::Ballot;
pub use heartbeat::Heartbeat;
pub use inbox::{Entry, EntryKind, HANDS_IN, REGISTER_ENTRIES_MAX};
pub use ledger::{LedgerEntry, LedgerPage};
pub use lobby::Claim;
pub use view::{Adopter, FenceClass, SlotState, SlotView, View};

use crate::base::{Error, Incarnation, Result, SlotId};
use crate::format::block::crc32c;
use crate::format::layout::{Geometry, LOBBY_CELLS};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a cell that are always there, whatever the pitch.
pub const CELL_SIZE: usize = 512;
/// Bytes of the header of a cell.
pub const CELL_HEADER_SIZE: usize = 64;

/// The header of a cell, read in place.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CellHeader {
    pub magic: [u8; 4],
    pub crc: U32,
    pub format_id: U64,
    pub place: U64,
    pub incarnation: U64,
    pub sequence: U64,
    pub slot: U16,
    pub zero: [u8; 22],
}

const _: () = assert!(size_of::<CellHeader>() == CELL_HEADER_SIZE);

/// Who wrote a cell, and for the how-manieth time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    pub slot: SlotId,
    /// 0 = the cell was never written by a mount.
    pub incarnation: Incarnation,
    pub sequence: u64,
}

fn cell_crc(cell: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&cell[..4]);
    digest.update(&[0; 4]);
    digest.update(&cell[8..]);
    digest.finalize() as u32
}

/// Fill in the header of `cell` (its whole pitch) and seal it.
fn seal_cell(cell: &mut [u8], magic: [u8; 4], format_id: u64, place: u64, stamp: Stamp) {
    let header = CellHeader {
        magic,
        crc: U32::new(0),
        format_id: U64::new(format_id),
        place: U64::new(place),
        incarnation: U64::new(stamp.incarnation.0),
        sequence: U64::new(stamp.sequence),
        slot: U16::new(stamp.slot.0),
        zero: [0; 22],
    };
    cell[..CELL_HEADER_SIZE].copy_from_slice(header.as_bytes());
    let crc = cell_crc(cell);
    cell[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Check magic, format id, place and crc of `cell` (its whole pitch). An error means torn, foreign
/// or rotten: the reader knows nothing and reads again.
fn open_cell(cell: &[u8], magic: [u8; 4], format_id: u64, place: u64) -> Result<Stamp> {
    let bad = |what| Err(Error::Device(format!("cell at byte {place}: {what}")));
    let Ok((h, _)) = CellHeader::ref_from_prefix(cell) else { return bad("short") };
    if cell.len() < CELL_SIZE {
        return bad("short");
    }
    if h.magic != magic {
        return bad("wrong magic");
    }
    if h.format_id.get() != format_id {
        return bad("wrong format id");
    }
    if h.place.get() != place {
        return bad("wrong place");
    }
    if h.crc.get() != cell_crc(cell) {
        return bad("wrong crc");
    }
    Ok(Stamp {
        slot: SlotId(h.slot.get()),
        incarnation: Incarnation(h.incarnation.get()),
        sequence: h.sequence.get(),
    })
}

/// A NUL-padded name for a fixed field; cut at the field's size on a character boundary.
fn put_name(field: &mut [u8], name: &str) {
    let mut end = name.len().min(field.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    field.fill(0);
    field[..end].copy_from_slice(&name.as_bytes()[..end]);
}

fn get_name(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Everything mkfs writes into the coordination regions, handed to `write` as (byte offset, bytes)
/// in ascending order: empty cells, ballots with the first view, ledgers in which slot `s` of
/// `slots` owns the groups `g` with `g % slots == s`. The inbox overflow needs no initial content.
pub fn initial_regions(
    format_id: u64,
    geometry: &Geometry,
    slots: u16,
    write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let all = || (0..geometry.max_slots).map(SlotId);
    let mut row = Vec::new();
    for slot in all() {
        row.extend(heartbeat::empty_cell(format_id, geometry, slot));
    }
    write(geometry.heartbeat_cell(SlotId(0)), &row)?;
    let view = View::initial(geometry.max_slots, slots);
    for slot in all() {
        for (place, block) in Ballot::initial_blocks(format_id, geometry, slot, &view) {
            write(place.byte(), &block.0)?;
        }
    }
    for slot in all() {
        for page in 0..geometry.ledger_pages {
            for (place, block) in LedgerPage::initial_blocks(format_id, geometry, slot, page, slots) {
                write(place.byte(), &block.0)?;
            }
        }
    }
    for to in all() {
        row.clear();
        for from in all() {
            row.extend(inbox::empty_cell(format_id, geometry, to, from));
        }
        write(geometry.inbox_cell(to, SlotId(0)), &row)?;
    }
    row.clear();
    for cell in 0..LOBBY_CELLS {
        row.extend(lobby::empty_cell(format_id, geometry, cell));
    }
    write(geometry.lobby_cell(0), &row)
}

/// crc32c over several pieces, as the register cells use it.
fn crc_of(pieces: &[&[u8]]) -> u32 {
    if let [one] = pieces {
        return crc32c(one);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests;
