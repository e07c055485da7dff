//! Direct reads and writes of several hosts to one file at the same time.

use crate::common::port::Weather;
use crate::common::simdisk::{SimDisk, Unflushed};
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree::{self, Image};
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::fs::{NodeId, SetAttr, SetTime};
use shoal::inode::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const BLOCKS: usize = 48;
const FILE: &str = "/f";

/// Version `version` of block `block`: every eight bytes say so.
fn content(block: usize, version: u64) -> Vec<u8> {
    (((block as u64) << 32) | version).to_le_bytes().repeat(BLOCK / 8)
}

/// The version that a sector of a block shows.
fn version(block: usize, sector: &[u8]) -> Result<u64, String> {
    let word = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
    let whole = sector.chunks(8).all(|bytes| bytes == word.to_le_bytes());
    match whole && word >> 32 == block as u64 {
        true => Ok(word & 0xffff_ffff),
        false => Err(format!("block {block}: bytes of no write, they begin with {word:x}")),
    }
}

/// A host with the file open twice.
struct Place {
    host: Host,
    node: NodeId,
    direct: u64,
    cached: u64,
}

impl Place {
    fn new(host: Host) -> Place {
        let node = host.keep(FILE).expect("lookup");
        let open = |how| host.open_kept(node, how).expect("open");
        let (direct, cached) = (open(How::Direct), open(How::Buffered));
        Place { host, node, direct, cached }
    }

    fn write(&self, block: usize, version: u64) -> shoal::base::Result<()> {
        let at = (block * BLOCK) as u64;
        self.host.write_direct_kept(self.node, self.direct, at, &content(block, version))
    }

    fn read(&self, block: usize) -> shoal::base::Result<Vec<u8>> {
        self.host.read_direct_kept(self.node, self.direct, (block * BLOCK) as u64, BLOCK as u32)
    }

    fn leave(self) {
        for fh in [self.direct, self.cached] {
            self.host.close_kept(self.node, fh).expect("close");
        }
        self.host.forget(self.node);
        self.host.stop().expect("a clean leave");
    }

    /// Words to other hosts so far.
    fn words(&self) -> u64 {
        let report = self.host.get_xattr("/", "trusted.shoal.io").expect("on the root");
        let report = String::from_utf8(report).expect("text");
        let count = report.split(' ').find_map(|pair| pair.strip_prefix("inbox_writes="));
        count.expect("counted").parse().expect("a number")
    }
}

/// A volume with a file that is written throughout.
fn written() -> Arc<SimDisk> {
    let disk = volume(64, 4);
    let host = Host::mount(&disk, "first").expect("mount");
    host.create(FILE).expect("create");
    let all: Vec<u8> = (0..BLOCKS).flat_map(|block| content(block, 0)).collect();
    host.write(FILE, 0, &all, How::Buffered).expect("write");
    host.fsync(FILE).expect("fsync");
    host.stop().expect("a clean leave");
    disk
}

fn places(disk: &Arc<SimDisk>, hosts: usize) -> Vec<Place> {
    (0..hosts).map(|n| Place::new(Host::mount(disk, &format!("host{n}")).expect("mount"))).collect()
}

/// Until both write directly at the same time.
fn share(places: &[Place]) {
    for version in 0..6 {
        places.iter().for_each(|place| place.write(0, version).expect("write"));
    }
    // What is said only once is said by then.
    std::thread::sleep(Duration::from_millis(200));
}

#[test]
fn once_shared_it_costs_no_words() {
    let disk = written();
    let places = places(&disk, 3);
    share(&places);
    let words = |places: &[Place]| places.iter().map(Place::words).sum::<u64>();
    // The root is looked at for the count itself.
    words(&places);
    let before = words(&places);
    let counted = words(&places) - before;
    let before = words(&places);
    for version in 1..200 {
        for (n, place) in places.iter().enumerate() {
            place.write(n, version).expect("write");
            let seen = places[(n + 1) % 3].read(n).expect("read");
            assert!(seen == content(n, version), "another host does not see it");
        }
        if version % 20 == 0 {
            places[version as usize / 20 % 3].host.fsync_kept(places[0].node, 0).expect("fsync");
        }
    }
    let cost = words(&places) - before;
    assert!(cost <= counted + 3, "{cost} words for 1,200 reads and writes");
    for place in &places {
        let all = place.host.read_kept(place.node, place.cached, (BLOCKS * BLOCK) as u32).expect("read");
        assert!((0..3).all(|n| all[n * BLOCK..(n + 1) * BLOCK] == content(n, 199)), "through the cache");
    }
    places.into_iter().for_each(Place::leave);
    tree::fsck(&disk).expect("a sound volume");
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970"))
}

