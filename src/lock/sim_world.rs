//! A cluster of desks in one thread: seeded random operations, demotions, departures, deaths and
//! adoptions over model registers of which readers miss contents.

use crate::base::{AgNo, BlockNo, Incarnation, InodeNo, LockName, Mode, SlotId, Token};
use crate::cluster::{Entry, EntryKind, Membership, Owner, REGISTER_ENTRIES_MAX};
use crate::format::cluster::{Adopter, SlotState, View};
use crate::lock::desk::{Closing, Desk, DeskConfig, Effect, Shed, TicketNo};
use crate::lock::files::stream::WINDOW;
use crate::lock::files::{FileAnswer, RequestNo};
use crate::lock::manager_tests::GEOMETRY;
use crate::lock::table::PinTable;
use crate::lock::{DemoteAnswer, LockSet};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(in crate::lock) const GROUPS: u32 = GEOMETRY.ag_count;

pub(in crate::lock) fn names() -> Vec<LockName> {
    let mut names = vec![LockName::Freeze, LockName::Rename];
    for ag in (0..GROUPS).map(AgNo) {
        let BlockNo(start) = GEOMETRY.ag_start(ag);
        names.extend([700, 701].map(|n| LockName::Inode(InodeNo(start + n))));
        names.extend([LockName::IOpen(InodeNo(start + 700)), LockName::Ag(ag)]);
    }
    names.sort();
    names
}

/// What one host writes for another; `versions` are all contents since the reader's last look.
#[derive(Default)]
pub(in crate::lock) struct Register {
    pub versions: Vec<Vec<Entry>>,
    pub ends: (Incarnation, Incarnation),
}

pub(in crate::lock) struct Op {
    pub set: LockSet,
    pub until: Duration,
}

pub(in crate::lock) struct Node {
    pub incarnation: Incarnation,
    pub desk: Desk,
    pub table: Arc<PinTable>,
    pub membership: Arc<Membership>,
    pub tells: VecDeque<LockName>,
    pub demotions: Vec<crate::lock::DemoteJob>,
    pub adoptions: Vec<AgNo>,
    pub dirty: BTreeSet<SlotId>,
    pub waiting: BTreeSet<TicketNo>,
    pub running: Vec<Op>,
    pub late: Vec<(LockName, Mode)>,
    pub leaving: bool,
    /// Answers about file locks that nobody has looked at.
    pub answers: Vec<(RequestNo, FileAnswer)>,
}

pub(in crate::lock) struct World {
    pub rng: StdRng,
    pub now: Duration,
    pub nodes: BTreeMap<SlotId, Node>,
    /// Dead and not recovered: what they held stays held.
    pub dead: BTreeMap<SlotId, Arc<PinTable>>,
    pub registers: BTreeMap<(SlotId, SlotId), Register>,
    pub view: View,
    /// Owner, token, and the incarnation that wrote it.
    pub owners: Vec<(SlotId, Token, Incarnation)>,
    pub names: Vec<LockName>,
    pub granted: usize,
    pub adopted: usize,
}

