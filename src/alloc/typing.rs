//! Giving chunks a type, and taking it from metadata chunks that have emptied.

use super::allocator::{Allocator, Fit};
use super::apply;
use super::cell::Cell;
use super::deferred::TicketState;
use super::group::{Asked, Drain, EMERGENCY_META, Group};
use super::page::BITS;
use crate::base::{AgNo, BLOCK_SIZE, Error, Result, TxnId};
use crate::format::group::{ChunkKind, chunk_start};
use crate::format::layout::CHUNK_BLOCKS;
use std::collections::BTreeSet;

/// Bytes zeroed with one request: a device that cannot do it by itself is written to, and each write asks for
/// the lease.
const ZERO_BYTES: u64 = 1 << 20;

/// Data chunks that are typed ahead in a group with plenty of room, so that a growing file finds its
/// next chunk beside the last one.
const DATA_AHEAD: u64 = 4;
/// Metadata blocks that stay before an emptied metadata chunk is given away without need.
const META_KEPT: u64 = 256;
/// Most emptied chunks of a group that one transaction gives away.
const LET_GO_MAX: usize = 64;

impl Allocator {
    /// Give chunks a type so that `data` and `meta` blocks more can be promised in this group: all of
    /// it (`Whole`), or as much as there are chunks for. False if nothing could be done.
    ///
    /// The caller holds no handle: this begins one, and a seal waits for those that are open.
    pub(super) fn make_room(&self, cell: &Cell, data: u64, meta: u64, fit: Fit) -> Result<bool> {
        let _one = cell.typing.lock();
        let claimed = {
            let mut state = cell.open(&self.store)?;
            if state.demoting {
                return Ok(false);
            }
            let (lack_data, lack_meta) = state.group().lacking(data, meta);
            if lack_data == 0 && (lack_meta == 0 || meta == 0) {
                // Somebody else has made room meanwhile.
                return Ok(true);
            }
            let claimed = self.claim(state.group(), (lack_data, lack_meta), meta > 0, fit);
            let claimed = claimed.inspect_err(|e| state.note(e))?;
            if claimed.iter().all(|(_, chunks)| chunks.is_empty()) {
                return Ok(false);
            }
            state.pins += 1;
            claimed
        };
        let mut result = Ok(true);
        for (to, mut chunks) in claimed {
            if result.is_ok() && to == ChunkKind::Metadata && !chunks.is_empty() {
                result = self.zero(cell, &mut chunks).map(|()| true);
            }
            if chunks.is_empty() {
                continue;
            }
            if result.is_ok() {
                result = self.retype(cell, &chunks, to).map(|()| true);
            }
            if result.is_err() {
                chunks.iter().for_each(|c| cell.with(|g| g.loaded_claim(*c, false)));
            }
        }
        cell.unpin();
        result
    }

    /// Choose the chunks.
    fn claim(
        &self,
        g: &mut Group,
        (lack_data, lack_meta): (u64, u64),
        wants_meta: bool,
        fit: Fit,
    ) -> Result<[(ChunkKind, Vec<u32>); 2]> {
        let free = g.free_chunks();
        // What metadata needs, the emergency share with it, is not given to data.
        let for_data = free.saturating_sub(lack_meta);
        if fit == Fit::Whole && lack_data > for_data {
            return Ok([(ChunkKind::Metadata, vec![]), (ChunkKind::Data, vec![])]);
        }
        let mut claimed = (Vec::new(), Vec::new());
        // Data that lacks a chunk brings the emergency share with it.
        let meta_chunks = if wants_meta || lack_data > 0 { lack_meta } else { 0 };
        let ahead = if lack_data > 0 { DATA_AHEAD.min(free / 8) } else { 0 };
        let data_chunks = lack_data.max(ahead).min(for_data);
        let mut claim_all = || -> Result<()> {
            for (to, count, list) in [
                (ChunkKind::Metadata, meta_chunks, &mut claimed.0),
                (ChunkKind::Data, data_chunks, &mut claimed.1),
            ] {
                while (list.len() as u64) < count {
                    let Some(chunk) = g.claim(&self.store, to)? else { break };
                    list.push(chunk);
                }
            }
            Ok(())
        };
        let outcome = claim_all();
        let short = fit == Fit::Whole
            && (wants_meta && (claimed.0.len() as u64) < meta_chunks || (claimed.1.len() as u64) < lack_data);
        if outcome.is_err() || short {
            claimed.0.drain(..).chain(claimed.1.drain(..)).for_each(|c| g.loaded_claim(c, false));
        }
        outcome.map(|()| [(ChunkKind::Metadata, claimed.0), (ChunkKind::Data, claimed.1)])
    }

