//! A membership view: who is a member, and who looks after those who are not.

use crate::base::{Epoch, Error, Incarnation, Result, SlotId};
use crate::format::layout::SLOTS_MAX;
use crate::format::superblock::TimingProfile;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Who adopts the groups and orphans of a slot that has no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Adopter {
    Slot(SlotId),
    /// The lowest slot added by the next view that adds one.
    NextJoiner,
}

/// What a slot is in a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SlotState {
    /// Nothing of value: no groups, no orphans, no journal content.
    Empty,
    /// A member. `former` looked after the slot before this incarnation took it: the new one waits
    /// for its acknowledgement of the view, because its adoptions may still be in flight.
    Live { former: Option<SlotId> },
    /// Excluded; its journal is not replayed yet. The adopter sees to it.
    Dead { adopter: SlotId },
    /// Journal empty; groups and orphans belong to the adopter.
    Clean { adopter: Adopter },
}

/// One slot of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotView {
    pub state: SlotState,
    /// The mount that is or was the member; 0 = none ever.
    pub incarnation: Incarnation,
}

/// A decided or proposed membership.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    pub epoch: Epoch,
    /// Features all members use.
    pub features: u64,
    /// Protocol version all members speak.
    pub protocol: u16,
    /// How hosts that die are kept off the disk; see [`FenceClass`].
    pub fence: u8,
    /// A host was kept off by the device since its reservation was made: whoever leaves last lets it stand,
    /// for that host may still be stopped, with writes queued.
    pub fenced: bool,
    /// The times that all members go by; `None`: what mkfs wrote, nobody has mounted it yet.
    pub timing: Option<TimingProfile>,
    /// One per slot the layout has room for.
    pub slots: Vec<SlotView>,
}

/// How hosts that die are kept off the disk. Numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FenceClass {
    /// By time alone.
    Lease = 0,
    /// By persistent reservations of the device.
    Reservation = 1,
    /// By a program of the administrator.
    Command = 2,
}

impl FenceClass {
    /// From the on-disk number.
    pub fn from_raw(raw: u8) -> Option<FenceClass> {
        [FenceClass::Lease, FenceClass::Reservation, FenceClass::Command]
            .into_iter()
            .find(|c| *c as u8 == raw)
    }

    /// As it is written in mount options and listings.
    pub fn name(self) -> &'static str {
        match self {
            FenceClass::Lease => "lease",
            FenceClass::Reservation => "reservation",
            FenceClass::Command => "command",
        }
    }
}

/// The oldest protocol version that this code speaks. What came with which: 2 file locks in the registers, 3 hosts
/// kept off by the device or a command, 4 the timing profile in the view, 5 requests for shared direct writes, 6 unlocks
/// whose programs know, and questions before a refusal.
pub const PROTOCOL_MIN: u16 = 6;
/// The newest one, which each view has that this code proposes as a first mount.
pub const PROTOCOL: u16 = 6;

impl View {
    /// How hosts that die are kept off. A number that this code does not know is none that it may act by.
    ///
    /// # Errors
    /// [`Error::Device`] for such a number.
    pub fn fence_class(&self) -> Result<FenceClass> {
        FenceClass::from_raw(self.fence).ok_or_else(|| {
            Error::Device(format!(
                "hosts are fenced by a class {} that this release does not know",
                self.fence
            ))
        })
    }

    /// The view mkfs decides: epoch 1, the first `slots` slots clean and waiting for the first
    /// mount, the others empty.
    pub fn initial(max_slots: u16, slots: u16) -> View {
        let state = |s| match s < slots {
            true => SlotState::Clean { adopter: Adopter::NextJoiner },
            false => SlotState::Empty,
        };
        View {
            epoch: Epoch(1),
            features: 0,
            protocol: PROTOCOL,
            fence: FenceClass::Lease as u8,
            fenced: false,
            timing: None,
            slots: (0..max_slots)
                .map(|s| SlotView { state: state(s), incarnation: Incarnation(0) })
                .collect(),
        }
    }
}

const RAW_SLOT_NONE: u16 = u16::MAX;
const EMPTY: u8 = 0;
const LIVE: u8 = 1;
const DEAD: u8 = 2;
const CLEAN: u8 = 3;

/// One slot of a view on disk. `adopter` is `0xffff` for none (LIVE) or the next joiner (CLEAN).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawSlotView {
    pub state: u8,
    pub zero: u8,
    pub adopter: U16,
    pub zero2: U32,
    pub incarnation: U64,
}

