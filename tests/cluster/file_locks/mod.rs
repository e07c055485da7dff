//! File locks of programs, between hosts.

mod contention;
pub mod program;
mod unlocked;

use crate::rig::Cluster;
use libc::{EAGAIN, EDEADLK, F_RDLCK, F_SETLKW, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN};
use program::{Child, fcntl, flock, is_locked, set, set_ofd, wait};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(5);

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The file `name` as these hosts have it open.
fn opened<const N: usize>(cluster: &Cluster, name: &str) -> [File; N] {
    fs::write(cluster.at(0).join(name), vec![0; 4096]).unwrap();
    std::array::from_fn(|host| open(&cluster.at(host).join(name)))
}

fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn leave_and_check(cluster: &Cluster, hosts: usize) {
    (0..hosts).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn ranges_split_and_merge_between_hosts() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    for _ in 0..2 {
        set(&a, F_WRLCK, 0, 10).unwrap();
        assert_eq!(set(&b, F_WRLCK, 9, 5), Err(EAGAIN));
        set(&b, F_WRLCK, 10, 0).unwrap();
        assert_eq!(set(&b, F_RDLCK, 5, 1), Err(EAGAIN));
        let found = fcntl(b.as_raw_fd(), libc::F_GETLK, F_WRLCK, 0, 0).unwrap();
        assert_eq!((i32::from(found.l_type), found.l_start, found.l_len), (F_WRLCK, 0, 10));
        assert_eq!(found.l_pid, 0, "processes of other hosts have no number here");
        set(&a, F_UNLCK, 5, 1).unwrap();
        set(&b, F_RDLCK, 5, 1).unwrap();
        assert_eq!(set(&b, F_RDLCK, 6, 1), Err(EAGAIN));
        // Down to shared, up again when the other has gone.
        set(&a, F_RDLCK, 0, 5).unwrap();
        set(&b, F_RDLCK, 0, 5).unwrap();
        assert_eq!(set(&a, F_WRLCK, 2, 1), Err(EAGAIN));
        set(&b, F_UNLCK, 0, 0).unwrap();
        set(&a, F_WRLCK, 0, 0).unwrap();
        assert_eq!(set(&b, F_RDLCK, 4000, 1), Err(EAGAIN));
        // Closing any descriptor of the file ends the process's locks.
        drop(open(&cluster.at(0).join("file")));
        set(&b, F_WRLCK, 0, 0).unwrap();
        set(&b, F_UNLCK, 0, 0).unwrap();
    }
    // One host's own program is named.
    let mut child = Child::locking(&cluster.at(1).join("file"), F_SETLKW, F_WRLCK, 3, 4);
    let found = fcntl(b.as_raw_fd(), libc::F_GETLK, F_RDLCK, 0, 0).unwrap();
    assert_eq!((found.l_start, found.l_len, found.l_pid), (3, 4, child.pid));
    child.kill();
    assert_eq!(wait(&a, F_WRLCK, 0, 0), Ok(()));
    drop((a, b));
    leave_and_check(&cluster, 2);
}

#[test]
fn flock_and_fcntl_do_not_meet_and_each_ends_with_its_own() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    flock(&a, LOCK_EX).unwrap();
    set(&b, F_WRLCK, 0, 0).unwrap();
    assert_eq!(flock(&b, LOCK_SH | LOCK_NB), Err(EAGAIN));
    assert_eq!(set(&a, F_RDLCK, 0, 1), Err(EAGAIN));
    flock(&a, LOCK_SH).unwrap();
    flock(&b, LOCK_SH | LOCK_NB).unwrap();
    // Two shared ones that both want more: who asks gives up its own first, as on Linux.
    assert_eq!(flock(&a, LOCK_EX | LOCK_NB), Err(EAGAIN));
    flock(&b, LOCK_EX | LOCK_NB).unwrap();
    flock(&b, LOCK_UN).unwrap();
    // A copy of the descriptor is the same lock; it ends with the last one.
    flock(&a, LOCK_EX).unwrap();
    let copy = a.try_clone().unwrap();
    drop(a);
    assert_eq!(flock(&b, LOCK_EX | LOCK_NB), Err(EAGAIN));
    drop(copy);
    eventually("flock ends with the file", || flock(&b, LOCK_EX | LOCK_NB).is_ok());
    // Locks of an open file description.
    let path = cluster.at(0).join("file");
    let (one, two) = (open(&path), open(&path));
    set(&b, F_UNLCK, 0, 0).unwrap();
    set_ofd(&one, F_WRLCK, 0, 10).unwrap();
    assert_eq!(set_ofd(&two, F_WRLCK, 5, 10), Err(EAGAIN));
    assert_eq!(set(&b, F_RDLCK, 5, 1), Err(EAGAIN));
    drop(two);
    assert_eq!(set(&b, F_RDLCK, 5, 1), Err(EAGAIN), "another's close is not its end");
    drop(one);
    eventually("and its own is", || set(&b, F_WRLCK, 0, 0).is_ok());
    // Directories: the kernel keeps these locks to itself.
    let directory = File::open(cluster.at(0)).unwrap();
    flock(&directory, LOCK_EX | LOCK_NB).unwrap();
    drop((b, directory));
    leave_and_check(&cluster, 2);
}

