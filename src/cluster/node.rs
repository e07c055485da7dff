//! A member's protocol state and its three acts: beat (renew the lease, see the others), learn a
//! view, propose one. Used by one thread: the joining caller's first, the protocol thread's then.

use crate::base::{Clock, Epoch, Error, Incarnation, Result, SlotId};
use crate::cluster::LeaseSink;
use crate::cluster::disk::{Disk, write_both};
use crate::cluster::fencer::Fencer;
use crate::cluster::groups::Groups;
use crate::cluster::keys::Registration;
use crate::cluster::known::Known;
use crate::cluster::member::{OwnBeat, Renewal, Watch};
use crate::cluster::ownership;
use crate::cluster::paxos::{Action, Event, Proposer};
use crate::cluster::takeover::Takeover;
use crate::cluster::timing::Timing;
use crate::cluster::view::{bit, dead, dead_of, is_member, leave, live, slots};
use crate::format::cluster::heartbeat::{FLAG_LEAVING, FLAG_RECOVERING, Replaying};
use crate::format::cluster::view::{PROTOCOL, PROTOCOL_MIN};
use crate::format::cluster::{Heartbeat, View};
use parking_lot::Mutex;
use rand::Rng;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a host says of itself in each heartbeat beside the protocol's own fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostReport {
    /// Free blocks of the groups this host holds.
    pub free_data: u64,
    pub free_meta: u64,
    pub groups: u64,
    /// The journal that it is replaying.
    pub replaying: Option<Replaying>,
}

/// Head and tail of the own journal as of now. Called at the start of each beat: must not wait for
/// anything but short mutexes.
pub type Positions = Box<dyn Fn() -> Option<(u64, u64)> + Send + Sync>;

/// One mount that is a member.
pub struct Node {
    pub disk: Disk,
    pub timing: Timing,
    pub clock: Arc<dyn Clock>,
    pub lease: Arc<dyn LeaseSink>,
    pub slot: SlotId,
    pub incarnation: Incarnation,
    /// Whose our heartbeat cell was before: a late write of its says nothing of us.
    pub former: Incarnation,
    /// Slots with a journal.
    pub usable: u64,
    /// The epoch that made us a member.
    pub joined: Epoch,
    pub view: Arc<View>,
    pub groups: Arc<Groups>,
    pub watch: Watch,
    pub row: Vec<Option<Heartbeat>>,
    /// Who those are that were seen to beat.
    pub known: Known,
    pub report: Arc<Mutex<HostReport>>,
    /// Set once the journal is open; it is empty before.
    pub positions: Arc<OnceLock<Positions>>,
    /// The cell as written next; counter, epochs and report are filled in by each beat.
    pub beat: Heartbeat,
    pub proposer: Proposer,
    pub ballot_sequence: u64,
    pub lease_end: Option<Duration>,
    /// A view was learnt that the others do not see acknowledged yet.
    pub ack_due: bool,
    pub leaving: bool,
    /// Per slot, the ledger as last read: whose, and its sequence.
    pub ledgers_read: Vec<(Incarnation, u64)>,
    /// When the last beat was started.
    pub last_beat: Duration,
    pub takeover: Takeover,
    /// What keeps dead hosts off beside time, and our own registration with the device.
    pub fencer: Option<Fencer>,
    pub registration: Option<Arc<Registration>>,
}

