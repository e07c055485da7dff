//! Direct reads and writes of several hosts to one file at the same time: under [`Mode::DW`].
//!
//! While any host has it, nobody has S or X: sizes, extents, attributes and extended attributes stand still, and
//! no kernel has pages of the file but such as wait for their lock. So what needs nothing else (whole blocks over
//! written ones, below the size on disk) goes to the device and nowhere else, and whoever reads past his page cache
//! reads there what others have written. Everything that would change more is refused here and done under X.
//!
//! *When.* Alone, X is as good and is given up once for another kind of use; so DW is asked for only when
//! other hosts have taken the lock away under direct reads and writes of late, and not after turns of it that were
//! over at once. Who only reads has no need of it but beside such as write.
//!
//! *Times* change with each write, but only X may write them to the inode. They are noted, and handed in when DW is
//! given up: the note asks for X in the very word that tells of it, and comes before all who wait (`lock::master`).

use super::*;
use crate::file::DirectWrite;
use std::sync::mpsc::RecvTimeoutError;

/// For so long a lock that was taken away under direct reads and writes makes them ask for `DW`.
const REMEMBERED: Duration = Duration::from_secs(10);
/// For so long after a write that `DW` is not enough for it is not asked for.
const REFUSED: Duration = Duration::from_secs(1);
/// A turn of `DW` in which this host has done less, or that was over sooner, has cost more than it was worth.
const FEW: u64 = 4;
const BRIEF: Duration = Duration::from_millis(10);
/// For so long `DW` is not asked for after the second such turn in a row; twice as long after each that follows it.
const WARY: Duration = Duration::from_millis(250);
const WARY_DOUBLINGS: u64 = 7;

/// How one inode was used directly on this host; milliseconds of the boot clock, 0: never.
#[derive(Default)]
pub struct Sharing {
    used: AtomicU64,
    taken: AtomicU64,
    /// Until then `DW` is not asked for.
    refused: AtomicU64,
    /// The present turn: since when, and how many direct reads and writes.
    begun: AtomicU64,
    uses: AtomicU64,
    /// Turns in a row that were not worth it.
    vain: AtomicU64,
}

fn set(place: &AtomicU64, now: Duration) {
    place.store(now.as_millis() as u64 + 1, Ordering::Relaxed);
}

fn is_within(place: &AtomicU64, now: Duration, time: Duration) -> bool {
    let (at, now) = (place.load(Ordering::Relaxed), now.as_millis() as u64 + 1);
    at > 0 && now.saturating_sub(at) < time.as_millis() as u64
}

impl Sharing {
    /// A direct read or write has come.
    fn used(&self, now: Duration) {
        set(&self.used, now);
    }

    /// It runs under `DW`.
    fn shares(&self, now: Duration) {
        if self.uses.fetch_add(1, Ordering::Relaxed) == 0 {
            set(&self.begun, now);
        }
    }

    /// Another host takes the lock, and nothing of it stays. Was it `DW`, and this host `only_read`? Then it goes for
    /// somebody who reads as well, perhaps through the cache, beside whom S will do, until that is taken away, too.
    pub fn taken(&self, now: Duration, only_read: bool) {
        if only_read {
            self.taken.store(0, Ordering::Relaxed);
        } else if is_within(&self.used, now, REMEMBERED) {
            set(&self.taken, now);
        }
    }

    /// `DW` goes, whoever wants that. Who `only_read` had nothing to flush and hand in.
    pub fn ended(&self, now: Duration, only_read: bool) {
        let uses = self.uses.swap(0, Ordering::Relaxed);
        if only_read {
            return;
        }
        if uses >= FEW && !is_within(&self.begun, now, BRIEF) {
            return self.vain.store(0, Ordering::Relaxed);
        }
        // The first may have met the other host on its own way to DW.
        if let Some(before) = self.vain.fetch_add(1, Ordering::Relaxed).checked_sub(1) {
            self.refuse(now + WARY * (1 << before.min(WARY_DOUBLINGS)));
        }
    }

    /// A write has come for which it is not enough.
    fn refused(&self, now: Duration) {
        self.refuse(now + REFUSED);
    }

    fn refuse(&self, until: Duration) {
        self.refused.fetch_max(until.as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn is_refused(&self, now: Duration) -> bool {
        self.refused.load(Ordering::Relaxed) > now.as_millis() as u64 + 1
    }

    /// Do hosts likely use it directly in turns?
    fn pays(&self, now: Duration) -> bool {
        is_within(&self.taken, now, REMEMBERED)
    }
}

/// When this host last wrote to an inode under `DW`, as long as the inode does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    generation: Generation,
    time: Timestamp,
}

impl Note {
    /// Attributes as they will be.
    pub fn show(&self, attr: &mut Attr) {
        if attr.generation == self.generation {
            attr.mtime = attr.mtime.max(self.time);
            attr.ctime = attr.ctime.max(self.time);
        }
    }
}

impl Op<'_> {
    /// Is the inode pinned for direct reads and writes beside others?
    pub(super) fn is_shared(&self, ino: InodeNo) -> bool {
        self.pinned(LockName::Inode(ino)) == Mode::DW
    }
}

