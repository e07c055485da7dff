//! Hosts that die while others live: power cuts, halts and stalls of single hosts in the middle of work,
//! of mounting, of leaving, and of recovering others. Each host has a worker that makes, renames and
//! removes files in one directory and syncs them. What was synced is there for all others, whoever
//! died since; those that live go on; nobody who answers in time is expelled; fsck finds nothing.

use crate::common::port::Port;
use crate::common::simdisk::SimDisk;
use crate::host::{Host, How};
use crate::runs::{Count, over_seeds};
use crate::story::volume;
use crate::tree;
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::{LockName, Mode};
use shoal::fs::operations::Operations;
use shoal::fs::{Caller, FenceWish, RenameFlags};
use shoal::lock::{DemoteAnswer, DemoteJob, Demoter};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const HOSTS: usize = 4;
/// Names of one worker.
const FILES: u32 = 300;
/// Beside so many changes a trim begins.
const TRIMS: f64 = 1.0 / 20.0;
/// A take-over takes less than three seconds on an idle machine.
const WAIT_MAX: Duration = Duration::from_secs(40);
/// Longer than it takes to be taken for dead, and recovered.
const STALL: Duration = Duration::from_secs(5);

/// How a host ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its process is gone.
    Cut,
    /// It halts, and keeps its claim: its lease must be waited for.
    Halt,
    /// No request of its gets through for a while; writes whose time is over by then are lost.
    Stall,
}

/// Promised content by name; `None`: removed, and that was synced.
type Promises = BTreeMap<String, Option<Vec<u8>>>;

struct Sim {
    disk: Arc<SimDisk>,
    hosts: Vec<RwLock<Option<Host>>>,
    /// Set before a host is let die: its worker takes no offence.
    dying: Vec<AtomicBool>,
    promised: Mutex<Promises>,
    done: AtomicUsize,
    longest: Mutex<Duration>,
    over: AtomicBool,
    mounts: AtomicUsize,
    /// The hosts are machines of their own, on a disk that keeps off whom it is told to.
    reserved: bool,
}

impl Sim {
    fn mount(&self, at: usize) -> Result<(), String> {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        let name = format!("host{at}-{number}");
        let host = match self.reserved {
            true => Host::mount_elsewhere(Port::new(&self.disk), &name, FenceWish::Reservation),
            false => Host::mount(&self.disk, &name),
        };
        let host = host.map_err(|e| format!("mount of host {at}: {e}"))?;
        self.dying[at].store(false, Ordering::Release);
        *self.hosts[at].write() = Some(host);
        Ok(())
    }

