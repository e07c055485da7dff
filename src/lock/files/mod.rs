//! File locks of programs, over all hosts: fcntl (POSIX and open file description) and flock.
//!
//! Each inode whose locks are in use has one *server*: the host that holds [`LockName::FileLocks`] of
//! it in X, else the host that decides that name, for all who hold it in S. The cluster lock says who
//! may have file locks at all; alone, a host has X and serves itself, without a word to anybody.
//!
//! - [`ranges`]: who has what; splitting and merging. [`table`]: an inode's locks and who waits for
//!   them, in what order. [`cycle`]: would a wait never end? [`steps`]: how much at once.
//! - [`server`]: the tables that this host keeps for everybody. [`doubts`]: what it does not refuse yet.
//! - [`client`]: what the programs of this host have and want, and who serves it. What they have is known here, whoever
//!   serves: a new server is told it anew.
//! - [`stream`]: messages between the two, in order and each once, over registers. [`message`]: their form.
//!
//! All are machines without clock, thread or I/O. [`Files`] ties them together, the desk drives them
//! (`desk::files`). Rules and proof: docs/PROTOCOL.md.
//!
//! [`LockName::FileLocks`]: crate::base::LockName::FileLocks

mod book;
pub mod client;
pub mod cycle;
mod doubts;
pub mod message;
pub mod ranges;
pub mod server;
pub mod steps;
pub mod stream;
pub mod table;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;

use crate::base::{Mode, SlotId};
pub use client::{Client, FileRequest, Job, RequestNo};
pub use server::Server;
pub use stream::Streams;

/// Which of the two kinds of locks, which never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// fcntl: ranges, of a process or of an open file description.
    Range,
    /// flock: whole files.
    Whole,
}

/// To whom a lock belongs: a number that means something to one host only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    pub host: SlotId,
    pub id: u64,
}

/// Bytes from `start` to `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    /// A whole file.
    pub const ALL: Span = Span { start: 0, end: i64::MAX as u64 };

    /// Have the two a byte in common?
    pub fn overlaps(self, other: Span) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Or is there at least nothing between them?
    pub fn touches(self, other: Span) -> bool {
        self.start <= other.end.saturating_add(1) && other.start <= self.end.saturating_add(1)
    }
}

/// A lock that somebody has or wants; mode `N` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileLock {
    pub kind: LockKind,
    pub owner: Owner,
    pub mode: Mode,
    pub span: Span,
}

/// How a request about file locks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileAnswer {
    Granted,
    /// Another has a lock in the way, and the request does not wait.
    Denied,
    /// Waiting would never end.
    Deadlock,
    /// Too many locks.
    NoLocks,
    /// A lock in the way: its mode and range, and whose of this host, if it is.
    Found(Mode, Span, Option<u64>),
    /// Nothing is in the way.
    Free,
    /// The request was withdrawn.
    Interrupted,
    /// This host has no part in the cluster any more.
    Halted,
}

/// All about file locks on this host.
#[derive(Clone, Debug, Hash)]
pub struct Files {
    pub client: Client,
    pub server: Server,
    pub streams: Streams,
}

impl Files {
    /// No locks yet. `window`: most messages in a register.
    pub fn new(me: SlotId, window: usize) -> Files {
        Files { client: Client::new(me), server: Server::default(), streams: Streams::new(window) }
    }
}
