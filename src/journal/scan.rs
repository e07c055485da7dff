//! Reading the log from its tail on: what was committed, where it ends, and what of that is damaged.

use super::record;
use super::ring::Mark;
use crate::base::{BLOCK_SIZE, BlockNo, Error, Result, TxnId};
use crate::format::Block;
use crate::format::block::crc32c;
use crate::format::journal::{JournalHeader, JournalPlace, TxnHeader};
use crate::store::{AlignedBuf, Store};
use std::time::{Duration, Instant};

/// What cannot be read for so long, while the device gives what lies around it, counts as lost.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(5);
/// Pause between two attempts at that.
const PAUSE: Duration = Duration::from_millis(250);
/// So many blocks on both sides are looked at, and so many of all these may be lost together: sectors that a power cut
/// tore lie in a row and are few. A device that is several (stripes, of 64 KiB at least as a rule) and misses one of them
/// lacks more at once.
const AROUND: u64 = 16;
const LOST_MAX: usize = 8;
/// Ring blocks that are read at once in search of a transaction.
const SEARCH_BLOCKS: u64 = 256;

/// A journal to be read.
#[derive(Clone, Copy)]
pub(super) struct Log<'a> {
    pub store: &'a Store,
    pub place: &'a JournalPlace,
    /// What stays unreadable counts as wrong content, instead of being an error: there is nobody who might be able
    /// to read it.
    pub last_resort: bool,
}

/// A transaction as found in the ring, commit block included.
struct Found {
    header: TxnHeader,
    stream: AlignedBuf,
    crc_right: bool,
}

impl Found {
    /// Where the one behind it stands if this one is at `at`.
    fn end(&self, at: Mark) -> Mark {
        let blocks = u64::from(self.header.stream_blocks.get()) + 1;
        Mark { txn: TxnId(at.txn.0 + 1), position: at.position + blocks }
    }
}

/// What stands where a transaction would be.
enum Written {
    /// One with its commit block.
    Whole(Found),
    /// None that was committed.
    Nothing,
    /// Nobody knows: a block that would tell cannot be read.
    Unreadable,
}

type Visit<'a> = dyn FnMut(TxnId, std::result::Result<Vec<record::Image>, String>) -> Result<()> + 'a;

/// Fails unless the device can be read, but for a few blocks around `bad`: what is out of reach is not lost.
pub(super) fn check_device(store: &Store, place: &JournalPlace, bad: BlockNo) -> Result<()> {
    let mut block = Block::zeroed();
    let first = store.read_data(place.start, &mut block.0);
    first.or_else(|_| store.read_data(place.start.plus(1), &mut block.0))?;
    let around = bad.0.saturating_sub(AROUND)..=bad.0 + AROUND;
    let is_unreadable = |at: &u64| {
        let mut block = Block::zeroed();
        matches!(store.read_data(BlockNo(*at), &mut block.0), Err(Error::Io { .. }))
    };
    match around.clone().filter(is_unreadable).count() {
        0..=LOST_MAX => Ok(()),
        many => Err(Error::Device(format!(
            "{many} of the blocks {} to {} cannot be read: a part of the device is out of reach, and nothing is given up for \
             lost; try again when it is back",
            around.start(),
            around.end()
        ))),
    }
}

