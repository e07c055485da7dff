//! Lock read-ahead: who goes through a directory whose inodes' locks are decided or held elsewhere
//! needs one after the other, and each alone costs a round of messages. So when the locks of several
//! entries of one directory had to be waited for, the next ones are asked for along with them.
//!
//! Which are next: names are seldom used in an order of their own, but in that of listing (`ls -l`, `rm
//! -r`) or that of creation, which is the order of inode numbers. Misses that follow each other closely
//! in one of the two are a sequence, and the window grows as it goes on. Misses all over a directory
//! that is being gone through in any other order are met by what comes next in the listing.
//!
//! All of this is hints: what is asked for and not used is an idle lock, given up when it is wanted.

use super::*;
use crate::lock::desk::AHEAD_MAX;
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// Misses in a directory before it is listed.
const MISSES_FIRST: u32 = 3;
/// Misses anywhere, closely behind each other, after which a directory is listed at the first one: a tree
/// is being gone through.
const STREAK: u32 = 12;
/// A pause between misses after which they are counted anew.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Directories looked after at a time.
const LISTS_MAX: usize = 8;
/// Entries of a directory that are known of.
const ENTRIES_MAX: usize = 1 << 18;
/// A list is not made anew within this time, nor within so many times the time it took.
const LIST_AGE_MIN: Duration = Duration::from_secs(2);
const LIST_PAUSE_FACTOR: u32 = 20;
/// Longest time in which a directory is listed at once: an operation waits for it, with the directory pinned.
/// What is left of it follows when there is another miss.
const LIST_TIME_MAX: Duration = Duration::from_millis(50);
/// Misses in X behind each other after which inodes of a directory are asked for in X.
const CHANGES_FIRST: u32 = 3;
/// Places in the order that a sequence may pass over.
const GAP_MAX: usize = 24;
/// The first window.
const WINDOW_FIRST: usize = 8;
/// Names looked at for each lock asked for: many are held already.
const LOOK_MAX: usize = 8;
/// Inode numbers looked at behind one whose directory says nothing.
const REACH: u64 = 512;
/// Misses in no order after which a directory counts as gone through, and how many times as many
/// entries it may have.
const SPREAD_MIN: u32 = 16;
const SPREAD_FACTOR: usize = 64;

/// The cookie that all entries are behind.
const FIRST: u64 = 2;

/// How far a sequence of misses has come in one order.
#[derive(Clone, Copy)]
struct Track {
    /// The place behind the last one asked for.
    next: usize,
    window: usize,
}

impl Default for Track {
    fn default() -> Track {
        Track { next: ENTRIES_MAX, window: 0 }
    }
}

impl Track {
    /// A miss at `place`. Is it the sequence's next?
    fn follow(&mut self, place: usize) -> bool {
        let follows = (self.next..self.next + GAP_MAX).contains(&place);
        if follows {
            self.window = (self.window * 2).clamp(WINDOW_FIRST, AHEAD_MAX);
        } else if place + self.window < self.next || place >= self.next {
            *self = Track { next: place + 1, window: 0 };
        }
        follows
    }
}

/// The entries of a directory, in both orders.
struct Entries {
    made: Duration,
    /// How long it took to list them.
    took: Duration,
    /// Where to go on: the cookie of the last one, or the beginning if these are all.
    rest: u64,
    listed: Vec<InodeNo>,
    /// Ascending, with the place in `listed`.
    numbered: Vec<(InodeNo, u32)>,
    /// For inode and iopen locks.
    in_list: [Track; 2],
    in_numbers: [Track; 2],
}

impl Entries {
    fn new(made: Duration, listed: Vec<InodeNo>) -> Entries {
        let mut numbered: Vec<_> = listed.iter().copied().zip(0..).collect();
        numbered.sort_unstable();
        Entries {
            made,
            took: Duration::ZERO,
            rest: FIRST,
            listed,
            numbered,
            in_list: Default::default(),
            in_numbers: Default::default(),
        }
    }

    /// May the directory be listed again, or further?
    fn is_old(&self, now: Duration) -> bool {
        let pause = self.took * LIST_PAUSE_FACTOR;
        now > self.made + if self.rest == FIRST { pause.max(LIST_AGE_MIN) } else { pause }
    }

    fn place(&self, ino: InodeNo) -> Option<usize> {
        self.numbered.binary_search_by_key(&ino, |(ino, _)| *ino).ok()
    }
}

/// One directory in which locks had to be waited for.
struct Seen {
    dir: InodeNo,
    misses: u32,
    last: Duration,
    /// Until then inodes are asked for in X: they were changed one after the other, and whoever changes
    /// looks first.
    changed_until: Duration,
    /// Misses in X behind each other.
    changes: u32,
    /// Somebody is listing it.
    listing: bool,
    entries: Option<Entries>,
}

impl Seen {
    fn new(dir: InodeNo, now: Duration) -> Seen {
        Seen {
            dir,
            misses: 0,
            last: now,
            changed_until: Duration::ZERO,
            changes: 0,
            listing: false,
            entries: None,
        }
    }

