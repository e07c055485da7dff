//! One allocation group in memory, while this host holds its lock.
//!
//! A set bit means: used on the disk, picked by somebody, or freed by a transaction whose free is not
//! final yet. The pages on the disk are changed by transactions only, when they finish.

use crate::base::{AgNo, BlockNo, Error, LockName, Result, TxnId};
use crate::format::group::{ChunkEntry, ChunkKind, ChunkPage, GroupHeader, chunk_start};
use crate::format::layout::{CHUNK_BLOCKS, CHUNKS_PER_PAGE, Geometry};
use crate::format::{Block, BlockKind};
use crate::store::Store;
use crate::txn::{BlockRun, BlockSource};
use std::collections::VecDeque;

/// Metadata blocks of each group that only freeing transactions may take, so that removal works on
/// a full volume.
pub const EMERGENCY: u64 = 64;
const WORDS: usize = 8;
const ALL: u64 = CHUNK_BLOCKS;

/// A chunk in memory.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    pub kind: ChunkKind,
    pub free: u16,
    bits: [u64; WORDS],
}

impl Chunk {
    const UNTOUCHED: Chunk = Chunk { kind: ChunkKind::Free, free: ALL as u16, bits: [0; WORDS] };

    fn of(entry: &ChunkEntry) -> Option<Chunk> {
        let mut bits = [0; WORDS];
        for (word, bytes) in bits.iter_mut().zip(entry.bitmap.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let used: u32 = bits.iter().map(|w| w.count_ones()).sum();
        let free = (ALL as u32 - used) as u16;
        let mut kind = ChunkKind::from_raw(entry.kind)?;
        if free != entry.free.get() || (kind == ChunkKind::Free && used > 0) {
            return None;
        }
        // Empty data chunks may become anything again; empty metadata chunks stay what they are.
        if kind == ChunkKind::Data && used == 0 {
            kind = ChunkKind::Free;
        }
        Some(Chunk { kind, free, bits })
    }

    fn is_set(&self, i: u64) -> bool {
        self.bits[(i / 64) as usize] >> (i % 64) & 1 == 1
    }

    fn set(&mut self, i: u64, used: bool) {
        let (word, bit) = (&mut self.bits[(i / 64) as usize], 1 << (i % 64));
        debug_assert_ne!(*word & bit != 0, used);
        if used {
            *word |= bit;
            self.free -= 1;
        } else {
            *word &= !bit;
            self.free += 1;
        }
    }

    /// The first run of clear bits at or after `from`, at most `most` long.
    fn clear_run(&self, from: u64, most: u64) -> Option<(u64, u64)> {
        let mut at = from;
        while at < ALL {
            let rest = !self.bits[(at / 64) as usize] >> (at % 64);
            if rest == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            at += u64::from(rest.trailing_zeros());
            let mut end = at + 1;
            while end < ALL && end - at < most && !self.is_set(end) {
                end += 1;
            }
            return Some((at, end - at));
        }
        None
    }
}

/// Free space of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub free_chunks: u64,
    /// Free blocks in data chunks.
    pub free_data: u64,
    /// Free blocks in metadata chunks.
    pub free_meta: u64,
}

impl Counts {
    /// Blocks that data could take, if nothing else did.
    pub fn for_data(&self) -> u64 {
        self.free_data + self.free_chunks * CHUNK_BLOCKS
    }
}

/// When a freed run may be picked again.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    txn: TxnId,
    metadata: bool,
    run: BlockRun,
}

/// A group whose lock is held.
pub struct Group {
    pub ag: AgNo,
    start: BlockNo,
    pub vclock: u64,
    chunks: Vec<Chunk>,
    counts: Counts,
    pub reserved_data: u64,
    pub reserved_meta: u64,
    /// Transactions and picked runs that are not finished.
    pub users: u32,
    /// The lock is wanted by another host: nothing new is promised.
    pub stopping: bool,
    data_cursor: u64,
    meta_cursor: u64,
    waiting: VecDeque<Waiting>,
}

