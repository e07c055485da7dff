//! `shoal mount` and `mount.fuse.shoal`: `DEVICE DIRECTORY [-sfnv] [-o OPTIONS]`.

use crate::cluster::UNWANTED;
use crate::device::Exclusive;
use crate::device::local::{self, DeviceIdentity, Registration};
use crate::device::mountinfo;
use crate::fs::Fs;
use crate::fs::mount::start;
use crate::fuse::adapter::{Adapter, Leave};
use crate::fuse::cli::{FAILED, USAGE, again, complain};
use crate::fuse::daemon::{self, Readiness, Role, Served, Signals};
use crate::fuse::guardian::{self, Guardian, Lease, Side};
use crate::fuse::mount::Place;
use crate::fuse::notify::Notifier;
use crate::fuse::options::Request;
use crate::fuse::reply::Safe;
use crate::fuse::{log, mount};
use parking_lot::Mutex;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// How long a mount waits for the daemon of an earlier, unmounted one to let go of the device.
const LEAVING_MAX: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Arguments {
    /// Block device or image file.
    device: PathBuf,
    /// Where to mount it.
    directory: PathBuf,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground, with the log on stderr.
    #[arg(long)]
    foreground: bool,
    /// Pass over unknown mount options.
    #[arg(short = 's')]
    sloppy: bool,
    /// Do everything but mount.
    #[arg(short = 'f')]
    fake: bool,
    /// Without effect: there is no mtab to write.
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Say what is done.
    #[arg(short = 'v')]
    verbose: bool,
    /// The type that mount(8) was given.
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    fs_type: Option<String>,
}

/// What to mount where, names made absolute.
struct Task {
    request: Request,
    /// The device as it was given, made absolute, for listings.
    source: PathBuf,
    mountpoint: PathBuf,
}

/// Mounts; returns 0 only when the mount is usable. The daemon's own process returns from here when
/// the volume is unmounted.
pub fn run(name: &str, arguments: Arguments) -> ExitCode {
    let task = match prepare(&arguments) {
        Ok(task) => task,
        Err((what, code)) => return complain(name, what, code),
    };
    if arguments.fake {
        return ExitCode::SUCCESS;
    }
    if task.request.remount {
        return match remount(&task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(what) => complain(name, what, FAILED),
        };
    }
    let done = || {
        if arguments.verbose {
            println!("{} mounted on {}", task.source.display(), task.mountpoint.display());
        }
        ExitCode::SUCCESS
    };
    match again::mount(&task.request, &task.mountpoint) {
        Some(Ok(())) => return done(),
        Some(Err(what)) => return complain(name, what, FAILED),
        None => {}
    }
    let signals = Signals::block();
    let readiness = if arguments.foreground {
        Readiness::nobody()
    } else {
        match daemon::detach(&signals) {
            Ok(Role::Daemon(readiness)) => readiness,
            Ok(Role::Command(Ok(()))) => return done(),
            // Another mount of the device may have been faster.
            Ok(Role::Command(Err(what))) => match again::mount(&task.request, &task.mountpoint) {
                Some(Ok(())) => return done(),
                _ => return complain(name, what, FAILED),
            },
            Err(e) => return complain(name, format_args!("cannot start a daemon: {e}"), FAILED),
        }
    };
    serve(&task, readiness, arguments.foreground, signals)
}

fn prepare(arguments: &Arguments) -> Result<Task, (String, u8)> {
    let absolute =
        |path: &Path| std::fs::canonicalize(path).map_err(|e| (format!("{}: {e}", path.display()), FAILED));
    let mut request = Request::new(PathBuf::new());
    for list in &arguments.options {
        request.parse(list, arguments.sloppy).map_err(|what| (what, USAGE))?;
    }
    mount::check_page_size().map_err(|what| (what, FAILED))?;
    let at = arguments.directory.display();
    if is_dead(&arguments.directory) {
        return Err((
            format!("{at}: the daemon of the mount here is dead: umount {at}, then mount again"),
            FAILED,
        ));
    }
    let mountpoint = absolute(&arguments.directory)?;
    if !mountpoint.is_dir() {
        return Err((format!("{}: not a directory", arguments.directory.display()), FAILED));
    }
    // A remount of a volume whose device has another name by now must still work.
    request.volume.device = match absolute(&arguments.device) {
        Err(_) if request.remount => arguments.device.clone(),
        other => other?,
    };
    if !request.remount && is_mounted_there(&request.volume.device, &mountpoint) {
        return Err((format!("{}: already mounted at {at}", arguments.device.display()), FAILED));
    }
    // Listings are read by others, from other directories.
    let source = std::path::absolute(&arguments.device).unwrap_or_else(|_| arguments.device.clone());
    Ok(Task { request, source, mountpoint })
}

