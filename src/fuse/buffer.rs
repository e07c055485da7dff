//! Memory that requests are read into, laid out so that the payload of a WRITE begins on a page:
//!
//! ```text
//! | lead: unused ...  | header and arguments of a WRITE (80) | payload: up to 1 MiB, page-aligned |
//!                     ^ the read begins here                 ^ a multiple of 4096
//! ```
//!
//! Any request lies in one piece. A WRITE's buffer is given away with its payload and comes back to the
//! pool when that is dropped; so whoever gets the payload may keep it, or give it to the device as it is.

use crate::base::BLOCK_SIZE;
use crate::fuse::wire::WRITE_HEAD;
use parking_lot::Mutex;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the largest payload (the kernel's own limit by default).
pub const PAYLOAD_MAX: usize = 1 << 20;
/// Bytes before the payload: a page of which only the end is used.
const LEAD: usize = BLOCK_SIZE;
const LENGTH: usize = LEAD + PAYLOAD_MAX;
/// Buffers that wait in the pool, at most; what comes back beyond them goes to the system.
const SPARE_MAX: usize = 16;
/// How long to wait for memory before asking the system again.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(10);

/// Room for one request.
pub struct Buffer(NonNull<u8>);

// SAFETY: a buffer is the only owner of its mapping.
unsafe impl Send for Buffer {}
// SAFETY: a shared buffer can only be read.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new() -> io::Result<Buffer> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at.cast()).map(Buffer).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn all(&self) -> &[u8] {
        // SAFETY: the mapping has this length, is zeroed or written (so initialised), lives as long as
        // the buffer and is written through &mut only.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), LENGTH) }
    }

    /// Where a request is to be read to.
    pub fn room(&mut self) -> &mut [u8] {
        // SAFETY: as in `all`; the borrow of `self` is exclusive.
        let all = unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), LENGTH) };
        &mut all[LEAD - WRITE_HEAD..]
    }

    /// The first `length` bytes of what was read.
    pub fn request(&self, length: usize) -> &[u8] {
        &self.all()[LEAD - WRITE_HEAD..][..length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; nobody can have a reference into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

/// Buffers out of use.
#[derive(Default)]
pub struct Pool {
    spare: Mutex<Vec<Buffer>>,
}

impl Pool {
    /// A buffer, with whatever it held before. Waits while the system has no memory.
    pub fn take(&self) -> Buffer {
        if let Some(buffer) = self.spare.lock().pop() {
            return buffer;
        }
        loop {
            match Buffer::new() {
                Ok(buffer) => return buffer,
                Err(e) => tracing::error!("no memory for requests: {e}"),
            }
            std::thread::sleep(NO_MEMORY_PAUSE);
        }
    }

    /// A buffer that is not used any more.
    pub fn give_back(&self, buffer: Buffer) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

/// The bytes of a WRITE, in memory of their own that begins on a page.
pub struct Payload {
    /// Present until dropped.
    buffer: Option<Buffer>,
    length: usize,
    pool: Arc<Pool>,
}

impl Payload {
    /// The payload of `length` bytes of the WRITE in `buffer`, which goes to `pool` afterwards.
    pub fn new(buffer: Buffer, length: usize, pool: Arc<Pool>) -> Payload {
        assert!(length <= PAYLOAD_MAX);
        Payload { buffer: Some(buffer), length, pool }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.buffer {
            Some(buffer) => &buffer.all()[LEAD..LEAD + self.length],
            None => &[],
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_begins_on_a_page_and_ends_with_the_room() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take();
        let room = buffer.room();
        assert_eq!(room.len(), WRITE_HEAD + PAYLOAD_MAX);
        for (at, byte) in room.iter_mut().enumerate() {
            *byte = at as u8;
        }
        assert_eq!(buffer.request(3), [0, 1, 2]);
        let payload = Payload::new(buffer, PAYLOAD_MAX, Arc::clone(&pool));
        assert_eq!(payload.as_ptr().align_offset(4096), 0);
        assert_eq!((payload[0], payload.len()), (WRITE_HEAD as u8, PAYLOAD_MAX));
        assert_eq!(payload[PAYLOAD_MAX - 1], (WRITE_HEAD + PAYLOAD_MAX - 1) as u8);
    }

    #[test]
    fn buffers_are_used_again_but_not_hoarded() {
        let pool = Arc::new(Pool::default());
        let first = pool.take();
        let at = first.0;
        drop(Payload::new(first, 5, Arc::clone(&pool)));
        assert_eq!(pool.take().0, at);
        let many: Vec<Payload> =
            (0..SPARE_MAX + 5).map(|_| Payload::new(pool.take(), 1, Arc::clone(&pool))).collect();
        drop(many);
        assert_eq!(pool.spare.lock().len(), SPARE_MAX);
    }
}
