//! Tests that measure time, on a machine that may have none for them.
//!
//! The clocks are real ones and the times very short. A run in which the machine itself stood still may end in any
//! way that a slow host may: it is void, and made anew. One that fails on a machine that did not is a failure, and
//! so is a test of which every run was void.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

/// How often a run is made anew.
const TRIES: u32 = 6;
/// Between two looks at the time.
const LOOK: Duration = Duration::from_millis(5);
/// A pause that makes a run void: hosts miss a heartbeat.
const PAUSE_MAX: Duration = QUICK.heartbeat;

/// Sleeps and works a little, again and again, as the hosts do, and notes how late it is.
struct Pulse {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<bool>,
}

fn work() -> Duration {
    let begun = Instant::now();
    let sum = (0..20_000u64).fold(0, |sum: u64, n| std::hint::black_box(sum.wrapping_add(n)));
    std::hint::black_box(sum);
    begun.elapsed()
}

impl Pulse {
    fn begin() -> Pulse {
        let over = Arc::<AtomicBool>::default();
        let (stop, usual) = (over.clone(), (0..5).map(|_| work()).min().unwrap_or_default());
        let body = move || {
            let (begun, mut late, mut longest) = (Instant::now(), Duration::ZERO, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let look = Instant::now();
                std::thread::sleep(LOOK);
                work();
                let by = look.elapsed().saturating_sub(LOOK + usual);
                late += by;
                longest = longest.max(by);
            }
            // Many short ones are as bad as a long one.
            longest > PAUSE_MAX || late > begun.elapsed() / 3
        };
        Pulse { over, thread: std::thread::spawn(body) }
    }

    fn stood_still(self) -> bool {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Run `test` until it passes, or fails on a machine that did not stand still.
pub fn unless_starved(test: impl Fn()) {
    unless_void(test, Pulse::stood_still);
}

fn unless_void(test: impl Fn(), mut is_void: impl FnMut(Pulse) -> bool) {
    for _ in 0..TRIES {
        let pulse = Pulse::begin();
        let ended = catch_unwind(AssertUnwindSafe(&test));
        let is_void = is_void(pulse);
        match ended {
            Ok(()) => return,
            Err(why) if !is_void => resume_unwind(why),
            Err(_) => println!("void, again: the machine stood still"),
        }
    }
    panic!("every run was void: nothing was tested");
}

#[test]
fn a_test_that_fails_does_so_however_many_runs_are_void() {
    // In how many runs does it fail, and how many of all are void? Did it fail, and after how many?
    let ended = |failing: u32, void: u32| {
        let (runs, mut looks) = (AtomicU64::new(0), 0);
        let test = || assert!(runs.fetch_add(1, Ordering::Relaxed) >= u64::from(failing));
        let is_void = |pulse: Pulse| {
            pulse.stood_still();
            looks += 1;
            looks <= void
        };
        let failed = catch_unwind(AssertUnwindSafe(|| unless_void(test, is_void))).is_err();
        (failed, runs.into_inner())
    };
    assert_eq!(ended(0, 0), (false, 1));
    assert_eq!(ended(1, 0), (true, 1));
    assert_eq!(ended(2, 3), (false, 3));
    assert_eq!(ended(u32::MAX, 3), (true, 4));
    assert_eq!(ended(u32::MAX, u32::MAX), (true, u64::from(TRIES)));
}
