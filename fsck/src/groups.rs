//! The allocation groups as the disk has them: chunk types and bitmaps, and beside each bitmap one of
//! what was seen in use.

use crate::finding::{Code, Findings, Place};
use crate::image::{Image, words};
use shoal::base::{AgNo, BlockNo, LockName, SlotId};
use shoal::format::BlockKind;
use shoal::format::Geometry;
use shoal::format::group::{ChunkEntry, ChunkKind, ChunkPage, GroupHeader, chunk_start};
use shoal::format::layout::{BACKUP_SUPERBLOCK, CHUNK_BLOCKS, CHUNKS_PER_PAGE};
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = (CHUNK_BLOCKS / 64) as usize;

/// What blocks are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Data,
    Metadata,
    System,
}

impl Use {
    fn is_in(self, kind: ChunkKind) -> bool {
        match self {
            Use::Data => kind == ChunkKind::Data,
            Use::Metadata => matches!(kind, ChunkKind::Metadata | ChunkKind::Draining),
            Use::System => kind == ChunkKind::System,
        }
    }

    fn home(self) -> &'static str {
        match self {
            Use::Data => "a data chunk",
            Use::Metadata => "a metadata chunk",
            Use::System => "a system chunk",
        }
    }
}

/// A chunk with an entry.
pub struct Chunk {
    pub kind: ChunkKind,
    /// The bitmap on the disk.
    marked: [u64; WORDS],
    /// Blocks that something uses.
    seen: [AtomicU64; WORDS],
}

impl Chunk {
    /// Is block `i` of the chunk marked as used?
    pub fn is_marked(&self, i: usize) -> bool {
        self.marked[i / 64] >> (i % 64) & 1 == 1
    }

    /// Was block `i` seen in use?
    pub fn is_seen(&self, i: usize) -> bool {
        self.seen[i / 64].load(Ordering::Relaxed) >> (i % 64) & 1 == 1
    }
}

/// A group.
pub struct Group {
    pub ag: AgNo,
    pub vclock: u64,
    /// False if its header or a page of it could not be read: nothing is said of its blocks then.
    pub known: bool,
    pub chunks: Vec<Chunk>,
}

/// All groups.
pub struct Groups {
    pub geometry: Geometry,
    pub all: Vec<Group>,
}

/// What was wrong with a claim.
#[derive(Default)]
pub struct Claimed {
    /// Runs that somebody else had claimed before.
    pub twice: Vec<(BlockNo, u64)>,
}

impl Groups {
    /// Read all headers and pages, and check them in themselves.
    pub fn load(image: &Image, findings: &mut Findings) -> Groups {
        let geometry = image.geometry();
        let all = (0..geometry.ag_count).map(|ag| load_group(image, AgNo(ag), findings)).collect();
        Groups { geometry, all }
    }

