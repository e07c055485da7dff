//! Messages between two mounts, in order and each once, over registers of which any content may be
//! missed: what is not acknowledged stands there.
//!
//! A stream lives as long as both mounts. Message numbers begin at 1 and have no gaps. A header says
//! the number of the first message in the register and the last one that was taken of the other's.

use super::message::Message;
use crate::base::{LockName, Mode, SlotId, Token};
use crate::format::cluster::{Entry, EntryKind};
use std::collections::{BTreeMap, VecDeque};

/// Most messages in a register, without the header, the usual setting.
pub const WINDOW: usize = 24;
const _: () = assert!(crate::cluster::mailbox::TAKEN_MAX * 2 <= WINDOW as u64, "or a full register waits");

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stream {
    out: VecDeque<Message>,
    /// Number of the first of them.
    first: u64,
    /// The last message taken.
    seen: u64,
}

impl Default for Stream {
    fn default() -> Stream {
        Stream { out: VecDeque::new(), first: 1, seen: 0 }
    }
}

/// The streams to and from all peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Streams {
    window: usize,
    peers: BTreeMap<SlotId, Stream>,
}

impl Streams {
    /// No messages yet, and at most `window` in a register.
    pub fn new(window: usize) -> Streams {
        Streams { window, peers: BTreeMap::new() }
    }

    /// The slot belongs to another mount, or to none.
    pub fn reset(&mut self, peer: SlotId) {
        self.peers.remove(&peer);
    }

    /// Only these slots are anybody's.
    pub fn keep(&mut self, members: impl Fn(SlotId) -> bool) {
        self.peers.retain(|peer, _| members(*peer));
    }

    /// Send; the answer is the message's number.
    pub fn push(&mut self, peer: SlotId, message: Message) -> u64 {
        let stream = self.peers.entry(peer).or_default();
        stream.out.push_back(message);
        stream.first + stream.out.len() as u64 - 1
    }

    /// Has everything that was sent been taken?
    pub fn is_quiet(&self) -> bool {
        self.peers.values().all(|s| s.out.is_empty())
    }

    /// Has `peer` to take messages before there is a place for more?
    pub fn is_full(&self, peer: SlotId) -> bool {
        self.peers.get(&peer).is_some_and(|s| s.out.len() > self.window)
    }

    /// Our part of the register for `peer`.
    pub fn outgoing(&self, peer: SlotId) -> Vec<Entry> {
        let Some(stream) = self.peers.get(&peer) else { return Vec::new() };
        let header = Entry {
            lock: LockName::Freeze,
            kind: EntryKind::Stream,
            mode: Mode::N,
            held: Mode::N,
            cap: Mode::N,
            flags: 0,
            token: Token(0),
            number: stream.first,
            seq: stream.seen,
        };
        let window = stream.out.iter().take(self.window).map(|m| m.to_entry());
        std::iter::once(header).chain(window).collect()
    }

    /// The register of `peer`: its new messages with their numbers. And is there a place in ours now for
    /// messages that waited for one?
    pub fn incoming(&mut self, peer: SlotId, entries: &[Entry]) -> (Vec<(u64, Message)>, bool) {
        let Some(header) = entries.iter().find(|e| e.kind == EntryKind::Stream) else {
            return (Vec::new(), false);
        };
        let stream = self.peers.entry(peer).or_default();
        let place = stream.out.len() > self.window && stream.first <= header.seq;
        while stream.first <= header.seq && stream.out.pop_front().is_some() {
            stream.first += 1;
        }
        let messages = entries.iter().filter(|e| e.kind == EntryKind::FileLock);
        let mut new = Vec::new();
        for (number, entry) in (header.number..).zip(messages) {
            if number != stream.seen + 1 {
                continue; // seen already
            }
            stream.seen = number;
            match Message::from_entry(entry, peer) {
                Some(message) => new.push((number, message)),
                None => tracing::error!(%peer, ?entry, "a message about file locks that says nothing"),
            }
        }
        (new, place)
    }
}
