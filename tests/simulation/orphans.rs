//! Unlinked files that two hosts have to do with.

use crate::host::{Host, How};
use crate::story::volume;
use crate::tree;
use shoal::base::Error;
use shoal::fs::SetAttr;
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
        let node = a.keep(&name).expect("lookup");
        kept.push((node, a.open_kept(node, How::Buffered).expect("open")));
        a.unlink(&name).expect("unlink");
    }
    // What is free in the groups of another host is known from its checkpoints.
    until(&|free| free + 2001 + 1024 <= empty);
    a.unlink("/large").expect("unlink");
    until(&|free| free + 2001 + 100 >= empty);
    for (node, fh) in kept {
        a.close_kept(node, fh).expect("close");
        a.forget(node);
    }
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// Until the journals are empty and what is in memory of an inode is as on the disk.
const QUIET: Duration = Duration::from_secs(6);

/// Make files of two blocks of data and more; wait until nothing of them is in any journal.
fn quiet_files(host: &Host, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|n| format!("/f{n}")).collect();
    for name in &names {
        host.create(name).expect("create");
        host.write(name, 0, &vec![7; 9000], How::Buffered).expect("write");
        host.fsync(name).expect("fsync");
    }
    std::thread::sleep(QUIET);
    names
}

fn is_gone<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Stale | Error::NotFound))
}

/// A kernel knows inodes by their numbers, whatever has become of their names. When it asks for one that
/// another host has just freed, the old block must not be found on the disk: neither to be opened, nor to be
/// changed.
#[test]
fn a_freed_file_is_not_found_by_its_number() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let names = quiet_files(&a, 12);
    // An orphan of the other host may be looked at until it is freed.
    let is_unlinked = |node| b.stat_kept(node).is_ok_and(|attr| attr.nlink == 0);
    for n in 0..names.len() {
        // In no order that locks would be asked for ahead in: what another host wants is not freed at once.
        let name = &names[n * 5 % names.len()];
        let node = b.keep(name).expect("lookup");
        if n % 3 == 2 {
            // What the other host needs to unlink it comes first: then the block is clean there.
            a.stat(name).expect("stat");
        }
        a.unlink(name).expect("unlink");
        match n % 4 {
            0 => assert!(is_gone(b.open_kept(node, How::Buffered)), "{name} is opened to be written"),
            1 => {
                let cut = SetAttr { size: Some(3), ..SetAttr::default() };
                assert!(is_gone(b.set_kept(node, cut)) || is_unlinked(node), "{name} is changed");
            }
            2 => assert!(is_gone(b.stat_kept(node)) || is_unlinked(node), "{name} is shown"),
            // The number may be another file's by now.
            _ => {
                a.create(&format!("{name}-new")).expect("create");
                assert!(is_gone(b.open_kept(node, How::Buffered)), "{name} is opened as another file");
            }
        }
        b.forget(node);
    }
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The same when the host that has freed it dies before anything of that is in place.
#[test]
fn a_freed_file_is_not_found_by_its_number_after_a_death() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    let names = quiet_files(&a, 4);
    let nodes: Vec<_> = names.iter().map(|name| b.keep(name).expect("lookup")).collect();
    names.iter().for_each(|name| a.unlink(name).expect("unlink"));
    a.syncfs().expect("durable");
    a.crash();
    for node in nodes {
        assert!(is_gone(b.open_kept(node, How::Buffered)));
        b.forget(node);
    }
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// What is open anywhere when it loses its last name stays as it is until it is closed.
#[test]
fn what_another_host_has_open_is_not_freed_with_its_name() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let b = Host::mount(&disk, "b").expect("mount");
    for name in quiet_files(&a, 3) {
        let node = b.keep(&name).expect("lookup");
        let fh = b.open_kept(node, How::Buffered).expect("open");
        a.unlink(&name).expect("unlink");
        (0..40).for_each(|n| a.create(&format!("{name}-{n}")).expect("create"));
        a.syncfs().expect("durable");
        assert_eq!(b.stat_kept(node).map(|attr| (attr.nlink, attr.size)), Ok((0, 9000)));
        assert_eq!(b.read_kept(node, fh, 9000), Ok(vec![7; 9000]));
        b.close_kept(node, fh).expect("close");
        b.forget(node);
    }
    a.stop().expect("a clean leave");
    b.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}

/// The count of free blocks is that of before when a file is deleted, at once; and the blocks can be used as
/// soon as the kernel has forgotten the inodes, with no other reason to look at the group.
#[test]
fn what_the_kernel_forgets_is_space_again() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    let free = || a.statfs().expect("statfs").blocks_free;
    let mut names = Vec::new();
    for n in 0.. {
        let name = format!("/f{n}");
        match a.create(&name) {
            Ok(()) => names.push(name),
            Err(Error::NoSpace) => break,
            Err(e) => panic!("{name}: {e}"),
        }
    }
    let full = free();
    let gone = names.split_off(names.len() - 600);
    let kept: Vec<_> = gone.iter().map(|name| a.keep(name).expect("lookup")).collect();
    gone.iter().for_each(|name| a.unlink(name).expect("unlink"));
    a.syncfs().expect("durable");
    assert!(free() >= full + 600, "{} of {full} blocks are free", free());
    // Not those that the kernel knows; the directory has become smaller, though.
    let fill =
        |kind: &str| (0..).take_while(|n| a.create(&format!("/{kind}{n}")) != Err(Error::NoSpace)).count();
    let beside = fill("beside");
    assert!(beside < 200, "{beside} files more");
    kept[300..].iter().for_each(|node| a.forget(*node));
    let more = fill("more");
    assert!((270..=300).contains(&more), "{more} files more");
    // While somebody waits for space. Not those of before, which have been waited for in vain.
    let late = names.split_off(names.len() - 3);
    let late: Vec<_> = late.iter().map(|name| (a.keep(name).expect("lookup"), a.unlink(name))).collect();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| a.create("/waits"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished(), "nothing to wait for");
        late.iter().for_each(|(node, _)| a.forget(*node));
        waits.join().expect("no panic").expect("space by then");
    });
    kept[..300].iter().for_each(|node| a.forget(*node));
    let more = fill("again");
    assert!((270..=302).contains(&more), "{more} files more");
    a.stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
