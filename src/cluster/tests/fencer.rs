//! Attempts to keep a host off that last, and that nobody asks for meanwhile.

use super::*;
use crate::base::{Incarnation, SlotId};
use crate::cluster::fencer::{Cut, Fence, Fencer, Victim};
use parking_lot::Condvar;
use std::sync::atomic::AtomicU32;

#[derive(Default)]
struct Watch(AtomicU64);

impl Clock for Watch {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
    fn wall(&self) -> Duration {
        self.now()
    }
}

/// Each attempt waits until it is let go, and fails.
#[derive(Default)]
struct Slow {
    begun: AtomicU32,
    ended: AtomicU32,
    let_go: Mutex<u32>,
    changed: Condvar,
}

impl Slow {
    fn go(&self) {
        *self.let_go.lock() += 1;
        self.changed.notify_all();
    }
}

impl Fence for Slow {
    fn cut(&self, _: &Victim) -> Result<Cut> {
        let mine = self.begun.fetch_add(1, Ordering::Relaxed);
        let mut let_go = self.let_go.lock();
        while *let_go <= mine {
            self.changed.wait(&mut let_go);
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
        Err(Error::Device("no".into()))
    }
}

fn victim(incarnation: u64) -> Victim {
    Victim { slot: SlotId(1), incarnation: Incarnation(incarnation), name: "b".into(), ..Victim::default() }
}

fn under_way() -> (Arc<Slow>, Arc<Watch>, Fencer) {
    let (slow, clock) = (Arc::new(Slow::default()), Arc::new(Watch::default()));
    let mut fencer = Fencer::new(slow.clone(), clock.clone(), Duration::from_secs(3600));
    fencer.tend(&[victim(7)]).unwrap();
    eventually("it has begun", || slow.begun.load(Ordering::Relaxed) == 1);
    (slow, clock, fencer)
}

#[test]
fn what_is_under_way_is_not_begun_twice() {
    let (slow, clock, mut fencer) = under_way();
    for _ in 0..3 {
        clock.0.fetch_add(2000, Ordering::Relaxed);
        fencer.tend(&[]).unwrap();
        fencer.tend(&[victim(7)]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(slow.begun.load(Ordering::Relaxed), 1);
    // Another mount of the slot is another matter.
    fencer.tend(&[victim(8)]).unwrap();
    eventually("it has begun", || slow.begun.load(Ordering::Relaxed) == 2);
    slow.go();
    slow.go();
    eventually("they have ended", || slow.ended.load(Ordering::Relaxed) == 2);
    eventually("it counts", || fencer.trouble().is_some_and(|t| t.attempts == 1));
    clock.0.fetch_add(2000, Ordering::Relaxed);
    fencer.tend(&[victim(8)]).unwrap();
    eventually("it is tried again", || slow.begun.load(Ordering::Relaxed) == 3);
    slow.go();
}

#[test]
fn what_does_not_come_to_an_end_is_told() {
    let (slow, clock, mut fencer) = under_way();
    assert_eq!(fencer.trouble(), None);
    clock.0.fetch_add(61_000, Ordering::Relaxed);
    fencer.tend(&[victim(7)]).unwrap();
    let trouble = fencer.trouble().expect("trouble");
    assert_eq!((trouble.slot, trouble.attempts), (SlotId(1), 1));
    assert!(trouble.error.contains("under way for 61 s"), "{}", trouble.error);
    fencer.tend(&[]).unwrap();
    assert_eq!(fencer.trouble(), None, "nobody asks for it any more");
    slow.go();
}
