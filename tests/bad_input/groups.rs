//! Damaged group headers and chunk pages: nothing is allocated there, the rest goes on.

use crate::disk::{Disk, assert_told};
use crate::rig::Cluster;
use crate::{LIMIT, errno};
use shoal::base::{AgNo, BlockNo};
use shoal::format::{BlockKind, Geometry};
use std::fs::{self, File};
use std::path::Path;

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    fs::write(path, content)?;
    File::open(path)?.sync_all()
}

/// Until nothing is left but the damaged groups, which are asked last and fail each time. What was to
/// stand in one of them may fail before, once; what comes later goes elsewhere.
fn fill(at: &Path) {
    let (mut written, mut failed) = (Vec::new(), 0);
    for i in 0..60 {
        let name = at.join(format!("f{i}"));
        match write_synced(&name, &vec![i; 1 << 20]) {
            Ok(()) => {
                written.push((name, i));
                failed = 0;
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{name:?} after {}", written.len());
                let _ = fs::remove_file(name);
                failed += 1;
            }
        }
        if failed == 4 {
            break;
        }
    }
    assert!(failed == 4 && written.len() > 10, "{failed} failed, {} written", written.len());
    for (name, i) in &written {
        assert!(fs::read(name).unwrap() == vec![*i; 1 << 20], "{name:?}");
    }
    written.iter().for_each(|(name, _)| fs::remove_file(name).unwrap());
}

fn damaged(kind: BlockKind, place: impl Fn(&Geometry, AgNo) -> BlockNo) {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let disk = Disk::open(&cluster.image());
    let g = disk.superblock.geometry;
    let root = g.ag_of(BlockNo(disk.superblock.root_inode)).unwrap();
    let spoilt = (0..g.ag_count).map(AgNo).filter(|ag| *ag != root).take(2);
    let spoilt: Vec<BlockNo> = spoilt.map(|ag| place(&g, ag)).collect();
    cluster.mount(0);
    fs::write(cluster.at(0).join("before"), b"kept").unwrap();
    cluster.umount(0);
    spoilt.iter().for_each(|b| disk.spoil(*b));
    let before: Vec<_> = spoilt.iter().map(|b| disk.read(*b)).collect();
    cluster.mount(0);
    fill(&cluster.at(0));
    assert_eq!(fs::read(cluster.at(0).join("before")).unwrap(), b"kept");
    let log = cluster.log(0);
    assert!(!log.contains("halts"), "{log}");
    let told = spoilt.iter().find(|b| log.contains(&format!("block {b} is corrupt")));
    assert_told(&log, *told.expect("no damaged group was met"), kind);
    let left = cluster.try_umount(0);
    assert!(left.status.success(), "{left:?}\n{}", cluster.log(0));
    for (place, image) in spoilt.iter().zip(before) {
        assert_eq!(disk.read(*place).0, image.0, "nobody writes over what fsck must see");
    }
}

#[test]
fn damaged_group_headers() {
    damaged(BlockKind::GroupHeader, |g, ag| g.ag_header(ag));
}

#[test]
fn damaged_chunk_pages() {
    damaged(BlockKind::ChunkPage, |g, ag| g.chunk_page(ag, 0));
}

#[test]
fn with_all_groups_damaged_everything_can_still_be_read() {
    let cluster = Cluster::new("64M", 1, LIMIT);
    let at = cluster.at(0);
    write_synced(&at.join("f"), &vec![9; 500_000]).unwrap();
    cluster.umount(0);
    let disk = Disk::open(&cluster.image());
    let g = disk.superblock.geometry;
    let headers: Vec<BlockNo> = (0..g.ag_count).map(|ag| g.ag_header(AgNo(ag))).collect();
    headers.iter().for_each(|h| disk.spoil(*h));
    cluster.mount(0);
    assert_eq!(fs::read(at.join("f")).unwrap(), vec![9; 500_000]);
    assert_eq!(errno(write_synced(&at.join("g"), b"no room is known")), libc::EIO);
    assert_eq!(fs::read(at.join("f")).unwrap(), vec![9; 500_000]);
    let log = cluster.log(0);
    assert_told(&log, headers[0], BlockKind::GroupHeader);
    assert!(!log.contains("halts"), "{log}");
    let left = cluster.try_umount(0);
    assert!(left.status.success(), "{left:?}\n{}", cluster.log(0));
    headers.iter().for_each(|h| disk.spoil(*h));
    cluster.mount(0);
    write_synced(&at.join("g"), b"room again").unwrap();
    assert!(cluster.try_umount(0).status.success());
    cluster.check();
}