    /// Change the type of claimed chunks, and put them to use. The caller holds `typing` and a pin.
    ///
    /// # Errors
    /// The chunks are still claimed then. `Corrupt`, `Io`, `Halted`.
    fn retype(&self, cell: &Cell, chunks: &[u32], to: ChunkKind) -> Result<()> {
        let blocks = cell.with(|g| apply::retype_blocks(g, chunks));
        let mut handle = self.journal.begin(blocks)?;
        let mut state = cell.state.lock();
        let truth = match apply::retype(&mut handle, state.group(), chunks, to) {
            Ok(truth) => truth,
            Err(e) => {
                // The images go back while nobody else can look at them.
                drop(handle);
                state.note(&e);
                return Err(e);
            }
        };
        let txn = handle.finish();
        let g = state.group();
        g.truth = truth;
        chunks.iter().for_each(|c| g.retyped(*c, to));
        if to == ChunkKind::Free {
            // Data may be written to a chunk at once. If a power cut took back that this one is free, it
            // would be draining again: metadata has such blocks as they are, with that data in them.
            drop(state);
            self.journal.commit(txn)?;
            state = cell.state.lock();
        }
        let g = state.group();
        chunks.iter().for_each(|c| g.loaded_claim(*c, false));
        Ok(())
    }

    /// Old user data must not look like a version: it is gone before the chunk can be a target of
    /// replay. A chunk that the device does not take is passed over: it stays claimed, and is none of `chunks`
    /// any more.
    fn zero(&self, cell: &Cell, chunks: &mut Vec<u32>) -> Result<()> {
        for chunk in chunks.clone() {
            match self.zero_chunk(cell, chunk) {
                Err(e @ Error::Io { .. }) if cell.with(|g| g.refuse_chunk()) => {
                    tracing::error!("chunk {chunk} of group {} is left unused: {e}", cell.ag);
                    chunks.retain(|c| *c != chunk);
                }
                other => other?,
            }
        }
        self.store.flush()
    }

    fn zero_chunk(&self, cell: &Cell, chunk: u32) -> Result<()> {
        let start = chunk_start(&self.store.geometry(), cell.ag, chunk.into()).byte();
        let end = start + CHUNK_BLOCKS * BLOCK_SIZE as u64;
        for at in (start..end).step_by(ZERO_BYTES as usize) {
            self.store.permit().to_write(self.store.halt())?;
            self.store.device().write_zeros(at, ZERO_BYTES.min(end - at))?;
        }
        Ok(())
    }

