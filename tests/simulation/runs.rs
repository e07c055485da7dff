//! Runs over many seeds, several at a time, each with as many events as asked for.
//!
//! A run mostly waits, for its disk and for the protocol's timers: many fit beside each other. The
//! environment says how many: `SHOAL_SEEDS` from `SHOAL_SEED` on, `SHOAL_JOBS` at a time, each with at
//! least `SHOAL_EVENTS` events.

use crate::cluster::Sim;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much longer a run may take than it should, to reach its number of events.
const EXTRA_MAX: Duration = Duration::from_secs(60);
/// Failed seeds after which no further ones are begun.
const FAULTS_MAX: usize = 5;
const EVENTS: u64 = 5000;

/// What happened in a run: operations, and with them the requests to the disk. Messages are among
/// those: writes of one host and reads of another.
#[derive(Clone, Copy, Default)]
pub struct Count {
    pub operations: u64,
    pub events: u64,
}

impl std::ops::Add for Count {
    type Output = Count;

    fn add(self, other: Count) -> Count {
        Count { operations: self.operations + other.operations, events: self.events + other.events }
    }
}

/// When work ends: not before its time, nor with fewer events than wanted, unless that takes too long.
#[derive(Clone, Copy)]
pub struct Until {
    time: Instant,
    events: u64,
    latest: Instant,
}

impl Until {
    /// After `least`, and after as many events as a run is to have.
    pub fn counted(least: Duration) -> Until {
        let time = Instant::now() + least;
        let events = number("SHOAL_EVENTS", EVENTS);
        Until { time, events, latest: time + EXTRA_MAX }
    }

    /// After so long.
    pub fn after(least: Duration) -> Until {
        let time = Instant::now() + least;
        Until { time, events: 0, latest: time }
    }

    /// The same, so much later.
    pub fn later(self, by: Duration) -> Until {
        Until { time: self.time + by, latest: self.latest + by, ..self }
    }

    pub fn is_over(&self, sim: &Sim) -> bool {
        let now = Instant::now();
        now >= self.latest || (now >= self.time && sim.count().events >= self.events)
    }

    /// Sleep until it is over.
    pub fn wait(&self, sim: &Sim) {
        while !self.is_over(sim) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Run the seeds that the environment asks for.
pub fn over_seeds(name: &str, run: impl Fn(u64) -> Result<Count, String> + Sync) {
    let (first, seeds) = (number("SHOAL_SEED", 1), number("SHOAL_SEEDS", 2));
    let (next, done, least) = (AtomicU64::new(first), AtomicUsize::new(0), AtomicU64::new(u64::MAX));
    let (total, faults) = (Mutex::new(Count::default()), Mutex::new(Vec::new()));
    let began = Instant::now();
    let work = || {
        while faults.lock().len() < FAULTS_MAX {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return;
            }
            let began = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| run(seed)));
            match ended.unwrap_or_else(|_| Err(format!("seed {seed}: it panicked"))) {
                Ok(count) => {
                    done.fetch_add(1, Ordering::Relaxed);
                    least.fetch_min(count.events, Ordering::Relaxed);
                    let mut total = total.lock();
                    *total = *total + count;
                    let Count { operations, events } = count;
                    println!(
                        "{name}, seed {seed}: {operations} operations, {events} events in {:?}",
                        began.elapsed()
                    );
                }
                Err(e) => {
                    println!("{name} FAILED: {e}");
                    faults.lock().push(e);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..number("SHOAL_JOBS", 2)).for_each(|_| drop(scope.spawn(work))));
    let (done, total) = (done.into_inner(), total.into_inner());
    println!(
        "{name}: {done} seeds from {first} on passed, {} operations, {} events, at least {} each, in {:?}",
        total.operations,
        total.events,
        least.into_inner(),
        began.elapsed()
    );
    let faults = faults.into_inner();
    assert!(faults.is_empty(), "{} of {} seeds failed:\n{}", faults.len(), done, faults.join("\n"));
}
