//! Which class of fence a mount takes part in: the first mount chooses, all later ones do as the view says.
//! And what a mount does at the device before it writes anything: it registers; without living members it
//! keeps those off that were there before.

use crate::base::{Error, Incarnation, Result, SlotId};
use crate::cluster::disk::Disk;
use crate::cluster::fencer::{Fence, Fencer, Victim};
use crate::cluster::join::{JoinOptions, Joiner};
use crate::cluster::keys::{Enrolled, Former, Registration};
use crate::cluster::member::Watch;
use crate::cluster::view::{bit, first, live, slots};
use crate::device::reservation::{Refused, Reservations};
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::view::{PROTOCOL, PROTOCOL_MIN};
use crate::format::cluster::{Claim, FenceClass, Heartbeat, SlotView, View};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

/// What the administrator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What is there; reservations for the first mount where the device can, else leases.
    Auto,
    Class(FenceClass),
}

/// What a mount can do about hosts that die.
#[derive(Clone)]
pub struct FenceOptions {
    pub wanted: Wanted,
    /// If this way to the device may have reservations.
    pub reservations: Option<Arc<dyn Reservations>>,
    /// Why a first mount does not take reservations by itself.
    pub reluctance: Option<String>,
    /// The administrator's program.
    pub command: Option<Arc<dyn Fence>>,
}

impl FenceOptions {
    /// Time alone: this device has nothing else, because of `why`.
    pub fn leases(why: &str) -> FenceOptions {
        FenceOptions {
            wanted: Wanted::Auto,
            reservations: None,
            reluctance: Some(why.to_string()),
            command: None,
        }
    }
}

/// Times that a mount may be kept off by others that mount at the same moment, before it gives up.
const EVICTIONS_MAX: u32 = 8;

