//! What a demotion empties: the daemon's caches and the kernel's, before a lock goes down.
//!
//! For an inode: (1) the kernel drops its attributes and, where pages may be cached, its pages,
//! which writes dirty mapped pages back to us; (2) our dirty data and attributes go out; (3) the
//! journal commits what touched the lock, its blocks go to their places, the device flushes; (4) what
//! is in memory is forgotten, unless a request that (1) had to have served has changed it since.
//!
//! How pages go although requests that wait for this very lock keep some of them locked: `invalidation`.

use super::*;
use crate::alloc::DemoteReady;
use crate::lock::{DemoteAnswer, DemoteJob, Demoter};
use invalidation::Invalidation;
use spawn::spawn;
use std::collections::BTreeSet;
use std::time::Instant;

/// The kernel answers ENOENT for an inode whose lookup reply it has not processed yet.
const REPLY_PENDING_MAX: Duration = Duration::from_secs(5);

/// The manager's view of us. Filled in once the mount is complete.
#[derive(Default)]
pub struct Hook {
    pub core: parking_lot::RwLock<Option<Arc<Core>>>,
}

impl Demoter for Hook {
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        let core = self.core.read().clone();
        match core {
            Some(core) => core.demote(batch),
            None => vec![DemoteAnswer::Done; batch.len()],
        }
    }

    fn kept(&self, name: LockName, _mode: Mode) {
        if let (LockName::Ag(ag), Some(core)) = (name, self.core.read().as_ref()) {
            core.alloc.ag_keep(ag);
        }
    }

    fn hears_of(&self, name: LockName) -> bool {
        matches!(name, LockName::Ag(_))
    }

    fn granted(&self, name: LockName, mode: Mode) {
        if let (LockName::Ag(ag), Mode::X, Some(core)) = (name, mode, self.core.read().as_ref()) {
            core.alloc.ag_granted(ag);
            core.alloc.set_abroad(ag, !core.locks.masters(name));
        }
    }
}

/// Set while the kernel has nothing left that a demotion would have to wait for.
struct Emptied(Vec<Arc<Node>>);

impl Emptied {
    fn new(core: &Core, batch: &[DemoteJob]) -> Emptied {
        let node = |job: &DemoteJob| match job.name {
            LockName::Inode(ino) if job.from == Mode::X => core.nodes.find(ino),
            _ => None,
        };
        let nodes: Vec<_> = batch.iter().filter_map(node).collect();
        nodes.iter().for_each(|node| node.emptied.store(true, Ordering::Release));
        Emptied(nodes)
    }
}

impl Drop for Emptied {
    fn drop(&mut self) {
        self.0.iter().for_each(|node| node.emptied.store(false, Ordering::Release));
    }
}

impl Core {
    fn demote(self: &Arc<Self>, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        let mut answers = vec![DemoteAnswer::Done; batch.len()];
        self.empty_kernel(batch);
        let _emptied = Emptied::new(self, batch);
        let (mut release, mut direct) = (BTreeSet::new(), false);
        for (job, answer) in batch.iter().zip(&mut answers) {
            match self.empty_own(job) {
                Ok(DemoteAnswer::Done) => match job.from {
                    Mode::X => _ = release.insert(job.name),
                    from => direct |= from == Mode::DW,
                },
                Ok(DemoteAnswer::Busy) => *answer = DemoteAnswer::Busy,
                // There may be some again; what is dirty must not be lost meanwhile.
                Err(Error::NoSpace) => *answer = DemoteAnswer::Busy,
                Err(e) => {
                    tracing::error!(lock = ?job.name, "cannot give up a lock: {e}");
                    self.store.halt().trip(format!("write-back for {:?} failed: {e}", job.name));
                    return vec![DemoteAnswer::Busy; batch.len()];
                }
            }
        }
        if !release.is_empty() || direct {
            // Under DW no transaction has touched anything.
            let released = if release.is_empty() { Ok(()) } else { self.journal.release(&release) };
            match released.and_then(|()| self.flush_data_of(batch)) {
                Ok(()) => {}
                // Served meanwhile under a lock that is still held: what it changed goes out first.
                Err(Error::Busy(_)) => return vec![DemoteAnswer::Busy; batch.len()],
                Err(e) => {
                    self.store.halt().trip(format!("handing locks over failed: {e}"));
                    return vec![DemoteAnswer::Busy; batch.len()];
                }
            }
        }
        for (job, answer) in batch.iter().zip(&mut answers) {
            if *answer == DemoteAnswer::Done && !self.forget_covered(job) {
                *answer = DemoteAnswer::Busy;
            }
            if let (LockName::Inode(ino), Mode::DW, DemoteAnswer::Done) = (job.name, job.from, *answer) {
                self.hand_in_first(ino);
            }
        }
        answers
    }

