//! A device that counts its requests by the region they go to: what an operation costs in lock
//! messages, journal writes and metadata reads shows only apart.

use super::{BlockDevice, Discards, IoCounts};
use crate::base::Result;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of the device and what is said of it.
#[derive(Clone, Debug)]
pub struct Region {
    pub name: &'static str,
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

#[derive(Default)]
struct Counter {
    reads: AtomicU64,
    writes: AtomicU64,
}

/// See the head of the file.
pub struct Meter {
    inner: Arc<dyn BlockDevice>,
    /// Ascending; what lies in none of them is counted as `rest`.
    regions: Vec<Region>,
    counters: Vec<Counter>,
    rest: Counter,
}

impl Meter {
    /// `inner`, with its requests counted by region. Regions do not overlap.
    pub fn new(inner: Arc<dyn BlockDevice>, mut regions: Vec<Region>) -> Meter {
        regions.sort_by_key(|r| r.start);
        let counters = regions.iter().map(|_| Counter::default()).collect();
        Meter { inner, regions, counters, rest: Counter::default() }
    }

    fn counter(&self, offset: u64) -> &Counter {
        let behind = self.regions.partition_point(|r| r.start <= offset);
        match behind.checked_sub(1) {
            Some(at) if offset < self.regions[at].end => &self.counters[at],
            _ => &self.rest,
        }
    }
}

impl BlockDevice for Meter {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.counter(offset).reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.counter(offset).writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write(offset, data)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.inner.discard(offset, length)
    }

    fn discards(&self) -> Option<Discards> {
        self.inner.discards()
    }

    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        self.inner.write_zeros(offset, length)
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
        let mut text = self.inner.report();
        let named = self.regions.iter().map(|r| r.name).zip(&self.counters);
        let mut sums: Vec<(&str, u64, u64)> = Vec::new();
        for (name, counter) in named.chain([("rest", &self.rest)]) {
            let now = (counter.reads.load(Ordering::Relaxed), counter.writes.load(Ordering::Relaxed));
            match sums.iter_mut().find(|sum| sum.0 == name) {
                Some(sum) => (sum.1, sum.2) = (sum.1 + now.0, sum.2 + now.1),
                None => sums.push((name, now.0, now.1)),
            }
        }
        for (name, reads, writes) in sums {
            let _ = write!(text, " {name}_reads={reads} {name}_writes={writes}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;

    struct Nothing;

    impl BlockDevice for Nothing {
        fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
            Err(Error::ReadOnly)
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
            Ok(())
        }
        fn size(&self) -> u64 {
            1 << 20
        }
        fn logical_block(&self) -> u32 {
            512
        }
        fn physical_block(&self) -> u32 {
            4096
        }
        fn name(&self) -> String {
            "nothing".into()
        }
    }

    #[test]
    fn requests_are_counted_where_they_go() {
        let region = |name, start, end| Region { name, start, end };
        let regions = vec![region("b", 8192, 12288), region("a", 0, 4096), region("b", 16384, 20480)];
        let meter = Meter::new(Arc::new(Nothing), regions);
        for offset in [0, 4095, 4096, 8192, 12287, 12288, 16384, 20480] {
            meter.read(offset, &mut []).unwrap();
        }
        assert!(meter.write(16384, &[]).is_err());
        let report = meter.report();
        for expected in [" a_reads=2 a_writes=0", " b_reads=3 b_writes=1", " rest_reads=3 rest_writes=0"] {
            assert!(report.contains(expected), "{report}");
        }
    }
}
