//! How a mount becomes a member: beside living members through the lobby, or as the first one.
//!
//! A member is alive if its heartbeat moves while we look. If one is, we claim a lobby cell and it
//! proposes a view with us. If every former member is gone - its last heartbeat has stood still for
//! the whole wait, or it is provably gone - we take a slot and propose ourselves (`first_mount`).

use crate::base::{Clock, Epoch, Error, Incarnation, Result, SlotId};
use crate::cluster::asking::Still;
use crate::cluster::class::{FenceOptions, SAME_MACHINE, clone_of};
use crate::cluster::disk::Disk;
use crate::cluster::former::{Failing, KeptOff};
use crate::cluster::groups::Groups;
use crate::cluster::keys::Registration;
use crate::cluster::known::Known;
use crate::cluster::member::Watch;
use crate::cluster::node::{HostReport, Node};
use crate::cluster::paxos::Proposer;
use crate::cluster::takeover::{Proofs, Takeover};
use crate::cluster::timing::Timing;
use crate::cluster::view::{bit, dead_of, live, mask, slot_of, slots};
use crate::cluster::{LeaseSink, SlotClaim};
use crate::format::cluster::heartbeat::{DeviceFile, FLAG_RECOVERING};
use crate::format::cluster::view::PROTOCOL;
use crate::format::cluster::{Ballot, Claim, FenceClass, Heartbeat, SlotState, View};
use crate::format::superblock::TimingProfile;
use parking_lot::Mutex;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Who joins, and what it can prove.
#[derive(Clone)]
pub struct JoinOptions {
    /// Slots that have a journal (bit s: slot s).
    pub usable: u64,
    pub timing: Timing,
    /// What these times are called, as the volume says; `None`: they are nobody else's business.
    pub profile: Option<TimingProfile>,
    /// Lasting identity of this machine.
    pub host: [u8; 16],
    /// Identity of this boot of it.
    pub boot: [u8; 16],
    /// Host name, and the device path, for people.
    pub name: String,
    pub device: String,
    /// The file that was opened; of a block device, with its presence lock.
    pub file: DeviceFile,
    /// The volume is an image file on a filesystem of this machine alone.
    pub local: bool,
    /// Take for gone who is provably so, without waiting for its lease to be over.
    pub prove: bool,
    /// What can be done about hosts that die.
    pub fence: FenceOptions,
    /// Byte-range locks on that file; without them nobody is provably gone from an image.
    pub claim: Option<Arc<dyn SlotClaim>>,
    pub clock: Arc<dyn Clock>,
    pub lease: Arc<dyn LeaseSink>,
    /// How long to ask living members before giving up.
    pub patience: Duration,
}

/// What joining found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinReport {
    pub slot: SlotId,
    pub incarnation: Incarnation,
    /// There was no other member.
    pub first: bool,
    /// Journals to replay before anything else is read, then to report by `recovered`; our own slot
    /// among them if its last mount did not leave cleanly. None beside other members: then the successor
    /// hears of whom we have to take over from (see [`crate::cluster::Cluster::on_fenced`]).
    pub replay: Vec<SlotId>,
    /// How hosts that die are kept off, and what is to be said of it.
    pub fence: FenceClass,
    pub warning: Option<String>,
}

/// What we proposed as the first mount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    /// The view that it would be. If it contains us, that is how we got in, for nobody else can propose
    /// the next one; in any later view we were let in by others, into a slot that was left cleanly.
    pub epoch: Epoch,
    /// Our slot in it was not left cleanly.
    pub dirty: bool,
    /// Whose heartbeat stood in its cell.
    pub former: Incarnation,
}

/// Why a mount ends that somebody has told to.
pub const UNWANTED: &str = "told to end before it was mounted";

