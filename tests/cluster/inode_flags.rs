//! chattr and lsattr: flags of inodes are kept, shown on every host, and what they forbid is refused on every host.

use crate::rig::{Cluster, errno};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

/// <linux/fs.h>
const GETFLAGS: u64 = 0x8008_6601;
const SETFLAGS: u64 = 0x4008_6602;
const GETVERSION: u64 = 0x8008_7601;
const FSGETXATTR: u64 = 0x801c_581f;
const FSSETXATTR: u64 = 0x401c_5820;
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;
const NODUMP: u32 = 0x40;
const NOATIME: u32 = 0x80;
/// Of FSGETXATTR.
const X_APPEND: u32 = 0x10;
const X_NODUMP: u32 = 0x80;

const LIMIT: Duration = Duration::from_secs(120);

fn failed() -> i32 {
    Error::last_os_error().raw_os_error().unwrap()
}

/// An ioctl on a path with a record of words, which it may change.
fn control(path: &Path, number: u64, words: &mut [u32; 8]) -> Result<(), i32> {
    let file = File::open(path).unwrap();
    // SAFETY: an open descriptor and a record larger than any of these calls reads or writes.
    match unsafe { libc::ioctl(file.as_raw_fd(), number as _, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(failed()),
    }
}

fn flags(path: &Path) -> u32 {
    let mut words = [0; 8];
    control(path, GETFLAGS, &mut words).unwrap();
    words[0]
}

fn set(path: &Path, flags: u32) -> Result<(), i32> {
    control(path, SETFLAGS, &mut [flags, 0, 0, 0, 0, 0, 0, 0])
}

fn path_of(at: &Path) -> CString {
    CString::new(at.as_os_str().as_bytes()).unwrap()
}

fn set_attribute(path: &Path) -> i32 {
    let path = path_of(path);
    // SAFETY: strings and a value that outlive the call.
    let done = unsafe { libc::setxattr(path.as_ptr(), c"user.x".as_ptr(), b"1".as_ptr().cast(), 1, 0) };
    if done == 0 { 0 } else { failed() }
}

/// utimensat(2) to now, or to given times.
fn set_times(path: &Path, now: bool) -> i32 {
    let path = path_of(path);
    let times = [libc::timespec { tv_sec: 1, tv_nsec: 1 }; 2];
    let times = if now { std::ptr::null() } else { times.as_ptr() };
    // SAFETY: a string and times that outlive the call.
    if unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times, 0) } == 0 { 0 } else { failed() }
}

fn append(path: &Path) -> i32 {
    errno(OpenOptions::new().append(true).open(path).and_then(|mut f| f.write_all(b"more")))
}

fn overwrite(path: &Path) -> i32 {
    errno(OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(b"over")))
}

/// What each change of file `f` in `dir` comes to: those that take something away or replace it, that only add, and
/// that set its times to now.
fn changes_of_file(dir: &Path) -> (Vec<i32>, i32, i32) {
    let file = dir.join("f");
    let perm = fs::Permissions::from_mode(0o600);
    let takes = vec![
        overwrite(&file),
        errno(OpenOptions::new().append(true).open(&file).and_then(|f| f.set_len(1))),
        errno(File::create(&file)),
        errno(fs::set_permissions(&file, perm)),
        errno(std::os::unix::fs::chown(&file, Some(7), None)),
        set_times(&file, false),
        set_attribute(&file),
        errno(fs::hard_link(&file, dir.join("link"))),
        errno(fs::rename(&file, dir.join("g"))),
        errno(fs::rename(dir.join("other"), &file)),
        errno(fs::remove_file(&file)),
    ];
    (takes, append(&file), set_times(&file, true))
}

#[test]
fn immutable_and_append_only_files_on_all_hosts() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = [cluster.at(0), cluster.at(1)];
    fs::write(a.join("f"), b"content").unwrap();
    fs::write(a.join("other"), b"other").unwrap();
    // Opened before there is a flag: no exception.
    let mut early = OpenOptions::new().write(true).open(b.join("f")).unwrap();
    set(&a.join("f"), IMMUTABLE).unwrap();
    assert_eq!(flags(&b.join("f")), IMMUTABLE);
    assert_eq!(errno(early.write_all(b"x").and_then(|()| early.sync_all())), libc::EPERM);
    drop(early);
    for at in [&a, &b] {
        let (takes, adds, touches) = changes_of_file(at);
        assert_eq!((takes, adds, touches), (vec![libc::EPERM; 11], libc::EPERM, libc::EPERM));
    }
    set(&b.join("f"), APPEND | NODUMP).unwrap();
    for at in [&a, &b] {
        let (takes, adds, touches) = changes_of_file(at);
        assert_eq!((takes, adds, touches), (vec![libc::EPERM; 11], 0, 0));
        assert_eq!(fs::read(at.join("f")).unwrap()[..7], *b"content");
    }
    assert_eq!(fs::read(a.join("f")).unwrap(), b"contentmoremore");
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
    cluster.mount(0);
    assert_eq!(flags(&a.join("f")), APPEND | NODUMP, "flags outlive the mount");
    set(&a.join("f"), 0).unwrap();
    let (takes, adds, _) = changes_of_file(&a);
    // In the end it is removed.
    assert_eq!((takes, adds), (vec![0; 11], libc::ENOENT));
    cluster.umount(0);
    cluster.check();
}

