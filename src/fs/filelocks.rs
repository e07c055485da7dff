//! File locks of programs (fcntl, flock): from the kernel's requests to the lock room, and the end of a
//! program's locks when it closes.
//!
//! An answer that lets a program go on counts only while the lease lasts: it is confirmed before it is
//! given, on this thread or, where that might have to wait, on one for such answers. However long that takes:
//! what is granted stands, and another thread of the program may have been told so. What gives up is not held back.

use super::operations::Withdraw;
use super::*;
use crate::base::Error;
use crate::lock::files::{FileAnswer, FileLock, FileRequest, Job, LockKind, Owner, Span};
use crate::store::Permit;
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
        let (permit, later) = (core.store.permit().clone(), core.confirmations.0.clone());
        // Less may be had without a lease, too.
        let unlocks = lock.mode == Mode::N && job != Job::Test;
        let then = move |answer| match unlocks {
            true => reply(outcome(answer)),
            false => confirmed(&permit, &later, answer, reply),
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