/// Does a mount whose daemon has died answer for this directory? Its attributes may still be cached.
fn is_dead(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
}

/// Is this device what is mounted last at this directory?
fn is_mounted_there(device: &Path, mountpoint: &Path) -> bool {
    let Ok(Some(entry)) = mountinfo::mounted_at(mountpoint) else { return false };
    let identity = DeviceIdentity::of(device);
    local::daemon_of(&entry).is_some_and(|r| identity.is_ok_and(|i| i == r.daemon.identity))
}

fn remount(task: &Task) -> Result<(), String> {
    let there = format!("{}: no Shoal volume is mounted here", task.mountpoint.display());
    let entry = match mountinfo::mounted_at(&task.mountpoint) {
        Ok(Some(entry)) if entry.is_shoal() => entry,
        Ok(_) => return Err(there),
        Err(e) => return Err(e.to_string()),
    };
    if entry.read_only && !task.request.volume.read_only {
        let cannot = |e: std::io::Error| match e.raw_os_error() {
            Some(libc::EROFS) => "the volume has features that this version may only read".to_string(),
            Some(libc::ENOTTY) => {
                "its daemon, of an earlier version, cannot: unmount it and mount it again".into()
            }
            _ => e.to_string(),
        };
        mount::make_writable(&task.mountpoint)
            .map_err(|e| format!("{} stays read-only: {}", task.mountpoint.display(), cannot(e)))?;
    }
    mount::remount(&task.mountpoint, task.request.flags)
        .map_err(|e| format!("remounting {}: {e}", task.mountpoint.display()))
}

/// The daemon's life.
fn serve(task: &Task, readiness: Readiness, foreground: bool, signals: Signals) -> ExitCode {
    if let Err(e) = log::start(task.request.log.as_deref(), foreground) {
        readiness.failed(&e.to_string());
        return ExitCode::from(FAILED);
    }
    let device = &task.request.volume.device;
    let registration = match register(task) {
        Ok(registration) => registration,
        Err(e) => {
            readiness.failed(&format!("{}: {e}", task.source.display()));
            return ExitCode::from(FAILED);
        }
    };
    let guardian = match guardian::start() {
        Ok(Side::Daemon(guardian)) => guardian,
        Ok(Side::Guardian(watcher)) => {
            drop(readiness);
            // Its lock stays with both processes: who waits for the end of the daemon wants the device, which the
            // guardian may have. Its file is the daemon's.
            std::mem::forget(registration);
            watcher.watch(foreground, device);
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            readiness.failed(&format!("cannot start the guardian of the daemon: {e}"));
            return ExitCode::from(FAILED);
        }
    };
    daemon::harden();
    match volume(task, readiness, (registration, guardian), signals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::from(FAILED),
    }
}

/// Joins, mounts, serves, leaves. Failures are told to whoever waits, or else to the log.
fn volume(
    task: &Task,
    readiness: Readiness,
    (registration, guardian): (Registration, Guardian),
    signals: Signals,
) -> Result<(), ()> {
    let shown = task.source.display();
    let device = &task.request.volume.device;
    let (fuse, notifier) = match open() {
        Ok(opened) => opened,
        Err(e) => return fail(readiness, &format!("{shown}: {e}")),
    };
    let claim = match Exclusive::take(device) {
        Ok(claim) => Arc::new(claim),
        Err(e) => return fail(readiness, &with_device(&e.to_string(), device)),
    };
    let started = Arc::new(OnceLock::new());
    let lease = match guardian.begin(alone(started.clone(), claim.clone())) {
        Ok(lease) => lease,
        Err(e) => return fail(readiness, &format!("{shown}: no thread for the guardian: {e}")),
    };
    notifier.set_guardian(lease.clone());
    let told = lease.clone();
    claim.when_lent(move |number| told.set_lent(number));
    // Errors of the volume name the device themselves where it helps.
    let fs = match start(&task.request.volume, notifier.clone()) {
        Ok(fs) => fs,
        Err(e) => return fail(readiness, &with_device(&e.to_string(), device)),
    };
    let _ = started.set(Arc::downgrade(&fs));
    let registration = Arc::new(Mutex::new(registration));
    let record = registration.clone();
    fs.on_halt(move |why| {
        if let Err(e) = record.lock().set_halted(why) {
            tracing::warn!("the record of this daemon: {e}");
        }
    });
    let member = Member { fs, registration, lease, shown: shown.to_string(), left: OnceLock::new() };
    let member = Arc::new(member);
    let (ended, failed) = match begin(task, &member, (fuse, &notifier), &claim, signals) {
        Ok(served) => {
            tracing::info!("{shown} mounted on {}", task.mountpoint.display());
            // The log and `shoal status` have it, too: to programs (xfstests for one) any word of a mount that
            // succeeds is a fault.
            if let Some(warning) = member.fs.warning().filter(|_| std::io::stderr().is_terminal()) {
                eprintln!("{warning}");
            }
            readiness.ready();
            let ended = served.run().map_err(|e| tracing::error!("serving {shown}: {e}"));
            notifier.set_unmounted();
            (ended, None)
        }
        Err(e) => (Err(()), Some((readiness, e.to_string()))),
    };
    let left = member.leave();
    // Who waits for that may mount again at once.
    if let Some((readiness, why)) = failed {
        readiness.failed(&why);
    }
    // To the end of the process, for whatever still has the device open until then.
    std::mem::forget((member, claim));
    ended.and(left)
}

