//! A volume that four hosts fill to the last block at once, again and again. A write that was accepted
//! reaches the disk, no block serves two, and what is deleted is free again to the block.

use crate::common::simdisk::SimDisk;
use crate::host::{Host, How};
use crate::model::bytes;
use crate::story::volume;
use crate::tree;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use shoal::base::Error;
use shoal::format::layout::CHUNK_BLOCKS;
use shoal::format::superblock;
use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::time::Duration;

const HOSTS: usize = 4;
const MIB: u64 = 128;
const PIECE: usize = 100_000;

/// Files by name: number of the pattern, length.
type Files = BTreeMap<String, (usize, usize)>;

struct Fill {
    hosts: Vec<Host>,
    files: Mutex<Files>,
    faults: Mutex<Vec<String>>,
    barrier: Barrier,
}

impl Fill {
    fn mount(disk: &Arc<SimDisk>) -> Fill {
        let hosts = (0..HOSTS).map(|n| Host::mount(disk, &format!("host{n}")).expect("mount")).collect();
        Fill { hosts, files: Mutex::default(), faults: Mutex::default(), barrier: Barrier::new(HOSTS) }
    }

    fn fault(&self, what: String) {
        self.faults.lock().push(what);
    }

    /// Write files until there is no space.
    fn fill(&self, me: usize, number: usize, random: &mut StdRng) -> Files {
        let (host, mut own) = (&self.hosts[me], Files::new());
        for n in number.. {
            let name = format!("/d{me}/f{n}");
            match host.create(&name) {
                Ok(()) => {}
                Err(Error::NoSpace) => return own,
                Err(e) => self.fault(format!("create {name}: {e}")),
            }
            let most = [3000, 100_000, 3_000_000][random.random_range(0..3)];
            let wanted = random.random_range(1..most);
            let mut length = 0;
            while length < wanted {
                let piece = PIECE.min(wanted - length);
                match host.write(&name, length as u64, &bytes(n, length as u64, piece), How::Buffered) {
                    Ok(()) => length += piece,
                    Err(Error::NoSpace) => break,
                    Err(e) => {
                        self.fault(format!("write {name}: {e}"));
                        break;
                    }
                }
            }
            own.insert(name, (n, length));
            if length < wanted || !self.faults.lock().is_empty() {
                return own;
            }
        }
        own
    }

    fn check(&self, host: usize, files: &Files) {
        for (name, (n, length)) in files {
            match self.hosts[host].read(name) {
                Ok(data) if data == bytes(*n, 0, *length) => {}
                Ok(data) => {
                    let right = bytes(*n, 0, *length);
                    let first = data.iter().zip(&right).position(|(a, b)| a != b);
                    let found = data.len();
                    self.fault(format!("{name}: {found} bytes of {length}, first difference {first:?}"));
                }
                Err(e) => self.fault(format!("read {name}: {e}")),
            }
        }
    }

    fn round(&self, me: usize, round: usize) {
        let mut random = StdRng::seed_from_u64((round * HOSTS + me) as u64);
        let number = (round * HOSTS + me) * 100_000;
        let made = self.fill(me, number, &mut random);
        for name in made.keys() {
            if let Err(e) = self.hosts[me].fsync(name) {
                self.fault(format!("what was written does not reach the disk: {name}: {e}"));
            }
        }
        self.files.lock().extend(made);
        self.barrier.wait();
        // Others' files, so that their locks move.
        let all = self.files.lock().clone();
        let part: Files = all
            .into_iter()
            .enumerate()
            .filter(|(n, _)| n % HOSTS == (me + round) % HOSTS)
            .map(|(_, file)| file)
            .collect();
        self.check(me, &part);
        self.barrier.wait();
        let mut names: Vec<&String> = part.keys().collect();
        names.shuffle(&mut random);
        for name in &names[..names.len() * 2 / 3] {
            match self.hosts[me].unlink(name) {
                Ok(()) => drop(self.files.lock().remove(*name)),
                Err(e) => self.fault(format!("unlink {name}: {e}")),
            }
        }
        self.barrier.wait();
    }

