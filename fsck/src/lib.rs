//! Checking a Shoal volume that nobody has mounted.
//!
//! [`check`] reads everything the format holds and compares it with itself: superblocks, volume
//! block, coordination regions, journals (replayed in memory), groups, every metadata block, every
//! inode's items, every name. It shares the declarations of `shoal::format` and the journal's replay
//! with the daemon, and none of its traversal. [`guard`] keeps hosts off, [`recover`] replays journals
//! onto the disk, by joining and leaving as any host does.
//!
//! The order of the phases: what a later one reads, an earlier one has checked. All inodes are read
//! once, chunk by chunk; what the checks across inodes need (32 bytes an inode, 40 a name, two bits
//! a block) is kept in memory.

pub mod finding;
mod groups;
pub mod guard;
mod image;
mod inode;
pub mod journals;
mod names;
pub mod progress;
pub mod recover;
mod regions;
pub mod reserved;
mod scan;
mod slots;
mod tree;

pub use finding::{Code, Finding, Place};
pub use journals::Replayed;
pub use progress::{Progress, Silent};

use finding::Findings;
use groups::Groups;
use image::{Image, words};
use shoal::base::{BlockNo, Result};
use shoal::cluster::{Disk, read_status};
use shoal::device::BlockDevice;
use shoal::format::superblock::{self, LoadedFrom, Superblock};
use shoal::format::value::FileKind;
use shoal::format::volume;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Check everything also where all hosts left in order.
    pub force: bool,
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub files: u64,
    pub directories: u64,
    /// Symbolic links, devices, fifos, sockets.
    pub others: u64,
    /// Bytes in files, holes included.
    pub bytes: u64,
    /// Blocks of the groups, and those in use.
    pub blocks: u64,
    pub blocks_used: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub label: String,
    pub uuid: [u8; 16],
    /// All hosts left in order.
    pub was_clean: bool,
    /// Nothing but the superblocks was looked at, because the volume is clean.
    pub skipped: bool,
    pub replayed: Vec<Replayed>,
    /// Coordination cells that hosts were writing when they died; they are read past.
    pub torn: u64,
    /// Unlinked files and deferred frees that the next mount will see to.
    pub orphans: u64,
    pub findings: Vec<Finding>,
    /// How many findings of each code there are; `findings` keeps 10,000 of each at most.
    pub counts: BTreeMap<Code, u64>,
    /// Why the check ended early.
    pub stopped: Option<String>,
    pub totals: Totals,
}

impl Report {
    /// Is nothing wrong?
    pub fn is_sound(&self) -> bool {
        self.counts.is_empty() && self.stopped.is_none()
    }

    /// What was given up when a journal was replayed for good: the check itself finds no trace of it.
    pub fn note_lost(&mut self, journal: &Replayed) {
        for what in &journal.lost {
            let (code, place) = (Code::JournalDamaged, Place::Slot(journal.slot));
            self.findings.push(Finding { code, place, what: what.clone() });
            *self.counts.entry(code).or_default() += 1;
        }
    }
}

