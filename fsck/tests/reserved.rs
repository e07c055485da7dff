//! A check of a device that stays reserved, on a simulated one: it may write meanwhile, and whoever was kept off
//! stays so.

#[path = "../../tests/common/lun.rs"]
#[allow(dead_code)]
mod lun;

use lun::Lun;
use shoal::base::Incarnation;
use shoal::cluster::keys::key_of;
use shoal::device::reservation::{Kind, Reservations};
use shoal_fsck::reserved::Reserved;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const VOLUME: u64 = 0x1234_5678_9abc_def0;

fn key(mount: u64) -> u64 {
    key_of(VOLUME, Incarnation(mount))
}

/// The last mount, on nexus 1, has left it reserved.
fn reserved(bits: u32) -> Arc<Lun> {
    let lun = Lun::new();
    lun.unreadable.store(bits & 1 == 1, Ordering::Relaxed);
    let kind = if bits & 2 == 2 { Kind::RegistrantsOnly } else { Kind::AllRegistrants };
    lun.nexus(1).register(0, key(1)).unwrap();
    lun.nexus(1).reserve(key(1), kind).unwrap();
    lun
}

fn writes(lun: &Lun, nexus: u64) -> bool {
    lun.write(nexus, || ()).is_some()
}

#[test]
fn a_check_elsewhere_writes_and_leaves_the_reservation_as_it_was() {
    for bits in 0..4 {
        let lun = reserved(bits);
        let before = (lun.keys(), lun.held());
        assert!(!writes(&lun, 2));
        let check = Reserved::on(Arc::new(lun.nexus(2)), key(2));
        assert!(writes(&lun, 2) && !writes(&lun, 3), "device {bits:02b}");
        drop(check);
        assert!(!writes(&lun, 2), "device {bits:02b}");
        assert_eq!((lun.keys(), lun.held()), before, "device {bits:02b}");
    }
}

#[test]
fn a_check_where_the_last_mount_was_does_not_end_the_reservation() {
    for bits in 0..4 {
        let lun = reserved(bits);
        let before = (lun.keys(), lun.held());
        let check = Reserved::on(Arc::new(lun.nexus(1)), key(2));
        assert!(writes(&lun, 1), "device {bits:02b}");
        drop(check);
        assert_eq!((lun.keys(), lun.held()), before, "device {bits:02b}");
        assert!(!writes(&lun, 3), "device {bits:02b}: who was kept off would write");
    }
}

#[test]
fn a_device_that_is_free_stays_free() {
    for unreadable in [false, true] {
        let lun = Lun::new();
        lun.unreadable.store(unreadable, Ordering::Relaxed);
        drop(Reserved::on(Arc::new(lun.nexus(1)), key(1)));
        assert_eq!((lun.keys(), lun.held()), (vec![], None));
    }
}
