//! A write that was accepted reaches the disk, also while the groups that its space is promised in are
//! being taken away, and where what is free is scattered.

use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use std::time::Duration;

/// Attributes that leave no room for a small file's bytes in the inode: these push the rest into blocks of
/// their own.
fn crowd(host: &Host, name: &str) {
    for n in 0..3 {
        host.set_xattr(name, &format!("user.{n}"), &[n; 900]).expect("setxattr");
    }
}

/// The bytes of a small file go into its inode, which may need a block of metadata for what was there.
/// The only group that is held is wanted by another host meanwhile.
#[test]
fn small_files_are_flushed_while_their_group_is_taken_away() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    for round in 0..20 {
        let (small, gone) = (format!("/small{round}"), format!("/gone{round}"));
        a.create(&small).expect("create");
        a.create(&gone).expect("create");
        crowd(&a, &small);
        a.write(&small, 0, &[7; 3000], How::Buffered).expect("write");
        // The inode that is freed lies in the group of the other.
        b.unlink(&gone).expect("unlink");
        std::thread::sleep(Duration::from_millis(100));
        a.fsync(&small).unwrap_or_else(|e| panic!("round {round}: what was written is lost: {e}"));
        assert_eq!(b.read(&small).expect("read"), [7; 3000]);
    }
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// Fill a volume with one file; its size.
fn fill(host: &Host, name: &str, piece: &[u8]) -> u64 {
    host.create(name).expect("create");
    let mut size = 0;
    while host.write(name, size, piece, How::Buffered).is_ok() {
        size += piece.len() as u64;
    }
    host.fsync(name).expect("fsync");
    size
}

/// Each block of a file becomes an extent of its own where free space is single blocks: one in `every` of a
/// volume that is full but for them.
fn scattered(mib: u64, slots: u16, every: u64) {
    let disk = volume(mib, slots);
    let host = Host::mount(&disk, "host").expect("mount");
    let piece = vec![1; 1 << 20];
    let size = fill(&host, "/full", &piece);
    for block in (0..size / 4096).step_by(every as usize) {
        let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        host.fallocate("/full", (block * 4096, 4096), how).expect("punch");
    }
    host.fsync("/full").expect("fsync");
    host.create("/pieces").expect("create");
    let most = size / every * 3 / 4;
    let mut length = 0;
    while length < most && host.write("/pieces", length, &piece, How::Buffered).is_ok() {
        length += piece.len() as u64;
    }
    println!("{size} bytes, {length} bytes between them");
    assert!(length > most / 2);
    host.fsync("/pieces").expect("what was written reaches the disk");
    assert_eq!(host.read("/pieces").expect("read").len() as u64, length);
    host.unlink("/pieces").expect("unlink");
    host.create("/ahead").expect("create");
    host.fallocate("/ahead", (0, most / 2), 0).expect("space in single blocks is space as well");
    host.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

#[test]
fn data_is_flushed_into_scattered_blocks() {
    scattered(64, 2, 2);
}

/// A little in each of many groups: what one flush writes lies in dozens of them.
#[test]
fn data_is_flushed_into_blocks_all_over_the_volume() {
    scattered(512, 16, 64);
}
