//! Bits of the protocol. Those of INIT are 64: the upper half travels in `flags2`.

/// What may be agreed on at INIT.
pub mod init {
    use super::Bits;

    /// Several READs of a file at once.
    pub const ASYNC_READ: Bits = Bits(1 << 0, "ASYNC_READ");
    /// fcntl(2) locks come here.
    pub const POSIX_LOCKS: Bits = Bits(1 << 1, "POSIX_LOCKS");
    /// O_TRUNC comes with OPEN instead of as SETATTR.
    pub const ATOMIC_O_TRUNC: Bits = Bits(1 << 3, "ATOMIC_O_TRUNC");
    /// Lookups of `.` and `..` by number.
    pub const EXPORT_SUPPORT: Bits = Bits(1 << 4, "EXPORT_SUPPORT");
    /// WRITEs of more than a page.
    pub const BIG_WRITES: Bits = Bits(1 << 5, "BIG_WRITES");
    /// The umask is not applied by the kernel.
    pub const DONT_MASK: Bits = Bits(1 << 6, "DONT_MASK");
    /// flock(2) locks come here.
    pub const FLOCK_LOCKS: Bits = Bits(1 << 10, "FLOCK_LOCKS");
    /// Pages are dropped when size or time turn out to have changed.
    pub const AUTO_INVAL_DATA: Bits = Bits(1 << 12, "AUTO_INVAL_DATA");
    /// Several direct requests of one call at once.
    pub const ASYNC_DIO: Bits = Bits(1 << 15, "ASYNC_DIO");
    /// Several LOOKUPs and READDIRs in a directory at once.
    pub const PARALLEL_DIROPS: Bits = Bits(1 << 18, "PARALLEL_DIROPS");
    /// The kernel checks ACLs.
    pub const POSIX_ACL: Bits = Bits(1 << 20, "POSIX_ACL");
    /// `max_pages` counts.
    pub const MAX_PAGES: Bits = Bits(1 << 22, "MAX_PAGES");
    /// Targets of symbolic links are kept.
    pub const CACHE_SYMLINKS: Bits = Bits(1 << 23, "CACHE_SYMLINKS");
    /// Set-id bits and file capabilities are dropped here.
    pub const HANDLE_KILLPRIV_V2: Bits = Bits(1 << 28, "HANDLE_KILLPRIV_V2");
    /// SETXATTR in its long form.
    pub const SETXATTR_EXT: Bits = Bits(1 << 29, "SETXATTR_EXT");
    /// `flags2` counts.
    pub const INIT_EXT: Bits = Bits(1 << 30, "INIT_EXT");
    /// Shared mappings of files that bypass the page cache.
    pub const DIRECT_IO_ALLOW_MMAP: Bits = Bits(1 << 36, "DIRECT_IO_ALLOW_MMAP");
}

/// One bit of INIT and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits(pub u64, pub &'static str);

/// SETATTR: which fields count (`fuse_setattr_in.valid`).
#[allow(missing_docs)]
pub mod setattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    /// Set-id bits must go.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Answers to OPEN, CREATE and OPENDIR.
pub mod fopen {
    /// Past the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Pages stay.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Entries may be kept.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// Direct writes do not exclude each other.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// GETATTR and STATX: `fh` counts.
pub const GETATTR_FH: u32 = 1 << 0;
/// READ: `lock_owner` counts, so a read(2) asks.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// WRITE: out of the page cache.
pub const WRITE_CACHE: u32 = 1 << 0;
/// WRITE: `lock_owner` counts, so it is past the page cache.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// WRITE: set-id bits must go.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// RELEASE: the handle held a flock(2) lock.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// GETLK, SETLK, SETLKW: flock(2), not fcntl(2).
pub const LK_FLOCK: u32 = 1 << 0;
/// FSYNC: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// SETXATTR of an access ACL: the set-group-id bit must go.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