impl Log<'_> {
    /// The valid header copy with the higher sequence.
    pub fn read_header(&self) -> Result<JournalHeader> {
        let mut best: Option<JournalHeader> = None;
        let mut unreadable = None;
        for copy in 0..2 {
            let mut b = Block::zeroed();
            if let Err(e) = self.store.read_data(self.place.start.plus(copy), &mut b.0) {
                unreadable = Some(e);
                continue;
            }
            if let Some(h) = self.place.read_header(&b)
                && best.is_none_or(|o| o.sequence.get() < h.sequence.get())
            {
                best = Some(h);
            }
        }
        match (best, unreadable) {
            (Some(header), None) => Ok(header),
            // The newer copy may be the one that cannot be read; what the older one says is true as well.
            (Some(header), Some(_)) if self.last_resort => Ok(header),
            (_, Some(e)) => Err(e),
            (None, None) => {
                let kind = format!("journal header of slot {}", self.place.slot);
                Err(Error::corrupt(self.place.start, kind, "a valid copy", "none"))
            }
        }
    }

    /// Is there no committed transaction at the tail?
    pub fn is_empty(&self, header: &JournalHeader) -> Result<bool> {
        let tail = Mark { txn: TxnId(header.tail_txn.get()), position: header.tail_position.get() };
        Ok(self.read_txn(tail)?.is_none())
    }

    /// All committed transactions from the tail on. Returns where the next one would stand.
    pub fn scan(&self, header: &JournalHeader, visit: &mut Visit) -> Result<Mark> {
        let start = header.tail_position.get();
        let mut at = Mark { txn: TxnId(header.tail_txn.get()), position: start };
        while let Some(found) = self.read_txn(at)? {
            let images = match found.crc_right {
                true => record::decode(&found.header, found.stream.bytes()),
                // Another one was committed behind it: the medium lost it.
                false => Err("the checksum of its images is wrong".into()),
            };
            visit(at.txn, images)?;
            at = found.end(at);
            if at.position - start > self.place.ring_blocks() {
                return Err(Error::corrupt(self.place.start, "journal", "one turn of the ring", "more"));
            }
        }
        Ok(at)
    }

    /// The transaction at `at`, if it is committed. Its commit block was written together with its stream:
    /// if the stream is not what the commit block says, it was cut short by a power failure and never
    /// counted, unless another one follows. That was written later; then the medium has lost something.
    fn read_txn(&self, at: Mark) -> Result<Option<Found>> {
        let slot = self.place.slot;
        let found = match self.read_written(at)? {
            Written::Whole(found) => found,
            Written::Nothing => return Ok(None),
            Written::Unreadable if self.is_followed(at)? => {
                let kind = format!("transaction {} in the journal of slot {slot}", at.txn);
                return Err(Error::corrupt(
                    self.place.block_at(at.position),
                    kind,
                    "whole",
                    "unreadable blocks",
                ));
            }
            Written::Unreadable => {
                tracing::error!(
                    "what was to be transaction {} in the journal of slot {slot} is lost",
                    at.txn
                );
                return Ok(None);
            }
        };
        let mut next = found.end(at);
        let mut committed = found.crc_right;
        while !committed && next.position - at.position < self.place.ring_blocks() {
            let cut_short = match self.read_written(next)? {
                Written::Whole(later) => {
                    committed = later.crc_right;
                    next = later.end(next);
                    false
                }
                Written::Nothing => true,
                // Nobody knows what stands there; what stands behind it may tell.
                Written::Unreadable => {
                    committed = self.is_followed(at)?;
                    !committed
                }
            };
            if cut_short {
                tracing::info!("transaction {} in the journal of slot {slot} was cut short", at.txn);
                return Ok(None);
            }
        }
        Ok(Some(found))
    }

    /// The transaction at `at`, if its commit block stands behind it.
    fn read_written(&self, at: Mark) -> Result<Written> {
        let mut first = Block::zeroed();
        if !self.read(at.position, &mut first.0)? {
            return Ok(Written::Unreadable);
        }
        let header = self.place.read_txn_header(&first.0, at.position);
        let Some(header) = header.filter(|h| h.txn.get() == at.txn.0) else { return Ok(Written::Nothing) };
        let blocks = u64::from(header.stream_blocks.get());
        let mut commit = Block::zeroed();
        if !self.read(at.position + blocks, &mut commit.0)? {
            return Ok(Written::Unreadable);
        }
        let Some(commit) = self.place.read_commit(&commit.0, at.txn, at.position) else {
            return Ok(Written::Nothing);
        };
        let mut stream = AlignedBuf::new(blocks as usize);
        let readable = self.read(at.position, stream.bytes_mut())?;
        let crc_right = readable && crc32c(stream.bytes()) == commit.stream_crc.get();
        Ok(Written::Whole(Found { header, stream, crc_right }))
    }

    /// Does the transaction behind the one at `at` stand anywhere? It was written after that one was durable.
    fn is_followed(&self, at: Mark) -> Result<bool> {
        let next = at.txn.0 + 1;
        let (mut position, end) = (at.position + 1, at.position + self.place.ring_blocks());
        let mut some = AlignedBuf::new(SEARCH_BLOCKS as usize);
        while position < end {
            let count = SEARCH_BLOCKS.min(end - position);
            let bytes = &mut some.bytes_mut()[..count as usize * BLOCK_SIZE];
            if self.read_ring(position, bytes).is_err() {
                // Block by block, what can be had: zeros are no transaction.
                for (n, block) in bytes.chunks_exact_mut(BLOCK_SIZE).enumerate() {
                    if self.read_ring(position + n as u64, block).is_err() {
                        block.fill(0);
                        check_device(self.store, self.place, self.place.block_at(position + n as u64))?;
                    }
                }
            }
            let header = |n: usize| {
                let block = &bytes[n * BLOCK_SIZE..][..BLOCK_SIZE];
                self.place.read_txn_header(block, position + n as u64)
            };
            if (0..count as usize).filter_map(header).any(|h| h.txn.get() == next) {
                return Ok(true);
            }
            position += count;
        }
        Ok(false)
    }

    /// Read ring blocks from `position` on. False if they stay unreadable while the device is not, and nobody else
    /// might read them.
    fn read(&self, position: u64, buf: &mut [u8]) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let failed = match self.read_ring(position, buf) {
                Ok(()) => return Ok(true),
                Err(e @ Error::Io { .. }) if self.last_resort => e,
                Err(e) => return Err(e),
            };
            // An outage is not a lost block.
            if let Some(bad) = self.first_unreadable(position, buf.len()) {
                check_device(self.store, self.place, bad)?;
            }
            if begun.elapsed() >= LOST_AFTER {
                tracing::error!("the journal of slot {} cannot be read: {failed}", self.place.slot);
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn first_unreadable(&self, position: u64, length: usize) -> Option<BlockNo> {
        let mut block = Block::zeroed();
        let mut each = position..position + (length / BLOCK_SIZE) as u64;
        each.find(|at| self.read_ring(*at, &mut block.0).is_err()).map(|at| self.place.block_at(at))
    }

    /// Ring blocks from `position` on, around the end.
    fn read_ring(&self, position: u64, buf: &mut [u8]) -> Result<()> {
        let ring = self.place.ring_blocks();
        let until_wrap = ((ring - position % ring) as usize * BLOCK_SIZE).min(buf.len());
        let (before, behind) = buf.split_at_mut(until_wrap);
        self.store.read_data(self.place.block_at(position), before)?;
        if !behind.is_empty() {
            self.store.read_data(self.place.block_at(0), behind)?;
        }
        Ok(())
    }
}
