//! One write(2) with O_APPEND may come as several WRITEs; nothing of others may get between them.
//!
//! The kernel cuts a write where a request is full, and, for a descriptor that got O_APPEND only by
//! fcntl and so writes through the page cache, also behind a first page that it did not have. A request is full
//! with so many pages, of which the first may be used in part. Each part says only where the kernel believes the
//! end to be. So after a part that may be continued the inode's lock is kept for a moment, and its continuation is
//! served under it: the kernel sends that as soon as it has our answer. On this host its own lock keeps other
//! writers out.

use super::io::PAGE;
use super::op::{self, Body, Reply};
use super::*;
use crate::lock::Pins;

/// How long a continuation is waited for. It comes within microseconds, unless the machine is busy.
const WAIT: Duration = Duration::from_millis(100);
/// Bytes of a full WRITE; from memory that does not begin with a page it can be as many fewer as a page has.
const FULL: u64 = 1 << 20;

/// Is a WRITE of this length one that the kernel may have cut?
pub(super) fn is_full(length: u64) -> bool {
    length > FULL - PAGE
}

/// The lock, kept for the next part of a write.
pub struct Held {
    pins: Pins,
    fh: u64,
    /// Where the kernel believes the next part to begin.
    next: u64,
    id: u64,
}

impl Core {
    /// The lock, if this is the continuation that it was kept for. Any other write of the handle says
    /// that there is none.
    pub(super) fn held_append(&self, ino: InodeNo, fh: u64, offset: u64) -> Option<Held> {
        let node = self.nodes.get(ino);
        let held = node.append.lock().take_if(|held| held.fh == fh);
        held.filter(|held| held.next == offset)
    }

    /// A part has been written, the inode is pinned X: keep it if another part may follow.
    pub(super) fn hold_append(self: &Arc<Self>, ino: InodeNo, fh: u64, offset: u64, length: u64) {
        let next = offset + length;
        let cached = self.handles.get(fh).is_some_and(|handle| !handle.direct);
        if !(is_full(length) || cached && next.is_multiple_of(PAGE)) {
            return;
        }
        let Some(pins) = self.locks.try_pin_revoked(LockName::Inode(ino), Mode::X) else { return };
        let (node, id) = (self.nodes.get(ino), self.id());
        let before = node.append.lock().replace(Held { pins, fh, next, id });
        drop(before);
        spawn::spawn("append", move || {
            std::thread::sleep(WAIT);
            let over = node.append.lock().take_if(|held| held.id == id);
            drop(over);
        });
    }
}

impl Fs {
    /// Run a continuation under the lock that was kept for it. Gives it back if it needs more: it has to
    /// wait like any other write then.
    pub(super) fn run_held<T: 'static>(
        &self,
        held: Held,
        locks: LockSet,
        mut body: Body<T>,
        reply: Reply<T>,
    ) -> Option<(Body<T>, Reply<T>)> {
        let outcome = op::attempt(&self.core, &locks, &mut None, &mut body);
        // Whoever waits for more locks or space may hold none.
        drop(held.pins);
        match outcome {
            Ok(value) => reply(Ok(value)),
            Err(Stop::Fail(e)) => reply(Err(e)),
            Err(_) => return Some((body, reply)),
        }
        None
    }
}
