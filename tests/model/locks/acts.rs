//! What hosts do, one step at a time.

use super::*;
use shoal::cluster::EntryKind;
use shoal::lock::desk::{DeskConfig, Effect, Shed};

impl Frozen {
    fn new(mut host: Host) -> Frozen {
        host.unsent = host.membership.peers().filter(|to| host.has_news_for(*to)).collect();
        let mut hasher = DefaultHasher::new();
        host.desk.hash(&mut hasher);
        (host.incarnation, host.known).hash(&mut hasher);
        for to in (0..3).map(SlotId) {
            let last = host.outbox.published(to);
            (last.meant_for, &last.entries, last.lost).hash(&mut hasher);
        }
        (&host.tells, &host.adoptions, &host.script, &host.waiting, &host.running).hash(&mut hasher);
        (host.cache, host.owed, host.leaving, host.demotions.len()).hash(&mut hasher);
        for job in &host.demotions {
            (job.name, job.from, job.to).hash(&mut hasher);
        }
        Frozen(Arc::new(host), hasher.finish())
    }
}

impl Host {
    /// The value under the lock: from the cache, else from the disk; it must be the last one. Who writes directly
    /// keeps nothing, but would read what is kept.
    fn look(&mut self, s: &mut State, mode: Mode) -> u8 {
        let (value, dirty) = self.cache.unwrap_or((s.on_disk, false));
        if mode != Mode::DW {
            self.cache = Some((value, dirty));
        }
        s.stale |= value != s.truth;
        value
    }

    pub fn end(&mut self, s: &mut State) {
        let set = self.running.pop_front().expect("offered");
        let mode = set.mode(lock());
        let value = self.look(s, mode);
        match mode {
            Mode::X => {
                s.truth += 1;
                self.cache = Some((value + 1, true));
            }
            Mode::DW => {
                s.truth += 1;
                s.on_disk = value + 1;
            }
            _ => {}
        }
        for (name, mode) in set.iter() {
            if self.table.unpin(name, mode) {
                self.desk.unpinned(NOW, name);
            }
        }
    }

    /// Carry out what the desk wants, or list it for a step of its own.
    fn effects(&mut self, s: &mut State, slow_tells: bool) {
        while let Some(effect) = self.desk.next_effect() {
            match effect {
                Effect::Tell { name, .. } | Effect::Kept { name, .. } if slow_tells => {
                    self.tells.push_back(name);
                }
                Effect::Tell { name, .. } | Effect::Kept { name, .. } => self.desk.told(NOW, name),
                Effect::Demote(job) => self.demotions.push(job),
                Effect::Adopt(ag) => self.adoptions.push(ag),
                Effect::FileLock { .. } => unreachable!("nobody asks for file locks here"),
                Effect::Complete { result, ticket } => {
                    self.waiting.remove(&ticket);
                    if let Ok(set) = result {
                        let mode = set.mode(lock());
                        self.running.push_back(set);
                        self.look(s, mode);
                    }
                }
            }
        }
        self.desk.take_dirty();
    }

    /// Would a write to `to` say anything new?
    fn has_news_for(&self, to: SlotId) -> bool {
        let meant_for = self.membership.incarnation_of(to).unwrap_or_default();
        let (last, entries) = (self.outbox.published(to), self.desk.outgoing(to));
        let same = last.entries == entries && last.meant_for == meant_for && !last.lost;
        !same && self.outbox.clone().publish(to, meant_for, &entries).is_some()
    }
}

