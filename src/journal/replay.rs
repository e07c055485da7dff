//! What a journal left behind by a crash still has to say, and saying it: order-free, idempotent.
//!
//! An image is applied if its version is above the one on disk ([`decide`]). So replaying twice,
//! or several journals in any order, or after other hosts have gone on changing blocks whose locks
//! they were given, ends with the newest image everywhere.

use super::reach::{LOST_AFTER, PAUSE, check_around};
use super::record;
use super::ring::Mark;
use super::scan::Log;
use super::skip;
use crate::base::{BlockNo, Error, Result, SlotId, TxnId, Version};
use crate::format::Block;
use crate::format::block::crc32c;
use crate::format::journal::{JournalHeader, JournalPlace};
use crate::store::{Image as Sealed, Store};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause between two looks at a torn block.
const TORN_PAUSE: Duration = Duration::from_millis(10);
/// Blocks written in one batch.
const WRITE_BATCH: usize = 1024;
/// So many single blocks that cannot be written are passed over, to write the others; of more it is the device.
const UNWRITABLE_MAX: usize = 16;

/// What to do with one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write it.
    Apply,
    /// The disk is as new or newer.
    Skip,
    /// The block on disk is torn; a live writer may be at it: look again.
    ReadAgain,
}

/// The rule. `on_disk`: the version there, `None` if torn; `settled`: nobody can be writing it any
/// more, the time has passed.
pub fn decide(on_disk: Option<Version>, image: Version, settled: bool) -> Decision {
    match on_disk {
        Some(there) if image > there => Decision::Apply,
        Some(_) => Decision::Skip,
        None if settled => Decision::Apply,
        None => Decision::ReadAgain,
    }
}

/// Where replay reads and writes blocks in place: the device, or a memory overlay over it.
pub trait ReplaySink {
    /// The block as it stands, whatever it is.
    fn read(&mut self, block: BlockNo) -> Result<Block>;
    /// Sealed blocks, ascending.
    fn write(&mut self, blocks: &[(BlockNo, Arc<Block>)]) -> Result<()>;
    /// Does it reach the disk? Then the journal is marked empty afterwards.
    fn is_persistent(&self) -> bool;
    /// How long a torn block that does not change may still be under a live writer's hands.
    fn settle(&self) -> Duration {
        Duration::ZERO
    }
    /// So many of the blocks that the journal has stand in place.
    fn progress(&mut self, _done: u64, _total: u64) {}
    /// Go on behind a transaction that is committed but damaged (and report it)?
    fn tolerates_damage(&self) -> bool {
        false
    }
    /// When what stays unreadable, among blocks that can be read, may be taken for torn. Never as long as another host
    /// might be able to read it.
    fn lost_after(&self) -> Option<Duration> {
        None
    }
    /// All has been written.
    ///
    /// # Errors
    /// The first of those for which a block was passed over: the journal must stay as it is.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Writes to the device through the store.
pub struct DeviceSink<'a> {
    store: &'a Store,
    settle: Duration,
    progress: Option<Progress<'a>>,
    wanted: Option<Wanted<'a>>,
    lost_after: Option<Duration>,
    /// What went wrong with blocks that could not be written.
    unwritable: Vec<Error>,
}

/// Fails once the replay is not to go on.
pub type Wanted<'a> = &'a dyn Fn() -> Result<()>;

/// Hears how many blocks are done, of how many.
pub type Progress<'a> = &'a dyn Fn(u64, u64);

impl<'a> DeviceSink<'a> {
    /// `settle`: the longest time a write of a host that may still live can take to land; zero when
    /// no other host lives.
    pub fn new(store: &'a Store, settle: Duration) -> DeviceSink<'a> {
        let unwritable = Vec::new();
        DeviceSink { store, settle, progress: None, wanted: None, lost_after: None, unwritable }
    }

    /// There is no other host: what cannot be read here for the `write_life` of the volume (five seconds at least),
    /// while the blocks around it can, is lost. A block of which the journal has an image is written without being
    /// compared then, and what cannot be read of the journal's end need not have been committed.
    pub fn last_resort(self, write_life: Duration) -> DeviceSink<'a> {
        DeviceSink { lost_after: Some(write_life.max(LOST_AFTER)), ..self }
    }

