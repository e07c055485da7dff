//! The operations of the filesystem, mounting and leaving, and what a lock's loss empties. Level 9.
//!
//! Every operation is a closure under the engine in `op`: it pins the cluster locks it needs,
//! locks the in-memory inodes in ascending order, then begins its one transaction. The order matters:
//! nothing is waited for while a transaction is open (a seal waits for open transactions).

use crate::alloc::{Allocator, PendingRuns, Reservation, Transaction};
use crate::base::{AgNo, BlockNo, Clock, Error, Generation, InodeNo, LockName, Mode, Result, SlotId};
use crate::cluster::Cluster;
use crate::dir::Directory;
use crate::file::{DataBuf, FileState, PagePool, WritePlan, sectors_in_inode};
use crate::format::Geometry;
use crate::inode::{Attr, FileKind, Timestamp, Tree};
use crate::journal::Journal;
use crate::lock::{LockManager, LockSet};
use crate::store::Store;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

mod acl;
mod ahead;
mod append;
mod aside;
mod attr;
pub mod capabilities;
mod coherence;
mod coming;
mod create;
mod data;
mod drain;
mod fencing;
mod filelocks;
mod flags;
mod flight;
mod free;
mod fsync;
mod giving_up;
mod gone;
mod handles;
mod heard;
mod invalidation;
mod io;
mod lapse;
mod lease;
mod leave;
mod link;
mod lookup;
pub mod mount;
mod node;
mod op;
pub mod operations;
mod privileges;
mod quiet;
mod readdir;
mod reap;
mod remove;
mod rename;
mod serve;
mod serving;
mod shared;
mod size;
mod space;
mod spawn;
mod statfs;
mod sync;
mod takeover;
mod threads;
mod tmpfile;
mod trim;
pub mod tune;
pub mod types;
mod unwanted;
mod walk;
mod write_errors;
mod writeback;
mod xattrs;

pub use trim::TrimRange;
pub use types::*;

use node::{Node, NodeState, NodeTable};
use op::{Op, Step, Stop};

/// The kernel asks for every name, each time. It could be told that names have changed without its locks (INC_EPOCH,
/// Linux 6.16), but then it does not ask again, it drops them: mounts on directories here would be gone, and getcwd(2)
/// fail, because of what another host has changed elsewhere.
const NAMES_VALID: Duration = Duration::ZERO;

/// How long the kernel may keep attributes without asking, where an invalidation can reach them, at most: as long as
/// the lease lasts, so that a stalled host does not serve them when others may have changed them. With attributes that
/// must be asked for end cached pages, too.
const KEEP: Duration = Duration::from_secs(10);

/// Everything a mount works with.
pub struct Core {
    pub store: Arc<Store>,
    pub journal: Arc<Journal>,
    pub alloc: Arc<Allocator>,
    pub locks: Arc<LockManager>,
    pub cluster: Arc<Cluster>,
    pub clock: Arc<dyn Clock>,
    pub kernel: Arc<dyn KernelCache>,
    pub nodes: NodeTable,
    pub slot: SlotId,
    /// Slots that the groups were dealt out to.
    pub slots: u16,
    pub root: InodeNo,
    pub geometry: Geometry,
    /// Mounted so. It may end ([`Fs::make_writable`]).
    read_only: AtomicBool,
    /// Mounted so: every file is as if it were opened with O_SYNC.
    pub synchronous: bool,
    pool: Arc<PagePool>,
    seed: [u8; 16],
    /// The own slot's system inode: orphans and deferred frees.
    slot_tree: Tree,
    /// Local exclusion of changes to it. Taken before a transaction begins, held until it is finished.
    slot_lock: Arc<Mutex<()>>,
    handles: handles::Handles,
    reaper: Arc<reap::Queue>,
    in_vain: coming::InVain,
    ahead: ahead::Ahead,
    walks: walk::Queue,
    recovery: takeover::Recovery,
    writeback: writeback::Signal,
    doubts: giving_up::Doubts,
    statfs: statfs::Cache,
    confirmations: filelocks::Confirmations,
    looks: Arc<size::Looks>,
    next_id: AtomicU64,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    stopping: AtomicBool,
    safe: sync::Safe,
    /// How the lock room reaches us.
    hook: Arc<coherence::Hook>,
    /// What the administrator is told at the mount: on a terminal, and in the log.
    warning: Option<String>,
}

/// A mounted filesystem: the operations, one method each. All of them answer through `reply`, on
/// the calling thread if nothing has to be waited for.
#[derive(Clone)]
pub struct Fs {
    core: Arc<Core>,
}

