//! Hosts kept off by persistent reservations: this mount's registration, and what it does with others'.
//!
//! Rules, by the names the tests use:
//! - K1: a mount's key is that of its incarnation: no other mount, of whatever slot, has it again.
//! - K2: nothing is written to the volume before the key is registered, not even a claim in the lobby; so the
//!   key is chosen before the slot is known.
//! - K3: a nexus that bears the key of a member is not registered anew: somebody lives there, or others
//!   are about to take that key away. A key that no nexus has is one that was taken away.
//! - K4: a key is taken away only while the reservation stands: without one anybody may write.
//! - K5: the reservation is given up with the last mount that leaves, unless a host was ever kept off by it:
//!   that one may still be stopped, with writes queued.
//! - K8: a reservation that has gone under mounts (targets that forget who was registered, an administrator)
//!   is made again by the first that notices, and told of.

use crate::base::{Error, Incarnation, Result, SlotId};
use crate::cluster::fencer::{Cut, Fence, Victim};
use crate::device::reservation::{Kind, Refused, Report, Reservations};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bits of a key that are the mount's; those above are the volume's.
const MOUNT_BITS: u32 = 40;

/// The key of a mount of the volume with this format id.
pub fn key_of(format_id: u64, incarnation: Incarnation) -> u64 {
    // A multiplication mixes all bits of the id into the highest ones.
    let volume = (format_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> MOUNT_BITS).max(1);
    volume << MOUNT_BITS | incarnation.0 & ((1 << MOUNT_BITS) - 1)
}

/// Is this the key of some mount of that volume?
pub fn is_of_volume(format_id: u64, key: u64) -> bool {
    key >> MOUNT_BITS == key_of(format_id, Incarnation(0)) >> MOUNT_BITS
}

/// What became of registering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    Yes,
    /// This nexus bears the key of that member (K3).
    Bears(SlotId, Incarnation),
    /// Something else than this volume's hosts is registered, perhaps on this very nexus (no key: that one
    /// cannot be read). Nothing was changed.
    Foreign(Vec<u64>),
}

/// Mounts whose keys one that finds nobody alive may come upon.
#[derive(Clone, Debug, Default)]
pub struct Former {
    /// Members that are not provably gone: what they sent may be in the device.
    pub members: Vec<Incarnation>,
    /// First mounts that came to nothing yet, by their claims.
    pub claims: Vec<Incarnation>,
    /// Gone for certain, or left in order: nothing of theirs is still to come.
    pub over: Vec<Incarnation>,
}

/// This mount's registration with the device.
pub struct Registration {
    device: Arc<dyn Reservations>,
    format_id: u64,
    key: u64,
    /// Longest life of a write in the device.
    write_life: Duration,
    kind: Mutex<Option<Kind>>,
    /// It has, or may have, a reservation in its hands that must not end with it.
    holds: AtomicBool,
    /// It has kept somebody off who may be stopped, with writes queued (K5).
    kept_off: AtomicBool,
}

fn failed(what: &str, why: &Refused) -> Error {
    Error::Device(format!("{what}: {why}"))
}

/// The names of keys for people.
pub fn listed(keys: &[u64]) -> String {
    keys.iter().map(|k| format!("{k:#018x}")).collect::<Vec<_>>().join(", ")
}

impl Registration {
    /// Nothing is registered yet.
    pub fn new(
        device: Arc<dyn Reservations>,
        format_id: u64,
        incarnation: Incarnation,
        write_life: Duration,
    ) -> Registration {
        let key = key_of(format_id, incarnation);
        Registration {
            device,
            format_id,
            key,
            write_life,
            kind: Mutex::default(),
            holds: AtomicBool::new(false),
            kept_off: AtomicBool::new(false),
        }
    }

    /// Has [`Registration::take`], whether or not it came to its end, kept somebody off who may be stopped, with
    /// writes queued (K5)?
    pub fn has_kept_off(&self) -> bool {
        self.kept_off.load(Ordering::Acquire)
    }

