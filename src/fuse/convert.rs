//! Attributes, times and small types between the operations' form and fuser's.

use crate::base::BLOCK_SIZE;
use crate::fs::types::{AttrReply, Caller, NodeId, OpenReply, RenameFlags, SetTime};
use crate::inode::{Attr, FileKind, Timestamp};
use fuser::{FileAttr, FileType, FopenFlags, INodeNo, Request, TimeOrNow};
use std::time::{Duration, SystemTime};

/// Who asks.
pub fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// The file type.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// A file time; what SystemTime cannot hold becomes its nearest end.
pub fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let whole_seconds = if time.seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    let nanos = Duration::from_nanos(time.nanos.into());
    whole_seconds.and_then(|t| t.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time that the kernel sent, out of the form that fuser 0.18 gives it. Before 1970 fuser puts
/// seconds s < 0 and nanoseconds n as the instant -(|s| + n): the exact undoing of that is here.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => {
            Timestamp { seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nanos: d.subsec_nanos() }
        }
        Err(before) => {
            let d = before.duration();
            Timestamp { seconds: 0i64.saturating_sub_unsigned(d.as_secs()), nanos: d.subsec_nanos() }
        }
    }
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(timestamp(t)),
    }
}

/// Attributes as stat(2) shows them. Blocks count in 512 bytes.
pub fn file_attr(ino: NodeId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: attr.size,
        blocks: attr.blocks.saturating_mul(BLOCK_SIZE as u64 / 512),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

/// The same from a reply.
pub fn attr_of(reply: &AttrReply) -> FileAttr {
    file_attr(reply.ino, &reply.attr)
}

/// How the kernel shall treat a handle.
pub fn open_flags(reply: &OpenReply) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, reply.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, reply.keep_cache);
    flags.set(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES, reply.parallel_direct);
    flags.set(FopenFlags::FOPEN_CACHE_DIR, reply.cache_dir);
    flags
}

/// renameat2(2) flags; `None` if there are unknown ones.
pub fn rename_flags(flags: fuser::RenameFlags) -> Option<RenameFlags> {
    use fuser::RenameFlags as F;
    (F::RENAME_NOREPLACE | F::RENAME_EXCHANGE | F::RENAME_WHITEOUT).contains(flags).then(|| RenameFlags {
        no_replace: flags.contains(F::RENAME_NOREPLACE),
        exchange: flags.contains(F::RENAME_EXCHANGE),
        whiteout: flags.contains(F::RENAME_WHITEOUT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of seconds and nanoseconds from the kernel.
    fn as_fuser(seconds: i64, nanos: u32) -> SystemTime {
        if seconds >= 0 {
            SystemTime::UNIX_EPOCH + Duration::new(seconds as u64, nanos)
        } else {
            SystemTime::UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_of_every_sign_arrive_as_sent() {
        for (seconds, nanos) in [(0, 0), (0, 1), (1_700_000_000, 999_999_999), (-1, 0), (-2, 800_000_000)] {
            assert_eq!(timestamp(as_fuser(seconds, nanos)), Timestamp { seconds, nanos });
        }
    }

    #[test]
    fn times_leave_as_they_are() {
        let half_before = system_time(Timestamp { seconds: -1, nanos: 500_000_000 });
        assert_eq!(half_before, SystemTime::UNIX_EPOCH - Duration::from_millis(500));
        for seconds in [i64::MIN, i64::MAX, 0, -1] {
            let _ = system_time(Timestamp { seconds, nanos: 999_999_999 });
        }
    }

    #[test]
    fn unknown_rename_flags_are_refused() {
        assert_eq!(rename_flags(fuser::RenameFlags::from_bits_retain(8)), None);
        let exchange = rename_flags(fuser::RenameFlags::RENAME_EXCHANGE).unwrap();
        assert!(exchange.exchange && !exchange.no_replace && !exchange.whiteout);
    }
}