/// A transaction that may free blocks, with the slot inode locked for deferred frees.
struct FreeingChange<'a> {
    txn: Transaction,
    _slot: MutexGuard<'a, ()>,
}

impl Core {
    /// The inode number behind a nodeid of the kernel.
    fn ino(&self, node: NodeId) -> InodeNo {
        node.inode(self.root)
    }

    /// The nodeid the kernel knows an inode by.
    fn nodeid(&self, ino: InodeNo) -> NodeId {
        NodeId::of(ino, self.root)
    }

    /// Now, as file times.
    fn now(&self) -> Timestamp {
        Timestamp::from(self.clock.wall())
    }

    fn tree(&self, ino: InodeNo) -> Tree {
        Tree { ino, cover: LockName::Inode(ino) }
    }

    fn dir(&self, ino: InodeNo) -> Directory<'_> {
        Directory { tree: self.tree(ino), seed: &self.seed }
    }

    /// A new number for handles and parked requests.
    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The group that an inode lies in.
    fn group(&self, ino: InodeNo) -> Option<AgNo> {
        self.geometry.ag_of(BlockNo(ino.0))
    }

    /// The attributes of the inode that the kernel means by the number of `node`, read if they are not in
    /// memory. The caller has the inode lock pinned.
    ///
    /// # Errors
    /// `Stale` if the number belongs to nothing or to another inode than the kernel knows.
    fn load<'a>(&self, node: &Node, state: &'a mut NodeState) -> Result<&'a mut Attr> {
        if node.gone.is_so() {
            return Err(Error::Stale);
        }
        let attr = self.load_named(node, state)?;
        node.check_generation(attr.generation)?;
        Ok(attr)
    }

    /// Like [`Core::load`] for an inode that was found by its name or its child just now: whatever inode
    /// the kernel knows by the number, it is this one that is meant.
    fn load_named<'a>(&self, node: &Node, state: &'a mut NodeState) -> Result<&'a mut Attr> {
        if state.attr.is_none() {
            let attr = match self.tree(node.ino).read_attr(&*self.store) {
                Err(e) if e.is_other_kind() => return Err(Error::Stale),
                other => other?,
            };
            state.file = None;
            state.attr = Some(attr);
        }
        Ok(state.attr.as_mut().expect("just read"))
    }

    /// Like [`Core::load`] for a directory that is still linked.
    fn load_dir<'a>(&self, node: &Node, state: &'a mut NodeState) -> Result<&'a mut Attr> {
        let attr = self.load(node, state)?;
        if attr.kind != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        Ok(attr)
    }

    /// A transaction for a change that frees nothing. The caller holds what it locks already.
    fn change(&self, space: Reservation, blocks: u32) -> Result<Transaction> {
        self.check_writable()?;
        self.alloc.begin(space, blocks)
    }

    /// A transaction that may free blocks. With `space` it may allocate as well.
    fn change_freeing(&self, space: Option<Reservation>, blocks: u32) -> Result<FreeingChange<'_>> {
        self.check_writable()?;
        let slot = self.slot_lock.lock();
        let space = space.unwrap_or_default();
        let txn = self.alloc.begin_sure(space, blocks)?;
        Ok(FreeingChange { txn, _slot: slot })
    }

    fn check_writable(&self) -> Result<()> {
        self.store.halt().check()?;
        if self.is_read_only() { Err(Error::ReadOnly) } else { Ok(()) }
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Answer for an inode whose lock is pinned: counts a lookup.
    fn entry(&self, ino: InodeNo) -> Result<EntryReply> {
        let node = self.nodes.get(ino);
        let mut state = node.state.lock();
        let attr = self.visible(&node, &mut state)?;
        Ok(self.entry_of(&node, attr))
    }

    /// Count a lookup and make the answer from attributes at hand, and the sectors in the inode.
    fn entry_of(&self, node: &Node, (attr, in_inode): (Attr, u64)) -> EntryReply {
        self.nodes.remember(node, attr.generation);
        self.end_of_gone(node);
        EntryReply {
            ino: self.nodeid(node.ino),
            generation: attr.generation,
            attr,
            in_inode,
            entry_valid: NAMES_VALID,
            // What an invalidation might miss on its way must not be relied on (`drop_attributes`).
            attr_valid: if node.is_mixed() { Duration::ZERO } else { self.keep() },
        }
    }

    /// The attributes as programs see them, and the sectors in the inode: sizes and times include what is not on the
    /// disk yet, but no size that comes with the answer to a write (`flight`). They are of whatever inode has the number.
    fn visible(&self, node: &Node, state: &mut NodeState) -> Result<(Attr, u64)> {
        let mut attr = self.load_named(node, state)?.clone();
        let mut in_inode = 0;
        if let Some(file) = &state.file {
            let (blocks, sectors) = file.blocks_on_top();
            let size = node.flights.told(file.size());
            (attr.size, attr.blocks, in_inode) = (size, attr.blocks + blocks, sectors);
        } else if attr.kind == FileKind::Regular && attr.blocks == 0 && attr.size > 0 {
            // Where that cannot be told, whoever reads is to find out.
            let has_bytes = FileState::has_bytes_in_inode(&self.tree(node.ino), &*self.store);
            in_inode = if has_bytes.unwrap_or(true) { sectors_in_inode(attr.size) } else { 0 };
        }
        if let Some(note) = &state.note {
            note.show(&mut attr);
        }
        Ok((attr, in_inode))
    }

    /// The data of a regular file; its attributes and, if need be, the kind of its content are read.
    fn file<'a>(&self, node: &Node, state: &'a mut NodeState) -> Result<&'a mut FileState> {
        let attr = self.load(node, state)?;
        match attr.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid("not a regular file")),
        }
        let size = attr.size;
        if state.file.is_none() {
            let tree = self.tree(node.ino);
            state.file = Some(FileState::load(&*self.store, tree, &self.geometry, self.pool.clone(), size)?);
        }
        Ok(state.file.as_mut().expect("just loaded"))
    }

    fn attr_reply(&self, node: &Node, state: &mut NodeState) -> Step<AttrReply> {
        self.load(node, state)?;
        let (attr, in_inode) = self.visible(node, state)?;
        let told = AttrReply { ino: self.nodeid(node.ino), attr, in_inode, attr_valid: self.keep() };
        if node.ino == self.root {
            self.looks.note_root(&told);
        }
        Ok(told)
    }

    /// How long what is told now may be relied on.
    fn keep(&self) -> Duration {
        self.store.permit().lease_left().min(KEEP)
    }
}

