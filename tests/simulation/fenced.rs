//! Hosts on machines of their own, on a disk that keeps off whom it is told to: machines that are paused with
//! writes queued, and go on after others have taken over from them. Nothing of theirs lands; with leases
//! alone it does.

use crate::common::port::Port;
use crate::common::simdisk::SimDisk;
use crate::host::{Host, How};
use crate::runs::unless_paused;
use crate::story::volume;
use crate::tree;
use parking_lot::Mutex;
use shoal::cluster::{ClusterStatus, Disk, read_status};
use shoal::format::superblock;
use shoal::fs::FenceWish;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WAIT_MAX: Duration = Duration::from_secs(40);

pub fn mount(disk: &Arc<SimDisk>, name: &str, fence: FenceWish) -> Host {
    Host::mount_elsewhere(Port::new(disk), name, fence).unwrap_or_else(|e| panic!("mount of {name}: {e}"))
}

pub fn refused(disk: &Arc<SimDisk>, fence: FenceWish) -> String {
    match Host::mount_elsewhere(Port::new(disk), "refused", fence) {
        Ok(_) => panic!("it was mounted"),
        Err(e) => e.to_string(),
    }
}

pub fn status(disk: &Arc<SimDisk>) -> ClusterStatus {
    let (superblock, _) = superblock::load(&**disk).unwrap();
    let (format_id, geometry) = (superblock.format_id, superblock.geometry);
    read_status(&Disk { device: disk.clone(), format_id, geometry }, None).unwrap()
}

/// The reason for which a host halts, once it does.
fn halted(host: &Host) -> Arc<Mutex<Option<String>>> {
    let why = Arc::<Mutex<Option<String>>>::default();
    let tell = why.clone();
    host.fs.on_halt(move |reason| *tell.lock() = Some(reason.into()));
    why
}

pub fn eventually(what: &str, test: impl Fn() -> bool) {
    let begun = Instant::now();
    while !test() {
        assert!(begun.elapsed() < WAIT_MAX, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A host that is paused goes on, and its work ends, also when the test fails in between.
struct GoesOn<'a>(&'a Host, &'a AtomicBool);

impl Drop for GoesOn<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Release);
        self.0.port.stall(false);
    }
}

