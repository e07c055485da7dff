//! Random deaths under random work: daemons killed, stopped for a while or for longer than their lease (and
//! let run again), unmounted and mounted again, alone or two at a time, while all hosts change one directory
//! and read what the others have made. What was synced must be there for everybody, whoever died since; who
//! lives goes on. Now and then all hosts leave, or die at once, and fsck looks. `SHOAL_DEATHS` says how many
//! deaths, `SHOAL_SEED` which.

use crate::death::{pid, signal};
use crate::rig::{Cluster, stderr};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Result as IoResult, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

const HOSTS: usize = 3;
/// Take-over takes less than three seconds on an idle machine.
const WAIT_MAX: Duration = Duration::from_secs(45);
/// Files that a worker keeps before it begins to remove them.
const KEPT: u64 = 60;
/// Deaths from one look of fsck to the next.
const LOOK_EVERY: u64 = 20;

/// By name, the content that was synced; `None`: the removal was. What is not listed is being changed.
type Promises = BTreeMap<String, Option<Vec<u8>>>;

struct Torture {
    cluster: Cluster,
    /// By host: is it up, as far as its worker may expect?
    up: [AtomicBool; HOSTS],
    over: AtomicBool,
    /// Held shared for each change: whoever holds it alone sees no file open.
    at_work: RwLock<()>,
    promised: Mutex<Promises>,
    longest: Mutex<Duration>,
    reads: AtomicU64,
}

impl Torture {
    fn load(&self, host: usize) -> PathBuf {
        self.cluster.at(host).join("load")
    }

    fn promise(&self, name: &str, content: Option<Vec<u8>>) {
        self.promised.lock().unwrap().insert(name.to_owned(), content);
    }

    fn promise_of(&self, name: &str) -> Option<Option<Vec<u8>>> {
        self.promised.lock().unwrap().get(name).cloned()
    }

    fn is_up(&self, host: usize) -> bool {
        self.up[host].load(Ordering::Acquire)
    }

