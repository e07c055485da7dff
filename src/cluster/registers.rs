//! The protocol thread's work on the registers: poll the inbox row, hand on what is new, write what
//! the lock room has changed, and now and then read an own cell back.

use crate::base::{Error, Result, SlotId};
use crate::cluster::mailbox::{Inbox, Outbox, Urgency};
use crate::cluster::node::Node;
use crate::cluster::{LockPort, Membership, REGISTER_ENTRIES_MAX};
use crate::format::cluster::Stamp;
use crate::format::cluster::inbox::RegisterCell;
use std::sync::Arc;
use std::time::Duration;

/// Shortest and longest pause between two polls of the inbox row.
const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(100);
/// How long after a message the row is polled at the shortest pause.
const POLL_EAGER: Duration = Duration::from_millis(50);

/// Just after a message an answer is likely, and the pause is shorter where looking costs little: so many
/// times as long as a look takes, and this long at least.
const POLL_QUICK: Duration = Duration::from_micros(250);
const LOOKS: u32 = 5;
/// No pause at all where somebody here waits and a look takes so long: less for the others who use a slow device, and
/// without waiting for a device at all, others would not get the processor.
const LOOKS_ON: std::ops::RangeInclusive<Duration> = Duration::from_micros(20)..=Duration::from_micros(300);
/// The pause if it takes less.
const POLL_AWAITING: Duration = Duration::from_micros(50);
/// How long after a message that goes on.
const POLL_QUICK_FOR: Duration = Duration::from_millis(5);

/// How often the port's timers are run from here: it has a thread for them, which may be kept waiting.
const TICK: Duration = Duration::from_millis(100);

/// How long a word that nobody waits for may wait for one to go with.
const SOON: Duration = Duration::from_millis(25);

/// The cells, beginning behind that of `last`: who talks all the time does not keep others from being heard.
fn in_turn<T>(mut row: Vec<T>, of: impl Fn(&T) -> SlotId, last: Option<SlotId>) -> Vec<T> {
    let at = row.iter().position(|cell| last.is_none_or(|last| of(cell) > last)).unwrap_or(0);
    row.rotate_left(at);
    row
}

/// A mean of what was measured of late.
fn mean(before: Duration, now: Duration) -> Duration {
    (before * 7 + now) / 8
}

/// The shortest pause, where a look takes this long.
fn quick_pause(look: Duration) -> Duration {
    (look * LOOKS).clamp(POLL_QUICK, POLL_MIN)
}

/// The pause after which the row is polled again: a tenth of the time since the last message either
/// way, so that waiting costs at most a tenth more than it must and idleness next to nothing; less just
/// after it, and none if somebody here waits for the answer.
pub fn poll_pause(since_message: Duration, look: Duration, awaiting: impl FnOnce() -> bool) -> Duration {
    if since_message <= POLL_QUICK_FOR {
        return match look {
            look if look > *LOOKS_ON.end() || !awaiting() => quick_pause(look),
            look if look < *LOOKS_ON.start() => POLL_AWAITING,
            _ => Duration::ZERO,
        };
    }
    if since_message <= POLL_EAGER {
        return POLL_MIN;
    }
    (since_message / 10).clamp(POLL_MIN, POLL_MAX)
}

/// Both halves of the mail, and what the port was last told.
pub struct Registers {
    port: Arc<dyn LockPort>,
    inbox: Inbox,
    outbox: Outbox,
    told: Option<Arc<Membership>>,
    /// When a message last went either way.
    last_message: Duration,
    /// When the port's timers were last run.
    last_tick: Duration,
    /// How long a look at the row takes, of late.
    look: Duration,
    /// How long it takes to find out what is to be said.
    build: Duration,
    /// Behind whose news a poll was broken off, because a beat was due.
    broken_off: Option<SlotId>,
    /// Whose register is read back next.
    scrub_next: usize,
    /// By reader: when its register was last written, and since when a word waits for another.
    written: Vec<(Duration, Option<Duration>)>,
    /// When [`Registers::flush`] must be called again.
    flush_due: Option<Duration>,
}

impl Registers {
    /// Nothing exchanged yet.
    pub fn new(port: Arc<dyn LockPort>, slots: u16, now: Duration) -> Registers {
        Registers {
            port,
            inbox: Inbox::new(slots),
            outbox: Outbox::new(slots),
            told: None,
            last_message: now,
            last_tick: now,
            look: POLL_MIN,
            build: Duration::ZERO,
            broken_off: None,
            scrub_next: 0,
            written: vec![(Duration::ZERO, None); usize::from(slots)],
            flush_due: None,
        }
    }