    /// The key.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// K2, K3. `members`: those of the newest view, the dead who are not recovered included. `used`: by that view
    /// the volume's hosts have reservations, so that a key on this nexus is likely theirs.
    ///
    /// # Errors
    /// What the device says, as it is: not every device can.
    pub fn enrol(
        &self,
        members: &[(SlotId, Incarnation)],
        used: bool,
    ) -> std::result::Result<Enrolled, Refused> {
        let report = self.readable()?;
        if let Some(foreign) = report.as_ref().map(|r| self.foreign(r)).filter(|foreign| !foreign.is_empty())
        {
            return Ok(Enrolled::Foreign(foreign));
        }
        match self.device.register(0, self.key) {
            Err(Refused::Conflict) => {}
            other => return other.map(|()| Enrolled::Yes),
        }
        for (slot, incarnation) in members {
            let key = key_of(self.format_id, *incarnation);
            // It changes nothing, and succeeds if the key is that of this nexus.
            if self.device.register(key, key).is_ok() {
                return Ok(Enrolled::Bears(*slot, *incarnation));
            }
        }
        if report.is_none() && !used {
            return Ok(Enrolled::Foreign(vec![]));
        }
        // What a mount left that is over.
        self.device.replace(self.key)?;
        self.holds.store(true, Ordering::Release);
        Ok(Enrolled::Yes)
    }

    /// As [`Registration::enrol`] where this nexus bears the key of `former`, which is gone for certain.
    pub fn succeed(&self, former: Incarnation) -> Result<()> {
        let old = key_of(self.format_id, former);
        self.device.register(old, self.key).map_err(|e| failed("registering with the device", &e))?;
        self.holds.store(true, Ordering::Release);
        Ok(())
    }

