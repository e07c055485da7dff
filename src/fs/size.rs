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
use spawn::try_spawn;
use std::collections::HashMap;
use std::time::Instant;

/// How long a page waits for a look at its inode, before which what is stored into it may be lost. A look is quick, but
/// for filesystems in the way to the mount that do not answer.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// And a question for the size: an old one is rare there even so.
const GLANCE_MAX: Duration = Duration::from_millis(100);
/// How long for the kernel to take a size, which it does not while a program here changes the size. What may take long
/// (pages that it drops because of a size) comes after that.
const TELL_MAX: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// How long there is no look after one in vain: at first, and at most.
const BLIND: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

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

/// What threads of ours ask for through the mount.
enum Question {
    /// The way to an inode: the kernel may want to know the root directory.
    Way,
    /// The size of the inode, until that is over.
    Size { ino: InodeNo, is_open: Arc<Mutex<bool>> },
}

/// What they ask for now, by the thread's number, and what else there is to know about looks at the mount.
#[derive(Default)]
pub struct Looks {
    questions: Mutex<HashMap<u32, Question>>,
    /// What was said last of the root directory.
    root: Mutex<Option<AttrReply>>,
    /// No look before then, and how long that was.
    blind: Mutex<Option<(Instant, Duration)>>,
}

/// A question, while the value lives.
struct Asking<'a>(&'a Looks, u32);

impl Looks {
    fn ask(&self, caller: u32, question: Question) -> Asking<'_> {
        self.questions.lock().insert(caller, question);
        Asking(self, caller)
    }

    fn is_blind(&self) -> bool {
        self.blind.lock().is_some_and(|(until, _)| Instant::now() < until)
    }

    /// A look has come to something, or to nothing.
    fn note(&self, seen: bool) {
        let mut blind = self.blind.lock();
        let length = blind.map_or(BLIND[0], |(_, length)| (2 * length).min(BLIND[1]));
        *blind = (!seen).then(|| (Instant::now() + length, length));
    }

    /// What the kernel has been told of the root directory.
    pub fn note_root(&self, told: &AttrReply) {
        *self.root.lock() = Some(AttrReply { attr_valid: Duration::ZERO, ..told.clone() });
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.questions.lock().remove(&self.1);
    }
}

/// An inode whose lock stays pinned, and what the kernel remembers of it.
struct Untold {
    doubt: u64,
    view: Arc<dyn InodeView>,
    pins: Pins,
}

/// What has come of an attempt.
enum Outcome<T> {
    /// It may be answered when the kernel knows the size.
    Done(T, Option<Untold>),
    /// The inode must be looked at first, with no lock held.
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
    let told = Told { core: core.clone(), ino, mode, pages, body, reply };
    match core.nodes.get(ino).size.get() {
        Some(_) => told.look(),
        None => told.run(None),
    }
}

/// Do `work` with `what` on a thread of its own, or `otherwise` here.
fn apart<W: Send + 'static>(what: W, work: impl FnOnce(W) + Send + 'static, otherwise: impl FnOnce(W)) {
    let slot = Arc::new(Mutex::new(Some(what)));
    let taken = slot.clone();
    let run = move || {
        let what = taken.lock().take();
        if let Some(what) = what {
            work(what);
        }
    };
    // Without threads nothing is waited for: this one has requests to serve, among them perhaps what it would wait for.
    if try_spawn("size", run).is_some() {
        let what = slot.lock().take();
        if let Some(what) = what {
            otherwise(what);
        }
    }
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
            // Kept until the answer: no other host is to change the size before.
            let pins = op.pin_apart(LockName::Inode(ino), op.pinned(LockName::Inode(ino)))?;
            Ok(Outcome::Done((work.lock())(op)?, Some(Untold { doubt, view, pins })))
        };
        let answer = move |outcome| self.answer(outcome);
        serving::run_parkable(&core, ino, mode, pages, Box::new(body), Box::new(answer));
    }

    fn answer(self, outcome: Result<Outcome<T>>) {
        match outcome {
            Ok(Outcome::Look) => self.look(),
            Ok(Outcome::Done(done, None)) => (self.reply)(Ok(done)),
            Ok(Outcome::Done(done, Some(untold))) => {
                let otherwise = |(told, done, _): (Self, T, Untold)| (told.reply)(Ok(done));
                apart((self, done, untold), |(told, done, untold)| told.tell(done, untold), otherwise);
            }
            Err(e) => (self.reply)(Err(e)),
        }
    }

    /// Answer when the kernel has the size.
    fn tell(self, done: T, Untold { doubt, view, pins }: Untold) {
        let node = self.core.nodes.get(self.ino);
        let told = self.core.tell(&node, &view);
        if told {
            node.size.ends(doubt);
        }
        // Or a program that unmounts next would find the mount in use.
        drop((node, view));
        let standing = self.core.store.permit().confirm_standing();
        (self.reply)(standing.map(|()| done));
        if let (false, Some(pages)) = (told, self.pages) {
            tracing::warn!(inode = self.ino.0, "the kernel does not take a new size");
            // Whoever comes next asks anew.
            self.core.invalidate_later(self.ino, pages.start, pages.end - pages.start);
        }
        drop(pins);
    }

    /// Go on when the inode is in view, or cannot be seen.
    fn look(self) {
        if self.core.looks.is_blind() {
            return self.run(Some(None));
        }
        let work = |told: Self| {
            let parked = told.pages.map(|pages| serving::Parked::new(&told.core, told.ino, pages));
            let wait = if parked.is_some() { LOOK_MAX } else { GLANCE_MAX };
            let view = told.core.look(told.ino, wait);
            told.core.looks.note(view.is_some());
            drop(parked);
            told.run(Some(view));
        };
        apart(self, work, |told| told.run(Some(None)));
    }
}

