//! The heartbeat cell: what a host tells all others once a beat.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 64 | cell header; its sequence is the counter |
//! | 64 | 16 | host uuid |
//! | 80 | 16 | boot id |
//! | 96 | 8 | epoch of the newest view known |
//! | 104 | 8 | newest epoch acknowledged: no ledger write of an older one is in flight |
//! | 112 | 8 | exclusion mask: slots this host acts on as dead |
//! | 120 | 8 | ledger sequence: grows with each own ledger write |
//! | 128 | 8 | incarnation of a joiner that was refused, 0 = none |
//! | 136 | 2 | why (see [`Refusal`]) |
//! | 138 | 2 | protocol, oldest spoken |
//! | 140 | 2 | protocol, newest spoken |
//! | 142 | 2 | flags: 1 leaving, 2 recovering, 4 fencing, 8 replaying for the dead |
//! | 144 | 8 | journal head |
//! | 152 | 8 | journal tail |
//! | 160 | 8 | free data blocks of the groups this host holds |
//! | 168 | 8 | free metadata blocks of them |
//! | 176 | 8 | groups held |
//! | 184 | 8 | wall clock of the beat, ms since 1970 (for people only) |
//! | 192 | 8 | st_dev of the device file |
//! | 200 | 8 | st_ino |
//! | 208 | 8 | st_rdev, 0 for an image file |
//! | 216 | 8 | reservation key, 0 = none |
//! | 224 | 8 | when the replay of a journal began, ms since 1970; 0 = none under way (for people only) |
//! | 232 | 4 | blocks of it that are done |
//! | 236 | 4 | blocks that it has, 0 = not known yet |
//! | 240 | 2 | whose journal: slot |
//! | 242 | 6 | zero |
//! | 248 | 64 | host name |
//! | 312 | 96 | device path |
//! | 408 | 4 | failed attempts to keep a dead host off the disk, 0 = none |
//! | 412 | 2 | slot of that host |
//! | 414 | 2 | zero |
//! | 416 | 96 | why the last one failed |

use super::{CELL_SIZE, CellHeader, Stamp, get_name, open_cell, put_name, seal_cell};
use crate::base::{Epoch, Incarnation, Result, SlotId};
use crate::format::layout::Geometry;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"SHHB";

/// The host is leaving: flushing before its slot becomes clean.
pub const FLAG_LEAVING: u16 = 1;
/// The host replays the journals that it found at its mount.
pub const FLAG_RECOVERING: u16 = 2;
/// The host waits until nothing of the dead that it sees to can land any more.
pub const FLAG_FENCING: u16 = 4;
/// The host replays their journals while others live.
pub const FLAG_REPLAYING: u16 = 8;

/// Why a joiner was turned away. Numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Refusal {
    NoSlot = 1,
    Protocol = 2,
}

impl Refusal {
    /// From the on-disk number.
    pub fn from_raw(raw: u16) -> Option<Refusal> {
        [Refusal::NoSlot, Refusal::Protocol].into_iter().find(|r| *r as u16 == raw)
    }
}

/// Which file a mount opened, so that another mount on the same machine can prove it gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceFile {
    pub dev: u64,
    pub ino: u64,
    /// 0 for an image file.
    pub rdev: u64,
}

/// A dead host that could not be kept off the disk yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FenceTrouble {
    pub slot: SlotId,
    pub attempts: u32,
    /// Why the last attempt failed.
    pub error: String,
}

/// How far a host is with the journal of one that died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Replaying {
    /// Whose journal.
    pub slot: SlotId,
    /// By this host's clock.
    pub since_ms: u64,
    /// Blocks that stand in place now, of so many that the journal has; none as long as it is being read.
    pub done: u32,
    pub total: u32,
}

/// What a heartbeat cell says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    pub slot: SlotId,
    /// 0 = never written by a mount.
    pub incarnation: Incarnation,
    pub counter: u64,
    pub host: [u8; 16],
    pub boot: [u8; 16],
    pub epoch: Epoch,
    pub ack: Epoch,
    pub excluded: u64,
    pub ledger_sequence: u64,
    pub refused: Option<(Incarnation, Refusal)>,
    /// Oldest and newest protocol spoken.
    pub protocols: (u16, u16),
    pub flags: u16,
    pub journal_head: u64,
    pub journal_tail: u64,
    pub free_data: u64,
    pub free_meta: u64,
    pub groups: u64,
    pub wall_ms: u64,
    pub file: DeviceFile,
    /// The key that this mount has registered with the device.
    pub reservation_key: u64,
    /// A dead host that could not be kept off the disk yet.
    pub fencing: Option<FenceTrouble>,
    /// The journal that this host is replaying.
    pub replaying: Option<Replaying>,
    pub name: String,
    pub device: String,
}

/// The cell as it stands on the disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeartbeat {
    pub header: CellHeader,
    pub host: [u8; 16],
    pub boot: [u8; 16],
    pub epoch: U64,
    pub ack: U64,
    pub excluded: U64,
    pub ledger_sequence: U64,
    pub refused: U64,
    pub refusal: U16,
    pub protocol_min: U16,
    pub protocol_max: U16,
    pub flags: U16,
    pub journal_head: U64,
    pub journal_tail: U64,
    pub free_data: U64,
    pub free_meta: U64,
    pub groups: U64,
    pub wall_ms: U64,
    pub dev: U64,
    pub ino: U64,
    pub rdev: U64,
    pub reservation_key: U64,
    pub replay_since: U64,
    pub replay_done: U32,
    pub replay_total: U32,
    pub replay_slot: U16,
    pub zero: [u8; 6],
    pub name: [u8; 64],
    pub device: [u8; 96],
    pub fence_attempts: U32,
    pub fence_slot: U16,
    pub zero2: [u8; 2],
    pub fence_error: [u8; 96],
}

