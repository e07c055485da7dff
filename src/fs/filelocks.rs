//! File locks of programs (fcntl, flock): from the kernel's requests to the lock room, and the end of a
//! program's locks when it closes.
//!
//! An answer that lets a program go on counts only while the lease lasts: it is confirmed before it is
//! given, on this thread or, where that might have to wait, on one for such answers. What gives up is not held back.

use super::operations::Withdraw;
use super::*;
use crate::lock::files::{FileAnswer, FileLock, FileRequest, Job, LockKind, Owner, Span};
use crossbeam::channel;

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

type Work = Box<dyn FnOnce() + Send>;

/// A thread on which answers wait until the lease is confirmed: where they come, that must not be waited for,
/// nor for a thread. It begins with the first request about a lock.
#[derive(Default)]
pub(super) struct Confirmations(Mutex<Option<channel::Sender<Work>>>);

impl Confirmations {
    fn thread(&self) -> Option<channel::Sender<Work>> {
        let mut sender = self.0.lock();
        if sender.is_none() {
            let (to, work) = channel::unbounded::<Work>();
            let run = move || work.into_iter().for_each(|todo| todo());
            std::thread::Builder::new().name("file-lock".into()).spawn(run).ok()?;
            *sender = Some(to);
        }
        sender.clone()
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
        let Some(later) = core.confirmations.thread() else {
            reply(Err(Error::NoLocks));
            return nothing;
        };
        let kind = if lock.flock { LockKind::Whole } else { LockKind::Range };
        let span = if lock.flock { Span::ALL } else { Span { start: lock.start, end: lock.end } };
        let owner = Owner { host: core.slot, id: lock.owner };
        let (ino, process) = (core.ino(node), lock.pid);
        let lock = FileLock { kind, owner, mode: lock.mode, span };
        let request = FileRequest { ino, job, lock, handle: fh, process };
        let takes = lock.mode != Mode::N && job != Job::Test;
        let undo = (takes && !core.locks.file_has(ino, &lock)).then(|| {
            let job = Job::Set { wait: false };
            let unlock = FileRequest { job, lock: FileLock { mode: Mode::N, ..lock }, ..request };
            let locks = core.locks.clone();
            move || _ = locks.file_lock(&unlock, Box::new(|_| ()))
        });
        let store = core.store.clone();
        // Less may be had without a lease, too.
        let unlocks = lock.mode == Mode::N && job != Job::Test;
        let then = move |answer| match unlocks {
            true => reply(outcome(answer)),
            false => confirmed(&store, &later, answer, undo, reply),
        };
        let no = core.locks.file_lock(&request, Box::new(then));
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

/// Tell the program what has come of its request. `undo` gives up what was granted, if the owner had nothing
/// there before.
fn confirmed(
    store: &Arc<Store>,
    later: &channel::Sender<Work>,
    answer: FileAnswer,
    undo: Option<impl FnOnce() + Send + 'static>,
    reply: impl FnOnce(Found) + Send + 'static,
) {
    let sure = !matches!(answer, FileAnswer::Granted | FileAnswer::Found(..) | FileAnswer::Free);
    if sure || !store.permit().lease_left().is_zero() {
        return reply(outcome(answer));
    }
    let store = store.clone();
    let todo = move || reply(found(store.permit().confirm(), answer, undo));
    later.send(Box::new(todo)).expect("the thread ends with its last sender");
}

/// What the program is told; a grant that it is not told of is undone, or nobody would ever give it up.
fn found(confirmed: Result<()>, answer: FileAnswer, undo: Option<impl FnOnce()>) -> Found {
    if confirmed.is_err() && answer == FileAnswer::Granted {
        undo.into_iter().for_each(|undo| undo());
    }
    confirmed.and_then(|()| outcome(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_that_cannot_be_confirmed_is_undone() {
        let lapsed = || Err(Error::Halted("the lease has lapsed".into()));
        for (confirmed, answer, expected) in [
            (lapsed(), FileAnswer::Granted, true),
            (lapsed(), FileAnswer::Free, false),
            (Ok(()), FileAnswer::Granted, false),
        ] {
            let (mut undone, sure) = (false, confirmed.is_ok());
            assert_eq!(found(confirmed, answer, Some(|| undone = true)).is_ok(), sure);
            assert_eq!(undone, expected, "{answer:?}");
        }
    }
}
