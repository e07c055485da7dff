//! Getting the right to allocate in one more group, holding nothing meanwhile.
//!
//! Own groups come first (their locks cost nothing), then those of slots without a host, which a later
//! mount would like to find still there, then groups of others; the emptiest first by their headers on
//! the disk, which may be a few seconds old. When every group has been held and had
//! nothing, what this host has unlinked is freed and what it has dirty is written (which holds more
//! space than it turns out to need), and the other hosts, if there are any, get a moment for theirs: only when
//! the groups still have nothing then, and nothing of what was on its way back is any more (`coming`), nor, as the rising
//! number of free blocks shows, comes from another host, is the volume full.

use super::*;
use crate::alloc::Want;
use crate::cluster::Owner;
use coming::Coming;

type Then = Box<dyn FnOnce(Result<Reservation>) + Send>;

/// Before the third round, where there are other hosts: what they have freed and dirtied cannot be seen from here.
const OTHERS_PAUSE: Duration = Duration::from_millis(200);
/// The same where there are none, if operations of this host have space that they may not need.
const PROMISED_PAUSE: Duration = Duration::from_millis(5);
/// More rounds, and the pauses before them, while metadata chunks are on their way to become free.
const DRAIN_ROUNDS: usize = 20;
const DRAIN_PAUSE: Duration = Duration::from_millis(500);
/// The same while frees or dirty data of this host are on their way.
const COMING_ROUNDS: usize = 40;
const COMING_PAUSE: Duration = Duration::from_millis(50);
/// The same while groups are missing whose host is silent or dead: until it answers or is taken over from.
/// Without an end only as far as nobody can do that.
const MISSING_ROUNDS: usize = 240;
const MISSING_PAUSE: Duration = Duration::from_millis(500);
/// Another host frees something as long as there was more free space in one of so many rounds.
const RISING_ROUNDS: usize = 4;

/// How the search has gone so far.
#[derive(Clone, Copy, Default)]
struct Rounds {
    /// Of those that were in vain.
    number: usize,
    /// Of these, for what is coming back, for chunks on their way, and for hosts that do not answer.
    coming: usize,
    draining: usize,
    missing: usize,
    /// What was missing has been found, and what came with it is waited for.
    found: bool,
    /// Free blocks of the volume, of any kind, as known in the last round, and the round in which it rose.
    free: u64,
    rose: Option<usize>,
}

impl Rounds {
    fn after(self, free: u64) -> Rounds {
        let rises = self.number > 0 && free > self.free;
        Rounds { free, rose: if rises { Some(self.number) } else { self.rose }, ..self }
    }

    fn is_rising(&self) -> bool {
        self.rose.is_some_and(|rose| self.number < rose + RISING_ROUNDS)
    }
}

/// A search for space.
struct Search {
    core: Arc<Core>,
    want: Want,
    rounds: Rounds,
    /// What was on its way when everything that could be had at once had been tried.
    coming: Option<Coming>,
    then: Then,
}

/// What there was that may be space by the next round.
struct Look {
    is_alone: bool,
    /// Operations of this host have space that they may not need.
    is_promised: bool,
    is_coming: bool,
    is_draining: bool,
    is_missing: bool,
}

/// Get a reservation from a group that is not held yet.
pub fn acquire(core: &Arc<Core>, want: Want, then: Then) {
    Search { core: core.clone(), want, rounds: Rounds::default(), coming: None, then }.round();
}

impl Search {
    /// Ask every group once.
    fn round(self) {
        let mut groups = candidates(&self.core);
        groups.reverse();
        self.next(groups);
    }

    fn next(self, mut rest: Vec<(Whose, AgNo)>) {
        if rest.last().is_none_or(|(whose, _)| *whose == Whose::Others) {
            self.core.alloc.set_home_full(true);
            // What is held of others' groups comes before asking for more.
            match self.core.alloc.reserve(self.want) {
                Err(Error::NeedSpace) => {}
                got => return (self.then)(got),
            }
        }
        let Some((_, ag)) = rest.pop() else { return self.nothing_left() };
        let locks = LockSet::one(LockName::Ag(ag), Mode::X);
        self.core.locks.clone().acquire(
            locks,
            Box::new(move |pins| match pins {
                Err(e) => (self.then)(Err(e)),
                Ok(pins) => {
                    let got = self.core.alloc.reserve(self.want);
                    drop(pins);
                    match got {
                        Ok(reservation) => (self.then)(Ok(reservation)),
                        Err(Error::NeedSpace) => self.next(rest),
                        Err(e) => (self.then)(Err(e)),
                    }
                }
            }),
        );
    }

    /// No group had anything in this round.
    fn nothing_left(mut self) {
        if let Err(halted) = self.core.store.halt().check() {
            return (self.then)(Err(halted));
        }
        let core = self.core.clone();
        core.writeback.flush_all_soon();
        // Looked at first: what has come in between is found.
        let look = self.look();
        let got = core.alloc.reserve_last(self.want);
        let (Err(Error::NoSpace), Some(pause)) = (&got, self.pause(&look)) else {
            return (self.then)(got);
        };
        let again = move || {
            self.coming.get_or_insert_with(|| Coming::now(&self.core));
            self.round();
        };
        core.reaper.squeeze(pause, Box::new(again));
    }

