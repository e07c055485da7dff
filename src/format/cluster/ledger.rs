//! A slot's ledger: which groups it took, under which token. The highest token of a group over all
//! ledgers counts, so no place ever changes its writer. Pages have two copies written alternately.
//!
//! Body: 252 entries of 16 bytes: token u64, kind u8 (0 none, 1 own, 2 pass), zero u8, to slot u16,
//! low half of the receiving incarnation u32.

use crate::base::{AgNo, BlockNo, Error, LockName, Result, SlotId, Token, Version};
use crate::format::block::{Block, BlockKind};
use crate::format::layout::{Geometry, LEDGER_ENTRIES_PER_PAGE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const ENTRIES: usize = LEDGER_ENTRIES_PER_PAGE as usize;
const OWN: u8 = 1;
const PASS: u8 = 2;

/// What a ledger says of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LedgerEntry {
    #[default]
    None,
    /// The slot of this ledger took the group under this token.
    Own(Token),
    /// It handed the group to `to`, to the incarnation with this low half only.
    Pass { token: Token, to: SlotId, incarnation_low: u32 },
}

impl LedgerEntry {
    /// Its token; 0 for none.
    pub fn token(self) -> Token {
        match self {
            LedgerEntry::None => Token(0),
            LedgerEntry::Own(token) | LedgerEntry::Pass { token, .. } => token,
        }
    }
}

/// An entry as it stands on the disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    pub token: U64,
    pub kind: u8,
    pub zero: u8,
    pub to: U16,
    pub incarnation_low: U32,
}

/// A page's body.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawPage {
    pub entries: [RawEntry; ENTRIES],
}

const _: () = assert!(size_of::<RawPage>() == 4096 - 64);

/// One page: the entries of groups `page * 252` and on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LedgerPage {
    /// Always [`LEDGER_ENTRIES_PER_PAGE`] of them.
    pub entries: Vec<LedgerEntry>,
}

impl LedgerPage {
    /// A page without entries.
    pub fn empty() -> LedgerPage {
        LedgerPage { entries: vec![LedgerEntry::None; ENTRIES] }
    }

    /// The page that holds `ag`, and the entry's index on it.
    pub fn place(ag: AgNo) -> (u32, usize) {
        (ag.0 / ENTRIES as u32, ag.0 as usize % ENTRIES)
    }

    /// The block to write as write number `sequence`, sealed, and its place.
    pub fn to_block(
        &self,
        format_id: u64,
        geometry: &Geometry,
        slot: SlotId,
        page: u32,
        sequence: u64,
    ) -> (BlockNo, Block) {
        let place = geometry.ledger(slot, page, (sequence % 2) as u8);
        let cover = LockName::Slot(slot);
        let mut block =
            Block::init(format_id, place, BlockKind::Ledger, slot.0.into(), cover, Version(sequence));
        let raw = block.body_as_mut::<RawPage>();
        for (to, from) in raw.entries.iter_mut().zip(&self.entries) {
            let (kind, slot, low) = match *from {
                LedgerEntry::None => (0, 0, 0),
                LedgerEntry::Own(_) => (OWN, 0, 0),
                LedgerEntry::Pass { to, incarnation_low, .. } => (PASS, to.0, incarnation_low),
            };
            *to = RawEntry {
                token: U64::new(from.token().0),
                kind,
                zero: 0,
                to: U16::new(slot),
                incarnation_low: U32::new(low),
            };
        }
        block.seal();
        (place, block)
    }

    /// Verify and decode one copy: the page and its sequence number.
    ///
    /// # Errors
    /// [`Error::Corrupt`]/[`Error::Device`]: torn or damaged.
    pub fn from_block(
        block: &Block,
        format_id: u64,
        geometry: &Geometry,
        slot: SlotId,
        page: u32,
        copy: u8,
    ) -> Result<(LedgerPage, u64)> {
        block.verify(format_id, geometry.ledger(slot, page, copy), BlockKind::Ledger)?;
        let entries =
            block.body_as::<RawPage>().entries.iter().map(|raw| decode(raw, slot)).collect::<Result<_>>()?;
        Ok((LedgerPage { entries }, block.version().0))
    }

    /// Both copies as mkfs writes them: slot `s` of `slots` owns the groups `g % slots == s`.
    pub fn initial_blocks(
        format_id: u64,
        geometry: &Geometry,
        slot: SlotId,
        page: u32,
        slots: u16,
    ) -> [(BlockNo, Block); 2] {
        let mut ledger = LedgerPage::empty();
        if slot.0 < slots {
            let first = page * ENTRIES as u32;
            for (i, entry) in ledger.entries.iter_mut().enumerate() {
                let ag = first + i as u32;
                if ag < geometry.ag_count && ag % u32::from(slots) == u32::from(slot.0) {
                    *entry = LedgerEntry::Own(Token(1));
                }
            }
        }
        [2, 1].map(|sequence| ledger.to_block(format_id, geometry, slot, page, sequence))
    }
}

fn decode(raw: &RawEntry, slot: SlotId) -> Result<LedgerEntry> {
    let token = Token(raw.token.get());
    Ok(match raw.kind {
        0 => LedgerEntry::None,
        OWN => LedgerEntry::Own(token),
        PASS => {
            LedgerEntry::Pass { token, to: SlotId(raw.to.get()), incarnation_low: raw.incarnation_low.get() }
        }
        kind => return Err(Error::Device(format!("ledger of slot {slot} has an entry of kind {kind}"))),
    })
}
