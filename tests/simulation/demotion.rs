//! What a host owes to the next holder of a lock: what requests changed while the lock was on its way,
//! and data that it failed to write at first.

use crate::common::port::Weather;
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::fs::SetAttr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TIME: Duration = Duration::from_secs(6);

/// One host changes a file's attributes as fast as it can, another looks at them all the time. A slow
/// disk keeps the lock on its way for long. Every change that was answered is there, and both get on.
#[test]
fn attributes_changed_while_their_lock_is_handed_over() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    a.create("/f").expect("create");
    let (at_a, at_b) = (a.keep("/f").expect("lookup"), b.keep("/f").expect("lookup"));
    a.port.set_weather(Weather { delay_us_max: 20_000, ..Weather::default() }, 1);
    let done = AtomicBool::new(false);
    let (changes, looks) = std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let (mut looks, mut last) = (0, 0);
            while !done.load(Ordering::Acquire) {
                let size = b.stat_kept(at_b).expect("stat").size;
                assert!(size >= last, "the size fell from {last} to {size}");
                (last, looks) = (size, looks + 1);
            }
            looks
        });
        let begun = Instant::now();
        let mut n = 0;
        while begun.elapsed() < TIME && !looker.is_finished() {
            n += 1;
            let (size, perm) = (n * 4096, (n % 512) as u16);
            a.set_kept(at_a, SetAttr { size: Some(size), ..SetAttr::default() }).expect("truncate");
            let attr = a.stat_kept(at_a).expect("stat");
            assert_eq!(attr.size, size, "after the truncation");
            a.set_kept(at_a, SetAttr { perm: Some(perm), ..SetAttr::default() }).expect("chmod");
            let attr = a.stat_kept(at_a).expect("stat");
            assert_eq!((attr.size, attr.mode & 0o777), (size, perm.into()), "after the chmod");
        }
        done.store(true, Ordering::Release);
        (n, looker.join().expect("the looker"))
    });
    println!("{changes} changes, {looks} looks");
    assert!(looks > 10 && changes > 10, "{changes} changes, {looks} looks: a host starves");
    let last = b.stat_kept(at_b).expect("stat");
    assert_eq!(last.size, changes * 4096);
    a.forget(at_a);
    b.forget(at_b);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The disk fails to take a file's data once. Every handle is told, once; the data stays dirty, and the
/// next fsync writes it although the program has changed nothing but pages that were dirty already.
#[test]
fn data_that_could_not_be_written_is_written_by_the_next_fsync() {
    const BYTES: usize = 2 << 20;
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    a.create("/f").expect("create");
    let node = a.keep("/f").expect("lookup");
    let [first, second] = [(); 2].map(|()| a.open_kept(node, How::Buffered).expect("open"));
    a.write("/f", 0, &[1; BYTES], How::Buffered).expect("write");
    disk.fail_when(|op, _, length| op == "write" && length >= 1 << 20);
    a.fsync_kept(node, first).expect_err("fsync on a disk that fails");
    disk.heal();
    a.write("/f", 0, &[2; BYTES], How::Buffered).expect("write again");
    a.fsync_kept(node, first).expect("fsync of the handle that has been told");
    a.fsync_kept(node, second).expect_err("the other handle is told as well");
    a.fsync_kept(node, second).expect("but only once");
    // As if all power were cut now.
    let (copy, found) = (disk.snapshot(), vec![2; BYTES]);
    let c = Host::mount(&copy, "c").expect("mount");
    assert!(c.read("/f").expect("read") == found, "what fsync acknowledged is not there");
    c.stop().expect("a clean leave");
    let third = a.open_kept(node, How::Buffered).expect("open");
    for handle in [first, second, third] {
        a.close_kept(node, handle).expect("close");
    }
    a.forget(node);
    assert!(b.read("/f").expect("read") == found, "what the next holder finds");
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// One host writes, another has the file open and calls fsync: what was written, and the names of the
/// directory that it syncs, are durable, as if one machine had done both.
#[test]
fn fsync_covers_what_another_host_has_changed() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    b.create("/f").expect("create");
    let (file, root) = (a.keep("/f").expect("lookup"), a.keep("/").expect("the root"));
    let handle = a.open_kept(file, How::Buffered).expect("open");
    b.write("/f", 0, &[3; 100_000], How::Buffered).expect("write");
    a.fsync_kept(file, handle).expect("fsync");
    b.create("/g").expect("create");
    a.fsync_kept(root, 0).expect("fsync of the directory");
    // As if all power were cut now.
    let c = Host::mount(&disk.snapshot(), "c").expect("mount");
    assert!(c.read("/f").expect("read") == [3; 100_000], "the data is not there");
    c.stat("/g").expect("the name is there");
    c.stop().expect("a clean leave");
    a.close_kept(file, handle).expect("close");
    a.forget(file);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// One host changes a file, another moves the directory above and syncs that. The change was not synced and may be lost
/// alone: there is no order between the two. With the file's fsync it is there.
#[test]
fn what_was_changed_below_a_directory_that_is_moved_may_be_lost_alone() {
    for synced in [false, true] {
        let disk = volume(64, 2);
        let a = Host::mount_with(&disk, "a", Duration::from_secs(3600)).expect("mount");
        let b = Host::mount_with(&disk, "b", Duration::from_secs(3600)).expect("mount");
        for dir in ["/x", "/x/d", "/x/d/below"] {
            b.mkdir(dir).expect("mkdir");
        }
        b.create("/x/d/below/f").expect("create");
        b.fsync("/x/d/below/f").expect("fsync");
        a.set_xattr("/x/d/below/f", "user.a", b"new").expect("set an attribute");
        if synced {
            a.fsync("/x/d/below/f").expect("fsync");
        }
        b.rename("/x/d", "/x/e", false).expect("rename");
        b.fsync("/x").expect("fsync of the directory");
        // As if all power were cut now.
        let c = Host::mount(&disk.snapshot(), "c").expect("mount");
        c.stat("/x/d").expect_err("it has been moved, durably");
        let value = c.get_xattr("/x/e/below/f", "user.a");
        assert_eq!(value.is_ok(), synced, "{value:?}");
        c.stop().expect("a clean leave");
        a.stop().expect("a clean leave");
        b.stop().expect("a clean leave");
        tree::fsck(&disk).expect("a sound volume");
    }
}
