//! Which class of fence a mount takes part in: the first mount chooses, all later ones do as the view says.
//! And what a mount does at the device before it writes anything: it registers; without living members it
//! keeps those off that were there before.

use crate::base::{Error, Incarnation, Result, SlotId};
use crate::cluster::fencer::{Fence, Fencer};
use crate::cluster::join::{JoinOptions, Joiner};
use crate::cluster::keys::{Enrolled, Registration, foreign_keys};
use crate::cluster::member::Watch;
use crate::cluster::proof::Proof;
use crate::cluster::view::{bit, live, slots};
use crate::device::reservation::{Refused, Reservations};
use crate::format::cluster::heartbeat::FLAG_LEAVING;
use crate::format::cluster::lobby::ClaimKind;
use crate::format::cluster::{FenceClass, Heartbeat, View};
use rand::Rng;
use std::sync::Arc;

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
    pub fn refuse<T>(&self, what: impl std::fmt::Display) -> Result<T> {
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
            && let Some(name) = clone_of(&self.view, &self.row, &self.watch, Watch::has_lived, &self.options)
        {
            return self.refuse(format_args!("{name} {SAME_MACHINE}"));
        }
        if class == FenceClass::Command {
            self.refuse_second()?;
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
        if class != FenceClass::Reservation {
            return Ok(true);
        }
        let enrolled = self.enrol(false)?;
        if enrolled && self.claim.as_ref().is_none_or(|(_, claim)| claim.kind != ClaimKind::Join) {
            self.compare_keys()?;
        }
        Ok(enrolled)
    }

    /// Another mount of this boot, by another path to the device: by the same one that would have it to itself.
    fn refuse_second(&self) -> Result<()> {
        let same = of_this_identity(&self.view, &self.row, &self.watch, Watch::has_lived, &self.options);
        match same.filter(|c| c.boot == self.options.boot).find(|c| c.flags & FLAG_LEAVING == 0) {
            None => Ok(()),
            Some(c) => self.refuse(format_args!(
                "{} (slot {}) has it mounted on this machine already, as {}: a command tells machines apart, not \
                 mounts",
                c.name, c.slot, c.device
            )),
        }
    }

    /// Before we ask: whoever lives must be registered where we are, or neither could keep the other off.
    fn compare_keys(&mut self) -> Result<()> {
        let device = self.reservations()?;
        let timing = self.options.timing;
        let limit = self.options.clock.now() + timing.suspicion + timing.heartbeat * 2;
        loop {
            let Ok(report) = device.report() else { return Ok(()) };
            let members = live(&self.view);
            let unseen = self.row.iter().flatten().find(|c| {
                let member = self.view.slots.get(usize::from(c.slot.0));
                members & bit(c.slot) != 0
                    && member.is_some_and(|m| m.incarnation == c.incarnation)
                    && (self.watch.has_moved(c.slot) && !self.watch.is_silent(c.slot))
                    && !report.keys.contains(&c.reservation_key)
            });
            let Some(name) = unseen.map(|c| self.name_of(c.slot)) else { return Ok(()) };
            // It may be about to leave, or dead.
            if self.options.clock.now() >= limit {
                return self.refuse(format_args!(
                    "{name} has the volume mounted, but this way to the device does not show its registration: the \
                     hosts reach parts of the store that know nothing of each other's"
                ));
            }
            std::thread::sleep(timing.heartbeat);
            self.poll()?;
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
            FenceClass::Reservation if self.may_enrol_later() => Ok(true),
            FenceClass::Reservation => self.enrol(true),
            FenceClass::Lease | FenceClass::Command => Ok(true),
        }
    }

    /// Of several first mounts one gets in. On a device that is free the others need no key, and nobody has to
    /// keep them off: all they may write is a claim.
    pub fn may_enrol_later(&self) -> bool {
        let report = self.options.fence.reservations.as_ref().map(|r| r.report());
        self.registration.is_none() && matches!(report, Some(Ok(r)) if r.held.is_none() && r.keys.is_empty())
    }

    /// Has an administrator freed the device, as far as it tells?
    pub fn is_device_free(&self) -> bool {
        let report = self.options.fence.reservations.as_ref().and_then(|r| r.report().ok());
        report.is_some_and(|r| r.held.is_none() && r.keys.iter().all(|k| *k == 0))
    }

    /// Nobody has asked for a class, and there was none but time.
    fn try_reservations(&mut self) -> Result<bool> {
        if self.class == FenceClass::Reservation && self.registration.is_some() {
            return Ok(true);
        }
        let mut why = self.options.fence.reluctance.clone();
        if why.is_none() && self.may_enrol_later() {
            self.class = FenceClass::Reservation;
            return Ok(true);
        }
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
    pub fn fall_back(&mut self, why: Option<String>) {
        if let Some(registration) = self.registration.take() {
            registration.leave(true, false);
        }
        self.cut.clear();
        self.class = FenceClass::Lease;
        self.why_leases = why;
    }

    /// K2, K3. `false`: this host's way to the device bears the key of a mount that others are about to fence.
    pub fn enrol(&mut self, first: bool) -> Result<bool> {
        if self.registration.is_some() {
            return Ok(true);
        }
        let device = self.reservations()?;
        let (format_id, life) = (self.disk.format_id, self.options.timing.claim_wait());
        let registration = Registration::new(device, format_id, self.incarnation, life);
        let occupied = self.others();
        let members: Vec<_> = slots(&self.view).filter(|(s, _)| occupied & bit(*s) != 0).collect();
        let members: Vec<_> = members.into_iter().map(|(slot, s)| (slot, s.incarnation)).collect();
        let used = self.view.fence == FenceClass::Reservation as u8;
        match registration.enrol(&members, used) {
            Ok(Enrolled::Yes) => {}
            Ok(Enrolled::Foreign(keys)) => return self.refuse(foreign_keys(&keys)),
            Ok(Enrolled::Bears(slot, former)) => {
                if !self.may_succeed(slot, former, first)? {
                    return Ok(false);
                }
                registration.succeed(former)?;
            }
            Err(Refused::Conflict) => return self.refuse("the device does not let this host register"),
            Err(why) => {
                tracing::info!("registering with the device: {why}");
                let asked = used || self.options.fence.wanted == Wanted::Class(FenceClass::Reservation);
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
        // A process of this boot that has let go of the device, or we would not have its presence lock.
        match self.proof_by_device(slot, former) {
            Proof::Gone => return Ok(true),
            // Neither its key is taken nor is it said to live.
            Proof::Later => return Ok(false),
            Proof::None => {}
        }
        let same_boot = cell.as_ref().filter(|c| c.boot == self.options.boot);
        let here = same_boot.is_some_and(|c| c.file == self.options.file && self.watch.is_as_found(slot));
        let name = self.name_of(slot);
        if self.watch.has_moved(slot) && !self.watch.is_silent(slot) {
            return self.refuse(format_args!(
                "the device takes this host for {name}, which has the volume mounted: give each host an identity of \
                 its own (iSCSI initiator name, NVMe host NQN and host id), or unmount it on all hosts and mount it \
                 with fence=lease"
            ));
        }
        if !first {
            return Ok(false);
        }
        match &cell {
            // An earlier boot of this machine.
            Some(c) if c.host == self.options.host && (c.boot != self.options.boot || here) => Ok(true),
            // Of this boot: the presence lock of another device node says nothing of it.
            Some(c) if c.host == self.options.host => self.refuse(format_args!(
                "the device takes this host for {name}, which is a mount of this machine by another device node (of a \
                 container, perhaps), or of a copy of this machine, and did not leave the volume: end its daemon, \
                 make sure that it is not paused, and run `shoal fence --clear` on the device"
            )),
            _ => self.refuse(format_args!(
                "the device takes this host for {name}, which did not leave the volume: if that was this machine, or \
                 one that is gone for certain, run `shoal fence --clear` on the device"
            )),
        }
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
        // Members under leases are not protected by a reservation of ours, but kept from writing.
        let unused = self.others() == 0 || self.view.fence == FenceClass::Lease as u8;
        let idle = unused && !self.view.fenced && !self.kept_off;
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

/// The members that are known by the same identity as this machine, of those that have `lived`.
fn of_this_identity<'a>(
    view: &'a View,
    row: &'a [Option<Heartbeat>],
    watch: &'a Watch,
    lived: fn(&Watch, SlotId) -> bool,
    options: &'a JoinOptions,
) -> impl Iterator<Item = &'a Heartbeat> {
    let members = live(view);
    row.iter().flatten().filter(move |c| {
        let stands = view.slots.get(usize::from(c.slot.0)).is_some_and(|s| s.incarnation == c.incarnation);
        let lives = members & bit(c.slot) != 0 && lived(watch, c.slot) && !watch.is_silent(c.slot);
        stands && lives && c.host == options.host
    })
}

/// The name of such a member on another machine.
pub fn clone_of(
    view: &View,
    row: &[Option<Heartbeat>],
    watch: &Watch,
    lived: fn(&Watch, SlotId) -> bool,
    options: &JoinOptions,
) -> Option<String> {
    let mut same = of_this_identity(view, row, watch, lived, options);
    same.find(|c| c.boot != options.boot).map(|c| format!("{} (slot {})", c.name, c.slot))
}
