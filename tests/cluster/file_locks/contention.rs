//! What locks cost, and that what they protect is what the last one left.

use super::program::{Child, fcntl, set, wait};
use super::{LIMIT, open, opened};
use crate::rig::Cluster;
use crate::rig_xattr;
use libc::{F_SETLKW, F_UNLCK, F_WRLCK};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Requests of a host to the device so far, but for those that come with time: heartbeats and looks at
/// the inbox.
fn requests(cluster: &Cluster, host: usize) -> u64 {
    let report = rig_xattr::get(&cluster.at(host), "trusted.shoal.io").expect("on the root");
    let report = String::from_utf8(report).expect("text");
    let counted = report.split(' ').filter_map(|pair| pair.split_once('='));
    let of_time =
        |name: &str| name.starts_with("heartbeat") || name == "inbox_reads" || name == "inbox_read_bytes";
    let counted = counted.filter(|(name, _)| !of_time(name) && !name.contains("bytes"));
    let counted = counted
        .filter(|(name, _)| name.ends_with("_reads") || name.ends_with("_writes") || name.contains("flush"));
    counted.map(|(_, count)| count.parse::<u64>().expect("a number")).sum()
}

#[test]
fn a_host_alone_locks_without_the_disk() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    // Host 0 decides the locks of its own files; host 1 has to ask once.
    for (host, file) in [(0, &a), (1, &b), (0, &a)] {
        // Beside what the other had a short time ago.
        std::thread::sleep(Duration::from_millis(2500));
        (0..20).for_each(|i| set(file, F_WRLCK, i, 1).and_then(|()| set(file, F_UNLCK, i, 1)).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let before = requests(&cluster, host);
        for i in 0..1000 {
            wait(file, F_WRLCK, i, 10).unwrap();
            set(file, F_UNLCK, i, 10).unwrap();
        }
        let cost = requests(&cluster, host) - before;
        assert!(cost <= 10, "host {host}: {cost} requests for 2000 calls");
    }
    drop((a, b));
    super::leave_and_check(&cluster, 2);
}

/// Counts up under the lock, by read and write.
fn count_up(fd: i32, times: u32) -> i32 {
    for _ in 0..times {
        let mut bytes = [0; 8];
        let at = |n: isize| n == 8;
        if fcntl(fd, F_SETLKW, F_WRLCK, 0, 1).is_err() {
            return 1;
        }
        // SAFETY: system calls on memory of this function.
        unsafe {
            if !at(libc::pread(fd, bytes.as_mut_ptr().cast(), 8, 0)) {
                return 2;
            }
            bytes = (u64::from_le_bytes(bytes) + 1).to_le_bytes();
            if !at(libc::pwrite(fd, bytes.as_ptr().cast(), 8, 0)) {
                return 3;
            }
        }
        if fcntl(fd, libc::F_SETLK, F_UNLCK, 0, 1).is_err() {
            return 4;
        }
    }
    0
}

/// Counts up under flock, with a descriptor of its own each time.
fn count_opened(path: &std::ffi::CStr, times: u32) -> i32 {
    for _ in 0..times {
        let mut bytes = [0; 8];
        // SAFETY: system calls on memory of this function.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDWR);
            if fd < 0 || libc::flock(fd, libc::LOCK_EX) != 0 {
                return 1;
            }
            if libc::pread(fd, bytes.as_mut_ptr().cast(), 8, 0) != 8 {
                return 2;
            }
            bytes = (u64::from_le_bytes(bytes) + 1).to_le_bytes();
            if libc::pwrite(fd, bytes.as_ptr().cast(), 8, 0) != 8 {
                return 3;
            }
            libc::close(fd);
        }
    }
    0
}

/// The kernel hears nothing of the end of a file that it has closed, and gives its number to the next.
#[test]
fn the_end_of_one_open_file_is_not_the_end_of_the_next() {
    const TIMES: u32 = 200;
    const HOSTS: [usize; 6] = [0, 0, 0, 0, 1, 1];
    let cluster = Cluster::new("128M", 2, LIMIT);
    let files: [_; 2] = opened(&cluster, "file");
    let programs = HOSTS.map(|host| {
        let path = std::ffi::CString::new(cluster.at(host).join("file").to_str().unwrap()).unwrap();
        Child::start(move || count_opened(&path, TIMES))
    });
    for mut program in programs {
        assert_eq!(program.end(Duration::from_secs(60)), 0);
    }
    let mut bytes = [0; 8];
    files[1].read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), u64::from(TIMES) * HOSTS.len() as u64);
    drop(files);
    super::leave_and_check(&cluster, 2);
}

/// The same in a mapping.
fn count_mapped(fd: i32, times: u32) -> i32 {
    // SAFETY: a mapping of a file that is long enough.
    let counter = unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd,
            0,
        );
        if at == libc::MAP_FAILED {
            return 5;
        }
        at.cast::<u64>()
    };
    for _ in 0..times {
        if fcntl(fd, F_SETLKW, F_WRLCK, 0, 1).is_err() {
            return 1;
        }
        // SAFETY: within the mapping; the lock keeps others away.
        unsafe { counter.write_volatile(counter.read_volatile() + 1) };
        if fcntl(fd, libc::F_SETLK, F_UNLCK, 0, 1).is_err() {
            return 4;
        }
    }
    0
}

#[test]
fn what_is_counted_under_a_lock_is_exact_on_three_hosts() {
    const TIMES: u32 = 150;
    let cluster = Cluster::new("128M", 3, LIMIT);
    let work: [fn(i32, u32) -> i32; 2] = [count_up, count_mapped];
    for (name, work) in ["written", "mapped"].into_iter().zip(work) {
        let files: [_; 3] = opened(&cluster, name);
        // Two programs on one of them.
        let programs = [0, 1, 2, 1].map(|host: usize| {
            let path = std::ffi::CString::new(cluster.at(host).join(name).to_str().unwrap()).unwrap();
            Child::start(move || {
                // SAFETY: a system call.
                let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
                work(fd, TIMES)
            })
        });
        for mut program in programs {
            assert_eq!(program.end(Duration::from_secs(60)), 0);
        }
        for (host, file) in files.iter().enumerate() {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), u64::from(4 * TIMES), "{name}, host {host}");
        }
    }
    super::leave_and_check(&cluster, 3);
}

#[test]
fn many_locks_of_many_owners_move_to_another_server() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    // Host 1 alone serves itself; more than fits one register.
    let many: Vec<_> = (0..20).map(|_| open(&cluster.at(1).join("file"))).collect();
    for (i, file) in many.iter().enumerate() {
        for j in 0..20 {
            super::set_ofd(file, F_WRLCK, (i * 100 + j * 2) as i64, 1).unwrap();
        }
    }
    for at in 0..2000 {
        let expected = if at % 100 < 40 && at % 2 == 0 { Err(libc::EAGAIN) } else { Ok(()) };
        assert_eq!(set(&a, F_WRLCK, at, 1), expected, "{at}");
    }
    assert_eq!(fcntl(b.as_raw_fd(), libc::F_GETLK, F_WRLCK, 1, 1).unwrap().l_type, F_WRLCK as i16);
    drop(many);
    super::eventually("all are gone", || set(&a, F_WRLCK, 0, 0).is_ok());
    drop((a, b));
    super::leave_and_check(&cluster, 2);
}
