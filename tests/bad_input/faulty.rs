//! A device that fails on command: a filesystem with one file, `image`, which passes everything on to
//! a real image until it is told not to. Each host of a test may have a path of its own to one image.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

const IMAGE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// What fails.
pub const NOTHING: u8 = 0;
pub const READS: u8 = 1;
pub const WRITES: u8 = 2;
pub const FLUSHES: u8 = 4;
pub const EVERYTHING: u8 = READS | WRITES | FLUSHES;

struct Proxy {
    image: File,
    size: u64,
    failing: Arc<AtomicU8>,
    stalled: Arc<AtomicBool>,
}

impl Proxy {
    fn fails(&self, what: u8) -> bool {
        while self.stalled.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.failing.load(Ordering::SeqCst) & what != 0
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_image = ino == IMAGE;
        let now = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: if is_image { self.size } else { 0 },
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind: if is_image { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Proxy {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("image") => reply.entry(&TTL, &self.attr(IMAGE), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let fails = self.fails(READS);
        match self.image.read_exact_at(&mut bytes, offset) {
            Ok(()) if !fails => reply.data(&bytes),
            _ => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.fails(WRITES) {
            return reply.error(Errno::EIO);
        }
        match self.image.write_all_at(data, offset) {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if self.fails(FLUSHES) { reply.error(Errno::EIO) } else { reply.ok() }
    }
}

/// A path to an image that can be made to fail; gone when dropped.
pub struct Faulty {
    failing: Arc<AtomicU8>,
    stalled: Arc<AtomicBool>,
    session: Option<BackgroundSession>,
    directory: tempfile::TempDir,
}

impl Faulty {
    pub fn new(image: &Path) -> Faulty {
        let directory = tempfile::tempdir().unwrap();
        let image = File::options().read(true).write(true).open(image).unwrap();
        let size = image.metadata().unwrap().len();
        let (failing, stalled) = (Arc::new(AtomicU8::new(NOTHING)), Arc::<AtomicBool>::default());
        let mut config = Config::default();
        config.n_threads = Some(4);
        let proxy = Proxy { image, size, failing: failing.clone(), stalled: stalled.clone() };
        let session = fuser::spawn_mount(proxy, directory.path(), &config).unwrap();
        Faulty { failing, stalled, session: Some(session), directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// From now on these requests fail with EIO.
    pub fn fail(&self, what: u8) {
        self.failing.store(what, Ordering::SeqCst);
    }

    /// Requests wait from now on, or no more.
    pub fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    /// The device is pulled out: whoever has it open gets ENOTCONN for everything.
    pub fn pull(&self) {
        let found = shoal::device::mountinfo::mounted_at(self.directory.path()).unwrap().unwrap();
        shoal::fuse::mount::abort(found.connection()).unwrap();
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.stall(false);
        let _ = shoal::fuse::mount::unmount(self.directory.path(), shoal::fuse::mount::Unmount::Lazy);
        drop(self.session.take());
    }
}
