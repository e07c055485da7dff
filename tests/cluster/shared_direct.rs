//! O_DIRECT reads and writes of several hosts to one file at the same time.

use crate::litmus::map::Map;
use crate::lock_traffic::words;
use crate::rig::Cluster;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
const BLOCKS: usize = 512;

#[repr(align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK]);

fn content(block: usize, version: u64) -> Box<Block> {
    let mut bytes = Box::new(Block([0; BLOCK]));
    bytes.0.chunks_mut(8).for_each(|c| c.copy_from_slice(&(((block as u64) << 32) | version).to_le_bytes()));
    bytes
}

fn direct(cluster: &Cluster, host: usize) -> File {
    let options = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).to_owned();
    options.open(cluster.at(host).join("f")).unwrap()
}

fn write(file: &File, block: usize, version: u64) {
    file.write_all_at(&content(block, version).0, (block * BLOCK) as u64).unwrap();
}

fn read(file: &File, block: usize) -> Box<Block> {
    let mut bytes = Box::new(Block([0; BLOCK]));
    file.read_exact_at(&mut bytes.0, (block * BLOCK) as u64).unwrap();
    bytes
}

/// A file that is written throughout, and two hosts that have it open.
fn set_up() -> (Cluster, [File; 2]) {
    let cluster = Cluster::new("256M", 2, LIMIT);
    let all: Vec<u8> = (0..BLOCKS).flat_map(|block| content(block, 0).0).collect();
    fs::write(cluster.at(0).join("f"), &all).unwrap();
    File::open(cluster.at(0).join("f")).unwrap().sync_all().unwrap();
    let files = [0, 1].map(|host| direct(&cluster, host));
    (cluster, files)
}

/// Until both write at the same time.
fn share(files: &[File; 2]) {
    (0..8).for_each(|n| write(&files[n % 2], n, 0));
    std::thread::sleep(Duration::from_millis(300));
}

/// The same between other uses; nothing is waited for.
fn share_a_little(files: &[File; 2], version: u64) {
    (0..6).for_each(|n| write(&files[n % 2], n, version));
}

