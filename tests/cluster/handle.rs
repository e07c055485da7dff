//! File handles, as NFS servers and backup programs keep them: they outlive the kernel's cache and the
//! mount, and end with the file.

use crate::rig::Cluster;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

const BYTES_MAX: usize = 128;

/// `struct file_handle`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; BYTES_MAX],
}

fn handle_of(at: &Path) -> Handle {
    let path = CString::new(at.as_os_str().as_bytes()).unwrap();
    let mut handle = Handle { bytes: BYTES_MAX as u32, kind: 0, data: [0; BYTES_MAX] };
    let mut mount = 0i32;
    // SAFETY: a string that ends in NUL, a handle with as much room as it says, and a number.
    let done = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), &mut handle, &mut mount, 0)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    handle
}

fn open(mountpoint: &Path, mut handle: Handle) -> io::Result<File> {
    let mount = File::open(mountpoint).unwrap();
    // SAFETY: an open directory and a handle of the length it says; the descriptor is ours alone.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &mut handle,
            libc::O_RDONLY | libc::O_CLOEXEC,
        );
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd as i32)) }
    }
}

#[test]
fn handles_outlive_the_mount_and_end_with_the_file() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let at = cluster.at(0);
    fs::create_dir(at.join("d")).unwrap();
    fs::write(at.join("d/f"), b"found").unwrap();
    fs::write(at.join("d/gone"), b"lost").unwrap();
    let [directory, file, gone] = ["d", "d/f", "d/gone"].map(|name| handle_of(&at.join(name)));
    fs::remove_file(at.join("d/gone")).unwrap();
    // Whatever takes its place has another generation, or is no inode at all.
    (0..50).for_each(|i| fs::write(at.join(format!("other{i}")), vec![i; 9000]).unwrap());
    let mut wild = file;
    wild.data[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for round in 0..2 {
        let mut text = String::new();
        open(&at, file).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "found", "round {round}");
        assert!(open(&at, directory).unwrap().metadata().unwrap().is_dir());
        for bad in [gone, wild] {
            assert_eq!(open(&at, bad).unwrap_err().raw_os_error(), Some(libc::ESTALE), "round {round}");
        }
        cluster.umount(0);
        cluster.mount(0);
    }
    // Every block of the first group as an inode number: nothing but ESTALE, or a file that is there.
    for number in 0..3000u64 {
        wild.data[..8].copy_from_slice(&number.to_le_bytes());
        if let Err(e) = open(&at, wild) {
            assert_eq!(e.raw_os_error(), Some(libc::ESTALE), "inode {number}");
        }
    }
    cluster.umount(0);
}
