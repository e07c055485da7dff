//! Asking living members to be let in: a mount's claim in the lobby.

use crate::base::{Epoch, Error, Incarnation, Result, SlotId};
use crate::cluster::join::Joiner;
use crate::cluster::view::{bit, live, slot_of, slots};
use crate::format::cluster::heartbeat::{FenceTrouble, Refusal};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::view::{PROTOCOL, PROTOCOL_MIN};
use crate::format::cluster::{Claim, FenceClass, Heartbeat, SlotView};
use crate::format::layout::LOBBY_CELLS;
use rand::Rng;
use std::ops::Range;
use std::time::Duration;

/// How many times the wait for the dead is begun anew, because something moves that is no member's
/// life, before a mount gives up.
const WAITS_MAX: u32 = 8;

/// For how long each cell of the lobby was seen to stand still.
#[derive(Default)]
pub struct Still {
    /// Who wrote it, how often, and since when.
    cells: Vec<(Incarnation, u64, Duration)>,
    last: Duration,
}

impl Still {
    fn see(&mut self, now: Duration, lobby: &[Option<Claim>]) {
        self.last = now;
        self.cells.resize(lobby.len(), (Incarnation(0), 0, now));
        for (cell, claim) in self.cells.iter_mut().zip(lobby) {
            if let Some(Claim { incarnation, sequence, .. }) = claim
                && (cell.0, cell.1) != (*incarnation, *sequence)
            {
                *cell = (*incarnation, *sequence, now);
            }
        }
    }

    fn lasted(&self, cell: u16) -> Duration {
        self.cells
            .get(usize::from(cell))
            .map_or(Duration::ZERO, |(.., since)| self.last.saturating_sub(*since))
    }
}

impl Joiner {
    /// Where those claim who only show that they live: no first mount claims a slot there.
    pub const CELLS: Range<u16> = LOBBY_CELLS / 2..LOBBY_CELLS;

    /// Keep a claim in the lobby.
    pub fn ask(&mut self, started: Duration) -> Result<()> {
        self.look_for_refusal()?;
        if self.options.clock.now() >= started + self.options.patience {
            let names: Vec<_> = self.row.iter().flatten().filter(|h| self.watch.has_moved(h.slot)).collect();
            let names: Vec<_> = names.iter().map(|h| format!("slot {} ({})", h.slot, h.name)).collect();
            let _ = self.withdraw();
            let (names, trouble) = (names.join(", "), self.trouble());
            return Err(Error::TimedOut(format!("waiting to be let in by {names}{trouble}")));
        }
        if self.claim.as_ref().is_some_and(|(_, claim)| claim.kind != ClaimKind::Join) {
            self.withdraw()?;
        }
        self.claim_any(0..LOBBY_CELLS)
    }

    /// While nobody lives, and somebody may be about to run a command for those who did: let it see that this
    /// machine is well. Not where a first mount claims a slot.
    pub fn show(&mut self) -> Result<()> {
        const COMMAND: FenceClass = FenceClass::Command;
        match &self.claim {
            // Also where those who died had another class: the first mount changes it, and keeps them off by the
            // command.
            _ if !self.may_tell() => return Ok(()),
            // Whoever lives under another class would let us in: it is seen to live by then.
            _ if self.view.fence != COMMAND as u8 && !self.are_others_quiet() => return Ok(()),
            Some((cell, claim)) if claim.kind == ClaimKind::First => {
                let stands = self.disk.read_claim(*cell)?;
                if stands.is_none_or(|c| c.incarnation == self.incarnation) {
                    return Ok(());
                }
                self.forget_claim();
            }
            Some((cell, _)) if !Joiner::CELLS.contains(cell) => self.withdraw()?,
            _ => {}
        }
        // Whoever becomes the first member may let us in by this.
        self.class = COMMAND;
        self.claim_any(Joiner::CELLS)
    }

    /// Have all that were members missed a heartbeat, as far as we have looked?
    fn are_others_quiet(&self) -> bool {
        let (others, long) = (self.others(), self.options.timing.heartbeat * 2);
        slots(&self.view).all(|(slot, _)| others & bit(slot) == 0 || self.watch.silence(slot) >= long)
    }

