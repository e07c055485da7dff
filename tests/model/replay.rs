//! The replay decision, [`decide`]: one block that two hosts change in turn, each with a journal.
//!
//! A host changes the block under its lock, commits the image to its journal, writes it in place,
//! flushes, drops the image from the journal, hands the lock over, or frees the block for file data.
//! What was not flushed when a host dies is there, torn, or not there. The dead host's journal is
//! replayed while the other one lives, or both are, in any order, interrupted and again.
//! I5: the version on the disk never falls; in the end the newest committed image stands there.
//! I11: file data is never replayed over. (What the journal itself does with its ring, headers and
//! checksums is under the crash tests of `tests/journal*.rs`.)

use crate::check::{Protocol, catches, holds};
use shoal::base::Version;
use shoal::journal::{Decision, decide};
use stateright::{Model, Property};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Every image is written.
    VersionsIgnored,
    /// A torn block is left as it is.
    TornLeft,
    /// A torn block is written over without waiting for who may be writing it.
    TornNotAwaited,
    /// The lock is handed over before the block is in place.
    ReleasedUnwritten,
    /// Images leave the journal before the block is flushed.
    TrimmedUnflushed,
    /// Images that are not committed are written in place.
    WrittenUncommitted,
    /// A block that was freed and is used again begins with version 1.
    VersionsRestart,
    /// A block becomes file data while a journal holds an image of it.
    DataTooEarly,
    /// The journal is emptied before what it said is flushed.
    EmptiedUnflushed,
}

/// What stands on the disk, or should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Content {
    Image(u64),
    Torn,
    FileData,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    lives: bool,
    /// Version in the cache, while it holds the lock.
    cache: Option<u64>,
    /// Versions in the journal.
    journal: BTreeSet<u64>,
    /// What it is writing in place, not flushed yet.
    writing: Option<u64>,
    /// Replay of its journal: written, not flushed.
    replayed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    hosts: Vec<Host>,
    disk: Content,
    /// What replay is writing.
    repair: Option<u64>,
    /// Who has the lock.
    holder: Option<usize>,
    committed: Content,
    freed: bool,
    fell: bool,
    changes: u8,
    deaths: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    New,
    Torn,
    Old,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Change(usize),
    Free(usize),
    Commit(usize),
    Write(usize),
    Flush(usize),
    Trim(usize),
    Pass(usize),
    ToData(usize),
    Die(usize, Left),
    /// Look at the block and write the newest image of a dead host's journal if that is due.
    Replay(usize),
    /// Flush what replay wrote.
    Flushed,
    /// What replay was writing is left like this; it begins anew.
    Interrupted(Left),
    /// The journal was replayed: it is empty.
    Empty(usize),
}

#[derive(Clone)]
struct Journals {
    changes: u8,
    deaths: u8,
    mutant: Option<Mutant>,
}

const HOSTS: usize = 2;

impl Journals {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn stands(&self, s: &mut State, version: u64) {
        // A torn block has no version: several journals may say something of it, in any order.
        s.fell |= match s.disk {
            Content::Image(before) => version < before,
            Content::Torn => false,
            Content::FileData => true,
        };
        s.disk = Content::Image(version);
    }

    fn settle(&self, s: &mut State, version: u64, left: Left) {
        match left {
            Left::New => self.stands(s, version),
            Left::Torn => s.disk = Content::Torn,
            Left::Old => {}
        }
    }

    /// The version that replay sees, and whether nobody can be writing the block.
    fn seen(&self, s: &State) -> (Option<Version>, bool) {
        let writes = s.hosts.iter().any(|h| h.lives && h.writing.is_some());
        let on_disk = match s.disk {
            _ if writes => None,
            Content::Image(version) => Some(Version(version)),
            Content::FileData => Some(Version(0)),
            Content::Torn => None,
        };
        (on_disk, !writes)
    }