/// `LockSet` of one inode.
fn inode(ino: InodeNo, mode: Mode) -> LockSet {
    LockSet::one(LockName::Inode(ino), mode)
}

impl Op<'_> {
    /// Go on only with the inode pinned.
    fn need_inode(&mut self, ino: InodeNo, mode: Mode) -> Step<()> {
        self.need(LockName::Inode(ino), mode)
    }

    /// The same for an entry of a directory, whose node's state is not locked.
    fn need_entry(&mut self, dir: InodeNo, ino: InodeNo, mode: Mode) -> Step<()> {
        self.need_inode(ino, mode).inspect_err(|_| self.core.missed_in(dir, ino))
    }
}

/// Lock the states of several nodes in ascending inode order; duplicates are locked once.
fn lock_states<'a>(nodes: &[&'a Arc<Node>]) -> SmallVec<[(InodeNo, MutexGuard<'a, NodeState>); 4]> {
    let mut sorted: SmallVec<[&'a Arc<Node>; 4]> = nodes.into();
    sorted.sort_by_key(|n| n.ino);
    sorted.dedup_by_key(|n| n.ino);
    sorted.into_iter().map(|n| (n.ino, n.state.lock())).collect()
}

/// The guard of one inode among those locked.
fn state_of<'g, 'a>(
    guards: &'g mut [(InodeNo, MutexGuard<'a, NodeState>)],
    ino: InodeNo,
) -> &'g mut NodeState {
    &mut guards.iter_mut().find(|(i, _)| *i == ino).expect("locked by the caller").1
}

/// Time stamps that never go back: `now`, or a nanosecond after `old`.
fn not_before(now: Timestamp, old: Timestamp) -> Timestamp {
    if now > old { now } else { old.next() }
}

/// Set mtime and ctime. An mtime that somebody has set into the future comes back; it only never stays as it was,
/// for that tells the kernels of other hosts that there is something new.
fn touch(attr: &mut Attr, now: Timestamp) {
    attr.mtime = if now == attr.mtime { now.next() } else { now };
    attr.ctime = not_before(now, attr.ctime);
}

/// Set ctime.
fn touch_ctime(attr: &mut Attr, now: Timestamp) {
    attr.ctime = not_before(now, attr.ctime);
}

/// Names as Linux filesystems take them.
fn check_name(name: &[u8]) -> Result<()> {
    match name.len() {
        0 => Err(Error::NotFound),
        1..=255 => Ok(()),
        _ => Err(Error::NameTooLong),
    }
}
