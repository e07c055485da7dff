//! From the mount command to a served mount and to its end.
//!
//! The command forks before it has any thread. The child becomes the daemon: it joins the cluster,
//! mounts, answers INIT and only then lets its parent go, so that a mount command that returned 0
//! left a usable mount; otherwise the parent prints what the child could not do. Nothing is printed
//! on success.

use crate::device::mountinfo;
use crate::fs::types::KernelCache;
use crate::fuse::mount::{self, Place, Unmount};
use crate::fuse::notify::Notifier;
use crate::fuse::session::{Handler, Session};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// <linux/prctl.h>; libc has no name for it.
const PR_SET_IO_FLUSHER: i32 = 57;

/// Heaps of the allocator.
const ARENAS_MAX: i32 = 4;

/// How often to look whether the heaps have grown, and by how many pages that is worth it to give back what
/// is free in them. The busiest moment leaves pages that hardly anything lies in.
#[cfg(target_env = "gnu")]
const TRIM_LOOK: std::time::Duration = std::time::Duration::from_secs(2);
#[cfg(target_env = "gnu")]
const TRIM_GROWTH: u64 = 4096;

/// Which of the two processes this is after [`detach`].
pub enum Role {
    /// The command; it ends with this: all well, or what went wrong.
    Command(Result<(), String>),
    /// The daemon to be.
    Daemon(Readiness),
}

/// The daemon's word to the waiting command.
pub struct Readiness(Option<PipeWriter>);

/// First byte of the daemon's word if all is well; else the word is an error message.
const READY: u8 = 0;

impl Readiness {
    /// For a daemon that stays in the foreground: nobody waits.
    pub fn nobody() -> Readiness {
        Readiness(None)
    }

    /// The mount is usable: lets go of the terminal, then of the command.
    pub fn ready(self) {
        if let Some(mut pipe) = self.0 {
            if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
                for fd in 0..=2 {
                    // SAFETY: dup2 of an open descriptor onto the standard ones, which Rust owns no object of.
                    unsafe { libc::dup2(null.as_raw_fd(), fd) };
                }
            }
            let _ = pipe.write_all(&[READY]);
        }
    }

    /// The mount failed.
    pub fn failed(self, why: &str) {
        match self.0 {
            Some(mut pipe) => drop(pipe.write_all(why.as_bytes())),
            None => eprintln!("{why}"),
        }
    }
}

/// Forks. The command's side returns when the daemon is ready, has failed or has died. Told to end meanwhile by one
/// of `signals`, it tells the daemon, which is in a session of its own, and waits for its word; told again, it does
/// not wait for it.
///
/// # Errors
/// If there can be no pipe or process.
pub fn detach(signals: &Signals) -> io::Result<Role> {
    let (reader, writer) = io::pipe()?;
    let told = signals.listen()?;
    // SAFETY: the process has one thread (commands start none before this), so the child may go on
    // like any process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop((reader, told));
            Ok(Role::Daemon(Readiness(Some(leave_session(writer)?))))
        }
        daemon => {
            drop(writer);
            let word = await_word(reader, told, daemon)?;
            Ok(Role::Command(match word.first() {
                Some(&READY) => Ok(()),
                Some(_) => Err(String::from_utf8_lossy(&word).into_owned()),
                None => Err("the daemon died before the mount was complete; see its log".into()),
            }))
        }
    }
}

/// All that the daemon says, which is nobody's but ours to wait for.
fn await_word(mut reader: PipeReader, mut told: File, daemon: libc::pid_t) -> io::Result<Vec<u8>> {
    let mut word = Vec::new();
    for times in 0.. {
        if !wait_for_first(&reader, &told)? {
            reader.read_to_end(&mut word)?;
            break;
        }
        if times > 0 {
            let process =
                format!("the daemon (process {daemon}) has been told to end, and is not waited for");
            return Ok(process.into_bytes());
        }
        // SAFETY: a signalfd gives whole records of plain data; the child was not waited for, so its number is its own.
        unsafe {
            let mut record: libc::signalfd_siginfo = std::mem::zeroed();
            let bytes = std::slice::from_raw_parts_mut((&raw mut record).cast::<u8>(), size_of_val(&record));
            told.read_exact(bytes)?;
            libc::kill(daemon, record.ssi_signo as i32);
        }
    }
    Ok(word)
}

