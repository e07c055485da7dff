//! Who is gone from this machine, as a mount on its way in finds out (F1).

use super::takeover::{die, member_of_boot};
use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::join::Joiner;
use crate::cluster::proof::Proof;

/// A clock that stands still until it is moved.
#[derive(Default)]
struct Hand(AtomicU64);

impl Hand {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
    fn wall(&self) -> Duration {
        self.now()
    }
}

/// A mount that has not looked yet.
fn newcomer(medium: &Arc<Medium>, place: Where, rdev: u64) -> (Joiner, Arc<Hand>) {
    let (port, clock, lease) = (medium.port(), Arc::new(Hand::default()), Arc::new(Lease::default()));
    let mut options = options("b", place, &port, &lease);
    (options.boot, options.file.rdev, options.clock) = ([2; 16], rdev, clock.clone());
    (Joiner::new(disk_of(port), options).unwrap(), clock)
}

/// Polls for so long, a few times per heartbeat, and what each of them proves of the mount in the first slot.
fn polls(joiner: &mut Joiner, clock: &Hand, length: Duration, dead: Incarnation) -> Vec<Proof> {
    let end = clock.now() + length;
    let mut proofs = vec![];
    while clock.now() < end {
        clock.advance(QUICK.heartbeat / 4);
        joiner.poll().unwrap();
        proofs.push(joiner.is_gone_here(SlotId(0), dead).unwrap());
    }
    proofs
}

#[test]
fn the_byte_range_of_an_image_proves_at_the_first_look() {
    let medium = Medium::formatted();
    let a = Arc::new(join(&medium, "a", Where::Here));
    let (dead, port) = (a.report.incarnation, a.port.clone());
    die(a);
    let (mut b, clock) = newcomer(&medium, Where::Here, 0);
    assert_eq!(polls(&mut b, &clock, QUICK.suspicion, dead).iter().max(), Some(&Proof::None), "it is held");
    drop((b, port));
    let (mut b, clock) = newcomer(&medium, Where::Here, 0);
    assert_eq!(polls(&mut b, &clock, QUICK.heartbeat / 4, dead), [Proof::Gone]);
    assert!(b.are_all_gone().unwrap());
}

#[test]
fn the_presence_lock_of_a_device_proves_after_missed_beats_seen_without_a_gap() {
    let medium = Medium::formatted();
    let a = member_of_boot(&medium, "a").unwrap();
    let dead = a.report.incarnation;
    die(a);
    let (mut b, clock) = newcomer(&medium, Where::Elsewhere, 7);
    let almost = polls(&mut b, &clock, QUICK.heartbeat * 3, dead);
    assert_eq!(almost, vec![Proof::Later; 12]);
    assert!(!b.are_all_gone().unwrap() && b.awaits_proof());
    // It was paused itself, perhaps with whoever it looks at.
    clock.advance(QUICK.gap_max());
    let again = polls(&mut b, &clock, QUICK.heartbeat * 3, dead);
    assert_eq!(again, vec![Proof::Later; 12]);
    assert!(b.proven.is_empty());
    assert_eq!(polls(&mut b, &clock, QUICK.heartbeat / 4, dead), [Proof::Gone]);
    assert!(b.are_all_gone().unwrap() && !b.awaits_proof());
    assert_eq!(b.proven.get(&SlotId(0)), Some(&dead));
}

#[test]
fn a_machine_that_lives_is_never_gone_to_a_copy_of_it() {
    let medium = Medium::formatted();
    let a = member_of_boot(&medium, "a").unwrap();
    let lives = a.report.incarnation;
    let (mut b, clock) = newcomer(&medium, Where::Elsewhere, 7);
    let counter = || a.cluster.heartbeats().1[0].as_ref().map_or(0, |beat| beat.counter);
    assert_eq!(polls(&mut b, &clock, QUICK.heartbeat / 4, lives), [Proof::Later]);
    let before = counter();
    eventually("it beats", || counter() > before);
    assert_eq!(polls(&mut b, &clock, QUICK.suspicion, lives).iter().max(), Some(&Proof::None));
    // Also of others nothing is believed from now on, nor when it stands still at last.
    drop(a.cluster.leave());
    assert_eq!(polls(&mut b, &clock, QUICK.suspicion, lives).iter().max(), Some(&Proof::None));
    assert!(!b.options.prove);
}
