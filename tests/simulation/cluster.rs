//! A cluster in one process: hosts of production code on one simulated disk that delays, reorders,
//! tears and fails; workers that do random operations, each on any host; hosts that come and go. A
//! model says what each operation must answer; at the end the power of all hosts is cut.
//!
//! A seed determines the operations each worker draws, the weather and the plan of arrivals and
//! departures. Threads of production code run as they like, so a seed is a good witness, not a replay.

use crate::canary::Canary;
use crate::common::port::Weather;
use crate::common::simdisk::{SimDisk, Unflushed};
use crate::host::Host;
use crate::runs::{Count, Until, over_seeds};
use crate::story::volume;
use crate::tree::{self, Found, Image};
use crate::worker::{Ended, Worker};
use parking_lot::RwLock;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const WORKERS: usize = 3;
const COMMIT: Duration = Duration::from_secs(1);

/// The cluster.
pub struct Sim {
    pub disk: Arc<SimDisk>,
    pub hosts: Vec<RwLock<Option<Host>>>,
    /// The power is gone.
    pub down: AtomicBool,
    /// Operations done.
    pub done: AtomicUsize,
    seed: u64,
    canary: Canary,
    mounts: AtomicUsize,
    /// Requests to the disk before.
    requests: u64,
}

fn requests(disk: &SimDisk) -> u64 {
    let (reads, writes, flushes) = disk.requests();
    reads + writes + flushes
}

impl Sim {
    pub fn new(disk: Arc<SimDisk>, hosts: usize, seed: u64, canary: Canary) -> Result<Sim, String> {
        let sim = Sim {
            requests: requests(&disk),
            disk,
            hosts: (0..hosts).map(|_| RwLock::default()).collect(),
            down: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            seed,
            canary,
            mounts: AtomicUsize::new(0),
        };
        // The first few at once: who is first is part of what is tested.
        let joined: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let sim = &sim;
            let joins: Vec<_> = (0..hosts).map(|n| scope.spawn(move || sim.join(n))).collect();
            joins.into_iter().map(|t| t.join().expect("no panics")).collect()
        });
        match joined.into_iter().collect() {
            Ok(()) => Ok(sim),
            Err(e) => {
                sim.bury();
                Err(e)
            }
        }
    }

    fn join(&self, at: usize) -> Result<(), String> {
        let mut place = self.hosts[at].write();
        let number = self.mounts.fetch_add(1, Ordering::Relaxed) as u64;
        let (name, canary) = (format!("host{at}-{number}"), self.canary);
        let host = Host::mount_wrapped(&self.disk, &name, COMMIT, &|d| canary.wrap(d))
            .map_err(|e| format!("mount of {name}: {e:?}"))?;
        let mut random = StdRng::seed_from_u64(self.seed ^ (number << 32));
        let weather = Weather {
            delay_us_max: [0, 200, 2000][random.random_range(0..3)],
            torn_of_1000: [0, 300][random.random_range(0..2)],
            ..Weather::default()
        };
        host.port.set_weather(canary.spoil(weather), random.random());
        *place = Some(host);
        Ok(())
    }

    pub fn leave(&self, at: usize) {
        let host = self.hosts[at].write().take();
        if let Some(host) = host {
            host.stop().expect("a clean leave");
        }
    }

    /// What has happened so far.
    pub fn count(&self) -> Count {
        let operations = self.done.load(Ordering::Relaxed) as u64;
        Count { operations, events: operations + requests(&self.disk) - self.requests }
    }

    /// One host leaves or comes now and then.
    pub fn churn(&self, until: Until) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0xc0c0);
        while !until.is_over(self) && !self.down.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(random.random_range(50..600)));
            let at = random.random_range(0..self.hosts.len());
            let there = self.hosts.iter().filter(|h| h.read().is_some()).count();
            let present = self.hosts[at].read().is_some();
            match present {
                true if there > 1 => self.leave(at),
                true => {}
                false => self.join(at)?,
            }
        }
        Ok(())
    }

    /// From now on some requests of one host fail: it will halt.
    fn spoil(&self, at: usize) {
        if let Some(host) = &*self.hosts[at].read() {
            let weather = Weather { failing_of_100000: 2000, ..Weather::default() };
            host.port.set_weather(weather, self.seed);
        }
    }

    /// Cut the power of all; the answer is the disk afterwards.
    pub fn cut(&self, history: &crate::common::simdisk::History) -> Arc<SimDisk> {
        self.down.store(true, Ordering::Release);
        let hosts: Vec<_> = self.hosts.iter().map(|h| h.read()).collect();
        hosts.iter().filter_map(|h| h.as_ref()).for_each(|h| h.port.cut());
        hosts.iter().filter_map(|h| h.as_ref()).for_each(|h| h.fs.halt("its power is cut"));
        drop(hosts);
        let events = self.disk.events();
        let mut random = StdRng::seed_from_u64(self.seed ^ 0xdead);
        let how = match random.random_range(0..4) {
            0 => Unflushed::Lost,
            1 => Unflushed::Subset(random.random()),
            _ => Unflushed::Torn(random.random()),
        };
        history.crash_at(&events, events.len(), how)
    }

    pub fn bury(self) {
        self.hosts.into_iter().filter_map(|h| h.into_inner()).for_each(Host::crash);
    }
}