    /// Keep a claim in one of `cells`, or where it is.
    fn claim_any(&mut self, cells: Range<u16>) -> Result<()> {
        let lobby = self.disk.read_lobby()?;
        self.still.see(self.options.clock.now(), &lobby);
        let ours = |c: &Option<Claim>| c.as_ref().is_some_and(|c| c.incarnation == self.incarnation);
        let (cell, mut claim) = match self.claim.take() {
            Some((cell, claim)) if ours(&lobby[usize::from(cell)]) => (cell, claim),
            _ => match self.free_cell(cells, &lobby) {
                Some(cell) => (cell, self.new_claim(ClaimKind::Join)),
                // Another look: whoever was killed does not write its claim anew.
                None => return Ok(()),
            },
        };
        claim.sequence += 1;
        claim.over = self.over();
        // Before it is written: what fails may stand there all the same.
        self.set_claim(cell, claim.clone());
        self.disk.write_claim(cell, &claim)
    }

    /// One of `cells` for a claim of ours: one that nobody claims; else of a mount that asks no more, or that has been
    /// unreadable for as long; else where somebody has left word.
    pub fn free_cell(&self, cells: Range<u16>, lobby: &[Option<Claim>]) -> Option<u16> {
        let others = self.others();
        let is_needed = |i: &Incarnation| {
            slots(&self.view).any(|(slot, s)| others & bit(slot) != 0 && s.incarnation == *i)
        };
        let pick = |test: &dyn Fn(u16, Option<&Claim>) -> bool| {
            let claim = |cell: &u16| lobby.get(usize::from(*cell)).and_then(|claim| claim.as_ref());
            let fit: Vec<u16> = cells.clone().filter(|cell| test(*cell, claim(cell))).collect();
            fit.get(rand::rng().random_range(0..fit.len().max(1))).copied()
        };
        let long = self.options.timing.suspicion;
        let is_free = |claim: Option<&Claim>| claim.is_some_and(|claim| claim.kind == ClaimKind::None);
        // A first mount's tells who may have to be kept off; one that cannot be read is being written.
        let is_stale = |cell, claim: Option<&Claim>| {
            claim.is_none_or(|claim| claim.kind == ClaimKind::Join) && self.still.lasted(cell) >= long
        };
        let says = |claim: Option<&Claim>| claim.is_some_and(|claim| claim.over.iter().any(is_needed));
        pick(&|_, claim| is_free(claim) && !says(claim))
            .or_else(|| pick(&|cell, claim| is_stale(cell, claim) && !says(claim)))
            .or_else(|| pick(&|cell, claim| is_free(claim) || is_stale(cell, claim)))
    }

    pub fn new_claim(&self, kind: ClaimKind) -> Claim {
        Claim {
            kind,
            incarnation: self.incarnation,
            sequence: 0,
            host: self.options.host,
            boot: self.options.boot,
            file: self.options.file,
            protocols: (PROTOCOL_MIN, PROTOCOL),
            name: self.options.name.clone(),
            over: self.over(),
        }
    }

    /// Nobody answers, and not everybody is known to be gone: say whom we wait for, once per view.
    pub fn tell_waiting(&self, started: Duration, told: &mut Option<Epoch>) -> Result<()> {
        let now = self.options.clock.now();
        let waits = |(slot, _): &(SlotId, &SlotView)| {
            self.others() & bit(*slot) != 0 && !self.watch.is_past_wait(*slot, Duration::ZERO, now)
        };
        let names: Vec<_> = slots(&self.view).filter(waits).map(|(slot, _)| self.name_of(slot)).collect();
        let names = names.join(", ");
        if now >= started + self.options.patience + self.options.timing.wait() * WAITS_MAX {
            return Err(Error::TimedOut(format!(
                "waiting for {names} to answer, or to be gone for certain: unmount there, or try again"
            )));
        }
        // Who lives has beaten by then, and who is gone from this machine is known.
        let patient = now >= started + self.options.timing.heartbeat * 3;
        let proven_soon = self.awaits_proof() && now < started + self.options.timing.suspicion;
        if patient && !proven_soon && told.replace(self.view.epoch) != Some(self.view.epoch) {
            let wait = self.options.timing.wait().as_secs_f32();
            tracing::info!(
                "no heartbeat of {names} so far; mounting goes on when one comes, or when whoever it was is \
                 certainly gone, {wait:.1} s after its last"
            );
        }
        Ok(())
    }