    /// In which mode to ask for the locks that come next, when one was missed in `mode`. `tree`: the
    /// same as `changed_until` for all directories, while a tree is gone through.
    fn mode(&mut self, mode: Mode, now: Duration, tree: Option<&mut Duration>) -> Mode {
        let tree = tree.map_or(Duration::ZERO, |tree| {
            if mode == Mode::X {
                *tree = now + PAUSE_MAX;
            }
            *tree
        });
        self.changes = if mode == Mode::X { self.changes + 1 } else { 0 };
        // One file of it that is changed now and then makes no difference to who looks at the others.
        if self.changes >= CHANGES_FIRST {
            self.changed_until = now + PAUSE_MAX;
        }
        if now < self.changed_until.max(tree) { Mode::X } else { mode }
    }

    /// One more miss at `now`; counted from one after a pause.
    fn count(&mut self, now: Duration) {
        self.misses = if now > self.last + PAUSE_MAX { 1 } else { self.misses + 1 };
        self.last = now;
    }

    fn has(&self, ino: InodeNo) -> bool {
        self.entries.as_ref().is_some_and(|entries| entries.place(ino).is_some())
    }

    /// What is next after a miss of `ino`: the inodes, and how many of their locks to ask for. `removing`:
    /// those at the beginning of the listing are perhaps gone.
    fn next(
        &mut self,
        ino: InodeNo,
        class: usize,
        streak: bool,
        removing: bool,
    ) -> Option<(Vec<InodeNo>, usize, Order)> {
        let misses = self.misses;
        let entries = self.entries.as_mut()?;
        let place = entries.place(ino)?;
        let in_list = entries.numbered[place].1 as usize;
        let follows = [entries.in_numbers[class].follow(place), entries.in_list[class].follow(in_list)];
        let count = entries.listed.len();
        let spread = misses >= SPREAD_MIN && misses as usize * SPREAD_FACTOR >= count;
        let spread = spread || streak && count <= AHEAD_MAX;
        let (window, order) = match follows {
            [true, _] => (entries.in_numbers[class].window, Order::Numbers),
            [_, true] => (entries.in_list[class].window, Order::Listing),
            _ if spread => (AHEAD_MAX, Order::Listing),
            _ => return None,
        };
        let window = if spread { AHEAD_MAX } else { window };
        let look = (window * LOOK_MAX).min(count);
        let next = match order {
            Order::Numbers => entries.numbered[place..].iter().take(look).map(|(ino, _)| *ino).collect(),
            // Round and round: somebody who goes in no order has not been at the beginning either.
            Order::Listing => {
                let again = if removing { &[][..] } else { &entries.listed };
                entries.listed[in_list..].iter().chain(again).take(look).copied().collect()
            }
        };
        Some((next, window, order))
    }

