//! sync(2), syncfs(2) and umount(2) of volumes on block devices: they reach the daemon, and what was written before is
//! there after the death of all hosts.

use crate::rig::{Cluster, run, stderr};
use shoal::device::{Access, FileDevice, mountinfo};
use shoal::fuse::mount::{self, Unmount};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// A block device whose content is a file.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    fn of(image: &Path) -> LoopDevice {
        let made = Command::new("losetup").args(["-f", "--show"]).arg(image).output().unwrap();
        assert!(made.status.success(), "losetup: {}", stderr(&made));
        LoopDevice(String::from_utf8(made.stdout).unwrap().trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// Devices first, so that they go when the mounts are gone.
pub struct Rig {
    pub cluster: Cluster,
    pub devices: Vec<LoopDevice>,
}

impl Rig {
    /// A volume that each of `hosts` hosts reaches by a device of its own.
    pub fn new(hosts: usize) -> Rig {
        let cluster = Cluster::unmounted("256M", LIMIT);
        let devices = (0..hosts).map(|_| LoopDevice::of(&cluster.image())).collect();
        let rig = Rig { cluster, devices };
        (0..hosts).for_each(|host| rig.mount(host));
        rig
    }

    /// As type fuseblk.
    pub fn mount(&self, host: usize) {
        let out = self.cluster.try_mount(host, &self.devices[host].0, "rw");
        assert!(out.status.success(), "mount of host {host}: {}", stderr(&out));
        let entry = mountinfo::mounted_at(&self.cluster.at(host)).unwrap().unwrap();
        assert_eq!(entry.fs_type, mountinfo::FS_TYPE_BLOCK);
        assert_eq!(entry.source, self.devices[host].0);
    }
}

/// Files of all sizes, and what is in them: written, and nothing more.
pub fn write(at: &Path, tag: u8) -> Vec<(String, Vec<u8>)> {
    fs::create_dir(at.join(format!("d{tag}"))).unwrap();
    let sizes = [0, 1, 100, 4096, 70_000, 3 << 20];
    let files = sizes.iter().map(|size| {
        let content: Vec<u8> = (0..*size).map(|n: usize| (n / 7) as u8 ^ tag).collect();
        let name = format!("d{tag}/f{size}");
        fs::write(at.join(&name), &content).unwrap();
        (name, content)
    });
    files.collect()
}

fn compare(at: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let found = fs::read(at.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found == *content, "{name} is not what was written");
    }
}

/// Pages that are written through a mapping and left dirty: closing it would write them.
struct Mapped {
    _file: File,
    pages: *mut libc::c_void,
}

impl Mapped {
    const LENGTH: usize = 8192;

    fn fill(path: &Path, byte: u8) -> Mapped {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(Mapped::LENGTH as u64).unwrap();
        // SAFETY: a fresh mapping of an open file that is as long as what is written.
        let pages = unsafe {
            let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
            let map = libc::mmap(std::ptr::null_mut(), Mapped::LENGTH, access, libc::MAP_SHARED, fd, 0);
            assert_ne!(map, libc::MAP_FAILED);
            map.cast::<u8>().write_bytes(byte, Mapped::LENGTH);
            map
        };
        Mapped { _file: file, pages }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, which nothing refers to.
        unsafe { libc::munmap(self.pages, Mapped::LENGTH) };
    }
}

fn dies_after(synchronise: impl Fn(&Path)) {
    let rig = Rig::new(2);
    let places = [rig.cluster.at(0), rig.cluster.at(1)];
    let files = [write(&places[0], 1), write(&places[1], 2)];
    let mapped = Mapped::fill(&places[0].join("mapped"), 7);
    let begun = Instant::now();
    places.iter().for_each(|at| synchronise(at));
    // What was not synced would be written after five seconds.
    assert!(begun.elapsed() < Duration::from_secs(4), "too slow to tell: {:?}", begun.elapsed());
    rig.cluster.kill(&[0, 1]);
    // As long as somebody has a file of it, the superblock stays, and with it the claim.
    drop(mapped);
    (0..2).for_each(|host| rig.mount(host));
    for at in &places {
        files.iter().for_each(|files| compare(at, files));
        assert_eq!(fs::read(at.join("mapped")).unwrap(), [7; Mapped::LENGTH]);
    }
    (0..2).for_each(|host| rig.cluster.umount(host));
    rig.cluster.check();
}

