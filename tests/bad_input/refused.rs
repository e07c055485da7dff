//! What is not mounted, and what is said of it.

use crate::disk::Disk;
use crate::rig::{Cluster, run, stderr};
use crate::{LIMIT, assert_refused, errno};
use shoal::base::BlockNo;
use shoal::format::Block;
use shoal::format::layout::{BACKUP_SUPERBLOCK, SUPERBLOCK, VOLUME_BLOCKS};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

#[test]
fn what_is_no_shoal_volume() {
    let cluster = Cluster::empty(LIMIT);
    let image = cluster.image();
    let shown = image.display().to_string();
    let refuse = |words: &[&str]| {
        assert_refused(
            &cluster.try_mount(0, &image, "rw"),
            &[&[&shown[..], "not a Shoal volume"], words].concat(),
        );
        let status = run("shoal", &["status", &shown]);
        assert_eq!(status.status.code(), Some(1), "{}", stderr(&status));
        assert!(stderr(&status).contains("not a Shoal volume"), "{}", stderr(&status));
    };
    fs::write(&image, b"").unwrap();
    refuse(&["0 bytes"]);
    fs::write(&image, vec![0; 4096]).unwrap();
    refuse(&["4096 bytes"]);
    fs::write(&image, vec![0; 64 << 20]).unwrap();
    refuse(&["mkfs.shoal"]);
    // Somebody else's: say whose, so that nobody makes a volume over it.
    File::options().write(true).open(&image).unwrap().write_all_at(b"\x53\xef", 1080).unwrap();
    refuse(&["ext2/3/4"]);
    for (device, word) in [("/dev/null", "neither a block device nor an image"), ("/tmp", "neither")] {
        assert_refused(&cluster.try_mount(0, Path::new(device), "rw"), &[device, word]);
    }
    assert_refused(&cluster.try_mount(0, Path::new("UUID=6f1c2d3e"), "rw"), &["UUID=6f1c2d3e"]);
}

#[test]
fn images_too_small_for_a_volume_are_not_made() {
    let cluster = Cluster::empty(LIMIT);
    for size in ["1M", "63M"] {
        let made = run("mkfs_shoal", &["-q", cluster.image().to_str().unwrap(), size]);
        assert!(!made.status.success() && stderr(&made).contains("64 MiB"), "{}", stderr(&made));
        assert!(!cluster.image().exists());
    }
}

#[test]
fn a_truncated_image_is_refused_with_both_sizes() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let file = File::options().write(true).open(cluster.image()).unwrap();
    file.set_len((64 << 20) - (8 << 20)).unwrap();
    let words = ["truncated", "67108864", "58720256", "restore its full size"];
    assert_refused(&cluster.try_mount(0, &cluster.image(), "rw"), &words);
    assert_refused(&cluster.try_mount(0, &cluster.image(), "ro"), &words);
    // The lost part held no metadata that an empty volume cannot do without.
    file.set_len(64 << 20).unwrap();
    cluster.mount(0);
    fs::write(cluster.at(0).join("f"), b"whole again").unwrap();
    cluster.umount(0);
}

#[test]
fn unknown_features_are_refused_by_name() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let disk = Disk::open(&cluster.image());
    let set = |incompat, ro_compat| {
        let changed =
            shoal::format::superblock::Superblock { incompat, ro_compat, ..disk.superblock.clone() };
        disk.write(SUPERBLOCK, &changed.to_block(SUPERBLOCK));
    };
    set(1 << 9, 0);
    for options in ["rw", "ro"] {
        let refused = cluster.try_mount(0, &cluster.image(), options);
        assert_refused(&refused, &["incompat bits 0x200", "newer Shoal"]);
    }
    set(0, 1 << 5);
    let refused = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&refused, &["ro_compat bits 0x20", "-o ro", "newer Shoal"]);
    let mounted = cluster.try_mount(0, &cluster.image(), "ro");
    assert!(mounted.status.success(), "{}", stderr(&mounted));
    assert_eq!(fs::read_dir(cluster.at(0)).unwrap().count(), 0);
    assert_eq!(errno(fs::write(cluster.at(0).join("f"), b"")), libc::EROFS);
    let refused = cluster.try_mount(0, &cluster.image(), "remount,rw");
    assert_refused(&refused, &["stays read-only", "features"]);
    assert_eq!(errno(fs::write(cluster.at(0).join("f"), b"")), libc::EROFS);
    cluster.umount(0);
}

#[test]
fn features_switched_on_later_are_refused_by_name() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let disk = Disk::open(&cluster.image());
    let mut volume = disk.volume.clone();
    volume.features = 1 << 40;
    for _ in 0..2 {
        volume.sequence += 1;
        let (place, block) = volume.to_block(disk.superblock.format_id);
        disk.write(place, &block);
    }
    let refused = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&refused, &["feature bits 0x10000000000", "newer Shoal"]);
}

