//! Directory streams with positions.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// readdir(3) with its positions, which std does not have.
pub struct Stream(*mut libc::DIR);

impl Stream {
    /// Open a directory.
    pub fn open(at: &Path) -> Stream {
        let at = CString::new(at.as_os_str().as_bytes()).unwrap();
        // SAFETY: the string ends in NUL and outlives the call.
        let stream = unsafe { libc::opendir(at.as_ptr()) };
        assert!(!stream.is_null());
        Stream(stream)
    }

    /// The next name, and the position behind it.
    pub fn next(&mut self) -> Option<(String, i64)> {
        // SAFETY: the stream is open; the entry is read before the next call on it. The error's place is
        // the thread's own.
        unsafe {
            *libc::__errno_location() = 0;
            let entry = libc::readdir(self.0);
            if entry.is_null() {
                assert_eq!(*libc::__errno_location(), 0, "cannot read the directory");
                return None;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr()).to_str().unwrap().to_owned();
            Some((name, libc::telldir(self.0)))
        }
    }

    /// Go on behind a position.
    pub fn seek(&mut self, to: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0, to) };
    }

    /// All names from here on.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).map(|(name, _)| name).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: open, and not used any more.
        unsafe { libc::closedir(self.0) };
    }
}