/// A mount on its way in.
pub(super) struct Joiner {
    pub disk: Disk,
    pub options: JoinOptions,
    pub incarnation: Incarnation,
    pub watch: Watch,
    pub row: Vec<Option<Heartbeat>>,
    /// Who those are that were seen to beat.
    pub known: Known,
    pub ballots: Vec<(Ballot, u64)>,
    pub view: View,
    /// Former mounts that are proven gone.
    pub proven: BTreeMap<SlotId, Incarnation>,
    /// Slots whose byte range we hold, the lobby's apart.
    pub held: u64,
    pub lobby_held: bool,
    pub tried: Option<Tried>,
    pub claim: Option<(u16, Claim)>,
    /// A claim of this mount may have been read.
    pub asked: bool,
    /// What of the lobby stands still.
    pub still: Still,
    /// How hosts that die are kept off, as far as is known yet.
    pub class: FenceClass,
    /// Why that is by time, where nobody asked for it.
    pub why_leases: Option<String>,
    /// With the device, once we are registered.
    pub registration: Option<Arc<Registration>>,
    /// Former mounts that are kept off for certain.
    pub cut: BTreeMap<SlotId, KeptOff>,
    /// First mounts whose claims we have taken over: what they wrote there tells of them no more.
    pub ousted: Vec<Incarnation>,
    /// We have taken a key away from somebody who may be stopped, with writes queued.
    pub kept_off: bool,
    /// A first mount's command fails.
    pub failing: Option<Failing>,
    /// Times that we were kept off on our way in.
    pub evictions: u32,
}

impl Joiner {
    pub fn new(disk: Disk, options: JoinOptions) -> Result<Joiner> {
        if let Some(rule) = options.timing.violated() {
            return Err(Error::Device(format!("the timing profile breaks a rule: {rule}")));
        }
        let slot_count = disk.geometry.max_slots;
        let mut joiner = Joiner {
            watch: Watch::new(options.timing, slot_count),
            incarnation: Incarnation(rand::rng().random_range(1..=u64::MAX)),
            row: vec![],
            known: Known::default(),
            ballots: vec![],
            view: View::initial(slot_count, 0),
            proven: BTreeMap::new(),
            held: 0,
            lobby_held: false,
            tried: None,
            claim: None,
            asked: false,
            still: Still::default(),
            class: FenceClass::Lease,
            why_leases: None,
            registration: None,
            cut: BTreeMap::new(),
            ousted: vec![],
            kept_off: false,
            failing: None,
            evictions: 0,
            disk,
            options,
        };
        joiner.read_views()?;
        Ok(joiner)
    }

    pub fn read_views(&mut self) -> Result<()> {
        self.ballots = self.disk.read_ballots()?;
        let newest = self.ballots.iter().map(|(b, _)| &b.decided).max_by_key(|v| v.epoch);
        let newest = newest.cloned().ok_or_else(|| Error::Device("the volume has no slots".into()))?;
        if newest.slots.len() != usize::from(self.disk.geometry.max_slots) {
            return Err(Error::Device(format!("view {} has {} slots", newest.epoch, newest.slots.len())));
        }
        // An older one is left behind with the next first mount; who lives under it says whom it lets in.
        if newest.protocol > PROTOCOL {
            return Err(Error::Device(format!(
                "hosts of this volume speak protocol {}, which this release does not know",
                newest.protocol
            )));
        }
        if newest.epoch >= self.view.epoch {
            self.view = newest;
        }
        Ok(())
    }

    /// As [`Joiner::read_views`] once a view may contain us: giving up then leaves a member behind that
    /// never says a word, so a device that fails for a moment is asked again.
    pub fn read_patiently(&mut self) -> Result<()> {
        let limit = self.options.clock.now() + self.options.timing.suspicion;
        loop {
            match self.read_views() {
                Err(_) if self.options.clock.now() < limit => {
                    std::thread::sleep(self.options.timing.heartbeat)
                }
                result => return result,
            }
        }
    }

