//! Records of requests, with the kernel's names and sizes. All are in the machine's byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A record of the protocol and the size that the kernel gives it.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident, $size:literal, { $($field:ident: $kind:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct $name { $(pub $field: $kind),+ }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}
pub(super) use record;

record!(
/// Before every request. `total_extlen` counts extensions behind the arguments, in eight bytes.
FuseInHeader, 40, {
    len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
    total_extlen: u16, padding: u16,
});
record!(
/// INIT.
FuseInitIn, 64, {
    major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
});
record!(
    /// FORGET.
    FuseForgetIn, 8, { nlookup: u64 });
record!(
    /// One inode of a BATCH_FORGET.
    FuseForgetOne, 16, { nodeid: u64, nlookup: u64 });
record!(
    /// BATCH_FORGET; `count` times [`FuseForgetOne`] follow.
    FuseBatchForgetIn, 8, { count: u32, dummy: u32 });
record!(
    /// GETATTR.
    FuseGetattrIn, 16, { getattr_flags: u32, dummy: u32, fh: u64 });
record!(
    /// STATX.
    FuseStatxIn, 24, { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 });
record!(
/// SETATTR.
FuseSetattrIn, 88, {
    valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
    atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
    unused5: u32,
});
record!(
    /// MKNOD; the name follows.
    FuseMknodIn, 16, { mode: u32, rdev: u32, umask: u32, padding: u32 });
record!(
    /// MKDIR; the name follows.
    FuseMkdirIn, 8, { mode: u32, umask: u32 });
record!(
    /// RENAME; both names follow.
    FuseRenameIn, 8, { newdir: u64 });
record!(
    /// RENAME2; both names follow.
    FuseRename2In, 16, { newdir: u64, flags: u32, padding: u32 });
record!(
    /// LINK; the new name follows.
    FuseLinkIn, 8, { oldnodeid: u64 });
record!(
    /// OPEN and OPENDIR.
    FuseOpenIn, 8, { flags: u32, open_flags: u32 });
record!(
    /// CREATE and TMPFILE; the name follows.
    FuseCreateIn, 16, { flags: u32, mode: u32, umask: u32, open_flags: u32 });
record!(
/// READ, READDIR and READDIRPLUS.
FuseReadIn, 40, {
    fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
});
record!(
/// WRITE; the bytes follow.
FuseWriteIn, 40, {
    fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
});
record!(
    /// RELEASE and RELEASEDIR.
    FuseReleaseIn, 24, { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 });
record!(
    /// FLUSH.
    FuseFlushIn, 24, { fh: u64, unused: u32, padding: u32, lock_owner: u64 });
record!(
    /// FSYNC and FSYNCDIR.
    FuseFsyncIn, 16, { fh: u64, fsync_flags: u32, padding: u32 });
record!(
    /// SETXATTR without SETXATTR_EXT; name and value follow.
    FuseSetxattrCompatIn, 8, { size: u32, flags: u32 });
record!(
    /// SETXATTR; name and value follow.
    FuseSetxattrIn, 16, { size: u32, flags: u32, setxattr_flags: u32, padding: u32 });
record!(
    /// GETXATTR (the name follows) and LISTXATTR.
    FuseGetxattrIn, 8, { size: u32, padding: u32 });
record!(
    /// A lock in requests and answers. `kind` is the kernel's `type`.
    FuseFileLock, 24, { start: u64, end: u64, kind: u32, pid: u32 });
record!(
    /// GETLK, SETLK and SETLKW.
    FuseLkIn, 48, { fh: u64, owner: u64, lk: FuseFileLock, lk_flags: u32, padding: u32 });
record!(
    /// INTERRUPT.
    FuseInterruptIn, 8, { unique: u64 });
record!(
    /// IOCTL; `in_size` bytes follow.
    FuseIoctlIn, 32, { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 });
record!(
    /// FALLOCATE.
    FuseFallocateIn, 32, { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 });
record!(
    /// LSEEK.
    FuseLseekIn, 24, { fh: u64, offset: u64, whence: u32, padding: u32 });
record!(
/// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
FuseCopyFileRangeIn, 56, {
    fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
});
