//! What mutants make of what a host reads.

use super::*;
use shoal::base::Token;
use shoal::cluster::EntryKind;
use shoal::lock::files::message::{Ask, Message};

/// What a host last read of another, and what a mutant remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Notes {
    pub entries: Vec<Entry>,
    /// A declaration was read before.
    told: bool,
    /// The one that is being read is not the first.
    again: bool,
    /// A wait was ended by a signal.
    cancelled: bool,
    /// What was put off until the last word of a declaration.
    held: Option<Entry>,
}

/// Something that a server takes without doing anything about it.
fn nothing() -> Entry {
    Message::Ask(file(), Ask::Cancel(0)).to_entry()
}

impl Files {
    /// The register of `from` as a host without the mutant's rule takes it.
    pub fn bend(&self, h: &mut Host, from: SlotId, mut entries: Vec<Entry>) -> Vec<Entry> {
        let Some(mutant) = self.mutant else { return entries };
        if mutant == Mutant::EarlierGrantCounts {
            // What the cluster lock is by then, and not when the message was read, counts.
            let of_files = |e: &&Entry| matches!(e.kind, EntryKind::Stream | EntryKind::FileLock);
            let others: Vec<Entry> = entries.iter().filter(|e| !of_files(e)).copied().collect();
            h.desk.on_entries(NOW, from, &others);
        }
        let ours = h.desk.master().token(GROUP);
        let seen = h.desk.files().streams.outgoing(from).first().map_or(0, |header| header.seq);
        let mut first = entries.iter().find(|e| e.kind == EntryKind::Stream).map_or(0, |e| e.number);
        match mutant {
            Mutant::LetsGoWithLocks => {
                let requests = entries.iter_mut().filter(|e| e.kind == EntryKind::Request);
                requests.for_each(|e| (e.held, e.number) = (Mode::N, u64::MAX));
            }
            Mutant::SilenceIsDeclaration => entries.extend(ours.map(declared)),
            Mutant::TakenTwice => {
                let standing = entries.iter().filter(|e| e.kind == EntryKind::FileLock).count() as u64;
                if standing > 0 {
                    first = seen + 1;
                    let header = entries.iter_mut().find(|e| e.kind == EntryKind::Stream);
                    header.expect("messages have one").number = first;
                }
            }
            _ => {}
        }
        let messages = entries.iter_mut().filter(|e| e.kind == EntryKind::FileLock);
        for (_, entry) in (first..).zip(messages).filter(|(number, _)| *number > seen) {
            if let Some(Message::Ask(_, ask)) = Message::from_entry(entry, from) {
                self.bend_message(h, from, ask, entry);
            }
        }
        entries
    }

    fn bend_message(&self, h: &mut Host, from: SlotId, ask: Ask, entry: &mut Entry) {
        let present = h.desk.master().holders(name()).find(|(slot, _)| *slot == from);
        let notes = h.notes.entry(from).or_default();
        if let Ask::Begin(..) = ask {
            notes.again = std::mem::replace(&mut notes.told, true);
        }
        let mutant = self.mutant.expect("bends");
        match (mutant, ask) {
            (Mutant::EarlierGrantCounts, Ask::Begin(..)) => {
                entry.number = present.map_or(entry.number, |(_, grant)| grant);
            }
            (Mutant::NotGivenBack, Ask::Cancel(_)) => notes.cancelled = true,
            (Mutant::NotGivenBack, Ask::Set { wait: false, .. }) if notes.cancelled => *entry = nothing(),
            (Mutant::HeldNotTold, Ask::Held(_)) => *entry = nothing(),
            (Mutant::WaitsNotTold, Ask::Waits(_)) => *entry = nothing(),
            (Mutant::NothingReplaced, Ask::Begin(..)) if notes.again => *entry = nothing(),
            (Mutant::FirstWordCounts, Ask::Held(_)) if notes.held.is_none() => {
                notes.held = Some(std::mem::replace(entry, Message::Ask(file(), Ask::End).to_entry()));
            }
            (Mutant::FirstWordCounts, Ask::End) => {
                *entry = notes.held.take().unwrap_or(*entry);
            }
            _ => {}
        }
    }
}

pub fn declared(token: Token) -> Entry {
    Entry {
        lock: LockName::Ag(GROUP),
        kind: EntryKind::Declared,
        mode: Mode::N,
        held: Mode::N,
        cap: Mode::N,
        flags: 0,
        token,
        number: 0,
        seq: 0,
    }
}
