//! The guardian's part in the claim on a block device (O_EXCL), which is lent to the kernel's mount.
//!
//! The mount gives it up when it ends, which a forced umount brings about while the daemon still has writes under
//! way, or is stopped in the middle of one. The presence lock keeps other mounts and the tools of the volume off then,
//! but nothing else does. So the guardian, which neither a stalled device nor a stopped daemon holds up, takes the
//! claim again, and has it until the daemon has ended. As long as the mount is listed, the kernel has the claim; from
//! then on it is tried for again and again. What is left is the time between two tries. Where the daemon knows that the
//! kernel is about to let go of a device that is still written to, it says so before, and there is next to none.
//!
//! A daemon that has left in order writes nothing any more. It says so before the kernel hears that it has left and
//! lets go: then nobody tries, and whoever comes next finds the device free.

use crate::device::{claim_again, mountinfo};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two tries: at first, and when a mount that is not listed any more is still used by programs.
const PAUSE: Duration = Duration::from_micros(500);
const PAUSE_USED: Duration = Duration::from_millis(5);
/// For so long it may only be about to end.
const USED: Duration = Duration::from_secs(10);
/// When the kernel is about to let go: as short as a sleep can be, and for so long.
const PAUSE_SOON: Duration = Duration::from_micros(20);
const SOON: Duration = Duration::from_secs(10);
/// How long the daemon waits for the guardian to have heard of that: longer than the pauses above.
const HEED_MAX: Duration = Duration::from_millis(50);
/// Between two looks where the kernel does not tell of changes, or the device cannot be opened.
const LOOK: Duration = Duration::from_millis(100);
/// And while there is nothing to take.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// How long a try may take before nobody waits for it.
const TRY_MAX: Duration = Duration::from_millis(200);

/// What daemon and guardian share; all zeros at first.
#[derive(Default)]
#[repr(C)]
pub struct Lent {
    /// Number of the device that a mount has claimed; 0: none.
    device: AtomicU64,
    /// The daemon has left in order.
    over: AtomicBool,
    /// The guardian is trying.
    trying: AtomicBool,
    /// The kernel is about to let go although the daemon is not done.
    soon: AtomicBool,
    /// The guardian knows.
    heeded: AtomicBool,
}

impl Lent {
    /// A mount has claimed the device of this number.
    pub fn set_device(&self, number: u64) {
        self.device.store(number, Ordering::SeqCst);
    }

