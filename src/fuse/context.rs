//! Mounts by descriptors: of a filesystem context (fsopen(2), fsconfig(2), fsmount(2), move_mount(2)), for a mount that
//! claims a block device and for one that is in no tree; and of what is mounted already (open_tree(2),
//! mount_setattr(2)), for a second place.

use crate::fuse::view;
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
/// `MOUNT_ATTR__ATIME`: the kinds of access times, of which a mount has one.
const ATIME: u64 = 0x70;
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
        attach(&context.mount(attributes(flags))?, mountpoint)
    }
}

/// The `MOUNT_ATTR_*` of a mount with these flags of mount(2).
fn attributes(flags: u64) -> u64 {
    let set = ATTRIBUTES.iter().filter(|(flag, _)| flags & flag != 0);
    let all = set.fold(0, |all, (_, attribute)| all | attribute);
    let is_strict = flags & libc::MS_STRICTATIME != 0 && flags & libc::MS_NOATIME == 0;
    if is_strict { all | STRICT_ATIME } else { all }
}

/// Puts a mount that is in no tree there.
fn attach(mount: &OwnedFd, mountpoint: &Path) -> io::Result<()> {
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

/// What is mounted at a place, once more, and in no tree yet.
pub struct Copy(OwnedFd);

impl Copy {
    /// Of what is mounted at `place`, as a new mount with these flags of mount(2) would be: nothing that is mounted below it
    /// comes along, and what will be mounted below either is not to be seen below the other.
    ///
    /// # Errors
    /// Those of open_tree(2) and mount_setattr(2) (Linux 5.12).
    pub fn of(place: &Path, flags: u64) -> io::Result<Copy> {
        let path = CString::new(place.as_os_str().as_bytes())?;
        let how = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        // SAFETY: a system call with a string that outlives it.
        let mount = owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), how) })?;
        let changed = ATTRIBUTES.iter().fold(ATIME, |all, (_, attribute)| all | attribute);
        let attributes = libc::mount_attr {
            attr_set: attributes(flags),
            attr_clr: changed,
            propagation: libc::MS_PRIVATE,
            userns_fd: 0,
        };
        // SAFETY: a system call with an open descriptor, a string and a structure that outlive it, and its size.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of_val(&attributes),
            )
        };
        if done == 0 { Ok(Copy(mount)) } else { Err(io::Error::last_os_error()) }
    }

    /// The number of the device that is mounted.
    ///
    /// # Errors
    /// That of statx(2).
    pub fn device(&self) -> io::Result<(u64, u64)> {
        view::device(&self.0)
    }

    /// Puts it there.
    ///
    /// # Errors
    /// Those of move_mount(2).
    pub fn mount(self, mountpoint: &Path) -> io::Result<()> {
        attach(&self.0, mountpoint)
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
