//! fallocate, lseek for data and holes, copy_file_range.

use super::attr::STEP;
use super::*;
use crate::alloc::Want;
use crate::file::WritePlan;
use crate::inode::tree_costs;
use crate::store::AlignedBuf;
use privileges::SetId;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
/// Holes and blocks that one transaction preallocates.
const HOLES: usize = 16;
const HOLE_BLOCKS: u64 = 8192;
/// Blocks of zeros in one write to the device.
const ZEROS_BLOCKS: u64 = 1024;
/// Most bytes one copy_file_range request moves; the caller asks again.
const COPY_MAX: u64 = 1 << 20;

impl Core {
    /// Write zeros over the parts of blocks at the edges of `rest`, which become none of it.
    fn zero_edges(
        &self,
        op: &mut Op<'_>,
        node: &Node,
        state: &mut NodeState,
        rest: &mut Range<u64>,
    ) -> Step<()> {
        let edges = self.file(node, state)?.edges(&*self.store, rest.start, rest.end - rest.start)?;
        for edge in edges {
            let plan = self.file(node, state)?.plan_edge(&*self.store, &edge)?;
            let zeros = vec![0; (edge.end - edge.start) as usize];
            self.write_planned(op, node, state, plan, &zeros)?;
            match edge.start == rest.start {
                true => rest.start = edge.end,
                false => rest.end = edge.start,
            }
        }
        Ok(())
    }

    fn step_space(&self, op: &mut Op<'_>, node: &Node) -> Step<Reservation> {
        op.space(Want { data: 0, meta: 2 * tree_costs::NEW_BLOCKS, near: self.group(node.ino) })
    }

    /// From the end on. `rest` shrinks with every step, and is what another attempt begins with: other hosts may have
    /// seen what is done and have written there since, which comes after.
    fn punch(&self, op: &mut Op<'_>, node: &Node, state: &mut NodeState, rest: &mut Range<u64>) -> Step<()> {
        let range = (rest.start, rest.end - rest.start);
        self.zero_edges(op, node, state, rest)?;
        loop {
            // Splitting an extent takes a block; freeing must work on a full volume all the same.
            let want = Want { data: 0, meta: 2 * tree_costs::NEW_BLOCKS, near: self.group(node.ino) };
            let space = op.space_if_any(want)?;
            let step =
                self.change_file(state, space, |file, txn, attr| file.punch_apply(txn, attr, range, STEP))?;
            self.file(node, state)?.punch_done(&step);
            self.trim_space(state);
            if !step.more {
                rest.end = rest.start;
                return Ok(());
            }
            rest.end = rest.end.min(step.pages.start * io::PAGE).max(rest.start);
        }
    }

    /// From the beginning on, `rest` as for [`Core::punch`].
    fn zero(&self, op: &mut Op<'_>, node: &Node, state: &mut NodeState, rest: &mut Range<u64>) -> Step<()> {
        let range = (rest.start, rest.end - rest.start);
        self.zero_edges(op, node, state, rest)?;
        loop {
            let space = Some(self.step_space(op, node)?);
            let step =
                self.change_file(state, space, |file, txn, attr| file.zero_apply(txn, attr, range, STEP))?;
            self.file(node, state)?.punch_done(&step);
            // What was dirty in the range is gone: its promises would keep groups here.
            self.trim_space(state);
            if !step.more {
                rest.start = rest.end;
                return Ok(());
            }
            rest.start = rest.start.max(step.pages.end * io::PAGE).min(rest.end);
        }
    }

