//! Devices that stand still: for one host or for all, for longer than a lease.

use crate::faulty::Faulty;
use crate::rig::{Cluster, run, stderr};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The lease of the test profile.
const LEASE: Duration = Duration::from_secs(2);
const PAGE: usize = 4096;

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A file's pages as a program has them mapped.
struct Mapped {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Mapped {
    fn new(file: &File, bytes: usize) -> Mapped {
        // SAFETY: a fresh mapping of an open file, unmapped when dropped.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapped { at, bytes }
    }

    fn look(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` is, and nobody in this process writes it.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.bytes) }
    }

    /// Pages that could be seen without asking.
    fn resident(&self) -> usize {
        let mut pages = vec![0u8; self.bytes.div_ceil(PAGE)];
        // SAFETY: a live mapping, and a byte for each of its pages.
        let told = unsafe { libc::mincore(self.at, self.bytes, pages.as_mut_ptr()) };
        assert_eq!(told, 0, "{}", std::io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 != 0).count()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

#[test]
fn mapped_pages_are_not_seen_when_the_lease_is_over() {
    let cluster = Cluster::unmounted("64M", Duration::from_secs(90));
    let device = Faulty::new(&cluster.image());
    let mount = || {
        let out = cluster.try_mount(0, &device.path(), "rw");
        assert!(out.status.success(), "{}", stderr(&out));
    };
    mount();
    let at = cluster.at(0);
    write_synced(&at.join("mapped"), &[7; 300_000]).unwrap();
    write_synced(&at.join("cold"), &[8; 300_000]).unwrap();
    // With nothing in memory.
    cluster.umount(0);
    mount();
    let (file, mut cold) = (File::open(at.join("mapped")).unwrap(), File::open(at.join("cold")).unwrap());
    let mapped = Mapped::new(&file, 300_000);
    drop(file);
    assert!(mapped.look().iter().all(|byte| *byte == 7));
    let all = mapped.resident();
    assert_eq!(all, 300_000usize.div_ceil(PAGE));
    std::thread::sleep(LEASE * 2);
    assert_eq!(mapped.resident(), all, "as long as the lease is renewed they stay");
    device.stall(true);
    // Another file is being read, and its pages are locked.
    let reader = std::thread::spawn(move || {
        let mut found = Vec::new();
        cold.read_to_end(&mut found).map(|_| found)
    });
    std::thread::sleep(LEASE + Duration::from_secs(1));
    assert_eq!(mapped.resident(), 0);
    device.stall(false);
    assert!(mapped.look().iter().all(|byte| *byte == 7), "they are read again");
    assert!(reader.join().unwrap().unwrap() == vec![8; 300_000]);
    drop(mapped);
    assert!(!cluster.log(0).contains("halts"), "{}", cluster.log(0));
    cluster.umount(0);
    drop(device);
    cluster.check();
}

/// A mount's life under a stall: files are made, renamed, and read where others made them.
fn work(cluster: &Cluster, host: usize, stop: &AtomicBool) -> (BTreeMap<String, Vec<u8>>, Duration) {
    let (load, mut made, mut longest) = (cluster.at(host).join("load"), BTreeMap::new(), Duration::ZERO);
    for i in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let (name, begun) = (format!("h{host}-{i}"), Instant::now());
        let content: Vec<u8> = (0..(i * 7919) % 40_000).map(|n| (n * 31 + i) as u8).collect();
        let fresh = load.join(format!("{name}.new"));
        write_synced(&fresh, &content)
            .and_then(|()| fs::rename(&fresh, load.join(&name)))
            .and_then(|()| fs::read_dir(&load).map(|list| assert!(list.count() > 0)))
            .unwrap_or_else(|e| panic!("host {host}, file {i}: {e}"));
        made.insert(name, content);
        longest = longest.max(begun.elapsed());
        std::thread::sleep(Duration::from_millis(15));
    }
    (made, longest)
}

/// `SHOAL_STALL`: for how many seconds.
#[test]
fn a_stall_of_the_whole_store_expels_nobody_and_fails_nothing() {
    let stall = std::env::var("SHOAL_STALL").map_or(7, |n| n.parse().expect("a number of seconds"));
    let stall = Duration::from_secs(stall);
    let cluster = Cluster::unmounted("256M", stall * 2 + Duration::from_secs(120));
    let device = Faulty::new(&cluster.image());
    for host in 0..3 {
        let out = cluster.try_mount(host, &device.path(), "rw");
        assert!(out.status.success(), "{}", stderr(&out));
    }
    fs::create_dir(cluster.at(0).join("load")).unwrap();
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let workers = [0, 1, 2].map(|host| {
            scope.spawn({
                let (cluster, stop) = (&cluster, &stop);
                move || work(cluster, host, stop)
            })
        });
        std::thread::sleep(Duration::from_secs(2));
        device.stall(true);
        std::thread::sleep(stall);
        device.stall(false);
        // Longer than it takes to suspect and exclude somebody.
        std::thread::sleep(LEASE * 3);
        stop.store(true, Ordering::Release);
        workers.map(|worker| worker.join().unwrap())
    });
    let image = device.path();
    let out = run("shoal", &["status", "--json", "--quick", image.to_str().unwrap()]);
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for host in shown["hosts"].as_array().unwrap() {
        assert!(["member", "unused"].contains(&host["state"].as_str().unwrap()), "{shown:#}");
    }
    for (host, (made, longest)) in done.iter().enumerate() {
        println!("host {host}: {} files, longest wait {longest:?} of a stall of {stall:?}", made.len());
        assert!(*longest >= stall - LEASE && *longest < stall + Duration::from_secs(20), "{longest:?}");
        let log = cluster.log(host);
        let bad: Vec<_> = log.lines().filter(|l| l.contains("excluded") || l.contains("halts")).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        for (name, content) in made {
            let found = fs::read(cluster.at((host + 1) % 3).join("load").join(name)).unwrap();
            assert!(found == *content, "{name} differs");
        }
    }
    (0..3).for_each(|host| cluster.umount(host));
    drop(device);
    cluster.check();
}

/// A lock of one byte, or its end.
fn lock(file: &File, command: i32, kind: i32, at: i64) -> bool {
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    let mut lock = libc::flock { l_type, l_whence, l_start: at, l_len: 1, l_pid: 0 };
    // SAFETY: a system call on a structure of ours.
    unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) == 0 }
}

/// Of open file descriptions, for all this is one process.
#[test]
fn a_lock_is_given_up_without_a_lease_and_taken_only_with_one() {
    let cluster = Cluster::unmounted("64M", Duration::from_secs(90));
    let device = Faulty::new(&cluster.image());
    for host in 0..2 {
        let out = cluster.try_mount(host, &device.path(), "rw");
        assert!(out.status.success(), "{}", stderr(&out));
    }
    fs::write(cluster.at(0).join("file"), "x").unwrap();
    let open = |host| File::options().read(true).write(true).open(cluster.at(host).join("file")).unwrap();
    let (one, other, remote) = (open(0), open(0), open(1));
    let try_lock = |file: &File, at| lock(file, libc::F_OFD_SETLK, libc::F_WRLCK, at);
    assert!(try_lock(&one, 0));
    assert!(!try_lock(&remote, 0) && try_lock(&remote, 5));
    device.stall(true);
    std::thread::sleep(LEASE + Duration::from_secs(1));
    let begun = Instant::now();
    assert!(lock(&one, libc::F_OFD_SETLK, libc::F_UNLCK, 0));
    assert!(begun.elapsed() < LEASE / 2, "{:?}", begun.elapsed());
    let taking = std::thread::spawn(move || try_lock(&other, 1).then_some(other));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!taking.is_finished(), "others may have acted on this host's death");
    device.stall(false);
    let other = taking.join().unwrap().expect("nobody has");
    assert!(try_lock(&remote, 0) && !try_lock(&remote, 1));
    drop((one, other, remote));
    (0..2).for_each(|host| cluster.umount(host));
    drop(device);
    cluster.check();
}
