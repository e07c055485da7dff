//! A slot's ballot block: its register in Disk Paxos (Gafni and Lamport) and the newest view it
//! knows to be decided. `mbal`, `bal` and `input` always speak of the epoch after `decided`.
//!
//! | offset in body | size | field |
//! |---|---|---|
//! | 0 | 8 | mbal |
//! | 8 | 8 | bal |
//! | 16 | 8 | incarnation of the writer |
//! | 24 | 40 | zero |
//! | 64 | 1088 | decided view |
//! | 1152 | 1088 | input: the value accepted at `bal` (epoch 0 = none) |

use super::view::{RawView, View};
use crate::base::{BlockNo, Error, Incarnation, LockName, Result, SlotId, Version};
use crate::format::block::{Block, BlockKind};
use crate::format::layout::Geometry;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a ballot block says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ballot {
    /// Highest ballot number started.
    pub mbal: u64,
    /// Ballot number at which `input` was accepted; 0 = none.
    pub bal: u64,
    /// The accepted value for the epoch after `decided`.
    pub input: Option<View>,
    pub decided: View,
}

/// The body as it stands on the disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawBallot {
    pub mbal: U64,
    pub bal: U64,
    pub incarnation: U64,
    pub zero: [u8; 40],
    pub decided: RawView,
    pub input: RawView,
}

const _: () = assert!(size_of::<RawBallot>() == 64 + 2 * 1088);

impl Ballot {
    /// A register that has taken part in nothing since `decided`.
    pub fn idle(decided: View) -> Ballot {
        Ballot { mbal: 0, bal: 0, input: None, decided }
    }

    /// The block to write as write number `sequence`, sealed, and its place: copies alternate.
    pub fn to_block(
        &self,
        format_id: u64,
        geometry: &Geometry,
        slot: SlotId,
        incarnation: Incarnation,
        sequence: u64,
    ) -> (BlockNo, Block) {
        let place = geometry.ballot(slot, (sequence % 2) as u8);
        let cover = LockName::Slot(slot);
        let mut block =
            Block::init(format_id, place, BlockKind::Ballot, slot.0.into(), cover, Version(sequence));
        let raw = block.body_as_mut::<RawBallot>();
        *raw = RawBallot::new_zeroed();
        raw.mbal = U64::new(self.mbal);
        raw.bal = U64::new(self.bal);
        raw.incarnation = U64::new(incarnation.0);
        raw.decided = RawView::of(Some(&self.decided));
        raw.input = RawView::of(self.input.as_ref());
        block.seal();
        (place, block)
    }

    /// Verify and decode one copy: the ballot and its sequence number.
    ///
    /// # Errors
    /// [`Error::Corrupt`]/[`Error::Device`]: torn or damaged; read again, never skip.
    pub fn from_block(
        block: &Block,
        format_id: u64,
        geometry: &Geometry,
        slot: SlotId,
        copy: u8,
    ) -> Result<(Ballot, u64)> {
        block.verify(format_id, geometry.ballot(slot, copy), BlockKind::Ballot)?;
        let raw = block.body_as::<RawBallot>();
        let decided = raw
            .decided
            .to_view()?
            .ok_or_else(|| Error::Device(format!("ballot of slot {slot} has no decided view")))?;
        let ballot =
            Ballot { mbal: raw.mbal.get(), bal: raw.bal.get(), input: raw.input.to_view()?, decided };
        Ok((ballot, block.version().0))
    }

    /// Both copies as mkfs writes them.
    pub fn initial_blocks(
        format_id: u64,
        geometry: &Geometry,
        slot: SlotId,
        view: &View,
    ) -> [(BlockNo, Block); 2] {
        let ballot = Ballot::idle(view.clone());
        [2, 1].map(|sequence| ballot.to_block(format_id, geometry, slot, Incarnation(0), sequence))
    }
}
