//! A volume that is nearly full: what statfs promises can be had, and what was removed can be had again.

use crate::rig::Cluster;
use crate::rig_xattr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// Bytes that statvfs(3) says can be written.
fn available(at: &Path) -> u64 {
    let stat = rig_xattr::statvfs(at);
    stat.f_bavail * stat.f_frsize
}

fn allocate(at: &Path, bytes: u64) -> io::Result<()> {
    let file = File::create(at)?;
    // SAFETY: an open file.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn what_is_available_can_be_allocated_again_and_again() {
    let cluster = Cluster::new("256M", 1, Duration::from_secs(100));
    let at = cluster.at(0);
    let promised = available(&at) - (1 << 20);
    assert!(promised > 150 << 20, "{promised}");
    for round in 0..5 {
        allocate(&at.join("big"), promised).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(allocate(&at.join("more"), 8 << 20).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        fs::remove_file(at.join("more")).unwrap();
        fs::remove_file(at.join("big")).unwrap();
    }
    // An open file's blocks are not coming back: that it is full is said at once, or nearly so.
    let held = File::create(at.join("held")).unwrap();
    // SAFETY: an open file.
    assert_eq!(unsafe { libc::fallocate(held.as_raw_fd(), 0, 0, promised as i64) }, 0);
    fs::remove_file(at.join("held")).unwrap();
    assert_eq!(allocate(&at.join("more"), 8 << 20).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    drop(held);
    allocate(&at.join("more"), promised).unwrap();
    cluster.umount(0);
}
