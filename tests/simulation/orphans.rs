//! Unlinked files that two hosts have to do with.

use crate::host::Host;
use crate::story::volume;
use crate::tree;
use shoal::base::Error;
use std::time::{Duration, Instant};

/// A host that still knows an inode sees its link count fall to zero. When it forgets the inode, that
/// is not its orphan: the host that unlinked it frees it, perhaps a little later, because the block
/// lies in a group that this one holds. Freed by both, it could be somebody else's in between.
#[test]
fn an_orphan_is_freed_by_the_host_that_unlinked_it() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let mut seen = 0;
    for n in 0..40 {
        let name = format!("/f{n}");
        a.create(&name).expect("create");
        let node = a.keep(&name).expect("lookup");
        b.unlink(&name).expect("unlink");
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end {
            match a.stat_kept(node) {
                Ok(attr) if attr.nlink == 0 => seen += 1,
                Ok(_) => continue,
                Err(Error::Stale) => {}
                Err(e) => panic!("{name}: {e}"),
            }
            break;
        }
        a.forget(node);
    }
    assert!(seen > 0, "no inode was seen between its unlinking and its end: nothing was tested");
    std::thread::sleep(Duration::from_millis(300));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
