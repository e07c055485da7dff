//! Shared mappings on both hosts, beside each other and beside read and write.

use super::map::Map;
use super::{Pair, ROUNDS};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const LENGTH: usize = 4 * 4096;

fn open(at: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(at.join("f")).unwrap()
}

fn pair() -> Pair {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), vec![0; LENGTH]).unwrap();
    pair
}

/// The mappings stand and were touched before: what the kernel has must go when the other host stores.
#[test]
fn what_is_stored_on_one_is_loaded_on_the_other() {
    let pair = pair();
    let files = [open(&pair.a), open(&pair.b)];
    let maps = [Map::new(&files[0], LENGTH, true), Map::new(&files[1], LENGTH, true)];
    pair.alternate(2 * ROUNDS, |round, _, to| {
        let (writer, reader) = (&maps[round % 2], &maps[(round + 1) % 2]);
        let value = round as u8 + 1;
        (0..LENGTH).step_by(1000).for_each(|i| assert_eq!(reader.load(i), round as u8, "round {round}"));
        (0..LENGTH).for_each(|i| writer.store(i, value));
        if round % 4 < 2 {
            writer.sync();
        }
        // Without msync too: the page is dirty under the lock that the reader asks for.
        match round % 3 {
            0 => (0..LENGTH).for_each(|i| assert_eq!(reader.load(i), value, "round {round}, byte {i}")),
            1 => assert!(fs::read(to.join("f")).unwrap() == [value; LENGTH], "round {round}: by read"),
            _ => {
                let mut seen = [0; LENGTH];
                files[(round + 1) % 2].read_exact_at(&mut seen, 0).unwrap();
                assert!(seen == [value; LENGTH], "round {round}: by pread");
            }
        }
    });
    drop((maps, files));
    pair.finish();
}

#[test]
fn what_is_written_on_one_is_loaded_on_the_other() {
    let pair = pair();
    let readers = [File::open(pair.a.join("f")).unwrap(), File::open(pair.b.join("f")).unwrap()];
    let maps = [Map::new(&readers[0], LENGTH, false), Map::new(&readers[1], LENGTH, false)];
    pair.alternate(2 * ROUNDS, |round, from, _| {
        let at = round * 400;
        let map = &maps[(round + 1) % 2];
        assert_eq!(map.load(at), 0);
        open(from).write_all_at(&[7; 100], at as u64).unwrap();
        (at..at + 100).for_each(|i| assert_eq!(map.load(i), 7, "round {round}, byte {i}"));
        assert_eq!(map.load(at + 100), 0);
    });
    drop((maps, readers));
    pair.finish();
}

/// Both store into one page, each its own bytes: no store may be lost to the other's copy of the page.
#[test]
fn stores_of_both_hosts_into_one_page() {
    const STORES: usize = 250;
    let pair = pair();
    let counter = |at: &Path, mine: usize| {
        let file = open(at);
        std::thread::spawn(move || {
            let map = Map::new(&file, LENGTH, true);
            for i in 0..STORES {
                assert_eq!(map.load(mine), i as u8, "store {i} of byte {mine} is lost");
                map.store(mine, i as u8 + 1);
                if i % 16 == 0 {
                    map.sync();
                }
            }
        })
    };
    let counters = [counter(&pair.a, 100), counter(&pair.b, 200)];
    counters.into_iter().for_each(|c| c.join().unwrap());
    for at in [&pair.a, &pair.b] {
        let seen = fs::read(at.join("f")).unwrap();
        assert_eq!((seen[100], seen[200]), (STORES as u8, STORES as u8));
    }
    pair.finish();
}

