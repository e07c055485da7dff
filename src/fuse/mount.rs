//! mount(2), umount2(2) and the kernel's read-ahead.

use crate::base::BLOCK_SIZE;
use crate::device::Exclusive;
use crate::device::mountinfo::{self, MountEntry, mounted_at};
use crate::fuse::context;
use crate::fuse::ioctl::WRITABLE;
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

/// A mounted connection that nobody serves yet.
pub struct Connection {
    /// The open /dev/fuse.
    pub device: OwnedFd,
    /// The connection's name for the kernel (see [`MountEntry::connection`](crate::device::mountinfo::MountEntry)).
    pub id: u64,
}

/// What to mount, shown as `source` exactly as given, and where (canonical).
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub source: &'a OsStr,
    pub mountpoint: &'a Path,
    /// mount(2) flags (`MS_*`).
    pub flags: u64,
    /// The claim on the block device. Lent to the mount, the kernel lets sync(2) and syncfs(2) through to the
    /// daemon, and umount(2) waits for it.
    pub claim: Option<&'a Exclusive>,
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
    /// Both: for a mount that nobody serves (any more).
    Cut,
}

/// Pages of the kernel are counted as blocks in several places here: which of them a waiting request keeps locked, for
/// one. Where they are larger, hosts would wait for each other for ever.
///
/// # Errors
/// If they are of another size.
pub fn check_page_size() -> Result<(), String> {
    // SAFETY: a system call with a number.
    check_pages_of(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
}

fn check_pages_of(bytes: libc::c_long) -> Result<(), String> {
    if bytes == BLOCK_SIZE as libc::c_long {
        return Ok(());
    }
    Err(format!(
        "this kernel has pages of {bytes} bytes, and this filesystem needs a kernel with pages of {BLOCK_SIZE}"
    ))
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

/// Mounts a connection. The kernel's INIT request waits in the device from now on.
///
/// # Errors
/// mount(2)'s.
pub fn mount(device: OwnedFd, place: Place<'_>) -> io::Result<Connection> {
    let Place { source, mountpoint, flags, claim } = place;
    let made = match claim.filter(|claim| claim.may_lend()) {
        Some(claim) => claim
            .lend(|| context::make_block(&device, source, flags))?
            .inspect_err(|e| tracing::info!("mounted without a claim of the kernel: fuseblk: {e}"))
            .ok(),
        None => None,
    };
    let claimed = made.is_some();
    if let Some(made) = made {
        // A connection can be mounted once only: if this fails, a plain mount would too.
        made.mount(mountpoint)?;
    } else {
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        mount_call(source, mountpoint, FS_TYPE, flags, &options)?;
    }
    match mounted_at(mountpoint)? {
        // The kernel has looked the name up again.
        Some(entry) if claimed && claim.is_some_and(|claim| !claim.is_of(entry.device)) => {
            let _ = unmount(mountpoint, Unmount::Cut);
            let name = source.display();
            Err(io::Error::other(format!("{name} has become another device while it was being mounted")))
        }
        Some(entry) if entry.is_shoal() => Ok(Connection { device, id: entry.connection() }),
        _ => {
            let _ = unmount(mountpoint, Unmount::Cut);
            Err(io::Error::other("the new mount is not listed in /proc/self/mountinfo"))
        }
    }
}

/// Mounts what `place` is about at another place, too, with these flags of mount(2) for that.
///
/// # Errors
/// Those of the calls; `NotFound` if it cannot be seen where it is mounted.
pub fn mount_again(place: &MountEntry, mountpoint: &Path, flags: u64) -> io::Result<()> {
    let copy = context::Copy::of(&place.mountpoint, flags)?;
    match copy.device()? == place.device {
        true => copy.mount(mountpoint),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Changes the flags of the mount at `mountpoint`.
///
/// # Errors
/// mount(2)'s.
pub fn remount(mountpoint: &Path, flags: u64) -> io::Result<()> {
    mount_call(OsStr::new("none"), mountpoint, FS_TYPE, flags | libc::MS_REMOUNT, "")
}

/// Lets the daemon of the read-only mount at `mountpoint` write, before the kernel does.
///
/// # Errors
/// The daemon's: EROFS if it may not, ENOTTY if it does not know how.
pub fn make_writable(mountpoint: &Path) -> io::Result<()> {
    let root = File::open(mountpoint)?;
    // SAFETY: an ioctl without an argument, on an open descriptor.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), WRITABLE as _, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

/// Unmounts what is mounted last at `mountpoint`. Returns before the daemon is done, unless the mount has claimed a
/// block device.
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
            Unmount::Cut => libc::MNT_FORCE | libc::MNT_DETACH,
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
    let (major, minor) = mountinfo::device_of(connection);
    let kind = if major == 0 { "" } else { "-fuseblk" };
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}{kind}/read_ahead_kb"), READ_AHEAD_KB.to_string())
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
    let name = CString::new(name)?;
    let root = context::detached(c"fusectl")?;
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: a system call with a string that outlives it and an open descriptor.
    match unsafe { libc::openat(root.as_raw_fd(), name.as_ptr(), flags) } {
        // SAFETY: a descriptor that the kernel has just given.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_pages_than_blocks_are_refused() {
        assert!(check_page_size().is_ok(), "this machine's");
        for bytes in [16 << 10, 64 << 10] {
            let why = check_pages_of(bytes).unwrap_err();
            assert!(why.contains(&format!("pages of {bytes} bytes")), "{why}");
        }
    }
}
