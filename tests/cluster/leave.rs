//! Ways of leaving in which the kernel does not tell of every close, and one that is a crash.

use crate::rig::Cluster;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

#[test]
fn a_lazy_unmount_ends_with_the_last_close() {
    let cluster = Cluster::new("256M", 2, Duration::from_secs(60));
    let mut file = File::create(cluster.at(0).join("held")).unwrap();
    file.write_all(b"written before").unwrap();
    fs::write(cluster.at(0).join("gone"), vec![1; 100_000]).unwrap();
    let mut gone = File::open(cluster.at(0).join("gone")).unwrap();
    fs::remove_file(cluster.at(1).join("gone")).unwrap();
    cluster.umount_lazily(0);
    file.write_all(b" and after").unwrap();
    let mut content = Vec::new();
    gone.read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 100_000);
    drop((file, gone));
    assert!(cluster.is_gone(0, Duration::from_secs(20)), "the daemon goes on without a mount");
    assert_eq!(fs::read(cluster.at(1).join("held")).unwrap(), b"written before and after");
    cluster.umount(1);
    cluster.check();
}

#[test]
fn a_host_leaves_although_files_were_open_when_its_kernel_went_away() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let (a, b) = (cluster.at(0), cluster.at(1));
    fs::write(a.join("kept"), b"kept").unwrap();
    fs::write(a.join("gone"), vec![5; 1 << 20]).unwrap();
    let open = [File::open(a.join("kept")).unwrap(), File::open(a.join("gone")).unwrap()];
    fs::remove_file(a.join("gone")).unwrap();
    let listing = fs::read_dir(&a).unwrap();
    cluster.cut_off(0);
    drop((open, listing));
    assert_eq!(fs::read(b.join("kept")).unwrap(), b"kept");
    fs::remove_file(b.join("kept")).unwrap();
    cluster.mount(0);
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
    cluster.umount(0);
    cluster.umount(1);
}

/// <linux/fs.h>; libc has no name for it.
const FS_IOC_SHUTDOWN: u64 = 0x8004_587d;

#[test]
fn a_host_that_is_shut_down_has_crashed_with_all_committed() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let at = cluster.at(0);
    let mut synced = File::create(at.join("synced")).unwrap();
    synced.write_all(b"lasting").unwrap();
    synced.sync_all().unwrap();
    fs::create_dir(at.join("committed")).unwrap();
    fs::write(at.join("unwritten"), vec![7; 5000]).unwrap();
    let root = File::open(&at).unwrap();
    let flags = 0u32;
    // SAFETY: an open directory, and a number that outlives the call.
    let stopped = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN as _, &flags) };
    assert_eq!(stopped, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(fs::create_dir(at.join("late")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(
        synced.write(b"late").and_then(|_| synced.sync_all()).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    drop((root, synced));
    cluster.cut_off(0);
    cluster.mount(0);
    assert_eq!(fs::read(at.join("synced")).unwrap(), b"lasting");
    assert!(at.join("committed").is_dir() && !at.join("late").exists());
    let rest = fs::read(at.join("unwritten")).unwrap();
    assert!(rest.is_empty() || rest == vec![7; 5000], "{} bytes", rest.len());
}
