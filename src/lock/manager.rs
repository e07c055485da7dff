//! The lock manager: pins for operations, threads around the [`Desk`].
//!
//! What it gives: [`LockManager::try_pin`] (never waits; two hash look-ups per lock when all is
//! cached), [`LockManager::acquire`] (waits for no thread: the closure runs on a pool thread once
//! the whole set is pinned), and the way down through a [`Demoter`].
//!
//! What it promises: a pin is given only for a lock of which [`Demoter::granted`] has returned; a
//! mode is lowered, and the cluster told, only after [`Demoter::demote`] answered `Done` with no
//! pin above the new mode; there is never more than one demotion of a lock at a time; every closure
//! given to `acquire` is called once.
//!
//! No callback runs with an internal lock held. Pins may be dropped anywhere.

use crate::base::clock::Clock;
use crate::base::{AgNo, Error, InodeNo, LockName, Mode, Result, SlotId, Token};
use crate::cluster::{Entry, LockPort, Membership, REGISTER_ENTRIES_MAX};
use crate::format::layout::Geometry;
use crate::lock::LockSet;
use crate::lock::desk::{AHEAD_MAX, Closing, Desk, DeskConfig, Shed};
use crate::lock::files::stream::WINDOW;
use crate::lock::files::{FileLock, FileRequest, LockKind, RequestNo};
use crate::lock::holder::{DECLARED_MAX, REQUESTS_MAX};
use crate::lock::master::{ASKS_MAX, CAPS_MAX};
use crate::lock::table::PinTable;
use crate::lock::threads::{FileThen, Hub, Then};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const _: () = assert!(AHEAD_MAX < REQUESTS_MAX && AHEAD_MAX <= CAPS_MAX);
// A register holds, in each direction, answers to all requests of the peer and everything of ours.
const _: () =
    assert!(ASKS_MAX + REQUESTS_MAX + CAPS_MAX + DECLARED_MAX + REQUESTS_MAX + WINDOW < REGISTER_ENTRIES_MAX);

/// Contended inodes of which it is remembered how they are used.
const HABITS_MAX: usize = 1024;

/// Settings of the lock manager.
#[derive(Clone)]
pub struct LockConfig {
    pub clock: Arc<dyn Clock>,
    /// Bounds of the minimum hold after a grant that had to be waited for.
    pub hold_min: Duration,
    pub hold_max: Duration,
    /// Within the minimum hold: not pinned anew for so long = idle, and given up at once.
    pub idle: Duration,
    /// Pause before a busy demotion is tried again.
    pub busy_retry: Duration,
    /// Threads that run operations whose locks had to be waited for.
    pub workers: usize,
    /// Most demotions in one call.
    pub batch_max: usize,
}

impl LockConfig {
    /// The usual settings.
    pub fn new(clock: Arc<dyn Clock>) -> LockConfig {
        LockConfig {
            clock,
            hold_min: Duration::from_millis(10),
            hold_max: Duration::from_millis(200),
            idle: Duration::from_millis(2),
            busy_retry: Duration::from_millis(7),
            workers: 8,
            batch_max: 256,
        }
    }
}

/// One lock to come down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoteJob {
    pub name: LockName,
    pub from: Mode,
    pub to: Mode,
    /// Other hosts wait for that.
    pub asked: bool,
    /// Nobody needs it: rather than to lose anything, the lock is kept.
    pub may_stay: bool,
}

/// How a demotion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoteAnswer {
    /// Nothing that the lower mode forbids is cached or dirty any more.
    Done,
    /// Not possible now; the lock is kept, closed for new operations, and this is tried again. Or it stays, if it is an
    /// inode's that may.
    Busy,
}

/// What the file system does when locks come and go.
pub trait Demoter: Send + Sync {
    /// Empty what the lower modes forbid: one answer per job, in order. On a demotion thread; may
    /// take long, and may pin later classes. Jobs of one call are of classes that can go together;
    /// up to [`crate::lock::threads::LANES`] calls run at once, never two for one lock. A lock may
    /// come again right after `Done` if [`LockManager::try_pin_revoked`] was used meanwhile.
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer>;

    /// A fresh grant, or a rise from a lower mode; told before the first pin in that mode. Must not
    /// wait for locks or for anything that a holder of pins may do.
    fn granted(&self, name: LockName, mode: Mode);

