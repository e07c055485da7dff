//! The protocol thread of a mount and the handle that others hold.
//!
//! One thread beats, polls, proposes and writes registers; it waits for nothing but its own cells'
//! I/O and calls the lock room with no lock held. [`Cluster::adopt`] alone does I/O in its caller's
//! thread (see [`crate::cluster::groups`]).

use crate::base::{AgNo, Error, Result, SlotId, Token};
use crate::cluster::disk::Disk;
use crate::cluster::groups::Groups;
use crate::cluster::join::{JoinOptions, JoinReport, join};
use crate::cluster::lobby::Lobby;
use crate::cluster::node::{HostReport, Node, Positions};
use crate::cluster::registers::Registers;
use crate::cluster::status::ClusterStatus;
use crate::cluster::view::{bit, recovered};
use crate::cluster::{LockPort, Membership, SlotClaim, Successor};
use crate::format::cluster::Heartbeat;
use crate::format::cluster::heartbeat::{FLAG_RECOVERING, Replaying};
use parking_lot::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often errors that go on are told of.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// A device that answers nothing but errors for so many leases is lost. One that does not answer is waited for:
/// whatever is to be written may be the only copy, and as long as all hosts wait nobody takes this one for dead.
const FAILING_LEASES_MAX: u32 = 6;

/// What the protocol thread is asked to do.
enum Command {
    Start(Arc<dyn LockPort>),
    Recovered(u64, Sender<Result<()>>),
    /// What was fenced could not be recovered.
    Unrecovered,
    Leave(Sender<Result<()>>),
    /// Stop without leaving: the others see a host that fell silent.
    Abandon,
}

#[derive(Default)]
struct Signals {
    awake: bool,
    /// The thread sleeps: to wake one that does not is a system call for nothing.
    asleep: bool,
    commands: Vec<Command>,
    /// The thread has ended: why.
    ended: Option<String>,
}

struct Shared {
    groups: Arc<Groups>,
    /// The standard library's lock and its condition: a wait looks at the clock once, which is a system call in some
    /// machines, and every message between hosts may be a wait.
    signals: std::sync::Mutex<Signals>,
    changed: Condvar,
    report: Arc<Mutex<HostReport>>,
    positions: Arc<OnceLock<Positions>>,
    successor: Arc<OnceLock<Successor>>,
    /// The row as last read, and how many reads there have been.
    row: Mutex<(u64, Vec<Option<Heartbeat>>)>,
}

impl Shared {
    fn signals(&self) -> std::sync::MutexGuard<'_, Signals> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, command: Command) -> Result<()> {
        let mut signals = self.signals();
        if let Some(why) = &signals.ended {
            return Err(Error::Halted(why.clone()));
        }
        signals.commands.push(command);
        self.wake(signals);
        Ok(())
    }

    /// The thread looks at the signals before it sleeps. It is woken when it need not wait for them.
    fn wake(&self, signals: std::sync::MutexGuard<'_, Signals>) {
        let asleep = signals.asleep;
        drop(signals);
        if asleep {
            self.changed.notify_all();
        }
    }
}

/// A mount's membership. Dropping it without [`Cluster::leave`] is a crash to the others.
pub struct Cluster {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Cluster {
    /// Become a member. Beats from now on; the lease sink is told of every renewal.
    ///
    /// The report's `replay` journals must be replayed before anything else is read, then reported by
    /// [`Cluster::recovered`]; nobody else is let in before.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if living members do not let us in, [`Error::Device`] if they refuse (the
    /// message says why), or the device's.
    pub fn join(disk: Disk, options: JoinOptions) -> Result<(Cluster, JoinReport)> {
        let claim = options.claim.clone();
        let (node, report) = join(disk, options)?;
        let shared = Arc::new(Shared {
            groups: node.groups.clone(),
            signals: std::sync::Mutex::default(),
            changed: Condvar::new(),
            report: node.report.clone(),
            positions: node.positions.clone(),
            successor: node.takeover.successor.clone(),
            row: Mutex::new((0, node.row.clone())),
        });
        let range = node.disk.slot_range(node.slot);
        let mut protocol = Protocol {
            next_beat: node.last_beat + node.timing.heartbeat,
            last_poll: Duration::ZERO,
            trouble: None,
            failing: None,
            node,
            shared: shared.clone(),
            lobby: Lobby::default(),
            registers: None,
            talks: true,
            heard: false,
            left: false,
        };
        let thread = std::thread::Builder::new()
            .name("shoal-cluster".into())
            .spawn(move || {
                let why = protocol.run();
                protocol.end(why, claim, range);
            })
            .map_err(|e| Error::Device(format!("cannot start the protocol thread: {e}")))?;
        Ok((Cluster { shared, thread: Mutex::new(Some(thread)) }, report))
    }

