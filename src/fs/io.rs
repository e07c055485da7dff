//! read, write. `serving` says how they wait for the inode's lock.

use super::*;
use append::Held;
use flight::{Flight, Part};
use op::{Body, Manner, Patience};
use privileges::SetId;
use serving::Late;
use std::sync::atomic::AtomicBool;

pub(super) const PAGE: u64 = 4096;

/// What a write is like, from the flags of its file.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// At the true end.
    append: bool,
    /// Durable before it is answered; true: only the data.
    sync: Option<bool>,
    /// Not through dirty pages, where that can be.
    direct: bool,
    set_id: SetId,
    /// A program's write, not that of pages which were written to long before.
    fresh: bool,
    /// Past the kernel's pages: the number of its flight.
    past_pages: Option<u64>,
}

impl How {
    /// A copy inside the filesystem.
    pub fn copy(caller: Caller) -> How {
        How {
            append: false,
            sync: None,
            direct: false,
            set_id: SetId::AsFor(caller),
            fresh: true,
            past_pages: None,
        }
    }

    fn new(flags: WriteFlags) -> How {
        let any = |bits: i32| flags.open & bits != 0 && !flags.from_cache;
        How {
            append: any(libc::O_APPEND),
            // O_SYNC contains O_DSYNC.
            sync: any(libc::O_DSYNC).then_some(flags.open & libc::O_SYNC != libc::O_SYNC),
            direct: any(libc::O_DIRECT),
            set_id: if flags.kill_set_id { SetId::Goes } else { SetId::Stays },
            fresh: !flags.from_cache,
            past_pages: None,
        }
    }
}

/// What the kernel must drop before it hears that a write is done.
enum Forget {
    Nothing,
    Attributes,
    /// The pages written, from here on, and the attributes: the kernel drops its pages before a write past
    /// them, but a reader may have brought some back with the old bytes, and not always are they dropped
    /// once more behind it (asynchronous ones, appends).
    From(u64),
}

/// One WRITE.
#[derive(Clone, Copy)]
struct Write {
    ino: InodeNo,
    fh: u64,
    offset: u64,
    length: u64,
    how: How,
    /// The kernel has put the data into its pages. An appending write was made so after it was opened:
    /// then they are maybe the wrong ones, and one is kept locked until the answer.
    through_cache: bool,
    /// Who makes it, as requests show that.
    thread: u32,
}

impl Write {
    /// Of a waiting WRITE only the last page can be locked, and only if it is written in part.
    fn parks(&self) -> Option<node::Pages> {
        let last = (self.offset + self.length).saturating_sub(1) / PAGE * PAGE;
        self.through_cache.then_some(node::Pages { start: last, end: last + PAGE, locked: false })
    }

    fn part(&self) -> Part {
        Part { thread: self.thread, offset: self.offset, length: self.length }
    }

    /// May other hosts write the file directly at the same time, as far as this can be seen from the request?
    fn may_share(&self) -> bool {
        let whole = self.offset.is_multiple_of(PAGE) && self.length.is_multiple_of(PAGE);
        self.how.direct && self.how.fresh && !self.how.append && !self.through_cache && whole
    }

    /// The write itself; it may have to be started again.
    fn run(&self, op: &mut Op<'_>, data: &[u8]) -> Step<(u32, Forget)> {
        let core = op.core.clone();
        let Write { ino, fh, offset, how, through_cache, .. } = *self;
        if op.is_shared(ino) {
            core.write_shared(op, ino, offset, data, how.set_id.stays())?;
            return Ok((data.len() as u32, Forget::Nothing));
        }
        let (at, mode_changed) = core.write_data(op, ino, offset, data, how)?;
        if how.append {
            core.hold_append(ino, fh, offset, self.length);
        }
        if how.fresh && through_cache {
            // The kernel takes a page written as a whole for one that it has read.
            core.nodes.get(ino).fills(offset.next_multiple_of(PAGE), (offset + self.length) / PAGE * PAGE);
        }
        let forget = match (through_cache || !how.fresh, mode_changed) {
            (false, _) if core.nodes.get(ino).may_show(at, at + data.len() as u64) => Forget::From(at),
            (_, true) => Forget::Attributes,
            _ => Forget::Nothing,
        };
        Ok((data.len() as u32, forget))
    }

