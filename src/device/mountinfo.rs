//! What this process sees mounted: /proc/self/mountinfo.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What /proc/mounts, df and findmnt call a mounted volume.
pub const FS_TYPE: &str = "fuse.shoal";
/// And one that has claimed its block device.
pub const FS_TYPE_BLOCK: &str = "fuseblk.shoal";
/// Bits of a minor number inside the kernel.
const MINOR_BITS: u32 = 20;

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Device number of the mounted filesystem.
    pub device: (u64, u64),
    /// What of it is to be seen: `/`, or the directory that was bound.
    pub root: PathBuf,
    pub mountpoint: PathBuf,
    pub fs_type: OsString,
    pub source: OsString,
    /// All of the filesystem, whatever the flags of this mount point.
    pub read_only: bool,
}

impl MountEntry {
    /// Is it a Shoal volume?
    pub fn is_shoal(&self) -> bool {
        self.fs_type == FS_TYPE || self.fs_type == FS_TYPE_BLOCK
    }

    /// Does umount(2) wait until the daemon is done, and sync(2) ask it?
    pub fn has_claim(&self) -> bool {
        self.fs_type == FS_TYPE_BLOCK
    }

    /// The kernel's name for its connection: the number of its device, as the kernel has it inside.
    pub fn connection(&self) -> u64 {
        self.device.0 << MINOR_BITS | self.device.1
    }
}

/// Major and minor number of the mount with a connection of that name.
pub fn device_of(connection: u64) -> (u64, u64) {
    (connection >> MINOR_BITS, connection & ((1 << MINOR_BITS) - 1))
}

/// All mounts that this process sees, in the order of mounting.
///
/// # Errors
/// If /proc is not mounted.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    mounts_of("self")
}

/// All mounts that process `pid` sees.
fn mounts_of(pid: &str) -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read(format!("/proc/{pid}/mountinfo"))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// A process in another mount namespace (of a container, of a service) that still has filesystem
/// `device` mounted. A process that ends meanwhile is passed over.
pub fn elsewhere(device: (u64, u64)) -> Option<u32> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen = vec![namespace("self")?];
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some((name, pid)) =
            entry.file_name().to_str().and_then(|n| Some((n.to_owned(), n.parse().ok()?)))
        else {
            continue;
        };
        let Some(theirs) = namespace(&name).filter(|n| !seen.contains(n)) else { continue };
        if mounts_of(&name).is_ok_and(|mounts| mounts.iter().any(|m| m.device == device)) {
            return Some(pid);
        }
        seen.push(theirs);
    }
    None
}

/// Where all of the filesystem of `connection` is to be seen, in the order of mounting; not where something else has been
/// mounted on top.
///
/// # Errors
/// If /proc is not mounted.
pub fn places_of(connection: u64) -> io::Result<Vec<MountEntry>> {
    let mounts = mounts()?;
    let is_hidden = |i: usize| mounts[i + 1..].iter().any(|later| later.mountpoint == mounts[i].mountpoint);
    let is_one = |i: &usize| {
        let mount = &mounts[*i];
        mount.is_shoal() && mount.connection() == connection && mount.root == Path::new("/") && !is_hidden(*i)
    };
    Ok((0..mounts.len()).filter(is_one).map(|i| mounts[i].clone()).collect())
}

/// What is mounted at `mountpoint` (the last one, which hides those before it).
///
/// # Errors
/// If /proc is not mounted.
pub fn mounted_at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rev().find(|m| m.mountpoint == mountpoint))
}

/// `36 35 98:0 /root /mount/point options optional... - type source superoptions`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let (root, mountpoint) = (unescape(fields.next()?), unescape(fields.next()?));
    fields.find(|f| *f == b"-")?;
    Some(MountEntry {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        mountpoint: mountpoint.into(),
        fs_type: unescape(fields.next()?),
        source: unescape(fields.next()?),
        read_only: fields.next().is_some_and(|options| options.split(|b| *b == b',').any(|o| o == b"ro")),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        out.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line =
            br"61 30 0:52 / /mnt/with\040space rw,relatime shared:1 - fuse.shoal /dev/a\134b rw,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.device, (0, 52));
        assert_eq!((&*entry.root, &*entry.mountpoint), (Path::new("/"), Path::new("/mnt/with space")));
        assert!(!entry.read_only);
        assert_eq!(entry.fs_type, FS_TYPE);
        assert_eq!(entry.source, r"/dev/a\b");
        let bound = br"61 30 0:52 /a\040directory /mnt rw - fuse.shoal /dev/a ro,user_id=0";
        let bound = parse_line(bound).unwrap();
        assert_eq!((&*bound.root, bound.read_only), (Path::new("/a directory"), true));
        for broken in [&b""[..], b"1 2", b"61 30 0:52 / /mnt rw no separator", b"61 30 052 / /m rw - a b"] {
            assert_eq!(parse_line(broken), None);
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }
}
