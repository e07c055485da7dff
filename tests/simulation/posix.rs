//! What programs expect of a filesystem, however many hosts it has.

use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::Error;
use shoal::fs::{SetAttr, SetTime};
use shoal::inode::Timestamp;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn two() -> (Arc<crate::common::simdisk::SimDisk>, Host, Host) {
    let disk = volume(64, 2);
    let (a, b) = (Host::mount(&disk, "a").expect("mount"), Host::mount(&disk, "b").expect("mount"));
    (disk, a, b)
}

fn end(disk: &Arc<crate::common::simdisk::SimDisk>, hosts: [Host; 2]) {
    hosts.into_iter().for_each(|host| host.stop().expect("a clean leave"));
    tree::fsck(disk).expect("a sound volume");
}

fn sectors(host: &Host, path: &str) -> u64 {
    let node = host.keep(path).expect("lookup");
    let sectors = host.sectors_kept(node).expect("stat");
    host.forget(node);
    sectors
}

/// Programs that copy files take one without sectors for a hole.
#[test]
fn a_file_with_bytes_has_sectors_on_all_hosts_and_after_a_remount() {
    let (disk, a, b) = two();
    for (name, size, sectors_of) in [("/small", 100, 1), ("/larger", 3000, 6), ("/blocks", 9000, 24)] {
        a.create(name).expect("create");
        a.write(name, 0, &vec![7; size], How::Buffered).expect("write");
        assert_eq!(sectors(&a, name), sectors_of, "{name}: not written yet");
        a.fsync(name).expect("fsync");
        assert_eq!((sectors(&a, name), sectors(&b, name)), (sectors_of, sectors_of), "{name}: written");
    }
    a.create("/hole").expect("create");
    a.truncate("/hole", 3000).expect("truncate");
    assert_eq!((sectors(&a, "/hole"), sectors(&b, "/hole")), (0, 0));
    end(&disk, [a, b]);
    let a = Host::mount(&disk, "a").expect("mount");
    let found = ["/small", "/larger", "/blocks", "/hole"].map(|name| sectors(&a, name));
    assert_eq!(found, [1, 6, 24, 0]);
    a.stop().expect("a clean leave");
}

#[test]
fn an_mtime_in_the_future_comes_back_with_the_next_write() {
    let (disk, a, b) = two();
    a.create("/f").expect("create");
    let node = a.keep("/f").expect("lookup");
    let future = Timestamp { seconds: 4_102_444_800, nanos: 0 };
    a.set_kept(node, SetAttr { mtime: Some(SetTime::At(future)), ..SetAttr::default() }).expect("utimes");
    let before = a.stat_kept(node).expect("stat");
    assert_eq!(before.mtime, future);
    let mut last = before;
    for (n, host) in [&a, &b, &a].into_iter().enumerate() {
        host.write("/f", 0, &[n as u8; 10], How::Buffered).expect("write");
        let attr = a.stat_kept(node).expect("stat");
        let now = Timestamp::from(SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock"));
        assert!(attr.mtime <= now && attr.mtime.seconds > now.seconds - 600, "{:?}", attr.mtime);
        assert!(attr.ctime > last.ctime && attr.mtime != last.mtime);
        last = attr;
    }
    a.forget(node);
    end(&disk, [a, b]);
}

#[test]
fn only_root_is_shown_trusted_attributes() {
    let (disk, a, b) = two();
    a.create("/f").expect("create");
    a.set_xattr("/f", "trusted.secret", b"1").expect("setxattr");
    a.set_xattr("/f", "user.open", b"2").expect("setxattr");
    let root = String::from_utf8(a.list_xattrs("/f").expect("list")).expect("names");
    assert!(root.contains("trusted.secret\0") && root.contains("user.open\0"), "{root:?}");
    assert_eq!(b.list_xattrs_as("/f", 1000).expect("list"), b"user.open\0");
    end(&disk, [a, b]);
}

#[test]
fn a_directory_in_use_that_another_host_has_removed_is_at_its_end() {
    let (disk, a, b) = two();
    a.mkdir("/d").expect("mkdir");
    let node = a.keep("/d").expect("lookup");
    assert_eq!(a.list_kept(node).expect("readdir"), 2);
    b.rmdir("/d").expect("rmdir");
    // It may be an orphan until it is freed, and is empty then. Whoever asks all the time keeps the lock from who frees.
    let end_of_it = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match a.list_kept(node) {
            Ok(0) if std::time::Instant::now() < end_of_it => std::thread::sleep(Duration::from_millis(500)),
            other => break assert_eq!(other, Err(Error::NotFound)),
        }
    }
    a.forget(node);
    end(&disk, [a, b]);
}

/// The source costs nothing to read, the disk is slow to write.
#[test]
fn copies_wait_for_room_like_writes() {
    const LIMIT: u64 = 16 << 20;
    let disk = volume(256, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    a.create("/hole").expect("create");
    a.truncate("/hole", 64 << 20).expect("truncate");
    a.create("/copy").expect("create");
    let (from, to) = (a.keep("/hole").expect("lookup"), a.keep("/copy").expect("lookup"));
    disk.on_request(|op, _, length| {
        if op == "write" && length >= 1 << 20 {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let begun = std::time::Instant::now();
    let mut at = 0;
    while at < 64 << 20 {
        at += u64::from(a.copy_kept((from, at), (to, 0, at), 1 << 20).expect("copy"));
    }
    let took = begun.elapsed();
    // All but the last 16 MiB have gone to the disk by then, 4 MiB at a time.
    assert!(took >= Duration::from_millis(200) * 8, "{LIMIT} bytes may be dirty, and it took {took:?}");
    [from, to].into_iter().for_each(|node| a.forget(node));
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
