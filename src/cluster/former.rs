//! What a first mount does about those that were there before: whoever may still write is kept off before
//! anything is decided without them.

use crate::base::{Epoch, Error, Incarnation, Result, SlotId};
use crate::cluster::anew::Looks;
use crate::cluster::class::Wanted;
use crate::cluster::disk::Disk;
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::cluster::join::Joiner;
use crate::cluster::keys::Former;
use crate::cluster::known::{Acquaintance, Known};
use crate::cluster::proof::Proof;
use crate::cluster::view::{bit, dead, first, slots};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::view::PROTOCOL;
use crate::format::cluster::{Claim, FenceClass, Heartbeat, SlotView, View};
use std::time::Duration;

/// A command that fails is run again after so long at first, then twice that, up to the longest pause.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// At least so often, however long it takes.
const FAILURES_MIN: u32 = 3;

/// A former mount that is kept off.
pub struct KeptOff {
    incarnation: Incarnation,
    /// The counter of its heartbeat when that was first read after it was kept off.
    beat: Option<u64>,
}

impl KeptOff {
    /// From now on.
    pub fn new(incarnation: Incarnation) -> KeptOff {
        KeptOff { incarnation, beat: None }
    }

    /// Has it beaten since? Not by what shows first: until the command had ended it may have. One beat more may
    /// have been on its way.
    fn goes_on(&mut self, cell: Option<&Heartbeat>) -> bool {
        let Some(beat) = cell.filter(|beat| beat.incarnation == self.incarnation) else { return false };
        beat.counter >= *self.beat.get_or_insert(beat.counter) + 2
    }
}

/// A command that fails.
pub struct Failing {
    count: u32,
    since: Duration,
    not_before: Duration,
}

impl Joiner {
    /// Nobody lives: keep those off that were members, before anything is decided without them, in `slot`.
    /// `false`: somebody was faster, or more polls are to show first who is gone.
    pub fn fence_former(&mut self, slot: SlotId) -> Result<bool> {
        if self.class != FenceClass::Lease {
            // Whoever is gone from this machine is in nobody's way, whatever became of the others.
            let others = self.others();
            for (slot, member) in slots(&self.view.clone()).filter(|(s, _)| others & bit(*s) != 0) {
                if self.is_gone_here(slot, member.incarnation)? == Proof::Later {
                    return Ok(false);
                }
            }
        }
        match (self.class, self.options.fence.command.clone()) {
            (FenceClass::Lease, _) => Ok(true),
            (FenceClass::Reservation, _) => self.reserve_alone(slot),
            (FenceClass::Command, Some(command)) => self.command_former(slot, &*command),
            (class, None) => self.refuse(format_args!("no means for fence={}", class.name())),
        }
    }