static CAUGHT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

extern "C" fn caught(_: i32) {
    CAUGHT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

/// SIGUSR1 is caught, and interrupts.
fn catch_signals() {
    // SAFETY: the handler only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = caught as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

#[test]
fn a_program_that_waits_can_be_interrupted_and_killed() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    catch_signals();
    for (holder, waits_at) in [(&a, 1), (&a, 0), (&b, 0), (&b, 1)] {
        wait(holder, F_WRLCK, 0, 10).unwrap();
        let path = cluster.at(waits_at).join("file");
        let mut interrupted = Child::locking(&path, F_SETLKW, F_WRLCK, 5, 1);
        let mut killed = Child::locking(&path, F_SETLKW, F_WRLCK, 6, 1);
        assert!(interrupted.poll().is_none() && killed.poll().is_none(), "they wait");
        let begun = Instant::now();
        interrupted.signal(libc::SIGUSR1);
        assert_eq!(libc::WEXITSTATUS(interrupted.end(SOON)), libc::EINTR);
        killed.signal(libc::SIGKILL);
        assert_eq!(libc::WTERMSIG(killed.end(SOON)), libc::SIGKILL);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // They left nothing behind.
        set(holder, F_UNLCK, 0, 0).unwrap();
        [&a, &b]
            .into_iter()
            .for_each(|f| wait(f, F_WRLCK, 0, 0).and_then(|()| set(f, F_UNLCK, 0, 0)).unwrap());
    }
    // flock(1) likewise.
    flock(&a, LOCK_EX).unwrap();
    let path = cluster.at(1).join("file");
    let mut program = std::process::Command::new("flock").arg(&path).arg("true").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(program.try_wait().unwrap().is_none());
    program.kill().unwrap();
    program.wait().unwrap();
    flock(&a, LOCK_UN).unwrap();
    eventually("the lock is free", || flock(&b, LOCK_EX | LOCK_NB).is_ok());
    drop((a, b));
    leave_and_check(&cluster, 2);
}

#[test]
fn a_circle_of_waits_is_refused() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    for (one, other) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let name = format!("file{one}{other}");
        fs::write(cluster.at(0).join(&name), b"x").unwrap();
        let mine = open(&cluster.at(one).join(&name));
        wait(&mine, F_WRLCK, 0, 1).unwrap();
        let path = std::ffi::CString::new(cluster.at(other).join(&name).to_str().unwrap()).unwrap();
        let mut child = Child::start(move || {
            // SAFETY: a system call.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
            let got =
                fcntl(fd, libc::F_SETLK, F_WRLCK, 1, 1).and_then(|_| fcntl(fd, F_SETLKW, F_WRLCK, 0, 1));
            got.err().unwrap_or(0)
        });
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(wait(&mine, F_WRLCK, 1, 1), Err(EDEADLK), "{name}");
        set(&mine, F_UNLCK, 0, 0).unwrap();
        assert_eq!(libc::WEXITSTATUS(child.end(SOON)), 0, "the other one gets it");
    }
    leave_and_check(&cluster, 2);
}

#[test]
fn locks_of_a_dead_host_end_when_it_is_recovered_and_others_stand() {
    let cluster = Cluster::new("128M", 3, LIMIT);
    // The file is in a group of host 0, which decides its locks.
    let [a, b, c] = opened(&cluster, "file");
    set(&a, F_WRLCK, 0, 10).unwrap();
    set(&b, F_WRLCK, 10, 10).unwrap();
    set(&c, F_RDLCK, 20, 10).unwrap();
    let path = cluster.at(1).join("file");
    let mut waits = Child::locking(&path, F_SETLKW, F_WRLCK, 5, 1);
    let mut waits_on = Child::locking(&cluster.at(2).join("file"), F_SETLKW, F_WRLCK, 15, 1);
    assert!(waits.poll().is_none() && waits_on.poll().is_none());
    cluster.kill(&[0]);
    drop(a);
    // Of whoever serves them from now on, too.
    assert_eq!(set(&c, F_RDLCK, 12, 1), Err(EAGAIN));
    assert_eq!(set(&b, F_WRLCK, 25, 1), Err(EAGAIN));
    eventually("the dead host's lock is free", || set(&c, F_WRLCK, 0, 5).is_ok());
    eventually("who waited has it", || is_locked(&c, 5, 1));
    assert!(waits.poll().is_none() && waits_on.poll().is_none(), "one has it, the other waits");
    waits.kill();
    set(&b, F_UNLCK, 10, 10).unwrap();
    eventually("who waited has it", || is_locked(&b, 15, 1));
    waits_on.kill();
    drop((b, c));
    (1..3).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn locks_of_a_killed_client_end_and_its_server_goes_on() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    set(&a, F_WRLCK, 20, 10).unwrap();
    wait(&b, F_WRLCK, 0, 10).unwrap();
    flock(&b, LOCK_EX).unwrap();
    let mut waits = Child::locking(&cluster.at(0).join("file"), F_SETLKW, F_WRLCK, 5, 1);
    assert!(waits.poll().is_none());
    cluster.kill(&[1]);
    drop(b);
    assert_eq!(flock(&a, LOCK_SH | LOCK_NB), Err(EAGAIN), "it is not recovered yet");
    eventually("who waited has it", || is_locked(&a, 5, 1));
    eventually("the rest is free", || set(&a, F_WRLCK, 6, 4).is_ok());
    eventually("and flock", || flock(&a, LOCK_EX | LOCK_NB).is_ok());
    waits.kill();
    drop(a);
    cluster.umount(0);
    cluster.check();
}

