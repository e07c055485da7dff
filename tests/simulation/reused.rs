//! Inode numbers that are used again while a kernel still remembers who had them before.

use crate::host::Host;
use crate::story::volume;
use crate::tree;
use shoal::base::{Error, InodeNo};
use shoal::fs::{KernelCache, NodeId, SetAttr};
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

/// A kernel still knows the inode that had the number before. What is done to the new one by its name is
/// done to the new one.
#[test]
fn a_number_used_again_is_reached_by_its_new_name() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let first = make(&b, 0);
    let kept: Vec<NodeId> = first.iter().map(|(name, _)| a.keep(name).expect("lookup")).collect();
    first.iter().for_each(|(name, _)| b.unlink(name).expect("unlink"));
    let mut again = Vec::new();
    for round in 1..10 {
        std::thread::sleep(Duration::from_millis(100));
        for (name, ino) in make(&b, round) {
            again.extend(first.iter().position(|(_, i)| *i == ino).map(|n| (name, kept[n])));
        }
        if again.len() > 8 {
            break;
        }
    }
    assert!(again.len() > 8, "no number was used again: nothing was tested");
    for (n, (name, old)) in again.iter().enumerate() {
        let done = match n % 3 {
            0 => a.unlink(name),
            1 => a.rename(name, "/moved", false),
            _ => a.rename("/moved", name, false),
        };
        done.unwrap_or_else(|e| panic!("{name}, the {n}th: {e}"));
        let shown = a.stat_kept(*old);
        assert!(matches!(shown, Err(Error::Stale)), "the kernel's old inode is shown as {shown:?}");
    }
    kept.into_iter().for_each(|node| a.forget(node));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// A directory is moved below one that the kernel knows, whose parent has a number by which the kernel knows
/// another, long gone: the way up to the root is found by what is there now.
#[test]
fn a_number_used_again_is_an_ancestor() {
    const DIRECTORIES: usize = 200;
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let make = |round: usize, n: usize| {
        let name = format!("/{round}-{n}");
        b.mkdir(&name).expect("mkdir");
        let ino = b.stat(&name).expect("stat").ino;
        (name, ino)
    };
    let first: Vec<_> = (0..DIRECTORIES).map(|n| make(0, n)).collect();
    let kept: Vec<NodeId> = first.iter().map(|(name, _)| a.keep(name).expect("lookup")).collect();
    first.iter().for_each(|(name, _)| b.rmdir(name).expect("rmdir"));
    let again = (1..20).find_map(|round| {
        std::thread::sleep(Duration::from_millis(500));
        (0..DIRECTORIES).map(|n| make(round, n)).find(|(_, ino)| first.iter().any(|(_, i)| i == ino))
    });
    let (parent, ino) = again.expect("no number was used again: nothing was tested");
    b.mkdir("/child").expect("mkdir");
    let child = a.keep("/child").expect("lookup");
    b.rename("/child", &format!("{parent}/child"), false).expect("rename");
    a.mkdir("/moved").expect("mkdir");
    a.rename_into_kept(b"moved", child).unwrap_or_else(|e| panic!("below {ino}: {e}"));
    assert_eq!(b.list(&format!("{parent}/child")).expect("list"), ["moved"]);
    kept.into_iter().chain([child]).for_each(|node| a.forget(node));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
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

/// One host makes and removes files, in several directories at once; the other asks for inodes by the
/// numbers that these had before, as for those that its kernel remembers. So the lock of a number is on its
/// way out again and again while a new file is about to get that number: nothing of the file may be in the
/// cache before its lock is held.
#[test]
fn a_number_is_given_to_a_new_file_while_another_host_asks_for_its_lock() {
    const MAKERS: usize = 6;
    const ASKERS: usize = 3;
    const TIME: Duration = Duration::from_secs(3);
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    for maker in 0..MAKERS {
        a.mkdir(&format!("/{maker}")).expect("mkdir");
    }
    let path = |maker: usize, n: usize| format!("/{maker}/{n}");
    let kept: Vec<NodeId> = (0..MAKERS * 30)
        .map(|n| {
            let name = path(n % MAKERS, n);
            a.create(&name).expect("create");
            let node = b.keep(&name).expect("lookup");
            a.unlink(&name).expect("unlink");
            node
        })
        .collect();
    let begun = Instant::now();
    let (made, asked) = std::thread::scope(|scope| {
        let (a, b, kept) = (&a, &b, &kept);
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| {
                scope.spawn(move || {
                    let mut made = 0;
                    while begun.elapsed() < TIME {
                        a.create(&path(maker, made)).expect("create");
                        a.unlink(&path(maker, made)).expect("unlink");
                        made += 1;
                    }
                    made
                })
            })
            .collect();
        let askers: Vec<_> = (0..ASKERS)
            .map(|asker| {
                scope.spawn(move || {
                    let mut asked = 0;
                    while begun.elapsed() < TIME {
                        for node in kept.iter().skip(asker).step_by(ASKERS) {
                            let _ = b.set_kept(*node, SetAttr { perm: Some(0o600), ..SetAttr::default() });
                            asked += 1;
                        }
                    }
                    asked
                })
            })
            .collect();
        let sum = |threads: Vec<std::thread::ScopedJoinHandle<'_, usize>>| -> usize {
            threads.into_iter().map(|t| t.join().expect("a worker")).sum()
        };
        (sum(makers), sum(askers))
    });
    println!("{made} files made, {asked} times asked");
    assert!(made > 20 && asked > 20, "{made} files made, {asked} times asked: a host starves");
    kept.into_iter().for_each(|node| b.forget(node));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
