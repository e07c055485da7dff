//! The plain types that the operations and the kernel adapter exchange, and the one upward call:
//! [`KernelCache`], by which coherence reaches the kernel's caches without knowing how.
//!
//! Nothing here does anything; the operations are in the files beside this one.

use crate::base::{Generation, InodeNo, Mode};
use crate::inode::{Attr, FileKind, Timestamp};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What the kernel knows an inode by: its number, except that the root is always 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory, whatever its inode number.
    pub const ROOT: NodeId = NodeId(1);

    /// The node of inode `ino` on a volume whose root directory is inode `root`.
    pub fn of(ino: InodeNo, root: InodeNo) -> NodeId {
        if ino == root { NodeId::ROOT } else { NodeId(ino.0) }
    }

    /// The inode, on a volume whose root directory is inode `root`.
    pub fn inode(self, root: InodeNo) -> InodeNo {
        if self == NodeId::ROOT { root } else { InodeNo(self.0) }
    }
}

/// Who asks. `pid` is 0 where the kernel does not say (writes from its page cache).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// A name's inode as told to the kernel. Each one delivered counts as one lookup, until `forget`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryReply {
    pub ino: NodeId,
    pub generation: Generation,
    pub attr: Attr,
    /// Sectors of 512 bytes that it has beside the blocks of `attr`: its bytes lie in the inode.
    pub in_inode: u64,
    /// How long the kernel may trust the name.
    pub entry_valid: Duration,
    /// How long the kernel may trust the attributes.
    pub attr_valid: Duration,
}

/// Answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupReply {
    Found(EntryReply),
    /// No such name; the kernel may remember that for `entry_valid` (zero: not at all).
    Missing {
        entry_valid: Duration,
    },
}

/// Attributes as told to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttrReply {
    pub ino: NodeId,
    pub attr: Attr,
    /// As for [`EntryReply`].
    pub in_inode: u64,
    pub attr_valid: Duration,
}

/// Answer to open, create and opendir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenReply {
    pub fh: u64,
    /// Reads and writes of this handle bypass the kernel's page cache.
    pub direct_io: bool,
    /// Pages (of a directory: entries) cached from earlier opens stay.
    pub keep_cache: bool,
    /// Direct writes of this handle need not exclude each other.
    pub parallel_direct: bool,
    /// The kernel may cache what it reads from this directory.
    pub cache_dir: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// What setattr shall change; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits (0 to 0o7777); type bits are already cut off.
    pub perm: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<Timestamp>,
    /// The caller may not keep set-id bits (of a file whose size or owner changes).
    pub kill_set_id: bool,
}

/// renameat2(2) flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RenameFlags {
    pub no_replace: bool,
    pub exchange: bool,
    pub whiteout: bool,
}

/// What a new inode shall be like; its type is the operation's or, for mknod, `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewNode {
    pub kind: FileKind,
    /// Permission bits as asked for: the umask is not applied yet, because a default ACL of the
    /// parent takes its place.
    pub perm: u16,
    pub umask: u16,
    pub rdev: u32,
}

/// Answer to statfs. Units are `frsize` bytes for blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statfs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub name_max: u32,
    pub fragment_size: u32,
}

/// One entry on its way to a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntryOut<'a> {
    pub ino: NodeId,
    pub kind: FileKind,
    pub name: &'a [u8],
    /// Where a listing goes on after this entry: 1 after `.`, 2 after `..`.
    pub cookie: u64,
    /// The attributes, if [`DirSink::wants_attributes`]: then every entry but `.` and `..` must carry
    /// them (one that is taken counts as a lookup; a batch may end early, but not before its first
    /// entry). Else `None`.
    pub entry: Option<EntryReply>,
}

/// Where a listing goes. What was added cannot be taken back: add only when nothing can make the
/// operation start again.
pub trait DirSink: Send {
    /// Would attributes be of use (readdirplus)?
    fn wants_attributes(&self) -> bool;
    /// Takes the entry; false if it did not fit any more (then it is not taken: finish).
    fn add(&mut self, entry: &DirEntryOut<'_>) -> bool;
    /// Ends the request: with what was added, or with the error.
    fn done(self: Box<Self>, result: crate::base::Result<()>);
}

/// How a READ came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReadFlags {
    /// The bytes go into the kernel's page cache (of a direct handle: for a mapping). False for a
    /// read(2) on a direct handle, which keeps nothing.
    pub fills_cache: bool,
    /// The open flags of the file.
    pub open: i32,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekWhat {
    Data,
    Hole,
}

/// A WRITE as the kernel sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WriteFlags {
    /// From the page cache (a dirty mapping): file handle and caller are guesses, `O_APPEND` means
    /// nothing, and the write must neither fail nor wait for a revoke.
    pub from_cache: bool,
    /// Past the kernel's page cache (`O_DIRECT`, and handles that we made direct): no page is locked for it.
    pub past_cache: bool,
    /// The caller may not keep set-id bits.
    pub kill_set_id: bool,
    /// The open flags of the file (`O_APPEND`, `O_SYNC`, `O_DSYNC`, `O_DIRECT` ...).
    pub open: i32,
    /// The thread that makes it: [`Caller::pid`].
    pub thread: u32,
}

