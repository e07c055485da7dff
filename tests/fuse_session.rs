//! The session under the running kernel, with a handler that answers by hand: locks that wait, and what
//! the kernel makes of certain answers. Needs root and /dev/fuse.
#![cfg(feature = "fuse")]

use shoal::fuse::buffer::Payload;
use shoal::fuse::mount::{self, Place, Unmount};
use shoal::fuse::reply::Reply;
use shoal::fuse::session::Handler;
use shoal::fuse::wire::flags::{Bits, LK_FLOCK, init, setattr};
use shoal::fuse::wire::init::{Offer, Wanted};
use shoal::fuse::wire::{
    Errno, FuseAttr, FuseAttrOut, FuseCopyFileRangeOut, FuseCreateOut, FuseEntryOut, FuseInHeader,
    FuseOpenOut, FuseWriteIn, FuseWriteOut, Request,
};
use shoal::fuse::{Notifier, daemon};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);
const ROOT: u64 = 1;
/// The file `f`, or any other that the kernel gets to know.
const FILE: u64 = 2;
/// What all are said to have.
const SIZE: u64 = 1 << 20;

/// A directory with a file `f`; tells what was asked.
struct ByHand {
    asked: Sender<String>,
    /// The reply to a SETLKW.
    waiting: Arc<Mutex<Option<Reply>>>,
    /// Is there a file `late` yet?
    appeared: Mutex<bool>,
}

fn attr(ino: u64) -> FuseAttr {
    let mode = if ino == ROOT { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
    FuseAttr { ino, mode, nlink: 1, blksize: 4096, size: SIZE, ..FuseAttr::default() }
}

fn entry() -> FuseEntryOut {
    FuseEntryOut { nodeid: FILE, attr: attr(FILE), ..FuseEntryOut::default() }
}

impl ByHand {
    fn tell(&self, what: impl Into<String>) {
        let _ = self.asked.send(what.into());
    }

    fn lock_later(&self, reply: Reply) {
        let interruption = reply.interruption();
        *self.waiting.lock().unwrap() = Some(reply);
        let (waiting, asked) = (Arc::clone(&self.waiting), self.asked.clone());
        interruption.call(move || {
            let reply = waiting.lock().unwrap().take();
            reply.into_iter().for_each(|reply| reply.error(Errno(libc::EINTR)));
            let _ = asked.send("interrupted".into());
        });
    }
}

impl Handler for ByHand {
    fn wanted(&self) -> Wanted {
        const FLAGS: &[Bits] = &[init::POSIX_LOCKS, init::FLOCK_LOCKS, init::BIG_WRITES];
        Wanted { flags: FLAGS, max_write: 1 << 20, max_background: 10 }
    }

    fn agreed(&mut self, offer: &Offer) {
        assert!(offer.has(init::POSIX_LOCKS) && offer.has(init::FLOCK_LOCKS));
    }

    fn forget(&self, _: u64, _: u64) {}

    fn write(&self, _: &FuseInHeader, arg: &FuseWriteIn, payload: Payload, reply: Reply) {
        let (is_page, last) = (payload.as_ptr().align_offset(4096) == 0, payload.last().copied());
        self.tell(format!("write {} {is_page} {last:?}", payload.len()));
        reply.record(&FuseWriteOut { size: arg.size, padding: 0 });
    }

    fn request(&self, header: &FuseInHeader, request: Request<'_>, reply: Reply) {
        let attributes = FuseAttrOut { attr: attr(header.nodeid), ..FuseAttrOut::default() };
        match request {
            Request::Lookup { name: b"f" } => reply.record(&entry()),
            Request::Lookup { name: b"late" } => {
                let appeared = *self.appeared.lock().unwrap();
                self.tell(format!("lookup {appeared}"));
                if appeared { reply.record(&entry()) } else { reply.error(Errno(libc::ENOENT)) }
            }
            // Another host was faster.
            Request::Create { name: b"late", .. } => {
                *self.appeared.lock().unwrap() = true;
                self.tell("create");
                reply.error(Errno(libc::ESTALE));
            }
            Request::Create { .. } => {
                reply.record(&FuseCreateOut { entry: entry(), open: FuseOpenOut::default() });
            }
            Request::Getattr(_) => reply.record(&attributes),
            Request::Setattr(arg) => {
                self.tell(format!("setattr size {}", arg.valid & setattr::SIZE != 0));
                reply.record(&attributes);
            }
            Request::CopyFileRange { arg, wide: true } => {
                reply.record(&FuseCopyFileRangeOut { bytes_copied: arg.len - 1 });
            }
            Request::CopyFileRange { arg, wide: false } => {
                reply.record(&FuseWriteOut { size: arg.len as u32 - 1, padding: 0 });
            }
            Request::Open(_) | Request::Opendir(_) => reply.record(&FuseOpenOut::default()),
            Request::Flush(_) | Request::Release(_) | Request::Releasedir(_) => reply.done(),
            Request::Setlk { wait: true, .. } => {
                self.lock_later(reply);
                self.tell("waiting");
            }
            Request::Setlk { arg, .. } => {
                self.tell(if arg.lk_flags & LK_FLOCK != 0 { "flock" } else { "fcntl" });
                reply.done();
            }
            _ => reply.error(Errno(libc::ENOSYS)),
        }
    }
}

struct Mount {
    path: PathBuf,
    asked: Receiver<String>,
    waiting: Arc<Mutex<Option<Reply>>>,
    serving: Option<JoinHandle<io::Result<()>>>,
    _alive: Sender<()>,
    _directory: tempfile::TempDir,
}

impl Mount {
    fn new() -> Mount {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        let device = mount::open_device().unwrap();
        let notifier = Arc::new(Notifier::new(&device).unwrap());
        let (sender, asked) = channel();
        let waiting = Arc::new(Mutex::new(None));
        let by_hand = ByHand { asked: sender, waiting: Arc::clone(&waiting), appeared: Mutex::new(false) };
        let place = Place { source: OsStr::new("by hand"), mountpoint: &path, flags: 0, claim: None };
        let served = daemon::begin(by_hand, device, Arc::clone(&notifier), place, 2).unwrap();
        let connection = served.connection;
        let serving = Some(std::thread::spawn(move || served.run()));
        let (alive, dead) = channel::<()>();
        std::thread::spawn(move || {
            if dead.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("time limit: aborting the mount");
                let _ = mount::abort(connection);
            }
        });
        Mount { path, asked, waiting, serving, _alive: alive, _directory: directory }
    }

    fn next(&self) -> String {
        self.asked.recv_timeout(SOON).expect("a request in time")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.path, Unmount::Lazy);
        if let Some(serving) = self.serving.take() {
            let served = serving.join();
            assert!(std::thread::panicking() || matches!(served, Ok(Ok(()))), "{served:?}");
        }
    }
}

