//! One closed error for the world below the door; errno only in `fuse/`.
//!
//! Assertions are for our own bugs; this is for everything the world can do to us.

use crate::base::{BlockNo, InodeNo};
use std::fmt;

/// What the kernel says of a request that ended with a reservation conflict, and of nothing else.
const EBADE: i32 = 52;

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong, with the block, inode or option it concerns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A block's content is not what must stand there.
    #[error(
        "block {block} is corrupt: {kind}: expected {expected}, found {found}; run fsck.shoal on the unmounted volume"
    )]
    Corrupt { block: BlockNo, kind: String, expected: String, found: String },
    /// A structure spread over blocks contradicts itself.
    #[error("inode {inode} is damaged: {what}; run fsck.shoal on the unmounted volume")]
    Damaged { inode: InodeNo, what: String },
    /// The device refused.
    #[error("I/O error: {op} at byte {offset}, {length} bytes: {cause}")]
    Io { op: &'static str, offset: u64, length: u64, cause: String },
    /// The device refuses this host's writes: it bears a reservation that this host has no part in (any more).
    #[error(
        "reservation conflict: {op} at byte {offset}: the device refuses writes of this host, which another host \
         or program keeps off it (see `shoal fence` for the keys)"
    )]
    Fenced { op: &'static str, offset: u64 },
    /// The device as a whole is not usable (not a Shoal volume, in use, too small ...).
    #[error("{0}")]
    Device(String),
    /// This host may not write any more; it must be unmounted and mounted again.
    #[error("this host has halted ({0}); unmount and mount again")]
    Halted(String),
    /// A journal handle asks for more than the log can ever hold.
    #[error("a change of {blocks} blocks does not fit the journal ({limit} at most)")]
    ChangeTooLarge { blocks: u64, limit: u64 },
    /// Space must first be acquired from another group; the operation is run again then.
    #[error("space must be acquired first")]
    NeedSpace,
    #[error("no such file or directory")]
    NotFound,
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("no space left on the volume")]
    NoSpace,
    #[error("file too large")]
    FileTooLarge,
    #[error("name too long")]
    NameTooLong,
    #[error("too many links")]
    TooManyLinks,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("the inode is gone")]
    Stale,
    #[error("no such attribute")]
    NoAttribute,
    #[error("result does not fit the buffer")]
    Range,
    #[error("argument list too long")]
    TooBig,
    #[error("operation not permitted")]
    NotPermitted,
    #[error("permission denied")]
    AccessDenied,
    #[error("the volume is mounted read-only")]
    ReadOnly,
    #[error("operation not supported: {0}")]
    Unsupported(&'static str),
    #[error("busy: {0}")]
    Busy(String),
    #[error("no data at or after this offset")]
    NoData,
    #[error("out of memory")]
    OutOfMemory,
    /// A file lock is in the way of a request that does not wait.
    #[error("locked by another")]
    Locked,
    #[error("waiting for this lock would never end")]
    Deadlock,
    #[error("no more file locks")]
    NoLocks,
    #[error("interrupted")]
    Interrupted,
    #[error("timed out: {0}")]
    TimedOut(String),
}

impl Error {
    /// A block that fails verification.
    pub fn corrupt(
        block: BlockNo,
        kind: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Error {
        Error::Corrupt {
            block,
            kind: kind.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// A sound block of another kind than expected: no damage where a stale reference is possible (an
    /// inode number that was freed meanwhile), only where the reference is known to be current.
    pub fn is_other_kind(&self) -> bool {
        matches!(self, Error::Corrupt { kind, expected, .. } if kind == expected)
    }

    /// A failed device request.
    pub fn io(op: &'static str, offset: u64, length: usize, cause: &std::io::Error) -> Error {
        if cause.raw_os_error() == Some(EBADE) {
            return Error::Fenced { op, offset };
        }
        Error::Io { op, offset, length: length as u64, cause: cause.to_string() }
    }
}
