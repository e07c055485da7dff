//! The in-memory inode: what this host knows of an inode while it holds its lock.
//!
//! A node exists while the kernel knows the inode, a handle is open, or something in it is dirty. One that
//! only the kernel knows about becomes *quiet* after a while: a few bytes, from which it is made again.
//! `state` is the local exclusion of operations on one inode; several are locked in ascending inode
//! order. `gate` keeps truncation away from data I/O that runs without `state`; it is taken first.

use crate::alloc::Reservation;
use crate::base::{Error, Generation, InodeNo, Result, TxnId};
use crate::file::FileState;
use crate::fs::append::Held;
use crate::fs::filelocks::LastClose;
use crate::fs::flight::Flights;
use crate::fs::gone::Gone;
use crate::fs::quiet::{LINE, LOOKUPS_MAX, Quiet, QuietTable};
use crate::fs::shared::{Note, Sharing};
use crate::fs::size::Doubt;
use crate::fs::walk::Walk;
use crate::fs::write_errors::WriteErrors;
use crate::inode::Attr;
use crate::lock::Pins;
use crate::store::BlockHash;
use crate::xattr::acl::Acl;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes whose pages a waiting request keeps locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// First byte whose page may be locked.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// They are locked and hold nothing yet. Else they may as well be unlocked, with content.
    pub locked: bool,
}

/// A request of the kernel that waits for a cluster lock and holds page locks meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedRange {
    /// Tells equal ranges apart.
    pub id: u64,
    pub pages: Pages,
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
    /// The time of writes under `DW` that the inode does not show yet.
    pub note: Option<Note>,
    /// Nothing that a write must take away (`privileges`), as far as this host can change it.
    pub unprivileged: bool,
    /// The last transaction that changed the inode; fsync waits for it.
    pub last_txn: TxnId,
    /// The transaction that was running when data last went straight to the device: with it, or
    /// with a flush, that data is durable.
    pub data_txn: TxnId,
    /// Space for a flush is being looked for, or was in vain: not again before this time.
    pub seeks_until: Option<Duration>,
    /// Errors of write-back, until every handle has heard of them.
    pub write_errors: WriteErrors,
}

impl NodeState {
    /// Is there nothing that the disk lacks?
    pub fn is_clean(&self) -> bool {
        !self.attr_dirty && !self.is_data_dirty()
    }

    /// The inode is gone: nothing of it is to be kept, or written.
    pub fn forget(&mut self) {
        (self.attr, self.file, self.space, self.note, self.attr_dirty) = (None, None, None, None, false);
    }

    /// Does the disk lack data, or the size that goes with it?
    pub fn is_data_dirty(&self) -> bool {
        self.file.as_ref().is_some_and(FileState::is_dirty)
    }
}

/// An inode in memory.
pub struct Node {
    pub ino: InodeNo,
    /// Generation of the inode that the kernel was last told of under this number; 0 while it knows none.
    generation: AtomicU64,
    pub state: Mutex<NodeState>,
    pub gate: RwLock<()>,
    /// Direct writes under X that are on their way to the device without `state`, but with the gate. Counted up under
    /// `state`.
    pub overwrites: AtomicU32,
    /// Lookups the kernel has not yet forgotten.
    lookups: AtomicU64,
    /// Some of these lookups may be of an inode that had the number before. The kernel keeps that one, out
    /// of reach, while a name or a directory in use leads to it.
    mixed: AtomicBool,
    pub opens: AtomicU32,
    pub writers: AtomicU32,
    /// The kernel may hold pages that are not known to be current: the next open drops them.
    pub stale_pages: AtomicBool,
    /// The kernel has been emptied for a demotion that goes on.
    pub emptied: AtomicBool,
    pub parked: Mutex<Vec<ParkedRange>>,
    /// Writes through the kernel's pages that are not answered.
    pub flights: Flights,
    /// All the bytes that the kernel may have in its pages, perhaps more.
    pub filled: Mutex<Range<u64>>,
    /// Does the kernel know how large it is?
    pub size: Doubt,
    /// The lock, kept for the rest of an appending write.
    pub append: Mutex<Option<Held>>,
    /// How it has been read and written past the page cache.
    pub sharing: Sharing,
    /// Of a directory: how its entries are looked up.
    pub walk: Mutex<Option<Box<Walk>>>,
    /// Held shared while a handle is open on this host.
    pub iopen: Mutex<Option<Pins>>,
    /// It has never had a name, and may get one as long as it is open here.
    pub nameless: AtomicBool,
    /// A program has asked for a file lock by a handle of it.
    pub locked: AtomicBool,
    /// When a descriptor of it was last closed here, if so.
    pub closed: LastClose,
    /// Of an inode that has been freed while the kernel still knows it: what it was in the end.
    pub gone: Gone,
    /// Asked for since the table was last gone through.
    used: AtomicBool,
}

