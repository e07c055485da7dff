//! What is new in a register, and what must be written. Pure.
//!
//! Registers are levels, not queues: the reader keeps the highest (incarnation, sequence) it has
//! seen of each writer, so that an overlapping read or a late duplicate cannot bring an older
//! content back; the writer writes only what differs from what it wrote last.

use crate::base::{Incarnation, Mode, SlotId};
use crate::format::cluster::inbox::FILE_LOCK_PATIENT;
use crate::format::cluster::{Entry, EntryKind, Stamp};
use std::collections::HashMap;

/// The reading half: one per mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inbox {
    /// By sender: the incarnation that is a member, and the last sequence taken from it.
    seen: Vec<Option<(Incarnation, u64)>>,
}

impl Inbox {
    /// Nothing read of `slots` senders.
    pub fn new(slots: u16) -> Inbox {
        Inbox { seen: vec![None; usize::from(slots)] }
    }

    /// `slot` is now this mount, or no member (`None`). Returns whether that changed: the register
    /// of the earlier mount counts no more.
    pub fn set_member(&mut self, slot: SlotId, incarnation: Option<Incarnation>) -> bool {
        let seen = &mut self.seen[usize::from(slot.0)];
        let changed = seen.map(|s| s.0) != incarnation;
        if changed {
            *seen = incarnation.map(|i| (i, 0));
        }
        changed
    }

    /// Does a cell with this stamp say something new? If its entries can be read (the overflow may
    /// be torn), tell [`Inbox::taken`].
    pub fn is_news(&self, stamp: Stamp) -> bool {
        match self.seen.get(usize::from(stamp.slot.0)) {
            Some(Some((incarnation, sequence))) => {
                *incarnation == stamp.incarnation && stamp.sequence > *sequence
            }
            _ => false,
        }
    }

    /// The content under this stamp was handed on.
    pub fn taken(&mut self, stamp: Stamp) {
        if let Some(Some(seen)) = self.seen.get_mut(usize::from(stamp.slot.0)) {
            *seen = (stamp.incarnation, stamp.sequence);
        }
    }
}

/// How soon what a register does not say yet must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// It says everything.
    Nothing,
    /// Nobody waits for it: what was understood, and what need not be said any more. It can go with the
    /// next word.
    Soon,
    Now,
}

/// So many requests are told at once that they were seen.
const SEEN_MAX: usize = 32;
/// So many messages of the reader are told at once that they were taken: half of what it has places for, at most,
/// so that it always has some.
pub const TAKEN_MAX: u64 = 8;

/// The number of the first message in a register and of the last one taken of the reader's; and the messages.
fn messages(entries: &[Entry]) -> ((u64, u64), impl Iterator<Item = &Entry>) {
    let header = entries.iter().find(|e| e.kind == EntryKind::Stream);
    let numbers = header.map_or((1, 0), |header| (header.number, header.seq));
    (numbers, entries.iter().filter(|e| e.kind == EntryKind::FileLock))
}

/// Has somebody to hear soon of messages that `new` says and `old` does not, or of those that were taken?
fn messages_wait(old: &[Entry], new: &[Entry]) -> bool {
    let (((first, taken), said), ((begins, takes), says)) = (messages(old), messages(new));
    let said_to = first + said.count() as u64;
    let (mut next, mut patient) = (begins, 0);
    for message in says {
        if next >= said_to {
            patient += 1;
            if message.flags & FILE_LOCK_PATIENT == 0 {
                return true;
            }
        }
        next += 1;
    }
    // A stream that has begun anew says nothing of what the other said.
    next < said_to || patient >= TAKEN_MAX || takes.abs_diff(taken) >= TAKEN_MAX
}

/// How soon a register that says `old` must say `new`.
fn urgency(old: &[Entry], new: &[Entry]) -> Urgency {
    if old == new {
        return Urgency::Nothing;
    }
    let said: HashMap<_, _> = old.iter().map(|e| ((e.kind, e.lock), e)).collect();
    let waits = |e: &Entry| {
        let before = said.get(&(e.kind, e.lock)).filter(|b| b.token == e.token);
        match (e.kind, before) {
            (EntryKind::Request, Some(b)) => (b.mode, b.held) != (e.mode, e.held),
            (EntryKind::Grant, Some(b)) => (b.mode, b.cap, b.number) != (e.mode, e.cap, e.number),
            // Neither a grant nor a cap: a request was seen.
            (EntryKind::Grant, None) => (e.mode, e.cap) != (Mode::N, Mode::X),
            // Messages: below.
            (EntryKind::Stream | EntryKind::FileLock, _) => false,
            (_, before) => before != Some(&e),
        }
    };
    if messages_wait(old, new) {
        return Urgency::Now;
    }
    // Requests that were seen keep their places until that is said: others may wait for one.
    let seen = new.iter().filter(|e| e.kind == EntryKind::Grant && said.get(&(e.kind, e.lock)) != Some(e));
    if new.iter().any(waits) || seen.count() >= SEEN_MAX { Urgency::Now } else { Urgency::Soon }
}

