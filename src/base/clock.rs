//! Time as the rooms see it: one trait, so that tests and simulations own the clock.

use std::time::Duration;

/// A clock of one host.
pub trait Clock: Send + Sync {
    /// Time since boot, suspend included (CLOCK_BOOTTIME). Leases and suspicion count in it.
    fn now(&self) -> Duration;
    /// Wall-clock time since 1970, for file times.
    fn wall(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live timespec; CLOCK_BOOTTIME exists on every Linux we run on.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut t) };
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }

    fn wall(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}
