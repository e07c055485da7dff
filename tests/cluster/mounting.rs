//! One block device at several places of a machine, and mounts that change between read-only and read-write: one host,
//! whatever is mounted.

use crate::litmus::map::Map;
use crate::rig::{Cluster, errno, run, stderr};
use crate::synced::{Rig, stop};
use shoal::device::mountinfo;
use shoal::fuse::mount::{self, Unmount};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

fn device(at: &Path) -> u64 {
    fs::metadata(at).unwrap().dev()
}

#[test]
fn a_second_place_is_the_same_mount_and_outlives_the_first() {
    let rig = Rig::new(1);
    let (first, second) = (rig.cluster.at(0), rig.cluster.at(1));
    let daemon = rig.cluster.daemon(0).unwrap();
    fs::create_dir(first.join("d")).unwrap();
    let again = rig.cluster.try_mount(1, &rig.devices[0].0, "ro,noexec");
    assert!(again.status.success() && stderr(&again).is_empty(), "{}", stderr(&again));
    assert_eq!(device(&first), device(&second));
    fs::write(first.join("d/f"), b"seen at once").unwrap();
    assert_eq!(fs::read(second.join("d/f")).unwrap(), b"seen at once");
    assert_eq!(errno(fs::write(second.join("d/g"), b"")), libc::EROFS, "it has flags of its own");
    // What is mounted in one is not to be seen in the other.
    let tmpfs = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(first.join("d")).status().unwrap();
    assert!(tmpfs.success());
    let seen = fs::read(second.join("d/f"));
    mount::unmount(&first.join("d"), Unmount::Plain).unwrap();
    assert_eq!(seen.unwrap(), b"seen at once");
    // The daemon goes with the last one.
    let out = run("shoal", &["umount", first.to_str().unwrap()]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(!daemon.wait(Duration::from_millis(300)), "the daemon is gone though it is mounted");
    assert_eq!(fs::read(second.join("d/f")).unwrap(), b"seen at once");
    let out = run("shoal", &["umount", second.to_str().unwrap()]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(daemon.wait(Duration::ZERO), "the daemon is not done");
    rig.cluster.check();
}

/// The daemon has to look at its own mount for what a mapping stores behind the former end, here also when the place where it was
/// mounted first is gone.
#[test]
fn what_is_stored_at_a_second_place_stays() {
    let rig = Rig::new(2);
    let second = 2;
    let again = rig.cluster.try_mount(second, &rig.devices[0].0, "rw");
    assert!(again.status.success(), "{}", stderr(&again));
    let (here, there) = (rig.cluster.at(second), rig.cluster.at(1));
    mount::unmount(&rig.cluster.at(0), Unmount::Plain).unwrap();
    let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
    for round in 0..20 {
        let name = format!("f{round}");
        fs::write(there.join(&name), [1; 100]).unwrap();
        let map = Map::new(&open(&here.join(&name)), 4096, true);
        assert_eq!(map.load(0), 1);
        open(&there.join(&name)).write_all_at(&[2; 4000], 100).unwrap();
        assert_eq!(map.load(200), 2, "round {round}");
        map.store(200, 7);
        let seen = fs::read(there.join(&name)).unwrap();
        assert_eq!((seen.len(), seen[199], seen[200]), (4100, 2, 7), "round {round}");
    }
    mount::unmount(&here, Unmount::Plain).unwrap();
}

#[test]
fn of_mounts_at_once_one_makes_a_host_and_all_succeed() {
    let rig = Rig::new(1);
    let mount = |host| rig.cluster.try_mount(host, &rig.devices[0].0, "rw");
    for round in 0..3 {
        rig.cluster.umount(0);
        let outs = std::thread::scope(|scope| {
            [0, 1, 2].map(|host| scope.spawn(move || mount(host))).map(|mounting| mounting.join().unwrap())
        });
        for out in &outs {
            assert!(out.status.success(), "round {round}: {}", stderr(out));
        }
        let places = [0, 1, 2].map(|host| rig.cluster.at(host));
        assert!(places.iter().all(|at| device(at) == device(&places[0])), "round {round}");
        for at in &places[1..] {
            mount::unmount(at, Unmount::Plain).unwrap();
        }
    }
}

#[test]
fn a_signal_unmounts_every_place() {
    let rig = Rig::new(1);
    let again = rig.cluster.try_mount(1, &rig.devices[0].0, "rw");
    assert!(again.status.success(), "{}", stderr(&again));
    let daemon = rig.cluster.daemon(0).unwrap();
    stop(daemon.daemon.pid, "-TERM");
    assert!(daemon.wait(Duration::from_secs(20)), "the daemon did not leave");
    for host in [0, 1] {
        assert!(mountinfo::mounted_at(&rig.cluster.at(host)).unwrap().is_none(), "place {host}");
    }
    rig.mount(0);
}

#[test]
fn what_is_mounted_read_only_is_not_mounted_read_write_elsewhere() {
    let rig = Rig::new(1);
    rig.cluster.umount(0);
    let (device, first) = (&rig.devices[0].0, rig.cluster.at(0));
    assert!(rig.cluster.try_mount(0, device, "ro").status.success());
    let refused = rig.cluster.try_mount(1, device, "rw");
    let why = stderr(&refused);
    assert!(!refused.status.success() && why.contains("mounted read-only on"), "{why}");
    assert!(why.contains(first.to_str().unwrap()), "{why}");
    assert!(rig.cluster.try_mount(1, device, "ro").status.success());
    mount::unmount(&rig.cluster.at(1), Unmount::Plain).unwrap();
}

#[test]
fn a_read_only_mount_is_made_writable_and_back() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    let at = [0, 1].map(|host| cluster.at(host));
    fs::write(at[1].join("f"), b"of the other").unwrap();
    cluster.umount(0);
    assert!(cluster.try_mount(0, &cluster.image(), "ro").status.success());
    assert_eq!(errno(fs::write(at[0].join("g"), b"")), libc::EROFS);
    for round in 0..2 {
        let remount = cluster.try_mount(0, &cluster.image(), "remount,rw");
        assert!(remount.status.success(), "round {round}: {}", stderr(&remount));
        let name = format!("g{round}");
        fs::write(at[0].join(&name), [round; 100_000]).unwrap();
        fs::write(at[0].join("f"), [round; 10]).unwrap();
        assert_eq!(fs::read(at[1].join(&name)).unwrap(), [round; 100_000]);
        assert_eq!(fs::read(at[1].join("f")).unwrap(), [round; 10]);
        let remount = cluster.try_mount(0, &cluster.image(), "remount,ro");
        assert!(remount.status.success(), "round {round}: {}", stderr(&remount));
        assert_eq!(errno(fs::write(at[0].join("f"), b"")), libc::EROFS);
    }
    cluster.umount(0);
    cluster.umount(1);
    cluster.check();
}
