//! Programs that lock files: a process of its own for each, for locks belong to processes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// fcntl with a lock of `length` bytes from `start` (0: to the end).
pub fn fcntl(fd: RawFd, command: i32, kind: i32, start: i64, length: i64) -> Result<libc::flock, i32> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: a system call on a structure of ours.
    match unsafe { libc::fcntl(fd, command, &mut lock) } {
        0 => Ok(lock),
        _ => Err(errno()),
    }
}

pub fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

/// Lock, or fail at once: of this process.
pub fn set(file: &File, kind: i32, start: i64, length: i64) -> Result<(), i32> {
    fcntl(file.as_raw_fd(), libc::F_SETLK, kind, start, length).map(|_| ())
}

/// Is any of this locked by another?
pub fn is_locked(file: &File, start: i64, length: i64) -> bool {
    let found = fcntl(file.as_raw_fd(), libc::F_GETLK, libc::F_WRLCK, start, length).unwrap();
    i32::from(found.l_type) != libc::F_UNLCK
}

/// Wait for it.
pub fn wait(file: &File, kind: i32, start: i64, length: i64) -> Result<(), i32> {
    fcntl(file.as_raw_fd(), libc::F_SETLKW, kind, start, length).map(|_| ())
}

/// The same for the open file description.
pub fn set_ofd(file: &File, kind: i32, start: i64, length: i64) -> Result<(), i32> {
    fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, kind, start, length).map(|_| ())
}

pub fn flock(file: &File, how: i32) -> Result<(), i32> {
    // SAFETY: a system call with numbers.
    match unsafe { libc::flock(file.as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// A child that does `work`, which may make system calls and nothing else, and exits with its number.
pub struct Child {
    pub pid: i32,
    status: Option<i32>,
}

impl Child {
    pub fn start(work: impl FnOnce() -> i32) -> Child {
        Child::prepared(|| (), work)
    }

    /// `prepare` is done with the descriptors of this process, `work` with the first three.
    fn prepared(prepare: impl FnOnce(), work: impl FnOnce() -> i32) -> Child {
        // SAFETY: the child calls nothing that could wait for another thread of this process.
        match unsafe { libc::fork() } {
            0 => {
                prepare();
                // Other tests' files would keep their mounts busy.
                // SAFETY: this process's descriptors, none of which is used from here on.
                unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
                let code = work();
                // SAFETY: ends the child without anything else.
                unsafe { libc::_exit(code) }
            }
            pid => {
                assert!(pid > 0);
                Child { pid, status: None }
            }
        }
    }

    /// The same with one end of a socket, its descriptor 0.
    pub fn talking(socket: OwnedFd, work: fn(RawFd) -> i32) -> Child {
        let end = socket.as_raw_fd();
        Child::prepared(
            // SAFETY: system calls on descriptors of the child.
            || unsafe {
                let _ = libc::dup2(end, 0);
            },
            || work(0),
        )
    }

    /// Locks by a descriptor of its own, then waits for a signal.
    pub fn locking(path: &Path, command: i32, kind: i32, start: i64, length: i64) -> Child {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let child = Child::start(move || {
            // SAFETY: system calls.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
            match fcntl(fd, command, kind, start, length) {
                Ok(_) => loop {
                    // SAFETY: a system call.
                    unsafe { libc::pause() };
                },
                Err(e) => e,
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        child
    }

    pub fn signal(&self, number: i32) {
        // SAFETY: a child of this process.
        assert_eq!(unsafe { libc::kill(self.pid, number) }, 0);
    }

    /// Has it ended? With which wait status?
    pub fn poll(&mut self) -> Option<i32> {
        if self.status.is_none() {
            let mut status = 0;
            // SAFETY: a system call on a number of ours.
            if unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } == self.pid {
                self.status = Some(status);
            }
        }
        self.status
    }

    /// Its wait status, which must be there soon.
    pub fn end(&mut self, limit: Duration) -> i32 {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.poll() {
                return status;
            }
            assert!(Instant::now() < deadline, "a program does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.end(Duration::from_secs(5));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.poll().is_none() {
            self.signal(libc::SIGKILL);
        }
    }
}
