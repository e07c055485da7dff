//! Names that another host has made since the kernel looked.

use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::Error;

/// The kernel takes what a CREATE opens for new: it checks no permissions and truncates nothing. So it must
/// not be given another host's file, but sent to look again (ESTALE).
#[test]
fn a_create_does_not_open_what_another_host_has_made() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    a.create_open("/new", libc::O_RDWR).expect("a name that is free");
    b.create("/f").expect("create");
    b.write("/f", 0, b"what was there", How::Buffered).expect("write");
    for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
        let late = a.create_open("/f", flags);
        assert!(matches!(late, Err(Error::Stale)), "{late:?}");
    }
    let late = a.create_open("/f", libc::O_RDWR | libc::O_EXCL);
    assert!(matches!(late, Err(Error::Exists)), "{late:?}");
    assert_eq!(a.read("/f").expect("read"), b"what was there");
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
