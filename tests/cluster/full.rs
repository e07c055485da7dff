//! A volume that is nearly full: what statfs promises can be had, and what was removed can be had again.

use crate::rig::Cluster;
use crate::rig_xattr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Write until there is room for no more, in steps of `step` bytes.
fn fill(mut file: &File, step: usize) {
    let bytes = vec![b'x'; step];
    loop {
        match file.write(&bytes) {
            Ok(written) if written == step => {}
            Ok(_) => return,
            Err(e) => return assert_eq!(e.raw_os_error(), Some(libc::ENOSPC)),
        }
    }
}

/// What others begin meanwhile is not waited for, nor again and again what does not come: with either each of these
/// writes would take two seconds.
#[test]
fn a_full_volume_that_is_in_use_says_soon_that_it_is_full() {
    let cluster = Cluster::new("256M", 1, Duration::from_secs(100));
    let at = cluster.at(0);
    let used = File::options().read(true).write(true).create_new(true).open(at.join("used")).unwrap();
    used.write_all_at(&[1; 1 << 20], 0).unwrap();
    // An unlinked inode that the kernel keeps, though it is not open.
    fs::write(at.join("gone"), b"gone").unwrap();
    let known = File::options().read(true).custom_flags(libc::O_PATH).open(at.join("gone")).unwrap();
    fs::remove_file(at.join("gone")).unwrap();
    let rest = File::create(at.join("rest")).unwrap();
    for step in [1 << 20, 4096] {
        fill(&rest, step);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for page in (0..256).cycle().take_while(|_| !stop.load(Ordering::Acquire)) {
                used.write_all_at(&[2; 4096], 4096 * page).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for _ in 0..100 {
            assert_eq!((&rest).write(&[0; 4096]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
        stop.store(true, Ordering::Release);
    });
    drop((known, used, rest));
    cluster.umount(0);
}

#[test]
fn what_another_host_has_removed_can_be_had_at_once() {
    let cluster = Cluster::new("256M", 2, Duration::from_secs(100));
    let (here, there) = (cluster.at(0), cluster.at(1));
    for round in 0..8 {
        fs::write(here.join("theirs"), vec![1; 8 << 20]).unwrap();
        let rest = File::create(here.join("rest")).unwrap();
        for step in [1 << 20, 4096] {
            fill(&rest, step);
        }
        fs::remove_file(there.join("theirs")).unwrap();
        (&rest).write_all(&[2; 4 << 20]).unwrap_or_else(|e| panic!("round {round}: {e}"));
        drop(rest);
        fs::remove_file(there.join("rest")).unwrap();
    }
    cluster.umount(0);
    cluster.umount(1);
}
