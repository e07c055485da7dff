//! Listings: entries into the buffer that the kernel gave, until it is full.

use crate::base::Result;
use crate::fs::types::{DirEntryOut, DirSink};
use crate::fuse::answer::fail;
use crate::fuse::convert::{bare_attr, entry_out, entry_type};
use crate::fuse::reply::Reply;
use crate::fuse::wire::{FuseEntryOut, Listing};

/// A READDIR or READDIRPLUS.
pub struct Entries {
    reply: Reply,
    listing: Listing,
    plus: bool,
}

impl Entries {
    /// Of at most `room` bytes; with attributes if `plus`.
    pub fn new(reply: Reply, room: u32, plus: bool) -> Entries {
        Entries { reply, listing: Listing::new(room as usize), plus }
    }
}

impl DirSink for Entries {
    fn wants_attributes(&self) -> bool {
        self.plus
    }

    fn add(&mut self, entry: &DirEntryOut<'_>) -> bool {
        let (ino, kind) = (entry.ino.0, entry_type(entry.kind));
        if !self.plus {
            return self.listing.add(ino, entry.cookie, kind, entry.name);
        }
        let attributes = match &entry.entry {
            Some(e) => entry_out(e),
            // The kernel takes type and number from these attributes, and nothing else for `.` and `..`.
            // For any other name it would keep them, so such an entry must not get there.
            None if matches!(entry.name, b"." | b"..") => FuseEntryOut {
                nodeid: ino,
                attr: bare_attr(entry.ino, entry.kind),
                ..FuseEntryOut::default()
            },
            None => return false,
        };
        self.listing.add_plus(attributes, ino, entry.cookie, kind, entry.name)
    }

    fn done(self: Box<Self>, result: Result<()>) {
        match result {
            Ok(()) => self.reply.data(self.listing.bytes()),
            Err(e) => fail(self.reply, &e),
        }
    }
}
