//! The write permit: blocks that others may come to own are written only while the lease lasts, and
//! nothing is told to anybody that the lease does not cover.

use crate::base::{Clock, Error, Result, SystemClock};
use crate::store::halt::Halt;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a program waits for the lease to be renewed before it is told that nothing was done.
pub const CONFIRM_WAIT_MAX: Duration = Duration::from_secs(60);

/// How often one that waits for longer looks whether its host has halted.
const LOOK: Duration = Duration::from_millis(500);

const UNLIMITED: u64 = u64::MAX;
const REVOKED: u64 = 0;

/// Two deadlines in time since boot (suspend included): writes start until a guard time before the end
/// of the lease, for those that are already on their way; what is done counts until its end. Whoever
/// renews the lease moves both forward.
pub struct Permit {
    /// Nanoseconds since boot; [`UNLIMITED`] or [`REVOKED`].
    deadline: AtomicU64,
    /// Likewise, of the lease itself.
    lease_end: AtomicU64,
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
        Permit {
            deadline: AtomicU64::new(UNLIMITED),
            lease_end: AtomicU64::new(UNLIMITED),
            clock,
            moved: Default::default(),
        }
    }

    /// Writes may start until `write_until`, the lease ends at `lease_end`.
    pub fn set_deadlines(&self, write_until: Duration, lease_end: Duration) {
        let nanos =
            |at: Duration| u64::try_from(at.as_nanos()).unwrap_or(UNLIMITED - 1).clamp(1, UNLIMITED - 1);
        self.set(nanos(write_until), nanos(lease_end));
    }

    /// Writes may start at any time.
    pub fn set_unlimited(&self) {
        self.set(UNLIMITED, UNLIMITED);
    }

    /// No write may start any more; waiting ones fail at once. The caller halts the host, and says why.
    pub fn revoke(&self) {
        self.set(REVOKED, REVOKED);
    }

    fn set(&self, write_until: u64, lease_end: u64) {
        let _held = self.moved.0.lock();
        self.deadline.store(write_until, Ordering::Release);
        self.lease_end.store(lease_end, Ordering::Release);
        self.moved.1.notify_all();
    }

    /// When the lease ends (time since boot); `None`: never. Zero once it is revoked.
    pub fn lease_end(&self) -> Option<Duration> {
        match self.lease_end.load(Ordering::Acquire) {
            UNLIMITED => None,
            at => Some(Duration::from_nanos(at)),
        }
    }

    /// How much of the lease is left: for so long whoever is told something may rely on it.
    pub fn lease_left(&self) -> Duration {
        self.lease_end().map_or(Duration::MAX, |end| end.saturating_sub(self.clock.now()))
    }

    /// Time left; `None` if unlimited.
    pub fn remaining(&self) -> Option<Duration> {
        match self.deadline.load(Ordering::Acquire) {
            UNLIMITED => None,
            at => Some(Duration::from_nanos(at).saturating_sub(self.clock.now())),
        }
    }

    /// Ask before each write. Waits for an expired permit to be renewed for as long as it may still be: nobody
    /// has taken the host for dead then, and what is to be written may be the only copy.
    ///
    /// # Errors
    /// `Halted` if it was revoked, or if the host has halted, be it meanwhile.
    #[inline]
    pub fn to_write(&self, halt: &Halt) -> Result<()> {
        loop {
            halt.check()?;
            if self.deadline.load(Ordering::Acquire) == UNLIMITED {
                return Ok(());
            }
            match self.wait(LOOK) {
                Err(Error::TimedOut(_)) => {}
                asked => return asked.and_then(|()| halt.check()),
            }
        }
    }

    /// Wait until writes may start, but not for longer than `bound`.
    ///
    /// # Errors
    /// `TimedOut` if they may not, `Halted` if the permit was revoked.
    pub fn wait(&self, bound: Duration) -> Result<()> {
        self.wait_for(&self.deadline, bound)
    }

    /// Ask before anything is told that others could have made untrue: what was written is durable, what
    /// is in memory is current. A lease that has ended says nothing by itself; one that was renewed since
    /// says that nobody has acted on this host's death up to then (rule R3).
    ///
    /// # Errors
    /// Those of [`Permit::wait`], after [`CONFIRM_WAIT_MAX`].
    #[inline]
    pub fn confirm(&self) -> Result<()> {
        self.confirm_within(CONFIRM_WAIT_MAX)
    }

    fn confirm_within(&self, bound: Duration) -> Result<()> {
        match self.lease_end.load(Ordering::Acquire) {
            UNLIMITED => Ok(()),
            at if at != REVOKED && self.clock.now() <= Duration::from_nanos(at) => Ok(()),
            _ => self.wait_for(&self.lease_end, bound),
        }
    }

    /// As [`Permit::confirm`], for what stands already and must be told of, however long the store stands still.
    ///
    /// # Errors
    /// `Halted` if the permit was revoked: then it does not stand any more.
    pub fn confirm_standing(&self) -> Result<()> {
        loop {
            match self.confirm() {
                Err(Error::TimedOut(_)) => {}
                sure => return sure,
            }
        }
    }

    /// As [`Permit::confirm_standing`], unless this host halts meanwhile.
    ///
    /// # Errors
    /// `Halted`.
    pub fn confirm_written(&self, halt: &Halt) -> Result<()> {
        loop {
            match self.confirm_within(LOOK) {
                Err(Error::TimedOut(_)) => halt.check()?,
                sure => return sure,
            }
        }
    }

    #[cold]
    fn wait_for(&self, which: &AtomicU64, bound: Duration) -> Result<()> {
        let give_up = self.clock.now() + bound;
        let mut held = self.moved.0.lock();
        loop {
            let deadline = which.load(Ordering::Acquire);
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
        let halt = Halt::new();
        assert!(permit.to_write(&halt).is_ok());
        permit.set_deadlines(Duration::from_nanos(1), Duration::from_nanos(2));
        assert!(matches!(permit.wait(Duration::ZERO), Err(Error::TimedOut(_))));
        let renew = permit.clone();
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let end = SystemClock.now() + Duration::from_secs(100);
            renew.set_deadlines(end, end);
        });
        assert!(permit.confirm().is_ok() && permit.to_write(&halt).is_ok());
        t.join().unwrap();
        permit.revoke();
        assert!(matches!(permit.to_write(&halt), Err(Error::Halted(_))));
        assert!(matches!(permit.confirm(), Err(Error::Halted(_))));
        assert_eq!(permit.lease_left(), Duration::ZERO);
    }

    /// Each look at it is ten seconds later.
    struct Hasty(AtomicU64);

    impl Clock for Hasty {
        fn now(&self) -> Duration {
            Duration::from_secs(10 * self.0.fetch_add(1, Ordering::Relaxed))
        }
        fn wall(&self) -> Duration {
            self.now()
        }
    }

    #[test]
    fn what_stands_is_told_after_a_stall_of_any_length() {
        let permit = Arc::new(Permit::new(Arc::new(Hasty(AtomicU64::new(1)))));
        let second = Duration::from_secs(1);
        permit.set_deadlines(second, second);
        assert!(matches!(permit.confirm(), Err(Error::TimedOut(_))));
        let waits = |permit: &Arc<Permit>| {
            let permit = permit.clone();
            std::thread::spawn(move || permit.confirm_standing())
        };
        let told = waits(&permit);
        std::thread::sleep(Duration::from_millis(300));
        assert!(!told.is_finished());
        permit.set_unlimited();
        assert!(told.join().unwrap().is_ok());
        permit.set_deadlines(second, second);
        let told = waits(&permit);
        permit.revoke();
        assert!(matches!(told.join().unwrap(), Err(Error::Halted(_))));
    }

    #[test]
    fn a_write_waits_out_a_stall_of_any_length_unless_the_host_halts() {
        let permit = Arc::new(Permit::new(Arc::new(Hasty(AtomicU64::new(1)))));
        let (second, halt) = (Duration::from_secs(1), Arc::new(Halt::new()));
        let waits = |asks: fn(&Permit, &Halt) -> Result<()>| {
            permit.set_deadlines(second, second);
            let (permit, halt) = (permit.clone(), halt.clone());
            let waiting = std::thread::spawn(move || asks(&permit, &halt));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!waiting.is_finished());
            waiting
        };
        for asks in [Permit::to_write, Permit::confirm_written] {
            let waiting = waits(asks);
            permit.set_unlimited();
            assert!(waiting.join().unwrap().is_ok());
        }
        let waiting = [waits(Permit::to_write), waits(Permit::confirm_written)];
        halt.trip("by the test");
        assert!(waiting.into_iter().all(|w| matches!(w.join().unwrap(), Err(Error::Halted(_)))));
    }

    #[test]
    fn what_is_done_counts_a_little_longer_than_writes_may_start() {
        let permit = Permit::default();
        assert_eq!((permit.lease_end(), permit.lease_left()), (None, Duration::MAX));
        let now = SystemClock.now();
        permit.set_deadlines(now - Duration::from_secs(1), now + Duration::from_secs(100));
        assert!(matches!(permit.wait(Duration::ZERO), Err(Error::TimedOut(_))));
        assert!(permit.confirm().is_ok());
        assert!(permit.lease_left() > Duration::from_secs(90));
    }
}
