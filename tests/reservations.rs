//! A mount's registration with a device that keeps hosts off, on a simulated one: rules K1 to K5 of
//! `cluster::keys`, with every kind of device (all registrants or one holder, keys readable or not, with
//! and without abort).

#[path = "common/lun.rs"]
#[allow(dead_code)]
mod lun;

use lun::Lun;
use shoal::base::{Error, Incarnation, SlotId};
use shoal::cluster::fencer::Fence;
use shoal::cluster::fencer::Victim;
use shoal::cluster::keys::{Enrolled, Former, Registration, is_of_volume, key_of};
use shoal::device::reservation::{Kind, Reservations};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const VOLUME: u64 = 0x1234_5678_9abc_def0;
const LIFE: Duration = Duration::from_secs(7);

fn inc(n: u64) -> Incarnation {
    Incarnation(n)
}

/// Mount `n` on nexus `nexus`.
fn registration(lun: &Arc<Lun>, nexus: u64, n: u64) -> Registration {
    Registration::new(Arc::new(lun.nexus(nexus)), VOLUME, inc(n), LIFE)
}

fn enrolled(lun: &Arc<Lun>, nexus: u64, n: u64) -> Registration {
    let registration = registration(lun, nexus, n);
    assert_eq!(registration.enrol(&[], false), Ok(Enrolled::Yes));
    registration
}

fn members(mounts: &[u64]) -> Former {
    Former { members: mounts.iter().copied().map(Incarnation).collect(), ..Former::default() }
}

fn writes(lun: &Lun, nexus: u64) -> bool {
    lun.write(nexus, || ()).is_some()
}

/// Every kind of device.
fn devices() -> impl Iterator<Item = (String, Arc<Lun>)> {
    (0..8).map(|bits| {
        let lun = Lun::new();
        let knobs = [&lun.no_all_registrants, &lun.unreadable, &lun.no_abort];
        knobs.iter().enumerate().for_each(|(n, knob)| knob.store(bits >> n & 1 == 1, Ordering::Relaxed));
        (format!("device {bits:03b} (no abort, unreadable, one holder)"), lun)
    })
}

#[test]
fn keys_are_of_a_volume_and_of_one_mount() {
    let key = key_of(VOLUME, inc(5));
    assert!(is_of_volume(VOLUME, key) && !is_of_volume(VOLUME + 1, key) && !is_of_volume(VOLUME, 0));
    assert_ne!(key, key_of(VOLUME, inc(6)));
    assert_ne!(key_of(0, inc(0)), 0, "no key is 0");
}

