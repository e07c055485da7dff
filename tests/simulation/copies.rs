//! Mounts that have boot, device node and nexus in common: of one machine, one after the other; or of two virtual
//! machines that go on from one snapshot of memory.

use crate::common::port::Port;
use crate::common::simdisk::SimDisk;
use crate::fenced::{eventually, mount};
use crate::first_mounts::{mount_as, raw};
use crate::host::Host;
use crate::runs::unless_paused;
use crate::story::volume;
use shoal::base::{Result, SlotId};
use shoal::cluster::Timing;
use shoal::device::probe::Identity;
use shoal::fs::FenceWish;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BEAT: Duration = Timing::TEST.heartbeat;

/// On this machine, or on one that cannot be told from it.
fn mount_here(port: Arc<Port>, fence: &FenceWish) -> Result<Host> {
    let (boot_id, machine_id) = ([5; 16], Some([3; 16]));
    let identity = Identity { dev: 1, ino: 1, rdev: 7, boot_id, machine_id, local_filesystem: false };
    let nexus = port.reservations();
    mount_as(port, fence.clone(), identity, nexus)
}

fn await_beat(disk: &Arc<SimDisk>) {
    let disk = raw(disk);
    let counter = || disk.read_heartbeat(SlotId(0)).unwrap().map(|beat| beat.counter);
    let before = counter();
    eventually("it beats", || counter() != before);
}

fn assert_lives(host: &Host, name: &str) {
    host.create(name).unwrap();
    host.fsync(name).unwrap();
}

#[test]
fn a_copy_of_a_machine_does_not_take_the_key_of_one_that_lives() {
    unless_paused(|| {
        for phase in 0..4 {
            let disk = volume(64, 3);
            let a = mount_here(Port::new(&disk), &FenceWish::Auto).unwrap();
            let keys = disk.lun.keys();
            assert_eq!(keys.len(), 1);
            await_beat(&disk);
            std::thread::sleep(BEAT * phase / 4);
            let copy = mount_here(a.port.again(), &FenceWish::Auto);
            let why = copy.err().expect("it was mounted").to_string();
            assert!(why.contains("takes this host for") && why.contains("has the volume mounted"), "{why}");
            assert_eq!(disk.lun.keys(), keys);
            assert_lives(&a, "/a");
            a.stop().unwrap();
        }
    });
}

#[test]
fn a_copy_of_a_machine_does_not_take_one_that_lives_for_gone() {
    unless_paused(|| {
        for phase in 0..4 {
            let disk = volume(64, 3);
            let a = mount_here(Port::new(&disk), &FenceWish::Lease).unwrap();
            await_beat(&disk);
            std::thread::sleep(BEAT * phase / 4);
            let copy = mount_here(a.port.again(), &FenceWish::Lease).unwrap();
            // For as long as it takes to prove anything.
            std::thread::sleep(BEAT * 5);
            assert_lives(&a, "/a");
            assert_lives(&copy, "/copy");
            [a, copy].into_iter().for_each(|host| host.stop().unwrap());
        }
    });
}

#[test]
fn the_next_mount_of_a_machine_whose_daemon_was_killed_does_not_wait_for_the_lease() {
    for fence in [FenceWish::Auto, FenceWish::Lease] {
        unless_paused(|| mount_after_a_kill(&fence, false, Timing::TEST.wait()));
        // The others are to see first that it is gone.
        unless_paused(|| mount_after_a_kill(&fence, true, Timing::TEST.wait() * 2));
    }
}

/// In less than `limit`, alone or beside another host.
fn mount_after_a_kill(fence: &FenceWish, beside_another: bool, limit: Duration) {
    let disk = volume(64, 3);
    let a = mount_here(Port::new(&disk), fence).unwrap();
    let other = beside_another.then(|| mount(&disk, "other", fence.clone()));
    assert_lives(&a, "/a");
    let port = a.port.again();
    a.crash();
    let killed = Instant::now();
    let b = mount_here(port, fence).unwrap();
    let took = killed.elapsed();
    println!("{fence:?}, beside another: {beside_another}: {took:?}");
    assert!(took < limit, "{fence:?}: it took {took:?}");
    assert!(took >= BEAT * 3 || beside_another && *fence == FenceWish::Lease, "{fence:?}: after {took:?}");
    b.unlink("/a").unwrap();
    b.stop().unwrap();
    other.into_iter().for_each(|host| host.stop().unwrap());
}
