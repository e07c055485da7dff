//! Daemons of this machine: which ones have a volume open, and which of those are about to leave.
//!
//! umount(2) of a FUSE mount returns before the daemon has written everything and left the cluster.
//! Whoever wants the device next (mount, mkfs, fsck, `umount.fuse.shoal`) waits here for it. Each
//! daemon keeps one record `/run/shoal/PID.json` and holds a lock on that file until it ends, however
//! it ends: the lock is the truth, the content only tells whose it is.

use crate::device::mountinfo::{self, MountEntry};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the records are.
const DIRECTORY: &str = "/run/shoal";
/// How often a waiter looks.
const POLL: Duration = Duration::from_millis(20);

/// What tells one device (or image file) from another, by whatever name it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Device number of a block device, else 0.
    pub rdev: u64,
    /// Of an image file: its filesystem and inode, else 0.
    pub dev: u64,
    pub ino: u64,
}

impl DeviceIdentity {
    /// Of the file at `path`.
    ///
    /// # Errors
    /// stat(2)'s.
    pub fn of(path: &Path) -> io::Result<DeviceIdentity> {
        let meta = std::fs::metadata(path)?;
        Ok(if meta.file_type().is_block_device() {
            DeviceIdentity { rdev: meta.rdev(), dev: 0, ino: 0 }
        } else {
            DeviceIdentity { rdev: 0, dev: meta.dev(), ino: meta.ino() }
        })
    }
}

/// A daemon's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    pub pid: u32,
    /// As given to mount.
    pub device: PathBuf,
    pub identity: DeviceIdentity,
    pub mountpoint: PathBuf,
    /// The kernel's name for the connection, once it is mounted.
    pub connection: Option<u64>,
    /// The mount is gone, so its number may be another mount's by now.
    #[serde(default)]
    pub leaving: bool,
    /// Why it has halted, if it has: it answers nothing but errors until it is unmounted.
    #[serde(default)]
    pub halted: Option<String>,
}

impl Daemon {
    /// Is this its mount? The number alone does not say so: the kernel gives it to the next mount while
    /// an unmounted daemon is still leaving.
    pub fn serves(&self, mount: &MountEntry) -> bool {
        mount.is_shoal()
            && !self.leaving
            && self.connection == Some(mount.connection())
            // A device that is gone tells nothing.
            && DeviceIdentity::of(Path::new(&mount.source)).map_or(true, |source| source == self.identity)
    }
}

/// How far a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Joining the cluster; not mounted yet.
    Joining,
    Mounted,
    /// Unmounted: writing what is left and leaving the cluster.
    Leaving,
}

/// The own record; it goes when this is dropped or the process ends.
pub struct Registration {
    file: File,
    path: PathBuf,
    daemon: Daemon,
}

impl Registration {
    /// Puts up the record of this process.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn new(device: &Path, mountpoint: &Path) -> io::Result<Registration> {
        Registration::in_directory(Path::new(DIRECTORY), device, mountpoint)
    }

    fn in_directory(directory: &Path, device: &Path, mountpoint: &Path) -> io::Result<Registration> {
        let pid = std::process::id();
        std::fs::create_dir_all(directory)?;
        let path = directory.join(format!("{pid}.json"));
        let file = loop {
            // A record left behind by an earlier process of this number has no lock on it. A reader
            // may be clearing it away at this moment: then it has no name any more.
            let file = File::options().create(true).truncate(false).write(true).read(true).open(&path)?;
            file.lock()?;
            if file.metadata()?.nlink() > 0 {
                break file;
            }
        };
        let daemon = Daemon {
            pid,
            device: device.to_owned(),
            identity: DeviceIdentity::of(device)?,
            mountpoint: mountpoint.to_owned(),
            connection: None,
            leaving: false,
            halted: None,
        };
        let mut registration = Registration { file, path, daemon };
        registration.write()?;
        Ok(registration)
    }

    /// The mount stands.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn set_mounted(&mut self, connection: u64) -> io::Result<()> {
        self.daemon.connection = Some(connection);
        self.write()
    }

    /// The mount is gone.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn set_leaving(&mut self) -> io::Result<()> {
        self.daemon.leaving = true;
        self.write()
    }

    /// The host has halted.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn set_halted(&mut self, why: &str) -> io::Result<()> {
        self.daemon.halted = Some(why.to_owned());
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.daemon)?;
        self.file.rewind()?;
        self.file.write_all(&text)?;
        self.file.set_len(text.len() as u64)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A daemon found running, with the record open, so that its end can be waited for.
pub struct Running {
    pub daemon: Daemon,
    pub stage: Stage,
    file: File,
}

