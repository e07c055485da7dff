//! Whole hosts, from the operations down, on a simulated disk in this process: crashes at any request
//! to the disk, random work of several hosts in bad weather, full volumes. No kernel is involved.
#![cfg(feature = "fuse")]

#[path = "../common/mod.rs"]
mod common;

mod canary;
mod chaos;
mod closings;
mod cluster;
mod copies;
mod deaths;
mod demotion;
mod draw;
mod durable;
mod fenced;
mod first_mounts;
mod flushing;
mod host;
mod lapsed;
mod leaving;
mod model;
mod orphans;
mod overwrites;
mod points;
mod posix;
mod preallocated;
mod quiet;
mod refused;
mod replayed;
mod reused;
mod runs;
mod shared;
mod space;
mod story;
mod streamed;
mod successor;
mod taken;
mod tree;
mod trimmed;
mod unwanted;
mod unwritable;
mod worker;
mod workloads;
mod zeroed;