/// Whoever copies a file goes by its holes: what has only been stored is none, here and on the other host.
#[test]
fn what_is_stored_is_no_hole() {
    let pair = Pair::new();
    pair.alternate(4, |round, from, to| {
        let file = File::create_new(from.join("f")).unwrap();
        file.set_len(LENGTH as u64).unwrap();
        if round >= 2 {
            // Blocks that are there, and not written.
            // SAFETY: an open descriptor; no pointers.
            assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, LENGTH as i64) }, 0);
        }
        let writer = open(from);
        let map = Map::new(&writer, LENGTH, true);
        // The mapping alone keeps it open.
        drop((file, writer));
        map.store(2 * 4096 + 5, 1);
        for at in [from, to] {
            let reader = File::open(at.join("f")).unwrap();
            // SAFETY: as above.
            let found = unsafe { libc::lseek(reader.as_raw_fd(), 0, libc::SEEK_DATA) };
            assert_eq!(found, 2 * 4096, "round {round}");
        }
        drop(map);
        fs::remove_file(from.join("f")).unwrap();
    });
    pair.finish();
}

/// A hole of a file is stored into, through a mapping, by a host that has never allocated anything: the
/// store gets its blocks while the lock is already being given up.
#[test]
fn a_store_that_needs_space_only_when_it_is_written_back() {
    const LENGTH: usize = 1 << 20;
    let pair = Pair::new();
    for round in 0..3 {
        let name = format!("hole{round}");
        File::create(pair.a.join(&name)).unwrap().set_len(LENGTH as u64).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(pair.b.join(&name)).unwrap();
        let map = Map::new(&file, LENGTH, true);
        (0..LENGTH).step_by(4096).for_each(|i| map.store(i + round, 7));
        let seen = fs::read(pair.a.join(&name)).unwrap();
        assert!(seen.len() == LENGTH && seen.iter().skip(round).step_by(4096).all(|b| *b == 7));
        drop((map, file));
        // The next round's host holds no group either.
        pair.cluster.umount(1);
        pair.cluster.mount(1);
    }
    pair.finish();
}

/// A small write that waits for its lock keeps a page locked in the kernel, and a load of that page
/// waits for it, on both hosts at once: nobody may wait for ever.
#[test]
fn loads_against_parked_partial_writes() {
    const RUN: Duration = Duration::from_secs(6);
    const PLACES: usize = 50;
    let pair = pair();
    let stop = AtomicBool::new(false);
    // By host and place: the newest write that was begun, and the newest that has returned.
    let [begun, done] = [(); 2].map(|()| [(); 2].map(|()| [(); PLACES].map(|()| AtomicU32::new(0))));
    let (begun, done) = (&begun, &done);
    let counts: Vec<u32> = std::thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> = [(&pair.a, 0), (&pair.b, 1)]
            .into_iter()
            .flat_map(|(at, host)| {
                let writer = scope.spawn(move || {
                    let (file, mut n) = (open(at), 0);
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let (value, slot) = ([n as u8; 10], n as usize % PLACES);
                        let place = (host * 2048 + slot * 20) as u64;
                        begun[host][slot].store(n, Ordering::SeqCst);
                        file.write_all_at(&value, place).unwrap();
                        done[host][slot].store(n, Ordering::SeqCst);
                        let mut seen = [0; 10];
                        file.read_exact_at(&mut seen, place).unwrap();
                        assert_eq!(seen, value, "host {host} reads back what it wrote");
                    }
                    n
                });
                let loader = scope.spawn(move || {
                    let file = File::open(at.join("f")).unwrap();
                    let (map, mut n) = (Map::new(&file, LENGTH, false), 0);
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let (other, slot) = (1 - host, n as usize % PLACES);
                        let oldest = done[other][slot].load(Ordering::SeqCst);
                        let seen = map.load(other * 2048 + slot * 20);
                        let newest = begun[other][slot].load(Ordering::SeqCst);
                        let fits = (oldest..=newest).step_by(PLACES).any(|write| write as u8 == seen);
                        assert!(fits || oldest == 0, "host {host} loads {seen}, write {oldest} has returned");
                    }
                    n
                });
                [writer, loader]
            })
            .collect();
        let end = Instant::now() + RUN;
        while Instant::now() < end && threads.iter().all(|t| !t.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(counts.iter().all(|n| *n >= 5), "somebody made no progress: {counts:?}");
    let seen = fs::read(pair.a.join("f")).unwrap();
    assert!(seen == fs::read(pair.b.join("f")).unwrap());
    pair.finish();
}
