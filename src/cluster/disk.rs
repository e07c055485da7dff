//! The coordination cells as reads and writes on the device: nothing is decided here.
//!
//! A cell that fails its checksum was overlapped by a write and is read again a few times; then
//! heartbeats, inboxes and lobby cells are "unknown", while a ballot or ledger whose both copies are
//! unreadable is an error: its content is never guessed. So it is with what the device cannot read (a sector that a
//! power cut tore) among others that it can, until somebody writes it; a device that reads none of them is an error.

use crate::base::{AgNo, BLOCK_SIZE, BlockNo, Error, Incarnation, Result, SlotId};
use crate::device::BlockDevice;
use crate::format::block::Block;
use crate::format::cluster::inbox::{RegisterCell, encode_register};
use crate::format::cluster::{Ballot, Claim, Entry, Heartbeat, LedgerPage, Stamp};
use crate::format::layout::{Geometry, LEDGER_ENTRIES_PER_PAGE, LOBBY_CELLS, OVERFLOW_BLOCKS};
use std::sync::Arc;
use std::time::Duration;

/// Reads of one place before it counts as unreadable.
const ATTEMPTS: u32 = 5;
/// Between two of them: longer than a write of one block takes.
const RETRY: Duration = Duration::from_millis(2);
/// On either side of a sector that was torn everything can be read for so far: what lies on another disk of a striped
/// volume is seldom closer together.
const AROUND: u64 = 64 << 10;

/// Write both copies of a ballot or ledger page, one after the other: what stands in one alone is
/// gone when a late duplicate of that copy's last write lands, and with it a promise that others rely
/// on. `sequence` is the number of the last write before and after; when one fails, the next goes to
/// the same copy, because the other is the only one that is whole.
pub fn write_both(sequence: &mut u64, write: impl Fn(u64) -> Result<()>) -> Result<()> {
    for _ in 0..2 {
        *sequence += 1;
        if let Err(e) = write(*sequence) {
            *sequence += 1;
            return Err(e);
        }
    }
    Ok(())
}

/// The coordination regions of one volume.
#[derive(Clone)]
pub struct Disk {
    pub device: Arc<dyn BlockDevice>,
    pub format_id: u64,
    pub geometry: Geometry,
}

impl Disk {
    fn pitch(&self) -> usize {
        self.geometry.cell_pitch as usize
    }

