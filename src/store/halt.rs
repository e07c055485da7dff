//! The halt latch: once a host must not write any more, nothing un-trips it but a new mount.

use crate::base::{Error, Result};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// Set once, with the first reason; every later write and change is refused.
///
/// A failed metadata write or flush leaves the device in a state that this host no longer knows
/// (a second flush that succeeds says nothing about what the first one lost), so there is no retry.
#[derive(Default)]
pub struct Halt {
    tripped: AtomicBool,
    reason: Mutex<Option<String>>,
    listeners: Mutex<Vec<Listener>>,
}

impl Halt {
    /// Not tripped.
    pub fn new() -> Halt {
        Halt::default()
    }

    /// Trip the latch. The first reason stays; listeners are told once.
    pub fn trip(&self, reason: impl Into<String>) {
        self.trip_then(reason, || {});
    }

    /// As [`Halt::trip`]; `then` is done in any case, after the latch has tripped and before anybody is told.
    pub fn trip_then(&self, reason: impl Into<String>, then: impl FnOnce()) {
        let reason = reason.into();
        let already = {
            let mut first = self.reason.lock();
            let already = first.is_some();
            first.get_or_insert_with(|| reason.clone());
            self.tripped.store(true, Ordering::Release);
            already
        };
        then();
        if already {
            return;
        }
        tracing::error!("this host halts: {reason}");
        let listeners = std::mem::take(&mut *self.listeners.lock());
        for tell in listeners {
            tell(&reason);
        }
    }

    /// `Ok` while the host may go on.
    ///
    /// # Errors
    /// [`Error::Halted`] with the first reason.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.is_tripped() { Err(self.error()) } else { Ok(()) }
    }

    /// Has the latch been tripped?
    #[inline]
    pub fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::Acquire)
    }

    #[cold]
    fn error(&self) -> Error {
        Error::Halted(self.reason.lock().clone().unwrap_or_default())
    }

    /// Call `tell` once when the latch trips; at once if it already has. It must not block on work
    /// that the halted rooms would have to do.
    pub fn on_trip(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        let already = {
            // The reason's lock is held so that a trip meanwhile cannot miss the new listener.
            let reason = self.reason.lock();
            if reason.is_none() {
                self.listeners.lock().push(Box::new(tell));
                return;
            }
            reason.clone().unwrap_or_default()
        };
        tell(&already);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_first_reason_stays_and_everybody_is_told_once() {
        let halt = Halt::new();
        let told = Arc::new(AtomicU32::new(0));
        let count = |told: &Arc<AtomicU32>| {
            let told = told.clone();
            move |_: &str| {
                told.fetch_add(1, Ordering::Relaxed);
            }
        };
        halt.on_trip(count(&told));
        assert!(halt.check().is_ok());
        halt.trip("one");
        halt.trip("two");
        halt.on_trip(count(&told));
        assert_eq!(halt.check(), Err(Error::Halted("one".into())));
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_goes_with_a_halt_is_done_before_anybody_is_told_and_in_any_case() {
        let halt = Arc::new(Halt::new());
        let done = Arc::new(AtomicU32::new(0));
        let (seen, at) = (Arc::new(AtomicU32::new(0)), done.clone());
        let tell = seen.clone();
        halt.on_trip(move |_| tell.store(1 + at.load(Ordering::Relaxed), Ordering::Relaxed));
        let then = || {
            assert!(halt.is_tripped());
            done.fetch_add(1, Ordering::Relaxed);
        };
        halt.trip_then("one", then);
        halt.trip_then("two", then);
        assert_eq!((done.load(Ordering::Relaxed), seen.load(Ordering::Relaxed)), (2, 2));
        assert_eq!(halt.check(), Err(Error::Halted("one".into())));
    }
}
