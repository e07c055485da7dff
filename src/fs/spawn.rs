//! Threads for what may block, for a while or for good: calls to the kernel, waiting for peers.
//!
//! No work waits behind other work. A thread that has ended its own waits a little for more, because starting one
//! can take longer than what it is started for: on one CPU the kernel lets a new thread wait for its first turn behind
//! all that run, but not one that is woken up.

use super::*;
use std::sync::{Condvar, Mutex as Lock, MutexGuard as LockGuard, PoisonError};
use std::time::Instant;

/// How long a thread waits for more to do.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// How long to try to get a thread, and how long to wait between attempts.
const THREAD_MAX: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(2);

type Work = Box<dyn FnOnce() + Send>;

/// Where a thread waits for work. The standard library's, which goes to sleep at once: to look out for work a little
/// longer takes the processor from those that are to give it.
#[derive(Default)]
struct Seat {
    work: Lock<Option<Work>>,
    given: Condvar,
}

impl Seat {
    fn work(&self) -> LockGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, work: Work) {
        *self.work() = Some(work);
        self.given.notify_one();
    }

    /// The work that is given within this time.
    fn take_within(&self, time: Duration) -> Option<Work> {
        let is_missing = |work: &mut Option<Work>| work.is_none();
        let work = self.given.wait_timeout_while(self.work(), time, is_missing);
        work.unwrap_or_else(PoisonError::into_inner).0.take()
    }

    /// The work that is given.
    fn take(&self) -> Option<Work> {
        let work = self.given.wait_while(self.work(), |work| work.is_none());
        work.unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Those of all threads without work. The last one to come is the first to go, so that those there are too many of wait
/// in vain, and end.
static IDLE: Mutex<Vec<Arc<Seat>>> = Mutex::new(Vec::new());

/// Run `work` on a thread that does nothing else meanwhile. Without threads for long it runs here: what it has to
/// answer is answered.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    insist(work, |work| try_spawn(name, work));
}

/// As [`spawn`], but on a new thread, with the priority of this one, that takes nothing else.
pub(super) fn spawn_alone(name: &str, work: impl FnOnce() + Send + 'static) {
    insist(work, |work| try_with(work, |run| start(name, run)));
}

fn insist<W: FnOnce()>(work: W, attempt: impl Fn(W) -> Option<W>) {
    let deadline = Instant::now() + THREAD_MAX;
    let mut work = Some(work);
    while let Some(todo) = work.take() {
        work = attempt(todo);
        if Instant::now() > deadline
            && let Some(todo) = work.take()
        {
            todo();
        } else if work.is_some() {
            std::thread::sleep(TRY_AGAIN);
        }
    }
}

/// Run `work` on a thread that does nothing else meanwhile, or give it back. `name` is for the thread, if it is new.
pub(super) fn try_spawn<W: FnOnce() + Send + 'static>(name: &str, work: W) -> Option<W> {
    try_with(work, |run| {
        let idle = IDLE.lock().pop();
        if let Some(seat) = idle {
            seat.give(run);
            return true;
        }
        let serve = move || {
            run();
            while let Some(work) = next() {
                work();
            }
        };
        start(name, Box::new(serve))
    })
}

/// Give `work` to `attempt`, or back if that comes to nothing.
fn try_with<W: FnOnce() + Send + 'static>(work: W, attempt: impl FnOnce(Work) -> bool) -> Option<W> {
    let shared = Arc::new(Mutex::new(Some(work)));
    let taken = shared.clone();
    let run = move || {
        let work = taken.lock().take();
        if let Some(work) = work {
            work();
        }
    };
    if attempt(Box::new(run)) { None } else { shared.lock().take() }
}

fn start(name: &str, run: Work) -> bool {
    let thread = std::thread::Builder::new().name(format!("shoal-{name}")).stack_size(128 << 10).spawn(run);
    thread.inspect_err(|e| tracing::error!("cannot start a thread: {e}")).is_ok()
}

/// Wait for more work, for a while.
fn next() -> Option<Work> {
    let seat = Arc::new(Seat::default());
    IDLE.lock().push(seat.clone());
    seat.take_within(IDLE_MAX).or_else(|| {
        let mut idle = IDLE.lock();
        match idle.iter().position(|other| Arc::ptr_eq(other, &seat)) {
            Some(at) => {
                idle.remove(at);
                None
            }
            // Somebody has chosen it, and has given by now, or is about to.
            None => {
                drop(idle);
                seat.take()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel;
    use std::collections::HashSet;

    #[test]
    fn what_found_no_thread_is_not_lost() {
        let (sender, done) = channel::unbounded();
        let again = sender.clone();
        spawn("test", move || again.send(1).unwrap());
        assert_eq!(done.recv(), Ok(1));
        assert!(try_spawn("test", move || sender.send(2).unwrap()).is_none());
        assert_eq!(done.recv(), Ok(2));
    }

    #[test]
    fn what_is_to_be_alone_gets_a_thread_that_ends_with_it() {
        let (sender, done) = channel::unbounded();
        for _ in 0..20 {
            let sender = sender.clone();
            spawn_alone("alone", move || {
                let name = std::thread::current().name().map(str::to_owned);
                sender.send((name, std::thread::current().id())).unwrap();
            });
        }
        drop(sender);
        let (names, ids): (Vec<_>, HashSet<_>) = done.iter().unzip();
        assert!(names.iter().all(|name| name.as_deref() == Some("shoal-alone")) && ids.len() == 20);
    }

    #[test]
    fn no_work_waits_for_other_work() {
        let (sender, done) = channel::unbounded();
        let (stuck, release) = channel::bounded::<()>(0);
        for round in 0..20 {
            let (sender, release) = (sender.clone(), release.clone());
            spawn("test", move || {
                sender.send(round).unwrap();
                let _ = release.recv();
            });
            assert_eq!(done.recv_timeout(Duration::from_secs(20)), Ok(round));
        }
        drop(stuck);
    }

    #[test]
    fn a_thread_that_is_done_takes_more() {
        let (sender, done) = channel::unbounded();
        let ran_on = |_| {
            let sender = sender.clone();
            spawn("test", move || sender.send(std::thread::current().id()).unwrap());
            // It is back where it waits by then, unless the machine is very busy: then try again.
            let id = done.recv().unwrap();
            std::thread::sleep(Duration::from_millis(20));
            id
        };
        let ids: HashSet<_> = (0..50).map(ran_on).collect();
        assert!(ids.len() < 40, "{} threads", ids.len());
    }
}
