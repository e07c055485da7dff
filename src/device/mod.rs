//! Block I/O on the shared device. Level 1.
//!
//! Requests are whole blocks at block offsets. The trait [`BlockDevice`] stands in `base`, because the
//! records' own loading (`format`) speaks it too; a simulated disk in `tests/` implements it with
//! delays, tears, losses and errors.

pub mod child;
mod discards;
mod exclusive;
mod file;
mod fitness;
pub mod local;
mod meter;
pub mod mountinfo;
pub mod pr;
pub mod probe;
pub mod reservation;
mod sentinel;

pub use crate::base::{BlockDevice, Discards, IoCounts};
pub use exclusive::{Exclusive, claim_again};
pub use file::{Access, FileDevice, Medium};
pub use fitness::{Fitness, fitness};
pub use meter::{Meter, Region};
pub use reservation::Reservations;
pub use sentinel::Sentinel;
