//! Dirty pages of files: the pool they come from, its byte budget, and one file's map of them.
//!
//! A page in the map is always complete: every byte below the file's size is what a read must see,
//! every byte beyond it is zero. Pages are shared by count with flushes and reads in flight: a write
//! to a shared page copies it first, so a flush writes one moment of the page and a read sees one.

use super::buffer::AlignedBuf;
use crate::base::BLOCK_SIZE;
use crossbeam::queue::ArrayQueue;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of a page: one block.
pub const PAGE: u64 = BLOCK_SIZE as u64;
/// Pages kept for reuse by one mount (16 MiB).
const SPARE_PAGES: usize = 4096;
/// Buffers of a flush kept for reuse by one mount.
const SPARE_BUFFERS: usize = 4;
/// Buffers of reads kept for reuse by one mount, and the size of each: the kernel's largest read.
const SPARE_READ_BUFFERS: usize = 8;
const READ_BUFFER_BYTES: usize = 1 << 20;

/// The bytes of one page.
pub struct PageBuf(pub [u8; BLOCK_SIZE]);

/// Where pages come from and how many are dirty in the whole mount. One per mount.
pub struct PagePool {
    dirty: AtomicU64,
    limit: u64,
    /// Counts the marks that flushes have set.
    marks: AtomicU64,
    spare: ArrayQueue<Arc<PageBuf>>,
    buffers: ArrayQueue<AlignedBuf>,
    /// The last that came back is the next: memory is used for the first time as little as possible.
    read_buffers: Mutex<Vec<AlignedBuf>>,
    throttle: Mutex<()>,
    room: Condvar,
}

impl PagePool {
    /// A pool that asks writers to wait above `limit` dirty bytes.
    pub fn new(limit: u64) -> Arc<PagePool> {
        Arc::new(PagePool {
            dirty: AtomicU64::new(0),
            limit,
            marks: AtomicU64::new(0),
            spare: ArrayQueue::new(SPARE_PAGES),
            buffers: ArrayQueue::new(SPARE_BUFFERS),
            read_buffers: Mutex::default(),
            throttle: Mutex::new(()),
            room: Condvar::new(),
        })
    }

    /// Bytes in dirty pages of all files.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Dirty bytes above which writers wait.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Waits until there is room below the limit, or `patience` is over; tells whether there is.
    /// To be called holding no lock: the flush that makes room may need it.
    pub fn wait_for_room(&self, patience: Duration) -> bool {
        if self.dirty_bytes() < self.limit {
            return true;
        }
        let mut guard = self.throttle.lock();
        self.room.wait_while_for(&mut guard, |()| self.dirty_bytes() >= self.limit, patience);
        self.dirty_bytes() < self.limit
    }

    /// A mark between what is dirty by now and what becomes so later.
    pub(super) fn mark(&self) -> u64 {
        self.marks.fetch_add(1, Ordering::Relaxed)
    }

    /// Pages that become dirty now come after all marks below this number.
    fn marks(&self) -> u64 {
        self.marks.load(Ordering::Relaxed)
    }

    /// A page with this content.
    pub(super) fn page_from(&self, content: &[u8; BLOCK_SIZE]) -> Arc<PageBuf> {
        match self.spare.pop() {
            Some(mut page) => {
                Arc::get_mut(&mut page).expect("spare pages are unshared").0.copy_from_slice(content);
                page
            }
            None => Arc::new(PageBuf(*content)),
        }
    }

    /// A page of zeros.
    pub(super) fn page_zeroed(&self) -> Arc<PageBuf> {
        self.page_from(&[0; BLOCK_SIZE])
    }

    /// Takes a page back for reuse, unless somebody still reads it.
    pub(super) fn give_back(&self, mut page: Arc<PageBuf>) {
        if Arc::get_mut(&mut page).is_some() {
            // A full queue hands it back, and it is dropped.
            let _ = self.spare.push(page);
        }
    }

    /// An aligned buffer of at least `bytes`; its content is whatever it was.
    pub(super) fn buffer(&self, bytes: usize) -> AlignedBuf {
        match self.buffers.pop() {
            Some(buffer) if buffer.capacity() >= bytes => buffer,
            _ => AlignedBuf::new(bytes),
        }
    }

    pub(super) fn return_buffer(&self, buffer: AlignedBuf) {
        let _ = self.buffers.push(buffer);
    }

    /// The same for reads; those of ordinary size are all alike.
    pub(super) fn read_buffer(&self, bytes: usize) -> AlignedBuf {
        if bytes > READ_BUFFER_BYTES {
            return AlignedBuf::new(bytes);
        }
        let spare = self.read_buffers.lock().pop();
        spare.unwrap_or_else(|| AlignedBuf::new(READ_BUFFER_BYTES))
    }

