//! The conversation on a packet socket in place of /dev/fuse.

use super::*;
use crate::fuse::wire::flags::init::{INIT_EXT, SETXATTR_EXT};
use crate::fuse::wire::{FuseFileLock, FuseInitOut, FuseLkIn, FuseOutHeader, MINOR_MAX, WRITE_HEAD};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::thread::JoinHandle;
use zerocopy::FromBytes;

/// Both ends of a connection that keeps packets apart; reads give up after ten seconds.
fn connection() -> (File, OwnedFd) {
    let mut ends = [0; 2];
    let patience = libc::timeval { tv_sec: 10, tv_usec: 0 };
    // SAFETY: the calls write two descriptors, which are owned once, and read a live value.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()), 0);
        let (at, length) = ((&raw const patience).cast(), size_of_val(&patience) as u32);
        assert_eq!(libc::setsockopt(ends[0], libc::SOL_SOCKET, libc::SO_RCVTIMEO, at, length), 0);
        for end in ends {
            let (room, length) = (4i32 << 20, size_of::<i32>() as u32);
            let at = (&raw const room).cast();
            assert_eq!(libc::setsockopt(end, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, at, length), 0);
        }
        (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

fn ask(kernel: &mut File, opcode: u32, unique: u64, parts: &[&[u8]]) {
    let body = parts.concat();
    let len = (size_of::<FuseInHeader>() + body.len()) as u32;
    let header = FuseInHeader { len, opcode, unique, nodeid: 1, ..FuseInHeader::default() };
    kernel.write_all(&[header.as_bytes(), &body].concat()).unwrap();
}

/// The next answer: whose, what, and the rest of it.
fn heard(kernel: &mut File) -> (u64, i32, Vec<u8>) {
    let mut room = vec![0; 4096];
    let length = kernel.read(&mut room).expect("an answer in time");
    room.truncate(length);
    let (header, body) = FuseOutHeader::read_from_prefix(&room).unwrap();
    assert_eq!(header.len as usize, length);
    (header.unique, header.error, body.to_vec())
}

/// Keeps what it is given.
#[derive(Default)]
struct Keeper {
    minor: u32,
    forgotten: Mutex<Vec<(u64, u64)>>,
    written: Mutex<Vec<Payload>>,
    waiting: Arc<Mutex<Option<Reply>>>,
}

impl Handler for Keeper {
    fn wanted(&self) -> Wanted {
        Wanted { flags: &[SETXATTR_EXT], max_write: 1 << 20, max_background: 5 }
    }

    fn agreed(&mut self, offer: &Offer) {
        self.minor = offer.minor;
    }

    fn forget(&self, nodeid: u64, count: u64) {
        self.forgotten.lock().push((nodeid, count));
    }

    fn write(&self, _: &FuseInHeader, _: &FuseWriteIn, payload: Payload, reply: Reply) {
        self.written.lock().push(payload);
        reply.done();
    }

    fn request(&self, _: &FuseInHeader, request: Request<'_>, reply: Reply) {
        match request {
            Request::Setlk { wait: true, .. } => {
                let interruption = reply.interruption();
                *self.waiting.lock() = Some(reply);
                let waiting = Arc::clone(&self.waiting);
                interruption.call(move || {
                    let reply = waiting.lock().take();
                    reply.into_iter().for_each(|reply| reply.error(Errno(libc::EINTR)));
                });
            }
            Request::Setxattr { value, .. } => reply.data(value),
            _ => reply.error(Errno(libc::ENOSYS)),
        }
    }
}

type Begun = JoinHandle<io::Result<Session<Keeper>>>;

fn begin(device: OwnedFd) -> Begun {
    std::thread::spawn(move || Session::begin(Keeper::default(), device))
}

fn init(major: u32, minor: u32) -> FuseInitIn {
    let flags = (INIT_EXT.0 | SETXATTR_EXT.0) as u32;
    FuseInitIn { major, minor, flags, ..FuseInitIn::default() }
}

/// A session that is being served, its kernel's end, and its end.
fn served() -> (File, Arc<Session<Keeper>>, JoinHandle<io::Result<()>>) {
    let (mut kernel, device) = connection();
    let begun = begin(device);
    ask(&mut kernel, 26, 2, &[init(7, 45).as_bytes()]);
    assert_eq!(heard(&mut kernel).1, 0);
    let session = Arc::new(begun.join().unwrap().unwrap());
    let own = Arc::clone(&session);
    (kernel, session, std::thread::spawn(move || own.run(2)))
}

#[test]
fn an_old_kernel_is_told_off_once() {
    let (mut kernel, device) = connection();
    let begun = begin(device);
    ask(&mut kernel, 26, 2, &[&init(7, 37).as_bytes()[..16]]);
    assert_eq!(heard(&mut kernel), (2, -libc::EPROTO, Vec::new()));
    let error = begun.join().unwrap().err().expect("refused").to_string();
    assert!(error.contains("7.37") && error.contains("7.38"), "{error}");
}

#[test]
fn a_later_protocol_is_asked_to_come_down() {
    let (mut kernel, device) = connection();
    let begun = begin(device);
    ask(&mut kernel, 26, 2, &[init(8, 1).as_bytes()]);
    let (_, error, body) = heard(&mut kernel);
    let answer = FuseInitOut::read_from_bytes(&body).unwrap();
    assert_eq!((error, answer.major, answer.minor), (0, MAJOR, MINOR_MAX));
    ask(&mut kernel, 26, 4, &[init(7, 99).as_bytes()]);
    let (unique, error, body) = heard(&mut kernel);
    let answer = FuseInitOut::read_from_bytes(&body).unwrap();
    assert_eq!((unique, error, answer.minor, answer.max_write), (4, 0, MINOR_MAX, 1 << 20));
    assert_eq!(begun.join().unwrap().unwrap().handler.minor, 99);
}

#[test]
fn a_connection_that_ends_before_init_is_an_error() {
    let (kernel, device) = connection();
    drop(kernel);
    assert!(begin(device).join().unwrap().is_err());
}

#[test]
fn payloads_are_kept_while_other_requests_come() {
    let (mut kernel, session, end) = served();
    for n in 0..5u8 {
        let bytes = vec![n; 100_000 + usize::from(n)];
        let arg = FuseWriteIn { size: bytes.len() as u32, ..FuseWriteIn::default() };
        ask(&mut kernel, 16, 4, &[arg.as_bytes(), &bytes]);
        assert_eq!(heard(&mut kernel), (4, 0, Vec::new()));
    }
    ask(&mut kernel, 21, 6, &[&[3, 0, 0, 0], &[0; 12], b"user.a\0", b"xyz"]);
    assert_eq!(heard(&mut kernel), (6, 0, b"xyz".to_vec()));
    drop(kernel);
    end.join().unwrap().unwrap();
    for (n, payload) in session.handler.written.lock().iter().enumerate() {
        assert_eq!(payload.as_ptr().align_offset(4096), 0);
        assert!(payload.len() == 100_000 + n && payload.iter().all(|b| usize::from(*b) == n));
    }
}

#[test]
fn what_makes_no_sense_is_an_error_and_the_session_goes_on() {
    let (mut kernel, session, end) = served();
    ask(&mut kernel, 16, 4, &[&[0; 8]]);
    assert_eq!(heard(&mut kernel), (4, -libc::EIO, Vec::new()), "a cut WRITE");
    ask(&mut kernel, 9999, 6, &[b"?"]);
    assert_eq!(heard(&mut kernel), (6, -libc::ENOSYS, Vec::new()));
    ask(&mut kernel, 26, 8, &[init(7, 45).as_bytes()]);
    assert_eq!(heard(&mut kernel), (8, -libc::EIO, Vec::new()), "a second INIT");
    kernel.write_all(b"hello").unwrap();
    // Neither of these is answered.
    ask(&mut kernel, 2, 10, &[&7u64.to_ne_bytes()]);
    ask(&mut kernel, 2, 12, &[]);
    ask(&mut kernel, 38, 14, &[]);
    assert_eq!(heard(&mut kernel), (14, 0, Vec::new()), "DESTROY");
    drop(kernel);
    end.join().unwrap().unwrap();
    assert_eq!(*session.handler.forgotten.lock(), [(1, 7)]);
}

#[test]
fn one_that_waits_can_be_interrupted() {
    let (mut kernel, session, end) = served();
    let lock = FuseLkIn { lk: FuseFileLock { end: 9, ..Default::default() }, ..FuseLkIn::default() };
    let interrupt = |kernel: &mut File, unique: u64| {
        ask(kernel, 36, unique | INTERRUPT_BIT, &[&unique.to_ne_bytes()]);
    };
    interrupt(&mut kernel, 100);
    assert_eq!(heard(&mut kernel), (101, -libc::EAGAIN, Vec::new()), "not seen yet: ask again");
    ask(&mut kernel, 33, 100, &[lock.as_bytes()]);
    while session.handler.waiting.lock().is_none() {
        std::thread::yield_now();
    }
    interrupt(&mut kernel, 100);
    assert_eq!(heard(&mut kernel), (100, -libc::EINTR, Vec::new()));
    interrupt(&mut kernel, 100);
    assert_eq!(heard(&mut kernel), (101, -libc::EAGAIN, Vec::new()), "answered: the kernel knows best");
    drop(kernel);
    end.join().unwrap().unwrap();
}

#[test]
fn the_largest_write_fits() {
    assert!(Pool::default().take().room().len() >= WRITE_HEAD + (1 << 20));
}
