//! The attributes of an inode as the rooms above use them.

use crate::base::{Error, Generation, InodeNo, Result};
use crate::format::inode::{DiskAttr, DiskTime, FLAG_TRUNCATING, FLAGS_OF_PROGRAMS};
use crate::format::value::FileKind;
use std::time::Duration;
use zerocopy::little_endian::{I64, U32, U64};

/// A file time; ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Since 1970; negative before.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// A nanosecond later.
    pub fn next(self) -> Timestamp {
        if self.nanos == 999_999_999 {
            Timestamp { seconds: self.seconds.saturating_add(1), nanos: 0 }
        } else {
            Timestamp { nanos: self.nanos + 1, ..self }
        }
    }

    fn to_disk(self) -> DiskTime {
        DiskTime { seconds: I64::new(self.seconds), nanos: U32::new(self.nanos) }
    }

    fn from_disk(d: &DiskTime) -> Timestamp {
        Timestamp { seconds: d.seconds.get(), nanos: d.nanos.get().min(999_999_999) }
    }
}

impl From<Duration> for Timestamp {
    fn from(since_1970: Duration) -> Timestamp {
        Timestamp { seconds: since_1970.as_secs() as i64, nanos: since_1970.subsec_nanos() }
    }
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: InodeNo,
    pub generation: Generation,
    pub kind: FileKind,
    /// Permission bits (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Bytes on the disk; what is dirty in memory comes on top.
    pub size: u64,
    /// Data blocks of 4096 bytes.
    pub blocks: u64,
    pub rdev: u32,
    /// Directories: the inode of `..`.
    pub parent: InodeNo,
    /// A truncation that is not finished yet, and its target.
    pub truncating: Option<u64>,
    /// Those that programs set ([`FLAGS_OF_PROGRAMS`]).
    pub flags: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    pub project: u32,
}

impl Attr {
    /// A new inode with one link, owned by root, all times `now`.
    pub fn new(ino: InodeNo, generation: Generation, kind: FileKind, mode: u32, now: Timestamp) -> Attr {
        Attr {
            ino,
            generation,
            kind,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            blocks: 0,
            rdev: 0,
            parent: InodeNo(0),
            truncating: None,
            flags: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            project: 0,
        }
    }

    /// The on-disk form.
    pub fn to_disk(&self) -> DiskAttr {
        DiskAttr {
            generation: U64::new(self.generation.0),
            size: U64::new(self.size),
            blocks: U64::new(self.blocks),
            mode: U32::new(self.mode | self.kind.mode_bits()),
            uid: U32::new(self.uid),
            gid: U32::new(self.gid),
            nlink: U32::new(self.nlink),
            rdev: U32::new(self.rdev),
            flags: U32::new(self.flags | if self.truncating.is_some() { FLAG_TRUNCATING } else { 0 }),
            parent: U64::new(self.parent.0),
            truncate_target: U64::new(self.truncating.unwrap_or(0)),
            atime: self.atime.to_disk(),
            mtime: self.mtime.to_disk(),
            ctime: self.ctime.to_disk(),
            btime: self.btime.to_disk(),
            project: U32::new(self.project),
            zero: [0; 60],
            spare: [0; 64],
            zero2: [0; 16],
        }
    }

    /// From the disk.
    ///
    /// # Errors
    /// `Damaged` if the mode is none of a file's or the size is beyond what a file can have.
    pub fn from_disk(ino: InodeNo, d: &DiskAttr) -> Result<Attr> {
        let kind = FileKind::from_mode(d.mode.get()).ok_or_else(|| Error::Damaged {
            inode: ino,
            what: format!("impossible mode {:o}", d.mode.get()),
        })?;
        // Also the kernel takes sizes as signed.
        if d.size.get() > i64::MAX as u64 || d.truncate_target.get() > i64::MAX as u64 {
            return Err(Error::Damaged { inode: ino, what: format!("impossible size {}", d.size.get()) });
        }
        Ok(Attr {
            ino,
            generation: Generation(d.generation.get()),
            kind,
            mode: d.mode.get() & 0o7777,
            uid: d.uid.get(),
            gid: d.gid.get(),
            nlink: d.nlink.get(),
            size: d.size.get(),
            blocks: d.blocks.get(),
            rdev: d.rdev.get(),
            parent: InodeNo(d.parent.get()),
            truncating: (d.flags.get() & FLAG_TRUNCATING != 0).then(|| d.truncate_target.get()),
            flags: d.flags.get() & FLAGS_OF_PROGRAMS,
            atime: Timestamp::from_disk(&d.atime),
            mtime: Timestamp::from_disk(&d.mtime),
            ctime: Timestamp::from_disk(&d.ctime),
            btime: Timestamp::from_disk(&d.btime),
            project: d.project.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_programs_stand_beside_the_truncation() {
        let new = Attr::new(InodeNo(7), Generation(1), FileKind::Regular, 0o644, Timestamp::default());
        for flags in (0..32).filter(|f| f & !FLAGS_OF_PROGRAMS == 0) {
            for truncating in [None, Some(5)] {
                let attr = Attr { flags, truncating, ..new.clone() };
                let disk = attr.to_disk();
                assert_eq!(disk.flags.get(), flags | u32::from(truncating.is_some()));
                assert_eq!(Attr::from_disk(InodeNo(7), &disk), Ok(attr));
            }
        }
    }
}
