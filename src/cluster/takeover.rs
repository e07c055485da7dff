//! A member's part in taking over from hosts that die: suspect (R4), have them excluded (R5), fence them
//! (R6), hand them to whoever replays, and tell the story.

use crate::base::{Incarnation, Result, SlotId};
use crate::cluster::SlotClaim;
use crate::cluster::anew::Looks;
use crate::cluster::fence::Fences;
use crate::cluster::fencer::Fencer;
use crate::cluster::former::victim_of;
use crate::cluster::join::JoinOptions;
use crate::cluster::node::Node;
use crate::cluster::proof::{self, COPY, MISSED, Proof, is_of_a_copy};
use crate::cluster::view::{bit, dead, dead_of, exclude, hand_on, is_member, live, slots};
use crate::format::cluster::heartbeat::{DeviceFile, FLAG_FENCING, FLAG_REPLAYING, FenceTrouble};
use crate::format::cluster::{FenceClass, SlotState, View};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Called with the slots whose hosts are fenced, to replay their journals and then report them as
/// recovered. From the protocol thread: it must not block.
pub type Successor = Box<dyn Fn(&[SlotId]) + Send + Sync>;

/// What this mount can prove with: see [`crate::cluster::JoinOptions`].
#[derive(Clone)]
pub struct Proofs {
    pub boot: [u8; 16],
    pub file: DeviceFile,
    pub local: bool,
    /// Is a proof to be looked for at all?
    pub wanted: bool,
    pub claim: Option<Arc<dyn SlotClaim>>,
}

impl Proofs {
    /// Those of a mount that joins so.
    pub fn of(options: &JoinOptions) -> Proofs {
        let (boot, file, claim) = (options.boot, options.file, options.claim.clone());
        Proofs { boot, file, local: options.local, wanted: options.prove, claim }
    }
}

/// What is known of a death.
#[derive(Clone, Debug)]
struct Death {
    incarnation: Incarnation,
    name: String,
    /// When its last heartbeat was first seen.
    last_beat: Duration,
    /// We recover it, and it was told as fenced.
    fenced: bool,
}

/// The state of it.
pub struct Takeover {
    proofs: Proofs,
    pub fences: Fences,
    /// Set once somebody here can replay; before, nobody is excluded by this host.
    pub successor: Arc<OnceLock<Successor>>,
    /// What was handed to the successor and is not recovered yet.
    pub batch: u64,
    /// The last batch could not be recovered: not again before this.
    pub not_before: Duration,
    /// How often in a row.
    failures: u32,
    deaths: Vec<Option<Death>>,
    /// Which machines of dead hosts mount again; and why that cannot be seen.
    pub looks: Looks,
    pub blind: Option<FenceTrouble>,
}

/// Failed recoveries in a row after which another member is to try.
const FAILURES_MAX: u32 = 2;

impl Takeover {
    /// Nobody is dead yet.
    pub fn new(proofs: Proofs, slot_count: usize) -> Takeover {
        Takeover {
            proofs,
            fences: Fences::default(),
            successor: Arc::default(),
            batch: 0,
            not_before: Duration::ZERO,
            failures: 0,
            deaths: vec![None; slot_count],
            looks: Looks::default(),
            blind: None,
        }
    }
}

impl Node {
    /// What is due about the dead; called after each beat.
    ///
    /// # Errors
    /// Those of a proposal.
    pub fn tend_the_dead(&mut self) -> Result<()> {
        self.release_proofs();
        if self.takeover.successor.get().is_none() {
            return Ok(());
        }
        self.exclude_suspects()?;
        self.hand_on_hopeless()?;
        self.hand_over_fenced();
        Ok(())
    }

    /// May a mount that joins replay the journals of those that it sees to, if any? Beside other members it
    /// does not: it becomes one of them first, for they may be writing, they may die, and somebody has to
    /// take over from them meanwhile.
    pub fn may_replay(&self) -> bool {
        let fences = &self.takeover.fences;
        let ready = || fences.ready(&self.view, self.slot, &self.row, &self.watch, self.clock.now());
        dead_of(&self.view, self.slot) == 0 || !self.is_alone() || ready().is_some()
    }

