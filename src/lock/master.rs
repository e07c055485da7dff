//! The master's side of the lock conversation: a pure machine, one per host, for all groups this
//! host masters.
//!
//! There is an object only for a lock in which another host has an interest; all others belong to
//! this host without any record. Other hosts speak through registers, of which any intermediate
//! content may be missed, so every rule looks at what *is* there:
//!
//! - M1 A host's mode is believed only when its `ack` has reached the last grant number sent to it;
//!   until then the belief stays at what was granted.
//! - M2 First come, first served: the head of the queue is granted when it goes with the beliefs of
//!   all others, and whoever follows it and also fits. Nothing passes a waiting head, except for
//!   [`LockName::IOpen`], whose exclusive wants may wait for ever and are passed. Whoever has times of direct
//!   writes to hand in ([`HANDS_IN`]) comes first, at any master.
//! - M3 Whoever stands in the way of a waiting head is told a cap, also of its own want.
//! - M4 A group that was just taken over grants nothing until every member has declared what it
//!   holds, and every dead host is recovered.
//! - M6 Beside [`Mode::DW`] of a host that died nobody has, or gets, `DW` before that one is recovered.
//! - Grant numbers grow over all locks and are never reused; a party is forgotten only when it
//!   holds nothing, asks nothing and its request is gone from its register.
//!
//! Promise: at any time the modes that unfenced hosts hold are no stronger than the beliefs, and
//! beliefs of different hosts go together.

mod looks;
mod object;

use crate::base::{AgNo, InodeNo, LockName, Mode, SlotId, Token};
use crate::format::cluster::{Entry, EntryKind, HANDS_IN};
use object::Object;
use std::collections::{BTreeMap, BTreeSet};