    /// Fill the holes of a range with unwritten blocks. That changes no content, so another attempt does it all again:
    /// there may be new holes.
    fn preallocate(
        self: &Arc<Self>,
        op: &mut Op<'_>,
        node: &Arc<Node>,
        state: &mut NodeState,
        at: u64,
        len: u64,
    ) -> Step<()> {
        if let Some(plan) = self.file(node, state)?.plan_leave_inode(&*self.store)? {
            self.write_planned(op, node, state, plan, &[])?;
            self.flush_locked_in(op, node, state)?;
        }
        let mut rest = Some((at, len));
        while let Some(range) = rest {
            let mut plan = self.file(node, state)?.plan_allocate(&*self.store, range, HOLES, HOLE_BLOCKS)?;
            let need = plan.space();
            if need.data == 0 {
                rest = plan.rest;
                continue;
            }
            let mut space =
                op.space(Want { data: need.data, meta: need.meta, near: self.group(node.ino) })?;
            let pending =
                self.alloc.take_data(&mut space, need.data, plan.near().or(Some(node.ino.block())))?;
            plan.cut(pending.blocks(), range);
            rest = plan.rest;
            self.change_file(state, Some(space), |file, txn, attr| {
                file.allocate_apply(&plan, pending.runs(), txn, attr)?;
                txn.use_data(pending);
                Ok(())
            })?;
            self.file(node, state)?.allocate_done(plan);
            self.trim_space(state);
        }
        Ok(())
    }

    /// The same write without any space: what it needs of the preallocated blocks becomes written ones, with zeros. The
    /// gate is held alone.
    pub(super) fn zero_out(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &mut NodeState,
        write: WritePlan,
    ) -> Result<WritePlan> {
        // The size on the disk counts.
        self.flush_locked(node, state)?;
        let write = self.file(node, state)?.plan_again(&*self.store, &write)?;
        if write.need.is_zero() {
            return Ok(write);
        }
        let spans = self.file(node, state)?.plan_zero_out(&*self.store, &write)?;
        let zeros = AlignedBuf::new(ZEROS_BLOCKS as usize);
        for span in spans.ok_or(Error::NoSpace)? {
            let run = span.run().ok_or(Error::Invalid("a hole that was preallocated"))?;
            for at in (0..run.blocks).step_by(ZEROS_BLOCKS as usize) {
                let bytes = (run.blocks - at).min(ZEROS_BLOCKS) * io::PAGE;
                self.store.write_data(run.start.plus(at), &zeros.bytes()[..bytes as usize])?;
            }
            self.change_file(state, None, |file, txn, attr| file.zero_out_apply(&span, txn, attr))?;
            self.file(node, state)?.zero_out_done();
        }
        self.file(node, state)?.plan_again(&*self.store, &write)
    }

    /// Do `then` when what was `done` by a handle is durable, if it was opened so, and, if the mode may have `changed`,
    /// when the kernel has forgotten the old one.
    fn after_settling<T: Send + 'static>(
        self: &Arc<Self>,
        (ino, fh): (InodeNo, u64),
        changed: bool,
        done: Result<T>,
        then: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let core = self.clone();
        self.after_sync((ino, fh), done, move |done| match changed {
            true => core.after_dropping_attributes(ino, move || then(done)),
            false => then(done),
        });
    }
}

