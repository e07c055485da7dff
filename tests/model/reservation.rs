//! Take-over on a device that keeps hosts off: a mount that may be paused for any time with a write queued, the
//! adopter that takes its key away and then acts, and the next mount in its slot. The production [`Fences`]
//! says when to act; the device is the part of SPC-4 that matters. Time is left out: leases are long over.
//!
//! I8: no write of the victim lands after the adopter has acted; and nobody is kept off who is not dead.

use crate::check::{Protocol, catches, holds};
use shoal::base::{Incarnation, SlotId};
use shoal::cluster::fence::Fences;
use shoal::cluster::keys::key_of;
use shoal::cluster::member::Watch;
use shoal::cluster::{Timing, view};
use shoal::format::cluster::{FenceClass, Heartbeat, View};
use stateright::{Model, Property};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// An attempt that failed counts (K7, F8).
    RecoveredUnfenced,
    /// An attempt is made, and counts, while it is under way (F8).
    NotAwaited,
    /// The next mount of a slot has the key of the one before (K1).
    KeyReused,
    /// A member registers when it comes to it (K2).
    RegisteredLate,
    /// Nobody looks whether the reservation stands (K4).
    ReservationLost,
    /// What is in the device is not waited for.
    NotAborted,
}

const ME: SlotId = SlotId(0);
const VICTIM: SlotId = SlotId(1);
const LATE: Duration = Duration::from_secs(1000);
/// The nexuses.
const MINE: u8 = 0;
const THEIRS: u8 = 1;
const NEXT: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The device: keys by nexus, does the reservation stand, is a write of the victim inside.
    keys: BTreeMap<u8, u64>,
    reserved: bool,
    inside: bool,
    /// The victim: may it begin writes, and is one queued.
    halted: bool,
    queued: bool,
    writes: u8,
    view: Arc<View>,
    fences: Fences,
    told: bool,
    /// The adopter's command to the device was sent and is not answered.
    asked: bool,
    acted: bool,
    /// A write landed that must not.
    late: bool,
    /// The next mount of the slot is there.
    next: bool,
    losses: u8,
    repeats: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Queue,
    /// What is queued reaches the device, however late.
    Arrive,
    Land,
    /// The victim registers, if it has not yet.
    Register,
    Exclude,
    Tell,
    Ask,
    Preempt,
    /// The attempt fails without effect.
    Fail,
    Act,
    /// The next mount of the slot.
    Join,
    /// An attempt that somebody made comes to the device once more.
    Again,
    /// The device loses its reservation.
    Lose,
}

#[derive(Clone)]
struct Reserved {
    mutant: Option<Mutant>,
}

fn key(incarnation: u64) -> u64 {
    key_of(7, Incarnation(incarnation))
}

impl Reserved {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn is_due(s: &State) -> bool {
        s.fences.due(&s.view, ME).contains(&VICTIM)
    }

    fn is_ready(s: &State) -> bool {
        let cell = |slot, incarnation| {
            let (incarnation, epoch) = (Incarnation(incarnation), s.view.epoch);
            Some(Heartbeat { slot, incarnation, counter: 1, ack: epoch, ..Heartbeat::default() })
        };
        let row = [cell(ME, 1), cell(VICTIM, 2)];
        let mut watch = Watch::new(Timing::TEST, 2);
        watch.observe(Duration::ZERO, &row);
        s.fences.ready(&s.view, ME, &row, &watch, LATE).is_some()
    }

    /// The device does it.
    fn preempt(&self, s: &mut State) {
        if !self.is(Mutant::ReservationLost) {
            s.reserved = true;
        }
        s.keys.retain(|_, k| *k != key(2));
    }
}

