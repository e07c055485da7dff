//! One allocation group in memory: what its blocks on disk say, and what has been promised on top.
//!
//! Chunk pages are read when something is looked for in them, not before: the header's counts
//! suffice to reserve. `truth` and the chunk pages' images change when a transaction finishes;
//! everything else is this host's promise and vanishes with the lock.

use super::page::{BITS, Class, PAGE_CHUNKS, PageMap};
use crate::base::{AgNo, BlockNo, Error, LockName, Result, TxnId};
use crate::format::Geometry;
use crate::format::block::BlockKind;
use crate::format::group::{ChunkKind, ChunkPage, GroupHeader};
use crate::format::layout::CHUNK_BLOCKS;
use crate::store::Store;
use crate::txn::BlockRun;
use std::collections::{BTreeSet, VecDeque};

/// Metadata blocks of each group that only freeing transactions may take.
pub(super) const EMERGENCY_META: u64 = 16;
/// Most free blocks, and free chunks, of a group that are kept out of use because they could not be written.
const REFUSED_BLOCKS_MAX: u64 = 4096;
const REFUSED_CHUNKS_MAX: u32 = 8;
/// Pages that are read in search of a better place before the next best is taken.
const LOADS_FOR_BETTER: u32 = 4;

/// What the header says once all finished transactions are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truth {
    pub vclock: u64,
    pub init_chunks: u32,
    pub free_chunks: u64,
    pub free_data: u64,
    pub free_meta: u64,
}

impl Truth {
    pub fn read(header: &GroupHeader) -> Truth {
        Truth {
            vclock: header.vclock.get(),
            init_chunks: header.init_chunks.get(),
            free_chunks: header.free_chunks.get(),
            free_data: header.free_data.get(),
            free_meta: header.free_meta.get(),
        }
    }

    pub fn write(&self, header: &mut GroupHeader) {
        header.vclock.set(self.vclock);
        header.init_chunks.set(self.init_chunks);
        header.free_chunks.set(self.free_chunks);
        header.free_data.set(self.free_data);
        header.free_meta.set(self.free_meta);
    }
}

/// A piece of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub chunk: u32,
    pub bit: u16,
    pub len: u16,
}

/// The blocks of one class.
#[derive(Default)]
pub(super) struct Pool {
    /// Not busy, also on pages that have not been read.
    pub ready: u64,
    /// Of these, promised to reservations.
    pub reserved: u64,
    /// Freed by a transaction; to be reused when that one is durable (data) or in place (metadata).
    waiting: VecDeque<(TxnId, Piece)>,
    /// The same, that wait for nothing but the kernel, which still knows the inode of that number.
    withheld: BTreeSet<Piece>,
    /// The chunk to look at first.
    cursor: u32,
}

impl Pool {
    /// Blocks that may still be promised.
    pub fn unreserved(&self) -> u64 {
        self.ready.saturating_sub(self.reserved)
    }

    /// The newest transaction whose freed blocks wait.
    pub fn newest_waiting(&self) -> Option<TxnId> {
        self.waiting.back().map(|w| w.0)
    }
}

/// A draining chunk on its way to free.
pub(super) struct Drain {
    pub chunk: u32,
    /// The transaction that emptied it.
    pub since: TxnId,
    pub asked: Asked,
}

/// What the oracle has said of an emptying, once its transaction was durable. It may be long before the
/// chunk can go after that: the answer is kept, for the oracle need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Ticket(u64),
    Passed,
}

pub(super) struct Group {
    pub ag: AgNo,
    geometry: Geometry,
    chunks: u32,
    pub truth: Truth,
    pages: Vec<Option<Box<PageMap>>>,
    pub data: Pool,
    pub meta: Pool,
    /// Free chunks whose type is being changed.
    pub free_claimed: u64,
    /// Busy blocks of transactions that have not finished, and of guards.
    pub taken: u64,
    pub drains: Vec<Drain>,
    /// Where to look for a free chunk for data; no free chunk is below `free_low`.
    pub type_cursor: u32,
    pub free_low: u32,
    /// Free blocks and chunks that the device did not take. They stay out of use as long as the group is here.
    refused_blocks: u64,
    refused_chunks: u32,
}