    /// Read the row, and the ballots too if some cell knows a newer view.
    pub fn poll(&mut self) -> Result<()> {
        self.check_wanted()?;
        let begun = self.options.clock.now();
        self.row = self.disk.read_heartbeats()?;
        // A first mount takes the volume without waiting for anybody to hear of it: whose cell is lost to this host
        // alone may live, and must not be taken for gone.
        for (slot, cell) in (0..).map(SlotId).zip(&self.row) {
            if cell.is_none() && self.others() & bit(slot) != 0 {
                self.disk.is_torn_at_most(slot)?;
            }
        }
        self.forget_cut();
        self.watch.look(begun, self.options.clock.now(), &self.row);
        self.known.note(&self.row, &self.watch, &self.view);
        let newest = self.row.iter().flatten().map(|h| h.epoch).max().unwrap_or_default();
        if newest > self.view.epoch {
            self.read_views()?;
        }
        Ok(())
    }

    /// An error once somebody has told the mount to end.
    pub fn check_wanted(&self) -> Result<()> {
        match self.options.lease.is_unwanted() {
            true => self.refuse(UNWANTED),
            false => Ok(()),
        }
    }

    /// Mask of the slots whose last mount may still be there.
    pub fn others(&self) -> u64 {
        mask(&self.view, |s| matches!(s, SlotState::Live { .. } | SlotState::Dead { .. }))
    }

    /// Does a member's heartbeat move?
    pub fn is_anybody_alive(&self) -> bool {
        let live = live(&self.view);
        slots(&self.view)
            .any(|(s, _)| live & bit(s) != 0 && self.watch.has_moved(s) && !self.watch.is_silent(s))
    }

    /// Poll until a view contains us.
    fn enter(&mut self) -> Result<SlotId> {
        let started = self.options.clock.now();
        let step = (self.options.timing.heartbeat / 4).max(Duration::from_millis(10));
        let mut told = None;
        loop {
            self.poll()?;
            self.check_profile()?;
            if let Some(slot) = slot_of(&self.view, self.incarnation) {
                return Ok(slot);
            }
            match self.approach(started, &mut told) {
                Ok(()) => {}
                Err(e @ Error::Fenced { .. }) => self.begin_anew(e)?,
                Err(e) => return Err(e),
            }
            if let Some(slot) = slot_of(&self.view, self.incarnation) {
                return Ok(slot);
            }
            std::thread::sleep(step);
        }
    }

    /// One step towards a view with us. Nothing is written before the device knows us, if it has to.
    fn approach(&mut self, started: Duration, told: &mut Option<Epoch>) -> Result<()> {
        if self.is_anybody_alive() {
            if !self.fit_in()? {
                return self.tell_waiting(started, told);
            }
            self.release_proofs()?;
            self.ask(started)
        } else if self.is_failing() {
            self.show()
        } else if self.are_all_gone()? {
            if !self.choose()? {
                return self.tell_waiting(started, told);
            }
            self.first_mount()?;
            // A view is decided now, ours or another's: look at once.
            self.read_patiently()
        } else {
            self.show()?;
            self.tell_waiting(started, told)
        }
    }

    /// A slot with the name of the host that was there last.
    pub fn name_of(&self, slot: SlotId) -> String {
        let beat = self.row[usize::from(slot.0)].as_ref();
        beat.map_or_else(|| format!("slot {slot}"), |b| format!("{} (slot {slot})", b.name))
    }

    /// How we got in, if it was as the first mount.
    fn first(&self) -> Option<Tried> {
        self.tried.filter(|tried| tried.epoch == self.view.epoch)
    }

    /// Must the journal of the slot that we have now be replayed?
    fn is_own_dirty(&self) -> bool {
        self.first().is_some_and(|first| first.dirty)
    }