    /// Nothing will be written any more: from now on nobody tries to take the claim again.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::SeqCst);
        // A try that began before must not succeed when the mount lets go. The guardian may be stopped in the middle of it.
        let begun = Instant::now();
        while self.trying.load(Ordering::SeqCst) && begun.elapsed() < TRY_MAX {
            std::thread::sleep(PAUSE);
        }
    }

    /// The kernel is about to let go of the device, which is still written to. Comes back when the guardian waits for
    /// that moment.
    pub fn set_soon(&self) {
        if self.device.load(Ordering::SeqCst) == 0 {
            return;
        }
        self.soon.store(true, Ordering::SeqCst);
        // The guardian may be stopped.
        let begun = Instant::now();
        while !self.heeded.load(Ordering::SeqCst) && begun.elapsed() < HEED_MAX {
            std::thread::sleep(PAUSE);
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Who takes the claim again.
pub struct Claimant {
    lent: &'static Lent,
    path: PathBuf,
    /// Has something to tell when mounts come and go.
    changes: Option<File>,
    held: Held,
    /// Is the mount listed, as far as it was looked at?
    listed: bool,
    /// May that have changed?
    changed: bool,
    /// When it was first tried.
    since: Option<Instant>,
    /// Since when the kernel is about to let go.
    soon: Option<Instant>,
    told: bool,
}

type Held = Arc<Mutex<Option<File>>>;

/// What it has, once it has it.
pub struct Hold {
    lent: &'static Lent,
    held: Held,
}

impl Hold {
    /// The daemon has ended.
    pub fn release(self) {
        self.lent.set_over();
        *self.held.lock() = None;
    }
}

impl Claimant {
    /// Of the device at `path`. To be made before it is lent.
    pub fn new(lent: &'static Lent, path: &Path) -> Claimant {
        let changes = File::open("/proc/self/mountinfo").ok();
        Claimant {
            lent,
            path: path.to_owned(),
            changes,
            held: Held::default(),
            listed: true,
            changed: true,
            since: None,
            soon: None,
            told: false,
        }
    }

    /// Goes on to the end of the process, on a thread of its own.
    ///
    /// # Errors
    /// If there can be none.
    pub fn begin(mut self) -> io::Result<Hold> {
        let hold = Hold { lent: self.lent, held: self.held.clone() };
        let run = move || {
            loop {
                let pause = self.tend();
                self.changed |= wait_for(self.changes.as_ref(), pause);
            }
        };
        std::thread::Builder::new().name("shoal-claim".into()).stack_size(256 << 10).spawn(run)?;
        Ok(hold)
    }

    /// What is due now; the answer: for how long nothing will be, if no mount comes or goes.
    fn tend(&mut self) -> Duration {
        let number = self.lent.device.load(Ordering::SeqCst);
        if number == 0 || self.lent.is_over() || self.held.lock().is_some() {
            return LOOK_IDLE;
        }
        if self.soon.is_none() && self.lent.soon.load(Ordering::SeqCst) {
            self.soon = Some(Instant::now());
            self.lent.heeded.store(true, Ordering::SeqCst);
        }
        // A list may be long, and this is done at the priority of the guardian.
        if std::mem::take(&mut self.changed) || self.listed || self.changes.is_none() {
            self.listed = is_listed(number);
        }
        if self.listed {
            self.since = None;
            return if self.changes.is_some() { LOOK_IDLE } else { LOOK };
        }
        self.since.get_or_insert_with(Instant::now);
        match self.try_take(number) {
            Ok(true) => {
                tracing::warn!(
                    "{}: its mount is gone before the daemon was done: the guardian has the device until it is",
                    self.path.display()
                );
                LOOK_IDLE
            }
            Ok(false) => LOOK_IDLE,
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => self.pause(),
            Err(e) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!("{}: cannot be kept from others: {e}", self.path.display());
                }
                LOOK
            }
        }
    }

    /// Until the next try.
    fn pause(&self) -> Duration {
        let within = |since: Option<Instant>, limit| since.is_some_and(|since| since.elapsed() < limit);
        match () {
            () if within(self.soon, SOON) => PAUSE_SOON,
            () if within(self.since, USED) => PAUSE,
            () => PAUSE_USED,
        }
    }

    /// Not if the daemon has left meanwhile.
    fn try_take(&self, number: u64) -> io::Result<bool> {
        self.take_by(|| claim_again(&self.path, number))
    }

    fn take_by(&self, claim: impl FnOnce() -> io::Result<File>) -> io::Result<bool> {
        self.lent.trying.store(true, Ordering::SeqCst);
        let taken = match self.lent.is_over() {
            true => Ok(false),
            // Nobody waits for us for ever: it may be over since, and then the device is to be free.
            false => claim().map(|file| {
                let wanted = !self.lent.is_over();
                *self.held.lock() = Some(file).filter(|_| wanted);
                wanted
            }),
        };
        self.lent.trying.store(false, Ordering::SeqCst);
        taken
    }
}

/// For so long, or until `changes` has something to tell: then true. It can be read at any time; that it has changed is
/// urgent, and is told once.
fn wait_for(changes: Option<&File>, time: Duration) -> bool {
    let fd = changes.map_or(-1, AsRawFd::as_raw_fd);
    let mut entry = libc::pollfd { fd, events: libc::POLLPRI, revents: 0 };
    let time = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    // SAFETY: one live entry, whose descriptor is open or to be passed over; a live time; no mask.
    unsafe { libc::ppoll(&mut entry, 1, &time, std::ptr::null()) };
    entry.revents != 0
}

