//! Calls that std does not have: extended attributes, statvfs(3).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn names(at: &Path, name: &str) -> (CString, CString) {
    (CString::new(at.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap())
}

pub fn set(at: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (at, name) = names(at, name);
    // SAFETY: both strings end in NUL; the value is `len` bytes long.
    match unsafe { libc::setxattr(at.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub fn get(at: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (at, name) = names(at, name);
    let mut value = vec![0u8; 65536];
    // SAFETY: both strings end in NUL; the buffer is as long as said.
    let n = unsafe { libc::getxattr(at.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(n as usize);
    Ok(value)
}

pub fn statvfs(at: &Path) -> libc::statvfs {
    let path = CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends in NUL, and a plain structure to be filled in.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut stat), 0, "{}", io::Error::last_os_error());
        stat
    }
}