/// Check the volume on `device`, which nobody has mounted ([`guard`] sees to that). Writes nothing:
/// journals that hold something ([`recover`] replays them for good) are replayed into memory.
///
/// # Errors
/// `Device` if this is no Shoal volume, or one of a newer release; `Io`. Damage is no error, it is in
/// the report.
pub fn check(device: Arc<dyn BlockDevice>, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let (sb, from) = superblock::load(&*device)?;
    sb.check_features(false)?;
    let mut findings = Findings::default();
    let mut report = Report { uuid: sb.uuid, ..Report::default() };
    progress.phase("superblocks");
    let volume = match volume::load(&*device, &sb) {
        Ok(volume) => volume,
        Err(e) => {
            findings.add(Code::VolumeCopyDamaged, Place::Volume, format!("no copy is valid: {}", words(&e)));
            report.stopped = Some("the volume block tells where everything is".into());
            (report.findings, report.counts) = findings.finish();
            return Ok(report);
        }
    };
    volume.check_features()?;
    report.label.clone_from(&volume.label);
    report.was_clean = was_left_in_order(&device, &sb);
    let mut image = Image { device: device.clone(), superblock: sb, volume, overlay: BTreeMap::new() };
    regions::check_superblocks(&image, from, &mut findings);
    report.skipped = report.was_clean && !options.force && from == LoadedFrom::Primary;
    if !report.skipped {
        progress.phase("journals");
        let (sb, volume, clean) = (&image.superblock, &image.volume, report.was_clean);
        (report.replayed, image.overlay) = journals::replay_all(&device, sb, volume, clean, &mut findings)?;
        check_all(&image, &mut report, &mut findings, progress);
    }
    (report.findings, report.counts) = findings.finish();
    Ok(report)
}

/// Does the newest view say that everybody has left? Not if it cannot be read.
fn was_left_in_order(device: &Arc<dyn BlockDevice>, sb: &Superblock) -> bool {
    let disk = Disk { device: device.clone(), format_id: sb.format_id, geometry: sb.geometry };
    read_status(&disk, None).is_ok_and(|status| status.is_clean())
}

fn check_all(image: &Image, report: &mut Report, findings: &mut Findings, progress: &dyn Progress) {
    progress.phase("coordination");
    report.torn = regions::check_coordination(image, findings);
    progress.phase("groups");
    let groups = Groups::load(image, findings);
    groups.claim_system(image, findings);
    let lists = slots::read(image, &groups, findings);
    report.orphans = (lists.orphans.len() + lists.deferred.len()) as u64;
    progress.phase("inodes");
    let known = scan::Known { slot_inodes: &lists.inodes, deferred: &lists.deferred };
    let mut scanned = scan::scan(image, &groups, &known, progress);
    findings.merge(std::mem::take(&mut scanned.gathered.findings));
    progress.phase("names");
    names::check(image, &groups, &scanned.gathered, &lists.orphans, findings);
    progress.phase("blocks");
    report_damaged(&groups, &scanned, findings);
    let twice = scanned.gathered.twice.iter().chain(&lists.twice);
    for (block, n) in twice.copied().collect::<BTreeSet<_>>() {
        let what = format!("{n} blocks from here on are used twice");
        findings.add(Code::BlockShared, Place::Block(block), what);
    }
    report.totals = totals(&scanned.gathered, &groups);
}

/// Damaged blocks that no walk came to, and leaks.
fn report_damaged(groups: &Groups, scanned: &scan::Scanned, findings: &mut Findings) {
    let damaged: BTreeMap<BlockNo, &str> = scanned.damaged.iter().map(|(b, w)| (*b, w.as_str())).collect();
    if scanned.damaged_more > 0 {
        let what = format!("{} more blocks in metadata chunks are not valid", scanned.damaged_more);
        findings.add(Code::BlockDamaged, Place::Volume, what);
    }
    for (block, what) in &damaged {
        let seen = groups
            .locate(*block)
            .is_some_and(|(g, c, i)| g.chunks.get(c).is_some_and(|c| c.is_seen(i as usize)));
        if !seen {
            findings.add(Code::BlockDamaged, Place::Block(*block), *what);
        }
    }
    groups.report_leaks(&|block| damaged.contains_key(&block), findings);
}

fn totals(all: &inode::Gathered, groups: &Groups) -> Totals {
    let of = |kind: FileKind| all.inodes.iter().filter(|i| i.kind == Some(kind)).count() as u64;
    let (files, directories) = (of(FileKind::Regular), of(FileKind::Directory));
    let (blocks, blocks_used) = groups.usage();
    let others = all.inodes.len() as u64 - files - directories;
    Totals { files, directories, others, bytes: all.bytes, blocks, blocks_used }
}
