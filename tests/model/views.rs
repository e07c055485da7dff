//! Views by Disk Paxos: [`Proposer`] over ballots of two copies each.
//!
//! A host writes a copy (until that is over, a read of it gives the old, the new, or nothing), reads
//! the others' ballots one by one in any order, stops for ever or comes back as another mount of its
//! slot. I4: all agree on each view, and each view was made from the one before it.

use crate::check::{Protocol, catches, holds};
use shoal::base::{Epoch, SlotId};
use shoal::cluster::paxos::{Action, Event, Proposer};
use shoal::format::cluster::{Ballot, View};
use stateright::{Model, Property};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// A ballot that cannot be read is left out of the row.
    TornSkipped,
    /// One copy of each ballot: what is being written is not readable, and after a crash nothing is.
    OneCopy,
    /// What others have accepted is not taken up.
    AcceptedIgnored,
    /// A higher ballot number does not end the ballot.
    HigherIgnored,
    /// A mount begins with an empty ballot, whatever an earlier mount of the slot promised.
    PromiseForgotten,
    /// The row is read before the own write is complete.
    ReadBeforeWritten,
    /// Ballots for another epoch count.
    EpochIgnored,
    /// The write after a failed one goes to the other copy.
    FailedCopyKept,
    /// A ballot counts as written when one copy is.
    WrittenOnce,
}

