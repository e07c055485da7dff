//! read, write, fsync, and how their requests behave while the inode's lock is being taken away.
//!
//! A READ or WRITE that waits for a lock holds page locks in the kernel; a demotion must not wait
//! for those (`coherence`). So such a request is listed in its node as *parked* while it waits.
//! Laundering writes and setattr never wait behind a demotion that may wait for them: while the
//! lock is still held they are served under it.

use super::*;
use node::ParkedRange;
use op::{Body, Reply};

pub(super) const PAGE: u64 = 4096;
/// How long a writer waits for dirty data to be written before it goes on regardless.
const THROTTLE_MAX: Duration = Duration::from_secs(30);

/// What a write is like, from the flags of its file.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// At the true end.
    append: bool,
    /// Durable before it is answered; true: only the data.
    sync: Option<bool>,
    /// Not through dirty pages, where that can be.
    direct: bool,
    /// Set-id bits stay.
    keep_set_id: bool,
    /// A program's write, not that of pages which were written to long before.
    fresh: bool,
}

impl How {
    /// A copy inside the filesystem.
    pub const COPY: How = How { append: false, sync: None, direct: false, keep_set_id: true, fresh: true };

    fn new(flags: WriteFlags) -> How {
        let any = |bits: i32| flags.open & bits != 0 && !flags.from_cache;
        How {
            append: any(libc::O_APPEND),
            // O_SYNC contains O_DSYNC.
            sync: any(libc::O_DSYNC).then_some(flags.open & libc::O_SYNC != libc::O_SYNC),
            direct: any(libc::O_DIRECT),
            keep_set_id: !flags.kill_set_id,
            fresh: !flags.from_cache,
        }
    }
}

/// What the kernel must drop before it hears that a write is done.
enum Forget {
    Nothing,
    Attributes,
    /// The pages written, from here on, and the attributes.
    From(u64),
}

/// Removes the entry when the request goes on.
struct Parked {
    node: Arc<Node>,
    id: u64,
}

impl Parked {
    fn new(core: &Core, ino: InodeNo, (start, end): (u64, u64)) -> Parked {
        let (node, id) = (core.nodes.get(ino), core.id());
        node.parked.lock().push(ParkedRange { id, start, end });
        Parked { node, id }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.node.parked.lock().retain(|r| r.id != self.id);
    }
}