    /// Tell the kernel when it has dropped what is not current any more, or will.
    fn answer(
        &self,
        core: &Arc<Core>,
        (waited, flight): (bool, Flight),
        done: Result<(u32, Forget)>,
        reply: impl FnOnce(Result<u32>) + Send + 'static,
    ) {
        let Write { ino, fh, how, .. } = *self;
        let durable = match how.sync {
            Some(data_only) if done.is_ok() => core.sync_node(ino, fh, data_only),
            _ => Ok(()),
        };
        let (write, again) = (*self, core.clone());
        let told = move |durable: Result<()>| write.tell(&again, (waited, flight), durable.and(done), reply);
        match durable {
            // The lock is pinned here: nothing may be waited for.
            Err(Error::NeedSpace) => core.fsync_dirty(ino, fh, how.sync == Some(true), told),
            durable => told(durable),
        }
    }

    fn tell(
        &self,
        core: &Arc<Core>,
        (waited, flight): (bool, Flight),
        done: Result<(u32, Forget)>,
        reply: impl FnOnce(Result<u32>) + Send + 'static,
    ) {
        let Write { ino, offset, length, how, through_cache, .. } = *self;
        let part = self.part();
        // Of one past the pages the size is told with the answer.
        let (crossed, unseen) = if through_cache { (flight.end(), None) } else { (None, Some(flight)) };
        let again = core.clone();
        let reply = move |done| {
            again.after_telling(ino, move || {
                unseen.into_iter().for_each(|flight| flight.answer(part));
                reply(done)
            })
        };
        match (done, crossed) {
            (Ok((written, Forget::Attributes | Forget::Nothing)), Some(pages)) => {
                let length = pages.end - pages.start;
                core.after_invalidating(ino, pages.start, length, move || reply(Ok(written)));
            }
            (Ok((written, Forget::Attributes)), None) => {
                core.after_dropping_attributes(ino, move || reply(Ok(written)));
            }
            (Ok((written, Forget::From(at))), _) => {
                return core.after_invalidating(ino, at, length, move || reply(Ok(written)));
            }
            (other, _) => reply(other.map(|(written, _)| written)),
        }
        if through_cache && (waited || how.append) {
            core.invalidate_later(ino, offset, length);
        }
    }
}

