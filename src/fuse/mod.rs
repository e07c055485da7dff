//! The kernel adapter and the mount command. Level 10.
//!
//! | file | holds |
//! |---|---|
//! | wire | the protocol: records, requests, the bargain at INIT; no input or output |
//! | channel | the open /dev/fuse |
//! | buffer | memory for requests, with a WRITE's payload on pages of its own |
//! | session | INIT, then requests on several threads until the end |
//! | reply | the duty to answer, once, from whatever thread |
//! | interrupt | requests on their way, and signals for those who wait |
//! | adapter | requests to operations; thin |
//! | answer | how each kind of answer goes back |
//! | ioctl | flags of inodes, FITRIM |
//! | directory | listings into the kernel's buffer |
//! | convert | attributes, times and flags between the two worlds |
//! | errno | what an application sees of an error |
//! | notify | invalidation of the kernel's caches |
//! | options | the table of mount options |
//! | mount | mount(2), umount2(2), /proc/self/mountinfo |
//! | daemon | from the command to a served mount: fork, readiness, signals, end |
//! | heap | the daemon's memory for cached blocks |
//! | guardian | the process that ends a daemon which does not run when its lease is over |
//! | claimant | how that process keeps others off the device when the mount was cut |
//! | log | where the daemon's log goes |
//! | context | mounts by way of fsopen(2) |
//! | view | what the kernel remembers of an inode, seen through the mount |
//! | cli | `shoal`, `mount.fuse.shoal`, `umount.fuse.shoal` |

pub mod adapter;
pub mod cli;

mod answer;
pub mod buffer;
mod channel;
mod claimant;
mod context;
mod convert;
pub mod daemon;
mod directory;
pub mod errno;
mod guardian;
pub mod heap;
mod interrupt;
mod ioctl;
mod log;
pub mod mount;
pub mod notify;
pub mod options;
pub mod reply;
pub mod session;
mod view;
pub mod wire;

pub use notify::Notifier;
