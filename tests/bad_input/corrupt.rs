//! Damaged metadata of files and directories: the operation that meets it fails with EIO, the log
//! says which block it is, and everything else goes on.

use crate::disk::{Disk, assert_told};
use crate::rig::Cluster;
use crate::{LIMIT, assert_refused, errno, rig_xattr};
use shoal::base::BlockNo;
use shoal::format::BlockKind;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

/// Names in the directory that is to be damaged: more than fit into its inode.
const NAMES: usize = 400;
/// Pieces of the file whose extents do not fit into its inode.
const PIECES: u64 = 400;

fn name(i: usize) -> String {
    format!("an-entry-of-a-directory-with-a-tree-{i:06}")
}

/// One victim per kind of block, and something that stays sound.
fn fill(at: &Path) {
    fs::write(at.join("plain"), b"victim").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    (0..NAMES).for_each(|i| drop(File::create(at.join("dir").join(name(i))).unwrap()));
    let pieces = File::create(at.join("pieces")).unwrap();
    (0..PIECES).for_each(|i| pieces.write_all_at(&[i as u8; 4096], i * 8192).unwrap());
    pieces.sync_all().unwrap();
    fs::write(at.join("valued"), b"data of the valued").unwrap();
    rig_xattr::set(&at.join("valued"), "user.long", &[7; 40_000]).unwrap();
    symlink("x/".repeat(2000), at.join("link")).unwrap();
    fs::create_dir(at.join("sound")).unwrap();
    fs::write(at.join("sound/f"), vec![3; 100_000]).unwrap();
}

/// The victims' blocks: the first of each.
struct Victims {
    plain: BlockNo,
    dir: BlockNo,
    pieces: BlockNo,
    value: BlockNo,
    link: BlockNo,
}

impl Victims {
    fn find(disk: &Disk, at: &Path) -> Victims {
        let owner = |name: &str| fs::symlink_metadata(at.join(name)).unwrap().ino();
        let first = |kind, name| *disk.find(kind, owner(name)).first().unwrap_or_else(|| panic!("{name}"));
        Victims {
            plain: BlockNo(owner("plain")),
            dir: first(BlockKind::TreePage, "dir"),
            pieces: first(BlockKind::TreePage, "pieces"),
            value: first(BlockKind::Blob, "valued"),
            link: first(BlockKind::Blob, "link"),
        }
    }

    fn spoil(&self, disk: &Disk) {
        let all = [self.plain, self.dir, self.pieces, self.value, self.link];
        all.into_iter().for_each(|block| disk.spoil(block));
    }

    fn assert_all_told(&self, log: &str) {
        assert_told(log, self.plain, BlockKind::Inode);
        assert_told(log, self.dir, BlockKind::TreePage);
        assert_told(log, self.pieces, BlockKind::TreePage);
        assert_told(log, self.value, BlockKind::Blob);
        assert_told(log, self.link, BlockKind::Blob);
    }
}

fn assert_eio<T>(what: &str, done: std::io::Result<T>) {
    assert_eq!(errno(done), libc::EIO, "{what}");
}

/// Every operation that meets a damaged block fails with EIO.
fn meet(at: &Path) {
    let path = |name: &str| at.join(name);
    assert_eio("stat", fs::metadata(path("plain")));
    assert_eio("open", File::open(path("plain")));
    assert_eio("unlink", fs::remove_file(path("plain")));
    assert_eio("rename over", fs::rename(path("sound/f"), path("plain")));
    assert_eio("link", fs::hard_link(path("plain"), path("sound/l")));
    let listed: Result<Vec<_>, _> = fs::read_dir(path("dir")).unwrap().collect();
    assert_eio("readdir", listed);
    let looked = (0..NAMES).filter(|i| errno(fs::metadata(path("dir").join(name(*i)))) == libc::EIO).count();
    assert!(looked > 0, "no name is behind the damaged page");
    let made = (0..NAMES).map(|i| errno(File::create(path("dir").join(format!("new{i}")))));
    assert!(made.into_iter().any(|e| e == libc::EIO), "no new name belongs on the damaged page");
    assert_eio("rmdir", fs::remove_dir(path("dir")));
    assert_eio("read", fs::read(path("pieces")));
    let pieces = File::options().read(true).write(true).open(path("pieces")).unwrap();
    let write = |i: u64| pieces.write_all_at(b"new", i * 8192 + 4096).and_then(|()| pieces.sync_all());
    assert!((0..PIECES).any(|i| errno(write(i)) == libc::EIO), "no extent is on the damaged page");
    assert_eio("truncate", pieces.set_len(0));
    assert_eio("getxattr", rig_xattr::get(&path("valued"), "user.long"));
    assert_eio("readlink", fs::read_link(path("link")));
}