impl Node {
    /// Write the heartbeat, read the row, learn what is newer, renew the lease (R1).
    ///
    /// # Errors
    /// [`Error::Halted`]: out for ever. Others: the device's; beat again.
    pub fn beat(&mut self) -> Result<()> {
        let started = self.clock.now();
        self.last_beat = started;
        self.look_for_rival()?;
        if let Err(e) = self.write_beat() {
            return Err(match e {
                // Whoever did that has taken over, or is about to.
                Error::Fenced { .. } => self.lost(e.to_string()),
                e => e,
            });
        }
        let begun = self.clock.now();
        self.row = self.disk.read_heartbeats()?;
        let read = self.clock.now();
        self.watch.look(begun, read, &self.row);
        self.known.note(&self.row, &self.watch, &self.view);
        self.takeover.fences.told(self.beat.epoch, self.beat.excluded, read);
        let newest = self.row.iter().flatten().map(|h| h.epoch).max().unwrap_or_default();
        self.catch_up()?;
        let expired = self.lease_end.is_none_or(|end| started > end);
        // Our exclusion may stand in a cell that we alone cannot read, and nowhere else in the row.
        let hidden = self.row.iter().any(Option::is_none);
        if newest > self.view.epoch || expired || hidden {
            self.read_views()?;
        }
        let own = OwnBeat {
            slot: self.slot,
            incarnation: self.incarnation,
            counter: self.beat.counter,
            started,
            joined: self.joined,
        };
        if self.leaving && !is_member(&self.view, self.slot, self.incarnation) {
            return Ok(()); // as we wished
        }
        match self.watch.renew(&own, &self.view, &self.row) {
            Renewal::Confirmed { lease_end } => {
                self.lease_end = Some(lease_end);
                self.groups.permit(lease_end - self.timing.guard);
                self.lease.renewed(lease_end, lease_end - self.timing.guard);
            }
            Renewal::Unconfirmed => tracing::warn!("our heartbeat does not show; beating again"),
            Renewal::Excluded(why) => return Err(self.lost(why)),
        }
        self.reload_ledgers()?;
        self.groups.set_silent(self.silent());
        self.tend_fences()
    }

    /// Has another mount written our cell since our last beat, or this very one in another machine: the other side of
    /// a copied or migrated machine, or itself, before it was put back in time? Read after our own write it would
    /// show only if both wrote at the same moment.
    fn look_for_rival(&mut self) -> Result<()> {
        let known = [self.incarnation, self.former];
        match self.disk.read_heartbeat(self.slot)? {
            Some(cell) if !known.contains(&cell.incarnation) => {
                Err(self.lost(format!("another mount ({}) writes our heartbeat cell", cell.name)))
            }
            Some(cell) if cell.incarnation == self.incarnation && cell.counter > self.beat.counter => {
                Err(self
                    .lost("this very mount runs twice, or was put back in time (a copied machine?)".into()))
            }
            _ => Ok(()),
        }
    }

    fn write_beat(&mut self) -> Result<()> {
        let report = *self.report.lock();
        let beat = &mut self.beat;
        beat.counter += 1;
        beat.epoch = self.view.epoch;
        // The view was installed in `groups` when it was learnt: nothing older is in flight.
        beat.ack = self.view.epoch;
        beat.excluded = dead_of(&self.view, self.slot);
        beat.ledger_sequence = self.groups.sequence();
        beat.protocols = (PROTOCOL_MIN, PROTOCOL);
        beat.flags = beat.flags & !FLAG_LEAVING | if self.leaving { FLAG_LEAVING } else { 0 };
        if let Some((head, tail)) = self.positions.get().and_then(|positions| positions()) {
            (beat.journal_head, beat.journal_tail) = (head, tail);
        }
        beat.free_data = report.free_data;
        beat.free_meta = report.free_meta;
        beat.groups = report.groups;
        beat.replaying = report.replaying;
        beat.wall_ms = self.clock.wall().as_millis() as u64;
        self.disk.write_heartbeat(beat)?;
        self.ack_due = false;
        Ok(())
    }

    /// Out, for ever.
    pub fn lost(&mut self, why: String) -> Error {
        tracing::error!(slot = %self.slot, "no member any more: {why}");
        self.groups.permit(Duration::ZERO);
        if let Some(fencer) = &self.fencer {
            fencer.stop();
        }
        self.lease.lost(&why);
        Error::Halted(why)
    }

