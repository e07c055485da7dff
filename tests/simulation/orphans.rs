//! Unlinked files that two hosts have to do with.

use crate::host::{Host, How};
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

/// Files that are unlinked and still in use are passed over by the reaper, however many they are: what
/// was freed in a group of another host lies behind them.
#[test]
fn unlinked_files_in_use_do_not_hide_what_can_be_freed() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let free = || a.statfs().expect("statfs").blocks_free;
    let until = |is_so: &dyn Fn(u64) -> bool| {
        let end = Instant::now() + Duration::from_secs(40);
        while !is_so(free()) {
            assert!(Instant::now() < end, "{} blocks are free", free());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let empty = free();
    b.create("/large").expect("create");
    for at in (0..4 << 20).step_by(1 << 20) {
        b.write("/large", at, &vec![7; 1 << 20], How::Buffered).expect("write");
    }
    b.fsync("/large").expect("fsync");
    let mut kept = Vec::new();
    for n in 0..2001 {
        let name = format!("/f{n}");
        a.create(&name).expect("create");
        kept.push(a.keep(&name).expect("lookup"));
        a.unlink(&name).expect("unlink");
    }
    // What is free in the groups of another host is known from its checkpoints.
    until(&|free| free + 2001 + 1024 <= empty);
    a.unlink("/large").expect("unlink");
    until(&|free| free + 2001 + 100 >= empty);
    kept.into_iter().for_each(|node| a.forget(node));
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