    /// To be called about once a second by a background thread that holds nothing: makes freed
    /// blocks reusable, lets emptied metadata chunks go.
    ///
    /// Answers with the number of chunks that have become free.
    ///
    /// # Errors
    /// `Io`, `Halted`; damage of one group is logged and leaves the others alone.
    pub fn maintain(&self) -> Result<u64> {
        let mut freed = 0;
        for cell in self.cells() {
            let chunks = {
                let mut state = cell.state.lock();
                if state.demoting || state.damaged.is_some() {
                    continue;
                }
                let Some(g) = state.group.as_mut() else { continue };
                self.settle(g);
                self.drained_chunks(g)
            };
            match self.let_go(&cell, chunks) {
                Ok(gone) => freed += gone,
                Err(Error::Corrupt { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(freed)
    }

    /// Chunk pages are read when something is looked for in them; in groups that have no free chunk
    /// and much free metadata, look for draining chunks in all of them.
    ///
    /// # Errors
    /// `Io`; damage of one group leaves the others alone.
    pub fn find_draining(&self) -> Result<()> {
        for cell in self.cells() {
            let mut state = match cell.open(&self.store) {
                Ok(state) => state,
                Err(Error::Corrupt { .. } | Error::NeedSpace) => continue,
                Err(e) => return Err(e),
            };
            if state.demoting {
                continue;
            }
            let g = state.group();
            if g.free_chunks() > 0 || g.truth.free_meta < CHUNK_BLOCKS + EMERGENCY_META {
                continue;
            }
            match (0..g.page_count()).try_for_each(|page| g.page(&self.store, page).map(|_| ())) {
                Err(e @ Error::Corrupt { .. }) => state.note(&e),
                other => other?,
            }
        }
        Ok(())
    }

    /// Emptied metadata chunks that will become free, once no journal knows their old images. Not those in which
    /// a number is withheld: that may take as long as it likes.
    pub fn draining(&self) -> BTreeSet<(AgNo, u32)> {
        let mut draining = BTreeSet::new();
        for cell in self.cells() {
            let state = cell.state.lock();
            let spare = |g: &&Group| g.meta.unreserved() >= CHUNK_BLOCKS + EMERGENCY_META;
            let Some(g) = state.group.as_ref().filter(spare) else { continue };
            let chunks = g.drains.iter().map(|drain| drain.chunk).filter(|chunk| !g.withholds_in(*chunk));
            draining.extend(chunks.map(|chunk| (cell.ag, chunk)));
        }
        draining
    }

    /// Advance the draining chunks; those that may become free now.
    pub(super) fn drained_chunks(&self, g: &mut Group) -> Vec<u32> {
        let mut drains = std::mem::take(&mut g.drains);
        drains.retain(|d| {
            let (map, c) = g.loaded(d.chunk);
            map.chunk(c).kind == ChunkKind::Draining
        });
        let mut ready = Vec::new();
        let durable = self.journal.durable();
        let pressed = g.free_chunks() == 0;
        let kept = if pressed { EMERGENCY_META } else { META_KEPT };
        let mut spare = g.meta.unreserved();
        // Else a new use begins (if it is finished, another draining follows, of which nothing was asked), or
        // tombstones are not in place yet.
        let mut settled = |d: &Drain| {
            let (map, c) = g.loaded(d.chunk);
            usize::from(map.chunk(c).ready) == BITS && !map.chunk(c).claimed && d.since <= durable
        };
        // All are asked for before any is looked at: they may share a ticket until then.
        for d in drains.iter_mut().filter(|d| d.asked == Asked::Nothing && settled(d)) {
            d.asked = self.oracle.ask().map_or(Asked::Nothing, Asked::Ticket);
        }
        for d in &mut drains {
            if let Asked::Ticket(ticket) = d.asked {
                d.asked = match self.oracle.look(ticket) {
                    TicketState::Passed => Asked::Passed,
                    TicketState::Waits => d.asked,
                    TicketState::Unknown => Asked::Nothing,
                };
            }
            let room = spare >= CHUNK_BLOCKS + kept && ready.len() < LET_GO_MAX;
            if room && d.asked == Asked::Passed && settled(d) {
                spare -= CHUNK_BLOCKS;
                ready.push(d.chunk);
            }
        }
        g.drains.append(&mut drains);
        ready
    }

    /// Give emptied chunks away: as many as may still go. Answers with their number.
    pub(super) fn let_go(&self, cell: &Cell, mut chunks: Vec<u32>) -> Result<u64> {
        if chunks.is_empty() {
            return Ok(0);
        }
        let _one = cell.typing.lock();
        {
            let mut state = cell.state.lock();
            if state.demoting || state.group.is_none() {
                return Ok(0);
            }
            let g = state.group();
            chunks.retain(|chunk| {
                may_go(g, *chunk) && g.meta.unreserved() >= CHUNK_BLOCKS + EMERGENCY_META && {
                    g.loaded_claim(*chunk, true);
                    true
                }
            });
            if chunks.is_empty() {
                return Ok(0);
            }
            state.pins += 1;
        }
        let result = self.retype(cell, &chunks, ChunkKind::Free);
        cell.with(|g| match &result {
            Ok(()) => g.drains.retain(|d| !chunks.contains(&d.chunk)),
            Err(_) => chunks.iter().for_each(|chunk| g.loaded_claim(*chunk, false)),
        });
        cell.unpin();
        result.map(|()| chunks.len() as u64)
    }

    /// A chunk has emptied in `txn`.
    pub(super) fn note_drain(g: &mut Group, chunk: u32, txn: TxnId) {
        g.drains.retain(|d| d.chunk != chunk);
        g.drains.push(Drain { chunk, since: txn, asked: Asked::Nothing });
    }
}

/// Is it empty, and has every journal let go of this very draining? It was looked at without `typing`: an
/// allocation may have come in between, and one that came and went has begun another draining, whose images
/// other journals may hold whatever was asked and answered before, or asked since.
fn may_go(g: &mut Group, chunk: u32) -> bool {
    let (map, c) = g.loaded(chunk);
    let state = map.chunk(c);
    let empty = state.kind == ChunkKind::Draining && usize::from(state.ready) == BITS && !state.claimed;
    empty && g.drains.iter().any(|d| d.chunk == chunk && d.asked == Asked::Passed)
}