impl Model for Reserved {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let first = view::first(&View::initial(2, 2), ME, Incarnation(1));
        let mut both = view::admit(&first, &[Incarnation(2)], !0, 0).expect("a slot is free");
        both.fence = FenceClass::Reservation as u8;
        let mut keys = BTreeMap::from([(MINE, key(1))]);
        if !self.is(Mutant::RegisteredLate) {
            keys.insert(THEIRS, key(2));
        }
        vec![State {
            keys,
            reserved: true,
            inside: false,
            halted: false,
            queued: false,
            writes: 2,
            view: Arc::new(both),
            fences: Fences::default(),
            told: false,
            asked: false,
            acted: false,
            late: false,
            next: false,
            losses: 1,
            repeats: 1,
        }]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        let excluded = view::dead(&s.view) != 0;
        let aborts = !self.is(Mutant::NotAborted);
        let may_register = self.is(Mutant::RegisteredLate) && !s.keys.contains_key(&THEIRS);
        let offers = [
            (!s.halted && !s.queued && s.writes > 0, Step::Queue),
            (s.queued && !s.inside, Step::Arrive),
            (s.inside, Step::Land),
            (may_register, Step::Register),
            (!excluded && !s.acted, Step::Exclude),
            (excluded && !s.told, Step::Tell),
            (!s.asked && Self::is_due(s), Step::Ask),
            // The answer to an abort comes when nothing is under way.
            (s.asked && !(aborts && s.inside), Step::Preempt),
            (s.asked, Step::Fail),
            (!s.acted && Self::is_ready(s), Step::Act),
            (s.acted && !s.next, Step::Join),
            (s.told && s.repeats > 0, Step::Again),
            (s.losses > 0 && !s.told, Step::Lose),
        ];
        steps.extend(offers.iter().filter(|(offered, _)| *offered).map(|(_, step)| *step));
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        let s = &mut next;
        match step {
            Step::Queue => (s.queued, s.writes) = (true, s.writes - 1),
            Step::Arrive => {
                let allowed = !s.reserved || s.keys.contains_key(&THEIRS);
                (s.queued, s.inside) = (false, allowed);
                s.halted |= !allowed;
            }
            Step::Land => {
                s.inside = false;
                s.late |= s.acted;
            }
            Step::Register => drop(s.keys.insert(THEIRS, key(2))),
            Step::Exclude => s.view = Arc::new(view::exclude(&s.view, ME, &[(VICTIM, Incarnation(2))])?),
            Step::Tell => {
                s.told = true;
                s.fences.told(s.view.epoch, view::dead_of(&s.view, ME), Duration::ZERO);
            }
            Step::Ask => {
                s.asked = true;
                if self.is(Mutant::NotAwaited) {
                    s.fences.cut(VICTIM, Incarnation(2));
                }
            }
            Step::Preempt => {
                s.asked = false;
                self.preempt(s);
                s.fences.cut(VICTIM, Incarnation(2));
            }
            Step::Fail => {
                s.asked = false;
                if self.is(Mutant::RecoveredUnfenced) {
                    s.fences.cut(VICTIM, Incarnation(2));
                }
            }
            Step::Act => s.acted = true,
            Step::Join => {
                s.next = true;
                let incarnation = if self.is(Mutant::KeyReused) { 2 } else { 3 };
                s.keys.insert(NEXT, key(incarnation));
            }
            Step::Again => {
                s.repeats -= 1;
                self.preempt(s);
            }
            Step::Lose => {
                s.losses -= 1;
                s.reserved = false;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I8 nothing lands after the take-over", |_, s: &State| !s.late),
            Property::always("nobody is kept off who lives", |_, s: &State| {
                s.keys.contains_key(&MINE) && (!s.next || s.keys.contains_key(&NEXT))
            }),
            Property::sometimes("the next mount works", |_, s: &State| s.next),
        ]
    }
}

impl Protocol for Reserved {
    fn is_goal(&self, s: &State) -> bool {
        s.next
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(step, Step::Fail | Step::Lose | Step::Again)
    }
}

#[test]
fn nothing_lands_of_whom_the_device_keeps_off() {
    holds("reservation: a paused mount, its adopter, the next mount", Reserved { mutant: None });
}

#[test]
fn every_rule_of_keys_is_needed() {
    use Mutant::*;
    let all = [RecoveredUnfenced, NotAwaited, KeyReused, RegisteredLate, ReservationLost, NotAborted];
    catches("reservation", &all, |m| Reserved { mutant: Some(m) });
}
