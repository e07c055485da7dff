//! Attributes: mode, owner, times, extended attributes.

use super::{Pair, ROUNDS, errno};
use crate::rig_xattr;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

#[test]
fn attributes_and_truncation() {
    let pair = Pair::new();
    let (a, b) = (pair.a.clone(), pair.b.clone());
    fs::write(a.join("f"), vec![7; 10_000]).unwrap();
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let mode = 0o600 + round as u32 % 8;
        fs::set_permissions(from.join("f"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(to.join("f")).unwrap().permissions().mode() & 0o7777, mode);
        let size = 10_000 - round as u64 * 400;
        OpenOptions::new().write(true).open(from.join("f")).unwrap().set_len(size).unwrap();
        assert_eq!(fs::metadata(to.join("f")).unwrap().len(), size);
        assert_eq!(fs::read(to.join("f")).unwrap(), vec![7; size as usize]);
    }
    pair.finish();
}

fn utimens(at: &Path, times: [(i64, i64); 2]) {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    let times = times.map(|(s, n)| libc::timespec { tv_sec: s, tv_nsec: n });
    // SAFETY: the string ends in NUL, there are two times, and both outlive the call.
    assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, at.as_ptr(), times.as_ptr(), 0) }, 0);
}

fn remove_xattr(at: &Path, name: &str) {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: both strings end in NUL and outlive the call.
    assert_eq!(unsafe { libc::removexattr(at.as_ptr(), name.as_ptr()) }, 0);
}

#[test]
fn owners_and_times_of_files_and_directories() {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), b"x").unwrap();
    fs::create_dir(pair.a.join("d")).unwrap();
    let handles = [fs::File::open(pair.a.join("f")).unwrap(), fs::File::open(pair.b.join("f")).unwrap()];
    pair.alternate(ROUNDS, |round, from, to| {
        for name in ["f", "d"] {
            let id = round as u32 + 1000;
            chown(from.join(name), Some(id), Some(id + 1)).unwrap();
            let seen = fs::metadata(to.join(name)).unwrap();
            assert_eq!((seen.uid(), seen.gid()), (id, id + 1), "{name}");
            fs::set_permissions(from.join(name), fs::Permissions::from_mode(0o1700 + round as u32)).unwrap();
            assert_eq!(fs::metadata(to.join(name)).unwrap().mode() & 0o7777, 0o1700 + round as u32, "{name}");
            let (atime, mtime) = ((round as i64 - 5, 123_456_789), (round as i64 * 1_000_000, 1));
            utimens(&from.join(name), [atime, mtime]);
            let seen = fs::metadata(to.join(name)).unwrap();
            assert_eq!((seen.atime(), seen.atime_nsec()), atime, "{name}");
            assert_eq!((seen.mtime(), seen.mtime_nsec()), mtime, "{name}");
        }
        let seen = handles[(round + 1) % 2].metadata().unwrap();
        assert_eq!(seen.mtime(), round as i64 * 1_000_000, "through an open handle");
    });
    drop(handles);
    pair.finish();
}

#[test]
fn extended_attributes() {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), b"x").unwrap();
    pair.alternate(ROUNDS, |round, from, to| {
        let (from, to) = (from.join("f"), to.join("f"));
        assert_eq!(errno(rig_xattr::get(&to, "user.a")), libc::ENODATA, "round {round}");
        for length in [3, 900, 5000, 40_000, 1] {
            let value = vec![round as u8; length];
            rig_xattr::set(&from, "user.a", &value).unwrap();
            assert!(rig_xattr::get(&to, "user.a").unwrap() == value, "round {round}: {length} bytes");
        }
        remove_xattr(&from, "user.a");
        assert_eq!(errno(rig_xattr::get(&to, "user.a")), libc::ENODATA, "round {round}: removed");
    });
    pair.finish();
}
