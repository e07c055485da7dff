//! Listing directories.

use super::*;
use std::ops::ControlFlow;

/// Bytes that one entry takes in the kernel's buffer (`struct fuse_dirent`, name padded to 8).
fn entry_size(name: usize) -> usize {
    (24 + name).next_multiple_of(8)
}

impl Fs {
    /// Entries behind `offset` (0: from the start; else the cookie of the last entry seen), as many
    /// as fit `size` bytes of the kernel's format.
    pub fn readdir(
        &self,
        nodeid: u64,
        offset: u64,
        size: usize,
        reply: impl FnOnce(Result<Vec<DirEntryOut>>) + Send + 'static,
    ) {
        let ino = self.core.ino(nodeid);
        let body = move |op: &mut Op<'_>| -> Step<Vec<DirEntryOut>> {
            let core = op.core;
            let node = core.nodes.get(ino);
            let mut state = node.state.lock();
            let attr = core.load_dir(&node, &mut state)?.clone();
            let mut entries = Vec::new();
            let mut room = size;
            let mut push = |cookie: u64, ino: InodeNo, kind: FileKind, name: &[u8]| {
                let Some(rest) = room.checked_sub(entry_size(name.len())) else { return ControlFlow::Break(()) };
                room = rest;
                entries.push(DirEntryOut { ino: core.nodeid(ino), cookie, kind, name: name.to_vec() });
                ControlFlow::Continue(())
            };
            if attr.nlink == 0 {
                return Ok(entries);
            }
            if offset < 1 && push(1, ino, FileKind::Directory, b".").is_break() {
                return Ok(entries);
            }
            if offset < 2 && push(2, attr.parent, FileKind::Directory, b"..").is_break() {
                return Ok(entries);
            }
            core.dir(ino).list(&*core.store, offset.max(2), &mut |e| push(e.cookie, e.ino, e.kind, &e.name))?;
            Ok(entries)
        };
        op::run(&self.core, inode(ino, Mode::S), Box::new(body), Box::new(reply));
    }
}