    /// Tell the port of a new snapshot, if there is one. Returns whether there was.
    pub fn tell(&mut self, node: &Node, now: Duration) -> bool {
        let members = node.groups.membership();
        if self.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &members)) {
            return false;
        }
        self.port.on_view(&members);
        for slot in (0..members.view.slots.len() as u16).map(SlotId).filter(|s| *s != members.me) {
            let incarnation = members.incarnation_of(slot);
            if self.inbox.set_member(slot, incarnation) && incarnation.is_some() {
                self.port.on_entries(now, slot, &[]);
            }
        }
        self.told = Some(members);
        self.last_message = now;
        true
    }

    fn peers(&self) -> Vec<SlotId> {
        self.told.as_ref().map(|m| m.peers().collect()).unwrap_or_default()
    }

    /// When the row is to be polled again, given the last poll; `None` if there is nobody else.
    pub fn poll_due(&self, last_poll: Duration, now: Duration) -> Option<Duration> {
        let alone = self.told.as_ref().is_none_or(|m| m.alone());
        let pause = match self.broken_off.is_some() {
            true => Duration::ZERO,
            false => poll_pause(now.saturating_sub(self.last_message), self.look + self.build, || {
                self.port.is_awaiting(now)
            }),
        };
        (!alone).then_some(last_poll + pause)
    }

    /// Read the row and hand on what is new, until a beat is due and the port has had its time: every peer's news may
    /// take it as long as one call may. What is left comes first the next time. `now` was just looked at; returned is
    /// when that was done again, and whether anything was new.
    pub fn poll(&mut self, node: &Node, mut now: Duration, next_beat: Duration) -> Result<(Duration, bool)> {
        let peers = self.peers();
        let mut news = false;
        let begun = now;
        let row = node.disk.read_inbox(node.slot, &peers)?;
        now = node.clock.now();
        self.look = mean(self.look, now.saturating_sub(begun));
        let until = next_beat.max(now + node.timing.heartbeat / 4);
        let mut last = self.broken_off.take();
        for cell in in_turn(row, |cell| cell.stamp.slot, last) {
            if !self.inbox.is_news(cell.stamp) {
                continue;
            }
            if news {
                now = node.clock.now();
                if now >= until {
                    self.broken_off = last;
                    break;
                }
            }
            last = Some(cell.stamp.slot);
            // A register written for the mount that had our slot before says nothing to us.
            let entries = match cell.meant_for == node.incarnation {
                true => node.disk.read_entries(node.slot, &cell)?,
                false => Some(vec![]),
            };
            if cell.overflow_bytes() > 0 {
                now = node.clock.now();
            }
            // Torn: cell and overflow are of two writes. The next poll reads both again.
            let Some(entries) = entries else { continue };
            self.inbox.taken(cell.stamp);
            self.port.on_entries(now, cell.stamp.slot, &entries);
            (news, self.last_message) = (true, now);
        }
        Ok((now, news))
    }

    /// Run the port's timers, now and then.
    pub fn tick(&mut self, now: Duration) {
        if now >= self.last_tick + TICK {
            self.last_tick = now;
            self.port.tick(now);
        }
    }

    /// When what has to be said to `to` is to be written: now, if that is over.
    fn write_due(&mut self, to: SlotId, urgency: Urgency, now: Duration) -> Option<Duration> {
        let awaiting = || self.port.is_awaiting(now);
        let (last, waiting) = &mut self.written[usize::from(to.0)];
        match urgency {
            Urgency::Nothing => {
                *waiting = None;
                None
            }
            Urgency::Soon => Some(*waiting.get_or_insert(now) + SOON),
            // The reader looks no more often than that twice, so what comes meanwhile can share a write. Where somebody
            // waits here, somebody will there, and it looks all the time.
            Urgency::Now => Some(*last + poll_pause(Duration::ZERO, self.look + self.build, awaiting) / 2),
        }
    }

    /// When [`Registers::flush`] must be called again, if at all.
    pub fn flush_due(&self) -> Option<Duration> {
        self.flush_due
    }

    /// Write the registers that changed. Returns `None` if the lease does not allow it: renew, then
    /// call again. Nothing is granted or given up in words that the lease does not cover. Returns when the clock was last
    /// looked at; `begun` was, and if nothing was done since (`fresh`), it says how long this takes.
    pub fn flush(&mut self, node: &Node, begun: Duration, fresh: bool) -> Result<Option<Duration>> {
        let Some(members) = self.told.clone() else { return Ok(Some(begun)) };
        self.flush_due = None;
        let peers = self.peers();
        let all = self.port.outgoing(&peers);
        let mut now = node.clock.now();
        if fresh {
            self.build = mean(self.build, now.saturating_sub(begun));
        }
        for (to, mut entries) in peers.into_iter().zip(all) {
            if entries.len() > REGISTER_ENTRIES_MAX {
                tracing::debug!(%to, entries = entries.len(), "register full; the rest waits");
                entries.truncate(REGISTER_ENTRIES_MAX);
            }
            let Some(meant_for) = members.incarnation_of(to) else { continue };
            let urgency = self.outbox.urgency(to, meant_for, &entries);
            let Some(due) = self.write_due(to, urgency, now) else { continue };
            if due > now {
                self.flush_due = Some(self.flush_due.map_or(due, |at| at.min(due)));
                continue;
            }
            let Some(sequence) = self.outbox.publish(to, meant_for, &entries) else { continue };
            if !node.groups.is_permitted_at(now) {
                self.outbox.lost(to);
                return Ok(None);
            }
            let stamp = Stamp { slot: node.slot, incarnation: node.incarnation, sequence };
            if let Err(e) = node.disk.write_register(to, meant_for, stamp, &entries) {
                self.outbox.lost(to);
                return Err(e);
            }
            now = node.clock.now();
            self.last_message = now;
            self.written[usize::from(to.0)] = (now, None);
        }
        Ok(Some(now))
    }

    /// Read one own register back: a late duplicate of an older write may have brought an old content
    /// back, and a level nobody sees is waited for for ever. Returns whether one must be rewritten.
    pub fn scrub(&mut self, node: &Node) -> Result<bool> {
        let written: Vec<SlotId> =
            self.peers().into_iter().filter(|s| self.outbox.published(*s).sequence > 0).collect();
        if written.is_empty() {
            return Ok(false);
        }
        self.scrub_next = (self.scrub_next + 1) % written.len();
        let to = written[self.scrub_next];
        let wanted = self.outbox.published(to);
        let as_written = |cell: &RegisterCell| {
            (cell.stamp.incarnation, cell.stamp.sequence) == (node.incarnation, wanted.sequence)
        };
        let reverted = match node.disk.read_inbox(to, &[node.slot]) {
            Ok(cells) => !cells.iter().all(as_written),
            // Writing it makes it readable again.
            Err(Error::Io { .. }) => true,
            Err(e) => return Err(e),
        };
        if reverted {
            tracing::warn!(%to, "an own register is not as we wrote it; writing it again");
            self.outbox.lost(to);
        }
        Ok(reverted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_is_eager_after_a_message_and_lazy_when_idle() {
        let pause = |ms| poll_pause(Duration::from_millis(ms), Duration::ZERO, || false).as_millis();
        assert_eq!((pause(6), pause(50), pause(100), pause(500)), (1, 1, 10, 50));
        assert_eq!(pause(3_600_000), 100);
    }

    #[test]
    fn just_after_a_message_looks_are_as_frequent_as_they_are_cheap() {
        let pause =
            |look| poll_pause(Duration::from_millis(1), Duration::from_micros(look), || false).as_micros();
        assert_eq!((pause(0), pause(30), pause(100), pause(300), pause(9000)), (250, 250, 500, 1000, 1000));
    }

    #[test]
    fn who_waits_for_an_answer_looks_without_a_pause_where_looks_are_cheap() {
        let pause = |ms, look, awaits| {
            let look = Duration::from_micros(look);
            poll_pause(Duration::from_millis(ms), look, || awaits).as_micros()
        };
        assert_eq!((pause(1, 100, true), pause(1, 100, false)), (0, 500));
        assert_eq!((pause(1, 300, true), pause(1, 301, true)), (0, 1000), "a slow device is spared");
        assert_eq!((pause(1, 1, true), pause(1, 1, false)), (50, 250), "others need the processor");
        assert_eq!((pause(5, 50, true), pause(6, 50, true)), (0, 1000), "so is one whose answer takes long");
    }

    #[test]
    fn everybody_is_heard_in_turn() {
        let order = |last: Option<u16>| in_turn(vec![1, 4, 6], |slot| SlotId(*slot), last.map(SlotId));
        assert_eq!(order(None), [1, 4, 6]);
        assert_eq!(order(Some(1)), [4, 6, 1]);
        assert_eq!(order(Some(5)), [6, 1, 4]);
        assert_eq!(order(Some(6)), [1, 4, 6]);
        assert!(in_turn(vec![], |slot| SlotId(*slot), Some(SlotId(1))).is_empty());
    }
}
