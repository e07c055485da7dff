//! The requester's side of the lock conversation: a pure machine, one per host, for all locks that
//! other hosts master.
//!
//! A *line* exists for every lock held or wanted. Its request stands in the register for the
//! master only as long as there is something to say:
//!
//! - H1 The mode rises only on a grant with a number above the last one acted on (`ack`), for a
//!   want that still stands, and only if the master had seen that want's first publication: a grant
//!   of an earlier conversation about the same lock is answered (acked) but not taken.
//! - H2 A cap below the mode is passed to the desk, which lowers the mode when the minimum hold is
//!   over and the pins are gone; while it does so no grant is acted on.
//! - H3 A request stays until its want is satisfied, the master has seen its newest number, the
//!   newest grant is acked and no cap lies below the mode.
//! - H4 When the group gets another master or token all conversations start anew: ack 0, caps
//!   forgotten, wants published again, and on demand every lock held is declared. The declaration
//!   is complete when the master has confirmed the request of each of them, so it needs no pages.
//! - Request numbers grow over all locks and are never reused.

mod places;

use crate::base::{AgNo, LockName, Mode, SlotId, Token};
use crate::format::cluster::{Entry, EntryKind, HANDS_IN};
use std::collections::{BTreeMap, BTreeSet};

/// What happened.
#[derive(Clone, Debug)]
pub enum HolderEvent {
    /// Requests for locks of `ag` go to this member under this token, or to nobody. Also to be sent
    /// when the member's incarnation changed.
    Route { ag: AgNo, to: Option<(SlotId, Token)> },
    /// This host wants at least `want` of the lock (`N`: nothing more), `first` to hand something in.
    Want { ag: AgNo, lock: LockName, want: Mode, first: bool },
    /// The desk has begun to lower the mode.
    Lowering { ag: AgNo, lock: LockName },
    /// The desk has lowered the mode (or given the attempt up: same `held`), and now wants `want`.
    Lowered { ag: AgNo, lock: LockName, held: Mode, want: Mode, first: bool },
    /// The whole register of a peer, with the group of each entry.
    Register { from: SlotId, entries: Vec<(AgNo, Entry)> },
    /// This host masters the group itself now.
    Forget { ag: AgNo },
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderAction {
    /// The host may now hold `mode`.
    Granted { lock: LockName, mode: Mode },
    /// The host must come down to `cap` (`X`: it need not any more).
    Cap { lock: LockName, cap: Mode },
    /// The register for `to` has changed.
    Publish { to: SlotId },
    /// A peer says that it masters `ag` under a token above the one we know.
    Learned { ag: AgNo, from: SlotId, token: Token },
}

/// A line's key: by group first, because masters change by group.
type Key = (AgNo, LockName);

/// What the master last said, under the present token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Said {
    mode: Mode,
    cap: Mode,
    number: u64,
    seen: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Line {
    held: Mode,
    want: Mode,
    /// The want is to hand something in.
    first: bool,
    /// Number of the request that first asked for the present want.
    want_seq: u64,
    /// Number of the newest request.
    seq: u64,
    ack: u64,
    /// There is something to say.
    open: bool,
    /// The master has confirmed a request under the present token.
    confirmed: bool,
    lowering: bool,
    cap: Mode,
    said: Option<Said>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Route {
    to: Option<(SlotId, Token)>,
    /// The master's register asks for a declaration.
    asked: bool,
}

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    requests_max: usize,
    last_seq: u64,
    lines: BTreeMap<Key, Line>,
    routes: BTreeMap<AgNo, Route>,
    /// Open requests by master, in the order of their opening. Most places in the register go to
    /// the oldest, which keep them until they close.
    open: BTreeMap<SlotId, BTreeMap<u64, Key>>,
    /// The order number of each open request.
    order: BTreeMap<Key, (SlotId, u64)>,
    last_order: u64,
    /// Lines with a cap.
    capped: BTreeSet<Key>,
}

/// Most requests in one register, the usual setting.
pub const REQUESTS_MAX: usize = 128;
/// Most declarations in one register.
pub const DECLARED_MAX: usize = 20;

impl Holder {
    /// A holder of nothing, that makes at most `requests_max` requests of one master at a time.
    pub fn new(requests_max: usize) -> Holder {
        Holder {
            requests_max,
            last_seq: 0,
            lines: BTreeMap::new(),
            routes: BTreeMap::new(),
            open: BTreeMap::new(),
            order: BTreeMap::new(),
            last_order: 0,
            capped: BTreeSet::new(),
        }
    }

