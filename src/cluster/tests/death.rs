//! Hosts that fall silent, pause, come back, or are gone.

use super::starved::unless_starved;
use super::*;
use crate::base::SlotId;
use crate::format::cluster::{Adopter, SlotState};

fn state(host: &Host, slot: u16) -> SlotState {
    host.cluster.membership().view.slots[usize::from(slot)].state
}

/// A member that is silent stays; another leaves. Does the third look after its slot, and the silent one after
/// nothing? `None` if the one that left had been starved: it does not take its own gap for another's silence.
fn is_passed_over_when_silent() -> Option<bool> {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let b = join(&medium, "b", Where::Elsewhere);
    drop(b.cluster);
    eventually("b is silent", || a.cluster.membership().is_silent(SlotId(1)));
    let c = join(&medium, "c", Where::Elsewhere);
    assert_eq!((c.report.slot, c.report.replay.len()), (SlotId(2), 0));
    assert!(matches!(state(&c, 1), SlotState::Live { .. }));
    let sees_silent = || a.cluster.membership().is_silent(SlotId(1));
    let before = sees_silent();
    a.cluster.leave().unwrap();
    let seen_silent = before && sees_silent();
    let heir = |slot| SlotState::Clean { adopter: Adopter::Slot(SlotId(slot)) };
    eventually("somebody looks after a's slot", || [heir(1), heir(2)].contains(&state(&c, 0)));
    assert_eq!(c.lease.lost.lock().clone(), None);
    seen_silent.then(|| state(&c, 0) == heir(2))
}

#[test]
fn a_silent_member_stays_and_the_others_go_on() {
    unless_starved(|| {
        let passed_over = (0..5).find_map(|_| is_passed_over_when_silent());
        assert_eq!(passed_over, Some(true), "b is given what it cannot see to");
    });
}

#[test]
fn a_member_that_is_back_looks_after_what_nobody_did() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let b = join(&medium, "b", Where::Elsewhere);
    let pause = b.port.gate.write();
    eventually("b is silent", || a.cluster.membership().is_silent(SlotId(1)));
    a.cluster.leave().unwrap();
    drop(pause);
    let ours = SlotState::Clean { adopter: Adopter::Slot(SlotId(1)) };
    eventually("b looks after all slots", || [0, 2, 3].iter().all(|slot| state(&b, *slot) == ours));
    assert_eq!(adopt(&b, 0), Ok(Token(2)), "no next joiner is waited for");
}

#[test]
fn a_slot_that_a_silent_member_looked_after_is_given_out_late() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let b = join(&medium, "b", Where::Elsewhere);
    // a looks after slots 2 and 3, and dies.
    drop(a.cluster);
    eventually("a is silent", || b.cluster.membership().is_silent(SlotId(0)));
    let begun = now();
    let c = join(&medium, "c", Where::Elsewhere);
    assert!(now() - begun >= QUICK.wait(), "an adoption of a's could still have landed");
    assert_eq!(adopt(&c, 2), Ok(Token(2)));
}

#[test]
fn provably_gone_needs_no_waiting_and_recovery_lets_nobody_in() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Here);
    let b = join(&medium, "b", Where::Here);
    assert_eq!(adopt(&b, 1), Ok(Token(2)));
    drop((a, b));
    let begun = now();
    let c = join(&medium, "c", Where::Here);
    assert!(now() - begun < QUICK.wait(), "no waiting");
    assert_eq!((c.report.slot, c.report.first), (SlotId(2), true));
    assert_eq!(c.report.replay, [SlotId(0), SlotId(1)]);
    assert_eq!(c.cluster.membership().owner_of(AgNo(1)), (Owner::Nobody, Token(2)));
    let d = std::thread::spawn({
        let medium = medium.clone();
        move || join(&medium, "d", Where::Here)
    });
    std::thread::sleep(QUICK.suspicion);
    assert!(!d.is_finished() && c.cluster.membership().alone(), "journals are not replayed yet");
    c.cluster.recovered(&c.report.replay).unwrap();
    assert_eq!(state(&c, 1), SlotState::Clean { adopter: Adopter::Slot(SlotId(2)) });
    let d = d.join().unwrap();
    assert!(d.report.replay.is_empty() && !d.report.first);
    let heir = if d.report.slot == SlotId(1) { &d } else { &c };
    assert_eq!(adopt(heir, 1), Ok(Token(3)));
}

