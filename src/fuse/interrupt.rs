//! Requests on their way, and what an INTERRUPT does to them.
//!
//! The kernel sends INTERRUPT for a request that it has given out when a signal reaches the process
//! that waits for it. Most requests end soon and take no notice. One that waits for long (SETLKW) leaves
//! a hook, which is run once: it should make the request be answered with EINTR, if it is not answered
//! already.
//!
//! A thread that reads an INTERRUPT may overtake the one that read the request. So a request that is
//! not listed is either not yet listed or answered already: EAGAIN makes the kernel ask again in the
//! first case, and in the second it finds nothing to ask about.

use crate::store::BlockHash;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Threads rarely meet at one of so many.
const SHARDS: usize = 16;

/// To be done if a request is interrupted.
pub type Hook = Box<dyn FnOnce() + Send>;

/// What is to happen, or has happened, to a request on its way.
enum State {
    /// No hook, no interrupt.
    Plain,
    /// Interrupted; if it had a hook, that has run.
    Interrupted,
    /// Not interrupted, and wants to know.
    Listening(Hook),
}

/// What became of an INTERRUPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Its request is on its way, and knows.
    Listed,
    /// Its request has not been seen yet, or was answered.
    Unlisted,
}

/// The requests that have been read and not answered.
#[derive(Default)]
pub struct Requests {
    shards: [Mutex<Shard>; SHARDS],
}

/// By number: the kernel counts them up, two by two.
type Shard = HashMap<u64, State, BlockHash>;

impl Requests {
    fn shard(&self, unique: u64) -> &Mutex<Shard> {
        // The lowest bit is never set.
        &self.shards[(unique >> 1) as usize % SHARDS]
    }

    /// A request has been read.
    pub fn begin(&self, unique: u64) {
        self.shard(unique).lock().insert(unique, State::Plain);
    }

    /// A request is about to be answered.
    pub fn end(&self, unique: u64) {
        // A hook is dropped with the lock let go: it may own anything.
        let _state = self.shard(unique).lock().remove(&unique);
    }

    /// Runs `hook` if the request is interrupted, now or later. Not kept if there is no such request.
    pub fn listen(&self, unique: u64, hook: Hook) {
        match self.shard(unique).lock().get_mut(&unique) {
            Some(state @ State::Plain) => return *state = State::Listening(hook),
            Some(State::Interrupted) => {}
            Some(State::Listening(_)) | None => return,
        }
        hook();
    }

    /// An INTERRUPT for a request.
    pub fn interrupt(&self, unique: u64) -> Met {
        let state = match self.shard(unique).lock().get_mut(&unique) {
            Some(state) => std::mem::replace(state, State::Interrupted),
            None => return Met::Unlisted,
        };
        // With the lock let go: the hook will answer the request.
        if let State::Listening(hook) = state {
            hook();
        }
        Met::Listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn counting(count: &Arc<AtomicU32>) -> Hook {
        let count = Arc::clone(count);
        Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[test]
    fn a_request_that_listens_hears_once() {
        let (requests, count) = (Requests::default(), Arc::new(AtomicU32::new(0)));
        requests.begin(4);
        requests.begin(6);
        requests.listen(4, counting(&count));
        assert_eq!(requests.interrupt(6), Met::Listed);
        assert_eq!(count.load(Ordering::SeqCst), 0, "another's");
        assert_eq!(requests.interrupt(4), Met::Listed);
        assert_eq!(requests.interrupt(4), Met::Listed);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn one_that_listens_too_late_hears_at_once() {
        let (requests, count) = (Requests::default(), Arc::new(AtomicU32::new(0)));
        requests.begin(4);
        assert_eq!(requests.interrupt(4), Met::Listed);
        requests.listen(4, counting(&count));
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_kernel_shall_ask_again_for_what_is_not_listed() {
        let (requests, count) = (Requests::default(), Arc::new(AtomicU32::new(0)));
        assert_eq!(requests.interrupt(4), Met::Unlisted, "overtaken");
        requests.begin(4);
        requests.listen(4, counting(&count));
        requests.end(4);
        assert_eq!(requests.interrupt(4), Met::Unlisted, "answered");
        requests.listen(4, counting(&count));
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_hook_may_end_its_request() {
        let requests = Arc::new(Requests::default());
        requests.begin(4);
        let own = Arc::clone(&requests);
        requests.listen(4, Box::new(move || own.end(4)));
        assert_eq!(requests.interrupt(4), Met::Listed);
        assert_eq!(requests.interrupt(4), Met::Unlisted);
    }
}
