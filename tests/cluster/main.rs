//! Real mounts of one image as several hosts: litmus tests, random operations against a model, and
//! the death of all hosts. Needs root and /dev/fuse, and `cargo build --workspace` before.
#![cfg(feature = "fuse")]

mod acl;
mod claimed;
mod crash;
mod death;
mod file_locks;
mod freed;
mod full;
mod handle;
mod inode_flags;
mod large_directory;
mod leave;
mod litmus;
mod lock_traffic;
mod matrix;
mod metadata;
mod model;
mod mounting;
mod nameless;
mod pages;
mod posix;
mod privileges;
mod random;
#[allow(dead_code)]
mod rig;
mod rig_stream;
mod rig_xattr;
mod set_id;
mod shared_direct;
mod synced;
mod torture;
mod trimmed;
