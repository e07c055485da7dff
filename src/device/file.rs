//! The machine's own block devices and image files: O_DIRECT requests on one open file description.
//!
//! An image file on a filesystem that refuses O_DIRECT is opened without it: all mounts of it share
//! one page cache then, which is coherent on one machine, and nowhere else.

use super::{BlockDevice, Discards, IoCounts};
use crate::base::{Error, Result};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Alignment that every O_DIRECT target takes.
const ALIGN: usize = 4096;
/// Why a device that cannot be written is of no use, and what helps.
const NOT_WRITABLE: &str = "is read-only, and every mount writes its heartbeat, also with -o ro: \
     make it writable (blockdev --setrw)";
/// A byte behind every device, locked by whoever writes one as long as it has it open. What outlives the claim of the
/// kernel: a mount that was cut by force gives that back before its daemon is done.
pub(super) const PRESENCE: u64 = i64::MAX as u64 - 1;
/// A claim or a lock of another's.
pub(super) const IN_USE: &str = "is in use on this machine (mounted, part of another device, or unmounted while programs \
    had files of it open, which they still have)";
/// Bounce buffers kept for the next request, and the largest kept.
const POOL: usize = 16;
const POOL_BYTES_MAX: usize = 4 << 20;

/// Who opens, and so what is asked of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look only: works while others have it mounted.
    Read,
    /// Write, beside other mounts of the same image file; a block device as the only one of this machine
    /// that has its presence lock. That it is not used otherwise, [`super::Exclusive`] sees to.
    Mount,
    /// Write, with no mount of it on this machine.
    Exclusive,
}

/// Memory that O_DIRECT accepts.
struct Aligned {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: it owns its memory alone, as a Box<[u8]> does.
unsafe impl Send for Aligned {}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let layout = Aligned::layout(len);
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        if ptr.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Aligned { ptr, len }
    }

    fn layout(len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(len.max(ALIGN), ALIGN).expect("lengths are those of slices")
    }

    fn slice(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.len);
        // SAFETY: the allocation holds `self.len` initialised bytes and is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout in `new`.
        unsafe { std::alloc::dealloc(self.ptr, Aligned::layout(self.len)) };
    }
}

/// Requests of one kind, and their bytes.
#[derive(Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn count(&self, bytes: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What a device file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Block,
    File,
}

/// An open device or image.
pub struct FileDevice {
    file: File,
    path: PathBuf,
    medium: Medium,
    size: u64,
    logical: u32,
    physical: u32,
    direct: bool,
    writable: bool,
    present: bool,
    pool: Mutex<Vec<Aligned>>,
    reads: Counter,
    writes: Counter,
    flushes: Counter,
}

fn refuse(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Device(format!("{}: {what}", path.display()))
}

fn open_file(path: &Path, access: Access, direct: bool, block: bool) -> io::Result<File> {
    let mut flags = libc::O_CLOEXEC;
    if direct {
        flags |= libc::O_DIRECT;
    }
    if block && access == Access::Exclusive {
        flags |= libc::O_EXCL;
    }
    OpenOptions::new().read(true).write(access != Access::Read).custom_flags(flags).open(path)
}