    /// Step 2: our own dirty data and attributes.
    fn empty_own(self: &Arc<Self>, job: &DemoteJob) -> Result<DemoteAnswer> {
        match job.name {
            LockName::Inode(ino) if job.from == Mode::X => {
                let Some(node) = self.nodes.find(ino) else { return Ok(DemoteAnswer::Done) };
                self.flush_for_good(&node, job.may_stay)
            }
            LockName::Ag(ag) => match self.alloc.ag_demote(ag) {
                DemoteReady::Ready => Ok(DemoteAnswer::Done),
                DemoteReady::Busy { .. } => {
                    self.writeback.flush_all_soon();
                    Ok(DemoteAnswer::Busy)
                }
            },
            _ => Ok(DemoteAnswer::Done),
        }
    }

    /// The next holder's fsync knows nothing of data that went straight to the device from here: it
    /// must be durable by then, also where no commit has come after it.
    fn flush_data_of(&self, batch: &[DemoteJob]) -> Result<()> {
        let data_txn = |job: &DemoteJob| match job.name {
            LockName::Inode(ino) if matches!(job.from, Mode::X | Mode::DW) => match self.nodes.find(ino) {
                Some(node) => Some(node.state.lock().data_txn),
                None => Some(self.nodes.newest_shed()),
            },
            _ => None,
        };
        let newest = batch.iter().filter_map(data_txn).max();
        if newest.is_some_and(|txn| txn > self.journal.durable()) { self.store.flush() } else { Ok(()) }
    }

    /// Step 4: what is in memory is not current any more. False if requests served since step 2 have
    /// made something dirty: then nothing is forgotten.
    fn forget_covered(&self, job: &DemoteJob) -> bool {
        match job.name {
            LockName::Ag(ag) => {
                self.alloc.ag_released(ag);
                if job.to == Mode::N {
                    self.store.drop_cover(job.name);
                }
            }
            LockName::Inode(ino) if job.to == Mode::N => {
                // Made if need be: its state keeps such requests out between the look and the forgetting.
                let node = self.nodes.get(ino);
                let mut state = node.state.lock();
                if !state.is_clean() || !self.journal.is_clean_under(job.name) {
                    return false;
                }
                let size = state.file.as_ref().map(FileState::size);
                node.size.left_with(size.or_else(|| state.attr.as_ref().map(|attr| attr.size)));
                (state.attr, state.file, state.space) = (None, None, None);
                state.unprivileged = false;
                state.default_acl = None;
                self.store.drop_cover(job.name);
                drop(state);
                drop(node);
                self.nodes.shed(ino);
            }
            _ => {}
        }
        true
    }