#[test]
fn who_is_preempted_writes_no_more() {
    for (what, lun) in devices() {
        let [a, b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.take(&Former::default()).unwrap();
        // Mount 2 was not there yet to `take`, as far as the device tells.
        if !b.is_registered().unwrap() {
            assert_eq!(registration(&lun, 2, 2).enrol(&[], false), Ok(Enrolled::Yes));
        }
        assert!(writes(&lun, 1) && writes(&lun, 2) && !writes(&lun, 3), "{what}");
        let cut = a.cut_off(inc(2)).unwrap();
        let no_abort = lun.no_abort.load(Ordering::Relaxed);
        assert_eq!(cut.settle, if no_abort { LIFE } else { Duration::ZERO }, "{what}: {}", cut.how);
        assert!(writes(&lun, 1) && !writes(&lun, 2), "{what}");
        assert!(matches!(b.verify(), Err(Error::Fenced { .. })), "{what}");
        assert!(matches!(b.cut_off(inc(1)), Err(Error::Fenced { .. })), "{what}: it takes nobody's key");
        assert!(a.verify().is_ok() && writes(&lun, 1), "{what}");
        // Once more: by whom it was done, and whether with an abort, is not known.
        assert_eq!(a.cut_off(inc(2)).unwrap().settle, LIFE, "{what}");
    }
}

#[test]
fn the_holder_is_preempted_and_its_heir_holds() {
    for (what, lun) in devices() {
        let [a, b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.hold().unwrap();
        b.cut_off(inc(1)).unwrap();
        assert!(!writes(&lun, 1) && writes(&lun, 2) && !writes(&lun, 3), "{what}");
    }
}

#[test]
fn a_failed_preemption_is_none() {
    for (what, lun) in devices() {
        let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.hold().unwrap();
        lun.failing.store(2, Ordering::Relaxed);
        assert!(a.cut_off(inc(2)).is_err(), "{what}");
        assert!(writes(&lun, 2), "{what}");
        assert!(a.cut_off(inc(2)).is_ok(), "{what}");
        assert!(!writes(&lun, 2), "{what}");
    }
}

#[test]
fn a_failed_abort_is_made_good_by_the_wait() {
    for (what, lun) in devices() {
        let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.hold().unwrap();
        lun.failing.store(u32::from(!lun.no_abort.load(Ordering::Relaxed)), Ordering::Relaxed);
        let cut = a.cut_off(inc(2)).unwrap();
        assert_eq!(cut.settle, LIFE, "{what}: {}", cut.how);
        assert!(!writes(&lun, 2), "{what}");
    }
}

#[test]
fn a_reservation_that_is_lost_is_made_anew_before_anybody_counts_as_kept_off() {
    for (what, lun) in devices() {
        let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
        assert!(lun.held().is_none() && writes(&lun, 2));
        a.cut_off(inc(2)).unwrap();
        assert!(lun.held().is_some() && !writes(&lun, 2), "{what}");
    }
}

#[test]
fn a_nexus_that_bears_a_members_key_is_not_registered_anew() {
    for (what, lun) in devices() {
        enrolled(&lun, 1, 1);
        let again = registration(&lun, 1, 2);
        assert_eq!(
            again.enrol(&[(SlotId(3), inc(1))], true),
            Ok(Enrolled::Bears(SlotId(3), inc(1))),
            "{what}"
        );
        assert_eq!(lun.keys(), [key_of(VOLUME, inc(1))], "{what}");
        // Others take the key away: then it is free.
        let c = enrolled(&lun, 2, 3);
        c.cut_off(inc(1)).unwrap();
        assert_eq!(again.enrol(&[(SlotId(3), inc(1))], true), Ok(Enrolled::Yes), "{what}");
        // A key that no member has is in nobody's way.
        assert_eq!(registration(&lun, 2, 4).enrol(&[(SlotId(3), inc(1))], true), Ok(Enrolled::Yes), "{what}");
    }
}

#[test]
fn the_first_mount_takes_what_earlier_ones_left() {
    for (what, lun) in devices() {
        enrolled(&lun, 1, 1).hold().unwrap();
        enrolled(&lun, 2, 2);
        let c = enrolled(&lun, 3, 3);
        let no_abort = lun.no_abort.load(Ordering::Relaxed);
        let settle = if no_abort { LIFE } else { Duration::ZERO };
        let former = Former { over: vec![inc(9)], ..members(&[1, 2]) };
        assert_eq!((c.take(&former), c.has_kept_off()), (Ok(settle), true), "{what}");
        assert!(!writes(&lun, 1) && !writes(&lun, 2) && writes(&lun, 3), "{what}");
        assert_eq!(lun.keys(), [c.key()], "{what}");
    }
}

#[test]
fn a_member_without_a_key_may_have_written_until_now() {
    for (what, lun) in devices() {
        let a = enrolled(&lun, 1, 1);
        assert_eq!(a.take(&members(&[9])), Ok(LIFE), "{what}");
        let over = Former { over: vec![inc(9)], ..Former::default() };
        assert_eq!(a.take(&over), Ok(Duration::ZERO), "{what}: it is gone");
    }
}

#[test]
fn who_is_no_member_yet_is_kept_off_too_but_not_who_has_left() {
    for (what, lun) in devices() {
        lun.unreadable.store(false, Ordering::Relaxed);
        let took = |by: &Registration, former: Former| {
            by.take(&former).unwrap();
            by.has_kept_off()
        };
        let [a, b] = [1, 2].map(|n| enrolled(&lun, n, n));
        let left = || Former { over: vec![inc(2)], ..Former::default() };
        assert!(!took(&a, left()), "{what}");
        assert!(
            took(&a, Former { claims: vec![inc(4)], ..left() }),
            "{what}: its key was taken by somebody else"
        );
        assert_eq!(b.enrol(&[], false), Ok(Enrolled::Yes));
        assert!(took(&b, Former::default()), "{what}: a first mount's key, in no view");
    }
}

#[test]
fn who_fails_half_way_has_kept_somebody_off() {
    for (what, lun) in devices() {
        let [a, _b, _c] = [1, 2, 3].map(|n| enrolled(&lun, n, n));
        let there = Arc::downgrade(&lun);
        lun.listen(move |what| {
            if let Some(lun) = there.upgrade().filter(|_| what == "preempt") {
                lun.failing.store(100, Ordering::Relaxed);
            }
        });
        assert!(a.take(&members(&[2, 3])).is_err(), "{what}");
        assert!(a.has_kept_off() && !(writes(&lun, 2) && writes(&lun, 3)), "{what}");
    }
}

#[test]
fn an_abort_that_is_not_certain_is_waited_for() {
    let lun = Lun::new();
    lun.best_effort.store(true, Ordering::Relaxed);
    let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
    assert_eq!(a.cut_off(inc(2)).unwrap().settle, LIFE);
}

#[test]
fn a_mount_that_came_to_nothing_leaves_an_idle_device_free() {
    for (what, lun) in devices() {
        let a = enrolled(&lun, 1, 1);
        a.take(&Former::default()).unwrap();
        a.give_up(true);
        assert_eq!((lun.keys(), lun.held()), (vec![], None), "{what}");
    }
}

#[test]
fn keys_of_others_are_named_and_left() {
    let lun = Lun::new();
    let a = enrolled(&lun, 2, 2);
    lun.nexus(1).register(0, 0xabcd).unwrap();
    lun.nexus(1).reserve(0xabcd, Kind::RegistrantsOnly).unwrap();
    let why = a.take(&Former::default()).unwrap_err().to_string();
    assert!(why.contains("0x000000000000abcd") && why.contains("fence --clear"), "{why}");
    assert!(lun.keys().contains(&0xabcd));
    // Where keys cannot be read, the reservation shows.
    lun.unreadable.store(true, Ordering::Relaxed);
    assert!(a.take(&members(&[1])).unwrap_err().to_string().contains("shoal fence"));
    assert!(lun.keys().contains(&0xabcd));
}

#[test]
fn who_leaves_takes_its_key_along_and_the_last_one_the_reservation() {
    for (what, lun) in devices() {
        let [a, b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.hold().unwrap();
        a.leave(false, false);
        assert!(lun.held().is_some() && writes(&lun, 2) && !writes(&lun, 3), "{what}: b works under it");
        b.hold().unwrap();
        b.leave(true, false);
        let kept = lun.no_all_registrants.load(Ordering::Relaxed);
        assert_eq!(lun.held().is_some(), kept, "{what}: a holder's key stays until somebody takes it");
    }
}

#[test]
fn the_reservation_outlives_the_last_mount_once_somebody_was_kept_off() {
    for (what, lun) in devices() {
        let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.cut_off(inc(2)).unwrap();
        a.leave(true, true);
        assert!(!writes(&lun, 2), "{what}: what b has queued would land");
        // The next mount goes on with it, and one that came to nothing does not end it.
        let c = registration(&lun, 1, 3);
        assert_eq!(c.enrol(&[], true), Ok(Enrolled::Yes), "{what}");
        c.give_up(false);
        assert!(!writes(&lun, 2), "{what}");
        let d = enrolled(&lun, 4, 4);
        d.take(&members(&[1, 2, 3])).unwrap();
        assert!(!writes(&lun, 2) && !writes(&lun, 1) && writes(&lun, 4), "{what}");
    }
}

#[test]
fn a_device_without_reservations_says_so() {
    let lun = Lun::new();
    lun.none.store(true, Ordering::Relaxed);
    assert!(registration(&lun, 1, 1).enrol(&[], false).is_err());
}

#[test]
fn an_abort_waits_for_what_is_in_the_device() {
    let lun = Lun::new();
    let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
    a.hold().unwrap();
    let (landed, inside) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lun.write(2, || {
                inside.wait();
                std::thread::sleep(Duration::from_millis(200));
                landed.store(true, Ordering::Release);
            })
        });
        inside.wait();
        a.cut(&Victim { incarnation: inc(2), ..Victim::default() }).unwrap();
        assert!(landed.load(Ordering::Acquire), "it was still to come");
    });
}