    /// A file under one name, renamed to another; both synced.
    fn make(&self, load: &Path, name: &str, random: &mut StdRng) -> IoResult<()> {
        let content: Vec<u8> = (0..random.random_range(0..50_000)).map(|n: usize| (n * 13) as u8).collect();
        let fresh = load.join(format!("{name}.new"));
        let mut file = File::create(&fresh)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&fresh, load.join(name))?;
        File::open(load)?.sync_all()?;
        self.promise(name, Some(content));
        Ok(())
    }

    /// Part of an own file is written anew, or more of it.
    fn overwrite(&self, load: &Path, name: &str, random: &mut StdRng) -> IoResult<()> {
        let Some(Some(mut content)) = self.promise_of(name) else { return Ok(()) };
        let at = random.random_range(0..=content.len());
        let part = vec![random.random::<u8>(); random.random_range(1..20_000)];
        content.resize(content.len().max(at + part.len()), 0);
        content[at..at + part.len()].copy_from_slice(&part);
        self.promised.lock().unwrap().remove(name);
        let file = File::options().write(true).open(load.join(name))?;
        file.write_all_at(&part, at as u64)?;
        file.sync_data()?;
        self.promise(name, Some(content));
        Ok(())
    }

    fn remove(&self, load: &Path, name: &str) -> IoResult<()> {
        // Only what is promised is there for certain.
        if matches!(self.promise_of(name), Some(Some(_))) {
            self.promised.lock().unwrap().remove(name);
            fs::remove_file(load.join(name))?;
            File::open(load)?.sync_all()?;
            self.promise(name, None);
        }
        Ok(())
    }

    /// Any host's file is as promised, unless it is changed meanwhile.
    fn look(&self, load: &Path, name: &str) -> Result<(), String> {
        let Some(before) = self.promise_of(name) else { return Ok(()) };
        let found = match fs::read(load.join(name)) {
            Ok(found) => Some(found),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e.to_string()),
        };
        self.reads.fetch_add(1, Ordering::Relaxed);
        match self.promise_of(name) == Some(before.clone()) && found != before {
            true => {
                let length = |c: &Option<Vec<u8>>| c.as_ref().map(Vec::len);
                Err(format!("LOST: {name} has {:?} bytes, not these {:?}", length(&found), length(&before)))
            }
            false => Ok(()),
        }
    }

    fn step(&self, host: usize, i: u64, random: &mut StdRng) -> Result<(), String> {
        let (load, name) = (self.load(host), |host: usize, i: u64| format!("h{host}-{i}"));
        let older = name(host, random.random_range(i.saturating_sub(KEPT)..=i));
        let told = |what: &'static str| move |e: std::io::Error| format!("{what} (file {i}): {e}");
        self.make(&load, &name(host, i), random).map_err(told("make"))?;
        if random.random_bool(0.5) {
            self.overwrite(&load, &older, random).map_err(told("overwrite"))?;
        }
        if let Some(old) = i.checked_sub(KEPT) {
            self.remove(&load, &name(host, old)).map_err(told("remove"))?;
        }
        let another = name(random.random_range(0..HOSTS), random.random_range(i.saturating_sub(KEPT)..=i));
        self.look(&load, &another)
    }

    fn work(&self, host: usize, seed: u64) -> Result<u64, String> {
        let mut random = StdRng::seed_from_u64(seed ^ (host as u64) << 40);
        let mut done = 0;
        for i in 0u64.. {
            let at_work = self.at_work.read().unwrap();
            if self.over.load(Ordering::Acquire) {
                break;
            }
            let (expected, begun) = (self.is_up(host), Instant::now());
            let lasts = || expected && self.is_up(host);
            match self.step(host, i, &mut random) {
                Ok(()) => done += 1,
                Err(e) if lasts() || e.contains("LOST") => return Err(format!("host {host}: {e}")),
                Err(_) => {}
            }
            if lasts() {
                let mut longest = self.longest.lock().unwrap();
                *longest = begun.elapsed().max(*longest);
                if begun.elapsed() > WAIT_MAX {
                    return Err(format!("host {host} waited {:?}", begun.elapsed()));
                }
            }
            drop(at_work);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(done)
    }

    fn down(&self, host: usize) {
        self.up[host].store(false, Ordering::Release);
    }

    fn mount(&self, host: usize, random: &mut StdRng) {
        // Its process is gone, which may be proof enough, or its lease must be waited for.
        let options = if random.random_bool(0.5) { "fence=auto" } else { "fence=lease" };
        let out = self.cluster.try_mount(host, &self.cluster.image(), options);
        assert!(out.status.success(), "mount of host {host}: {}", stderr(&out));
        self.up[host].store(true, Ordering::Release);
    }

    /// One death, or two, or a leave; then all are mounted again.
    fn strike(&self, random: &mut StdRng) {
        let pause = |from, to, random: &mut StdRng| {
            std::thread::sleep(Duration::from_millis(random.random_range(from..to)));
        };
        let first = random.random_range(0..HOSTS);
        let second = (first + random.random_range(1..HOSTS)) % HOSTS;
        match random.random_range(0..10) {
            0..=3 => self.kill(&[first]),
            4 => self.kill(&[first, second]),
            5 => {
                self.kill(&[first]);
                pause(0, 3000, random);
                self.kill(&[second]);
            }
            // Stopped, and let run again: within its lease, or not.
            6 | 7 => {
                self.down(first);
                let daemon = pid(&self.cluster, first);
                signal(daemon, libc::SIGSTOP);
                if random.random_bool(0.25) {
                    pause(50, 1500, random)
                } else {
                    pause(2200, 5500, random)
                };
                // SAFETY: a system call with numbers; what the guardian has killed is its parent's still.
                unsafe { libc::kill(daemon as i32, libc::SIGCONT) };
                pause(0, 1500, random);
                if fs::metadata(self.load(first)).is_ok() {
                    self.up[first].store(true, Ordering::Release);
                } else {
                    self.cluster.kill(&[first]);
                }
            }
            8 => {
                self.down(first);
                pause(100, 101, random);
                // The worker may have a file open at this moment; then it is a crash.
                if !self.cluster.try_umount(first).status.success() {
                    self.kill(&[first]);
                }
            }
            _ => {
                // Killed while it mounts, or just after.
                self.kill(&[first]);
                std::thread::scope(|scope| {
                    let mounting = scope.spawn(|| self.cluster.try_mount(first, &self.cluster.image(), "rw"));
                    pause(0, 1200, random);
                    self.cluster.kill(&[first]);
                    mounting.join().unwrap();
                });
                self.cluster.kill(&[first]);
            }
        }
        pause(0, 2500, random);
        (0..HOSTS).filter(|host| !self.is_up(*host)).for_each(|host| self.mount(host, random));
    }

    fn kill(&self, hosts: &[usize]) {
        hosts.iter().for_each(|host| self.down(*host));
        self.cluster.kill(hosts);
    }

    fn check(&self, host: usize) {
        let promised = self.promised.lock().unwrap().clone();
        for name in promised.keys() {
            self.look(&self.load(host), name).unwrap_or_else(|e| panic!("host {host}: {e}"));
        }
    }

    /// All see everything that was promised; then all leave, or die in that moment, and fsck looks.
    fn inspect(&self, dying: bool, random: &mut StdRng) {
        let _alone = self.at_work.write().unwrap();
        (0..HOSTS).for_each(|host| self.check(host));
        match dying {
            true => self.kill(&[0, 1, 2]),
            false => (0..HOSTS).for_each(|host| {
                let left = self.cluster.try_umount(host);
                assert!(left.status.success(), "umount of host {host}: {}", stderr(&left));
            }),
        }
        self.cluster.check();
        (0..HOSTS).for_each(|host| self.mount(host, random));
    }
}

