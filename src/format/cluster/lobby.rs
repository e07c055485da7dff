//! Lobby cells: who wants to join. Written by anyone; a claim that is overwritten is made again.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 64 | cell header: incarnation of the joiner, sequence grows while it waits |
//! | 64 | 16 | host uuid |
//! | 80 | 2 | kind: 0 none, 1 asks the members, 2 claims slot `cell` of a volume without members |
//! | 82 | 2 | protocol, oldest spoken |
//! | 84 | 2 | protocol, newest spoken |
//! | 86 | 10 | zero |
//! | 96 | 64 | host name |
//! | 160 | 16 | boot id of the host |
//! | 176 | 8 | st_dev of the device file that it has opened |
//! | 184 | 8 | st_ino |
//! | 192 | 8 | st_rdev, 0 for an image file |
//! | 200 | 32 | incarnations of former mounts of this machine that are over for certain, 0 = none |
//! | 232 | 280 | zero |

use super::heartbeat::DeviceFile;
use super::{CELL_SIZE, CellHeader, Stamp, get_name, open_cell, put_name, seal_cell};
use crate::base::{Incarnation, Result, SlotId};
use crate::format::layout::Geometry;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"SHLO";

/// Former mounts that a claim can name.
pub const OVER_MAX: usize = 4;

/// What a claim asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ClaimKind {
    /// Nothing: withdrawn or never used.
    #[default]
    None = 0,
    /// A slot, from the members.
    Join = 1,
    /// To propose from the slot with this cell's number, there being no member.
    First = 2,
}

/// What a lobby cell says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claim {
    pub kind: ClaimKind,
    pub incarnation: Incarnation,
    pub sequence: u64,
    pub host: [u8; 16],
    /// Identity of this boot of it; zero if the claim is from a release that did not tell.
    pub boot: [u8; 16],
    /// What it has opened; of a block device, with its presence lock.
    pub file: DeviceFile,
    /// Oldest and newest protocol spoken.
    pub protocols: (u16, u16),
    pub name: String,
    /// Former mounts of this machine that are over: another boot of it writes this, or their process is gone. That
    /// stays true, whoever reads it when. [`OVER_MAX`] at most.
    pub over: Vec<Incarnation>,
}

/// The cell as it stands on the disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawClaim {
    pub header: CellHeader,
    pub host: [u8; 16],
    pub kind: U16,
    pub protocol_min: U16,
    pub protocol_max: U16,
    pub zero: [u8; 10],
    pub name: [u8; 64],
    pub boot: [u8; 16],
    pub dev: U64,
    pub ino: U64,
    pub rdev: U64,
    pub over: [U64; OVER_MAX],
    pub zero2: [u8; 280],
}

const _: () = assert!(size_of::<RawClaim>() == CELL_SIZE);

impl Claim {
    /// The cell to write, one pitch long.
    pub fn to_cell(&self, format_id: u64, geometry: &Geometry, cell: u16) -> Vec<u8> {
        let mut raw = RawClaim::new_zeroed();
        raw.host = self.host;
        raw.kind = U16::new(self.kind as u16);
        raw.protocol_min = U16::new(self.protocols.0);
        raw.protocol_max = U16::new(self.protocols.1);
        put_name(&mut raw.name, &self.name);
        raw.boot = self.boot;
        raw.dev = U64::new(self.file.dev);
        raw.ino = U64::new(self.file.ino);
        raw.rdev = U64::new(self.file.rdev);
        for (to, from) in raw.over.iter_mut().zip(&self.over) {
            *to = U64::new(from.0);
        }
        let mut bytes = vec![0; geometry.cell_pitch as usize];
        bytes[..CELL_SIZE].copy_from_slice(raw.as_bytes());
        let stamp = Stamp { slot: SlotId(0), incarnation: self.incarnation, sequence: self.sequence };
        seal_cell(&mut bytes, MAGIC, format_id, geometry.lobby_cell(cell), stamp);
        bytes
    }

    /// Verify and decode cell number `cell`.
    ///
    /// # Errors
    /// [`crate::base::Error::Device`]: torn or damaged, nothing is known.
    pub fn from_cell(bytes: &[u8], format_id: u64, geometry: &Geometry, cell: u16) -> Result<Claim> {
        let stamp = open_cell(bytes, MAGIC, format_id, geometry.lobby_cell(cell))?;
        let raw = RawClaim::ref_from_prefix(bytes).expect("open_cell checked the length").0;
        Ok(Claim {
            kind: match raw.kind.get() {
                1 => ClaimKind::Join,
                2 => ClaimKind::First,
                _ => ClaimKind::None,
            },
            incarnation: stamp.incarnation,
            sequence: stamp.sequence,
            host: raw.host,
            boot: raw.boot,
            file: DeviceFile { dev: raw.dev.get(), ino: raw.ino.get(), rdev: raw.rdev.get() },
            protocols: (raw.protocol_min.get(), raw.protocol_max.get()),
            name: get_name(&raw.name),
            over: raw.over.iter().map(|i| Incarnation(i.get())).filter(|i| i.0 != 0).collect(),
        })
    }
}

/// A cell that nobody claims.
pub fn empty_cell(format_id: u64, geometry: &Geometry, cell: u16) -> Vec<u8> {
    Claim::default().to_cell(format_id, geometry, cell)
}
