//! Asking living members to be let in: a mount's claim in the lobby.

use crate::base::{Epoch, Error, Result, SlotId};
use crate::cluster::class::Wanted;
use crate::cluster::join::Joiner;
use crate::cluster::view::{bit, live, slots};
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

impl Joiner {
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
        const CELLS: Range<u16> = LOBBY_CELLS / 2..LOBBY_CELLS;
        const COMMAND: FenceClass = FenceClass::Command;
        let wanted = self.options.fence.wanted == Wanted::Class(COMMAND);
        let commanded = wanted && self.others() != 0;
        match &self.claim {
            // Also where those who died had another class: the first mount changes it, and keeps them off by the
            // command. On a device that is reserved nobody writes unregistered.
            _ if !commanded => return Ok(()),
            // Whoever lives under another class would let us in: it is seen to live by then.
            _ if self.view.fence != COMMAND as u8 && !self.are_others_quiet() => return Ok(()),
            _ if self.view.fence == FenceClass::Reservation as u8 && !self.is_device_free() => return Ok(()),
            Some((cell, claim)) if claim.kind == ClaimKind::First => {
                let stands = self.disk.read_claim(*cell)?;
                if stands.is_none_or(|c| c.incarnation == self.incarnation) {
                    return Ok(());
                }
                self.forget_claim();
            }
            Some((cell, _)) if !CELLS.contains(cell) => self.withdraw()?,
            _ => {}
        }
        // Whoever becomes the first member may let us in by this.
        self.class = COMMAND;
        self.claim_any(CELLS)
    }

    /// Have all that were members missed a heartbeat, as far as we have looked?
    fn are_others_quiet(&self) -> bool {
        let (others, long) = (self.others(), self.options.timing.heartbeat * 2);
        slots(&self.view).all(|(slot, _)| others & bit(slot) == 0 || self.watch.silence(slot) >= long)
    }

    /// Keep a claim in one of `cells`, or where it is.
    fn claim_any(&mut self, cells: Range<u16>) -> Result<()> {
        let lobby = self.disk.read_lobby()?;
        let ours = |c: &Option<Claim>| c.as_ref().is_some_and(|c| c.incarnation == self.incarnation);
        let (cell, mut claim) = match self.claim.take() {
            Some((cell, claim)) if ours(&lobby[usize::from(cell)]) => (cell, claim),
            _ => {
                let free: Vec<u16> = cells
                    .clone()
                    .filter(|c| lobby[usize::from(*c)].as_ref().is_none_or(|c| c.kind == ClaimKind::None))
                    .collect();
                let pick = rand::rng().random_range(0..free.len().max(1));
                let cell = free.get(pick).copied().unwrap_or(cells.start);
                (cell, self.new_claim(ClaimKind::Join))
            }
        };
        claim.sequence += 1;
        self.disk.write_claim(cell, &claim)?;
        self.claim = Some((cell, claim));
        Ok(())
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
        // Who lives has beaten by then.
        let patient = now >= started + self.options.timing.heartbeat * 3;
        if patient && told.replace(self.view.epoch) != Some(self.view.epoch) {
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
            self.disk.write_claim(cell, &claim)?;
        }
        Ok(())
    }

    /// Remember a claim made as first mount, to be withdrawn.
    pub fn set_claim(&mut self, cell: u16, claim: Claim) {
        self.claim = Some((cell, claim));
    }

    /// Ours is another mount's now, which asks for itself.
    pub fn forget_claim(&mut self) {
        self.claim = None;
    }
}