#[test]
fn what_was_written_before_sync_survives_the_death_of_all_hosts() {
    // SAFETY: takes nothing.
    dies_after(|_| unsafe { libc::sync() });
}

#[test]
fn what_was_written_before_syncfs_survives_the_death_of_all_hosts() {
    dies_after(|at| {
        let root = File::open(at).unwrap();
        // SAFETY: an open descriptor.
        assert_eq!(unsafe { libc::syncfs(root.as_raw_fd()) }, 0);
    });
}

#[test]
fn umount_waits_until_the_host_has_left() {
    let rig = Rig::new(1);
    for tag in 0..3 {
        let files = write(&rig.cluster.at(0), tag);
        let daemon = rig.cluster.daemon(0).unwrap();
        mount::unmount(&rig.cluster.at(0), Unmount::Plain).unwrap();
        // All is on the device and the host no member; what is left of its process is its end.
        assert!(daemon.wait(Duration::from_millis(500)), "the daemon is not done after umount");
        rig.cluster.check();
        rig.mount(0);
        compare(&rig.cluster.at(0), &files);
    }
    rig.cluster.umount(0);
}

#[test]
fn the_device_is_taken_as_long_as_it_is_mounted() {
    let rig = Rig::new(1);
    let device = &rig.devices[0].0;
    for tool in [&["mkfs_shoal", "-q", "-f"][..], &["fsck_shoal", "-f"]] {
        let out = run(tool[0], &[&tool[1..], &[device.to_str().unwrap()]].concat());
        assert!(!out.status.success() && stderr(&out).contains("mounted"), "{tool:?}: {}", stderr(&out));
    }
    // Whoever cuts the mount gives the kernel's claim back before the daemon is done.
    write(&rig.cluster.at(0), 1);
    let daemon = rig.cluster.daemon(0).unwrap();
    stop(daemon.daemon.pid, "-STOP");
    mount::unmount(&rig.cluster.at(0), Unmount::Force).unwrap();
    let opened = [Access::Mount, Access::Exclusive].map(|access| FileDevice::open(device, access).is_ok());
    stop(daemon.daemon.pid, "-CONT");
    assert_eq!(opened, [false; 2], "opened beside a daemon that may still write");
}

/// Sends a signal.
pub fn stop(pid: u32, how: &str) {
    assert!(Command::new("kill").args([how, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_signal_unmounts_and_leaves() {
    let rig = Rig::new(1);
    let files = write(&rig.cluster.at(0), 1);
    let daemon = rig.cluster.daemon(0).unwrap();
    stop(daemon.daemon.pid, "-TERM");
    assert!(daemon.wait(Duration::from_secs(20)), "the daemon did not leave");
    rig.cluster.check();
    rig.mount(0);
    compare(&rig.cluster.at(0), &files);
}

#[test]
fn a_killed_daemon_frees_its_device_with_the_unmount() {
    let rig = Rig::new(1);
    let daemon = rig.cluster.daemon(0).unwrap();
    stop(daemon.daemon.pid, "-KILL");
    assert!(daemon.wait(Duration::from_secs(10)));
    let out = run("shoal", &["umount", rig.cluster.at(0).to_str().unwrap()]);
    assert!(out.status.success(), "{}", stderr(&out));
    rig.mount(0);
}

#[test]
fn a_plain_mount_is_made_where_it_is_wanted() {
    let rig = Rig::new(1);
    rig.cluster.umount(0);
    let out = rig.cluster.try_mount(0, &rig.devices[0].0, "nofuseblk");
    assert!(out.status.success(), "{}", stderr(&out));
    let entry = mountinfo::mounted_at(&rig.cluster.at(0)).unwrap().unwrap();
    assert_eq!(entry.fs_type, mountinfo::FS_TYPE);
}
