//! The kernel adapter, the own mount and the notifier against the running kernel, with a filesystem
//! in memory behind them. Needs root and /dev/fuse; without them it says so and passes.
#![cfg(feature = "fuse")]

use shoal::base::{Error, Result};
use shoal::device::mountinfo;
use shoal::fs::operations::Operations;
use shoal::fs::types::{Caller, KernelCache, LookupReply, NewNode, NodeId, WriteFlags};
use shoal::fuse::adapter::Adapter;
use shoal::fuse::mount::{self, Place, Unmount};
use shoal::fuse::{Notifier, daemon};
use shoal::inode::FileKind;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

#[path = "../benches/memfs/tree.rs"]
#[allow(dead_code)]
mod tree;
use tree::MemFs;

/// No test takes longer; then its own mount is aborted, which makes every call on it fail.
const LIMIT: Duration = Duration::from_secs(60);

/// One mount of its own, gone when dropped.
struct Mount {
    fs: Arc<MemFs>,
    notifier: Arc<Notifier>,
    path: PathBuf,
    connection: u64,
    serving: Option<JoinHandle<io::Result<()>>>,
    _alive: Sender<()>,
    _directory: tempfile::TempDir,
}

impl Mount {
    /// `None` where this machine cannot mount.
    fn new(source: &str, flags: u64) -> Option<Mount> {
        if !Path::new("/dev/fuse").exists() || fs::metadata("/proc/self").unwrap().uid() != 0 {
            panic!("this test needs root and /dev/fuse");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        let device = mount::open_device().unwrap();
        let notifier = Arc::new(Notifier::new(&device).unwrap());
        let fs = Arc::new(MemFs::new());
        let adapter = Adapter::new(Arc::clone(&fs));
        let place = Place { source: OsStr::new(source), mountpoint: &path, flags, claim: None };
        let served = daemon::begin(adapter, device, Arc::clone(&notifier), place, 2).unwrap();
        let connection = served.connection;
        let serving = Some(std::thread::spawn(move || served.run()));
        let (alive, dead) = channel::<()>();
        let watched = Arc::clone(&notifier);
        std::thread::spawn(move || {
            if dead.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("time limit: aborting the mount");
                let _ = watched.abort();
            }
        });
        Some(Mount { fs, notifier, path, connection, serving, _alive: alive, _directory: directory })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What another host would do: change without the kernel's knowledge.
    fn create_behind(&self, name: &str) -> NodeId {
        let new = NewNode { kind: FileKind::Regular, perm: 0o644, umask: 0, rdev: 0 };
        let made = answer(|r| self.fs.mknod(Caller::default(), NodeId::ROOT, name.as_bytes(), new, r));
        let ino = made.unwrap().ino;
        self.fs.forget(ino, 1);
        ino
    }

    fn write_behind(&self, ino: NodeId, offset: u64, data: &[u8]) {
        let flags = WriteFlags::default();
        answer(|r| self.fs.write(ino, 0, offset, data, flags, Caller::default(), r)).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if mountinfo::mounted_at(&self.path).unwrap().is_some() {
            mount::unmount(&self.path, Unmount::Lazy).unwrap();
        }
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

type Boxed<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// Calls an operation that answers at once.
fn answer<T: Send + 'static>(call: impl FnOnce(Boxed<T>)) -> Result<T> {
    let (send, receive) = channel();
    call(Box::new(move |result| send.send(result).unwrap()));
    receive.recv().map_err(|_| Error::Invalid("no answer"))?
}

fn raw<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

fn path_c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn setxattr(path: &Path, name: &str, value: &[u8], flags: i32) -> i32 {
    let (path, name) = (path_c(path), CString::new(name).unwrap());
    // SAFETY: strings and value outlive the call.
    let r =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if r == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap() }
}

/// The value's length and errno, into a buffer of `room` bytes.
fn getxattr(path: &Path, name: &str, room: usize) -> (isize, i32) {
    let (path, name) = (path_c(path), CString::new(name).unwrap());
    let mut buffer = vec![0u8; room];
    // SAFETY: strings and buffer outlive the call.
    let r = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), room) };
    (r, if r >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap() })
}