const _: () = assert!(size_of::<RawHeartbeat>() == CELL_SIZE);

impl Heartbeat {
    /// The cell to write, one pitch long.
    pub fn to_cell(&self, format_id: u64, geometry: &Geometry) -> Vec<u8> {
        let mut raw = RawHeartbeat::new_zeroed();
        raw.host = self.host;
        raw.boot = self.boot;
        raw.epoch = U64::new(self.epoch.0);
        raw.ack = U64::new(self.ack.0);
        raw.excluded = U64::new(self.excluded);
        raw.ledger_sequence = U64::new(self.ledger_sequence);
        if let Some((incarnation, why)) = self.refused {
            raw.refused = U64::new(incarnation.0);
            raw.refusal = U16::new(why as u16);
        }
        raw.protocol_min = U16::new(self.protocols.0);
        raw.protocol_max = U16::new(self.protocols.1);
        raw.flags = U16::new(self.flags);
        raw.journal_head = U64::new(self.journal_head);
        raw.journal_tail = U64::new(self.journal_tail);
        raw.free_data = U64::new(self.free_data);
        raw.free_meta = U64::new(self.free_meta);
        raw.groups = U64::new(self.groups);
        raw.wall_ms = U64::new(self.wall_ms);
        raw.dev = U64::new(self.file.dev);
        raw.ino = U64::new(self.file.ino);
        raw.rdev = U64::new(self.file.rdev);
        raw.reservation_key = U64::new(self.reservation_key);
        if let Some(trouble) = &self.fencing {
            raw.fence_attempts = U32::new(trouble.attempts.max(1));
            raw.fence_slot = U16::new(trouble.slot.0);
            put_name(&mut raw.fence_error, &trouble.error);
        }
        if let Some(replaying) = &self.replaying {
            raw.replay_since = U64::new(replaying.since_ms.max(1));
            raw.replay_done = U32::new(replaying.done);
            raw.replay_total = U32::new(replaying.total);
            raw.replay_slot = U16::new(replaying.slot.0);
        }
        put_name(&mut raw.name, &self.name);
        put_name(&mut raw.device, &self.device);
        let mut cell = vec![0; geometry.cell_pitch as usize];
        cell[..CELL_SIZE].copy_from_slice(raw.as_bytes());
        let stamp = Stamp { slot: self.slot, incarnation: self.incarnation, sequence: self.counter };
        seal_cell(&mut cell, MAGIC, format_id, geometry.heartbeat_cell(self.slot), stamp);
        cell
    }

    /// Verify and decode the cell of `slot`.
    ///
    /// # Errors
    /// [`crate::base::Error::Device`]: torn or damaged, nothing is known.
    pub fn from_cell(cell: &[u8], format_id: u64, geometry: &Geometry, slot: SlotId) -> Result<Heartbeat> {
        let stamp = open_cell(cell, MAGIC, format_id, geometry.heartbeat_cell(slot))?;
        let raw = RawHeartbeat::ref_from_prefix(cell).expect("open_cell checked the length").0;
        let refused = Incarnation(raw.refused.get());
        Ok(Heartbeat {
            slot,
            incarnation: stamp.incarnation,
            counter: stamp.sequence,
            host: raw.host,
            boot: raw.boot,
            epoch: Epoch(raw.epoch.get()),
            ack: Epoch(raw.ack.get()),
            excluded: raw.excluded.get(),
            ledger_sequence: raw.ledger_sequence.get(),
            refused: Refusal::from_raw(raw.refusal.get()).map(|why| (refused, why)),
            protocols: (raw.protocol_min.get(), raw.protocol_max.get()),
            flags: raw.flags.get(),
            journal_head: raw.journal_head.get(),
            journal_tail: raw.journal_tail.get(),
            free_data: raw.free_data.get(),
            free_meta: raw.free_meta.get(),
            groups: raw.groups.get(),
            wall_ms: raw.wall_ms.get(),
            file: DeviceFile { dev: raw.dev.get(), ino: raw.ino.get(), rdev: raw.rdev.get() },
            reservation_key: raw.reservation_key.get(),
            fencing: (raw.fence_attempts.get() != 0).then(|| FenceTrouble {
                slot: SlotId(raw.fence_slot.get()),
                attempts: raw.fence_attempts.get(),
                error: get_name(&raw.fence_error),
            }),
            replaying: (raw.replay_since.get() != 0).then(|| Replaying {
                slot: SlotId(raw.replay_slot.get()),
                since_ms: raw.replay_since.get(),
                done: raw.replay_done.get(),
                total: raw.replay_total.get(),
            }),
            name: get_name(&raw.name),
            device: get_name(&raw.device),
        })
    }
}

/// The cell of a slot that no mount ever had.
pub fn empty_cell(format_id: u64, geometry: &Geometry, slot: SlotId) -> Vec<u8> {
    Heartbeat { slot, ..Heartbeat::default() }.to_cell(format_id, geometry)
}
