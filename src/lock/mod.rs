//! Cluster locks. Level 4.
pub mod manager;
pub mod set;
pub mod table;

pub use manager::{DemoteAnswer, DemoteJob, Demoter, LockConfig, LockInfo, LockManager, Pins};
pub use set::LockSet;
