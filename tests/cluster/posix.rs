//! What programs expect of a filesystem, through the kernel.

use crate::rig::Cluster;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// GNU tar takes a file with a size and no blocks for one hole, and does not read it.
#[test]
fn sparse_archives_have_the_bytes_of_small_files() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let (a, b) = (cluster.at(0), cluster.at(1));
    let content: Vec<u8> = (0..3000u32).map(|n| n as u8 | 1).collect();
    let sizes = [1, 100, 3000];
    let name = |size: usize| format!("f{size}");
    for size in sizes {
        let mut file = File::create(a.join(name(size))).unwrap();
        file.write_all(&content[..size]).and_then(|()| file.sync_all()).unwrap();
    }
    File::create(a.join("hole")).unwrap().set_len(3000).unwrap();
    let blocks = |at: &Path| sizes.map(|size| fs::metadata(at.join(name(size))).unwrap().blocks());
    for at in [&b, &a] {
        assert_eq!(blocks(at), [1, 1, 6], "{}", at.display());
        assert_eq!(fs::metadata(at.join("hole")).unwrap().blocks(), 0);
        let out = tempfile::tempdir().unwrap();
        let packed = format!("tar -C {} -cSf - . | tar -C {} -xf -", at.display(), out.path().display());
        assert!(Command::new("sh").args(["-c", &packed]).status().unwrap().success());
        for size in sizes {
            assert_eq!(fs::read(out.path().join(name(size))).unwrap(), content[..size], "{size} bytes");
        }
    }
    cluster.umount(0);
    cluster.umount(1);
}

/// Records that the kernel cuts into several requests, from memory that does not begin with a page.
fn large_records(options: &str) {
    const RECORD: usize = 3 << 20;
    const RECORDS: usize = 8;
    let cluster = Cluster::unmounted("256M", LIMIT);
    for host in 0..2 {
        assert!(cluster.try_mount(host, &cluster.image(), options).status.success());
    }
    fs::write(cluster.at(0).join("log"), b"").unwrap();
    std::thread::scope(|scope| {
        for (host, byte) in [(0, b'a'), (1, b'b')] {
            let path = cluster.at(host).join("log");
            scope.spawn(move || {
                let memory = vec![byte; RECORD + 8192];
                let begin = memory.as_ptr().align_offset(4096) + 16;
                let mut log = OpenOptions::new().append(true).open(path).unwrap();
                for _ in 0..RECORDS {
                    assert_eq!(log.write(&memory[begin..begin + RECORD]).unwrap(), RECORD);
                }
            });
        }
    });
    for host in 0..2 {
        let log = fs::read(cluster.at(host).join("log")).unwrap();
        assert_eq!(log.len(), 2 * RECORDS * RECORD);
        let torn = log.chunks(RECORD).position(|record| record.iter().any(|byte| *byte != record[0]));
        assert_eq!(torn, None, "the first record that is torn");
    }
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn large_records_are_appended_in_one_piece() {
    large_records("rw");
}

#[test]
fn large_records_are_appended_in_one_piece_while_writers_wait_for_room() {
    large_records("dirty=1M");
}

/// Where memory runs out, others are to be killed first, and the guardian last.
#[test]
fn the_kernel_kills_others_first() {
    // In some containers not even root may.
    let try_it = Command::new("sh").args(["-c", "echo -900 >/proc/self/oom_score_adj"]).output().unwrap();
    if !try_it.status.success() {
        return println!("this machine lets nobody set it: not tested");
    }
    let cluster = Cluster::new("128M", 1, LIMIT);
    let daemon = cluster.daemon(0).unwrap().daemon.pid;
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score(daemon).trim(), "-900");
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let guardian = children.split_whitespace().next().expect("a guardian").parse().unwrap();
    assert_eq!(score(guardian).trim(), "-1000");
    cluster.umount(0);
}