#[test]
fn a_nexus_that_something_else_has_registered_is_left_so() {
    let lun = Lun::new();
    lun.nexus(1).register(0, 0xabcd).unwrap();
    for nexus in [1, 2] {
        let before = lun.keys();
        assert_eq!(registration(&lun, nexus, 5).enrol(&[], true), Ok(Enrolled::Foreign(vec![0xabcd])));
        assert_eq!(lun.keys(), before, "nexus {nexus}");
    }
    lun.unreadable.store(true, Ordering::Relaxed);
    assert_eq!(registration(&lun, 1, 5).enrol(&[], false), Ok(Enrolled::Foreign(vec![])));
    assert_eq!(lun.keys(), [0xabcd]);
    // A volume that was there before: whoever it kept off is kept off still.
    let old = Lun::new();
    enrolled(&old, 1, 1).hold().unwrap();
    let new = Registration::new(Arc::new(old.nexus(1)), VOLUME << 1, inc(2), LIFE);
    assert_eq!(new.enrol(&[], false), Ok(Enrolled::Foreign(vec![key_of(VOLUME, inc(1))])));
}

#[test]
fn a_report_that_fails_is_no_device_without_reports() {
    let lun = Lun::new();
    let a = enrolled(&lun, 1, 1);
    enrolled(&lun, 2, 2);
    lun.misread.store(1, Ordering::Relaxed);
    assert!(a.take(&Former::default()).is_err(), "there may be keys");
    a.take(&Former::default()).unwrap();
    assert!(a.has_kept_off());
    lun.misread.store(1, Ordering::Relaxed);
    assert!(registration(&lun, 3, 3).enrol(&[], true).is_err());
}