    /// Must it be told of grants of `name`, and of what is [`Demoter::kept`]? Those that it need not hear of are had
    /// faster.
    fn hears_of(&self, _name: LockName) -> bool {
        true
    }

    /// A demotion that was `Busy` is not needed any more; told before new pins are given.
    fn kept(&self, _name: LockName, _mode: Mode) {}
}

/// One line of [`LockManager::snapshot`].
#[derive(Clone, Debug)]
pub struct LockInfo {
    pub name: LockName,
    pub mode: Mode,
    pub pins: u32,
    /// Operations of this host that wait for it.
    pub waiting: u32,
    pub demoting: bool,
    /// This host decides the lock.
    pub mastered: bool,
}

/// Pinned locks: none of them is given up before this is dropped.
pub struct Pins {
    hub: Arc<Hub>,
    set: LockSet,
}

impl Pins {
    pub(super) fn new(hub: Arc<Hub>, set: LockSet) -> Pins {
        Pins { hub, set }
    }

    /// What is pinned.
    pub fn set(&self) -> &LockSet {
        &self.set
    }

    /// Is `name` pinned in `mode` or a stronger one?
    pub fn covers(&self, name: LockName, mode: Mode) -> bool {
        self.set.covers(name, mode)
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pins({:?})", self.set)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.hub.unpin(self.set.as_slice());
    }
}

/// See the head of the file.
pub struct LockManager {
    hub: Arc<Hub>,
}

impl LockManager {
    /// A manager that knows no members yet: until the first [`LockPort::on_view`] every `acquire`
    /// waits. Its threads run until [`LockManager::shutdown`].
    pub fn new(
        cfg: LockConfig,
        geometry: Geometry,
        slot: SlotId,
        demoter: Arc<dyn Demoter>,
    ) -> Arc<LockManager> {
        let times = DeskConfig {
            hold_min: cfg.hold_min,
            hold_max: cfg.hold_max,
            idle: cfg.idle,
            busy_retry: cfg.busy_retry,
            requests_max: REQUESTS_MAX,
            caps_max: CAPS_MAX,
            files_max: WINDOW,
            habits_max: HABITS_MAX,
        };
        let table = Arc::new(PinTable::default());
        let desk = Desk::new(geometry, slot, times, table.clone());
        Arc::new(LockManager { hub: Hub::start(cfg, table, desk, demoter) })
    }