impl Core {
    /// The mode for a direct read or write, which could as well be done in `otherwise`.
    pub(super) fn direct_mode(&self, ino: InodeNo, otherwise: Mode) -> Mode {
        let (node, now) = (self.nodes.get(ino), self.clock.now());
        node.sharing.used(now);
        if node.sharing.is_refused(now) {
            return otherwise;
        }
        if self.is_shared_now(ino) {
            node.sharing.shares(now);
            return Mode::DW;
        }
        // On its way down it is wanted again if other hosts make it go, not if something done here does.
        let name = LockName::Inode(ino);
        let goes = self.locks.mode(name) == Mode::DW && self.locks.is_wanted_elsewhere(name);
        // What is here is used while it is here; what is being taken away is not asked for anew.
        let missing = || self.locks.try_pin(&inode(ino, otherwise)).is_none();
        if (goes || node.sharing.pays(now)) && missing() { Mode::DW } else { otherwise }
    }

    /// Is `DW` here, and may it be pinned? On its way down it is not asked for anew for a look.
    fn is_shared_now(&self, ino: InodeNo) -> bool {
        let shared = self.locks.mode(LockName::Inode(ino)) == Mode::DW;
        shared && self.locks.try_pin(&inode(ino, Mode::DW)).is_some()
    }

    /// The mode for a look at what does not change under `DW`.
    pub(super) fn looking_mode(&self, ino: InodeNo) -> Mode {
        if self.is_shared_now(ino) { Mode::DW } else { Mode::S }
    }

    /// A write of whole blocks past the kernel's pages. The inode is pinned `DW`; what that is not enough for
    /// stops for X.
    pub(super) fn write_shared(
        &self,
        op: &mut Op<'_>,
        ino: InodeNo,
        offset: u64,
        data: &[u8],
        keep_set_id: bool,
    ) -> Step<()> {
        let node = self.nodes.get(ino);
        let _io = node.gate.read();
        let plan = self.plan_shared(&node, &mut node.state.lock(), (offset, data.len()), keep_set_id)?;
        let Some(plan) = plan else {
            node.sharing.refused(self.clock.now());
            return Err(Stop::Need(LockName::Inode(ino), Mode::X));
        };
        // Beside others of this host: nothing here is dirty, freed or moved as long as this is pinned.
        plan.write(&*self.store, data)?;
        let mut state = node.state.lock();
        // Now: a transaction that was sealed meanwhile has been flushed too early.
        state.data_txn = self.journal.running();
        drop(state);
        debug_assert!(op.is_shared(ino));
        Ok(())
    }

    fn plan_shared(
        &self,
        node: &Node,
        state: &mut NodeState,
        (offset, length): (u64, usize),
        keep_set_id: bool,
    ) -> Result<Option<DirectWrite>> {
        self.check_writable()?;
        let attr = self.load(node, state)?;
        flags::may_write(attr, false)?;
        let (generation, settled) = (attr.generation, attr.truncating.is_none());
        if !settled || !self.is_unprivileged(node, state, keep_set_id)? {
            return Ok(None);
        }
        let plan = self.file(node, state)?.plan_direct(&*self.store, offset, length)?;
        if plan.is_some() {
            let time = self.now().max(state.note.map_or(Timestamp::default(), |note| note.time));
            state.note = Some(Note { generation, time });
        }
        Ok(plan)
    }

    /// Is `DW` here, so that a FLUSH makes durable what any host has written? The device's cache is one, and
    /// nothing else is dirty anywhere.
    pub(super) fn is_durable_by_flush(&self, ino: InodeNo) -> bool {
        self.is_shared_now(ino)
    }

    /// A demotion from `DW` is done here: if there is a time to hand in, ask for X before anybody can look at
    /// the inode. Nothing is waited for.
    pub(super) fn hand_in_first(self: &Arc<Self>, ino: InodeNo) {
        let Some(node) = self.nodes.find(ino).filter(|node| node.state.lock().note.is_some()) else { return };
        let core = self.clone();
        let then = move |pins| core.hand_in_under(pins, &node);
        self.locks.acquire_first(inode(ino, Mode::X), Box::new(then));
    }