#[test]
fn a_process_that_waits_for_a_lock_can_be_killed() {
    let m = Mount::new();
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut child = Command::new("flock").arg(m.path.join("f")).arg("true").spawn().unwrap();
        assert_eq!(m.next(), "waiting");
        // SAFETY: a child of this test that has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert_eq!(m.next(), "interrupted");
        assert!(m.waiting.lock().unwrap().is_none());
    }
}

#[test]
fn a_lock_may_be_granted_from_another_thread() {
    let m = Mount::new();
    let mut child = Command::new("flock").arg(m.path.join("f")).arg("true").spawn().unwrap();
    assert_eq!(m.next(), "waiting");
    let reply = m.waiting.lock().unwrap().take().unwrap();
    std::thread::spawn(move || reply.done()).join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_lost_reply_fails_the_call_instead_of_hanging_it() {
    let m = Mount::new();
    let file = File::open(m.path.join("f")).unwrap();
    // SAFETY: a descriptor that stays open until the thread is joined.
    let locking = std::thread::spawn(move || match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } {
        0 => None,
        _ => io::Error::last_os_error().raw_os_error(),
    });
    assert_eq!(m.next(), "waiting");
    drop(m.waiting.lock().unwrap().take());
    assert_eq!(locking.join().unwrap(), Some(libc::EIO));
}

#[test]
fn flock_is_told_from_fcntl() {
    let m = Mount::new();
    let file = OpenOptions::new().read(true).write(true).open(m.path.join("f")).unwrap();
    // SAFETY: a descriptor that is open, and a live record.
    unsafe {
        assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB), 0);
        assert_eq!(m.next(), "flock");
        let lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock), 0);
        assert_eq!(m.next(), "fcntl");
    }
}

#[test]
fn a_create_that_came_too_late_is_looked_up_again_and_truncated() {
    let m = Mount::new();
    File::create(m.path.join("late")).unwrap();
    let asked: Vec<String> = (0..4).map(|_| m.next()).collect();
    assert_eq!(asked, ["lookup false", "create", "lookup true", "setattr size true"]);
}

#[test]
fn payloads_come_on_pages_whatever_their_length() {
    let m = Mount::new();
    let mut file =
        OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(m.path.join("f")).unwrap();
    // The kernel sends as many pages as it has asked for, so ours must not begin in the middle of one.
    let bytes = vec![7; (1 << 20) + 4096];
    let start = bytes.as_ptr().align_offset(4096);
    file.write_all(&bytes[start..][..1 << 20]).unwrap();
    assert_eq!(m.next(), "write 1048576 true Some(7)");
    let mut file = OpenOptions::new().append(true).open(m.path.join("f")).unwrap();
    file.write_all(&[9; 5]).unwrap();
    assert_eq!(m.next(), "write 5 true Some(9)");
}

#[test]
fn files_without_names_are_not_supported() {
    let m = Mount::new();
    let made = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&m.path);
    assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
}

#[test]
fn the_count_of_a_copy_is_understood() {
    let m = Mount::new();
    let file = OpenOptions::new().read(true).write(true).open(m.path.join("f")).unwrap();
    let (mut from, mut to) = (0, 500_000);
    // SAFETY: descriptors that are open, and live numbers.
    let copied =
        unsafe { libc::copy_file_range(file.as_raw_fd(), &mut from, file.as_raw_fd(), &mut to, 10_000, 0) };
    assert_eq!((copied, from, to), (9_999, 9_999, 509_999));
}
