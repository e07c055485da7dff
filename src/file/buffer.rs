//! Buffers for bytes between the device and the kernel: aligned for direct I/O, kept for reuse (a fresh
//! megabyte costs more in page faults than the copy into it).

use super::PagePool;
use memmap2::{Advice, MmapMut};
use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Buffers of half this size and more fill whole pages of it, where the kernel has such pages: the device and
/// the kernel then look up one page instead of hundreds.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes aligned for direct I/O: memory of its own, which starts with a page.
pub(super) struct AlignedBuf {
    memory: MmapMut,
    capacity: usize,
}

impl AlignedBuf {
    pub(super) fn new(capacity: usize) -> AlignedBuf {
        let huge = capacity >= HUGE_PAGE / 2;
        let bytes = if huge { capacity.next_multiple_of(HUGE_PAGE) } else { capacity.max(1) };
        let memory = MmapMut::map_anon(bytes).unwrap_or_else(|_| {
            handle_alloc_error(Layout::array::<u8>(bytes).expect("far less than memory"))
        });
        if huge {
            // Where there are none, it is slower.
            let _ = memory.advise(Advice::HugePage);
        }
        AlignedBuf { memory, capacity }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The first `bytes` of it.
    pub(super) fn slice(&self, bytes: usize) -> &[u8] {
        &self.memory[..bytes]
    }

    /// The first `bytes` of it.
    pub(super) fn slice_mut(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.memory[..bytes]
    }
}

/// What a read gives: some bytes, in memory that goes back to its pool.
pub struct DataBuf {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// Present until dropped.
    Pooled(Option<AlignedBuf>, Arc<PagePool>),
    Plain(Vec<u8>),
}

impl DataBuf {
    /// `len` bytes out of `pool`, whatever they were.
    pub(super) fn new(pool: &Arc<PagePool>, len: usize) -> DataBuf {
        DataBuf { memory: Memory::Pooled(Some(pool.read_buffer(len)), Arc::clone(pool)), len }
    }

    /// Keep only the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl From<Vec<u8>> for DataBuf {
    fn from(bytes: Vec<u8>) -> DataBuf {
        DataBuf { len: bytes.len(), memory: Memory::Plain(bytes) }
    }
}

impl Deref for DataBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Pooled(Some(buffer), _) => buffer.slice(self.len),
            Memory::Pooled(None, _) => &[],
            Memory::Plain(bytes) => &bytes[..self.len],
        }
    }
}

impl DerefMut for DataBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Pooled(Some(buffer), _) => buffer.slice_mut(self.len),
            Memory::Pooled(None, _) => &mut [],
            Memory::Plain(bytes) => &mut bytes[..self.len],
        }
    }
}

impl AsRef<[u8]> for DataBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for DataBuf {
    fn drop(&mut self) {
        if let Memory::Pooled(buffer, pool) = &mut self.memory
            && let Some(buffer) = buffer.take()
        {
            pool.return_read_buffer(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BLOCK_SIZE;

    #[test]
    fn read_buffers_are_aligned_and_come_back() {
        let pool = PagePool::new(1);
        let mut buf = DataBuf::new(&pool, 8192);
        assert_eq!(buf.as_ptr().align_offset(BLOCK_SIZE), 0);
        buf.fill(7);
        buf.truncate(5000);
        assert_eq!((buf.len(), buf[4999]), (5000, 7));
        let place = buf.as_ptr();
        drop(buf);
        assert_eq!(DataBuf::new(&pool, 4096).as_ptr(), place);
    }

    #[test]
    fn a_vector_is_one_too() {
        let buf = DataBuf::from(vec![1, 2, 3]);
        assert_eq!(buf.as_ref(), &[1, 2, 3]);
    }
}