/// Does this process see a mount of the block device with this number? Then its superblock lives.
fn is_listed(number: u64) -> bool {
    let number = (u64::from(libc::major(number)), u64::from(libc::minor(number)));
    mountinfo::mounts().is_ok_and(|mounts| mounts.iter().any(|mount| mount.device == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant() -> (Claimant, &'static Lent) {
        let lent: &'static Lent = Box::leak(Box::default());
        (Claimant::new(lent, Path::new("/dev/null")), lent)
    }

    #[test]
    fn nothing_is_tried_before_it_is_lent_nor_after_the_end() {
        let (mut claimant, lent) = claimant();
        assert_eq!(claimant.tend(), LOOK_IDLE);
        // There is no such device, so a try fails.
        lent.set_device(libc::makedev(4095, 77));
        assert_eq!(claimant.tend(), LOOK);
        lent.set_over();
        assert_eq!(claimant.tend(), LOOK_IDLE);
        assert!(claimant.try_take(libc::makedev(4095, 77)).is_ok_and(|taken| !taken));
    }

    #[test]
    fn as_long_as_the_mount_is_listed_nothing_is_tried() {
        let (mut claimant, lent) = claimant();
        let (major, minor) = mountinfo::mounts().unwrap()[0].device;
        lent.set_device(libc::makedev(major as u32, minor as u32));
        assert_eq!((claimant.tend(), claimant.since), (LOOK_IDLE, None));
    }

    /// Who says that it is over goes on when no try can succeed any more.
    #[test]
    fn a_try_under_way_is_waited_for() {
        let (_, lent) = claimant();
        lent.trying.store(true, Ordering::SeqCst);
        let end = std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            lent.trying.store(false, Ordering::SeqCst);
        });
        lent.set_over();
        assert!(!lent.trying.load(Ordering::SeqCst));
        end.join().unwrap();
        lent.trying.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        lent.set_over();
        assert!(begun.elapsed() >= TRY_MAX, "a guardian that is stopped holds nobody up for ever");
    }

    /// A guardian that was stopped while it opened the device.
    #[test]
    fn what_is_taken_after_the_end_is_given_back() {
        let (claimant, lent) = claimant();
        let taken = claimant.take_by(|| {
            lent.set_over();
            File::open("/dev/null")
        });
        assert!(taken.is_ok_and(|taken| !taken) && claimant.held.lock().is_none());
    }

    #[test]
    fn there_is_no_pause_to_speak_of_when_the_kernel_is_about_to_let_go() {
        let (mut claimant, lent) = claimant();
        lent.set_soon();
        assert!(!lent.soon.load(Ordering::SeqCst), "there is nothing to take");
        lent.set_device(libc::makedev(4095, 77));
        let long_ago = Instant::now().checked_sub(USED * 2).unwrap();
        claimant.since = Some(long_ago);
        assert_eq!(claimant.pause(), PAUSE_USED);
        std::thread::scope(|scope| {
            let daemon = scope.spawn(|| lent.set_soon());
            while !daemon.is_finished() {
                claimant.tend();
                std::thread::sleep(PAUSE);
            }
        });
        assert!(lent.heeded.load(Ordering::SeqCst));
        assert_eq!(claimant.pause(), PAUSE_SOON);
        claimant.soon = Some(long_ago);
        assert_eq!(claimant.pause(), PAUSE_USED);
    }

    /// The list of mounts is read anew only when it may have changed.
    #[test]
    fn a_mount_that_is_gone_is_looked_for_again_when_others_come_or_go() {
        let (mut claimant, lent) = claimant();
        let (major, minor) = mountinfo::mounted_at(Path::new("/proc")).unwrap().unwrap().device;
        lent.set_device(libc::makedev(major as u32, minor as u32));
        (claimant.listed, claimant.changed) = (false, false);
        claimant.tend();
        assert!(claimant.since.is_some(), "it was looked for");
        claimant.changed = true;
        assert_eq!((claimant.tend(), claimant.since), (LOOK_IDLE, None));
    }
}
