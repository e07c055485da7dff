//! Access control lists: what is inherited, and how list and mode follow each other, across hosts.

use crate::rig::Cluster;
use crate::rig_xattr::{get, remove, set};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NOBODY: u32 = u32::MAX;

/// The attribute's value: owner, user 99, group, mask, others.
fn list(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    let entries =
        [(1, owner, NOBODY), (2, user, 99), (4, group, NOBODY), (0x10, mask, NOBODY), (0x20, other, NOBODY)];
    for (tag, perm, id) in entries {
        value.extend((tag as u16).to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn mode(at: &Path) -> u32 {
    fs::metadata(at).unwrap().permissions().mode() & 0o7777
}

#[test]
fn new_files_inherit_the_list_of_their_directory() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let (a, b) = (cluster.at(0).join("d"), cluster.at(1).join("d"));
    fs::create_dir(&a).unwrap();
    // Whatever the umask of this process is: it may take from the first file and from no other.
    let open = |at: &Path| File::options().write(true).create_new(true).mode(0o666).open(at).unwrap();
    open(&b.join("before"));
    set(&a, DEFAULT, &list(7, 6, 5, 7, 4)).unwrap();
    open(&b.join("file"));
    assert_eq!(mode(&a.join("file")), 0o664);
    assert_eq!(get(&a.join("file"), ACCESS).unwrap(), list(6, 6, 5, 6, 4));
    assert!(get(&a.join("file"), DEFAULT).is_err());
    fs::DirBuilder::new().mode(0o777).create(a.join("sub")).unwrap();
    assert_eq!(mode(&b.join("sub")), 0o774);
    assert_eq!(get(&b.join("sub"), ACCESS).unwrap(), list(7, 6, 5, 7, 4));
    assert_eq!(get(&b.join("sub"), DEFAULT).unwrap(), list(7, 6, 5, 7, 4));
    std::os::unix::fs::symlink("file", a.join("link")).unwrap();
    assert!(get(&a.join("before"), ACCESS).is_err());
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn mode_and_list_follow_each_other() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let (a, b) = (cluster.at(0).join("f"), cluster.at(1).join("f"));
    fs::write(&a, b"").unwrap();
    fs::set_permissions(&a, Permissions::from_mode(0o2600)).unwrap();
    set(&b, ACCESS, &list(7, 6, 5, 6, 4)).unwrap();
    assert_eq!(mode(&a), 0o2764);
    fs::set_permissions(&a, Permissions::from_mode(0o610)).unwrap();
    assert_eq!(get(&b, ACCESS).unwrap(), list(6, 6, 5, 1, 0));
    assert_eq!(mode(&b), 0o610);
    // It goes and leaves the mode; that there is none is no error.
    for at in [&a, &b] {
        remove(at, ACCESS).unwrap();
        assert_eq!((mode(at), get(at, ACCESS).unwrap_err().raw_os_error()), (0o610, Some(libc::ENODATA)));
    }
    remove(b.parent().unwrap(), DEFAULT).unwrap();
    // A list that says no more than a mode is a mode.
    let mut plain = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [(1u16, 7u16), (4, 5), (0x20, 1)] {
        plain.extend([tag.to_le_bytes(), perm.to_le_bytes(), [0xff; 2], [0xff; 2]].concat());
    }
    set(&a, ACCESS, &plain).unwrap();
    assert_eq!(mode(&b), 0o751);
    assert!(get(&b, ACCESS).is_err());
    cluster.umount(0);
    cluster.umount(1);
}