impl Fs {
    /// Like `op::run` on one inode, but served under a lock that is being taken away, as long as it
    /// is still held: for requests that the demotion itself may be waiting for.
    pub(super) fn run_serving<T: 'static>(
        &self,
        ino: InodeNo,
        mode: Mode,
        mut body: Body<T>,
        reply: Reply<T>,
    ) {
        let core = &self.core;
        if let Some(pins) = core.locks.try_pin_revoked(LockName::Inode(ino), mode) {
            let outcome = op::attempt(core, &inode(ino, mode), &mut *body);
            drop(pins);
            match outcome {
                Ok(value) => return reply(Ok(value)),
                Err(Stop::Fail(e)) => return reply(Err(e)),
                Err(_) => {}
            }
        }
        op::run(core, inode(ino, mode), body, reply);
    }

    /// `op::run` for a request that keeps the pages of `range` locked while it waits.
    fn run_parkable<T: 'static>(
        &self,
        ino: InodeNo,
        mode: Mode,
        range: (u64, u64),
        mut body: Body<T>,
        reply: Reply<T>,
    ) {
        let core = &self.core;
        let locks = inode(ino, mode);
        if let Some(pins) = core.locks.try_pin(&locks) {
            match op::attempt(core, &locks, &mut *body) {
                Ok(value) => {
                    reply(Ok(value));
                    return drop(pins);
                }
                Err(Stop::Fail(e)) => return reply(Err(e)),
                Err(_) => drop(pins),
            }
        }
        let mut parked = Some(Parked::new(core, ino, range));
        let body = move |op: &mut Op<'_>| -> Step<T> {
            let outcome = body(op);
            if matches!(outcome, Ok(_) | Err(Stop::Fail(_))) {
                drop(parked.take());
            }
            outcome
        };
        op::run(core, locks, Box::new(body), reply);
    }

    /// Read up to `size` bytes.
    pub fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: u32,
        flags: ReadFlags,
        reply: impl FnOnce(Result<DataBuf>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        if flags.fills_cache {
            // Before anything is read: see `forget_written`.
            self.core.nodes.get(ino).filled.store(true, Ordering::Release);
        }
        // A store into a shared mapping never asks: pages of a file open for writing are filled under X.
        let writable = self.core.nodes.get(ino).has_writers();
        let mode = if writable { Mode::X } else { Mode::S };
        let body = move |op: &mut Op<'_>| -> Step<DataBuf> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            if node.has_writers() {
                op.need_inode(ino, Mode::X)?;
            }
            let _io = node.gate.read();
            let plan = {
                let mut state = node.state.lock();
                core.file(&node, &mut state)?.plan_read(&*core.store, offset, size as usize)?
            };
            Ok(plan.read(&core.pool, &*core.store)?)
        };
        let end = offset.saturating_add(size.into());
        self.run_parkable(ino, mode, (offset, end), Box::new(body), Box::new(reply));
    }

    /// Write `data`; with O_APPEND at the true end, whatever `offset` is.
    pub fn write(
        &self,
        node: NodeId,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: impl FnOnce(Result<u32>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        let core = self.core.clone();
        if !flags.from_cache && core.pool.dirty_bytes() >= core.pool.limit() {
            core.writeback.flush_all_soon();
            core.pool.wait_for_room(THROTTLE_MAX);
        }
        let length = data.len() as u64;
        let how = How::new(flags);
        let held = how.append.then(|| core.held_append(ino, fh, offset)).flatten();
        let waited = !core.locks.mode(LockName::Inode(ino)).covers(Mode::X);
        let reply = move |done: Result<(u32, Forget)>| {
            let durable = match how.sync {
                Some(data_only) if done.is_ok() => core.sync_node(ino, data_only),
                _ => Ok(()),
            };
            match durable.and(done) {
                Ok((written, Forget::Attributes)) => {
                    core.after_dropping_attributes(ino, move || reply(Ok(written)));
                }
                Ok((written, Forget::From(at))) => {
                    return core.after_invalidating(ino, at, length, move || reply(Ok(written)));
                }
                other => reply(other.map(|(written, _)| written)),
            }
            // Made appending after it was opened: the kernel has put the data into pages, maybe the wrong
            // ones, and keeps one locked until it has the answer.
            if waited || (how.append && !flags.past_cache) {
                core.invalidate_later(ino, offset, length);
            }
        };
        let once = move |op: &mut Op<'_>, data: &[u8]| -> Step<(u32, Forget)> {
            let core = op.core.clone();
            let (at, mode_changed) = core.write_data(op, ino, offset, data, how)?;
            if how.append {
                core.hold_append(ino, fh, offset, data.len());
            }
            let forget = match (flags.past_cache, mode_changed) {
                (true, _) => core.forget_written(ino, at, mode_changed),
                (false, true) => Forget::Attributes,
                (false, false) => Forget::Nothing,
            };
            Ok((data.len() as u32, forget))
        };
        let reply = match held {
            None => self.write_at_once(ino, flags, &mut |op| once(op, data), reply),
            Some(_) => Some(reply),
        };
        let Some(reply) = reply else { return };
        let data = data.to_vec();
        let body = move |op: &mut Op<'_>| once(op, &data);
        if let Some(held) = held {
            return self.run_held(held, inode(ino, Mode::X), Box::new(body), Box::new(reply));
        }
        if flags.from_cache {
            return self.run_serving(ino, Mode::X, Box::new(body), Box::new(reply));
        }
        // Of a waiting WRITE only the last page can be locked, and only if it is written in part.
        let last = (offset + length).saturating_sub(1) / PAGE * PAGE;
        self.run_parkable(ino, Mode::X, (last, last + PAGE), Box::new(body), Box::new(reply));
    }

    /// The write out of the request's own memory, if nothing has to be waited for. Gives `reply` back
    /// if something must.
    fn write_at_once<T, R: FnOnce(Result<T>)>(
        &self,
        ino: InodeNo,
        flags: WriteFlags,
        body: &mut dyn FnMut(&mut Op<'_>) -> Step<T>,
        reply: R,
    ) -> Option<R> {
        let core = &self.core;
        let locks = inode(ino, Mode::X);
        let pins = match flags.from_cache {
            true => core.locks.try_pin_revoked(LockName::Inode(ino), Mode::X),
            false => core.locks.try_pin(&locks),
        };
        let Some(pins) = pins else { return Some(reply) };
        match op::attempt(core, &locks, body) {
            Ok(value) => reply(Ok(value)),
            Err(Stop::Fail(e)) => reply(Err(e)),
            Err(_) => return Some(reply),
        }
        drop(pins);
        None
    }

    /// Close of a descriptor: tells an error of write-back that nobody has heard yet.
    pub fn flush(&self, node: NodeId, reply: impl FnOnce(Result<()>) + Send + 'static) {
        let error = match self.core.nodes.find(self.core.ino(node)) {
            Some(node) => {
                drop(node.append.lock().take());
                node.state.lock().write_error.take()
            }
            None => None,
        };
        reply(error.map_or(Ok(()), Err));
    }

    /// Make an inode's data durable, and unless `data_only` its attributes as well.
    pub fn fsync(&self, node: NodeId, data_only: bool, reply: impl FnOnce(Result<()>) + Send + 'static) {
        let ino = self.core.ino(node);
        let core = self.core.clone();
        let clean = {
            let node = core.nodes.get(ino);
            let state = node.state.lock();
            state.is_clean() || (data_only && !state.is_data_dirty())
        };
        if clean {
            return reply(core.commit_node(ino));
        }
        // Dirty implies that X is held, perhaps only just: a demotion would flush as well.
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let node = op.core.nodes.get(ino);
            Ok(if data_only { op.core.flush_data(&node)? } else { op.core.flush_node(&node)? })
        };
        let finish = move |flushed: Result<()>| reply(flushed.and_then(|()| core.commit_node(ino)));
        op::run(&self.core, inode(ino, Mode::X), Box::new(body), Box::new(finish));
    }
}