impl World {
    pub fn new(seed: u64, hosts: u16) -> World {
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::from_secs(1),
            nodes: BTreeMap::new(),
            dead: BTreeMap::new(),
            registers: BTreeMap::new(),
            view: View::initial(4, 4),
            owners: (0..GROUPS).map(|g| (SlotId(g as u16 % 4), Token(1), Incarnation(0))).collect(),
            names: names(),
            granted: 0,
            adopted: 0,
        };
        for slot in (0..hosts).map(SlotId) {
            world.join(slot);
        }
        world
    }

    pub fn membership(&self, me: SlotId, incarnation: Incarnation) -> Arc<Membership> {
        let owner = |(slot, token, by): &(SlotId, Token, Incarnation)| {
            let slot_view = &self.view.slots[slot.0 as usize];
            let owner = match slot_view.state {
                SlotState::Live { .. } if *by == slot_view.incarnation => Owner::Master(*slot),
                SlotState::Live { .. } => Owner::Adopter(*slot),
                SlotState::Clean { adopter: Adopter::Slot(s) } => Owner::Adopter(s),
                _ => Owner::Nobody,
            };
            (owner, *token)
        };
        let owners = Arc::new(self.owners.iter().map(owner).collect());
        Arc::new(Membership { me, incarnation, view: Arc::new(self.view.clone()), silent: 0, owners })
    }

    pub fn join(&mut self, slot: SlotId) {
        let incarnation = Incarnation(self.rng.random_range(1..1 << 30));
        self.view.epoch.0 += 1;
        let entry = &mut self.view.slots[slot.0 as usize];
        (entry.state, entry.incarnation) = (SlotState::Live { former: None }, incarnation);
        self.renew_adopters();
        let table = Arc::new(PinTable::default());
        let requests_max = [2, 3, 180][self.rng.random_range(0..3)];
        let times = DeskConfig {
            requests_max,
            caps_max: requests_max - 1,
            files_max: requests_max.min(WINDOW),
            hold_min: Duration::from_millis(10),
            hold_max: Duration::from_millis(200),
            idle: Duration::from_millis(2),
            busy_retry: Duration::from_millis(7),
            habits_max: [0, 2, 64][self.rng.random_range(0..3)],
        };
        let membership = self.membership(slot, incarnation);
        let mut desk = Desk::new(GEOMETRY, slot, times, table.clone());
        desk.on_view(self.now, membership.clone());
        let node = Node {
            incarnation,
            desk,
            table,
            membership,
            tells: VecDeque::new(),
            demotions: Vec::new(),
            adoptions: Vec::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            running: Vec::new(),
            late: Vec::new(),
            leaving: false,
            answers: Vec::new(),
        };
        self.nodes.insert(slot, node);
        self.after(slot);
    }

    pub fn renew_adopters(&mut self) {
        let slots = (0u16..).map(SlotId).zip(&self.view.slots);
        let live: Vec<_> =
            slots.filter(|(_, s)| matches!(s.state, SlotState::Live { .. })).map(|(slot, _)| slot).collect();
        for (i, slot) in self.view.slots.iter_mut().enumerate() {
            if let SlotState::Clean { adopter } = &mut slot.state {
                let keep = matches!(adopter, Adopter::Slot(s) if live.contains(s));
                if !keep {
                    *adopter =
                        live.get(i % live.len().max(1)).map_or(Adopter::NextJoiner, |s| Adopter::Slot(*s));
                }
            }
        }
    }

    /// Collect what the desk of `slot` wants done.
    pub fn after(&mut self, slot: SlotId) {
        let node = self.nodes.get_mut(&slot).unwrap();
        while let Some(effect) = node.desk.next_effect() {
            match effect {
                Effect::Tell { name, .. } | Effect::Kept { name, .. } => node.tells.push_back(name),
                Effect::Demote(job) => {
                    assert!(node.demotions.iter().all(|j| j.name != job.name), "two demotions of one lock");
                    assert_eq!(node.table.get(job.name).unwrap().pins_above(job.to), 0);
                    node.demotions.push(job);
                }
                Effect::Adopt(ag) => node.adoptions.push(ag),
                Effect::FileLock { request, answer } => node.answers.push((request, answer)),
                Effect::Complete { ticket, result } => {
                    assert!(node.waiting.remove(&ticket));
                    let Ok(set) = result else { continue };
                    self.granted += 1;
                    let long = set.iter().all(|(n, m)| matches!(n, LockName::IOpen(_)) && m == Mode::S);
                    let time = self.rng.random_range(0..if long { 400 } else { 15 });
                    node.running.push(Op { set, until: self.now + Duration::from_millis(time) });
                }
            }
        }
        node.dirty.extend(node.desk.take_dirty());
    }

    pub fn check(&self) {
        let tables: Vec<_> = self.nodes.iter().map(|(s, n)| (s, &n.table)).chain(&self.dead).collect();
        for name in &self.names {
            for (i, (a, x)) in tables.iter().enumerate() {
                for (b, y) in &tables[i + 1..] {
                    let (x, y) = (x.mode(*name), y.mode(*name));
                    assert!(x.compatible(y), "{name:?}: slot {a} holds {x:?}, slot {b} {y:?}");
                }
            }
        }
    }

    pub fn pick(&mut self) -> Option<SlotId> {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())])
    }

    pub fn random_set(&mut self) -> LockSet {
        let count = [1, 1, 1, 2, 2, 3, 4][self.rng.random_range(0..7)];
        let modes = [Mode::S, Mode::S, Mode::X, Mode::DW];
        let mut draw = || {
            let name = self.names[self.rng.random_range(0..self.names.len())];
            let modes = if matches!(name, LockName::Inode(_)) { &modes[..] } else { &modes[..3] };
            (name, modes[self.rng.random_range(0..modes.len())])
        };
        (0..count).map(|_| draw()).collect()
    }

    pub fn start_op(&mut self, slot: SlotId) {
        let set = self.random_set();
        let now = self.now;
        let node = self.nodes.get_mut(&slot).unwrap();
        if node.leaving || node.waiting.len() > 6 {
            return;
        }
        let (name, mode) = set.as_slice()[0];
        match self.rng.random_range(0..7) {
            0..=1 if node.desk.claim(name, mode).is_some() => node.tells.push_back(name),
            2 if node.desk.claim_pinned(name, mode) => node.late.push((name, mode)),
            _ => {}
        }
        let (from, most) = (self.rng.random_range(0..self.names.len()), self.rng.random_range(0..8));
        let mode = [Mode::S, Mode::X][self.rng.random_range(0..2)];
        node.desk.ask_ahead(now, &self.names[from..], mode, most);
        let ticket = node.desk.acquire(now, set);
        node.waiting.insert(ticket);
        self.after(slot);
    }

    pub fn end_ops(&mut self, slot: SlotId) {
        let now = self.now;
        let node = self.nodes.get_mut(&slot).unwrap();
        let running = std::mem::take(&mut node.running).into_iter();
        let (over, rest): (Vec<Op>, _) = running.partition(|op| op.until <= now);
        node.running = rest;
        let pins = over.iter().flat_map(|op| op.set.iter()).chain(std::mem::take(&mut node.late));
        for (name, mode) in pins.collect::<Vec<_>>() {
            if node.table.unpin(name, mode) {
                node.desk.unpinned(now, name);
            }
        }
        self.after(slot);
    }

    pub fn demote(&mut self, slot: SlotId) {
        let node = self.nodes.get_mut(&slot).unwrap();
        if node.demotions.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..node.demotions.len());
        let job = node.demotions[at];
        if self.rng.random_bool(0.1) && node.table.pin_held(job.name, job.from) {
            node.late.push((job.name, job.from));
            return;
        }
        node.demotions.remove(at);
        let busy = self.rng.random_bool(0.15);
        let answer = if busy { DemoteAnswer::Busy } else { DemoteAnswer::Done };
        node.desk.demoted(self.now, job.name, answer);
        self.after(slot);
    }

    pub fn tell(&mut self, slot: SlotId) {
        let node = self.nodes.get_mut(&slot).unwrap();
        let Some(name) = node.tells.pop_front() else { return };
        node.desk.told(self.now, name);
        self.after(slot);
    }

    pub fn write(&mut self, from: SlotId) {
        let node = self.nodes.get_mut(&from).unwrap();
        let Some(to) = node.dirty.pop_first() else { return };
        let Some(incarnation) = node.membership.incarnation_of(to) else { return };
        let entries = node.desk.outgoing(to);
        assert!(entries.len() <= REGISTER_ENTRIES_MAX);
        let register = self.registers.entry((from, to)).or_default();
        let ends = (node.incarnation, incarnation);
        if register.ends != ends {
            *register = Register { versions: Vec::new(), ends };
        }
        register.versions.push(entries);
    }

    pub fn read(&mut self, to: SlotId) {
        let node = self.nodes.get_mut(&to).unwrap();
        let from: Vec<_> = node.membership.peers().collect();
        if from.is_empty() {
            return;
        }
        let from = from[self.rng.random_range(0..from.len())];
        let Some(register) = self.registers.get_mut(&(from, to)) else { return };
        let expected = (node.membership.incarnation_of(from).unwrap(), node.incarnation);
        if register.ends != expected || register.versions.is_empty() {
            return;
        }
        // Old or new while writes overlap the read, never older than what was read before.
        let newest = register.versions.len() - 1;
        let at = if self.rng.random_bool(0.7) { newest } else { self.rng.random_range(0..=newest) };
        register.versions.drain(..at);
        node.desk.on_entries(self.now, from, &register.versions[0].clone());
        self.after(to);
    }

    pub fn learn_view(&mut self, slot: SlotId) {
        let membership = self.membership(slot, self.nodes[&slot].incarnation);
        let node = self.nodes.get_mut(&slot).unwrap();
        if *node.membership == *membership {
            return;
        }
        let before = std::mem::replace(&mut node.membership, membership.clone());
        node.desk.on_view(self.now, membership.clone());
        for peer in membership.peers() {
            if before.incarnation_of(peer) != membership.incarnation_of(peer) {
                node.desk.on_entries(self.now, peer, &[]);
                node.dirty.insert(peer);
            }
        }
        self.after(slot);
    }

    pub fn adopt(&mut self, slot: SlotId) {
        let Some(ag) = self.nodes.get_mut(&slot).unwrap().adoptions.pop() else { return };
        let (owner, token) = self.membership(slot, Incarnation(0)).owner_of(ag);
        let done = owner == Owner::Adopter(slot) && self.rng.random_bool(0.8);
        let node = self.nodes.get_mut(&slot).unwrap();
        if done {
            self.owners[ag.0 as usize] = (slot, Token(token.0 + 1), node.incarnation);
            self.adopted += 1;
        }
        node.desk.adopted(self.now, ag, done);
        self.after(slot);
    }

    /// Everything is given up, then the slot becomes clean.
    pub fn leave(&mut self, slot: SlotId) {
        let now = self.now;
        let node = self.nodes.get_mut(&slot).unwrap();
        node.leaving = true;
        if !node.running.is_empty() || !node.waiting.is_empty() {
            return;
        }
        node.desk.close(Closing::Everything);
        let held: Vec<_> = node.table.all().into_iter().map(|(name, _)| name).collect();
        if !held.is_empty() {
            node.desk.shed(now, &held, Shed::Must);
            return self.after(slot);
        }
        self.nodes.remove(&slot);
        self.set_clean(slot);
    }

    pub fn set_clean(&mut self, slot: SlotId) {
        self.view.epoch.0 += 1;
        self.view.slots[slot.0 as usize].state = SlotState::Clean { adopter: Adopter::NextJoiner };
        self.renew_adopters();
    }

    pub fn die(&mut self, slot: SlotId) {
        let node = self.nodes.remove(&slot).unwrap();
        self.dead.insert(slot, node.table);
        self.view.epoch.0 += 1;
        let adopter = *self.nodes.keys().next().unwrap();
        self.view.slots[slot.0 as usize].state = SlotState::Dead { adopter };
        self.renew_adopters();
    }

    pub fn members_step(&mut self) {
        match self.rng.random_range(0..4) {
            0 if self.nodes.len() > 1 => {
                let slot = self.pick().unwrap();
                self.nodes.get_mut(&slot).unwrap().leaving = true;
            }
            1 if self.nodes.len() > 1 && self.dead.is_empty() => {
                let slot = self.pick().unwrap();
                self.die(slot);
            }
            2 => {
                if let Some((slot, _)) = self.dead.pop_first() {
                    self.set_clean(slot);
                }
            }
            _ => {
                let slot = SlotId(self.rng.random_range(0..4));
                let state = self.view.slots[slot.0 as usize].state;
                if matches!(state, SlotState::Clean { .. }) && !self.nodes.contains_key(&slot) {
                    self.join(slot);
                }
            }
        }
    }

    pub fn step(&mut self, busy: bool, members: bool) {
        self.now += Duration::from_micros(self.rng.random_range(0..400));
        if members && self.rng.random_bool(0.004) {
            self.members_step();
        }
        let Some(slot) = self.pick() else { return };
        if self.nodes[&slot].leaving && self.rng.random_bool(0.2) {
            self.leave(slot);
            return;
        }
        match self.rng.random_range(0..16) {
            0..=1 if busy => self.start_op(slot),
            0..=2 => self.end_ops(slot),
            3..=4 => self.demote(slot),
            5..=6 => self.tell(slot),
            7..=9 => self.write(slot),
            10..=13 => self.read(slot),
            14 if self.rng.random_bool(0.5) => self.learn_view(slot),
            14 => self.adopt(slot),
            _ => {
                let node = self.nodes.get_mut(&slot).unwrap();
                node.desk.tick(self.now);
                if busy && self.rng.random_bool(0.05) {
                    let names = node.table.oldest(0, |_| true);
                    node.desk.shed(self.now, &names, Shed::Idle);
                }
                self.after(slot);
            }
        }
    }

    /// Nothing is on its way, though programs may wait.
    pub fn is_silent(&self) -> bool {
        let says_nothing = |n: &Node| {
            let streams = |p: SlotId| n.desk.outgoing(p).iter().all(|e| e.kind == EntryKind::Stream);
            n.membership.peers().all(streams)
        };
        let knows = |slot: &SlotId, n: &Node| *n.membership == *self.membership(*slot, n.incarnation);
        self.nodes.iter().all(|(slot, n)| {
            let idle = n.dirty.is_empty() && n.adoptions.is_empty() && n.tells.is_empty();
            idle && !n.leaving && knows(slot, n) && says_nothing(n)
        })
    }

    /// Everybody has what it asked for, and there is nothing left to say.
    pub fn is_settled(&self) -> bool {
        self.nodes.values().all(|n| {
            n.waiting.is_empty()
                && n.running.is_empty()
                && n.desk.is_quiet()
                && n.dirty.is_empty()
                && !n.leaving
                && n.membership
                    .peers()
                    .all(|p| n.desk.outgoing(p).iter().all(|e| e.kind == EntryKind::Stream))
        })
    }

    pub fn state(&self) -> String {
        let node = |(slot, n): (&SlotId, &Node)| {
            let waiting: Vec<_> =
                self.names.iter().map(|name| (name, n.desk.state_of(*name), n.table.get(*name))).collect();
            format!(
                "slot {slot}: waiting {:?}\n{:#?}\n{:#?}\n{waiting:?}\n",
                n.waiting,
                n.desk.master(),
                n.desk.holder()
            )
        };
        self.nodes.iter().map(node).collect()
    }
}
