//! Inode numbers that are used again while a kernel still remembers who had them before.

use crate::host::Host;
use crate::story::volume;
use crate::tree;
use shoal::base::InodeNo;
use shoal::fs::{KernelCache, NodeId};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A demotion must take less, whatever the kernel has forgotten.
const QUICK: Duration = Duration::from_millis(1500);

/// A kernel that lets all inodes go at some time, but for those that it cannot reach by their numbers any
/// more because these belong to others by then.
#[derive(Default)]
struct Forgetful(AtomicBool);

impl KernelCache for Forgetful {
    fn inval_inode(&self, _: NodeId, _: i64, _: i64) -> io::Result<()> {
        if self.0.load(Ordering::Acquire) { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }
    fn inval_entry(&self, _: NodeId, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn inc_epoch(&self) -> io::Result<()> {
        Ok(())
    }
    fn supports_epoch(&self) -> bool {
        true
    }
    fn abort(&self) -> io::Result<()> {
        Ok(())
    }
}

const FILES: usize = 600;

fn names(round: usize) -> Vec<String> {
    (0..FILES).map(|n| format!("/{round}-{n}")).collect()
}

/// Files of a round, made on `host`, with their numbers.
fn make(host: &Host, round: usize) -> Vec<(String, InodeNo)> {
    let with_number = |name: String| {
        host.create(&name).expect("create");
        let ino = host.stat(&name).expect("stat").ino;
        (name, ino)
    };
    names(round).into_iter().map(with_number).collect()
}

/// A name that the kernel has cached keeps an inode in it whose number the other host has long given to
/// another file. The kernel looks that one up, and forgets it again. What it still counts of the first is no
/// reply on its way: nothing is to be waited for when the lock is wanted elsewhere.
#[test]
fn a_number_used_again_does_not_hold_up_its_lock() {
    let disk = volume(64, 2);
    let kernel = Arc::new(Forgetful::default());
    let a = Host::mount_before(&disk, "a", kernel.clone()).expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let first = make(&b, 0);
    let kept: Vec<NodeId> = first.iter().map(|(name, _)| a.keep(name).expect("lookup")).collect();
    first.iter().for_each(|(name, _)| b.unlink(name).expect("unlink"));
    let again = (1..20).find_map(|round| {
        std::thread::sleep(Duration::from_millis(500));
        make(&b, round).into_iter().find(|(_, ino)| first.iter().any(|(_, i)| i == ino))
    });
    let (name, ino) = again.expect("no number was used again: nothing was tested");
    let second = a.keep(&name).expect("lookup");
    assert!(kept.contains(&second), "one node for both that had the number {ino}");
    kernel.0.store(true, Ordering::Release);
    a.forget(second);
    let began = Instant::now();
    b.chmod(&name, 0o600).expect("chmod");
    let took = began.elapsed();
    assert!(took < QUICK, "the other host waited {took:?} for a reply that nobody waits for");
    assert_eq!(a.stat(&name).expect("stat").mode & 0o777, 0o600);
    kept.into_iter().for_each(|node| a.forget(node));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