#[test]
fn the_mount_shows_type_source_and_flags_as_asked() {
    let Some(m) = Mount::new("/some/device with space", libc::MS_NOSUID) else { return };
    let entry = mountinfo::mounted_at(&m.path).unwrap().unwrap();
    assert_eq!(entry.fs_type, "fuse.shoal");
    assert_eq!(entry.source, "/some/device with space");
    assert_eq!(entry.device, (0, m.connection));
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().find(|l| l.contains(m.path.to_str().unwrap())).unwrap();
    let options = line.split(' ').nth(5).unwrap();
    assert!(options.contains("nosuid") && !options.contains("nodev"), "{line}");
    let ahead = fs::read_to_string(format!("/sys/class/bdi/0:{}/read_ahead_kb", m.connection)).unwrap();
    assert_eq!(ahead.trim(), "8192");
    mount::remount(&m.path, libc::MS_RDONLY | libc::MS_NOSUID).unwrap();
    assert_eq!(raw(File::create(m.at("x"))), libc::EROFS);
    mount::remount(&m.path, 0).unwrap();
    File::create(m.at("x")).unwrap();
}

#[test]
fn files_through_the_kernel() {
    let Some(m) = Mount::new("mem", 0) else { return };
    let data: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let mut file = File::options().create_new(true).read(true).write(true).open(m.at("a")).unwrap();
    file.write_all(&data).unwrap();
    file.rewind().unwrap();
    let mut back = Vec::new();
    file.read_to_end(&mut back).unwrap();
    assert!(back == data);
    file.set_len(10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
    file.sync_all().unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(m.at("a")).unwrap().mode(), 0o104711);
    let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
    file.set_modified(before_1970).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), before_1970);
    m.notifier.inval_inode(NodeId(file.metadata().unwrap().ino()), -1, 0).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), before_1970, "asked again");
    // SAFETY: a descriptor that is open.
    assert_eq!(unsafe { libc::lseek(file.as_raw_fd(), 3, libc::SEEK_HOLE) }, 10);
    assert_eq!(raw(File::create(m.at(&"n".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(raw(File::create_new(m.at("a"))), libc::EEXIST);
}

#[test]
fn the_time_of_birth_is_shown() {
    let Some(m) = Mount::new("mem", 0) else { return };
    let before = SystemTime::now() - Duration::from_secs(2);
    fs::write(m.at("f"), b"x").unwrap();
    let born = match fs::metadata(m.at("f")).unwrap().created() {
        Ok(born) => born,
        Err(e) => return eprintln!("not run: this kernel asks no FUSE filesystem for it: {e}"),
    };
    assert!(born > before && born < SystemTime::now() + Duration::from_secs(2));
    let file = File::options().write(true).open(m.at("f")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let after = file.metadata().unwrap();
    assert_eq!((after.created().unwrap(), after.modified().unwrap()), (born, SystemTime::UNIX_EPOCH));
}

#[test]
fn names_through_the_kernel() {
    let Some(m) = Mount::new("mem", 0) else { return };
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), b"1").unwrap();
    assert_eq!(raw(fs::remove_dir(m.at("d"))), libc::ENOTEMPTY);
    fs::hard_link(m.at("d/f"), m.at("g")).unwrap();
    assert_eq!(fs::metadata(m.at("g")).unwrap().nlink(), 2);
    symlink("d/f", m.at("s")).unwrap();
    assert_eq!(fs::read(m.at("s")).unwrap(), b"1");
    fs::rename(m.at("g"), m.at("h")).unwrap();
    assert_eq!(raw(fs::metadata(m.at("g"))), libc::ENOENT);
    fs::remove_file(m.at("h")).unwrap();
    let fifo = path_c(&m.at("p"));
    // SAFETY: a string that outlives the call.
    assert_eq!(unsafe { libc::mknod(fifo.as_ptr(), libc::S_IFIFO | 0o600, 0) }, 0);
    assert!(fs::metadata(m.at("p")).unwrap().file_type().is_fifo());
    let open = File::open(m.at("d/f")).unwrap();
    fs::remove_file(m.at("d/f")).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, *b"1", "an open file outlives its name");
}

#[test]
fn listings_of_any_length() {
    let Some(m) = Mount::new("mem", 0) else { return };
    let mut expected: Vec<String> = (0..3000).map(|i| format!("name-{i}-{}", "x".repeat(i % 90))).collect();
    for name in &expected {
        File::create(m.at(name)).unwrap();
    }
    expected.sort();
    for _ in 0..2 {
        let mut found: Vec<String> = Vec::new();
        for entry in fs::read_dir(&m.path).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.file_type().unwrap().is_file());
            assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
            found.push(entry.file_name().into_string().unwrap());
        }
        found.sort();
        assert!(found == expected, "{} of {}", found.len(), expected.len());
    }
}