    /// What to call when a register has changed (`Cluster::wake`). Must not block.
    pub fn on_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.hub.set_wake(Arc::from(wake));
    }

    /// How to become the owner of a group (`Cluster::adopt`); called on a thread of its own.
    pub fn on_adopt(&self, adopt: Box<dyn Fn(AgNo) -> Result<Token> + Send + Sync>) {
        self.hub.set_adopt(Arc::from(adopt));
    }

    /// Pin the whole set now, or nothing: `None` if a lock is missing or on its way down. May call
    /// [`Demoter::granted`] for locks that no other host is interested in.
    pub fn try_pin(&self, set: &LockSet) -> Option<Pins> {
        for (at, (name, mode)) in set.iter().enumerate() {
            if !self.hub.pin(name, mode) {
                self.hub.unpin(&set.as_slice()[..at]);
                return None;
            }
        }
        Some(Pins::new(self.hub.clone(), set.clone()))
    }

    /// Pin what can be had now out of many locks, maybe nothing. Only for locks whose grants the file system
    /// does not hear of. One that is named several times is pinned once.
    pub fn try_pin_each(&self, names: impl Iterator<Item = LockName>, mode: Mode) -> Pins {
        let mut set: Vec<_> = names.map(|name| (name, mode)).collect();
        set.sort_unstable_by_key(|(name, _)| *name);
        set.dedup(); // a set gives back one pin of each member
        self.hub.pin_each(&mut set);
        Pins::new(self.hub.clone(), set.into_iter().collect())
    }

    /// Pin the set, however long that takes; `then` runs on a pool thread. Locks are taken in the
    /// lock order, those already taken stay pinned meanwhile. The caller must hold no pins but of
    /// earlier names.
    ///
    /// # Errors
    /// (given to `then`) [`Error::Halted`]; [`Error::Unsupported`] for shared direct writes of what is no inode.
    pub fn acquire(&self, set: LockSet, then: Box<dyn FnOnce(Result<Pins>) + Send>) {
        self.hub.acquire(set, Then::Run(then));
    }

    /// [`LockManager::acquire`] before all that wait on this host, and if it is X of an inode that is just being
    /// demoted from shared direct writes, before other hosts, too. The demotion does not wait for it.
    ///
    /// # Errors
    /// As for `acquire`.
    pub fn acquire_first(&self, set: LockSet, then: Box<dyn FnOnce(Result<Pins>) + Send>) {
        self.hub.acquire_first(set, Then::Run(then));
    }

    /// [`LockManager::acquire`] for background threads; never on FUSE, pool or `granted` threads.
    ///
    /// # Errors
    /// As for `acquire`.
    pub fn acquire_wait(&self, set: LockSet) -> Result<Pins> {
        if let Some(pins) = self.try_pin(&set) {
            return Ok(pins);
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        self.hub.acquire(set, Then::Send(sender));
        receiver.recv().unwrap_or_else(|_| Err(Error::Halted("the lock manager is gone".into())))
    }

    /// Pin a lock that may be on its way down, for what the demotion itself needs (laundering
    /// writes, write-back that frees reservations). Works as long as the mode is held; a demotion
    /// that overlaps the pin is run again.
    pub fn try_pin_revoked(&self, name: LockName, mode: Mode) -> Option<Pins> {
        self.hub.table().pin_held(name, mode).then(|| Pins::new(self.hub.clone(), LockSet::one(name, mode)))
    }

    /// What this host holds (`N` also for locks it could take without asking).
    pub fn mode(&self, name: LockName) -> Mode {
        self.hub.table().get(name).map_or(Mode::N, |held| held.told)
    }

    /// Do other hosts wait for this one to come down?
    pub fn is_wanted_elsewhere(&self, name: LockName) -> bool {
        self.hub.with_desk(|desk, _| desk.is_capped(name))
    }

    /// Does this host decide `name`?
    pub fn masters(&self, name: LockName) -> bool {
        self.hub.with_desk(|desk, _| desk.masters(name))
    }

    /// How many sets of locks were not at hand when they were needed.
    pub fn waits(&self) -> u64 {
        self.hub.with_desk(|desk, _| desk.tickets_given())
    }

    /// Number of locks held.
    pub fn cached(&self) -> usize {
        self.hub.table().len()
    }

    /// Ask for up to `most` of these locks before anybody needs them, in one message where another host
    /// decides them; what is held or free is passed over. Nothing is pinned. Returns at once, with the
    /// number of names looked at.
    pub fn ask_ahead(&self, names: &[LockName], mode: Mode, most: usize) -> usize {
        self.hub.with_desk(|desk, now| desk.ask_ahead(now, names, mode, most))
    }

    /// Give up the least recently used idle inode locks until about `target` locks remain. Returns
    /// at once.
    pub fn shrink(&self, target: usize) {
        let may = |name| matches!(name, LockName::Inode(_) | LockName::IOpen(_) | LockName::FileLocks(_));
        let names = self.hub.table().oldest(target, may);
        self.hub.with_desk(|desk, now| desk.shed(now, &names, Shed::Idle));
    }

    /// Give this up if nobody uses it now. Returns at once.
    pub fn drop_idle(&self, name: LockName) {
        self.hub.with_desk(|desk, now| desk.shed(now, &[name], Shed::Idle));
    }

    /// A program asks for a file lock, or about one; `then` hears the answer, on this thread if it is known
    /// here, else on any. It must not wait for anything.
    pub fn file_lock(&self, request: &FileRequest, then: FileThen) -> RequestNo {
        let asked = self.hub.ask_file(|desk, now| Some(desk.file_request(now, request)), then);
        asked.expect("a request has a number")
    }

    /// Handles of this host by which its programs have taken what is in the way of a file lock.
    pub fn file_blockers(&self, ino: InodeNo, lock: &FileLock) -> Vec<u64> {
        self.hub.with_desk(|desk, _| desk.files().client.blocking_handles(ino, lock))
    }

    /// Nobody waits for it any more: it is answered as interrupted, at once or when it is known how it ended.
    pub fn withdraw_file_lock(&self, request: RequestNo) {
        self.hub.with_desk(|desk, now| desk.file_withdraw(now, request));
    }

    /// All locks of an owner end. False: it had none, and `then` is not called.
    pub fn file_unlock_all(&self, ino: InodeNo, kind: LockKind, owner: u64, then: FileThen) -> bool {
        self.hub.ask_file(|desk, now| desk.file_unlock_all(now, ino, kind, owner), then).is_some()
    }

    /// A handle is closed for good: what locks were taken by it and are left end.
    pub fn file_release(&self, ino: InodeNo, handle: u64) {
        self.hub.with_desk(|desk, now| desk.file_release(now, ino, handle));
    }

    /// All locks held or waited for, in no order and at no one moment.
    pub fn snapshot(&self) -> Vec<LockInfo> {
        let held = self.hub.table().all();
        self.hub.with_desk(|desk, _| {
            let info = |(name, held): (LockName, crate::lock::table::Held)| {
                let (waiting, demoting) = desk.state_of(name);
                let mastered = desk.masters(name);
                LockInfo { name, mode: held.mode, pins: held.pins(), waiting, demoting, mastered }
            };
            held.into_iter().map(info).collect()
        })
    }

    /// Stop: all waiting operations get [`Error::Halted`], nothing is granted or released any more.
    pub fn halt(&self, reason: &str) {
        self.hub.with_desk(|desk, _| desk.halt(reason));
    }

    /// Before leaving: have everything demoted to nothing, inodes first, then groups, then the own
    /// slot. New requests are refused class by class as it goes. Waits for all pins.
    ///
    /// # Errors
    /// [`Error::Halted`] if the manager halts meanwhile.
    pub fn release_all(&self) -> Result<()> {
        self.release_names_and_groups()?;
        self.release_class(Closing::Everything, &|n| matches!(n, LockName::Slot(_)))
    }

    /// The part of [`LockManager::release_all`] that may have to wait for other hosts, if operations are
    /// still waiting for locks of theirs.
    ///
    /// # Errors
    /// As [`LockManager::release_all`].
    pub fn release_names_and_groups(&self) -> Result<()> {
        let is_group = |n: &LockName| matches!(n, LockName::Ag(_));
        let is_slot = |n: &LockName| matches!(n, LockName::Slot(_));
        self.release_class(Closing::Names, &|n| !is_group(n) && !is_slot(n))?;
        self.release_class(Closing::Groups, &|n| is_group(n))
    }

    fn release_class(&self, closing: Closing, of_class: &dyn Fn(&LockName) -> bool) -> Result<()> {
        let mut rounds = 0u64;
        loop {
            let names: Vec<_> = self.hub.table().all().into_iter().map(|(n, _)| n).filter(of_class).collect();
            self.hub.with_desk(|desk, now| {
                desk.close(closing);
                desk.shed(now, &names, Shed::Must);
                desk.halted().map_or(Ok(()), |reason| Err(Error::Halted(reason.to_owned())))
            })?;
            if names.is_empty() {
                return Ok(());
            }
            rounds += 1;
            if rounds.is_multiple_of(5000) {
                tracing::warn!(locks = names.len(), first = ?names.first(), "locks are not given up yet");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Halt if that has not happened, run the closures that wait, end the threads.
    pub fn shutdown(&self) {
        self.halt("unmounted");
        self.hub.stop();
    }
}

impl Drop for LockManager {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl LockPort for LockManager {
    fn on_entries(&self, now: Duration, from: SlotId, entries: &[Entry]) {
        self.hub.at_desk(now, |desk| desk.on_entries(now, from, entries));
    }

    fn outgoing(&self, to: &[SlotId]) -> Vec<Vec<Entry>> {
        self.hub.at_desk_any_time(|desk| to.iter().map(|to| desk.outgoing(*to)).collect())
    }

    fn on_view(&self, members: &Membership) {
        let members = Arc::new(members.clone());
        self.hub.with_desk(|desk, now| desk.on_view(now, members));
    }

    fn is_awaiting(&self, now: Duration) -> bool {
        self.hub.is_awaiting(now)
    }

    // The hub has a timer thread of its own; this is for the log lines about waiting.
    fn tick(&self, now: Duration) {
        self.hub.at_desk(now, |desk| desk.tick(now));
    }
}