    /// Step 1, for a whole batch.
    fn empty_kernel(self: &Arc<Self>, batch: &[DemoteJob]) {
        let mut running = Vec::new();
        for job in batch {
            let LockName::Inode(ino) = job.name else { continue };
            let Some(node) = self.nodes.find(ino) else { continue };
            let (kind, wrote) = {
                let state = node.state.lock();
                (state.attr.as_ref().map(|a| a.kind), state.note.is_some())
            };
            node.flights.are_seen();
            if job.to == Mode::N {
                if kind.is_none_or(|kind| kind == FileKind::Regular) {
                    node.size.rises();
                }
                let (now, shared) = (self.clock.now(), job.from == Mode::DW);
                if job.asked {
                    node.sharing.taken(now, shared && !wrote);
                }
                if shared {
                    node.sharing.ended(now, !wrote);
                }
            }
            // Of one that was quiet the kind is not known, but whether it has pages. (Not a link's: to drop its target
            // might wait for who asks for it, who waits for this lock.)
            let file = kind.map_or_else(|| !node.filled.lock().is_empty(), |kind| kind == FileKind::Regular);
            let pages = file && (job.to == Mode::N || node.has_writers());
            // Not open: no mapping, no reader, so there is nothing that dropping pages might wait for. It
            // cannot be left to the next open, beside which a second one would read what is left.
            let closed = !node.is_open();
            if job.to == Mode::N {
                self.drop_attributes(ino, closed && pages, || node.is_known());
            }
            if pages && !closed {
                running.push(Invalidation::start(self, node, job.to));
            }
        }
        for invalidation in running {
            invalidation.finish(self);
        }
    }

    /// Attributes only never waits for pages. Repeated while the kernel has yet to see a reply of ours;
    /// where lookups do not tell whether there is one, none brings attributes that may be kept.
    fn drop_attributes(&self, ino: InodeNo, pages: bool, is_known: impl Fn() -> bool) {
        let deadline = Instant::now() + REPLY_PENDING_MAX;
        let nodeid = self.nodeid(ino);
        while let Err(e) = self.kernel.inval_inode(nodeid, if pages { 0 } else { -1 }, 0) {
            if e.kind() != std::io::ErrorKind::NotFound || !is_known() {
                break;
            }
            if Instant::now() > deadline {
                tracing::warn!(inode = ino.0, "the kernel does not know an inode it looked up");
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// This host has halted: nothing that the kernel remembers may be taken for the truth any more.
    /// Pages go last, their calls may have to wait for requests that are only now being answered.
    pub(super) fn empty_kernel_for_good(self: &Arc<Self>) {
        let core = self.clone();
        spawn("halt", move || {
            let nodes = core.nodes.all_awake();
            nodes.iter().for_each(|node| core.drop_attributes(node.ino, false, || node.is_known()));
            core.nodes.each_quiet(|ino, known| {
                core.drop_attributes(ino, false, || known && core.nodes.knows(ino));
            });
            // What is not open now will not be opened any more.
            let open = nodes.iter().filter(|node| node.is_open());
            open.for_each(|node| core.invalidate_later(node.ino, 0, 0));
        });
    }

    /// Do `then` when the kernel does not have an inode's attributes any more, on a thread of its own.
    pub(super) fn after_dropping_attributes(
        self: &Arc<Self>,
        ino: InodeNo,
        then: impl FnOnce() + Send + 'static,
    ) {
        let core = self.clone();
        spawn("inval", move || {
            let node = core.nodes.get(ino);
            core.drop_attributes(ino, false, || node.is_known());
            drop(node);
            then();
        });
    }

    /// Do `then` when the kernel has dropped the pages of a range and the inode's attributes, on a thread
    /// of its own.
    pub(super) fn after_invalidating(
        self: &Arc<Self>,
        ino: InodeNo,
        offset: u64,
        length: u64,
        then: impl FnOnce() + Send + 'static,
    ) {
        let (kernel, nodeid) = (self.kernel.clone(), self.nodeid(ino));
        spawn("inval", move || {
            let _ = kernel.inval_inode(nodeid, offset as i64, length as i64);
            then();
        });
    }

    /// Drop the pages of a range from a thread of their own: the reply to a request that locked them
    /// may not be processed yet.
    pub(super) fn invalidate_later(self: &Arc<Self>, ino: InodeNo, offset: u64, length: u64) {
        let (kernel, nodeid) = (self.kernel.clone(), self.nodeid(ino));
        spawn("inval", move || {
            let _ = kernel.inval_inode(nodeid, offset as i64, length as i64);
        });
    }
}
