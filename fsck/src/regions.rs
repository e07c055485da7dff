//! What lies before the groups: superblock and backups, volume block, heartbeats, ballots, ledgers,
//! inboxes, lobby.

use crate::finding::{Code, Findings, Place};
use crate::image::{Image, words};
use shoal::base::{AgNo, BLOCK_SIZE, BlockNo, Result, SlotId, Token};
use shoal::device::BlockDevice;
use shoal::format::Block;
use shoal::format::cluster::inbox::RegisterCell;
use shoal::format::cluster::{Ballot, CELL_SIZE, Claim, Heartbeat, LedgerEntry, LedgerPage, SlotState, View};
use shoal::format::layout::{
    BACKUP_SUPERBLOCK, LEDGER_ENTRIES_PER_PAGE, LOBBY_CELLS, SUPERBLOCK, VOLUME_BLOCKS,
};
use shoal::format::superblock::{LoadedFrom, Superblock};
use shoal::format::volume::Volume;

fn read(device: &dyn BlockDevice, block: BlockNo) -> Result<Block> {
    let mut b = Block::zeroed();
    device.read(block.byte(), &mut b.0)?;
    Ok(b)
}

/// The superblock's places, and the copies of the volume block.
pub fn check_superblocks(image: &Image, from: LoadedFrom, findings: &mut Findings) {
    let (device, sb) = (&*image.device, &image.superblock);
    if let LoadedFrom::Backup(used) = from {
        let what = format!("it is not valid; the backup in block {used} was used");
        findings.add(Code::SuperblockDamaged, Place::Block(SUPERBLOCK), what);
    }
    for place in [Some(BACKUP_SUPERBLOCK), sb.geometry.group_backup_superblock()].into_iter().flatten() {
        match read(device, place).and_then(|b| Superblock::from_block(&b, place)) {
            Ok(backup) if backup == *sb => {}
            Ok(_) => findings.add(
                Code::BackupDiffers,
                Place::Block(place),
                "it is valid, but not the same as the superblock in use",
            ),
            Err(e) => findings.add(Code::BackupDamaged, Place::Block(place), words(&e)),
        }
    }
    for place in VOLUME_BLOCKS {
        if let Err(e) = read(device, place).and_then(|b| Volume::from_block(&b, sb, place)) {
            findings.add(Code::VolumeCopyDamaged, Place::Block(place), words(&e));
        }
    }
}

/// The regions of the coordination protocol.
pub struct Coordination<'a> {
    image: &'a Image,
    findings: &'a mut Findings,
    /// Places that a write which never ended may have left torn.
    pub torn: u64,
}

/// Check all coordination regions. Answers how many places were torn by hosts that died writing.
pub fn check_coordination(image: &Image, findings: &mut Findings) -> u64 {
    let mut c = Coordination { image, findings, torn: 0 };
    c.heartbeats();
    let view = c.ballots();
    c.ledgers(view.as_ref());
    c.cells();
    c.torn
}