impl Fs {
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
        let end = offset.saturating_add(size.into());
        // A store into a shared mapping never asks: pages of a file open for writing are filled under X.
        let writable = self.core.nodes.get(ino).has_writers();
        let mode = if writable { Mode::X } else { Mode::S };
        let mode = if flags.fills_cache { mode } else { self.core.direct_mode(ino, mode) };
        let body = move |op: &mut Op<'_>| -> Step<DataBuf> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            if node.has_writers() && !op.is_shared(ino) {
                op.need_inode(ino, Mode::X)?;
            }
            let _io = node.gate.read();
            let plan = {
                let mut state = node.state.lock();
                if flags.fills_cache {
                    node.fills(offset, end);
                    node.flights.cross(offset..end);
                }
                core.file(&node, &mut state)?.plan_read(&*core.store, offset, size as usize)?
            };
            Ok(plan.read(&core.pool, &*core.store)?)
        };
        // The pages that wait for their content are locked; a read past the cache has none.
        if flags.fills_cache {
            let pages = node::Pages { start: offset, end, locked: true };
            return size::run_told(&self.core, ino, mode, Some(pages), Box::new(body), Box::new(reply));
        }
        serving::run_parkable(&self.core, ino, mode, None, Box::new(body), Box::new(reply));
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
        let core = &self.core;
        let ino = core.ino(node);
        let mut write = Write {
            ino,
            fh,
            offset,
            length: data.len() as u64,
            how: How::new(flags),
            through_cache: !flags.past_cache,
            thread: flags.thread,
        };
        if flags.from_cache {
            return self.launder(write, data, reply);
        }
        let (node, id) = (core.nodes.get(ino), core.id());
        let flight = match write.through_cache {
            true => Flight::begin(node, id, offset..offset + write.length),
            false => Flight::begin_past_pages(node, id, write.part()),
        };
        write.how.past_pages = flags.past_cache.then_some(id);
        let held = write.how.append.then(|| core.held_append(ino, fh, offset)).flatten();
        if core.pool.dirty_bytes() < core.pool.limit() {
            return self.write_now(write, data, (false, flight), held, reply);
        }
        let (fs, data) = (self.clone(), data.to_vec());
        if held.is_some() {
            // Others would get in between while it waited with the rest.
            return spawn::spawn("append", move || {
                let node = fs.core.nodes.get(ino);
                // An error is the file's, and has been noted.
                let _ = fs.core.flush_data(&node);
                fs.write_now(write, &data, (true, flight), held, reply);
            });
        }
        let parked = write.parks().map(|pages| serving::Parked::new(core, ino, pages));
        core.run_with_room(parked, move || fs.write_now(write, &data, (true, flight), None, reply));
    }

    /// Dirty pages of a mapping: nothing that a demotion does comes before them.
    fn launder(&self, write: Write, data: &[u8], reply: impl FnOnce(Result<u32>) + Send + 'static) {
        let late = Late::Pages(write.offset, write.offset + write.length);
        let reply = |done: Result<(u32, Forget)>| reply(done.map(|(written, _)| written));
        let pins = serving::pin_late(&self.core, write.ino, late);
        let Some(reply) = self.write_at_once((Mode::X, pins), write, data, reply) else { return };
        let (core, data) = (self.core.clone(), data.to_vec());
        let body = move |op: &mut Op<'_>| write.run(op, &data);
        let go = move || serving::run_late(&core, write.ino, late, Box::new(body), Box::new(reply));
        match self.core.store.permit().lease_left().is_zero() {
            // For as long as the lease may be renewed, and this thread has others to serve.
            true => spawn::spawn("launder", go),
            false => go(),
        }
    }

    /// A program's write, now that there is room for it; perhaps it `waited` for that. `held`: the lock was kept for it.
    fn write_now(
        &self,
        write: Write,
        data: &[u8],
        (waited, flight): (bool, Flight),
        held: Option<Held>,
        reply: impl FnOnce(Result<u32>) + Send + 'static,
    ) {
        let ino = write.ino;
        let core = self.core.clone();
        let mode = if write.may_share() { core.direct_mode(ino, Mode::X) } else { Mode::X };
        let waited = Arc::new(AtomicBool::new(waited));
        let waits = waited.clone();
        let reply = move |done| write.answer(&core, (waited.load(Ordering::Acquire), flight), done, reply);
        let reply = match held {
            None => {
                let pins = self.core.locks.try_pin(&inode(ino, mode));
                self.write_at_once((mode, pins), write, data, reply)
            }
            Some(_) => Some(reply),
        };
        let Some(reply) = reply else { return };
        let data = data.to_vec();
        let mut body: Body<_> = Box::new(move |op: &mut Op<'_>| write.run(op, &data));
        let mut reply: op::Reply<_> = Box::new(reply);
        if let Some(held) = held {
            match self.run_held(held, inode(ino, Mode::X), body, reply) {
                Some(rest) => (body, reply) = rest,
                None => return,
            }
        }
        // While it waits, another host may change what a page shows that an invalidation goes around.
        waits.store(true, Ordering::Release);
        serving::run_parkable(&self.core, ino, mode, write.parks(), body, reply);
    }

    /// The write out of the request's own memory, if nothing has to be waited for. Gives `reply` back
    /// if something must.
    fn write_at_once<R: FnOnce(Result<(u32, Forget)>)>(
        &self,
        (mode, pins): (Mode, Option<crate::lock::Pins>),
        write: Write,
        data: &[u8],
        reply: R,
    ) -> Option<R> {
        let Some(pins) = pins else { return Some(reply) };
        let locks = inode(write.ino, mode);
        let patience = if write.how.fresh { Patience::Minute } else { Patience::Nothing };
        let manner = Manner { full: false, patience };
        match op::attempt_with(manner, &self.core, &locks, &mut None, &mut |op| write.run(op, data)) {
            Ok(value) => reply(Ok(value)),
            Err(Stop::Fail(e)) => reply(Err(e)),
            Err(_) => return Some(reply),
        }
        drop(pins);
        None
    }
}

