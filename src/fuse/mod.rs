//! The kernel adapter and the mount command. Level 10.
//!
//! | file | holds |
//! |---|---|
//! | adapter | fuser's requests to operations, replies back; thin |
//! | reply | how each kind of answer goes back |
//! | directory | listings into the kernel's buffer |
//! | convert | attributes, times and flags between the two worlds |
//! | errno | what an application sees of an error |
//! | notify | invalidation of the kernel's caches |
//! | options | the table of mount options |
//! | mount | mount(2), umount2(2), /proc/self/mountinfo |
//! | daemon | from the command to a served mount: fork, readiness, signals, end |
//! | heap | the daemon's memory for cached blocks |
//! | guardian | the process that ends a daemon which does not run when its lease is over |
//! | log | where the daemon's log goes |
//! | cli | `shoal`, `mount.fuse.shoal`, `umount.fuse.shoal` |

pub mod adapter;
pub mod cli;

mod convert;
pub mod daemon;
mod directory;
pub mod errno;
mod guardian;
pub mod heap;
mod log;
pub mod mount;
pub mod notify;
pub mod options;
mod reply;

pub use notify::Notifier;
