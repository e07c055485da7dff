//! Shared by the tests.
#![allow(dead_code)]

pub mod journal_rig;
pub mod lun;
pub mod port;
pub mod simdisk;
pub mod sweep;
