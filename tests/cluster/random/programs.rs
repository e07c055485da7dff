//! A program on each host: a process of its own, for POSIX locks and the umask are a process's. It does what it is
//! asked for, one request after the other, until it is killed.

use crate::file_locks::program::{Child, errno, fcntl};
use crate::model::Id;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Files that a program may have open.
pub const SLOTS: usize = 4;
const PATH_MAX: usize = 4096;

/// What a program is asked for.
#[derive(Clone, Copy)]
pub enum Request {
    Create {
        mode: u32,
        umask: u32,
    },
    Mkdir {
        mode: u32,
        umask: u32,
    },
    Open {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    /// `how` is F_RDLCK, F_WRLCK or F_UNLCK.
    SetLock {
        slot: usize,
        how: i32,
        start: i64,
        length: i64,
    },
    TestLock {
        slot: usize,
        how: i32,
        start: i64,
        length: i64,
    },
}

/// A request with its path, as it goes through the socket.
#[repr(C)]
struct Message {
    request: Request,
    path: [u8; PATH_MAX],
}

/// What has come of it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Answer {
    errno: i32,
    /// What a test has found: kind, start, length.
    lock: (i32, i64, i64),
}

pub struct Program {
    child: Child,
    socket: UnixDatagram,
    /// What it has open.
    pub open: [Option<Id>; SLOTS],
}

/// Everything here is system calls: the process has been forked beside threads.
fn serve(socket: RawFd) -> i32 {
    let mut slots = [-1; SLOTS];
    // SAFETY: plain data, which the first request fills in.
    let mut message: Message = unsafe { std::mem::zeroed() };
    let size = size_of::<Message>();
    loop {
        // SAFETY: memory of the length that is said; the other side writes messages and nothing else.
        let got = unsafe { libc::read(socket, (&raw mut message).cast(), size) };
        if got != size as isize {
            return 0;
        }
        let mut answer = Answer::default();
        match obey(&message, &mut slots) {
            Ok(lock) => answer.lock = (i32::from(lock.0), lock.1, lock.2),
            Err(errno) => answer.errno = errno,
        }
        // SAFETY: as above.
        if unsafe { libc::write(socket, (&raw const answer).cast(), size_of::<Answer>()) } < 0 {
            return 1;
        }
    }
}

fn obey(message: &Message, slots: &mut [RawFd; SLOTS]) -> Result<(i16, i64, i64), i32> {
    let path = message.path.as_ptr().cast();
    let nothing = (libc::F_UNLCK as i16, 0, 0);
    let check = |done: i32| if done < 0 { Err(errno()) } else { Ok(done) };
    // SAFETY: system calls on a path that ends in NUL, and on descriptors of this process.
    unsafe {
        match message.request {
            Request::Create { mode, umask } => {
                libc::umask(umask);
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
                check(libc::open(path, flags, mode)).map(|fd| libc::close(fd))?;
            }
            Request::Mkdir { mode, umask } => {
                libc::umask(umask);
                check(libc::mkdir(path, mode))?;
            }
            Request::Open { slot } => slots[slot] = check(libc::open(path, libc::O_RDWR))?,
            Request::Close { slot } => drop(check(libc::close(slots[slot]))?),
            Request::SetLock { slot, how, start, length } => {
                fcntl(slots[slot], libc::F_SETLK, how, start, length)?;
            }
            Request::TestLock { slot, how, start, length } => {
                let found = fcntl(slots[slot], libc::F_GETLK, how, start, length)?;
                return Ok((found.l_type, found.l_start, found.l_len));
            }
        }
    }
    Ok(nothing)
}

impl Program {
    pub fn start() -> Program {
        let (socket, other) = UnixDatagram::pair().unwrap();
        let child = Child::talking(OwnedFd::from(other), serve);
        Program { child, socket, open: [None; SLOTS] }
    }

    /// Ask for something; a request without a path has an empty one.
    pub fn ask(&self, request: Request, path: &Path) -> io::Result<(i32, i64, i64)> {
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        let name = name.as_bytes_with_nul();
        let mut message = Message { request, path: [0; PATH_MAX] };
        message.path[..name.len()].copy_from_slice(name);
        let mut answer = Answer::default();
        let fd = self.socket.as_raw_fd();
        // SAFETY: memory of the lengths that are said; the other side is the same program.
        let (sent, got) = unsafe {
            let sent = libc::write(fd, (&raw const message).cast(), size_of::<Message>());
            (sent, libc::read(fd, (&raw mut answer).cast(), size_of::<Answer>()))
        };
        assert_eq!(
            (sent, got),
            (size_of::<Message>() as isize, size_of::<Answer>() as isize),
            "it has ended"
        );
        match answer.errno {
            0 => Ok(answer.lock),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    pub fn has_open(&self, id: Id) -> bool {
        self.open.contains(&Some(id))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill();
    }
}
