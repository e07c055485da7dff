//! Of inodes that nobody has asked about for a while little is kept, and the kernel goes on knowing them.

use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use parking_lot::Mutex;
use shoal::fs::{KernelCache, NodeId};
use std::io;
use std::sync::Arc;

/// A kernel that notes what it is to drop.
#[derive(Default)]
struct Noting(Mutex<Vec<(NodeId, i64)>>);

impl KernelCache for Noting {
    fn inval_inode(&self, node: NodeId, offset: i64, _: i64) -> io::Result<()> {
        self.0.lock().push((node, offset));
        Ok(())
    }
    fn abort(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_the_kernel_has_of_a_quiet_inode_goes_with_its_lock() {
    let disk = volume(64, 2);
    let kernel = Arc::new(Noting::default());
    let a = Host::mount_before(&disk, "a", kernel.clone()).expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    a.create("/f").expect("create");
    a.write("/f", 0, &[1; 10_000], How::Buffered).expect("write");
    a.syncfs().expect("sync");
    let file = a.keep("/f").expect("lookup");
    assert_eq!(a.read("/f").expect("read"), [1; 10_000]);
    // Twice: what was used just now is spared once.
    (0..2).for_each(|_| a.fs.quieten(0));
    kernel.0.lock().clear();
    b.write("/f", 0, &[2; 10_000], How::Buffered).expect("write");
    b.create("/g").expect("create");
    let dropped = kernel.0.lock().clone();
    assert!(dropped.contains(&(file, 0)), "the file's pages: {dropped:?}");
    assert!(dropped.iter().any(|(node, _)| *node == NodeId::ROOT), "the root's attributes: {dropped:?}");
    a.forget(file);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// A file that is open for writing, whose pages went when another host came to read it: there is nothing for sync to
/// have written, and touching the next page waits for that host.
#[test]
fn sync_asks_for_no_pages_that_another_host_has_taken_away() {
    let disk = volume(64, 2);
    let kernel = Arc::new(Noting::default());
    let a = Host::mount_before(&disk, "a", kernel.clone()).expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    a.create("/f").expect("create");
    a.write("/f", 0, &[1; 10_000], How::Buffered).expect("write");
    let file = a.keep("/f").expect("lookup");
    let handle = a.open_kept(file, How::Buffered).expect("open");
    let laundered = || {
        kernel.0.lock().clear();
        a.syncfs().expect("sync");
        kernel.0.lock().contains(&(file, 0))
    };
    a.read_kept(file, handle, 4096).expect("read");
    assert!(laundered(), "a mapping may have stored something");
    assert_eq!(b.read("/f").expect("read"), [1; 10_000]);
    assert!(!laundered(), "there are no pages");
    a.close_kept(file, handle).expect("close");
    a.forget(file);
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