impl Locks {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn first_state(&self) -> State {
        let mut view = View::initial(3, 3);
        let mut ledgers = Ledgers::new(3);
        for slot in 0..3u16 {
            let entry = &mut view.slots[usize::from(slot)];
            (entry.state, entry.incarnation) =
                (SlotState::Live { former: None }, Incarnation(1 + u64::from(slot)));
            ledgers.set_one(SlotId(slot), AgNo(slot.into()), LedgerEntry::Own(Token(2)));
        }
        let mut s = State {
            hosts: vec![None, None, None],
            dead: BTreeMap::new(),
            registers: BTreeMap::new(),
            late: BTreeMap::new(),
            view: Arc::new(view),
            ledgers,
            owner: Incarnation(1),
            changes: 0,
            on_disk: 0,
            truth: 0,
            stale: false,
            lates: self.lates,
            exits: u8::from(self.exit.is_some()),
            aheads: self.aheads,
        };
        for slot in 0..3 {
            let table = Arc::new(PinTable::default());
            let zero = Duration::ZERO;
            let times = DeskConfig {
                hold_min: zero,
                hold_max: zero,
                idle: zero,
                busy_retry: zero,
                requests_max: 4,
                caps_max: 3,
                files_max: 2,
                habits_max: 0,
            };
            let host = Host {
                incarnation: Incarnation(1 + slot),
                desk: Desk::new(GEOMETRY, SlotId(slot as u16), times, table.clone()),
                table,
                membership: self.membership(&s, slot as usize),
                inbox: Inbox::new(3),
                outbox: Outbox::new(3),
                unsent: vec![],
                known: 0,
                heard: BTreeMap::new(),
                tells: VecDeque::new(),
                demotions: vec![],
                adoptions: vec![],
                script: self.scripts[slot as usize].iter().copied().collect(),
                waiting: BTreeMap::new(),
                running: VecDeque::new(),
                cache: None,
                owed: None,
                leaving: false,
            };
            s.hosts[slot as usize] = Some(Frozen::new(host));
            self.learn(&mut s, slot as usize);
        }
        s
    }

    /// The members and owners as they are now.
    fn membership(&self, s: &State, slot: usize) -> Arc<Membership> {
        let me = SlotId(slot as u16);
        let incarnation = s.view.slots[slot].incarnation;
        let owner = |ag: AgNo| s.ledgers.owner(ag, &s.view, me, ag != GROUP || s.owner == incarnation);
        let owners = Arc::new((0..GEOMETRY.ag_count).map(AgNo).map(owner).collect());
        Arc::new(Membership { me, incarnation, view: s.view.clone(), silent: 0, owners })
    }

    /// One step of a host.
    pub fn act(&self, s: &mut State, slot: usize, f: impl FnOnce(&mut Host, &mut State)) {
        let frozen = s.hosts[slot].take().expect("acts");
        let mut host = Host::clone(&frozen.0);
        host.table = host.desk.part();
        f(&mut host, s);
        if self.is(Mutant::SilenceIsDeclaration) && host.desk.master().token(GROUP).is_some() {
            for from in host.membership.clone().peers() {
                let entries = self.bend(&host, from, host.heard.get(&from).cloned().unwrap_or_default());
                host.desk.on_entries(NOW, from, &entries);
            }
        }
        host.effects(s, self.slow_tells);
        s.hosts[slot] = Some(Frozen::new(host));
    }

    pub fn demote(&self, h: &mut Host, s: &mut State) {
        let job = h.demotions.remove(0);
        if let Some((value, dirty)) = h.cache
            && job.from == Mode::X
        {
            match self.is(Mutant::ReleasedBeforeFlush) && dirty {
                true => h.owed = Some(value),
                false if dirty => s.on_disk = value,
                false => {}
            }
            h.cache = Some((value, false));
        }
        if job.to == Mode::N && !self.is(Mutant::CacheKept) {
            h.cache = None;
        }
        h.desk.demoted(NOW, job.name, DemoteAnswer::Done);
    }

    pub fn write(&self, s: &mut State, from: usize, to: usize) {
        let (me, peer) = (SlotId(from as u16), SlotId(to as u16));
        let mut register = None;
        self.act(s, from, |h, _| {
            let meant_for = h.membership.incarnation_of(peer).expect("a peer");
            let mut entries = h.desk.outgoing(peer);
            let sequence = h.outbox.publish(peer, meant_for, &entries).expect("offered");
            if self.is(Mutant::HeldNotDeclared) {
                leave_out_held(h, peer, &mut entries);
            }
            let stamp = Stamp { slot: me, incarnation: h.incarnation, sequence };
            register = Some(Arc::new(Register { stamp, meant_for, entries }));
        });
        let old = s.registers.insert((me, peer), register.expect("just made"));
        if let (Some(old), true) = (old, s.lates > 0) {
            s.late.entry((me, peer)).or_insert(old);
        }
    }

