//! The disk was a volume before: whatever that one left behind (another format id) never speaks.

use crate::disk::Disk;
use crate::rig::{Cluster, stderr};
use crate::{LIMIT, assert_refused};
use shoal::base::{AgNo, BlockNo};
use std::fs;

/// A volume, and one of the same shape that was used and left dirty: the disk's older life.
struct Lives {
    now: Cluster,
    disk: Disk,
    before: Disk,
    _older: Cluster,
}

impl Lives {
    fn new() -> Lives {
        let older = Cluster::new("64M", 2, LIMIT);
        for (host, name) in [(0, "old"), (1, "older")] {
            fs::write(older.at(host).join(name), b"gone").unwrap();
            fs::File::open(older.at(host).join(name)).unwrap().sync_all().unwrap();
        }
        older.kill(&[0, 1]);
        let now = Cluster::unmounted("64M", LIMIT);
        let (disk, before) = (Disk::open(&now.image()), Disk::open(&older.image()));
        assert_eq!(disk.superblock.geometry, before.superblock.geometry);
        assert_ne!(disk.superblock.format_id, before.superblock.format_id);
        Lives { now, disk, before, _older: older }
    }

    fn refuses(&self, start: u64, count: u64, words: &[&str]) {
        self.disk.transplant(&self.before, start, count);
        assert_refused(&self.now.try_mount(0, &self.now.image(), "rw"), words);
    }

    /// Mounts as two hosts, and sees nothing of the older life.
    fn works(&self, start: u64, count: u64) {
        self.disk.transplant(&self.before, start, count);
        for host in 0..2 {
            let out = self.now.try_mount(host, &self.now.image(), "rw");
            assert!(out.status.success(), "blocks from {start}: {}", stderr(&out));
        }
        fs::write(self.now.at(0).join("new"), b"here").unwrap();
        assert_eq!(fs::read(self.now.at(1).join("new")).unwrap(), b"here");
        assert_eq!(fs::read_dir(self.now.at(1)).unwrap().count(), 1);
        fs::remove_file(self.now.at(1).join("new")).unwrap();
        self.now.umount(0);
        self.now.umount(1);
    }
}

#[test]
fn cells_of_an_older_life_are_silent() {
    let lives = Lives::new();
    let g = lives.disk.superblock.geometry;
    let r = g.regions();
    lives.works(r.heartbeat, r.ballots - r.heartbeat);
    lives.works(r.inbox, r.overflow - r.inbox);
    lives.works(r.overflow, r.lobby - r.overflow);
    lives.works(r.lobby, r.end - r.lobby);
    // One copy of what has two.
    lives.works(1, 1);
}

#[test]
fn transactions_of_an_older_life_are_not_replayed() {
    let lives = Lives::new();
    for slot in &lives.disk.volume.slots.clone() {
        // The ring, and one of the two headers.
        lives.works(slot.journal_start.0 + 1, slot.journal_blocks - 1);
        lives.now.check();
    }
}

#[test]
fn registers_of_an_older_life_are_refused() {
    let id = |disk: &Disk| format!("{:016x}", disk.superblock.format_id);
    let r = |lives: &Lives| lives.disk.superblock.geometry.regions();
    let lives = Lives::new();
    let (own, foreign) = (id(&lives.disk), id(&lives.before));
    let ids = [&own[..], &foreign[..]];
    lives.refuses(1, 2, &[&["volume block", "fsck.shoal"], &ids[..]].concat());
    let lives = Lives::new();
    let (own, foreign) = (id(&lives.disk), id(&lives.before));
    let regions = r(&lives);
    lives.refuses(regions.ballots, regions.ledgers - regions.ballots, &["ballot of slot 0", &own, &foreign]);
    let lives = Lives::new();
    let (own, foreign) = (id(&lives.disk), id(&lives.before));
    let regions = r(&lives);
    lives.refuses(regions.ledgers, regions.inbox - regions.ledgers, &["ledger page 0", &own, &foreign]);
}

#[test]
fn journals_and_roots_of_an_older_life_are_refused() {
    let lives = Lives::new();
    let start = lives.disk.volume.slots[0].journal_start.0;
    lives.refuses(start, 2, &["journal header of slot 0", "fsck.shoal"]);
    let lives = Lives::new();
    let root = lives.disk.superblock.root_inode;
    lives.refuses(root, 1, &[&format!("block {root} is corrupt: inode"), "format id", "fsck.shoal"]);
}

#[test]
fn groups_of_an_older_life_hold_nothing_for_us() {
    let lives = Lives::new();
    let g = lives.disk.superblock.geometry;
    let header = g.ag_header(AgNo(1));
    lives.disk.transplant(&lives.before, header.0, 2);
    lives.now.mount(0);
    let at = lives.now.at(0);
    // More than one group holds, so that the spoilt one is asked as well.
    (0..14).for_each(|i| fs::write(at.join(format!("f{i}")), vec![i; 1 << 20]).unwrap());
    (0..14).for_each(|i| assert_eq!(fs::read(at.join(format!("f{i}"))).unwrap(), vec![i; 1 << 20]));
    assert!(lives.now.try_umount(0).status.success());
    let touched = lives.disk.read(BlockNo(header.0));
    assert_eq!(touched.0, lives.before.read(BlockNo(header.0)).0, "nobody writes into it");
}
