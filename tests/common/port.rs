//! One host's way to a simulated disk: it can be cut off, slowed down, made to fail, and it holds
//! byte-range locks as an open file description does. Other hosts' ports do not notice.

use super::simdisk::SimDisk;
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::{Error, Result};
use shoal::cluster::{SlotClaim, Timing};
use shoal::device::{BlockDevice, Discards, Reservations};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Stale reads are of single blocks behind the coordination cells, which a host must see to join.
const STALE_BYTES: usize = 4096;
const STALE_FROM: u64 = 16 << 20;
/// How much later a late discard comes.
const LATE: Duration = Duration::from_millis(50);

/// How a host's requests fare. Requests under way at once overtake each other by their delays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// A request takes up to this long.
    pub delay_us_max: u64,
    /// So many of 1000 writes reach the disk in pieces of 512 bytes, with pauses between them.
    pub torn_of_1000: u32,
    /// So many of 100,000 requests fail.
    pub failing_of_100000: u32,
    /// Flushes are acknowledged and forgotten.
    pub lost_flushes: bool,
    /// What was read once is not read again: writes of other hosts are never seen.
    pub stale_reads: bool,
    /// Discards are acknowledged first and done afterwards.
    pub late_discards: bool,
}

/// One host's way to the disk.
pub struct Port {
    disk: Arc<SimDisk>,
    id: u64,
    cut: AtomicBool,
    weather: Mutex<Option<(Weather, StdRng)>>,
    failed: AtomicU64,
    /// No request gets through for now.
    stalled: AtomicBool,
    /// Writes that wait for longer than a write may live are lost.
    mortal: AtomicBool,
    /// Held while a write is on its way: a file whose writes are not over is not closed.
    writing: RwLock<()>,
    /// Reads within it fail: this way to the disk is bad there.
    refused: Mutex<std::ops::Range<u64>>,
    refusals: AtomicU64,
    /// Writes of which the first sector is nothing but this byte fail.
    unwritable: Mutex<Option<u8>>,
    /// Blocks that metadata reads go on finding, where reads are stale.
    seen: Mutex<HashMap<u64, Vec<u8>>>,
}

impl Port {
    /// A port of its own; requests pass at once.
    pub fn new(disk: &Arc<SimDisk>) -> Arc<Port> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Port::of_nexus(disk, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// For another process of this machine, or one that the device takes for it.
    pub fn again(&self) -> Arc<Port> {
        Port::of_nexus(&self.disk, self.id)
    }

    fn of_nexus(disk: &Arc<SimDisk>, id: u64) -> Arc<Port> {
        Arc::new(Port {
            disk: disk.clone(),
            id,
            cut: AtomicBool::new(false),
            weather: Mutex::default(),
            failed: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            mortal: AtomicBool::new(false),
            writing: RwLock::default(),
            refused: Mutex::new(0..0),
            refusals: AtomicU64::new(0),
            unwritable: Mutex::default(),
            seen: Mutex::default(),
        })
    }

    fn weather(&self) -> Weather {
        self.weather.lock().as_ref().map(|(w, _)| *w).unwrap_or_default()
    }

    /// From now on.
    pub fn set_weather(&self, weather: Weather, seed: u64) {
        *self.weather.lock() = Some((weather, StdRng::seed_from_u64(seed)));
    }

    /// The host's power is cut: nothing passes any more, its locks are gone.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        drop(self.writing.write());
        self.disk.claims.lock().retain(|_, holder| *holder != self.id);
    }

    /// Writes that the disk let through.
    pub fn landed(&self) -> u64 {
        self.disk.lun.landed(self.id)
    }

    /// Its persistent reservations.
    pub fn reservations(&self) -> Arc<dyn Reservations> {
        Arc::new(self.disk.lun.nexus(self.id))
    }

