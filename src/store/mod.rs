//! Verified block reads and writes, the buffer cache, the write permit, the halt latch. Level 2.
//!
//! Promises: a metadata block is verified (magic, format id, own number, kind, covering lock, crc)
//! after every read from the device and sealed before every write to it; concurrent readers of one
//! block read it once; a block that the journal still needs is never forgotten; after the halt latch
//! has tripped nothing is written any more.
//!
//! File data passes through unverified and uncached.

mod ahead;
mod batch;
mod cache;
mod flushes;
mod halt;
mod image;
mod in_place;
mod index;
mod permit;

pub use batch::AlignedBuf;
pub use flushes::FlushMark;
pub use halt::Halt;
pub use permit::{CONFIRM_WAIT_MAX, Permit};

pub(crate) use batch::Segment;
pub(crate) use cache::{Cache, Undo};
pub(crate) use image::Image;
pub(crate) use index::{BlockHash, Covered};

use crate::base::{BLOCK_SIZE, BlockNo, Error, LockName, Result};
use crate::device::BlockDevice;
use crate::format::{Block, BlockKind, Geometry};
use std::sync::Arc;

/// One volume as one host sees it.
pub struct Store {
    device: Arc<dyn BlockDevice>,
    format_id: u64,
    geometry: Geometry,
    cache: Cache,
    halt: Arc<Halt>,
    permit: Arc<Permit>,
    pool: batch::WritePool,
    flushes: flushes::Flushes,
    ahead: ahead::Buffers,
    in_place: in_place::Buffers,
}

impl Store {
    /// A store over `dev` that keeps at most about `cache_bytes` of clean blocks.
    pub fn new(
        dev: Arc<dyn BlockDevice>,
        format_id: u64,
        geometry: Geometry,
        cache_bytes: usize,
    ) -> Arc<Store> {
        Arc::new(Store {
            device: dev,
            format_id,
            geometry,
            cache: Cache::new(cache_bytes),
            halt: Arc::new(Halt::new()),
            permit: Arc::new(Permit::default()),
            pool: Default::default(),
            flushes: Default::default(),
            ahead: Default::default(),
            in_place: Default::default(),
        })
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Where everything is.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The volume's format id.
    pub fn format_id(&self) -> u64 {
        self.format_id
    }

    /// The latch that stops all writing.
    pub fn halt(&self) -> &Halt {
        &self.halt
    }

    /// Others may count this host as dead: it halts, and neither writes nor tells anything any more. Whoever finds
    /// the permit revoked finds the latch tripped as well.
    pub fn cut_off(&self, reason: impl Into<String>) {
        self.halt.trip_then(reason, || self.permit.revoke());
    }

    /// Until when writes may start.
    pub fn permit(&self) -> &Arc<Permit> {
        &self.permit
    }

    /// The newest image of a metadata block, from the cache or verified from the device. The caller
    /// holds `cover` at least shared.
    ///
    /// # Errors
    /// `Corrupt` (also for a cached block of another kind or cover), `Io`, `Halted`.
    pub fn read(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        self.halt.check()?;
        // Before the cache hears of it: what covers what is noted of blocks of the volume only.
        self.check_place(block, kind).inspect_err(log_corrupt)?;
        self.cache.get(block, kind, cover, &|| self.read_fresh(block, kind, cover)).inspect_err(log_corrupt)
    }

    /// # Errors
    /// `Corrupt` if there is no such block: a damaged page refers to it.
    pub(crate) fn check_place(&self, block: BlockNo, kind: BlockKind) -> Result<()> {
        if block.0 >= self.geometry.total_blocks {
            return Err(Error::corrupt(block, kind, "a block of the volume", "a reference behind its end"));
        }
        Ok(())
    }

    /// As [`Store::read`], but past the cache and not kept: for a look at a block whose lock is not
    /// held (the image may be old, or `Corrupt` because a write was under way).
    pub fn read_fresh(&self, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<Arc<Block>> {
        self.halt.check()?;
        self.check_place(block, kind)?;
        let mut image = Arc::<Block>::default();
        let into = Arc::get_mut(&mut image).expect("not shared yet");
        let mut read = || {
            self.device.read(block.byte(), &mut into.0)?;
            self.verify(into, block, kind, cover)
        };
        // Once more: a bit that flipped on the way need not have flipped on the disk.
        match read() {
            Err(Error::Corrupt { .. }) => read()?,
            other => other?,
        }
        Ok(image)
    }

    /// Is this what must stand at `block`, and under that lock?
    fn verify(&self, image: &Block, block: BlockNo, kind: BlockKind, cover: LockName) -> Result<()> {
        image.verify(self.format_id, block, kind)?;
        if image.cover() != Some(cover) {
            let found = format!("covered by {:?}", image.cover());
            return Err(Error::corrupt(block, kind, format_args!("covered by {cover:?}"), found));
        }
        Ok(())
    }

    /// Forget all clean blocks under `cover`, which is being given up. Call after the journal has
    /// released it; a dirty block under it is a bug of this host, which then halts rather than let
    /// two hosts write one block.
    pub fn drop_cover(&self, cover: LockName) {
        if let Err(block) = self.cache.drop_cover(cover) {
            self.halt.trip(format!("block {block} under {cover:?} is dirty while the lock is given up"));
        }
    }

    /// Forget one block that changed on the device behind the cache (replay). Dirty ones stay.
    pub fn forget(&self, block: BlockNo) {
        self.cache.forget(block, None);
    }

    /// Cached blocks, and how many of them the journal still needs.
    pub fn cache_counts(&self) -> (usize, usize) {
        self.cache.counts()
    }

    /// Read data blocks; `buf` is a whole number of them.
    ///
    /// # Errors
    /// `Io`, `Halted`, `Invalid` for a range outside the volume.
    pub fn read_data(&self, start: BlockNo, buf: &mut [u8]) -> Result<()> {
        self.halt.check()?;
        self.in_volume(start, buf.len())?;
        self.device.read(start.byte(), buf)
    }

    /// Write data blocks; `data` is a whole number of them. Durable after the next flush, and before any
    /// transaction that is committed from now on (it may refer to them).
    ///
    /// # Errors
    /// `Io`, `Halted`, `Invalid` for a range outside the volume.
    pub fn write_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        let done = self.overwrite_data(start, data);
        self.flushes.ordered();
        done
    }

    /// As [`Store::write_data`] for blocks that are part of a file already: a transaction may well become
    /// durable before them.
    pub fn overwrite_data(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        self.halt.check()?;
        self.in_volume(start, data.len())?;
        self.permit.to_write(&self.halt)?;
        self.device.write(start.byte(), data)
    }

    /// Tell the device that nobody needs the content of these blocks any more. It is as a write: what stands there
    /// afterwards is anybody's guess, so they must be as free to be written.
    ///
    /// # Errors
    /// `Unsupported` if the device has no use for it; those of [`Store::write_data`].
    pub fn discard(&self, start: BlockNo, blocks: u64) -> Result<()> {
        self.halt.check()?;
        self.in_volume(start, blocks as usize * BLOCK_SIZE)?;
        self.permit.to_write(&self.halt)?;
        self.device.discard(start.byte(), blocks * BLOCK_SIZE as u64)
    }

    fn in_volume(&self, start: BlockNo, bytes: usize) -> Result<()> {
        let blocks = (bytes / BLOCK_SIZE) as u64;
        let inside = start.0.checked_add(blocks).is_some_and(|end| end <= self.geometry.total_blocks);
        if bytes.is_multiple_of(BLOCK_SIZE) && inside {
            Ok(())
        } else {
            Err(Error::Invalid("data blocks outside the volume"))
        }
    }

    /// Make everything written so far durable. Returns when that is so and the lease covers saying it:
    /// if others have taken this host for dead meanwhile, what it wrote need not count (rule R3).
    ///
    /// # Errors
    /// A failure halts the host: what it lost is not known, and a later success does not tell.
    pub fn flush(&self) -> Result<()> {
        self.halt.check()?;
        let flush = || self.device.flush();
        self.confirmed(self.flushes.run(flush))
    }

    fn confirmed(&self, flushed: Result<()>) -> Result<()> {
        flushed.inspect_err(|e| self.halt_for(e, "the device could not flush"))?;
        let confirmed = self.permit.confirm_written(&self.halt);
        confirmed.inspect_err(|e| self.halt_for(e, "nothing can be promised any more"))
    }

    /// Halt for an error that must not be. Who finds the permit revoked leaves the reason to whoever has
    /// revoked it.
    fn halt_for(&self, error: &Error, what: &str) {
        if !matches!(error, Error::Halted(_)) {
            self.halt.trip(format!("{what}: {error}"));
        }
    }

    /// The present moment, for [`Store::flush_since`].
    pub fn flush_mark(&self) -> FlushMark {
        self.flushes.mark()
    }

    /// Make durable what was written before `mark`; without a flush if one has done so already. Those
    /// who wait at the same time share one.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub fn flush_since(&self, mark: FlushMark) -> Result<()> {
        self.halt.check()?;
        let flush = || self.device.flush();
        let covered = self.flushes.cover(mark);
        self.confirmed(if covered { Ok(()) } else { self.flushes.run_since(mark, flush) })
    }

