//! The bottom as everybody sees it: one trait, so that tests put a simulated disk in its place.

use crate::base::Result;
use std::fmt;

/// Requests that a device was sent since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
}

impl fmt::Display for IoCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IoCounts { reads, read_bytes, writes, written_bytes, flushes } = self;
        write!(f, "reads={reads} read_bytes={read_bytes} writes={writes} ")?;
        write!(f, "written_bytes={written_bytes} flushes={flushes}")
    }
}

/// What a device makes of being told that ranges are unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discards {
    /// Bytes that it gives back at a time: a range helps as far as it has whole ones of these, from the
    /// device's start on.
    pub granule: u64,
    /// Bytes of one request to it.
    pub most: u64,
}

/// The shared device. Several requests may be in flight; the caller orders what must be ordered.
///
/// Offsets and lengths are multiples of [`BlockDevice::logical_block`]. Buffers need no alignment
/// (an implementation bounces what the kernel would refuse), aligned ones are faster.
pub trait BlockDevice: Send + Sync {
    /// Fill `buf` from `offset`. Never served from a cache of this host.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Write `data` at `offset`. Durable only after a later [`BlockDevice::flush`].
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// Everything whose write returned before this call survives power loss when it returns.
    fn flush(&self) -> Result<()>;
    /// Tell the device that the range is unused; its content is undefined afterwards.
    ///
    /// # Errors
    /// `Unsupported` if it has no use for that; its content is as it was then.
    fn discard(&self, offset: u64, length: u64) -> Result<()>;
    /// How it is best told; `None` if it is known to have no use for that.
    fn discards(&self) -> Option<Discards> {
        None
    }
    /// Write zeros to the range.
    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        write_zeros_by_hand(self, offset, length)
    }
    /// Usable bytes.
    fn size(&self) -> u64;
    /// Smallest unit written whole or not at all: 512 or 4096.
    fn logical_block(&self) -> u32;
    /// Unit below which the drive itself reads, changes and writes: 512 or 4096.
    fn physical_block(&self) -> u32;
    /// How messages name it: the path as the user gave it.
    fn name(&self) -> String;
    /// What it was asked for so far, where that is counted.
    fn counts(&self) -> IoCounts {
        IoCounts::default()
    }
    /// [`BlockDevice::counts`] as text, `name=number` each, with whatever else is counted.
    fn report(&self) -> String {
        self.counts().to_string()
    }
}

/// Zeros by ordinary writes, for devices that know nothing better.
pub(crate) fn write_zeros_by_hand<D: BlockDevice + ?Sized>(dev: &D, offset: u64, length: u64) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let zeros = vec![0u8; STEP.min(length) as usize];
    let mut done = 0;
    while done < length {
        let n = STEP.min(length - done);
        dev.write(offset + done, &zeros[..n as usize])?;
        done += n;
    }
    Ok(())
}