    /// Connect the lock room. Registers are read and written from now on.
    pub fn start(&self, port: Arc<dyn LockPort>) -> Result<()> {
        self.shared.ask(Command::Start(port))
    }

    /// What the lock room has for others has changed: write it soon.
    pub fn wake(&self) {
        let mut signals = self.shared.signals();
        signals.awake = true;
        self.shared.wake(signals);
    }

    /// Members and owners as of now.
    pub fn membership(&self) -> Arc<Membership> {
        self.shared.groups.membership()
    }

    /// Become master of a group of a clean slot that we look after, or of our own slot's: a durable
    /// write to the own ledger under a new token. Answers at once for a group mastered already.
    ///
    /// # Errors
    /// [`Error::Busy`] if the group is not ours to take (any more) or the lease must be renewed
    /// first; try again after a look at the membership.
    pub fn adopt(&self, ag: AgNo) -> Result<Token> {
        let before = self.shared.groups.sequence();
        let token = self.shared.groups.adopt(ag);
        if token.is_err() || self.shared.groups.sequence() != before {
            self.wake();
        }
        token
    }

    /// From now on this mount takes over from hosts that die: `successor` hears whose journals it has to
    /// replay, which it then reports by [`Cluster::recovered`], or by [`Cluster::unrecovered`] to be asked again.
    pub fn on_fenced(&self, successor: Successor) {
        let _ = self.shared.successor.set(successor);
    }

    /// The journals of `slots` (from the join report, or fenced since) are replayed and flushed: these slots
    /// are clean and we adopt their groups. Returns when the view is decided.
    pub fn recovered(&self, slots: &[SlotId]) -> Result<()> {
        let mask = slots.iter().fold(0, |mask, slot| mask | bit(*slot));
        let (sender, receiver) = channel();
        self.shared.ask(Command::Recovered(mask, sender))?;
        receiver.recv().unwrap_or_else(|_| Err(self.ended()))
    }

    /// What was fenced cannot be recovered now.
    pub fn unrecovered(&self) {
        // An error says that the thread has ended already.
        let _ = self.shared.ask(Command::Unrecovered);
    }

    /// Leave for good. The caller has flushed everything, emptied its journal and gives up all locks;
    /// our slot and those we look after go to others. Returns when the view is decided.
    ///
    /// # Errors
    /// [`Error::Busy`] if our own journal is not replayed (drop the handle instead: the next mount
    /// sees to it), [`Error::Halted`] if we are no member, or the device's. After an error the mount
    /// is a member still, unless it was halted.
    pub fn leave(&self) -> Result<()> {
        let (sender, receiver) = channel();
        self.shared.ask(Command::Leave(sender))?;
        let result = receiver.recv().unwrap_or_else(|_| Err(self.ended()));
        if result.is_ok() {
            self.stop(None);
        }
        result
    }

    /// Stop without leaving, now: a host that has halted must not look alive. Does not wait.
    pub fn abandon(&self) {
        // An error says that the thread has ended already.
        let _ = self.shared.ask(Command::Abandon);
    }

    /// What the next heartbeats say of this host, but for what it replays.
    pub fn set_report(&self, report: HostReport) {
        let mut told = self.shared.report.lock();
        *told = HostReport { replaying: told.replaying, ..report };
    }

    /// How far this host is with a journal of another's, for the next heartbeats; `None` when it is done.
    pub fn set_replaying(&self, replaying: Option<Replaying>) {
        self.shared.report.lock().replaying = replaying;
    }