    pub fn read(&self, s: &mut State, to: usize, from: usize) {
        let (me, peer) = (SlotId(to as u16), SlotId(from as u16));
        let register = s.registers[&(peer, me)].clone();
        self.act(s, to, |h, _| {
            h.inbox.taken(register.stamp);
            let entries = if register.meant_for == h.incarnation { register.entries.clone() } else { vec![] };
            h.heard.insert(peer, entries.clone());
            let entries = self.bend(h, peer, entries);
            h.desk.on_entries(NOW, peer, &entries);
        });
    }

    /// What a mutant makes of what was read.
    fn bend(&self, h: &Host, from: SlotId, mut entries: Vec<Entry>) -> Vec<Entry> {
        let ours = h.desk.master().token(GROUP);
        if self.is(Mutant::HeldBelievedUnacked) {
            let requests = entries.iter_mut().filter(|e| e.kind == EntryKind::Request);
            requests.for_each(|e| e.number = u64::MAX);
        }
        if self.is(Mutant::DirectBesideShared) {
            let (direct, shared) = (Mode::DW, Mode::S);
            let asked = h.desk.outgoing(from);
            let wants = |lock| {
                asked.iter().any(|e| e.lock == lock && e.kind == EntryKind::Request && e.mode == direct)
            };
            for entry in &mut entries {
                match entry.kind {
                    EntryKind::Request if entry.mode == direct => entry.mode = shared,
                    EntryKind::Request if entry.held == direct => entry.held = shared,
                    EntryKind::Grant if entry.mode == shared && wants(entry.lock) => entry.mode = direct,
                    _ => {}
                }
            }
        }
        if let (Some(Mutant::SilenceIsDeclaration), Some(token)) = (self.mutant, ours) {
            entries.push(declared(token));
        }
        if self.is(Mutant::TokenIgnored) {
            let theirs = h.desk.holder().master_of(GROUP).filter(|(slot, _)| *slot == from);
            let present = |e: &Entry| match e.kind {
                EntryKind::Request | EntryKind::Declared => ours,
                // A higher one is how a new master is learnt of.
                _ => theirs.map(|(_, token)| token).filter(|token| e.token < *token),
            };
            entries.iter_mut().for_each(|e| e.token = present(e).unwrap_or(e.token));
        }
        if self.is(Mutant::EarlierGrantTaken) {
            let asked = h.desk.outgoing(from);
            for grant in entries.iter_mut().filter(|e| e.kind == EntryKind::Grant) {
                let is_new = |r: &&Entry| r.lock == grant.lock && grant.number > r.number;
                let request = asked.iter().filter(|e| e.kind == EntryKind::Request).find(is_new);
                if let Some(request) = request.filter(|r| r.mode != Mode::N) {
                    grant.seq = request.seq;
                }
            }
        }
        entries
    }

    pub fn learn(&self, s: &mut State, slot: usize) {
        let members = self.membership(s, slot);
        self.act(s, slot, |h, s| {
            (h.membership, h.known) = (members.clone(), s.changes);
            h.desk.on_view(NOW, members.clone());
            for peer in (0..3).map(SlotId).filter(|p| *p != members.me) {
                let incarnation = members.incarnation_of(peer);
                if h.inbox.set_member(peer, incarnation) && incarnation.is_some() {
                    h.desk.on_entries(NOW, peer, &[]);
                }
            }
        });
    }

    pub fn adopt(&self, s: &mut State, slot: usize) {
        let members = self.membership(s, slot);
        self.act(s, slot, |h, s| {
            let ag = h.adoptions.remove(0);
            let (owner, token) = members.owner_of(ag);
            let done = owner == Owner::Adopter(members.me) && h.membership.view == s.view;
            if done {
                s.ledgers.set_one(members.me, ag, LedgerEntry::Own(Token(token.0 + 1)));
                s.owner = h.incarnation;
                s.changes += 1;
            }
            h.desk.adopted(NOW, ag, done);
        });
    }

    pub fn leave(&self, s: &mut State, slot: usize) {
        let gone = self.is(Mutant::LeavesHolding) || s.hosts[slot].as_ref().expect("acts").0.table.is_empty();
        self.act(s, slot, |h, _| {
            h.leaving = true;
            h.desk.close(Closing::Everything);
            h.desk.shed(NOW, &[lock()], Shed::Must);
        });
        if gone {
            s.hosts[slot] = None;
            self.exit(s, slot, SlotState::Clean { adopter: Adopter::Slot(SlotId(1)) });
        }
    }

