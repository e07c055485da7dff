//! The duty to answer a request: a token that is used up by the answer, and may be carried to
//! another thread first. One that is lost answers EIO, so that no process waits for ever.

use crate::fuse::channel::Channel;
use crate::fuse::interrupt::Requests;
use crate::fuse::wire::{Errno, Opcode};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use zerocopy::{Immutable, IntoBytes};

/// What answers need of the session.
pub struct Line {
    pub channel: Channel,
    pub requests: Requests,
}

/// Answers one request, exactly once.
pub struct Reply {
    /// Present until the answer.
    line: Option<Arc<Line>>,
    unique: u64,
    opcode: Opcode,
}

impl Reply {
    /// The duty to answer request `unique`. It counts as on its way from now on.
    pub fn new(line: &Arc<Line>, unique: u64, opcode: Opcode) -> Reply {
        line.requests.begin(unique);
        Reply { line: Some(Arc::clone(line)), unique, opcode }
    }

    /// What was asked for.
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// How to hear of an interrupt, also when the reply itself is put away.
    pub fn interruption(&self) -> Interruption {
        Interruption { line: self.line.clone(), unique: self.unique }
    }

    /// It went wrong.
    pub fn error(mut self, errno: Errno) {
        self.send(errno.field(), &[]);
    }

    /// Done; nothing to tell.
    pub fn done(mut self) {
        self.send(0, &[]);
    }

    /// Done when `work`, on a thread of its own, is; but `limit` after `work` has called what it is given at the
    /// latest, while it goes on: from then on nothing can be lost, and the kernel holds up every sync(2) of the
    /// machine until it hears that a mount is over. `overdue` is called before that.
    ///
    /// # Errors
    /// If there can be no thread; it is answered all the same, perhaps with an error.
    pub fn done_after(
        self,
        work: impl FnOnce(Safe) + Send + 'static,
        limit: Duration,
        overdue: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (tell, told) = channel();
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        thread("answer").spawn(move || {
            if is_overdue(&told, limit) {
                tracing::warn!(operation = ?self.opcode, "not done after {limit:?}: it goes on unwatched");
                overdue();
            }
            self.done();
        })?;
        let work = move || {
            let safe = tell.clone();
            // Who has answered hears nothing any more.
            work(Box::new(move || {
                let _ = safe.send(Stage::Safe);
            }));
            let _ = tell.send(Stage::Done);
        };
        thread("leave").spawn(work).map(drop)
    }

    /// Done; one record tells all.
    pub fn record(mut self, record: &(impl IntoBytes + Immutable)) {
        self.send(0, &[record.as_bytes()]);
    }

    /// Done; these bytes.
    pub fn data(mut self, bytes: &[u8]) {
        self.send(0, &[bytes]);
    }

    fn send(&mut self, error: i32, body: &[&[u8]]) {
        let Some(line) = self.line.take() else { return };
        line.requests.end(self.unique);
        let Err(e) = line.channel.send(error, self.unique, body) else { return };
        if is_gone(&e) {
            return tracing::debug!(operation = ?self.opcode, "nobody waits for the answer any more: {e}");
        }
        tracing::error!(operation = ?self.opcode, "the kernel does not take the answer: {e}");
        // If the request still waits, it must not for ever.
        let _ = line.channel.send(-libc::EIO, self.unique, &[]);
    }
}

/// To be called once what takes long may go on without anybody who waits for it.
pub type Safe = Box<dyn Fn() + Send + Sync>;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Safe,
    Done,
}

/// Waits until it is done, or for `limit` since it was safe: then true.
fn is_overdue(told: &Receiver<Stage>, limit: Duration) -> bool {
    // One that has nobody to tell it any more is done.
    let mut stage = told.recv().unwrap_or(Stage::Done);
    let safe = Instant::now();
    while stage == Stage::Safe {
        stage = match told.recv_timeout(limit.saturating_sub(safe.elapsed())) {
            Ok(stage) => stage,
            Err(RecvTimeoutError::Disconnected) => Stage::Done,
            Err(RecvTimeoutError::Timeout) => return true,
        };
    }
    false
}

/// By which one that waits for long hears that its process has got a signal.
pub struct Interruption {
    line: Option<Arc<Line>>,
    unique: u64,
}

