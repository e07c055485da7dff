//! The kernel's idea of a file's size.
//!
//! Page faults, write-back of pages and the end of a read go by the size that the kernel remembers, and it forgets one
//! that it has just been told if the attributes are invalidated before whoever asked has run on. So the first request
//! that relies on the size after another host may have changed it is answered only when the kernel has been seen to
//! have the true one: a page that is filled before that would lose what is stored behind the former end.
//!
//! There is no notification for a size. The daemon looks at its own mount, as any program might, and has the kernel ask.

mod doubt;

use super::*;
use crate::lock::Pins;
use crossbeam::channel;
pub use doubt::Doubt;
use node::Pages;
use op::{Body, Reply};
use spawn::try_spawn;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// How long a page waits for a look at its inode, before which what is stored into it may be lost. A look is quick, but
/// for filesystems in the way to the mount that do not answer.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// And a question for the size: an old one is rare there even so.
const GLANCE_MAX: Duration = Duration::from_millis(100);
/// How long a page waits for the kernel to take a size, which it does not while a program here changes the size. What may
/// take long (pages that it drops because of a size) comes after that.
const TELL_MAX: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// How long it is told on after an answer that could not wait, and how often it is looked whether it knows by then.
const LATE_MAX: Duration = Duration::from_secs(10);
const LATE_AGAIN: Duration = Duration::from_millis(5);
/// How long an answer that changes the size waits for the kernel to be done with the size that it was told before.
const SETTLED_MAX: Duration = Duration::from_millis(50);
/// How long there is no look after one in vain: at first, and at most.
const BLIND: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// A thread that has the kernel take a size.
struct Teller(Arc<Node>);

impl Teller {
    fn new(node: &Arc<Node>) -> Teller {
        node.size.tellers.fetch_add(1, Ordering::AcqRel);
        Teller(node.clone())
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.size.tellers.fetch_sub(1, Ordering::AcqRel);
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
    /// How many there are.
    asking: AtomicU64,
    /// What was said last of the root directory.
    root: Mutex<Option<AttrReply>>,
    /// Programs that wait to hear of it: what it was must not come between.
    root_asked: AtomicU64,
    /// That pages are filled unseen has been said.
    warned: AtomicBool,
    /// No look before then, and how long that was.
    blind: Mutex<Option<(Instant, Duration)>>,
}

/// A question, while the value lives.
struct Asking<'a>(&'a Looks, u32);

impl Looks {
    fn ask(&self, caller: u32, question: Question) -> Asking<'_> {
        self.questions.lock().insert(caller, question);
        self.asking.fetch_add(1, Ordering::AcqRel);
        Asking(self, caller)
    }

    pub fn is_blind(&self) -> bool {
        self.blind.lock().is_some_and(|(until, _)| Instant::now() < until)
    }

    /// A look has come to something.
    fn sees(&self) {
        *self.blind.lock() = None;
    }

    /// The mount could not be seen.
    fn is_in_vain(&self) {
        let mut blind = self.blind.lock();
        let now = Instant::now();
        let length = match *blind {
            // Others have seen that as well.
            Some((until, _)) if now < until => return,
            Some((_, length)) => (2 * length).min(BLIND[1]),
            None => BLIND[0],
        };
        *blind = Some((now + length, length));
    }

    /// A page is filled though the kernel may not know the size.
    fn warn(&self, ino: InodeNo) {
        if !self.warned.swap(true, Ordering::AcqRel) {
            let inode = ino.0;
            tracing::warn!(
                inode,
                "the kernel may not know how large a file is that another host has made longer"
            );
        }
    }

    /// A program asks for the attributes of the root directory, until the value is dropped.
    pub fn root_asked(self: &Arc<Self>) -> RootAsked {
        self.root_asked.fetch_add(1, Ordering::AcqRel);
        RootAsked(self.clone())
    }

    /// What the kernel has been told of the root directory.
    pub fn note_root(&self, told: &AttrReply) {
        *self.root.lock() = Some(AttrReply { attr_valid: Duration::ZERO, ..told.clone() });
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.questions.lock().remove(&self.1);
        self.0.asking.fetch_sub(1, Ordering::AcqRel);
    }
}

