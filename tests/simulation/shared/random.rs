//! Threads on several hosts that write, read and sync at random; power cuts, and a death among them.

use super::*;
use crate::common::port::Weather;
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

const SECTOR: usize = 512;

/// The version that a sector of a block shows.
fn version(block: usize, sector: &[u8]) -> Result<u64, String> {
    let word = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
    let whole = sector.chunks(8).all(|bytes| bytes == word.to_le_bytes());
    match whole && word >> 32 == block as u64 {
        true => Ok(word & 0xffff_ffff),
        false => Err(format!("block {block}: bytes of no write, they begin with {word:x}")),
    }
}

/// What is known of a block: a version is written by one thread at a time, on any host.
#[derive(Default)]
struct Block {
    /// Versions that were begun, and that are answered.
    begun: AtomicU64,
    done: RwLock<u64>,
}

/// Made durable: events on the disk by then, and the version of each block before.
type Synced = Vec<(usize, Vec<u64>)>;

struct Run {
    places: Vec<Place>,
    blocks: Vec<Block>,
    synced: Mutex<Synced>,
    disk: Arc<SimDisk>,
    over: AtomicBool,
    /// Direct reads and writes, and others.
    counts: [AtomicU64; 2],
}

impl Run {
    fn new(disk: Arc<SimDisk>, places: Vec<Place>) -> Run {
        let blocks = (0..BLOCKS).map(|_| Block::default()).collect();
        Run {
            places,
            blocks,
            synced: Mutex::default(),
            disk,
            over: AtomicBool::new(false),
            counts: Default::default(),
        }
    }

    fn count(&self, which: usize) {
        self.counts[which].fetch_add(1, Ordering::Relaxed);
    }

    /// Work of one thread on one host, until all is over or the host's power is cut.
    fn work(&self, at: usize, seed: u64, quiet: u32) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(seed);
        let place = &self.places[at];
        while !self.over.load(Ordering::Acquire) {
            let block = random.random_range(0..BLOCKS);
            let done = match random.random_range(0..quiet) {
                0 => self.look_through_cache(place, block),
                1 => self.sync(place),
                n if n % 3 == 0 => self.look(place, block),
                _ => self.write(place, block),
            };
            done.map_err(|e| format!("host {at}: {e}"))?;
        }
        Ok(())
    }

    fn write(&self, place: &Place, block: usize) -> Result<(), String> {
        let known = &self.blocks[block];
        let mut done = known.done.write();
        let version = known.begun.fetch_add(1, Ordering::SeqCst) + 1;
        place.write(block, version).map_err(|e| format!("write of block {block}: {e}"))?;
        *done = version;
        self.count(0);
        Ok(())
    }

    fn check(&self, block: usize, bytes: &[u8], wanted: u64) -> Result<(), String> {
        for sector in bytes.chunks(SECTOR) {
            let found = version(block, sector)?;
            if found != wanted {
                return Err(format!("block {block} shows version {found}, {wanted} is the last"));
            }
        }
        Ok(())
    }

    fn look(&self, place: &Place, block: usize) -> Result<(), String> {
        let wanted = self.blocks[block].done.read();
        let bytes = place.read(block).map_err(|e| format!("read of block {block}: {e}"))?;
        self.count(0);
        self.check(block, &bytes, *wanted)
    }

    fn look_through_cache(&self, place: &Place, block: usize) -> Result<(), String> {
        let wanted = self.blocks[block].done.read();
        let length = ((block + 1) * BLOCK) as u32;
        let bytes = place.host.read_kept(place.node, place.cached, length);
        let bytes = bytes.map_err(|e| format!("cached read of block {block}: {e}"))?;
        self.count(1);
        self.check(block, &bytes[block * BLOCK..], *wanted)
    }

    fn sync(&self, place: &Place) -> Result<(), String> {
        let before = self.blocks.iter().map(|b| *b.done.read()).collect();
        place.host.fsync_kept(place.node, 0).map_err(|e| format!("fsync: {e}"))?;
        self.count(1);
        self.synced.lock().push((self.disk.event_count(), before));
        Ok(())
    }

    /// Two threads on each host but those, for some time.
    fn go(&self, seed: u64, quiet: u32, time: Duration, meanwhile: impl FnOnce()) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.places.len() * 2)
                .map(|n| scope.spawn(move || self.work(n / 2, seed * 100 + n as u64, quiet)))
                .collect();
            let begun = Instant::now();
            meanwhile();
            while begun.elapsed() < time && !threads.iter().any(|t| t.is_finished()) {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.over.store(true, Ordering::Release);
            let ended: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
            ended.into_iter().for_each(|e| e.unwrap_or_else(|e| panic!("seed {seed}: {e}")));
        });
        let [direct, others] = [0, 1].map(|n| self.counts[n].load(Ordering::Relaxed));
        println!("seed {seed}: {direct} direct reads and writes, {others} others");
        assert!(direct > 100 && others > 5, "nothing was tested");
    }

    /// What must and may be there when the power goes after so many events.
    fn check_cut(&self, data: &[u8], events: usize) -> Result<(), String> {
        for (n, block) in self.blocks.iter().enumerate() {
            let before = |(at, versions): &(usize, Vec<u64>)| (*at <= events).then(|| versions[n]);
            let least = self.synced.lock().iter().filter_map(before).max().unwrap_or(0);
            let most = block.begun.load(Ordering::SeqCst);
            for sector in data[n * BLOCK..(n + 1) * BLOCK].chunks(SECTOR) {
                let found = version(n, sector)?;
                if !(least..=most).contains(&found) {
                    return Err(format!("block {n} is version {found}, {least} was synced, {most} begun"));
                }
            }
        }
        Ok(())
    }
}

