//! A long fallocate that has to wait for space lets its locks go; what it has done by then, it does not do again.

use crate::deaths::{stubborn_about, until_asked};
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::LockName;
use std::sync::atomic::Ordering;

const BLOCK: usize = 4096;

/// It needs space that another host has. While it waits for that, this other host sees what has been zeroed, and writes
/// there: that comes after, so it stays.
#[test]
fn what_is_written_into_a_range_half_zeroed_stays() {
    let disk = volume(128, 2);
    let (b, stubborn, asked) = stubborn_about(&disk, "b", |name| matches!(name, LockName::Ag(_)));
    let a = Host::mount(&disk, "a").expect("mount");
    b.create("/b").expect("create");
    let free = a.statfs().expect("statfs").blocks_free as usize * BLOCK;
    // All of its groups are held by it now, and there is space in them.
    b.fallocate("/b", (0, free as u64 / 3), 0).expect("fallocate");
    b.truncate("/b", 0).expect("truncate");
    b.syncfs().expect("syncfs");
    a.create("/f").expect("create");
    let end = free / BLOCK * 11 / 20 * BLOCK;
    println!("{} MiB are free, {} are zeroed", free >> 20, end >> 20);
    for at in [0, end - BLOCK] {
        a.write("/f", at as u64, &[1; BLOCK], How::Buffered).expect("write");
    }
    a.fsync("/f").expect("fsync");
    stubborn.store(true, Ordering::Release);
    let host = &a;
    std::thread::scope(|scope| {
        // Both ends lie inside of a block.
        let range = (100, end as u64 - 200);
        let zeroing = scope.spawn(move || host.fallocate("/f", range, libc::FALLOC_FL_ZERO_RANGE));
        until_asked(&asked);
        let seen = b.read("/f").expect("read");
        let mut expected = vec![0; end];
        for edge in [0..100, end - 100..end] {
            expected[edge].fill(1);
        }
        assert!(seen == expected, "it was to be half done");
        for at in [50, BLOCK, end - 150] {
            b.write("/f", at as u64, &[2; 100], How::Buffered).expect("write");
            expected[at..at + 100].fill(2);
        }
        stubborn.store(false, Ordering::Release);
        zeroing.join().expect("the thread").expect("fallocate");
        assert!(b.read("/f").expect("read") == expected, "what was written into the zeros is gone");
        assert!(a.read("/f").expect("read") == expected);
    });
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
