//! The kernel's idea of a file's size.
//!
//! Page faults, write-back of pages and the end of a read go by the size that the kernel remembers, and it forgets one
//! that it has just been told if the attributes are invalidated before whoever asked has run on. So the first request
//! that relies on the size after another host may have changed it is answered only when the kernel has been seen to
//! have the true one: a page that is filled before that would lose what is stored behind the former end.
//!
//! There is no notification for a size. The daemon looks at its own mount, as any program might, and has the kernel ask.

use super::*;
use crate::lock::Pins;
use crossbeam::channel;
use node::Pages;
use op::{Body, Reply};
use spawn::spawn;
use std::collections::HashMap;
use std::time::Instant;

/// How long a page waits for a look at its inode, before which what is stored into it may be lost. That takes the lock
/// of the root directory, which another host may hold, or have died with.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// And a question for the size: an old one is rare there even so.
const GLANCE_MAX: Duration = Duration::from_millis(100);
/// How long for the kernel to take a size. What may take long (pages that the kernel drops because of it) comes after
/// that.
const TELL_MAX: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_micros(50);

/// May the kernel's idea of an inode's size be an old one? A number for each time the lock was lost; 0: it is right.
#[derive(Default)]
pub struct Doubt {
    now: AtomicU64,
    last: AtomicU64,
}

impl Doubt {
    /// The lock goes, and others may change the size.
    pub fn rises(&self) {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        self.now.store(number, Ordering::Release);
    }

    fn get(&self) -> Option<u64> {
        Some(self.now.load(Ordering::Acquire)).filter(|number| *number > 0)
    }

    /// The kernel has been seen to know the size under the lock that came back after this doubt.
    fn ends(&self, number: u64) {
        let _ = self.now.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// What the kernel is to hear when threads of ours ask through the mount.
#[derive(Default)]
pub struct Answers(Mutex<HashMap<u32, AttrReply>>);

/// One of them, while the value lives.
struct Answer<'a>(&'a Answers, u32);

impl Answers {
    fn give(&self, caller: u32, told: AttrReply) -> Answer<'_> {
        self.0.lock().insert(caller, told);
        Answer(self, caller)
    }

    /// The answer to a question of `caller`, if that is one of them.
    pub fn to(&self, caller: u32, node: NodeId) -> Option<AttrReply> {
        self.0.lock().get(&caller).filter(|told| told.ino == node).cloned()
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

/// The truth about an inode, whose lock stays pinned.
struct Untold {
    told: AttrReply,
    doubt: u64,
    view: Arc<dyn InodeView>,
    pins: Pins,
}

/// What has come of an attempt.
enum Outcome<T> {
    /// It may be answered when the kernel knows the size.
    Done(T, Option<Untold>),
    /// The inode must be looked at first. That may need locks, so none is held.
    Look,
}

/// A request that relies on the size that the kernel remembers.
struct Told<T> {
    core: Arc<Core>,
    ino: InodeNo,
    mode: Mode,
    /// What it keeps locked.
    pages: Option<Pages>,
    body: Arc<Mutex<Body<T>>>,
    reply: Reply<T>,
}

/// `serving::run_parkable` for a request that relies on the size which the kernel remembers of a regular file.
pub(super) fn run_told<T: Send + 'static>(
    core: &Arc<Core>,
    ino: InodeNo,
    mode: Mode,
    pages: Option<Pages>,
    body: Body<T>,
    reply: Reply<T>,
) {
    let body = Arc::new(Mutex::new(body));
    Told { core: core.clone(), ino, mode, pages, body, reply }.run(None);
}

impl<T: Send + 'static> Told<T> {
    /// `looked`: the inode has been looked at, or that has failed.
    fn run(self, looked: Option<Option<Arc<dyn InodeView>>>) {
        let (core, ino, mode, pages) = (self.core.clone(), self.ino, self.mode, self.pages);
        let work = self.body.clone();
        let body = move |op: &mut Op<'_>| -> Step<Outcome<T>> {
            let node = op.core.nodes.get(ino);
            let (doubt, view) = match (node.size.get(), &looked) {
                (Some(_), None) => return Ok(Outcome::Look),
                (Some(doubt), Some(Some(view))) => (doubt, view.clone()),
                (None, _) | (Some(_), Some(None)) => return Ok(Outcome::Done((work.lock())(op)?, None)),
            };
            // Kept until the answer: what is told then must be true.
            let pins = op.pin_apart(LockName::Inode(ino), op.pinned(LockName::Inode(ino)))?;
            let done = (work.lock())(op)?;
            let told = op.core.attr_reply(&node, &mut node.state.lock())?;
            Ok(Outcome::Done(done, Some(Untold { told, doubt, view, pins })))
        };
        let answer = move |outcome| self.answer(outcome);
        serving::run_parkable(&core, ino, mode, pages, Box::new(body), Box::new(answer));
    }

    fn answer(self, outcome: Result<Outcome<T>>) {
        match outcome {
            Ok(Outcome::Look) => self.look(),
            Ok(Outcome::Done(done, None)) => (self.reply)(Ok(done)),
            Ok(Outcome::Done(done, Some(Untold { told, doubt, view, pins }))) => spawn("size", move || {
                if self.core.tell(told, &view) {
                    self.core.nodes.get(self.ino).size.ends(doubt);
                }
                // Or a program that unmounts next would find the mount in use.
                drop(view);
                (self.reply)(Ok(done));
                drop(pins);
            }),
            Err(e) => (self.reply)(Err(e)),
        }
    }

    /// Go on when the inode is in view, or cannot be seen for long.
    fn look(self) {
        let parked = self.pages.map(|pages| serving::Parked::new(&self.core, self.ino, pages));
        spawn("size", move || {
            let (sender, views) = channel::bounded(1);
            let (core, node) = (self.core.clone(), self.core.nodes.get(self.ino));
            let open = move || {
                let view = core.kernel.view(core.nodeid(node.ino), node.known_generation());
                let view = view
                    .inspect_err(|e| tracing::debug!(inode = node.ino.0, "cannot look at the mount: {e}"));
                let _ = sender.send(view.ok());
            };
            spawn("look", open);
            let view =
                views.recv_timeout(if parked.is_some() { LOOK_MAX } else { GLANCE_MAX }).ok().flatten();
            drop(parked);
            self.run(Some(view));
        });
    }
}

impl Core {
    /// Have the kernel take the size that is told. Does it have that now?
    fn tell(self: &Arc<Self>, told: AttrReply, view: &Arc<dyn InodeView>) -> bool {
        let (size, deadline) = (told.attr.size, Instant::now() + TELL_MAX);
        let is_known = || view.size().is_ok_and(|known| known == size);
        if is_known() {
            return true;
        }
        let (core, asked) = (self.clone(), view.clone());
        // The kernel takes the size over first, and then may drop pages because of it: that can end after the request
        // is answered that waits for this.
        spawn("tell", move || {
            // Once more if something comes between its question and the answer.
            while asked.size().is_ok_and(|known| known != size) && Instant::now() < deadline {
                let _answer = core.answers.give(asked.caller(), told.clone());
                if asked.ask().is_err() {
                    return;
                }
            }
        });
        while !is_known() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_ends_with_what_was_told_after_it() {
        let doubt = Doubt::default();
        assert_eq!(doubt.get(), None);
        doubt.rises();
        let first = doubt.get().unwrap();
        doubt.rises();
        doubt.ends(first);
        let second = doubt.get().unwrap();
        doubt.ends(second);
        assert_eq!(doubt.get(), None);
        doubt.rises();
        doubt.ends(second);
        assert!(doubt.get().is_some());
    }
}