/// Waits until there is something to read. Is it a signal?
fn wait_for_first(word: &PipeReader, told: &File) -> io::Result<bool> {
    let look = |fd: &dyn AsRawFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut ready = [look(word), look(told)];
    loop {
        // SAFETY: a pointer to live values, as many as said.
        match unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            // What the daemon says counts, also if a signal came with it.
            _ => return Ok(ready[0].revents == 0),
        }
    }
}

/// The child's part: own session, no current directory, nothing of the caller's left open but the
/// standard descriptors (until ready) and the pipe.
fn leave_session(pipe: PipeWriter) -> io::Result<PipeWriter> {
    const KEPT: i32 = 3;
    std::env::set_current_dir("/")?;
    // SAFETY: plain system calls on descriptors; the pipe is moved to KEPT and owned there alone,
    // and whatever else stood open above belongs to no object of this process.
    unsafe {
        libc::setsid();
        if pipe.as_raw_fd() != KEPT && libc::dup3(pipe.as_raw_fd(), KEPT, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(pipe);
        libc::close_range(KEPT as u32 + 1, u32::MAX, 0);
        Ok(OwnedFd::from_raw_fd(KEPT).into())
    }
}

/// What a process that serves a filesystem must be: spared the write-back of its own mounts when it
/// allocates, and dead rather than half alive after a panic (a thread that panicked leaves locks and
/// caches in an unknown state; the journal makes sudden death safe). Call it before any thread. Nor does the kernel
/// take it for the first to be killed when memory runs out: with it goes what was written here and not synced.
pub fn harden() {
    // Whoever may not set it is killed like any other.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    // SAFETY: a prctl without pointers. It is inherited by the threads started later; without the
    // privilege it fails, which only costs the guarantee.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    // Many threads that each allocate little: by default each gets a heap of its own, which keeps what
    // the busiest moment took.
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside the allocator; before any thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
    std::panic::set_hook(Box::new(|info| {
        let trace = std::backtrace::Backtrace::force_capture();
        tracing::error!("{info}; this host stops here\n{trace}");
        eprintln!("{info}");
        std::process::abort();
    }));
}

/// A mount that has answered INIT.
pub struct Served<H> {
    session: Session<H>,
    threads: usize,
    notifier: Arc<Notifier>,
    mountpoint: PathBuf,
    /// Does umount(2) wait for us?
    has_claim: bool,
    /// The kernel's name for the connection.
    pub connection: u64,
}

/// Mounts `device` (an open /dev/fuse, the one of `notifier`) and answers INIT.
///
/// # Errors
/// With what was tried; then nothing is mounted.
pub fn begin<H: Handler>(
    handler: H,
    device: OwnedFd,
    notifier: Arc<Notifier>,
    place: Place<'_>,
    threads: usize,
) -> io::Result<Served<H>> {
    let mountpoint = place.mountpoint.to_owned();
    let connection = mount::mount(device, place)
        .map_err(|e| io::Error::new(e.kind(), format!("mounting at {}: {e}", mountpoint.display())))?;
    let session = Session::begin(handler, connection.device).inspect_err(|_| {
        let _ = mount::unmount(&mountpoint, Unmount::Cut);
    })?;
    if let Err(e) = mount::raise_read_ahead(connection.id) {
        tracing::warn!("reads will be small: read_ahead_kb: {e}");
    }
    notifier.set_mounted(connection.id, &mountpoint);
    let has_claim = mountinfo::device_of(connection.id).0 != 0;
    Ok(Served { session, threads, notifier, mountpoint, has_claim, connection: connection.id })
}

impl<H: Handler> Served<H> {
    /// Takes the mount out of the tree again: it is not to be served.
    pub fn withdraw(&self) {
        // Cut, for nobody would answer what the kernel asks of one that goes.
        if let Err(e) = mount::unmount(&self.mountpoint, Unmount::Cut) {
            tracing::warn!("unmounting {}: {e}", self.mountpoint.display());
        }
        self.notifier.set_unmounted();
    }

    /// Serves until the filesystem is unmounted or its connection aborted.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(self) -> io::Result<()> {
        #[cfg(target_env = "gnu")]
        std::thread::Builder::new().name("trim".into()).spawn(trim_heaps)?;
        self.session.run(self.threads)
    }

    /// Unmounts lazily at the first SIGTERM, SIGINT or SIGHUP and aborts the connection at the next.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn unmount_on_signals(&self, signals: Signals) -> io::Result<()> {
        let (notifier, mountpoint) = (Arc::clone(&self.notifier), self.mountpoint.clone());
        let (has_claim, connection) = (self.has_claim, self.connection);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            signals.wait();
            tracing::info!("unmounting on a signal");
            for place in places(&mountpoint, connection) {
                let unmounted = match has_claim {
                    true => unmount_from_outside(&place, connection),
                    false => mount::unmount(&place, Unmount::Lazy),
                };
                if let Err(e) = unmounted {
                    tracing::warn!("unmounting {}: {e}", place.display());
                }
            }
            loop {
                signals.wait();
                tracing::warn!("aborting on a second signal");
                let _ = notifier.abort();
            }
        })?;
        Ok(())
    }
}