#[test]
fn a_volume_full_of_dead_hosts_gives_one_of_their_slots() {
    let medium = Medium::formatted();
    let hosts: Vec<_> = (0..SLOTS).map(|i| join(&medium, &format!("h{i}"), Where::Here)).collect();
    drop(hosts);
    let a = join(&medium, "a", Where::Here);
    assert_eq!(a.report.slot, SlotId(0));
    assert_eq!(a.report.replay, [0, 1, 2, 3].map(SlotId), "its own journal too");
    // Leaving or dying in the middle of it changes nothing.
    assert!(matches!(a.cluster.leave(), Err(Error::Busy(_))));
    drop(a);
    let begun = now();
    let b = join(&medium, "b", Where::Elsewhere);
    // Once for all to be gone, once more because our cell hides what its last writer did last.
    assert!(now() - begun >= QUICK.wait() * 2);
    assert_eq!(b.report.replay, [0, 1, 2, 3].map(SlotId));
    b.cluster.recovered(&b.report.replay[1..]).unwrap();
    let c = std::thread::spawn({
        let medium = medium.clone();
        move || join(&medium, "c", Where::Elsewhere)
    });
    std::thread::sleep(QUICK.suspicion);
    assert!(b.cluster.membership().alone(), "its own journal is still to be replayed");
    b.cluster.recovered(&b.report.replay[..1]).unwrap();
    c.join().unwrap().cluster.leave().unwrap();
    b.cluster.leave().unwrap();
    assert!(read_status(&medium.disk(), None).unwrap().is_clean());
}

#[test]
fn a_paused_host_that_was_replaced_never_writes_again() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    let pause = a.port.gate.write();
    let b = join(&medium, "b", Where::Elsewhere);
    assert!(*a.lease.write_until.lock() < now(), "its permit ended before the other's began");
    assert_eq!(b.report.replay, [a.report.slot]);
    drop(pause);
    eventually("a knows", || a.lease.lost.lock().is_some());
    assert!(matches!(a.cluster.adopt(AgNo(0)), Err(Error::Halted(_) | Error::Busy(_))));
    assert!(matches!(a.cluster.leave(), Err(Error::Halted(_))));
    assert_eq!(b.lease.lost.lock().clone(), None);
}

#[test]
fn a_pause_that_nobody_used_is_forgiven() {
    let medium = Medium::formatted();
    let hosts = [join(&medium, "a", Where::Elsewhere), join(&medium, "b", Where::Elsewhere)];
    let pauses = hosts.each_ref().map(|h| h.port.gate.write());
    std::thread::sleep(QUICK.wait() * 2);
    assert!(hosts.iter().all(|h| *h.lease.write_until.lock() < now()));
    drop(pauses);
    for host in &hosts {
        eventually("it goes on", || *host.lease.write_until.lock() > now());
        assert_eq!(host.lease.lost.lock().clone(), None);
    }
    eventually("both hear each other", || hosts.iter().all(|h| h.cluster.membership().silent == 0));
}

#[test]
fn a_device_that_fails_for_a_while_ends_the_permit_only() {
    let medium = Medium::formatted();
    let a = join(&medium, "a", Where::Elsewhere);
    a.port.broken.store(true, Ordering::Relaxed);
    std::thread::sleep(QUICK.lease);
    assert!(*a.lease.write_until.lock() < now());
    assert!(matches!(a.cluster.adopt(AgNo(0)), Err(Error::Busy(_))));
    a.port.broken.store(false, Ordering::Relaxed);
    eventually("it goes on", || *a.lease.write_until.lock() > now());
    assert_eq!(adopt(&a, 0), Ok(Token(2)));
}

/// What waits to be written may be the only copy, so a device that does not answer is waited for. One that says no
/// for long is lost: whoever waits for it hears of that.
#[test]
fn a_device_is_lost_that_answers_with_errors_for_long_not_one_that_is_silent() {
    let medium = Medium::formatted();
    let hosts = [join(&medium, "a", Where::Elsewhere), join(&medium, "b", Where::Elsewhere)];
    let silence = hosts.each_ref().map(|h| h.port.gate.write());
    std::thread::sleep(QUICK.lease * 8);
    drop(silence);
    hosts.iter().for_each(|h| eventually("it goes on", || *h.lease.write_until.lock() > now()));
    hosts.iter().for_each(|h| h.port.broken.store(true, Ordering::Relaxed));
    hosts.iter().for_each(|h| eventually("it is lost", || h.lease.lost.lock().is_some()));
    let why = hosts[0].lease.lost.lock().clone().unwrap();
    assert!(why.contains("errors for") && why.contains("broken by the test"), "{why}");
}