/// What was last written for one reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Published {
    pub meant_for: Incarnation,
    pub entries: Vec<Entry>,
    /// 0 = nothing written in this life.
    pub sequence: u64,
    /// The register may not show this: the next content is written whatever it is.
    pub lost: bool,
}

/// The writing half: one per mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outbox {
    published: Vec<Published>,
    sequence: u64,
}

impl Outbox {
    /// Nothing written for `slots` readers.
    pub fn new(slots: u16) -> Outbox {
        Outbox { published: vec![Published::default(); usize::from(slots)], sequence: 0 }
    }

    /// `entries` is the register for `to`: the sequence number to write it with, or `None` if that is
    /// what stands there. Nothing needs to be written to say nothing to a new reader.
    pub fn publish(&mut self, to: SlotId, meant_for: Incarnation, entries: &[Entry]) -> Option<u64> {
        let last = &mut self.published[usize::from(to.0)];
        let same = last.entries == entries;
        if same && !last.lost && (last.meant_for == meant_for || entries.is_empty()) {
            return None;
        }
        self.sequence += 1;
        *last = Published { meant_for, entries: entries.to_vec(), sequence: self.sequence, lost: false };
        Some(self.sequence)
    }

    /// How soon the register for `to` must be written if it is to say `entries`.
    pub fn urgency(&self, to: SlotId, meant_for: Incarnation, entries: &[Entry]) -> Urgency {
        let last = &self.published[usize::from(to.0)];
        if last.lost || last.meant_for != meant_for && !entries.is_empty() {
            return Urgency::Now;
        }
        urgency(&last.entries, entries)
    }

    /// The write for `to` failed or was reverted: whatever comes next is written.
    pub fn lost(&mut self, to: SlotId) {
        self.published[usize::from(to.0)].lost = true;
    }