    fn replay(&self, s: &mut State, of: usize) -> Option<()> {
        let image = s.hosts[of].journal.last().copied();
        if let Some(image) = image {
            let (on_disk, settled) = self.seen(s);
            let decision = match self.mutant {
                Some(Mutant::VersionsIgnored) => Decision::Apply,
                Some(Mutant::TornLeft) if on_disk.is_none() => Decision::Skip,
                Some(Mutant::TornNotAwaited) => decide(on_disk, Version(image), true),
                _ => decide(on_disk, Version(image), settled),
            };
            match decision {
                Decision::Apply => s.repair = Some(image),
                Decision::Skip => {}
                Decision::ReadAgain => return None,
            }
        }
        s.hosts[of].replayed = true;
        Some(())
    }

    fn change(&self, s: &mut State, slot: usize) {
        s.changes -= 1;
        let host = &mut s.hosts[slot];
        let version = host.cache.expect("it has the lock");
        let restarts = s.freed && self.is(Mutant::VersionsRestart);
        host.cache = Some(if restarts { 1 } else { version + 1 });
        s.freed = false;
    }

    fn take_lock(&self, s: &mut State) {
        // Whoever comes next reads what stands on the disk.
        let lives = (0..HOSTS).find(|slot| s.hosts[*slot].lives);
        if let (None, Some(slot), Content::Image(version)) = (s.holder, lives, s.disk) {
            s.holder = Some(slot);
            s.hosts[slot].cache = Some(version);
        }
    }

    fn host_steps(&self, s: &State, slot: usize, steps: &mut Vec<Step>) {
        let host = &s.hosts[slot];
        let newest = host.journal.last().copied();
        let holds = s.holder == Some(slot);
        let idle = host.writing.is_none();
        let on_disk = if let Content::Image(v) = s.disk { v } else { 0 };
        let uncommitted = host.cache.filter(|v| s.committed != Content::Image(*v));
        let images = s.hosts.iter().any(|h| !h.journal.is_empty());
        let source = if self.is(Mutant::WrittenUncommitted) { host.cache } else { newest };
        let in_place = newest.is_none_or(|v| on_disk >= v || self.is(Mutant::ReleasedUnwritten));
        let restarts = self.is(Mutant::VersionsRestart) && on_disk != newest.unwrap_or(on_disk);
        let flushed = idle || self.is(Mutant::TrimmedUnflushed);
        let trims = newest.is_some_and(|v| on_disk >= v || !idle && flushed);
        let offers = [
            (holds && s.changes > 0 && host.cache.is_some(), Step::Change(slot)),
            (holds && s.changes > 0 && host.cache.is_some() && !s.freed, Step::Free(slot)),
            (holds && uncommitted.is_some(), Step::Commit(slot)),
            (holds && idle && source.is_some_and(|v| on_disk < v || restarts), Step::Write(slot)),
            (!idle, Step::Flush(slot)),
            (flushed && trims, Step::Trim(slot)),
            (holds && uncommitted.is_none() && idle && in_place, Step::Pass(slot)),
            (
                holds
                    && idle
                    && s.freed
                    && uncommitted.is_none()
                    && in_place
                    && (!images || self.is(Mutant::DataTooEarly)),
                Step::ToData(slot),
            ),
        ];
        steps.extend(offers.iter().filter(|(offered, _)| *offered).map(|(_, step)| *step));
        if s.deaths > 0 {
            let outcomes = if idle { &[Left::Old][..] } else { &[Left::New, Left::Torn, Left::Old] };
            steps.extend(outcomes.iter().map(|left| Step::Die(slot, *left)));
        }
    }
}