fn weather(seed: u64) -> Weather {
    let delay_us_max = [0, 300, 3000][seed as usize % 3];
    Weather { delay_us_max, torn_of_1000: 100, ..Weather::default() }
}

#[test]
fn direct_writers_and_cached_readers_of_several_hosts() {
    for seed in 1..=6 {
        let disk = written();
        let run = Run::new(disk.clone(), places(&disk, 2 + seed as usize % 2));
        for (n, place) in run.places.iter().enumerate() {
            place.host.port.set_weather(weather(seed), seed * 10 + n as u64);
        }
        // From hardly ever to all the time somebody wants more than that.
        run.go(seed, [4000, 200, 20][seed as usize / 2 % 3].max(3), Duration::from_millis(1500), || ());
        for place in &run.places {
            (0..BLOCKS).for_each(|block| run.look_through_cache(place, block).expect("in the end"));
        }
        run.places.into_iter().for_each(Place::leave);
        tree::fsck(&disk).expect("a sound volume");
    }
}

/// The power of all is cut: what fsync promised is there, whichever host had written it, and nothing else is.
#[test]
fn power_cuts_under_direct_writes_of_several_hosts() {
    for seed in 1..=3 {
        let disk = written();
        let places = places(&disk, 3);
        share(&places);
        places.iter().for_each(|place| (0..6).for_each(|v| place.write(0, v).expect("write")));
        let history = disk.record();
        let run = Run::new(disk.clone(), places);
        run.blocks[0].begun.store(6, Ordering::SeqCst);
        *run.blocks[0].done.write() = 5;
        run.go(seed, 30, Duration::from_millis(700), || ());
        let events = disk.events();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..25 {
            let count = random.random_range(0..=events.len());
            let how = match random.random_range(0..3) {
                0 => Unflushed::Lost,
                1 => Unflushed::Subset(random.random()),
                _ => Unflushed::Torn(random.random()),
            };
            let cut = history.crash_at(&events, count, how);
            tree::fsck(&cut).unwrap_or_else(|e| panic!("seed {seed}, after {count} events: {e}"));
            let found = Image::open(&cut).and_then(|image| image.walk()).expect("readable");
            let checked = run.check_cut(&found.data[FILE], count);
            checked.unwrap_or_else(|e| panic!("seed {seed}, after {count} events, {how:?}: {e}"));
        }
        run.places.into_iter().for_each(Place::leave);
    }
}

/// One of three dies in the middle of it; the others go on, and see in the end what it had written.
#[test]
fn a_host_dies_among_direct_writers() {
    let disk = written();
    let mut all = places(&disk, 3);
    share(&all);
    let victim = all.pop().expect("three");
    victim.write(7, 3).expect("write");
    let run = Run::new(disk.clone(), all);
    *run.blocks[7].done.write() = 3;
    run.blocks[7].begun.store(3, Ordering::SeqCst);
    *run.blocks[0].done.write() = 5;
    run.blocks[0].begun.store(5, Ordering::SeqCst);
    run.go(1, 60, Duration::from_secs(8), || {
        std::thread::sleep(Duration::from_millis(300));
        victim.host.crash();
    });
    for place in &run.places {
        (0..BLOCKS).for_each(|block| run.look_through_cache(place, block).expect("in the end"));
    }
    run.places.into_iter().for_each(Place::leave);
    tree::fsck(&disk).expect("a sound volume");
}
