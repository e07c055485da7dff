//! Writing decisions into the group's blocks, as the last thing before a handle is finished.
//!
//! The caller holds the group's mutex from here until the handle is finished or undone: no two
//! handles ever have unfinished changes of one group block.

use super::group::{Group, Piece, Truth};
use super::page::{Class, PAGE_CHUNKS};
use crate::base::{BlockNo, Error, LockName, Result, Version};
use crate::format::block::BlockKind;
use crate::format::group::{ChunkEntry, ChunkKind, ChunkPage, GroupHeader};
use crate::format::layout::CHUNK_BLOCKS;
use crate::journal::Handle;

/// Blocks that become used or free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub class: Class,
    pub piece: Piece,
    pub free: bool,
}

/// What to adopt in memory once the handle is finished.
pub(super) struct Applied {
    pub truth: Truth,
    /// Chunks that went from metadata to draining or back.
    pub kinds: Vec<(u32, ChunkKind)>,
}

/// Set and clear the bits of `changes`, keep the counts.
///
/// # Errors
/// `Corrupt` if a block is not what the change presumes; `Io`, `Halted`, `ChangeTooLarge`. The
/// handle must be dropped then.
pub(super) fn write(handle: &mut Handle, group: &Group, changes: &mut [Change]) -> Result<Applied> {
    // Allocations first: a block may be allocated and freed in one transaction.
    changes.sort_by_key(|c| (page_of(c.piece.chunk), c.free, c.piece));
    let mut applied = Applied { truth: group.truth, kinds: Vec::new() };
    for part in changes.chunk_by(|a, b| page_of(a.piece.chunk) == page_of(b.piece.chunk)) {
        let page = page_of(part[0].piece.chunk);
        modify_page(handle, group, page, &mut |place, entries| {
            part.iter().try_for_each(|c| {
                let entry = &mut entries[c.piece.chunk as usize % PAGE_CHUNKS];
                apply_one(place, entry, c, &mut applied)
            })
        })?;
    }
    write_header(handle, group, &applied.truth)?;
    Ok(applied)
}

fn page_of(chunk: u32) -> u32 {
    chunk / PAGE_CHUNKS as u32
}

fn modify_page(
    handle: &mut Handle,
    group: &Group,
    page: u32,
    change: &mut dyn FnMut(BlockNo, &mut [ChunkEntry; PAGE_CHUNKS]) -> Result<()>,
) -> Result<()> {
    let place = group.geometry().chunk_page(group.ag, page.into());
    let mut outcome = Ok(());
    handle.modify(place, BlockKind::ChunkPage, LockName::Ag(group.ag), &mut |block| {
        outcome = change(place, &mut block.body_as_mut::<ChunkPage>().entries);
    })?;
    outcome.inspect_err(|e| tracing::error!("{e}"))
}

fn write_header(handle: &mut Handle, group: &Group, truth: &Truth) -> Result<()> {
    let place = group.geometry().ag_header(group.ag);
    let mut outcome = Ok(());
    handle.modify(place, BlockKind::GroupHeader, LockName::Ag(group.ag), &mut |block| {
        let header = block.body_as_mut::<GroupHeader>();
        let found = Truth::read(header);
        // The clock in memory runs ahead by what unfinished transactions took.
        let expected = Truth { vclock: found.vclock, ..group.truth };
        if found != expected || found.vclock > group.truth.vclock {
            let (expected, found) = (format!("{:?}", group.truth), format!("{found:?}"));
            outcome = Err(Error::corrupt(place, BlockKind::GroupHeader, expected, found));
            return;
        }
        truth.write(header);
    })?;
    outcome.inspect_err(|e| tracing::error!("{e}"))
}

