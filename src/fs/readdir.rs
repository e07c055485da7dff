//! Listing directories.

use super::*;
use std::ops::ControlFlow;

/// Entries collected for one request at most; the kernel asks again.
const ENTRIES_MAX: usize = 1024;

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
            let result = found.map(|entries| {
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
                }
            });
            sink.done(result);
        };
        op::run(&self.core, inode(ino, Mode::S), Box::new(body), Box::new(reply));
    }
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
        if offset < 2 {
            entries.push(dot(attr.parent, 2, b".."));
        }
        self.dir(ino).list(&*self.store, offset.max(2), &mut |e| {
            entries.push(Found { ino: e.ino, cookie: e.cookie, kind: e.kind, name: e.name });
            if entries.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(entries)
    }
}
