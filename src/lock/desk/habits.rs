//! How contended inodes have been used here of late: what to ask for, and how long to keep it.
//!
//! - A file that is read and then written by one host after the other *migrates*: asked for shared, then
//!   exclusively, each turn takes two hand-overs, of which the first writes back for a reader who does not
//!   stay one. Who has written in its last turns what it had asked for shared asks for it exclusively (Stenström,
//!   Brorsson, Sandberg: An adaptive cache coherence protocol optimized for migratory sharing, 1993).
//! - Within its minimum hold a lock is given up when nobody has used it for a while. Where that while has passed
//!   in vain in the last turns it is not waited for: the turn is *brief*.
//!   What was written in a brief turn is given up with the program's lock of the file, before anybody asks for it.
//!
//! All of it is guessing, for either answer is right. A turn that only reads, a use soon after a brief turn,
//! and now and then a look at what waiting would bring, end a habit that does not pay.

use crate::base::LockName;
use std::collections::BTreeMap;
use std::time::Duration;

/// So many turns make a habit.
const LEARNED: u8 = 2;
/// A brief turn in so many is not cut short.
const LOOK_AGAIN: u8 = 16;

#[derive(Clone, Default, Hash)]
struct Habit {
    /// Turns in a row in which it was asked for to read, and written.
    upgrades: u8,
    /// Turns in a row in which waiting for idleness was in vain.
    in_vain: u8,
    /// Turns cut short since the last look.
    cut: u8,
    /// When the last turn was cut short, if nobody has asked again since.
    cut_at: Option<Duration>,
}

/// Habits of the inodes that hosts have lately wanted from each other.
#[derive(Clone, Hash)]
pub(super) struct Habits {
    max: usize,
    idle: Duration,
    of: BTreeMap<LockName, Habit>,
}

impl Habits {
    /// Knows at most `max` locks. Idle is what has not been used for `idle`.
    pub fn new(max: usize, idle: Duration) -> Habits {
        Habits { max, idle, of: BTreeMap::new() }
    }

    fn change(&mut self, name: LockName, f: impl FnOnce(&mut Habit)) {
        if self.max == 0 || !matches!(name, LockName::Inode(_)) {
            return;
        }
        if self.of.len() >= self.max && !self.of.contains_key(&name) {
            self.of.clear(); // learned anew in a few turns
        }
        f(self.of.entry(name).or_default());
    }

    /// It is wanted here, and must be asked for. What is wanted so soon had nothing to do with what others did with it:
    /// they cannot have had it before. Somewhat later it is their turn that was as brief.
    pub fn asked(&mut self, now: Duration, name: LockName) {
        let Some(habit) = self.of.get_mut(&name) else { return };
        if habit.cut_at.take().is_some_and(|at| now < at + self.idle / 16) {
            (habit.in_vain, habit.cut) = (0, 0);
        }
    }

    /// It is wanted here while it is being given up: nobody else can have had it meanwhile.
    pub fn asked_too_late(&mut self, name: LockName) {
        if let Some(habit) = self.of.get_mut(&name)
            && habit.cut_at.is_some()
        {
            (habit.in_vain, habit.cut, habit.cut_at) = (0, 0, None);
        }
    }

    /// Is it going to be written, whoever reads it?
    pub fn migrates(&self, name: LockName) -> bool {
        self.of.get(&name).is_some_and(|habit| habit.upgrades >= LEARNED)
    }

    /// Held to read, it has been asked for to write.
    pub fn upgraded(&mut self, name: LockName) {
        self.change(name, |habit| habit.upgrades = LEARNED.min(habit.upgrades + 1));
    }

    /// A turn is over in which it was only read.
    pub fn only_read(&mut self, name: LockName) {
        if let Some(habit) = self.of.get_mut(&name) {
            habit.upgrades = 0;
        }
    }

    /// Nobody uses it, and somebody else wants it, or will: has it been used for the last time in this turn?
    pub fn is_brief(&mut self, now: Duration, name: LockName) -> bool {
        let Some(habit) = self.of.get_mut(&name) else { return false };
        if habit.in_vain < LEARNED || habit.cut >= LOOK_AGAIN {
            return false;
        }
        (habit.cut, habit.cut_at) = (habit.cut + 1, Some(now));
        true
    }

    /// Idleness was waited for, and it was used meanwhile, or was not.
    pub fn waited(&mut self, name: LockName, used: bool) {
        self.change(name, |habit| {
            habit.in_vain = if used { 0 } else { LEARNED.min(habit.in_vain + 1) };
            habit.cut = 0;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{AgNo, InodeNo};

    const IDLE: Duration = Duration::from_millis(2);
    const FILE: LockName = LockName::Inode(InodeNo(7));

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_written_after_reading_twice_migrates_until_it_is_only_read() {
        let mut habits = Habits::new(4, IDLE);
        habits.upgraded(FILE);
        assert!(!habits.migrates(FILE));
        habits.upgraded(FILE);
        assert!(habits.migrates(FILE) && !habits.migrates(LockName::Inode(InodeNo(8))));
        habits.only_read(FILE);
        habits.upgraded(FILE);
        assert!(!habits.migrates(FILE));
    }

    #[test]
    fn waiting_in_vain_makes_turns_brief_until_that_is_regretted() {
        let mut habits = Habits::new(4, IDLE);
        assert!(!habits.is_brief(at(0), FILE));
        habits.waited(FILE, false);
        habits.waited(FILE, true);
        habits.waited(FILE, false);
        assert!(!habits.is_brief(at(10), FILE));
        habits.waited(FILE, false);
        assert!(habits.is_brief(at(20), FILE));
        habits.asked(at(22), FILE);
        assert!(habits.is_brief(at(30), FILE), "asked for when it would have been idle");
        habits.asked(at(30) + IDLE / 8, FILE);
        assert!(habits.is_brief(at(35), FILE), "the other's turn was brief as well");
        habits.asked(at(35), FILE);
        assert!(!habits.is_brief(at(40), FILE), "it was asked for at once");
        (0..2).for_each(|_| habits.waited(FILE, false));
        habits.asked_too_late(FILE);
        assert!(habits.is_brief(at(50), FILE), "nothing was cut short before");
        habits.asked_too_late(FILE);
        assert!(!habits.is_brief(at(60), FILE), "it was wanted while it was being given up");
    }

    #[test]
    fn now_and_then_waiting_is_tried() {
        let mut habits = Habits::new(4, IDLE);
        (0..2).for_each(|_| habits.waited(FILE, false));
        let brief = (0..40).filter(|n| habits.is_brief(at(10 * n), FILE)).count();
        assert_eq!(brief, usize::from(LOOK_AGAIN));
        habits.waited(FILE, false);
        assert!(habits.is_brief(at(500), FILE));
    }

    #[test]
    fn few_are_known_and_inodes_only() {
        let mut habits = Habits::new(2, IDLE);
        let group = LockName::Ag(AgNo(1));
        (0..2).for_each(|_| habits.upgraded(group));
        assert!(!habits.migrates(group));
        for n in 0..100 {
            (0..2).for_each(|_| habits.upgraded(LockName::Inode(InodeNo(n))));
            assert!(habits.migrates(LockName::Inode(InodeNo(n))) && habits.of.len() <= 2);
        }
        let mut none = Habits::new(0, IDLE);
        (0..2).for_each(|_| none.upgraded(FILE));
        assert!(!none.migrates(FILE) && none.of.is_empty());
    }
}
