//! One chunk page in memory: which blocks may be given out, and sums to skip it quickly.
//!
//! `busy` is wider than the bitmap on disk: it also holds blocks that are promised to a transaction
//! that has not finished, and freed blocks that must not be reused yet.

use crate::base::{BlockNo, Error, Result};
use crate::format::block::BlockKind;
use crate::format::group::{ChunkEntry, ChunkKind, ChunkPage};
use crate::format::layout::{CHUNK_BLOCKS, CHUNKS_PER_PAGE};

/// Chunks on a page.
pub(super) const PAGE_CHUNKS: usize = CHUNKS_PER_PAGE as usize;
/// Blocks of a chunk.
pub(super) const BITS: usize = CHUNK_BLOCKS as usize;

/// What a block is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Data,
    Meta,
}

impl Class {
    /// Do chunks of this kind hold such blocks?
    pub fn is_in(self, kind: ChunkKind) -> bool {
        match self {
            Class::Data => kind == ChunkKind::Data,
            Class::Meta => matches!(kind, ChunkKind::Metadata | ChunkKind::Draining),
        }
    }
}

/// One chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub kind: ChunkKind,
    /// Its type is being changed: it counts nowhere and nothing is taken from it.
    pub claimed: bool,
    /// Blocks that are not busy.
    pub ready: u16,
}

/// Sums over the chunks that are not claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Ready blocks in data chunks.
    pub data: u32,
    /// Ready blocks in metadata and draining chunks.
    pub meta: u32,
    /// Free chunks.
    pub free: u32,
    /// Data chunks without a busy block.
    pub empty_data: u32,
}

impl Sums {
    pub fn ready(&self, class: Class) -> u32 {
        match class {
            Class::Data => self.data,
            Class::Meta => self.meta,
        }
    }

    fn count(&mut self, c: &Chunk, add: bool) {
        let step = |sum: &mut u32, n: u32| *sum = if add { *sum + n } else { *sum - n };
        match c.kind {
            _ if c.claimed => {}
            ChunkKind::Free => step(&mut self.free, 1),
            ChunkKind::System => {}
            ChunkKind::Metadata | ChunkKind::Draining => step(&mut self.meta, c.ready.into()),
            ChunkKind::Data => {
                step(&mut self.data, c.ready.into());
                step(&mut self.empty_data, u32::from(usize::from(c.ready) == BITS));
            }
        }
    }
}

/// The chunks of one page.
pub(super) struct PageMap {
    busy: [[u64; BITS / 64]; PAGE_CHUNKS],
    chunks: [Chunk; PAGE_CHUNKS],
    len: usize,
    sums: Sums,
}

impl PageMap {
    /// `len` chunks, all free: a page that the group has not begun to use.
    pub fn untouched(len: usize) -> PageMap {
        let chunk = Chunk { kind: ChunkKind::Free, claimed: false, ready: BITS as u16 };
        let sums = Sums { free: len as u32, ..Sums::default() };
        PageMap { busy: Default::default(), chunks: [chunk; PAGE_CHUNKS], len, sums }
    }

    /// From the page at `place`: its first `valid` entries count, up to `len` the chunks are free.
    ///
    /// # Errors
    /// `Corrupt` for an entry that contradicts itself.
    pub fn load(place: BlockNo, page: &ChunkPage, valid: usize, len: usize) -> Result<PageMap> {
        let mut map = PageMap::untouched(len);
        for (i, entry) in page.entries.iter().enumerate().take(valid.min(len)) {
            let kind = check_entry(place, i, entry)?;
            let old = map.chunks[i];
            map.sums.count(&old, false);
            map.busy[i] = words(entry);
            map.chunks[i] = Chunk { kind, claimed: false, ready: entry.free.get() };
            let new = map.chunks[i];
            map.sums.count(&new, true);
        }
        Ok(map)
    }

    #[cfg(test)]
    pub fn sums(&self) -> Sums {
        self.sums
    }

    pub fn chunk(&self, c: usize) -> &Chunk {
        &self.chunks[c]
    }

    fn change(&mut self, c: usize, f: impl FnOnce(&mut Chunk)) {
        let mut chunk = self.chunks[c];
        self.sums.count(&chunk, false);
        f(&mut chunk);
        self.sums.count(&chunk, true);
        self.chunks[c] = chunk;
    }

    /// Change the type.
    pub fn set_kind(&mut self, c: usize, kind: ChunkKind) {
        self.change(c, |chunk| chunk.kind = kind);
    }

    /// Take the chunk out of use while its type changes, or put it back.
    pub fn set_claimed(&mut self, c: usize, claimed: bool) {
        self.change(c, |chunk| chunk.claimed = claimed);
    }

    /// Are all of these blocks busy?
    pub fn all_busy(&self, c: usize, bit: usize, len: usize) -> bool {
        (bit..bit + len).all(|i| self.busy[c][i / 64] >> (i % 64) & 1 == 1)
    }

    /// Make ready blocks busy.
    pub fn take(&mut self, c: usize, bit: usize, len: usize) {
        for i in bit..bit + len {
            debug_assert_eq!(self.busy[c][i / 64] >> (i % 64) & 1, 0);
            self.busy[c][i / 64] |= 1 << (i % 64);
        }
        self.change(c, |chunk| chunk.ready -= len as u16);
    }

    /// Make busy blocks ready.
    pub fn give(&mut self, c: usize, bit: usize, len: usize) {
        for i in bit..bit + len {
            debug_assert_eq!(self.busy[c][i / 64] >> (i % 64) & 1, 1);
            self.busy[c][i / 64] &= !(1 << (i % 64));
        }
        self.change(c, |chunk| chunk.ready += len as u16);
    }