/// Mounts and answers INIT.
fn begin(
    task: &Task,
    member: &Arc<Member>,
    (fuse, notifier): (OwnedFd, &Arc<Notifier>),
    claim: &Exclusive,
    signals: Signals,
) -> std::io::Result<Served<Adapter<Fs>>> {
    if Signals::are_pending() {
        return Err(std::io::Error::other(format!("{}: {UNWANTED}", task.source.display())));
    }
    let adapter = Adapter::new(member.fs.clone()).leaving(member.clone());
    let place = Place {
        source: task.source.as_os_str(),
        mountpoint: &task.mountpoint,
        flags: task.request.flags,
        claim: Some(claim).filter(|_| task.request.claim),
    };
    let served = daemon::begin(adapter, fuse, notifier.clone(), place, task.request.threads)?;
    let known = member.registration.lock().set_mounted(served.connection);
    let known = known.and_then(|()| served.unmount_on_signals(signals));
    known.inspect_err(|_| served.withdraw()).map(|()| served)
}

/// A host of the volume, to the end of its process.
struct Member {
    fs: Arc<Fs>,
    registration: Arc<Mutex<Registration>>,
    lease: Arc<Lease>,
    shown: String,
    left: OnceLock<Result<(), ()>>,
}

impl Member {
    /// Leaves the volume, the first time: when umount(2) waits for it, else when the mount has ended. Comes back
    /// when that is done.
    fn leave(&self) -> Result<(), ()> {
        *self.left.get_or_init(|| {
            if let Err(e) = self.registration.lock().set_leaving() {
                tracing::warn!("the record of this daemon: {e}");
            }
            let left = self.fs.stop();
            match &left {
                Ok(()) => {
                    self.lease.set_over();
                    tracing::info!("{} left", self.shown);
                }
                Err(e) => {
                    self.lease.set_soon();
                    tracing::error!("leaving {}: {e}", self.shown);
                }
            }
            left.map_err(drop)
        })
    }
}

impl Leave for Member {
    fn leave(&self, safe: Safe) {
        self.fs.when_safe(safe);
        // The log has it.
        let _ = Member::leave(self);
    }

    fn overdue(&self) {
        self.lease.set_soon();
    }
}

/// What to do when the guardian is gone: without it nothing keeps a stopped daemon from writing late, and nobody but
/// us takes the claim on the device when the mount is cut.
fn alone(started: Arc<OnceLock<Weak<Fs>>>, claim: Arc<Exclusive>) -> impl FnOnce() + Send + 'static {
    const WHY: &str = "its guardian process is gone, and with it the protection against a long stop";
    move || match started.get() {
        Some(fs) => {
            if let Err(e) = claim.recover() {
                tracing::warn!("no thread to take the claim on the device back: {e}");
            }
            if let Some(fs) = fs.upgrade() {
                fs.halt(WHY);
            }
        }
        None => {
            tracing::error!("the mount is given up: {WHY}");
            std::process::abort();
        }
    }
}

fn fail(readiness: Readiness, why: &str) -> Result<(), ()> {
    readiness.failed(why);
    Err(())
}

/// The record of the daemon to be, once those of earlier mounts that leave are done. Before the guardian, which keeps
/// its lock too.
fn register(task: &Task) -> std::io::Result<Registration> {
    let device = &task.request.volume.device;
    local::wait_for_leaving_unless(device, LEAVING_MAX, &Signals::are_pending)?;
    Registration::new(device, &task.mountpoint)
}

fn open() -> std::io::Result<(OwnedFd, Arc<Notifier>)> {
    let fuse = mount::open_device()?;
    let notifier = Arc::new(Notifier::new(&fuse)?);
    Ok((fuse, notifier))
}

fn with_device(what: &str, device: &Path) -> String {
    let device = device.display().to_string();
    if what.contains(&device) { what.to_string() } else { format!("{device}: {what}") }
}
