//! Who has the block device when a mount ends: nobody after one that has left in order, and nobody but us as long as
//! a daemon whose mount was cut may still write.

use crate::rig::{run, stderr};
use crate::synced::{Rig, stop, write};
use shoal::device::{Access, BlockDevice, Exclusive, FileDevice, mountinfo};
use shoal::fuse::mount::{self, Unmount};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// May any program have it now, as mkfs of another filesystem would?
fn is_free(device: &Path) -> bool {
    let claimed = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    match claimed {
        Ok(_) => true,
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => false,
        Err(e) => panic!("{}: {e}", device.display()),
    }
}

#[test]
fn a_cut_mount_leaves_its_device_to_nobody_before_its_daemon_has_ended() {
    let rig = Rig::new(1);
    let device = &rig.devices[0].0;
    write(&rig.cluster.at(0), 1);
    let daemon = rig.cluster.daemon(0).unwrap();
    // As one whose writes hang in the device.
    stop(daemon.daemon.pid, "-STOP");
    mount::unmount(&rig.cluster.at(0), Unmount::Force).unwrap();
    let begun = Instant::now();
    let mut free = Duration::ZERO;
    while begun.elapsed() < Duration::from_millis(500) {
        if is_free(device) {
            free = begun.elapsed();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stop(daemon.daemon.pid, "-CONT");
    println!("it could be had for {free:?}");
    assert!(
        free < Duration::from_millis(250),
        "it could be had after {free:?}, beside a daemon that may write"
    );
    assert!(daemon.wait(Duration::from_secs(20)), "the daemon does not end");
    assert!(is_free(device), "who waits for the daemon finds the device free");
    assert!(rig.cluster.log(0).contains("the guardian has the device"), "{}", rig.cluster.log(0));
}

#[test]
fn a_daemon_that_is_killed_for_its_long_stop_keeps_the_device_to_its_end() {
    let rig = Rig::new(1);
    let daemon = rig.cluster.daemon(0).unwrap();
    stop(daemon.daemon.pid, "-STOP");
    mount::unmount(&rig.cluster.at(0), Unmount::Force).unwrap();
    // Its lease is two seconds.
    assert!(daemon.wait(Duration::from_secs(10)), "the guardian has not ended it");
    assert!(is_free(&rig.devices[0].0));
    rig.mount(0);
}

#[test]
fn the_device_is_free_when_umount_comes_back() {
    let rig = Rig::new(1);
    let device = &rig.devices[0].0;
    for tag in 0..4 {
        write(&rig.cluster.at(0), tag);
        let daemon = rig.cluster.daemon(0).unwrap();
        mount::unmount(&rig.cluster.at(0), Unmount::Plain).unwrap();
        while !daemon.wait(Duration::ZERO) {
            assert!(is_free(device), "umount; mkfs of another filesystem would have failed");
        }
        rig.mount(0);
    }
}

#[test]
fn tools_wait_for_a_daemon_that_is_not_done() {
    let rig = Rig::new(1);
    let device = rig.devices[0].0.to_str().unwrap();
    for tool in [&["fsck_shoal", "-f"][..], &["mkfs_shoal", "-q", "-f", "--timing", "test"]] {
        let daemon = rig.cluster.daemon(0).unwrap().daemon.pid;
        stop(daemon, "-STOP");
        mount::unmount(&rig.cluster.at(0), Unmount::Force).unwrap();
        let out = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(700));
                stop(daemon, "-CONT");
            });
            run(tool[0], &[&tool[1..], &[device]].concat())
        });
        assert!(out.status.success(), "{tool:?}: {}", stderr(&out));
        rig.mount(0);
    }
}

/// Children that have ended and were not waited for. They are listed by the thread that made them.
fn zombies_of(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(Result::unwrap);
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: String = children.collect();
    let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    children.split_whitespace().map(stat).filter(|stat| stat.contains(") Z ")).collect()
}

#[test]
fn a_signal_leaves_no_zombie_behind_while_files_are_open() {
    let rig = Rig::new(1);
    let open = File::create(rig.cluster.at(0).join("open")).unwrap();
    let daemon = rig.cluster.daemon(0).unwrap();
    stop(daemon.daemon.pid, "-TERM");
    let begun = Instant::now();
    while mountinfo::mounted_at(&rig.cluster.at(0)).unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it stays mounted");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let dead = zombies_of(daemon.daemon.pid);
    drop(open);
    assert!(dead.is_empty(), "{dead:?}");
    assert!(daemon.wait(Duration::from_secs(20)), "the daemon did not leave");
}

#[test]
fn a_signal_takes_no_other_mount_away() {
    let rig = Rig::new(2);
    let (below, above) = (rig.cluster.at(0), rig.cluster.at(1));
    let bound = Command::new("mount").arg("--bind").args([&above, &below]).status().unwrap();
    assert!(bound.success());
    let device = |at: &Path| fs::metadata(at).unwrap().dev();
    stop(rig.cluster.daemon(0).unwrap().daemon.pid, "-TERM");
    std::thread::sleep(Duration::from_millis(700));
    let stays = device(&below) == device(&above);
    if stays {
        mount::unmount(&below, Unmount::Plain).unwrap();
    }
    assert!(stays, "another host's mount was taken away");
    assert!(rig.cluster.log(0).contains("another mount lies over it"), "{}", rig.cluster.log(0));
}

/// Pages that somebody has written through the page cache of the device must not make clearing blocks fail.
#[test]
fn blocks_are_cleared_beside_pages_of_the_device_that_are_dirty() {
    let rig = Rig::new(1);
    rig.cluster.umount(0);
    let path = &rig.devices[0].0;
    let _claim = Exclusive::take(path).unwrap();
    let device = FileDevice::open(path, Access::Mount).unwrap();
    let at = device.size() - (1 << 20);
    let buffered = OpenOptions::new().write(true).open(path).unwrap();
    for clear in [FileDevice::discard, FileDevice::write_zeros] {
        buffered.write_all_at(&[7; 8192], at).unwrap();
        clear(&device, at, 8192).unwrap();
    }
    let mut found = vec![1; 8192];
    device.read(at, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 0));
}
