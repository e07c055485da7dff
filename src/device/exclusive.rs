//! The kernel's claim on a block device (O_EXCL): who has it keeps mkfs, other filesystems and RAID off.
//!
//! A mount of type fuseblk claims the device itself, which no second claim of the same process allows.
//! So ours is lent for it. When the mount is gone while its daemon still writes, another process takes it (the
//! guardian, `fuse::claimant`), or this one should that be gone. In between, and in the moment of lending, mounts of
//! this machine tell each other by a lock on the device file (see [`Access::Mount`](super::Access::Mount)), which
//! ends with the process and not before.

use super::file::{FileDevice, IN_USE, PRESENCE};
use super::{Access, Medium};
use crate::base::{Error, Result};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often it is tried to take a claim back.
const PAUSE: Duration = Duration::from_millis(5);

/// A claim on a block device. The claim of an image file is none: it may be mounted many times.
pub struct Exclusive {
    path: PathBuf,
    /// Not while it is lent.
    held: Mutex<Option<File>>,
    medium: Medium,
    /// The device's own number, as it was when it was claimed.
    number: u64,
    lent: OnceLock<Lent>,
}

/// Hears of the number of a device that is lent.
type Lent = Box<dyn Fn(u64) + Send + Sync>;

impl Exclusive {
    /// Claims the device at `path`.
    ///
    /// # Errors
    /// `Device` if somebody has it.
    pub fn take(path: &Path) -> Result<Exclusive> {
        let medium = FileDevice::open(path, Access::Read)?.medium();
        let held = match medium {
            Medium::File => None,
            Medium::Block => Some(open(path).map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => Error::Device(format!("{}: {IN_USE}", path.display())),
                _ => Error::Device(format!("{}: {e}", path.display())),
            })?),
        };
        let number = match held.as_ref().map(File::metadata).transpose() {
            Ok(metadata) => metadata.map_or(0, |m| m.rdev()),
            Err(e) => return Err(Error::Device(format!("{}: {e}", path.display()))),
        };
        Ok(Exclusive { path: path.to_owned(), held: Mutex::new(held), medium, number, lent: OnceLock::new() })
    }

    /// May a mount claim the device in our place? Not an image, and not where our presence is locked by
    /// nothing else.
    pub fn may_lend(&self) -> bool {
        let locked = || FileDevice::open(&self.path, Access::Read)?.is_range_locked(PRESENCE, 1);
        self.medium == Medium::Block && locked().unwrap_or(false)
    }

    /// Is `device` (major and minor number) the block device that was claimed? A name may lead elsewhere by now.
    pub fn is_of(&self, device: (u64, u64)) -> bool {
        let number = libc::makedev(device.0 as u32, device.1 as u32);
        self.medium == Medium::Block && self.number == number
    }

    /// From now on `tell` hears of the device's number when it has been lent. Once.
    pub fn when_lent(&self, tell: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.lent.set(Box::new(tell));
    }

    /// Lets `claim` have the device. If it fails, the claim is ours again.
    ///
    /// # Errors
    /// The outer one: somebody else has been faster than us. The inner one: `claim`'s.
    pub fn lend<T>(&self, claim: impl FnOnce() -> io::Result<T>) -> io::Result<io::Result<T>> {
        let mut held = self.held.lock();
        *held = None;
        let claimed = claim();
        match (&claimed, self.lent.get()) {
            (Err(_), _) => *held = Some(claim_again(&self.path, self.number)?),
            (Ok(_), Some(tell)) => tell(self.number),
            (Ok(_), None) => {}
        }
        Ok(claimed)
    }

    /// Takes the claim back as soon as whoever has it gives it up, if it is lent.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn recover(self: &Arc<Self>) -> io::Result<()> {
        if self.medium == Medium::File || self.held.lock().is_some() {
            return Ok(());
        }
        let own = Arc::clone(self);
        std::thread::Builder::new().name("claim".into()).spawn(move || {
            loop {
                match claim_again(&own.path, own.number) {
                    Ok(file) => return *own.held.lock() = Some(file),
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(PAUSE),
                    // A device that is gone.
                    Err(e) => return tracing::warn!("{}: {e}", own.path.display()),
                }
            }
        })?;
        Ok(())
    }
}

/// The block device with this number, with a claim on it, by its own name or, should that lead elsewhere by now, by
/// the one that it has of its number.
///
/// # Errors
/// `EBUSY` if somebody has it.
pub fn claim_again(path: &Path, number: u64) -> io::Result<File> {
    let of_number = format!("/dev/block/{}:{}", libc::major(number), libc::minor(number));
    let leads_there = std::fs::metadata(path).is_ok_and(|found| found.rdev() == number);
    let path = if leads_there { path } else { Path::new(&of_number) };
    let file = open(path)?;
    match file.metadata()?.rdev() == number {
        true => Ok(file),
        false => Err(io::Error::other(format!("{} is another device", path.display()))),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name may lead to another device by now.
    #[test]
    fn a_claim_is_taken_again_on_the_same_device_only() {
        let null = libc::makedev(1, 3);
        let by_name =
            |path: &str, number| claim_again(Path::new(path), number).map(|f| f.metadata().unwrap().rdev());
        assert_eq!(by_name("/dev/null", null).unwrap(), null);
        // Of character devices there are no names by number there.
        assert!(by_name("/dev/zero", null).is_err());
        assert!(by_name("/dev/null", libc::makedev(4095, 77)).is_err());
    }
}
