//! The locks of one inode, of everybody, and who waits for which.
//!
//! - A lock is granted if it goes with all that others have. fcntl changes what the owner has in one
//!   step; flock gives up what the owner has before it asks for another mode, as on Linux.
//! - Who waits comes before whoever asks later and would be in its way, for as long as it had waited
//!   when that one came, and [`PATIENCE_MIN`] at least. Not for ever: a program may well hold a shared
//!   lock until another, which asks for one too, is through; the exclusive wait between them must not
//!   tie the knot. And not where the later one has a lock that the earlier one waits for.
//! - A request that does not wait looks only at what others have.

use super::ranges::{Piece, Ranges};
use super::steps::Steps;
use super::{FileLock, LockKind, Owner, Span};
use crate::base::{Mode, SlotId};
use std::time::Duration;

/// How long whoever came first is waited for at least.
pub const PATIENCE_MIN: Duration = Duration::from_millis(100);
/// Most locked ranges of an inode, and most requests that wait for some.
pub const PIECES_MAX: usize = 32_768;
pub const WAITERS_MAX: usize = 8_192;

/// A request by the host that made it and its number there.
pub type WaitId = (SlotId, u64);

/// One that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiter {
    pub id: WaitId,
    pub lock: FileLock,
    pub since: Duration,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted,
    Denied,
    Waiting,
    NoLocks,
}

/// See the head of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileTable {
    range: Ranges,
    whole: Ranges,
    waiters: Vec<Waiter>,
    /// Something that somebody waits for may be free since [`FileTable::settle`] began.
    loose: bool,
    /// Where it goes on, if it is not through.
    next: Option<usize>,
    /// When somebody whom it has looked at may pass those before him.
    due: Option<Duration>,
}

impl FileTable {
    fn ranges(&self, kind: LockKind) -> &Ranges {
        match kind {
            LockKind::Range => &self.range,
            LockKind::Whole => &self.whole,
        }
    }

    /// Have it so, without asking.
    pub fn set(&mut self, lock: &FileLock) {
        // What is less may be free for others; who has more need perhaps not let others go first.
        let waits = |w: &Waiter| w.lock.owner == lock.owner;
        self.loose |= self.would_lower(lock) || self.waiters.iter().any(waits);
        let ranges = match lock.kind {
            LockKind::Range => &mut self.range,
            LockKind::Whole => &mut self.whole,
        };
        ranges.set(lock.owner, lock.mode, lock.span);
    }

