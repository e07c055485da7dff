//! Open files and directories: open, opendir, release.

use super::*;
use crate::lock::Pins;
use crate::store::BlockHash;
use filelocks::LastClose;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use write_errors::Heard;

/// How a file was opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenFlags {
    pub write: bool,
    pub append: bool,
    /// What changes the file is durable before it is answered; true: only the data.
    pub sync: Option<bool>,
}

impl OpenFlags {
    /// From the flags of open(2).
    pub fn new(flags: i32) -> OpenFlags {
        OpenFlags {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            append: flags & libc::O_APPEND != 0,
            // O_SYNC contains O_DSYNC.
            sync: (flags & libc::O_DSYNC != 0).then_some(flags & libc::O_SYNC != libc::O_SYNC),
        }
    }
}

/// One open file or directory.
pub struct Handle {
    pub node: Arc<Node>,
    pub write: bool,
    /// The kernel's page cache is not used.
    pub direct: bool,
    /// As of [`OpenFlags`], for requests that do not bear the flags. No fcntl(2) changes these.
    pub sync: Option<bool>,
    /// Which errors of write-back are old, or told.
    pub heard: Heard,
    /// When a descriptor of it was last closed.
    pub closed: LastClose,
    /// Of a directory: only keeps the node in memory.
    pub dir: bool,
}

impl Handle {
    /// To read, of a file of which so many errors of write-back are old.
    fn new(node: Arc<Node>, old_errors: u64) -> Handle {
        Handle {
            node,
            write: false,
            direct: false,
            sync: None,
            heard: Heard::new(old_errors),
            closed: LastClose::default(),
            dir: false,
        }
    }
}

/// All handles of a mount.
#[derive(Default)]
pub struct Handles {
    table: RwLock<HashMap<u64, Arc<Handle>, BlockHash>>,
    /// The kernel is gone: it will close nothing any more.
    closed: AtomicBool,
}

impl Handles {
    fn add(&self, fh: u64, handle: Handle) {
        self.table.write().insert(fh, Arc::new(handle));
    }

    fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.table.write().remove(&fh)
    }

    /// The handle behind a number.
    pub fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        self.table.read().get(&fh).cloned()
    }

    fn all(&self) -> Vec<u64> {
        self.table.read().keys().copied().collect()
    }
}

impl Core {
    /// Open an inode whose lock is pinned; takes its iopen lock for as long as a handle is open.
    /// `iopen`: that lock, if the caller has just made the file, and pinned it apart before.
    pub(super) fn open_handle(
        &self,
        op: &mut Op<'_>,
        node: Arc<Node>,
        flags: OpenFlags,
        iopen: Option<Pins>,
    ) -> Step<OpenReply> {
        let fresh_file = iopen.is_some();
        let mut held = node.iopen.lock();
        let fresh = match (&*held, iopen) {
            (Some(_), _) => None,
            (None, Some(pins)) => Some(pins),
            (None, None) => Some(op.pin_apart(LockName::IOpen(node.ino), Mode::S)?),
        };
        let mut state = node.state.lock();
        let attr = match fresh_file {
            true => self.load_named(&node, &mut state)?,
            false => self.load(&node, &mut state)?,
        };
        let nameless = fresh_file && node.nameless.load(Ordering::Acquire);
        if attr.nlink == 0 && !nameless && node.opens.load(Ordering::Acquire) == 0 {
            return Err(Error::Stale.into());
        }
        if flags.write && !fresh_file {
            flags::may_write(attr, flags.append)?;
        }
        let old = state.write_errors.before_open();
        drop(state);
        if fresh.is_some() {
            *held = fresh;
        }
        node.opens.fetch_add(1, Ordering::AcqRel);
        if flags.write {
            node.writers.fetch_add(1, Ordering::AcqRel);
        }
        drop(held);
        let keep_cache = !node.stale_pages.swap(false, Ordering::AcqRel);
        // The kernel places appends by its cached size, which another host may have outgrown.
        // (O_DIRECT needs no help: the kernel drops its pages before and after such a write.)
        let direct_io = flags.append;
        let fh = self.id();
        let sync = flags.sync.or(self.synchronous.then_some(false));
        let handle = Handle { write: flags.write, direct: direct_io, sync, ..Handle::new(node, old) };
        self.handles.add(fh, handle);
        // The kernel was cut off while this waited: nobody will ever close it.
        if self.handles.closed.load(Ordering::SeqCst) {
            self.close(fh);
            return Err(Error::Busy("the mount is ending".into()).into());
        }
        Ok(OpenReply { fh, direct_io, keep_cache, parallel_direct: false, cache_dir: false })
    }

    fn close(&self, fh: u64) {
        let Some(handle) = self.handles.remove(fh) else { return };
        let node = &handle.node;
        if handle.write {
            node.writers.fetch_sub(1, Ordering::AcqRel);
        }
        let mut held = node.iopen.lock();
        if handle.dir || node.opens.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        *held = None;
        node.nameless.store(false, Ordering::Release);
        drop(held);
        let dead = node.state.lock().attr.as_ref().is_some_and(|a| a.nlink == 0);
        if dead {
            self.reaper.push(node.ino);
        }
    }

    /// The kernel is gone: close what it has left open. It sends RELEASE without waiting for the
    /// answer, and unmounting throws away requests that nobody has read yet.
    pub(super) fn close_all(&self) {
        self.handles.closed.store(true, Ordering::SeqCst);
        self.handles.all().into_iter().for_each(|fh| self.close(fh));
    }
}

impl Fs {
    /// Open a file.
    pub fn open(&self, node: NodeId, flags: i32, reply: impl FnOnce(Result<OpenReply>) + Send + 'static) {
        let ino = self.core.ino(node);
        let flags = OpenFlags::new(flags);
        if flags.write && self.core.is_read_only() {
            return reply(Err(Error::ReadOnly));
        }
        // For writing under X: pages that an earlier reader left in the kernel's cache are then known
        // to be current, and a store into a shared mapping of them needs no asking.
        let mode = if flags.write { Mode::X } else { Mode::S };
        let body = move |op: &mut Op<'_>| -> Step<OpenReply> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            core.open_handle(op, node, flags, None)
        };
        op::run(&self.core, inode(ino, mode), body, reply);
    }

    /// Close a file's last reference to a handle.
    pub fn release(&self, fh: u64) {
        self.core.close(fh);
    }

    /// Close of a descriptor: tells an error of write-back that none before has told.
    pub fn flush(&self, node: NodeId, fh: u64, reply: impl FnOnce(Result<()>) + Send + 'static) {
        let Some(node) = self.core.nodes.find(self.core.ino(node)) else { return reply(Ok(())) };
        drop(node.append.lock().take());
        let handle = self.core.handles.get(fh);
        handle.iter().for_each(|handle| self.core.note_close(handle));
        // A reader would keep it from those whom it concerns.
        let writer = handle.filter(|handle| handle.write);
        let tell = |handle: &Handle| node.state.lock().write_errors.tell_at_close(&handle.heard);
        reply(writer.map_or(Ok(()), |handle| tell(&handle)));
    }

    /// Open a directory. Its handle only keeps the node in memory.
    pub fn opendir(&self, node: NodeId, reply: impl FnOnce(Result<OpenReply>) + Send + 'static) {
        let core = &self.core;
        let node = core.nodes.get(core.ino(node));
        let fh = core.id();
        core.handles.add(fh, Handle { dir: true, ..Handle::new(node, 0) });
        reply(Ok(OpenReply { fh, ..OpenReply::default() }));
    }

    /// Close a directory.
    pub fn releasedir(&self, fh: u64) {
        self.core.close(fh);
    }
}
