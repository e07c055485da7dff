//! Mounts that are told to end before they are complete.

use crate::common::simdisk::SimDisk;
use crate::deaths::{stubborn, until_asked};
use crate::host::{Host, NoKernel};
use crate::story;
use crate::tree;
use shoal::base::Result;
use shoal::cluster::Timing;
use shoal::format::{superblock, volume};
use shoal::fs::{KernelCache, NodeId};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A kernel whose mount somebody has told to end, once that is so.
#[derive(Default)]
struct Told(AtomicBool);

impl KernelCache for Told {
    fn inval_inode(&self, node: NodeId, offset: i64, length: i64) -> io::Result<()> {
        NoKernel.inval_inode(node, offset, length)
    }
    fn abort(&self) -> io::Result<()> {
        NoKernel.abort()
    }
    fn is_unwanted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Mounts, and tells the mount to end once `begun` has come back. The answer: what became of it, and how long after
/// that.
fn end(disk: &Arc<SimDisk>, begun: impl FnOnce()) -> (Result<Host>, Duration) {
    let told = Arc::<Told>::default();
    std::thread::scope(|scope| {
        let mounting = scope.spawn(|| Host::mount_before(disk, "told", told.clone()));
        begun();
        told.0.store(true, Ordering::Release);
        let since = Instant::now();
        (mounting.join().unwrap(), since.elapsed())
    })
}

fn assert_ended((mounted, took): (Result<Host>, Duration), limit: Duration) {
    let why = mounted.err().expect("it was mounted").to_string();
    assert!(why.contains("told to end"), "{why}");
    assert!(took < limit, "it took {took:?}");
}

/// Who is at work in the root gives it up late, or never.
#[test]
fn a_mount_that_waits_for_the_root_ends_when_it_is_told_to() {
    for gives_in in [true, false] {
        let disk = story::volume(64, 3);
        let (a, stubborn, asked) = stubborn(&disk, "a");
        a.create("/f").expect("create");
        stubborn.store(true, Ordering::Release);
        let limit = Timing::TEST.wait() * 2 + Duration::from_secs(5);
        let ended = end(&disk, || {
            until_asked(&asked);
            if gives_in {
                let stubborn = stubborn.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(2));
                    stubborn.store(false, Ordering::Release);
                });
            }
        });
        assert_ended(ended, limit);
        stubborn.store(false, Ordering::Release);
        a.create("/g").expect("create");
        // To the other it has left, or has crashed.
        let b = Host::mount(&disk, "b").expect("mount");
        [b, a].into_iter().for_each(|host| host.stop().expect("a clean leave"));
        tree::fsck(&disk).expect("a sound volume");
    }
}

/// What the journal has of a host that died is replayed by the next mount.
#[test]
fn a_mount_that_replays_ends_when_it_is_told_to() {
    let disk = story::volume(64, 3);
    let a = Host::mount(&disk, "a").expect("mount");
    (0..40).for_each(|n| a.create(&format!("/{n}")).expect("create"));
    a.fsync("/").expect("fsync");
    a.crash();
    let (superblock, _) = superblock::load(&*disk).expect("a superblock");
    let journal = volume::load(&*disk, &superblock).expect("a volume").slots[0];
    let journal = journal.journal_start.byte()..(journal.journal_start.plus(journal.journal_blocks)).byte();
    let cells = superblock.geometry.groups_start().byte();
    let (told, went_on) = (Arc::<Told>::default(), Arc::<AtomicBool>::default());
    let (tell, seen) = (told.clone(), went_on.clone());
    disk.on_request(move |op, offset, _| {
        if op == "read" && journal.contains(&offset) {
            tell.0.store(true, Ordering::Release);
        }
        if op == "write" && offset >= cells && tell.0.load(Ordering::Acquire) {
            seen.store(true, Ordering::Release);
        }
    });
    let mounted = Host::mount_before(&disk, "told", told);
    let why = mounted.err().expect("it was mounted").to_string();
    assert!(why.contains("told to end"), "{why}");
    assert!(!went_on.load(Ordering::Acquire), "it went on");
    disk.on_request(|_, _, _| ());
    let b = Host::mount(&disk, "b").expect("mount");
    (0..40).for_each(|n| assert!(b.stat(&format!("/{n}")).is_ok(), "{n} is lost"));
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
