//! Who else has a device: mounts of this machine, and the identity by which two mounts recognise that
//! they opened the same thing.

use crate::base::{Error, Result};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// By what a mount recognises its device on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    /// 0 for an image file.
    pub rdev: u64,
    /// Of this boot of this machine.
    pub boot_id: [u8; 16],
    /// This machine's lasting identity, if it has one.
    pub machine_id: Option<[u8; 16]>,
    /// Locks and page cache of the image are this machine's alone. For a block device: false.
    pub local_filesystem: bool,
}

/// Filesystems on which an image is seen by one machine only, by `statfs` magic (linux/magic.h).
/// Everything not named here may be shared over a network.
const LOCAL: [u32; 9] = [
    0xef53,      // ext
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0x794c_7630, // overlayfs
];

/// The identity of an open device file.
///
/// # Errors
/// `Device` if the file or this machine's boot id cannot be asked.
pub fn identity(file: &File) -> Result<Identity> {
    let error = |e: std::io::Error| Error::Device(format!("asking for the identity of the device: {e}"));
    let meta = file.metadata().map_err(error)?;
    let block = meta.file_type().is_block_device();
    // SAFETY: statfs is plain data; all zeros is a valid value.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and the pointer is to a live statfs.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut fs) } != 0 {
        return Err(error(std::io::Error::last_os_error()));
    }
    Ok(Identity {
        dev: meta.dev(),
        ino: meta.ino(),
        rdev: if block { meta.rdev() } else { 0 },
        boot_id: boot_id()?,
        machine_id: machine_id(),
        local_filesystem: !block && LOCAL.contains(&(fs.f_type as u32)),
    })
}

/// This boot of this machine.
///
/// # Errors
/// `Device` if /proc does not tell.
pub fn boot_id() -> Result<[u8; 16]> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|e| Error::Device(format!("{PATH}: {e}")))?;
    let id = uuid::Uuid::parse_str(text.trim()).map_err(|e| Error::Device(format!("{PATH}: {e}")))?;
    Ok(id.into_bytes())
}

/// This machine's lasting identity, if it has one.
fn machine_id() -> Option<[u8; 16]> {
    machine_id_in(&std::fs::read_to_string("/etc/machine-id").unwrap_or_default())
}

/// None is there before the first boot is over ("uninitialized"), and in many containers.
fn machine_id_in(text: &str) -> Option<[u8; 16]> {
    uuid::Uuid::parse_str(text.trim()).ok().filter(|id| !id.is_nil()).map(uuid::Uuid::into_bytes)
}

/// Where this machine has the device or image mounted, or that it swaps to it; `None` if neither.
/// What the kernel holds otherwise (RAID member, mapped device) an exclusive open tells.
///
/// # Errors
/// `Device` if the path or /proc cannot be read.
pub fn in_use(path: &Path) -> Result<Option<String>> {
    let wanted = std::fs::metadata(path).map_err(|e| Error::Device(format!("{}: {e}", path.display())))?;
    let read = |p: &str| std::fs::read_to_string(p).map_err(|e| Error::Device(format!("{p}: {e}")));
    let mounts = read("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some(mount) = Mount::parse(line) else { continue };
        let by_number = wanted.file_type().is_block_device() && mount.device == Some(wanted.rdev());
        if by_number || is_same(&wanted, Path::new(&mount.source)) {
            return Ok(Some(format!("mounted at {}", mount.at)));
        }
    }
    // No /proc/swaps: a kernel without swap.
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut files = swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next());
    Ok(files.any(|f| is_same(&wanted, Path::new(&unescape(f)))).then(|| "used for swapping".into()))
}

fn is_same(wanted: &std::fs::Metadata, other: &Path) -> bool {
    if !other.is_absolute() {
        return false;
    }
    let Ok(meta) = std::fs::metadata(other) else { return false };
    match (wanted.file_type().is_block_device(), meta.file_type().is_block_device()) {
        (true, true) => wanted.rdev() == meta.rdev(),
        (false, false) => (wanted.dev(), wanted.ino()) == (meta.dev(), meta.ino()) && meta.is_file(),
        _ => false,
    }
}

/// One line of /proc/self/mountinfo.
struct Mount {
    device: Option<u64>,
    at: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (major, minor) = left.next()?.split_once(':')?;
        let at = left.nth(1)?;
        let source = right.split(' ').nth(1)?;
        let number = |n: &str| n.parse::<u32>().ok();
        let device = number(major).zip(number(minor)).map(|(a, b)| libc::makedev(a, b));
        Some(Mount { device, at: unescape(at), source: unescape(source) })
    }
}

/// /proc writes blanks, tabs, newlines and backslashes as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.as_bytes();
    while let Some((first, rest)) = bytes.split_first() {
        let octal = rest.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(code)) => {
                out.push(code);
                bytes = &rest[3..];
            }
            _ => {
                out.push(*first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
