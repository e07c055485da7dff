//! Mappings, which std does not have.

use std::fs::File;
use std::os::fd::AsRawFd;

/// A mapping of a file, shared unless it says otherwise.
pub struct Map {
    at: *mut u8,
    length: usize,
}

// SAFETY: it is memory, and every access to it is volatile.
unsafe impl Send for Map {}
// SAFETY: as above; the bytes change at any time anyway, from other hosts.
unsafe impl Sync for Map {}

impl Map {
    /// Map the first `length` bytes of a file, for writing too if `write`.
    pub fn new(file: &File, length: usize, write: bool) -> Map {
        Map::with(file, length, libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 }, libc::MAP_SHARED)
    }

    /// A private mapping to load from and store into: what is stored stays here.
    pub fn private(file: &File, length: usize) -> Map {
        Map::with(file, length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }

    fn with(file: &File, length: usize, access: i32, kind: i32) -> Map {
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping somewhere; the descriptor is open.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Map { at: at.cast(), length }
    }

    pub fn load(&self, i: usize) -> u8 {
        assert!(i < self.length);
        // SAFETY: inside the mapping; behind the end of the file it is a signal for a child that a test has made for that.
        unsafe { self.at.add(i).read_volatile() }
    }

    pub fn store(&self, i: usize, value: u8) {
        assert!(i < self.length);
        // SAFETY: as above.
        unsafe { self.at.add(i).write_volatile(value) };
    }

    /// msync(2): returns when what was stored is where every host sees it.
    pub fn sync(&self) {
        // SAFETY: the whole mapping.
        let done = unsafe { libc::msync(self.at.cast(), self.length, libc::MS_SYNC) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, not used any more.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}