impl Core {
    /// Flush and commit an inode whose lock is pinned X.
    fn sync_node(self: &Arc<Self>, ino: InodeNo, data_only: bool) -> Result<()> {
        let node = self.nodes.get(ino);
        if data_only {
            self.flush_data(&node)?;
        } else {
            self.flush_node(&node)?;
        }
        self.commit_node(ino)
    }

    /// Wait for what changed the inode to be durable; everything of it has been flushed.
    fn commit_node(&self, ino: InodeNo) -> Result<()> {
        let node = self.nodes.get(ino);
        let (last, data, error) = {
            let mut state = node.state.lock();
            (state.last_txn, state.data_txn, state.write_error.take())
        };
        if self.journal.durable() < last {
            self.journal.commit(last)?;
        }
        // A commit flushes what was written before it was sealed; without one, that is done here.
        if self.journal.durable() < data {
            self.store.flush_since(self.store.flush_mark())?;
        }
        error.map_or(Ok(()), Err)
    }

    /// The kernel drops its pages before a write past them, but a reader may have brought some back with
    /// the old bytes, and not always are they dropped once more behind it (asynchronous ones, appends).
    fn forget_written(&self, ino: InodeNo, at: u64, mode_changed: bool) -> Forget {
        match (self.nodes.get(ino).filled.load(Ordering::Acquire), mode_changed) {
            (true, _) => Forget::From(at),
            (false, true) => Forget::Attributes,
            (false, false) => Forget::Nothing,
        }
    }

    /// The write itself. The inode is pinned X. Answers with where the data went, and whether set-id
    /// bits did.
    pub(super) fn write_data(
        self: &Arc<Self>,
        op: &mut Op<'_>,
        ino: InodeNo,
        offset: u64,
        data: &[u8],
        how: How,
    ) -> Step<(u64, bool)> {
        self.check_writable()?;
        let node = self.nodes.get(ino);
        let _io = node.gate.read();
        let mut state = node.state.lock();
        let state = &mut *state;
        self.finish_truncation(&node, state)?;
        self.file(&node, state)?;
        let mode_changed = how.fresh && self.drop_privileges(&node, state, || how.keep_set_id)?;
        let file = self.file(&node, state)?;
        let offset = if how.append { file.size() } else { offset };
        if how.direct
            && let Some(plan) = file.plan_direct(&*self.store, offset, data.len())?
        {
            self.note_write(&node, state);
            plan.write(&*self.store, data)?;
            state.data_txn = self.journal.running();
            return Ok((offset, mode_changed));
        }
        let plan = file.plan_write(&*self.store, offset, data.len() as u64)?;
        self.write_planned(op, &node, state, plan, data)?;
        self.note_write(&node, state);
        if how.direct {
            self.flush_locked(&node, state)?;
        } else if self.file(&node, state)?.dirty_bytes() >= writeback::FILE_DIRTY_MAX {
            self.writeback.flush_soon(ino);
        }
        Ok((offset, mode_changed))
    }

    /// A write changes the times.
    pub(super) fn note_write(&self, node: &Node, state: &mut NodeState) {
        let now = self.now();
        if let Some(attr) = &mut state.attr {
            touch(attr, now);
            state.attr_dirty = true;
            state.dirty_since.get_or_insert(self.clock.now());
        }
        self.writeback.dirtied(node.ino);
    }
}
