//! Shoal: a POSIX cluster filesystem for one block device attached to several hosts.
//!
//! Rooms and their levels. An import points to the same room or to a lower level only; rooms of
//! one level do not import each other; an upward call goes through a trait declared below.
//! `tests/house.rs` reads this table and holds the code to it.
//!
//! | level | room | holds |
//! |---|---|---|
//! | 10 | fuse | kernel adapter: thin methods, errno mapping, invalidation, mount options |
//! | 9 | fs | the operations, mount, recovery, coherence |
//! | 8 | dir | directories: names to inode numbers |
//! | 8 | file | file data: extents, delayed allocation, write-back |
//! | 8 | xattr | extended attributes |
//! | 7 | inode | attributes and the item tree |
//! | 6 | alloc | groups, chunks, reservations, deferred frees |
//! | 5 | txn | what the rooms above change blocks through |
//! | 4 | lock | modes, master, holder, the lock manager |
//! | 3 | cluster | heartbeat, views, ledgers, mailboxes, timing |
//! | 3 | journal | log ring, commit, checkpoint, replay |
//! | 2 | store | verified block reads and writes, buffer cache, halt latch |
//! | 1 | device | direct block I/O |
//! | 1 | format | every on-disk record, checksums, layout |
//! | 0 | base | ids, errors, clock, lock names |

pub mod alloc;
pub mod base;
pub mod cluster;
pub mod device;
pub mod dir;
pub mod file;
pub mod format;
pub mod fs;
#[cfg(feature = "fuse")]
pub mod fuse;
pub mod inode;
pub mod journal;
pub mod lock;
pub mod store;
pub mod txn;
pub mod xattr;
