//! Cluster locks. Level 4.
pub mod desk;
pub mod holder;
pub mod manager;
pub mod master;
pub mod set;
pub mod table;
pub mod threads;

pub use manager::{DemoteAnswer, DemoteJob, Demoter, LockConfig, LockInfo, LockManager, Pins};
pub use set::LockSet;

#[cfg(test)]
mod manager_tests;
#[cfg(test)]
mod sim_tests;
