//! O_TMPFILE, and names for what is open by linkat.

use super::{Tester, Turn};
use crate::model::Content;
use rand::seq::IndexedRandom;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Few, so that others live long enough.
const NAMELESS_MAX: usize = 8;

fn link_open(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    // SAFETY: two strings that outlive the call.
    let done = unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Tester {
    pub fn create_nameless(&mut self, turn: &Turn) {
        let there = self.opens.iter().filter(|open| self.model.links(open.id) == 0).count();
        if there >= NAMELESS_MAX || self.chance(50) {
            return self.link_open(turn);
        }
        let mode = self.pick(&[0o600, 0o666, 0o644]);
        let directory = turn.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode).custom_flags(libc::O_TMPFILE);
        let done = options.open(self.at(turn.host, directory));
        let guard = self.model.nodes[turn.dir].guard.of_child(mode, self.umask, false);
        let id = self.model.add(Content::File(Vec::new()), guard);
        (self.model.nodes[id].links, self.model.nodes[id].nameless) = (0, true);
        self.keep_open(turn.host, id, &format!("{directory}/, without a name, {mode:o}"), done);
    }

    /// A name for what a host has open, which may have none, or have lost its last one.
    fn link_open(&mut self, turn: &Turn) {
        let Some(open) = self.opens.choose(&mut self.random).cloned() else { return };
        let node = &self.model.nodes[open.id];
        let errno = match turn.there {
            Some(_) => libc::EEXIST,
            None if node.links == 0 && !node.nameless => libc::ENOENT,
            None => 0,
        };
        let done = link_open(&open.again(), &self.at(open.host, &turn.path));
        let what = format!("{} link as {}", open.name(), turn.path);
        if self.expect(open.id, what, done, errno).is_some() {
            let node = &mut self.model.nodes[open.id];
            (node.links, node.nameless) = (node.links + 1, false);
            self.model.children_mut(turn.dir).insert(turn.name.clone(), open.id);
        }
    }
}