/// One copy of a ballot and its sequence number; `None`: torn.
type Copy1 = Option<(Arc<Ballot>, u64)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    copies: [Copy1; 2],
    /// Being written: which copy, and with what.
    pending: Option<(usize, (Arc<Ballot>, u64))>,
    /// What each copy held before: the write of it may land once more.
    before: [Copy1; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// Both copies, one after the other; this one is still to be written.
    Writing(Option<Arc<Ballot>>),
    /// Ballots read so far.
    Reading(BTreeMap<SlotId, Arc<Ballot>>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    /// `None`: stopped.
    machine: Option<Proposer>,
    sequence: u64,
    doing: Doing,
    ballots_left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    disk: Vec<Place>,
    hosts: Vec<Host>,
    decided: BTreeMap<Epoch, View>,
    /// Two views of one epoch.
    split: bool,
    faults_left: u8,
    late_left: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Propose(usize),
    /// The write is complete.
    Written(usize),
    /// Read the ballot of a slot; `true`: what is being written there shows already.
    Read(usize, usize, bool),
    /// Learn of the newest view otherwise.
    Learn(usize),
    /// Stop; what was being written is then there, torn, or not there.
    Stop(usize, Left),
    /// The write fails with the same three outcomes; the host goes on.
    Fail(usize, Left),
    /// A new mount of the slot.
    Mount(usize),
    /// An earlier write of a copy lands once more.
    Late(usize, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    New,
    Torn,
    Old,
}

#[derive(Clone)]
struct Views {
    hosts: usize,
    ballots_each: u8,
    faults: u8,
    late: u8,
    epochs: u64,
    mutant: Option<Mutant>,
}

impl Place {
    /// What a read gives: the newer whole copy.
    fn value(&self) -> Option<&(Arc<Ballot>, u64)> {
        self.copies.iter().flatten().max_by_key(|(_, sequence)| *sequence)
    }

    fn settle(&mut self, left: Left) {
        let Some((copy, new)) = self.pending.take() else { return };
        match left {
            Left::New => self.before[copy] = self.copies[copy].replace(new),
            Left::Torn => self.copies[copy] = None,
            Left::Old => {}
        }
    }
}

impl Views {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The next view as `slot` would have it: it names its maker and the view it was made from.
    fn proposal(&self, from: &View, slot: usize, attempt: u8) -> View {
        let id = 1 + slot as u64 * 16 + u64::from(attempt);
        View { epoch: Epoch(from.epoch.0 + 1), features: (from.features & 0xff) << 8 | id, ..from.clone() }
    }

    fn act(&self, s: &mut State, slot: usize, action: Action) {
        let host = &mut s.hosts[slot];
        match action {
            Action::Write(ballot) => {
                let ballot = Arc::new(ballot);
                let once = self.is(Mutant::OneCopy) || self.is(Mutant::WrittenOnce);
                host.doing = Doing::Writing((!once).then(|| ballot.clone()));
                self.write(s, slot, ballot);
            }
            Action::Read => host.doing = Doing::Reading(BTreeMap::new()),
            Action::Decided(view) => {
                host.doing = Doing::Nothing;
                self.note(s, view);
            }
            Action::Lost => host.doing = Doing::Nothing,
        }
    }

    fn write(&self, s: &mut State, slot: usize, ballot: Arc<Ballot>) {
        s.hosts[slot].sequence += 1;
        let sequence = s.hosts[slot].sequence;
        let copy = if self.is(Mutant::OneCopy) { 0 } else { sequence % 2 };
        s.disk[slot].pending = Some((copy as usize, (ballot, sequence)));
    }

    fn note(&self, s: &mut State, view: View) {
        let known = s.decided.entry(view.epoch).or_insert_with(|| view.clone());
        s.split |= *known != view;
    }

    /// What the machine is told of the ballots read.
    fn row(&self, slot: usize, own: &Ballot, row: BTreeMap<SlotId, Arc<Ballot>>) -> Vec<(SlotId, Ballot)> {
        let me = SlotId(slot as u16);
        let bend = |(s, b): (SlotId, Arc<Ballot>)| {
            let mut b = (*b).clone();
            if s != me {
                match self.mutant {
                    Some(Mutant::AcceptedIgnored) => (b.bal, b.input) = (0, None),
                    Some(Mutant::HigherIgnored) => b.mbal = b.mbal.min(own.mbal),
                    Some(Mutant::EpochIgnored) => b.decided = own.decided.clone(),
                    _ => {}
                }
            }
            (s, b)
        };
        row.into_iter().map(bend).collect()
    }

    fn propose(&self, s: &mut State, slot: usize) {
        let host = &mut s.hosts[slot];
        let machine = host.machine.as_mut().expect("a stopped host proposes nothing");
        host.ballots_left -= 1;
        let view = self.proposal(machine.decided(), slot, host.ballots_left);
        let action = machine.step(Event::Propose(view));
        self.act(s, slot, action);
        if self.is(Mutant::ReadBeforeWritten) {
            s.hosts[slot].doing = Doing::Reading(BTreeMap::new());
        }
    }

    fn written(&self, s: &mut State, slot: usize) {
        s.disk[slot].settle(Left::New);
        if s.late_left == 0 {
            s.disk[slot].before = [None, None];
        }
        if let Doing::Writing(again) = &mut s.hosts[slot].doing
            && let Some(ballot) = again.take()
        {
            return self.write(s, slot, ballot);
        }
        let host = &mut s.hosts[slot];
        let read = match std::mem::replace(&mut host.doing, Doing::Nothing) {
            Doing::Reading(row) => Some(row),
            _ => None,
        };
        let machine = host.machine.as_mut().expect("checked");
        let action = machine.step(Event::Written);
        self.act(s, slot, action);
        if let (Some(row), Doing::Reading(_)) = (read, &s.hosts[slot].doing) {
            s.hosts[slot].doing = Doing::Reading(row);
            self.finish_row(s, slot);
        } else if self.is(Mutant::ReadBeforeWritten) && matches!(s.hosts[slot].doing, Doing::Writing(_)) {
            s.hosts[slot].doing = Doing::Reading(BTreeMap::new());
        }
    }

    fn read(&self, s: &mut State, slot: usize, at: usize, new: bool) -> Option<()> {
        let place = &s.disk[at];
        let value = match (&place.pending, new) {
            (Some((_, (ballot, _))), true) => Some(ballot.clone()),
            (None, true) => return None,
            _ => {
                // Without the other copy, or without looking again: torn while it is written.
                let torn = self.is(Mutant::OneCopy) || self.is(Mutant::TornSkipped);
                let value = place.value().filter(|_| !torn || place.pending.is_none());
                value.map(|(ballot, _)| ballot.clone())
            }
        };
        let value = match value {
            None if self.is(Mutant::TornSkipped) && at != slot => {
                let decided = s.hosts[slot].machine.as_ref()?.decided().clone();
                Arc::new(Ballot::idle(decided))
            }
            value => value?,
        };
        let Doing::Reading(row) = &mut s.hosts[slot].doing else { return None };
        row.insert(SlotId(at as u16), value);
        self.finish_row(s, slot);
        Some(())
    }

    fn finish_row(&self, s: &mut State, slot: usize) {
        let host = &mut s.hosts[slot];
        let Doing::Reading(row) = &host.doing else { return };
        if row.len() < s.disk.len() || s.disk[slot].pending.is_some() {
            return;
        }
        let own = row[&SlotId(slot as u16)].clone();
        let mut row = row.clone();
        if self.is(Mutant::ReadBeforeWritten) {
            let (ballot, _) = s.disk[slot].value().expect("written").clone();
            row.insert(SlotId(slot as u16), ballot);
        }
        let row = self.row(slot, &own, row);
        let action = host.machine.as_mut().expect("checked").step(Event::Row(row));
        self.act(s, slot, action);
        if self.is(Mutant::ReadBeforeWritten) && matches!(s.hosts[slot].doing, Doing::Writing(_)) {
            s.hosts[slot].doing = Doing::Reading(BTreeMap::new());
        }
    }

    fn newest(&self, s: &State) -> Option<View> {
        let all: Option<Vec<_>> = s.disk.iter().map(|p| p.value().map(|(b, _)| &b.decided)).collect();
        all?.into_iter().max_by_key(|v| v.epoch).cloned()
    }

    fn mount(&self, s: &mut State, slot: usize) -> Option<()> {
        let newest = self.newest(s)?;
        let (ballot, sequence) = s.disk[slot].value()?.clone();
        let ballot = match self.is(Mutant::PromiseForgotten) {
            true => Ballot::idle(ballot.decided.clone()),
            false => (*ballot).clone(),
        };
        let mut machine = Proposer::new(SlotId(slot as u16), ballot);
        machine.learn(&newest);
        let host = &mut s.hosts[slot];
        (host.machine, host.sequence, host.doing) = (Some(machine), sequence, Doing::Nothing);
        self.note(s, newest);
        Some(())
    }
}

impl Model for Views {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let first = Ballot::idle(View::initial(self.hosts as u16, self.hosts as u16));
        let first = Arc::new(first);
        let place = Place {
            copies: [Some((first.clone(), 2)), Some((first.clone(), 1))],
            pending: None,
            before: [None, None],
        };
        let host = |slot: usize| Host {
            machine: Some(Proposer::new(SlotId(slot as u16), (*first).clone())),
            sequence: 2,
            doing: Doing::Nothing,
            ballots_left: self.ballots_each,
        };
        vec![State {
            disk: vec![place; self.hosts],
            hosts: (0..self.hosts).map(host).collect(),
            decided: BTreeMap::from([(Epoch(1), first.decided.clone())]),
            split: false,
            faults_left: self.faults,
            late_left: self.late,
        }]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        for (slot, host) in s.hosts.iter().enumerate() {
            let Some(machine) = &host.machine else {
                steps.push(Step::Mount(slot));
                continue;
            };
            let writing = s.disk[slot].pending.is_some();
            match &host.doing {
                Doing::Nothing => {
                    if host.ballots_left > 0 && machine.decided().epoch.0 <= self.epochs {
                        steps.push(Step::Propose(slot));
                    }
                    if self.newest(s).is_some_and(|v| v.epoch > machine.decided().epoch) {
                        steps.push(Step::Learn(slot));
                    }
                }
                Doing::Writing(_) => {}
                Doing::Reading(row) => {
                    for at in (0..self.hosts).filter(|at| !row.contains_key(&SlotId(*at as u16))) {
                        steps.push(Step::Read(slot, at, false));
                        if s.disk[at].pending.is_some() {
                            steps.push(Step::Read(slot, at, true));
                        }
                    }
                }
            }
            if writing {
                steps.push(Step::Written(slot));
            }
            for copy in (0..2).filter(|c| s.late_left > 0 && s.disk[slot].before[*c].is_some()) {
                steps.push(Step::Late(slot, copy));
            }
            if s.faults_left > 0 {
                let outcomes = if writing { &[Left::New, Left::Torn, Left::Old][..] } else { &[Left::Old] };
                for left in outcomes {
                    steps.push(Step::Stop(slot, *left));
                    if writing {
                        steps.push(Step::Fail(slot, *left));
                    }
                }
            }
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut s = s.clone();
        match step {
            Step::Propose(slot) => self.propose(&mut s, slot),
            Step::Written(slot) => self.written(&mut s, slot),
            Step::Read(slot, at, new) => self.read(&mut s, slot, at, new)?,
            Step::Learn(slot) => {
                let newest = self.newest(&s)?;
                s.hosts[slot].machine.as_mut()?.learn(&newest);
                self.note(&mut s, newest);
            }
            Step::Stop(slot, left) => {
                s.faults_left -= 1;
                s.disk[slot].settle(left);
                (s.hosts[slot].machine, s.hosts[slot].doing) = (None, Doing::Nothing);
            }
            Step::Fail(slot, left) => {
                s.faults_left -= 1;
                s.disk[slot].settle(left);
                s.hosts[slot].doing = Doing::Nothing;
                s.hosts[slot].sequence += u64::from(!self.is(Mutant::FailedCopyKept));
            }
            Step::Mount(slot) => self.mount(&mut s, slot)?,
            Step::Late(slot, copy) => {
                s.late_left -= 1;
                s.disk[slot].copies[copy] = s.disk[slot].before[copy].take();
            }
        }
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I4 one view per epoch", |_, s: &State| !s.split),
            Property::always("I4 a view follows from the one before", |_, s: &State| {
                s.decided
                    .values()
                    .zip(s.decided.values().skip(1))
                    .all(|(a, b)| b.epoch.0 == a.epoch.0 + 1 && b.features >> 8 == a.features & 0xff)
            }),
            Property::sometimes("the last epoch is decided", |m: &Views, s: &State| {
                s.decided.contains_key(&Epoch(m.epochs + 1))
            }),
        ]
    }
}

impl Protocol for Views {
    /// Somebody who runs has decided, or has no ballot left to do so.
    fn is_goal(&self, s: &State) -> bool {
        let tired = |h: &Host| h.ballots_left == 0 && h.doing == Doing::Nothing && h.machine.is_some();
        s.decided.contains_key(&Epoch(self.epochs + 1)) || s.hosts.iter().all(tired)
    }

    fn is_fault(&self, step: &Step) -> bool {
        matches!(step, Step::Stop(..) | Step::Fail(..) | Step::Late(..))
    }
}

const SMALL: Views = Views { hosts: 2, ballots_each: 2, faults: 1, late: 0, epochs: 1, mutant: None };

#[test]
fn two_hosts_agree() {
    holds("views, 2 hosts, 2 ballots each, 2 faults", Views { faults: 2, ..SMALL });
    holds("views, 2 hosts, 2 epochs, 1 fault", Views { epochs: 2, ..SMALL });
    holds("views, 2 hosts, 2 ballots each, 1 late write", Views { faults: 0, late: 1, ..SMALL });
}

#[test]
fn three_hosts_agree() {
    holds("views, 3 hosts, 1 ballot each", Views { hosts: 3, ballots_each: 1, faults: 0, ..SMALL });
}

#[test]
fn every_rule_of_views_is_needed() {
    use Mutant::*;
    let all = [
        TornSkipped,
        OneCopy,
        AcceptedIgnored,
        HigherIgnored,
        PromiseForgotten,
        ReadBeforeWritten,
        EpochIgnored,
    ];
    catches("views", &all, |mutant| Views { epochs: 2, mutant: Some(mutant), ..SMALL });
    catches("views", &[FailedCopyKept], |mutant| Views { faults: 2, mutant: Some(mutant), ..SMALL });
    catches("views", &[WrittenOnce], |mutant| Views { faults: 0, late: 1, mutant: Some(mutant), ..SMALL });
}