    /// Hand in what is noted before this host leaves: later no lock is given out. It is written when the locks go; all
    /// else has been written before, for this may have to wait for other hosts. Not for ever: one of them may be
    /// dead, and nothing but times is lost, as if this host had died.
    pub(super) fn hand_in_all(self: &Arc<Self>, patience: Duration) {
        let mut noted = self.nodes.all_awake();
        noted.retain(|node| node.state.lock().note.is_some());
        let (sender, handed) = std::sync::mpsc::channel::<()>();
        for node in &noted {
            let (core, node, sender, locks) =
                (self.clone(), node.clone(), sender.clone(), inode(node.ino, Mode::X));
            let then = move |pins| {
                core.hand_in_under(pins, &node);
                drop(sender);
            };
            self.locks.acquire(locks, Box::new(then));
        }
        drop(sender);
        if handed.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        for node in noted {
            if node.state.lock().note.take().is_some() {
                let inode = node.ino.0;
                tracing::warn!(inode, "its lock does not come: the time of the last direct write is lost");
            }
        }
    }

    /// The lock has come, or it never will: either way nothing stays noted. A note that outlives its turn would
    /// show a time here that nobody else sees, and overwrite one that was set elsewhere since.
    fn hand_in_under(&self, pins: Result<crate::lock::Pins>, node: &Node) {
        let handed = {
            let mut state = node.state.lock();
            let handed = pins.as_ref().map_or(Ok(()), |_| self.hand_in(node, &mut state));
            state.note = None;
            handed
        };
        match pins.map(drop).and(handed) {
            Ok(()) | Err(Error::Stale | Error::Halted(_)) => {}
            Err(e) => tracing::error!(inode = node.ino.0, "the time of a write is lost: {e}"),
        }
    }

    /// Put the time noted into the attributes. The inode is pinned X.
    ///
    /// # Errors
    /// What loading the attributes gives; the note is forgotten then.
    pub(super) fn hand_in(&self, node: &Node, state: &mut NodeState) -> Result<()> {
        let Some(note) = state.note.take() else { return Ok(()) };
        let open = node.is_open();
        let attr = self.load(node, state)?;
        // Another inode by that number; or one that somebody else may be freeing.
        if attr.generation != note.generation || (attr.nlink == 0 && !open) {
            return Ok(());
        }
        // Other hosts may have handed later ones in, and one may have been set since.
        attr.mtime = not_before(note.time, attr.mtime);
        attr.ctime = not_before(note.time, attr.ctime);
        state.attr_dirty = true;
        state.dirty_since.get_or_insert(self.clock.now());
        self.writeback.dirtied(node.ino);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inode::FileKind;

    fn at(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn what_is_taken_away_under_direct_use_is_asked_for_to_share() {
        let sharing = Sharing::default();
        sharing.taken(at(1), false);
        assert!(!sharing.pays(at(1)), "nobody used it directly here");
        sharing.used(at(2));
        assert!(!sharing.pays(at(2)), "nobody else wanted it");
        sharing.taken(at(3), false);
        assert!(sharing.pays(at(3)) && sharing.pays(at(12)) && !sharing.pays(at(13)));
        sharing.taken(at(4), true);
        assert!(!sharing.pays(at(4)), "readers need not share");
        sharing.used(at(20));
        sharing.taken(at(21), false);
        sharing.refused(at(21));
        assert!(sharing.pays(at(21)) && sharing.is_refused(at(21)) && !sharing.is_refused(at(22)));
        sharing.taken(at(40), false);
        assert!(!sharing.pays(at(40)), "its direct use is long over");
    }

    #[test]
    fn turns_that_are_soon_over_come_ever_later() {
        let sharing = Sharing::default();
        let mut now = at(1);
        let mut turn = |uses: u64, time: Duration| {
            (0..uses).for_each(|_| sharing.shares(now));
            now += time;
            sharing.ended(now, false);
            let begun = now;
            while sharing.is_refused(now) {
                now += Duration::from_millis(1);
            }
            (now - begun).as_millis()
        };
        let long = Duration::from_millis(20);
        assert_eq!((turn(100, long), turn(4, long)), (0, 0));
        assert_eq!((turn(3, long), turn(100, Duration::from_millis(9)), turn(0, long)), (0, 250, 500));
        assert_eq!((turn(4, long), turn(1, long), turn(1, long)), (0, 0, 250));
        let longest = (0..20).map(|_| turn(1, long)).max();
        assert_eq!(longest, Some(32_000));
        let reader = Sharing::default();
        reader.ended(at(1), true);
        assert!(!reader.is_refused(at(1)));
    }

    #[test]
    fn a_note_shows_in_newer_times_of_its_own_inode_only() {
        let old = Timestamp { seconds: 5, nanos: 0 };
        let attr = Attr::new(InodeNo(9), Generation(3), FileKind::Regular, 0o644, old);
        let shown = |generation, seconds| {
            let (mut attr, time) = (attr.clone(), Timestamp { seconds, nanos: 1 });
            Note { generation: Generation(generation), time }.show(&mut attr);
            (attr.mtime.seconds, attr.ctime.seconds, attr.atime.seconds)
        };
        assert_eq!(shown(3, 8), (8, 8, 5));
        assert_eq!(shown(3, 4), (5, 5, 5));
        assert_eq!(shown(4, 8), (5, 5, 5));
    }
}