    /// Requests wait from now on, or no more.
    pub fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::Release);
    }

    /// From now on a write that waits for longer than a write may live fails: whoever has taken over
    /// from this host counts on that.
    pub fn lose_late_writes(&self) {
        self.mortal.store(true, Ordering::Release);
    }

    /// Reads of these bytes fail from now on.
    pub fn refuse_reads(&self, bytes: std::ops::Range<u64>) {
        *self.refused.lock() = bytes;
    }

    /// Writes of which the first sector is nothing but this byte fail from now on.
    pub fn refuse_writes_of(&self, byte: u8) {
        *self.unwritable.lock() = Some(byte);
    }

    /// How often either happened.
    pub fn refused(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Requests that the weather made fail.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits as the weather says; the answer: does the request go through in pieces?
    fn pass(&self, op: &'static str, offset: u64, len: usize) -> Result<bool> {
        let fails = |cause: &str| Error::Io { op, offset, length: len as u64, cause: cause.into() };
        let roll = self.weather.lock().as_mut().map(|(w, random)| {
            let delay = random.random_range(0..=w.delay_us_max);
            // Most requests are quick, some take all the time there is.
            let delay = if random.random_bool(0.9) { delay / 10 } else { delay };
            let fails = random.random_range(0..100_000) < w.failing_of_100000;
            let torn = op == "write" && random.random_range(0..1000) < w.torn_of_1000;
            (delay, fails, torn)
        });
        let (delay, failing, torn) = roll.unwrap_or_default();
        if delay > 20 {
            std::thread::sleep(Duration::from_micros(delay));
        }
        let begun = Instant::now();
        while self.stalled.load(Ordering::Acquire) && !self.cut.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.cut.load(Ordering::Acquire) {
            return Err(fails("the host is cut off"));
        }
        let late = matches!(op, "write" | "discard") && begun.elapsed() > Timing::TEST.write_life;
        if late && self.mortal.load(Ordering::Acquire) {
            return Err(fails("it took longer than a write may"));
        }
        if op == "read" && self.refused.lock().contains(&offset) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(fails("refused by the test"));
        }
        if failing {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(fails("simulated weather"));
        }
        Ok(torn)
    }
}

/// The open file description is gone, and its locks with it.
impl Drop for Port {
    fn drop(&mut self) {
        self.disk.claims.lock().retain(|_, holder| *holder != self.id);
    }
}

impl BlockDevice for Port {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.pass("read", offset, buf.len())?;
        self.disk.read(offset, buf)?;
        if self.weather().stale_reads && buf.len() == STALE_BYTES && offset >= STALE_FROM {
            let mut seen = self.seen.lock();
            buf.copy_from_slice(seen.entry(offset).or_insert_with(|| buf.to_vec()));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.weather().stale_reads {
            self.seen
                .lock()
                .retain(|at, _| *at + STALE_BYTES as u64 <= offset || *at >= offset + data.len() as u64);
        }
        let length = data.len() as u64;
        let connected = || match self.cut.load(Ordering::Acquire) {
            true => Err(Error::Io { op: "write", offset, length, cause: "cut off".into() }),
            false => Ok(()),
        };
        if self.unwritable.lock().is_some_and(|byte| data.iter().take(512).all(|d| *d == byte)) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Io { op: "write", offset, length, cause: "refused by the test".into() });
        }
        let torn = self.pass("write", offset, data.len())?;
        let _writing = self.writing.read();
        connected()?;
        let deliver = || {
            if !torn {
                return self.disk.write(offset, data);
            }
            let (first, second) = data.split_at(data.len() / 1024 * 512);
            // The later half first: nothing may hang on the order within a request.
            self.disk.write(offset + first.len() as u64, second)?;
            std::thread::sleep(Duration::from_micros(300));
            connected()?;
            if first.is_empty() { Ok(()) } else { self.disk.write(offset, first) }
        };
        let landed = self.disk.lun.write(self.id, deliver);
        landed.ok_or(Error::Fenced { op: "write", offset })?
    }

    fn flush(&self) -> Result<()> {
        self.pass("flush", 0, 0)?;
        if self.weather().lost_flushes { Ok(()) } else { self.disk.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.pass("discard", offset, length as usize)?;
        let _writing = self.writing.read();
        if self.cut.load(Ordering::Acquire) {
            return Err(Error::Io { op: "discard", offset, length, cause: "cut off".into() });
        }
        if self.weather().late_discards {
            let disk = self.disk.clone();
            std::thread::spawn(move || {
                std::thread::sleep(LATE);
                disk.discard(offset, length)
            });
            return Ok(());
        }
        let landed = self.disk.lun.write(self.id, || self.disk.discard(offset, length));
        landed.ok_or(Error::Fenced { op: "discard", offset })?
    }

    fn discards(&self) -> Option<Discards> {
        self.disk.discards()
    }

    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn logical_block(&self) -> u32 {
        self.disk.logical_block()
    }

    fn physical_block(&self) -> u32 {
        self.disk.physical_block()
    }

    fn name(&self) -> String {
        self.disk.name()
    }
}

impl SlotClaim for Port {
    fn try_hold(&self, offset: u64, _length: u64) -> Result<bool> {
        if self.cut.load(Ordering::Acquire) {
            return Ok(false);
        }
        Ok(*self.disk.claims.lock().entry(offset).or_insert(self.id) == self.id)
    }

    fn release(&self, offset: u64, _length: u64) -> Result<()> {
        let mut claims = self.disk.claims.lock();
        if claims.get(&offset) == Some(&self.id) {
            claims.remove(&offset);
        }
        Ok(())
    }
}
