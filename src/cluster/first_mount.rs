//! The first mount of a volume without living members.
//!
//! Who is provably gone needs no waiting: same boot of this machine and, for a block device, the
//! same device file (whose presence lock we could take), and a few heartbeats missed ([`proof`]); for an image, the
//! same file on a filesystem of this machine alone, and the byte-range lock that each mount holds could be taken.
//!
//! Two first mounts at once must not write from one slot. On one machine the lobby's byte range is
//! the lock. Between machines it is a delta lease (Chockler and Malkhi) on the lobby cell with the
//! slot's number: write the claim, wait longer than any write that began before it could be seen,
//! read it back, and read it again before each write of the ballot: whoever takes over a claim that
//! stands still waits for one write, not for all of a slow mount's. That look holds for a guard time: a
//! read that took longer than half of it is made again, the rest is for the way to the write. From
//! different slots, Disk Paxos decides.

use crate::base::{Epoch, Error, Incarnation, Result, SlotId};
use crate::cluster::join::{Joiner, Tried};
use crate::cluster::node::{back_off, run_ballot};
use crate::cluster::paxos::Proposer;
use crate::cluster::proof::{self, COPY, Proof, is_of_a_copy};
use crate::cluster::view::{bit, first_slot, slot_of, slots};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::{Claim, Heartbeat, SlotState, SlotView};
use std::time::Duration;

/// Lost ballots after which a first mount looks afresh at who is there.
const LOSSES_MAX: u32 = 5;
/// Looks at the claim that may take too long before a ballot is given up.
const LOOKS_MAX: u32 = 5;

impl Joiner {
    /// Is every former member gone for certain?
    pub fn are_all_gone(&mut self) -> Result<bool> {
        let others = self.others();
        let now = self.options.clock.now();
        let gone = |s| self.watch.is_past_wait(s, Duration::ZERO, now);
        if slots(&self.view).all(|(s, _)| others & bit(s) == 0 || gone(s)) {
            return Ok(true);
        }
        Ok(self.prove_gone(others)? == Proof::Gone)
    }

    fn prove_gone(&mut self, others: u64) -> Result<Proof> {
        if !self.options.prove || self.options.local && !self.hold_lobby()? {
            return Ok(Proof::None);
        }
        for (slot, member) in slots(&self.view.clone()).filter(|(s, _)| others & bit(*s) != 0) {
            let proof = self.is_gone_here(slot, member.incarnation)?;
            if proof != Proof::Gone {
                self.release_proofs()?;
                return Ok(proof);
            }
        }
        Ok(Proof::Gone)
    }

    /// The last heartbeat of this mount of `slot`, if it was one of this boot.
    fn beat_of_this_boot(&self, slot: SlotId, incarnation: Incarnation) -> Option<&Heartbeat> {
        let cell = self.row.get(usize::from(slot.0))?.as_ref();
        cell.filter(|h| h.incarnation == incarnation && h.boot == self.options.boot)
    }

    /// Was this mount of `slot` a process of this boot, on this very block device, that has let go of it? Of an
    /// image that shows only by its byte range.
    pub fn proof_by_device(&self, slot: SlotId, incarnation: Incarnation) -> Proof {
        match self.beat_of_this_boot(slot, incarnation) {
            Some(cell) if self.options.prove => proof::of_device(cell, &self.options.file, &self.watch),
            _ => Proof::None,
        }
    }

    /// Was this mount of `slot` a process of this boot, on this very file, that has let go of it?
    pub fn is_gone_here(&mut self, slot: SlotId, incarnation: Incarnation) -> Result<Proof> {
        let (options, file) = (&self.options, self.options.file);
        let ours = self.beat_of_this_boot(slot, incarnation).filter(|_| options.prove);
        if ours.is_some_and(|h| is_of_a_copy(h, &file, &self.watch)) {
            tracing::warn!("{} {COPY}", self.name_of(slot));
            self.options.prove = false;
            return Ok(Proof::None);
        }
        let of_image = |h: &Heartbeat| (h.file.dev, h.file.ino, h.file.rdev) == (file.dev, file.ino, 0);
        let proof = match file.rdev {
            0 if options.local && ours.is_some_and(of_image) && self.hold(slot)? => Proof::Gone,
            0 => Proof::None,
            _ => self.proof_by_device(slot, incarnation),
        };
        if proof == Proof::Gone {
            self.proven.insert(slot, incarnation);
        }
        Ok(proof)
    }