    fn look_for_refusal(&mut self) -> Result<()> {
        let refusal = self.row.iter().flatten().find_map(|h| match h.refused {
            Some((incarnation, why)) if incarnation == self.incarnation => Some((h.name.clone(), why)),
            _ => None,
        });
        let Some((by, why)) = refusal else { return Ok(()) };
        let _ = self.withdraw();
        Err(Error::Device(match why {
            Refusal::NoSlot => format!(
                "all {} slots are taken, by {}: unmount one of these hosts first",
                self.options.usable.count_ones(),
                self.members()
            ),
            Refusal::Protocol => {
                format!(
                    "the members speak none of the protocol versions {PROTOCOL_MIN} to {PROTOCOL} (says {by})"
                )
            }
        }))
    }

    /// Nobody is let in while a host is dead that cannot be kept off.
    fn trouble(&self) -> String {
        let troubled = self.row.iter().flatten().filter(|h| self.watch.has_moved(h.slot));
        let tell = |(h, t): (&Heartbeat, &FenceTrouble)| {
            let (dead, FenceTrouble { attempts, error, .. }) = (self.name_of(t.slot), t);
            format!("; {} cannot keep {dead} off the disk ({attempts} attempts): {error}", h.name)
        };
        troubled.filter_map(|h| Some((h, h.fencing.as_ref()?))).map(tell).collect()
    }

    /// Who has the volume, by name.
    fn members(&self) -> String {
        let live = live(&self.view);
        let taken = slots(&self.view).map(|(slot, _)| slot).filter(|s| live & bit(*s) != 0);
        taken.map(|slot| self.name_of(slot)).collect::<Vec<_>>().join(", ")
    }

    /// Empty our lobby cell, if it is still ours.
    pub fn withdraw(&mut self) -> Result<()> {
        let Some((cell, mut claim)) = self.claim.take() else { return Ok(()) };
        if self.disk.read_claim(cell)?.is_some_and(|c| c.incarnation == self.incarnation) {
            claim.kind = ClaimKind::None;
            claim.sequence += 1;
            // Who was silent when it was written may have gone on.
            claim.over = self.over();
            self.disk.write_claim(cell, &claim)?;
        }
        Ok(())
    }

    /// We give up asking. Members that read our claim before it was withdrawn may still let us in: the slot they gave
    /// us then.
    pub fn give_up(&mut self) -> Option<SlotId> {
        let withdrawn = self.withdraw();
        self.tell_left(withdrawn.and(self.leave_word(self.over())));
        if self.asked {
            std::thread::sleep(self.options.timing.heartbeat * 2);
        }
        let read = self.read_patiently();
        let slot = slot_of(&self.view, self.incarnation).filter(|_| read.is_ok());
        // Whoever lets us in later than that finds a mount that never says a word, on a machine that is well. A ballot of
        // ours may still be on its way.
        if slot.is_none() && self.asked && self.tried.is_none() {
            self.tell_left(self.leave_word(vec![self.incarnation]));
        }
        slot
    }

    fn tell_left(&self, left: Result<()>) {
        if let Err(e) = left {
            tracing::warn!("withdrawing the claim: {e}");
        }
    }

    /// Remember a claim, to be withdrawn.
    pub fn set_claim(&mut self, cell: u16, claim: Claim) {
        self.claim = Some((cell, claim));
        self.asked = true;
    }

    /// Ours is another mount's now, which asks for itself.
    pub fn forget_claim(&mut self) {
        self.claim = None;
    }
}