    /// One worker's life on one host's place.
    fn work(&self, at: usize, seed: u64) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(seed ^ (at as u64 + 7) << 33);
        for number in 0u32.. {
            if self.over.load(Ordering::Acquire) {
                break;
            }
            let place = self.hosts[at].read();
            let Some(host) = &*place else {
                drop(place);
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let begun = Instant::now();
            let done = self.change(host, &format!("/shared/{at}-{}", number % FILES), &mut random);
            let took = begun.elapsed();
            match done {
                Ok(()) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
                Err(_) if self.dying[at].load(Ordering::Acquire) => {
                    drop(place);
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                Err(e) => return Err(format!("host {at}: {e}")),
            }
            if !self.dying[at].load(Ordering::Acquire) {
                let mut longest = self.longest.lock();
                *longest = took.max(*longest);
                if took > WAIT_MAX {
                    return Err(format!("host {at} waited {took:?}"));
                }
            }
        }
        Ok(())
    }

    /// Make, perhaps rename, perhaps remove a file, and sync; the promise is noted before the next.
    fn change(&self, host: &Host, path: &str, random: &mut StdRng) -> shoal::base::Result<()> {
        if random.random_bool(TRIMS) {
            host.trim_beside();
        }
        let content: Vec<u8> = (0..random.random_range(0..30_000)).map(|n: usize| (n * 7) as u8).collect();
        let renamed = format!("{path}.r");
        for old in [path, &renamed] {
            // Nothing is promised of it in between; the next sync covers it.
            self.promised.lock().remove(old);
            match host.unlink(old) {
                Ok(()) | Err(shoal::base::Error::NotFound) => {}
                Err(e) => return Err(e),
            }
        }
        host.create(path)?;
        host.write(path, 0, &content, How::Buffered)?;
        host.fsync(path)?;
        self.promise(path, Some(content.clone()));
        match random.random_range(0..4) {
            0 => {
                // Neither name is promised in between.
                self.promised.lock().remove(path);
                host.rename(path, &renamed, false)?;
                host.fsync("/shared")?;
                self.promise(path, None);
                self.promise(&renamed, Some(content));
            }
            1 => {
                self.promised.lock().remove(path);
                host.unlink(path)?;
                host.fsync("/shared")?;
                self.promise(path, None);
            }
            // A file of whoever comes by: hosts change each other's.
            2 => drop(host.chmod(path, 0o600)),
            _ => {}
        }
        Ok(())
    }

    fn promise(&self, path: &str, content: Option<Vec<u8>>) {
        self.promised.lock().insert(path.into(), content);
    }

    fn end(&self, at: usize, how: End) {
        self.dying[at].store(true, Ordering::Release);
        {
            let place = self.hosts[at].read();
            let Some(host) = &*place else { return };
            match how {
                End::Cut => {
                    host.port.cut();
                    host.fs.halt("its power is cut");
                }
                End::Halt => host.fs.halt("the test wants it"),
                End::Stall => {
                    if !self.reserved {
                        host.port.lose_late_writes();
                    }
                    host.port.stall(true);
                    std::thread::sleep(STALL);
                    host.port.stall(false);
                    return; // it may or may not be in still: whoever takes the place looks
                }
            }
        }
        let host = self.hosts[at].write().take();
        if let Some(host) = host {
            if how == End::Halt {
                std::thread::sleep(Duration::from_millis(500));
            }
            host.crash();
        }
    }

    fn bury(&self, at: usize) {
        self.dying[at].store(true, Ordering::Release);
        let host = self.hosts[at].write().take();
        if let Some(host) = host {
            host.crash();
        }
    }

    /// Every promise is kept on a host that lives, or on the next one.
    fn check(&self) -> Result<(), String> {
        let living = (0..HOSTS).find(|at| self.hosts[*at].read().is_some());
        let at = living.unwrap_or_default();
        if living.is_none() {
            self.mount(at)?;
        }
        let place = self.hosts[at].read();
        let host = place.as_ref().ok_or("the last host is gone")?;
        let promised = self.promised.lock().clone();
        for (path, content) in &promised {
            let found = match host.read(path) {
                Ok(found) => Some(found),
                Err(shoal::base::Error::NotFound) => None,
                Err(e) => return Err(format!("{path}: {e}")),
            };
            if found != *content {
                let length = |c: &Option<Vec<u8>>| c.as_ref().map(Vec::len);
                return Err(format!("{path}: {:?} bytes, not {:?}", length(&found), length(content)));
            }
        }
        Ok(())
    }
}

/// Power is cut while a host mounts, or just after. A mount that waits for others' words when it loses
/// its device waits for ever; in a process that has died nobody does.
fn die_mounting(sim: &Sim, at: usize, pause: Duration) {
    let port = Port::new(&sim.disk);
    let (own, name, reserved) = (port.clone(), format!("unborn{at}"), sim.reserved);
    let mounting = std::thread::spawn(move || match reserved {
        true => Host::mount_elsewhere(own, &name, FenceWish::Reservation),
        false => Host::mount_by(own, &name),
    });
    std::thread::sleep(pause);
    port.cut();
    std::thread::sleep(Duration::from_millis(300));
    if mounting.is_finished()
        && let Ok(Ok(host)) = mounting.join()
    {
        host.crash();
    }
}

/// Power is cut while a host leaves, or just after.
fn die_leaving(sim: &Sim, at: usize, pause: Duration) {
    sim.dying[at].store(true, Ordering::Release);
    let Some(host) = sim.hosts[at].write().take() else { return };
    std::thread::scope(|scope| {
        let port = host.port.clone();
        let fs = host.fs.clone();
        let leaving = scope.spawn(|| host.stop());
        std::thread::sleep(pause);
        port.cut();
        fs.halt("its power is cut");
        let _ = leaving.join();
    });
}

/// Deaths as a seed has them. Nobody is spared; there may be moments when all are gone.
fn deaths(sim: &Sim, random: &mut StdRng, rounds: usize) -> Result<(), String> {
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.random_range(50..800)));
        let at = random.random_range(0..HOSTS);
        let pause = Duration::from_millis(random.random_range(0..1500));
        if sim.hosts[at].read().is_none() {
            match random.random_range(0..4) {
                0 => die_mounting(sim, at, pause),
                _ => sim.mount(at)?,
            }
            continue;
        }
        match random.random_range(0..8) {
            0..=2 => sim.end(at, End::Cut),
            3 => sim.end(at, End::Halt),
            4 => {
                sim.end(at, End::Stall);
                sim.bury(at);
            }
            5 => {
                // One more while the first is being recovered.
                sim.end(at, End::Cut);
                std::thread::sleep(Duration::from_millis(random.random_range(0..3000)));
                sim.end((at + 1) % HOSTS, End::Cut);
            }
            6 => die_leaving(sim, at, pause / 4),
            _ => {
                sim.dying[at].store(true, Ordering::Release);
                let host = sim.hosts[at].write().take();
                host.map_or(Ok(()), Host::stop).map_err(|e| format!("leave of host {at}: {e}"))?;
            }
        }
    }
    Ok(())
}