    /// Nothing held, nobody waiting?
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.waiters.is_empty()
    }

    /// Locked ranges.
    pub fn len(&self) -> usize {
        self.range.len() + self.whole.len()
    }

    /// What an owner has.
    pub fn of(&self, kind: LockKind, owner: Owner) -> &[Piece] {
        self.ranges(kind).of(owner)
    }

    /// Has another owner than this one anything?
    pub fn has_other(&self, owner: Owner) -> bool {
        [&self.range, &self.whole].iter().any(|ranges| ranges.has_other(owner))
    }

    /// Everything that anybody has.
    pub fn all(&self) -> impl Iterator<Item = FileLock> + '_ {
        [LockKind::Range, LockKind::Whole].into_iter().flat_map(|kind| {
            let lock = move |(owner, p): (Owner, Piece)| FileLock { kind, owner, mode: p.mode, span: p.span };
            self.ranges(kind).all().map(lock)
        })
    }

    /// Who waits, those first who came first.
    pub fn waiters(&self) -> &[Waiter] {
        &self.waiters
    }

    /// A lock in the way of this one.
    pub fn conflict(&self, lock: &FileLock) -> Option<(Owner, Piece)> {
        self.ranges(lock.kind).conflicts(lock.owner, lock.mode, lock.span).next()
    }

    /// How many owners are looked at to find them.
    pub fn cost(&self, lock: &FileLock) -> usize {
        self.ranges(lock.kind).cost(lock.mode)
    }

    /// Everybody whose locks are in the way of this one.
    pub fn blockers(&self, lock: &FileLock) -> Vec<Owner> {
        self.ranges(lock.kind).conflicts(lock.owner, lock.mode, lock.span).map(|(owner, _)| owner).collect()
    }

    /// What the owner has there in a stronger mode comes down to this one's.
    pub fn lower(&mut self, lock: &FileLock) {
        for piece in self.of(lock.kind, lock.owner).to_vec() {
            if piece.span.overlaps(lock.span) && !lock.mode.covers(piece.mode) {
                let (a, b) = (piece.span, lock.span);
                let span = Span { start: a.start.max(b.start), end: a.end.min(b.end) };
                self.set(&FileLock { span, ..*lock });
            }
        }
    }

    /// Would the request, were it granted, make less of what the owner has?
    pub fn would_lower(&self, lock: &FileLock) -> bool {
        self.of(lock.kind, lock.owner).iter().any(|piece| match lock.kind {
            LockKind::Range => piece.span.overlaps(lock.span) && !lock.mode.covers(piece.mode),
            LockKind::Whole => piece.mode != lock.mode,
        })
    }

    /// What the owner has there in other modes than the lock's, gaps included, part by part.
    pub fn parts(&self, lock: &FileLock) -> Vec<FileLock> {
        let (mut parts, mut next) = (Vec::new(), Some(lock.span.start));
        let mut put = |mode, start, end| parts.push(FileLock { mode, span: Span { start, end }, ..*lock });
        for piece in self.of(lock.kind, lock.owner).iter().filter(|p| p.span.overlaps(lock.span)) {
            let (start, end) = (piece.span.start.max(lock.span.start), piece.span.end.min(lock.span.end));
            if let Some(from) = next.filter(|from| *from < start) {
                put(Mode::N, from, start - 1);
            }
            if piece.mode != lock.mode {
                put(piece.mode, start, end);
            }
            next = end.checked_add(1);
        }
        if let Some(from) = next.filter(|from| *from <= lock.span.end) {
            put(Mode::N, from, lock.span.end);
        }
        parts
    }

    /// Does it take nothing that its owner has not?
    pub fn asks_nobody(&self, lock: &FileLock) -> bool {
        lock.mode == Mode::N || lock.kind == LockKind::Range && self.has_all(lock)
    }

    /// Has the owner all of it already, in this mode or a stronger one?
    fn has_all(&self, lock: &FileLock) -> bool {
        let weaker = |p: &FileLock| !p.mode.covers(lock.mode);
        !self.parts(lock).iter().any(weaker)
    }

    /// flock: what the owner has in another mode than it asks for is gone.
    pub fn give_up_other_mode(&mut self, lock: &FileLock) -> bool {
        let other = lock.kind == LockKind::Whole
            && self.of(lock.kind, lock.owner).iter().any(|piece| piece.mode != lock.mode);
        if other {
            self.whole.set(lock.owner, Mode::N, Span::ALL);
            self.loose = true;
        }
        other
    }

    /// Take, change or give up a lock. `wait` is the name under which the request waits if it has to.
    pub fn ask(&mut self, now: Duration, lock: FileLock, wait: Option<WaitId>) -> Verdict {
        // Giving up may need more ranges than there were, and is never refused.
        if self.asks_nobody(&lock) {
            self.set(&lock);
            return Verdict::Granted;
        }
        let changes = self.give_up_other_mode(&lock) || !self.of(lock.kind, lock.owner).is_empty();
        if self.len() >= PIECES_MAX || wait.is_some() && self.waiters.len() >= WAITERS_MAX {
            return Verdict::NoLocks;
        }
        let free = self.conflict(&lock).is_none();
        let passes = match free && wait.is_some() && !changes {
            true => self.passes_at(&lock, now, self.waiters.iter()),
            false => None,
        };
        if free && passes.is_none() {
            self.set(&lock);
            return Verdict::Granted;
        }
        let Some(id) = wait else { return Verdict::Denied };
        self.waiters.push(Waiter { id, lock, since: now });
        self.due = self.due.into_iter().chain(passes).min();
        Verdict::Waiting
    }

    /// One that has waited elsewhere goes on waiting here.
    pub fn wait(&mut self, now: Duration, id: WaitId, lock: FileLock) {
        self.loose = true;
        self.waiters.push(Waiter { id, lock, since: now });
    }

    /// When one that came at `since` may pass those that came earlier and are in its way; `None`: it need not
    /// wait for that.
    fn passes_at<'a>(
        &self,
        lock: &FileLock,
        since: Duration,
        earlier: impl Iterator<Item = &'a Waiter>,
    ) -> Option<Duration> {
        let in_the_way = |w: &&Waiter| {
            let (a, b) = (&w.lock, lock);
            let clash = a.kind == b.kind && a.owner != b.owner && a.span.overlaps(b.span);
            clash && !a.mode.compatible(b.mode) && !self.blocks(b.owner, a)
        };
        let patience = |w: &Waiter| since + since.saturating_sub(w.since).max(PATIENCE_MIN);
        earlier.filter(in_the_way).map(patience).max()
    }

    /// Has `owner` a lock in the way of this one?
    fn blocks(&self, owner: Owner, lock: &FileLock) -> bool {
        self.ranges(lock.kind).blocks(owner, lock.mode, lock.span)
    }

    /// May there be something to grant that there was not before?
    pub fn is_loose(&self) -> bool {
        self.loose || self.next.is_some()
    }

    /// Grant what can be granted now, in order, as far as the steps last. What is made less by that is looked
    /// at the next time.
    pub fn settle(&mut self, now: Duration, steps: &mut Steps) -> Vec<Waiter> {
        let mut granted = Vec::new();
        let mut at = self.next.take().unwrap_or_else(|| {
            (self.loose, self.due) = (false, None);
            0
        });
        // Those looked at that shared ones may have to let go first.
        let is_firm = |w: &Waiter| w.lock.mode == Mode::X;
        let mut firm: Vec<Waiter> = self.waiters[..at].iter().copied().filter(is_firm).collect();
        while let Some(waiter) = self.waiters.get(at).copied() {
            if steps.are_over() {
                self.next = Some(at);
                break;
            }
            steps.take(1 + self.cost(&waiter.lock));
            let passes = self.conflict(&waiter.lock).is_none().then(|| {
                let earlier = if is_firm(&waiter) { &self.waiters[..at] } else { &firm[..] };
                steps.take(earlier.len());
                self.passes_at(&waiter.lock, waiter.since, earlier.iter()).unwrap_or_default()
            });
            if passes.is_none_or(|when| now < when) {
                self.due = self.due.into_iter().chain(passes).min();
                firm.extend(Some(waiter).filter(is_firm));
                at += 1;
                continue;
            }
            self.waiters.remove(at);
            self.give_up_other_mode(&waiter.lock);
            steps.take((self.waiters.len() + self.of(waiter.lock.kind, waiter.lock.owner).len()) / 8);
            self.set(&waiter.lock);
            granted.push(waiter);
        }
        granted
    }

    /// When [`FileTable::settle`] is to be called again.
    pub fn deadline(&self) -> Option<Duration> {
        if self.is_loose() { Some(Duration::ZERO) } else { self.due }
    }

    /// Does it wait still, and for what?
    pub fn waits(&self, id: WaitId) -> Option<FileLock> {
        self.waiters.iter().find(|w| w.id == id).map(|w| w.lock)
    }

    /// It does not wait any more. False: it did not.
    pub fn cancel(&mut self, id: WaitId) -> bool {
        let Some(at) = self.waiters.iter().position(|w| w.id == id) else { return false };
        self.waiters.remove(at);
        self.next = self.next.map(|next| if at < next { next - 1 } else { next });
        self.loose = true;
        true
    }

    /// Nobody of a host waits any more.
    pub fn drop_waiters(&mut self, host: SlotId) {
        self.waiters.retain(|w| w.id.0 != host);
        (self.loose, self.next) = (true, None);
    }

    /// A host has nothing and wants nothing.
    pub fn drop_host(&mut self, host: SlotId) {
        self.drop_waiters(host);
        self.range.drop_host(host);
        self.whole.drop_host(host);
    }
}
