//! What hosts and programs do, one step at a time.

use super::*;
use shoal::base::Token;
use shoal::cluster::Owner;
use shoal::format::cluster::{Adopter, LedgerEntry, SlotState};
use shoal::lock::desk::{Closing, DeskConfig, Effect, Shed};
use shoal::lock::files::{FileAnswer, FileRequest, Job};
use std::hash::DefaultHasher;

impl Frozen {
    fn new(host: Host) -> Frozen {
        let mut hasher = DefaultHasher::new();
        host.desk.hash(&mut hasher);
        (host.incarnation, host.known, host.leaving).hash(&mut hasher);
        (&host.adoptions, &host.programs, &host.notes).hash(&mut hasher);
        for to in (0..3).map(SlotId) {
            let last = host.outbox.published(to);
            (last.meant_for, &last.entries, last.lost).hash(&mut hasher);
        }
        Frozen(Arc::new(host), hasher.finish())
    }
}

impl Op {
    fn request(self, owner: shoal::lock::files::Owner) -> FileRequest {
        let range = |mode, span| FileLock { kind: LockKind::Range, owner, mode, span };
        let byte = |at| Span { start: at, end: at };
        let (lock, wait) = match self {
            Op::Take(mode, at) => (range(mode, byte(at)), true),
            Op::Widen => (range(Mode::S, Span { start: 0, end: 1 }), true),
            Op::Clear | Op::Close => (range(Mode::N, Span::ALL), false),
        };
        FileRequest { ino: file(), job: Job::Set { wait }, lock, handle: 1, process: 1 }
    }
}

impl Host {
    fn go(&mut self, s: &mut State, program: usize) {
        let program = &mut self.programs[program];
        let op = program.script.pop_front().expect("offered");
        let request = op.request(self.desk.files().client.owner(program.id));
        let had = s.told.of(request.lock.kind, request.lock.owner).to_vec();
        // A program that gives up something does not have it from the moment it says so.
        s.told.lower(&request.lock);
        let no = match op {
            Op::Close => self.desk.file_unlock_all(NOW, file(), request.lock.kind, program.id),
            _ => Some(self.desk.file_request(NOW, &request)),
        };
        program.asked = no.map(|no| (no, request.lock, had));
    }

    /// A request is answered.
    fn answered(&mut self, s: &mut State, no: RequestNo, answer: FileAnswer) {
        let asks = |p: &&mut Program| p.asked.as_ref().is_some_and(|(asked, ..)| *asked == no);
        let program = self.programs.iter_mut().find(asks).expect("a request is answered once");
        let (_, lock, had) = program.asked.take().expect("just seen");
        let has = match answer {
            FileAnswer::Granted => vec![lock],
            // It is told of a loss; what it gives up, it has not.
            FileAnswer::Halted => vec![],
            _ if lock.mode == Mode::N => vec![],
            _ => had.iter().map(|p| FileLock { mode: p.mode, span: p.span, ..lock }).collect(),
        };
        for lock in has {
            s.clash |= s.told.conflict(&lock).is_some();
            s.told.set(&lock);
        }
        // Who has nothing has nothing to give up.
        let nothing = s.told.of(lock.kind, lock.owner).is_empty();
        if nothing && lock.mode != Mode::N && program.script.front() == Some(&Op::Clear) {
            program.script.pop_front();
        }
    }

    fn effects(&mut self, s: &mut State) {
        while let Some(effect) = self.desk.next_effect() {
            match effect {
                Effect::Adopt(ag) => self.adoptions.push(ag),
                Effect::FileLock { request, answer } => self.answered(s, request, answer),
                other => unreachable!("only file locks are asked for here: {other:?}"),
            }
        }
        self.desk.take_dirty();
    }

    /// Does the host know of everything that its programs have been told?
    fn knows(&self, told: &FileTable) -> bool {
        let mut held = FileTable::default();
        self.desk.files().client.held(file()).iter().for_each(|h| held.set(h));
        let lacks = |lock: FileLock| held.parts(&lock).iter().any(|part| !part.mode.covers(lock.mode));
        !told.all().filter(|lock| lock.owner.host == self.membership.me).any(lacks)
    }

    /// Write what is new for others.
    fn publish(&mut self, s: &mut State) {
        let me = self.membership.me;
        for to in self.membership.clone().peers() {
            let meant_for = self.membership.incarnation_of(to).expect("a peer");
            let entries = self.desk.outgoing(to);
            let Some(sequence) = self.outbox.publish(to, meant_for, &entries) else { continue };
            let stamp = Stamp { slot: me, incarnation: self.incarnation, sequence };
            let old = s.registers.insert((me, to), Arc::new(Register { stamp, meant_for, entries }));
            if let (Some(old), true) = (old, s.lates > 0) {
                s.late.entry((me, to)).or_insert(old);
            }
        }
    }
}

