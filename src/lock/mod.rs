//! Cluster locks: who may cache and change what, over all hosts. Level 4.
//!
//! [`master`] and [`holder`] are the two sides of the conversation between hosts, [`desk`] is where
//! this host's operations meet it; all three are machines without clock, thread or I/O. [`table`]
//! counts pins (the fast path), [`files`] are the locks of programs (fcntl, flock), [`manager`] and [`threads`] are the driver. Names, their order and
//! the table of conflicts are in [`crate::base::lock_name`].
//!
//! The way of a lock from host A to host B: B's operation waits at B's desk; B's holder puts a
//! request in its register for the master; the master tells A's holder a cap; A's desk closes the
//! lock, waits for its pins, has the file system demote it; A's holder says what it still holds;
//! the master grants; B's file system is told; B's operation gets its pins.
pub mod desk;
pub mod files;
pub mod holder;
pub mod manager;
pub mod master;
pub mod set;
pub mod table;
pub mod threads;

pub use manager::{DemoteAnswer, DemoteJob, Demoter, LockConfig, LockInfo, LockManager, Pins};
pub use set::LockSet;

#[cfg(test)]
mod desk_rig;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod manager_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod sim_world;
#[cfg(test)]
mod turn_tests;
