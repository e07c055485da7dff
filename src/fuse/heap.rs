//! The daemon's heap: the system's, and a stock of its own for cached blocks.
//!
//! Blocks come and go by the thousands, and all take one size. The system's allocator searches for a
//! piece so large, and grows a thread's heap by one page at a time, with a system call each. Here pieces
//! are cut from slabs, and the piece that was given back last goes out first. Slabs are kept: cache and
//! journal bound how many pieces there ever are.

use crate::format::Block;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an `Arc` of a block asks for: its two counts, and the block.
const PIECE: usize = 2 * size_of::<usize>() + size_of::<Block>();
/// From one piece in a slab to the next.
const PITCH: usize = PIECE.next_multiple_of(16);
/// Bytes of a slab.
const SLAB: usize = 1 << 20;

/// To be named as the program's `#[global_allocator]`.
pub struct Heap;

/// A piece that nobody uses holds the way to the next one.
struct Spare {
    next: *mut Spare,
}

struct Stock {
    spare: *mut Spare,
    /// What is not cut yet of the newest slab.
    uncut: *mut u8,
    pieces_left: usize,
}

/// The stock under a lock that needs no memory. It is held for a few instructions.
struct Shelf {
    busy: AtomicBool,
    stock: UnsafeCell<Stock>,
}

// SAFETY: the stock is only reached through `with`, by one thread at a time, and what it points to
// belongs to nobody else.
unsafe impl Sync for Shelf {}

static SHELF: Shelf = Shelf::new();

impl Shelf {
    const fn new() -> Shelf {
        let stock = Stock { spare: null_mut(), uncut: null_mut(), pieces_left: 0 };
        Shelf { busy: AtomicBool::new(false), stock: UnsafeCell::new(stock) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Stock) -> T) -> T {
        let mut tries = 0u32;
        while self.busy.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            tries += 1;
            // Its holder may not be running.
            if tries.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        // SAFETY: `busy` was false and is ours now, so nobody else has a reference.
        let result = work(unsafe { &mut *self.stock.get() });
        self.busy.store(false, Ordering::Release);
        result
    }
}

impl Stock {
    /// A piece, or null without memory.
    fn take(&mut self) -> *mut u8 {
        if !self.spare.is_null() {
            let piece = self.spare;
            // SAFETY: what is in the list is a whole piece that nobody uses, written by `give`.
            self.spare = unsafe { (*piece).next };
            return piece.cast();
        }
        if self.pieces_left == 0 {
            self.uncut = new_slab();
            if self.uncut.is_null() {
                return null_mut();
            }
            self.pieces_left = SLAB / PITCH;
        }
        let piece = self.uncut;
        self.pieces_left -= 1;
        // SAFETY: `pieces_left` counted this piece, so its end lies in the slab.
        self.uncut = unsafe { piece.add(PITCH) };
        piece
    }

    /// A piece comes back.
    fn give(&mut self, piece: *mut u8) {
        let spare: *mut Spare = piece.cast();
        // SAFETY: the caller owns the piece, which is larger than this and aligned to 8 bytes at least.
        unsafe { spare.write(Spare { next: self.spare }) };
        self.spare = spare;
    }
}

/// Memory for one slab; null if there is none. Small pages: what is never used is never taken.
fn new_slab() -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let start = unsafe { libc::mmap(null_mut(), SLAB, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED { null_mut() } else { start.cast() }
}

/// Is this layout a piece's?
fn is_piece(layout: &Layout) -> bool {
    layout.size() == PIECE && layout.align() <= 16
}

// SAFETY: pieces are at least PIECE bytes, aligned to 16, and given out to one owner at a time; all else
// is the system's. A pointer of a piece's layout is never handed to the system's allocator, wherever it
// came from: it stays in the stock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_piece(&layout) {
            return SHELF.with(Stock::take);
        }
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_piece(&layout) {
            // SAFETY: as above. Large ones need not even be touched.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let piece = SHELF.with(Stock::take);
        if !piece.is_null() {
            // SAFETY: a piece has PIECE bytes and is ours.
            unsafe { piece.write_bytes(0, PIECE) };
        }
        piece
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if is_piece(&layout) {
            return SHELF.with(|stock| stock.give(at));
        }
        // SAFETY: as above; no other layout than a piece's comes from the stock.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_piece(&layout) {
            // SAFETY: as above.
            return unsafe { System.realloc(at, layout, size) };
        }
        // SAFETY: the caller vouches for the new size; both regions are valid and apart.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(at, new, size.min(PIECE));
                self.dealloc(at, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_counted_block_is_a_piece() {
        struct Counted {
            _strong: usize,
            _weak: usize,
            _block: Block,
        }
        assert_eq!(size_of::<Counted>(), PIECE);
        assert!(is_piece(&Layout::new::<Counted>()) && !is_piece(&Layout::new::<Block>()));
        assert!(align_of::<Block>() <= 16 && PITCH * (SLAB / PITCH) <= SLAB);
        let _ = Arc::new(Block::zeroed());
    }

    #[test]
    fn no_piece_has_two_owners() {
        let layout = Layout::from_size_align(PIECE, 8).unwrap();
        let work = |mark: u8| {
            // SAFETY: every piece is written over its whole size, and given back once.
            unsafe {
                for round in 0..20 {
                    let pieces: Vec<_> = (0..150).map(|_| Heap.alloc(layout)).collect();
                    pieces.iter().for_each(|p| p.write_bytes(mark, PIECE));
                    for p in &pieces {
                        let bytes = std::slice::from_raw_parts(*p, PIECE);
                        assert!(bytes.iter().all(|b| *b == mark), "round {round}");
                    }
                    pieces.iter().for_each(|p| Heap.dealloc(*p, layout));
                }
            }
        };
        std::thread::scope(|scope| (1..=6).for_each(|mark| _ = scope.spawn(move || work(mark))));
    }

    #[test]
    fn a_piece_may_grow_and_shrink_into_other_sizes() {
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: sizes and layouts agree all the way.
        unsafe {
            let small = Heap.alloc(layout(100));
            small.write_bytes(7, 100);
            let piece = Heap.realloc(small, layout(100), PIECE);
            let large = Heap.realloc(piece, layout(PIECE), 3 * PIECE);
            assert!(std::slice::from_raw_parts(large, 100).iter().all(|b| *b == 7));
            Heap.dealloc(large, layout(3 * PIECE));
        }
    }
}
