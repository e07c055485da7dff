//! File locks of programs (fcntl, flock): from the kernel's requests to the lock room, and the end of a
//! program's locks when it closes.
//!
//! An answer that lets a program go on counts only while the lease lasts: it is confirmed before it is
//! given, on this thread or, where that might have to wait, on one for such answers. However long that takes:
//! what is granted stands, and another thread of the program may have been told so. What gives up is not held back.
//!
//! flock locks, and locks of open file descriptions, end with the last descriptor. The kernel tells of each close(2) and
//! waits (FLUSH), and of the last one without waiting (RELEASE, `fuse_release_common`): who asks right after it may
//! come first, and would be refused by a lock that its program knows to be gone. So a refusal by a lock of a
//! program here whose file has just been closed waits a little for that.

use super::operations::Withdraw;
use super::*;
use crate::base::Error;
use crate::lock::files::{FileAnswer, FileLock, FileRequest, Job, LockKind, Owner, RequestNo, Span};
use crate::store::Permit;
use crossbeam::channel;
use handles::Handle;

/// How long after a close(2) the end of its locks may be on its way, how long who asks waits for that, and how often it
/// is looked for.
const CLOSED_LATELY: Duration = Duration::from_millis(200);
const CLOSING_MAX: Duration = Duration::from_millis(50);
const CLOSING_LOOK: Duration = Duration::from_micros(500);

/// What a request's answer is to the program.
fn outcome(answer: FileAnswer) -> Result<Option<LockFound>> {
    match answer {
        FileAnswer::Granted | FileAnswer::Free => Ok(None),
        FileAnswer::Found(mode, span, process) => {
            let pid = process.and_then(|p| u32::try_from(p).ok()).unwrap_or(0);
            Ok(Some(LockFound { exclusive: mode == Mode::X, start: span.start, end: span.end, pid }))
        }
        FileAnswer::Denied => Err(Error::Locked),
        FileAnswer::Deadlock => Err(Error::Deadlock),
        FileAnswer::NoLocks => Err(Error::NoLocks),
        FileAnswer::Interrupted => Err(Error::Interrupted),
        FileAnswer::Halted => Err(Error::Halted("file locks are gone".into())),
    }
}

type Found = Result<Option<LockFound>>;
type Reply = Box<dyn FnOnce(Found) + Send>;

type Work = Box<dyn FnOnce() + Send>;

/// When a descriptor was last closed, in nanoseconds of the clock; 0 before the first.
#[derive(Default)]
pub struct LastClose(AtomicU64);

impl LastClose {
    fn note(&self, now: Duration) {
        self.0.store(now.as_nanos() as u64 | 1, Ordering::Release);
    }

    fn is_late(&self, now: Duration) -> bool {
        let at = self.0.load(Ordering::Acquire);
        at != 0 && now <= Duration::from_nanos(at) + CLOSED_LATELY
    }
}

/// A thread on which answers wait until the lease is confirmed: where they come, that must not be waited for,
/// nor for a thread. It ends with this.
pub(super) struct Confirmations(channel::Sender<Work>);

impl Confirmations {
    pub fn begin() -> Result<Confirmations> {
        let (to, work) = channel::unbounded::<Work>();
        let run = move || work.into_iter().for_each(|todo| todo());
        let thread = std::thread::Builder::new().name("shoal-filelock".into()).spawn(run);
        thread.map_err(|e| Error::Device(format!("cannot start a thread: {e}")))?;
        Ok(Confirmations(to))
    }
}

impl Core {
    /// A descriptor of it is closed.
    pub(super) fn note_close(&self, handle: &Handle) {
        if handle.node.locked.load(Ordering::Acquire) {
            let now = self.clock.now();
            handle.closed.note(now);
            handle.node.closed.note(now);
        }
    }

    /// With `again`, a refusal by what is about to end is not given: it is asked once more.
    fn ask_file_lock(self: &Arc<Self>, request: FileRequest, again: bool, reply: Reply) -> RequestNo {
        let core = self.clone();
        let then = move |answer| {
            let refused = matches!(answer, FileAnswer::Denied | FileAnswer::Found(..));
            let closed = || core.nodes.find(request.ino).is_some_and(|n| n.closed.is_late(core.clock.now()));
            if again && refused && closed() {
                return core.ask_after_closings(request, reply);
            }
            // Less may be had without a lease, too.
            match request.lock.mode == Mode::N && request.job != Job::Test {
                true => reply(outcome(answer)),
                false => confirmed(core.store.permit(), &core.confirmations.0, answer, reply),
            }
        };
        self.locks.file_lock(&request, Box::new(then))
    }

    /// Is a lock in its way by a handle of this host of which a descriptor was closed a moment ago?
    fn awaits_closing(&self, request: &FileRequest) -> bool {
        let now = self.clock.now();
        let closes = |fh: u64| self.handles.get(fh).is_some_and(|handle| handle.closed.is_late(now));
        let blockers = self.locks.file_blockers(request.ino, &request.lock);
        blockers.into_iter().any(|fh| fh != request.handle && closes(fh))
    }

    fn ask_after_closings(self: Arc<Self>, request: FileRequest, reply: Reply) {
        if !self.awaits_closing(&request) {
            self.ask_file_lock(request, false, reply);
            return;
        }
        spawn::spawn("shoal-closing", move || {
            let end = self.clock.now() + CLOSING_MAX;
            while self.awaits_closing(&request) && self.clock.now() < end {
                std::thread::sleep(CLOSING_LOOK);
            }
            self.ask_file_lock(request, false, reply);
        });
    }
}