/// What is sound goes on.
fn go_on(at: &Path) {
    assert_eq!(fs::read_dir(at).unwrap().count(), 6);
    assert_eq!(fs::read(at.join("sound/f")).unwrap(), vec![3; 100_000]);
    assert_eq!(fs::read(at.join("valued")).unwrap(), b"data of the valued");
    fs::write(at.join("sound/new"), vec![4; 300_000]).unwrap();
    File::open(at.join("sound/new")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read(at.join("sound/new")).unwrap(), vec![4; 300_000]);
    fs::rename(at.join("sound/new"), at.join("sound/newer")).unwrap();
    fs::remove_file(at.join("sound/newer")).unwrap();
}

#[test]
fn damage_found_by_a_mount() {
    let cluster = Cluster::new("64M", 1, LIMIT);
    let at = cluster.at(0);
    fill(&at);
    cluster.umount(0);
    cluster.mount(0);
    let disk = Disk::open(&cluster.image());
    let victims = Victims::find(&disk, &at);
    cluster.umount(0);
    victims.spoil(&disk);
    cluster.mount(0);
    meet(&at);
    go_on(&at);
    victims.assert_all_told(&cluster.log(0));
    let left = cluster.try_umount(0);
    assert!(left.status.success(), "{left:?}\n{}", cluster.log(0));
    assert!(cluster.log(0).lines().last().unwrap().contains("left"), "{}", cluster.log(0));
    cluster.mount(0);
    go_on(&at);
    assert!(cluster.try_umount(0).status.success());
}

#[test]
fn damage_under_living_mounts() {
    let cluster = Cluster::new("64M", 2, LIMIT);
    let (at, other) = (cluster.at(0), cluster.at(1));
    fill(&at);
    // Another host's look brings everything to its place on the disk.
    assert_eq!(fs::read(other.join("plain")).unwrap(), b"victim");
    let _ = fs::read(other.join("pieces")).unwrap();
    let _ = (rig_xattr::get(&other.join("valued"), "user.long"), fs::read_link(other.join("link")));
    assert_eq!(fs::read_dir(other.join("dir")).unwrap().count(), NAMES);
    assert!((0..NAMES).all(|i| fs::metadata(other.join("dir").join(name(i))).is_ok()));
    let disk = Disk::open(&cluster.image());
    let victims = Victims::find(&disk, &at);
    cluster.umount(1);
    victims.spoil(&disk);
    cluster.mount(1);
    meet(&other);
    go_on(&other);
    victims.assert_all_told(&cluster.log(1));
    // Nor does it hurt the host beside.
    fs::write(at.join("sound/g"), b"from the first").unwrap();
    assert_eq!(fs::read(other.join("sound/g")).unwrap(), b"from the first");
    fs::remove_file(other.join("sound/g")).unwrap();
    go_on(&at);
    for host in [1, 0] {
        let left = cluster.try_umount(host);
        assert!(left.status.success(), "{left:?}\n{}", cluster.log(host));
        assert!(!cluster.log(host).contains("halts"), "{}", cluster.log(host));
    }
}

#[test]
fn a_damaged_root_is_refused() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let disk = Disk::open(&cluster.image());
    let root = disk.superblock.root_inode;
    disk.spoil(BlockNo(root));
    let words = [&format!("block {root} is corrupt: inode")[..], "expected crc", "found", "fsck.shoal"];
    assert_refused(&cluster.try_mount(0, &cluster.image(), "rw"), &words);
    assert_refused(&cluster.try_mount(0, &cluster.image(), "ro"), &words);
    // That left no member behind that the next mount would wait for.
    disk.spoil(BlockNo(root));
    cluster.mount(0);
    assert!(cluster.try_umount(0).status.success());
}

#[test]
fn an_unlinked_file_that_cannot_be_freed_stays_out_of_the_way() {
    let cluster = Cluster::new("64M", 1, LIMIT);
    let at = cluster.at(0);
    fill(&at);
    cluster.umount(0);
    cluster.mount(0);
    let disk = Disk::open(&cluster.image());
    let victims = Victims::find(&disk, &at);
    cluster.umount(0);
    disk.spoil(victims.pieces);
    cluster.mount(0);
    fs::remove_file(at.join("pieces")).unwrap();
    assert_eq!(errno(fs::metadata(at.join("pieces"))), libc::ENOENT);
    (0..20).for_each(|i| fs::write(at.join(format!("sound/{i}")), vec![i; 50_000]).unwrap());
    let left = cluster.try_umount(0);
    assert!(left.status.success(), "{left:?}\n{}", cluster.log(0));
    assert_told(&cluster.log(0), victims.pieces, BlockKind::TreePage);
    assert!(!cluster.log(0).contains("halts"), "{}", cluster.log(0));
    cluster.mount(0);
    (0..20).for_each(|i| assert_eq!(fs::read(at.join(format!("sound/{i}"))).unwrap(), vec![i; 50_000]));
    assert!(cluster.try_umount(0).status.success());
}