    /// Blocks `start..start + blocks` are in use. Problems are reported at `place`, as of `what`.
    pub fn claim(
        &self,
        start: BlockNo,
        blocks: u64,
        of: Use,
        (place, what): (Place, &str),
        findings: &mut Findings,
    ) -> Claimed {
        let mut claimed = Claimed::default();
        let end = start.0.saturating_add(blocks);
        let (mut unmarked, mut misplaced) = (Run::default(), Run::default());
        let mut at = start.0;
        while at < end {
            let Some((group, chunk, first)) = self.locate(BlockNo(at)) else {
                let text = format!("{what}: {} from block {at} on lie in no group", count(end - at));
                findings.add(Code::BlockMisplaced, place, text);
                return claimed;
            };
            let n = (CHUNK_BLOCKS - first).min(end - at);
            at += n;
            if !group.known {
                continue;
            }
            let Some(chunk) = group.chunks.get(chunk) else {
                misplaced.add(BlockNo(at - n), n);
                continue;
            };
            if !of.is_in(chunk.kind) {
                misplaced.add(BlockNo(at - n), n);
            }
            for i in first..first + n {
                let (word, bit) = ((i / 64) as usize, 1u64 << (i % 64));
                let block = BlockNo(at - n + (i - first));
                if chunk.marked[word] & bit == 0 {
                    unmarked.add(block, 1);
                }
                if chunk.seen[word].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
                    push_run(&mut claimed.twice, block);
                }
            }
        }
        unmarked.report(Code::BlockUnmarked, place, &format!("{what}: marked as free:"), findings);
        let text = format!("{what}: not in {}:", of.home());
        misplaced.report(Code::BlockMisplaced, place, &text, findings);
        claimed
    }

    /// The group, chunk and offset in the chunk of a block.
    pub fn locate(&self, block: BlockNo) -> Option<(&Group, usize, u64)> {
        let ag = self.geometry.ag_of(block)?;
        let from = block.0 - self.geometry.ag_start(ag).0;
        let chunk = from / CHUNK_BLOCKS;
        let group = self.all.get(ag.0 as usize)?;
        (chunk < self.geometry.ag_chunks(ag)).then_some((group, chunk as usize, from % CHUNK_BLOCKS))
    }

    /// Headers, chunk pages, backups and journals are in use, and nothing else is in system chunks.
    pub fn claim_system(&self, image: &Image, findings: &mut Findings) {
        let g = &self.geometry;
        let mut whole = |start: BlockNo, chunks: u64, what: &str| {
            let blocks = chunks * CHUNK_BLOCKS;
            let twice = self.claim(start, blocks, Use::System, (Place::Volume, what), findings).twice;
            if let Some((block, _)) = twice.first() {
                findings.add(Code::SlotExtents, Place::Block(*block), format!("{what} overlaps another"));
            }
        };
        for group in &self.all {
            let what = format!("header and chunk pages of group {}", group.ag);
            whole(g.ag_start(group.ag), g.ag_own_chunks(group.ag), &what);
        }
        if let Some((group, chunk, _)) = self.locate(BACKUP_SUPERBLOCK)
            && chunk as u64 >= g.ag_own_chunks(group.ag)
        {
            whole(chunk_start(g, group.ag, chunk as u64), 1, "the backup superblock");
        }
        for (i, slot) in image.volume.slots.iter().enumerate() {
            let chunks = slot.journal_blocks.div_ceil(CHUNK_BLOCKS);
            whole(slot.journal_start, chunks, &format!("the journal of slot {i}"));
        }
        for (group, i, chunk) in self.chunks().filter(|(g, ..)| g.known) {
            if chunk.kind == ChunkKind::System && (0..CHUNK_BLOCKS as usize).all(|b| !chunk.is_seen(b)) {
                let what = format!("chunk {i} is of type system, but nothing of the system is there");
                findings.add(Code::SystemChunk, Place::Group(group.ag.0), what);
            }
        }
    }

    /// Every chunk with its group and number.
    pub fn chunks(&self) -> impl Iterator<Item = (&Group, u64, &Chunk)> {
        self.all.iter().flat_map(|g| g.chunks.iter().enumerate().map(move |(i, c)| (g, i as u64, c)))
    }

    /// What is marked as used but was not seen in use. `explained`: blocks already reported.
    pub fn report_leaks(&self, explained: &dyn Fn(BlockNo) -> bool, findings: &mut Findings) {
        for (group, i, chunk) in self.chunks().filter(|(g, _, c)| g.known && c.kind != ChunkKind::System) {
            let mut leaked = Run::default();
            let start = chunk_start(&self.geometry, group.ag, i);
            for b in 0..CHUNK_BLOCKS as usize {
                let block = start.plus(b as u64);
                if chunk.is_marked(b) && !chunk.is_seen(b) && !explained(block) {
                    leaked.add(block, 1);
                }
            }
            let place = Place::Group(group.ag.0);
            leaked.report(Code::BlockLeaked, place, "marked as used, but nothing uses:", findings);
        }
    }

    /// Is the block marked as used?
    pub fn is_marked(&self, block: BlockNo) -> bool {
        self.locate(block)
            .is_some_and(|(g, c, i)| g.chunks.get(c).is_some_and(|chunk| chunk.is_marked(i as usize)))
    }

    /// Blocks of the groups, and those marked as used.
    pub fn usage(&self) -> (u64, u64) {
        let total = self.all.iter().map(|g| self.geometry.ag_chunks(g.ag) * CHUNK_BLOCKS).sum();
        let used = |c: &Chunk| c.marked.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        (total, self.chunks().map(|(_, _, c)| used(c)).sum())
    }
}

fn count(n: u64) -> String {
    if n == 1 { "1 block".into() } else { format!("{n} blocks") }
}

/// Append a block to a list of runs.
pub fn push_run(runs: &mut Vec<(BlockNo, u64)>, block: BlockNo) {
    match runs.last_mut() {
        Some((start, n)) if start.plus(*n) == block => *n += 1,
        _ => runs.push((block, 1)),
    }
}

/// Blocks with one fault, told by the first and the number.
#[derive(Default)]
struct Run {
    first: Option<BlockNo>,
    blocks: u64,
}

impl Run {
    fn add(&mut self, block: BlockNo, n: u64) {
        self.first.get_or_insert(block);
        self.blocks += n;
    }

    fn report(&self, code: Code, place: Place, what: &str, findings: &mut Findings) {
        if let Some(first) = self.first {
            let text = match self.blocks {
                1 => format!("{what} block {first}"),
                n => format!("{what} {n} blocks, the first is {first}"),
            };
            findings.add(code, place, text);
        }
    }
}

