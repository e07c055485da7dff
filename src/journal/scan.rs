//! Reading the log from its tail on: what was committed, where it ends, and what of that is damaged.

use super::reach::{PAUSE, check_around, unread};
use super::record;
use super::ring::Mark;
use crate::base::{BLOCK_SIZE, BlockNo, Error, Result, TxnId};
use crate::format::Block;
use crate::format::block::crc32c;
use crate::format::journal::{HEADER_BLOCKS, JournalHeader, JournalPlace, TxnHeader};
use crate::store::{AlignedBuf, Store};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Ring blocks that are read at once in search of a transaction.
const SEARCH_BLOCKS: u64 = 256;

/// A journal to be read.
pub(super) struct Log<'a> {
    pub store: &'a Store,
    pub place: &'a JournalPlace,
    /// What stays unreadable for so long, among blocks that can be read, counts as wrong content, instead of being an
    /// error: there is nobody else who might be able to read it.
    lost_after: Option<Duration>,
    /// What was waited for once and given up.
    lost: RefCell<BTreeSet<BlockNo>>,
    /// What could not be read at the last look, and since when: all of that waits side by side.
    unreadable: RefCell<BTreeMap<BlockNo, Instant>>,
    /// Was all of the journal looked at for that?
    surveyed: Cell<bool>,
    /// What was given up, in words.
    given_up: RefCell<Vec<String>>,
}

/// A transaction as found in the ring, commit block included.
struct Found {
    header: TxnHeader,
    stream: AlignedBuf,
    readable: bool,
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

impl<'a> Log<'a> {
    /// `lost_after`: when what stays unreadable counts as wrong content, if it ever does.
    pub fn new(store: &'a Store, place: &'a JournalPlace, lost_after: Option<Duration>) -> Log<'a> {
        let (lost, unreadable, surveyed) = (RefCell::default(), RefCell::default(), Cell::default());
        Log { store, place, lost_after, lost, unreadable, surveyed, given_up: RefCell::default() }
    }

    /// Something that may have been acknowledged is given up: the log and the report tell of it.
    pub fn tell_lost(&self, what: String) {
        tracing::error!("{what}");
        self.given_up.borrow_mut().push(what);
    }

    /// All that was told of.
    pub fn given_up(&self) -> Vec<String> {
        self.given_up.take()
    }

    /// The valid header copy with the higher sequence. The other may say where the log began before its space was
    /// used again, so a copy is waited for like everything else before it is given up.
    pub fn read_header(&self) -> Result<JournalHeader> {
        let mut best: Option<JournalHeader> = None;
        for copy in 0..HEADER_BLOCKS {
            let (block, mut b) = (self.place.start.plus(copy), Block::zeroed());
            let first = self.store.read_data(block, &mut b.0);
            if self.await_readable(first, &mut b.0, &|_| block)?
                && let Some(h) = self.place.read_header(&b)
                && best.is_none_or(|o| o.sequence.get() < h.sequence.get())
            {
                best = Some(h);
            }
        }
        best.ok_or_else(|| {
            let kind = format!("journal header of slot {}", self.place.slot);
            let found = if self.is_header_lost() { "none that can be read" } else { "none" };
            Error::corrupt(self.place.start, kind, "a valid copy", found)
        })
    }

    /// Was a copy given up? The other may be older.
    fn is_header_lost(&self) -> bool {
        (0..HEADER_BLOCKS).any(|copy| self.lost.borrow().contains(&self.place.start.plus(copy)))
    }