    /// Who is registered, if the device tells at all.
    ///
    /// # Errors
    /// It tells as a rule, but not now.
    fn readable(&self) -> std::result::Result<Option<Report>, Refused> {
        match self.device.report() {
            Ok(report) => Ok(Some(report)),
            Err(Refused::Unsupported(_)) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Keys there that are no mount's of this volume. A key of 0 is what NVMe has of a host that could not be
    /// unregistered.
    fn foreign(&self, report: &Report) -> Vec<u64> {
        let foreign = |k: &u64| *k != 0 && !is_of_volume(self.format_id, *k);
        report.keys.iter().copied().filter(foreign).collect()
    }

    /// Is our key registered still? Else somebody has taken it away. Asked of this very nexus: a list of keys may
    /// be a part of them, and has those of other ways to the device.
    pub fn is_registered(&self) -> Result<bool> {
        match self.device.register(self.key, self.key) {
            Ok(()) => Ok(true),
            Err(Refused::Conflict) => Ok(false),
            Err(e) => Err(failed("asking for our key", &e)),
        }
    }

    fn confirm(&self) -> Result<()> {
        match self.is_registered()? {
            true => Ok(()),
            false => Err(Error::Fenced { op: "registration", offset: 0 }),
        }
    }

    /// K4: of which kind is the reservation? Made if there is none.
    ///
    /// # Errors
    /// What keeps it from standing.
    pub fn hold(&self) -> Result<Kind> {
        let known = *self.kind.lock();
        let mut last = Refused::Conflict;
        for kind in [Kind::AllRegistrants, Kind::RegistrantsOnly] {
            match self.device.reserve(self.key, kind) {
                Ok(()) => {
                    self.kind.lock().replace(kind);
                    return Ok(kind);
                }
                // Only what is not there may be thought impossible.
                Err(e @ Refused::Failed(_)) if known == Some(kind) => return Err(failed("reserving", &e)),
                Err(e) => last = e,
            }
        }
        match last {
            Refused::Conflict => {}
            why => return Err(failed("reserving", &why)),
        }
        // All registered nexuses hold the first kind: it is the second, and another has it.
        self.confirm()?;
        match self.device.report().ok().map(|r| r.held) {
            None => Ok(Kind::RegistrantsOnly),
            Some(Some(held)) if held.kind.is_some() => Ok(Kind::RegistrantsOnly),
            Some(Some(held)) => Err(Error::Device(format!(
                "the device bears a reservation of another kind, held by key {:#018x}: see `shoal fence`",
                held.key
            ))),
            Some(None) => Err(Error::TimedOut("the reservation has changed meanwhile".into())),
        }
    }

    /// K8.
    fn hold_anew(&self) {
        tracing::error!(
            "the device's reservation is gone, though mounts stand under it: hosts that were kept off could write. \
             Targets must keep registrations over the end of a session (see docs/OPERATIONS.md)"
        );
        if let Err(e) = self.hold() {
            tracing::error!("and it cannot be made again: {e}");
        }
    }

    /// `None`: no nexus had that key.
    fn preempt(&self, victim: u64, kind: Kind) -> Result<Option<Cut>> {
        let cut = |how: String, settle| Ok(Some(Cut { how, settle }));
        let why = match self.device.preempt(self.key, victim, kind, true) {
            Ok(()) if self.device.is_abort_certain() => {
                return cut("its key is preempted, its writes are aborted".into(), Duration::ZERO);
            }
            Ok(()) => {
                let how = "its key is preempted; its writes are aborted as far as can be, and waited for";
                return cut(how.into(), self.write_life);
            }
            Err(Refused::Conflict) => return self.confirm().map(|()| None),
            Err(why) => why,
        };
        // Perhaps the device does not abort; or it failed after the key was gone.
        match self.device.preempt(self.key, victim, kind, false) {
            Ok(()) => cut(
                format!(
                    "its key is preempted; its writes are waited for, for they could not be aborted ({why})"
                ),
                self.write_life,
            ),
            Err(Refused::Conflict) => {
                self.confirm()?;
                cut(format!("its key is gone; aborting its writes failed ({why})"), self.write_life)
            }
            Err(again) => Err(failed(&format!("preempting (with abort: {why})"), &again)),
        }
    }

    /// Take a mount's key away. Returned, nothing that it sends lands any more, once what settles has.
    ///
    /// # Errors
    /// [`Error::Fenced`] if our own key is gone; else it is not known to be done, and is to be tried again.
    pub fn cut_off(&self, victim: Incarnation) -> Result<Cut> {
        let victim = key_of(self.format_id, victim);
        assert_ne!(victim, self.key, "a mount does not take its own key away");
        let kind = self.hold()?;
        // Who took the key away before us may not have aborted what was under way.
        let gone = || Cut { how: "its key was gone already".into(), settle: self.write_life };
        let cut = self.preempt(victim, kind)?.unwrap_or_else(gone);
        self.look(|report| match report.keys.contains(&victim) {
            true => Some("the key is registered still".into()),
            false => None,
        })?;
        Ok(cut)
    }

    /// After the fact, where keys can be read: the reservation stands, ours is among the keys, and `fault`
    /// finds nothing.
    fn look(&self, fault: impl Fn(&Report) -> Option<String>) -> Result<()> {
        self.confirm()?;
        let Ok(report) = self.device.report() else { return Ok(()) };
        if !report.keys.contains(&self.key) {
            return Err(Error::Device("after preempting: the device does not tell all keys".into()));
        }
        let kind = report.held.and_then(|held| held.kind);
        let fault = if kind.is_none() { Some("no reservation stands".into()) } else { fault(&report) };
        fault.map_or(Ok(()), |what| Err(Error::Device(format!("after preempting: {what}"))))
    }

    fn keys_of(&self, mounts: &[Incarnation]) -> BTreeSet<u64> {
        mounts.iter().map(|i| key_of(self.format_id, *i)).collect()
    }

    /// The keys that are not ours and have to go: those there are, and those of `former`, for devices that do
    /// not tell.
    ///
    /// # Errors
    /// Names keys that are no mount's of this volume.
    pub fn victims(&self, former: &Former) -> Result<BTreeSet<u64>> {
        let report = self.readable().map_err(|e| failed("reading the keys", &e))?;
        let mut victims = self.keys_of(&former.members);
        victims.extend(self.keys_of(&former.claims));
        victims.extend(self.keys_of(&former.over));
        if let Some(report) = &report {
            let foreign = self.foreign(report);
            if !foreign.is_empty() {
                return Err(foreign_keys(&foreign));
            }
            victims.extend(report.keys.iter().filter(|k| **k != 0));
        }
        victims.remove(&self.key);
        Ok(victims)
    }

    /// Without living members: have the reservation, and take all keys of this volume away but ours. Answers with
    /// how long what may be in the device takes to settle.
    ///
    /// # Errors
    /// As [`Registration::victims`].
    pub fn take(&self, former: &Former) -> Result<Duration> {
        let victims = self.victims(former)?;
        let [members, over] = [&former.members, &former.over].map(|mounts| self.keys_of(mounts));
        let mut settle = Duration::ZERO;
        let kind = self.hold()?;
        self.kept_off.fetch_or(!former.claims.is_empty(), Ordering::AcqRel);
        for victim in victims {
            let cut = self.preempt(victim, kind)?;
            self.holds.fetch_or(cut.is_some(), Ordering::AcqRel);
            if over.contains(&victim) {
                continue;
            }
            self.kept_off.fetch_or(cut.is_some(), Ordering::AcqRel);
            // A member without a key was a member under leases, or another first mount took its key and died.
            // It may have renewed its lease since anybody looked, and written until then.
            let none = if members.contains(&victim) { self.write_life } else { Duration::ZERO };
            settle = settle.max(cut.map_or(none, |cut| cut.settle));
        }
        match self.device.reserve(self.key, kind) {
            Ok(()) => self.holds.store(true, Ordering::Release),
            Err(Refused::Conflict) => {
                self.confirm()?;
                return Err(Error::Device(
                    "the device is reserved under a key that no mount of this volume had: see `shoal fence`"
                        .into(),
                ));
            }
            Err(e) => return Err(failed("reserving", &e)),
        }
        let foreign = |r: &Report| {
            let others: Vec<u64> = r.keys.iter().copied().filter(|k| *k != self.key && *k != 0).collect();
            (!others.is_empty()).then(|| format!("keys {} are registered", listed(&others)))
        };
        // One that came meanwhile is a mount that waits to be let in, or takes our key away next.
        if let Err(Error::Device(what)) = self.look(foreign) {
            tracing::info!("{what}");
        }
        self.confirm()?;
        Ok(settle)
    }

    /// K5. Best effort: what stays is a key of a mount that is over.
    pub fn leave(&self, last: bool, fenced: bool) {
        if last && fenced {
            tracing::info!(
                "the device stays reserved: a host that was kept off may still be stopped with writes queued; \
                 `shoal fence --clear` frees the device for another use"
            );
            return;
        }
        let holder_of_others = || {
            !last
                && !matches!(self.device.reserve(self.key, Kind::AllRegistrants), Ok(()))
                && self.device.reserve(self.key, Kind::RegistrantsOnly).is_ok()
        };
        if holder_of_others() {
            return; // the reservation would end, with others at work under it
        }
        match self.device.unregister(self.key) {
            Ok(()) | Err(Refused::Conflict) => {}
            Err(e) => tracing::warn!("unregistering from the device: {e}"),
        }
    }

    /// A mount that came to nothing. If it had a reservation in hand, that stays for the next one, unless the
    /// volume is `idle`: nobody has it, and nobody was ever kept off. Who became its first mount meanwhile has
    /// taken our key before.
    pub fn give_up(&self, idle: bool) {
        if idle {
            self.leave(true, false);
        } else if !self.holds.load(Ordering::Acquire) {
            self.leave(false, false);
        }
    }
}

/// Keys that are not ours to take away.
pub fn foreign_keys(keys: &[u64]) -> Error {
    let keys = if keys.is_empty() { "a key that cannot be read".into() } else { listed(keys) };
    Error::Device(format!(
        "something else than this volume's hosts is registered with the device, under {keys}: another cluster, or a \
         volume that was here before, of which a host may be paused. If it is not in use, and no such host is, \
         `shoal fence --clear DEVICE` takes the keys away; if other software keeps hosts off this device by \
         reservations, mount with fence=lease"
    ))
}

impl Fence for Registration {
    fn cut(&self, victim: &Victim) -> Result<Cut> {
        self.cut_off(victim.incarnation)
    }

    /// The list is read first, for asking is a change to the device, which writes it down each time.
    fn verify(&self) -> Result<()> {
        if let Ok(report) = self.device.report()
            && report.keys.contains(&self.key)
        {
            if report.held.is_none() && self.kind.lock().is_some() {
                self.hold_anew();
            }
            return Ok(());
        }
        match self.is_registered() {
            Ok(false) => Err(Error::Fenced { op: "registration", offset: 0 }),
            // A device that does not answer says nothing; its writes will tell.
            Ok(true) | Err(_) => Ok(()),
        }
    }
}
