//! A volume that is nearly full: what statfs promises can be had, and what was removed can be had again.

use crate::rig::Cluster;
use crate::rig_xattr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
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

/// Empty files until there is room for no more; so many.
fn fill_with_files(at: &Path) -> u64 {
    for number in 0.. {
        match File::create(at.join(format!("{number}"))) {
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
                return number;
            }
        }
    }
    unreachable!("there is an end to it");
}

#[test]
fn what_needs_no_space_goes_on_a_full_volume_and_inodes_are_counted_truly() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(100));
    let at = cluster.at(0);
    let file = at.join("f");
    fs::write(&file, b"content").unwrap();
    rig_xattr::set(&file, "user.mark", &[b'x'; 200]).unwrap();
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
    };
    let none = u32::MAX;
    let list =
        [entry(1, 6, none), entry(2, 6, 1234), entry(4, 4, none), entry(16, 6, none), entry(32, 4, none)];
    let list = [&2u32.to_le_bytes()[..], &list.concat()[..]].concat();
    rig_xattr::set(&file, "system.posix_acl_access", &list).unwrap();
    let inodes = || rig_xattr::statvfs(&at).f_ffree;
    // Data takes of what inodes could have, in whole chunks; what is left of those is no inode's.
    allocate(&at.join("big"), available(&at) - (8 << 20)).unwrap();
    let said = inodes();
    let made = fill_with_files(&at);
    assert!(made.abs_diff(said) < 600 && said < 12_000, "{said} inodes were free, {made} could be made");
    assert!(inodes() < 64, "{}", inodes());
    rig_xattr::remove(&file, "user.mark").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    rig_xattr::remove(&file, "system.posix_acl_access").unwrap();
    cluster.umount(0);
}