    /// Whose the heartbeat cell of our slot was. Beside living members nobody else can have the slot,
    /// so it is who stands there now; a first mount goes by what it saw before its ballot.
    fn former(&self, slot: SlotId) -> Incarnation {
        let known = self.row.get(usize::from(slot.0)).cloned().flatten();
        let stands = || self.disk.read_heartbeat(slot).ok().flatten().or(known);
        match self.first() {
            Some(first) => first.former,
            None => stands().map_or(Incarnation(0), |cell| cell.incarnation),
        }
    }

    /// A view contains us: the member that we are now, without a word said yet.
    fn node(&mut self, slot: SlotId) -> Result<Node> {
        self.read_patiently()?;
        let (ballot, ballot_sequence) = self.ballots[usize::from(slot.0)].clone();
        let mut proposer = Proposer::new(slot, ballot);
        proposer.learn(&self.view);
        let view = Arc::new(self.view.clone());
        let clock = self.options.clock.clone();
        let groups = Groups::new(self.disk.clone(), clock.clone(), slot, self.incarnation, view.clone());
        let beat = Heartbeat {
            slot,
            incarnation: self.incarnation,
            host: self.options.host,
            boot: self.options.boot,
            flags: if self.is_own_dirty() { FLAG_RECOVERING } else { 0 },
            file: self.options.file,
            reservation_key: self.registration.as_ref().map_or(0, |r| r.key()),
            name: self.options.name.clone(),
            device: self.options.device.clone(),
            ..Heartbeat::default()
        };
        let timing = self.timing();
        Ok(Node {
            timing,
            lease: self.options.lease.clone(),
            slot,
            incarnation: self.incarnation,
            former: self.former(slot),
            usable: self.options.usable,
            joined: view.epoch,
            groups: Arc::new(groups),
            watch: self.watch.going_by(timing).expecting_all(live(&view), clock.now()),
            row: self.row.clone(),
            known: self.known.clone(),
            report: Arc::new(Mutex::new(HostReport::default())),
            positions: Arc::default(),
            beat,
            proposer,
            ballot_sequence,
            lease_end: None,
            ack_due: false,
            leaving: false,
            ledgers_read: vec![(Incarnation(0), 0); view.slots.len()],
            last_beat: Duration::ZERO,
            takeover: Takeover::new(Proofs::of(&self.options), view.slots.len()),
            fencer: self.fencer(),
            registration: self.registration.clone(),
            disk: self.disk.clone(),
            clock,
            view,
        })
    }

    /// From the first beat on to the moment when all that the others left can be trusted.
    fn settle(&mut self, node: &mut Node) -> Result<()> {
        let slot = node.slot;
        if node.view.fence != self.class as u8 {
            return Err(Error::Busy("the class of fence has changed meanwhile: mount again".into()));
        }
        self.check_profile()?;
        self.hold_own(slot)?;
        // Before the first beat: what it tells of would be kept off once more.
        if self.class == FenceClass::Lease {
            self.cut.clear();
        }
        for (slot, incarnation) in self.proven.iter().filter(|(s, _)| **s != slot) {
            node.takeover.fences.prove(*slot, *incarnation);
        }
        for (slot, incarnation) in self.cut_in(&node.view) {
            node.takeover.fences.cut(slot, incarnation);
        }
        self.beat_until(node, |node| node.lease_end.is_some())?;
        // From now on our heartbeat keeps others from making the volume anew; before, nothing did.
        self.options.lease.confirm().map_err(|e| node.lost(e.to_string()))?;
        // Our cell was the last mount's: a renewal of its that read the row before our beat was
        // complete is invisible now, so the wait counts from here.
        let unproven = self.is_own_dirty() && !self.proven.contains_key(&slot);
        // Whoever is kept off writes nothing any more, but may tell what it has in memory as long as its lease.
        let wait = match self.cut.contains_key(&slot) {
            true => node.timing.lease_wait(),
            false => node.timing.wait(),
        };
        let own_fence = unproven.then(|| node.clock.now() + wait);
        self.withdraw()?;
        self.release_others(slot)?;
        let done = |node: &Node| own_fence.is_none_or(|end| node.clock.now() >= end) && node.may_replay();
        self.beat_until(node, |node| done(node) && node.is_barrier_passed())?;
        if self.class == FenceClass::Command
            && let Some(name) = clone_of(&node.view, &node.row, &node.watch, Watch::has_moved, &self.options)
        {
            return Err(Error::Device(format!("{name} {SAME_MACHINE}")));
        }
        let row = node.row.clone();
        node.groups.load()?;
        node.ledgers_loaded(&row);
        Ok(())
    }