/// With `SHOAL_LOG` set, what the hosts log goes to stderr.
pub fn tell() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("SHOAL_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}

fn run(seed: u64, reserved: bool) -> Result<Count, String> {
    tell();
    let disk = volume(512, HOSTS as u16 + 2);
    let sim = Sim {
        disk,
        hosts: (0..HOSTS).map(|_| RwLock::default()).collect(),
        dying: (0..HOSTS).map(|_| AtomicBool::new(true)).collect(),
        promised: Mutex::default(),
        done: AtomicUsize::new(0),
        longest: Mutex::default(),
        over: AtomicBool::new(false),
        mounts: AtomicUsize::new(0),
        reserved,
    };
    (0..HOSTS).try_for_each(|at| sim.mount(at))?;
    let made = sim.hosts[0].read().as_ref().map(|host| host.mkdir("/shared").and_then(|()| host.fsync("/")));
    made.expect("just mounted").map_err(|e| e.to_string())?;
    let mut random = StdRng::seed_from_u64(seed);
    let rounds = std::env::var("SHOAL_DEATHS").map_or(6, |n| n.parse().expect("a number of deaths"));
    let ended = std::thread::scope(|scope| {
        let sim = &sim;
        let workers: Vec<_> = (0..HOSTS).map(|at| scope.spawn(move || sim.work(at, seed))).collect();
        let died = deaths(sim, &mut random, rounds);
        // Whoever died last is recovered, or it would not go on.
        std::thread::sleep(Duration::from_secs(1));
        sim.over.store(true, Ordering::Release);
        let worked =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err("a worker panicked".into())));
        worked.collect::<Vec<_>>().into_iter().fold(died, |all, one| all.and(one))
    });
    let ended = ended.and_then(|()| sim.check());
    let left = (0..HOSTS).filter_map(|at| sim.hosts[at].write().take()).map(|host| host.stop());
    let left: Vec<_> = left.collect();
    println!("seed {seed}: longest wait {:?}", sim.longest.lock());
    ended.map_err(|e| format!("seed {seed}: {e}"))?;
    left.into_iter().try_for_each(|l| l.map_err(|e| format!("seed {seed}: the last leave: {e}")))?;
    tree::fsck(&sim.disk).map_err(|e| format!("seed {seed}: {e}"))?;
    let operations = sim.done.load(Ordering::Relaxed) as u64;
    let (reads, writes, flushes) = sim.disk.requests();
    Ok(Count { operations, events: operations + reads + writes + flushes })
}

#[test]
fn hosts_die_while_others_live() {
    over_seeds("deaths", |seed| run(seed, false));
}

/// Writes of who was stalled land however late, unless the disk refuses them.
#[test]
fn hosts_die_that_the_disk_keeps_off() {
    over_seeds("deaths on a disk with reservations", |seed| run(seed, true));
}

#[test]
fn space_of_a_dead_host_is_waited_for() {
    let disk = volume(128, 2);
    let hosts = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    // Each takes its own half first.
    hosts[1].create("/b").unwrap();
    hosts[1].fsync("/b").unwrap();
    let [a, b] = hosts;
    b.fs.halt("the test wants it");
    let piece = vec![7; 1 << 20];
    a.create("/a").unwrap();
    for n in 0..75 {
        a.write("/a", n << 20, &piece, How::Buffered).unwrap_or_else(|e| panic!("MiB {n}: {e}"));
    }
    a.fsync("/a").unwrap();
    b.crash();
    a.stop().unwrap();
    tree::fsck(&disk).unwrap();
}

