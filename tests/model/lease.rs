//! Lease and take-over in time: one host renews and writes, the other excludes it and takes over. Rules R1,
//! R2, R5 and R6 with the production [`Watch`], [`Fences`] and view changes; time goes in steps of a
//! second, in any of which anybody may do anything or nothing.
//!
//! The victim may be stopped anywhere, but not for longer than the guard time between its look at the
//! lease and its write; a write lands within its life. Suspicion (R4) is left out: the other may
//! exclude it at any time. I8: no write of the victim lands after the other has acted.

use crate::check::{Protocol, catches, holds};
use shoal::base::{Incarnation, SlotId};
use shoal::cluster::Timing;
use shoal::cluster::fence::Fences;
use shoal::cluster::member::{OwnBeat, Renewal, Watch};
use shoal::cluster::view;
use shoal::format::cluster::{Heartbeat, View};
use stateright::{Model, Property};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// The row is read before the heartbeat is complete (R1).
    RowBeforeBeat,
    /// Writes start until the end of the lease (R2).
    NoGuard,
    /// The exclusion is acted upon without being published (R6).
    NotPublished,
    /// The victim's cell is not looked at again behind the publication (R6).
    NotRead,
    /// The time counts from the exclusion's reading of the cell, but only for the lease.
    WritesLandAtOnce,
    /// A cell that cannot be read is taken to bear what it bore (R6).
    NothingHidden,
}

const ME: SlotId = SlotId(0);
const VICTIM: SlotId = SlotId(1);
const SECOND: Duration = Duration::from_secs(1);
const TIMING: Timing = Timing {
    heartbeat: SECOND,
    lease: Duration::from_secs(3),
    guard: SECOND,
    suspicion: Duration::from_secs(4),
    write_life: SECOND,
};
const GUARD: u8 = 1;
const WRITE_LIFE: u8 = 1;
const END: u8 = 9;

fn at(seconds: u8) -> Duration {
    SECOND * u32::from(seconds)
}

/// How far a victim's heartbeat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Beat {
    None,
    /// On its way since then.
    Sent(u8),
    /// Begun then, complete.
    Done(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    now: u8,
    view: Arc<View>,
    cells: [Heartbeat; 2],
    beat: Beat,
    /// The view that the victim knows.
    known: Arc<View>,
    lease_end: u8,
    /// When it last looked whether it may write.
    looked: Option<u8>,
    /// A write of its on its way, and since when.
    writing: Option<u8>,
    halted: bool,
    watch: Watch,
    fences: Fences,
    /// The other's heartbeat is complete, the row is not read yet.
    published: bool,
    acted: bool,
    late: bool,
    /// Heartbeats of the two that are still to come.
    beats: u8,
    polls: u8,
    /// So many reads will not show the victim's cell.
    blind: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Tick,
    Beat,
    BeatLands,
    Renew,
    Look,
    Write,
    WriteLands,
    Exclude,
    Publish,
    Read,
    /// A read that does not show the victim's cell.
    ReadBlind,
    Act,
}

#[derive(Clone)]
struct Lease {
    beats: u8,
    polls: u8,
    blind: u8,
    mutant: Option<Mutant>,
}

impl Lease {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn renew(&self, s: &mut State) {
        let (Beat::Sent(started) | Beat::Done(started)) = s.beat else { return };
        if s.cells[0].epoch > s.known.epoch {
            s.known = s.view.clone();
        }
        let mut row: Vec<_> = s.cells.iter().cloned().map(Some).collect();
        let mut counter = s.cells[1].counter;
        if let Beat::Sent(_) = s.beat {
            counter += 1;
            row[1].as_mut().expect("just made").counter = counter;
        }
        let incarnation = s.cells[1].incarnation;
        let joined = shoal::base::Epoch(0);
        let own = OwnBeat { slot: VICTIM, incarnation, counter, started: at(started), joined };
        match s.watch.renew(&own, &s.known, &row) {
            Renewal::Confirmed { lease_end } => s.lease_end = lease_end.as_secs() as u8,
            _ => s.halted = true,
        }
        if let Beat::Done(_) = s.beat {
            s.beat = Beat::None;
        }
    }

    fn publish(&self, s: &mut State) {
        if !self.is(Mutant::NotPublished) {
            s.cells[0].epoch = s.view.epoch;
            s.cells[0].excluded = view::dead_of(&s.view, ME);
        }
        s.published = true;
        if self.is(Mutant::NotRead) {
            s.fences.told(s.view.epoch, view::dead_of(&s.view, ME), at(s.now));
        }
    }

    /// The row, read behind the publication.
    fn read(&self, s: &mut State, blind: bool) {
        let mut row: Vec<_> = s.cells.iter().cloned().map(Some).collect();
        s.blind -= u8::from(blind);
        if blind {
            row[1] = None;
        }
        if blind && self.is(Mutant::NothingHidden) {
            s.fences.told(s.cells[0].epoch, s.cells[0].excluded, Duration::ZERO);
        } else if !self.is(Mutant::NotRead) || s.watch.first_seen(VICTIM).is_none() {
            s.watch.observe(at(s.now), &row);
            s.fences.told(s.cells[0].epoch, s.cells[0].excluded, at(s.now));
        }
        if self.is(Mutant::NotPublished) {
            s.fences.told(s.view.epoch, view::dead_of(&s.view, ME), at(s.now));
        }
        s.published = false;
    }