    /// Where the heartbeats get head and tail of our journal from; asked at the start of each.
    pub fn on_beat(&self, positions: Positions) {
        let _ = self.shared.positions.set(positions);
    }

    /// All heartbeat cells as last read, `None` for unreadable ones; and the number of that read.
    pub fn heartbeats(&self) -> (u64, Vec<Option<Heartbeat>>) {
        self.shared.row.lock().clone()
    }

    /// Members with their last heartbeats, from memory.
    pub fn status(&self) -> ClusterStatus {
        let members = self.membership();
        let moving = |slot| Some(!members.is_silent(slot));
        ClusterStatus::new(&members.view, &self.heartbeats().1, moving)
    }

    fn ended(&self) -> Error {
        let why = self.shared.signals().ended.clone();
        Error::Halted(why.unwrap_or_else(|| "the protocol thread ended".into()))
    }

    fn stop(&self, command: Option<Command>) {
        if let Some(command) = command {
            let _ = self.shared.ask(command);
        }
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Some(Command::Abandon));
    }
}

/// The thread's state.
struct Protocol {
    node: Node,
    shared: Arc<Shared>,
    lobby: Lobby,
    registers: Option<Registers>,
    /// There may be something to say in the registers that was not said.
    talks: bool,
    /// The last look has brought something, and took as long as that did.
    heard: bool,
    next_beat: Duration,
    last_poll: Duration,
    /// When an error was last told of; none since the last round that worked.
    trouble: Option<Duration>,
    /// Since when the device has answered nothing but errors.
    failing: Option<Duration>,
    /// A view without us is decided, at our own wish.
    left: bool,
}

impl Protocol {
    /// Until the mount leaves, is abandoned or excluded; the answer says why.
    fn run(&mut self) -> String {
        self.node.lease.renewed_here();
        let mut now = self.node.clock.now();
        loop {
            let (awake, commands) = {
                let mut signals = self.shared.signals();
                (std::mem::take(&mut signals.awake), std::mem::take(&mut signals.commands))
            };
            self.talks |= awake || !commands.is_empty();
            for command in commands {
                if let Some(why) = self.obey(command) {
                    return why;
                }
                now = self.node.clock.now();
            }
            match self.round(now) {
                Ok((then, next)) => {
                    (self.trouble, self.failing) = (None, None);
                    now = self.wait(then, next);
                }
                Err(Error::Halted(why)) => return why,
                Err(e) => {
                    // The lease ends by itself if this goes on; a store that comes back finds us here.
                    self.tell_trouble(&e);
                    if let Some(why) = self.is_device_lost(&e) {
                        let _ = self.node.lost(why.clone());
                        return why;
                    }
                    let then = self.node.clock.now();
                    let soon = then + self.node.timing.heartbeat / 4;
                    self.next_beat = self.next_beat.min(soon);
                    now = self.wait(then, soon);
                }
            }
        }
    }

    /// Once when it begins and then every [`TELL_AGAIN`]: it comes several times per heartbeat.
    fn tell_trouble(&mut self, e: &Error) {
        let now = self.node.clock.now();
        if self.trouble.is_none_or(|last| now >= last + TELL_AGAIN) {
            self.trouble = Some(now);
            tracing::warn!(
                "the cluster's blocks cannot be read or written, nothing is changed meanwhile: {e}"
            );
        }
    }

    fn is_device_lost(&mut self, e: &Error) -> Option<String> {
        let Error::Io { .. } = e else { return None };
        let now = self.node.clock.now();
        let failing = now.saturating_sub(*self.failing.get_or_insert(now));
        (failing >= self.node.timing.lease * FAILING_LEASES_MAX)
            .then(|| format!("the device has answered with errors for {} s: {e}", failing.as_secs()))
    }

