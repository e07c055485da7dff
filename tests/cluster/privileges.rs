//! Set-id bits and file capabilities end with the first write of somebody who may not keep them.

use crate::rig::Cluster;
use crate::rig_xattr as xattr;
use std::ffi::CString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const NOBODY: u32 = 65534;
const CAPABILITIES: &str = "security.capability";
/// `struct vfs_cap_data`, revision 2: CAP_NET_RAW permitted.
const NET_RAW: [u8; 20] = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn mode(at: &Path) -> u32 {
    fs::metadata(at).unwrap().mode() & 0o7777
}

fn set_mode(at: &Path, mode: u32) {
    fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
}

/// Runs `script` as nobody, with the file as `$1`.
fn as_nobody(script: &str, at: &Path) {
    let out = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(at)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A system call on `at` as nobody; no program that would look at the file first.
fn call_as_nobody(at: &Path, call: fn(*const libc::c_char) -> libc::c_int) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    let mut child = Command::new("true");
    child.uid(NOBODY).gid(NOBODY).current_dir("/");
    let change = move || match call(at.as_ptr()) {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec there is one system call, on a string that ends in NUL.
    unsafe { child.pre_exec(change) };
    child.status().map(|status| assert!(status.success()))
}

fn chmod(at: *const libc::c_char) -> libc::c_int {
    // SAFETY: the caller has a string that ends in NUL.
    unsafe { libc::chmod(at, 0o640) }
}

fn unlink(at: *const libc::c_char) -> libc::c_int {
    // SAFETY: likewise.
    unsafe { libc::unlink(at) }
}

/// For a change of mode, and a removal from a sticky directory, the kernel looks at the owner that it
/// remembers.
#[test]
fn a_change_of_owner_counts_on_other_hosts_that_have_seen_the_old_one() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    for at in [cluster.at(0), cluster.at(1)] {
        set_mode(at.parent().unwrap(), 0o755);
    }
    set_mode(&cluster.at(0), 0o1777);
    for round in 0..10 {
        for (name, call) in [("mode", chmod as fn(_) -> _), ("name", unlink)] {
            let name = format!("{name}{round}");
            let (a, b) = (cluster.at(round % 2).join(&name), cluster.at(1 - round % 2).join(&name));
            fs::write(&a, b"x").unwrap();
            chown(&a, Some(NOBODY), None).unwrap();
            assert_eq!(fs::metadata(&b).unwrap().uid(), NOBODY);
            chown(&a, Some(0), None).unwrap();
            let refused = call_as_nobody(&b, call).expect_err("it is another's now");
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            assert_eq!(fs::metadata(&b).unwrap().uid(), 0);
            chown(&a, Some(NOBODY), None).unwrap();
            call_as_nobody(&b, call).expect("it is nobody's now");
        }
    }
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn they_end_with_the_first_change_of_somebody_without_the_right() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    for at in [cluster.at(0), cluster.at(1)] {
        set_mode(&cluster.at(0), 0o755);
        // The directories above are the test's own.
        set_mode(at.parent().unwrap(), 0o755);
    }
    let (a, b) = (cluster.at(0).join("f"), cluster.at(1).join("f"));
    fs::write(&a, [b'x'; 8192]).unwrap();
    let scripts = [
        "printf y | dd of=$1 conv=notrunc status=none",
        "printf y >> $1",
        "truncate -s 4096 $1",
        "fallocate -l 16384 $1",
        "dd if=/dev/zero of=$1 bs=4096 count=1 conv=notrunc oflag=direct status=none",
    ];
    for script in scripts {
        set_mode(&b, 0o6777);
        assert_eq!(mode(&a), 0o6777);
        as_nobody(script, &a);
        // What the kernel knows of a mode changed by a direct write is corrected from another thread.
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while mode(&a) != 0o777 && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((mode(&a), mode(&b)), (0o777, 0o777), "{script}");
        set_mode(&b, 0o2767);
        as_nobody(script, &a);
        assert_eq!(mode(&b), 0o2767, "{script}: set-group-id without group execution is no privilege");
    }
    // Who may keep them does.
    set_mode(&b, 0o6777);
    OpenOptions::new().append(true).open(&a).unwrap().write_all(b"z").unwrap();
    assert_eq!((mode(&a), mode(&b)), (0o6777, 0o6777));
    // A change of owner takes them from everybody.
    chown(&a, Some(NOBODY), None).unwrap();
    assert_eq!((mode(&a), mode(&b)), (0o777, 0o777));
    cluster.umount(0);
    cluster.umount(1);
}

/// Linux keeps set-group-id of directories only: there it means something else.
#[test]
fn a_change_of_owner_takes_them_from_all_but_directories() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    let (a, b) = (cluster.at(0), cluster.at(1));
    let made =
        "cd $1 && touch file && mkfifo fifo && mknod char c 1 3 && mknod block b 7 99 && mkdir directory";
    assert!(Command::new("sh").args(["-c", made, "sh"]).arg(&a).status().unwrap().success());
    drop(std::os::unix::net::UnixListener::bind(a.join("socket")).unwrap());
    for (name, left) in [
        ("file", 0o555),
        ("fifo", 0o555),
        ("char", 0o555),
        ("block", 0o555),
        ("socket", 0o555),
        ("directory", 0o6555),
    ] {
        let (a, b) = (a.join(name), b.join(name));
        for (user, group) in [(Some(NOBODY), None), (None, Some(NOBODY))] {
            set_mode(&b, 0o6555);
            assert_eq!(mode(&a), 0o6555);
            chown(&a, user, group).unwrap();
            assert_eq!((mode(&a), mode(&b)), (left, left), "{name}");
        }
    }
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn capabilities_set_by_another_host_end_with_a_write_through_an_open_handle() {
    let cluster = Cluster::new("256M", 2, LIMIT);
    let (a, b) = (cluster.at(0).join("f"), cluster.at(1).join("f"));
    let mut file = fs::File::create(&a).unwrap();
    // From now on the kernel of the first host believes that there is nothing to take away.
    for _ in 0..3 {
        file.write_all(b"x").unwrap();
    }
    for _ in 0..3 {
        xattr::set(&b, CAPABILITIES, &NET_RAW).unwrap();
        assert_eq!(xattr::get(&b, CAPABILITIES).unwrap(), NET_RAW);
        file.write_all(b"y").unwrap();
        assert!(xattr::get(&b, CAPABILITIES).is_err(), "a program that was changed kept its capabilities");
        assert!(xattr::get(&a, CAPABILITIES).is_err());
    }
    drop(file);
    cluster.umount(0);
    cluster.umount(1);
}
