//! Devices that cannot be written, devices that somebody else has, and mounts that must not write.

use crate::disk::Disk;
use crate::rig::{Cluster, run, stderr};
use crate::{LIMIT, assert_refused, errno};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// A loop device over an image, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &std::path::Path, flags: &[&str]) -> Loop {
        let made = Command::new("losetup").args(flags).args(["-f", "--show"]).arg(image).output().unwrap();
        assert!(made.status.success(), "{}", stderr(&made));
        Loop(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_cannot_be_written_is_refused_also_for_reading() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let device = Loop::new(&cluster.image(), &["-r"]);
    let shown = device.0.to_str().unwrap();
    for options in ["rw", "ro"] {
        let refused = cluster.try_mount(0, &device.0, options);
        assert_refused(&refused, &[shown, "is read-only", "heartbeat", "blockdev --setrw"]);
    }
    // Looking needs no writing.
    let status = run("shoal", &["status", "--quick", shown]);
    assert!(status.status.success(), "{}", stderr(&status));
    let made = run("mkfs_shoal", &["-f", shown]);
    assert!(!made.status.success() && stderr(&made).contains(shown), "{}", stderr(&made));
}

#[test]
fn a_block_device_makes_one_host_of_a_machine() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let device = Loop::new(&cluster.image(), &[]);
    let mounted = cluster.try_mount(0, &device.0, "rw");
    assert!(mounted.status.success(), "{}", stderr(&mounted));
    fs::write(cluster.at(0).join("f"), b"on a block device").unwrap();
    // At a second place it is the same mount.
    let again = cluster.try_mount(1, &device.0, "rw");
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(fs::read(cluster.at(1).join("f")).unwrap(), b"on a block device");
    let nodes = run("shoal", &["nodes", device.0.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&nodes.stdout).matches("member").count(), 1, "{nodes:?}");
    // At a place where it is already, it is not mounted once more.
    assert_refused(&cluster.try_mount(1, &device.0, "rw"), &["already mounted at"]);
    cluster.umount(0);
    cluster.umount(1);
    let mounted = cluster.try_mount(0, &device.0, "rw");
    assert!(mounted.status.success(), "{}", stderr(&mounted));
    assert_eq!(fs::read(cluster.at(0).join("f")).unwrap(), b"on a block device");
    cluster.umount(0);
}

#[test]
fn a_read_only_mount_changes_nothing_but_its_own_places() {
    let cluster = Cluster::new("64M", 1, LIMIT);
    let at = cluster.at(0);
    fs::create_dir(at.join("d")).unwrap();
    fs::write(at.join("d/f"), vec![5; 200_000]).unwrap();
    File::open(at.join("d/f")).unwrap().sync_all().unwrap();
    // An orphan that the read-only mount must leave alone.
    fs::write(at.join("orphan"), vec![6; 200_000]).unwrap();
    File::open(at.join("orphan")).unwrap().sync_all().unwrap();
    let open = File::open(at.join("orphan")).unwrap();
    fs::remove_file(at.join("orphan")).unwrap();
    File::open(&at).unwrap().sync_all().unwrap();
    cluster.kill(&[0]);
    drop(open);
    // Replay is not the mount's choice: who reads must see what was promised.
    let mounted = cluster.try_mount(0, &cluster.image(), "ro");
    assert!(mounted.status.success(), "{}", stderr(&mounted));
    let disk = Disk::open(&cluster.image());
    let groups = disk.superblock.geometry.groups_start();
    let snapshot = || fs::read(cluster.image()).unwrap().split_off(groups.byte() as usize);
    let before = snapshot();
    assert_eq!(fs::read(at.join("d/f")).unwrap(), vec![5; 200_000]);
    assert_eq!(errno(fs::write(at.join("g"), b"")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(at.join("d/f"))), libc::EROFS);
    assert_eq!(
        errno(fs::set_permissions(at.join("d"), fs::metadata(at.join("d")).unwrap().permissions())),
        libc::EROFS
    );
    assert_eq!(errno(File::options().write(true).open(at.join("d/f"))), libc::EROFS);
    std::thread::sleep(std::time::Duration::from_secs(6));
    cluster.umount(0);
    let after = snapshot();
    let changed = before.chunks(4096).zip(after.chunks(4096)).enumerate();
    let changed: Vec<u64> = changed.filter(|(_, (a, b))| a != b).map(|(i, _)| groups.0 + i as u64).collect();
    let journals = &disk.volume.slots;
    let own = |b: &u64| journals.iter().any(|s| (s.journal_start.0..s.journal_start.0 + 2).contains(b));
    assert!(changed.iter().all(own), "blocks {changed:?} were written");
    cluster.mount(0);
    assert_eq!(fs::read(at.join("d/f")).unwrap(), vec![5; 200_000]);
    cluster.umount(0);
    cluster.check();
}
