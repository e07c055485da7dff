//! The duty to answer a request: a token that is used up by the answer, and may be carried to
//! another thread first. One that is lost answers EIO, so that no process waits for ever.

use crate::fuse::channel::Channel;
use crate::fuse::interrupt::Requests;
use crate::fuse::wire::{Errno, Opcode};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
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

    /// Done when `work`, on a thread of its own, is; after `limit` at the latest, while it goes on: the kernel holds up
    /// every sync(2) of the machine until it hears that a mount is over.
    ///
    /// # Errors
    /// If there can be no thread; it is answered all the same, perhaps with an error.
    pub fn done_after(self, work: impl FnOnce() + Send + 'static, limit: Duration) -> io::Result<()> {
        let (tell, told) = channel::<()>();
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        thread("answer").spawn(move || {
            if told.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!(operation = ?self.opcode, "not done after {limit:?}: it goes on unwatched");
            }
            self.done();
        })?;
        let work = move || {
            work();
            drop(tell);
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
    use std::time::Instant;

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

    #[test]
    fn what_takes_long_is_answered_when_it_is_done_or_after_the_limit() {
        let answered = |limit, takes| {
            let (mut reader, writer) = io::pipe().unwrap();
            let line = Arc::new(Line { channel: Channel::new(writer.into()), requests: Requests::default() });
            let reply = Reply::new(&line, 8, Opcode::Destroy);
            let begun = Instant::now();
            let (tell, over) = channel();
            let work = move || {
                std::thread::sleep(takes);
                tell.send(Instant::now()).unwrap();
            };
            reply.done_after(work, limit).unwrap();
            let mut bytes = vec![0; 16];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, header(16, 0));
            let is_done = over.try_recv().is_ok();
            let after = begun.elapsed();
            assert!(is_done || over.recv().is_ok(), "the work goes on");
            (is_done, after)
        };
        let ms = Duration::from_millis;
        let (is_done, after) = answered(Duration::from_secs(60), ms(50));
        assert!(is_done && after < Duration::from_secs(30), "{after:?}");
        let (is_done, after) = answered(ms(50), ms(1500));
        assert!(!is_done && after >= ms(50), "{after:?}");
    }

    #[test]
    fn a_lost_reply_is_an_error_and_no_hang() {
        assert_eq!(sent(drop), header(16, -libc::EIO));
        let elsewhere = sent(|r| std::thread::spawn(move || drop(r)).join().unwrap());
        assert_eq!(elsewhere, header(16, -libc::EIO));
    }
}
