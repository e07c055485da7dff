//! Listings: entries into the buffer that the kernel gave, until it is full.

use crate::base::Result;
use crate::fs::types::{DirEntryOut, DirSink};
use crate::fuse::convert::{file_attr, file_type};
use crate::fuse::errno::reported;
use fuser::{FileAttr, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

/// Names, numbers and types.
pub struct Plain(pub ReplyDirectory);

impl DirSink for Plain {
    fn wants_attributes(&self) -> bool {
        false
    }

    fn add(&mut self, entry: &DirEntryOut<'_>) -> bool {
        let name = OsStr::from_bytes(entry.name);
        !self.0.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), name)
    }

    fn done(self: Box<Self>, result: Result<()>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(e) => self.0.error(reported("readdir", &e)),
        }
    }
}

/// The same with attributes.
pub struct Plus(pub ReplyDirectoryPlus);

impl DirSink for Plus {
    fn wants_attributes(&self) -> bool {
        true
    }

    fn add(&mut self, entry: &DirEntryOut<'_>) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let (attr, valid, generation) = match &entry.entry {
            // fuser has one time for both.
            Some(e) => (file_attr(e.ino, &e.attr), e.entry_valid.min(e.attr_valid), e.generation.0),
            // The kernel takes type and number from these attributes, and nothing else for `.` and `..`.
            // For any other name it would keep them, so such an entry must not get there.
            None if matches!(entry.name, b"." | b"..") => (bare(entry), Duration::ZERO, 0),
            None => return false,
        };
        !self.0.add(INodeNo(entry.ino.0), entry.cookie, name, &valid, &attr, Generation(generation))
    }

    fn done(self: Box<Self>, result: Result<()>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(e) => self.0.error(reported("readdir", &e)),
        }
    }
}

/// Attributes of which only number and type mean anything.
fn bare(entry: &DirEntryOut<'_>) -> FileAttr {
    FileAttr {
        ino: INodeNo(entry.ino.0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(entry.kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
