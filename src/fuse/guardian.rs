//! The guardian: a small process beside the daemon that ends it when its lease is over while it does not
//! run.
//!
//! A daemon asks for its lease before each write. One that is stopped (SIGSTOP, a debugger, a frozen
//! machine that thaws) between that question and the write would write later, when others have long taken
//! over; and pages that its kernel has cached would be read for ever. So the guardian, which shares a page
//! of memory with it, kills it and cuts its connection to the kernel. Another thread of it takes the claim on the device
//! again when a mount is cut (see `claimant`).
//!
//! The rule: kill when the lease is over *and* the daemon has shown no sign of life for half the guard
//! time. A daemon that runs while its lease is over (the store stalls) is left alone: it starts no write,
//! and goes on if nobody has excluded it. Why that is enough: let a thread ask for the lease at time c and
//! be allowed to write; then c <= end - guard. If its process runs until p and is stopped then, before the
//! write, p - c is an ordinary scheduling pause, below half the guard time; so the last sign of life, which
//! is not after p, is at least half a guard time old when the lease ends, and the daemon is killed then.
//!
//! Not covered: a pause of the whole machine, the guardian included, with writes queued below the
//! daemon (a virtual machine that is suspended). Only fencing at the device covers that.

use crate::fuse::claimant::{Claimant, Hold, Lent};
use crate::fuse::mount;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Signs of life per longest silence.
const PULSES: u32 = 4;
/// Between two looks while there is no lease to watch.
const LOOK: Duration = Duration::from_secs(1);
/// The silence allowed before the lease says what it is.
const SILENCE_FIRST: Duration = Duration::from_millis(200);

/// What daemon and guardian share. Times are since boot, in nanoseconds.
#[derive(Default)]
#[repr(C)]
struct Page {
    /// 0: there is no lease yet.
    lease_end: AtomicU64,
    /// The daemon's last sign of life.
    pulse: AtomicU64,
    /// The longest time between two.
    silence: AtomicU64,
    /// Number of the connection to the kernel; 0: not mounted.
    connection: AtomicU64,
    lent: Lent,
}

/// A page of memory that both processes see; it is never unmapped.
#[derive(Clone, Copy)]
struct Shared(&'static Page);

impl Shared {
    fn new() -> io::Result<Shared> {
        // SAFETY: a fresh mapping of at least a `Page`, zeroed, which is a valid `Page`; it stays for
        // the life of both processes.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Shared(&*at.cast::<Page>()))
        }
    }
}

/// Now, suspend included.
fn boot_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What a look at the page tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing can be wrong before then.
    Until(Duration),
    Kill,
}

/// The rule at the head of the file.
fn judge(now: Duration, lease_end: Duration, pulse: Duration, silence: Duration) -> Verdict {
    match lease_end.max(pulse + silence) {
        _ if lease_end.is_zero() => Verdict::Until(now + LOOK),
        due if now <= due => Verdict::Until(due + Duration::from_millis(1)),
        _ => Verdict::Kill,
    }
}

/// Which of the two processes this is after [`start`].
pub enum Side {
    Daemon(Guardian),
    /// Call [`Watcher::watch`] when everything that the daemon alone should have is closed.
    Guardian(Watcher),
}

/// The daemon's end.
pub struct Guardian {
    page: Shared,
    process: OwnedFd,
}

/// The guardian's end.
pub struct Watcher {
    page: Shared,
    daemon: OwnedFd,
}

fn pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: a system call with numbers.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
        // SAFETY: a descriptor that the kernel has just given.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks the guardian off the daemon to be, which must have one thread. The guardian knows the daemon by a
/// descriptor that was opened before, so never another process of its number.
///
/// # Errors
/// If there can be no page, descriptor or process.
pub fn start() -> io::Result<Side> {
    let page = Shared::new()?;
    let daemon = pidfd(std::process::id() as libc::pid_t)?;
    // SAFETY: one thread, so the child may go on like any process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Guardian(Watcher { page, daemon })),
        child => Ok(Side::Daemon(Guardian { page, process: pidfd(child)? })),
    }
}

