//! The conversation with the kernel over one mount: INIT, then requests on several threads until the end.
//!
//! What the protocol itself asks for is done here: versions, INTERRUPT, requests that make no sense.
//! The rest goes to a [`Handler`].

use crate::fuse::buffer::{Buffer, Payload, Pool};
use crate::fuse::channel::Channel;
use crate::fuse::interrupt::{Met, Requests};
use crate::fuse::reply::{Line, Reply};
use crate::fuse::wire::init::{self, Offer, Step, Wanted};
use crate::fuse::wire::{
    Dialect, Errno, FuseInHeader, FuseInitIn, FuseInterruptIn, FuseWriteIn, INTERRUPT_BIT, MAJOR, MINOR_MIN,
    Malformed, Opcode, Request, parse,
};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Who answers the requests of a mount.
pub trait Handler: Send + Sync + 'static {
    /// What to ask the kernel for.
    fn wanted(&self) -> Wanted;
    /// What the kernel offered.
    fn agreed(&mut self, offer: &Offer);
    /// `count` lookups of inode `nodeid` end.
    fn forget(&self, nodeid: u64, count: u64);
    /// A WRITE of `payload`, which may be kept.
    fn write(&self, header: &FuseInHeader, arg: &FuseWriteIn, payload: Payload, reply: Reply);
    /// Any other request that is answered. What is not known is refused with ENOSYS: then the kernel does
    /// not ask for it again where it can do without.
    fn request(&self, header: &FuseInHeader, request: Request<'_>, reply: Reply);
    /// The kernel has let go of the mount, and a program waits in umount(2) for the answer. No request comes any more;
    /// some may still be on their way.
    fn leave(&self, reply: Reply) {
        reply.done();
    }
}

/// A connection that has answered INIT.
pub struct Session<H> {
    handler: H,
    line: Arc<Line>,
    pool: Arc<Pool>,
    dialect: Dialect,
}

impl<H: Handler> Session<H> {
    /// Waits for INIT on `device`, which has been mounted, and answers it.
    ///
    /// # Errors
    /// If the kernel is too old, or the mount is gone already.
    pub fn begin(mut handler: H, device: OwnedFd) -> io::Result<Session<H>> {
        let line = Arc::new(Line { channel: Channel::new(device), requests: Requests::default() });
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take();
        loop {
            let Some(length) = line.channel.receive(buffer.room())? else {
                return Err(io::Error::other("unmounted before it was served"));
            };
            let parsed = match parse(buffer.request(length), Dialect::default()) {
                Ok(parsed) => parsed,
                Err(malformed) => {
                    refuse(&line, &malformed);
                    continue;
                }
            };
            let Request::Init(asked) = parsed.request else {
                line.channel.send(-libc::EIO, parsed.header.unique, &[])?;
                continue;
            };
            if let Some(dialect) = greet(&mut handler, &line.channel, parsed.header.unique, &asked)? {
                pool.give_back(buffer);
                return Ok(Session { handler, line, pool, dialect });
            }
        }
    }

    /// Serves on `threads` threads until the filesystem is unmounted or its connection aborted.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(&self, threads: usize) -> io::Result<()> {
        let serve = || self.serve().inspect_err(|e| tracing::error!("reading requests: {e}"));
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map(|n| std::thread::Builder::new().name(format!("fuse-{n}")).spawn_scoped(scope, serve))
                .collect();
            let panicked = |_| Err(io::Error::other("a thread that serves requests panicked"));
            let ended: Vec<_> =
                started.into_iter().map(|thread| thread?.join().unwrap_or_else(panicked)).collect();
            ended.into_iter().collect()
        })
    }

    fn serve(&self) -> io::Result<()> {
        let mut buffer = self.pool.take();
        while let Some(length) = self.line.channel.receive(buffer.room())? {
            buffer = self.dispatch(buffer, length);
        }
        Ok(())
    }

    /// Sees to the request of `length` bytes in `buffer`; gives back a buffer for the next one.
    fn dispatch(&self, buffer: Buffer, length: usize) -> Buffer {
        let parsed = match parse(buffer.request(length), self.dialect) {
            Ok(parsed) => parsed,
            Err(malformed) => {
                refuse(&self.line, &malformed);
                return buffer;
            }
        };
        let header = parsed.header;
        let Some(opcode) = Opcode::of(header.opcode) else {
            tracing::info!("the kernel asks for operation {}, which is not known here", header.opcode);
            let _ = self.line.channel.send(-libc::ENOSYS, header.unique, &[]);
            return buffer;
        };
        let reply = || Reply::new(&self.line, header.unique, opcode);
        match parsed.request {
            Request::Write { arg, data } => {
                let length = data.len();
                let payload = Payload::new(buffer, length, Arc::clone(&self.pool));
                self.handler.write(&header, &arg, payload, reply());
                return self.pool.take();
            }
            Request::Forget(arg) => self.handler.forget(header.nodeid, arg.nlookup),
            Request::BatchForget(all) => {
                all.iter().for_each(|one| self.handler.forget(one.nodeid, one.nlookup));
            }
            Request::Interrupt(arg) => self.interrupt(&arg),
            // Nothing of ours is ever answered this way.
            Request::Unserved(Opcode::NotifyReply) => {}
            Request::Destroy => self.handler.leave(reply()),
            Request::Init(_) => reply().error(Errno(libc::EIO)),
            request => self.handler.request(&header, request, reply()),
        }
        buffer
    }

    fn interrupt(&self, arg: &FuseInterruptIn) {
        if self.line.requests.interrupt(arg.unique) == Met::Unlisted {
            // Answered already: then there is nothing for the kernel to ask again, and it says so.
            let _ = self.line.channel.send(-libc::EAGAIN, arg.unique | INTERRUPT_BIT, &[]);
        }
    }
}

/// Answers an INIT. `None`: another one will come.
fn greet<H: Handler>(
    handler: &mut H,
    channel: &Channel,
    unique: u64,
    asked: &FuseInitIn,
) -> io::Result<Option<Dialect>> {
    match init::meet(asked) {
        Step::Again(answer) => {
            channel.send(0, unique, &[answer.as_bytes()])?;
            Ok(None)
        }
        Step::Refuse { major, minor } => {
            channel.send(-libc::EPROTO, unique, &[])?;
            Err(io::Error::other(format!(
                "this kernel speaks FUSE {major}.{minor}; {MAJOR}.{MINOR_MIN} is needed (Linux 6.1 or later)"
            )))
        }
        Step::Agree(offer) => {
            let wanted = handler.wanted();
            for flag in wanted.flags.iter().filter(|flag| !offer.has(**flag)) {
                tracing::info!("the kernel does not offer {}", flag.1);
            }
            tracing::debug!(?offer, "INIT");
            // Before the answer: requests may follow it at once.
            handler.agreed(&offer);
            let (answer, dialect) = init::agree(&offer, &wanted);
            channel.send(0, unique, &[answer.as_bytes()])?;
            Ok(Some(dialect))
        }
    }
}

/// Meets what is no request: with EIO, if anybody can be waiting.
fn refuse(line: &Line, malformed: &Malformed) {
    let Some(header) = malformed.header else {
        return tracing::error!("the kernel sent {}", malformed.what);
    };
    tracing::error!(opcode = header.opcode, "the kernel sent {}", malformed.what);
    if Opcode::of(header.opcode).is_none_or(Opcode::is_answered) {
        let _ = line.channel.send(-libc::EIO, header.unique, &[]);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
