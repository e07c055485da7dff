//! Many small changes and looks: what goes through together comes out as if each had gone alone.

use crate::rig::Cluster;
use crate::rig_xattr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

/// Blocks in use, as statvfs(3) has them.
fn used_blocks(at: &Path) -> u64 {
    let stat = rig_xattr::statvfs(at);
    stat.f_blocks - stat.f_bfree
}

/// One of each kind of content an inode can have.
fn make_all_kinds(dir: &Path, round: usize) {
    let path = |what: &str| dir.join(format!("{what}{round}"));
    File::create(path("empty")).unwrap();
    fs::write(path("inline"), b"in the inode").unwrap();
    fs::write(path("one extent"), vec![1; 5000]).unwrap();
    let scattered = File::create(path("scattered")).unwrap();
    (0..40).for_each(|i| scattered.write_all_at(&[2; 4096], i * 3 * 4096).unwrap());
    scattered.sync_all().unwrap();
    let tree = File::create(path("tree")).unwrap();
    (0..400).for_each(|i| tree.write_all_at(&[3; 4096], i * 2 * 4096).unwrap());
    tree.sync_all().unwrap();
    symlink("short", path("short link")).unwrap();
    symlink("l".repeat(3000), path("long link")).unwrap();
    fs::write(path("attributes"), b"x").unwrap();
    rig_xattr::set(&path("attributes"), "user.short", b"v").unwrap();
    rig_xattr::set(&path("attributes"), "user.long", &[7; 3000]).unwrap();
    fs::create_dir(path("directory")).unwrap();
    fs::write(path("never flushed"), vec![4; 300_000]).unwrap();
}

/// A program that only refers to a file does not have it open; all the same it sees what became of it, and
/// never another file in its place.
#[test]
fn what_is_referred_to_keeps_its_attributes_when_it_has_lost_its_name() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let at = cluster.at(0);
    let referred: Vec<(File, u64)> = (0..5)
        .map(|n| {
            let path = at.join(format!("f{n}"));
            fs::write(&path, vec![1; 100 + n]).unwrap();
            let file = File::options().read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
            let number = file.metadata().unwrap().ino();
            fs::remove_file(&path).unwrap();
            (file, number)
        })
        .collect();
    for round in 0..3 {
        for n in 0..300 {
            let other = at.join(format!("other{round}.{n}"));
            fs::write(&other, b"x").unwrap();
            let number = fs::metadata(&other).unwrap().ino();
            assert!(referred.iter().all(|(_, of_another)| *of_another != number));
        }
        // Numbers are free to be used again when the free is in place.
        File::open(&at).unwrap().sync_all().unwrap();
        std::thread::sleep(Duration::from_millis(1200));
        for (n, (file, number)) in referred.iter().enumerate() {
            let now = file.metadata().unwrap();
            assert_eq!((now.ino(), now.nlink(), now.size()), (*number, 0, 100 + n as u64));
        }
        (0..300).for_each(|n| fs::remove_file(at.join(format!("other{round}.{n}"))).unwrap());
    }
}

#[test]
fn all_kinds_of_files_removed_together_leave_nothing_behind() {
    let cluster = Cluster::new("256M", 1, Duration::from_secs(100));
    let dir = cluster.at(0).join("d");
    // What stays: the directory, and chunks that have their type.
    for round in 0..2 {
        fs::create_dir(&dir).unwrap();
        let empty = used_blocks(&dir);
        (0..30).for_each(|n| make_all_kinds(&dir, n));
        let mut open = File::options().read(true).write(true).open(dir.join("one extent7")).unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
        open.write_all(b"still here").unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        assert_eq!(open.metadata().unwrap().size(), 5000);
        drop(open);
        let deadline = Instant::now() + Duration::from_secs(20);
        while used_blocks(&dir) > empty {
            let left = used_blocks(&dir) - empty;
            assert!(Instant::now() < deadline, "round {round}: {left} blocks do not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
        fs::remove_dir(&dir).unwrap();
        cluster.umount(0);
        cluster.check();
        cluster.mount(0);
    }
    cluster.umount(0);
}

/// Reads of the host's disk so far.
fn reads(at: &Path) -> u64 {
    let counts = String::from_utf8(rig_xattr::get(at, "trusted.shoal.io").unwrap()).unwrap();
    let count = counts.split_whitespace().find_map(|c| c.strip_prefix("reads=")).unwrap();
    count.parse().unwrap()
}

#[test]
fn a_walk_through_a_directory_reads_many_inodes_at_once_and_sees_what_others_changed() {
    const FILES: usize = 1000;
    let cluster = Cluster::new("256M", 1, Duration::from_secs(100));
    let at = cluster.at(0);
    let name = |n: usize| format!("file {n:04}");
    fs::create_dir(at.join("d")).unwrap();
    for n in 0..FILES {
        fs::write(at.join("d").join(name(n)), vec![b'x'; n % 50]).unwrap();
    }
    let in_order =
        |at: &Path| (0..FILES).map(|n| fs::metadata(at.join("d").join(name(n))).unwrap().len()).sum();
    let as_listed =
        |at: &Path| fs::read_dir(at.join("d")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let walks: [&dyn Fn(&Path) -> u64; 2] = [&in_order, &as_listed];
    for walk in walks {
        cluster.umount(0);
        cluster.mount(0);
        let before = reads(&at);
        assert_eq!(walk(&at), (0..FILES as u64).map(|n| n % 50).sum::<u64>());
        let taken = reads(&at) - before;
        assert!(taken < FILES as u64 / 4, "{taken} reads");
    }
    // Another host changes what this one has read ahead, and looked at or not.
    cluster.umount(0);
    cluster.mount(0);
    (0..20).for_each(|n| assert!(fs::metadata(at.join("d").join(name(n))).is_ok()));
    cluster.mount(1);
    let other = cluster.at(1);
    for n in (10..60).step_by(3) {
        fs::write(other.join("d").join(name(n)), vec![b'y'; 100 + n]).unwrap();
    }
    for n in (11..60).step_by(3) {
        fs::remove_file(other.join("d").join(name(n))).unwrap();
    }
    for n in 0..70 {
        let found = fs::metadata(at.join("d").join(name(n))).map(|m| m.len() as usize);
        match n % 3 {
            1 if (10..60).contains(&n) => assert_eq!(found.unwrap(), 100 + n),
            2 if (11..60).contains(&n) => assert!(found.is_err(), "{n}"),
            _ => assert_eq!(found.unwrap(), n % 50),
        }
    }
    cluster.umount(1);
    cluster.umount(0);
    cluster.check();
}