    /// Tells `progress` how far it is.
    pub fn telling(self, progress: Progress<'a>) -> DeviceSink<'a> {
        DeviceSink { progress: Some(progress), ..self }
    }

    /// Goes on, before each block, only while `wanted` says so. The journal stays as it was then.
    pub fn while_wanted(self, wanted: Wanted<'a>) -> DeviceSink<'a> {
        DeviceSink { wanted: Some(wanted), ..self }
    }
}

impl ReplaySink for DeviceSink<'_> {
    fn read(&mut self, block: BlockNo) -> Result<Block> {
        self.wanted.map_or(Ok(()), |wanted| wanted())?;
        let mut b = Block::zeroed();
        self.store.device().read(block.byte(), &mut b.0)?;
        Ok(b)
    }
    fn write(&mut self, blocks: &[(BlockNo, Arc<Block>)]) -> Result<()> {
        let images: Vec<_> = blocks.iter().map(|(b, block)| (*b, Sealed::Whole(block.clone()))).collect();
        let written = match self.store.put_blocks(&images) {
            Err(Error::Io { .. }) => self.write_each(&images),
            other => other,
        };
        blocks.iter().for_each(|(b, _)| self.store.forget(*b));
        written
    }
    fn is_persistent(&self) -> bool {
        true
    }
    fn settle(&self) -> Duration {
        self.settle
    }
    fn progress(&mut self, done: u64, total: u64) {
        if let Some(progress) = self.progress {
            progress(done, total);
        }
    }
    fn lost_after(&self) -> Option<Duration> {
        self.lost_after
    }
    fn end(&mut self) -> Result<()> {
        self.unwritable.drain(..).next().map_or(Ok(()), Err)
    }
}

impl DeviceSink<'_> {
    /// One by one, those that cannot be written left out. That is no reason for this host to halt: nothing of its own
    /// is in doubt, and the journal keeps what it has for another attempt, by whomever.
    fn write_each(&mut self, images: &[(BlockNo, Sealed)]) -> Result<()> {
        for one in images.chunks(1) {
            match self.store.put_blocks(one) {
                Err(e @ Error::Io { .. }) if self.unwritable.len() < UNWRITABLE_MAX => {
                    tracing::error!(
                        "block {} cannot be written, of which a journal has a newer image: {e}",
                        one[0].0
                    );
                    self.unwritable.push(e);
                }
                other => other?,
            }
        }
        Ok(())
    }
}

/// Keeps what replay would write in memory; several journals may be replayed into one overlay.
pub struct OverlaySink<'a> {
    store: &'a Store,
    /// What replay has written.
    pub blocks: BTreeMap<BlockNo, Arc<Block>>,
    /// Go on behind damaged transactions.
    pub tolerate_damage: bool,
    lost_after: Duration,
}