    fn all_slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.geometry.max_slots).map(SlotId)
    }

    /// Pieces that lie together, and whether any of them could not be read: those are zeros, which no checksum fits.
    ///
    /// # Errors
    /// The device's, if it reads none of them.
    fn read(&self, offset: u64, length: usize, piece: usize) -> Result<(Vec<u8>, bool)> {
        let mut bytes = vec![0; length];
        let Err(e) = self.device.read(offset, &mut bytes) else { return Ok((bytes, false)) };
        let (piece, mut any) = (piece.max(self.device.logical_block() as usize), false);
        if !matches!(e, Error::Io { .. }) {
            return Err(e);
        }
        for (n, bytes) in bytes.chunks_mut(piece).enumerate() {
            match self.device.read(offset + (n * piece) as u64, bytes) {
                Ok(()) => any = true,
                Err(Error::Io { .. }) => bytes.fill(0),
                Err(e) => return Err(e),
            }
        }
        if any { Ok((bytes, true)) } else { Err(e) }
    }

    /// The heartbeat row, byte for byte, and whether a cell could not be read (its bytes are zeros).
    pub fn read_heartbeat_row(&self) -> Result<(Vec<u8>, bool)> {
        let row = usize::from(self.geometry.max_slots) * self.pitch();
        self.read(self.geometry.heartbeat_cell(SlotId(0)), row, self.pitch())
    }

    /// The whole heartbeat row in one read; `None` for cells that stay unreadable.
    pub fn read_heartbeats(&self) -> Result<Vec<Option<Heartbeat>>> {
        let g = &self.geometry;
        let mut row = vec![None; usize::from(g.max_slots)];
        for attempt in 0..ATTEMPTS {
            let (bytes, lost) = self.read_heartbeat_row()?;
            for (slot, cell) in self.all_slots().zip(bytes.chunks_exact(self.pitch())) {
                if let Ok(beat) = Heartbeat::from_cell(cell, self.format_id, g, slot) {
                    row[usize::from(slot.0)] = Some(beat);
                }
            }
            // Reading what cannot be read may take the device seconds: not again at once.
            if lost || row.iter().all(Option::is_some) {
                break;
            }
            if attempt + 1 < ATTEMPTS {
                std::thread::sleep(RETRY);
            }
        }
        Ok(row)
    }

    /// One heartbeat cell; `None` if it cannot be made out at this moment.
    pub fn read_heartbeat(&self, slot: SlotId) -> Result<Option<Heartbeat>> {
        match self.read(self.geometry.heartbeat_cell(slot), self.pitch(), self.pitch()) {
            Ok((bytes, _)) => Ok(Heartbeat::from_cell(&bytes, self.format_id, &self.geometry, slot).ok()),
            // Is it this cell alone?
            Err(Error::Io { .. }) => Ok(self.read_heartbeats()?[usize::from(slot.0)].clone()),
            Err(e) => Err(e),
        }
    }

    /// An error if the cell of `slot` cannot be read, and the device does not give what lies around it either. Then it
    /// is no sector that was torn, but a part of the device that this host cannot reach: others may, and beat there.
    pub fn is_torn_at_most(&self, slot: SlotId) -> Result<()> {
        let (cell, block) = (self.geometry.heartbeat_cell(slot), BLOCK_SIZE as u64);
        let error = match self.device.read(cell, &mut vec![0; self.pitch()]) {
            Err(e @ Error::Io { .. }) => e,
            other => return other,
        };
        let (start, end) = (cell / block * block, (cell / block + 1) * block);
        let before = start.saturating_sub(AROUND)..start;
        let behind = end..(end + AROUND).min(self.device.size() / block * block);
        let is_read = |range: std::ops::Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.device.read(range.start, &mut bytes).is_ok()
        };
        if is_read(before) && is_read(behind) { Ok(()) } else { Err(error) }
    }

    /// Write the cell of `beat.slot`.
    pub fn write_heartbeat(&self, beat: &Heartbeat) -> Result<()> {
        let cell = beat.to_cell(self.format_id, &self.geometry);
        self.device.write(self.geometry.heartbeat_cell(beat.slot), &cell)
    }

    /// All ballots with their sequence numbers, the newer valid copy of each.
    ///
    /// # Errors
    /// The device's, or a ballot of which no copy can be read.
    pub fn read_ballots(&self) -> Result<Vec<(Ballot, u64)>> {
        let g = &self.geometry;
        let start = g.ballot(SlotId(0), 0).byte();
        let pair = 2 * BLOCK_SIZE;
        let (bytes, lost) = self.read(start, usize::from(g.max_slots) * pair, BLOCK_SIZE)?;
        let decode =
            |slot: SlotId, copy: u8, block: &Block| Ballot::from_block(block, self.format_id, g, slot, copy);
        let mut ballots = Vec::with_capacity(usize::from(g.max_slots));
        for (slot, pair) in self.all_slots().zip(bytes.chunks_exact(pair)) {
            ballots.push(self.newer_copy(
                g.ballot(slot, 0),
                (pair, lost),
                |copy, block| decode(slot, copy, block),
                |what| format!("ballot of slot {slot}: {what}"),
            )?);
        }
        Ok(ballots)
    }

    /// The newer of two adjacent copies; reads them again while one is unreadable.
    fn newer_copy<T>(
        &self,
        place: BlockNo,
        (pair, mut lost): (&[u8], bool),
        decode: impl Fn(u8, &Block) -> Result<(T, u64)>,
        name: impl Fn(&Error) -> String,
    ) -> Result<(T, u64)> {
        let mut pair = pair.to_vec();
        for attempt in 1.. {
            let copy = |i: usize| {
                let bytes = &pair[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE];
                decode(i as u8, &Block::new(bytes.try_into().expect("a block")))
            };
            match (copy(0), copy(1)) {
                (Ok(a), Ok(b)) => return Ok(if a.1 > b.1 { a } else { b }),
                // A writer that died in the middle leaves one copy torn for good: its write never
                // completed, so the other copy is what the register holds.
                (Ok(one), Err(e)) | (Err(e), Ok(one)) if lost || attempt >= ATTEMPTS => {
                    tracing::debug!("{}; taking its other copy", name(&e));
                    return Ok(one);
                }
                (Err(e), Err(_)) if attempt >= 2 * ATTEMPTS => return Err(Error::Device(name(&e))),
                _ => {}
            }
            std::thread::sleep(RETRY);
            (pair, lost) = self.read(place.byte(), pair.len(), BLOCK_SIZE)?;
        }
        unreachable!("the attempts are bounded")
    }

    /// Write number `sequence` of a slot's ballot, durable when it returns.
    pub fn write_ballot(
        &self,
        slot: SlotId,
        incarnation: Incarnation,
        sequence: u64,
        ballot: &Ballot,
    ) -> Result<()> {
        let (place, block) = ballot.to_block(self.format_id, &self.geometry, slot, incarnation, sequence);
        self.device.write(place.byte(), &block.0)?;
        self.device.flush()
    }

    /// Ledger pages that hold the groups there are.
    pub fn ledger_pages(&self) -> u32 {
        let pages = u64::from(self.geometry.ag_count).div_ceil(LEDGER_ENTRIES_PER_PAGE) as u32;
        pages.min(self.geometry.ledger_pages)
    }

    /// The pages of a slot's ledger with their sequence numbers.
    pub fn read_ledger(&self, slot: SlotId) -> Result<Vec<(LedgerPage, u64)>> {
        let g = &self.geometry;
        let pages = self.ledger_pages();
        let length = pages as usize * 2 * BLOCK_SIZE;
        let (bytes, lost) = self.read(g.ledger(slot, 0, 0).byte(), length, BLOCK_SIZE)?;
        let mut ledger = Vec::new();
        for (page, pair) in (0..pages).zip(bytes.chunks_exact(2 * BLOCK_SIZE)) {
            ledger.push(self.newer_copy(
                g.ledger(slot, page, 0),
                (pair, lost),
                |copy, block| LedgerPage::from_block(block, self.format_id, g, slot, page, copy),
                |what| format!("ledger page {page} of slot {slot}: {what}"),
            )?);
        }
        Ok(ledger)
    }

    /// Write number `sequence` of a ledger page, durable when it returns.
    pub fn write_ledger(&self, slot: SlotId, page: u32, sequence: u64, ledger: &LedgerPage) -> Result<()> {
        let (place, block) = ledger.to_block(self.format_id, &self.geometry, slot, page, sequence);
        self.device.write(place.byte(), &block.0)?;
        self.device.flush()
    }

    /// The cells that `from` lowest to highest wrote for `to`, in one read; unreadable ones are left
    /// out, the next poll reads them again.
    pub fn read_inbox(&self, to: SlotId, from: &[SlotId]) -> Result<Vec<RegisterCell>> {
        let (Some(first), Some(last)) = (from.iter().min(), from.iter().max()) else { return Ok(vec![]) };
        let start = self.geometry.inbox_cell(to, *first);
        let (bytes, _) = self.read(start, usize::from(last.0 - first.0 + 1) * self.pitch(), self.pitch())?;
        let cell = |slot: SlotId| {
            let at = usize::from(slot.0 - first.0) * self.pitch();
            let cell = &bytes[at..at + self.pitch()];
            RegisterCell::from_cell(cell, self.format_id, &self.geometry, to, slot).ok()
        };
        Ok(from.iter().filter_map(|slot| cell(*slot)).collect())
    }

    /// The entries behind a cell that was read for `to`; `None` if its overflow belongs to another
    /// write (the cell must be read again).
    pub fn read_entries(&self, to: SlotId, cell: &RegisterCell) -> Result<Option<Vec<Entry>>> {
        let overflow = match cell.overflow_bytes() {
            0 => vec![],
            n => match self.read(self.geometry.inbox_overflow(to, cell.stamp.slot).byte(), n, BLOCK_SIZE) {
                Ok((bytes, _)) => bytes,
                // The cell could be read: it is this place alone, until the peer writes again.
                Err(Error::Io { .. }) => return Ok(None),
                Err(e) => return Err(e),
            },
        };
        debug_assert!(overflow.len() <= OVERFLOW_BLOCKS as usize * BLOCK_SIZE);
        Ok(cell.entries(&overflow).ok())
    }

    /// Write a register: overflow, then cell.
    pub fn write_register(
        &self,
        to: SlotId,
        meant_for: Incarnation,
        stamp: Stamp,
        entries: &[Entry],
    ) -> Result<()> {
        let image = encode_register(self.format_id, &self.geometry, to, meant_for, stamp, entries);
        if !image.overflow.is_empty() {
            let place = self.geometry.inbox_overflow(to, stamp.slot);
            self.device.write(place.byte(), &image.overflow)?;
        }
        self.device.write(self.geometry.inbox_cell(to, stamp.slot), &image.cell)
    }

    /// All lobby cells; `None` for those that stay unreadable.
    pub fn read_lobby(&self) -> Result<Vec<Option<Claim>>> {
        let mut lobby = vec![None; usize::from(LOBBY_CELLS)];
        for attempt in 1..=ATTEMPTS {
            let (bytes, lost) =
                self.read(self.geometry.lobby_cell(0), lobby.len() * self.pitch(), self.pitch())?;
            for (i, cell) in bytes.chunks_exact(self.pitch()).enumerate() {
                if let Ok(claim) = Claim::from_cell(cell, self.format_id, &self.geometry, i as u16) {
                    lobby[i] = Some(claim);
                }
            }
            if lost || attempt == ATTEMPTS || lobby.iter().all(Option::is_some) {
                break;
            }
            std::thread::sleep(RETRY);
        }
        Ok(lobby)
    }

    /// One lobby cell.
    pub fn read_claim(&self, cell: u16) -> Result<Option<Claim>> {
        let (bytes, _) = self.read(self.geometry.lobby_cell(cell), self.pitch(), self.pitch())?;
        Ok(Claim::from_cell(&bytes, self.format_id, &self.geometry, cell).ok())
    }

    /// Write a lobby cell.
    pub fn write_claim(&self, cell: u16, claim: &Claim) -> Result<()> {
        let bytes = claim.to_cell(self.format_id, &self.geometry, cell);
        self.device.write(self.geometry.lobby_cell(cell), &bytes)
    }

    /// Byte range whose exclusive lock a mount holds while it has `slot`.
    pub fn slot_range(&self, slot: SlotId) -> (u64, u64) {
        (self.geometry.heartbeat_cell(slot), self.pitch() as u64)
    }

    /// Byte range whose exclusive lock serialises first mounts of an image on one machine.
    pub fn lobby_range(&self) -> (u64, u64) {
        (self.geometry.lobby_cell(0), u64::from(LOBBY_CELLS) * self.pitch() as u64)
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = AgNo> + use<> {
        (0..self.geometry.ag_count).map(AgNo)
    }
}