impl Files {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn first_state(&self) -> State {
        let mut view = View::initial(3, 3);
        let mut ledgers = Ledgers::new(3);
        for slot in 0..self.hosts as u16 {
            let entry = &mut view.slots[usize::from(slot)];
            (entry.state, entry.incarnation) =
                (SlotState::Live { former: None }, Incarnation(1 + u64::from(slot)));
            ledgers.set_one(SlotId(slot), AgNo(slot.into()), LedgerEntry::Own(Token(2)));
        }
        let mut s = State {
            hosts: vec![None, None, None],
            dead: BTreeSet::new(),
            registers: BTreeMap::new(),
            late: BTreeMap::new(),
            view: Arc::new(view),
            ledgers,
            owner: Incarnation(1),
            changes: 0,
            told: FileTable::default(),
            clash: false,
            lost: false,
            lates: self.lates,
            exits: u8::from(self.exit.is_some()),
            interrupts: self.interrupts,
        };
        for slot in 0..self.hosts {
            s.hosts[slot] = Some(Frozen::new(self.host(&s, slot)));
            self.learn(&mut s, slot);
        }
        s
    }

    fn host(&self, s: &State, slot: usize) -> Host {
        let table = Arc::new(PinTable::default());
        let zero = Duration::ZERO;
        let times = DeskConfig {
            hold_min: zero,
            hold_max: zero,
            idle: zero,
            busy_retry: zero,
            requests_max: 4,
            caps_max: 3,
            files_max: self.window,
            habits_max: 0,
        };
        let program = |(n, ops): (usize, &Vec<Op>)| Program {
            id: n as u64 + 1,
            script: ops.iter().copied().collect(),
            asked: None,
        };
        Host {
            incarnation: Incarnation(1 + slot as u64),
            desk: Desk::new(GEOMETRY, SlotId(slot as u16), times, table.clone()),
            table,
            membership: self.membership(s, slot),
            inbox: Inbox::new(3),
            outbox: Outbox::new(3),
            known: 0,
            adoptions: vec![],
            programs: self.scripts[slot].iter().enumerate().map(program).collect(),
            leaving: false,
            notes: BTreeMap::new(),
        }
    }

    /// The members and owners as they are now.
    fn membership(&self, s: &State, slot: usize) -> Arc<Membership> {
        let me = SlotId(slot as u16);
        let incarnation = s.view.slots[slot].incarnation;
        let owner = |ag: AgNo| s.ledgers.owner(ag, &s.view, me, ag != GROUP || s.owner == incarnation);
        let owners = Arc::new((0..GEOMETRY.ag_count).map(AgNo).map(owner).collect());
        Arc::new(Membership { me, incarnation, view: s.view.clone(), silent: 0, owners })
    }

    pub fn step(&self, s: &mut State, step: Step) {
        match step {
            Step::Go(slot, program) => self.act(s, slot, |h, s| h.go(s, program)),
            Step::Interrupt(slot, program) => {
                s.interrupts -= 1;
                self.act(s, slot, |h, _| {
                    let asked = h.programs[program].asked.as_ref().map(|(no, ..)| *no);
                    h.desk.file_withdraw(NOW, asked.expect("offered"));
                });
            }
            Step::Read(to, from) => self.read(s, to, from),
            Step::Tick(slot) => self.act(s, slot, |h, _| {
                let due = h.desk.deadline().expect("offered");
                h.desk.tick(due);
            }),
            Step::Learn(slot) => self.learn(s, slot),
            Step::Adopt(slot) => self.adopt(s, slot),
            Step::Leave(slot) => self.leave(s, slot),
            Step::Die(slot) => self.die(s, slot),
            Step::Recover(slot) => self.recover(s, slot),
            Step::Late(from, to) => {
                let key = (SlotId(from as u16), SlotId(to as u16));
                s.lates -= 1;
                let old = s.late.remove(&key).expect("offered");
                s.registers.insert(key, old);
                s.late.clear();
            }
            Step::Scrub(from, to) => self.act(s, from, |h, _| h.outbox.lost(SlotId(to as u16))),
        }
    }