    /// The same as [`Log::is_empty`] of a journal that was left empty or replayed: nothing is at stake in a tail that
    /// cannot be read, so nobody waits for it.
    pub fn was_left_empty(&self, header: &JournalHeader) -> Result<bool> {
        let tail = self.place.block_at(header.tail_position.get());
        match self.store.read_data(tail, &mut Block::zeroed().0) {
            Ok(()) => self.is_empty(header),
            Err(Error::Io { .. }) => Ok(true),
            Err(e) => Err(e),
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
                false if !found.readable => Err("blocks of it cannot be read".into()),
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
            Written::Nothing if self.is_header_lost() && self.is_followed(at)? => {
                let kind = format!("journal header of slot {slot}");
                return Err(Error::corrupt(self.place.start, kind, "the newest copy", "an older one"));
            }
            Written::Nothing => return Ok(None),
            Written::Unreadable => return self.end_unless_followed(at, None),
        };
        let mut next = found.end(at);
        let (mut committed, mut readable) = (found.crc_right, found.readable);
        while !committed && next.position - at.position < self.place.ring_blocks() {
            let later = match self.read_written(next)? {
                Written::Whole(later) => later,
                // Another one behind it was only written when this one was durable.
                Written::Nothing if readable && !self.is_followed(at)? => {
                    tracing::info!("transaction {} in the journal of slot {slot} was cut short", at.txn);
                    return Ok(None);
                }
                // It may be whole, for all that could be read of it.
                Written::Nothing | Written::Unreadable => return self.end_unless_followed(at, Some(found)),
            };
            committed = later.crc_right;
            readable &= later.readable;
            next = later.end(next);
        }
        Ok(Some(found))
    }

    /// What stands at `at` is lost, but for what was `found` of it. If nothing was written behind it, it need not have
    /// been committed.
    fn end_unless_followed(&self, at: Mark, found: Option<Found>) -> Result<Option<Found>> {
        let what = format!("transaction {} in the journal of slot {}", at.txn, self.place.slot);
        if self.is_followed(at)? {
            let place = self.place.block_at(at.position);
            return found.map(Some).ok_or_else(|| Error::corrupt(place, what, "whole", "unreadable blocks"));
        }
        self.tell_lost(format!(
            "what was to be {what} is lost: it cannot be read, and nothing stands behind it"
        ));
        Ok(None)
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
        Ok(Written::Whole(Found { header, stream, readable, crc_right }))
    }

    /// Does a transaction behind the one at `at` stand anywhere? It was written after that one was durable.
    fn is_followed(&self, at: Mark) -> Result<bool> {
        let next = at.txn.0 + 1;
        let (mut position, end) = (at.position + 1, at.position + self.place.ring_blocks());
        let mut some = AlignedBuf::new(SEARCH_BLOCKS as usize);
        while position < end {
            let count = SEARCH_BLOCKS.min(end - position);
            let bytes = &mut some.bytes_mut()[..count as usize * BLOCK_SIZE];
            // What is lost is zeros then: no transaction.
            self.read(position, bytes)?;
            let header = |n: usize| {
                let block = &bytes[n * BLOCK_SIZE..][..BLOCK_SIZE];
                self.place.read_txn_header(block, position + n as u64)
            };
            if (0..count as usize).filter_map(header).any(|h| h.txn.get() >= next) {
                return Ok(true);
            }
            position += count;
        }
        Ok(false)
    }

    /// Read ring blocks from `position` on. False if some are lost; they are zeros then.
    fn read(&self, position: u64, buf: &mut [u8]) -> Result<bool> {
        let first = self.read_ring(position, buf);
        self.await_readable(first, buf, &|n| self.place.block_at(position + n as u64))
    }

