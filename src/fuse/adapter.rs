//! The kernel's requests to the operations of `fs`, and their answers back. Nothing decided here. An
//! operation may answer at once or later from another thread; the duty to answer travels in the closure.

use crate::cluster::timing::LEAVE_MAX;
use crate::fs::operations::Operations;
use crate::fs::types::{NewNode, NodeId, ReadFlags, SeekWhat, WriteFlags};
use crate::fuse::answer::{
    attributes, copied, created, data, empty, entry, fail, found, ioctl_done, lock_found, opened, position,
    sized, statfs, statx, written,
};
use crate::fuse::buffer::{PAYLOAD_MAX, Payload};
use crate::fuse::convert::{caller, lock_request, rename_flags, set_attr};
use crate::fuse::directory::Entries;
use crate::fuse::ioctl;
use crate::fuse::reply::{Reply, Safe};
use crate::fuse::session::Handler;
use crate::fuse::wire::flags::{self, Bits, init, setattr};
use crate::fuse::wire::init::{Offer, Wanted};
use crate::fuse::wire::{
    Errno, FuseCopyFileRangeIn, FuseInHeader, FuseIoctlIn, FuseLkIn, FuseLseekIn, FuseReadIn, FuseRename2In,
    FuseSetattrIn, FuseSetxattrIn, FuseWriteIn, Request,
};
use crate::inode::FileKind;
use crate::xattr::SetHow;
use std::sync::Arc;

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
/// be coherent between hosts), ATOMIC_O_TRUNC (truncation comes as SETATTR; so what OPEN and CREATE say of set-id bits of a file that
/// they truncate means nothing here).
const WANTED: &[Bits] = &[
    init::ASYNC_READ,
    init::BIG_WRITES,
    init::AUTO_INVAL_DATA,
    init::PARALLEL_DIROPS,
    init::POSIX_ACL,
    // With ACLs, the umask counts only where the parent has no default ACL.
    init::DONT_MASK,
    init::CACHE_SYMLINKS,
    // File handles outlive the kernel's cache: lookups of `.` and `..` by number.
    init::EXPORT_SUPPORT,
    init::ASYNC_DIO,
    init::DIRECT_IO_ALLOW_MMAP,
    // Else every write is preceded by a question for file capabilities.
    init::HANDLE_KILLPRIV_V2,
    // The kernel says whether a new ACL costs the set-group-id bit.
    init::SETXATTR_EXT,
    // Locks hold between hosts. (Those of directories never get here: the kernel keeps them.)
    init::POSIX_LOCKS,
    init::FLOCK_LOCKS,
];

/// Leaves the volume when its mount ends.
pub trait Leave: Send + Sync + 'static {
    /// Comes back when that is done; calls `safe` once all that was written is durable, or lost.
    fn leave(&self, safe: Safe);
    /// The kernel is about to let go of the device, although that is not done.
    fn overdue(&self);
}

/// The operations as the kernel's counterpart.
pub struct Adapter<O> {
    fs: Arc<O>,
    /// May the attributes in a SETATTR reply be cached?
    setattr_cached: bool,
    leave: Option<Arc<dyn Leave>>,
}

impl<O: Operations> Adapter<O> {
    /// An adapter to `fs`.
    pub fn new(fs: Arc<O>) -> Adapter<O> {
        Adapter { fs, setattr_cached: false, leave: None }
    }

    /// `leave` is done before the kernel hears that a mount is over for which umount(2) waits; when all is safe, it may
    /// go on after that, should it take very long.
    pub fn leaving(self, leave: Arc<dyn Leave>) -> Adapter<O> {
        Adapter { leave: Some(leave), ..self }
    }
}

fn new_node(kind: FileKind, mode: u32, umask: u32, rdev: u32) -> NewNode {
    NewNode { kind, perm: (mode & 0o7777) as u16, umask: (umask & 0o777) as u16, rdev }
}

impl<O: Operations> Handler for Adapter<O> {
    fn wanted(&self) -> Wanted {
        Wanted { flags: WANTED, max_write: PAYLOAD_MAX as u32, max_background: BACKGROUND_MAX }
    }

    fn agreed(&mut self, offer: &Offer) {
        self.setattr_cached = offer.minor >= MINOR_SETATTR_CHECKED;
    }

    fn leave(&self, reply: Reply) {
        let Some(leave) = self.leave.clone() else { return reply.done() };
        // It takes its time, and the requests before it may not be answered yet.
        let late = leave.clone();
        if let Err(e) = reply.done_after(move |safe| leave.leave(safe), LEAVE_MAX, move || late.overdue()) {
            tracing::warn!("umount does not wait: no thread to leave by: {e}");
        }
    }

    fn forget(&self, nodeid: u64, count: u64) {
        self.fs.forget(NodeId(nodeid), count);
    }

