//! Discards beside everything else. What a discarded block holds is garbage on the simulated disk, so one that was
//! somebody's shows.

use crate::common::simdisk::Event;
use crate::host::{ALL, Host, How};
use crate::model::{Op, bytes};
use crate::points::sweep;
use crate::story::{Recorder, volume};
use crate::tree;
use shoal::base::Error;
use shoal::fs::operations::Operations;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn file(host: &Host, path: &str, number: usize, length: usize) {
    host.create(path).unwrap();
    for at in (0..length).step_by(MIB) {
        let piece = bytes(number, at as u64, MIB.min(length - at));
        let done = host.write(path, at as u64, &piece, How::Buffered);
        done.unwrap_or_else(|e| panic!("{path}, byte {at} of {length}: {e}"));
    }
}

/// One host is enough: it asks the others for their groups, and gives them back.
#[test]
fn one_host_trims_what_others_have_freed() {
    let disk = volume(128, 2);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    for (n, host) in [&a, &b].into_iter().enumerate() {
        host.mkdir(&format!("/d{n}")).unwrap();
        file(host, &format!("/d{n}/kept"), n, 3 * MIB);
        file(host, &format!("/d{n}/gone"), 7, 9 * MIB);
        host.fsync(&format!("/d{n}/gone")).unwrap();
        host.unlink(&format!("/d{n}/gone")).unwrap();
    }
    b.syncfs().unwrap();
    let before = disk.discarded();
    let trimmed = a.trim().unwrap();
    assert_eq!(trimmed, disk.discarded() - before);
    // Of 128 MiB, journals and what has been metadata aside; without the other one's groups it would be half.
    assert!(trimmed > 70 << 20 && trimmed < 110 << 20, "{trimmed} bytes");
    for host in [&a, &b] {
        for n in 0..2 {
            assert!(host.read(&format!("/d{n}/kept")).unwrap() == bytes(n, 0, 3 * MIB));
        }
    }
    file(&b, "/d1/next", 5, 9 * MIB);
    assert!(a.read("/d1/next").unwrap() == bytes(5, 0, 9 * MIB));
    a.stop().unwrap();
    b.stop().unwrap();
    tree::fsck(&disk).unwrap();
}

/// Blocks freed a moment ago are a file's again if power fails now: the free is made durable first.
#[test]
fn what_a_power_cut_brings_back_is_whole() {
    let p = |path: &str| path.to_owned();
    let write = |path: &str, length| Op::Write { path: p(path), offset: 0, length, how: How::Buffered };
    for hosts in [1, 2] {
        let mut run = Recorder::with_commits(64, hosts, Duration::from_secs(20));
        for round in 0..4 {
            for n in 0..4 {
                let path = format!("/f{n}");
                run.run(n % hosts, Op::Create(p(&path)));
                run.run(n % hosts, write(&path, 900_000 + 1000 * round));
                run.run(n % hosts, Op::Fsync(p(&path)));
            }
            run.run(0, Op::Truncate { path: p("/f1"), size: 100_000 });
            run.run(0, Op::Unlink(p("/f0")));
            run.run(0, Op::Trim);
            run.run(hosts - 1, Op::Unlink(p("/f2")));
            run.run(0, Op::Create(p("/next")));
            run.run(0, write("/next", 1_500_000));
            run.run(hosts - 1, Op::Trim);
            run.run(0, Op::Fsync(p("/next")));
            for path in ["/next", "/f1", "/f3"] {
                run.run(round % hosts, Op::Unlink(p(path)));
            }
        }
        let story = run.finish();
        let discards = story.events.iter().filter(|e| matches!(e, Event::Discard { .. })).count();
        assert!(discards > 20, "{discards} discards: nothing was tested");
        sweep(&format!("trims, {hosts} hosts"), &story);
    }
}

/// What is out of use for a moment is not missed, on this host nor on others.
#[test]
fn a_trim_lets_no_volume_look_full() {
    let disk = volume(64, 2);
    let [a, b] = ["a", "b"].map(|name| Host::mount(&disk, name).expect("mount"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (trims, ends) = (&a, &over);
        let trimming = scope.spawn(move || {
            let mut bytes = 0;
            while !ends.load(Ordering::Acquire) {
                bytes += trims.trim().expect("trim");
            }
            bytes
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..6 {
                let host = [&a, &b][round % 2];
                // All but what metadata may need. Of the other's groups it knows as of their last checkpoint.
                let available = || host.statfs().unwrap().blocks_available as usize * 4096;
                let begun = std::time::Instant::now();
                while available() < 10 * MIB && begun.elapsed() < Duration::from_secs(30) {
                    std::thread::sleep(Duration::from_millis(50));
                }
                let length = available() - 5 * MIB;
                file(host, "/large", round, length);
                host.fsync("/large").unwrap_or_else(|e| panic!("round {round}: {e}"));
                assert!([&b, &a][round % 2].read("/large").unwrap() == bytes(round, 0, length));
                host.unlink("/large").unwrap();
                host.fsync("/").unwrap();
            }
        }));
        over.store(true, Ordering::Release);
        let bytes = trimming.join().unwrap();
        assert!(bytes > 100 << 20, "{bytes} bytes were discarded: nothing was tested");
        done.unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
    a.stop().unwrap();
    b.stop().unwrap();
    tree::fsck(&disk).unwrap();
}

/// Its answer comes at once, also while the device does not answer; a mount can be ended beside it.
#[test]
fn a_trim_that_nobody_waits_for_ends() {
    let disk = volume(64, 2);
    let host = Host::mount(&disk, "a").expect("mount");
    host.port.stall(true);
    let (sender, answer) = mpsc::channel();
    let withdraw = Operations::trim(&*host.fs, ALL, move |done| drop(sender.send(done)));
    assert!(answer.recv_timeout(Duration::from_millis(50)).is_err());
    withdraw();
    assert_eq!(answer.recv_timeout(Duration::from_secs(20)).unwrap(), Err(Error::Interrupted));
    host.port.stall(false);
    assert!(answer.recv_timeout(Duration::from_millis(200)).is_err(), "answered once");
    host.stop().unwrap();
    tree::fsck(&disk).unwrap();
}

/// A discard that fails is no write that fails: the host goes on.
#[test]
fn a_device_that_refuses_harms_nobody() {
    let disk = volume(64, 2);
    let host = Host::mount(&disk, "a").expect("mount");
    file(&host, "/f", 1, MIB);
    disk.fail_when(|op, _, _| op == "discard");
    assert!(matches!(host.trim(), Err(Error::Io { op: "discard", .. })));
    disk.heal();
    assert!(host.trim().unwrap() > 0);
    host.fsync("/f").unwrap();
    assert!(host.read("/f").unwrap() == bytes(1, 0, MIB));
    host.stop().unwrap();
    tree::fsck(&disk).unwrap();
}