#[test]
fn random_deaths_lose_nothing_that_was_synced() {
    let number = |name, default: u64| std::env::var(name).map_or(default, |n| n.parse().expect("a number"));
    let (deaths, seed) = (number("SHOAL_DEATHS", 5), number("SHOAL_SEED", 1));
    let torture = Torture {
        cluster: Cluster::new("512M", HOSTS, Duration::from_secs(200 + 40 * deaths)),
        up: [const { AtomicBool::new(true) }; HOSTS],
        over: AtomicBool::new(false),
        at_work: RwLock::default(),
        promised: Mutex::default(),
        longest: Mutex::default(),
        reads: AtomicU64::new(0),
    };
    fs::create_dir(torture.load(0)).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let done = std::thread::scope(|scope| {
        let torture = &torture;
        let workers = [0, 1, 2].map(|host| scope.spawn(move || torture.work(host, seed)));
        for death in 1..=deaths {
            std::thread::sleep(Duration::from_millis(random.random_range(200..1500)));
            torture.strike(&mut random);
            if death % LOOK_EVERY == 0 && death < deaths && !workers.iter().any(|w| w.is_finished()) {
                println!("{death} deaths, longest wait {:?}", torture.longest.lock().unwrap());
                torture.inspect(death % (2 * LOOK_EVERY) == 0, &mut random);
            }
            if workers.iter().any(|w| w.is_finished()) {
                break; // one has failed
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        torture.over.store(true, Ordering::Release);
        workers.map(|w| w.join().unwrap())
    });
    let done: u64 = done.into_iter().map(|d| d.unwrap_or_else(|e| panic!("seed {seed}: {e}"))).sum();
    let reads = torture.reads.load(Ordering::Relaxed);
    println!("{done} changes, {reads} looks, longest wait {:?}", torture.longest.lock().unwrap());
    (0..HOSTS).for_each(|host| torture.check(host));
    (0..HOSTS).for_each(|host| assert!(torture.cluster.try_umount(host).status.success()));
    torture.cluster.check();
}