    /// One event.
    pub fn step(&mut self, event: HolderEvent) -> Vec<HolderAction> {
        let mut out = Vec::new();
        match event {
            HolderEvent::Route { ag, to } => self.route(ag, to, &mut out),
            HolderEvent::Want { ag, lock, want, first } => self.want((ag, lock), (want, first), &mut out),
            HolderEvent::Lowering { ag, lock } => {
                if let Some(line) = self.lines.get_mut(&(ag, lock)) {
                    line.lowering = true;
                }
            }
            HolderEvent::Lowered { ag, lock, held, want, first } => {
                self.lowered((ag, lock), held, (want, first), &mut out)
            }
            HolderEvent::Register { from, entries } => self.register(from, entries, &mut out),
            HolderEvent::Forget { ag } => self.forget(ag, &mut out),
        }
        out
    }

    /// Groups of which requests go, or could go, to another host.
    pub fn groups(&self) -> Vec<AgNo> {
        self.routes.keys().copied().collect()
    }

    /// Locks of `ag`: (name, held, wanted, to hand something in).
    pub fn of_group(&self, ag: AgNo) -> Vec<(LockName, Mode, Mode, bool)> {
        self.group(ag).map(|((_, name), l)| (*name, l.held, l.wanted(), l.asks().1)).collect()
    }

    /// Is any lock of `ag` asked for?
    pub fn wants(&self, ag: AgNo) -> bool {
        self.group(ag).any(|(_, l)| l.wanted() != Mode::N)
    }

    fn group(&self, ag: AgNo) -> impl Iterator<Item = (&Key, &Line)> {
        // No lock comes before `Freeze`.
        self.lines.range((ag, LockName::Freeze)..).take_while(move |((of, _), _)| *of == ag)
    }

    /// What this host holds of `lock`, as told to its master.
    pub fn held(&self, ag: AgNo, lock: LockName) -> Mode {
        self.lines.get(&(ag, lock)).map_or(Mode::N, |l| l.held)
    }

    /// The last grant of `lock` that this host acted on, of its present master; 0: none.
    pub fn acked(&self, ag: AgNo, lock: LockName) -> u64 {
        self.lines.get(&(ag, lock)).map_or(0, |l| l.ack)
    }

    /// Lines in all.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Where requests of `ag` go.
    pub fn master_of(&self, ag: AgNo) -> Option<(SlotId, Token)> {
        self.routes.get(&ag).and_then(|r| r.to)
    }

    /// Our part of the register for `to`: declarations, then requests, oldest first.
    pub fn outgoing(&self, to: SlotId) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (ag, route) in &self.routes {
            let Some((master, token)) = route.to else { continue };
            if route.asked && master == to && entries.len() < DECLARED_MAX {
                entries.extend(self.declaration(*ag, token));
            }
        }
        for key in &self.placed(to) {
            let line = &self.lines[key];
            let (_, token) = self.routes[&key.0].to.expect("an open request has a place to go");
            entries.push(Entry {
                lock: key.1,
                kind: EntryKind::Request,
                mode: line.wanted(),
                held: line.held,
                cap: Mode::N,
                flags: if line.asks().1 { HANDS_IN } else { 0 },
                token,
                number: line.ack,
                seq: line.seq,
            });
        }
        entries
    }

    /// The declaration of a group, once each lock held in it is confirmed.
    fn declaration(&self, ag: AgNo, token: Token) -> Option<Entry> {
        let mut total = 0;
        for (_, line) in self.group(ag).filter(|(_, l)| l.held != Mode::N) {
            if !line.confirmed {
                return None;
            }
            total += 1;
        }
        Some(Entry {
            lock: LockName::Ag(ag),
            kind: EntryKind::Declared,
            mode: Mode::N,
            held: Mode::N,
            cap: Mode::N,
            flags: 0,
            token,
            number: total,
            seq: 0,
        })
    }

