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
/// A list is not made anew within this time.
const LIST_AGE_MIN: Duration = Duration::from_secs(2);
/// Places in the order that a sequence may pass over.
const GAP_MAX: usize = 24;
/// The first window.
const WINDOW_FIRST: usize = 8;
/// Names looked at for each lock asked for: many are held already.
const LOOK_MAX: usize = 8;
/// Inode numbers looked at behind one that is opened.
const OPENS_REACH: u64 = 512;
/// Misses in no order after which a directory counts as gone through, and how many times as many
/// entries it may have.
const SPREAD_MIN: u32 = 16;
const SPREAD_FACTOR: usize = 64;

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
        Entries { made, listed, numbered, in_list: Default::default(), in_numbers: Default::default() }
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
    entries: Option<Entries>,
}

impl Seen {
    /// In which mode to ask for the locks that come next, when one was missed in `mode`. `tree`: the
    /// same as `changed_until` for all directories, while a tree is gone through.
    fn mode(&mut self, mode: Mode, now: Duration, tree: Option<&mut Duration>) -> Mode {
        let tree = tree.map_or(Duration::ZERO, |tree| {
            if mode == Mode::X {
                *tree = now + PAUSE_MAX;
            }
            *tree
        });
        if mode == Mode::X {
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

    /// What is next after a miss of `ino`: the inodes, and how many of their locks to ask for.
    fn next(&mut self, ino: InodeNo, class: usize, streak: bool) -> Option<(Vec<InodeNo>, usize, Order)> {
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
                entries.listed[in_list..].iter().chain(&entries.listed).take(look).copied().collect()
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
    opens: Mutex<Opens>,
    /// See [`Seen::mode`].
    tree_changed_until: Mutex<Duration>,
}

/// Inodes that were opened one after the other, with nothing known of their directory: the kernel had
/// their names.
#[derive(Default)]
struct Opens {
    last: InodeNo,
    at: Duration,
    window: usize,
}

impl Opens {
    /// One that is not far above the last one goes on with the sequence: how many to ask for.
    fn follow(&mut self, ino: InodeNo, now: Duration) -> usize {
        let near = ino.0 > self.last.0 && ino.0 - self.last.0 <= OPENS_REACH;
        let window = match near && now <= self.at + PAUSE_MAX {
            true => (self.window * 2).clamp(WINDOW_FIRST, AHEAD_MAX),
            false => 0,
        };
        *self = Opens { last: ino, at: now, window };
        window
    }
}

impl Ahead {
    /// The lock of an entry of `dir` must be waited for. Is it time to list the directory?
    fn count(&self, dir: InodeNo, ino: InodeNo, now: Duration) -> bool {
        let streak = {
            let mut streak = self.streak.lock();
            let behind = now <= streak.1 + PAUSE_MAX;
            *streak = (if behind { streak.0.saturating_add(1) } else { 1 }, now);
            streak.0 >= STREAK
        };
        let mut seen = self.seen.lock();
        let mut this = match seen.iter().position(|s| s.dir == dir) {
            Some(at) => seen.remove(at).expect("just found"),
            None => Seen { dir, misses: 0, last: now, changed_until: Duration::ZERO, entries: None },
        };
        this.count(now);
        let list = match &this.entries {
            None => streak || this.misses >= MISSES_FIRST,
            Some(entries) => entries.place(ino).is_none() && now > entries.made + LIST_AGE_MIN,
        };
        seen.push_front(this);
        seen.truncate(LISTS_MAX);
        list
    }

    /// Is a tree being gone through?
    fn is_streak(&self, now: Duration) -> bool {
        let streak = self.streak.lock();
        streak.0 >= STREAK && now <= streak.1 + PAUSE_MAX
    }

    fn list(&self, dir: InodeNo, entries: Entries) {
        if let Some(seen) = self.seen.lock().iter_mut().find(|s| s.dir == dir) {
            seen.entries = Some(entries);
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
        if !self.ahead.count(dir, ino, self.clock.now()) {
            return;
        }
        let mut listed = Vec::new();
        let node = self.nodes.get(dir);
        let state = node.state.lock();
        // What cannot be read here is told of where it is needed.
        let _ = self.dir(dir).list(&*self.store, 2, &mut |e| {
            listed.push(e.ino);
            if listed.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        drop(state);
        self.ahead.list(dir, Entries::new(self.clock.now(), listed));
    }

    /// An operation is about to wait for these: ask for what comes next, too.
    pub(super) fn ask_ahead(&self, set: &LockSet) {
        let missing = |(name, mode): &(LockName, Mode)| !self.locks.mode(*name).covers(*mode);
        for (name, mode) in set.iter().filter(missing) {
            match name {
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
            if let Some((next, most, order)) = seen.next(ino, class, streak) {
                let names: Vec<LockName> = next.into_iter().map(lock).collect();
                let mut tree = self.ahead.tree_changed_until.lock();
                let mode = if class == 0 { seen.mode(mode, now, streak.then_some(&mut *tree)) } else { mode };
                let looked_at = self.locks.ask_ahead(&names, mode, most);
                seen.asked(ino, class, order, looked_at);
                return;
            }
        }
        let known = class == 1 && !all.iter().any(|seen| seen.has(ino));
        drop(all);
        let window = if known { self.ahead.opens.lock().follow(ino, now) } else { 0 };
        if window > 0 {
            // Those that the kernel knows are inodes, and likely to be opened as this one is.
            let near = (ino.0..=ino.0 + OPENS_REACH).map(InodeNo).filter(|ino| self.nodes.knows(*ino));
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
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;

    const SECOND: Duration = Duration::from_secs(1);

    /// Inodes in an order of listing that has nothing to do with their numbers.
    fn seen(count: u64) -> Seen {
        let listed = (0..count).map(|i| InodeNo(1000 + i * 7919 % count)).collect();
        let entries = Some(Entries::new(SECOND, listed));
        Seen { dir: InodeNo(5), misses: 3, last: SECOND, changed_until: Duration::ZERO, entries }
    }

    /// Go through `order`, all locks asked for are there at once: how many misses, and how many asked.
    fn go(seen: &mut Seen, order: &[InodeNo]) -> (usize, usize) {
        let mut held = std::collections::HashSet::new();
        let (mut misses, mut asked) = (0, 0);
        for ino in order {
            if !held.insert(*ino) {
                continue;
            }
            (misses, seen.misses) = (misses + 1, seen.misses + 1);
            let Some((next, most, order)) = seen.next(*ino, 0, false) else { continue };
            let mut looked_at = 0;
            let mut room = most;
            for other in next {
                if room == 0 {
                    break;
                }
                looked_at += 1;
                if held.insert(other) {
                    (room, asked) = (room - 1, asked + 1);
                }
            }
            seen.asked(*ino, 0, order, looked_at);
        }
        (misses, asked)
    }

    #[test]
    fn sequences_in_either_order_are_followed() {
        let mut by_number = seen(2000);
        let numbers: Vec<_> = (0..2000).map(|i| InodeNo(1000 + i)).collect();
        let (misses, asked) = go(&mut by_number, &numbers);
        assert!(misses < 40 && asked > 1900, "{misses} misses, {asked} asked for");
        let mut by_list = seen(2000);
        let listed = by_list.entries.as_ref().unwrap().listed.clone();
        let (misses, asked) = go(&mut by_list, &listed);
        assert!(misses < 40 && asked > 1900, "{misses} misses, {asked} asked for");
    }

    #[test]
    fn a_directory_gone_through_in_any_order_is_met_in_time() {
        let mut all = seen(2000);
        let mut scattered: Vec<_> = (0..2000).map(|i| InodeNo(1000 + i)).collect();
        scattered.shuffle(&mut StdRng::seed_from_u64(1));
        let (misses, _) = go(&mut all, &scattered);
        assert!(misses < 150, "{misses} misses");
    }

    #[test]
    fn after_changes_locks_are_asked_for_in_the_mode_of_changes() {
        let mut seen = seen(10);
        let mut tree = Duration::ZERO;
        assert_eq!(seen.mode(Mode::S, SECOND, None), Mode::S);
        assert_eq!(seen.mode(Mode::X, SECOND, Some(&mut tree)), Mode::X);
        assert_eq!(seen.mode(Mode::S, SECOND + PAUSE_MAX / 2, None), Mode::X);
        assert_eq!(seen.mode(Mode::S, SECOND * 3, Some(&mut tree)), Mode::S);
        let mut other = super::Seen { changed_until: Duration::ZERO, ..seen };
        assert_eq!(other.mode(Mode::S, SECOND + PAUSE_MAX / 2, None), Mode::S);
        assert_eq!(other.mode(Mode::S, SECOND + PAUSE_MAX / 2, Some(&mut tree)), Mode::X, "of one tree");
    }

    #[test]
    fn a_few_files_of_a_large_directory_ask_for_nothing() {
        let mut large = seen(100_000);
        let few: Vec<_> = (0..40).map(|i| InodeNo(1000 + i * 2111)).collect();
        assert_eq!(go(&mut large, &few), (40, 0));
    }

    #[test]
    fn in_a_tree_a_small_directory_is_asked_for_at_the_first_miss() {
        let ahead = Ahead::default();
        let now = Duration::from_secs(10);
        for dir in 0..u64::from(STREAK) - 1 {
            assert!(!ahead.count(InodeNo(dir), InodeNo(77), now), "directory {dir}");
        }
        assert!(ahead.count(InodeNo(90), InodeNo(77), now) && ahead.is_streak(now));
        assert!(!ahead.is_streak(now + PAUSE_MAX * 2));
        let (next, most, _) = seen(10).next(InodeNo(1005), 0, true).unwrap();
        assert_eq!((next.len(), most, next[0]), (10, AHEAD_MAX, InodeNo(1005)));
        assert!(seen(1000).next(InodeNo(1500), 0, true).is_none(), "a large one");
    }

    #[test]
    fn opens_near_each_other_are_a_sequence() {
        let mut opens = Opens::default();
        let at = Duration::from_secs;
        let windows: Vec<_> =
            [5000, 5001, 5004, 5200, 9000, 9001, 8999].map(|n| opens.follow(InodeNo(n), at(10))).into();
        assert_eq!(windows, [0, 8, 16, 32, 0, 8, 0]);
        assert_eq!(opens.follow(InodeNo(9000), at(20)), 0, "long after");
    }

    #[test]
    fn misses_are_counted_anew_after_a_pause_and_lists_are_made_anew_in_time() {
        let ahead = Ahead::default();
        let dir = InodeNo(5);
        let at = |ms: u64| Duration::from_millis(10_000 + ms);
        assert!(!ahead.count(dir, InodeNo(1), at(0)));
        assert!(!ahead.count(dir, InodeNo(2), at(10)));
        assert!(!ahead.count(dir, InodeNo(3), at(2000)), "a pause");
        assert!(!ahead.count(dir, InodeNo(4), at(2010)));
        assert!(ahead.count(dir, InodeNo(5), at(2020)));
        ahead.list(dir, Entries::new(at(2020), vec![InodeNo(1), InodeNo(6)]));
        assert!(!ahead.count(dir, InodeNo(6), at(4100)), "in the list");
        assert!(!ahead.count(dir, InodeNo(7), at(4000)), "too young");
        assert!(ahead.count(dir, InodeNo(7), at(4100)));
        ahead.forget_old(at(5000));
        assert_eq!(ahead.seen.lock().len(), 1);
        ahead.forget_old(at(60_000));
        assert!(ahead.seen.lock().is_empty());
    }
}
