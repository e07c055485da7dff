//! Random schedules of several proposers over registers whose writes and reads overlap: a read that
//! overlaps a write gives the old or the new value; a proposer may stop for ever at any point.

use super::*;
use crate::base::Epoch;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

struct Register {
    value: Ballot,
    /// A write under way.
    pending: Option<Ballot>,
}

struct Node {
    machine: Proposer,
    /// Registers read so far in the row under way.
    row: Option<Vec<(SlotId, Ballot)>>,
    dead: bool,
    wins: u64,
}

fn start(node: &mut Node, rng: &mut StdRng, slot: usize, disk: &mut [Register]) {
    let mut view = node.machine.decided().clone();
    view.epoch = Epoch(view.epoch.0 + 1);
    view.features = rng.random::<u64>() << 8 | slot as u64;
    let action = node.machine.step(Event::Propose(view));
    act(node, slot, action, disk, &mut BTreeMap::new());
}

fn act(
    node: &mut Node,
    slot: usize,
    action: Action,
    disk: &mut [Register],
    decided: &mut BTreeMap<Epoch, View>,
) {
    match action {
        Action::Write(ballot) => disk[slot].pending = Some(ballot),
        Action::Read => node.row = Some(vec![]),
        Action::Lost => {}
        Action::Decided(view) => {
            node.wins += 1;
            let known = decided.entry(view.epoch).or_insert_with(|| view.clone());
            assert_eq!(*known, view, "two views of one epoch");
        }
    }
}

fn advance(
    node: &mut Node,
    slot: usize,
    rng: &mut StdRng,
    disk: &mut [Register],
    decided: &mut BTreeMap<Epoch, View>,
) {
    if let Some(value) = disk[slot].pending.take() {
        disk[slot].value = value;
        let action = node.machine.step(Event::Written);
        act(node, slot, action, disk, decided);
    } else if let Some(mut row) = node.row.take() {
        let next = row.len();
        let register = &disk[next];
        let overlapping = register.pending.as_ref().filter(|_| rng.random());
        row.push((SlotId(next as u16), overlapping.unwrap_or(&register.value).clone()));
        if row.len() < disk.len() {
            node.row = Some(row);
        } else {
            let action = node.machine.step(Event::Row(row));
            act(node, slot, action, disk, decided);
        }
    } else if rng.random_ratio(1, 4) {
        start(node, rng, slot, disk);
    }
}

fn run(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes_count = rng.random_range(2..=4);
    let fresh = Ballot::idle(View::initial(4, 4));
    let mut disk: Vec<_> =
        (0..nodes_count).map(|_| Register { value: fresh.clone(), pending: None }).collect();
    let mut nodes: Vec<_> = (0..nodes_count)
        .map(|s| Node {
            machine: Proposer::new(SlotId(s as u16), fresh.clone()),
            row: None,
            dead: false,
            wins: 0,
        })
        .collect();
    let mut decided = BTreeMap::new();
    for _ in 0..600 {
        let slot = rng.random_range(0..nodes_count);
        if nodes[slot].dead {
            if rng.random_ratio(1, 50) {
                // A later mount takes the slot up: the interrupted write is whole or not there.
                if let Some(value) = disk[slot].pending.take().filter(|_| rng.random()) {
                    disk[slot].value = value;
                }
                let machine = Proposer::new(SlotId(slot as u16), disk[slot].value.clone());
                nodes[slot] = Node { machine, row: None, dead: false, wins: nodes[slot].wins };
            }
        } else if rng.random_ratio(1, 80) {
            nodes[slot].dead = true;
        } else {
            advance(&mut nodes[slot], slot, &mut rng, &mut disk, &mut decided);
        }
    }
    decided.len()
}

#[test]
fn one_view_per_epoch_under_random_schedules() {
    let decided: usize = (0..3000).map(run).sum();
    assert!(decided > 3000 * 5, "only {decided} epochs were decided");
}

#[test]
fn a_lone_proposer_decides_in_three_writes() {
    let fresh = Ballot::idle(View::initial(2, 2));
    let mut p = Proposer::new(SlotId(1), fresh.clone());
    let mut view = View::initial(2, 2);
    view.epoch = Epoch(2);
    let mut action = p.step(Event::Propose(view.clone()));
    let mut own = fresh.clone();
    let mut writes = 0;
    let decided = loop {
        action = match action {
            Action::Write(ballot) => {
                own = ballot;
                writes += 1;
                p.step(Event::Written)
            }
            Action::Read => p.step(Event::Row(vec![(SlotId(0), fresh.clone()), (SlotId(1), own.clone())])),
            Action::Decided(view) => break view,
            Action::Lost => panic!("nobody else is there"),
        };
    };
    assert_eq!((decided, writes), (view, 3));
}

#[test]
fn a_reverted_register_is_written_again() {
    let fresh = Ballot::idle(View::initial(2, 2));
    let mut p = Proposer::new(SlotId(0), fresh.clone());
    let mut view = View::initial(2, 2);
    view.epoch = Epoch(2);
    let Action::Write(promised) = p.step(Event::Propose(view)) else { panic!() };
    assert_eq!(p.step(Event::Written), Action::Read);
    let reverted = vec![(SlotId(0), fresh.clone()), (SlotId(1), fresh)];
    assert_eq!(p.step(Event::Row(reverted)), Action::Write(promised));
    assert_eq!(p.step(Event::Written), Action::Read);
}

#[test]
fn a_view_whose_publication_failed_is_published_by_the_next_ballot() {
    let fresh = Ballot::idle(View::initial(2, 2));
    let mut p = Proposer::new(SlotId(0), fresh.clone());
    let view = |features| View { epoch: Epoch(2), features, ..View::initial(2, 2) };
    let ballot = |p: &mut Proposer, features, writes: usize| {
        let mut action = p.step(Event::Propose(view(features)));
        for _ in 0..writes {
            let Action::Write(own) = action else { panic!("{action:?}") };
            action = p.step(Event::Written);
            if action == Action::Read {
                action = p.step(Event::Row(vec![(SlotId(0), own), (SlotId(1), fresh.clone())]));
            }
        }
        action
    };
    // The third write, that of the decision, fails.
    assert_eq!(ballot(&mut p, 7, 2), Action::Write(Ballot::idle(view(7))));
    assert_eq!(p.decided().epoch, Epoch(1), "nobody can know of it yet");
    assert_eq!(ballot(&mut p, 8, 3), Action::Decided(view(7)));
    assert_eq!(p.decided(), &view(7));
}