    fn route(&mut self, ag: AgNo, to: Option<(SlotId, Token)>, out: &mut Vec<HolderAction>) {
        if let Some((old, _)) = self.master_of(ag) {
            out.push(HolderAction::Publish { to: old });
        }
        self.routes.insert(ag, Route { to, asked: false });
        let keys: Vec<_> = self.group(ag).map(|(key, _)| *key).collect();
        for key in keys {
            self.close(key);
            self.change_cap(key, Mode::X, out);
            let line = self.line(key);
            (line.ack, line.said, line.confirmed) = (0, None, false);
            if line.wanted() != Mode::N {
                let seq = self.say(key, out);
                self.line(key).want_seq = seq;
            } else {
                line.open = false;
                self.drop_if_idle(key, out);
            }
        }
    }

    fn line(&mut self, key: Key) -> &mut Line {
        self.lines.get_mut(&key).expect("the line exists")
    }

    fn want(&mut self, key: Key, (want, first): (Mode, bool), out: &mut Vec<HolderAction>) {
        if want == Mode::N && !self.lines.contains_key(&key) {
            return;
        }
        let line = self.lines.entry(key).or_insert_with(Line::new);
        let before = line.asks();
        (line.want, line.first) = (want, first);
        if before != line.asks() {
            let seq = self.say(key, out);
            if before.0 == Mode::N {
                self.line(key).want_seq = seq;
            }
        }
    }

    fn lowered(&mut self, key: Key, held: Mode, (want, first): (Mode, bool), out: &mut Vec<HolderAction>) {
        let Some(line) = self.lines.get_mut(&key) else { return };
        let before = (line.held, line.asks());
        assert!(line.held.covers(held), "{key:?}: lowered from {:?} to {held:?}", line.held);
        (line.held, line.want, line.first, line.lowering) = (held, want, first, false);
        if before != (held, line.asks()) {
            let seq = self.say(key, out);
            if before.1.0 == Mode::N {
                self.line(key).want_seq = seq;
            }
        }
        self.evaluate(key, out);
    }

    fn register(&mut self, from: SlotId, entries: Vec<(AgNo, Entry)>, out: &mut Vec<HolderAction>) {
        let mut asks = BTreeSet::new();
        let mut told = BTreeSet::new();
        for (ag, entry) in &entries {
            let known = self.routes.get(ag).and_then(|r| r.to);
            let speaks = matches!(entry.kind, EntryKind::Grant | EntryKind::DeclareAsk);
            if speaks && known.is_none_or(|(_, token)| token < entry.token) {
                out.push(HolderAction::Learned { ag: *ag, from, token: entry.token });
            }
            if known != Some((from, entry.token)) {
                continue;
            }
            match entry.kind {
                EntryKind::DeclareAsk => _ = asks.insert(*ag),
                EntryKind::Grant => {
                    let key = (*ag, entry.lock);
                    told.insert(key);
                    if let Some(line) = self.lines.get_mut(&key) {
                        line.said = Some(Said {
                            mode: entry.mode,
                            cap: entry.cap,
                            number: entry.number,
                            seen: entry.seq,
                        });
                        self.evaluate(key, out);
                    }
                }
                _ => {}
            }
        }
        self.silent(from, &told, out);
        self.asked(from, asks, out);
    }

    /// A lock of which the master says nothing has no cap. (What it said of a grant stands.)
    fn silent(&mut self, from: SlotId, told: &BTreeSet<Key>, out: &mut Vec<HolderAction>) {
        for key in self.capped.difference(told).copied().collect::<Vec<_>>() {
            if self.master_of(key.0).is_some_and(|(slot, _)| slot == from) {
                if let Some(said) = &mut self.line(key).said {
                    said.cap = Mode::X;
                }
                self.change_cap(key, Mode::X, out);
            }
        }
    }

    /// The register of `from` asks for the declarations `asks`, and for no others.
    fn asked(&mut self, from: SlotId, asks: BTreeSet<AgNo>, out: &mut Vec<HolderAction>) {
        let mut newly = Vec::new();
        for (ag, route) in &mut self.routes {
            if route.to.is_none_or(|(slot, _)| slot != from) {
                continue;
            }
            let asked = asks.contains(ag);
            if route.asked != asked {
                route.asked = asked;
                out.push(HolderAction::Publish { to: from });
                if asked {
                    newly.push(*ag);
                }
            }
        }
        for ag in newly {
            let unconfirmed = |l: &Line| l.held != Mode::N && !l.confirmed && !l.open;
            let keys: Vec<_> = self.group(ag).filter(|(_, l)| unconfirmed(l)).map(|(key, _)| *key).collect();
            for key in keys {
                self.say(key, out);
            }
        }
    }

