//! Many writes in flight at once: a batch of segments worked off by a few threads and the caller.

use crate::base::{BLOCK_SIZE, Result};
use crate::device::BlockDevice;
use crate::store::{Halt, Permit};
use crossbeam::channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Threads that help a caller with its batch. Flash and networks want several requests in flight.
const HELPERS: usize = 7;

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_SIZE]);

/// Whole zeroed blocks of memory, aligned for direct I/O.
pub struct AlignedBuf(Vec<Page>);

impl AlignedBuf {
    /// `blocks` blocks of zeros.
    pub fn new(blocks: usize) -> AlignedBuf {
        AlignedBuf(vec![Page([0; BLOCK_SIZE]); blocks])
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

/// One device write.
pub(crate) struct Segment {
    /// Byte offset on the device.
    pub offset: u64,
    pub buf: Arc<AlignedBuf>,
    /// Bytes of `buf` to write.
    pub from: usize,
    pub len: usize,
}

struct Batch {
    device: Arc<dyn BlockDevice>,
    permit: Arc<Permit>,
    halt: Arc<Halt>,
    segments: Vec<Segment>,
    next: AtomicUsize,
    done: Mutex<(usize, Result<()>)>,
    all_done: Condvar,
}

impl Batch {
    /// Work off segments until none is left to start. After a failure the rest is not started.
    fn work(&self) {
        while let Some(seg) = self.segments.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let failed_before = self.done.lock().1.is_err();
            let result = if failed_before { Ok(()) } else { self.write(seg) };
            let mut done = self.done.lock();
            done.0 += 1;
            if done.1.is_ok() {
                done.1 = result;
            }
            if done.0 == self.segments.len() {
                self.all_done.notify_all();
            }
        }
    }

    fn write(&self, seg: &Segment) -> Result<()> {
        // Asked again before every segment: a batch may outlast the lease, and a halted host says
        // nothing more to the disk.
        self.permit.to_write(&self.halt)?;
        self.device.write(seg.offset, &seg.buf.bytes()[seg.from..seg.from + seg.len])
    }
}

/// The helper threads of one store; started at the first batch that can use them, gone with it.
#[derive(Default)]
pub(crate) struct WritePool {
    sender: OnceLock<Sender<Arc<Batch>>>,
}

impl WritePool {
    /// Write all segments, in any order and overlapping in time. They must not overlap in place.
    ///
    /// # Errors
    /// The first failure; which of the segments were written is then unknown.
    pub fn write(
        &self,
        device: &Arc<dyn BlockDevice>,
        permit: &Arc<Permit>,
        halt: &Arc<Halt>,
        segments: Vec<Segment>,
    ) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let helpers = (segments.len() - 1).min(HELPERS);
        let batch = Arc::new(Batch {
            device: device.clone(),
            permit: permit.clone(),
            halt: halt.clone(),
            segments,
            next: AtomicUsize::new(0),
            done: Mutex::new((0, Ok(()))),
            all_done: Condvar::new(),
        });
        if helpers > 0 {
            let sender = self.sender.get_or_init(start_helpers);
            for _ in 0..helpers {
                // Fails only if no helper thread could be started: then the caller does all of it.
                let _ = sender.send(batch.clone());
            }
        }
        batch.work();
        let mut done = batch.done.lock();
        while done.0 < batch.segments.len() {
            batch.all_done.wait(&mut done);
        }
        done.1.clone()
    }
}

fn start_helpers() -> Sender<Arc<Batch>> {
    let (sender, receiver): (_, Receiver<Arc<Batch>>) = unbounded();
    for n in 0..HELPERS {
        let receiver = receiver.clone();
        let body = move || receiver.iter().for_each(|batch| batch.work());
        if let Err(e) = std::thread::Builder::new().name(format!("shoal-write-{n}")).spawn(body) {
            tracing::warn!("cannot start a write helper thread: {e}");
        }
    }
    sender
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;

    /// Halts the host at the first write.
    struct Halting(Arc<Halt>, AtomicUsize);

    impl BlockDevice for Halting {
        fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<()> {
            self.0.trip("by the test");
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn size(&self) -> u64 {
            1 << 30
        }
        fn logical_block(&self) -> u32 {
            512
        }
        fn physical_block(&self) -> u32 {
            512
        }
        fn name(&self) -> String {
            "halting".into()
        }
    }

    #[test]
    fn a_halt_ends_a_batch_in_its_middle() {
        let halt = Arc::new(Halt::new());
        let halting = Arc::new(Halting(halt.clone(), AtomicUsize::new(0)));
        let device: Arc<dyn BlockDevice> = halting.clone();
        let buf = Arc::new(AlignedBuf::new(1));
        let segment = |i: u64| Segment { offset: i * 4096, buf: buf.clone(), from: 0, len: BLOCK_SIZE };
        let permit = Arc::new(Permit::default());
        let result = WritePool::default().write(&device, &permit, &halt, (0..1000).map(segment).collect());
        assert_eq!(result, Err(Error::Halted("by the test".into())));
        // Those that were past the question already, one per thread.
        let written = halting.1.load(Ordering::Relaxed);
        assert!((1..=HELPERS + 1).contains(&written), "{written}");
    }
}