impl Model for Journals {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let host =
            Host { lives: true, cache: None, journal: BTreeSet::new(), writing: None, replayed: false };
        let mut hosts = vec![host; HOSTS];
        hosts[0].cache = Some(1);
        vec![State {
            hosts,
            disk: Content::Image(1),
            repair: None,
            holder: Some(0),
            committed: Content::Image(1),
            freed: false,
            fell: false,
            changes: self.changes,
            deaths: self.deaths,
        }]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        for slot in 0..HOSTS {
            let host = &s.hosts[slot];
            if host.lives {
                self.host_steps(s, slot, steps);
            } else if s.repair.is_none() && !host.replayed {
                steps.push(Step::Replay(slot));
            } else if host.replayed && !host.journal.is_empty() {
                let early = self.is(Mutant::EmptiedUnflushed);
                if s.repair.is_none() || early {
                    steps.push(Step::Empty(slot));
                }
            }
        }
        if s.repair.is_some() {
            steps.push(Step::Flushed);
            if s.deaths > 0 {
                steps.extend([Left::New, Left::Torn, Left::Old].map(Step::Interrupted));
            }
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        let s = &mut next;
        match step {
            Step::Change(slot) => self.change(s, slot),
            Step::Free(slot) => {
                self.change(s, slot);
                s.freed = true;
            }
            Step::Commit(slot) => {
                let version = s.hosts[slot].cache?;
                s.hosts[slot].journal.insert(version);
                s.committed = Content::Image(version);
            }
            Step::Write(slot) => {
                let host = &mut s.hosts[slot];
                let uncommitted = self.is(Mutant::WrittenUncommitted);
                host.writing = if uncommitted { host.cache } else { host.journal.last().copied() };
            }
            Step::Flush(slot) => {
                let version = s.hosts[slot].writing.take()?;
                self.stands(s, version);
            }
            Step::Trim(slot) => s.hosts[slot].journal.clear(),
            Step::Pass(slot) => {
                s.hosts[slot].cache = None;
                let to = (0..HOSTS).find(|to| *to != slot && s.hosts[*to].lives)?;
                let Content::Image(version) = s.disk else { return None };
                s.holder = Some(to);
                s.hosts[to].cache = Some(version);
            }
            Step::ToData(slot) => {
                s.hosts[slot].cache = None;
                (s.disk, s.committed) = (Content::FileData, Content::FileData);
            }
            Step::Die(slot, left) => {
                s.deaths -= 1;
                let host = &mut s.hosts[slot];
                (host.lives, host.cache) = (false, None);
                if let Some(version) = host.writing.take() {
                    self.settle(s, version, left);
                }
            }
            Step::Replay(of) => self.replay(s, of)?,
            Step::Flushed => {
                let version = s.repair.take()?;
                self.stands(s, version);
            }
            Step::Interrupted(left) => {
                s.deaths -= 1;
                let version = s.repair.take()?;
                self.settle(s, version, left);
                s.hosts.iter_mut().for_each(|h| h.replayed = false);
            }
            Step::Empty(slot) => {
                s.hosts[slot].journal.clear();
                if s.holder == Some(slot) {
                    s.holder = None;
                }
                self.take_lock(s);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I5 versions never fall, I11 data is not replayed over", |_, s: &State| !s.fell),
            Property::always("I5 the newest committed image stands after replay", |_, s: &State| {
                let over = |h: &Host| !h.lives && h.replayed && h.journal.is_empty();
                !s.hosts.iter().all(over) || s.repair.is_some() || s.disk == s.committed
            }),
            Property::sometimes("both die and are replayed", |_, s: &State| {
                s.hosts.iter().all(|h| !h.lives && h.replayed && h.journal.is_empty())
            }),
        ]
    }
}

impl Protocol for Journals {
    /// Nothing is left to replay, and what is committed stands on the disk.
    fn is_goal(&self, s: &State) -> bool {
        s.repair.is_none()
            && s.disk == s.committed
            && s.hosts.iter().all(|h| h.lives || h.replayed && h.journal.is_empty())
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(step, Step::Die(..) | Step::Interrupted(_))
    }
}

#[test]
fn replay_ends_with_the_newest() {
    holds("replay, 4 changes, 3 deaths", Journals { changes: 4, deaths: 3, mutant: None });
}

#[test]
fn every_rule_of_replay_is_needed() {
    use Mutant::*;
    let all = [
        VersionsIgnored,
        TornLeft,
        TornNotAwaited,
        ReleasedUnwritten,
        TrimmedUnflushed,
        WrittenUncommitted,
        VersionsRestart,
        DataTooEarly,
        EmptiedUnflushed,
    ];
    catches("replay", &all, |mutant| Journals { changes: 4, deaths: 3, mutant: Some(mutant) });
}
