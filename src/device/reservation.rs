//! Persistent reservations of SCSI and NVMe: the device itself keeps hosts off that are not registered.
//!
//! A *nexus* is a way of one host to the device (SCSI: initiator port and target port; NVMe: the host's
//! identifier). A nexus may register a key; registrations outlast power cuts. A reservation of either
//! [`Kind`] lets registered nexuses write and no other. Any registered nexus may take a key away from all
//! nexuses that have it: what they send from then on fails.
//!
//! The trait says what both standards share (SPC-4 5.13, NVMe base 8.19), so that all above is tested on a
//! simulated device.

use std::fmt;

/// Which reservation: both let all registered nexuses write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Write Exclusive, All Registrants: held by all that are registered, and gone with the last of them.
    AllRegistrants,
    /// Write Exclusive, Registrants Only: held by one nexus, and gone when that one unregisters.
    RegistrantsOnly,
}

/// Why the device did not do as it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is not that of this nexus, or no nexus has the other key, or somebody else has the reservation.
    Conflict,
    /// The device, its driver or this way to it has no such command.
    Unsupported(String),
    /// It failed; whether it was done is not known.
    Failed(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Conflict => f.write_str("reservation conflict"),
            Refused::Unsupported(why) => write!(f, "not supported ({why})"),
            Refused::Failed(why) => f.write_str(why),
        }
    }
}

/// What the device answered.
pub type Answer<T> = Result<T, Refused>;

/// Who is registered with the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One per registered nexus; hosts with several ways have theirs several times.
    pub keys: Vec<u64>,
    /// The reservation, if there is one; all registered nexuses hold that of [`Kind::AllRegistrants`].
    pub held: Option<Held>,
}

/// A reservation that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Of the holder; 0 where all registered nexuses hold it.
    pub key: u64,
    /// `None`: another one than those that we make.
    pub kind: Option<Kind>,
}

/// Commands on one nexus. They may take seconds.
pub trait Reservations: Send + Sync {
    /// Change the key of this nexus from `old` (0: it has none) to `new` (not 0).
    fn register(&self, old: u64, new: u64) -> Answer<()>;
    /// Register `new` whatever the key of this nexus was.
    fn replace(&self, new: u64) -> Answer<()>;
    /// Take `key`, which is this nexus's, back.
    fn unregister(&self, key: u64) -> Answer<()>;
    /// Make a reservation; it succeeds also if this nexus holds one of that kind.
    fn reserve(&self, key: u64, kind: Kind) -> Answer<()>;
    /// Take `victim` away from all nexuses that have it, and the reservation with it if that was the holder's.
    /// `abort`: the answer comes when nothing that they have sent is under way in the device any more.
    fn preempt(&self, key: u64, victim: u64, kind: Kind, abort: bool) -> Answer<()>;
    /// Does the answer to a preemption with `abort` tell that for certain? NVMe aborts as well as it can.
    fn is_abort_certain(&self) -> bool {
        true
    }
    /// Take all keys and the reservation away.
    fn clear(&self, key: u64) -> Answer<()>;
    /// Who is registered; not every way to a device can tell.
    fn report(&self) -> Answer<Report>;
}
