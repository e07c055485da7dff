//! A device that tells when it refuses a write of this host: once that is so, another host has taken over,
//! and nothing more may be tried. And when a flush has failed, for whichever room: what was lost of the others'
//! writes, no later flush tells.

use super::{BlockDevice, Discards, IoCounts};
use crate::base::{Error, Result};
use std::sync::{Arc, OnceLock};

type Listener = Box<dyn Fn(&Error) + Send + Sync>;

/// See the head of the file.
pub struct Sentinel {
    inner: Arc<dyn BlockDevice>,
    listener: OnceLock<Listener>,
}

impl Sentinel {
    /// Over `inner`; nobody listens yet.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Sentinel {
        Sentinel { inner, listener: OnceLock::new() }
    }

    /// Call `tell` at each reservation conflict and failed flush from now on, before the request fails.
    pub fn on_refusal(&self, tell: impl Fn(&Error) + Send + Sync + 'static) {
        let _ = self.listener.set(Box::new(tell));
    }

    fn watch<T>(&self, done: Result<T>) -> Result<T> {
        if let (Err(e @ Error::Fenced { .. }), Some(tell)) = (&done, self.listener.get()) {
            tell(e);
        }
        done
    }
}

impl BlockDevice for Sentinel {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.watch(self.inner.read(offset, buf))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.watch(self.inner.write(offset, data))
    }

    fn flush(&self) -> Result<()> {
        let done = self.inner.flush();
        if let (Err(e), Some(tell)) = (&done, self.listener.get()) {
            tell(e);
        }
        done
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.watch(self.inner.discard(offset, length))
    }

    fn discards(&self) -> Option<Discards> {
        self.inner.discards()
    }

    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        self.watch(self.inner.write_zeros(offset, length))
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn logical_block(&self) -> u32 {
        self.inner.logical_block()
    }

    fn physical_block(&self) -> u32 {
        self.inner.physical_block()
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn counts(&self) -> IoCounts {
        self.inner.counts()
    }

    fn report(&self) -> String {
        self.inner.report()
    }
}