    /// After the `first` attempt to read blocks, the n-th of which is `block_at(n)`, wait for those that cannot be read.
    /// False if some are lost; they are zeros then.
    fn await_readable(
        &self,
        first: Result<()>,
        buf: &mut [u8],
        block_at: &dyn Fn(usize) -> BlockNo,
    ) -> Result<bool> {
        let lost_after = match (first, self.lost_after) {
            (Err(Error::Io { .. }), Some(lost_after)) => lost_after,
            (done, _) => return done.map(|()| true),
        };
        let mut missing: Vec<usize> = (0..buf.len() / BLOCK_SIZE).collect();
        loop {
            let look = Instant::now();
            let mut still = Vec::new();
            for n in missing {
                if !self.read_one(block_at(n), &mut buf[n * BLOCK_SIZE..][..BLOCK_SIZE])? {
                    still.push(n);
                }
            }
            let Some(one) = still.first() else { return Ok(true) };
            let is_over =
                |b: &BlockNo| look.saturating_duration_since(self.unreadable.borrow()[b]) >= lost_after;
            if still.iter().all(|n| is_over(&block_at(*n))) {
                self.give_up(still.iter().map(|n| block_at(*n)));
                return Ok(false);
            }
            self.survey(block_at(*one), lost_after)?;
            std::thread::sleep(PAUSE);
            self.look_at_others()?;
            missing = still;
        }
    }

    fn give_up(&self, blocks: impl Iterator<Item = BlockNo>) {
        let mut lost = self.lost.borrow_mut();
        for block in blocks.filter(|b| lost.insert(*b)) {
            tracing::error!("block {block} of the journal of slot {} cannot be read", self.place.slot);
        }
    }

    /// `block` is to be waited for. Once, find what else of the journal cannot be read: otherwise each would begin to
    /// wait when the one before it was given up.
    fn survey(&self, block: BlockNo, lost_after: Duration) -> Result<()> {
        if self.surveyed.replace(true) {
            return Ok(());
        }
        tracing::warn!(
            "block {block} of the journal of slot {} cannot be read: waiting up to {} s for it",
            self.place.slot,
            lost_after.as_secs()
        );
        let (mut some, mut one) = (AlignedBuf::new(SEARCH_BLOCKS as usize), Block::zeroed());
        for from in (0..self.place.blocks).step_by(SEARCH_BLOCKS as usize) {
            let count = SEARCH_BLOCKS.min(self.place.blocks - from);
            let bytes = &mut some.bytes_mut()[..count as usize * BLOCK_SIZE];
            match self.store.read_data(self.place.start.plus(from), bytes) {
                Err(Error::Io { .. }) => {}
                done => {
                    done?;
                    continue;
                }
            }
            for block in (from..from + count).map(|n| self.place.start.plus(n)) {
                match self.store.read_data(block, &mut one.0) {
                    Err(Error::Io { .. }) => {
                        self.unreadable.borrow_mut().entry(block).or_insert_with(Instant::now);
                    }
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// What can be read meanwhile does not wait any more. Nobody has asked for it so far: what is around it does not
    /// matter.
    fn look_at_others(&self) -> Result<()> {
        let all: Vec<BlockNo> = self.unreadable.borrow().keys().copied().collect();
        for block in all.into_iter().filter(|b| !self.lost.borrow().contains(b)) {
            match self.store.read_data(block, &mut Block::zeroed().0) {
                Err(Error::Io { .. }) => continue,
                done => done?,
            }
            self.unreadable.borrow_mut().remove(&block);
        }
        Ok(())
    }

    /// Read a block that could not be read before. False if it still cannot, though those around it can.
    fn read_one(&self, block: BlockNo, buf: &mut [u8]) -> Result<bool> {
        match self.store.read_data(block, buf) {
            Ok(()) if self.lost.borrow().contains(&block) => {
                Err(unread(block, "this was given up, and can be read after all: try again"))
            }
            Ok(()) => {
                self.unreadable.borrow_mut().remove(&block);
                Ok(true)
            }
            Err(e @ Error::Io { .. }) => {
                buf.fill(0);
                check_around(self.store, block, &e)?;
                self.unreadable.borrow_mut().entry(block).or_insert_with(Instant::now);
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Fails if anything that was given up is perhaps not lost. To be asked right before the journal is emptied.
    pub fn check_lost(&self) -> Result<()> {
        let lost = self.lost.borrow().clone();
        lost.into_iter().try_for_each(|block| self.read_one(block, &mut Block::zeroed().0).map(drop))
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