#[test]
fn a_stall_of_the_whole_store_expels_nobody() {
    let disk = volume(256, 4);
    let hosts = ["a", "b", "c"].map(|name| Host::mount(&disk, name).expect("mount"));
    hosts[0].mkdir("/shared").unwrap();
    for round in 0..2 {
        hosts.iter().for_each(|host| host.port.stall(true));
        std::thread::sleep(STALL);
        hosts.iter().for_each(|host| host.port.stall(false));
        for (n, host) in hosts.iter().enumerate() {
            host.create(&format!("/shared/{round}-{n}")).unwrap();
            host.fsync("/shared").unwrap();
        }
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(hosts[1].list("/shared").unwrap().len(), 6);
    hosts.into_iter().for_each(|host| host.stop().unwrap());
    tree::fsck(&disk).unwrap();
}

/// Gives none of certain locks up while it is told not to.
struct Stubborn {
    inner: Arc<dyn Demoter>,
    keeps: fn(LockName) -> bool,
    stubborn: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Demoter for Stubborn {
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        if self.stubborn.load(Ordering::Acquire) && batch.iter().any(|job| (self.keeps)(job.name)) {
            self.asked.fetch_add(1, Ordering::Release);
            return vec![DemoteAnswer::Busy; batch.len()];
        }
        self.inner.demote(batch)
    }

    fn granted(&self, name: LockName, mode: Mode) {
        self.inner.granted(name, mode);
    }

    fn kept(&self, name: LockName, mode: Mode) {
        self.inner.kept(name, mode);
    }
}

/// A host whose inodes are kept to itself once the flag is up, and how often it was asked for some.
pub fn stubborn(disk: &Arc<SimDisk>, name: &str) -> (Host, Arc<AtomicBool>, Arc<AtomicUsize>) {
    stubborn_about(disk, name, |name| matches!(name, LockName::Inode(_)))
}

/// The same with locks that `keeps` names.
pub fn stubborn_about(
    disk: &Arc<SimDisk>,
    name: &str,
    keeps: fn(LockName) -> bool,
) -> (Host, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (stubborn, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let wrap = |inner| {
        let (stubborn, asked) = (stubborn.clone(), asked.clone());
        Arc::new(Stubborn { inner, keeps, stubborn, asked }) as Arc<dyn Demoter>
    };
    let host = Host::mount_wrapped(disk, name, Duration::from_secs(1), &wrap).expect("mount");
    (host, stubborn, asked)
}

pub fn until_asked(asked: &AtomicUsize) {
    let limit = Instant::now() + WAIT_MAX;
    while asked.load(Ordering::Acquire) == 0 {
        assert!(Instant::now() < limit, "it is never asked for a lock");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A host mounts while the only other one has the root, and dies with it: nobody else can take over.
#[test]
fn a_mount_takes_over_from_the_host_that_let_it_in() {
    for proven in [false, true] {
        let disk = volume(64, 3);
        let (a, stubborn, asked) = stubborn(&disk, "a");
        a.create("/f").expect("create");
        a.fsync("/f").expect("fsync");
        stubborn.store(true, Ordering::Release);
        let (port, (mounted, answer)) = (Port::new(&disk), std::sync::mpsc::channel());
        std::thread::spawn(move || mounted.send(Host::mount_by(port, "b")));
        until_asked(&asked);
        // Stubborn, or cut off with its claim gone.
        if proven {
            a.port.cut();
        }
        a.fs.halt("the test wants it");
        let b = answer.recv_timeout(WAIT_MAX).expect("the mount waits for ever").expect("mount");
        assert_eq!(b.read("/f").expect("read").len(), 0);
        a.crash();
        b.stop().expect("a clean leave");
        tree::fsck(&disk).expect("a sound volume");
    }
}

/// A host leaves while an operation of its, which holds a lock, waits for one of a host that dies then: it
/// can go only when that one is recovered, and nobody else is there to do it.
#[test]
fn who_leaves_takes_over_as_long_as_it_waits() {
    let disk = volume(64, 3);
    let (b, stubborn, asked) = stubborn(&disk, "b");
    let a = Host::mount(&disk, "a").expect("mount");
    a.mkdir("/a").expect("mkdir");
    a.create("/a/f").expect("create");
    b.mkdir("/b").expect("mkdir");
    let (from, to) = (a.keep("/a").expect("lookup"), a.keep("/b").expect("lookup"));
    b.create("/b/g").expect("create");
    assert!(from.0 < to.0, "locks are taken in this order");
    stubborn.store(true, Ordering::Release);
    let (done, moved) = std::sync::mpsc::channel();
    let (caller, flags) = (Caller::default(), RenameFlags::default());
    Operations::rename(&*a.fs, caller, (from, b"f"), (to, b"f"), flags, move |r| drop(done.send(r)));
    until_asked(&asked);
    let (left, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || left.send(a.stop()));
    std::thread::sleep(Duration::from_secs(1));
    assert!(answer.try_recv().is_err(), "it did not wait: nothing was tested");
    b.fs.halt("the test wants it");
    answer.recv_timeout(WAIT_MAX).expect("it waits for ever").expect("a clean leave");
    // Done or refused, but answered.
    let _ = moved.recv_timeout(WAIT_MAX).expect("the rename is not answered");
    b.crash();
    tree::fsck(&disk).expect("a sound volume");
}