    /// The locks go over to our own master machine; the caller has read them with `of_group`.
    fn forget(&mut self, ag: AgNo, out: &mut Vec<HolderAction>) {
        if let Some((old, _)) = self.master_of(ag) {
            out.push(HolderAction::Publish { to: old });
        }
        let keys: Vec<_> = self.group(ag).map(|(key, _)| *key).collect();
        for key in keys {
            self.close(key);
            self.change_cap(key, Mode::X, out);
            self.lines.remove(&key);
        }
        self.routes.remove(&ag);
    }

    /// Act on what the master last said of the lock. H1, H2, H3.
    fn evaluate(&mut self, key: Key, out: &mut Vec<HolderAction>) {
        let Some(said) = self.lines.get(&key).and_then(|line| line.said) else { return };
        self.confirm(key, said, out);
        let line = self.line(key);
        if line.lowering {
            return;
        }
        if said.number > line.ack {
            line.ack = said.number;
            let stands = line.wanted() != Mode::N && said.seen >= line.want_seq;
            if stands && said.mode != line.held && said.mode.covers(line.held) {
                line.held = said.mode;
                out.push(HolderAction::Granted { lock: key.1, mode: said.mode });
            }
            self.say(key, out);
        }
        self.change_cap(key, said.cap, out);
        let line = self.line(key);
        let done = line.wanted() == Mode::N && said.seen == line.seq && line.ack >= said.number;
        if line.open && done && line.held.is_within(said.cap) {
            line.open = false;
            self.close(key);
            out.extend(self.master_of(key.0).map(|(to, _)| HolderAction::Publish { to }));
        }
        self.drop_if_idle(key, out);
    }

    fn confirm(&mut self, key: Key, said: Said, out: &mut Vec<HolderAction>) {
        let line = self.line(key);
        if said.seen != line.seq || line.confirmed {
            return;
        }
        line.confirmed = true;
        if let Some(Route { to: Some((to, _)), asked: true }) = self.routes.get(&key.0) {
            // It may have been the last one that the declaration waited for.
            out.push(HolderAction::Publish { to: *to });
        }
    }

    /// The request changes: number it anew and see that it has a place in the register.
    fn say(&mut self, key: Key, out: &mut Vec<HolderAction>) -> u64 {
        self.last_seq += 1;
        let seq = self.last_seq;
        let line = self.line(key);
        (line.seq, line.open) = (seq, true);
        if let Some((to, _)) = self.master_of(key.0) {
            if !self.order.contains_key(&key) {
                self.last_order += 1;
                self.order.insert(key, (to, self.last_order));
                self.open.entry(to).or_default().insert(self.last_order, key);
            }
            out.push(HolderAction::Publish { to });
        }
        seq
    }

    fn close(&mut self, key: Key) {
        if let Some((to, order)) = self.order.remove(&key)
            && let Some(open) = self.open.get_mut(&to)
        {
            open.remove(&order);
        }
    }

    fn drop_if_idle(&mut self, key: Key, out: &mut Vec<HolderAction>) {
        let line = self.line(key);
        if !line.open && !line.lowering && line.held == Mode::N && line.wanted() == Mode::N {
            self.change_cap(key, Mode::X, out);
            self.lines.remove(&key);
        }
    }

    fn change_cap(&mut self, key: Key, cap: Mode, out: &mut Vec<HolderAction>) {
        let line = self.line(key);
        if cap != line.cap {
            line.cap = cap;
            if cap == Mode::X {
                self.capped.remove(&key)
            } else {
                self.capped.insert(key)
            };
            out.push(HolderAction::Cap { lock: key.1, cap });
        }
    }
}

impl Line {
    fn new() -> Line {
        Line {
            held: Mode::N,
            want: Mode::N,
            first: false,
            want_seq: 0,
            seq: 0,
            ack: 0,
            open: false,
            confirmed: false,
            lowering: false,
            cap: Mode::X,
            said: None,
        }
    }

    /// What is still to be asked for.
    fn wanted(&self) -> Mode {
        if self.held.covers(self.want) { Mode::N } else { self.want }
    }

    /// The same, and whether it is to hand something in.
    fn asks(&self) -> (Mode, bool) {
        let wanted = self.wanted();
        (wanted, self.first && wanted != Mode::N)
    }
}
