//! Shared by the tests.
#![allow(dead_code)]

pub mod journal_rig;
pub mod simdisk;
