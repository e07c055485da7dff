//! The simulated disk of all tests: it loses, tears and fails on demand, and never forgets.
//!
//! Every write and flush is an event. From the history any crash can be made afterwards
//! ([`History::crash_at`]): everything flushed is there, of the rest any subset, torn at 512 bytes,
//! in any order. The same seed gives the same crash.

use super::lun::Lun;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::{Error, Result};
use shoal::device::{BlockDevice, Discards};
use std::collections::BTreeMap;
use std::sync::Arc;

const BLOCK: u64 = 4096;
const SECTOR: usize = 512;

pub(super) type Blocks = BTreeMap<u64, Arc<[u8; BLOCK as usize]>>;

/// One thing the device was asked.
#[derive(Clone, Debug)]
pub enum Event {
    Write {
        offset: u64,
        data: Arc<Vec<u8>>,
    },
    /// A write of somebody else, made durable by himself.
    Foreign {
        offset: u64,
        data: Arc<Vec<u8>>,
    },
    /// Nobody needs these blocks any more; those that were ever written.
    Discard {
        blocks: Arc<Vec<u64>>,
    },
    Flush,
}

/// What a discarded block holds: neither what it held before nor zeros, and nobody's.
const GARBAGE: [u8; BLOCK as usize] = [0xdb; BLOCK as usize];

impl Event {
    /// What it leaves where.
    pub(super) fn writes(&self) -> Vec<(u64, &[u8])> {
        match self {
            Event::Write { offset, data } | Event::Foreign { offset, data } => {
                vec![(*offset, data.as_slice())]
            }
            Event::Discard { blocks } => blocks.iter().map(|block| (block * BLOCK, &GARBAGE[..])).collect(),
            Event::Flush => vec![],
        }
    }
}

/// Says whether a request (`"read"`, `"write"`, `"flush"`, `"discard"`; offset; length) fails.
pub type FaultRule = Box<dyn FnMut(&str, u64, usize) -> bool + Send>;

#[derive(Default)]
struct Inner {
    now: Blocks,
    events: Vec<Event>,
    recording: bool,
    fault: Option<FaultRule>,
    /// No request succeeds any more.
    dead: bool,
    reads: u64,
    writes: u64,
    flushes: u64,
    discarded: u64,
}

type Hook = dyn Fn(&str, u64, usize) + Send + Sync;

/// A sparse disk in memory.
pub struct SimDisk {
    inner: Mutex<Inner>,
    size: u64,
    logical: u32,
    garbage: Arc<[u8; BLOCK as usize]>,
    /// Called before each request without any lock held: tests delay or observe here.
    hook: Mutex<Option<Arc<Hook>>>,
    /// Byte-range locks: first byte to the port that has it.
    pub(super) claims: Mutex<BTreeMap<u64, u64>>,
    /// Its persistent reservations.
    pub lun: Arc<Lun>,
}

pub(super) fn apply(blocks: &mut Blocks, offset: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
        let n = (BLOCK as usize - within).min(data.len() - done);
        let b = blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK as usize]));
        Arc::make_mut(b)[within..within + n].copy_from_slice(&data[done..done + n]);
        done += n;
    }
}

impl SimDisk {
    /// `bytes` of zeros in 512-byte sectors.
    pub fn new(bytes: u64) -> Arc<SimDisk> {
        Self::with(bytes, Blocks::new())
    }

    pub(super) fn with(size: u64, now: Blocks) -> Arc<SimDisk> {
        let inner = Inner { now, ..Default::default() };
        Arc::new(SimDisk {
            inner: Mutex::new(inner),
            size,
            logical: 512,
            garbage: Arc::new(GARBAGE),
            hook: Mutex::default(),
            claims: Mutex::default(),
            lun: Lun::new(),
        })
    }

    /// Start the history here: what is on the disk now is durable.
    pub fn record(&self) -> History {
        let mut d = self.inner.lock();
        d.recording = true;
        d.events.clear();
        History { base: d.now.clone(), size: self.size }
    }

    /// Events since [`SimDisk::record`].
    pub fn event_count(&self) -> usize {
        self.inner.lock().events.len()
    }

    /// All events since [`SimDisk::record`].
    pub fn events(&self) -> Vec<Event> {
        self.inner.lock().events.clone()
    }

    /// Requests served: reads, writes, flushes.
    pub fn requests(&self) -> (u64, u64, u64) {
        let d = self.inner.lock();
        (d.reads, d.writes, d.flushes)
    }

    /// Bytes that were discarded.
    pub fn discarded(&self) -> u64 {
        self.inner.lock().discarded
    }

    /// Requests for which `rule` says so fail.
    pub fn fail_when(&self, rule: impl FnMut(&str, u64, usize) -> bool + Send + 'static) {
        self.inner.lock().fault = Some(Box::new(rule));
    }

    /// No faults any more.
    pub fn heal(&self) {
        self.inner.lock().fault = None;
    }

    /// Nothing works any more: the host is cut off.
    pub fn kill(&self) {
        self.inner.lock().dead = true;
    }

