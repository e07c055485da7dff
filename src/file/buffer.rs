//! Buffers for bytes between the device and the kernel: aligned for direct I/O, kept for reuse (a fresh
//! megabyte costs more in page faults than the copy into it).

use super::PagePool;
use crate::base::BLOCK_SIZE;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes aligned for direct I/O.
pub(super) struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuf {
    pub(super) fn new(bytes: usize) -> AlignedBuf {
        let bytes = vec![0; bytes + BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
        AlignedBuf { bytes, start }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len() - BLOCK_SIZE
    }

    /// The first `bytes` of it.
    pub(super) fn slice(&self, bytes: usize) -> &[u8] {
        &self.bytes[self.start..self.start + bytes]
    }

    /// The first `bytes` of it.
    pub(super) fn slice_mut(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + bytes]
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