    /// May a few more polls show that former members are gone?
    pub fn awaits_proof(&self) -> bool {
        let others = self.others();
        let later = |(slot, member): (SlotId, &SlotView)| {
            others & bit(slot) != 0 && self.proof_by_device(slot, member.incarnation) == Proof::Later
        };
        slots(&self.view).any(later)
    }

    fn hold(&mut self, slot: SlotId) -> Result<bool> {
        let Some(claim) = &self.options.claim else { return Ok(false) };
        let (offset, length) = self.disk.slot_range(slot);
        let got = self.held & bit(slot) != 0 || claim.try_hold(offset, length)?;
        if got {
            self.held |= bit(slot);
        }
        Ok(got)
    }

    fn hold_lobby(&mut self) -> Result<bool> {
        let Some(claim) = &self.options.claim else { return Ok(false) };
        let (offset, length) = self.disk.lobby_range();
        self.lobby_held = self.lobby_held || claim.try_hold(offset, length)?;
        Ok(self.lobby_held)
    }

    /// Hold the byte range of the slot that a view gave us; its former mount may still be exiting.
    pub fn hold_own(&mut self, slot: SlotId) -> Result<()> {
        if self.options.claim.is_none() {
            return Ok(());
        }
        let limit = self.options.clock.now() + self.options.timing.suspicion;
        while !self.hold(slot)? {
            self.check_wanted()?;
            if self.options.clock.now() > limit {
                return Err(Error::Busy(format!("a process on this machine still holds slot {slot}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Let go of every proof: somebody lives, or is not provably gone.
    pub fn release_proofs(&mut self) -> Result<()> {
        self.proven.clear();
        self.release_held(0)
    }

    /// We are a member and our heartbeat says so: other mounts may look for themselves.
    pub fn release_others(&mut self, own: SlotId) -> Result<()> {
        self.release_held(bit(own))
    }

    fn release_held(&mut self, keep: u64) -> Result<()> {
        let Some(claim) = self.options.claim.clone() else { return Ok(()) };
        for (slot, _) in slots(&self.view).filter(|(s, _)| self.held & !keep & bit(*s) != 0) {
            let (offset, length) = self.disk.slot_range(slot);
            claim.release(offset, length)?;
        }
        self.held &= keep;
        if std::mem::take(&mut self.lobby_held) {
            let (offset, length) = self.disk.lobby_range();
            claim.release(offset, length)?;
        }
        Ok(())
    }

    /// Every former member is gone: take a slot and propose the view in which we are the only member.
    /// Returning without being in a view means that somebody else was faster, or may be: look again.
    pub fn first_mount(&mut self) -> Result<()> {
        let Some(slot) = first_slot(&self.view, self.options.usable) else {
            return Err(Error::Device("the volume has no usable slot".into()));
        };
        self.options.lease.confirm()?;
        let epoch = self.view.epoch;
        let (ours, local) = self.take_slot(slot)?;
        // What we decided upon may be old by the time of the claim.
        self.poll()?;
        self.read_views()?;
        self.check_profile()?;
        if !ours || self.view.epoch != epoch || self.is_anybody_alive() || !self.are_all_gone()? {
            return self.release_proofs();
        }
        let state = self.view.slots[usize::from(slot.0)].state;
        self.tried = Some(Tried {
            epoch: Epoch(epoch.0 + 1),
            dirty: matches!(state, SlotState::Live { .. } | SlotState::Dead { .. }),
            former: self.row[usize::from(slot.0)].as_ref().map_or(Incarnation(0), |cell| cell.incarnation),
        });
        if !self.fence_former(slot)? {
            return self.release_proofs();
        }
        let (ballot, mut sequence) = self.ballots[usize::from(slot.0)].clone();
        let mut proposer = Proposer::new(slot, ballot);
        proposer.learn(&self.view);
        for losses in 1..=LOSSES_MAX {
            let view = self.first_view(slot);
            let may_write = || self.may_propose(slot, local);
            let (me, sequence) = (self.incarnation, &mut sequence);
            match run_ballot(&self.disk, &mut proposer, slot, me, sequence, view, &may_write) {
                Ok(Some(view)) => {
                    self.view = view;
                    break;
                }
                Ok(None) => back_off(slot, losses),
                Err(Error::Busy(why)) => {
                    tracing::info!("{why}; looking again");
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        match slot_of(&self.view, self.incarnation) {
            Some(_) => Ok(()),
            None => self.release_proofs(),
        }
    }

    /// Is the slot ours to propose from now? And: by the locks of this machine alone?
    pub fn take_slot(&mut self, slot: SlotId) -> Result<(bool, bool)> {
        let local = self.options.local && self.options.claim.is_some();
        let ours = match local {
            true => self.hold_lobby()? && self.hold(slot)?,
            false => self.claim_slot(slot)?,
        };
        Ok((ours, local))
    }

    /// Is the slot still ours to propose from, and the volume still the one we loaded?
    pub fn may_propose(&self, slot: SlotId, local: bool) -> Result<()> {
        self.options.lease.confirm()?;
        if local {
            return Ok(());
        }
        for _ in 0..LOOKS_MAX {
            let begun = self.options.clock.now();
            if !self.is_claim_ours(slot)? {
                return Err(Error::Busy(format!(
                    "another first mount has taken over the claim to slot {slot}"
                )));
            }
            if self.options.clock.now() <= begun + self.options.timing.guard / 2 {
                return Ok(());
            }
        }
        Err(Error::Busy(format!("the claim to slot {slot} cannot be read in time")))
    }

    fn is_claim_ours(&self, slot: SlotId) -> Result<bool> {
        Ok(self.disk.read_claim(slot.0)?.is_some_and(|c| c.incarnation == self.incarnation))
    }

    /// The delta lease. `false`: another claim stands or came over ours.
    fn claim_slot(&mut self, slot: SlotId) -> Result<bool> {
        let before = self.disk.read_claim(slot.0)?;
        if before.as_ref().is_some_and(|c| c.kind != ClaimKind::None && c.incarnation != self.incarnation) {
            if self.claim.as_ref().is_some_and(|(_, ours)| ours.kind == ClaimKind::First) {
                self.forget_claim();
            }
            // A claim that stands still for the claim and a suspicion is from a mount that died.
            // One that lives may be waiting for what it has kept off.
            self.pause(self.options.timing.claim_wait() * 2 + self.options.timing.suspicion)?;
            if self.disk.read_claim(slot.0)? != before {
                return Ok(false);
            }
            // If it is only paused, it looked at its claim before its ballot, and goes on.
            self.ousted.extend(before.filter(|c| c.kind == ClaimKind::First).map(|c| c.incarnation));
        }
        self.withdraw()?;
        let mut claim = self.new_claim(ClaimKind::First);
        claim.sequence = 1;
        // Before it is written: what fails may stand there all the same.
        self.set_claim(slot.0, claim.clone());
        self.disk.write_claim(slot.0, &claim)?;
        self.pause(self.options.timing.claim_hold())?;
        self.is_claim_ours(slot)
    }

    /// Write the claim again, so that it does not stand still. `false`: it is another's.
    pub fn renew_claim(&mut self, slot: SlotId) -> Result<bool> {
        let Some((_, claim)) = self.claim.clone().filter(|(cell, _)| *cell == slot.0) else {
            return Ok(false);
        };
        if !self.is_claim_ours(slot)? {
            return Ok(false);
        }
        let claim = Claim { sequence: claim.sequence + 1, over: self.over(), ..claim };
        self.disk.write_claim(slot.0, &claim)?;
        self.set_claim(slot.0, claim);
        Ok(true)
    }

    /// Wait, polling on so that who lives is seen; ends early if somebody does.
    pub fn pause(&mut self, length: Duration) -> Result<()> {
        let end = self.options.clock.now() + length;
        while self.options.clock.now() < end && !self.is_anybody_alive() {
            let step = (self.options.timing.heartbeat / 4).min(end.saturating_sub(self.options.clock.now()));
            std::thread::sleep(step.max(Duration::from_millis(1)));
            self.show()?;
            self.poll()?;
        }
        Ok(())
    }
}
