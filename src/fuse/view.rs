//! The daemon's look at its own mount, as any program has it: what the kernel remembers of an inode.
//!
//! The mount is opened for each look anew, because umount(2) refuses one that somebody holds open. By its path, or where it
//! is to be seen else if that leads to another filesystem by now (moved, or mounted at a second place and gone from the
//! first).

use crate::base::Generation;
use crate::device::mountinfo::{device_of, places_of};
use crate::fs::types::{InodeView, NodeId};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `FILEID_INO64_GEN` of <linux/exportfs.h>, by which fs/fuse/inode.c finds an inode that it knows.
const HANDLE_TYPE: i32 = 0x81;

/// `struct file_handle` with what fs/fuse/inode.c has in it: node id (high half first) and generation.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    words: [u32; 3],
}

impl Handle {
    fn new(ino: NodeId, generation: Generation) -> Handle {
        let words = [(ino.0 >> 32) as u32, ino.0 as u32, generation.0 as u32];
        Handle { bytes: size_of_val(&words) as u32, kind: HANDLE_TYPE, words }
    }
}

/// An inode, opened without asking for it.
pub struct View(OwnedFd);

impl View {
    /// The inode `ino` of the mount with name `connection` for the kernel, which was mounted at `mountpoint` first.
    ///
    /// # Errors
    /// If it is to be seen nowhere, or the kernel does not know the inode.
    pub fn open(mountpoint: &Path, connection: u64, ino: NodeId, generation: Generation) -> io::Result<View> {
        let root = match open_root(mountpoint, connection) {
            Ok(root) => root,
            Err(e) => {
                let mut places = places_of(connection)?.into_iter();
                places.find_map(|place| open_root(&place.mountpoint, connection).ok()).ok_or(e)?
            }
        };
        let mut handle = Handle::new(ino, generation);
        // SAFETY: the structure is laid out as `struct file_handle` with as many bytes behind it as it says.
        owned(unsafe {
            let flags = libc::O_PATH | libc::O_CLOEXEC;
            libc::open_by_handle_at(root.as_raw_fd(), (&raw mut handle).cast(), flags)
        })
        .map(View)
    }
}

impl InodeView for View {
    fn size(&self) -> io::Result<u64> {
        Ok(statx(&self.0, libc::STATX_SIZE, libc::AT_STATX_DONT_SYNC)?.stx_size)
    }

    fn ask(&self) -> io::Result<()> {
        statx(&self.0, libc::STATX_SIZE, libc::AT_STATX_FORCE_SYNC).map(drop)
    }
}

/// The mount's root, if it is what is to be seen at `mountpoint`.
fn open_root(mountpoint: &Path, connection: u64) -> io::Result<OwnedFd> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    // Not as a mere place (O_PATH): open_by_handle_at(2) would not take that.
    // SAFETY: a system call with a string that outlives it.
    let root = owned(unsafe { libc::open(path.as_ptr(), libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
    match device(&root)? == device_of(connection) {
        true => Ok(root),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The number of the filesystem that an open file is of.
///
/// # Errors
/// That of statx(2).
pub fn device(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let found = statx(fd, 0, libc::AT_STATX_DONT_SYNC)?;
    Ok((found.stx_dev_major.into(), found.stx_dev_minor.into()))
}

/// The number of this thread, as the kernel puts it into requests.
pub fn thread() -> u32 {
    // SAFETY: a system call without arguments.
    (unsafe { libc::gettid() }) as u32
}

fn statx(fd: &OwnedFd, mask: u32, sync: i32) -> io::Result<libc::statx> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an open descriptor, a string, and room for the structure.
    let done = unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH | sync, mask, found.as_mut_ptr())
    };
    // SAFETY: numbers alone; zeroed where the kernel has written nothing.
    if done == 0 { Ok(unsafe { found.assume_init() }) } else { Err(io::Error::last_os_error()) }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    match fd {
        // SAFETY: a descriptor that the kernel has just given.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_laid_out_as_the_kernel_has_them() {
        let handle = Handle::new(NodeId(0x1_2345_6789), Generation(7));
        assert_eq!((handle.bytes, handle.kind, handle.words), (12, 0x81, [1, 0x2345_6789, 7]));
        assert_eq!(std::mem::offset_of!(Handle, words), 8);
    }

    #[test]
    fn another_filesystem_is_not_looked_at() {
        let e = View::open(Path::new("/"), u64::MAX, NodeId(1), Generation(1)).err().unwrap();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
    }
}