/// See [`Looks::root_asked`].
pub struct RootAsked(Arc<Looks>);

impl Drop for RootAsked {
    fn drop(&mut self) {
        self.0.root_asked.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The kernel is told of a size, until the value is dropped: what is told later would not be true any more.
struct Telling {
    view: Arc<dyn InodeView>,
    is_open: Arc<Mutex<bool>>,
}

impl Drop for Telling {
    fn drop(&mut self) {
        *self.is_open.lock() = false;
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
    let node = core.nodes.get(ino);
    match node.size.get().is_some() && !node.size.may_be_back() {
        true => told.look(),
        false => told.run(None),
    }
}

/// Do `work` with `what` on a thread of its own, or `otherwise` here.
pub(super) fn apart<W: Send + 'static>(
    what: W,
    work: impl FnOnce(W) + Send + 'static,
    otherwise: impl FnOnce(W),
) {
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
            let is_back = |doubt: &u64| {
                let seen = op.core.visible(&node, &mut node.state.lock());
                seen.is_ok_and(|(attr, _)| node.size.is_back(op.core.clock.now(), *doubt, attr.size))
            };
            let (doubt, view) = match (node.size.get().filter(|doubt| !is_back(doubt)), &looked) {
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
        let core = self.core;
        let node = core.nodes.get(self.ino);
        let wait = if self.pages.is_some() { TELL_MAX } else { GLANCE_MAX };
        let late = core.tell(&node, view, wait);
        if late.is_none() {
            node.size.ends(core.clock.now(), doubt);
        }
        let standing = core.store.permit().confirm_standing();
        (self.reply)(standing.map(|()| done));
        let (Some(late), true) = (late, self.pages.is_some()) else { return drop(pins) };
        // Nothing is lost if it knows before the page is written back.
        core.looks.warn(self.ino);
        let (deadline, name) = (Instant::now() + LATE_MAX, LockName::Inode(self.ino));
        while node.is_open() && Instant::now() < deadline && !core.locks.is_wanted_elsewhere(name) {
            if core.knows_size(&node, &late.view) {
                node.size.ends(core.clock.now(), doubt);
                break;
            }
            std::thread::sleep(LATE_AGAIN);
        }
        drop((late, pins));
    }

    /// Go on when the inode is in view, or cannot be seen.
    fn look(self) {
        if self.core.looks.is_blind() {
            return self.unseen();
        }
        let work = |told: Self| {
            let parked = told.pages.map(|pages| serving::Parked::new(&told.core, told.ino, pages));
            let wait = if parked.is_some() { LOOK_MAX } else { GLANCE_MAX };
            let view = told.core.look(told.ino, wait);
            drop(parked);
            match view {
                Some(view) => told.run(Some(Some(view))),
                None => told.unseen(),
            }
        };
        apart(self, work, Self::unseen);
    }

    /// Go on without a look.
    fn unseen(self) {
        if self.pages.is_some() {
            self.core.looks.warn(self.ino);
        }
        self.run(Some(None));
    }
}

impl Core {
    /// An inode as the kernel has it.
    pub(super) fn look(self: &Arc<Self>, ino: InodeNo, wait: Duration) -> Option<Arc<dyn InodeView>> {
        let (sender, views) = channel::bounded(1);
        let core = self.clone();
        let open = move || {
            let node = core.nodes.get(ino);
            let _way = core.looks.ask(core.kernel.caller(), Question::Way);
            let view = core.kernel.view(core.nodeid(ino), node.known_generation());
            match &view {
                Ok(_) => core.looks.sees(),
                // This inode's alone: it is gone.
                Err(e) if e.kind() == std::io::ErrorKind::StaleNetworkFileHandle => {}
                Err(e) => {
                    tracing::debug!(inode = ino.0, "cannot look at the mount: {e}");
                    core.looks.is_in_vain();
                }
            }
            let _ = sender.send(view.ok());
        };
        if try_spawn("look", open).is_some() {
            return None;
        }
        match views.recv_timeout(wait) {
            Ok(view) => view,
            Err(_) => {
                // Something in the way there does not answer; not that it was slow for a moment.
                if wait >= LOOK_MAX {
                    self.looks.is_in_vain();
                }
                None
            }
        }
    }

    /// Does the kernel go by the size that the inode has now? It is pinned.
    fn knows_size(&self, node: &Node, view: &Arc<dyn InodeView>) -> bool {
        let now = || self.visible(node, &mut node.state.lock()).map(|(attr, _)| attr.size).ok();
        view.size().ok().is_some_and(|known| Some(known) == now())
    }

    /// Have the kernel take the size that the inode has now, which is pinned. `None` if it has it; else it is told on.
    fn tell(self: &Arc<Self>, node: &Arc<Node>, view: Arc<dyn InodeView>, wait: Duration) -> Option<Telling> {
        if self.knows_size(node, &view) {
            return None;
        }
        let telling = Telling { view, is_open: Arc::new(Mutex::new(true)) };
        let (core, ino, asked, going) =
            (self.clone(), node.ino, telling.view.clone(), telling.is_open.clone());
        let teller = Teller::new(node);
        // The kernel takes the size over first, and then may drop pages because of it: that can end after the request
        // is answered that waits for this.
        let ask = move || {
            let question = Question::Size { ino, is_open: going.clone() };
            let _asking = core.looks.ask(core.kernel.caller(), question);
            let mut pause = LOOK_AGAIN;
            // Once more if something comes between its question and the answer.
            loop {
                let wanted = *going.lock();
                if !wanted || asked.ask().is_err() {
                    break;
                }
                std::thread::sleep(pause);
                pause = (2 * pause).min(LATE_AGAIN);
            }
            *going.lock() = false;
            drop(teller);
        };
        if try_spawn("tell", ask).is_some() {
            return Some(telling);
        }
        let deadline = Instant::now() + wait;
        while !self.knows_size(node, &telling.view) {
            let given_up = !*telling.is_open.lock();
            if given_up || Instant::now() > deadline {
                return Some(telling);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        None
    }

    /// Do `then`, an answer that changes what the kernel takes for the size, when it is done with a size that it was told
    /// before: it drops what is behind that in its pages.
    pub(super) fn after_telling(self: &Arc<Self>, ino: InodeNo, then: impl FnOnce() + Send + 'static) {
        let node = match self.nodes.find(ino) {
            Some(node) if node.size.is_being_told() => node,
            _ => return then(),
        };
        let wait = |(node, then): (Arc<Node>, _)| {
            let deadline = Instant::now() + SETTLED_MAX;
            // It may wait for what waits for this.
            while node.size.is_being_told() && Instant::now() < deadline {
                std::thread::sleep(LOOK_AGAIN);
            }
            drop(node);
            let then: Box<dyn FnOnce() + Send> = then;
            then();
        };
        let then: Box<dyn FnOnce() + Send> = Box::new(then);
        apart((node, then), wait, |(_, then)| then());
    }

    /// The answer to what a thread of ours asks for through the mount, without a lock; `None` for all others.
    pub(super) fn answer_own(&self, caller: u32, node: NodeId) -> Option<Result<AttrReply>> {
        if self.looks.asking.load(Ordering::Acquire) == 0 {
            return None;
        }
        let ino = self.ino(node);
        let is_open = match self.looks.questions.lock().get(&caller)? {
            Question::Way if ino == self.root => {
                // Nobody may rely on it, the kernel asks again before it does; but what it asks now it must not miss.
                let is_asked = self.looks.root_asked.load(Ordering::Acquire) > 0;
                return if is_asked { None } else { self.looks.root.lock().clone().map(Ok) };
            }
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
    fn there_is_no_look_for_a_while_after_one_in_vain() {
        let looks = Looks::default();
        assert!(!looks.is_blind());
        (0..5).for_each(|_| looks.is_in_vain());
        assert!(looks.is_blind());
        assert_eq!(looks.blind.lock().unwrap().1, BLIND[0], "once for all who find out");
        looks.sees();
        assert!(!looks.is_blind());
    }
}