    fn all(&self, work: impl Fn(usize) + Sync) {
        std::thread::scope(|scope| {
            for me in 0..HOSTS {
                let work = &work;
                scope.spawn(move || work(me));
            }
        });
        let faults = self.faults.lock();
        assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(8)]);
    }

    fn stop(self) -> Files {
        self.hosts.into_iter().for_each(|host| host.stop().expect("a clean leave"));
        self.files.into_inner()
    }
}

/// Free blocks as a host sees them that is alone.
fn free_blocks(disk: &Arc<SimDisk>) -> u64 {
    let host = Host::mount(disk, "counts").expect("mount");
    let free = host.statfs().expect("statfs").blocks_free;
    host.stop().expect("a clean leave");
    free
}

fn used_by(files: &Files) -> u64 {
    files.values().map(|(_, length)| 1 + if *length > 3500 { length.div_ceil(4096) as u64 } else { 0 }).sum()
}

/// What small files have had data may have afterwards, on this host and on others.
fn small_files_then_a_large_one(hosts: usize) {
    let disk = volume(64, 2);
    let hosts: Vec<Host> =
        (0..hosts).map(|n| Host::mount(&disk, &format!("host{n}")).expect("mount")).collect();
    let (first, last) = (&hosts[0], hosts.last().expect("one at least"));
    let mut names = Vec::new();
    for n in 0.. {
        let name = format!("/f{n}");
        match first.create(&name).and_then(|()| first.write(&name, 0, &[3; 500], How::Buffered)) {
            Ok(()) => names.push(name),
            Err(Error::NoSpace) => break,
            Err(e) => panic!("{name}: {e}"),
        }
    }
    println!("{} small files", names.len());
    assert!(names.len() > 8000);
    let made = first.stat(&format!("/f{}", names.len())).is_ok();
    names.extend(made.then(|| format!("/f{}", names.len())));
    names.iter().for_each(|name| first.unlink(name).expect("unlink"));
    last.create("/large").expect("an inode");
    // A chunk of each group stays with metadata; of this small volume's that is half.
    let length = 10 << 20;
    for at in (0..length).step_by(PIECE) {
        let written = last.write("/large", at as u64, &bytes(0, at as u64, PIECE), How::Buffered);
        written.unwrap_or_else(|e| panic!("byte {at} of {length}: {e}"));
    }
    last.fsync("/large").expect("what was written reaches the disk");
    assert_eq!(first.read("/large").expect("read").len(), (length as usize).next_multiple_of(PIECE));
    hosts.into_iter().for_each(|host| host.stop().expect("a clean leave"));
    tree::fsck(&disk).expect("a sound volume");
}

#[test]
fn metadata_chunks_become_data_again() {
    small_files_then_a_large_one(1);
}

#[test]
fn metadata_chunks_become_data_again_beside_another_host() {
    small_files_then_a_large_one(2);
}

#[test]
fn four_hosts_fill_the_volume() {
    let rounds = std::env::var("SHOAL_ROUNDS").map_or(3, |n| n.parse().expect("a number of rounds"));
    let disk = volume(MIB, HOSTS as u16);
    let host = Host::mount(&disk, "first").expect("mount");
    (0..HOSTS).for_each(|n| host.mkdir(&format!("/d{n}")).expect("mkdir"));
    host.stop().expect("a clean leave");
    let free = free_blocks(&disk);

    let fill = Fill::mount(&disk);
    (0..rounds).for_each(|round| fill.all(|me| fill.round(me, round)));
    // Full once more, and left so.
    fill.all(|me| {
        let number = (rounds * HOSTS + me) * 100_000;
        let made = fill.fill(me, number, &mut StdRng::seed_from_u64(me as u64));
        fill.files.lock().extend(made);
    });
    let files = fill.stop();
    let left = free_blocks(&disk);
    println!(
        "{} files of {} blocks; {left} of {free} blocks are left when full",
        files.len(),
        used_by(&files)
    );
    // Groups of a small volume have four chunks; one of each is for metadata.
    let (superblock, _) = superblock::load(&*disk).expect("a superblock");
    let metadata = u64::from(superblock.geometry.ag_count) * CHUNK_BLOCKS;
    assert!(left.saturating_sub(metadata) < free / 50, "full with {left} of {free} blocks left");
    tree::fsck(&disk).expect("a sound volume");

    let fill = Fill::mount(&disk);
    fill.all(|me| {
        let part: Files =
            files.clone().into_iter().enumerate().filter(|(n, _)| n % HOSTS == me).map(|(_, f)| f).collect();
        fill.check(me, &part);
        for name in part.keys() {
            if let Err(e) = fill.hosts[me].unlink(name) {
                fill.fault(format!("unlink {name} of a full volume: {e}"));
            }
        }
    });
    fill.stop();
    tree::fsck(&disk).expect("a sound volume");
    assert_eq!(free_blocks(&disk), free, "blocks free after everything was deleted");
}

