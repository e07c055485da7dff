//! Runs over many seeds, several at a time, each with as many events as asked for.
//!
//! A run mostly waits, for its disk and for the protocol's timers: many fit beside each other. The
//! environment says how many: `SHOAL_SEEDS` from `SHOAL_SEED` on, `SHOAL_JOBS` at a time, each with at
//! least `SHOAL_EVENTS` events.
//!
//! The clocks are real ones. On a machine that lets a host stand still for as long as its lease has room for,
//! others may rightly go on without it, and it halts: such a run says nothing and is made anew.

use crate::cluster::Sim;
use parking_lot::Mutex;
use shoal::cluster::Timing;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much longer a run may take than it should, to reach its number of events.
const EXTRA_MAX: Duration = Duration::from_secs(600);
/// Failed seeds after which no further ones are begun.
const FAULTS_MAX: usize = 5;
const EVENTS: u64 = 5000;
/// A pause that no host is promised to survive as a member: the guard of the lease.
const PAUSE_MAX: Duration = Timing::TEST.guard;
/// How often a run is made anew.
const TRIES: u32 = 5;

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

/// Notes when this process stood still.
#[derive(Default)]
struct Pauses(Mutex<Vec<(Instant, Duration)>>);

/// What this thread has had of a CPU.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a pointer to a live value.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Pauses {
    const LOOK: Duration = Duration::from_millis(100);
    /// Who only sleeps is soon served by a busy machine. Hosts work as well.
    const WORK: Duration = Duration::from_millis(2);

    fn watch(&self, done: &AtomicBool) {
        while !done.load(Ordering::Acquire) {
            let began = Instant::now();
            std::thread::sleep(Pauses::LOOK);
            let end = cpu_time() + Pauses::WORK;
            while cpu_time() < end {}
            let late = began.elapsed().saturating_sub(Pauses::LOOK + Pauses::WORK);
            if late > PAUSE_MAX {
                self.0.lock().push((began, late));
            }
        }
    }

    fn since(&self, time: Instant) -> bool {
        self.0.lock().iter().any(|(began, late)| *began + *late >= time)
    }
}

/// Run `test` until it passes, or fails while the machine did not stand still.
pub fn unless_paused(test: impl Fn()) {
    let (pauses, done) = (Pauses::default(), AtomicBool::new(false));
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| pauses.watch(&done));
        let failed = (0..TRIES).find_map(|_| {
            let began = Instant::now();
            match catch_unwind(AssertUnwindSafe(&test)) {
                Ok(()) => Some(Ok(())),
                // It notices a pause at its end.
                Err(why) => {
                    std::thread::sleep(Pauses::LOOK * 2);
                    (!pauses.since(began)).then_some(Err(why))
                }
            }
        });
        done.store(true, Ordering::Release);
        failed
    });
    match failed {
        Some(Ok(())) => {}
        Some(Err(why)) => resume_unwind(why),
        None => panic!("every run was void, the machine stood still: nothing was tested"),
    }
}

/// Runs of one kind.
struct Runs<'a> {
    name: &'a str,
    next: AtomicU64,
    end: u64,
    passed: AtomicU64,
    least: AtomicU64,
    total: Mutex<Count>,
    faults: Mutex<Vec<String>>,
    void: AtomicU64,
    pauses: Pauses,
}

impl Runs<'_> {
    fn work(&self, run: &(impl Fn(u64) -> Result<Count, String> + Sync)) {
        while self.faults.lock().len() < FAULTS_MAX {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            for _ in 0..TRIES {
                let began = Instant::now();
                let ended = catch_unwind(AssertUnwindSafe(|| run(seed)));
                let ended = ended.unwrap_or_else(|_| Err(format!("seed {seed}: it panicked")));
                let is_void = |e: &String| e.to_lowercase().contains("halted") && self.pauses.since(began);
                if ended.as_ref().is_err_and(is_void) {
                    self.void.fetch_add(1, Ordering::Relaxed);
                    println!("{}, seed {seed}: void, the machine stood still", self.name);
                    continue;
                }
                self.note(seed, ended, began.elapsed());
                break;
            }
        }
    }

    fn note(&self, seed: u64, ended: Result<Count, String>, took: Duration) {
        let name = self.name;
        match ended {
            Ok(count) => {
                let Count { operations, events } = count;
                self.passed.fetch_add(1, Ordering::Relaxed);
                self.least.fetch_min(events, Ordering::Relaxed);
                let mut total = self.total.lock();
                *total = *total + count;
                println!("{name}, seed {seed}: {operations} operations, {events} events in {took:?}");
            }
            Err(e) => {
                println!("{name} FAILED: {e}");
                self.faults.lock().push(e);
            }
        }
    }
}

/// Run the seeds that the environment asks for.
pub fn over_seeds(name: &str, run: impl Fn(u64) -> Result<Count, String> + Sync) {
    let (first, seeds) = (number("SHOAL_SEED", 1), number("SHOAL_SEEDS", 2));
    let runs = Runs {
        name,
        next: AtomicU64::new(first),
        end: first + seeds,
        passed: AtomicU64::new(0),
        least: AtomicU64::new(u64::MAX),
        total: Mutex::default(),
        faults: Mutex::default(),
        void: AtomicU64::new(0),
        pauses: Pauses::default(),
    };
    let (began, done) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| runs.pauses.watch(&done));
        std::thread::scope(|scope| {
            (0..number("SHOAL_JOBS", 2)).for_each(|_| drop(scope.spawn(|| runs.work(&run))));
        });
        done.store(true, Ordering::Release);
    });
    let (passed, void, total) = (runs.passed.into_inner(), runs.void.into_inner(), runs.total.into_inner());
    println!(
        "{name}: {passed} seeds from {first} on passed, {} operations, {} events, at least {} each, in {:?}; \
         {void} void runs",
        total.operations,
        total.events,
        runs.least.into_inner(),
        began.elapsed()
    );
    let faults = runs.faults.into_inner();
    assert!(faults.is_empty(), "{} of {seeds} seeds failed:\n{}", faults.len(), faults.join("\n"));
    assert!(passed > 0, "every run was void: nothing was tested");
}