impl Guardian {
    /// Shows signs of life from now on, on a thread of its own; `orphaned` is called if the guardian ends
    /// while this process goes on.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn begin(self, orphaned: impl FnOnce() + Send + 'static) -> io::Result<Arc<Lease>> {
        let lease = Arc::new(Lease { page: self.page });
        lease.page.0.silence.store(SILENCE_FIRST.as_nanos() as u64, Ordering::Release);
        std::thread::Builder::new().name("shoal-pulse".into()).stack_size(128 << 10).spawn(move || {
            let page = self.page.0;
            // SAFETY: a system call about the calling thread with numbers; it may fail.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
            loop {
                page.pulse.store(boot_time().as_nanos() as u64, Ordering::Release);
                let silence = Duration::from_nanos(page.silence.load(Ordering::Acquire));
                if wait_for(&[&self.process], silence / PULSES) {
                    reap(&self.process);
                    return orphaned();
                }
            }
        })?;
        Ok(lease)
    }
}

/// What the guardian is told of the lease.
pub struct Lease {
    page: Shared,
}

impl Lease {
    /// The lease was renewed: it ends then, and no write starts in the guard time before that.
    pub fn renewed(&self, end: Duration, guard: Duration) {
        self.page.0.silence.store((guard / 2).as_nanos() as u64, Ordering::Release);
        self.page.0.lease_end.store(end.as_nanos() as u64, Ordering::Release);
    }

    /// The mount stands, with this number of its connection; 0: it is gone.
    pub fn set_mounted(&self, connection: u64) {
        self.page.0.connection.store(connection, Ordering::Release);
    }

    /// A mount has claimed the block device of this number.
    pub fn set_lent(&self, device: u64) {
        self.page.0.lent.set_device(device);
    }

    /// The mount lets go of the device before the daemon has left.
    pub fn set_soon(&self) {
        self.page.0.lent.set_soon();
    }

    /// The daemon has left in order: the device is nobody's when the mount lets go of it.
    pub fn set_over(&self) {
        self.page.0.lent.set_over();
    }
}

impl Watcher {
    /// Until the daemon has ended. The log is the daemon's; `device` is what it mounts.
    pub fn watch(self, foreground: bool, device: &Path) {
        self.settle(foreground);
        // Opening a device may take as long as the device likes, which must not keep us from our work.
        let hold = Claimant::new(&self.page.0.lent, device).begin();
        if let Err(e) = &hold {
            tracing::warn!("{}: not kept from others if its mount is cut: no thread: {e}", device.display());
        }
        self.watch_lease();
        // Before the lock on the record goes: whoever waits for that finds the device free.
        hold.into_iter().for_each(Hold::release);
    }

    /// Until the daemon has ended.
    fn watch_lease(&self) {
        loop {
            let (now, page) = (boot_time(), self.page.0);
            let at = |what: &AtomicU64| Duration::from_nanos(what.load(Ordering::Acquire));
            let (end, pulse) = (at(&page.lease_end), at(&page.pulse));
            match judge(now, end, pulse, at(&page.silence)) {
                Verdict::Kill => {
                    self.kill();
                    let ago = |then: Duration| now.saturating_sub(then).as_millis();
                    tracing::error!(
                        "this host was stopped for longer than its lease: ended {} ms ago, last sign of life \
                         {} ms ago. Its daemon is killed, so that nothing it was about to write lands now; \
                         unmount it and mount it again",
                        ago(end),
                        ago(pulse)
                    );
                    wait_for(&[&self.daemon], Duration::MAX);
                    return;
                }
                Verdict::Until(then) if self.sleep(then) => return,
                Verdict::Until(_) => {}
            }
        }
    }