impl Core {
    /// An inode as the kernel has it.
    fn look(self: &Arc<Self>, ino: InodeNo, wait: Duration) -> Option<Arc<dyn InodeView>> {
        let (sender, views) = channel::bounded(1);
        let core = self.clone();
        let open = move || {
            let node = core.nodes.get(ino);
            let _way = core.looks.ask(core.kernel.caller(), Question::Way);
            let view = core.kernel.view(core.nodeid(ino), node.known_generation());
            let view = view.inspect_err(|e| tracing::debug!(inode = ino.0, "cannot look at the mount: {e}"));
            let _ = sender.send(view.ok());
        };
        match try_spawn("look", open) {
            None => views.recv_timeout(wait).ok().flatten(),
            Some(_) => None,
        }
    }

    /// Have the kernel take the size that the inode has now, which is pinned. Has it?
    fn tell(self: &Arc<Self>, node: &Arc<Node>, view: &Arc<dyn InodeView>) -> bool {
        let now = || self.visible(node, &mut node.state.lock()).map(|(attr, _)| attr.size).ok();
        let is_known = || view.size().ok().is_some_and(|known| Some(known) == now());
        if is_known() {
            return true;
        }
        let deadline = Instant::now() + TELL_MAX;
        let is_open = Arc::new(Mutex::new(true));
        let (core, ino, asked, going) = (self.clone(), node.ino, view.clone(), is_open.clone());
        // The kernel takes the size over first, and then may drop pages because of it: that can end after the request
        // is answered that waits for this.
        let ask = move || {
            let question = Question::Size { ino, is_open: going.clone() };
            let _asking = core.looks.ask(core.kernel.caller(), question);
            // Once more if something comes between its question and the answer.
            loop {
                let wanted = *going.lock();
                if !wanted || asked.ask().is_err() {
                    return;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        };
        if try_spawn("tell", ask).is_some() {
            return false;
        }
        let known = loop {
            match is_known() {
                true => break true,
                false if Instant::now() > deadline => break false,
                false => std::thread::sleep(LOOK_AGAIN),
            }
        };
        // What is told later would not be true any more: the lock may go.
        *is_open.lock() = false;
        known
    }

    /// The answer to what a thread of ours asks for through the mount, without a lock; `None` for all others.
    pub(super) fn answer_own(&self, caller: u32, node: NodeId) -> Option<Result<AttrReply>> {
        let ino = self.ino(node);
        let is_open = match self.looks.questions.lock().get(&caller)? {
            // Nobody may rely on it: the kernel asks again before it does.
            Question::Way if ino == self.root => return self.looks.root.lock().clone().map(Ok),
            Question::Size { ino: asked, is_open } if *asked == ino => is_open.clone(),
            _ => return None,
        };
        // The inode is pinned until this is not open any more.
        let is_open = is_open.lock();
        if !*is_open {
            return Some(Err(Error::Busy("the question is out of date".into())));
        }
        let node = self.nodes.get(ino);
        let seen = self.visible(&node, &mut node.state.lock());
        Some(seen.map(|(attr, in_inode)| {
            // Not to be kept: it passes by what an invalidation relies on.
            AttrReply { ino: self.nodeid(ino), attr, in_inode, attr_valid: Duration::ZERO }
        }))
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