    fn look(&mut self) -> Look {
        let core = &self.core;
        let groups = (0..core.geometry.ag_count).map(AgNo);
        self.rounds = self.rounds.after(groups.map(|ag| core.statfs.free_hint(core, ag)).sum());
        let is_alone = core.cluster.membership().alone();
        let comes = self.coming.as_mut().is_some_and(|coming| coming.remains(core));
        let is_coming = (comes || !is_alone && self.rounds.is_rising()) && self.rounds.coming < COMING_ROUNDS;
        // What empties while something comes is waited for, too.
        let drains =
            self.coming.as_mut().filter(|_| !is_coming).is_some_and(|coming| coming.is_draining(core));
        Look {
            is_alone,
            is_promised: core.alloc.totals().promised > 0,
            is_coming,
            is_draining: drains && self.rounds.draining < DRAIN_ROUNDS,
            is_missing: self.rounds.missing < MISSING_ROUNDS && is_anything_missing(core),
        }
    }

    /// How long to wait before another round; `None`: there is no point in one.
    fn pause(&mut self, look: &Look) -> Option<Duration> {
        let rounds = &mut self.rounds;
        rounds.number += 1;
        let Some(coming) = &mut self.coming else { return Some(Duration::ZERO) };
        if rounds.number == 2 && !look.is_alone {
            return Some(OTHERS_PAUSE);
        }
        if rounds.number == 2 && look.is_promised {
            return Some(PROMISED_PAUSE);
        }
        // Each sort is counted by itself: what has come back may have to be waited for once more.
        if look.is_coming {
            rounds.coming += 1;
            return Some(COMING_PAUSE);
        }
        coming.give_up(&self.core);
        if look.is_draining {
            rounds.draining += 1;
            return Some(DRAIN_PAUSE);
        }
        if look.is_missing {
            rounds.missing += 1;
            return Some(MISSING_PAUSE);
        }
        // Whoever has taken over from the missing host has what it had unlinked, too.
        if rounds.missing > 0 && !rounds.found {
            *rounds =
                Rounds { missing: rounds.missing, number: rounds.number, found: true, ..Rounds::default() };
            self.coming = None;
            return Some(Duration::ZERO);
        }
        None
    }
}

/// Are there groups for which nobody answers now?
fn is_anything_missing(core: &Core) -> bool {
    let members = core.cluster.membership();
    let mut owners = (0..core.geometry.ag_count).map(|ag| members.owner_of(AgNo(ag)).0);
    owners.any(|owner| owner.slot().is_none_or(|slot| members.is_silent(slot)))
}

/// Whose a group is; the order of asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Ours,
    /// A slot's that has no host now; it is ours to take.
    Nobodys,
    Others,
}

/// Groups worth asking, best first. Those of a host that is silent or dead are left out: nobody answers
/// for them until the cluster has recovered, and space elsewhere need not wait for that.
fn candidates(core: &Core) -> Vec<(Whose, AgNo)> {
    let members = core.cluster.membership();
    let held = core.alloc.held();
    let slots = core.slots;
    let rank = |ag: AgNo| match members.owner_of(ag).0 {
        Owner::Master(slot) if slot == members.me => Some(Whose::Ours),
        Owner::Adopter(slot) if slot == members.me && is_dealt_to(ag, slot, slots) => Some(Whose::Ours),
        Owner::Adopter(slot) if slot == members.me => Some(Whose::Nobodys),
        Owner::Master(slot) | Owner::Adopter(slot) if !members.is_silent(slot) => Some(Whose::Others),
        _ => None,
    };
    let mut groups: Vec<(Whose, std::cmp::Reverse<u64>, AgNo)> = (0..core.geometry.ag_count)
        .map(AgNo)
        .filter(|ag| !held.contains(ag))
        .filter_map(|ag| Some((rank(ag)?, std::cmp::Reverse(core.statfs.free_hint(core, ag)), ag)))
        .collect();
    groups.sort();
    groups.into_iter().map(|(whose, _, ag)| (whose, ag)).collect()
}

/// Was the group this slot's when the volume was made?
pub(super) fn is_dealt_to(ag: AgNo, slot: SlotId, slots: u16) -> bool {
    ag.0 % u32::from(slots.max(1)) == u32::from(slot.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rounds in which free space counts as rising, given what was free in each.
    fn rising(free: &[u64]) -> Vec<usize> {
        let mut rounds = Rounds::default();
        let rises = |(number, free): (usize, &u64)| {
            rounds = Rounds { number, ..rounds }.after(*free);
            rounds.is_rising().then_some(number)
        };
        free.iter().enumerate().filter_map(rises).collect()
    }

    #[test]
    fn free_space_rises_until_there_was_not_more_for_some_rounds() {
        assert_eq!(rising(&[70, 70, 70, 60]), [0; 0]);
        assert_eq!(rising(&[0, 10, 10, 10, 10, 10, 10]), [1, 2, 3, 4]);
        assert_eq!(rising(&[50, 40, 41, 41, 42, 30, 30, 30, 30]), [2, 3, 4, 5, 6, 7]);
    }
}
