//! How requests run that come while their inode's lock is being taken away.
//!
//! A READ or WRITE that waits for a lock holds page locks in the kernel; a demotion must not wait
//! for those (`coherence`). So such a request is listed in its node as *parked* while it waits.
//! What a demotion may have to wait for never waits behind it: while the lock is still held it is
//! served under it. That ends when the kernel has been emptied, or requests that keep coming would
//! keep the lock here for ever.

use super::*;
use node::{Pages, ParkedRange};
use op::{Body, Manner, Patience, Reply};

/// Attempts at getting space for a request served late, before it queues for the lock as others do.
const SPACE_TRIES: u32 = 100;

/// Removes the entry when the request goes on.
pub(super) struct Parked {
    node: Arc<Node>,
    id: u64,
}

impl Parked {
    pub fn new(core: &Core, ino: InodeNo, pages: Pages) -> Parked {
        let (node, id) = (core.nodes.get(ino), core.id());
        node.parked.lock().push(ParkedRange { id, pages });
        Parked { node, id }
    }

    /// `body`, and an end to the parking when it has come to one.
    fn until_done<T: 'static>(self, mut body: Body<T>) -> Body<T> {
        let mut parked = Some(self);
        Box::new(move |op| {
            let outcome = body(op);
            if matches!(outcome, Ok(_) | Err(Stop::Fail(_))) {
                drop(parked.take());
            }
            outcome
        })
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.node.parked.lock().retain(|r| r.id != self.id);
    }
}

/// `op::run` for a request that keeps pages locked while it waits.
pub(super) fn run_parkable<T: 'static>(
    core: &Arc<Core>,
    ino: InodeNo,
    mode: Mode,
    pages: Option<Pages>,
    mut body: Body<T>,
    reply: Reply<T>,
) {
    let locks = inode(ino, mode);
    if let Some(pins) = core.locks.try_pin(&locks) {
        match op::attempt(core, &locks, &mut None, &mut *body) {
            Ok(value) => {
                reply(Ok(value));
                return drop(pins);
            }
            Err(Stop::Fail(e)) => return reply(Err(e)),
            Err(_) => drop(pins),
        }
    }
    let body = match pages {
        Some(pages) => Parked::new(core, ino, pages).until_done(body),
        None => body,
    };
    op::run(core, locks, body, reply);
}

/// A request that a demotion of its inode may be waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Dirty pages of a mapping, from here to there.
    Pages(u64, u64),
    /// A new size: the kernel writes no dirty page back before it has the answer.
    Size,
}

impl Late {
    /// What a mapping has stored was accepted long before it comes here.
    fn patience(self) -> Patience {
        match self {
            Late::Pages(..) => Patience::Endless,
            Late::Size => Patience::Minute,
        }
    }
}

/// The inode pinned X, perhaps while that lock is on its way down.
pub(super) fn pin_late(core: &Core, ino: InodeNo, late: Late) -> Option<crate::lock::Pins> {
    let pins = core.locks.try_pin(&inode(ino, Mode::X));
    // Pages are not dirtied any more by then, so those that come all the same come to an end.
    let may = || late != Late::Size || !core.nodes.get(ino).emptied.load(Ordering::Acquire);
    pins.or_else(|| may().then(|| core.locks.try_pin_revoked(LockName::Inode(ino), Mode::X)).flatten())
}

/// Like `op::run` on one inode in X, but served under a lock that is being taken away, as long as it is
/// still held.
pub(super) fn run_late<T: 'static>(
    core: &Arc<Core>,
    ino: InodeNo,
    late: Late,
    body: Body<T>,
    reply: Reply<T>,
) {
    let manner = Manner { full: false, patience: late.patience() };
    Served { core: core.clone(), ino, late, manner, space: None, tries: 0, body, reply }.go();
}

struct Served<T> {
    core: Arc<Core>,
    ino: InodeNo,
    late: Late,
    manner: Manner,
    space: Option<Reservation>,
    tries: u32,
    body: Body<T>,
    reply: Reply<T>,
}

impl<T: 'static> Served<T> {
    fn go(mut self) {
        let Some(pins) = pin_late(&self.core, self.ino, self.late) else { return self.wait() };
        let locks = inode(self.ino, Mode::X);
        let outcome = op::attempt_with(self.manner, &self.core, &locks, &mut self.space, &mut *self.body);
        match outcome {
            Ok(value) => {
                (self.reply)(Ok(value));
                drop(pins);
            }
            Err(stop) => {
                drop(pins);
                self.again(stop);
            }
        }
    }

    fn again(mut self, stop: Stop) {
        self.tries += 1;
        match stop {
            Stop::Fail(e) => (self.reply)(Err(e)),
            // The demotion waits for this: waiting for the lock, it would never get the space.
            Stop::Space(want) | Stop::SpaceIfAny(want) if self.tries <= SPACE_TRIES => {
                let (core, must) = (self.core.clone(), matches!(stop, Stop::Space(_)));
                let then = move |got| {
                    match got {
                        Ok(space) => self.space = Some(space),
                        Err(Error::NoSpace | Error::Corrupt { .. }) if !must => self.manner.full = true,
                        Err(e) => return (self.reply)(Err(e)),
                    }
                    self.go();
                };
                space::acquire(&core, want, Box::new(then));
            }
            _ => self.wait(),
        }
    }

    fn wait(self) {
        let body = match self.late {
            Late::Pages(start, end) => {
                let pages = Pages { start, end, locked: true };
                Parked::new(&self.core, self.ino, pages).until_done(self.body)
            }
            Late::Size => self.body,
        };
        let patience = self.late.patience();
        op::run_with(patience, &self.core, inode(self.ino, Mode::X), body, self.reply);
    }
}