#[test]
fn times_are_handed_in_before_anybody_looks() {
    let disk = written();
    let places = places(&disk, 2);
    let (a, b) = (&places[0], &places[1]);
    let stat = |place: &Place| place.host.stat_kept(place.node).expect("stat");
    for round in 0..4 {
        share(&places);
        let begun = now();
        std::thread::sleep(Duration::from_millis(2));
        let (writer, looker) = if round % 2 == 0 { (a, b) } else { (b, a) };
        writer.write(round, 7).expect("write");
        let (here, there) = (stat(writer), stat(looker));
        let seen = [here.mtime, here.ctime, there.mtime, there.ctime];
        assert!(seen.iter().all(|time| *time > begun), "round {round}: {seen:?}, written after {begun:?}");
        assert!(stat(writer).mtime >= there.mtime);
    }
    // Whoever sets a time afterwards has the last word.
    share(&places);
    a.write(1, 8).expect("write");
    let old = Timestamp { seconds: 1000, nanos: 0 };
    let set = SetAttr { mtime: Some(SetTime::At(old)), ..SetAttr::default() };
    b.host.set_kept(b.node, set).expect("utimes");
    assert_eq!([stat(a).mtime, stat(b).mtime], [old, old]);
    share(&places);
    b.write(1, 9).expect("write");
    b.host.set_kept(b.node, set).expect("utimes");
    assert_eq!([stat(b).mtime, stat(a).mtime], [old, old]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!([stat(b).mtime, stat(a).mtime], [old, old]);
    // Who leaves hands in as well.
    share(&places);
    let begun = now();
    std::thread::sleep(Duration::from_millis(2));
    a.write(2, 9).expect("write");
    let mut places = places.into_iter();
    places.next().expect("a").leave();
    let b = places.next().expect("b");
    assert!(b.host.stat_kept(b.node).expect("stat").mtime > begun);
    b.leave();
    tree::fsck(&disk).expect("a sound volume");
}

/// Whoever calls fsync, under whichever lock, has made durable what any host has written directly.
#[test]
fn fsync_covers_direct_writes_of_other_hosts() {
    let disk = written();
    let places = places(&disk, 3);
    let (a, b, c) = (&places[0], &places[1], &places[2]);
    let history = disk.record();
    let shows = |block: usize, wanted: u64, who: &str| {
        let cut = history.crash_at(&disk.events(), disk.event_count(), Unflushed::Lost);
        let found = Image::open(&cut).and_then(|image| image.walk()).expect("readable");
        let bytes = &found.data[FILE][block * BLOCK..(block + 1) * BLOCK];
        assert!(bytes == content(block, wanted), "{who}: a direct write is lost");
    };
    for round in 1..4 {
        // Nothing of their own is to be made durable: they only read.
        for version in 0..6 {
            a.write(0, version).expect("write");
            assert!(b.read(0).expect("read") == content(0, version));
        }
        a.write(5, round).expect("write");
        let words = b.words();
        b.host.fsync_kept(b.node, b.direct).expect("fsync");
        assert!(b.words() <= words + 1, "it need not ask for anything");
        shows(5, round, "fsync beside the writer");
        a.write(6, round).expect("write");
        let all = c.host.read_kept(c.node, c.cached, (7 * BLOCK) as u32).expect("read");
        assert!(all[6 * BLOCK..] == content(6, round));
        c.host.fsync_kept(c.node, c.cached).expect("fsync");
        shows(6, round, "fsync after the writer");
    }
    places.into_iter().for_each(Place::leave);
    tree::fsck(&disk).expect("a sound volume");
}

/// What direct writes of several hosts are not enough for is done all the same: holes, edges, growth, set-id bits.
#[test]
fn what_needs_more_is_done_alone() {
    let disk = written();
    let places = places(&disk, 2);
    share(&places);
    let mut all: Vec<u8> = (0..BLOCKS).flat_map(|block| content(block, 0)).collect();
    all[..BLOCK].copy_from_slice(&content(0, 5));
    let hole = (BLOCK * (BLOCKS + 40)) as u64;
    places[0].host.fallocate(FILE, (hole, 8 * BLOCK as u64), 0).expect("preallocate");
    all.resize(hole as usize + 8 * BLOCK, 0);
    for round in 0..40usize {
        let place = &places[round % 2];
        let (at, length) = match round % 5 {
            0 => (round * BLOCK + 512, 512),
            1 => (hole as usize + round % 8 * BLOCK, BLOCK),
            2 => ((BLOCKS + round) * BLOCK, BLOCK),
            3 => (all.len(), BLOCK),
            _ => (round * BLOCK, 2 * BLOCK),
        };
        let data = vec![round as u8 + 1; length];
        place.host.write_direct_kept(place.node, place.direct, at as u64, &data).expect("write");
        all.resize(all.len().max(at + length), 0);
        all[at..at + length].copy_from_slice(&data);
        let other = &places[(round + 1) % 2];
        let seen = other.host.read_direct_kept(other.node, other.direct, 0, 1 << 20).expect("read");
        assert!(seen == all, "round {round}: at {:?}", seen.iter().zip(&all).position(|(a, b)| a != b));
    }
    share(&places);
    places[1].host.chmod(FILE, 0o6755).expect("chmod");
    places[0].write(3, 1).expect("write");
    places[1].write(4, 1).expect("write");
    share(&places);
    assert_eq!(places[0].host.stat(FILE).expect("stat").mode & 0o7777, 0o6755, "root may keep them");
    places.into_iter().for_each(Place::leave);
    tree::fsck(&disk).expect("a sound volume");
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