/// A direct write on its way.
pub struct Overwrites<'a>(&'a AtomicU32);

impl Drop for Overwrites<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Node {
    fn new(ino: InodeNo, last_txn: TxnId) -> Node {
        Node {
            ino,
            generation: AtomicU64::new(0),
            state: Mutex::new(NodeState { last_txn, data_txn: last_txn, ..NodeState::default() }),
            gate: RwLock::new(()),
            overwrites: AtomicU32::new(0),
            lookups: AtomicU64::new(0),
            mixed: AtomicBool::new(false),
            opens: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            stale_pages: AtomicBool::new(true),
            emptied: AtomicBool::new(false),
            parked: Mutex::new(Vec::new()),
            flights: Flights::default(),
            filled: Mutex::new(0..0),
            size: Doubt::default(),
            append: Mutex::default(),
            sharing: Sharing::default(),
            walk: Mutex::default(),
            iopen: Mutex::new(None),
            nameless: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            closed: LastClose::default(),
            gone: Gone::default(),
            used: AtomicBool::new(true),
        }
    }

    /// Is there nothing in it that could not be read again?
    fn is_plain(&self) -> bool {
        let state = match self.state.try_lock() {
            Some(state) => !state.write_errors.has_news() && state.attr.as_ref().is_none_or(|a| a.nlink > 0),
            None => false,
        };
        let idle = |busy: Option<bool>| busy == Some(false);
        state
            && idle(self.parked.try_lock().map(|p| !p.is_empty()))
            && idle(self.append.try_lock().map(|a| a.is_some()))
            && idle(self.iopen.try_lock().map(|i| i.is_some()))
            && !self.gone.is_so()
    }