    /// The first ready block of a chunk at or after `from`.
    pub fn first_ready(&self, c: usize, from: usize) -> Option<usize> {
        next_bit(&self.busy[c], from, false)
    }

    /// Ready blocks in a row from `bit`, at most `max`.
    pub fn run_at(&self, c: usize, bit: usize, max: usize) -> usize {
        let end = next_bit(&self.busy[c], bit, true).unwrap_or(BITS);
        (end - bit).min(max)
    }

    /// The first run of at least `want` ready blocks, cut to `want`, else the longest there is.
    pub fn best_run(&self, c: usize, want: usize) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize)> = None;
        let mut from = 0;
        while let Some(bit) = self.first_ready(c, from) {
            let len = self.run_at(c, bit, want);
            if len == want {
                return Some((bit, len));
            }
            if best.is_none_or(|b| len > b.1) {
                best = Some((bit, len));
            }
            from = bit + len;
        }
        best
    }

    /// The first chunk from `from` on with at least `min` ready blocks of `class`.
    pub fn find(&self, class: Class, from: usize, min: u32) -> Option<usize> {
        if self.sums.ready(class) < min {
            return None;
        }
        (from..self.len).find(|c| {
            let chunk = &self.chunks[*c];
            !chunk.claimed && class.is_in(chunk.kind) && u32::from(chunk.ready) >= min
        })
    }

    /// The first chunk from `from` on that is free, or (`empty_data`) a data chunk without use.
    pub fn find_empty(&self, from: usize, empty_data: bool) -> Option<usize> {
        let count = if empty_data { self.sums.empty_data } else { self.sums.free };
        let wanted = if empty_data { ChunkKind::Data } else { ChunkKind::Free };
        if count == 0 {
            return None;
        }
        (from..self.len).find(|c| {
            let chunk = &self.chunks[*c];
            !chunk.claimed && chunk.kind == wanted && usize::from(chunk.ready) == BITS
        })
    }
}

/// The kind of an entry that agrees with itself.
fn check_entry(place: BlockNo, i: usize, entry: &ChunkEntry) -> Result<ChunkKind> {
    let wrong = |expected: String, found: String| {
        let e = Error::corrupt(place, format_args!("{}, entry {i}", BlockKind::ChunkPage), expected, found);
        tracing::error!("{e}");
        e
    };
    let Some(kind) = ChunkKind::from_raw(entry.kind) else {
        return Err(wrong("a chunk type".into(), entry.kind.to_string()));
    };
    let free = BITS as u32 - entry.used();
    if u32::from(entry.free.get()) != free {
        return Err(wrong(format!("{free} free blocks as in the bitmap"), entry.free.to_string()));
    }
    if matches!(kind, ChunkKind::Free | ChunkKind::Draining) && free != BITS as u32 {
        return Err(wrong(format!("no used block in a {kind:?} chunk"), entry.used().to_string()));
    }
    Ok(kind)
}

fn words(entry: &ChunkEntry) -> [u64; BITS / 64] {
    let mut words = [0; BITS / 64];
    for (word, bytes) in words.iter_mut().zip(entry.bitmap.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
    }
    words
}

/// The first bit at or after `from` that is (`set`) or is not set.
fn next_bit(words: &[u64; BITS / 64], from: usize, set: bool) -> Option<usize> {
    let flip = if set { 0 } else { u64::MAX };
    let mut mask = u64::MAX.checked_shl(from as u32 % 64).unwrap_or(0);
    for (i, word) in words.iter().enumerate().skip(from / 64) {
        let hits = (word ^ flip) & mask;
        if hits != 0 {
            return Some(i * 64 + hits.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_across_words() {
        let mut map = PageMap::untouched(3);
        map.set_kind(1, ChunkKind::Data);
        map.take(1, 0, 60);
        map.take(1, 70, 10);
        map.take(1, 200, 312);
        assert_eq!(map.first_ready(1, 0), Some(60));
        assert_eq!(map.best_run(1, 10), Some((60, 10)));
        assert_eq!(map.best_run(1, 11), Some((80, 11)));
        assert_eq!(map.best_run(1, 500), Some((80, 120)));
        assert_eq!(map.first_ready(1, 200), None);
        assert_eq!(map.run_at(1, 64, 99), 6);
        assert_eq!(map.sums(), Sums { data: 130, meta: 0, free: 2, empty_data: 0 });
        map.give(1, 0, 60);
        map.give(1, 70, 10);
        map.give(1, 200, 312);
        assert_eq!(map.sums(), Sums { data: 512, meta: 0, free: 2, empty_data: 1 });
        map.set_claimed(1, true);
        assert_eq!(map.sums(), Sums { data: 0, meta: 0, free: 2, empty_data: 0 });
        assert_eq!(map.find_empty(0, true), None);
        assert_eq!(map.find_empty(1, false), Some(2));
    }

    #[test]
    fn entries_that_contradict_themselves_are_refused() {
        let mut page = ChunkPage { entries: [ChunkEntry::empty(ChunkKind::Free); PAGE_CHUNKS] };
        let load = |page: &ChunkPage| PageMap::load(BlockNo(9), page, PAGE_CHUNKS, PAGE_CHUNKS);
        assert!(load(&page).is_ok());
        page.entries[4] = ChunkEntry::empty(ChunkKind::Metadata);
        page.entries[4].set(17, true);
        assert!(load(&page).is_err(), "count");
        page.entries[4].free.set(511);
        assert_eq!(load(&page).map(|m| m.sums().meta).ok(), Some(511));
        page.entries[4].kind = ChunkKind::Draining as u8;
        assert!(load(&page).is_err(), "used block");
        page.entries[4].kind = 77;
        assert!(load(&page).is_err(), "type");
        assert!(PageMap::load(BlockNo(9), &page, 4, PAGE_CHUNKS).is_ok(), "not valid yet");
    }
}