impl Fs {
    /// Allocate, punch or zero a range, offset and length. `mode` as of fallocate(2).
    pub fn fallocate(
        &self,
        caller: Caller,
        (node, fh): (NodeId, u64),
        (offset, length): (u64, u64),
        mode: i32,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        if !matches!(mode & !KEEP, 0 | PUNCH | ZERO) || (mode & PUNCH != 0 && mode & KEEP == 0) {
            return reply(Err(Error::Unsupported("this mode of fallocate")));
        }
        let Some(end) = offset.checked_add(length).filter(|e| length > 0 && *e <= i64::MAX as u64) else {
            return reply(Err(Error::FileTooLarge));
        };
        let ino = self.core.ino(node);
        let core = self.core.clone();
        let had_set_id = Arc::<AtomicBool>::default();
        let had = had_set_id.clone();
        // What is still to be punched or zeroed.
        let mut rest = offset..end;
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            let _alone = node.gate.write();
            let mut state = node.state.lock();
            core.check_writable()?;
            flags::may_write(core.load(&node, &mut state)?, mode & !KEEP == 0)?;
            core.finish_truncation(&node, &mut state)?;
            core.file(&node, &mut state)?;
            had.fetch_or(core.has_set_id(&node, &mut state)?, Ordering::AcqRel);
            core.drop_privileges(&node, &mut state, || SetId::AsFor(caller).stays())?;
            if mode & PUNCH != 0 {
                core.punch(op, &node, &mut state, &mut rest)?;
            } else {
                if mode & ZERO != 0 && !rest.is_empty() {
                    core.zero(op, &node, &mut state, &mut rest)?;
                }
                core.preallocate(op, &node, &mut state, offset, length)?;
                if mode & KEEP == 0 && end > core.file(&node, &mut state)?.size() {
                    core.grow(op, &node, &mut state, end)?;
                }
            }
            core.note_write(&node, &mut state);
            Ok(())
        };
        let reply = move |done: Result<()>| {
            let again = core.clone();
            core.after_settling((ino, fh), had_set_id.load(Ordering::Acquire), done, move |done| {
                reply(done);
                // The kernel drops its pages of the range itself, before the call; a reader may have
                // brought old ones back meanwhile.
                again.invalidate_later(ino, offset, length);
            });
        };
        op::run(&self.core, inode(ino, Mode::X), body, reply);
    }

    /// The next data (`data`) or hole at or behind `offset`.
    pub fn seek(
        &self,
        node: NodeId,
        offset: u64,
        data: bool,
        reply: impl FnOnce(Result<u64>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        let body = move |op: &mut Op<'_>| -> Step<u64> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            let mut state = node.state.lock();
            let file = core.file(&node, &mut state)?;
            Ok(match data {
                true => file.seek_data(&*core.store, offset)?,
                false => file.seek_hole(&*core.store, offset)?,
            })
        };
        let core = self.core.clone();
        let look = move || op::run(&core, inode(ino, Mode::S), body, reply);
        // What programs have stored through mappings the kernel does not write back before it asks, and it would be
        // passed over as a hole: by whoever copies the file, for one.
        match self.core.nodes.get(ino).has_writers() {
            true => self.core.after_invalidating(ino, offset, 0, look),
            false => look(),
        }
    }

    /// Copy bytes between files; answers with how many, fewer than asked for where that suits.
    pub fn copy_file_range(
        &self,
        caller: Caller,
        (from, from_offset): (NodeId, u64),
        (to, fh, to_offset): (NodeId, u64, u64),
        length: u64,
        reply: impl FnOnce(Result<u32>) + Send + 'static,
    ) {
        let (from, to) = (self.core.ino(from), self.core.ino(to));
        let mut locks = inode(from, Mode::S);
        locks.add(LockName::Inode(to), Mode::X);
        let core = self.core.clone();
        let had_set_id = Arc::<AtomicBool>::default();
        let had = had_set_id.clone();
        let body = move |op: &mut Op<'_>| -> Step<u32> {
            let core = op.core.clone();
            let bytes = {
                let node = core.nodes.get(from);
                let _io = node.gate.read();
                let mut state = node.state.lock();
                let plan = core.file(&node, &mut state)?.plan_read(
                    &*core.store,
                    from_offset,
                    length.min(COPY_MAX) as usize,
                )?;
                drop(state);
                plan.read(&core.pool, &*core.store)?
            };
            if !bytes.is_empty() {
                let node = core.nodes.get(to);
                had.fetch_or(core.has_set_id(&node, &mut node.state.lock())?, Ordering::AcqRel);
                core.write_data(op, to, to_offset, &bytes, io::How::copy(caller))?;
            }
            Ok(bytes.len() as u32)
        };
        let reply = move |done: Result<u32>| {
            let again = core.clone();
            core.after_settling((to, fh), had_set_id.load(Ordering::Acquire), done, move |done| {
                reply(done);
                again.invalidate_later(to, to_offset, length.min(COPY_MAX));
            });
        };
        let (pool, core) = (&self.core.pool, self.core.clone());
        let run = move || op::run(&core, locks, body, reply);
        if pool.dirty_bytes() < pool.limit() {
            return run();
        }
        // It reads as well, which is not to hold up the writes that wait behind it.
        self.core.run_with_room(None, move || spawn::spawn("copy", run));
    }
}
