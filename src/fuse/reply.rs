//! How each kind of answer goes back to the kernel.

use crate::base::{Generation, InodeNo};
use crate::fs::types::{EntryReply, NodeId, OpenReply};
use crate::fuse::convert::{file_attr, open_flags};
use crate::fuse::errno::reported;
use crate::inode::{Attr, FileKind, Timestamp};
use fuser::{Errno, FileHandle, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr};
use std::time::Duration;

/// What an operation answers.
pub type Outcome<T> = crate::base::Result<T>;

/// An entry.
pub fn entry(
    operation: &'static str,
    reply: ReplyEntry,
) -> impl FnOnce(Outcome<EntryReply>) + Send + 'static {
    move |result| match result {
        Ok(e) => send_entry(reply, &e),
        Err(e) => reply.error(reported(operation, &e)),
    }
}

/// An entry, at once.
pub fn send_entry(reply: ReplyEntry, e: &EntryReply) {
    let attr = file_attr(e.ino, &e.attr);
    reply.entry_with_ttls(&e.attr_valid, &e.entry_valid, &attr, fuser::Generation(e.generation.0));
}

/// Done, or not.
pub fn empty(operation: &'static str, reply: ReplyEmpty) -> impl FnOnce(Outcome<()>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(reported(operation, &e)),
    }
}

/// A handle.
pub fn opened(operation: &'static str, reply: ReplyOpen) -> impl FnOnce(Outcome<OpenReply>) + Send + 'static {
    move |result| match result {
        Ok(o) => reply.opened(FileHandle(o.fh), open_flags(&o)),
        Err(e) => reply.error(reported(operation, &e)),
    }
}

/// Bytes.
pub fn data<B: AsRef<[u8]> + 'static>(
    operation: &'static str,
    reply: ReplyData,
) -> impl FnOnce(Outcome<B>) + Send + 'static {
    move |result: Outcome<B>| match result {
        Ok(bytes) => reply.data(bytes.as_ref()),
        Err(e) => reply.error(reported(operation, &e)),
    }
}

/// A count of bytes.
pub fn written(operation: &'static str, reply: ReplyWrite) -> impl FnOnce(Outcome<u32>) + Send + 'static {
    move |result| match result {
        Ok(bytes) => reply.written(bytes),
        Err(e) => reply.error(reported(operation, &e)),
    }
}

/// A value or list of names: its size if the caller offers no room, ERANGE if too little.
pub fn sized(
    operation: &'static str,
    room: u32,
    reply: ReplyXattr,
) -> impl FnOnce(Outcome<Vec<u8>>) + Send + 'static {
    move |result| match result {
        Ok(bytes) if room == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(reported(operation, &e)),
    }
}

/// No such name, and whether the kernel shall remember that.
pub fn send_missing(reply: ReplyEntry, entry_valid: Duration) {
    if entry_valid.is_zero() {
        return reply.error(Errno::ENOENT);
    }
    // Node 0 tells the kernel to remember it.
    let nothing = Attr::new(InodeNo(0), Generation(0), FileKind::Regular, 0, Timestamp::default());
    let attr = file_attr(NodeId(0), &nothing);
    reply.entry_with_ttls(&Duration::ZERO, &entry_valid, &attr, fuser::Generation(0));
}