impl Group {
    /// Read a group from the disk.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn load(store: &Store, geometry: &Geometry, ag: AgNo) -> Result<Group> {
        let cover = LockName::Ag(ag);
        let place = geometry.ag_header(ag);
        let header = store.read(place, BlockKind::GroupHeader, cover)?;
        let header = header.body_as::<GroupHeader>();
        let (total, init) = (geometry.ag_chunks(ag), u64::from(header.init_chunks.get()));
        if init > total {
            return Err(Error::corrupt(place, BlockKind::GroupHeader, format_args!("at most {total} chunks"), init));
        }
        let mut chunks = Vec::with_capacity(total as usize);
        for page in 0..init.div_ceil(CHUNKS_PER_PAGE) {
            let place = geometry.chunk_page(ag, page);
            let image = store.read(place, BlockKind::ChunkPage, cover)?;
            let here = (init - page * CHUNKS_PER_PAGE).min(CHUNKS_PER_PAGE) as usize;
            for (i, entry) in image.body_as::<ChunkPage>().entries[..here].iter().enumerate() {
                chunks.push(Chunk::of(entry).ok_or_else(|| {
                    Error::corrupt(place, BlockKind::ChunkPage, "a consistent chunk entry", format_args!("entry {i}"))
                })?);
            }
        }
        chunks.resize(total as usize, Chunk::UNTOUCHED);
        let mut counts = Counts::default();
        for chunk in &chunks {
            match chunk.kind {
                ChunkKind::Free => counts.free_chunks += 1,
                ChunkKind::Data => counts.free_data += u64::from(chunk.free),
                ChunkKind::Metadata | ChunkKind::Draining => counts.free_meta += u64::from(chunk.free),
                ChunkKind::System => {}
            }
        }
        Ok(Group {
            ag,
            start: geometry.ag_start(ag),
            vclock: header.vclock.get(),
            chunks,
            counts,
            reserved_data: 0,
            reserved_meta: 0,
            users: 0,
            stopping: false,
            data_cursor: 0,
            meta_cursor: 0,
            waiting: VecDeque::new(),
        })
    }

    /// Free space, what is promised not deducted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Free space as others may see it: promises deducted.
    pub fn unpromised(&self) -> u64 {
        (self.counts.for_data() + self.counts.free_meta).saturating_sub(self.reserved_data + self.reserved_meta)
    }

    /// Can so much more be promised? `spare` metadata blocks are kept back.
    pub fn fits(&self, data: u64, meta: u64, spare: u64) -> bool {
        let chunks = |wanted: u64, free: u64| wanted.saturating_sub(free).div_ceil(CHUNK_BLOCKS);
        let data = if data == 0 { 0 } else { self.reserved_data + data };
        let data = data.max(self.reserved_data);
        let meta = self.reserved_meta + meta + spare;
        chunks(data, self.counts.free_data) + chunks(meta, self.counts.free_meta) <= self.counts.free_chunks
    }

    /// Nothing of the group is promised or in use.
    pub fn is_idle(&self) -> bool {
        self.reserved_data == 0 && self.reserved_meta == 0 && self.users == 0
    }

    fn chunk_of(&self, block: BlockNo) -> (usize, u64) {
        let from = block.0 - self.start.0;
        ((from / CHUNK_BLOCKS) as usize, from % CHUNK_BLOCKS)
    }

    /// Is a metadata block?
    pub fn kind_at(&self, block: BlockNo) -> ChunkKind {
        self.chunks.get(self.chunk_of(block).0).map_or(ChunkKind::System, |c| c.kind)
    }

    fn mark(&mut self, run: BlockRun, used: bool) {
        let (chunk, first) = self.chunk_of(run.start);
        let c = &mut self.chunks[chunk];
        (first..first + run.blocks).for_each(|i| c.set(i, used));
        let count = match c.kind {
            ChunkKind::Data => &mut self.counts.free_data,
            _ => &mut self.counts.free_meta,
        };
        *count = if used { *count - run.blocks } else { *count + run.blocks };
        if !used && c.kind == ChunkKind::Data && u64::from(c.free) == CHUNK_BLOCKS {
            c.kind = ChunkKind::Free;
            self.counts.free_data -= CHUNK_BLOCKS;
            self.counts.free_chunks += 1;
        }
    }

    fn retype(&mut self, chunk: usize, kind: ChunkKind) {
        self.chunks[chunk].kind = kind;
        self.counts.free_chunks -= 1;
        match kind {
            ChunkKind::Data => self.counts.free_data += CHUNK_BLOCKS,
            _ => self.counts.free_meta += CHUNK_BLOCKS,
        }
    }

    /// Pick a run of at most `most` data blocks, at `near` if that is free.
    pub fn pick_data(&mut self, most: u64, near: Option<BlockNo>) -> Option<BlockRun> {
        let near = near.filter(|b| b.0 >= self.start.0).map(|b| self.chunk_of(b));
        if let Some((chunk, at)) = near.filter(|(c, _)| *c < self.chunks.len())
            && self.chunks[chunk].kind == ChunkKind::Data
            && let Some((first, n)) = self.chunks[chunk].clear_run(at, most)
        {
            return Some(self.take(chunk, first, n));
        }
        // Behind the file's own chunk first, then from where the last search ended.
        let from = near.map_or(self.data_cursor, |(c, _)| c as u64 + 1);
        let total = self.chunks.len() as u64;
        let order = |i: u64| ((from + i) % total) as usize;
        let wanted = if most >= CHUNK_BLOCKS / 2 { ChunkKind::Free } else { ChunkKind::Data };
        let find = |g: &Group, kind: ChunkKind| {
            (0..total).map(order).find(|c| g.chunks[*c].kind == kind && g.chunks[*c].free > 0)
        };
        let other = if wanted == ChunkKind::Free { ChunkKind::Data } else { ChunkKind::Free };
        let chunk = find(self, wanted).or_else(|| find(self, other))?;
        if self.chunks[chunk].kind == ChunkKind::Free {
            self.retype(chunk, ChunkKind::Data);
        }
        self.data_cursor = chunk as u64;
        let (first, n) = self.chunks[chunk].clear_run(0, most)?;
        Some(self.take(chunk, first, n))
    }

    fn take(&mut self, chunk: usize, first: u64, blocks: u64) -> BlockRun {
        let run = BlockRun { start: self.start.plus(chunk as u64 * CHUNK_BLOCKS + first), blocks };
        self.mark(run, true);
        run
    }

    /// Pick a metadata block near `near`; `prepare` zeroes and flushes a chunk that becomes one of
    /// metadata: what it held before must not look like a version to replay.
    ///
    /// # Errors
    /// What `prepare` gives; `NoSpace`.
    pub fn pick_meta(
        &mut self,
        geometry: &Geometry,
        near: Option<BlockNo>,
        prepare: &mut dyn FnMut(BlockNo) -> Result<()>,
    ) -> Result<BlockNo> {
        let near = near.filter(|b| b.0 >= self.start.0).map(|b| self.chunk_of(b));
        let usable = |g: &Group, c: usize| {
            matches!(g.chunks[c].kind, ChunkKind::Metadata | ChunkKind::Draining) && g.chunks[c].free > 0
        };
        let total = self.chunks.len();
        let from = near.map_or(self.meta_cursor as usize, |(c, _)| c).min(total - 1);
        let found = (0..total).map(|i| (from + i) % total).find(|c| usable(self, *c));
        let chunk = match found {
            Some(chunk) => chunk,
            None => {
                let chunk = (0..total).find(|c| self.chunks[*c].kind == ChunkKind::Free).ok_or(Error::NoSpace)?;
                prepare(chunk_start(geometry, self.ag, chunk as u64))?;
                self.retype(chunk, ChunkKind::Metadata);
                chunk
            }
        };
        self.meta_cursor = chunk as u64;
        let at = near.filter(|(c, _)| *c == chunk).map_or(0, |(_, at)| at);
        let c = &self.chunks[chunk];
        let (first, _) = c.clear_run(at, 1).or_else(|| c.clear_run(0, 1)).ok_or(Error::NoSpace)?;
        self.vclock += 1;
        Ok(self.take(chunk, first, 1).start)
    }

    /// Give picked blocks back that no transaction used.
    pub fn unpick(&mut self, run: BlockRun) {
        self.each_chunk(run, |g, part| g.mark(part, false));
    }

    /// Blocks freed by `txn`: to be picked again when that is final.
    pub fn freed(&mut self, txn: TxnId, metadata: bool, run: BlockRun) {
        self.waiting.push_back(Waiting { txn, metadata, run });
    }

    /// Make freed blocks usable whose transactions are durable (data) or in place (metadata).
    pub fn collect(&mut self, durable: TxnId, in_place: TxnId) {
        for _ in 0..self.waiting.len() {
            let Some(w) = self.waiting.pop_front() else { return };
            if w.txn <= if w.metadata { in_place } else { durable } {
                self.each_chunk(w.run, |g, part| g.mark(part, false));
            } else {
                self.waiting.push_back(w);
            }
        }
    }

    /// Blocks that wait to become usable.
    pub fn waiting(&self) -> u64 {
        self.waiting.iter().map(|w| w.run.blocks).sum()
    }

    fn each_chunk(&mut self, run: BlockRun, mut visit: impl FnMut(&mut Group, BlockRun)) {
        for part in split_at_chunks(self.start, run) {
            visit(self, part);
        }
    }
}