    /// R4, R5. The lowest member that answers proposes; the others in turn, should it not.
    fn exclude_suspects(&mut self) -> Result<()> {
        let now = self.clock.now();
        if self.lease_end.is_none_or(|end| now > end) || self.leaving {
            return Ok(()); // who cannot renew has no say in who is dead
        }
        let mut suspects = Vec::new();
        for (slot, member) in slots(&self.view.clone()) {
            if slot == self.slot || !is_member(&self.view, slot, member.incarnation) {
                continue;
            }
            let silence = self.watch.silence(slot);
            let proven = silence >= self.timing.heartbeat * MISSED
                && self.prove_gone(slot, member.incarnation) == Proof::Gone;
            if proven || silence >= self.patience(slot) {
                suspects.push((slot, member.incarnation));
            }
        }
        let me = self.slot;
        let forsaken = slots(&self.view).any(|(_, s)| match s.state {
            SlotState::Dead { adopter } => live(&self.view) & bit(adopter) == 0,
            _ => false,
        });
        if suspects.is_empty() && !(forsaken && self.turn(0) == 0) {
            return Ok(());
        }
        self.tell_suspicion(&suspects);
        self.propose(&mut |view| exclude(view, me, &suspects))
    }

    fn tell_suspicion(&self, suspects: &[(SlotId, Incarnation)]) {
        for (slot, _) in suspects {
            let silence = self.watch.silence(*slot).as_secs_f32();
            let why = match self.takeover.fences.is_proven(&self.view, *slot) {
                false => "under gap-free polling",
                true => "and its process is gone from this machine",
            };
            tracing::warn!(
                "{} has shown no heartbeat for {silence:.1} s {why}; it is excluded",
                self.name_of(*slot)
            );
        }
    }

    /// F1: was the last mount of `slot` a process of this boot, on this very file, that has let go of it?
    fn prove_gone(&mut self, slot: SlotId, incarnation: Incarnation) -> Proof {
        if self.takeover.fences.proven(slot) == Some(incarnation) {
            return Proof::Gone;
        }
        let Some(cell) = self.row[usize::from(slot.0)].as_ref() else { return Proof::None };
        let proofs = &self.takeover.proofs;
        if !proofs.wanted || cell.incarnation != incarnation || cell.boot != proofs.boot {
            return Proof::None;
        }
        if is_of_a_copy(cell, &proofs.file, &self.watch) {
            tracing::warn!("{} {COPY}", self.name_of(slot));
            self.takeover.proofs.wanted = false;
            return Proof::None;
        }
        let proof = match proofs.file.rdev {
            1.. => proof::of_device(cell, &proofs.file, &self.watch),
            0 => {
                let same =
                    (cell.file.dev, cell.file.ino, cell.file.rdev) == (proofs.file.dev, proofs.file.ino, 0);
                let (offset, length) = self.disk.slot_range(slot);
                let claim = proofs.claim.as_ref().filter(|_| proofs.local && same);
                match claim.is_some_and(|claim| claim.try_hold(offset, length).unwrap_or(false)) {
                    true => Proof::Gone,
                    false => Proof::None,
                }
            }
        };
        if proof == Proof::Gone {
            self.takeover.fences.prove(slot, incarnation);
        }
        proof
    }

    /// F8: have those kept off that we see to, by whatever does it beside time; and whoever looked after our slot
    /// before us, if it does not answer for so long that we would go on without it: as long as it is let
    /// through, an adoption of its may land. Does not block.
    pub fn tend_fences(&mut self) -> Result<()> {
        if self.fencer.is_none() || self.leaving {
            return Ok(());
        }
        let now = self.clock.now();
        let fences = &self.takeover.fences;
        let mut due = fences.due(&self.view, self.slot);
        if let SlotState::Live { former: Some(former) } = self.view.slots[usize::from(self.slot.0)].state
            && !self.is_barrier_passed()
            && self.is_stuck(former)
            && fences.is_past_wait(&self.view, former, &self.watch, now)
            && !fences.is_cut(&self.view, former)
            && !due.contains(&former)
            && !self.is_seen_to(former)
        {
            due.push(former);
        }
        // Nothing need be done about who is gone from this machine, and a command could not; nor, yet, about whom
        // a few more beats may show to be.
        due.retain(|slot| {
            let incarnation = self.view.slots[usize::from(slot.0)].incarnation;
            self.prove_gone(*slot, incarnation) == Proof::None
        });
        let victim = |slot: &SlotId| {
            let at = usize::from(slot.0);
            let cell = self.row.get(at).and_then(|cell| cell.as_ref());
            victim_of(&self.disk, *slot, &self.view.slots[at], cell, &self.known)
        };
        let mut victims: Vec<_> = due.iter().map(victim).collect();
        if self.view.fence == FenceClass::Command as u8 {
            victims = self.look_for_machines(victims);
        }
        let Some(fencer) = &mut self.fencer else { return Ok(()) };
        if let Some(lease_end) = self.lease_end {
            fencer.permit(lease_end);
        }
        let done = fencer.tend(&victims);
        self.beat.fencing = fencer.trouble().or_else(|| self.takeover.blind.clone());
        match done {
            Ok(done) => done.into_iter().for_each(|(slot, inc)| self.takeover.fences.cut(slot, inc)),
            Err(e) => return Err(self.lost(e.to_string())),
        }
        Ok(())
    }

