//! First mounts that meet others on their way, or come to nothing: what they may reserve, whom they keep off, and
//! what they leave behind.

use crate::common::lun::Lun;
use crate::common::port::Port;
use crate::common::simdisk::SimDisk;
use crate::fenced::{mount, refused};
use crate::host::{Host, NoKernel};
use crate::story::volume;
use shoal::base::Incarnation;
use shoal::cluster::Disk;
use shoal::cluster::keys::key_of;
use shoal::device::probe::Identity;
use shoal::device::{Fitness, Reservations};
use shoal::format::cluster::Claim;
use shoal::format::cluster::lobby::ClaimKind;
use shoal::format::cluster::view::{PROTOCOL, PROTOCOL_MIN};
use shoal::format::superblock;
use shoal::fs::mount::{Backing, start_wrapped};
use shoal::fs::{FenceWish, MountOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Another first mount, and its nexus.
const OTHER: Incarnation = Incarnation(77);
const NEXUS: u64 = 99_999;

pub fn raw(disk: &Arc<SimDisk>) -> Disk {
    let (superblock, _) = superblock::load(&**disk).unwrap();
    Disk { device: disk.clone(), format_id: superblock.format_id, geometry: superblock.geometry }
}

fn claimed_by_other(disk: &Disk, slot: u16) -> bool {
    disk.read_claim(slot).unwrap().is_some_and(|claim| claim.incarnation == OTHER)
}

/// Another first mount claims the first slot, and goes no further.
fn claim(disk: &Arc<SimDisk>) {
    raw(disk).write_claim(0, &claim_of_other()).unwrap();
}

fn claim_of_other() -> Claim {
    Claim {
        kind: ClaimKind::First,
        incarnation: OTHER,
        sequence: 1,
        host: [7; 16],
        protocols: (PROTOCOL_MIN, PROTOCOL),
        name: "other".into(),
        ..Claim::default()
    }
}

fn register(disk: &Arc<SimDisk>) {
    disk.lun.nexus(NEXUS).register(0, key_of(raw(disk).format_id, OTHER)).unwrap();
}

/// May that one still write, its ballot for example?
fn writes(disk: &Arc<SimDisk>) -> bool {
    disk.lun.write(NEXUS, || ()).is_some()
}

/// It is in no view; its ballot may still be queued.
#[test]
fn a_first_mount_that_was_kept_off_stays_so_after_all_have_left() {
    let disk = volume(64, 3);
    register(&disk);
    let a = mount(&disk, "a", FenceWish::Auto);
    a.create("/a").unwrap();
    a.stop().unwrap();
    assert!(disk.lun.held().is_some() && !writes(&disk), "it may be paused");
}

#[test]
fn a_first_mount_is_kept_off_whose_key_only_its_claim_tells() {
    let disk = volume(64, 3);
    disk.lun.unreadable.store(true, Ordering::Relaxed);
    register(&disk);
    claim(&disk);
    let a = mount(&disk, "a", FenceWish::Auto);
    assert!(!writes(&disk), "its claim was taken over, not its key");
    a.stop().unwrap();
    assert!(disk.lun.held().is_some() && !writes(&disk), "it may be paused");
}

/// That one may be about to mount with leases.
#[test]
fn nothing_is_reserved_while_another_first_mount_claims_the_slot() {
    for wish in [FenceWish::Auto, FenceWish::Reservation] {
        let disk = volume(64, 3);
        claim(&disk);
        let early = Arc::new(AtomicBool::new(false));
        let (tell, look) = (early.clone(), raw(&disk));
        disk.lun.listen(move |what| {
            tell.fetch_or(what == "reserve" && claimed_by_other(&look, 0), Ordering::Relaxed);
        });
        let a = mount(&disk, "a", wish.clone());
        assert!(!early.load(Ordering::Relaxed), "{wish:?}: the other could not write any more");
        assert!(disk.lun.held().is_some(), "{wish:?}");
        a.stop().unwrap();
    }
}

/// It was held up after it had looked, and whoever took its claim over has mounted, perhaps with leases.
#[test]
fn nothing_is_reserved_once_the_claim_is_taken_over() {
    let disk = volume(64, 3);
    let early = Arc::new(AtomicBool::new(false));
    let (tell, look, lun, taken) =
        (early.clone(), raw(&disk), Arc::downgrade(&disk.lun), AtomicBool::new(false));
    disk.lun.listen(move |what| {
        let registered = lun.upgrade().is_some_and(|lun| !lun.keys().is_empty());
        if what == "report" && registered && !taken.swap(true, Ordering::Relaxed) {
            assert!(look.read_claim(0).unwrap().is_some_and(|c| c.kind == ClaimKind::First));
            look.write_claim(0, &claim_of_other()).unwrap();
        }
        tell.fetch_or(what == "reserve" && claimed_by_other(&look, 0), Ordering::Relaxed);
    });
    let a = mount(&disk, "a", FenceWish::Auto);
    assert!(!early.load(Ordering::Relaxed), "a member could not write any more");
    a.stop().unwrap();
}

/// As above, but the reservation was made by then: whoever writes under leases now cannot.
#[test]
fn a_reservation_made_too_late_is_given_up_at_once() {
    for alone in [false, true] {
        let disk = volume(64, 3);
        disk.lun.no_all_registrants.store(alone, Ordering::Relaxed);
        // A member that died, or may be paused.
        mount(&disk, "old", FenceWish::Lease).crash();
        let (look, lun, taken) = (raw(&disk), Arc::downgrade(&disk.lun), AtomicBool::new(false));
        let stands = Arc::new(AtomicBool::new(false));
        let tell = stands.clone();
        disk.lun.listen(move |what| {
            if what == "reserve" && !taken.swap(true, Ordering::Relaxed) {
                (0..3).for_each(|slot| look.write_claim(slot, &claim_of_other()).unwrap());
            } else if what == "report"
                && taken.load(Ordering::Relaxed)
                && (0..3).all(|s| claimed_by_other(&look, s))
            {
                // It begins anew.
                tell.fetch_or(lun.upgrade().is_some_and(|lun| lun.held().is_some()), Ordering::Relaxed);
            }
        });
        let a = mount(&disk, "a", FenceWish::Auto);
        assert!(!stands.load(Ordering::Relaxed), "registrants only: {alone}");
        assert!(disk.lun.held().is_some());
        a.stop().unwrap();
    }
}

#[test]
fn of_mounts_at_the_same_moment_none_is_kept_off() {
    for _ in 0..3 {
        let disk = volume(64, 4);
        let disk = &disk;
        let hosts = std::thread::scope(|scope| {
            let start = |name| scope.spawn(move || mount(disk, name, FenceWish::Auto));
            ["a", "b", "c"].map(start).map(|mount| mount.join().unwrap())
        });
        assert_eq!(disk.lun.keys().len(), 3);
        hosts.into_iter().for_each(|host| host.stop().unwrap());
        assert_eq!((disk.lun.keys(), disk.lun.held()), (vec![], None), "nobody can be paused");
    }
}

#[test]
fn hosts_that_reach_different_halves_of_a_store_are_not_let_in() {
    let disk = volume(64, 3);
    let a = mount(&disk, "a", FenceWish::Auto);
    let half = Lun::new();
    let (port, machine) = (Port::new(&disk), Some([3; 16]));
    let failed = mount_by(port, FenceWish::Auto, machine, Arc::new(half.nexus(1)));
    let why = failed.err().expect("it was let in").to_string();
    assert!(why.contains("does not show its registration") && why.contains("a (slot 0)"), "{why}");
    assert!(half.keys().is_empty() && disk.lun.keys().len() == 1);
    a.create("/a").unwrap();
    a.stop().unwrap();
}

#[test]
fn a_device_that_cannot_be_reserved_is_mounted_with_leases() {
    let disk = volume(64, 3);
    disk.lun.unreservable.store(true, Ordering::Relaxed);
    let why = refused(&disk, FenceWish::Reservation);
    assert!(why.contains("reserving"), "{why}");
    let a = mount(&disk, "a", FenceWish::Auto);
    assert!(a.fs.warning().is_some_and(|w| w.contains("by time alone") && w.contains("reserving")));
    assert!(disk.lun.keys().is_empty(), "it would keep nobody off");
    a.create("/a").unwrap();
    a.stop().unwrap();
}

#[test]
fn a_mount_that_came_to_nothing_leaves_an_idle_device_free() {
    let disk = volume(64, 3);
    let port = Port::new(&disk);
    let cut = Arc::downgrade(&port);
    // It is reserved, and asked for again before and after the keys are taken.
    let asked = AtomicU32::new(0);
    disk.lun.listen(move |what| {
        if let Some(port) = cut.upgrade().filter(|_| what == "reserve")
            && asked.fetch_add(1, Ordering::Relaxed) == 2
        {
            port.cut();
        }
    });
    let failed = Host::mount_elsewhere(port, "a", FenceWish::Auto);
    assert!(failed.is_err());
    assert_eq!((disk.lun.keys(), disk.lun.held()), (vec![], None), "others cannot write to it");
    disk.lun.listen(|_| ());
    // With leases, too.
    mount(&disk, "b", FenceWish::Lease).stop().unwrap();
}

fn mount_by(
    port: Arc<Port>,
    fence: FenceWish,
    machine_id: Option<[u8; 16]>,
    reservations: Arc<dyn Reservations>,
) -> shoal::base::Result<Host> {
    let boot_id = rand::random();
    let identity = Identity { dev: 1, ino: 1, rdev: 7, boot_id, machine_id, local_filesystem: false };
    mount_as(port, fence, identity, reservations)
}

pub fn mount_as(
    port: Arc<Port>,
    fence: FenceWish,
    identity: Identity,
    reservations: Arc<dyn Reservations>,
) -> shoal::base::Result<Host> {
    let options = MountOptions { fence, ..MountOptions::new("simulated".into()) };
    let (device, claim) = (port.clone(), port.clone());
    let reservations = Some(reservations);
    let fitness = Fitness::Fit;
    let backing = Backing { device, claim, identity, reservations, fitness, unlocked: false };
    let fs = start_wrapped(backing, &options, Arc::new(NoKernel), &|demoter| demoter)?;
    Ok(Host { fs, port })
}

/// As in two containers of one machine, the first of which is frozen: what it is about to write would be let through
/// if the second took its place at the device.
#[test]
fn a_mount_of_this_boot_by_another_device_node_is_not_known_to_be_gone() {
    let disk = volume(64, 3);
    let identity = |ino| {
        let (boot_id, machine_id) = ([5; 16], Some([3; 16]));
        Identity { dev: 1, ino, rdev: 7, boot_id, machine_id, local_filesystem: false }
    };
    let port = Port::new(&disk);
    let nexus = port.reservations();
    let a = mount_as(port, FenceWish::Auto, identity(1), nexus.clone()).unwrap();
    let keys = disk.lun.keys();
    a.port.stall(true);
    let failed = mount_as(Port::new(&disk), FenceWish::Auto, identity(2), nexus);
    let why = failed.err().expect("it was mounted").to_string();
    assert!(why.contains("another device node"), "{why}");
    assert_eq!(disk.lun.keys(), keys);
    a.port.stall(false);
    a.crash();
}

fn mount_without_identity(disk: &Arc<SimDisk>, fence: FenceWish) -> shoal::base::Result<Host> {
    let port = Port::new(disk);
    let reservations = port.reservations();
    mount_by(port, fence, None, reservations)
}

#[test]
fn a_machine_that_no_command_can_name_takes_no_part_in_commands() {
    let disk = volume(64, 3);
    let command = FenceWish::Command("/bin/true".into());
    let why = mount_without_identity(&disk, command.clone()).err().expect("it was mounted").to_string();
    assert!(why.contains("/etc/machine-id"), "{why}");
    mount(&disk, "a", command).stop().unwrap();
    mount_without_identity(&disk, FenceWish::Lease).unwrap().stop().unwrap();
}