impl Fs {
    /// Take, change or give up a file lock.
    pub fn set_lock(
        &self,
        node: NodeId,
        fh: u64,
        lock: LockRequest,
        wait: bool,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Withdraw {
        if let (Some(handle), true) = (self.core.handles.get(fh), lock.mode != Mode::N) {
            handle.node.locked.store(true, Ordering::Release);
        }
        self.ask_lock(node, fh, lock, Job::Set { wait }, move |found| reply(found.map(|_| ())))
    }

    /// A lock of another that is in the way of this one.
    pub fn get_lock(
        &self,
        node: NodeId,
        fh: u64,
        lock: LockRequest,
        reply: impl FnOnce(Found) + Send + 'static,
    ) -> Withdraw {
        self.ask_lock(node, fh, lock, Job::Test, reply)
    }

    fn ask_lock(
        &self,
        node: NodeId,
        fh: u64,
        lock: LockRequest,
        job: Job,
        reply: impl FnOnce(Found) + Send + 'static,
    ) -> Withdraw {
        let core = &self.core;
        let nothing: Withdraw = Box::new(|| ());
        if lock.start > lock.end {
            reply(Err(Error::Invalid("an empty range")));
            return nothing;
        }
        if let Err(e) = core.store.halt().check() {
            reply(Err(e));
            return nothing;
        }
        let kind = if lock.flock { LockKind::Whole } else { LockKind::Range };
        let span = if lock.flock { Span::ALL } else { Span { start: lock.start, end: lock.end } };
        let owner = Owner { host: core.slot, id: lock.owner };
        let (ino, process) = (core.ino(node), lock.pid);
        let lock = FileLock { kind, owner, mode: lock.mode, span };
        let request = FileRequest { ino, job, lock, handle: fh, process };
        let no = core.ask_file_lock(request, job != Job::Set { wait: true }, Box::new(reply));
        let locks = core.locks.clone();
        Box::new(move || locks.withdraw_file_lock(no))
    }

    /// Do `then` when the ranges of this owner are free.
    pub(super) fn unlock_ranges(
        &self,
        node: NodeId,
        fh: u64,
        owner: u64,
        then: impl FnOnce() + Send + 'static,
    ) {
        let locked = self.core.handles.get(fh).is_some_and(|h| h.node.locked.load(Ordering::Acquire));
        if !locked {
            return then();
        }
        let then = Arc::new(Mutex::new(Some(then)));
        let later = then.clone();
        let go_on = move |_| later.lock().take().into_iter().for_each(|then| then());
        let ino = self.core.ino(node);
        if !self.core.locks.file_unlock_all(ino, LockKind::Range, owner, Box::new(go_on)) {
            let then = then.lock().take();
            then.into_iter().for_each(|then| then());
        }
    }

    /// A handle is closed for good: its flock lock ends, and locks of the open file description.
    pub(super) fn unlock_handle(&self, node: NodeId, fh: u64) {
        if self.core.handles.get(fh).is_some_and(|h| h.node.locked.load(Ordering::Acquire)) {
            self.core.locks.file_release(self.core.ino(node), fh);
        }
    }
}

/// Tell the program what has come of its request.
fn confirmed(
    permit: &Arc<Permit>,
    later: &channel::Sender<Work>,
    answer: FileAnswer,
    reply: impl FnOnce(Found) + Send + 'static,
) {
    let sure = !matches!(answer, FileAnswer::Granted | FileAnswer::Found(..) | FileAnswer::Free);
    if sure || !permit.lease_left().is_zero() {
        return reply(outcome(answer));
    }
    let permit = permit.clone();
    let todo = move || reply(permit.confirm_standing().and_then(|()| outcome(answer)));
    later.send(Box::new(todo)).expect("the thread ends with its last sender");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Permit;

    /// Answers come on the thread that renews the lease, among others.
    #[test]
    fn an_answer_without_a_lease_waits_elsewhere_and_is_given_then() {
        let confirmations = Confirmations::begin().unwrap();
        let permit = Arc::new(Permit::default());
        let second = std::time::Duration::from_secs(1);
        permit.set_deadlines(second, second);
        let (told, heard) = channel::unbounded();
        let answer = |answer| {
            let (told, here) = (told.clone(), std::thread::current().id());
            confirmed(&permit, &confirmations.0, answer, move |found: Found| {
                told.send((found.is_ok(), std::thread::current().id() == here)).unwrap();
            });
        };
        answer(FileAnswer::Granted);
        answer(FileAnswer::Free);
        let soon = std::time::Duration::from_millis(200);
        assert!(heard.recv_timeout(soon).is_err());
        answer(FileAnswer::Denied);
        assert_eq!(heard.try_recv(), Ok((false, true)), "a refusal needs no lease");
        permit.set_unlimited();
        assert_eq!([heard.recv(), heard.recv()], [Ok((true, false)); 2]);
        answer(FileAnswer::Granted);
        assert_eq!(heard.try_recv(), Ok((true, true)));
        permit.revoke();
        answer(FileAnswer::Granted);
        assert_eq!(heard.recv(), Ok((false, false)), "it is gone with this host");
    }
}
