//! Writes past the page cache and readers through it, on one host: a read after a write sees it.

use crate::rig::Cluster;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BLOCK: usize = 4096;
const BLOCKS: usize = 32;

/// So many threads read the file through the page cache all the time while `work` runs, every other one opens it each time.
fn while_reading(file: &Path, readers: usize, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..readers {
            let done = &done;
            scope.spawn(move || {
                let (open, mut seen) = (File::open(file).unwrap(), vec![0; BLOCK * BLOCKS]);
                while !done.load(Ordering::Acquire) {
                    let anew = (number % 2 == 1).then(|| File::open(file).unwrap());
                    let _ = anew.as_ref().unwrap_or(&open).read_at(&mut seen, 0).unwrap();
                }
            });
        }
        let _end = Ended(&done);
        work();
    });
}

/// Ends the readers, also when the work panics.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[repr(align(4096))]
struct Aligned([u8; BLOCK * BLOCKS]);

#[test]
fn a_direct_write_is_seen_by_the_next_cached_read() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let file = cluster.at(0).join("f");
    fs::write(&file, vec![0; BLOCK * BLOCKS]).unwrap();
    let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&file).unwrap();
    let reader = File::open(&file).unwrap();
    while_reading(&file, 2, || {
        let mut seen = vec![0; BLOCK * BLOCKS];
        for round in 0..1500u32 {
            let data = Box::new(Aligned([round as u8; BLOCK * BLOCKS]));
            direct.write_all_at(&data.0, 0).unwrap();
            reader.read_exact_at(&mut seen, 0).unwrap();
            let old = seen.iter().position(|b| *b != round as u8);
            assert_eq!(old, None, "round {round}: the first old byte");
        }
    });
    drop((direct, reader));
    cluster.umount(0);
}

#[test]
fn an_append_is_seen_by_the_next_cached_read() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let file = cluster.at(0).join("log");
    fs::write(&file, b"").unwrap();
    let log = File::options().append(true).open(&file).unwrap();
    let reader = File::open(&file).unwrap();
    // Enough for some that do not get to run for a while, having asked for the size.
    while_reading(&file, 8, || {
        for round in 0..3000u64 {
            let record = format!("{round:010}");
            std::io::Write::write_all(&mut &log, record.as_bytes()).unwrap();
            let mut seen = [0; 10];
            reader.read_exact_at(&mut seen, round * 10).unwrap();
            assert_eq!(seen, record.as_bytes(), "round {round}");
        }
    });
    drop((log, reader));
    cluster.umount(0);
}

#[test]
fn an_append_of_another_host_is_seen_by_the_next_cached_read() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(90));
    let [file, other] = [0, 1].map(|host| cluster.at(host).join("log"));
    fs::write(&file, b"").unwrap();
    let log = File::options().append(true).open(&other).unwrap();
    let reader = File::open(&file).unwrap();
    while_reading(&file, 4, || {
        for round in 0..300u64 {
            let record = format!("{round:010}");
            std::io::Write::write_all(&mut &log, record.as_bytes()).unwrap();
            let mut seen = [0; 10];
            match round % 2 {
                0 => reader.read_exact_at(&mut seen, round * 10).unwrap(),
                _ => File::open(&file).unwrap().read_exact_at(&mut seen, round * 10).unwrap(),
            }
            assert_eq!(seen, record.as_bytes(), "round {round}");
        }
    });
    drop((log, reader));
    cluster.umount(0);
    cluster.umount(1);
}