    /// Nothing of the daemon's but the log and the lock on its record stays open or in the way; what delays this
    /// process is kept off.
    fn settle(&self, foreground: bool) {
        let _ = std::env::set_current_dir("/");
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        // SAFETY: system calls about this process alone, with live arguments. Those that need a privilege
        // that is not there only cost some promptness.
        unsafe {
            libc::setsid();
            libc::prctl(libc::PR_SET_NAME, c"shoal-guardian".as_ptr(), 0, 0, 0);
            libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
            libc::sched_setscheduler(0, libc::SCHED_RR, &libc::sched_param { sched_priority: 1 });
        }
        let null = File::options().read(true).write(true).open("/dev/null");
        if let (Ok(null), false) = (null, foreground) {
            for fd in 0..=2 {
                // SAFETY: dup2 of an open descriptor onto the standard ones, which Rust owns no object of.
                unsafe { libc::dup2(null.as_raw_fd(), fd) };
            }
        }
    }

    /// Until a time since boot; true if the daemon has ended.
    fn sleep(&self, until: Duration) -> bool {
        let time =
            |d: Duration| libc::timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() };
        let spec = libc::itimerspec { it_interval: time(Duration::ZERO), it_value: time(until) };
        // SAFETY: system calls with live arguments; the descriptor is new and owned here. Other than the
        // time-outs of poll(2), this clock goes on while the machine is suspended.
        let timer = unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC);
            if fd < 0 {
                return wait_for(&[&self.daemon], until.saturating_sub(boot_time()).min(LOOK));
            }
            libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &spec, std::ptr::null_mut());
            OwnedFd::from_raw_fd(fd)
        };
        wait_for(&[&self.daemon, &timer], Duration::MAX);
        wait_for(&[&self.daemon], Duration::ZERO)
    }

    fn kill(&self) {
        // SAFETY: a system call with an open descriptor of a process and numbers.
        unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(libc::SYS_pidfd_send_signal, self.daemon.as_raw_fd(), libc::SIGKILL, none, 0);
        }
        // Its threads may be in calls that do not end; the kernel must not answer from its caches meanwhile.
        let connection = self.page.0.connection.load(Ordering::Acquire);
        if connection != 0
            && let Err(e) = mount::abort(connection)
        {
            tracing::warn!("cutting the connection of a killed daemon: {e}");
        }
    }
}

/// Until one of `fds` has something to tell; false if the time ran out first.
fn wait_for(fds: &[&OwnedFd], time: Duration) -> bool {
    let entry = |fd: &&OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<libc::pollfd> = fds.iter().map(entry).collect();
    let ms = if time == Duration::MAX { -1 } else { i32::try_from(time.as_millis()).unwrap_or(i32::MAX) };
    // SAFETY: a live array of the length given.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, ms) > 0 }
}

/// Takes the exit status of a child, so that nothing of it stays.
fn reap(child: &OwnedFd) {
    // SAFETY: a live siginfo; the descriptor is open.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_PIDFD,
            child.as_raw_fd() as libc::id_t,
            &mut info,
            libc::WEXITED | libc::WNOHANG,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn every_row_of_the_rule() {
        let silence = ms(200);
        for (now, lease_end, pulse, kill) in [
            (9000, 0, 0, false),       // joining
            (1000, 1500, 990, false),  // all is well
            (1400, 1500, 100, false),  // stopped, but the lease lasts
            (1600, 1500, 100, true),   // stopped before its end
            (1600, 1500, 1450, false), // stopped just now, or the store stalls
            (1651, 1500, 1450, true),  // stopped after all
            (9000, 1500, 8990, false), // the store stalls, the daemon runs
        ] {
            let verdict = judge(ms(now), ms(lease_end), ms(pulse), silence);
            assert_eq!(verdict == Verdict::Kill, kill, "{now} {lease_end} {pulse}: {verdict:?}");
            if let Verdict::Until(then) = verdict {
                assert!(then > ms(now), "it looks again later, not all the time");
            }
        }
    }
}