fn load_group(image: &Image, ag: AgNo, findings: &mut Findings) -> Group {
    let g = image.geometry();
    let mut group = Group { ag, vclock: 0, known: false, chunks: Vec::new() };
    let place = Place::Group(ag.0);
    let cover = LockName::Ag(ag);
    let header = match image.read_verified(g.ag_header(ag), BlockKind::GroupHeader, ag.0.into(), cover) {
        Ok(block) => block,
        Err(e) => {
            findings.add(Code::GroupHeader, place, words(&e));
            return group;
        }
    };
    let header = header.body_as::<GroupHeader>();
    group.vclock = header.vclock.get();
    let (init, chunks) = (u64::from(header.init_chunks.get()), g.ag_chunks(ag));
    if init > chunks || init < g.ag_own_chunks(ag) {
        let what = format!("it has {chunks} chunks, of which {init} are said to have entries");
        findings.add(Code::GroupHeader, place, what);
        return group;
    }
    group.known = true;
    for page in 0..init.div_ceil(CHUNKS_PER_PAGE) {
        let count = CHUNKS_PER_PAGE.min(init - page * CHUNKS_PER_PAGE);
        match load_page(image, ag, page, count, findings) {
            Some(chunks) => group.chunks.extend(chunks),
            None => group.known = false,
        }
    }
    if group.known {
        check_counts(header, &group, chunks - init, findings);
    }
    group
}

fn load_page(image: &Image, ag: AgNo, page: u64, count: u64, findings: &mut Findings) -> Option<Vec<Chunk>> {
    let g = image.geometry();
    let place = g.chunk_page(ag, page);
    let block = match image.read_verified(place, BlockKind::ChunkPage, ag.0.into(), LockName::Ag(ag)) {
        Ok(block) => block,
        Err(e) => {
            findings.add(Code::ChunkPage, Place::Group(ag.0), words(&e));
            return None;
        }
    };
    let entries = &block.body_as::<ChunkPage>().entries;
    let mut chunks = Vec::with_capacity(count as usize);
    for (i, entry) in entries.iter().enumerate() {
        let number = page * CHUNKS_PER_PAGE + i as u64;
        if i as u64 >= count {
            if entry.used() > 0 || entry.kind != ChunkKind::Free as u8 {
                let what = format!("chunk {number} has an entry with content, but no entry is due");
                findings.add(Code::ChunkEntry, Place::Group(ag.0), what);
            }
            continue;
        }
        chunks.push(load_chunk(ag, number, entry, findings));
    }
    Some(chunks)
}

fn load_chunk(ag: AgNo, number: u64, entry: &ChunkEntry, findings: &mut Findings) -> Chunk {
    let mut fault = |what: String| {
        findings.add(Code::ChunkEntry, Place::Group(ag.0), format!("chunk {number}: {what}"));
    };
    let kind = ChunkKind::from_raw(entry.kind).unwrap_or_else(|| {
        fault(format!("its type is {}", entry.kind));
        ChunkKind::Data
    });
    let free = CHUNK_BLOCKS - u64::from(entry.used());
    if u64::from(entry.free.get()) != free {
        fault(format!("{} blocks are said to be free, the bitmap has {free}", entry.free));
    }
    if matches!(kind, ChunkKind::Free | ChunkKind::Draining) && entry.used() > 0 {
        fault(format!("{} blocks are marked as used in a chunk that is empty by its type", entry.used()));
    }
    let mut words = entry.bitmap.chunks_exact(8);
    let marked = std::array::from_fn(|_| {
        u64::from_le_bytes(words.next().expect("a bitmap has 8 words").try_into().expect("8 bytes"))
    });
    Chunk { kind, marked, seen: Default::default() }
}

fn check_counts(header: &GroupHeader, group: &Group, without_entry: u64, findings: &mut Findings) {
    let free = |kinds: &[ChunkKind]| -> u64 {
        let of = group.chunks.iter().filter(|c| kinds.contains(&c.kind));
        of.map(|c| c.marked.iter().map(|w| u64::from(w.count_zeros())).sum::<u64>()).sum()
    };
    let free_chunks = group.chunks.iter().filter(|c| c.kind == ChunkKind::Free).count() as u64;
    for (what, said, is) in [
        ("free chunks", header.free_chunks.get(), free_chunks + without_entry),
        ("free data blocks", header.free_data.get(), free(&[ChunkKind::Data])),
        ("free metadata blocks", header.free_meta.get(), free(&[ChunkKind::Metadata, ChunkKind::Draining])),
    ] {
        if said != is {
            let text = format!("its header counts {said} {what}, its chunks have {is}");
            findings.add(Code::GroupCounts, Place::Group(group.ag.0), text);
        }
    }
}

/// Where a slot's system inode is.
pub fn slot_inode_cover(slot: usize) -> LockName {
    LockName::Slot(SlotId(slot as u16))
}
