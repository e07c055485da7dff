//! A file that is written as fast as memory takes it, on a disk that is slower: everything else gets on.

use crate::common::simdisk::SimDisk;
use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::Result;
use shoal::device::BlockDevice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PIECE: usize = 1 << 20;
/// Larger than what may be dirty.
const STREAM: u64 = 24 << 20;
const MARK: u8 = 0xA7;
/// The stream goes on for so long at most.
const LONG: Duration = Duration::from_secs(60);

/// Ends the stream, also when the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Writes the same bytes of a file over and over while `work` runs.
fn while_streaming(host: &Host, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    host.create("/stream").expect("create");
    let node = host.keep("/stream").expect("lookup");
    let handle = host.open_kept(node, How::Buffered).expect("open");
    let piece = vec![1; PIECE];
    let write = |n: u64| host.write_kept(node, handle, n * PIECE as u64 % STREAM, &piece).map(|_| ());
    (0..STREAM / PIECE as u64).try_for_each(write).expect("write");
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| -> Result<()> {
            let begun = Instant::now();
            (0..).take_while(|_| !done.load(Ordering::Acquire) && begun.elapsed() < LONG).try_for_each(write)
        });
        let ended = Ended(&done);
        work();
        drop(ended);
        stream.join().expect("the stream").expect("its writes");
    });
    host.close_kept(node, handle).expect("close");
    host.forget(node);
}

/// Is there a block of nothing but the mark?
fn has_mark(disk: &SimDisk) -> bool {
    let mut part = vec![0; PIECE];
    (0..disk.size() / PIECE as u64).any(|n| {
        disk.read(n * PIECE as u64, &mut part).expect("read");
        part.chunks(4096).any(|block| block.iter().all(|byte| *byte == MARK))
    })
}

fn slow_volume() -> Arc<SimDisk> {
    let disk = volume(128, 2);
    disk.on_request(|op, _, length| {
        if op == "write" && length >= 1 << 16 {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    disk
}

#[test]
fn other_files_are_written_back_and_sync_returns() {
    let disk = slow_volume();
    let host = Host::mount(&disk, "host").expect("mount");
    host.create("/small").expect("create");
    while_streaming(&host, || {
        host.write("/small", 0, &[MARK; 4096], How::Buffered).expect("write");
        let begun = Instant::now();
        while !has_mark(&disk) {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is not written back");
            std::thread::sleep(Duration::from_millis(200));
        }
        let begun = Instant::now();
        host.syncfs().expect("sync");
        let took = begun.elapsed();
        println!("sync took {took:?}");
        assert!(took < Duration::from_secs(20), "sync took {took:?}");
    });
    host.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The other host needs a group in which a small file of the streaming one has space promised.
#[test]
fn groups_are_given_up() {
    let disk = slow_volume();
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    a.create("/small").expect("create");
    b.create("/large").expect("create");
    let groups = b.statfs().expect("statfs").blocks_free * 4096;
    while_streaming(&a, || {
        a.write("/small", 0, &[MARK; 4096], How::Buffered).expect("write");
        let begun = Instant::now();
        // More than its own half of the volume.
        for n in 0..groups * 6 / 10 / PIECE as u64 {
            b.write("/large", n * PIECE as u64, &vec![5; PIECE], How::Buffered).expect("write");
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(40), "{n} MiB took {took:?}");
        }
        println!("{} MiB took {:?}", (groups * 6 / 10) >> 20, begun.elapsed());
    });
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