impl Coordination<'_> {
    fn slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.image.superblock.geometry.max_slots).map(SlotId)
    }

    fn cell(&self, at: u64) -> Result<Vec<u8>> {
        let mut cell = vec![0; self.image.superblock.geometry.cell_pitch as usize];
        self.image.device.read(at, &mut cell)?;
        Ok(cell)
    }

    /// What a heartbeat says fits the smallest block that a device writes whole: it is never torn.
    fn heartbeats(&mut self) {
        let (g, id) = (self.image.superblock.geometry, self.image.superblock.format_id);
        for slot in self.slots() {
            let cell = self.cell(g.heartbeat_cell(slot));
            if let Err(e) = cell.and_then(|c| Heartbeat::from_cell(&c, id, &g, slot)) {
                let what = format!("its heartbeat: {}", words(&e));
                self.findings.add(Code::HeartbeatDamaged, Place::Slot(slot), what);
            }
        }
    }

    /// Two copies written alternately: the newer one, if any is valid.
    fn newer<T>(
        &mut self,
        (code, slot, what): (Code, SlotId, &str),
        places: [BlockNo; 2],
        decode: impl Fn(&Block, u8) -> Result<(T, u64)>,
    ) -> Option<T> {
        let copy = |i: u8| read(&*self.image.device, places[usize::from(i)]).and_then(|b| decode(&b, i));
        match (copy(0), copy(1)) {
            (Ok(a), Ok(b)) => Some(if a.1 > b.1 { a.0 } else { b.0 }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => {
                // A writer died in the middle. The copy stays torn until its slot is used again, which
                // may be long after everybody else has left in order.
                self.torn += 1;
                Some(one.0)
            }
            (Err(_), Err(e)) => {
                let text = format!("no copy of {what} is valid: {}", words(&e));
                self.findings.add(code, Place::Slot(slot), text);
                None
            }
        }
    }

    fn ballots(&mut self) -> Option<View> {
        let (g, id) = (self.image.superblock.geometry, self.image.superblock.format_id);
        let mut newest: Option<(SlotId, View)> = None;
        for slot in self.slots() {
            let places = [g.ballot(slot, 0), g.ballot(slot, 1)];
            let ballot = self.newer((Code::BallotDamaged, slot, "its ballot"), places, |b, copy| {
                Ballot::from_block(b, id, &g, slot, copy)
            });
            let Some(Ballot { decided, .. }) = ballot else { continue };
            match &newest {
                Some((other, view)) if view.epoch == decided.epoch && *view != decided => {
                    let what = format!("its view {} is not that of slot {other}", decided.epoch);
                    self.findings.add(Code::ViewsDisagree, Place::Slot(slot), what);
                }
                Some((_, view)) if view.epoch >= decided.epoch => {}
                _ => newest = Some((slot, decided)),
            }
        }
        newest.map(|(_, view)| view)
    }

    fn ledgers(&mut self, view: Option<&View>) {
        let (g, id) = (self.image.superblock.geometry, self.image.superblock.format_id);
        let count = self.image.volume.ag_count;
        // The highest token of each group, and who has it.
        let mut owners: Vec<(Token, Vec<SlotId>)> = vec![(Token(0), Vec::new()); count as usize];
        let mut whole = true;
        for slot in self.slots() {
            for page in 0..u64::from(count).div_ceil(LEDGER_ENTRIES_PER_PAGE) as u32 {
                let places = [g.ledger(slot, page, 0), g.ledger(slot, page, 1)];
                let what = format!("page {page} of its ledger");
                let ledger = self.newer((Code::LedgerDamaged, slot, &what), places, |b, copy| {
                    LedgerPage::from_block(b, id, &g, slot, page, copy)
                });
                let Some(ledger) = ledger else {
                    whole = false;
                    continue;
                };
                let first = page as usize * LEDGER_ENTRIES_PER_PAGE as usize;
                for (owner, entry) in owners.iter_mut().skip(first).zip(&ledger.entries) {
                    note_owner(owner, slot, *entry);
                }
            }
        }
        for (ag, (token, slots)) in owners.iter().enumerate().filter(|_| whole) {
            self.owner(AgNo(ag as u32), *token, slots, view);
        }
    }

    fn owner(&mut self, ag: AgNo, token: Token, slots: &[SlotId], view: Option<&View>) {
        let what = match slots {
            [] => "no slot owns it".to_string(),
            [one] => {
                let state = view.and_then(|v| v.slots.get(usize::from(one.0))).map(|s| s.state);
                if state != Some(SlotState::Empty) {
                    return;
                }
                format!("its owner under token {token}, slot {one}, is empty in the view")
            }
            [one, two, ..] => format!("slots {one} and {two} both own it under token {token}"),
        };
        self.findings.add(Code::OwnerConflict, Place::Group(ag.0), what);
    }

    fn cells(&mut self) {
        let (g, id) = (self.image.superblock.geometry, self.image.superblock.format_id);
        for to in self.slots() {
            let mut row = vec![0; g.row_blocks() as usize * BLOCK_SIZE];
            let read = self.image.device.read(g.inbox_cell(to, SlotId(0)), &mut row);
            if let Err(e) = read {
                self.findings.add(Code::CellDamaged, Place::Slot(to), words(&e));
                continue;
            }
            for (from, cell) in self.slots().zip(row.chunks_exact(g.cell_pitch as usize)) {
                let Err(e) = RegisterCell::from_cell(cell, id, &g, to, from) else { continue };
                if g.cell_pitch as usize > CELL_SIZE {
                    // A death in the middle of writing it; it stays until its writer has more to say.
                    self.torn += 1;
                    continue;
                }
                let what = format!("its inbox from slot {from}: {}", words(&e));
                self.findings.add(Code::CellDamaged, Place::Slot(to), what);
            }
        }
        for cell in 0..LOBBY_CELLS {
            let bytes = self.cell(g.lobby_cell(cell));
            if let Err(e) = bytes.and_then(|b| Claim::from_cell(&b, id, &g, cell)) {
                let what = format!("lobby cell {cell}: {}", words(&e));
                self.findings.add(Code::CellDamaged, Place::Volume, what);
            }
        }
    }
}

fn note_owner((highest, slots): &mut (Token, Vec<SlotId>), slot: SlotId, entry: LedgerEntry) {
    if entry.token() > *highest {
        (*highest, *slots) = (entry.token(), Vec::new());
    }
    if matches!(entry, LedgerEntry::Own(token) if token == *highest && token.0 > 0) {
        slots.push(slot);
    }
}