    fn write(&self, header: &FuseInHeader, arg: &FuseWriteIn, payload: Payload, reply: Reply) {
        let has = |flag| arg.write_flags & flag != 0;
        let flags = WriteFlags {
            from_cache: has(flags::WRITE_CACHE),
            open: arg.flags as i32,
            past_cache: has(flags::WRITE_LOCKOWNER),
            kill_set_id: has(flags::WRITE_KILL_SUIDGID),
            thread: header.pid,
        };
        let (node, who) = (NodeId(header.nodeid), caller(header));
        self.fs.write(node, arg.fh, arg.offset, &payload, flags, who, written(reply));
    }

    fn request(&self, header: &FuseInHeader, request: Request<'_>, reply: Reply) {
        use Request as R;
        let (fs, node, who) = (&self.fs, NodeId(header.nodeid), caller(header));
        match request {
            R::Lookup { name } => fs.lookup(node, name, found(reply)),
            R::Getattr(arg) => {
                let fh = (arg.getattr_flags & flags::GETATTR_FH != 0).then_some(arg.fh);
                fs.getattr(node, fh, who, attributes(reply, true));
            }
            // Always for a program, which wants it all.
            R::Statx(_) => fs.getattr(node, None, who, statx(reply)),
            R::Setattr(arg) => self.setattr(header, &arg, reply),
            R::Readlink => fs.readlink(node, data(reply)),
            R::Symlink { name, target } => fs.symlink(who, node, name, target, entry(reply)),
            R::Mknod { arg, name } => match FileKind::from_mode(arg.mode) {
                Some(kind) => {
                    fs.mknod(who, node, name, new_node(kind, arg.mode, arg.umask, arg.rdev), entry(reply));
                }
                None => reply.error(Errno(libc::EINVAL)),
            },
            R::Mkdir { arg, name } => {
                fs.mkdir(
                    who,
                    node,
                    name,
                    new_node(FileKind::Directory, arg.mode, arg.umask, 0),
                    entry(reply),
                );
            }
            R::Unlink { name } => fs.unlink(who, node, name, empty(reply)),
            R::Rmdir { name } => fs.rmdir(who, node, name, empty(reply)),
            R::Rename { arg, name, new_name } => self.rename(header, &arg, name, new_name, reply),
            R::Link { arg, new_name } => fs.link(who, NodeId(arg.oldnodeid), node, new_name, entry(reply)),
            R::Create { arg, name } => {
                let new = new_node(FileKind::Regular, arg.mode, arg.umask, 0);
                fs.create(who, node, name, new, arg.flags as i32, created(reply));
            }
            R::Tmpfile(arg) => {
                let new = new_node(FileKind::Regular, arg.mode, arg.umask, 0);
                fs.tmpfile(who, node, new, arg.flags as i32, created(reply));
            }
            R::Statfs => fs.statfs(statfs(reply)),
            R::Setxattr { arg, name, value } => self.setxattr(header, &arg, name, value, reply),
            R::Getxattr { arg, name } => fs.getxattr(node, name, sized(reply, arg.size)),
            R::Listxattr(arg) => fs.listxattr(node, who, sized(reply, arg.size)),
            R::Removexattr { name } => fs.removexattr(node, name, who, empty(reply)),
            of_a_handle => self.of_a_handle(header, of_a_handle, reply),
        }
    }
}

impl<O: Operations> Adapter<O> {
    /// Requests on an open file or directory.
    fn of_a_handle(&self, header: &FuseInHeader, request: Request<'_>, reply: Reply) {
        use Request as R;
        let (fs, node, who) = (&self.fs, NodeId(header.nodeid), caller(header));
        let data_only = |fsync_flags| fsync_flags & flags::FSYNC_FDATASYNC != 0;
        match request {
            R::Open(arg) => fs.open(node, arg.flags as i32, who, opened(reply)),
            R::Read(arg) => self.read(node, &arg, reply),
            R::Flush(arg) => fs.flush(node, arg.fh, arg.lock_owner, empty(reply)),
            R::Release(arg) => fs.release(node, arg.fh, empty(reply)),
            R::Getlk(arg) => self.get_lock(node, &arg, reply),
            R::Setlk { arg, wait } => self.set_lock(node, &arg, wait, reply),
            R::Fsync(arg) => fs.fsync(node, arg.fh, data_only(arg.fsync_flags), empty(reply)),
            R::Syncfs => fs.syncfs(empty(reply)),
            R::Opendir(arg) => fs.opendir(node, arg.flags as i32, who, opened(reply)),
            R::Readdir(arg) => {
                fs.readdir(node, arg.fh, arg.offset, Box::new(Entries::new(reply, arg.size, false)));
            }
            R::Readdirplus(arg) => {
                fs.readdir(node, arg.fh, arg.offset, Box::new(Entries::new(reply, arg.size, true)));
            }
            R::Releasedir(arg) => fs.releasedir(node, arg.fh, empty(reply)),
            R::Fsyncdir(arg) => fs.fsyncdir(node, arg.fh, data_only(arg.fsync_flags), empty(reply)),
            R::Fallocate(arg) => {
                let range = (arg.offset, arg.length);
                fs.fallocate(node, arg.fh, range, arg.mode as i32, who, empty(reply));
            }
            R::Lseek(arg) => self.lseek(node, &arg, reply),
            R::CopyFileRange { arg, wide } => self.copy(header, &arg, wide, reply),
            R::Ioctl { arg, data } => self.ioctl(header, &arg, data, reply),
            // Among them POLL (files are always ready; the kernel does not ask again), ACCESS (the kernel
            // checks itself) and BMAP, for which there are no operations.
            _ => reply.error(Errno(libc::ENOSYS)),
        }
    }