/// A host is paused in the middle of work, another takes over, the first goes on. The answer: writes of it that
/// landed afterwards, how long the other waited, and why the first halted.
fn pause(disk: &Arc<SimDisk>, fence: FenceWish) -> (u64, Duration, String) {
    let [a, b] = ["a", "b"].map(|name| mount(disk, name, fence.clone()));
    a.mkdir("/d").unwrap();
    a.fsync("/").unwrap();
    let why = halted(&b);
    let over = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        let _goes_on = GoesOn(&b, &over);
        // Several at once, so that some writes are always on their way.
        for worker in 0..4 {
            let (b, over) = (&b, &over);
            scope.spawn(move || {
                for n in 0.. {
                    let path = format!("/d/{worker}-{n}");
                    let done = b.create(&path).and_then(|()| b.write(&path, 0, &[7; 20_000], How::Buffered));
                    if done.and_then(|()| b.fsync(&path)).is_err() || over.load(Ordering::Acquire) {
                        return;
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        b.port.stall(true);
        let paused = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        a.create("/d/after").unwrap();
        a.fsync("/d/after").unwrap();
        let waited = paused.elapsed();
        let before = b.port.landed();
        b.port.stall(false);
        eventually("the paused host halts", || why.lock().is_some());
        over.store(true, Ordering::Release);
        std::thread::sleep(Duration::from_millis(200));
        (b.port.landed() - before, waited, why.lock().clone().unwrap_or_default())
    });
    b.crash();
    a.stop().unwrap();
    answer
}

#[test]
fn nothing_lands_of_a_machine_that_was_paused() {
    // That holds whoever is paused for how long: no run is void in which something did.
    let damage = Mutex::new(vec![]);
    for bits in 0..4 {
        unless_paused(|| paused_on_a_device(bits, &damage));
    }
    assert!(damage.lock().is_empty(), "{:?}", damage.lock());
}

fn paused_on_a_device(bits: u32, damage: &Mutex<Vec<String>>) {
    let disk = volume(128, 3);
    disk.lun.no_all_registrants.store(bits & 1 == 1, Ordering::Relaxed);
    disk.lun.unreadable.store(bits & 2 == 2, Ordering::Relaxed);
    let (landed, waited, why) = pause(&disk, FenceWish::Auto);
    if landed > 0 {
        damage.lock().push(format!("device {bits:02b}: {landed} writes landed"));
    }
    let held = disk.lun.held().is_some();
    if !held {
        damage.lock().push(format!("device {bits:02b} is free: what is queued there could still land"));
    }
    disk.lun.free();
    if let Err(e) = tree::fsck(&disk) {
        damage.lock().push(format!("device {bits:02b}: {e}"));
    }
    assert!(why.contains("reservation conflict"), "{why}");
    // As soon as it is suspected; a slow machine may take longer.
    println!("device {bits:02b}: taken over after {waited:?}");
}

#[test]
fn with_leases_alone_it_does() {
    let disk = volume(128, 3);
    let (landed, _, _) = pause(&disk, FenceWish::Lease);
    assert!(landed > 0, "the other tests of this file would show nothing");
}

#[test]
fn who_cannot_be_kept_off_is_not_recovered() {
    let disk = volume(128, 3);
    let [a, b] = ["a", "b"].map(|name| mount(&disk, name, FenceWish::Auto));
    b.create("/b").unwrap();
    b.fsync("/b").unwrap();
    b.port.stall(true);
    disk.lun.failing.store(u32::MAX, Ordering::Relaxed);
    let trouble = || status(&disk).hosts.iter().find_map(|h| h.beat.as_ref()?.fencing.clone());
    eventually("it is told", || trouble().is_some_and(|t| t.attempts >= 2));
    let told = trouble().unwrap();
    assert!(told.slot.0 == 1 && told.error.contains("the test wants it"), "{told:?}");
    // Longer than any lease and write.
    std::thread::sleep(Duration::from_secs(4));
    let states = || status(&disk).hosts.iter().map(|h| h.state).collect::<Vec<_>>();
    assert!(status(&disk).occupied().count() == 2, "{:?}", states());
    disk.lun.failing.store(0, Ordering::Relaxed);
    eventually("it is recovered", || status(&disk).occupied().count() == 1);
    eventually("it is told no more", || trouble().is_none());
    b.port.stall(false);
    b.crash();
    assert_eq!(a.list("/").unwrap(), ["b"]);
    a.stop().unwrap();
}

#[test]
fn after_the_death_of_all_the_first_mount_has_the_only_key() {
    let disk = volume(128, 3);
    let [a, b] = ["a", "b"].map(|name| mount(&disk, name, FenceWish::Auto));
    b.create("/b").unwrap();
    b.fsync("/b").unwrap();
    [&a, &b].iter().for_each(|host| host.port.stall(true));
    let c = mount(&disk, "c", FenceWish::Auto);
    assert_eq!(disk.lun.keys().len(), 1);
    let before = [&a, &b].map(|host| host.port.landed());
    [&a, &b].iter().for_each(|host| host.port.stall(false));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!([&a, &b].map(|host| host.port.landed()), before);
    assert_eq!(c.list("/").unwrap(), ["b"]);
    [a, b].into_iter().for_each(Host::crash);
    c.stop().unwrap();
    assert!(disk.lun.held().is_some(), "a and b may be paused still");
    // Who comes next goes on with it.
    let d = mount(&disk, "d", FenceWish::Auto);
    d.create("/d").unwrap();
    d.stop().unwrap();
}

/// The slot of the host that let b in has a new mount, which has not beaten yet.
#[test]
fn nobody_is_taken_for_the_dead_whose_slot_it_has() {
    let disk = volume(64, 2);
    let [a, b] = ["a", "b"].map(|name| mount(&disk, name, FenceWish::Auto));
    a.crash();
    eventually("a is recovered", || status(&disk).occupied().count() == 1);
    // Its last heartbeat is long past any wait.
    std::thread::sleep(Duration::from_secs(1));
    for round in 0..4 {
        let c = mount(&disk, "c", FenceWish::Auto);
        c.create(&format!("/{round}")).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        c.stop().unwrap();
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(b.list("/").unwrap().len(), 4);
    b.stop().unwrap();
}

#[test]
fn who_leaves_in_order_leaves_no_key() {
    let disk = volume(64, 3);
    let hosts = ["a", "b", "c"].map(|name| mount(&disk, name, FenceWish::Reservation));
    assert_eq!(disk.lun.keys().len(), 3);
    assert_eq!(status(&disk).occupied().filter(|h| h.beat.as_ref().unwrap().reservation_key != 0).count(), 3);
    hosts.into_iter().for_each(|host| host.stop().unwrap());
    assert_eq!((disk.lun.keys().len(), disk.lun.held()), (0, None));
    tree::fsck(&disk).unwrap();
}

#[test]
fn all_hosts_use_one_class() {
    let disk = volume(64, 3);
    let a = mount(&disk, "a", FenceWish::Lease);
    assert!(a.fs.warning().is_some_and(|w| w.contains("paused")));
    let why = refused(&disk, FenceWish::Reservation);
    assert!(why.contains("use fence=lease"), "{why}");
    assert!(mount(&disk, "b", FenceWish::Auto).fs.warning().is_some());
    assert!(disk.lun.keys().is_empty());
    drop(a);
    let disk = volume(64, 3);
    let a = mount(&disk, "a", FenceWish::Auto);
    assert_eq!(a.fs.warning(), None);
    let why = refused(&disk, FenceWish::Lease);
    assert!(why.contains("use fence=reservation"), "{why}");
    a.stop().unwrap();
    // Nobody has it mounted: the next one chooses.
    let b = mount(&disk, "b", FenceWish::Lease);
    b.create("/b").unwrap();
    b.stop().unwrap();
    // This way to the device can not do what others do.
    let c = mount(&disk, "c", FenceWish::Reservation);
    disk.lun.none.store(true, Ordering::Relaxed);
    let why = refused(&disk, FenceWish::Auto);
    assert!(why.contains("cannot register"), "{why}");
    disk.lun.none.store(false, Ordering::Relaxed);
    c.stop().unwrap();
}

#[test]
fn a_device_without_reservations_is_mounted_with_a_warning() {
    let disk = volume(64, 3);
    disk.lun.none.store(true, Ordering::Relaxed);
    let a = mount(&disk, "a", FenceWish::Auto);
    assert!(a.fs.warning().is_some_and(|w| w.contains("by time alone")));
    assert!(refused(&disk, FenceWish::Reservation).contains("use fence=lease"));
    a.stop().unwrap();
    let why = refused(&disk, FenceWish::Reservation);
    assert!(why.contains("cannot register"), "{why}");
}

#[test]
fn keys_of_something_else_keep_a_mount_away() {
    use shoal::device::reservation::{Kind, Reservations};
    let disk = volume(64, 3);
    let other = disk.lun.nexus(99_999);
    other.register(0, 0xabcd).unwrap();
    other.reserve(0xabcd, Kind::RegistrantsOnly).unwrap();
    let why = refused(&disk, FenceWish::Auto);
    assert!(why.contains("fence"), "{why}");
    assert_eq!(disk.lun.keys(), [0xabcd], "and nothing of the mount's is left there");
}

#[test]
fn nobody_is_recovered_before_the_command_says_so() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    let (program, count) = (place.path().join("off"), place.path().join("count"));
    let body = format!("#!/bin/sh\necho \"$1 $3\" >>{0}\n[ $(wc -l <{0}) -ge 3 ]\n", count.display());
    std::fs::write(&program, body).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let disk = volume(64, 3);
    let wish = FenceWish::Command(program.clone());
    let [a, b] = ["a", "b"].map(|name| mount(&disk, name, wish.clone()));
    let why = refused(&disk, FenceWish::Auto);
    assert!(why.contains("fence=command:PATH"), "{why}");
    b.create("/b").unwrap();
    b.fsync("/b").unwrap();
    b.port.stall(true);
    eventually("b is recovered", || status(&disk).occupied().count() == 1);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "b 1\n".repeat(3));
    assert_eq!(a.list("/").unwrap(), ["b"]);
    b.crash();
    // All die: the next one has to be certain of it, too.
    a.port.stall(true);
    let c = mount(&disk, "c", wish);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "b 1\n".repeat(3) + "a 0\n", "once is enough");
    a.crash();
    c.stop().unwrap();
}