impl Interruption {
    /// Runs `hook` when that happens, in the thread that served the interrupt; at once if it has happened.
    /// Not after the answer. The hook shall see to it that the request is answered with EINTR, unless it
    /// is being answered otherwise just then; so the reply must be where it finds it.
    pub fn call(self, hook: impl FnOnce() + Send + 'static) {
        if let Some(line) = &self.line {
            line.requests.listen(self.unique, Box::new(hook));
        }
    }
}

/// Withdrawn, unmounted or aborted.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EPERM | libc::ECONNABORTED))
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.line.is_some() {
            tracing::error!(operation = ?self.opcode, "a request was not answered");
            self.send(-libc::EIO, &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::wire::{FuseOutHeader, FuseWriteOut};
    use std::io::Read;

    /// All that was sent while `work` had a reply to request 8.
    fn sent(work: impl FnOnce(Reply)) -> Vec<u8> {
        let (mut reader, writer) = io::pipe().unwrap();
        let line = Arc::new(Line { channel: Channel::new(writer.into()), requests: Requests::default() });
        work(Reply::new(&line, 8, Opcode::Write));
        drop(line);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn header(len: u32, error: i32) -> Vec<u8> {
        FuseOutHeader { len, error, unique: 8 }.as_bytes().to_vec()
    }

    #[test]
    fn answers_as_the_kernel_reads_them() {
        assert_eq!(sent(|r| r.done()), header(16, 0));
        assert_eq!(sent(|r| r.error(Errno(libc::ENOENT))), header(16, -2));
        assert_eq!(sent(|r| r.data(b"abc")), [&header(19, 0)[..], b"abc"].concat());
        let record = FuseWriteOut { size: 5, padding: 0 };
        assert_eq!(sent(|r| r.record(&record)), [&header(24, 0)[..], &[5, 0, 0, 0, 0, 0, 0, 0]].concat());
    }

    /// With a limit, work that is safe after one time, if at all, and done after another: was it done when it was
    /// answered, was that told to be overdue, and how long did it take?
    fn answered(limit: Duration, safe: Option<Duration>, takes: Duration) -> (bool, bool, Duration) {
        let (mut reader, writer) = io::pipe().unwrap();
        let line = Arc::new(Line { channel: Channel::new(writer.into()), requests: Requests::default() });
        let reply = Reply::new(&line, 8, Opcode::Destroy);
        let begun = Instant::now();
        let ((tell, over), (warn, late)) = (channel(), channel());
        let work = move |is_safe: Safe| {
            if let Some(after) = safe {
                std::thread::sleep(after);
                is_safe();
                is_safe();
            }
            std::thread::sleep(takes);
            tell.send(()).unwrap();
        };
        reply.done_after(work, limit, move || warn.send(()).unwrap()).unwrap();
        let mut bytes = vec![0; 16];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, header(16, 0));
        let (is_done, is_late) = (over.try_recv().is_ok(), late.try_recv().is_ok());
        let after = begun.elapsed();
        assert!(is_done || over.recv().is_ok(), "the work goes on");
        (is_done, is_late, after)
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_takes_long_is_answered_when_it_is_done_or_after_the_limit() {
        for safe in [None, Some(MS)] {
            let (is_done, is_late, after) = answered(MS * 60_000, safe, MS * 50);
            assert!(is_done && !is_late && after < MS * 30_000, "{after:?}");
        }
        let (is_done, is_late, after) = answered(MS * 50, Some(Duration::ZERO), MS * 1500);
        assert!(!is_done && is_late && after >= MS * 50, "{after:?}");
    }

    #[test]
    fn as_long_as_something_can_be_lost_there_is_no_limit() {
        let (is_done, is_late, _) = answered(MS * 50, None, MS * 300);
        assert!(is_done && !is_late);
        let (is_done, is_late, after) = answered(MS * 50, Some(MS * 300), MS * 1500);
        assert!(!is_done && is_late && after >= MS * 350, "{after:?}");
    }

    #[test]
    fn a_lost_reply_is_an_error_and_no_hang() {
        assert_eq!(sent(drop), header(16, -libc::EIO));
        let elsewhere = sent(|r| std::thread::spawn(move || drop(r)).join().unwrap());
        assert_eq!(elsewhere, header(16, -libc::EIO));
    }
}