/// What happened.
#[derive(Clone, Debug)]
pub enum MasterEvent {
    /// This host became the master of `ag`. `awaited`: every other host that may hold locks of it.
    /// `own`: this host's own locks of the group, (lock, held, wanted, to hand in).
    Open { ag: AgNo, token: Token, awaited: BTreeSet<SlotId>, own: Vec<(LockName, Mode, Mode, bool)> },
    /// The whole register of a peer, with the group of each entry.
    Register { from: SlotId, entries: Vec<(AgNo, Entry)> },
    /// The peer is excluded: it takes nothing any more; what it holds counts until it is recovered.
    Dead { peer: SlotId },
    /// The peer's incarnation holds nothing any more: it left, or it was recovered.
    Gone { peer: SlotId },
    /// What this host itself now holds (it lowered it, or nothing changed) and wants, before others to hand
    /// something in.
    Own { ag: AgNo, lock: LockName, held: Mode, want: Mode, first: bool },
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterAction {
    /// This host itself may now hold `mode`.
    Grant { lock: LockName, mode: Mode },
    /// This host itself must come down to `cap` (`X`: it need not any more).
    Cap { lock: LockName, cap: Mode },
    /// The register for `to` has changed.
    Publish { to: SlotId },
    /// All have declared.
    Opened { ag: AgNo },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Party {
    belief: Mode,
    cap: Mode,
    /// Number of the last grant to it; 0 if it was forgotten since.
    last_grant: u64,
    seen: u64,
    /// Its request stands in its register.
    present: bool,
    /// It is excluded, and what it holds counts still.
    dead: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Group {
    token: Token,
    awaited: BTreeSet<SlotId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Peer {
    /// Requests in its register when it was last read.
    requests: BTreeSet<LockName>,
    /// Grants in our register for it.
    grants: BTreeSet<LockName>,
}

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Master {
    caps_max: usize,
    last_grant: u64,
    groups: BTreeMap<AgNo, Group>,
    /// Groups that wait for declarations.
    opening: BTreeSet<AgNo>,
    objects: BTreeMap<LockName, Object>,
    peers: BTreeMap<SlotId, Peer>,
    /// `FileLocks` of which parties may have come or gone since [`Master::take_served`].
    served: BTreeSet<InodeNo>,
}

/// Most declarations asked of one peer at a time; the register is bounded.
pub const ASKS_MAX: usize = 20;
/// Most unasked caps in one register, the usual setting.
pub const CAPS_MAX: usize = 96;

impl Master {
    /// A master of nothing, that tells one peer of at most `caps_max` unasked caps at a time.
    pub fn new(caps_max: usize) -> Master {
        Master {
            caps_max,
            last_grant: 0,
            groups: BTreeMap::new(),
            opening: BTreeSet::new(),
            objects: BTreeMap::new(),
            peers: BTreeMap::new(),
            served: BTreeSet::new(),
        }
    }

    /// One event; `own` tells what this host holds of a lock that has no object yet.
    pub fn step(&mut self, event: MasterEvent, own: &dyn Fn(LockName) -> Mode) -> Vec<MasterAction> {
        let mut out = Vec::new();
        match event {
            MasterEvent::Open { ag, token, awaited, own } => self.open(ag, token, awaited, own, &mut out),
            MasterEvent::Register { from, entries } => self.register(from, entries, own, &mut out),
            MasterEvent::Dead { peer } => self.dead(peer, &mut out),
            MasterEvent::Gone { peer } => self.gone(peer, &mut out),
            MasterEvent::Own { ag, lock, held, want, first } => {
                self.own(ag, lock, (held, want, first), &mut out)
            }
        }
        out
    }

    /// Is `ag` mastered here (perhaps still collecting declarations)? Under which token?
    pub fn token(&self, ag: AgNo) -> Option<Token> {
        self.groups.get(&ag).map(|g| g.token)
    }

    /// May this host take `lock` in any mode at once, without a word to anybody?
    pub fn is_free(&self, ag: AgNo, lock: LockName) -> bool {
        self.groups.get(&ag).is_some_and(|g| g.awaited.is_empty()) && !self.objects.contains_key(&lock)
    }

    /// Groups that wait for declarations, and of whom.
    pub fn opening(&self) -> impl Iterator<Item = (AgNo, &BTreeSet<SlotId>)> {
        self.opening.iter().map(|ag| (*ag, &self.groups[ag].awaited))
    }

    /// Our part of the register for `to`: declarations asked, then grants and caps.
    pub fn outgoing(&self, to: SlotId) -> Vec<Entry> {
        let asks = self.opening().filter(|(_, awaited)| awaited.contains(&to)).take(ASKS_MAX);
        let mut entries: Vec<_> = asks.map(|(ag, _)| ask(ag, self.groups[&ag].token)).collect();
        let Some(peer) = self.peers.get(&to) else { return entries };
        let answered = |lock: &&LockName| self.objects[*lock].parties[&to].present;
        entries.extend(peer.grants.iter().filter(answered).map(|lock| self.grant_entry(*lock, to)));
        // The greatest first: whoever holds the greatest lock that is waited for waits for nothing. Caps of
        // an `IOpen` may stand for as long as files are open there; the others have half of the places.
        let unasked: Vec<_> = peer.grants.iter().rev().filter(|lock| !answered(lock)).collect();
        let stands = |lock: &LockName| matches!(lock, LockName::IOpen(_));
        let shared = unasked.iter().take(self.caps_max - self.caps_max / 2);
        let mut told: BTreeSet<LockName> = shared.map(|lock| **lock).collect();
        let rest = unasked.iter().filter(|l| !stands(l)).chain(&unasked);
        for lock in rest {
            if told.len() < self.caps_max {
                told.insert(**lock);
            }
        }
        entries.extend(told.iter().rev().map(|lock| self.grant_entry(*lock, to)));
        entries
    }

    fn grant_entry(&self, lock: LockName, to: SlotId) -> Entry {
        let object = &self.objects[&lock];
        let party = &object.parties[&to];
        Entry {
            lock,
            kind: EntryKind::Grant,
            mode: party.belief,
            held: Mode::N,
            cap: party.cap,
            flags: 0,
            token: self.groups[&object.ag].token,
            number: party.last_grant,
            seq: party.seen,
        }
    }

    fn open(
        &mut self,
        ag: AgNo,
        token: Token,
        awaited: BTreeSet<SlotId>,
        own: Vec<(LockName, Mode, Mode, bool)>,
        out: &mut Vec<MasterAction>,
    ) {
        if self.groups.get(&ag).is_some_and(|g| g.token >= token) {
            return;
        }
        assert!(!self.groups.contains_key(&ag), "a group is lost only by dying");
        out.extend(awaited.iter().map(|to| MasterAction::Publish { to: *to }));
        self.groups.insert(ag, Group { token, awaited });
        self.opening.insert(ag);
        for (lock, held, want, first) in own {
            if want != Mode::N {
                let mut object = Object::new(ag, held);
                object.ask(None, held, want, first);
                self.objects.insert(lock, object);
            }
        }
        self.try_opened(ag, out);
    }

    fn try_opened(&mut self, ag: AgNo, out: &mut Vec<MasterAction>) {
        if !self.groups[&ag].awaited.is_empty() {
            return;
        }
        self.opening.remove(&ag);
        out.push(MasterAction::Opened { ag });
        let locks: Vec<_> = self.objects.iter().filter(|(_, o)| o.ag == ag).map(|(l, _)| *l).collect();
        for lock in locks {
            self.serve(lock, out);
        }
    }

    fn register(
        &mut self,
        from: SlotId,
        entries: Vec<(AgNo, Entry)>,
        own: &dyn Fn(LockName) -> Mode,
        out: &mut Vec<MasterAction>,
    ) {
        let current = |m: &Master, ag: AgNo, e: &Entry| m.groups.get(&ag).is_some_and(|g| g.token == e.token);
        let requests: Vec<_> = entries
            .iter()
            .filter(|(ag, e)| e.kind == EntryKind::Request && current(self, *ag, e))
            .copied()
            .collect();
        let present: BTreeSet<_> = requests.iter().map(|(_, e)| e.lock).collect();
        let before = std::mem::replace(&mut self.peers.entry(from).or_default().requests, present.clone());
        for lock in before.difference(&present) {
            self.withdrawn(*lock, from, out);
        }
        for (ag, entry) in requests {
            self.request(from, ag, entry, own, out);
        }
        for (ag, entry) in entries {
            if entry.kind == EntryKind::Declared && current(self, ag, &entry) {
                let group = self.groups.get_mut(&ag).expect("checked");
                if group.awaited.remove(&from) {
                    out.push(MasterAction::Publish { to: from });
                    self.try_opened(ag, out);
                }
            }
        }
    }

    /// The request is gone from the register: it was satisfied, or given up.
    fn withdrawn(&mut self, lock: LockName, from: SlotId, out: &mut Vec<MasterAction>) {
        let Some(object) = self.objects.get_mut(&lock) else { return };
        if let Some(party) = object.parties.get_mut(&from) {
            party.present = false;
        }
        object.forget(Some(from));
        self.serve(lock, out);
    }

    fn request(
        &mut self,
        from: SlotId,
        ag: AgNo,
        entry: Entry,
        own: &dyn Fn(LockName) -> Mode,
        out: &mut Vec<MasterAction>,
    ) {
        let lock = entry.lock;
        let object = self.objects.entry(lock).or_insert_with(|| Object::new(ag, own(lock)));
        let party = object.parties.entry(from).or_default();
        if party.present && party.seen == entry.seq {
            return;
        }
        party.present = true;
        party.seen = entry.seq;
        if entry.number >= party.last_grant {
            party.belief = entry.held;
        }
        let belief = party.belief;
        object.ask(Some(from), belief, entry.mode, entry.flags & HANDS_IN != 0);
        // The answer carries the request's number at least.
        out.push(MasterAction::Publish { to: from });
        self.serve(lock, out);
    }

    fn own(
        &mut self,
        ag: AgNo,
        lock: LockName,
        (held, want, first): (Mode, Mode, bool),
        out: &mut Vec<MasterAction>,
    ) {
        let Some(group) = self.groups.get(&ag) else { return };
        if !self.objects.contains_key(&lock) {
            if held.covers(want) {
                return;
            }
            if group.awaited.is_empty() && want.covers(held) {
                out.push(MasterAction::Grant { lock, mode: unshared(lock, want) });
                return;
            }
        }
        let object = self.objects.entry(lock).or_insert_with(|| Object::new(ag, held));
        object.own = held;
        object.ask(None, held, want, first);
        self.serve(lock, out);
    }

    fn known_to(&self, peer: SlotId) -> Vec<LockName> {
        let known = self.objects.iter().filter(|(_, o)| o.parties.contains_key(&peer));
        known.map(|(lock, _)| *lock).collect()
    }

    /// Whoever waits behind it waits for what it holds, not for what it wanted.
    fn dead(&mut self, peer: SlotId, out: &mut Vec<MasterAction>) {
        for lock in self.known_to(peer) {
            let object = self.objects.get_mut(&lock).expect("just listed");
            object.parties.get_mut(&peer).expect("known to it").dead = true;
            object.forget(Some(peer));
            self.serve(lock, out);
        }
    }

    fn gone(&mut self, peer: SlotId, out: &mut Vec<MasterAction>) {
        self.peers.remove(&peer);
        for lock in self.known_to(peer) {
            let object = self.objects.get_mut(&lock).expect("just listed");
            object.parties.remove(&peer);
            object.forget(Some(peer));
            self.serve(lock, out);
        }
        for ag in self.opening.clone() {
            if self.groups.get_mut(&ag).expect("listed groups exist").awaited.remove(&peer) {
                self.try_opened(ag, out);
            }
        }
    }

    /// Grant what can be granted, set the caps, list what the registers must say, forget what is
    /// of no interest. M2, M3, M4.
    fn serve(&mut self, lock: LockName, out: &mut Vec<MasterAction>) {
        let Some(object) = self.objects.get_mut(&lock) else { return };
        if let LockName::FileLocks(ino) = lock {
            self.served.insert(ino);
        }
        let mut changed = BTreeSet::new();
        if self.groups[&object.ag].awaited.is_empty() {
            let blocked = object.grant(lock, &mut self.last_grant, &mut changed, out);
            object.set_caps(lock, &blocked, &mut changed, out);
        }
        for (slot, party) in &object.parties {
            let listed = party.present || !party.belief.is_within(party.cap);
            let grants = &mut self.peers.entry(*slot).or_default().grants;
            if if listed { grants.insert(lock) } else { grants.remove(&lock) } {
                changed.insert(*slot);
            }
        }
        out.extend(changed.into_iter().map(|to| MasterAction::Publish { to }));
        let queue = &object.queue;
        object.parties.retain(|slot, p| {
            p.belief != Mode::N || p.present || queue.iter().any(|waiting| waiting.who == Some(*slot))
        });
        if object.parties.is_empty() && object.queue.is_empty() {
            self.objects.remove(&lock);
        }
    }
}

impl Default for Party {
    fn default() -> Party {
        Party { belief: Mode::N, cap: Mode::X, last_grant: 0, seen: 0, present: false, dead: false }
    }
}

/// What this host takes when nobody else is interested: inodes and groups in full, so that the
/// next operation finds them; whole-volume locks as asked.
pub fn unshared(lock: LockName, want: Mode) -> Mode {
    match lock {
        _ if want == Mode::DW => want,
        LockName::Inode(_) | LockName::IOpen(_) | LockName::FileLocks(_) | LockName::Ag(_) => Mode::X,
        _ => want,
    }
}

fn ask(ag: AgNo, token: Token) -> Entry {
    Entry {
        lock: LockName::Ag(ag),
        kind: EntryKind::DeclareAsk,
        mode: Mode::N,
        held: Mode::N,
        cap: Mode::N,
        flags: 0,
        token,
        number: 0,
        seq: 0,
    }
}