fn apply_one(place: BlockNo, entry: &mut ChunkEntry, c: &Change, applied: &mut Applied) -> Result<()> {
    let wrong = |expected: String, found: String| {
        let what = format!("{}, chunk {}", BlockKind::ChunkPage, c.piece.chunk);
        Error::corrupt(place, what, expected, found)
    };
    let kind = ChunkKind::from_raw(entry.kind).filter(|k| c.class.is_in(*k));
    let Some(kind) = kind else {
        return Err(wrong(format!("a chunk of {:?}", c.class), format!("type {}", entry.kind)));
    };
    for i in usize::from(c.piece.bit)..usize::from(c.piece.bit + c.piece.len) {
        if entry.is_used(i) != c.free {
            let names = ["free", "used"];
            let (expected, found) = (names[usize::from(c.free)], names[usize::from(!c.free)]);
            return Err(wrong(format!("block {i} {expected}"), found.into()));
        }
        entry.set(i, !c.free);
    }
    let signed = if c.free { i64::from(c.piece.len) } else { -i64::from(c.piece.len) };
    let free = i64::from(entry.free.get()) + signed;
    entry.free.set(free as u16);
    let t = &mut applied.truth;
    let sum = if c.class == Class::Data { &mut t.free_data } else { &mut t.free_meta };
    *sum = sum.wrapping_add_signed(signed);
    if c.class == Class::Meta {
        let empty = free as u64 == CHUNK_BLOCKS;
        let now = if empty { ChunkKind::Draining } else { ChunkKind::Metadata };
        if now != kind {
            entry.kind = now as u8;
            applied.kinds.push((c.piece.chunk, now));
        }
    }
    Ok(())
}

/// The pages that must be initialised before `last` has an entry: first page and one past the last.
fn pages_to_init(group: &Group, last: u32) -> (u32, u32) {
    let init = group.truth.init_chunks;
    if last < init { (0, 0) } else { (page_of(init), page_of(last) + 1) }
}

/// Blocks that [`retype`] changes.
pub(super) fn retype_blocks(group: &Group, claimed: &[u32]) -> u32 {
    let (from, to) = pages_to_init(group, claimed.iter().copied().max().unwrap_or(0));
    let mut pages: Vec<u32> = claimed.iter().map(|c| page_of(*c)).chain(from..to).collect();
    pages.sort_unstable();
    pages.dedup();
    1 + pages.len() as u32
}

/// Give unused chunks, all claimed, another type.
///
/// # Errors
/// As [`write`].
pub(super) fn retype(
    handle: &mut Handle,
    group: &mut Group,
    claimed: &[u32],
    to: ChunkKind,
) -> Result<Truth> {
    let mut truth = init_pages(handle, group, claimed.iter().copied().max().unwrap_or(0))?;
    for &chunk in claimed {
        let (map, c) = group.loaded(chunk);
        let from = map.chunk(c).kind;
        modify_page(handle, group, page_of(chunk), &mut |place, entries| {
            let entry = &mut entries[c];
            if entry.kind != from as u8 || entry.used() != 0 {
                let found = format!("type {}, {} used blocks", entry.kind, entry.used());
                let what = format!("{}, chunk {chunk}", BlockKind::ChunkPage);
                return Err(Error::corrupt(place, what, format!("an unused {from:?} chunk"), found));
            }
            *entry = ChunkEntry::empty(to);
            Ok(())
        })?;
        for (kind, add) in [(from, false), (to, true)] {
            let step = |sum: &mut u64, n: u64| *sum = if add { *sum + n } else { *sum - n };
            match kind {
                ChunkKind::Free => step(&mut truth.free_chunks, 1),
                ChunkKind::Data => step(&mut truth.free_data, CHUNK_BLOCKS),
                ChunkKind::Metadata | ChunkKind::Draining => step(&mut truth.free_meta, CHUNK_BLOCKS),
                ChunkKind::System => {}
            }
        }
    }
    truth.vclock = group.truth.vclock;
    write_header(handle, group, &truth)?;
    Ok(truth)
}

/// Give every chunk up to the end of `last`'s page an entry. What stood there before is not read:
/// it belongs to an older life of the disk.
fn init_pages(handle: &mut Handle, group: &mut Group, last: u32) -> Result<Truth> {
    let (from, to) = pages_to_init(group, last);
    let mut truth = group.truth;
    for page in from..to {
        let first_new = group.truth.init_chunks.saturating_sub(page * PAGE_CHUNKS as u32) as usize;
        if first_new == 0 {
            let place = group.geometry().chunk_page(group.ag, page.into());
            group.truth.vclock += 1;
            let version = Version(group.truth.vclock);
            let ag = group.ag;
            handle.create(place, BlockKind::ChunkPage, ag.0.into(), LockName::Ag(ag), version)?;
        }
        modify_page(handle, group, page, &mut |_, entries| {
            entries[first_new..].fill(ChunkEntry::empty(ChunkKind::Free));
            Ok(())
        })?;
        truth.init_chunks = ((page + 1) * PAGE_CHUNKS as u32).min(group.chunks());
    }
    Ok(truth)
}
