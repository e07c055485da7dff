//! Set-user-id and set-group-id bits do not survive a write by somebody without privileges, whichever
//! way the write takes.

use crate::rig::Cluster;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
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