    /// One direct write more, until the value is dropped.
    pub fn overwrites(&self) -> Overwrites<'_> {
        self.overwrites.fetch_add(1, Ordering::AcqRel);
        Overwrites(&self.overwrites)
    }

    /// Lookups the kernel has not forgotten.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Acquire)
    }

    /// Does a lookup that is not forgotten prove that the kernel has this inode, or soon will?
    pub fn is_known(&self) -> bool {
        self.lookups() > 0 && !self.is_mixed()
    }

    /// May lookups be of an inode that had this number before?
    pub fn is_mixed(&self) -> bool {
        self.mixed.load(Ordering::Acquire)
    }

    fn set_lookups(&self, lookups: u64) {
        self.lookups.store(lookups, Ordering::Release);
        if lookups == 0 {
            self.generation.store(0, Ordering::Release);
            self.mixed.store(false, Ordering::Release);
        }
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

    /// The kernel gets bytes into its pages. The inode is pinned.
    pub fn fills(&self, start: u64, end: u64) {
        if start < end {
            let mut filled = self.filled.lock();
            *filled =
                if filled.is_empty() { start..end } else { filled.start.min(start)..filled.end.max(end) };
        }
    }

    /// May the kernel have pages with bytes from `start` to `end`?
    pub fn may_show(&self, start: u64, end: u64) -> bool {
        let filled = self.filled.lock();
        filled.start < end.next_multiple_of(4096) && filled.end > start / 4096 * 4096
    }

    /// The generation the kernel knows.
    pub fn known_generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
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

#[derive(Default)]
struct Shard {
    nodes: HashMap<InodeNo, Arc<Node>, BlockHash>,
    quiet: QuietTable,
}

/// The nodes by inode number.
#[derive(Default)]
pub struct NodeTable {
    shards: [Mutex<Shard>; 16],
    /// The newest transaction that any inode dropped from memory had to do with. One that comes back
    /// might be that inode: its fsync waits for this.
    shed_txn: AtomicU64,
    /// Never dropped: the kernel knows the root without having looked it up.
    root: Option<InodeNo>,
}

impl NodeTable {
    /// A table that keeps the root's node.
    pub fn new(root: InodeNo) -> NodeTable {
        let table = NodeTable { root: Some(root), ..NodeTable::default() };
        table.get(root);
        table
    }

    fn shard(&self, ino: InodeNo) -> &Mutex<Shard> {
        // Neighbours are quiet together.
        &self.shards[(ino.0 / LINE % 16) as usize]
    }

    /// A node for an inode that is not in memory. The shard is locked: sheds of it have happened.
    fn fresh(&self, ino: InodeNo) -> Arc<Node> {
        Arc::new(Node::new(ino, self.newest_shed()))
    }

    /// The newest transaction that an inode which is not in memory may still wait for.
    pub fn newest_shed(&self) -> TxnId {
        TxnId(self.shed_txn.load(Ordering::Acquire))
    }

    /// The node if it is in memory, woken if it is quiet.
    fn wake(&self, shard: &mut Shard, ino: InodeNo) -> Option<Arc<Node>> {
        if let Some(node) = shard.nodes.get(&ino) {
            node.used.store(true, Ordering::Relaxed);
            return Some(node.clone());
        }
        let quiet = shard.quiet.remove(ino)?;
        let node = self.fresh(ino);
        node.generation.store(quiet.generation.0, Ordering::Release);
        node.mixed.store(quiet.mixed, Ordering::Release);
        node.set_lookups(quiet.lookups);
        node.stale_pages.store(quiet.stale_pages, Ordering::Release);
        if quiet.has_pages {
            node.fills(0, u64::MAX);
        }
        shard.nodes.insert(ino, node.clone());
        Some(node)
    }

    /// The node if it is in memory.
    pub fn find(&self, ino: InodeNo) -> Option<Arc<Node>> {
        self.wake(&mut self.shard(ino).lock(), ino)
    }

    /// Is the inode in memory, if only as one that the kernel knows?
    pub fn knows(&self, ino: InodeNo) -> bool {
        let shard = self.shard(ino).lock();
        shard.nodes.contains_key(&ino) || shard.quiet.get(ino).is_some()
    }

    /// The node, made if need be.
    pub fn get(&self, ino: InodeNo) -> Arc<Node> {
        let mut shard = self.shard(ino).lock();
        self.wake(&mut shard, ino)
            .unwrap_or_else(|| shard.nodes.entry(ino).or_insert_with(|| self.fresh(ino)).clone())
    }

    /// Count a lookup that is about to be answered. The node stays in its table while somebody has it.
    pub fn remember(&self, node: &Node, generation: Generation) {
        // Not beside a forgetting.
        let _shard = self.shard(node.ino).lock();
        let before = node.generation.swap(generation.0, Ordering::AcqRel);
        if node.lookups.fetch_add(1, Ordering::AcqRel) > 0 && before != generation.0 {
            node.mixed.store(true, Ordering::Release);
        }
    }

    /// The kernel forgets `n` lookups. Returns the node if none is left and it was not quiet.
    pub fn forget(&self, ino: InodeNo, n: u64) -> Option<Arc<Node>> {
        let mut shard = self.shard(ino).lock();
        if let Some(quiet) = shard.quiet.remove(ino) {
            let lookups = quiet.lookups.saturating_sub(n);
            if lookups > 0 {
                shard.quiet.insert(ino, Quiet { lookups, ..quiet });
            }
            return None;
        }
        let node = shard.nodes.get(&ino)?;
        let left = node.lookups().saturating_sub(n);
        node.set_lookups(left);
        (left == 0).then(|| node.clone())
    }

    /// Drop the node if nothing needs it any more.
    pub fn shed(&self, ino: InodeNo) {
        let mut shard = self.shard(ino).lock();
        if let Some(node) = shard.nodes.get(&ino)
            && self.root != Some(ino)
            && node.lookups() == 0
            && self.is_idle(node)
        {
            shard.nodes.remove(&ino);
        }
    }

    /// Could the node go as far as this host is concerned? Then whatever was known of it no longer is.
    /// Its shard is locked.
    fn is_idle(&self, node: &Arc<Node>) -> bool {
        if Arc::strong_count(node) > 1 || node.is_open() {
            return false;
        }
        let durable_with = match node.state.try_lock() {
            Some(state) if state.is_clean() && state.note.is_none() => state.last_txn.max(state.data_txn),
            _ => return false,
        };
        self.shed_txn.fetch_max(durable_with.0, Ordering::AcqRel);
        true
    }

    /// Nodes in memory that are not quiet.
    pub fn awake(&self) -> usize {
        self.shards.iter().map(|s| s.lock().nodes.len()).sum()
    }

    /// Those with a handle open.
    pub fn open(&self) -> Vec<Arc<Node>> {
        let of = |shard: &Mutex<Shard>| -> Vec<Arc<Node>> {
            shard.lock().nodes.values().filter(|node| node.is_open()).cloned().collect()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// Make nodes quiet that nobody has used since the last call; all that can be while there are more
    /// than `most`.
    pub fn quieten(&self, most: usize) {
        let share = most / self.shards.len();
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            for spare_used in [true, false] {
                if spare_used || shard.nodes.len() > share {
                    self.quieten_shard(shard, spare_used);
                }
            }
        }
    }

    fn quieten_shard(&self, shard: &mut Shard, spare_used: bool) {
        let quiet = &mut shard.quiet;
        shard.nodes.retain(|ino, node| {
            let used = node.used.swap(false, Ordering::Relaxed);
            let lookups = node.lookups();
            let stays = (used && spare_used) || lookups > LOOKUPS_MAX || self.root == Some(*ino);
            if stays || !node.is_plain() || !self.is_idle(node) {
                return true;
            }
            if lookups > 0 {
                let known = Quiet {
                    generation: Generation(node.generation.load(Ordering::Acquire)),
                    lookups,
                    mixed: node.is_mixed(),
                    stale_pages: node.stale_pages.load(Ordering::Acquire),
                    has_pages: !node.filled.lock().is_empty(),
                };
                quiet.insert(*ino, known);
            }
            false
        });
    }

    /// Every node that is not quiet: all with something to write, to hand in or to close are among them.
    pub fn all_awake(&self) -> Vec<Arc<Node>> {
        let of = |shard: &Mutex<Shard>| -> Vec<Arc<Node>> { shard.lock().nodes.values().cloned().collect() };
        self.shards.iter().flat_map(of).collect()
    }

    /// Do something for every quiet inode, of which there can be millions; `true`: what the kernel knows by the number
    /// is this inode.
    pub fn each_quiet(&self, mut work: impl FnMut(InodeNo, bool)) {
        for shard in &self.shards {
            let quiet = shard.lock().quiet.inodes();
            for ino in quiet {
                let found = shard.lock().quiet.get(ino);
                if let Some(quiet) = found {
                    work(ino, !quiet.mixed);
                }
            }
        }
    }

    /// The kernel is gone, and with it all that it knew.
    pub fn forget_all(&self) {
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            shard.quiet = QuietTable::default();
            shard.nodes.values().for_each(|node| node.set_lookups(0));
        }
    }
}

#[cfg(test)]
mod tests;
