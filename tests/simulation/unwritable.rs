//! Single blocks that the disk does not take, or does not give back, while it does everything else: they cost
//! what stands in them, and nothing else.

use crate::common::simdisk::SimDisk;
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::{BlockNo, LockName, Mode, SlotId};
use shoal::format::superblock;
use shoal::fs::SetAttr;
use shoal::lock::{DemoteAnswer, DemoteJob, Demoter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// An uncommon number of pages: a write of so many is known for what it is.
const PAGES: u64 = 37;

const WAIT_MAX: Duration = Duration::from_secs(60);

/// A file's content in one byte.
fn bytes(of: u8) -> Vec<u8> {
    vec![of; (PAGES * PAGE) as usize]
}

/// Make a file durable; answers with the byte of the disk where its data begins.
fn place_of(disk: &Arc<SimDisk>, host: &Host, path: &str, content: &[u8]) -> u64 {
    let found = Arc::<AtomicU64>::default();
    let (note, wanted) = (found.clone(), content.len());
    disk.on_request(move |op, offset, length| {
        if op == "write" && length == wanted {
            note.store(offset, Ordering::Release);
        }
    });
    host.create(path).expect("create");
    host.write(path, 0, content, How::Buffered).expect("write");
    host.fsync(path).expect("fsync");
    disk.on_request(|_, _, _| {});
    let place = found.load(Ordering::Acquire);
    assert!(place > 0, "the data has not been seen on its way");
    place
}

/// Does a request touch the block at this byte?
fn touches(block: u64, offset: u64, length: usize) -> bool {
    offset < block + PAGE && offset + length as u64 > block
}

/// One block of a file cannot be written any more, and another host wants the file: that block keeps what it had,
/// everything else is written, the program is told, and the host goes on.
#[test]
fn a_file_that_cannot_be_written_costs_its_host_nothing_else() {
    let disk = volume(128, 2);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    let place = place_of(&disk, &a, "/f", &bytes(1));
    a.create("/g").expect("create");
    let node = a.keep("/f").expect("lookup");
    let handle = a.open_kept(node, How::Buffered).expect("open");
    let bad = place + 5 * PAGE;
    disk.fail_when(move |op, offset, length| op == "write" && touches(bad, offset, length));
    a.write("/g", 0, &[3; 10_000], How::Buffered).expect("write");
    a.write("/f", 0, &bytes(2), How::Buffered).expect("write");

    let mut left = bytes(2);
    left[5 * PAGE as usize..6 * PAGE as usize].fill(1);
    assert!(b.read("/f").expect("read") == left, "all but the bad block");
    assert!(b.read("/g").expect("read") == [3; 10_000], "what was dirty beside it");
    a.create("/h").expect("it goes on");
    a.fsync("/h").expect("it goes on");
    a.flush_kept(node, handle).expect_err("a child of the program ends, and closes what it has inherited");
    a.fsync_kept(node, handle).expect_err("the program is told");
    a.fsync_kept(node, handle).expect("but only once");

    a.close_kept(node, handle).expect("close");
    a.forget(node);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The disk takes nothing of a host for a while, its heartbeats no more than a file that another host wants
/// meanwhile: nothing of the file is given up.
#[test]
fn what_a_disk_does_not_take_for_a_while_is_not_given_up() {
    let disk = volume(128, 2);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    let place = place_of(&disk, &a, "/f", &bytes(1));
    let (superblock, _) = superblock::load(&*disk).expect("superblock");
    let heartbeat = superblock.geometry.heartbeat_cell(SlotId(0));
    a.write("/f", 0, &bytes(2), How::Buffered).expect("write");
    let refused = Arc::<AtomicU64>::default();
    let count = refused.clone();
    disk.fail_when(move |op, offset, length| {
        let data = (place..place + PAGES * PAGE).contains(&offset);
        let fails = op == "write" && (data || touches(heartbeat / PAGE * PAGE, offset, length));
        count.fetch_add(u64::from(fails && data), Ordering::Relaxed);
        fails
    });
    let found = std::thread::scope(|scope| {
        let reader = scope.spawn(|| b.read("/f"));
        let begun = Instant::now();
        while refused.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing is tested");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(500));
        disk.heal();
        reader.join().expect("the reader")
    });
    assert!(found.expect("read") == bytes(2));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// Tells a host of every inode's lock that it may stay as well.
struct Patient(Arc<dyn Demoter>);

impl Demoter for Patient {
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        let may_stay =
            |job: &DemoteJob| DemoteJob { may_stay: matches!(job.name, LockName::Inode(_)), ..*job };
        self.0.demote(&batch.iter().map(may_stay).collect::<Vec<_>>())
    }

    fn granted(&self, name: LockName, mode: Mode) {
        self.0.granted(name, mode);
    }

    fn kept(&self, name: LockName, mode: Mode) {
        self.0.kept(name, mode);
    }
}

/// What a host gives up of its own accord is not worth any loss, however long a block of it cannot be written.
#[test]
fn nothing_is_lost_by_a_lock_that_may_stay() {
    let disk = volume(128, 2);
    let a = Host::mount_wrapped(&disk, "a", Duration::from_secs(1), &|demoter| Arc::new(Patient(demoter)));
    let [a, b] = [a, Host::mount(&disk, "b")].map(|host| host.expect("mount"));
    let place = place_of(&disk, &a, "/f", &bytes(1));
    a.write("/f", 0, &bytes(2), How::Buffered).expect("write");
    let refused = Arc::<AtomicU64>::default();
    let count = refused.clone();
    disk.fail_when(move |op, offset, _| {
        let fails = op == "write" && (place..place + PAGES * PAGE).contains(&offset);
        count.fetch_add(u64::from(fails), Ordering::Relaxed);
        fails
    });
    let found = std::thread::scope(|scope| {
        let reader = scope.spawn(|| b.read("/f"));
        // Leases are renewed meanwhile, so it is the file's error.
        std::thread::sleep(Duration::from_secs(4));
        assert!(refused.load(Ordering::Relaxed) > 0, "nothing is tested");
        disk.heal();
        reader.join().expect("the reader")
    });
    assert!(found.expect("read") == bytes(2));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The free blocks that come next cannot be written: the program whose data was to go there is told, and no other
/// one: the next attempt, of whatever file, takes others.
#[test]
fn free_blocks_that_cannot_be_written_are_not_chosen_again() {
    let disk = volume(128, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let next = place_of(&disk, &a, "/first", &bytes(1)) + PAGES * PAGE;
    disk.fail_when(move |op, offset, length| op == "write" && touches(next, offset, length));
    a.create("/f").expect("create");
    let node = a.keep("/f").expect("lookup");
    let handle = a.open_kept(node, How::Buffered).expect("open");
    a.write("/f", 0, &bytes(2), How::Buffered).expect("write");
    a.fsync_kept(node, handle).expect_err("the blocks that come next are tried");
    a.create("/g").expect("create");
    a.write("/g", 0, &bytes(3), How::Buffered).expect("write");
    a.fsync("/g").expect("another file has other blocks");
    a.fsync_kept(node, handle).expect("so does this one the next time");
    a.close_kept(node, handle).expect("close");
    a.forget(node);
    a.stop().expect("a clean leave");
    let a = Host::mount(&disk, "a").expect("mount again");
    for (path, content) in [("/first", 1), ("/f", 2), ("/g", 3)] {
        assert!(a.read(path).expect("read") == bytes(content), "{path}");
    }
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// Nobody can write a block of which a dead host's journal has an image. What it held stays locked, and no other host is
/// the worse for it; when the block can be written, everything goes on.
#[test]
fn a_block_of_the_dead_that_nobody_can_write_costs_no_other_host() {
    let disk = volume(128, 3);
    let [b, c, a] = ["b", "c", "a"].map(|name| Host::mount(&disk, name).expect("mount"));
    let hosts = [(&b, "/b"), (&c, "/c")];
    for (host, dir) in hosts {
        host.mkdir(dir).expect("mkdir");
        host.create(&format!("{dir}/0")).expect("create");
    }
    a.create("/f").expect("create");
    a.fsync("/f").expect("fsync");
    let inode = BlockNo(a.stat("/f").expect("stat").ino.0).byte();
    // None of them waits for anything that the dead host will have had.
    for (host, dir) in hosts {
        host.create(&format!("{dir}/1")).expect("create");
    }
    let refused = Arc::<AtomicU64>::default();
    let count = refused.clone();
    disk.fail_when(move |op, offset, length| {
        let fails = op == "write" && touches(inode, offset, length);
        count.fetch_add(u64::from(fails), Ordering::Relaxed);
        fails
    });
    let node = a.keep("/f").expect("lookup");
    a.set_kept(node, SetAttr { perm: Some(0o600), ..SetAttr::default() }).expect("chmod");
    a.fsync_kept(node, 0).expect("it is in the log");
    let begun = Instant::now();
    while a.stat_kept(node).is_ok() {
        assert!(begun.elapsed() < WAIT_MAX, "it does not try to write it in place: nothing is tested");
        std::thread::sleep(Duration::from_millis(20));
    }
    let own = refused.load(Ordering::Relaxed);
    a.crash();
    while refused.load(Ordering::Relaxed) < own + 6 {
        assert!(begun.elapsed() < WAIT_MAX, "those that live try no more, or never did");
        std::thread::sleep(Duration::from_millis(20));
    }
    for (host, dir) in hosts {
        host.create(&format!("{dir}/2")).expect("a host that lives goes on");
        host.fsync(&format!("{dir}/2")).expect("a host that lives goes on");
    }
    disk.heal();
    for (host, _) in hosts {
        assert_eq!(host.stat("/f").expect("stat").mode & 0o777, 0o600, "what was in the dead host's log");
    }
    b.stop().expect("a clean leave");
    c.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The power fails, and leaves a block of which the journal has an image unreadable until it is written, and the block
/// where the journal would go on, too. The next mount heals the one and does not need the other.
#[test]
fn blocks_that_a_power_failure_left_unreadable_keep_nobody_from_mounting() {
    let disk = volume(128, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    a.create("/f").expect("create");
    a.chmod("/f", 0o600).expect("chmod");
    a.fsync("/f").expect("fsync");
    let inode = BlockNo(a.stat("/f").expect("stat").ino.0).byte();
    a.crash();
    let mut written = false;
    disk.fail_when(move |op, offset, length| {
        let hit = touches(inode, offset, length);
        written |= hit && op == "write";
        hit && op == "read" && !written
    });
    let b = Host::mount(&disk, "b").expect("mount");
    assert_eq!(b.stat("/f").expect("stat").mode & 0o777, 0o600);
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The flush behind the write of a ledger fails, and no other. What it has lost of what was written through the same
/// device, a later flush does not tell: nothing is acknowledged any more.
#[test]
fn a_flush_that_failed_for_the_cluster_counts_for_the_data_too() {
    let disk = volume(128, 3);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    a.create("/g").expect("create");
    b.create("/f").expect("create");
    b.stop().expect("a clean leave");
    let node = a.keep("/g").expect("lookup");
    a.write("/g", 0, &bytes(1), How::Buffered).expect("write");
    let (superblock, _) = superblock::load(&*disk).expect("superblock");
    let geometry = superblock.geometry;
    let ledgers = geometry.ledger(SlotId(0), 0, 0).byte()..geometry.ledger(SlotId(2), 0, 1).byte() + PAGE;
    let failed = Arc::<AtomicU64>::default();
    let (count, mut armed) = (failed.clone(), false);
    disk.fail_when(move |op, offset, _| {
        armed |= op == "write" && ledgers.contains(&offset);
        let fails = op == "flush" && armed && count.load(Ordering::Relaxed) == 0;
        count.fetch_add(u64::from(fails), Ordering::Relaxed);
        fails
    });
    // Its group is nobody's: this host takes it.
    let _ = a.chmod("/f", 0o600);
    assert_eq!(failed.load(Ordering::Relaxed), 1, "nothing was tested");
    a.fsync_kept(node, 0).expect_err("what was written before may be lost");
    a.create("/h").expect_err("the host has halted");
    a.crash();
    disk.heal();
    tree::fsck(&disk).expect("a sound volume");
}
