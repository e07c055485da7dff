//! Set-user-id and set-group-id bits do not survive a write by somebody without privileges, whichever
//! way the write takes.

use crate::rig::Cluster;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

const NOBODY: u32 = 65534;

#[test]
fn a_write_takes_the_set_id_bits() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let (a, b) = (cluster.at(0), cluster.at(1));
    let above = a.parent().unwrap();
    fs::set_permissions(above, Permissions::from_mode(0o755)).unwrap();
    let file = a.join("program");
    for (flags, mode, left) in [
        ("conv=notrunc", 0o6777, 0o777),
        ("conv=notrunc oflag=append", 0o6777, 0o777),
        ("conv=notrunc oflag=direct", 0o6777, 0o777),
        ("conv=notrunc oflag=append", 0o6766, 0o2766),
    ] {
        fs::write(&file, vec![1; 8192]).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        // The kernels of both hosts know the mode.
        let known = |host: &std::path::Path| fs::metadata(host.join("program")).unwrap().permissions().mode();
        assert_eq!((known(&a) & 0o7777, known(&b) & 0o7777), (mode, mode));
        let done = Command::new("sh")
            .args(["-c", &format!("dd if=/dev/zero of={} bs=4096 count=1 {flags}", file.display())])
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!((known(&a) & 0o7777, known(&b) & 0o7777), (left, left), "dd {flags}");
    }
    cluster.umount(0);
    cluster.umount(1);
}

/// Become somebody without privileges, this thread only (what libc calls would change all of the process).
fn become_nobody() {
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: three numbers.
        assert_eq!(unsafe { libc::syscall(call, NOBODY, NOBODY, NOBODY) }, 0);
    }
}

fn change(how: i32, own: &File, program: &File) {
    let (own, program) = (own.as_raw_fd(), program.as_raw_fd());
    let (mut from, mut to) = (0, 0);
    let done = match how {
        // SAFETY: descriptors, numbers, and offsets that outlive the call.
        COPY => unsafe { libc::copy_file_range(own, &mut from, program, &mut to, 4096, 0) - 4096 },
        // SAFETY: a descriptor and numbers.
        mode => unsafe { libc::fallocate(program, mode, 4096, 12288) as isize },
    };
    assert_eq!(done, 0, "{how:#x}: {}", std::io::Error::last_os_error());
}

const COPY: i32 = -1;
const CHANGES: [i32; 4] =
    [COPY, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_ZERO_RANGE, 0];

/// The bits come from another host while the file is open here: the kernel here, which has not looked since, knows of
/// nothing that it would take away. It goes by the right of the caller whether they stay.
#[test]
fn bits_that_this_kernel_does_not_know_of_go_as_well() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let (a, b) = (cluster.at(0), cluster.at(1));
    for path in [&a, a.parent().unwrap()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let (own, here, there) = (a.join("own"), a.join("program"), b.join("program"));
    for path in [&own, &here] {
        fs::write(path, vec![1; 8192]).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let plain = || {
        fs::set_permissions(&there, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(mode(&here), 0o777);
    };
    let with_bits = || fs::set_permissions(&there, Permissions::from_mode(0o6777)).unwrap();
    let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    std::thread::scope(|scope| {
        let ((tell, told), (done, answer)) = (mpsc::channel::<i32>(), mpsc::channel());
        let (own, here) = (&own, &here);
        scope.spawn(move || {
            become_nobody();
            let (own, program) = (open(own), open(here));
            told.iter().for_each(|how| {
                change(how, &own, &program);
                done.send(()).unwrap();
            });
        });
        for how in CHANGES {
            plain();
            with_bits();
            tell.send(how).unwrap();
            answer.recv().expect("it has changed the file");
            assert_eq!((mode(here), mode(&there)), (0o777, 0o777), "{how:#x}");
        }
    });
    let (own, program) = (open(&own), open(&here));
    for how in CHANGES {
        plain();
        with_bits();
        change(how, &own, &program);
        assert_eq!((mode(&here), mode(&there)), (0o6777, 0o6777), "{how:#x} by who may keep them");
    }
    drop((own, program));
    cluster.umount(0);
    cluster.umount(1);
}
