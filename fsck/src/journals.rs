//! Replaying what dead hosts left into memory; the check sees the volume as it would be.

use crate::finding::{Code, Findings, Place};
use crate::image::words;
use shoal::base::{BlockNo, Error, Result, SlotId};
use shoal::cluster::Timing;
use shoal::format::Block;
use shoal::format::journal::JournalPlace;
use shoal::format::superblock::Superblock;
use shoal::format::volume::{SlotExtents, Volume};
use shoal::journal::{OverlaySink, ReplayReport, replay};
use shoal::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The store is only a way to the device here.
const CACHE_BYTES: usize = 1 << 20;

/// A journal that held something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    pub slot: SlotId,
    pub txns: u64,
    /// Blocks that were, or would be, written.
    pub blocks: u64,
    /// What was given up meanwhile, in words: [`ReplayReport::lost`].
    pub lost: Vec<String>,
}

impl Replayed {
    /// What came of a replay, if there was anything.
    pub fn of(slot: SlotId, report: ReplayReport) -> Option<Replayed> {
        let is_something = report.txns > 0 || !report.lost.is_empty();
        is_something.then_some(Replayed {
            slot,
            txns: report.txns,
            blocks: report.applied,
            lost: report.lost,
        })
    }
}

/// Blocks as replay would leave them.
pub type Overlay = BTreeMap<BlockNo, Arc<Block>>;

/// Replay all journals into an overlay, damaged ones as far as they go.
///
/// # Errors
/// `Halted`.
pub fn replay_all(
    device: &Arc<dyn shoal::device::BlockDevice>,
    sb: &Superblock,
    volume: &Volume,
    clean: bool,
    findings: &mut Findings,
) -> Result<(Vec<Replayed>, Overlay)> {
    let store = Store::new(device.clone(), sb.format_id, volume.geometry(sb), CACHE_BYTES);
    let mut overlay = OverlaySink::new(&store, Timing::of(volume.timing).claim_wait());
    overlay.tolerate_damage = true;
    let mut replayed = Vec::new();
    for (i, slot) in volume.slots.iter().enumerate() {
        let id = SlotId(i as u16);
        check_headers(&store, id, slot, clean, findings)?;
        let extent = (slot.journal_start, slot.journal_blocks);
        match replay(&store, extent, id, &mut overlay) {
            Ok(report) => note(id, report, clean, &mut replayed, findings),
            // What is out of reach is not lost, but the rest of the volume can be looked at.
            Err(e @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                findings.add(Code::JournalDamaged, Place::Slot(id), words(&e));
            }
            Err(e) => return Err(e),
        }
    }
    Ok((replayed, overlay.blocks))
}

fn note(
    slot: SlotId,
    report: ReplayReport,
    clean: bool,
    replayed: &mut Vec<Replayed>,
    findings: &mut Findings,
) {
    for txn in &report.damaged {
        let what = format!("transaction {txn} of its journal is committed, but damaged");
        findings.add(Code::JournalDamaged, Place::Slot(slot), what);
    }
    if clean && report.txns > 0 {
        let what = format!("everybody left in order, but its journal holds {} transactions", report.txns);
        findings.add(Code::JournalDamaged, Place::Slot(slot), what);
    }
    for what in &report.lost {
        findings.add(Code::JournalDamaged, Place::Slot(slot), what);
    }
    replayed.extend(Replayed::of(slot, report));
}

/// Both header copies. One may be torn where a host died writing it.
fn check_headers(
    store: &Store,
    id: SlotId,
    slot: &SlotExtents,
    clean: bool,
    findings: &mut Findings,
) -> Result<()> {
    let place = JournalPlace {
        format_id: store.format_id(),
        slot: id,
        start: slot.journal_start,
        blocks: slot.journal_blocks,
    };
    let (mut valid, mut unreadable) = (0, 0);
    for copy in 0..2 {
        let mut b = Block::zeroed();
        match store.read_data(place.start.plus(copy), &mut b.0) {
            Err(e @ Error::Io { .. }) => {
                unreadable += 1;
                findings.add(Code::JournalHeader, Place::Slot(id), words(&e));
            }
            done => done?,
        }
        valid += u32::from(place.read_header(&b).is_some());
    }
    if unreadable == 0 && (valid == 0 || (clean && valid == 1)) {
        let what = if valid == 0 { "no copy" } else { "only one copy" };
        findings.add(Code::JournalHeader, Place::Slot(id), format!("{what} of its journal header is valid"));
    }
    Ok(())
}