/// The kernel's caches of this mount, as coherence sees them. Every call may block for as long as
/// the kernel waits for requests in flight, unkillably: never call from a thread that serves
/// requests nor while holding anything that a request may need.
pub trait KernelCache: Send + Sync {
    /// Drops cached pages of `length` bytes from `offset` (length 0: to the end), writing dirty ones
    /// back first, and all cached attributes. A negative offset drops the attributes only.
    ///
    /// # Errors
    /// `NotFound` if the kernel does not know the inode *now*: a reply that makes it known may
    /// still be on its way.
    fn inval_inode(&self, ino: NodeId, offset: i64, length: i64) -> io::Result<()>;

    /// Cuts the connection: every request, waiting or new, fails. Cached pages stay readable, so
    /// invalidate first.
    ///
    /// # Errors
    /// If the connection was not found.
    fn abort(&self) -> io::Result<()>;
    /// The lease was renewed: what the kernel has cached is true until then (time since boot), and no
    /// write starts in the guard time before.
    fn trusted_until(&self, _lease_end: Duration, _guard: Duration) {}
    /// A look at what the kernel remembers of an inode.
    ///
    /// # Errors
    /// If it does not know the inode, or the mount cannot be looked at from here.
    fn view(&self, _ino: NodeId, _generation: Generation) -> io::Result<Arc<dyn InodeView>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// How requests show that this thread makes: [`Caller::pid`].
    fn caller(&self) -> u32 {
        0
    }
    /// Has somebody told the mount to end before it has begun?
    fn is_unwanted(&self) -> bool {
        false
    }
}

/// An inode as programs see it through the mount.
pub trait InodeView: Send + Sync {
    /// The size that the kernel goes by. Asks nobody and waits for nothing.
    ///
    /// # Errors
    /// Those of statx(2).
    fn size(&self) -> io::Result<u64>;
    /// Has the kernel ask for the attributes and take the size over. May then wait for pages that it drops.
    ///
    /// # Errors
    /// Those of statx(2).
    fn ask(&self) -> io::Result<()>;
}

/// How hosts that die are to be kept off the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceWish {
    /// As the hosts that have it mounted do; the first one chooses what protects best.
    Auto,
    Lease,
    Reservation,
    /// By this program.
    Command(PathBuf),
}

/// What a mount was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The block device or image file.
    pub device: PathBuf,
    pub read_only: bool,
    /// Access times are never changed.
    pub no_atime: bool,
    /// Writes are durable before they are answered. (That of write(2) is the kernel's to tell.)
    pub synchronous: bool,
    /// Name of this host in listings; by default the machine's.
    pub host_name: Option<String>,
    /// Longest time from a change to its commit.
    pub commit_interval: Duration,
    /// Limit of cached metadata blocks, in bytes.
    pub cache_bytes: usize,
    /// Limit of file data not yet written, in bytes.
    pub dirty_bytes: usize,
    /// Do not wait for the lease of a dead host whose process is provably gone from this machine.
    pub prove_gone: bool,
    pub fence: FenceWish,
}

impl MountOptions {
    /// Defaults for `device`.
    pub fn new(device: PathBuf) -> MountOptions {
        MountOptions {
            device,
            read_only: false,
            no_atime: false,
            synchronous: false,
            host_name: None,
            commit_interval: Duration::from_secs(1),
            cache_bytes: 64 << 20,
            dirty_bytes: 64 << 20,
            prove_gone: true,
            fence: FenceWish::Auto,
        }
    }
}

/// A file lock that a program wants to have, change, give up (`N`) or know about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// flock(2), not fcntl(2): the whole file, whatever the range.
    pub flock: bool,
    /// Who it belongs to: a number of the kernel's.
    pub owner: u64,
    pub mode: Mode,
    /// First and last byte.
    pub start: u64,
    pub end: u64,
    pub pid: u32,
}

/// A lock that is in the way of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockFound {
    pub exclusive: bool,
    pub start: u64,
    pub end: u64,
    /// Of its process, if that is one of this host's; else 0.
    pub pid: u32,
}
