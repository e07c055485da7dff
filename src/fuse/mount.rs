//! mount(2), umount2(2) and the kernel's read-ahead.

use crate::device::mountinfo::mounted_at;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use crate::device::mountinfo::FS_TYPE;

/// KiB that the kernel reads ahead: eight READs of the largest size, so that several threads answer them while
/// the program takes what has come.
const READ_AHEAD_KB: u32 = 8192;

/// The control filesystem's usual place.
const CONTROL: &str = "/sys/fs/fuse/connections";
/// <linux/mount.h>; libc has no name for it.
const FSCONFIG_CMD_CREATE: u32 = 6;

/// A mounted connection that nobody serves yet.
pub struct Connection {
    /// The open /dev/fuse.
    pub device: OwnedFd,
    /// Minor number of the mount's anonymous device: the connection's name for the kernel.
    pub id: u64,
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Refused with EBUSY while in use.
    Plain,
    /// Aborts the connection first.
    Force,
    /// Out of sight now, unmounted when no longer in use.
    Lazy,
}

/// Opens /dev/fuse.
///
/// # Errors
/// With advice where the kernel has no FUSE.
pub fn open_device() -> io::Result<OwnedFd> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(file) => Ok(file.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(io::Error::new(e.kind(), "/dev/fuse is missing (modprobe fuse)"))
        }
        Err(e) => Err(io::Error::new(e.kind(), format!("/dev/fuse: {e}"))),
    }
}

/// Mounts a connection at `mountpoint` (canonical), shown as `source` exactly as given. The kernel's
/// INIT request waits in the device from now on.
///
/// # Errors
/// mount(2)'s.
pub fn mount(device: OwnedFd, source: &OsStr, mountpoint: &Path, flags: u64) -> io::Result<Connection> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    mount_call(source, mountpoint, FS_TYPE, flags, &options)?;
    match mounted_at(mountpoint)? {
        Some(entry) if entry.fs_type == FS_TYPE => Ok(Connection { device, id: entry.device.1 }),
        _ => {
            let _ = unmount(mountpoint, Unmount::Lazy);
            Err(io::Error::other("the new mount is not listed in /proc/self/mountinfo"))
        }
    }
}

/// Changes the flags of the mount at `mountpoint`.
///
/// # Errors
/// mount(2)'s.
pub fn remount(mountpoint: &Path, flags: u64) -> io::Result<()> {
    mount_call(OsStr::new("none"), mountpoint, FS_TYPE, flags | libc::MS_REMOUNT, "")
}

fn mount_call(source: &OsStr, mountpoint: &Path, kind: &str, flags: u64, options: &str) -> io::Result<()> {
    let [source, mountpoint, kind, options] =
        [source.as_bytes(), mountpoint.as_os_str().as_bytes(), kind.as_bytes(), options.as_bytes()]
            .map(CString::new);
    let (source, mountpoint, kind, options) = (source?, mountpoint?, kind?, options?);
    // SAFETY: four NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), mountpoint.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts what is mounted last at `mountpoint`. Returns before the daemon is done.
///
/// # Errors
/// umount2(2)'s.
pub fn unmount(mountpoint: &Path, how: Unmount) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW
        | match how {
            Unmount::Plain => 0,
            Unmount::Force => libc::MNT_FORCE,
            Unmount::Lazy => libc::MNT_DETACH,
        };
    // SAFETY: a NUL-terminated string that outlives the call.
    let result = unsafe { libc::umount2(path.as_ptr(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the kernel ask for 1 MiB at a time, and ahead (by default it asks for 128 KiB). Counts for files opened
/// later, so call it before the mount is announced.
///
/// # Errors
/// If the mount has no entry in /sys/class/bdi.
pub fn raise_read_ahead(connection: u64) -> io::Result<()> {
    std::fs::write(format!("/sys/class/bdi/0:{connection}/read_ahead_kb"), READ_AHEAD_KB.to_string())
}

/// Cuts a connection; the mount stays, and every call on it fails. Not by a forced umount: that could
/// succeed, and programs would go on in the directory below.
///
/// # Errors
/// If there is no such connection, or the kernel gives no access to it.
pub fn abort(connection: u64) -> io::Result<()> {
    let control = format!("{connection}/abort");
    let mut file = match File::options().write(true).open(Path::new(CONTROL).join(&control)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => open_control(&control)?,
        other => other?,
    };
    file.write_all(b"1")
}

/// Opens a file of the control filesystem where nobody has mounted it: by a mount that is in no tree.
fn open_control(name: &str) -> io::Result<File> {
    let owned = |fd: libc::c_long| match fd {
        // SAFETY: a descriptor that the kernel has just given.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
        _ => Err(io::Error::last_os_error()),
    };
    let name = CString::new(name)?;
    // SAFETY: system calls with strings that outlive them and descriptors that are open.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, c"fusectl".as_ptr(), 1))?;
        let created = libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        );
        if created != 0 {
            return Err(io::Error::last_os_error());
        }
        let root = owned(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0))?;
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        owned(libc::openat(root.as_raw_fd(), name.as_ptr(), flags).into()).map(File::from)
    }
}