    /// Mask of the members but ourselves whose heartbeats stand still.
    pub fn silent(&self) -> u64 {
        let silent = |slot: &SlotId| self.watch.is_silent(*slot) && *slot != self.slot;
        let members = slots(&self.view).map(|(slot, _)| slot).filter(|s| live(&self.view) & bit(*s) != 0);
        members.filter(silent).fold(0, |mask, slot| mask | bit(slot))
    }

    /// Are we the only member?
    pub fn is_alone(&self) -> bool {
        live(&self.view) == bit(self.slot)
    }

    /// T5, for the view that made us a member.
    pub fn is_barrier_passed(&self) -> bool {
        let now = self.clock.now();
        let silent = |s| self.watch.is_silent(s);
        let past_wait = |s| self.is_over(s, now);
        ownership::is_barrier_passed(&self.view, self.slot, self.joined, &self.row, silent, past_wait)
    }

    /// Is a replay of ours outstanding?
    pub fn is_recovering(&self) -> bool {
        self.beat.flags & FLAG_RECOVERING != 0 || dead_of(&self.view, self.slot) != 0
    }

    fn read_views(&mut self) -> Result<()> {
        let ballots = self.disk.read_ballots()?;
        let newest = ballots.into_iter().map(|(b, _)| b.decided).max_by_key(|v| v.epoch);
        newest.map_or(Ok(()), |view| self.learn(view))
    }

    /// A view was decided. It is acknowledged with the next beat.
    pub fn learn(&mut self, view: View) -> Result<()> {
        if view.epoch <= self.view.epoch {
            return Ok(());
        }
        tracing::info!(epoch = %view.epoch, members = live(&view).count_ones(), "new view");
        // Leaving, it may be out as it wished; but not if it is to be recovered.
        let is_dead = dead(&view) & bit(self.slot) != 0;
        if !is_member(&view, self.slot, self.incarnation) && (is_dead || !self.leaving) {
            return Err(self.lost(format!("view {} does not contain this mount", view.epoch)));
        }
        self.note_view(&view);
        let view = Arc::new(view);
        // First, and only then is the view known: what fails here must be tried again before any
        // beat acknowledges it.
        // It contains us, so the last beat counts from its start, as in a renewal.
        self.groups.set_view(view.clone(), self.last_beat + self.timing.lease - self.timing.guard)?;
        self.proposer.learn(&view);
        self.view = view;
        self.ack_due = true;
        Ok(())
    }

    /// A ballot of ours decided a view that could not be installed then: the register tells of it, but
    /// no heartbeat does. It may be long past, and others have gone on without us.
    fn catch_up(&mut self) -> Result<()> {
        if self.proposer.decided().epoch > self.view.epoch {
            self.read_views()?;
        }
        match self.proposer.decided() {
            decided if decided.epoch > self.view.epoch => self.learn(decided.clone()),
            _ => Ok(()),
        }
    }

    fn reload_ledgers(&mut self) -> Result<()> {
        for cell in self.row.iter().flatten() {
            let read = &mut self.ledgers_read[usize::from(cell.slot.0)];
            let now = (cell.incarnation, cell.ledger_sequence);
            if cell.slot != self.slot && *read != now {
                self.groups.reload(cell.slot)?;
                *read = now;
            }
        }
        Ok(())
    }

    /// The ledgers were all read after the present row: only what changes from now is read again.
    pub fn ledgers_loaded(&mut self, row: &[Option<Heartbeat>]) {
        for cell in row.iter().flatten() {
            self.ledgers_read[usize::from(cell.slot.0)] = (cell.incarnation, cell.ledger_sequence);
        }
    }

