//! Changing the timing profile of a volume that nobody has.
//!
//! The profile stands in the view, from the first mount on, and whoever joins goes by that; before, and to look
//! at the volume, by what mkfs wrote. To change it is to decide a view that differs in nothing else, as a first
//! mount would: under a claim, by a ballot from the slot that one would take. So a mount that began before, with
//! the old times, learns of it before it decides anything, and two hosts never differ.

use crate::base::{Epoch, Error, Result};
use crate::cluster::disk::Disk;
use crate::cluster::join::{JoinOptions, Joiner};
use crate::cluster::node::{back_off, run_ballot};
use crate::cluster::paxos::Proposer;
use crate::cluster::status::ClusterStatus;
use crate::cluster::timing::Timing;
use crate::cluster::view::{bit, first_slot, slots};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::view::PROTOCOL;
use crate::format::cluster::{Claim, FenceClass, View};
use crate::format::superblock::TimingProfile;

/// Heartbeats for which it is looked at who lives.
const LOOKS: u32 = 5;
/// Lost ballots after which somebody else is at work here.
const LOSSES_MAX: u32 = 5;

/// The profile that hosts of this volume go by: what the newest view says, else `written` by mkfs.
///
/// # Errors
/// The device's, or ballots that cannot be read.
pub fn profile(disk: &Disk, written: TimingProfile) -> Result<TimingProfile> {
    let ballots = disk.read_ballots()?;
    let newest = ballots.into_iter().map(|(b, _)| b.decided).max_by_key(|v| v.epoch);
    Ok(newest.and_then(|view| view.timing).unwrap_or(written))
}

/// Have all hosts go by `to` from now on. `options` are those of a mount that goes by the present profile. Once that
/// is so `store` is called, with the right to write to the device and before another change may begin. `is_stored`:
/// it has nothing to do if nothing changes.
///
/// # Errors
/// [`Error::Device`] if a host has the volume, or did not leave it in order (the message says which), or
/// [`Error::Busy`] if one is just mounting it; then nothing has changed.
pub fn tune(
    disk: Disk,
    options: JoinOptions,
    to: TimingProfile,
    is_stored: bool,
    store: &mut dyn FnMut(),
) -> Result<()> {
    let mut joiner = Joiner::new(disk, options)?;
    let tuned = joiner.tune(to, is_stored).map(|()| store());
    let withdrawn = joiner.withdraw().and_then(|()| joiner.release_proofs());
    joiner.unregister();
    tuned.and(withdrawn)
}

impl Joiner {
    /// Have the times been changed since we looked at the volume?
    pub fn check_profile(&self) -> Result<()> {
        match (self.view.timing, self.options.profile) {
            (Some(there), Some(ours)) if there != ours => Err(Error::Busy(format!(
                "the timing profile is {} now, not {} any more: mount again",
                there.name(),
                ours.name()
            ))),
            _ => Ok(()),
        }
    }

    /// A member goes by what stands in the view that it is in, also if it only leaves again.
    pub fn timing(&self) -> Timing {
        match (self.view.timing, self.options.profile) {
            (Some(there), Some(ours)) if there != ours => Timing::of(there),
            _ => self.options.timing,
        }
    }

    fn tune(&mut self, to: TimingProfile, is_stored: bool) -> Result<()> {
        let lobby = self.disk.read_lobby()?;
        let end = self.options.clock.now() + self.options.timing.heartbeat * LOOKS;
        self.poll()?;
        while self.options.clock.now() < end && !self.is_anybody_alive() {
            std::thread::sleep(self.options.timing.heartbeat / 4);
            self.poll()?;
        }
        self.read_views()?;
        self.is_nobodys()?;
        if self.view.timing == Some(to) && is_stored {
            return Ok(());
        }
        self.check_profile()?;
        let Some(slot) = first_slot(&self.view, self.options.usable) else {
            return self.refuse("the volume has no usable slot");
        };
        // Only who is registered may write to a device that is reserved still.
        if self.view.fence == FenceClass::Reservation as u8 {
            self.class = FenceClass::Reservation;
            if !self.may_enrol_later() && !self.enrol(true)? {
                return Err(Error::Busy("the device takes this host for one that is to be kept off".into()));
            }
        }
        self.options.lease.confirm()?;
        let epoch = self.view.epoch;
        let (ours, local) = self.take_slot(slot)?;
        self.poll()?;
        self.read_views()?;
        self.is_nobodys()?;
        if !ours || self.view.epoch != epoch {
            return Err(Error::Busy("a host is just mounting it".into()));
        }
        if self.view.timing == Some(to) {
            return Ok(());
        }
        self.does_nobody_ask(&lobby)?;
        let epoch = Epoch(epoch.0 + 1);
        let next = View { epoch, timing: Some(to), protocol: PROTOCOL, ..self.view.clone() };
        let (ballot, mut sequence) = self.ballots[usize::from(slot.0)].clone();
        let mut proposer = Proposer::new(slot, ballot);
        proposer.learn(&self.view);
        for losses in 1..=LOSSES_MAX {
            let (next, me, sequence) = (next.clone(), self.incarnation, &mut sequence);
            let may_write = || self.may_propose(slot, local);
            match run_ballot(&self.disk, &mut proposer, slot, me, sequence, next.clone(), &may_write)? {
                Some(view) if view == next => return Ok(()),
                Some(_) => break,
                None => back_off(slot, losses),
            }
        }
        Err(Error::Busy("a host has mounted it meanwhile".into()))
    }

    /// Whoever asks to be let in goes by the times that it has read.
    fn does_nobody_ask(&self, before: &[Option<Claim>]) -> Result<()> {
        let now = self.disk.read_lobby()?;
        let asks = |c: &&Claim| c.kind != ClaimKind::None && c.incarnation != self.incarnation;
        let mut moved = now.iter().zip(before).filter(|(now, before)| now != before);
        match moved.find_map(|(now, _)| now.as_ref().filter(asks)) {
            Some(claim) => Err(Error::Busy(format!("{} is just mounting it", claim.name))),
            None => Ok(()),
        }
    }

    /// Nobody lives, and all have left in order.
    fn is_nobodys(&self) -> Result<()> {
        let status = ClusterStatus::new(&self.view, &self.row, |slot| {
            Some(self.watch.has_moved(slot) && !self.watch.is_silent(slot))
        });
        let name = |slot| self.name_of(slot);
        let living: Vec<_> =
            status.occupied().filter(|h| h.moving == Some(true)).map(|h| name(h.slot)).collect();
        if !living.is_empty() {
            let names = living.join(", ");
            return self.refuse(format_args!("mounted by {names}: unmount it on every host first"));
        }
        let others = self.others();
        let left: Vec<_> =
            slots(&self.view).filter(|(s, _)| others & bit(*s) != 0).map(|(s, _)| name(s)).collect();
        match left.is_empty() {
            true => Ok(()),
            false => self.refuse(format_args!(
                "{} did not leave it in order: mount it once and unmount it, or run fsck.shoal, first",
                left.join(", ")
            )),
        }
    }
}