    pub(super) fn return_read_buffer(&self, buffer: AlignedBuf) {
        if buffer.capacity() == READ_BUFFER_BYTES {
            let mut spare = self.read_buffers.lock();
            if spare.len() < SPARE_READ_BUFFERS {
                spare.push(buffer);
            }
        }
    }

    fn charge(&self) {
        self.dirty.fetch_add(PAGE, Ordering::Relaxed);
    }

    fn discharge(&self) {
        let before = self.dirty.fetch_sub(PAGE, Ordering::Relaxed);
        debug_assert!(before >= PAGE);
        if before >= self.limit && before - PAGE < self.limit {
            let _guard = self.throttle.lock();
            self.room.notify_all();
        }
    }
}

/// What a dirty page still needs on the volume before it can be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// Nothing: it lies on a written block.
    Free,
    /// Its block is allocated but unwritten: the extent changes.
    Convert,
    /// A block, which is reserved.
    Block,
}

pub(super) struct DirtyPage {
    pub data: Arc<PageBuf>,
    pub cost: Cost,
    /// A flush has a copy and is not finished.
    pub in_flight: bool,
    /// Changed since that copy was taken, and behind which marks: stays dirty when the flush is done.
    again: Option<u64>,
    /// The flush took its block out of the reservation.
    placed: bool,
    /// Dirty since there were so many marks.
    since: u64,
}

impl DirtyPage {
    fn wants_block(&self) -> bool {
        self.cost == Cost::Block && !self.placed
    }

    /// Does it hold what was dirty at `mark`?
    pub(super) fn is_before(&self, mark: u64) -> bool {
        self.since <= mark
    }
}

/// The dirty pages of one file, by page number.
pub(super) struct DirtyPages {
    map: BTreeMap<u64, DirtyPage>,
    pool: Arc<PagePool>,
    /// Pages of [`Cost::Block`] whose block no flush has taken yet.
    unplaced: u64,
    /// All pages of [`Cost::Block`]: their blocks are not the file's yet.
    blocks_to_come: u64,
}

impl DirtyPages {
    pub(super) fn new(pool: Arc<PagePool>) -> DirtyPages {
        DirtyPages { map: BTreeMap::new(), pool, unplaced: 0, blocks_to_come: 0 }
    }