    /// Propose what `next` makes of the newest view until it makes nothing of it any more.
    pub fn propose(&mut self, next: &mut dyn FnMut(&View) -> Option<View>) -> Result<()> {
        let mut losses = 0;
        self.catch_up()?;
        while let Some(view) = next(&self.view) {
            if !self.groups.is_permitted() {
                self.beat()?;
                if next(&self.view).as_ref() != Some(&view) {
                    continue;
                }
            }
            // Once we are taken for dead, the register is that of the slot's next mount.
            let groups = self.groups.clone();
            let may_write = move || match groups.is_permitted() {
                true => Ok(()),
                false => Err(Error::TimedOut("the lease ran out in the middle of a ballot".into())),
            };
            match run_ballot(
                &self.disk,
                &mut self.proposer,
                self.slot,
                self.incarnation,
                &mut self.ballot_sequence,
                view,
                &may_write,
            )? {
                Some(decided) => self.learn(decided)?,
                None => {
                    losses += 1;
                    back_off(self.slot, losses);
                }
            }
            if self.clock.now() >= self.last_beat + self.timing.heartbeat && !self.leaving {
                self.beat()?;
            }
        }
        Ok(())
    }

    /// Have a view decided that does not contain us. After an error the mount is a member still, unless
    /// it was halted.
    ///
    /// # Errors
    /// [`Error::Busy`] if our own journal is not replayed, [`Error::Halted`] if we are no member, or the
    /// device's.
    pub fn leave(&mut self) -> Result<()> {
        if self.beat.flags & FLAG_RECOVERING != 0 {
            return Err(Error::Busy("our slot's own journal is not replayed yet".into()));
        }
        let (me, incarnation) = (self.slot, self.incarnation);
        if !self.groups.is_permitted() {
            self.beat()?;
        }
        // What is taken from now on would come behind the word by which the others go.
        self.groups.close()?;
        self.leaving = true;
        let silent = self.silent();
        if let Err(e) = self.propose(&mut |view| leave(view, me, incarnation, silent)) {
            self.leaving = false;
            self.groups.reopen();
            return Err(e);
        }
        // The view is decided: whether the last beat arrives changes only how soon others know.
        if let Err(e) = self.farewell() {
            tracing::warn!("last heartbeat: {e}");
        }
        if let Some(registration) = self.registration.take() {
            registration.leave(live(&self.view) == 0, self.view.fenced || dead(&self.view) != 0);
        }
        Ok(())
    }

    /// The last beat of a mount that left: the others learn of the view by its epoch.
    fn farewell(&mut self) -> Result<()> {
        self.leaving = false;
        self.beat.flags = 0;
        self.write_beat()
    }
}

/// One ballot from `slot`: the view decided (perhaps another's), or `None` if it was lost. `may_write`
/// is asked before each single write.
///
/// # Errors
/// The device's, or what `may_write` says.
pub fn run_ballot(
    disk: &Disk,
    proposer: &mut Proposer,
    slot: SlotId,
    incarnation: Incarnation,
    sequence: &mut u64,
    view: View,
    may_write: &dyn Fn() -> Result<()>,
) -> Result<Option<View>> {
    let mut action = proposer.step(Event::Propose(view));
    loop {
        action = match action {
            Action::Write(ballot) => {
                write_both(sequence, |n| {
                    may_write()?;
                    disk.write_ballot(slot, incarnation, n, &ballot)
                })?;
                proposer.step(Event::Written)
            }
            Action::Read => {
                let row = disk.read_ballots()?;
                let row = row.into_iter().enumerate().map(|(s, (b, _))| (SlotId(s as u16), b));
                proposer.step(Event::Row(row.collect()))
            }
            Action::Decided(view) => return Ok(Some(view)),
            Action::Lost => return Ok(None),
        };
    }
}

/// Wait a random while after a lost ballot; lower slots wait less, longer after more losses.
pub fn back_off(slot: SlotId, losses: u32) {
    let limit = (10 + 4 * u64::from(slot.0)) * u64::from(losses.min(8));
    std::thread::sleep(Duration::from_millis(rand::rng().random_range(1..=limit)));
}