impl Core {
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
        let node = self.nodes.get(ino);
        {
            let _io = node.gate.read();
            if let Some(done) = self.write_gated(op, &node, (offset, data), how, false)? {
                return Ok(done);
            }
        }
        let _alone = node.gate.write();
        let done = self.write_gated(op, &node, (offset, data), how, true)?;
        Ok(done.expect("no direct write is under way"))
    }

    /// `None`: a write through dirty pages that must wait until direct ones are done. Those go to the device without
    /// the state: a block that is read in the meantime, for the bytes beside those that are written here, would undo
    /// them when it is flushed. Or one on a full volume, which flushes must not be beside. `alone`: there are none of
    /// either, the gate is held alone.
    fn write_gated(
        self: &Arc<Self>,
        op: &mut Op<'_>,
        node: &Arc<Node>,
        (offset, data): (u64, &[u8]),
        how: How,
        alone: bool,
    ) -> Step<Option<(u64, bool)>> {
        self.check_writable()?;
        let mut guard = node.state.lock();
        let state = &mut *guard;
        self.finish_truncation(node, state)?;
        if how.fresh {
            flags::may_write(self.load(node, state)?, how.append)?;
        }
        let file = self.file(node, state)?;
        let offset = if how.append { file.size() } else { offset };
        let direct = match how.direct {
            true => file.plan_direct(&*self.store, offset, data.len())?,
            false => None,
        };
        if direct.is_none() && !alone && (op.is_full() || node.overwrites.load(Ordering::Acquire) > 0) {
            return Ok(None);
        }
        let mode_changed = how.fresh && self.drop_privileges(node, state, || how.set_id.stays())?;
        let Some(direct) = direct else {
            let before = self.file(node, state)?.size();
            self.write_pages(op, node, state, (offset, data), how.direct)?;
            if let Some(id) = how.past_pages {
                node.flights.grows(id, before, self.file(node, state)?.size());
            }
            return Ok(Some((offset, mode_changed)));
        };
        self.note_write(node, state);
        let _under_way = node.overwrites();
        drop(guard);
        direct.write(&*self.store, data)?;
        // Now: a transaction that was sealed meanwhile has been flushed too early.
        node.state.lock().data_txn = self.journal.running();
        Ok(Some((offset, mode_changed)))
    }

    /// A write into dirty pages, which are written at once if it was to be `direct`.
    fn write_pages(
        self: &Arc<Self>,
        op: &mut Op<'_>,
        node: &Arc<Node>,
        state: &mut NodeState,
        (offset, data): (u64, &[u8]),
        direct: bool,
    ) -> Step<()> {
        let plan = self.file(node, state)?.plan_write(&*self.store, offset, data.len() as u64)?;
        self.write_planned(op, node, state, plan, data)?;
        self.note_write(node, state);
        if direct {
            match self.flush_locked(node, state) {
                // It is written, as it were by a program that does not mind the cache.
                Err(Error::NeedSpace) => self.writeback.flush_soon(node.ino),
                other => other?,
            }
        } else if self.file(node, state)?.dirty_bytes() >= writeback::FILE_DIRTY_MAX {
            self.writeback.flush_soon(node.ino);
        }
        Ok(())
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
