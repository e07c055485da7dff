//! What can go wrong on the way of the host that takes over, or waits for that.

use crate::common::port::Port;
use crate::common::simdisk::SimDisk;
use crate::deaths::{stubborn, until_asked};
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::BlockNo;
use shoal::cluster::Timing;
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