    fn exit(&self, s: &mut State, slot: usize, state: SlotState) {
        s.exits = 0;
        s.changes += 1;
        let view = Arc::make_mut(&mut s.view);
        view.epoch.0 += 1;
        view.slots[slot].state = state;
    }

    pub fn die(&self, s: &mut State, slot: usize) {
        let host = s.hosts[slot].take().expect("acts").0;
        let changed = host.cache.filter(|(_, dirty)| *dirty).map(|(value, _)| value);
        s.dead.insert(SlotId(slot as u16), (host.table.mode(lock()), changed));
        let state = match self.is(Mutant::DeadIsGone) {
            true => SlotState::Clean { adopter: Adopter::Slot(heir(slot)) },
            false => SlotState::Dead { adopter: heir(slot) },
        };
        self.exit(s, slot, state);
    }

    /// Fenced and replayed.
    pub fn recover(&self, s: &mut State, slot: usize) {
        let Some((_, changed)) = s.dead.remove(&SlotId(slot as u16)) else { return };
        s.on_disk = changed.unwrap_or(s.on_disk);
        self.exit(s, slot, SlotState::Clean { adopter: Adopter::Slot(heir(slot)) });
    }

    pub fn steps_of(&self, s: &State, slot: usize, h: &Host, steps: &mut Vec<Step>) {
        let me = SlotId(slot as u16);
        let idle = h.waiting.is_empty() && h.running.is_empty();
        let waits_for_x = h.waiting.values().any(|mode| *mode == Mode::X);
        let keeps = self.is(Mutant::WaiterKeepsShared) && waits_for_x;
        let offers = [
            (!h.leaving && !h.script.is_empty(), Step::Start(slot)),
            (!h.leaving && s.aheads > 0, Step::Ahead(slot)),
            (!h.running.is_empty(), Step::End(slot)),
            (!h.tells.is_empty(), Step::Tell(slot)),
            (h.demotions.first().is_some_and(|j| !keeps || j.from != Mode::S), Step::Demote(slot)),
            (h.owed.is_some(), Step::Flush(slot)),
            (!h.adoptions.is_empty(), Step::Adopt(slot)),
            (h.known != s.changes, Step::Learn(slot)),
        ];
        steps.extend(offers.iter().filter(|(offered, _)| *offered).map(|(_, step)| *step));
        for peer in h.membership.peers() {
            let other = usize::from(peer.0);
            if h.unsent.contains(&peer) {
                steps.push(Step::Write(slot, other));
            }
            let Some(register) = s.registers.get(&(peer, me)) else { continue };
            let old = self.is(Mutant::OldRegisterTaken) && Some(&register.entries) != h.heard.get(&peer);
            if h.inbox.is_news(register.stamp) || old {
                steps.push(Step::Read(slot, other));
            }
        }
        for (to, register) in
            s.registers.iter().filter(|((from, _), _)| *from == me).map(|((_, to), r)| (to, r))
        {
            let published = h.outbox.published(*to);
            if register.stamp.sequence != published.sequence && !published.lost && !self.is(Mutant::NoScrub) {
                steps.push(Step::Scrub(slot, to.0.into()));
            }
        }
        if slot == self.exit_slot && s.exits > 0 {
            match self.exit {
                Some(Exit::Leave) if idle && h.script.is_empty() => steps.push(Step::Leave(slot)),
                Some(Exit::Death) => steps.push(Step::Die(slot)),
                _ => {}
            }
        }
    }
}

/// Who looks after a slot that was left.
fn heir(slot: usize) -> SlotId {
    SlotId(u16::from(slot == 0))
}

fn declared(token: Token) -> Entry {
    Entry {
        lock: LockName::Ag(GROUP),
        kind: EntryKind::Declared,
        mode: Mode::N,
        held: Mode::N,
        cap: Mode::N,
        flags: 0,
        token,
        number: 0,
        seq: 0,
    }
}

/// What is held without being asked for is not said, and the declaration is made all the same.
fn leave_out_held(h: &Host, to: SlotId, entries: &mut Vec<Entry>) {
    let asks = h.heard.get(&to).into_iter().flatten().find(|e| e.kind == EntryKind::DeclareAsk);
    if let Some(ask) = asks {
        entries.retain(|e| e.kind != EntryKind::Request || e.held == Mode::N);
        entries.push(declared(ask.token));
    }
}
