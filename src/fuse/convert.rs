//! Attributes, times and small types between the operations' form and the protocol's.

use crate::base::{BLOCK_SIZE, Mode};
use crate::fs::types::{
    AttrReply, Caller, EntryReply, LockFound, LockRequest, NodeId, OpenReply, RenameFlags, SetAttr, SetTime,
};
use crate::fuse::wire::flags::{LK_FLOCK, fopen, setattr};
use crate::fuse::wire::{
    FuseAttr, FuseAttrOut, FuseEntryOut, FuseFileLock, FuseInHeader, FuseLkIn, FuseLkOut, FuseOpenOut,
    FuseSetattrIn, FuseStatx, FuseStatxOut, FuseSxTime,
};
use crate::inode::{Attr, FileKind, Timestamp};
use std::time::Duration;

/// Bytes of what stat(2) counts as a block.
const STAT_BLOCK: u64 = 512;

/// Who asks.
pub fn caller(header: &FuseInHeader) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid }
}

/// A file lock as the kernel describes it; `None` if it is of no known type.
pub fn lock_request(arg: &FuseLkIn) -> Option<LockRequest> {
    let mode = match arg.lk.kind as i32 {
        libc::F_RDLCK => Mode::S,
        libc::F_WRLCK => Mode::X,
        libc::F_UNLCK => Mode::N,
        _ => return None,
    };
    let flock = arg.lk_flags & LK_FLOCK != 0;
    Some(LockRequest { flock, owner: arg.owner, mode, start: arg.lk.start, end: arg.lk.end, pid: arg.lk.pid })
}

/// What is in the way of a lock, or that nothing is.
pub fn lock_out(found: Option<LockFound>) -> FuseLkOut {
    let lk = match found {
        Some(LockFound { exclusive, start, end, pid }) => {
            let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            FuseFileLock { start, end, kind: kind as u32, pid }
        }
        None => FuseFileLock { kind: libc::F_UNLCK as u32, ..FuseFileLock::default() },
    };
    FuseLkOut { lk }
}

/// The file type's bits of a mode.
fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Regular => libc::S_IFREG,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Socket => libc::S_IFSOCK,
    }
}

/// The type of a directory entry (`DT_*`).
pub fn entry_type(kind: FileKind) -> u32 {
    type_bits(kind) >> 12
}

/// Whole seconds and nanoseconds.
pub fn seconds(time: Duration) -> (u64, u32) {
    (time.as_secs(), time.subsec_nanos())
}