impl FileDevice {
    /// Open a block device or an image file.
    ///
    /// # Errors
    /// `Device` with what is wrong and what to do.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<FileDevice> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| refuse(path, e))?;
        let block = meta.file_type().is_block_device();
        if !block && !meta.is_file() {
            return Err(refuse(path, "is neither a block device nor an image file"));
        }
        let (file, direct) = match open_file(path, access, true, block) {
            Ok(file) => (file, true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && !block => {
                (open_file(path, access, false, block).map_err(|e| refuse(path, e))?, false)
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err(refuse(path, IN_USE)),
            Err(e)
                if access != Access::Read && matches!(e.raw_os_error(), Some(libc::EROFS | libc::EPERM)) =>
            {
                return Err(refuse(path, NOT_WRITABLE));
            }
            Err(e) => return Err(refuse(path, e)),
        };
        let (size, logical, physical) =
            if block { block_sizes(&file).map_err(|e| refuse(path, e))? } else { (meta.len(), 512, 4096) };
        let logical = if direct && !block { file_alignment(&file) } else { logical };
        if !matches!(logical, 512 | 4096) {
            return Err(refuse(
                path,
                format_args!("has logical blocks of {logical} bytes; 512 or 4096 are supported"),
            ));
        }
        if block && access != Access::Read && is_read_only(&file) {
            return Err(refuse(path, NOT_WRITABLE));
        }
        let medium = if block { Medium::Block } else { Medium::File };
        let mut device = FileDevice {
            file,
            path: path.to_owned(),
            medium,
            size,
            logical,
            physical: physical.clamp(logical, 4096),
            direct,
            writable: access != Access::Read,
            present: false,
            pool: Mutex::new(Vec::new()),
            reads: Counter::default(),
            writes: Counter::default(),
            flushes: Counter::default(),
        };
        if block && access != Access::Read {
            device.present = match device.try_lock_range(PRESENCE, 1) {
                Ok(false) => return Err(refuse(path, IN_USE)),
                // Where a device file cannot be locked, nobody lends its claim (see `Exclusive`).
                locked => locked.is_ok(),
            };
        }
        Ok(device)
    }

    /// Make an image file of `size` bytes without allocating them, or extend one that is smaller.
    /// One that is larger is left as it is.
    ///
    /// # Errors
    /// `Device` if there is something else at `path`, or the filesystem refuses.
    pub fn create_image(path: impl AsRef<Path>, size: u64) -> Result<()> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK);
        let file = options.open(path).map_err(|e| refuse(path, e))?;
        let meta = file.metadata().map_err(|e| refuse(path, e))?;
        if !meta.is_file() {
            return Err(refuse(path, "is not a regular file: only an image can be given a size"));
        }
        if meta.len() < size {
            file.set_len(size).map_err(|e| refuse(path, e))?;
        }
        Ok(())
    }

    /// Block device or image.
    pub fn medium(&self) -> Medium {
        self.medium
    }

    /// The open file description that all I/O goes through.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// May it be written?
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Has it the presence lock of its device file, so that nobody else of this machine has it open for writing by
    /// that? False for image files, and where such files cannot be locked.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// (device, inode) of an image file or (device, rdev) of a block device: one machine's name for it.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let meta = self.file.metadata()?;
        Ok(match self.medium {
            Medium::Block => (0, meta.rdev()),
            Medium::File => (meta.dev(), meta.ino()),
        })
    }

    /// Take the write lock of this open file description on a byte range (OFD lock). `false`: another
    /// description holds it. It lasts until released or the last duplicate is closed.
    ///
    /// # Errors
    /// `Io` where the filesystem has no such locks.
    pub fn try_lock_range(&self, offset: u64, length: u64) -> Result<bool> {
        match self.lock_range(libc::F_WRLCK, offset, length) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(e) => Err(Error::io("lock", offset, length as usize, &e)),
        }
    }

    /// Does another open file description hold a lock in the range? Also for a device opened for
    /// reading only, which cannot take one.
    ///
    /// # Errors
    /// `Io` where the filesystem has no such locks.
    pub fn is_range_locked(&self, offset: u64, length: u64) -> Result<bool> {
        let mut lock = range_lock(libc::F_WRLCK, offset, length);
        // SAFETY: the descriptor is open and the pointer is to a live flock.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
            0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
            _ => Err(Error::io("ask for locks", offset, length as usize, &io::Error::last_os_error())),
        }
    }

    /// Give such a lock back.
    pub fn unlock_range(&self, offset: u64, length: u64) -> Result<()> {
        self.lock_range(libc::F_UNLCK, offset, length)
            .map_err(|e| Error::io("unlock", offset, length as usize, &e))
    }

    fn lock_range(&self, kind: i32, offset: u64, length: u64) -> io::Result<()> {
        let lock = range_lock(kind, offset, length);
        // SAFETY: the descriptor is open and the pointer is to a live flock.
        let done = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn take(&self, len: usize) -> Aligned {
        let mut pool = self.pool.lock();
        match pool.iter().position(|b| b.len >= len) {
            Some(i) => pool.swap_remove(i),
            None => Aligned::new(len.next_power_of_two().max(64 << 10)),
        }
    }

    fn give(&self, buffer: Aligned) {
        let mut pool = self.pool.lock();
        if pool.len() < POOL && buffer.len <= POOL_BYTES_MAX {
            pool.push(buffer);
        }
    }

    fn bounces(&self, at: *const u8) -> bool {
        self.direct && !(at as usize).is_multiple_of(self.logical as usize)
    }

    /// Clear a range: by this ioctl of a block device, by a hole in an image (which reads as zeros).
    fn clear(&self, ioctl: u64, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        let fd = self.file.as_raw_fd();
        let done = match self.medium {
            // SAFETY: both ioctls that we pass read two u64 (linux/fs.h).
            Medium::Block => unsafe { libc::ioctl(fd, ioctl as _, &range) },
            // SAFETY: no pointers.
            Medium::File => unsafe {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                libc::fallocate(fd, mode, offset as i64, length as i64)
            },
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn check(&self, offset: u64, len: usize) {
        let unit = u64::from(self.logical);
        assert!(offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit), "{len} bytes at {offset}");
    }
}

/// The device or filesystem has no such operation.
fn cannot(e: &io::Error) -> bool {
    // Busy: somebody has written there through the page cache of a device that another one has claimed.
    const NOT: [i32; 5] = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOTTY, libc::ENOSYS, libc::EBUSY];
    e.raw_os_error().is_some_and(|e| NOT.contains(&e))
}