    /// Data overwritten so far is durable as well before any transaction that is committed from now on.
    pub fn order_overwrites(&self) {
        self.flushes.ordered();
    }

    /// Make durable what must not come after a transaction: all of [`Store::write_data`] so far.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub(crate) fn flush_ordered(&self) -> Result<()> {
        self.flushes.last_ordered().map_or(Ok(()), |mark| self.flush_since(mark))
    }

    /// Write blocks that only this host owns (journal); `data` is a whole number of them.
    ///
    /// # Errors
    /// Any failure halts the host.
    pub(crate) fn write_critical(&self, start: BlockNo, data: &[u8]) -> Result<()> {
        self.overwrite_data(start, data).inspect_err(|e| self.halt_for(e, "a metadata write failed"))
    }

    /// Write segments of critical blocks, several at once.
    ///
    /// # Errors
    /// Any failure halts the host.
    pub(crate) fn write_segments(&self, segments: Vec<Segment>) -> Result<()> {
        self.put_segments(segments).inspect_err(|e| self.halt_for(e, "a metadata write failed"))
    }

    fn put_segments(&self, segments: Vec<Segment>) -> Result<()> {
        self.halt.check()?;
        self.pool.write(&self.device, &self.permit, &self.halt, segments)
    }
}

fn log_corrupt(e: &Error) {
    if let Error::Corrupt { .. } = e {
        if e.is_other_kind() {
            // Whoever knows that the reference is current reports it.
            tracing::debug!("{e}");
        } else {
            tracing::error!("{e}");
        }
    }
}

impl Store {
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }
}