/// Cut a run where chunks end.
pub fn split_at_chunks(group_start: BlockNo, run: BlockRun) -> Vec<BlockRun> {
    let mut parts = Vec::new();
    let (mut at, end) = (run.start.0, run.start.0 + run.blocks);
    while at < end {
        let next = ((at - group_start.0) / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS + group_start.0;
        let stop = next.min(end);
        parts.push(BlockRun { start: BlockNo(at), blocks: stop - at });
        at = stop;
    }
    parts
}

/// Set or clear the bits of a run that lies within one chunk in the chunk's entry on its page, and
/// give the chunk `kind` if it has none. Returns the change of the header's counts
/// (free chunks, free data, free metadata).
pub fn apply_run(page: &mut Block, index: usize, first: u64, blocks: u64, used: bool, kind: ChunkKind) -> (i64, i64, i64) {
    let entry = &mut page.body_as_mut::<ChunkPage>().entries[index];
    let of = |kind: u8, n: i64| match ChunkKind::from_raw(kind) {
        Some(ChunkKind::Data) => (0, n, 0),
        Some(ChunkKind::Metadata | ChunkKind::Draining) => (0, 0, n),
        _ => (0, 0, 0),
    };
    let mut change = (0, 0, 0);
    let mut add = |(a, b, c): (i64, i64, i64)| change = (change.0 + a, change.1 + b, change.2 + c);
    if used && entry.kind != kind as u8 {
        // A free chunk, or an empty data chunk, is typed anew by its first use.
        if entry.kind == ChunkKind::Free as u8 {
            add((-1, 0, 0));
        } else {
            add(of(entry.kind, -i64::from(entry.free.get())));
        }
        entry.kind = kind as u8;
        add(of(entry.kind, i64::from(entry.free.get())));
    }
    (first..first + blocks).for_each(|i| entry.set(i as usize, used));
    let n = if used { -(blocks as i64) } else { blocks as i64 };
    entry.free.set((i64::from(entry.free.get()) + n) as u16);
    add(of(entry.kind, n));
    change
}