    /// What stands, or should stand, in the register for `to`.
    pub fn published(&self, to: SlotId) -> &Published {
        &self.published[usize::from(to.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{InodeNo, LockName, Mode, Token};
    use crate::format::cluster::EntryKind;

    fn entry(n: u64) -> Entry {
        Entry {
            lock: LockName::Inode(InodeNo(n)),
            kind: EntryKind::Request,
            mode: Mode::S,
            held: Mode::N,
            cap: Mode::N,
            flags: 0,
            token: Token(1),
            number: 0,
            seq: 1,
        }
    }

    fn stream(first: u64, count: usize, seq: u64) -> Vec<Entry> {
        let header = Entry { kind: EntryKind::Stream, number: first, seq, ..entry(0) };
        let message = Entry { kind: EntryKind::FileLock, ..entry(1) };
        std::iter::once(header).chain((0..count).map(|_| message)).collect()
    }

    #[test]
    fn only_differences_are_written() {
        let mut out = Outbox::new(2);
        let (to, inc) = (SlotId(1), Incarnation(5));
        assert_eq!(out.publish(to, inc, &[]), None, "silence needs no write");
        assert_eq!(out.publish(to, inc, &[entry(1)]), Some(1));
        assert_eq!(out.publish(to, inc, &[entry(1)]), None);
        assert_eq!(out.publish(to, Incarnation(6), &[entry(1)]), Some(2), "a new reader");
        assert_eq!(out.publish(to, inc, &[]), Some(3));
        out.lost(to);
        assert_eq!(out.publish(to, inc, &[]), Some(4));
        assert_eq!(out.publish(to, inc, &[]), None);
    }

    #[test]
    fn what_nobody_waits_for_goes_with_the_next_word() {
        let grant = |n| Entry { kind: EntryKind::Grant, mode: Mode::S, cap: Mode::X, ..entry(n) };
        let seen = |n| Entry { mode: Mode::N, ..grant(n) };
        let declared = Entry { kind: EntryKind::Declared, ..entry(1) };
        let later = |e: Entry| Entry { seq: e.seq + 1, ..e };
        let acked = |e: Entry| Entry { number: e.number + 1, ..later(e) };
        for (old, new, expected) in [
            (vec![entry(1)], vec![entry(1)], Urgency::Nothing),
            (vec![entry(1)], vec![], Urgency::Soon),
            (vec![entry(1)], vec![acked(entry(1))], Urgency::Soon),
            (vec![entry(1)], vec![entry(2)], Urgency::Now),
            (vec![entry(1)], vec![Entry { mode: Mode::X, ..entry(1) }], Urgency::Now),
            (vec![entry(1)], vec![Entry { held: Mode::S, ..entry(1) }], Urgency::Now),
            (vec![entry(1)], vec![Entry { token: Token(2), ..entry(1) }], Urgency::Now),
            (vec![], vec![grant(1)], Urgency::Now),
            (vec![], vec![seen(1)], Urgency::Soon),
            (vec![], vec![Entry { cap: Mode::N, ..seen(1) }], Urgency::Now),
            (vec![grant(1)], vec![later(grant(1))], Urgency::Soon),
            (vec![grant(1)], vec![acked(grant(1))], Urgency::Now),
            (vec![grant(1)], vec![Entry { cap: Mode::S, ..grant(1) }], Urgency::Now),
            (vec![entry(1)], vec![entry(1), declared], Urgency::Now),
        ] {
            assert_eq!(urgency(&old, &new), expected, "{old:?} {new:?}");
        }
        // Messages, of which the register has the latest that were not taken.
        for (old, new, expected) in [
            (vec![], stream(1, 0, 3), Urgency::Soon),
            (vec![], stream(1, 1, 0), Urgency::Now),
            (stream(1, 0, 3), stream(1, 1, 3), Urgency::Now),
            (stream(1, 3, 3), stream(3, 1, 3), Urgency::Soon),
            (stream(1, 3, 3), stream(3, 2, 3), Urgency::Now),
            (stream(1, 2, 3), stream(1, 2, 4), Urgency::Soon),
            (stream(1, 2, 3), stream(1, 2, 3 + TAKEN_MAX), Urgency::Now),
            (stream(1, 2, 3), stream(3, 0, 4), Urgency::Soon),
            (stream(90, 2, 3), stream(1, 1, 0), Urgency::Now),
        ] {
            assert_eq!(urgency(&old, &new), expected, "{old:?} {new:?}");
        }
        let many: Vec<Entry> = (0..SEEN_MAX as u64).map(seen).collect();
        assert_eq!(urgency(&[], &many), Urgency::Now, "their places are needed");
        assert_eq!(urgency(&[], &many[1..]), Urgency::Soon);
        let mut out = Outbox::new(2);
        let (to, inc) = (SlotId(1), Incarnation(5));
        assert_eq!(out.urgency(to, inc, &[]), Urgency::Nothing);
        out.publish(to, inc, &[grant(1)]);
        assert_eq!(out.urgency(to, inc, &[]), Urgency::Soon);
        assert_eq!(out.urgency(to, Incarnation(6), &[grant(1)]), Urgency::Now, "a new reader");
        out.lost(to);
        assert_eq!(out.urgency(to, inc, &[grant(1)]), Urgency::Now);
    }

    #[test]
    fn messages_that_nobody_waits_for_go_with_one_that_somebody_waits_for() {
        // Of several that are new, one that somebody waits for has all written; so do many that nobody waits for.
        let answers = |first, patient: &[bool]| {
            let mut entries = stream(first, patient.len(), 0);
            let flags = |patient: &bool| if *patient { FILE_LOCK_PATIENT } else { 0 };
            entries[1..].iter_mut().zip(patient).for_each(|(entry, patient)| entry.flags = flags(patient));
            entries
        };
        for (old, new, expected) in [
            (answers(1, &[]), answers(1, &[true]), Urgency::Soon),
            (answers(1, &[false]), answers(1, &[false, true]), Urgency::Soon),
            (answers(1, &[false]), answers(2, &[true]), Urgency::Soon),
            (answers(1, &[true]), answers(1, &[true, true, false]), Urgency::Now),
            (answers(1, &[true]), answers(1, &[true, false, true]), Urgency::Now),
            (answers(1, &[]), answers(1, &[true; TAKEN_MAX as usize]), Urgency::Now),
        ] {
            assert_eq!(urgency(&old, &new), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn only_newer_writes_of_the_member_are_news() {
        let mut inbox = Inbox::new(2);
        let stamp = |i, sequence| Stamp { slot: SlotId(1), incarnation: Incarnation(i), sequence };
        assert!(!inbox.is_news(stamp(5, 1)), "no member yet");
        assert!(inbox.set_member(SlotId(1), Some(Incarnation(5))));
        assert!(!inbox.set_member(SlotId(1), Some(Incarnation(5))));
        assert!(inbox.is_news(stamp(5, 2)));
        inbox.taken(stamp(5, 2));
        for (i, sequence, news) in [(5, 1, false), (5, 2, false), (5, 3, true), (6, 9, false)] {
            assert_eq!(inbox.is_news(stamp(i, sequence)), news, "{i} {sequence}");
        }
        inbox.set_member(SlotId(1), Some(Incarnation(6)));
        assert!(inbox.is_news(stamp(6, 1)) && !inbox.is_news(stamp(5, 9)));
    }
}