    /// Beat and exchange mail as is due. `now` was just looked at; returns when that was done again, and when to come
    /// again at the latest.
    fn round(&mut self, mut now: Duration) -> Result<(Duration, Duration)> {
        if now >= self.next_beat || self.node.ack_due {
            self.beat()?;
            now = self.node.clock.now();
            self.talks = true;
        }
        let Some(registers) = &mut self.registers else { return Ok((now, self.next_beat)) };
        let told = registers.tell(&self.node, now);
        let fresh = !std::mem::take(&mut self.heard) && !told;
        registers.tick(now);
        // First what is to be said: others wait for it, and a look takes as long as saying it.
        let mut said = Ok(true);
        if self.talks || told || registers.flush_due().is_some_and(|due| due <= now) {
            // After an error it is to be done again.
            self.talks = true;
            said = registers.flush(&self.node, now, fresh).map(|then| {
                (now, self.talks) = (then.unwrap_or(now), then.is_none());
                then.is_some()
            });
        }
        // Who cannot say anything hears the others all the same.
        if registers.poll_due(self.last_poll, now).is_some_and(|due| due <= now) {
            self.last_poll = now;
            (now, self.heard) = registers.poll(&self.node, now, self.next_beat)?;
            self.talks |= self.heard;
        }
        if !said? {
            // The lease ran out: renew, and come again at once if that worked.
            self.beat()?;
            let now = self.node.clock.now();
            return Ok((now, now + self.node.timing.heartbeat / 10));
        }
        if self.heard {
            return Ok((now, now));
        }
        let due = [registers.poll_due(self.last_poll, now), registers.flush_due()];
        Ok((now, due.into_iter().flatten().fold(self.next_beat, Duration::min)))
    }

    fn beat(&mut self) -> Result<()> {
        self.node.beat()?;
        if self.node.ack_due {
            // A view was learnt by this very beat: the others wait for its acknowledgement.
            self.node.beat()?;
        }
        {
            let mut row = self.shared.row.lock();
            *row = (row.0 + 1, self.node.row.clone());
        }
        self.next_beat = self.node.last_beat + self.node.timing.heartbeat;
        self.node.tend_the_dead()?;
        self.next_beat = self.node.next_beat();
        self.lobby.attend(&mut self.node)?;
        if let Some(registers) = &mut self.registers {
            registers.scrub(&self.node)?;
        }
        Ok(())
    }

    /// `Some(why)` ends the thread.
    fn obey(&mut self, command: Command) -> Option<String> {
        match command {
            Command::Start(port) => {
                let slots = self.node.view.slots.len() as u16;
                self.registers = Some(Registers::new(port, slots, self.node.clock.now()));
                None
            }
            Command::Recovered(mask, done) => {
                let me = self.node.slot;
                if mask & bit(me) != 0 {
                    self.node.beat.flags &= !FLAG_RECOVERING;
                }
                let result = self.node.propose(&mut |view| recovered(view, me, mask));
                self.node.ack_due = true;
                if mask & self.node.takeover.batch != 0 {
                    self.node.batch_over(result.is_ok());
                }
                let _ = done.send(result);
                None
            }
            Command::Unrecovered => {
                self.node.batch_over(false);
                None
            }
            Command::Leave(done) => {
                let result = self.node.leave();
                self.left = result.is_ok();
                let _ = done.send(result);
                self.left.then(|| "this mount has left".into())
            }
            Command::Abandon => Some("abandoned".into()),
        }
    }

    /// `now` was just looked at, and so was what is returned.
    fn wait(&self, mut now: Duration, until: Duration) -> Duration {
        let mut signals = self.shared.signals();
        while now < until && !signals.awake && signals.commands.is_empty() {
            signals.asleep = true;
            let woken = self.shared.changed.wait_timeout(signals, until - now);
            signals = woken.unwrap_or_else(PoisonError::into_inner).0;
            signals.asleep = false;
            now = self.node.clock.now();
        }
        now
    }

    fn end(&mut self, why: String, claim: Option<Arc<dyn SlotClaim>>, range: (u64, u64)) {
        self.shared.groups.permit(Duration::ZERO);
        let commands = {
            let mut signals = self.shared.signals();
            signals.ended = Some(why);
            std::mem::take(&mut signals.commands)
        };
        drop(commands);
        self.node.drop_proofs();
        // Whoever can take the range takes us for gone: after a halt writes of ours may be under way
        // still, so it ends with the open file, which is when the last of them has.
        if self.left
            && let Some(claim) = claim
            && let Err(e) = claim.release(range.0, range.1)
        {
            tracing::warn!("releasing the slot's byte range: {e}");
        }
    }
}