#[test]
fn extended_attributes() {
    let Some(m) = Mount::new("mem", 0) else { return };
    let path = m.at("f");
    File::create(&path).unwrap();
    assert_eq!(setxattr(&path, "user.a", b"value", libc::XATTR_REPLACE), libc::ENODATA);
    assert_eq!(setxattr(&path, "user.a", b"value", libc::XATTR_CREATE), 0);
    assert_eq!(setxattr(&path, "user.a", b"value", libc::XATTR_CREATE), libc::EEXIST);
    assert_eq!(getxattr(&path, "user.a", 0), (5, 0));
    assert_eq!(getxattr(&path, "user.a", 100), (5, 0));
    assert_eq!(getxattr(&path, "user.a", 3), (-1, libc::ERANGE));
    assert_eq!(getxattr(&path, "user.b", 100), (-1, libc::ENODATA));
}

#[test]
fn attributes_and_pages_are_kept_until_invalidated() {
    let Some(m) = Mount::new("mem", 0) else { return };
    let ino = m.create_behind("f");
    m.write_behind(ino, 0, b"old");
    assert_eq!(
        m.notifier.inval_inode(ino, 0, 0).unwrap_err().raw_os_error(),
        Some(libc::ENOENT),
        "the kernel does not know it yet, and says so"
    );
    let file = File::open(m.at("f")).unwrap();
    let mut text = [0; 8];
    assert_eq!(file.read_at(&mut text, 0).unwrap(), 3);
    assert_eq!(file.metadata().unwrap().len(), 3, "asked: a read makes the access time unknown");
    m.write_behind(ino, 0, b"new and longer");
    assert_eq!(file.metadata().unwrap().len(), 3, "kept");
    m.notifier.inval_inode(ino, 0, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 14);
    assert_eq!(file.read_at(&mut text, 0).unwrap(), 8);
    assert_eq!(&text, b"new and ");
}

#[test]
fn an_aborted_connection_fails() {
    let Some(m) = Mount::new("mem", 0) else { return };
    m.notifier.abort().unwrap();
    assert_eq!(raw(fs::metadata(m.at("other"))), libc::ENOTCONN, "still mounted: what is below stays hidden");
}

#[test]
fn lookups_are_forgotten() {
    let Some(m) = Mount::new("mem", 0) else { return };
    fs::write(m.at("f"), b"x").unwrap();
    let ino = NodeId(fs::metadata(m.at("f")).unwrap().ino());
    fs::remove_file(m.at("f")).unwrap();
    // FORGET comes in its own time; the inode goes with it.
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        matches!(answer(|r| m.fs.getattr(ino, None, Caller::default(), r)), Err(Error::Stale))
    });
    assert!(gone);
    assert!(matches!(answer(|r| m.fs.lookup(NodeId::ROOT, b"f", r)), Ok(LookupReply::Missing { .. })));
}
