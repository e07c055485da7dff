//! The in-memory inode: what this host knows of an inode while it holds its lock.
//!
//! A node exists while the kernel knows the inode, a handle is open, or something in it is dirty.
//! `state` is the local exclusion of operations on one inode; several are locked in ascending inode
//! order. `gate` keeps truncation away from data I/O that runs without `state`; it is taken first.

use crate::alloc::Reservation;
use crate::base::{Error, Generation, InodeNo, Result, TxnId};
use crate::file::FileState;
use crate::fs::append::Held;
use crate::inode::Attr;
use crate::lock::Pins;
use crate::xattr::acl::Acl;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A request of the kernel that waits for a cluster lock and holds page locks meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedRange {
    /// Tells equal ranges apart.
    pub id: u64,
    /// First byte whose page may be locked.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

/// What the lock covers, as far as it is in memory.
#[derive(Default)]
pub struct NodeState {
    /// The attributes, while the inode lock is cached and they have been read.
    pub attr: Option<Attr>,
    /// File data, of a regular file that was read or written.
    pub file: Option<FileState>,
    /// What is reserved for the dirty data.
    pub space: Option<Reservation>,
    /// The list that new files of a directory inherit, if that has been looked for.
    pub default_acl: Option<Option<Arc<Acl>>>,
    /// `attr` has changes that no transaction carries yet (times after writes).
    pub attr_dirty: bool,
    /// When the oldest dirty data or attribute came (boot time).
    pub dirty_since: Option<Duration>,
    /// Nothing that a write must take away (`privileges`), as far as this host can change it.
    pub unprivileged: bool,
    /// The last transaction that changed the inode; fsync waits for it.
    pub last_txn: TxnId,
    /// The transaction that was running when data last went straight to the device: with it, or
    /// with a flush, that data is durable.
    pub data_txn: TxnId,
    /// An error of write-back that nobody has been told yet.
    pub write_error: Option<Error>,
}

impl NodeState {
    /// Is there nothing that the disk lacks?
    pub fn is_clean(&self) -> bool {
        !self.attr_dirty && !self.is_data_dirty()
    }

    /// Does the disk lack data, or the size that goes with it?
    pub fn is_data_dirty(&self) -> bool {
        self.file.as_ref().is_some_and(FileState::is_dirty)
    }
}

/// An inode in memory.
pub struct Node {
    pub ino: InodeNo,
    /// Generation the kernel knows the inode by; 0 until first looked up.
    pub generation: AtomicU64,
    pub state: Mutex<NodeState>,
    pub gate: RwLock<()>,
    /// Lookups the kernel has not yet forgotten.
    lookups: AtomicU64,
    pub opens: AtomicU32,
    pub writers: AtomicU32,
    /// The kernel may hold pages that are not known to be current: the next open drops them.
    pub stale_pages: AtomicBool,
    pub parked: Mutex<Vec<ParkedRange>>,
    /// The lock, kept for the rest of an appending write.
    pub append: Mutex<Option<Held>>,
    /// Held shared while a handle is open on this host.
    pub iopen: Mutex<Option<Pins>>,
}

impl Node {
    fn new(ino: InodeNo, last_txn: TxnId) -> Node {
        Node {
            ino,
            generation: AtomicU64::new(0),
            state: Mutex::new(NodeState { last_txn, data_txn: last_txn, ..NodeState::default() }),
            gate: RwLock::new(()),
            lookups: AtomicU64::new(0),
            opens: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            stale_pages: AtomicBool::new(true),
            parked: Mutex::new(Vec::new()),
            append: Mutex::default(),
            iopen: Mutex::new(None),
        }
    }

    /// Lookups the kernel has not forgotten.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Acquire)
    }

    /// Open for writing on this host: page fills need X then, because a store into a shared mapping
    /// never asks.
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    /// Has a handle open on this host.
    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }

    /// Compare with the generation the kernel knows.
    ///
    /// # Errors
    /// `Stale` if the number belongs to another inode by now.
    pub fn check_generation(&self, found: Generation) -> Result<()> {
        let known = self.generation.load(Ordering::Acquire);
        if known != 0 && known != found.0 { Err(Error::Stale) } else { Ok(()) }
    }
}

/// The nodes by inode number.
#[derive(Default)]
pub struct NodeTable {
    shards: [Mutex<HashMap<InodeNo, Arc<Node>>>; 16],
    /// The newest transaction that any inode dropped from memory had to do with. One that comes back
    /// might be that inode: its fsync waits for this.
    shed_txn: AtomicU64,
}

impl NodeTable {
    fn shard(&self, ino: InodeNo) -> &Mutex<HashMap<InodeNo, Arc<Node>>> {
        &self.shards[(ino.0 % 16) as usize]
    }

    /// A node for an inode that is not in memory. The shard is locked: sheds of it have happened.
    fn fresh(&self, ino: InodeNo) -> Arc<Node> {
        Arc::new(Node::new(ino, self.newest_shed()))
    }

    /// The newest transaction that an inode which is not in memory may still wait for.
    pub fn newest_shed(&self) -> TxnId {
        TxnId(self.shed_txn.load(Ordering::Acquire))
    }

    /// The node if it is in memory.
    pub fn find(&self, ino: InodeNo) -> Option<Arc<Node>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// The node, made if need be.
    pub fn get(&self, ino: InodeNo) -> Arc<Node> {
        self.shard(ino).lock().entry(ino).or_insert_with(|| self.fresh(ino)).clone()
    }

    /// Count a lookup that is about to be answered.
    pub fn remember(&self, ino: InodeNo, generation: Generation) {
        let mut shard = self.shard(ino).lock();
        let node = shard.entry(ino).or_insert_with(|| self.fresh(ino));
        node.generation.store(generation.0, Ordering::Release);
        node.lookups.fetch_add(1, Ordering::AcqRel);
    }

    /// The kernel forgets `n` lookups. Returns the node if none is left.
    pub fn forget(&self, ino: InodeNo, n: u64) -> Option<Arc<Node>> {
        let shard = self.shard(ino).lock();
        let node = shard.get(&ino)?;
        let left = node.lookups().saturating_sub(n);
        node.lookups.store(left, Ordering::Release);
        (left == 0).then(|| node.clone())
    }

    /// Drop the node if nothing needs it any more.
    pub fn shed(&self, ino: InodeNo) {
        let mut shard = self.shard(ino).lock();
        let Some(node) = shard.get(&ino) else { return };
        if Arc::strong_count(node) > 1 || node.lookups() > 0 || node.is_open() {
            return;
        }
        let durable_with = match node.state.try_lock() {
            Some(state) if state.is_clean() => state.last_txn.max(state.data_txn),
            _ => return,
        };
        self.shed_txn.fetch_max(durable_with.0, Ordering::AcqRel);
        shard.remove(&ino);
    }

    /// Every node in memory.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.shards.iter().flat_map(|s| s.lock().values().cloned().collect::<Vec<_>>()).collect()
    }
}