impl Joiner {
    fn refuse<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(Error::Device(format!("{}: {what}", self.options.device)))
    }

    fn reservations(&self) -> Result<Arc<dyn Reservations>> {
        match &self.options.fence.reservations {
            Some(reservations) => Ok(reservations.clone()),
            None => self.refuse(format_args!(
                "hosts of this volume are kept off by reservations, which cannot be used here: {}",
                self.options.fence.reluctance.as_deref().unwrap_or("the device has none")
            )),
        }
    }

    /// Beside living members: take part in what they do. `false`: not yet.
    pub fn fit_in(&mut self) -> Result<bool> {
        let class = self.view.fence_class()?;
        match self.options.fence.wanted {
            Wanted::Class(wanted) if wanted != class => {
                return self.refuse(format_args!(
                    "fence={} is asked for, but the hosts that have the volume use fence={}: mount it with that, \
                     or unmount it on all hosts first",
                    wanted.name(),
                    class.name()
                ));
            }
            Wanted::Auto if class == FenceClass::Command => return self.refuse(NO_COMMAND),
            _ => {}
        }
        self.class = class;
        if class == FenceClass::Command
            && let Some(name) = clone_of(&self.view, &self.row, &self.watch, &self.options)
        {
            return self.refuse(format_args!("{name} {SAME_MACHINE}"));
        }
        if class == FenceClass::Lease {
            self.cut.clear();
        }
        if class != FenceClass::Reservation
            && let Some(registration) = self.registration.take()
        {
            // Taken when nobody seemed to live: it would keep off those who do.
            registration.leave(true, false);
        }
        match class {
            FenceClass::Reservation => self.enrol(false),
            FenceClass::Lease | FenceClass::Command => Ok(true),
        }
    }

    /// Without living members: choose. `false`: not yet.
    pub fn choose(&mut self) -> Result<bool> {
        let there = self.view.fence_class()?;
        let fenced = there == FenceClass::Reservation && (self.others() != 0 || self.view.fenced);
        const KEPT: &str = "hosts that were kept off by reservations may still be stopped with writes queued: mount \
            with fence=reservation (or auto); or make sure that none is, and `shoal fence --clear` the device first";
        let class = match self.options.fence.wanted {
            Wanted::Auto => match there {
                FenceClass::Command => return self.refuse(NO_COMMAND),
                FenceClass::Reservation => there,
                FenceClass::Lease => return self.try_reservations(),
            },
            Wanted::Class(wanted) => match wanted {
                FenceClass::Lease | FenceClass::Command if fenced && !self.is_device_free() => {
                    return self.refuse(KEPT);
                }
                FenceClass::Lease if there == FenceClass::Command && self.others() != 0 => {
                    return self.refuse(
                        "hosts died that only a command can keep off: mount with fence=command:PATH",
                    );
                }
                wanted => wanted,
            },
        };
        self.class = class;
        match class {
            FenceClass::Reservation => self.enrol(true),
            FenceClass::Lease | FenceClass::Command => Ok(true),
        }
    }

    /// Has an administrator freed the device, as far as it tells?
    fn is_device_free(&self) -> bool {
        let report = self.options.fence.reservations.as_ref().and_then(|r| r.report().ok());
        report.is_some_and(|r| r.held.is_none() && r.keys.iter().all(|k| *k == 0))
    }

    /// Nobody has asked for a class, and there was none but time.
    fn try_reservations(&mut self) -> Result<bool> {
        if self.class == FenceClass::Reservation && self.registration.is_some() {
            return Ok(true);
        }
        let mut why = self.options.fence.reluctance.clone();
        if why.is_none() && self.options.fence.reservations.is_some() {
            match self.enrol(true) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                // It cannot register: what else is wrong shows when it writes.
                Err(Error::Unsupported(_)) => why = Some("it takes no registrations".into()),
                Err(e) => return Err(e),
            }
        }
        match self.registration {
            // Whether it can be reserved shows once nobody else claims the slot.
            Some(_) => self.class = FenceClass::Reservation,
            None => self.fall_back(why),
        }
        Ok(true)
    }

    /// To time alone: whoever was kept off otherwise is not any more.
    fn fall_back(&mut self, why: Option<String>) {
        if let Some(registration) = self.registration.take() {
            registration.leave(true, false);
        }
        self.cut.clear();
        self.class = FenceClass::Lease;
        self.why_leases = why;
    }

    /// K2, K3. `false`: this host's way to the device bears the key of a mount that others are about to fence.
    fn enrol(&mut self, first: bool) -> Result<bool> {
        if self.registration.is_some() {
            return Ok(true);
        }
        let device = self.reservations()?;
        let (format_id, life) = (self.disk.format_id, self.options.timing.claim_wait());
        let registration = Registration::new(device, format_id, self.incarnation, life);
        let occupied = self.others();
        let members: Vec<_> = slots(&self.view).filter(|(s, _)| occupied & bit(*s) != 0).collect();
        let members: Vec<_> = members.into_iter().map(|(slot, s)| (slot, s.incarnation)).collect();
        match registration.enrol(&members) {
            Ok(Enrolled::Yes) => {}
            Ok(Enrolled::Bears(slot, former)) => {
                if !self.may_succeed(slot, former, first)? {
                    return Ok(false);
                }
                registration.succeed(former)?;
            }
            Err(Refused::Conflict) => return self.refuse("the device does not let this host register"),
            Err(why) => {
                tracing::info!("registering with the device: {why}");
                let asked = self.view.fence == FenceClass::Reservation as u8
                    || self.options.fence.wanted == Wanted::Class(FenceClass::Reservation);
                return match asked {
                    true => self.refuse(format_args!(
                        "hosts of this volume are kept off by reservations, but this host cannot register: {why}"
                    )),
                    false => Err(Error::Unsupported("registrations")),
                };
            }
        }
        tracing::info!("registered with the device under key {:#018x}", registration.key());
        self.registration = Some(Arc::new(registration));
        // Who came meanwhile may have been registered on the same nexus.
        self.read_views()?;
        Ok(true)
    }

    /// K3: this host's nexus bears the key of the member `former` of `slot`. May it be replaced now?
    fn may_succeed(&self, slot: SlotId, former: Incarnation, first: bool) -> Result<bool> {
        let cell = self.row.get(usize::from(slot.0)).cloned().flatten();
        let cell = cell.filter(|cell| cell.incarnation == former);
        let file = self.options.file;
        // A process of this boot that has let go of the device, or we could not have opened it.
        let here = cell.as_ref().is_some_and(|c| {
            c.boot == self.options.boot && c.file.rdev == file.rdev && file.rdev != 0 && self.options.prove
        });
        if here {
            return Ok(true);
        }
        let name = self.name_of(slot);
        if self.watch.has_moved(slot) && !self.watch.is_silent(slot) {
            return self.refuse(format_args!(
                "the device takes this host for {name}, which has the volume mounted: give each host an identity of \
                 its own (iSCSI initiator name, NVMe host NQN and host id)"
            ));
        }
        if !first {
            return Ok(false);
        }
        match cell.is_some_and(|c| c.host == self.options.host) {
            // An earlier boot of this machine.
            true => Ok(true),
            false => self.refuse(format_args!(
                "the device takes this host for {name}, which did not leave the volume: if that was this machine, or \
                 one that is gone for certain, run `shoal fence --clear` on the device"
            )),
        }
    }

    /// Nobody lives: keep those off that were members, before anything is decided without them.
    pub fn fence_former(&mut self) -> Result<()> {
        if self.class != FenceClass::Lease {
            // Whoever is gone from this machine is in nobody's way, whatever became of the others.
            let others = self.others();
            for (slot, member) in slots(&self.view.clone()).filter(|(s, _)| others & bit(*s) != 0) {
                self.is_gone_here(slot, member.incarnation)?;
            }
        }
        match (self.class, self.registration.clone(), self.options.fence.command.clone()) {
            (FenceClass::Lease, ..) => Ok(()),
            (FenceClass::Reservation, Some(registration), _) => {
                let former = self.former_mounts()?;
                registration.victims(&former)?;
                let by_itself =
                    self.options.fence.wanted == Wanted::Auto && self.view.fence == FenceClass::Lease as u8;
                match registration.hold() {
                    Err(e @ Error::Fenced { .. }) => return Err(e),
                    Err(e) if by_itself => {
                        self.fall_back(Some(e.to_string()));
                        return Ok(());
                    }
                    other => other?,
                };
                let taken = registration.take(&former)?;
                self.kept_off |= taken.kept_off;
                await_settled(taken.settle);
                self.note_cut();
                Ok(())
            }
            (FenceClass::Command, _, Some(command)) => self.command_former(&*command),
            (class, ..) => self.refuse(format_args!("no means for fence={}", class.name())),
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

    /// Once for each mount: the command may take longer than a claim lasts, and whoever took ours over may
    /// find its own taken over in turn.
    fn command_former(&mut self, command: &dyn Fence) -> Result<()> {
        let mut settle = Duration::ZERO;
        let mut cut = self.cut.clone();
        let others = self.others();
        for (slot, member) in slots(&self.view).filter(|(s, _)| others & bit(*s) != 0) {
            let incarnation = Some(&member.incarnation);
            if self.proven.get(&slot) == incarnation || cut.get(&slot) == incarnation {
                continue;
            }
            let cell = self.row.get(usize::from(slot.0)).and_then(|c| c.as_ref());
            let done = command.cut(&victim_of(&self.disk, slot, member, cell)?)?;
            tracing::info!("{}: {}", self.name_of(slot), done.how);
            settle = settle.max(done.settle);
            cut.insert(slot, member.incarnation);
        }
        await_settled(settle);
        self.cut = cut;
        Ok(())
    }

    /// The view in which we are alone, in `slot`.
    pub fn first_view(&self, slot: SlotId) -> View {
        let unproven = |(s, m): &(SlotId, &SlotView)| {
            self.others() & bit(*s) != 0 && self.proven.get(s) != Some(&m.incarnation)
        };
        let fenced = self.view.fenced || self.kept_off || slots(&self.view).any(|s| unproven(&s));
        View {
            fence: self.class as u8,
            protocol: if self.class == FenceClass::Lease { PROTOCOL_MIN } else { PROTOCOL },
            fenced: self.class == FenceClass::Reservation && fenced,
            ..first(&self.view, slot, self.incarnation)
        }
    }

    fn note_cut(&mut self) {
        let others = self.others();
        let members = slots(&self.view).filter(|(s, _)| others & bit(*s) != 0);
        self.cut = members.map(|(slot, member)| (slot, member.incarnation)).collect();
    }

    /// We were kept off while we were on our way in: another mount was faster, or takes us for dead. Its key
    /// never comes back: begin anew as another mount.
    pub fn begin_anew(&mut self, why: Error) -> Result<()> {
        self.evictions += 1;
        if self.class != FenceClass::Reservation || self.evictions > EVICTIONS_MAX {
            return Err(why);
        }
        tracing::info!("kept off by another mount, beginning anew: {why}");
        self.registration = None;
        self.cut.clear();
        self.tried = None;
        self.forget_claim();
        self.incarnation = Incarnation(rand::rng().random_range(1..=u64::MAX));
        self.release_proofs()
    }

    /// What keeps dead hosts off once we are a member, beside time.
    pub fn fencer(&self) -> Option<Fencer> {
        let fence: Arc<dyn Fence> = match self.class {
            FenceClass::Lease => return None,
            FenceClass::Reservation => self.registration.clone()?,
            FenceClass::Command => self.options.fence.command.clone()?,
        };
        Some(Fencer::new(fence, self.options.clock.clone(), self.options.timing.suspicion))
    }

    /// We do not become a member.
    pub fn unregister(&mut self) {
        let idle = self.others() == 0 && !self.view.fenced && !self.kept_off;
        if let Some(registration) = self.registration.take() {
            registration.give_up(idle);
        }
    }

    /// What the administrator is to be told at the mount: on a terminal, and in the log.
    pub fn warning(&self) -> Option<String> {
        if self.class != FenceClass::Lease || self.options.file.rdev == 0 {
            return None;
        }
        let why = self.why_leases.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        Some(format!(
            "{}: hosts that die are kept off by time alone{why}. A machine that is paused as a whole may damage the \
             volume when it goes on: do not pause, suspend or roll back hosts that have it mounted",
            self.options.device
        ))
    }
}

const NO_COMMAND: &str =
    "hosts of this volume are kept off by a command: mount with -o fence=command:PATH, as the others do";

/// What makes a command unable to tell two machines apart.
pub const SAME_MACHINE: &str = "has the volume mounted and the same /etc/machine-id as this machine, by which the \
    command tells machines apart: give each one its own";

/// The name of a member on another machine that is known by the same identity as this one.
pub fn clone_of(
    view: &View,
    row: &[Option<Heartbeat>],
    watch: &Watch,
    options: &JoinOptions,
) -> Option<String> {
    let members = live(view);
    let same = |c: &&Heartbeat| {
        let stands = view.slots.get(usize::from(c.slot.0)).is_some_and(|s| s.incarnation == c.incarnation);
        let lives = members & bit(c.slot) != 0 && watch.has_moved(c.slot) && !watch.is_silent(c.slot);
        stands && lives && c.host == options.host && c.boot != options.boot
    };
    row.iter().flatten().find(same).map(|c| format!("{} (slot {})", c.name, c.slot))
}

fn await_settled(settle: Duration) {
    if !settle.is_zero() {
        tracing::info!("waiting {settle:?} for what the device has of hosts that are kept off now");
        std::thread::sleep(settle);
    }
}

/// What is known of a mount that is to be kept off: from its heartbeat, or its claim in the lobby if it died
/// before its first one.
///
/// # Errors
/// Those of reading the lobby.
pub fn victim_of(disk: &Disk, slot: SlotId, member: &SlotView, cell: Option<&Heartbeat>) -> Result<Victim> {
    let incarnation = member.incarnation;
    if let Some(c) = cell.filter(|c| c.incarnation == incarnation) {
        let (host, boot, name) = (c.host, c.boot, c.name.clone());
        return Ok(Victim { slot, incarnation, host, boot, name, never_beat: false });
    }
    let claim = disk.read_lobby()?.into_iter().flatten().find(|c| c.incarnation == incarnation);
    let (host, name) = claim.map_or_else(|| ([0; 16], format!("slot {slot}")), |c| (c.host, c.name));
    // What cannot be read may have been its heartbeat.
    Ok(Victim { slot, incarnation, host, boot: [0; 16], name, never_beat: cell.is_some() })
}
