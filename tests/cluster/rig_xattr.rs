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

pub fn remove(at: &Path, name: &str) -> io::Result<()> {
    let (at, name) = names(at, name);
    // SAFETY: both strings end in NUL.
    match unsafe { libc::removexattr(at.as_ptr(), name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// All names.
pub fn list(at: &Path) -> io::Result<Vec<String>> {
    let (at, _) = names(at, "");
    let mut list = vec![0u8; 65536];
    // SAFETY: a string that ends in NUL; the buffer is as long as said.
    let n = unsafe { libc::listxattr(at.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    list.truncate(n as usize);
    let list = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(list.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
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
