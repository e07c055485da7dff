//! The operations as the kernel adapter calls them: what it asks for and what it may rely on.
//!
//! Every operation takes a reply, called exactly once: at once, or later from another thread (the
//! operation waits for a lock then, holding neither thread nor lock). Names are single components
//! of any length; `.` and `..` come in lookups by number (file handles) and in what listings give out, else never.

use crate::base::{Error, Generation, Result};
use crate::file::DataBuf;
use crate::fs::TrimRange;
use crate::fs::types::{
    AttrReply, Caller, DirSink, EntryReply, LockFound, LockRequest, LookupReply, NewNode, NodeId, OpenReply,
    ReadFlags, RenameFlags, SeekWhat, SetAttr, Statfs, WriteFlags,
};
use crate::xattr::SetHow;

/// Where an answer goes.
pub trait Reply<T>: FnOnce(Result<T>) + Send + 'static {}
impl<T, F: FnOnce(Result<T>) + Send + 'static> Reply<T> for F {}

/// Takes a request back for which nobody waits any more. Does nothing if it has been answered.
pub type Withdraw = Box<dyn FnOnce() + Send>;

/// A filesystem's operations. Permission checks are the kernel's (`default_permissions`); `caller` is
/// for ownership, set-id bits and privileged attributes.
#[allow(clippy::too_many_arguments)]
pub trait Operations: Send + Sync + 'static {
    /// A name's inode. One found counts as one lookup until forgotten.
    fn lookup(&self, parent: NodeId, name: &[u8], reply: impl Reply<LookupReply>);
    /// The kernel drops `count` lookups of an inode.
    fn forget(&self, ino: NodeId, count: u64);
    fn getattr(&self, ino: NodeId, fh: Option<u64>, caller: Caller, reply: impl Reply<AttrReply>);
    fn setattr(
        &self,
        ino: NodeId,
        change: SetAttr,
        caller: Caller,
        fh: Option<u64>,
        reply: impl Reply<AttrReply>,
    );
    fn readlink(&self, ino: NodeId, reply: impl Reply<Vec<u8>>);
    fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        reply: impl Reply<EntryReply>,
    );
    /// A regular file, device, pipe or socket.
    fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        node: NewNode,
        reply: impl Reply<EntryReply>,
    );
    fn mkdir(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        node: NewNode,
        reply: impl Reply<EntryReply>,
    );
    fn unlink(&self, caller: Caller, parent: NodeId, name: &[u8], reply: impl Reply<()>);
    fn rmdir(&self, caller: Caller, parent: NodeId, name: &[u8], reply: impl Reply<()>);
    fn link(&self, caller: Caller, ino: NodeId, parent: NodeId, name: &[u8], reply: impl Reply<EntryReply>);
    fn rename(
        &self,
        caller: Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
        reply: impl Reply<()>,
    );
    /// `flags` are open(2)'s without O_CREAT, O_EXCL, O_TRUNC (truncation comes as setattr).
    fn open(&self, ino: NodeId, flags: i32, caller: Caller, reply: impl Reply<OpenReply>);
    /// Creates and opens. If the name exists: `Exists` if `flags` has O_EXCL, else `Stale`, upon which the
    /// kernel looks again and opens what it finds.
    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        node: NewNode,
        flags: i32,
        reply: impl Reply<(EntryReply, OpenReply)>,
    );
    /// Creates and opens a regular file without a name, which a `link` may give it.
    fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        node: NewNode,
        flags: i32,
        reply: impl Reply<(EntryReply, OpenReply)>,
    ) {
        let _ = (caller, parent, node, flags);
        reply(Err(Error::Unsupported("files without a name")));
    }
    /// Fewer bytes than `size` only at the end of the file.
    fn read(
        &self,
        ino: NodeId,
        fh: u64,
        offset: u64,
        size: u32,
        flags: ReadFlags,
        reply: impl Reply<DataBuf>,
    );
    /// All of `data` or an error. `data` is the request's own memory: copy what must stay.
    fn write(
        &self,
        ino: NodeId,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        caller: Caller,
        reply: impl Reply<u32>,
    );
    /// One close(2) of a descriptor; others of the same handle may follow. Ends `owner`'s POSIX locks.
    fn flush(&self, ino: NodeId, fh: u64, owner: u64, reply: impl Reply<()>);
    /// The last close of the handle. Ends its flock lock, if there is one, and what locks of the open file
    /// description are left.
    fn release(&self, ino: NodeId, fh: u64, reply: impl Reply<()>);
    /// Take, change or give up a file lock (fcntl or flock). What is returned withdraws the request: it is
    /// answered with `Interrupted` then, unless it is answered otherwise first; an unlock, or one that makes
    /// something less, only when it is known how it ended.
    fn set_lock(
        &self,
        ino: NodeId,
        fh: u64,
        lock: LockRequest,
        wait: bool,
        reply: impl Reply<()>,
    ) -> Withdraw {
        let _ = (ino, fh, lock, wait);
        reply(Err(Error::Unsupported("file locks")));
        Box::new(|| ())
    }
    /// A lock of another that is in the way of this one.
    fn get_lock(
        &self,
        ino: NodeId,
        fh: u64,
        lock: LockRequest,
        reply: impl Reply<Option<LockFound>>,
    ) -> Withdraw {
        let _ = (ino, fh, lock);
        reply(Err(Error::Unsupported("file locks")));
        Box::new(|| ())
    }
    fn fsync(&self, ino: NodeId, fh: u64, data_only: bool, reply: impl Reply<()>);
    /// All that was changed through this mount becomes durable.
    fn syncfs(&self, reply: impl Reply<()>);
    fn opendir(&self, ino: NodeId, flags: i32, caller: Caller, reply: impl Reply<OpenReply>);
    /// Entries after the one with cookie `after` (0: from the start), `.` and `..` first.
    fn readdir(&self, ino: NodeId, fh: u64, after: u64, out: Box<dyn DirSink>);
    fn releasedir(&self, ino: NodeId, fh: u64, reply: impl Reply<()>);
    fn fsyncdir(&self, ino: NodeId, fh: u64, data_only: bool, reply: impl Reply<()>);
    fn statfs(&self, reply: impl Reply<Statfs>);
    fn getxattr(&self, ino: NodeId, name: &[u8], reply: impl Reply<Vec<u8>>);
    /// `kill_set_gid`: if this is an access ACL, the file's set-group-id bit must go.
    fn setxattr(
        &self,
        ino: NodeId,
        name: &[u8],
        value: &[u8],
        how: SetHow,
        kill_set_gid: bool,
        reply: impl Reply<()>,
    );
    /// The names, each with a NUL after it.
    fn listxattr(&self, ino: NodeId, caller: Caller, reply: impl Reply<Vec<u8>>);
    fn removexattr(&self, ino: NodeId, name: &[u8], caller: Caller, reply: impl Reply<()>);
    /// `range` is offset and length; `mode` is fallocate(2)'s.
    fn fallocate(
        &self,
        ino: NodeId,
        fh: u64,
        range: (u64, u64),
        mode: i32,
        caller: Caller,
        reply: impl Reply<()>,
    );
    fn lseek(&self, ino: NodeId, fh: u64, offset: u64, what: SeekWhat, reply: impl Reply<u64>);
    /// What programs have set of [`crate::format::inode::FLAGS_OF_PROGRAMS`], and the generation.
    fn flags(&self, ino: NodeId, reply: impl Reply<(u32, Generation)>) {
        let _ = ino;
        reply(Err(Error::Unsupported("flags")));
    }
    /// Set them. Who may is the kernel's question, but for what another host has set since the kernel asked.
    fn set_flags(&self, ino: NodeId, flags: u32, caller: Caller, reply: impl Reply<()>) {
        let _ = (ino, flags, caller);
        reply(Err(Error::Unsupported("flags")));
    }
    /// Tell the device of free blocks (FITRIM); answers with the bytes it was told of. What is returned ends it.
    fn trim(&self, range: TrimRange, reply: impl Reply<u64>) -> Withdraw {
        let _ = range;
        reply(Err(Error::Unsupported("telling the device of free blocks")));
        Box::new(|| ())
    }
    /// Stop as in a crash (FS_IOC_SHUTDOWN): what has changed is committed, data not yet written is lost,
    /// and nothing works any more until the volume is mounted again.
    fn shut_down(&self, caller: Caller, reply: impl Reply<()>) {
        let _ = caller;
        reply(Err(Error::Unsupported("shutting down")));
    }
    /// A read-only mount may write from now on.
    fn make_writable(&self, reply: impl Reply<()>) {
        reply(Err(Error::Unsupported("becoming writable")));
    }
    /// Inode, handle and offset of both sides; may copy less than `length`.
    fn copy_file_range(
        &self,
        from: (NodeId, u64, u64),
        to: (NodeId, u64, u64),
        length: u32,
        caller: Caller,
        reply: impl Reply<u32>,
    );
}