/// Write a file until there is no space; its size.
fn fill_up(host: &Host, name: &str) -> u64 {
    host.create(name).expect("create");
    let mut at = 0;
    loop {
        match host.write(name, at, &vec![5; PIECE], How::Buffered) {
            Ok(()) => at += PIECE as u64,
            Err(Error::NoSpace) => return at,
            Err(e) => panic!("byte {at} of {name}: {e}"),
        }
    }
}

/// Dirty data over unwritten blocks holds metadata blocks for their conversion. When its range is zeroed
/// there is nothing to convert: what was promised in the group must not keep another host waiting.
#[test]
fn a_zeroed_range_gives_back_what_its_data_held() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let range = (0, 1 << 20);
    a.create("/f").expect("create");
    a.fallocate("/f", range, 0).expect("fallocate");
    a.write("/f", 0, &[1; 65536], How::Buffered).expect("write");
    a.fallocate("/f", range, libc::FALLOC_FL_ZERO_RANGE).expect("zero");
    let size = fill_up(&b, "/g");
    println!("{size} bytes fit beside it");
    assert!(size > 4 << 20, "{size}");
    assert_eq!(a.read("/f").expect("read"), vec![0; 1 << 20]);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// What frees more than it takes is done on a volume that has no block left for it: a file is put in the place
/// of another, and names go.
#[test]
fn names_are_replaced_and_removed_on_a_full_volume() {
    let disk = volume(64, 1);
    let host = Host::mount(&disk, "host0").expect("mount");
    host.mkdir("/dir").expect("mkdir");
    host.create("/open").expect("create");
    let open = host.keep("/open").expect("lookup");
    let fh = host.open_kept(open, How::Buffered).expect("open");
    fill_up(&host, "/data");
    let full = (0..).find(|n| match host.create(&format!("/{n}")) {
        Ok(()) => false,
        Err(Error::NoSpace) => true,
        Err(e) => panic!("create: {e}"),
    });
    let made = full.expect("a full volume");
    assert!(made > 20, "{made} files");
    host.rename("/0", "/1", false).expect("rename on a full volume");
    host.unlink("/open").expect("unlink of an open file on a full volume");
    host.rename("/2", "/3", false).expect("rename on a full volume");
    host.rmdir("/dir").expect("rmdir on a full volume");
    host.close_kept(open, fh).expect("close");
    host.forget(open);
    (4..made).for_each(|n| host.unlink(&format!("/{n}")).expect("unlink on a full volume"));
    host.create("/again").expect("create");
    host.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// A host halts while its writers look for space: each of them hears so.
#[test]
fn a_host_that_halts_answers_who_waits_for_space() {
    let disk = volume(64, 2);
    let host = Host::mount(&disk, "host").expect("mount");
    let size = fill_up(&host, "/full");
    host.fsync("/full").expect("fsync");
    let until_it_fails = |offset: u64| {
        let end = loop {
            match host.write("/full", offset, &vec![6; PIECE], How::Buffered) {
                Ok(()) | Err(Error::NoSpace) => {}
                Err(e) => break e,
            }
        };
        assert!(matches!(end, Error::Halted(_)), "{end}");
    };
    std::thread::scope(|scope| {
        // One overwrites, so that there is always something dirty; the others have no space.
        scope.spawn(|| until_it_fails(0));
        for n in 1..4 {
            let far = size + n * (PIECE as u64) * 10;
            let run = &until_it_fails;
            scope.spawn(move || run(far));
        }
        std::thread::sleep(Duration::from_secs(2));
        host.fs.halt("a test");
    });
    host.crash();
}
