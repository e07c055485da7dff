//! Mounts by way of a filesystem context (fsopen(2), fsconfig(2), fsmount(2), move_mount(2)): for a mount that
//! claims a block device, and for one that is in no tree.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// <linux/mount.h>; libc has no names for these.
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_CREATE_EXCL: u32 = 8;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
/// `MOUNT_ATTR_*` by the flag of mount(2) that means the same. (No access times of ours reach the kernel.)
const ATTRIBUTES: [(u64, u64); 6] = [
    (libc::MS_RDONLY, 0x1),
    (libc::MS_NOSUID, 0x2),
    (libc::MS_NODEV, 0x4),
    (libc::MS_NOEXEC, 0x8),
    (libc::MS_NOATIME, 0x10),
    (libc::MS_NODIRATIME, 0x80),
];
/// `MOUNT_ATTR_STRICTATIME`, which excludes noatime.
const STRICT_ATIME: u64 = 0x20;
/// What of mount(2)'s flags is the superblock's.
const OF_SUPERBLOCK: [(u64, &CStr); 2] = [(libc::MS_RDONLY, c"ro"), (libc::MS_SYNCHRONOUS, c"sync")];

/// A filesystem to be.
struct Context(OwnedFd);

/// A superblock that has claimed its block device, and is mounted nowhere yet. If it never is, its connection ends.
pub struct Block {
    context: Context,
    flags: u64,
}

/// Makes connection `fuse` (an open /dev/fuse) the superblock of block device `source`, which nobody may have claimed.
///
/// # Errors
/// EBUSY if somebody has; others where the kernel cannot do this (before Linux 6.6), or may not here.
pub fn make_block(fuse: &OwnedFd, source: &OsStr, flags: u64) -> io::Result<Block> {
    let context = Context::open(c"fuseblk")?;
    context.string(c"source", &CString::new(source.as_bytes())?)?;
    context.string(c"subtype", c"shoal")?;
    context.string(c"fd", &CString::new(fuse.as_raw_fd().to_string())?)?;
    for (key, value) in [(c"rootmode", c"40000"), (c"user_id", c"0"), (c"group_id", c"0")] {
        context.string(key, value)?;
    }
    // As a plain mount has it: the page's size. 512 is the default here.
    context.string(c"blksize", c"4096")?;
    context.flag(c"allow_other")?;
    context.flag(c"default_permissions")?;
    for (flag, name) in OF_SUPERBLOCK {
        if flags & flag != 0 {
            context.flag(name)?;
        }
    }
    // Not one that exists: it would be another daemon's.
    context.command(FSCONFIG_CMD_CREATE_EXCL)?;
    Ok(Block { context, flags })
}

impl Block {
    /// Mounts it at `mountpoint`.
    ///
    /// # Errors
    /// Those of fsmount(2) and move_mount(2). The connection is of no use any more then.
    pub fn mount(self, mountpoint: &Path) -> io::Result<()> {
        let Block { context, flags } = self;
        let set = ATTRIBUTES.iter().filter(|(flag, _)| flags & flag != 0);
        let mut attributes = set.fold(0, |all, (_, attribute)| all | attribute);
        if flags & libc::MS_STRICTATIME != 0 && flags & libc::MS_NOATIME == 0 {
            attributes |= STRICT_ATIME;
        }
        let mount = context.mount(attributes)?;
        let at = CString::new(mountpoint.as_os_str().as_bytes())?;
        // SAFETY: a system call with an open descriptor and strings that outlive it.
        let moved = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                at.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if moved == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The root of a filesystem of type `kind` that needs no parameters, in no tree.
///
/// # Errors
/// Those of the calls.
pub fn detached(kind: &CStr) -> io::Result<OwnedFd> {
    let context = Context::open(kind)?;
    context.command(FSCONFIG_CMD_CREATE)?;
    context.mount(0)
}

impl Context {
    fn open(kind: &CStr) -> io::Result<Context> {
        // SAFETY: a system call with a string that outlives it.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Context)
    }

    fn string(&self, key: &CStr, value: &CStr) -> io::Result<()> {
        self.configure(FSCONFIG_SET_STRING, Some(key), Some(value))
    }

    fn flag(&self, key: &CStr) -> io::Result<()> {
        self.configure(FSCONFIG_SET_FLAG, Some(key), None)
    }

    fn command(&self, command: u32) -> io::Result<()> {
        self.configure(command, None, None)
    }

    fn configure(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: a system call with an open descriptor and strings (or none) that outlive it.
        let done = unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(key), pointer(value), 0)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        // SAFETY: a system call with an open descriptor and numbers.
        owned(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as u32)
        })
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match fd {
        // SAFETY: a descriptor that the kernel has just given.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
        _ => Err(io::Error::last_os_error()),
    }
}
