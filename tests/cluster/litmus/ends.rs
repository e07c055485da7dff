//! Where a file ends, for a program that asks after another host has made it longer.

use super::places::Below;
use super::{LIMIT, Pair, ROUNDS};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const PART: usize = 1000;

/// This thread runs when nothing else does on the first CPU, if `idle`; or there, and never lets it go.
fn on_first_cpu(idle: bool) {
    // SAFETY: system calls on structures of ours, about the calling thread.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&cpus), &cpus), 0);
        let policy = if idle { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
        assert_eq!(libc::sched_setscheduler(0, policy, &libc::sched_param { sched_priority: 0 }), 0);
    }
}

/// The reader hears the answers late: by then a third program has had its attributes taken away again.
#[test]
fn a_slow_reader_sees_all_that_was_there() {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), b"").unwrap();
    let (there, here) = (pair.b.join("f"), pair.a.join("f"));
    let grown = OpenOptions::new().write(true).open(&there).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = |work: &mut dyn FnMut()| {
            let began = Instant::now();
            while !over.load(Ordering::Acquire) && began.elapsed() < LIMIT {
                work();
            }
        };
        scope.spawn(move || {
            on_first_cpu(false);
            busy(&mut || std::hint::spin_loop());
        });
        let there = &there;
        scope.spawn(move || {
            let mut mode = 0o600;
            busy(&mut || {
                mode ^= 0o40;
                fs::set_permissions(there, Permissions::from_mode(mode)).unwrap();
            });
        });
        let (go, rounds) = std::sync::mpsc::channel::<usize>();
        let (seen, results) = std::sync::mpsc::channel();
        scope.spawn(move || {
            on_first_cpu(true);
            let mut file = File::open(here).unwrap();
            for round in rounds {
                let bytes = file.read_at(&mut [0; PART], (round * PART) as u64).unwrap();
                let end = file.seek(SeekFrom::End(0)).unwrap();
                seen.send((bytes, end)).unwrap();
            }
        });
        let mut wrong = Vec::new();
        for round in 0..ROUNDS {
            grown.write_all_at(&[7; PART], (round * PART) as u64).unwrap();
            go.send(round).unwrap();
            let seen = results.recv().unwrap();
            if seen != (PART, ((round + 1) * PART) as u64) {
                wrong.push((round, seen));
            }
        }
        over.store(true, Ordering::Release);
        drop(go);
        assert!(wrong.is_empty(), "{wrong:?}");
    });
    drop(grown);
    pair.finish();
}

/// Another filesystem lies on top of the mount, through which its daemon would look at it: programs that have a file open
/// read on, and nothing of the other filesystem is taken for ours.
#[test]
fn a_mount_that_its_daemon_cannot_see() {
    let pair = Pair::new();
    let grown = File::create(pair.b.join("f")).unwrap();
    let file = File::open(pair.a.join("f")).unwrap();
    let hidden = Below::mount(&pair.a);
    for round in 0..ROUNDS {
        let at = (round * PART) as u64;
        grown.write_all_at(&[7; PART], at).unwrap();
        let mut bytes = [0; PART];
        assert_eq!((file.read_at(&mut bytes, at).unwrap(), bytes), (PART, [7; PART]), "round {round}");
    }
    drop(hidden);
    drop((grown, file));
    pair.finish();
}