/// Where the mount is, the first place first, which is named also if nothing is known of it.
fn places(first: &Path, connection: u64) -> Vec<PathBuf> {
    let mut places = vec![first.to_owned()];
    let all = mountinfo::places_of(connection).inspect_err(|e| tracing::warn!("looking for mounts: {e}"));
    let all = all.into_iter().flatten().map(|entry| entry.mountpoint);
    places.extend(all.filter(|place| place != first));
    places
}

/// Unmounts lazily by another process, and does not wait for it. A thread of ours that waited for this very process
/// to answer could not be killed, and while it is there the connection does not end.
fn unmount_from_outside(mountpoint: &Path, connection: u64) -> io::Result<()> {
    match mountinfo::mounted_at(mountpoint)? {
        Some(entry) if entry.connection() == connection => {}
        Some(_) => return Err(io::Error::other("another mount lies over it")),
        None => return Err(io::Error::other("it is not mounted there")),
    }
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.arg0("shoal").args(["umount", "-l"]).arg(mountpoint).spawn()?;
    let reap = move || match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!("unmounting by another process: {status}"),
        Err(e) => tracing::warn!("unmounting by another process: {e}"),
    };
    std::thread::Builder::new().name("umount".into()).spawn(reap).map(drop)
}

/// Gives memory back that the allocator keeps for nothing, as long as the process lives.
#[cfg(target_env = "gnu")]
fn trim_heaps() {
    let resident = || -> Option<u64> {
        std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
    };
    let mut after = 0;
    loop {
        std::thread::sleep(TRIM_LOOK);
        let Some(pages) = resident() else { return };
        if pages > after + TRIM_GROWTH {
            // SAFETY: may be called at any time.
            unsafe { libc::malloc_trim(0) };
            after = resident().unwrap_or(pages);
        }
        after = after.min(pages);
    }
}

/// What ends a daemon.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals that end a daemon, blocked in every thread and waited for in one.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them in this thread and those it starts later: call it before any thread.
    pub fn block() -> Signals {
        // SAFETY: a sigset_t is plain data that sigemptyset initialises; the calls only read and
        // write it and this thread's mask.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in ENDING {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            Signals(set)
        }
    }

    /// Is one of them waiting to be taken?
    pub fn are_pending() -> bool {
        // SAFETY: as above; sigpending fills the set in.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigpending(&mut set) == 0 && ENDING.iter().any(|s| libc::sigismember(&set, *s) == 1)
        }
    }

    /// A file that can be read when one of them is waiting to be taken.
    fn listen(&self) -> io::Result<File> {
        // SAFETY: the set is initialised.
        match unsafe { libc::signalfd(-1, &self.0, libc::SFD_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a descriptor that the kernel has just given.
            fd => Ok(unsafe { File::from_raw_fd(fd) }),
        }
    }

    fn wait(&self) {
        let mut signal = 0;
        // SAFETY: both pointers are to live values.
        while unsafe { libc::sigwait(&self.0, &mut signal) } != 0 {}
    }
}