    /// Call `hook` before each request.
    pub fn on_request(&self, hook: impl Fn(&str, u64, usize) + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// A copy of the disk as it reads now.
    pub fn snapshot(&self) -> Arc<SimDisk> {
        Self::with(self.size, self.inner.lock().now.clone())
    }

    /// Another host writes and flushes.
    pub fn write_foreign(&self, offset: u64, data: &[u8]) {
        let mut d = self.inner.lock();
        apply(&mut d.now, offset, data);
        d.events.push(Event::Foreign { offset, data: Arc::new(data.to_vec()) });
    }

    /// Overwrite bytes behind everybody's back (bit rot).
    pub fn damage(&self, offset: u64, bytes: &[u8]) {
        apply(&mut self.inner.lock().now, offset, bytes);
    }

    fn enter(&self, op: &'static str, offset: u64, len: usize) -> Result<parking_lot::MutexGuard<'_, Inner>> {
        let hook = self.hook.lock().clone();
        if let Some(hook) = hook {
            hook(op, offset, len);
        }
        let mut d = self.inner.lock();
        let unit = u64::from(self.logical);
        assert!(
            offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit),
            "{op} of {len} bytes at {offset} is not aligned"
        );
        let fails = d.dead || offset + len as u64 > self.size || {
            let mut rule = d.fault.take();
            let fails = rule.as_mut().is_some_and(|r| r(op, offset, len));
            d.fault = rule;
            fails
        };
        if fails {
            return Err(Error::Io { op, offset, length: len as u64, cause: "simulated".into() });
        }
        Ok(d)
    }
}

impl BlockDevice for SimDisk {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut d = self.enter("read", offset, buf.len())?;
        d.reads += 1;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let n = (BLOCK as usize - within).min(buf.len() - done);
            match d.now.get(&(at / BLOCK)) {
                Some(b) => buf[done..done + n].copy_from_slice(&b[within..within + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut d = self.enter("write", offset, data.len())?;
        d.writes += 1;
        apply(&mut d.now, offset, data);
        if d.recording {
            d.events.push(Event::Write { offset, data: Arc::new(data.to_vec()) });
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut d = self.enter("flush", 0, 0)?;
        d.flushes += 1;
        if d.recording {
            d.events.push(Event::Flush);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let mut d = self.enter("discard", offset, length as usize)?;
        let range = offset / BLOCK..(offset + length) / BLOCK;
        let blocks: Vec<u64> = d.now.range(range).map(|(block, _)| *block).collect();
        d.discarded += length;
        for block in &blocks {
            d.now.insert(*block, self.garbage.clone());
        }
        if d.recording {
            d.events.push(Event::Discard { blocks: Arc::new(blocks) });
        }
        Ok(())
    }

    fn discards(&self) -> Option<Discards> {
        Some(Discards { granule: BLOCK, most: 1 << 20 })
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn logical_block(&self) -> u32 {
        self.logical
    }

    fn physical_block(&self) -> u32 {
        4096
    }

    fn name(&self) -> String {
        "simulated disk".into()
    }
}

/// What a power cut leaves of the writes that no flush followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unflushed {
    /// None of them.
    Lost,
    /// All of them.
    Kept,
    /// Each sector of each write by the toss of a coin of this seed.
    Torn(u64),
    /// Each write whole or not at all.
    Subset(u64),
}

/// The disk at the start of a recording.
#[derive(Clone)]
pub struct History {
    pub(super) base: Blocks,
    pub(super) size: u64,
}

impl History {
    /// The disk after a power cut behind the first `count` of `events`.
    pub fn crash_at(&self, events: &[Event], count: usize, unflushed: Unflushed) -> Arc<SimDisk> {
        let mut blocks = self.base.clone();
        let cut = &events[..count];
        let flushed = cut.iter().rposition(|e| matches!(e, Event::Flush)).map_or(0, |at| at + 1);
        for (at, e) in cut.iter().enumerate() {
            if at < flushed || matches!(e, Event::Foreign { .. }) {
                e.writes().into_iter().for_each(|(offset, data)| apply(&mut blocks, offset, data));
            }
        }
        let mut pending = unflushed_writes(&cut[flushed..]);
        survive(&mut blocks, &mut pending, unflushed);
        SimDisk::with(self.size, blocks)
    }
}

/// What a power cut behind these may take back.
pub(super) fn unflushed_writes(events: &[Event]) -> Vec<(u64, &[u8])> {
    events.iter().filter(|e| !matches!(e, Event::Foreign { .. })).flat_map(Event::writes).collect()
}

pub(super) fn survive(blocks: &mut Blocks, pending: &mut [(u64, &[u8])], how: Unflushed) {
    let (mut rng, torn) = match how {
        Unflushed::Lost => return,
        Unflushed::Kept => {
            pending.iter().for_each(|(offset, data)| apply(blocks, *offset, data));
            return;
        }
        Unflushed::Torn(seed) => (StdRng::seed_from_u64(seed), true),
        Unflushed::Subset(seed) => (StdRng::seed_from_u64(seed), false),
    };
    // Different seeds keep much or little: half of everything would hide rare survivors.
    let keep = [0.1, 0.5, 0.9][rng.random_range(0..3)];
    for (offset, data) in pending {
        let unit = if torn { SECTOR } else { data.len() };
        for (n, part) in data.chunks(unit).enumerate() {
            if rng.random_bool(keep) {
                apply(blocks, *offset + (n * unit) as u64, part);
            }
        }
    }
}