    fn setattr(&self, header: &FuseInHeader, arg: &FuseSetattrIn, reply: Reply) {
        let fh = (arg.valid & setattr::FH != 0).then_some(arg.fh);
        let answer = attributes(reply, self.setattr_cached);
        self.fs.setattr(NodeId(header.nodeid), set_attr(arg), caller(header), fh, answer);
    }

    fn rename(&self, header: &FuseInHeader, arg: &FuseRename2In, name: &[u8], new_name: &[u8], reply: Reply) {
        let Some(flags) = rename_flags(arg.flags) else { return reply.error(Errno(libc::EINVAL)) };
        let (from, to) = ((NodeId(header.nodeid), name), (NodeId(arg.newdir), new_name));
        self.fs.rename(caller(header), from, to, flags, empty(reply));
    }

    fn setxattr(&self, header: &FuseInHeader, arg: &FuseSetxattrIn, name: &[u8], value: &[u8], reply: Reply) {
        match SetHow::from_flags(arg.flags as i32) {
            Ok(how) => {
                let kill_set_gid = arg.setxattr_flags & flags::SETXATTR_ACL_KILL_SGID != 0;
                self.fs.setxattr(NodeId(header.nodeid), name, value, how, kill_set_gid, empty(reply));
            }
            Err(e) => fail(reply, &e),
        }
    }

    fn read(&self, node: NodeId, arg: &FuseReadIn, reply: Reply) {
        let fills_cache = arg.read_flags & flags::READ_LOCKOWNER == 0;
        let flags = ReadFlags { fills_cache, open: arg.flags as i32 };
        self.fs.read(node, arg.fh, arg.offset, arg.size, flags, data(reply));
    }

    /// A signal ends the wait. Nothing else does: the kernel lets not even a killed process go before.
    fn set_lock(&self, node: NodeId, arg: &FuseLkIn, wait: bool, reply: Reply) {
        let Some(lock) = lock_request(arg) else { return reply.error(Errno(libc::EINVAL)) };
        let interruption = reply.interruption();
        let withdraw = self.fs.set_lock(node, arg.fh, lock, wait, empty(reply));
        interruption.call(withdraw);
    }

    fn get_lock(&self, node: NodeId, arg: &FuseLkIn, reply: Reply) {
        let Some(lock) = lock_request(arg) else { return reply.error(Errno(libc::EINVAL)) };
        let interruption = reply.interruption();
        let withdraw = self.fs.get_lock(node, arg.fh, lock, lock_found(reply));
        interruption.call(withdraw);
    }

    fn lseek(&self, node: NodeId, arg: &FuseLseekIn, reply: Reply) {
        let what = match arg.whence as i32 {
            libc::SEEK_DATA => SeekWhat::Data,
            libc::SEEK_HOLE => SeekWhat::Hole,
            _ => return reply.error(Errno(libc::EINVAL)),
        };
        // The kernel's offset is signed.
        if arg.offset > i64::MAX as u64 {
            return reply.error(Errno(libc::ENXIO));
        }
        self.fs.lseek(node, arg.fh, arg.offset, what, position(reply));
    }

    fn copy(&self, header: &FuseInHeader, arg: &FuseCopyFileRangeIn, wide: bool, reply: Reply) {
        let from = (NodeId(header.nodeid), arg.fh_in, arg.off_in);
        let to = (NodeId(arg.nodeid_out), arg.fh_out, arg.off_out);
        let length = arg.len.min(COPY_MAX) as u32;
        self.fs.copy_file_range(from, to, length, caller(header), copied(reply, wide));
    }

    fn ioctl(&self, header: &FuseInHeader, arg: &FuseIoctlIn, data: &[u8], reply: Reply) {
        match arg.cmd {
            FS_IOC_SHUTDOWN => self.fs.shut_down(caller(header), ioctl_done(reply)),
            _ if ioctl::is_known(arg.cmd) => {
                ioctl::serve(&self.fs, NodeId(header.nodeid), caller(header), arg.cmd, data, reply)
            }
            _ => reply.error(Errno(libc::ENOTTY)),
        }
    }
}
