//! (room to be filled)
pub mod operations;
pub mod types;
