//! What mounts do to each other's ledgers, one step at a time.

use super::*;
use shoal::cluster::fence::is_acknowledged;
use shoal::cluster::ownership::is_barrier_passed;
use shoal::format::cluster::{Adopter, SlotState};

impl Place {
    pub fn read(&self, new: bool) -> Arc<LedgerPage> {
        if let (true, Some((page, _))) = (new, &self.pending) {
            return page.clone();
        }
        let newest = self.copies.iter().flatten().max_by_key(|(_, sequence)| *sequence);
        newest.expect("one copy is whole").0.clone()
    }

    pub fn settle(&mut self, done: bool, keep: bool) {
        let Some(new) = self.pending.take() else { return };
        let copy = (new.1 % 2) as usize;
        if done {
            self.before[copy] = self.copies[copy].replace(new).filter(|_| keep);
        }
    }
}

impl Tokens {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn mount<'a>(&self, s: &'a mut State, slot: usize) -> &'a mut Mount {
        Arc::make_mut(s.mounts[slot].as_mut().expect("a mount acts"))
    }

    pub fn write(&self, s: &mut State, slot: usize, page: Arc<LedgerPage>) {
        let mount = self.mount(s, slot);
        mount.sequence += 1;
        let sequence = mount.sequence;
        s.ledgers[slot].pending = Some((page, sequence));
    }

    pub fn join(&self, s: &mut State) -> Option<()> {
        s.joins -= 1;
        let incarnation = Incarnation(100 + u64::from(s.joins));
        let usable = (1 << SLOTS) - 1;
        let silent = (0..SLOTS).filter(|i| s.mounts[*i].as_ref().is_some_and(|m| m.silent));
        let silent = silent.fold(0, |mask, i| mask | 1 << i);
        let next = view::admit(&s.view, &[incarnation], usable, silent).ok()?;
        let slot = view::slot_of(&next, incarnation)?;
        s.view = Arc::new(next);
        let mount = fresh(slot, incarnation, &s.view, Phase::Barrier);
        s.mounts[usize::from(slot.0)] = Some(Arc::new(mount));
        Some(())
    }

    pub fn leave(&self, s: &mut State, slot: usize) -> Option<()> {
        s.leaves -= 1;
        let mount = s.mounts[slot].clone()?;
        let silent = (0..SLOTS).filter(|i| s.mounts[*i].as_ref().is_some_and(|m| m.silent));
        let silent = silent.fold(0, |mask, i| mask | 1 << i);
        let next = view::leave(&s.view, SlotId(slot as u16), mount.incarnation, silent)?;
        s.view = Arc::new(next);
        s.mounts[slot] = None;
        Some(())
    }

    pub fn exclude(&self, s: &mut State, slot: usize, victim: usize) -> Option<()> {
        s.deaths -= 1;
        let who = (SlotId(victim as u16), s.mounts[victim].as_ref()?.incarnation);
        let me = SlotId(slot as u16);
        let mut next = view::exclude(&s.view, me, &[who])?;
        if self.is(Mutant::ChargesTakenEarly) {
            let theirs = SlotState::Clean { adopter: Adopter::Slot(who.0) };
            let charges = next.slots.iter_mut().filter(|slot| slot.state == theirs);
            charges.for_each(|slot| slot.state = SlotState::Clean { adopter: Adopter::Slot(me) });
        }
        s.view = Arc::new(next);
        Some(())
    }

    /// All the dead are fenced, and all who live know of them.
    pub fn recover(&self, s: &mut State, slot: usize) -> Option<()> {
        let me = SlotId(slot as u16);
        let dead = view::dead(&s.view);
        let fenced = (0..SLOTS)
            .filter(|at| dead >> at & 1 == 1)
            .all(|at| s.ledgers[at].pending.is_none() && s.mounts[at].as_ref().is_none_or(|m| m.expired));
        if !fenced && !self.is(Mutant::NotFenced) {
            return None;
        }
        if !is_acknowledged(&s.view, me, &s.beats) && !self.is(Mutant::NotAcknowledged) {
            return None;
        }
        // The beat that shows the acknowledgement also tells of what was written before it.
        let read = &s.mounts[slot].as_ref()?.read;
        let live = view::live(&s.view);
        let mut others = (0..SLOTS).filter(|of| *of != slot && live >> of & 1 == 1);
        if !others.all(|of| read[of] == stamp(&s.beats[of])) && !self.is(Mutant::AnnouncedUnread) {
            return None;
        }
        s.view = Arc::new(view::recovered(&s.view, me, dead)?);
        Some(())
    }

    pub fn beat(&self, s: &mut State, slot: usize) {
        let mount = self.mount(s, slot);
        let epoch = mount.ownership.view().epoch;
        let beat = Heartbeat {
            slot: SlotId(slot as u16),
            incarnation: mount.incarnation,
            epoch,
            ack: epoch,
            ledger_sequence: mount.writes,
            ..Heartbeat::default()
        };
        s.beats[slot] = Some(beat);
    }

    /// The newest view is known to the mount; its pages are as they should be.
    pub fn install(&self, s: &mut State, slot: usize, new: bool) {
        let next = s.view.clone();
        let ownership = &s.mounts[slot].as_ref().expect("acts").ownership;
        if !ownership.is_in(&next) {
            // Excluded: it stops. What it was writing may still land.
            s.mounts[slot] = None;
            return;
        }
        let was_dead = |left: &SlotId| view::dead(ownership.view()) & view::bit(*left) != 0;
        let known = |left: &SlotId| view::live(ownership.view()) & view::bit(*left) != 0;
        let looks = |left: &SlotId| match self.mutant {
            Some(Mutant::HeirDoesNotLook) => false,
            Some(Mutant::HeirLooksAtKnown) => known(left),
            Some(Mutant::LastWordsMissed) => !was_dead(left),
            _ => true,
        };
        let departed: Vec<_> = ownership.departed(&next).into_iter().filter(looks).collect();
        for left in departed {
            let page = s.ledgers[usize::from(left.0)].read(new);
            self.mount(s, slot).ownership.set(left, vec![(*page).clone()]);
        }
        self.mount(s, slot).ownership.set_view(next);
        self.beat(s, slot);
    }

    pub fn learn(&self, s: &mut State, slot: usize, new: bool) {
        let page = s.ledgers[slot].read(false);
        let mount = s.mounts[slot].as_ref().expect("acts");
        let scrubs = mount.phase == Phase::Member && !self.is(Mutant::NoScrub);
        let scrubs = scrubs && mount.ownership.is_in(&s.view);
        if scrubs && mount.doing == Doing::Nothing && !mount.ownership.reverted(&[(*page).clone()]).is_empty()
        {
            let page = Arc::new(mount.ownership.page(0).clone());
            self.mount(s, slot).doing = Doing::Scrubbing(page.clone(), true);
            return self.write(s, slot, page);
        }
        self.install(s, slot, new);
    }

    pub fn take(&self, s: &mut State, slot: usize, ag: u32) -> Option<()> {
        let mount = self.mount(s, slot);
        let mut taking = mount.ownership.take(AgNo(ag)).ok()?;
        if self.is(Mutant::NumberKept) {
            for (ag, token) in &mut taking.groups {
                token.0 -= 1;
                taking.ledger.entries[ag.0 as usize] = LedgerEntry::Own(*token);
            }
        }
        let again = !self.is(Mutant::WrittenOnce) && self.faults + self.late > 0;
        let page = Arc::new(taking.ledger.clone());
        mount.doing = Doing::Taking(taking, again);
        self.write(s, slot, page);
        Some(())
    }

    pub fn written(&self, s: &mut State, slot: usize) {
        let page = s.ledgers[slot].read(true);
        s.ledgers[slot].settle(true, s.late > 0);
        let Some(mount) = &s.mounts[slot] else { return };
        if mount.silent {
            return;
        }
        let mount = self.mount(s, slot);
        match std::mem::replace(&mut mount.doing, Doing::Nothing) {
            Doing::Nothing => {}
            Doing::Taking(taking, true) => {
                mount.doing = Doing::Taking(taking, false);
                self.write(s, slot, page);
            }
            Doing::Taking(taking, false) => {
                let (incarnation, groups) = (mount.incarnation, taking.groups.clone());
                mount.ownership.taken(taking);
                mount.writes += 1;
                for (ag, token) in groups {
                    let first = *s.tokens.entry((ag.0, token)).or_insert(incarnation);
                    s.twice |= first != incarnation;
                }
            }
            Doing::Scrubbing(page, true) => {
                mount.doing = Doing::Scrubbing(page.clone(), false);
                self.write(s, slot, page);
            }
            Doing::Scrubbing(_, false) => {
                mount.writes += 1;
                self.install(s, slot, false);
            }
        }
    }

    pub fn pass(&self, s: &mut State, slot: usize) -> Option<()> {
        let mount = s.mounts[slot].clone()?;
        let quiet = |s: &State, at: SlotId, long: bool| {
            s.mounts[usize::from(at.0)].as_ref().is_some_and(|m| if long { m.expired } else { m.silent })
        };
        let long = !self.is(Mutant::FormerPassedOver);
        let passed = is_barrier_passed(
            mount.ownership.view(),
            SlotId(slot as u16),
            mount.joined,
            &s.beats,
            |at| quiet(s, at, false),
            |at| quiet(s, at, long),
        );
        if !passed && !self.is(Mutant::BarrierSkipped) {
            return None;
        }
        self.mount(s, slot).phase = Phase::Loading(0);
        Some(())
    }

    pub fn load(&self, s: &mut State, slot: usize, new: bool) {
        let row: Vec<_> = s.beats.iter().map(stamp).collect();
        let Some(mount) = s.mounts[slot].clone() else { return };
        let Phase::Loading(at) = mount.phase else { return };
        let page = s.ledgers[at].read(new);
        let sequence = s.ledgers[at].copies.iter().flatten().map(|(_, n)| *n).max().expect("whole");
        let mount = self.mount(s, slot);
        if at == 0 {
            mount.read = row;
        }
        mount.ownership.set(SlotId(at as u16), vec![(*page).clone()]);
        if at == slot {
            mount.sequence = sequence;
        }
        mount.phase = if at + 1 < SLOTS { Phase::Loading(at + 1) } else { Phase::Member };
    }
}

pub fn stamp(beat: &Option<Heartbeat>) -> (Incarnation, u64) {
    beat.as_ref().map_or((Incarnation(0), 0), |h| (h.incarnation, h.ledger_sequence))
}

pub fn fresh(slot: SlotId, incarnation: Incarnation, view: &Arc<View>, phase: Phase) -> Mount {
    Mount {
        incarnation,
        joined: view.epoch,
        ownership: Ownership::new(slot, incarnation, GROUPS_END, view.clone()),
        sequence: 0,
        writes: 0,
        read: vec![(Incarnation(0), 0); SLOTS],
        phase,
        doing: Doing::Nothing,
        silent: false,
        expired: false,
    }
}