#[test]
fn locks_stand_while_their_server_unmounts() {
    let cluster = Cluster::new("128M", 3, LIMIT);
    // The file is in a group of host 0, which decides its locks.
    let [a, b, c] = opened(&cluster, "file");
    set(&b, F_WRLCK, 0, 10).unwrap();
    set(&c, F_RDLCK, 20, 10).unwrap();
    flock(&c, LOCK_EX).unwrap();
    let mut waits = Child::locking(&cluster.at(2).join("file"), F_SETLKW, F_WRLCK, 5, 1);
    assert!(waits.poll().is_none());
    drop(a);
    cluster.umount(0);
    assert_eq!(set(&b, F_WRLCK, 25, 1), Err(EAGAIN));
    assert_eq!(set(&c, F_RDLCK, 5, 1), Err(EAGAIN));
    assert_eq!(flock(&b, LOCK_SH | LOCK_NB), Err(EAGAIN));
    assert!(waits.poll().is_none(), "it waits on");
    set(&b, F_UNLCK, 0, 0).unwrap();
    eventually("who waited has it", || is_locked(&b, 5, 1));
    waits.kill();
    drop((b, c));
    (1..3).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn flock_is_interrupted_by_a_signal_that_is_caught() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = opened(&cluster, "file");
    catch_signals();
    for (holder, waits_at) in [(&a, 1), (&b, 0), (&a, 0)] {
        flock(holder, LOCK_EX).unwrap();
        let path = std::ffi::CString::new(cluster.at(waits_at).join("file").to_str().unwrap()).unwrap();
        let waits = || {
            let path = path.clone();
            Child::start(move || {
                // SAFETY: system calls.
                match unsafe { libc::flock(libc::open(path.as_ptr(), libc::O_RDWR), LOCK_EX) } {
                    0 => 0,
                    _ => program::errno(),
                }
            })
        };
        let (mut interrupted, mut killed) = (waits(), waits());
        std::thread::sleep(Duration::from_millis(400));
        assert!(interrupted.poll().is_none() && killed.poll().is_none(), "they wait");
        interrupted.signal(libc::SIGUSR1);
        assert_eq!(libc::WEXITSTATUS(interrupted.end(SOON)), libc::EINTR);
        killed.signal(libc::SIGKILL);
        assert_eq!(libc::WTERMSIG(killed.end(SOON)), libc::SIGKILL);
        flock(holder, LOCK_UN).unwrap();
        eventually("it is free", || flock(&b, LOCK_EX | LOCK_NB).is_ok());
        flock(&b, LOCK_UN).unwrap();
    }
    drop((a, b));
    leave_and_check(&cluster, 2);
}

#[test]
fn locks_of_a_host_that_leaves_are_free() {
    for gone in [1, 0] {
        let cluster = Cluster::new("128M", 2, LIMIT);
        let [a, b] = opened(&cluster, "file");
        let (holder, other) = if gone == 0 { (a, b) } else { (b, a) };
        wait(&holder, F_WRLCK, 0, 0).unwrap();
        flock(&holder, LOCK_EX).unwrap();
        let mut waits = Child::locking(&cluster.at(1 - gone).join("file"), F_SETLKW, F_WRLCK, 0, 1);
        let mut cut = Child::locking(&cluster.at(gone).join("file"), F_SETLKW, F_WRLCK, 7, 1);
        assert!(waits.poll().is_none() && cut.poll().is_none());
        cluster.cut_off(gone);
        cut.end(SOON);
        eventually("who waited has it", || is_locked(&other, 0, 1));
        eventually("the rest is free", || set(&other, F_WRLCK, 1, 0).is_ok());
        eventually("and flock", || flock(&other, LOCK_EX | LOCK_NB).is_ok());
        waits.kill();
        drop(holder);
        cluster.mount(gone);
        let holder = open(&cluster.at(gone).join("file"));
        wait(&holder, F_WRLCK, 0, 1).unwrap();
        assert_eq!(set(&holder, F_RDLCK, 1, 1), Err(EAGAIN));
        drop((holder, other));
        leave_and_check(&cluster, 2);
    }
}
