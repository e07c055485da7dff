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

fn wait_for(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT_MAX;
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The journal of a slot: first block and length; and the block of its inode.
fn slot_of(disk: &Arc<SimDisk>, slot: usize) -> (u64, u64, BlockNo) {
    let (superblock, _) = superblock::load(&**disk).expect("superblock");
    let slot = volume_block::load(&**disk, &superblock).expect("volume block").slots[slot];
    (slot.journal_start.byte(), slot.journal_blocks * 4096, BlockNo(slot.inode.0))
}

/// A host dies that has a file open which has lost its name. The list of those cannot be read for a while by
/// the one that takes over.
#[test]
fn what_a_dead_host_left_to_free_is_read_until_that_works() {
    let disk = volume(128, 3);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    a.create("/f").expect("create");
    a.write("/f", 0, &vec![7; 16 << 20], How::Buffered).expect("write");
    a.fsync("/f").expect("fsync");
    let kept = a.keep("/f").expect("lookup");
    a.unlink("/f").expect("unlink");
    a.fsync("/").expect("fsync");
    let (_, _, inode) = slot_of(&disk, 0);
    let failed = Arc::<AtomicU64>::default();
    let count = failed.clone();
    // Behind the replay, which reads this block too: what is read then is looked at with the items.
    disk.fail_when(move |op, offset, len| {
        let hit = op == "read" && (offset..offset + len as u64).contains(&inode.byte());
        hit && count.fetch_add(1, Ordering::Relaxed) < 3
    });
    let before = b.statfs().expect("statfs").blocks_free;
    let _ = kept;
    a.crash();
    wait_for("what the dead host had open is freed", || {
        b.statfs().expect("statfs").blocks_free >= before + (15 << 20) / 4096
    });
    assert!(failed.load(Ordering::Relaxed) >= 3, "nothing was tested");
    disk.heal();
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The journal of the dead cannot be read by the lowest host that lives, while it beats: another one takes
/// over.
#[test]
fn who_cannot_read_the_journal_of_the_dead_leaves_them_to_another() {
    let disk = volume(128, 4);
    let [a, b, c] = ["a", "b", "c"].map(|name| Host::mount(&disk, name).expect("mount"));
    c.create("/f").expect("create");
    c.fsync("/f").expect("fsync");
    c.chmod("/f", 0o600).expect("chmod");
    let (start, length, _) = slot_of(&disk, 2);
    a.port.refuse_reads(start..start + length);
    c.crash();
    let begun = Instant::now();
    b.chmod("/f", 0o640).expect("the lock of a dead host is free again");
    let waited = begun.elapsed();
    assert!(waited >= Timing::TEST.lease, "a did not even try: {waited:?}");
    assert_eq!(a.stat("/f").expect("stat").perm(), 0o640);
    a.create("/g").expect("it goes on");
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