    /// So many of the names that [`Seen::next`] gave were looked at.
    fn asked(&mut self, ino: InodeNo, class: usize, order: Order, looked_at: usize) {
        let Some(entries) = self.entries.as_mut() else { return };
        let Some(place) = entries.place(ino) else { return };
        let in_list = entries.numbered[place].1 as usize;
        match order {
            Order::Numbers => entries.in_numbers[class].next = place + looked_at.max(1),
            Order::Listing => entries.in_list[class].next = in_list + looked_at.max(1),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Numbers,
    Listing,
}

/// The directories in which locks had to be waited for lately, the last one first.
#[derive(Default)]
pub struct Ahead {
    seen: Mutex<VecDeque<Seen>>,
    /// Misses behind each other in whatever directory, and when the last one was.
    streak: Mutex<(u32, Duration)>,
    /// For inode and iopen locks.
    known: Mutex<[Known; 2]>,
    /// See [`Seen::mode`].
    tree_changed_until: Mutex<Duration>,
}

/// Inodes asked for one after the other that no list of a directory has: the kernel had their names, or the
/// directory is too large to be listed.
#[derive(Default)]
struct Known {
    last: InodeNo,
    at: Duration,
    window: usize,
}

impl Known {
    /// One that is not far above the last one goes on with the sequence: how many to ask for.
    fn follow(&mut self, ino: InodeNo, now: Duration) -> usize {
        let near = ino.0 > self.last.0 && ino.0 - self.last.0 <= REACH;
        let window = match near && now <= self.at + PAUSE_MAX {
            true => (self.window * 2).clamp(WINDOW_FIRST, AHEAD_MAX),
            false => 0,
        };
        *self = Known { last: ino, at: now, window };
        window
    }
}

impl Ahead {
    /// The lock of an entry of `dir` must be waited for. If it is time to list the directory: behind which
    /// cookie. [`Ahead::list`] must follow.
    fn count(&self, dir: InodeNo, ino: InodeNo, now: Duration) -> Option<u64> {
        let streak = {
            let mut streak = self.streak.lock();
            let behind = now <= streak.1 + PAUSE_MAX;
            *streak = (if behind { streak.0.saturating_add(1) } else { 1 }, now);
            streak.0 >= STREAK
        };
        let mut seen = self.seen.lock();
        let mut this = match seen.iter().position(|s| s.dir == dir) {
            Some(at) => seen.remove(at).expect("just found"),
            None => Seen::new(dir, now),
        };
        this.count(now);
        let list = match &this.entries {
            None => streak || this.misses >= MISSES_FIRST,
            Some(entries) => entries.place(ino).is_none() && entries.is_old(now),
        };
        let list = list && !this.listing;
        this.listing |= list;
        let rest = this.entries.as_ref().map_or(FIRST, |entries| entries.rest);
        seen.push_front(this);
        seen.truncate(LISTS_MAX);
        list.then_some(rest)
    }

    /// Is a tree being gone through?
    fn is_streak(&self, now: Duration) -> bool {
        let streak = self.streak.lock();
        streak.0 >= STREAK && now <= streak.1 + PAUSE_MAX
    }

    fn list(&self, dir: InodeNo, entries: Entries) {
        if let Some(seen) = self.seen.lock().iter_mut().find(|s| s.dir == dir) {
            (seen.entries, seen.listing) = (Some(entries), false);
        }
    }

    /// Forget directories that have had no miss for long: lists are large.
    fn forget_old(&self, now: Duration) {
        self.seen.lock().retain(|s| now <= s.last + PAUSE_MAX * 10);
    }
}

impl Core {
    /// The lock of `ino`, an entry of `dir`, is not at hand. The directory is pinned, and the state of
    /// its node not locked.
    pub(super) fn missed_in(&self, dir: InodeNo, ino: InodeNo) {
        let begun = self.clock.now();
        let Some(from) = self.ahead.count(dir, ino, begun) else { return };
        let mut listed = Vec::new();
        let mut rest = FIRST;
        let node = self.nodes.get(dir);
        let state = node.state.lock();
        // What cannot be read here is told of where it is needed.
        let _ = self.dir(dir).list(&*self.store, from, &mut |e| {
            listed.push(e.ino);
            let late = listed.len().is_multiple_of(64) && self.clock.now() > begun + LIST_TIME_MAX;
            if listed.len() < ENTRIES_MAX && !late {
                return ControlFlow::Continue(());
            }
            rest = e.cookie;
            ControlFlow::Break(())
        });
        drop(state);
        let now = self.clock.now();
        let entries = Entries { took: now.saturating_sub(begun), rest, ..Entries::new(now, listed) };
        self.ahead.list(dir, entries);
    }

    /// An operation is about to wait for these: ask for what comes next, too.
    pub(super) fn ask_ahead(&self, set: &LockSet) {
        let missing = |(name, mode): &(LockName, Mode)| !self.locks.mode(*name).covers(*mode);
        for (name, mode) in set.iter().filter(missing) {
            match name {
                // Says nothing of its neighbours.
                _ if mode == Mode::DW => {}
                LockName::Inode(ino) => self.ask_ahead_of(ino, 0, LockName::Inode, mode),
                // An exclusive want of these may have to wait for ever.
                LockName::IOpen(ino) if mode == Mode::S => self.ask_ahead_of(ino, 1, LockName::IOpen, mode),
                _ => {}
            }
        }
    }

    fn ask_ahead_of(&self, ino: InodeNo, class: usize, lock: fn(InodeNo) -> LockName, mode: Mode) {
        let now = self.clock.now();
        let streak = self.ahead.is_streak(now);
        let mut all = self.ahead.seen.lock();
        for seen in all.iter_mut() {
            if !seen.has(ino) {
                continue;
            }
            let mut tree = self.ahead.tree_changed_until.lock();
            let wanted = mode;
            let mode = if class == 0 { seen.mode(mode, now, streak.then_some(&mut *tree)) } else { mode };
            if let Some((next, most, order)) = seen.next(ino, class, streak, mode == Mode::X) {
                // The missed one itself is asked for as it is needed: it may be only looked at.
                let ahead = next.into_iter().filter(|other| *other != ino || mode == wanted);
                let names: Vec<LockName> = ahead.map(lock).collect();
                let looked_at = self.locks.ask_ahead(&names, mode, most);
                seen.asked(ino, class, order, looked_at);
                return;
            }
        }
        let listed = all.iter().any(|seen| seen.has(ino));
        drop(all);
        let window = if listed { 0 } else { self.ahead.known.lock()[class].follow(ino, now) };
        if window > 0 {
            // Those that the kernel knows are inodes, and likely to be used as this one is.
            let near = (ino.0..=ino.0 + REACH).map(InodeNo).filter(|ino| self.nodes.knows(*ino));
            let names: Vec<LockName> = near.map(lock).collect();
            self.locks.ask_ahead(&names, mode, window);
        }
    }

    /// Memory is given back when nobody goes through directories any more.
    pub(super) fn forget_ahead(&self) {
        self.ahead.forget_old(self.clock.now());
    }
}

#[cfg(test)]
mod tests;
