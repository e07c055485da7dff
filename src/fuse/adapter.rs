//! fuser's requests to the operations of `fs`, and their answers back. One method each, nothing
//! decided here. An operation may answer at once or later from another thread; the reply object
//! travels inside the closure.

use crate::fs::operations::Operations;
use crate::fs::types::{
    AttrReply, EntryReply, LookupReply, NewNode, NodeId, OpenReply, ReadFlags, SeekWhat, SetAttr, WriteFlags,
};
use crate::fuse::convert::{attr_of, caller, file_attr, open_flags, rename_flags, set_time, timestamp};
use crate::fuse::directory::{Plain, Plus};
use crate::fuse::errno::reported;
use crate::fuse::notify::Notifier;
use crate::fuse::reply::{Outcome, data, empty, entry, opened, send_entry, send_missing, sized, written};
use crate::inode::FileKind;
use crate::xattr::SetHow;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Bytes of the largest READ and WRITE (the kernel's own limit by default).
const IO_MAX: u32 = 1 << 20;
/// Requests that the kernel may send beside those of waiting processes (read-ahead, laundering). As
/// many as there can be: with few, a dozen parked reads would hold back the very write that a revoke
/// waits for.
const BACKGROUND_MAX: u16 = u16::MAX;
/// Bytes of one copy_file_range request: its count comes back in 32 bits.
const COPY_MAX: u64 = 1 << 30;
/// Its argument (whether to commit before) does not reach us: the kernel takes the direction from the
/// number, which says "read".
const FS_IOC_SHUTDOWN: u32 = 0x8004_587d;
/// First protocol minor whose SETATTR notices an invalidation on the way (Linux 6.12).
const MINOR_SETATTR_CHECKED: u32 = 41;

/// What is asked of the kernel where it offers it. Not asked for, on purpose: WRITEBACK_CACHE (cannot
/// be coherent between hosts), SETXATTR_EXT and HANDLE_KILLPRIV (fuser 0.18 drops their signals),
/// POSIX_LOCKS and FLOCK_LOCKS (until locks are kept cluster-wide), ATOMIC_O_TRUNC (truncation comes as
/// SETATTR).
const WANTED: [InitFlags; 11] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    // With ACLs, the umask counts only where the parent has no default ACL.
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // File handles outlive the kernel's cache: lookups of `.` and `..` by number.
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // Else every write is preceded by a question for file capabilities.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// The filesystem as fuser sees it.
pub struct Adapter<O> {
    fs: Arc<O>,
    notifier: Arc<Notifier>,
    /// May the attributes in a SETATTR reply be cached?
    setattr_cached: bool,
}

impl<O: Operations> Adapter<O> {
    /// An adapter to `fs`; `notifier` learns the kernel's version at INIT.
    pub fn new(fs: Arc<O>, notifier: Arc<Notifier>) -> Adapter<O> {
        Adapter { fs, notifier, setattr_cached: false }
    }
}

fn new_node(kind: FileKind, mode: u32, umask: u32, rdev: u32) -> NewNode {
    NewNode { kind, perm: (mode & 0o7777) as u16, umask: (umask & 0o777) as u16, rdev }
}

impl<O: Operations> Filesystem for Adapter<O> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::info!("the kernel does not offer {flag:?}");
            }
        }
        let minor = config.kernel_abi().1;
        self.notifier.set_protocol(minor);
        self.setattr_cached = minor >= MINOR_SETATTR_CHECKED;
        // Values beyond the kernel's own are answered with the nearest possible one.
        let _ = config.set_max_write(IO_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX);
        tracing::debug!(minor, offered = ?config.capabilities(), "INIT");
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.fs.lookup(NodeId(parent.0), name.as_bytes(), move |result| match result {
            Ok(LookupReply::Found(e)) => send_entry(reply, &e),
            Ok(LookupReply::Missing { entry_valid }) => send_missing(reply, entry_valid),
            Err(e) => reply.error(reported("lookup", &e)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(NodeId(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.fs.getattr(NodeId(ino.0), fh.map(|h| h.0), move |result: Outcome<AttrReply>| match result {
            Ok(a) => reply.attr(&a.attr_valid, &attr_of(&a)),
            Err(e) => reply.error(reported("getattr", &e)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            perm: mode.map(|m| (m & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(timestamp),
        };
        let cached = self.setattr_cached;
        let answer = move |result: Outcome<AttrReply>| match result {
            Ok(a) => reply.attr(if cached { &a.attr_valid } else { &Duration::ZERO }, &attr_of(&a)),
            Err(e) => reply.error(reported("setattr", &e)),
        };
        self.fs.setattr(NodeId(ino.0), change, caller(req), fh.map(|h| h.0), answer);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.fs.readlink(NodeId(ino.0), data("readlink", reply));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = FileKind::from_mode(mode) else { return reply.error(Errno::EINVAL) };
        let node = new_node(kind, mode, umask, rdev);
        self.fs.mknod(caller(req), NodeId(parent.0), name.as_bytes(), node, entry("mknod", reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let node = new_node(FileKind::Directory, mode, umask, 0);
        self.fs.mkdir(caller(req), NodeId(parent.0), name.as_bytes(), node, entry("mkdir", reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs.unlink(caller(req), NodeId(parent.0), name.as_bytes(), empty("unlink", reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs.rmdir(caller(req), NodeId(parent.0), name.as_bytes(), empty("rmdir", reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.fs.symlink(caller(req), NodeId(parent.0), name.as_bytes(), target, entry("symlink", reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(flags) = rename_flags(flags) else { return reply.error(Errno::EINVAL) };
        let from = (NodeId(parent.0), name.as_bytes());
        let to = (NodeId(newparent.0), newname.as_bytes());
        self.fs.rename(caller(req), from, to, flags, empty("rename", reply));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (ino, parent) = (NodeId(ino.0), NodeId(newparent.0));
        self.fs.link(caller(req), ino, parent, newname.as_bytes(), entry("link", reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.fs.open(NodeId(ino.0), flags.0, caller(req), opened("open", reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let node = new_node(FileKind::Regular, mode, umask, 0);
        let answer = move |result: Outcome<(EntryReply, OpenReply)>| match result {
            Ok((e, o)) => {
                // fuser has one time for both.
                let valid = e.entry_valid.min(e.attr_valid);
                let attr = file_attr(e.ino, &e.attr);
                reply.created(&valid, &attr, Generation(e.generation.0), FileHandle(o.fh), open_flags(&o));
            }
            Err(e) => reply.error(reported("create", &e)),
        };
        self.fs.create(caller(req), NodeId(parent.0), name.as_bytes(), node, flags, answer);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let flags = ReadFlags { fills_cache: lock_owner.is_none(), open: flags.0 };
        self.fs.read(NodeId(ino.0), fh.0, offset, size, flags, data("read", reply));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        bytes: &[u8],
        write_flags: fuser::WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let flags = WriteFlags {
            from_cache: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE),
            open: flags.0,
            past_cache: lock_owner.is_some(),
            kill_set_id: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.fs.write(NodeId(ino.0), fh.0, offset, bytes, flags, caller(req), written("write", reply));
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.fs.flush(NodeId(ino.0), fh.0, owner.0, empty("flush", reply));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(NodeId(ino.0), fh.0, empty("release", reply));
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fs.fsync(NodeId(ino.0), fh.0, datasync, empty("fsync", reply));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.fs.opendir(NodeId(ino.0), flags.0, caller(req), opened("opendir", reply));
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.fs.readdir(NodeId(ino.0), fh.0, offset, Box::new(Plain(reply)));
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.fs.readdir(NodeId(ino.0), fh.0, offset, Box::new(Plus(reply)));
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.fs.releasedir(NodeId(ino.0), fh.0, empty("releasedir", reply));
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fs.fsyncdir(NodeId(ino.0), fh.0, datasync, empty("fsyncdir", reply));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.fs.statfs(move |result| match result {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.fragment_size,
            ),
            Err(e) => reply.error(reported("statfs", &e)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        match SetHow::from_flags(flags) {
            Ok(how) => {
                let answer = empty("setxattr", reply);
                self.fs.setxattr(NodeId(ino.0), name.as_bytes(), value, how, caller(req), answer);
            }
            Err(e) => reply.error(reported("setxattr", &e)),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.fs.getxattr(NodeId(ino.0), name.as_bytes(), sized("getxattr", size, reply));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.fs.listxattr(NodeId(ino.0), sized("listxattr", size, reply));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs.removexattr(NodeId(ino.0), name.as_bytes(), caller(req), empty("removexattr", reply));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let range = (offset, length);
        self.fs.fallocate(NodeId(ino.0), fh.0, range, mode, caller(req), empty("fallocate", reply));
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => SeekWhat::Data,
            libc::SEEK_HOLE => SeekWhat::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let answer = move |result: Outcome<u64>| match result {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(e) => reply.error(reported("lseek", &e)),
        };
        self.fs.lseek(NodeId(ino.0), fh.0, offset, what, answer);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (NodeId(ino_in.0), fh_in.0, offset_in);
        let to = (NodeId(ino_out.0), fh_out.0, offset_out);
        let length = len.min(COPY_MAX) as u32;
        self.fs.copy_file_range(from, to, length, caller(req), written("copy_file_range", reply));
    }

    fn ioctl(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        if cmd != FS_IOC_SHUTDOWN {
            return reply.error(Errno::ENOTTY);
        }
        self.fs.shut_down(caller(req), move |result| match result {
            Ok(()) => reply.ioctl(0, &[]),
            Err(e) => reply.error(reported("shutdown", &e)),
        });
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready; with this answer the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }
}