#[test]
fn hosts_write_disjoint_blocks_at_the_same_time_without_a_word() {
    let (cluster, files) = set_up();
    share(&files);
    let written = AtomicU64::new(0);
    let before = words(&cluster);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (file, written) = (&files[thread % 2], &written);
            scope.spawn(move || {
                let end = Instant::now() + Duration::from_secs(3);
                for version in 1.. {
                    for block in (thread..BLOCKS).step_by(4) {
                        write(file, block, version);
                        written.fetch_add(1, Ordering::Relaxed);
                        if block % 16 == thread {
                            // The kernel asks for attributes before it reads.
                            assert!(read(file, block).0 == content(block, version).0);
                        }
                    }
                    if Instant::now() > end {
                        break;
                    }
                }
            });
        }
    });
    let cost = words(&cluster) - before;
    let written = written.into_inner();
    println!("{written} blocks written for {cost} words");
    assert!(written > 2000 && cost <= 20, "{cost} words for {written} blocks");
    // Directly from the other side, then through the cache, from both.
    let last = |block: usize| {
        let word = u64::from_le_bytes(read(&files[0], block).0[..8].try_into().unwrap());
        assert_eq!(word >> 32, block as u64);
        content(block, word & 0xffff_ffff)
    };
    let lasts: Vec<_> = (0..BLOCKS).map(last).collect();
    assert!((0..BLOCKS).all(|block| read(&files[1], block).0 == lasts[block].0));
    let all: Vec<u8> = lasts.iter().flat_map(|block| block.0).collect();
    (0..2).for_each(|host| assert!(fs::read(cluster.at(host).join("f")).unwrap() == all, "host {host}"));
    drop(files);
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// What one has written the other reads at once, directly and through its cache, which direct writes outdate.
#[test]
fn each_sees_what_the_other_has_written() {
    let (cluster, files) = set_up();
    let cached = [0, 1].map(|host| File::open(cluster.at(host).join("f")).unwrap());
    for version in 1..400u64 {
        let (here, there) = (version as usize % 2, (version as usize + 1) % 2);
        let block = version as usize * 7 % BLOCKS;
        write(&files[here], block, version);
        assert!(read(&files[there], block).0 == content(block, version).0, "directly, {version}");
        if version % 5 == 0 {
            for file in [&cached[there], &cached[here]] {
                let mut bytes = [0; BLOCK];
                file.read_exact_at(&mut bytes, (block * BLOCK) as u64).unwrap();
                assert!(bytes == content(block, version).0, "through the cache, {version}");
            }
        }
        if version % 7 == 0 {
            cached[here].metadata().unwrap();
        }
        if version % 11 == 0 {
            files[there].sync_all().unwrap();
        }
    }
    drop((files, cached));
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// A mapping shows what was written directly, and direct readers what was stored through it.
#[test]
fn mappings_and_direct_writers_see_each_other() {
    let (cluster, files) = set_up();
    let cached = File::options().read(true).write(true).open(cluster.at(0).join("f")).unwrap();
    let map = Map::new(&cached, BLOCKS * BLOCK, true);
    for round in 1..60u64 {
        share_a_little(&files, round);
        let (written, stored) = (100 + round as usize, 300 + round as usize);
        write(&files[round as usize % 2], written, round);
        // The low byte of the first word is the version's.
        assert_eq!(map.load(written * BLOCK), round as u8, "round {round}: the mapping");
        map.store(stored * BLOCK, 200 + round as u8 % 50);
        let seen = [1, 0].map(|host| read(&files[host], stored).0[0]);
        assert_eq!(seen, [200 + round as u8 % 50; 2], "round {round}: direct reads");
        write(&files[(round as usize + 1) % 2], stored, round);
        assert_eq!(map.load(stored * BLOCK), round as u8, "round {round}: the mapping, overwritten");
    }
    drop((map, cached, files));
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// The writers go on while others read through their caches, map and truncate the file.
#[test]
fn all_others_get_through_beside_direct_writers() {
    let (cluster, files) = set_up();
    share(&files);
    let done = AtomicBool::new(false);
    let path = |host: usize| cluster.at(host).join("f");
    std::thread::scope(|scope| {
        let (done, path) = (&done, &path);
        for (n, file) in files.iter().enumerate() {
            scope.spawn(move || {
                for version in 1.. {
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                    write(file, n + version as usize * 2 % 64, version);
                }
            });
        }
        let begun = Instant::now();
        let mut rounds = 0;
        while begun.elapsed() < Duration::from_secs(4) {
            let host = rounds % 2;
            let size = fs::metadata(path(host)).unwrap().len();
            assert!(size >= (BLOCKS * BLOCK) as u64);
            assert_eq!(fs::read(path(1 - host)).unwrap().len() as u64, size);
            let other = File::options().read(true).write(true).open(path(host)).unwrap();
            other.set_len(((BLOCKS + rounds % 5) * BLOCK) as u64).unwrap();
            other.write_all_at(b"through the cache", (200 * BLOCK) as u64).unwrap();
            let mut bytes = [0; 17];
            File::open(path(1 - host)).unwrap().read_exact_at(&mut bytes, (200 * BLOCK) as u64).unwrap();
            assert_eq!(&bytes, b"through the cache");
            rounds += 1;
        }
        done.store(true, Ordering::Release);
        println!("{rounds} rounds");
        assert!(rounds >= 10, "{rounds} rounds: others starve");
    });
    drop(files);
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn times_of_direct_writes_show_everywhere() {
    let (cluster, files) = set_up();
    for round in 0..6 {
        share(&files);
        let begun = SystemTime::now();
        std::thread::sleep(Duration::from_millis(20));
        write(&files[round % 2], round, 1);
        let times = [0, 1].map(|host| fs::metadata(cluster.at(host).join("f")).unwrap());
        assert!(times.iter().all(|m| m.modified().unwrap() > begun), "round {round}");
        assert!(times.iter().all(|m| (m.ctime(), m.ctime_nsec()) >= (m.mtime(), m.mtime_nsec())));
    }
    drop(files);
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}
