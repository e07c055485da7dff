//! Who is a member, who masters which group, and the registers that members write for each other,
//! all on the shared device. Level 3.
//!
//! Pure machines (no clock, thread or I/O): [`view`] (what may follow a view), [`paxos`] (Disk
//! Paxos), [`member`] (renewal, suspicion), [`proof`] (who is gone from this machine), [`fence`] (when the dead may be acted upon), [`ledger`] and [`ownership`] (who owns which group),
//! [`mailbox`] (what is new in a register). [`driver`] feeds them from one protocol thread per mount; [`disk`] reads and writes
//! the cells.
//!
//! Promises: a view is decided once per epoch and all hosts agree on it; a lease end is reported
//! only after a renewal that no exclusion can have missed; a group has one owner under its highest
//! token; every place is written by one host.

pub mod anew;
mod asking;
mod class;
pub mod command;
pub mod disk;
pub mod driver;
pub mod fence;
pub mod fencer;
mod first_mount;
mod former;
pub mod groups;
pub mod join;
pub mod keys;
mod known;
mod lease;
pub mod ledger;
mod lobby;
pub mod mailbox;
pub mod member;
pub mod membership;
pub mod node;
pub mod ownership;
mod pace;
pub mod paxos;
pub mod proof;
mod registers;
pub mod status;
pub mod takeover;
pub mod timing;
mod tune;
pub mod view;

pub use crate::format::cluster::{Entry, EntryKind, REGISTER_ENTRIES_MAX};
pub use class::{FenceOptions, Wanted};
pub use disk::Disk;
pub use driver::Cluster;
pub use join::{JoinOptions, JoinReport, UNWANTED};
pub use lease::StoreLease;
pub use membership::{Membership, Owner};
pub use node::{HostReport, Positions};
pub use status::{ClusterStatus, HostStatus, read_status};
pub use takeover::Successor;
pub use timing::Timing;
pub use tune::{profile, tune};

use crate::base::{Result, SlotId};
use std::time::Duration;

/// The lock room as the protocol thread sees it. All calls come from that one thread, with no lock
/// of the cluster room held; they must not block on anything but short mutexes.
pub trait LockPort: Send + Sync {
    /// The whole register that `from` now has for us; called whenever it was written, and once
    /// (possibly empty) for each new incarnation. `now` (boot time) was just looked at: looking again is a system call where
    /// the kernel has no quicker way.
    fn on_entries(&self, now: Duration, from: SlotId, entries: &[Entry]);
    /// The whole register we have for each of `to`, the oldest matters first; at most
    /// [`REGISTER_ENTRIES_MAX`] (what is beyond waits until earlier ones leave). All at once: whoever asks
    /// renews the lease, and waits for the port but once.
    fn outgoing(&self, to: &[SlotId]) -> Vec<Vec<Entry>>;
    /// Members, silence or owners have changed.
    fn on_view(&self, members: &Membership);
    /// Has somebody here asked a moment ago for what another host may have to say?
    fn is_awaiting(&self, _now: Duration) -> bool {
        false
    }
    /// Run timers; called several times a second, and at each beat.
    fn tick(&self, now: Duration);
}

/// The store's write permit and halt latch as the protocol thread sees them.
pub trait LeaseSink: Send + Sync {
    /// A renewal is confirmed: shared blocks may be written until `write_until` (boot time), and
    /// nothing may be acknowledged outside after `lease_end`.
    fn renewed(&self, lease_end: Duration, write_until: Duration);
    /// Is the device still the volume that was loaded? Asked before each write that is made without
    /// living members, who would keep others from making it anew.
    ///
    /// # Errors
    /// Says what is there instead.
    fn confirm(&self) -> Result<()> {
        Ok(())
    }
    /// Is nobody to have this mount any more? Asked as long as it is on its way in: it gives up then.
    fn is_unwanted(&self) -> bool {
        false
    }
    /// Called on the thread that renews from now on, which must not wait behind others for a processor.
    fn renewed_here(&self) {}
    /// This mount is no member any more, for ever.
    fn lost(&self, reason: &str);
}

/// Exclusive byte-range locks on the open device file, seen by every mount of the same file on this
/// machine (open file description locks). They end when the file is closed, with the process at the
/// latest: until then a mount that did not leave may still be writing.
pub trait SlotClaim: Send + Sync {
    /// Take the range, without waiting; `false` if another mount has it. Taking it again succeeds.
    fn try_hold(&self, offset: u64, length: u64) -> Result<bool>;
    /// Give it back.
    fn release(&self, offset: u64, length: u64) -> Result<()>;
}

#[cfg(test)]
mod tests;
