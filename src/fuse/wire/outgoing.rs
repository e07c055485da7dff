//! Records of answers and notifications, with the kernel's names and sizes.

use super::incoming::{FuseFileLock, record};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

record!(
    /// Before every answer. `error` is a negative errno or, in a notification (`unique` is 0), its code.
    FuseOutHeader, 16, { len: u32, error: i32, unique: u64 });
record!(
/// Attributes as stat(2) shows them; `blocks` of 512 bytes.
FuseAttr, 88, {
    ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
    ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
});
record!(
/// An inode under a name, and how long the kernel may believe it. `nodeid` 0: there is no such name.
FuseEntryOut, 128, {
    nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
    attr_valid_nsec: u32, attr: FuseAttr,
});
record!(
    /// To GETATTR and SETATTR.
    FuseAttrOut, 104, { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: FuseAttr });
record!(
    /// A time in [`FuseStatx`].
    FuseSxTime, 16, { tv_sec: i64, tv_nsec: u32, reserved: i32 });
record!(
/// Attributes as statx(2) shows them.
FuseStatx, 256, {
    mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
    ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: FuseSxTime, btime: FuseSxTime,
    ctime: FuseSxTime, mtime: FuseSxTime, rdev_major: u32, rdev_minor: u32, dev_major: u32,
    dev_minor: u32, spare2: [u64; 14],
});
record!(
    /// To STATX.
    FuseStatxOut, 288, { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: FuseStatx });
record!(
    /// To OPEN and OPENDIR.
    FuseOpenOut, 16, { fh: u64, open_flags: u32, backing_id: i32 });
record!(
    /// To CREATE: two records in one.
    FuseCreateOut, 144, { entry: FuseEntryOut, open: FuseOpenOut });
record!(
    /// To WRITE and COPY_FILE_RANGE.
    FuseWriteOut, 8, { size: u32, padding: u32 });
record!(
    /// To COPY_FILE_RANGE_64.
    FuseCopyFileRangeOut, 8, { bytes_copied: u64 });
record!(
/// To STATFS.
FuseStatfsOut, 80, {
    blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
    padding: u32, spare: [u32; 6],
});
record!(
    /// To GETXATTR and LISTXATTR that offer no room.
    FuseGetxattrOut, 8, { size: u32, padding: u32 });
record!(
    /// To GETLK.
    FuseLkOut, 24, { lk: FuseFileLock });
record!(
/// To INIT.
FuseInitOut, 64, {
    major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
    congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
    flags2: u32, max_stack_depth: u32, request_timeout: u16, unused: [u16; 11],
});
record!(
    /// To IOCTL; data may follow.
    FuseIoctlOut, 16, { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 });
record!(
    /// To LSEEK.
    FuseLseekOut, 8, { offset: u64 });
record!(
    /// Before the name of an entry in a listing.
    FuseDirent, 24, { ino: u64, off: u64, namelen: u32, kind: u32 });
record!(
    /// The same with attributes.
    FuseDirentplus, 152, { entry: FuseEntryOut, dirent: FuseDirent });
record!(
    /// The notification INVAL_INODE.
    FuseNotifyInvalInodeOut, 24, { ino: u64, off: i64, len: i64 });

/// `enum fuse_notify_code`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum NotifyCode {
    /// Drop pages and attributes.
    InvalInode = 2,
}
