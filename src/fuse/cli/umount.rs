//! `shoal umount` and `umount.fuse.shoal`: `DIRECTORY|DEVICE [-flnrv]`. Returns when the daemon has
//! written everything and left the cluster.

use crate::cluster::timing::LEAVE_MAX;
use crate::device::local;
use crate::device::mountinfo::{self, MountEntry};
use crate::fuse::cli::{FAILED, complain};
use crate::fuse::mount::{self, Unmount};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A daemon that has left needs so long at most to end.
const ENDING: Duration = Duration::from_secs(5);

/// How long a mount may look busy after the programs that used it have ended, and how often that is looked at: files of
/// asynchronous I/O and of killed programs are let go by the kernel a little later, some by threads of the daemon.
const LET_GO: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub struct Arguments {
    /// The directory, or the device as it was given to mount.
    target: PathBuf,
    /// Abort the connection first: what is not written yet is lost.
    #[arg(short = 'f')]
    force: bool,
    /// Out of sight now, unmounted when no longer in use; does not wait.
    #[arg(short = 'l')]
    lazy: bool,
    /// Without effect: there is no mtab to write.
    #[arg(short = 'n')]
    no_mtab: bool,
    /// If unmounting fails, make the mount read-only.
    #[arg(short = 'r')]
    read_only: bool,
    /// Say what is done.
    #[arg(short = 'v')]
    verbose: bool,
    /// The type that umount(8) was given.
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    fs_type: Option<String>,
    /// Seconds to wait for the daemon.
    #[arg(long, value_name = "SECONDS", default_value_t = LEAVE_MAX.as_secs())]
    wait: u64,
}

/// Unmounts and waits.
pub fn run(name: &str, arguments: &Arguments) -> ExitCode {
    let target = arguments.target.display();
    let entry = match find(&arguments.target) {
        Ok(Some(entry)) => entry,
        Ok(None) => return complain(name, format_args!("{target}: no Shoal volume is mounted"), FAILED),
        Err(e) => return complain(name, format_args!("{target}: {e}"), FAILED),
    };
    // Looked up before: afterwards the number may already belong to another mount.
    let daemon = local::daemon_of(&entry);
    let how = match (arguments.force, arguments.lazy) {
        (true, _) => Unmount::Force,
        (false, true) => Unmount::Lazy,
        (false, false) => Unmount::Plain,
    };
    let begun = Instant::now();
    if let Err(e) = unmount(&entry.mountpoint, how) {
        let flags = libc::MS_RDONLY;
        if arguments.read_only && mount::remount(&entry.mountpoint, flags).is_ok() {
            return complain(name, format_args!("{target}: {e}; made read-only instead"), 0);
        }
        return complain(name, format_args!("{target}: {e}"), FAILED);
    }
    if arguments.verbose {
        println!("{} unmounted", entry.mountpoint.display());
    }
    let Some(daemon) = daemon else { return ExitCode::SUCCESS };
    if how == Unmount::Lazy || still_mounted(entry.device) {
        return ExitCode::SUCCESS;
    }
    // The kernel tells the daemon of the last unmount only.
    if let Some(pid) = mountinfo::elsewhere(entry.device) {
        let what = format!(
            "{target}: unmounted here, but this host still has the volume: it is mounted in another mount \
             namespace too (process {pid})"
        );
        return complain(name, what, 0);
    }
    let limit = Duration::from_secs(arguments.wait);
    // The kernel may have waited for the daemon before.
    if daemon.wait(limit.saturating_sub(begun.elapsed()).max(ENDING)) {
        return ExitCode::SUCCESS;
    }
    let pid = daemon.daemon.pid;
    let what = format!("{target}: unmounted, but the daemon (process {pid}) is not done after {limit:?}");
    complain(name, what, FAILED)
}

fn unmount(at: &Path, how: Unmount) -> std::io::Result<()> {
    let begun = Instant::now();
    loop {
        match mount::unmount(at, how) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy && begun.elapsed() < LET_GO => {
                std::thread::sleep(LOOK);
            }
            done => return done,
        }
    }
}

/// The mount at a directory, else the last one of a device.
fn find(target: &Path) -> std::io::Result<Option<MountEntry>> {
    let mounts = mountinfo::mounts()?;
    let ours = |m: &&MountEntry| m.is_shoal();
    // Resolving the directory itself would ask its daemon, which may be gone: resolve the parent.
    let directory = match (std::path::absolute(target)?.parent(), target.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map(|p| p.join(name)).ok(),
        _ => std::fs::canonicalize(target).ok(),
    };
    let at_directory = mounts.iter().rev().find(|m| Some(&m.mountpoint) == directory.as_ref());
    let of_device = || mounts.iter().rev().filter(ours).find(|m| Path::new(&m.source) == target);
    Ok(at_directory.filter(ours).or_else(of_device).cloned())
}

/// Bind mounts and other namespaces may keep a filesystem whose mount here is gone.
fn still_mounted(device: (u64, u64)) -> bool {
    mountinfo::mounts().is_ok_and(|mounts| mounts.iter().any(|m| m.device == device))
}