    /// Does another member that answers have the dead host in `slot` kept off, by a command that must not be run
    /// twice at once?
    fn is_seen_to(&self, slot: SlotId) -> bool {
        match self.view.slots[usize::from(slot.0)].state {
            SlotState::Dead { adopter } if self.view.fence == FenceClass::Command as u8 => {
                adopter != self.slot && live(&self.view) & bit(adopter) != 0 && !self.watch.is_silent(adopter)
            }
            _ => false,
        }
    }

    /// Is the mount that the view has in `slot` the one whose last heartbeat stands there, and silent? A mount
    /// that is to write its first one there is not.
    fn is_stuck(&self, slot: SlotId) -> bool {
        let at = usize::from(slot.0);
        let stands = self.row[at].as_ref().map(|cell| cell.incarnation);
        let occupied = (live(&self.view) | dead(&self.view)) & bit(slot) != 0;
        occupied && stands == Some(self.view.slots[at].incarnation) && self.watch.is_silent(slot)
    }

    /// T5b: can no ledger write of the mount in `slot`, which does not answer, land any more?
    pub fn is_over(&self, slot: SlotId, now: Duration) -> bool {
        let fences = &self.takeover.fences;
        let kept_off = self.view.fence == FenceClass::Lease as u8
            || fences.is_cut(&self.view, slot)
            || fences.is_proven(&self.view, slot);
        kept_off && fences.is_past_wait(&self.view, slot, &self.watch, now)
    }

    /// Proofs of hosts that are recovered, by us or others: the next mount of the slot wants its range.
    fn release_proofs(&mut self) {
        let occupied = live(&self.view) | dead(&self.view);
        for (slot, member) in slots(&self.view.clone()) {
            let proven = self.takeover.fences.proven(slot);
            if proven.is_none() || proven == Some(member.incarnation) && occupied & bit(slot) != 0 {
                continue;
            }
            self.takeover.fences.forget_proof(slot);
            let (offset, length) = self.disk.slot_range(slot);
            if let Some(Err(e)) = self.takeover.proofs.claim.as_ref().map(|c| c.release(offset, length)) {
                tracing::warn!("releasing the byte range of slot {slot}: {e}");
            }
        }
    }

    /// We are no member any more, but our process goes on: what others could prove is not in our hands.
    pub fn drop_proofs(&mut self) {
        for (slot, _) in slots(&self.view.clone()).filter(|(slot, _)| *slot != self.slot) {
            if self.takeover.fences.proven(slot).is_none() {
                continue;
            }
            self.takeover.fences.forget_proof(slot);
            let (offset, length) = self.disk.slot_range(slot);
            if let Some(Err(e)) = self.takeover.proofs.claim.as_ref().map(|c| c.release(offset, length)) {
                tracing::warn!("releasing the byte range of slot {slot}: {e}");
            }
        }
    }

    /// R6, F2. All that we see to at once, and nothing while the last batch is at work.
    fn hand_over_fenced(&mut self) {
        let now = self.clock.now();
        let ours = dead_of(&self.view, self.slot);
        self.beat.flags &= !(FLAG_FENCING | FLAG_REPLAYING);
        self.beat.flags |= match self.takeover.batch {
            0 if ours != 0 => FLAG_FENCING,
            0 => 0,
            _ => FLAG_REPLAYING,
        };
        if self.takeover.batch != 0 || now < self.takeover.not_before {
            return;
        }
        let fences = &self.takeover.fences;
        let Some(batch) = fences.ready(&self.view, self.slot, &self.row, &self.watch, now) else { return };
        let batch_slots: Vec<SlotId> =
            slots(&self.view).map(|(slot, _)| slot).filter(|s| batch & bit(*s) != 0).collect();
        for slot in &batch_slots {
            let why = match (fences.is_proven(&self.view, *slot), fences.is_cut(&self.view, *slot)) {
                (true, _) => "its process is gone",
                (false, true) => "it is kept off the disk",
                (false, false) => "its lease and its last writes are over",
            };
            if let Some(death) = &mut self.takeover.deaths[usize::from(slot.0)]
                && !std::mem::replace(&mut death.fenced, true)
            {
                let after = now.saturating_sub(death.last_beat).as_secs_f32();
                tracing::info!("{} is fenced {after:.1} s after its last heartbeat: {why}", death.name);
            }
        }
        self.takeover.batch = batch;
        self.beat.flags = self.beat.flags & !FLAG_FENCING | FLAG_REPLAYING;
        if let Some(successor) = self.takeover.successor.get() {
            successor(&batch_slots);
        }
    }