/// Let every worker work until `until`, or until something is wrong.
fn work(sim: &Sim, workers: &mut [Worker], until: Until) -> Result<(), String> {
    let ended: Vec<Result<Ended, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = workers.iter_mut().map(|w| scope.spawn(move || w.work(sim, until))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a worker panicked".into()))).collect()
    });
    ended.into_iter().try_for_each(|e| e.map(|_| ()))
}

fn check_image(disk: &Arc<SimDisk>) -> Result<Found, String> {
    tree::fsck(disk)?;
    Image::open(disk)?.walk()
}

/// Every host shows every worker's tree, exactly; then all leave.
fn check_all(sim: &Sim, workers: &[Worker]) -> Result<(), String> {
    for host in &sim.hosts {
        if let Some(host) = &*host.read() {
            let found = tree::of_host(host)?;
            workers.iter().try_for_each(|w| w.check_exactly(&found))?;
        }
    }
    (0..sim.hosts.len()).for_each(|at| sim.leave(at));
    let found = check_image(&sim.disk)?;
    workers.iter().try_for_each(|w| w.check_exactly(&found))
}

/// Work in peace, with hosts that come and go, and leave.
fn peace(disk: &Arc<SimDisk>, seed: u64, canary: Canary, workers: &mut [Worker]) -> Result<Count, String> {
    let hosts = 3 + (seed % 3) as usize;
    let sim = Sim::new(disk.clone(), hosts, seed, canary)?;
    let until = Until::counted(Duration::from_millis(2500));
    let worked = std::thread::scope(|scope| {
        let churn = scope.spawn(|| sim.churn(until));
        let worked = work(&sim, workers, until);
        let churned = churn.join().unwrap_or_else(|_| Err("an arrival or departure failed".into()));
        churned.and(worked)
    });
    let done = sim.count();
    let checked = worked.and_then(|()| check_all(&sim, workers));
    sim.bury();
    checked.map(|()| done)
}

/// Work until the power is cut.
fn disaster(disk: &Arc<SimDisk>, seed: u64, canary: Canary, workers: &mut [Worker]) -> Result<Count, String> {
    let sim = Sim::new(disk.clone(), 3, seed ^ 0xffff, canary)?;
    let history = disk.record();
    workers.iter_mut().for_each(Worker::forget_past);
    let mut random = StdRng::seed_from_u64(seed ^ 0xbeef);
    let life = Duration::from_millis(random.random_range(200..1800));
    let until = Until::after(life * 3);
    let (worked, after) = std::thread::scope(|scope| {
        let sim = &sim;
        let spoiled = random.random_bool(0.3).then(|| random.random_range(0..3));
        let cut = scope.spawn(move || {
            std::thread::sleep(life);
            if let Some(at) = spoiled {
                sim.spoil(at);
                std::thread::sleep(Duration::from_millis(200));
            }
            sim.cut(&history)
        });
        let worked = work(sim, workers, until);
        (worked, cut.join().expect("the cut itself cannot fail"))
    });
    let done = sim.count();
    sim.bury();
    worked?;
    let mounted = after.snapshot();
    let found = check_image(&after).map_err(|e| format!("after the power cut: {e}"))?;
    for worker in workers.iter() {
        worker.check_after_cut(&found).map_err(|e| format!("after the power cut: {e}"))?;
    }
    let host = Host::mount(&mounted, "survivor").map_err(|e| format!("mount after the power cut: {e}"))?;
    let same = tree::of_host(&host).map(|f| tree::difference(&f.names, &found.names));
    host.stop().map_err(|e| format!("leave after the power cut: {e}"))?;
    tree::fsck(&mounted).map_err(|e| format!("after recovery: {e}"))?;
    match same? {
        lines if lines.is_empty() => Ok(done),
        lines => Err(format!("a mount after the power cut shows something else: {lines:#?}")),
    }
}

/// One seed's run.
fn run(seed: u64, canary: Canary) -> Result<Count, String> {
    let disk = volume(512, 5);
    let first = Host::mount(&disk, "first").map_err(|e| e.to_string())?;
    let mut workers: Vec<Worker> = (0..WORKERS).map(|n| Worker::new(n, seed)).collect();
    first.mkdir("/shared").map_err(|e| e.to_string())?;
    workers.iter().try_for_each(|w| first.mkdir(&w.home())).map_err(|e| e.to_string())?;
    first.stop().map_err(|e| e.to_string())?;
    let named = |e: String| format!("seed {seed}: {e}");
    let peaceful = peace(&disk, seed, canary, &mut workers).map_err(named)?;
    let last = disaster(&disk, seed, canary, &mut workers).map_err(named)?;
    Ok(peaceful + last)
}

#[test]
fn random_work_of_a_cluster_in_bad_weather() {
    over_seeds("cluster", |seed| run(seed, Canary::None));
}

/// What the simulation is for: were there such a bug, it would be found.
#[test]
fn planted_faults_are_found() {
    for canary in Canary::ALL {
        let found = (100..110).find_map(|seed| run(seed, canary).err());
        let found = found.unwrap_or_else(|| panic!("ten seeds must find {canary:?}"));
        println!("{canary:?}: {found}");
    }
}