impl Running {
    /// Waits until the daemon has ended; false if it has not within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        self.wait_unless(limit, &|| false)
    }

    /// The same, for no longer than until `given_up` says so.
    fn wait_unless(&self, limit: Duration, given_up: &dyn Fn() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if !is_locked(&self.file) {
                return true;
            }
            if Instant::now() >= deadline || given_up() {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The daemons that run on this machine now.
///
/// # Errors
/// If the records or /proc cannot be read (no record at all is no error).
pub fn running() -> io::Result<Vec<Running>> {
    running_in(Path::new(DIRECTORY))
}

fn running_in(directory: &Path) -> io::Result<Vec<Running>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(e),
    };
    let mounts = mountinfo::mounts()?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        // Gone or not yet written: its daemon ended or begins at this moment.
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            // Its daemon is dead. The lock keeps a new one from taking this file over meanwhile.
            let _ = std::fs::remove_file(&path);
            continue;
        }
        let Ok(daemon) = serde_json::from_reader::<_, Daemon>(&file) else { continue };
        let stage = match daemon.connection {
            None => Stage::Joining,
            Some(_) if mounts.iter().any(|m| daemon.serves(m)) => Stage::Mounted,
            Some(_) => Stage::Leaving,
        };
        found.push(Running { daemon, stage, file });
    }
    Ok(found)
}

/// The daemon of a mount; where that is not certain, the one that mounted at this place (it may have
/// been moved or bound elsewhere since).
pub fn daemon_of(mount: &MountEntry) -> Option<Running> {
    let mut running = running().unwrap_or_default();
    running.retain(|r| r.daemon.serves(mount));
    running.into_iter().max_by_key(|r| r.daemon.mountpoint == mount.mountpoint)
}

/// Waits until no unmounted daemon of this machine still has `device` open. Mounted ones are not
/// waited for: whether they are in the way is the caller's question.
///
/// # Errors
/// `TimedOut`, naming the daemon, after `limit`.
pub fn wait_for_leaving(device: &Path, limit: Duration) -> io::Result<()> {
    wait_for_leaving_unless(device, limit, &|| false)
}

/// The same, for no longer than until `given_up` says so.
///
/// # Errors
/// `TimedOut` as above; `Interrupted` if it was given up.
pub fn wait_for_leaving_unless(
    device: &Path,
    limit: Duration,
    given_up: &dyn Fn() -> bool,
) -> io::Result<()> {
    let identity = DeviceIdentity::of(device)?;
    for other in running()? {
        if other.stage == Stage::Leaving
            && other.daemon.identity == identity
            && !other.wait_unless(limit, given_up)
        {
            let pid = other.daemon.pid;
            if given_up() {
                let what = format!("told to end while its last daemon here (process {pid}) was leaving");
                return Err(io::Error::new(io::ErrorKind::Interrupted, what));
            }
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("was unmounted here, but its daemon (process {pid}) is not done after {limit:?}"),
            ));
        }
    }
    Ok(())
}

fn is_locked(file: &File) -> bool {
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_lives_as_long_as_its_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, b"x").unwrap();
        let mut own = Registration::in_directory(dir.path(), &image, Path::new("/mnt")).unwrap();
        // A flock belongs to the open file, so this process sees its own as another's would be.
        let found = running_in(dir.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].stage, Stage::Joining);
        assert_eq!(found[0].daemon.identity, DeviceIdentity::of(&image).unwrap());
        own.set_mounted(u64::MAX).unwrap();
        let found = running_in(dir.path()).unwrap();
        assert_eq!(found[0].stage, Stage::Leaving, "no such mount exists");
        // Whoever has its number now.
        let mounts = mountinfo::mounts().unwrap();
        own.set_mounted(mounts[0].device.1).unwrap();
        own.set_leaving().unwrap();
        assert_eq!(running_in(dir.path()).unwrap()[0].stage, Stage::Leaving);
        assert!(!found[0].wait(Duration::from_millis(30)));
        drop(own);
        assert!(found[0].wait(Duration::ZERO));
        assert!(running_in(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_mount_that_got_the_number_of_a_leaving_daemon_is_not_its() {
        let dir = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|name| dir.path().join(name));
        [&own, &other].iter().for_each(|image| std::fs::write(image, b"x").unwrap());
        let daemon = Daemon {
            pid: 1,
            device: own.clone(),
            identity: DeviceIdentity::of(&own).unwrap(),
            mountpoint: "/mnt".into(),
            connection: Some(42),
            leaving: false,
            halted: None,
        };
        let mount = |source: &Path, number, fs_type: &str| MountEntry {
            device: (0, number),
            root: "/".into(),
            mountpoint: "/mnt".into(),
            fs_type: fs_type.into(),
            source: source.into(),
            read_only: false,
        };
        assert!(daemon.serves(&mount(&own, 42, mountinfo::FS_TYPE)));
        assert!(!daemon.serves(&mount(&other, 42, mountinfo::FS_TYPE)));
        assert!(!daemon.serves(&mount(&own, 43, mountinfo::FS_TYPE)));
        assert!(!daemon.serves(&mount(&own, 42, "tmpfs")));
    }

    #[test]
    fn records_of_the_dead_and_rubbish_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.json"), b"{}").unwrap();
        std::fs::write(dir.path().join("note.txt"), b"hello").unwrap();
        assert!(running_in(dir.path()).unwrap().is_empty());
        assert!(!dir.path().join("1.json").exists() && dir.path().join("note.txt").exists());
        assert!(running_in(&dir.path().join("none")).unwrap().is_empty());
    }
}
