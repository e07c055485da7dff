//! The write permit: blocks that others may come to own are written only while the lease lasts.

use crate::base::{Clock, Error, Result, SystemClock};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a write waits for the lease to be renewed before it gives up.
pub const PERMIT_WAIT_MAX: Duration = Duration::from_secs(60);

const UNLIMITED: u64 = u64::MAX;
const REVOKED: u64 = 0;

/// A deadline in time since boot (suspend included). Whoever renews the lease moves it forward and
/// subtracts the guard time for writes that are already on their way.
pub struct Permit {
    /// Nanoseconds since boot; [`UNLIMITED`] or [`REVOKED`].
    deadline: AtomicU64,
    clock: Arc<dyn Clock>,
    moved: (Mutex<()>, Condvar),
}

impl Default for Permit {
    fn default() -> Self {
        Permit::new(Arc::new(SystemClock))
    }
}

impl Permit {
    /// An unlimited permit (mkfs, fsck, a host that is known to be alone).
    pub fn new(clock: Arc<dyn Clock>) -> Permit {
        Permit { deadline: AtomicU64::new(UNLIMITED), clock, moved: Default::default() }
    }

    /// Writes may start until `boottime`.
    pub fn set_deadline(&self, boottime: Duration) {
        let nanos = u64::try_from(boottime.as_nanos()).unwrap_or(UNLIMITED - 1).clamp(1, UNLIMITED - 1);
        self.set(nanos);
    }

    /// Writes may start at any time.
    pub fn set_unlimited(&self) {
        self.set(UNLIMITED);
    }

    /// No write may start any more; waiting ones fail at once.
    pub fn revoke(&self) {
        self.set(REVOKED);
    }

    fn set(&self, nanos: u64) {
        let _held = self.moved.0.lock();
        self.deadline.store(nanos, Ordering::Release);
        self.moved.1.notify_all();
    }

    /// Time left; `None` if unlimited.
    pub fn remaining(&self) -> Option<Duration> {
        match self.deadline.load(Ordering::Acquire) {
            UNLIMITED => None,
            at => Some(Duration::from_nanos(at).saturating_sub(self.clock.now())),
        }
    }

    /// Ask before each write. Waits up to [`PERMIT_WAIT_MAX`] for an expired permit to be renewed.
    ///
    /// # Errors
    /// `TimedOut` if it was not, `Halted` if it was revoked.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.deadline.load(Ordering::Acquire) == UNLIMITED { Ok(()) } else { self.wait(PERMIT_WAIT_MAX) }
    }

    /// As [`Permit::check`] with another bound.
    pub fn wait(&self, bound: Duration) -> Result<()> {
        let give_up = self.clock.now() + bound;
        let mut held = self.moved.0.lock();
        loop {
            let deadline = self.deadline.load(Ordering::Acquire);
            if deadline == REVOKED {
                return Err(Error::Halted("the write permit was revoked".into()));
            }
            let now = self.clock.now();
            if deadline == UNLIMITED || now <= Duration::from_nanos(deadline) {
                return Ok(());
            }
            if now >= give_up {
                return Err(Error::TimedOut(
                    "the host's lease was not renewed, nothing may be written".into(),
                ));
            }
            // Short naps: a simulated clock moves without telling.
            self.moved.1.wait_for(&mut held, (give_up - now).min(Duration::from_millis(20)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_permit_waits_for_its_renewal() {
        let permit = Arc::new(Permit::default());
        assert!(permit.check().is_ok());
        permit.set_deadline(Duration::from_nanos(1));
        assert!(matches!(permit.wait(Duration::ZERO), Err(Error::TimedOut(_))));
        let renew = permit.clone();
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            renew.set_deadline(SystemClock.now() + Duration::from_secs(100));
        });
        assert!(permit.check().is_ok());
        t.join().unwrap();
        permit.revoke();
        assert!(matches!(permit.check(), Err(Error::Halted(_))));
    }
}