/// Changes of directory `d`: those that take a name away, and those that bring one.
fn changes_of_directory(at: &Path, tag: &str) -> (Vec<i32>, Vec<i32>) {
    let d = at.join("d");
    let takes = vec![
        errno(fs::remove_file(d.join("f"))),
        errno(fs::remove_dir(d.join("sub"))),
        errno(fs::rename(d.join("f"), at.join("moved"))),
        errno(fs::rename(at.join("f"), d.join("f"))),
    ];
    let new = |kind: &str| d.join(format!("{kind}{tag}"));
    fs::write(at.join("in"), b"").unwrap();
    let brings = vec![
        errno(File::create(new("file"))),
        errno(fs::create_dir(new("dir"))),
        errno(symlink("x", new("symlink"))),
        errno(fs::hard_link(at.join("f"), new("link"))),
        errno(fs::rename(at.join("in"), new("renamed"))),
    ];
    (takes, brings)
}

#[test]
fn directories_that_stay_as_they_are_or_only_gain_names() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = [cluster.at(0), cluster.at(1)];
    fs::create_dir_all(a.join("d/sub")).unwrap();
    fs::write(a.join("d/f"), b"inside").unwrap();
    fs::write(a.join("f"), b"outside").unwrap();
    set(&a.join("d"), IMMUTABLE).unwrap();
    for at in [&a, &b] {
        assert_eq!(changes_of_directory(at, "0"), (vec![libc::EPERM; 4], vec![libc::EPERM; 5]));
        // Its files are their own.
        assert_eq!(append(&at.join("d/f")), 0);
    }
    set(&a.join("d"), APPEND).unwrap();
    for (at, tag) in [(&a, "1"), (&b, "2")] {
        assert_eq!(changes_of_directory(at, tag), (vec![libc::EPERM; 4], vec![0; 5]));
    }
    set(&b.join("d"), 0).unwrap();
    fs::remove_file(a.join("d/f")).unwrap();
    fs::remove_dir(b.join("d/sub")).unwrap();
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn flags_as_programs_ask_for_them() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = [cluster.at(0), cluster.at(1)];
    let file = a.join("f");
    fs::write(&file, b"").unwrap();
    assert_eq!(flags(&file), 0);
    set(&file, NODUMP | NOATIME).unwrap();
    assert_eq!(flags(&b.join("f")), NODUMP | NOATIME);
    // FS_SYNC_FL, FS_COMPR_FL, and one that nobody knows.
    for unknown in [0x8, 0x4, 0x4000_0000] {
        assert_eq!(set(&file, NODUMP | unknown), Err(libc::EOPNOTSUPP));
    }
    assert_eq!(flags(&file), NODUMP | NOATIME);
    let mut record = [0; 8];
    record[0] = X_APPEND | X_NODUMP;
    control(&file, FSSETXATTR, &mut record).unwrap();
    let mut record = [9; 8];
    control(&b.join("f"), FSGETXATTR, &mut record).unwrap();
    assert_eq!(record[..7], [X_APPEND | X_NODUMP, 0, 0, 0, 0, 0, 0]);
    assert_eq!(flags(&file), APPEND | NODUMP);
    for wanted in 1..5 {
        let mut record = [0; 8];
        record[wanted] = 4096;
        let done = control(&file, FSSETXATTR, &mut record);
        // The number of extents is nothing to be set.
        assert_eq!(done.is_ok(), wanted == 2, "word {wanted}: {done:?}");
    }
    let version = |path: &Path| {
        let mut words = [7; 8];
        control(path, GETVERSION, &mut words).unwrap();
        assert_eq!(words[1], 7, "more than an int was written");
        words[0]
    };
    assert_eq!(version(&file), version(&b.join("f")));
    assert_eq!(control(&file, 0x8008_7aff, &mut [0; 8]), Err(libc::ENOTTY));
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// By stat of what the kernel may remember, at once on the host itself.
#[test]
fn a_change_of_flags_is_a_change_of_ctime() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = [cluster.at(0), cluster.at(1)];
    fs::write(a.join("f"), b"").unwrap();
    let ctime = |at: &Path| {
        let found = fs::metadata(at.join("f")).unwrap();
        (found.ctime(), found.ctime_nsec())
    };
    for wanted in [NODUMP, NODUMP | NOATIME, 0] {
        let before = ctime(&a);
        assert_eq!(ctime(&b), before);
        set(&a.join("f"), wanted).unwrap();
        assert!(ctime(&a) > before, "stat shows the attributes of before");
        assert_eq!(ctime(&a), ctime(&b));
    }
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn a_host_that_dies_leaves_flags_behind() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = [cluster.at(0), cluster.at(1)];
    fs::write(a.join("f"), b"content").unwrap();
    set(&a.join("f"), IMMUTABLE).unwrap();
    File::open(a.join("f")).unwrap().sync_all().unwrap();
    cluster.kill(&[0]);
    assert_eq!(flags(&b.join("f")), IMMUTABLE);
    assert_eq!(overwrite(&b.join("f")), libc::EPERM);
    cluster.umount(1);
    cluster.check();
}