#[test]
fn a_destroyed_superblock_is_replaced_by_its_backup_and_that_is_said() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let disk = Disk::open(&cluster.image());
    cluster.mount(0);
    fs::write(cluster.at(0).join("f"), b"lasting").unwrap();
    cluster.umount(0);
    let mut torn = disk.read(SUPERBLOCK);
    torn.0[512..].fill(0x77);
    let mut noise = torn.clone();
    noise.0.fill(0x55);
    let named = format!("using its backup in block {BACKUP_SUPERBLOCK}");
    for destroyed in [&torn, &Block::zeroed(), &noise] {
        disk.write(SUPERBLOCK, destroyed);
        cluster.mount(0);
        assert_eq!(fs::read(cluster.at(0).join("f")).unwrap(), b"lasting");
        cluster.umount(0);
        let status = run("shoal", &["status", "--quick", cluster.image().to_str().unwrap()]);
        assert!(stderr(&status).contains(&named), "{}", stderr(&status));
    }
    let log = cluster.log(0);
    let warnings =
        log.lines().filter(|l| l.contains("WARN") && l.contains(&named) && l.contains("fsck.shoal"));
    assert_eq!(warnings.count(), 3, "{log}");
    // Somebody else's by now: nobody mounts it by the backup, no more than where the blocks behind it went too.
    let mut swap = Block::zeroed();
    swap.0[4086..].copy_from_slice(b"SWAPSPACE2");
    disk.write(SUPERBLOCK, &swap);
    let refused = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&refused, &["backup superblock is at block 4094", "mkfs.shoal", "swap"]);
    let copy = disk.read(VOLUME_BLOCKS[0]);
    disk.write(SUPERBLOCK, &Block::zeroed());
    disk.write(VOLUME_BLOCKS[0], &Block::zeroed());
    let refused = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&refused, &["backup superblock is at block 4094", "mkfs.shoal"]);
    disk.write(VOLUME_BLOCKS[0], &copy);
    // All of them damaged.
    disk.write(SUPERBLOCK, &torn);
    disk.write(BACKUP_SUPERBLOCK, &torn);
    disk.write(disk.superblock.geometry.group_backup_superblock().unwrap(), &torn);
    let refused = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&refused, &["superblocks are damaged", &format!("block {}", BlockNo(0))]);
}

#[test]
fn a_full_volume_says_who_has_it() {
    let cluster = Cluster::new("64M", 2, LIMIT);
    let refused = cluster.try_mount(2, &cluster.image(), "rw");
    assert_refused(&refused, &["all 2 slots", "host0", "host1"]);
    cluster.umount(0);
    cluster.mount(2);
    cluster.umount(2);
    cluster.umount(1);
}

#[test]
fn mount_points_that_cannot_be() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let image = cluster.image();
    let image = image.to_str().unwrap();
    assert_refused(&run("shoal", &["mount", image, "/no/such/place"]), &["/no/such/place", "No such file"]);
    assert_refused(&run("shoal", &["mount", image, image]), &[image, "not a directory"]);
    cluster.mount(0);
    let again = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&again, &["already mounted at", cluster.at(0).to_str().unwrap()]);
    // The daemon dies; its mount stays and answers nobody.
    let daemon = cluster.daemon(0).unwrap();
    // SAFETY: the daemon that this test started, found by its own record.
    assert_eq!(unsafe { libc::kill(daemon.daemon.pid as i32, libc::SIGKILL) }, 0);
    assert!(daemon.wait(LIMIT));
    assert_eq!(errno(fs::read_dir(cluster.at(0))), libc::ENOTCONN);
    let dead = cluster.try_mount(0, &cluster.image(), "rw");
    assert_refused(&dead, &["the daemon of the mount here is dead", "umount"]);
    assert!(cluster.try_umount(0).status.success());
    cluster.mount(0);
    cluster.umount(0);
}

#[test]
fn options_that_cannot_be() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    for (option, words) in [
        ("quota", "mount option 'quota': there are no quotas"),
        ("usrjquota=aquota.user", "mount option 'usrjquota': there are no quotas"),
        ("discard", "mount option 'discard': freed blocks are not discarded at once; run fstrim"),
        ("errors=remount-ro", "unknown mount option 'errors=remount-ro'"),
        ("commit=never", "'commit=never': must be seconds, 0.1 to 60"),
        ("cache=1K", "'cache=1K': must be"),
        ("threads=0", "'threads=0': must be"),
        ("name=", "'name=': must be"),
        ("commit", "'commit' needs a value"),
        ("ro=1", "'ro' takes no value"),
    ] {
        let refused = cluster.try_mount(0, &cluster.image(), option);
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{option}: {said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{option}: {said}");
    }
    let refused = cluster.try_mount(0, &cluster.image(), "log=/no/such/directory/log");
    assert_refused(&refused, &["log file /no/such/directory/log", "No such file"]);
}