impl<'a> OverlaySink<'a> {
    /// An empty overlay over the store's device. It takes for lost what a first mount would: `write_life` as with
    /// [`DeviceSink::last_resort`].
    pub fn new(store: &'a Store, write_life: Duration) -> OverlaySink<'a> {
        let lost_after = write_life.max(LOST_AFTER);
        OverlaySink { store, blocks: BTreeMap::new(), tolerate_damage: false, lost_after }
    }
}

impl ReplaySink for OverlaySink<'_> {
    fn read(&mut self, block: BlockNo) -> Result<Block> {
        match self.blocks.get(&block) {
            Some(b) => Ok((**b).clone()),
            None => DeviceSink::new(self.store, Duration::ZERO).read(block),
        }
    }
    fn write(&mut self, blocks: &[(BlockNo, Arc<Block>)]) -> Result<()> {
        self.blocks.extend(blocks.iter().cloned());
        Ok(())
    }
    fn is_persistent(&self) -> bool {
        false
    }
    fn tolerates_damage(&self) -> bool {
        self.tolerate_damage
    }
    fn lost_after(&self) -> Option<Duration> {
        Some(self.lost_after)
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Transactions found.
    pub txns: u64,
    /// Distinct blocks in them.
    pub blocks: u64,
    /// Blocks written.
    pub applied: u64,
    /// Of these, blocks that were torn on disk.
    pub torn: u64,
    /// Committed transactions whose images are damaged (only if the sink tolerates that).
    pub damaged: Vec<TxnId>,
    /// What cannot be read and was given up, in words: it may have been acknowledged.
    pub lost: Vec<String>,
    /// The highest version of any image: fsck keeps group clocks above it.
    pub version_max: Version,
}

/// Replay the journal in `extent` of `slot`, whose host is gone, into `sink`; FLUSH, and mark it
/// empty (if the sink is persistent). May be repeated at any point.
///
/// # Errors
/// `Corrupt` if no header copy is valid, or a committed transaction is damaged or names a block
/// that cannot be; `Io`; `Halted`.
pub fn replay(
    store: &Store,
    extent: (BlockNo, u64),
    slot: SlotId,
    sink: &mut dyn ReplaySink,
) -> Result<ReplayReport> {
    let place = place(store, extent, slot);
    let log = Log::new(store, &place, sink.lost_after());
    let header = log.read_header()?;
    let mut report = ReplayReport::default();
    // As compact as in the log, whose length bounds it.
    let mut newest: BTreeMap<BlockNo, record::Image> = BTreeMap::new();
    let tolerant = sink.tolerates_damage();
    let end = log.scan(&header, &mut |txn, images| {
        report.txns += 1;
        let images = match images.and_then(|i| check_targets(store, &place, &i).map(|()| i)) {
            Ok(images) => images,
            Err(what) if tolerant => {
                tracing::error!("transaction {txn} in the journal of slot {slot} is damaged: {what}");
                report.damaged.push(txn);
                return Ok(());
            }
            Err(what) => {
                let kind = format_args!("transaction {txn} in the journal of slot {slot}").to_string();
                return Err(Error::corrupt(place.start, kind, "whole images", what));
            }
        };
        for image in images {
            let block = BlockNo(image.entry.block.get());
            report.version_max = report.version_max.max(image.entry.version());
            if newest.get(&block).is_none_or(|i| i.entry.version() < image.entry.version()) {
                newest.insert(block, image);
            }
        }
        Ok(())
    })?;
    report.blocks = newest.len() as u64;
    apply(&log, newest, sink, &mut report)?;
    sink.end()?;
    if sink.is_persistent() {
        store.flush()?;
    }
    log.check_lost()?;
    report.lost = log.given_up();
    if sink.is_persistent() {
        mark_empty(store, &place, &header, end)?;
    }
    if report.txns > 0 {
        tracing::debug!(
            "journal of slot {slot}: {} transactions, {} of {} blocks written, {} torn",
            report.txns,
            report.applied,
            report.blocks,
            report.torn
        );
    }
    Ok(report)
}

/// Does the journal hold no committed transaction?
///
/// # Errors
/// `Corrupt` if no header copy is valid; `Io`; `Halted`.
pub fn journal_is_clean(store: &Store, extent: (BlockNo, u64), slot: SlotId) -> Result<bool> {
    let place = place(store, extent, slot);
    let log = Log::new(store, &place, None);
    let header = log.read_header()?;
    log.is_empty(&header)
}

fn place(store: &Store, extent: (BlockNo, u64), slot: SlotId) -> JournalPlace {
    JournalPlace { format_id: store.format_id(), slot, start: extent.0, blocks: extent.1 }
}

/// A replay target lies in a group, and never in the journal itself.
fn check_targets(
    store: &Store,
    place: &JournalPlace,
    images: &[record::Image],
) -> std::result::Result<(), String> {
    for image in images {
        let block = BlockNo(image.entry.block.get());
        if store.geometry().ag_of(block).is_none() || place.contains(block) {
            return Err(format!("an image of block {block}, which no transaction changes"));
        }
        if image.block().header().format_id.get() != store.format_id() {
            return Err(format!("an image of block {block} of another volume"));
        }
    }
    Ok(())
}

fn apply(
    log: &Log,
    newest: BTreeMap<BlockNo, record::Image>,
    sink: &mut dyn ReplaySink,
    report: &mut ReplayReport,
) -> Result<()> {
    let mut batch = Vec::new();
    let mut torn = Vec::new();
    let total = newest.len() as u64;
    for (done, (block, image)) in newest.into_iter().enumerate() {
        // What waits in the batch is written soon.
        sink.progress(done as u64, total);
        let mut seen = None;
        match look(log, block, image.entry.version(), &mut seen, sink)? {
            Decision::Skip => {}
            Decision::ReadAgain => torn.push((block, image, seen)),
            Decision::Apply => {
                report.applied += 1;
                report.torn += u64::from(seen.is_some());
                batch.push(sealed(block, &image));
                if batch.len() == WRITE_BATCH {
                    sink.write(&batch)?;
                    batch.clear();
                }
            }
        }
    }
    sink.write(&batch)?;
    sink.progress(total - torn.len() as u64, total);
    await_torn(log, torn, sink, report)?;
    sink.progress(total, total);
    Ok(())
}

/// Look at torn blocks until all are decided. They wait side by side, each for its own time, and each is
/// written at once: what was seen of it is not true for long.
fn await_torn(
    log: &Log,
    mut torn: Vec<(BlockNo, record::Image, Option<Torn>)>,
    sink: &mut dyn ReplaySink,
    report: &mut ReplayReport,
) -> Result<()> {
    let first_unreadable = |torn: &[(BlockNo, record::Image, Option<Torn>)]| {
        torn.iter().find(|(_, _, seen)| seen.is_some_and(|torn| torn.crc.is_none())).map(|(block, ..)| *block)
    };
    if let Some(block) = first_unreadable(&torn) {
        tracing::warn!(
            "block {block}, of which the journal of slot {} has an image, cannot be read: waiting for it, and perhaps others",
            log.place.slot
        );
    }
    while !torn.is_empty() {
        log.store.halt().check()?;
        let any_unreadable = first_unreadable(&torn).is_some();
        std::thread::sleep(if any_unreadable { PAUSE } else { TORN_PAUSE });
        for (block, image, mut seen) in std::mem::take(&mut torn) {
            match look(log, block, image.entry.version(), &mut seen, sink)? {
                Decision::Skip => {}
                Decision::ReadAgain => torn.push((block, image, seen)),
                Decision::Apply => {
                    report.applied += 1;
                    report.torn += 1;
                    sink.write(&[sealed(block, &image)])?;
                }
            }
        }
    }
    Ok(())
}

fn sealed(block: BlockNo, image: &record::Image) -> (BlockNo, Arc<Block>) {
    let mut image = image.block();
    image.seal();
    (block, Arc::new(image))
}

/// How a torn block looked, and since when it has looked so.
#[derive(Clone, Copy, Debug)]
struct Torn {
    /// `None`: it could not be read.
    crc: Option<u32>,
    since: Instant,
}

/// Compare with the disk. A live writer's hands are off a block that has stayed torn in the same way for
/// the settle time; that counts from a look at this very block, and anew when it changes.
fn look(
    log: &Log,
    block: BlockNo,
    image: Version,
    seen: &mut Option<Torn>,
    sink: &mut dyn ReplaySink,
) -> Result<Decision> {
    let begun = Instant::now();
    let (crc, patience) = match read_target(log, block, sink)? {
        Some(found) => {
            let on_disk = found.replay_version(log.store.format_id(), block);
            if on_disk.is_some() {
                return Ok(decide(on_disk, image, false));
            }
            (Some(crc32c(&found.0)), sink.settle())
        }
        None => (None, sink.settle().max(sink.lost_after().unwrap_or(Duration::MAX))),
    };
    let same = seen.filter(|torn| torn.crc == crc);
    let torn = same.unwrap_or_else(|| Torn { crc, since: Instant::now() });
    *seen = Some(torn);
    let decision = decide(None, image, begun.saturating_duration_since(torn.since) >= patience);
    if crc.is_none() && decision == Decision::Apply {
        log.tell_lost(format!(
            "block {block} cannot be read: it becomes what the journal of slot {} has",
            log.place.slot
        ));
    }
    Ok(decision)
}

/// `None` if it cannot be read, those around it can, and there is nobody else who might read it. A newer version may
/// stand in what is merely out of reach. So the last thing that is done before it is written over is another look.
fn read_target(log: &Log, block: BlockNo, sink: &mut dyn ReplaySink) -> Result<Option<Block>> {
    match sink.read(block) {
        Err(e @ Error::Io { .. }) if sink.lost_after().is_some() => check_around(log.store, block, &e)?,
        other => return other.map(Some),
    }
    match sink.read(block) {
        Err(Error::Io { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Copy A, FLUSH, copy B, FLUSH. Numbers are skipped so that what the dead host had begun to write
/// is never taken for a transaction.
fn mark_empty(store: &Store, place: &JournalPlace, header: &JournalHeader, end: Mark) -> Result<()> {
    let block = place.header(header.sequence.get() + 1, skip(end.txn), end.position);
    for copy in 0..2 {
        // Another host's: if it cannot be written, it is replayed again.
        store.overwrite_data(place.start.plus(copy), &block.0)?;
        store.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_rule() {
        use Decision::*;
        for (disk, image, settled, want) in [
            (Some(0), 1, false, Apply),
            (Some(0), 1, true, Apply),
            (Some(1), 1, false, Skip),
            (Some(2), 1, true, Skip),
            (None, 1, false, ReadAgain),
            (None, 1, true, Apply),
        ] {
            assert_eq!(decide(disk.map(Version), Version(image), settled), want);
        }
    }
}
