//! (room to be filled)
pub mod types;
