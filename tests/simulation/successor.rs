//! What can go wrong on the way of the host that takes over, or waits for that.

use crate::common::port::{Port, Weather};
use crate::common::simdisk::SimDisk;
use crate::deaths::{stubborn, until_asked};
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::BlockNo;
use shoal::cluster::Timing;
use shoal::format::cluster::heartbeat::Replaying;
use shoal::format::{superblock, volume as volume_block};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const WAIT_MAX: Duration = Duration::from_secs(40);

/// The journal of a slot: first block and length; and the block of its inode.
fn slot_of(disk: &Arc<SimDisk>, slot: usize) -> (u64, u64, BlockNo) {
    let (superblock, _) = superblock::load(&**disk).expect("superblock");
    let slot = volume_block::load(&**disk, &superblock).expect("volume block").slots[slot];
    (slot.journal_start.byte(), slot.journal_blocks * 4096, BlockNo(slot.inode.0))
}

/// A host dies that has a file open which has lost its name. The list of those cannot be read at first by the
/// one that takes over: the dead host's locks are not free before it was.
#[test]
fn what_a_dead_host_left_to_free_is_read_until_that_works() {
    let disk = volume(128, 3);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    for name in ["/f", "/g"] {
        a.create(name).expect("create");
        a.write(name, 0, &vec![7; 1 << 20], How::Buffered).expect("write");
    }
    a.open_kept(a.keep("/f").expect("lookup"), How::Buffered).expect("open");
    a.unlink("/f").expect("unlink");
    a.fsync("/g").expect("fsync");
    let (_, _, inode) = slot_of(&disk, 0);
    let failed = Arc::<AtomicU64>::default();
    let count = failed.clone();
    disk.fail_when(move |op, offset, len| {
        let hit = op == "read" && (offset..offset + len as u64).contains(&inode.byte());
        // The replay has read it; now it is read for what it holds.
        hit && matches!(count.fetch_add(1, Ordering::Relaxed), 1)
    });
    a.crash();
    let begun = Instant::now();
    b.chmod("/g", 0o640).expect("the lock of a dead host is free again");
    let waited = begun.elapsed();
    assert!(failed.load(Ordering::Relaxed) > 2, "nothing was tested, or it was not read again");
    assert!(waited >= Timing::TEST.lease, "it was given up at once: {waited:?}");
    disk.heal();
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The journal of the dead cannot be read by a host that lives and beats: another one takes over.
#[test]
fn who_cannot_read_the_journal_of_the_dead_leaves_them_to_another() {
    let disk = volume(128, 4);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    let (start, length, _) = slot_of(&disk, 2);
    let c = Host::mount(&disk, "c").expect("mount");
    c.create("/f").expect("create");
    c.fsync("/f").expect("fsync");
    c.chmod("/f", 0o600).expect("chmod");
    // Neither can read it; whoever finds that out first never will.
    for host in [&a, &b] {
        host.port.refuse_reads(start..start + length);
    }
    c.crash();
    let begun = Instant::now();
    let first = loop {
        match [&a, &b].map(|host| host.port.refused()) {
            [0, 0] => assert!(begun.elapsed() < WAIT_MAX, "nobody takes over"),
            [0, _] => break "b",
            _ => break "a",
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let other = if first == "a" { &b } else { &a };
    other.port.refuse_reads(0..0);
    other.chmod("/f", 0o640).expect("the lock of a dead host is free again");
    for host in [&a, &b] {
        assert_eq!(host.stat("/f").expect("stat").mode, 0o640, "{first} was first");
    }
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// A mount that waits for another host's word when its device goes says so and ends.
#[test]
fn a_mount_whose_device_dies_fails() {
    let disk = volume(64, 3);
    let (a, stubborn, asked) = stubborn(&disk, "a");
    a.create("/f").expect("create");
    stubborn.store(true, Ordering::Release);
    let (port, (mounted, answer)) = (Port::new(&disk), std::sync::mpsc::channel());
    let own = port.clone();
    std::thread::spawn(move || mounted.send(Host::mount_by(own, "b")));
    until_asked(&asked);
    port.cut();
    let refused = answer.recv_timeout(WAIT_MAX).expect("the mount waits for ever");
    let why = refused.err().expect("it has no device").to_string();
    assert!(why.contains("the device does not answer"), "{why}");
    stubborn.store(false, Ordering::Release);
    a.create("/g").expect("the other one goes on");
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// It is shown by `shoal status` on any host, which has nothing but the disk to go by.
#[test]
fn how_far_it_is_with_a_journal_stands_in_the_heartbeat() {
    let disk = volume(128, 3);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    (0..100).for_each(|n| a.create(&format!("/f{n}")).expect("create"));
    a.fsync("/f0").expect("fsync");
    let (superblock, _) = superblock::load(&*disk).expect("superblock");
    let (format_id, geometry) = (superblock.format_id, superblock.geometry);
    let rows = shoal::cluster::Disk { device: disk.clone(), format_id, geometry };
    let told = || {
        let row = rows.read_heartbeats().expect("the heartbeats");
        row[1].as_ref().and_then(|beat| beat.replaying)
    };
    assert_eq!(told(), None);
    // What it reads in place takes long enough for some beats.
    b.port.set_weather(Weather { delay_us_max: 250_000, ..Weather::default() }, 5);
    a.crash();
    let (begun, mut seen) = (Instant::now(), Vec::new());
    while seen.is_empty() || told().is_some() {
        assert!(begun.elapsed() < WAIT_MAX, "{seen:?}");
        seen.extend(told().filter(|now| seen.last() != Some(now)));
        std::thread::sleep(Duration::from_millis(5));
    }
    b.port.set_weather(Weather::default(), 5);
    let of = |r: &Replaying| (r.slot, r.since_ms, r.total);
    let known: Vec<_> = seen.iter().filter(|r| r.total > 0).collect();
    assert!(known.iter().any(|r| r.done > 0 && r.done < r.total), "{seen:?}");
    assert!(known.iter().all(|r| of(r) == of(known[0]) && r.slot.0 == 0 && r.total >= 100), "{seen:?}");
    assert!(known.is_sorted_by_key(|r| r.done), "{seen:?}");
    b.chmod("/f1", 0o640).expect("the lock of a dead host is free again");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