/// A view on disk.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | epoch, 0 = no view here |
/// | 8 | 8 | features |
/// | 16 | 2 | protocol |
/// | 18 | 2 | slots |
/// | 20 | 1 | fence class |
/// | 21 | 1 | 1: a host was kept off by the device since its reservation was made |
/// | 22 | 1 | timing profile of all members + 1; 0: what mkfs wrote |
/// | 23 | 41 | zero |
/// | 64 | 64 x 16 | slots: state u8, zero u8, adopter u16, zero u32, incarnation u64 |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawView {
    pub epoch: U64,
    pub features: U64,
    pub protocol: U16,
    pub slot_count: U16,
    pub fence: u8,
    pub fenced: u8,
    pub timing: u8,
    pub zero: [u8; 41],
    pub slots: [RawSlotView; SLOTS_MAX as usize],
}

const _: () = assert!(size_of::<RawView>() == 64 + 64 * 16);

impl RawView {
    /// On-disk form of `view`; `None` becomes epoch 0.
    pub fn of(view: Option<&View>) -> RawView {
        let mut raw = RawView::new_zeroed();
        let Some(view) = view else { return raw };
        raw.epoch = U64::new(view.epoch.0);
        raw.features = U64::new(view.features);
        raw.protocol = U16::new(view.protocol);
        raw.slot_count = U16::new(view.slots.len() as u16);
        raw.fence = view.fence;
        raw.fenced = u8::from(view.fenced);
        raw.timing = view.timing.map_or(0, |timing| timing as u8 + 1);
        for (to, from) in raw.slots.iter_mut().zip(&view.slots) {
            let (state, adopter) = match from.state {
                SlotState::Empty => (EMPTY, RAW_SLOT_NONE),
                SlotState::Live { former } => (LIVE, former.map_or(RAW_SLOT_NONE, |s| s.0)),
                SlotState::Dead { adopter } => (DEAD, adopter.0),
                SlotState::Clean { adopter: Adopter::Slot(s) } => (CLEAN, s.0),
                SlotState::Clean { adopter: Adopter::NextJoiner } => (CLEAN, RAW_SLOT_NONE),
            };
            *to = RawSlotView {
                state,
                zero: 0,
                adopter: U16::new(adopter),
                zero2: U32::new(0),
                incarnation: U64::new(from.incarnation.0),
            };
        }
        raw
    }

    /// The view, if there is one.
    ///
    /// # Errors
    /// [`Error::Device`] for values that no version of this code writes.
    pub fn to_view(&self) -> Result<Option<View>> {
        if self.epoch.get() == 0 {
            return Ok(None);
        }
        let count = usize::from(self.slot_count.get());
        if count > self.slots.len() {
            return Err(Error::Device(format!("view {}: {count} slots", self.epoch.get())));
        }
        let timing = match self.timing {
            0 => None,
            n => Some(TimingProfile::from_raw(n - 1).ok_or_else(|| {
                Error::Device(format!(
                    "hosts go by a timing profile {} that this release does not know",
                    n - 1
                ))
            })?),
        };
        let slots = self.slots[..count].iter().map(|s| raw_slot(s, count)).collect::<Result<_>>()?;
        Ok(Some(View {
            epoch: Epoch(self.epoch.get()),
            features: self.features.get(),
            protocol: self.protocol.get(),
            fence: self.fence,
            fenced: self.fenced != 0,
            timing,
            slots,
        }))
    }
}

fn raw_slot(raw: &RawSlotView, count: usize) -> Result<SlotView> {
    let adopter = match raw.adopter.get() {
        RAW_SLOT_NONE => None,
        s if usize::from(s) < count => Some(SlotId(s)),
        s => return Err(Error::Device(format!("view names slot {s} of {count}"))),
    };
    let state = match (raw.state, adopter) {
        (EMPTY, _) => SlotState::Empty,
        (LIVE, former) => SlotState::Live { former },
        (DEAD, Some(adopter)) => SlotState::Dead { adopter },
        (CLEAN, Some(s)) => SlotState::Clean { adopter: Adopter::Slot(s) },
        (CLEAN, None) => SlotState::Clean { adopter: Adopter::NextJoiner },
        (state, _) => return Err(Error::Device(format!("view has a slot of state {state}"))),
    };
    Ok(SlotView { state, incarnation: Incarnation(raw.incarnation.get()) })
}