    /// One step of a host.
    fn act(&self, s: &mut State, slot: usize, f: impl FnOnce(&mut Host, &mut State)) {
        let frozen = s.hosts[slot].take().expect("acts");
        let mut host = Host::clone(&frozen.0);
        host.table = host.desk.part();
        f(&mut host, s);
        if self.is(Mutant::SilenceIsDeclaration) && host.desk.master().token(GROUP).is_some() {
            for from in host.membership.clone().peers() {
                let entries = host.notes.entry(from).or_default().entries.clone();
                let entries = self.bend(&mut host, from, entries);
                host.desk.on_entries(NOW, from, &entries);
            }
        }
        host.effects(s);
        s.lost |= !host.knows(&s.told);
        host.publish(s);
        s.hosts[slot] = Some(Frozen::new(host));
    }

    fn read(&self, s: &mut State, to: usize, from: usize) {
        let (me, peer) = (SlotId(to as u16), SlotId(from as u16));
        let register = s.registers[&(peer, me)].clone();
        self.act(s, to, |h, _| {
            h.inbox.taken(register.stamp);
            let entries = if register.meant_for == h.incarnation { register.entries.clone() } else { vec![] };
            if self.mutant.is_some() {
                h.notes.entry(peer).or_default().entries = entries.clone();
            }
            let entries = self.bend(h, peer, entries);
            h.desk.on_entries(NOW, peer, &entries);
        });
    }

    fn learn(&self, s: &mut State, slot: usize) {
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

    fn adopt(&self, s: &mut State, slot: usize) {
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

    /// A forced unmount: programs that have the file open are cut off.
    fn leave(&self, s: &mut State, slot: usize) {
        let gone = s.hosts[slot].as_ref().expect("acts").0.table.is_empty();
        s.told.drop_host(SlotId(slot as u16));
        self.act(s, slot, |h, _| {
            h.leaving = true;
            h.programs.iter_mut().for_each(|p| p.script.clear());
            h.desk.close(Closing::Everything);
            h.desk.shed(NOW, &[name()], Shed::Must);
        });
        if gone {
            s.hosts[slot] = None;
            self.exit(s, slot, SlotState::Clean { adopter: Adopter::Slot(heir(slot)) });
        }
    }

    fn exit(&self, s: &mut State, slot: usize, state: SlotState) {
        s.exits = 0;
        s.changes += 1;
        let view = Arc::make_mut(&mut s.view);
        view.epoch.0 += 1;
        view.slots[slot].state = state;
    }

    fn die(&self, s: &mut State, slot: usize) {
        s.hosts[slot] = None;
        s.dead.insert(SlotId(slot as u16));
        let state = match self.is(Mutant::DeadIsGone) {
            true => SlotState::Clean { adopter: Adopter::Slot(heir(slot)) },
            false => SlotState::Dead { adopter: heir(slot) },
        };
        self.exit(s, slot, state);
    }

    /// Fenced and replayed.
    fn recover(&self, s: &mut State, slot: usize) {
        let dead = SlotId(slot as u16);
        s.dead.remove(&dead);
        s.told.drop_host(dead);
        self.exit(s, slot, SlotState::Clean { adopter: Adopter::Slot(heir(slot)) });
    }

    pub fn steps_of(&self, s: &State, slot: usize, h: &Host, steps: &mut Vec<Step>) {
        let me = SlotId(slot as u16);
        for (n, program) in h.programs.iter().enumerate() {
            if program.asked.is_none() && !program.script.is_empty() && !h.leaving {
                steps.push(Step::Go(slot, n));
            }
            if program.asked.is_some() && s.interrupts > 0 {
                steps.push(Step::Interrupt(slot, n));
            }
        }
        let offers = [
            (h.desk.deadline().is_some(), Step::Tick(slot)),
            (!h.adoptions.is_empty(), Step::Adopt(slot)),
            (h.known != s.changes, Step::Learn(slot)),
        ];
        steps.extend(offers.iter().filter(|(offered, _)| *offered).map(|(_, step)| *step));
        for peer in h.membership.peers() {
            if s.registers.get(&(peer, me)).is_some_and(|r| h.inbox.is_news(r.stamp)) {
                steps.push(Step::Read(slot, peer.0.into()));
            }
        }
        let mine = s.registers.iter().filter(|((from, _), _)| *from == me);
        for ((_, to), register) in mine {
            let published = h.outbox.published(*to);
            if register.stamp.sequence != published.sequence && !published.lost {
                steps.push(Step::Scrub(slot, to.0.into()));
            }
        }
        match self.exit {
            Some((who, Exit::Leave)) if who == slot && (h.leaving || s.exits > 0) => {
                steps.push(Step::Leave(slot));
            }
            Some((who, Exit::Death)) if who == slot && s.exits > 0 => steps.push(Step::Die(slot)),
            _ => {}
        }
    }
}

/// Who looks after a slot that was left.
fn heir(slot: usize) -> SlotId {
    SlotId(u16::from(slot == 0))
}