    pub(super) fn pool(&self) -> &Arc<PagePool> {
        &self.pool
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(super) fn unplaced(&self) -> u64 {
        self.unplaced
    }

    pub(super) fn blocks_to_come(&self) -> u64 {
        self.blocks_to_come
    }

    /// Is anything of what was dirty at `mark` dirty, or on its way?
    pub(super) fn any_before(&self, mark: u64) -> bool {
        self.map.values().any(|page| page.is_before(mark))
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        self.map.contains_key(&page)
    }

    pub(super) fn get(&self, page: u64) -> Option<&DirtyPage> {
        self.map.get(&page)
    }

    pub(super) fn range(&self, pages: Range<u64>) -> impl Iterator<Item = (u64, &DirtyPage)> {
        self.map.range(pages).map(|(n, page)| (*n, page))
    }

    /// Adds a page that was clean.
    pub(super) fn insert(&mut self, page: u64, data: Arc<PageBuf>, cost: Cost) {
        if cost == Cost::Block {
            self.unplaced += 1;
            self.blocks_to_come += 1;
        }
        self.pool.charge();
        let since = self.pool.marks();
        let fresh = DirtyPage { data, cost, in_flight: false, again: None, placed: false, since };
        let before = self.map.insert(page, fresh);
        debug_assert!(before.is_none());
    }

    /// Writes `bytes` into page `page` from byte `at` on; false if the page is clean.
    pub(super) fn overwrite(&mut self, page: u64, at: usize, bytes: &[u8]) -> bool {
        let Some(dirty) = self.map.get_mut(&page) else { return false };
        if dirty.in_flight {
            dirty.again.get_or_insert_with(|| self.pool.marks());
        }
        if let Some(data) = Arc::get_mut(&mut dirty.data) {
            data.0[at..at + bytes.len()].copy_from_slice(bytes);
        } else {
            let mut data = match <&[u8; BLOCK_SIZE]>::try_from(bytes) {
                Ok(whole) => self.pool.page_from(whole),
                Err(_) => self.pool.page_from(&dirty.data.0),
            };
            Arc::get_mut(&mut data).expect("new").0[at..at + bytes.len()].copy_from_slice(bytes);
            dirty.data = data;
        }
        true
    }

    /// Removes all pages in `pages`, none of which is in flight.
    pub(super) fn discard(&mut self, pages: Range<u64>) {
        let gone: Vec<u64> = self.map.range(pages).map(|(n, _)| *n).collect();
        for page in gone {
            self.remove(page);
        }
    }

    fn remove(&mut self, page: u64) {
        let Some(dirty) = self.map.remove(&page) else { return };
        if dirty.wants_block() {
            self.unplaced -= 1;
        }
        self.blocks_to_come -= u64::from(dirty.cost == Cost::Block);
        self.pool.discharge();
        self.pool.give_back(dirty.data);
    }

    /// Hands a copy to a flush that puts it on a block of its own.
    pub(super) fn take(&mut self, page: u64) -> Arc<PageBuf> {
        let data = self.take_inline(page);
        let dirty = self.map.get_mut(&page).expect("just taken");
        if dirty.wants_block() {
            self.unplaced -= 1;
        }
        dirty.placed = true;
        data
    }

    /// Hands a copy to a flush that puts its bytes into the inode: the reservation is kept.
    pub(super) fn take_inline(&mut self, page: u64) -> Arc<PageBuf> {
        let dirty = self.map.get_mut(&page).expect("a flush takes dirty pages");
        debug_assert!(!dirty.in_flight);
        dirty.in_flight = true;
        dirty.data.clone()
    }

    /// The copy is on the volume and committed; clean unless it was changed meanwhile.
    pub(super) fn written(&mut self, page: u64) {
        let Some(dirty) = self.map.get_mut(&page) else { return };
        debug_assert!(dirty.in_flight);
        let Some(since) = dirty.again.take() else { return self.remove(page) };
        // Its block is there now, whatever it was before.
        self.blocks_to_come -= u64::from(dirty.cost == Cost::Block);
        (dirty.cost, dirty.in_flight, dirty.placed, dirty.since) = (Cost::Free, false, false, since);
    }

    /// As [`DirtyPages::written`] for a page whose bytes went into the inode: it owns no block.
    pub(super) fn written_inline(&mut self, page: u64) {
        match self.map.get(&page).map(|dirty| dirty.again) {
            Some(Some(since)) => {
                self.put_back(page);
                self.map.get_mut(&page).expect("just seen").since = since;
            }
            _ => self.remove(page),
        }
    }

    /// The flush failed: dirty as before.
    pub(super) fn put_back(&mut self, page: u64) {
        let Some(dirty) = self.map.get_mut(&page) else { return };
        if dirty.placed && dirty.cost == Cost::Block {
            self.unplaced += 1;
        }
        (dirty.in_flight, dirty.again, dirty.placed) = (false, None, false);
    }

    /// Pages in `pages` have unwritten blocks now.
    pub(super) fn allocated(&mut self, pages: Range<u64>) {
        for dirty in self.map.range_mut(pages).map(|(_, page)| page) {
            if dirty.wants_block() {
                self.unplaced -= 1;
                self.blocks_to_come -= 1;
                dirty.cost = Cost::Convert;
            }
        }
    }
}

impl Drop for DirtyPages {
    fn drop(&mut self) {
        for (_, dirty) in std::mem::take(&mut self.map) {
            self.pool.discharge();
            self.pool.give_back(dirty.data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_changed_in_flight_stays_dirty_and_the_flush_keeps_its_moment() {
        let pool = PagePool::new(PAGE);
        let mut pages = DirtyPages::new(pool.clone());
        pages.insert(7, pool.page_zeroed(), Cost::Block);
        assert_eq!((pool.dirty_bytes(), pages.unplaced()), (PAGE, 1));
        assert!(!pool.wait_for_room(Duration::from_millis(1)));
        let copy = pages.take(7);
        assert_eq!(pages.unplaced(), 0);
        assert!(pages.overwrite(7, 1, &[9]) && !pages.overwrite(8, 0, &[9]));
        assert_eq!((copy.0[1], pages.get(7).unwrap().data.0[1]), (0, 9));
        pages.written(7);
        assert_eq!(pages.get(7).unwrap().cost, Cost::Free);
        let copy = pages.take(7);
        assert_eq!(copy.0[1], 9);
        pages.written(7);
        assert!(pages.is_empty() && pool.wait_for_room(Duration::ZERO));
    }

    #[test]
    fn a_failed_flush_and_a_discard_give_back_what_they_counted() {
        let pool = PagePool::new(1 << 20);
        let mut pages = DirtyPages::new(pool.clone());
        for page in 0..8 {
            pages.insert(page, pool.page_zeroed(), if page < 4 { Cost::Block } else { Cost::Free });
        }
        drop(pages.take(1));
        pages.put_back(1);
        assert_eq!(pages.unplaced(), 4);
        pages.allocated(0..2);
        pages.discard(1..6);
        assert_eq!((pages.unplaced(), pages.len(), pool.dirty_bytes()), (0, 3, 3 * PAGE));
        drop(pages);
        assert_eq!(pool.dirty_bytes(), 0);
    }

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = PagePool::new(1);
        let mut buffer = pool.buffer(8192);
        assert_eq!(buffer.slice_mut(8192).as_ptr().align_offset(4096), 0);
        pool.return_buffer(buffer);
        assert_eq!(pool.buffer(4096).capacity(), 8192);
    }
}
