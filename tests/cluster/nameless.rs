//! O_TMPFILE: files without a name, which get one, or go when they are closed, or when their host dies.

use crate::rig::Cluster;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

fn nameless(dir: &Path, flags: i32) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags).open(dir).unwrap()
}

/// linkat(2) by descriptor; the errno if it fails.
fn link(file: &File, name: &Path) -> Result<(), i32> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let to = CString::new(name.as_os_str().as_bytes()).unwrap();
    // SAFETY: two strings that outlive the call.
    let done = unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    if done == 0 { Ok(()) } else { Err(Error::last_os_error().raw_os_error().unwrap()) }
}

fn blocks_free(at: &Path) -> u64 {
    let path = CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string and a live record.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut found), 0);
        found.f_bfree
    }
}

/// Waits until as much is free again as before.
fn freed(at: &Path, before: u64) {
    let end = Instant::now() + Duration::from_secs(15);
    while blocks_free(at) < before {
        assert!(Instant::now() < end, "{} blocks free instead of {before}", blocks_free(at));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn content(tag: u8) -> Vec<u8> {
    (0..100_000).map(|n: usize| (n / 3) as u8 ^ tag).collect()
}

#[test]
fn a_file_without_a_name_gets_one_on_all_hosts() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let [a, b] = [cluster.at(0), cluster.at(1)];
    fs::create_dir(a.join("d")).unwrap();
    let mut file = nameless(&a.join("d"), 0);
    file.write_all(&content(1)).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.nlink(), found.mode(), found.len()), (0, libc::S_IFREG | 0o640, 100_000));
    assert_eq!(fs::read_dir(b.join("d")).unwrap().count(), 0);
    link(&file, &a.join("d/one")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    assert_eq!(fs::read(b.join("d/one")).unwrap(), content(1));
    assert_eq!(fs::metadata(b.join("d/one")).unwrap().nlink(), 1);
    // As any other file from now on.
    link(&file, &a.join("two")).unwrap();
    assert_eq!(link(&file, &a.join("two")), Err(libc::EEXIST));
    fs::remove_file(b.join("d/one")).unwrap();
    file.write_all(b"more").unwrap();
    assert_eq!(fs::metadata(b.join("two")).unwrap().len(), 100_004);
    fs::remove_file(b.join("two")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(
        link(&file, &a.join("three")),
        Err(libc::ENOENT),
        "what has lost its last name is on its way out"
    );
    drop(file);
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn with_o_excl_it_never_gets_one() {
    let cluster = Cluster::new("128M", 1, LIMIT);
    let file = nameless(&cluster.at(0), libc::O_EXCL);
    assert_eq!(link(&file, &cluster.at(0).join("name")), Err(libc::ENOENT));
    drop(file);
    cluster.umount(0);
    cluster.check();
}

#[test]
fn closing_frees_it_and_another_host_may_not_name_it() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let at = cluster.at(0);
    let before = blocks_free(&at);
    for _ in 0..3 {
        let mut files: Vec<File> = (0..20).map(|_| nameless(&at, 0)).collect();
        for (tag, file) in files.iter_mut().enumerate() {
            file.write_all(&content(tag as u8)).unwrap();
            file.sync_all().unwrap();
        }
        assert!(blocks_free(&at) + 20 * 24 <= before, "nothing was written");
        for (tag, file) in files.iter_mut().enumerate() {
            let mut found = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut found).unwrap();
            assert!(found == content(tag as u8));
        }
        drop(files);
        freed(&at, before);
    }
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

#[test]
fn death_frees_what_has_no_name_and_keeps_what_has_got_one() {
    let cluster = Cluster::new("128M", 2, LIMIT);
    let at = cluster.at(0);
    fs::write(at.join("other"), content(9)).unwrap();
    let before = blocks_free(&at);
    let mut files: Vec<File> = (0..8).map(|_| nameless(&at, 0)).collect();
    for (tag, file) in files.iter_mut().enumerate() {
        file.write_all(&content(tag as u8)).unwrap();
        file.sync_all().unwrap();
    }
    for tag in [1, 4] {
        link(&files[tag], &at.join(format!("named{tag}"))).unwrap();
        files[tag].sync_all().unwrap();
    }
    cluster.kill(&[0]);
    drop(files);
    // The survivor takes over, while it looks at the directory.
    let other = cluster.at(1);
    let end = Instant::now() + Duration::from_secs(20);
    while fs::read_dir(&other).unwrap().count() < 3 {
        assert!(Instant::now() < end, "the names did not come");
    }
    for tag in [1, 4] {
        let found = fs::read(other.join(format!("named{tag}"))).unwrap();
        assert!(found == content(tag), "named{tag} is not what was written");
        fs::remove_file(other.join(format!("named{tag}"))).unwrap();
    }
    freed(&other, before);
    cluster.umount(1);
    cluster.check();
}

#[test]
fn names_come_and_files_go_when_all_die() {
    let cluster = Cluster::new("128M", 1, LIMIT);
    let at = cluster.at(0);
    let before = blocks_free(&at);
    let mut files: Vec<File> = (0..6).map(|_| nameless(&at, 0)).collect();
    for (tag, file) in files.iter_mut().enumerate() {
        file.write_all(&content(tag as u8)).unwrap();
    }
    link(&files[2], &at.join("named")).unwrap();
    files[2].sync_all().unwrap();
    cluster.kill(&[0]);
    drop(files);
    cluster.check();
    cluster.mount(0);
    assert!(fs::read(at.join("named")).unwrap() == content(2));
    fs::remove_file(at.join("named")).unwrap();
    freed(&at, before);
    cluster.umount(0);
    cluster.check();
}