    /// The batch that was handed over is recovered, or could not be: then it is tried again after a while.
    pub fn batch_over(&mut self, recovered: bool) {
        let at_work = std::mem::take(&mut self.takeover.batch) != 0;
        if recovered {
            self.takeover.failures = 0;
        } else if at_work {
            self.takeover.failures += 1;
            self.takeover.not_before = self.clock.now() + self.timing.lease;
        }
    }

    /// R5: what this host has failed to recover again and again, perhaps by its own way to the disk, is for the
    /// next member that answers; and whom it cannot keep off by the command: its program may differ. Nothing of it is under this host's hands any more: the batch is over.
    fn hand_on_hopeless(&mut self) -> Result<()> {
        let by_command = self.view.fence == FenceClass::Command as u8;
        let helpless = by_command && self.fencer.as_ref().is_some_and(Fencer::is_hopeless);
        if self.takeover.batch != 0 || self.takeover.failures < FAILURES_MAX && !helpless {
            return Ok(());
        }
        self.takeover.failures = 0;
        let (me, answering) = (self.slot, !self.silent());
        let before = dead_of(&self.view, me);
        if hand_on(&self.view, me, answering).is_some() {
            tracing::warn!("this host cannot recover its dead: another one is to try");
        }
        // What was learnt since may be somebody else's to hand on.
        self.propose(&mut |view| hand_on(view, me, answering).filter(|_| dead_of(view, me) & before != 0))
    }

    /// A view is learnt: who came, who died, who is recovered.
    pub fn note_view(&mut self, next: &View) {
        let now = self.clock.now();
        for (slot, new) in slots(next) {
            let old = self.view.slots[usize::from(slot.0)];
            let lives = matches!(new.state, SlotState::Live { .. });
            if lives && (old.incarnation != new.incarnation || !is_member(&self.view, slot, old.incarnation))
            {
                self.watch.expect(slot, now);
            }
            match new.state {
                SlotState::Dead { adopter } => self.note_death(slot, new.incarnation, adopter, next, now),
                _ => self.note_recovery(slot, new.state, now),
            }
        }
    }

    fn note_death(
        &mut self,
        slot: SlotId,
        incarnation: Incarnation,
        adopter: SlotId,
        next: &View,
        now: Duration,
    ) {
        let known = &self.takeover.deaths[usize::from(slot.0)];
        let old = self.view.slots[usize::from(slot.0)].state;
        if known.as_ref().is_some_and(|d| d.incarnation == incarnation)
            && old == (SlotState::Dead { adopter })
        {
            return;
        }
        let death = Death {
            incarnation,
            name: self.name_of(slot),
            last_beat: self.watch.first_seen(slot).unwrap_or(now),
            fenced: false,
        };
        let since = now.saturating_sub(death.last_beat).as_secs_f32();
        let by = if adopter == self.slot { "this host".to_string() } else { self.name_of(adopter) };
        tracing::warn!(
            "{} is dead by view {}, {since:.1} s after its last heartbeat; {by} takes over from it",
            death.name,
            next.epoch
        );
        self.takeover.deaths[usize::from(slot.0)] = Some(death);
    }

    fn note_recovery(&mut self, slot: SlotId, state: SlotState, now: Duration) {
        if let Some(death) = self.takeover.deaths[usize::from(slot.0)].take() {
            let after = now.saturating_sub(death.last_beat).as_secs_f32();
            let whose = match state {
                SlotState::Clean { .. } => "what it held is free",
                _ => "its slot has a new host",
            };
            tracing::info!("{} is recovered {after:.1} s after its last heartbeat: {whose}", death.name);
        }
    }

    /// A slot with the name of the host that was there last.
    fn name_of(&self, slot: SlotId) -> String {
        let beat = self.row.get(usize::from(slot.0)).and_then(|cell| cell.as_ref());
        beat.map_or_else(|| format!("slot {slot}"), |b| format!("{} (slot {slot})", b.name))
    }
}
