//! Random deaths under random work: daemons killed, stopped for longer than their lease, unmounted and
//! mounted again, alone or two at a time, while all hosts change one directory. What was synced must be there
//! for everybody, whoever died since. `SHOAL_DEATHS` says how many, `SHOAL_SEED` which.

use crate::death::{pid, signal};
use crate::rig::Cluster;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HOSTS: usize = 3;
/// Take-over takes less than three seconds on an idle machine.
const WAIT_MAX: Duration = Duration::from_secs(45);
/// Files that a worker keeps before it begins to remove them.
const KEPT: u64 = 60;

struct Torture {
    cluster: Cluster,
    /// By host: is it up, as far as its worker may expect?
    up: [AtomicBool; HOSTS],
    over: AtomicBool,
    /// What each file must hold; `None`: removed for good.
    promised: Mutex<BTreeMap<String, Option<Vec<u8>>>>,
    longest: Mutex<Duration>,
}

impl Torture {
    fn promise(&self, name: &str, content: Option<Vec<u8>>) {
        self.promised.lock().unwrap().insert(name.to_owned(), content);
    }

    fn is_up(&self, host: usize) -> bool {
        self.up[host].load(Ordering::Acquire)
    }

    /// Make a file under one name, rename it to another, remove an old one; all of it synced.
    fn change(&self, load: &Path, name: &str, old: Option<&str>, random: &mut StdRng) -> std::io::Result<()> {
        let content: Vec<u8> = (0..random.random_range(0..50_000)).map(|n: usize| (n * 13) as u8).collect();
        let fresh = load.join(format!("{name}.new"));
        let mut file = File::create(&fresh)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&fresh, load.join(name))?;
        let dir = File::open(load)?;
        dir.sync_all()?;
        self.promise(name, Some(content));
        if let Some(old) = old {
            self.promised.lock().unwrap().remove(old);
            fs::remove_file(load.join(old))?;
            dir.sync_all()?;
            self.promise(old, None);
        }
        Ok(())
    }

    fn work(&self, host: usize, seed: u64) -> Result<u64, String> {
        let mut random = StdRng::seed_from_u64(seed ^ (host as u64) << 40);
        let load = self.cluster.at(host).join("load");
        let mut done = 0;
        for i in 0u64.. {
            if self.over.load(Ordering::Acquire) {
                break;
            }
            let old = i.checked_sub(KEPT).map(|i| format!("h{host}-{i}"));
            // Only what is promised is there for certain.
            let old = old.filter(|old| matches!(self.promised.lock().unwrap().get(old), Some(Some(_))));
            let (expected, begun) = (self.is_up(host), Instant::now());
            let changed = self.change(&load, &format!("h{host}-{i}"), old.as_deref(), &mut random);
            match changed {
                Ok(()) => done += 1,
                Err(e) if expected && self.is_up(host) => return Err(format!("host {host}: {e}")),
                Err(_) => {}
            }
            if expected && self.is_up(host) {
                let mut longest = self.longest.lock().unwrap();
                *longest = begun.elapsed().max(*longest);
                if begun.elapsed() > WAIT_MAX {
                    return Err(format!("host {host} waited {:?}", begun.elapsed()));
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(done)
    }

    fn down(&self, host: usize) {
        self.up[host].store(false, Ordering::Release);
    }

    fn mount(&self, host: usize) {
        self.cluster.mount(host);
        self.up[host].store(true, Ordering::Release);
    }

    /// One death, or two, or a leave; then all are mounted again.
    fn strike(&self, random: &mut StdRng) {
        let first = random.random_range(0..HOSTS);
        let second = (first + random.random_range(1..HOSTS)) % HOSTS;
        match random.random_range(0..8) {
            0..=3 => self.kill(&[first]),
            4 => self.kill(&[first, second]),
            5 => {
                self.kill(&[first]);
                std::thread::sleep(Duration::from_millis(random.random_range(0..3000)));
                self.kill(&[second]);
            }
            6 => {
                self.down(first);
                let daemon = pid(&self.cluster, first);
                signal(daemon, libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(random.random_range(2500..5000)));
                self.cluster.kill(&[first]);
            }
            _ => {
                self.down(first);
                std::thread::sleep(Duration::from_millis(100));
                // The worker may have a file open at this moment; then it is a crash.
                if !self.cluster.try_umount(first).status.success() {
                    self.kill(&[first]);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..2500)));
        (0..HOSTS).filter(|host| !self.is_up(*host)).for_each(|host| self.mount(host));
    }

    fn kill(&self, hosts: &[usize]) {
        hosts.iter().for_each(|host| self.down(*host));
        self.cluster.kill(hosts);
    }

    fn check(&self, host: usize) {
        let load = self.cluster.at(host).join("load");
        for (name, content) in &*self.promised.lock().unwrap() {
            match (fs::read(load.join(name)), content) {
                (Ok(found), Some(content)) => assert!(found == *content, "{name} differs on host {host}"),
                (Err(e), None) if e.kind() == std::io::ErrorKind::NotFound => {}
                (Err(e), _) => panic!("{name} on host {host}: {e}"),
                (Ok(_), None) => panic!("{name} is back on host {host}"),
            }
        }
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
        promised: Mutex::default(),
        longest: Mutex::default(),
    };
    fs::create_dir(torture.cluster.at(0).join("load")).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let done = std::thread::scope(|scope| {
        let torture = &torture;
        let workers = [0, 1, 2].map(|host| scope.spawn(move || torture.work(host, seed)));
        for death in 1..=deaths {
            std::thread::sleep(Duration::from_millis(random.random_range(200..1500)));
            torture.strike(&mut random);
            if death % 20 == 0 {
                println!("{death} deaths, longest wait {:?}", torture.longest.lock().unwrap());
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
    println!("{done} changes, longest wait {:?}", torture.longest.lock().unwrap());
    (0..HOSTS).for_each(|host| torture.check(host));
    (0..HOSTS).for_each(|host| assert!(torture.cluster.try_umount(host).status.success()));
    torture.cluster.check();
}
