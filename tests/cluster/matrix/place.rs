//! Where a cell's operation works, and calls that std does not have. Mapped pages are touched by
//! madvise(2), which takes the same faults as loads and stores but fails where those would kill.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

pub const PAGE: u64 = 4096;
/// Bytes of the files.
pub const SIZE: u64 = 16 * PAGE;

/// The answer of a system call.
pub fn check(answer: i64) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A cell's directory as one host sees it.
pub struct Place {
    root: PathBuf,
    file: Option<File>,
}

impl Place {
    pub fn new(root: PathBuf) -> Place {
        Place { root, file: None }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Make everything that an operation needs.
    pub fn furnish(&self) -> io::Result<()> {
        ["", "p", "p/directory", "n", "n/empty"].iter().try_for_each(|d| fs::create_dir(self.at(d)))?;
        fs::write(self.at("p/file"), [9; SIZE as usize])?;
        fs::write(self.at("n/other"), [10; SIZE as usize])?;
        symlink("file", self.at("p/symlink"))
    }

    /// Open the file that operations by handle use.
    pub fn open(&mut self) -> io::Result<()> {
        self.file = Some(self.again(OpenOptions::new().read(true).write(true))?);
        Ok(())
    }

    /// It.
    pub fn file(&self) -> &File {
        self.file.as_ref().expect("opened before")
    }

    /// One more handle of the file, also when it has no name any more.
    pub fn again(&self, options: &OpenOptions) -> io::Result<File> {
        match &self.file {
            Some(file) => options.open(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => options.open(self.at("p/file")),
        }
    }

    pub fn direct(&self) -> io::Result<File> {
        self.again(OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT))
    }

    pub fn allocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: a system call on a descriptor.
        check(unsafe { libc::fallocate(self.file().as_raw_fd(), mode, offset as i64, length as i64) }.into())
    }

    pub fn seek_hole(&self) -> io::Result<()> {
        // SAFETY: a system call on a descriptor.
        check(unsafe { libc::lseek(self.file().as_raw_fd(), 1, libc::SEEK_HOLE) })
    }

    fn copy(from: &File, to: &File) -> io::Result<()> {
        let (mut at, mut end) = (100, 5000);
        // SAFETY: both offsets outlive the call.
        let copied = unsafe {
            libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut end, 3 * PAGE as usize, 0)
        };
        check(copied as i64)
    }

    pub fn copy_to(&self, name: &str) -> io::Result<()> {
        Place::copy(self.file(), &OpenOptions::new().write(true).open(self.at(name))?)
    }

    pub fn copy_from(&self, name: &str) -> io::Result<()> {
        Place::copy(&File::open(self.at(name))?, self.file())
    }

    pub fn exchange(&self, a: &str, b: &str) -> io::Result<()> {
        let (a, b) = (c_path(&self.at(a)), c_path(&self.at(b)));
        let (here, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
        // SAFETY: strings that outlive the call.
        check(unsafe { libc::renameat2(here, a.as_ptr(), here, b.as_ptr(), flags) }.into())
    }

    pub fn set_xattr(&self, value: &[u8]) -> io::Result<()> {
        let (fd, name) = (self.file().as_raw_fd(), c"user.matrix".as_ptr());
        // SAFETY: name and value outlive the call.
        check(unsafe { libc::fsetxattr(fd, name, value.as_ptr().cast(), value.len(), 0) }.into())
    }

    pub fn get_xattr(&self) -> io::Result<()> {
        let (fd, name) = (self.file().as_raw_fd(), c"user.matrix".as_ptr());
        // SAFETY: the name outlives the call; nothing is stored where the size is 0.
        ignore_missing(check(unsafe { libc::fgetxattr(fd, name, std::ptr::null_mut(), 0) } as i64))
    }

    pub fn list_xattrs(&self) -> io::Result<()> {
        // SAFETY: nothing is stored where the size is 0.
        check(unsafe { libc::flistxattr(self.file().as_raw_fd(), std::ptr::null_mut(), 0) } as i64)
    }

    pub fn remove_xattr(&self) -> io::Result<()> {
        // SAFETY: a system call on a descriptor.
        let answer = unsafe { libc::fremovexattr(self.file().as_raw_fd(), c"user.matrix".as_ptr()) };
        ignore_missing(check(answer.into()))
    }
}

/// Another thread at the same operation may have been first.
fn ignore_missing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        other => other,
    }
}

/// Memory as O_DIRECT wants it.
pub struct Aligned {
    memory: Vec<u8>,
    length: usize,
}

impl Aligned {
    pub fn new(length: usize) -> Aligned {
        Aligned { memory: vec![11; length + PAGE as usize], length }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        let skip = self.memory.as_ptr().align_offset(PAGE as usize);
        &mut self.memory[skip..skip + self.length]
    }
}

/// The first pages of a file, mapped shared.
pub struct Pages(*mut libc::c_void);

// SAFETY: an address that is given to system calls alone.
unsafe impl Sync for Pages {}

impl Pages {
    pub fn map(file: &File) -> io::Result<Pages> {
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping somewhere; the descriptor is open.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), Pages::LENGTH, access, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Pages(at)) }
    }

    const LENGTH: usize = 4 * PAGE as usize;

    /// Pages behind the end of a file that another host has cut meanwhile cannot be had.
    fn touch(&self, how: i32) -> io::Result<()> {
        // SAFETY: the whole mapping; its memory is not looked at.
        match check(unsafe { libc::madvise(self.0, Pages::LENGTH, how) }.into()) {
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Ok(()),
            other => other,
        }
    }

    /// Fault them in.
    pub fn load(&self) -> io::Result<()> {
        self.touch(libc::MADV_POPULATE_READ)
    }

    /// Fault them in for writing, which makes them dirty.
    pub fn store(&self) -> io::Result<()> {
        self.touch(libc::MADV_POPULATE_WRITE)
    }

    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole mapping.
        check(unsafe { libc::msync(self.0, Pages::LENGTH, libc::MS_SYNC) }.into())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, not used any more.
        unsafe { libc::munmap(self.0, Pages::LENGTH) };
    }
}