#[test]
fn a_reservation_that_has_gone_under_mounts_is_made_again() {
    for (what, lun) in devices() {
        let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
        a.hold().unwrap();
        a.cut_off(inc(2)).unwrap();
        assert!(!writes(&lun, 2), "{what}");
        lun.lose_reservation();
        assert!(writes(&lun, 2), "{what}: who was kept off");
        assert_eq!(a.verify(), Ok(()), "{what}");
        match lun.unreadable.load(Ordering::Relaxed) {
            true => assert_eq!(lun.held(), None, "{what}: nobody can see it"),
            false => assert!(writes(&lun, 1) && !writes(&lun, 2), "{what}"),
        }
    }
}

#[test]
fn one_odd_report_halts_nobody_and_convinces_nobody() {
    let lun = Lun::new();
    let [a, _b] = [1, 2].map(|n| enrolled(&lun, n, n));
    a.hold().unwrap();
    lun.forgetful.store(true, Ordering::Relaxed);
    assert_eq!(a.verify(), Ok(()));
    assert!(matches!(a.cut_off(inc(2)), Err(Error::Device(_))), "what else does it not tell?");
    lun.forgetful.store(false, Ordering::Relaxed);
    assert!(a.cut_off(inc(2)).is_ok() && !writes(&lun, 2));
}