    /// As [`beat_until`], unless the mount is told to end.
    fn beat_until(&self, node: &mut Node, done: impl Fn(&Node) -> bool) -> Result<()> {
        beat_until(node, |node| done(node) || self.options.lease.is_unwanted())?;
        self.check_wanted()
    }
}

/// Beat until `done`, a few times per heartbeat. A device that fails for a moment is forgiven as it is
/// later on: what bounds it is the suspicion that silence raises.
fn beat_until(node: &mut Node, done: impl Fn(&Node) -> bool) -> Result<()> {
    let mut worked = node.clock.now();
    while !done(node) {
        match node.beat() {
            Ok(()) => worked = node.clock.now(),
            Err(e @ Error::Halted(_)) => return Err(e),
            Err(e) if node.clock.now() >= worked + node.timing.suspicion => return Err(e),
            Err(e) => tracing::warn!("joining: {e}; trying again"),
        }
        if !done(node) {
            std::thread::sleep((node.timing.heartbeat / 5).max(Duration::from_millis(5)));
        }
    }
    Ok(())
}

/// A member that does not go on: it must not stay one, for others would wait for its word. Where that
/// cannot be had it is a crash to them.
fn resign(mut node: Node, why: &Error) {
    if matches!(why, Error::Halted(_)) {
        return;
    }
    // Not before the barrier: the mount that looked after our slot may be writing an adoption under an
    // older view, and whoever inherits the slot from us would not know of it.
    let limit = node.clock.now() + node.timing.wait();
    let waited = beat_until(&mut node, |node| node.is_barrier_passed() || node.clock.now() >= limit);
    let left = waited.and_then(|()| match node.is_barrier_passed() {
        true => node.leave(),
        false => Err(Error::TimedOut("the other members do not acknowledge our view".into())),
    });
    match left {
        Ok(()) => tracing::info!(slot = %node.slot, "left again"),
        Err(e) => tracing::warn!(slot = %node.slot, "cannot leave, the others see a dead host: {e}"),
    }
}

/// Become a member. Returns with the lease running and the ledgers read; someone must beat from now.
pub(super) fn join(disk: Disk, options: JoinOptions) -> Result<(Node, JoinReport)> {
    let mut joiner = Joiner::new(disk, options)?;
    let slot = match joiner.enter() {
        Ok(slot) => slot,
        Err(e) => {
            match joiner.give_up() {
                Some(slot) => resign(joiner.node(slot)?, &e),
                None => joiner.unregister(),
            }
            return Err(e);
        }
    };
    let incarnation = joiner.incarnation;
    let mut node = joiner.node(slot)?;
    let own_dirty = joiner.is_own_dirty();
    if let Err(e) = joiner.settle(&mut node) {
        resign(node, &e);
        return Err(e);
    }
    let first = node.is_alone();
    let dead = if first { dead_of(&node.view, slot) } else { 0 };
    let own = own_dirty.then_some(slot);
    let dead = slots(&node.view).map(|(s, _)| s).filter(|s| dead & bit(*s) != 0);
    let replay = own.into_iter().chain(dead).collect();
    let (fence, warning) = (node.view.fence_class()?, joiner.warning());
    let report = JoinReport { slot, incarnation, first, replay, fence, warning };
    let (epoch, fence) = (node.view.epoch, fence.name());
    tracing::info!(%slot, %epoch, first, fence, replay = report.replay.len(), "joined");
    Ok((node, report))
}