    fn reserve_alone(&mut self, slot: SlotId) -> Result<bool> {
        let by_itself =
            self.options.fence.wanted == Wanted::Auto && self.view.fence == FenceClass::Lease as u8;
        match self.enrol(true) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(Error::Unsupported(_)) if by_itself => {
                return self.do_without("it takes no registrations".into());
            }
            Err(e) => return Err(e),
        }
        let Some(registration) = self.registration.clone() else { return Ok(false) };
        let former = self.former_mounts()?;
        registration.victims(&former)?;
        // Who has taken our claim over may be a member by now, perhaps one that is not registered.
        if !self.is_still_ours(slot)? {
            return Ok(false);
        }
        match registration.hold() {
            Err(e @ Error::Fenced { .. }) => return Err(e),
            Err(e) if by_itself => return self.do_without(e.to_string()),
            other => other?,
        };
        if !self.is_still_ours(slot)? {
            self.unregister();
            return Err(Error::Fenced { op: "claim", offset: 0 });
        }
        let taken = registration.take(&former);
        // Also if it failed half-way: whoever is kept off may be forgotten by everything but the reservation.
        self.kept_off |= registration.has_kept_off();
        self.await_settled(taken?)?;
        self.note_cut();
        Ok(true)
    }

    fn await_settled(&self, settle: Duration) -> Result<()> {
        if !settle.is_zero() {
            tracing::info!("waiting {settle:?} for what the device has of hosts that are kept off now");
        }
        let end = self.options.clock.now() + settle;
        while self.options.clock.now() < end {
            self.check_wanted()?;
            let left = end.saturating_sub(self.options.clock.now());
            std::thread::sleep(left.min(self.options.timing.heartbeat / 4));
        }
        Ok(())
    }

    /// Nobody asked for reservations, and the device has none to give.
    fn do_without(&mut self, why: String) -> Result<bool> {
        self.fall_back(Some(why));
        let report = self.options.fence.reservations.as_ref().map(|r| r.report());
        match report {
            // What failed was done all the same, and cannot be undone.
            Some(Ok(report)) if report.held.is_some() => {
                self.refuse("the device is reserved: see `shoal fence`")
            }
            _ => Ok(true),
        }
    }

    /// Is what we decided upon still so?
    fn is_still_ours(&mut self, slot: SlotId) -> Result<bool> {
        self.poll()?;
        self.read_views()?;
        let epoch = Epoch(self.view.epoch.0 + 1);
        if self.tried.is_none_or(|tried| tried.epoch != epoch) || self.is_anybody_alive() {
            return Ok(false);
        }
        match self.may_propose(slot, false) {
            Err(Error::Busy(_)) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn former_mounts(&self) -> Result<Former> {
        let claims = self.disk.read_lobby()?.into_iter().flatten();
        let first = |c: &Claim| c.kind == ClaimKind::First && c.incarnation != self.incarnation;
        let claims = claims.filter(first).map(|c| c.incarnation).chain(self.ousted.iter().copied());
        let mut former = Former { claims: claims.collect(), ..Former::default() };
        let others = self.others();
        for (slot, member) in slots(&self.view).filter(|(_, s)| s.incarnation.0 != 0) {
            let over = others & bit(slot) == 0 || self.proven.get(&slot) == Some(&member.incarnation);
            if over { &mut former.over } else { &mut former.members }.push(member.incarnation);
        }
        // Whose claim still stands there may have been let in since.
        former.claims.retain(|i| !former.over.contains(i) && !former.members.contains(i));
        Ok(former)
    }

    /// `false`: somebody was faster.
    fn command_former(&mut self, claimed: SlotId, command: &dyn Fence) -> Result<bool> {
        let victims = self.victims();
        let mut settle = Duration::ZERO;
        let all = self.command_all(claimed, command, &victims, &mut settle)?;
        // Those count as kept off from now on, also if somebody was faster.
        self.stand(claimed, settle)?;
        if !all && self.failing.is_some() {
            // The next first mount is to see that this machine is well.
            self.withdraw()?;
            self.show()?;
        }
        if all {
            self.failing = None;
        }
        if all && !victims.is_empty() {
            // The claim was written again: it counts as when it was new.
            self.pause(self.options.timing.claim_hold())?;
            // Who has beaten since is to be kept off once more.
            return Ok(self.is_still_ours(claimed)? && self.victims().is_empty());
        }
        Ok(all)
    }

    /// Once for each mount: the command may take longer than a claim lasts, and whoever took ours over may
    /// find its own taken over in turn.
    fn command_all(
        &mut self,
        claimed: SlotId,
        command: &dyn Fence,
        victims: &[Victim],
        settle: &mut Duration,
    ) -> Result<bool> {
        let mut looks = Looks::default();
        let mut looked = None;
        for (n, victim) in victims.iter().enumerate() {
            // Machines start and mount while the command runs for others.
            let now = self.options.clock.now();
            if looked.is_none_or(|at| now >= at + self.options.timing.heartbeat) {
                self.look_for_machines(claimed, &victims[n..], &mut looks)?;
                looked = Some(self.options.clock.now());
            }
            // Whoever has taken our claim over keeps them off, and they may be back with it.
            if !self.is_still_ours(claimed)? {
                return Ok(false);
            }
            let name = self.name_of(victim.slot);
            tracing::info!("keeping {name} off the disk by the command");
            let (now, suspicion) = (self.options.clock.now(), self.options.timing.suspicion);
            let look = looks.get(&(victim.slot, victim.incarnation));
            let victim = look.map_or(victim.clone(), |look| look.tell(now, suspicion, victim.clone()));
            let done = match self.run_claiming(claimed, command, &victim) {
                Ok(done) => done,
                Err(_) if !self.is_still_ours(claimed)? => return Ok(false),
                Err(e) => return self.note_failure(&victim, &name, &e),
            };
            self.failing = None;
            tracing::info!("{name}: {}", done.how);
            *settle = done.settle.max(*settle);
            self.cut.insert(victim.slot, KeptOff::new(victim.incarnation));
        }
        Ok(true)
    }

    /// It is tried again for a while: its power switch may come up later than this host does. Whoever gives up at
    /// once asks no more, and would be switched off in turn by the next first mount.
    fn note_failure(&mut self, victim: &Victim, name: &str, why: &Error) -> Result<bool> {
        let now = self.options.clock.now();
        let failing = self.failing.get_or_insert(Failing { count: 0, since: now, not_before: now });
        failing.count += 1;
        let pause = (PAUSE_MIN * 2u32.pow(failing.count.min(10) - 1)).min(PAUSE_MAX);
        failing.not_before = now + pause;
        let enough = failing.count >= FAILURES_MIN && now >= failing.since + self.options.patience;
        // What is known of this machine itself does not change.
        if enough || victim.host == self.options.host {
            return self.refuse(format_args!("{name} cannot be kept off, so nothing is mounted: {why}"));
        }
        tracing::error!(
            "{name} cannot be kept off, so nothing is mounted yet; tried again in {pause:?}: {why}"
        );
        Ok(false)
    }

    /// Is a command that failed not to be run again yet?
    pub fn is_failing(&self) -> bool {
        self.failing.as_ref().is_some_and(|f| self.options.clock.now() < f.not_before)
    }

    /// Wait, with a claim that does not stand still, as long as it is ours.
    pub fn stand(&mut self, claimed: SlotId, length: Duration) -> Result<()> {
        let end = self.options.clock.now() + length;
        let mut ours = true;
        while self.options.clock.now() < end {
            let left = end.saturating_sub(self.options.clock.now());
            std::thread::sleep(left.min(self.options.timing.heartbeat / 2));
            // What cannot be written now may be in a moment.
            ours = ours && self.renew_claim(claimed).unwrap_or(true);
            self.poll()?;
        }
        Ok(())
    }

    /// Those that were members and are not known to be kept off.
    fn victims(&self) -> Vec<Victim> {
        let others = self.others();
        let victim = |(slot, member): (SlotId, &SlotView)| {
            let incarnation = Some(&member.incarnation);
            let over = self.proven.get(&slot) == incarnation || self.is_cut(slot, member.incarnation);
            let cell = self.row.get(usize::from(slot.0)).and_then(|c| c.as_ref());
            let who = || victim_of(&self.disk, slot, member, cell, &self.known);
            (others & bit(slot) != 0 && !over).then(who)
        };
        slots(&self.view).filter_map(victim).collect()
    }

    /// Run the command, and keep the claim from standing still meanwhile, for then it would be taken over, and
    /// the command run by others too.
    fn run_claiming(&mut self, claimed: SlotId, command: &dyn Fence, victim: &Victim) -> Result<Cut> {
        std::thread::scope(|scope| {
            let run = std::thread::Builder::new().name("shoal-fence".into());
            let run = run.spawn_scoped(scope, || command.cut(victim));
            let run = run.map_err(|e| Error::Device(format!("no thread for the command: {e}")))?;
            let mut claimed = Some(claimed);
            let mut next = self.options.clock.now() + self.options.timing.heartbeat;
            while !run.is_finished() {
                if let Some(slot) = claimed.filter(|_| self.options.clock.now() >= next) {
                    // What cannot be written now may be in a moment; who has taken it over keeps it.
                    claimed = claimed.filter(|_| self.renew_claim(slot).unwrap_or(true));
                    next = self.options.clock.now() + self.options.timing.heartbeat;
                }
                if claimed.is_none() || self.options.lease.is_unwanted() {
                    victim.cancel.cancel();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            run.join().unwrap_or_else(|_| Err(Error::Device("the command's thread failed".into())))
        })
    }

    /// The view in which we are alone, in `slot`.
    pub fn first_view(&self, slot: SlotId) -> View {
        let unproven = |(s, m): &(SlotId, &SlotView)| {
            self.others() & bit(*s) != 0 && self.proven.get(s) != Some(&m.incarnation)
        };
        let fenced = self.view.fenced || self.kept_off || slots(&self.view).any(|s| unproven(&s));
        View {
            fence: self.class as u8,
            protocol: PROTOCOL,
            fenced: self.class == FenceClass::Reservation && fenced,
            timing: self.options.profile.or(self.view.timing),
            ..first(&self.view, slot, self.incarnation)
        }
    }

    fn is_cut(&self, slot: SlotId, incarnation: Incarnation) -> bool {
        self.cut.get(&slot).is_some_and(|cut| cut.incarnation == incarnation)
    }

    /// Whoever beats on was not kept off, or not for long.
    pub fn forget_cut(&mut self) {
        let row = &self.row;
        self.cut.retain(|slot, cut| {
            let goes_on = cut.goes_on(row.get(usize::from(slot.0)).and_then(|cell| cell.as_ref()));
            if goes_on {
                tracing::warn!("slot {slot} was kept off, but beats: it counts no more");
            }
            !goes_on
        });
    }

    /// The dead of `view` that are kept off for certain. Who lives under it may have been let through again since.
    pub fn cut_in(&self, view: &View) -> Vec<(SlotId, Incarnation)> {
        let is_cut = |(slot, member): &(SlotId, &SlotView)| {
            dead(view) & bit(*slot) != 0 && self.is_cut(*slot, member.incarnation)
        };
        slots(view).filter(is_cut).map(|(slot, member)| (slot, member.incarnation)).collect()
    }

    fn note_cut(&mut self) {
        let others = self.others();
        let members = slots(&self.view).filter(|(s, _)| others & bit(*s) != 0);
        self.cut = members.map(|(slot, member)| (slot, KeptOff::new(member.incarnation))).collect();
    }
}

/// Who a mount is that is to be kept off: by a heartbeat of its that was read at any time, or by its claim in the
/// lobby if none was. `cell` is what stands in its slot now.
pub fn victim_of(
    disk: &Disk,
    slot: SlotId,
    member: &SlotView,
    cell: Option<&Heartbeat>,
    known: &Known,
) -> Victim {
    let incarnation = member.incarnation;
    if let Some(Acquaintance { beat, lived }) = known.of(slot, incarnation) {
        let Heartbeat { host, boot, file, name, device, .. } = beat.clone();
        return Victim {
            slot,
            incarnation,
            host,
            boot,
            name,
            device,
            file,
            lived: *lived,
            ..Victim::default()
        };
    }
    let lobby = disk.read_lobby();
    let is_whole = lobby.as_ref().is_ok_and(|lobby| lobby.iter().all(Option::is_some));
    let claim = lobby.into_iter().flatten().flatten().find(|c| c.incarnation == incarnation);
    // What cannot be read may have been its heartbeat, or its claim.
    let never_beat = cell.is_some() && (is_whole || claim.is_some());
    let Some(Claim { host, boot, file, name, .. }) = claim else {
        return Victim { slot, incarnation, name: format!("slot {slot}"), never_beat, ..Victim::default() };
    };
    Victim { slot, incarnation, host, boot, file, name, never_beat, ..Victim::default() }
}