impl Group {
    /// Read the header.
    ///
    /// # Errors
    /// `Corrupt` for counts that cannot be; `Io`.
    pub fn load(store: &Store, ag: AgNo) -> Result<Group> {
        let geometry = store.geometry();
        let place = geometry.ag_header(ag);
        let block = store.read(place, BlockKind::GroupHeader, LockName::Ag(ag))?;
        let truth = Truth::read(block.body_as::<GroupHeader>());
        let chunks = geometry.ag_chunks(ag);
        let in_chunks = truth.free_data.saturating_add(truth.free_meta).div_ceil(CHUNK_BLOCKS);
        if u64::from(truth.init_chunks) > chunks || truth.free_chunks.saturating_add(in_chunks) > chunks {
            let found = format!("{truth:?}");
            let e = Error::corrupt(place, BlockKind::GroupHeader, format_args!("{chunks} chunks"), found);
            tracing::error!("{e}");
            return Err(e);
        }
        let pool = |ready| Pool { ready, ..Pool::default() };
        Ok(Group {
            ag,
            geometry,
            chunks: chunks as u32,
            truth,
            pages: (0..geometry.chunk_pages(ag)).map(|_| None).collect(),
            data: pool(truth.free_data),
            meta: pool(truth.free_meta),
            free_claimed: 0,
            taken: 0,
            drains: Vec::new(),
            type_cursor: 0,
            free_low: 0,
            refused_blocks: 0,
            refused_chunks: 0,
        })
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn pool(&mut self, class: Class) -> &mut Pool {
        match class {
            Class::Data => &mut self.data,
            Class::Meta => &mut self.meta,
        }
    }

    /// Chunk pages of the group.
    pub fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The page's chunks; read on first use.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn page(&mut self, store: &Store, page: u32) -> Result<&mut PageMap> {
        let p = page as usize;
        if self.pages[p].is_none() {
            let first = p * PAGE_CHUNKS;
            let len = (self.chunks as usize - first).min(PAGE_CHUNKS);
            let valid = (self.truth.init_chunks as usize).saturating_sub(first).min(len);
            let map = if valid == 0 {
                PageMap::untouched(len)
            } else {
                let place = self.geometry.chunk_page(self.ag, page.into());
                let block = store.read(place, BlockKind::ChunkPage, LockName::Ag(self.ag))?;
                PageMap::load(place, block.body_as::<ChunkPage>(), valid, len)?
            };
            for c in (0..len).filter(|c| map.chunk(*c).kind == ChunkKind::Draining) {
                // Emptied under an earlier holder, whose log is in place.
                self.drains.push(Drain { chunk: (first + c) as u32, since: TxnId(0), asked: Asked::Nothing });
            }
            self.pages[p] = Some(Box::new(map));
        }
        Ok(self.pages[p].as_mut().expect("just loaded"))
    }

    /// The page that holds a chunk, which must have been loaded, and the chunk's index on it.
    pub fn loaded(&mut self, chunk: u32) -> (&mut PageMap, usize) {
        let map = self.pages[chunk as usize / PAGE_CHUNKS].as_mut().expect("pieces are of loaded pages");
        (map, chunk as usize % PAGE_CHUNKS)
    }

    /// Chunk and bit of a block of this group; `None` for the unusable rest at its end.
    pub fn locate(&self, block: BlockNo) -> Option<(u32, u16)> {
        let at = block.0.checked_sub(self.geometry.ag_start(self.ag).0)?;
        let chunk = u32::try_from(at / CHUNK_BLOCKS).ok().filter(|c| *c < self.chunks)?;
        Some((chunk, (at % CHUNK_BLOCKS) as u16))
    }

    /// First block of a piece.
    pub fn start_of(&self, piece: Piece) -> BlockNo {
        let at = u64::from(piece.chunk) * CHUNK_BLOCKS + u64::from(piece.bit);
        self.geometry.ag_start(self.ag).plus(at)
    }