    fn watch(&self) -> Watch {
        let write_life = if self.is(Mutant::WritesLandAtOnce) { Duration::ZERO } else { TIMING.write_life };
        Watch::new(Timing { write_life, ..TIMING }, 2)
    }

    fn is_ready(&self, s: &State) -> bool {
        let row: Vec<_> = s.cells.iter().cloned().map(Some).collect();
        s.fences.ready(&s.view, ME, &row, &s.watch, at(s.now)).is_some()
    }
}

impl Model for Lease {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let first = view::first(&View::initial(2, 2), ME, Incarnation(1));
        let both = Arc::new(view::admit(&first, &[Incarnation(2)], !0, 0).expect("a slot is free"));
        let cell = |slot: SlotId, incarnation| Heartbeat {
            slot,
            incarnation: Incarnation(incarnation),
            epoch: both.epoch,
            ..Heartbeat::default()
        };
        vec![State {
            now: 0,
            view: both.clone(),
            cells: [cell(ME, 1), cell(VICTIM, 2)],
            beat: Beat::None,
            known: both.clone(),
            lease_end: 0,
            looked: None,
            writing: None,
            halted: false,
            watch: self.watch(),
            fences: Fences::default(),
            published: false,
            acted: false,
            late: false,
            beats: self.beats,
            polls: self.polls,
            blind: self.blind,
        }]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        let landed = |since: Option<u8>| since.is_none_or(|since| s.now < since + WRITE_LIFE);
        let sent = if let Beat::Sent(since) = s.beat { Some(since) } else { None };
        let guard = if self.is(Mutant::NoGuard) { 0 } else { GUARD };
        let may_write = s.lease_end > 0 && s.now + guard <= s.lease_end;
        let early = self.is(Mutant::RowBeforeBeat) && sent.is_some();
        let excluded = view::dead(&s.view) != 0;
        let offers = [
            (s.now < END && landed(sent) && landed(s.writing), Step::Tick),
            (!s.halted && s.beats > 0 && s.beat == Beat::None, Step::Beat),
            (sent.is_some(), Step::BeatLands),
            (!s.halted && (matches!(s.beat, Beat::Done(_)) || early), Step::Renew),
            (!s.halted && may_write && s.looked != Some(s.now), Step::Look),
            (s.writing.is_none() && s.looked.is_some_and(|then| s.now <= then + GUARD), Step::Write),
            (s.writing.is_some(), Step::WriteLands),
            (!excluded, Step::Exclude),
            (!s.acted && s.polls > 0 && !s.published, Step::Publish),
            (s.published, Step::Read),
            (s.published && s.blind > 0, Step::ReadBlind),
            (!s.acted && self.is_ready(s), Step::Act),
        ];
        steps.extend(offers.iter().filter(|(offered, _)| *offered).map(|(_, step)| *step));
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        let s = &mut next;
        match step {
            Step::Tick => {
                s.now += 1;
                s.looked = s.looked.filter(|then| s.now <= then + GUARD);
            }
            Step::Beat => (s.beat, s.beats) = (Beat::Sent(s.now), s.beats - 1),
            Step::BeatLands => {
                let Beat::Sent(since) = s.beat else { return None };
                s.cells[1].counter += 1;
                s.cells[1].epoch = s.known.epoch;
                s.beat = if self.is(Mutant::RowBeforeBeat) { Beat::None } else { Beat::Done(since) };
            }
            Step::Renew => self.renew(s),
            Step::Look => s.looked = Some(s.now),
            Step::Write => (s.looked, s.writing) = (None, Some(s.now)),
            Step::WriteLands => {
                s.writing = None;
                s.late |= s.acted;
            }
            Step::Exclude => {
                s.view = Arc::new(view::exclude(&s.view, ME, &[(VICTIM, Incarnation(2))])?);
            }
            Step::Publish => {
                s.polls -= 1;
                self.publish(s);
            }
            Step::Read => self.read(s, false),
            Step::ReadBlind => self.read(s, true),
            Step::Act => s.acted = true,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I8 nothing lands after the take-over", |_, s: &State| !s.late),
            Property::sometimes("the other takes over", |_, s: &State| s.acted),
        ]
    }
}

impl Protocol for Lease {
    fn is_goal(&self, s: &State) -> bool {
        s.acted || s.now + 6 > END || s.polls == 0
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(step, Step::Beat | Step::ReadBlind)
    }
}

const READABLE: Lease = Lease { beats: 2, polls: 3, blind: 0, mutant: None };
const BLIND: Lease = Lease { beats: 1, polls: 3, blind: 1, mutant: None };

#[test]
fn nothing_lands_after_the_take_over() {
    holds("lease, 1 victim", READABLE);
    holds("lease, 1 victim with a cell that a read does not show", BLIND);
}

#[test]
fn every_rule_of_the_lease_is_needed() {
    use Mutant::*;
    let all = [RowBeforeBeat, NoGuard, NotPublished, NotRead, WritesLandAtOnce];
    catches("lease", &all, |m| Lease { mutant: Some(m), ..READABLE });
    catches("lease", &[NothingHidden], |m| Lease { mutant: Some(m), ..BLIND });
}
