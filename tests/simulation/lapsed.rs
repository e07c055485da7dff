//! A host whose lease runs out under a request.

use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::cluster::Timing;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BYTES: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(20);

fn sleep_while(held: &AtomicBool) {
    while held.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The disk keeps a read of file data, and all writes with it, the heartbeats too, for longer than the lease
/// lasts. Then it gives the data. Others could have taken over, freed the blocks and written to them in the
/// meantime: the read is answered only when the host has found that it is still a member.
#[test]
fn what_a_hung_read_brings_is_not_told_before_the_lease_is_renewed() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let content: Vec<u8> = (0..BYTES).map(|n| (n / 4096) as u8).collect();
    a.create("/f").expect("create");
    a.write("/f", 0, &content, How::Buffered).expect("write");
    a.fsync("/f").expect("fsync");
    a.stop().expect("a clean leave");

    let a = Host::mount(&disk, "a").expect("mount again");
    let node = a.keep("/f").expect("lookup");
    let handle = a.open_kept(node, How::Buffered).expect("open");
    let [reads, writes, reached] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let (held_reads, held_writes, has_reached) = (reads.clone(), writes.clone(), reached.clone());
    disk.on_request(move |op, _, length| match op {
        "read" if length >= 1 << 16 => {
            has_reached.store(true, Ordering::Release);
            sleep_while(&held_reads);
        }
        "write" => sleep_while(&held_writes),
        _ => {}
    });
    reads.store(true, Ordering::Release);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| a.read_kept(node, handle, BYTES as u32));
        let begun = Instant::now();
        while !reached.load(Ordering::Acquire) {
            assert!(begun.elapsed() < LONG, "the read does not reach the disk: nothing is tested");
            std::thread::sleep(Duration::from_millis(1));
        }
        writes.store(true, Ordering::Release);
        std::thread::sleep(Timing::TEST.lease + Duration::from_millis(300));
        reads.store(false, Ordering::Release);
        std::thread::sleep(Duration::from_millis(500));
        let early = reader.is_finished();
        writes.store(false, Ordering::Release);
        let found = reader.join().expect("the reader").expect("read, the lease renewed");
        assert!(!early, "the read was answered without a lease");
        assert!(found == content, "the file's bytes");
    });
    a.close_kept(node, handle).expect("close");
    a.forget(node);
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// What a mapping has stored comes back as a write while the lease is over, for longer than a program's request would
/// wait. It is on the disk once the store goes on, and the thread that brought it was not held up.
#[test]
fn what_a_mapping_has_stored_outlives_a_stall_of_any_length() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    a.create("/f").expect("create");
    a.write("/f", 0, &[1; 8192], How::Buffered).expect("write");
    a.fsync("/f").expect("fsync");
    let node = a.keep("/f").expect("lookup");
    let handle = a.open_kept(node, How::Buffered).expect("open");
    a.port.stall(true);
    std::thread::sleep(Timing::TEST.lease + Duration::from_millis(500));
    let begun = Instant::now();
    let answer = a.launder_kept(node, handle, 4096, &[2; 4096]);
    let took = begun.elapsed();
    let early = answer.recv_timeout(shoal::store::CONFIRM_WAIT_MAX + Duration::from_secs(3));
    a.port.stall(false);
    assert!(took < Duration::from_secs(10), "a thread that reads requests was held up for {took:?}");
    assert!(early.is_err(), "answered without a lease: {early:?}");
    let written = answer.recv_timeout(LONG).expect("an answer").expect("a write");
    assert_eq!(written, 4096);
    a.close_kept(node, handle).expect("close");
    a.forget(node);
    let found = a.read("/f").expect("read");
    assert!(found[..4096] == [1; 4096] && found[4096..] == [2; 4096]);
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