/// Attributes as stat(2) shows them; so many sectors lie in the inode.
fn attr(ino: NodeId, attr: &Attr, in_inode: u64) -> FuseAttr {
    FuseAttr {
        ino: ino.0,
        size: attr.size,
        blocks: attr.blocks.saturating_mul(BLOCK_SIZE as u64 / STAT_BLOCK).saturating_add(in_inode),
        // Seconds before 1970 are negative numbers on both sides.
        atime: attr.atime.seconds as u64,
        mtime: attr.mtime.seconds as u64,
        ctime: attr.ctime.seconds as u64,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: type_bits(attr.kind) | attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

/// Attributes of which only number and type mean anything.
pub fn bare_attr(ino: NodeId, kind: FileKind) -> FuseAttr {
    FuseAttr {
        ino: ino.0,
        mode: type_bits(kind),
        nlink: 1,
        blksize: BLOCK_SIZE as u32,
        ..FuseAttr::default()
    }
}

/// An inode under a name.
pub fn entry_out(e: &EntryReply) -> FuseEntryOut {
    let ((entry_valid, entry_valid_nsec), (attr_valid, attr_valid_nsec)) =
        (seconds(e.entry_valid), seconds(e.attr_valid));
    FuseEntryOut {
        nodeid: e.ino.0,
        // The kernel makes its root without being told of a generation.
        generation: if e.ino == NodeId::ROOT { 0 } else { e.generation.0 },
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr(e.ino, &e.attr, e.in_inode),
    }
}

/// Attributes; `cached`: the kernel may keep them.
pub fn attr_out(a: &AttrReply, cached: bool) -> FuseAttrOut {
    let (attr_valid, attr_valid_nsec) = seconds(if cached { a.attr_valid } else { Duration::ZERO });
    FuseAttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr(a.ino, &a.attr, a.in_inode) }
}

/// Attributes as statx(2) shows them: the same and the time of birth.
pub fn statx_out(a: &AttrReply) -> FuseStatxOut {
    let time = |t: Timestamp| FuseSxTime { tv_sec: t.seconds, tv_nsec: t.nanos, reserved: 0 };
    let (attr_valid, attr_valid_nsec) = seconds(a.attr_valid);
    let plain = attr(a.ino, &a.attr, a.in_inode);
    let stat = FuseStatx {
        mask: libc::STATX_BASIC_STATS | libc::STATX_BTIME,
        blksize: plain.blksize,
        nlink: plain.nlink,
        uid: plain.uid,
        gid: plain.gid,
        mode: plain.mode as u16,
        ino: plain.ino,
        size: plain.size,
        blocks: plain.blocks,
        atime: time(a.attr.atime),
        btime: time(a.attr.btime),
        ctime: time(a.attr.ctime),
        mtime: time(a.attr.mtime),
        rdev_major: libc::major(plain.rdev.into()),
        rdev_minor: libc::minor(plain.rdev.into()),
        ..FuseStatx::default()
    };
    FuseStatxOut { attr_valid, attr_valid_nsec, stat, ..FuseStatxOut::default() }
}

/// How the kernel shall treat a handle.
pub fn open_out(o: &OpenReply) -> FuseOpenOut {
    let flags = [
        (o.direct_io, fopen::DIRECT_IO),
        (o.keep_cache, fopen::KEEP_CACHE),
        (o.parallel_direct, fopen::PARALLEL_DIRECT_WRITES),
        (o.cache_dir, fopen::CACHE_DIR),
    ];
    let open_flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
    FuseOpenOut { fh: o.fh, open_flags, backing_id: 0 }
}

/// What a SETATTR changes.
pub fn set_attr(arg: &FuseSetattrIn) -> SetAttr {
    let has = |flag: u32| arg.valid & flag != 0;
    let at = |seconds: u64, nanos: u32| Timestamp { seconds: seconds as i64, nanos };
    let time = |flag, now, at| has(flag).then(|| if has(now) { SetTime::Now } else { SetTime::At(at) });
    SetAttr {
        perm: has(setattr::MODE).then_some((arg.mode & 0o7777) as u16),
        uid: has(setattr::UID).then_some(arg.uid),
        gid: has(setattr::GID).then_some(arg.gid),
        size: has(setattr::SIZE).then_some(arg.size),
        atime: time(setattr::ATIME, setattr::ATIME_NOW, at(arg.atime, arg.atimensec)),
        mtime: time(setattr::MTIME, setattr::MTIME_NOW, at(arg.mtime, arg.mtimensec)),
        ctime: has(setattr::CTIME).then_some(at(arg.ctime, arg.ctimensec)),
        kill_set_id: has(setattr::KILL_SUIDGID),
    }
}

/// renameat2(2) flags; `None` if there are unknown ones.
pub fn rename_flags(flags: u32) -> Option<RenameFlags> {
    let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
    (flags & !known == 0).then_some(RenameFlags {
        no_replace: flags & libc::RENAME_NOREPLACE != 0,
        exchange: flags & libc::RENAME_EXCHANGE != 0,
        whiteout: flags & libc::RENAME_WHITEOUT != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, InodeNo};

    #[test]
    fn times_of_every_sign_go_both_ways() {
        for (seconds, nanos) in
            [(0, 0), (1_700_000_000, 999_999_999), (-1, 500_000_000), (i64::MIN, 1), (i64::MAX, 0)]
        {
            let time = Timestamp { seconds, nanos };
            let stored = Attr::new(InodeNo(5), Generation(0), FileKind::Regular, 0, time);
            let sent = attr(NodeId(5), &stored, 0);
            let arg = FuseSetattrIn {
                valid: setattr::MTIME,
                mtime: sent.mtime,
                mtimensec: sent.mtimensec,
                ..FuseSetattrIn::default()
            };
            assert_eq!(set_attr(&arg), SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() });
        }
    }

    #[test]
    fn only_what_is_marked_is_set() {
        let all = FuseSetattrIn { mode: 0o104755, uid: 1, gid: 2, size: 3, ..FuseSetattrIn::default() };
        assert_eq!(set_attr(&all), SetAttr::default());
        let some = set_attr(&FuseSetattrIn { valid: setattr::MODE | setattr::GID, ..all });
        assert_eq!(some, SetAttr { perm: Some(0o4755), gid: Some(2), ..SetAttr::default() });
        let kill = set_attr(&FuseSetattrIn { valid: setattr::SIZE | setattr::KILL_SUIDGID, ..all });
        assert_eq!(kill, SetAttr { size: Some(3), kill_set_id: true, ..SetAttr::default() });
        let now = set_attr(&FuseSetattrIn { valid: setattr::ATIME | setattr::ATIME_NOW, ..all });
        assert_eq!(now.atime, Some(SetTime::Now));
    }

    #[test]
    fn unknown_rename_flags_are_refused() {
        assert_eq!(rename_flags(8), None);
        let exchange = rename_flags(libc::RENAME_EXCHANGE).unwrap();
        assert!(exchange.exchange && !exchange.no_replace && !exchange.whiteout);
    }

    #[test]
    fn types_are_the_kernels() {
        assert_eq!(entry_type(FileKind::Directory), u32::from(libc::DT_DIR));
        assert_eq!(entry_type(FileKind::Socket), u32::from(libc::DT_SOCK));
        let stored = Attr::new(InodeNo(5), Generation(0), FileKind::Fifo, 0o1755, Timestamp::default());
        let sent = attr(NodeId(5), &Attr { blocks: 3, ..stored }, 2);
        assert_eq!((sent.mode, sent.blocks), (libc::S_IFIFO | 0o1755, 26));
    }

    #[test]
    fn setattr_answers_may_be_kept_from_the_cache() {
        let stored = Attr::new(InodeNo(5), Generation(0), FileKind::Fifo, 0, Timestamp::default());
        let a =
            AttrReply { ino: NodeId(5), attr: stored, in_inode: 0, attr_valid: Duration::from_millis(2500) };
        assert_eq!((attr_out(&a, true).attr_valid, attr_out(&a, true).attr_valid_nsec), (2, 500_000_000));
        assert_eq!((attr_out(&a, false).attr_valid, attr_out(&a, false).attr_valid_nsec), (0, 0));
    }
}
