//! Every block of every metadata chunk, in parallel: what is there, and what the inodes among them
//! hold.

use crate::finding::{Code, Findings, Place};
use crate::groups::{Chunk, Group, Groups, Use};
use crate::image::{Image, verify, words};
use crate::inode::{self, Gathered};
use crate::progress::Progress;
use shoal::base::{BLOCK_SIZE, BlockNo, InodeNo, LockName};
use shoal::format::group::{ChunkKind, chunk_start};
use shoal::format::layout::CHUNK_BLOCKS;
use shoal::format::{Block, BlockKind};
use shoal::store::AlignedBuf;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads at most: more do not make a disk faster.
const THREADS_MAX: usize = 16;

/// Blocks that the scan is to pass over, because others have looked at them.
pub struct Known<'a> {
    /// System inodes of the slots.
    pub slot_inodes: &'a BTreeSet<BlockNo>,
    /// Metadata blocks whose free is deferred: they hold what they held.
    pub deferred: &'a BTreeSet<BlockNo>,
}

/// Everything that was gathered, and used blocks that are no valid metadata.
#[derive(Default)]
pub struct Scanned {
    pub gathered: Gathered,
    pub damaged: Vec<(BlockNo, String)>,
    /// More of these, which are not kept.
    pub damaged_more: u64,
}

/// Damaged blocks that one thread keeps.
const DAMAGED_KEPT: usize = 10_000;

impl Scanned {
    fn damaged(&mut self, at: BlockNo, what: String) {
        match self.damaged.len() < DAMAGED_KEPT {
            true => self.damaged.push((at, what)),
            false => self.damaged_more += 1,
        }
    }
}

/// Scan all metadata chunks.
pub fn scan(image: &Image, groups: &Groups, known: &Known<'_>, progress: &dyn Progress) -> Scanned {
    let metadata = |c: &Chunk| matches!(c.kind, ChunkKind::Metadata | ChunkKind::Draining);
    let work: Vec<_> = groups.chunks().filter(|(g, _, c)| g.known && metadata(c)).collect();
    let (next, total) = (AtomicUsize::new(0), work.len());
    let all = Mutex::new(Scanned::default());
    let run = || {
        let mut scanned = Scanned::default();
        let mut buf = AlignedBuf::new(CHUNK_BLOCKS as usize);
        while let Some(chunk) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            Scan { image, groups, known, out: &mut scanned }.chunk(*chunk, &mut buf);
            progress.step(next.load(Ordering::Relaxed).min(total) as u64, total as u64);
        }
        merge(&mut all.lock().expect("no thread panics"), scanned);
    };
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).min(THREADS_MAX);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run))));
    let mut scanned = all.into_inner().expect("no thread panics");
    scanned.gathered.inodes.sort_by_key(|i| i.ino);
    scanned.gathered.links.sort_by_key(|l| (l.child, l.dir, l.key));
    scanned.gathered.twice.sort();
    scanned
}

fn merge(all: &mut Scanned, one: Scanned) {
    all.damaged.extend(one.damaged);
    all.damaged_more += one.damaged_more;
    let (to, from) = (&mut all.gathered, one.gathered);
    to.inodes.extend(from.inodes);
    to.links.extend(from.links);
    to.twice.extend(from.twice);
    to.bytes += from.bytes;
    to.findings.merge(from.findings);
}

struct Scan<'a> {
    image: &'a Image,
    groups: &'a Groups,
    known: &'a Known<'a>,
    out: &'a mut Scanned,
}

impl Scan<'_> {
    fn findings(&mut self) -> &mut Findings {
        &mut self.out.gathered.findings
    }

    fn chunk(&mut self, (group, number, chunk): (&Group, u64, &Chunk), buf: &mut AlignedBuf) {
        let start = chunk_start(&self.groups.geometry, group.ag, number);
        let whole = self.image.read_run(start, buf).is_ok();
        for i in 0..CHUNK_BLOCKS as usize {
            let at = start.plus(i as u64);
            let used = chunk.is_marked(i);
            let block = if whole {
                let bytes = &buf.bytes()[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE];
                Ok(Block::new(bytes.try_into().expect("a block")))
            } else {
                // Something in the chunk cannot be read: find out what.
                self.image.read(at)
            };
            match block {
                Ok(block) if used => self.used(at, &block),
                Ok(block) => self.free(group, at, &block),
                Err(e) if used => self.out.damaged(at, words(&e)),
                Err(_) => {}
            }
        }
    }

    fn used(&mut self, at: BlockNo, block: &Block) {
        if self.known.slot_inodes.contains(&at) || self.known.deferred.contains(&at) {
            return;
        }
        let format_id = self.image.superblock.format_id;
        match block.kind() {
            Some(BlockKind::Inode) => {
                let ino = InodeNo(at.0);
                match verify(block, format_id, at, BlockKind::Inode, at.0, LockName::Inode(ino)) {
                    Ok(()) => self.inode(ino, block),
                    Err(e) => self.out.damaged(at, words(&e)),
                }
            }
            // Their inode's walk looks at them; one that no walk comes to has leaked.
            Some(kind @ (BlockKind::TreePage | BlockKind::Blob)) => {
                if let Err(e) = block.verify(format_id, at, kind) {
                    self.out.damaged(at, words(&e));
                }
            }
            _ => {
                let e = block.verify(format_id, at, BlockKind::Inode);
                let what = e.map_or_else(|e| words(&e), |()| "no metadata".into());
                self.out.damaged(at, what);
            }
        }
    }

    fn inode(&mut self, ino: InodeNo, block: &Block) {
        let out = &mut self.out.gathered;
        let place = (Place::Inode(ino), "its block");
        let claimed = self.groups.claim(ino.block(), 1, Use::Metadata, place, &mut out.findings);
        out.twice.extend(claimed.twice);
        inode::check(self.image, self.groups, ino, block, out);
    }

    /// A free block is blank, or a tombstone that the group's clock knows of.
    fn free(&mut self, group: &Group, at: BlockNo, block: &Block) {
        let header = block.header();
        let ours = header.magic == shoal::format::block::MAGIC
            && header.format_id.get() == self.image.superblock.format_id
            && header.block.get() == at.0;
        if !ours {
            return;
        }
        if block.kind() != Some(BlockKind::Free) {
            let kind = block.kind().map_or_else(|| "metadata".to_string(), |k| k.to_string());
            let what = format!("it is marked as free, but holds a {kind}");
            self.findings().add(Code::FreedAlive, Place::Block(at), what);
        } else if block.computed_crc() == header.crc.get() && block.version().0 > group.vclock {
            let what = format!("a tombstone of version {}, beyond its group's clock", block.version());
            self.findings().add(Code::GroupClock, Place::Block(at), what);
        }
    }
}
