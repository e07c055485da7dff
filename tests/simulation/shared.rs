//! Direct reads and writes of several hosts to one file at the same time.

mod fence;
mod random;

use crate::common::simdisk::{SimDisk, Unflushed};
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree::{self, Image};
use shoal::fs::{NodeId, SetAttr, SetTime};
use shoal::inode::Timestamp;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const BLOCK: usize = 4096;
const BLOCKS: usize = 48;
const FILE: &str = "/f";

/// Version `version` of block `block`: every eight bytes say so.
fn content(block: usize, version: u64) -> Vec<u8> {
    (((block as u64) << 32) | version).to_le_bytes().repeat(BLOCK / 8)
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

    fn words(&self) -> u64 {
        words_of(&self.host)
    }
}

/// Words of a host to others so far.
fn words_of(host: &Host) -> u64 {
    let report = host.get_xattr("/", "trusted.shoal.io").expect("on the root");
    let report = String::from_utf8(report).expect("text");
    let count = report.split(' ').find_map(|pair| pair.strip_prefix("inbox_writes="));
    count.expect("counted").parse().expect("a number")
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

/// Who only reads shares with a direct writer, but takes nothing from those who read through their caches.
#[test]
fn direct_readers_go_beside_cached_ones() {
    let disk = written();
    let hosts: Vec<_> = (0..3).map(|n| Host::mount(&disk, &format!("host{n}")).expect("mount")).collect();
    let nodes: Vec<_> = hosts.iter().map(|host| host.keep(FILE).expect("lookup")).collect();
    let writer = hosts[0].open_kept(nodes[0], How::Direct).expect("open");
    let readers = [1, 2].map(|n| hosts[n].open_to_read_kept(nodes[n]).expect("open"));
    let words = || hosts.iter().map(words_of).sum::<u64>();
    let settled = || {
        std::thread::sleep(Duration::from_millis(200));
        words()
    };
    let direct = |version| {
        let seen = hosts[1].read_direct_kept(nodes[1], readers[0], 0, BLOCK as u32).expect("read");
        assert!(seen == content(0, version));
    };
    let write = |version| {
        let bytes = content(0, version);
        hosts[0].write_direct_kept(nodes[0], writer, 0, &bytes).expect("write");
    };
    for version in 0..8 {
        write(version);
        direct(version);
    }
    let before = settled();
    (8..100).for_each(|version| {
        write(version);
        direct(version);
    });
    let shared = words() - before;
    let cached = || {
        let seen = hosts[2].read_kept(nodes[2], readers[1], BLOCK as u32).expect("read");
        assert!(seen == content(0, 99));
    };
    (0..5).for_each(|_| {
        cached();
        direct(99);
    });
    let before = settled();
    (0..50).for_each(|_| {
        cached();
        direct(99);
    });
    let beside = words() - before;
    assert!(shared <= 4 && beside <= 4, "{shared} words beside a writer, {beside} beside a reader");
    hosts[0].close_kept(nodes[0], writer).expect("close");
    (0..2).for_each(|n| hosts[n + 1].close_kept(nodes[n + 1], readers[n]).expect("close"));
    hosts.iter().zip(nodes).for_each(|(host, node)| host.forget(node));
    hosts.into_iter().for_each(|host| host.stop().expect("a clean leave"));
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
        // Turns that are over at once are not repeated soon.
        std::thread::sleep(Duration::from_millis(20));
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