/// Size in bytes, logical and physical block size of a block device.
fn block_sizes(file: &File) -> io::Result<(u64, u32, u32)> {
    const BLKGETSIZE64: u64 = 0x8008_1272;
    const BLKSSZGET: u64 = 0x1268;
    const BLKPBSZGET: u64 = 0x127b;
    let (mut size, mut logical, mut physical) = (0u64, 0i32, 0u32);
    let fd = file.as_raw_fd();
    // SAFETY: each ioctl writes one integer of the size of its target (linux/fs.h).
    let failed = unsafe {
        libc::ioctl(fd, BLKGETSIZE64 as _, &mut size) < 0
            || libc::ioctl(fd, BLKSSZGET as _, &mut logical) < 0
            || libc::ioctl(fd, BLKPBSZGET as _, &mut physical) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok((size, logical as u32, physical)) }
}

/// Was the block device set read-only? The kernel lets it be opened for writing all the same.
fn is_read_only(file: &File) -> bool {
    const BLKROGET: u64 = 0x125e;
    let mut read_only = 0i32;
    // SAFETY: the ioctl writes one int (linux/fs.h).
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &mut read_only) };
    asked == 0 && read_only != 0
}

/// The smallest aligned request that O_DIRECT on an image file takes, tried out by a read.
fn file_alignment(file: &File) -> u32 {
    let mut buffer = Aligned::new(ALIGN);
    match file.read_at(buffer.slice(512), 0) {
        Ok(_) => 512,
        Err(_) => 4096,
    }
}

fn range_lock(kind: i32, offset: u64, length: u64) -> libc::flock {
    // SAFETY: flock is plain data; all zeros is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = offset as i64;
    lock.l_len = length as i64;
    lock
}

impl BlockDevice for FileDevice {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len());
        self.reads.count(buf.len());
        let error = |e: &io::Error, n| Error::io("read", offset, n, e);
        if !self.bounces(buf.as_ptr()) {
            return self.file.read_exact_at(buf, offset).map_err(|e| error(&e, buf.len()));
        }
        let mut bounce = self.take(buf.len());
        let done = self.file.read_exact_at(bounce.slice(buf.len()), offset);
        if done.is_ok() {
            buf.copy_from_slice(bounce.slice(buf.len()));
        }
        self.give(bounce);
        done.map_err(|e| error(&e, buf.len()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check(offset, data.len());
        self.writes.count(data.len());
        let error = |e: &io::Error| Error::io("write", offset, data.len(), e);
        if !self.bounces(data.as_ptr()) {
            return self.file.write_all_at(data, offset).map_err(|e| error(&e));
        }
        let mut bounce = self.take(data.len());
        bounce.slice(data.len()).copy_from_slice(data);
        let done = self.file.write_all_at(bounce.slice(data.len()), offset);
        self.give(bounce);
        done.map_err(|e| error(&e))
    }

    fn flush(&self) -> Result<()> {
        self.flushes.count(0);
        self.file.sync_data().map_err(|e| Error::io("flush", 0, 0, &e))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        const BLKDISCARD: u64 = 0x1277;
        match self.clear(BLKDISCARD, offset, length) {
            Ok(()) => Ok(()),
            // This time it cannot (see `cannot`).
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            Err(e) if cannot(&e) => Err(Error::Unsupported("this device cannot discard blocks")),
            Err(e) => Err(Error::io("discard", offset, length as usize, &e)),
        }
    }

    fn discards(&self) -> Option<Discards> {
        super::discards::discards(self)
    }

    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        const BLKZEROOUT: u64 = 0x127f;
        match self.clear(BLKZEROOUT, offset, length) {
            Ok(()) => Ok(()),
            Err(e) if cannot(&e) => crate::base::block_device::write_zeros_by_hand(self, offset, length),
            Err(e) => Err(Error::io("write zeros", offset, length as usize, &e)),
        }
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn logical_block(&self) -> u32 {
        self.logical
    }

    fn physical_block(&self) -> u32 {
        self.physical
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn counts(&self) -> IoCounts {
        let ((reads, read_bytes), (writes, written_bytes)) = (self.reads.get(), self.writes.get());
        IoCounts { reads, read_bytes, writes, written_bytes, flushes: self.flushes.get().0 }
    }
}

#[cfg(test)]
mod tests;