    /// The pieces of a run, one per chunk, their pages loaded; each must be in use as `class`.
    ///
    /// # Errors
    /// `Corrupt` if any block is not; `Io`.
    pub fn pieces_in_use(&mut self, store: &Store, class: Class, run: BlockRun) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let (mut at, mut left) = (run.start, run.blocks);
        while left > 0 {
            let Some((chunk, bit)) = self.locate(at) else {
                return Err(not_in_use(at, class));
            };
            let len = left.min(CHUNK_BLOCKS - u64::from(bit)) as u16;
            self.page(store, chunk / PAGE_CHUNKS as u32)?;
            let (map, c) = self.loaded(chunk);
            if !class.is_in(map.chunk(c).kind) || !map.all_busy(c, bit.into(), len.into()) {
                return Err(not_in_use(at, class));
            }
            pieces.push(Piece { chunk, bit, len });
            (at, left) = (at.plus(len.into()), left - u64::from(len));
        }
        Ok(pieces)
    }

    /// Look for a chunk with `min` ready blocks, from the cursor round once; at most `loads` pages
    /// are read for it.
    fn find(&mut self, store: &Store, class: Class, min: u32, mut loads: u32) -> Result<Option<u32>> {
        let count = self.page_count();
        let cursor = self.pool(class).cursor;
        for i in 0..=count {
            let page = (cursor / PAGE_CHUNKS as u32 + i) % count;
            if self.pages[page as usize].is_none() {
                if u64::from(page) * PAGE_CHUNKS as u64 >= self.truth.init_chunks.into() {
                    continue;
                }
                if loads == 0 {
                    continue;
                }
                loads -= 1;
            }
            let from = if i == 0 { cursor as usize % PAGE_CHUNKS } else { 0 };
            if let Some(c) = self.page(store, page)?.find(class, from, min) {
                return Ok(Some(page * PAGE_CHUNKS as u32 + c as u32));
            }
        }
        Ok(None)
    }

    fn counts_lie(&self, class: Class) -> Error {
        let place = self.geometry.ag_header(self.ag);
        let e = Error::corrupt(place, BlockKind::GroupHeader, format_args!("free {class:?} blocks"), "none");
        tracing::error!("{e}");
        e
    }

    fn take(&mut self, class: Class, piece: Piece) {
        let (map, c) = self.loaded(piece.chunk);
        map.take(c, piece.bit.into(), piece.len.into());
        let pool = self.pool(class);
        pool.ready -= u64::from(piece.len);
        pool.reserved -= u64::from(piece.len);
        pool.cursor = piece.chunk;
        self.taken += u64::from(piece.len);
    }

    /// A reserved metadata block becomes busy: near `near` if that is here, else low in the group.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn take_meta(&mut self, store: &Store, near: BlockNo) -> Result<BlockNo> {
        let here = self.near(store, Class::Meta, near)?;
        let piece = match here {
            Some((chunk, bit)) => Piece { chunk, bit, len: 1 },
            None => {
                let found = self.find(store, Class::Meta, 1, u32::MAX)?;
                let chunk = found.ok_or_else(|| self.counts_lie(Class::Meta))?;
                let (map, c) = self.loaded(chunk);
                let bit = map.first_ready(c, 0).expect("found for its ready blocks") as u16;
                Piece { chunk, bit, len: 1 }
            }
        };
        let cursor = self.meta.cursor;
        self.take(Class::Meta, piece);
        if here.is_some() {
            // The cursor is for those without a neighbour: it stays at the low end.
            self.meta.cursor = cursor;
        }
        Ok(self.start_of(piece))
    }

    /// A ready block in the chunk of `near`, the next one behind it if there is one.
    fn near(&mut self, store: &Store, class: Class, near: BlockNo) -> Result<Option<(u32, u16)>> {
        let Some((chunk, bit)) = self.locate(near) else { return Ok(None) };
        let map = self.page(store, chunk / PAGE_CHUNKS as u32)?;
        let c = chunk as usize % PAGE_CHUNKS;
        let state = map.chunk(c);
        if state.claimed || state.ready == 0 || !class.is_in(state.kind) {
            return Ok(None);
        }
        let found = match class {
            Class::Meta => map.first_ready(c, bit.into()).or_else(|| map.first_ready(c, 0)),
            // Data continues exactly here or looks for a long run.
            Class::Data => map.first_ready(c, bit.into()).filter(|b| *b == usize::from(bit)),
        };
        Ok(found.map(|b| (chunk, b as u16)))
    }

    /// Reserved data blocks become busy; one run of at most `want`, at `near` if that is ready.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn take_data(&mut self, store: &Store, want: u64, near: Option<BlockNo>) -> Result<BlockRun> {
        let want = want.min(BITS as u64) as usize;
        let exact = match near {
            Some(near) => self.near(store, Class::Data, near)?,
            None => None,
        };
        let (chunk, bit, len) = match exact {
            Some((chunk, bit)) => {
                let (map, c) = self.loaded(chunk);
                (chunk, bit, map.run_at(c, bit.into(), want))
            }
            None => {
                let mut found = self.find(store, Class::Data, want as u32, LOADS_FOR_BETTER)?;
                if found.is_none() {
                    found = self.find(store, Class::Data, 1, u32::MAX)?;
                }
                let chunk = found.ok_or_else(|| self.counts_lie(Class::Data))?;
                let (map, c) = self.loaded(chunk);
                let (bit, len) = map.best_run(c, want).expect("found for its ready blocks");
                (chunk, bit as u16, len)
            }
        };
        let piece = Piece { chunk, bit, len: len as u16 };
        self.take(Class::Data, piece);
        Ok(BlockRun { start: self.start_of(piece), blocks: len as u64 })
    }

    /// Busy blocks that were never used become ready again.
    pub fn give_back(&mut self, class: Class, run: BlockRun) {
        let (chunk, bit) = self.locate(run.start).expect("it was taken here");
        let piece = Piece { chunk, bit, len: run.blocks as u16 };
        self.taken -= run.blocks;
        self.make_ready(class, piece);
    }

    /// Busy data blocks that were never used, and could not be written to, stay busy: the next flush of any
    /// file would choose the very same ones. False if there are many of them already: a device that takes
    /// nothing for a while is no reason to have no space afterwards.
    pub fn refuse(&mut self, run: BlockRun) -> bool {
        let most = (u64::from(self.chunks) * CHUNK_BLOCKS / 8).min(REFUSED_BLOCKS_MAX);
        let few = self.refused_blocks + run.blocks <= most;
        if few {
            self.refused_blocks += run.blocks;
            self.taken -= run.blocks;
        }
        few
    }

    /// The same for a claimed chunk: it stays claimed.
    pub fn refuse_chunk(&mut self) -> bool {
        let few = self.refused_chunks < REFUSED_CHUNKS_MAX;
        self.refused_chunks += u32::from(few);
        few
    }

    pub fn make_ready(&mut self, class: Class, piece: Piece) {
        let (map, c) = self.loaded(piece.chunk);
        map.give(c, piece.bit.into(), piece.len.into());
        let pool = self.pool(class);
        pool.ready += u64::from(piece.len);
        if class == Class::Meta {
            pool.cursor = pool.cursor.min(piece.chunk);
        }
    }

    /// `txn` freed a piece: it stays busy until nothing can bring its old use back.
    pub fn free_later(&mut self, class: Class, txn: TxnId, piece: Piece) {
        self.pool(class).waiting.push_back((txn, piece));
    }

    /// Make freed blocks ready whose transaction is durable (data) or in place (metadata).
    ///
    /// A data block may be overwritten in place by the next owner at once. If the free were not
    /// durable, a crash would give the block back to its old file with the new owner's bytes in it.
    /// A metadata block's tombstone must be in place: else its next version is compared with an old
    /// image, and a power cut between the two could let replay bring back the old life.
    ///
    /// Blocks that are `known` stay busy until they are admitted: they would be the numbers of other inodes.
    pub fn settle(&mut self, durable: TxnId, checkpointed: TxnId, known: &dyn Fn(BlockNo) -> bool) {
        for (class, upto) in [(Class::Data, durable), (Class::Meta, checkpointed)] {
            while let Some((txn, piece)) = self.pool(class).waiting.front().copied()
                && txn <= upto
            {
                self.pool(class).waiting.pop_front();
                if class == Class::Meta && known(self.start_of(piece)) {
                    self.meta.withheld.insert(piece);
                } else {
                    self.make_ready(class, piece);
                }
            }
        }
    }

    /// The kernel has forgotten the inode that stood here. If the block waits for nothing else, it is ready.
    pub fn admit(&mut self, block: BlockNo) {
        let piece = self.locate(block).map(|(chunk, bit)| Piece { chunk, bit, len: 1 });
        if let Some(piece) = piece.filter(|piece| self.meta.withheld.remove(piece)) {
            self.make_ready(Class::Meta, piece);
        }
    }

    /// Is a free block of the chunk withheld?
    pub fn withholds_in(&self, chunk: u32) -> bool {
        let first = |chunk| Piece { chunk, bit: 0, len: 0 };
        self.meta.withheld.range(first(chunk)..first(chunk + 1)).next().is_some()
    }

    /// Do freed blocks wait to become ready?
    pub fn has_waiting(&self) -> bool {
        self.data.newest_waiting().is_some() || self.meta.newest_waiting().is_some()
    }

    /// Blocks that are promised.
    pub fn outstanding(&self) -> u64 {
        self.data.reserved + self.meta.reserved + self.taken
    }
}

fn not_in_use(block: BlockNo, class: Class) -> Error {
    let e = Error::corrupt(block, "allocation bitmap", format_args!("a used {class:?} block"), "a free one");
    tracing::error!("{e}");
    e
}
