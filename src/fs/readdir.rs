//! Listing directories.

use super::*;
use std::ops::ControlFlow;

/// Entries collected for one request at most; the kernel asks again.
const ENTRIES_MAX: usize = 1024;

/// The cookie of `..`, the last that does not come from the directory's items.
const DOT_DOT: u64 = 2;

/// An entry on its way.
struct Found {
    ino: InodeNo,
    cookie: u64,
    kind: FileKind,
    name: Vec<u8>,
}

impl Fs {
    /// Entries behind `offset` (0: from the start; else the cookie of the last entry seen), into
    /// `sink` as far as it takes them.
    pub fn readdir(&self, node: NodeId, offset: u64, mut sink: Box<dyn DirSink>) {
        let ino = self.core.ino(node);
        let core = self.core.clone();
        let body = move |op: &mut Op<'_>| -> Step<Vec<Found>> { Ok(op.core.collect(ino, offset)?) };
        let reply = move |found: Result<Vec<Found>>| {
            let result = found.map_err(end_of_removed).map(|entries| {
                let mut given = 0;
                for e in &entries {
                    let out = DirEntryOut {
                        ino: core.nodeid(e.ino),
                        kind: e.kind,
                        name: &e.name,
                        cookie: e.cookie,
                        entry: None,
                    };
                    if !sink.add(&out) {
                        break;
                    }
                    given += 1;
                }
                let real = entries[..given].iter().filter(|e| e.cookie > DOT_DOT);
                core.note_listed(ino, real.map(|e| e.ino), offset == 0);
            });
            sink.done(result);
        };
        op::run(&self.core, inode(ino, Mode::S), body, reply);
    }
}

/// A directory in use that another host has removed says what one says that this host has: C libraries take that for
/// the end of the listing.
fn end_of_removed(error: Error) -> Error {
    if error == Error::Stale { Error::NotFound } else { error }
}

impl Core {
    fn collect(&self, ino: InodeNo, offset: u64) -> Result<Vec<Found>> {
        let node = self.nodes.get(ino);
        let mut state = node.state.lock();
        let attr = self.load_dir(&node, &mut state)?.clone();
        let mut entries = Vec::new();
        if attr.nlink == 0 {
            return Ok(entries);
        }
        let dot =
            |ino, cookie, name: &[u8]| Found { ino, cookie, kind: FileKind::Directory, name: name.to_vec() };
        if offset < 1 {
            entries.push(dot(ino, 1, b"."));
        }
        if offset < DOT_DOT {
            entries.push(dot(attr.parent, DOT_DOT, b".."));
        }
        self.dir(ino).list(&*self.store, offset.max(DOT_DOT), &mut |e| {
            entries.push(Found { ino: e.ino, cookie: e.cookie, kind: e.kind, name: e.name });
            if entries.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(entries)
    }
}
