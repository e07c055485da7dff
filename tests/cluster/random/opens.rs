//! Open files that live over many operations: whoever renames or unlinks the file, they stay what they are.

use super::{Kind, Tester, Turn};
use crate::model::locks::Owner;
use crate::model::{Content, Id, Place};
use rand::seq::IndexedRandom;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;

const OPENS_MAX: usize = 24;

/// An open file of a host.
#[derive(Clone)]
pub struct Open {
    /// Its number among all that ever were: an owner of locks.
    pub serial: u64,
    pub host: usize,
    pub id: Id,
    pub file: Rc<File>,
    pub writes: bool,
    pub appends: bool,
    pub direct: bool,
    /// Open for this operation only.
    pub passing: bool,
}

impl Open {
    /// A path by which it can be opened again, named or not.
    pub fn again(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// As a history should tell it.
    pub fn name(&self) -> String {
        let mut name = format!("h{} open {}", self.host, self.serial);
        if self.passing {
            name += " (passing)";
        }
        for (is, what) in [(!self.writes, "ro"), (self.appends, "append"), (self.direct, "direct")] {
            if is {
                name += " ";
                name += what;
            }
        }
        name
    }
}

impl Tester {
    /// Files with names.
    pub fn files(&self, turn: &Turn) -> Vec<Place> {
        turn.places.iter().filter(|p| self.model.is_file(p.id)).cloned().collect()
    }

    /// Open the file of `place` on a host.
    fn open_place(&mut self, host: usize, place: &Place, passing: bool) -> Open {
        let writes = self.chance(if passing { 100 } else { 85 });
        let (appends, direct) = (writes && self.chance(15), self.chance(20));
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(writes).append(appends).custom_flags(flags);
        let done = options.open(self.at(host, &place.path));
        self.opened(host, place.id, &place.path, done, (writes, appends, direct, passing))
    }

    fn opened(
        &mut self,
        host: usize,
        id: Id,
        path: &str,
        done: io::Result<File>,
        (writes, appends, direct, passing): (bool, bool, bool, bool),
    ) -> Open {
        self.serial += 1;
        let what =
            format!("h{host} open {path} as {} ro {} append {appends} direct {direct}", self.serial, !writes);
        let file = Rc::new(self.expect(id, what, done, 0).unwrap());
        Open { serial: self.serial, host, id, file, writes, appends, direct, passing }
    }

    /// An open file to do something with: one that has been there, or one for now.
    pub fn some_open(&mut self, turn: &Turn) -> Option<Open> {
        if let (Some(open), true) = (self.opens.choose(&mut self.random).cloned(), self.chance(50)) {
            return Some(open);
        }
        let place = self.files(turn).choose(&mut self.random).cloned()?;
        Some(self.open_place(turn.host, &place, true))
    }

    /// The same that can be written to.
    pub fn some_writable(&mut self, turn: &Turn) -> Option<Open> {
        self.some_open(turn).filter(|open| open.writes)
    }

    pub fn change_opens(&mut self, turn: &Turn) {
        if self.opens.len() >= OPENS_MAX || (!self.opens.is_empty() && self.chance(30)) {
            let open = self.random_index();
            return self.close(open);
        }
        // Few files that many have open.
        let files = self.files(turn);
        let shared: Vec<Place> =
            files.iter().filter(|p| self.opens.iter().any(|open| open.id == p.id)).cloned().collect();
        let among = if !shared.is_empty() && self.chance(70) { shared } else { files };
        if let Some(place) = among.choose(&mut self.random).cloned() {
            let open = self.open_place(turn.host, &place, false);
            self.opens.push(open);
        }
    }

    fn random_index(&mut self) -> usize {
        let all: Vec<usize> = (0..self.opens.len()).collect();
        self.pick(&all)
    }

    pub fn close(&mut self, index: usize) {
        let Open { serial, host, id, file, .. } = self.opens.swap_remove(index);
        self.history.push(id, format!("h{host} close {serial}"));
        drop(file);
        self.end_open(serial, id, host);
    }

    /// A descriptor or mapping of an open file is gone. With the last one its locks go: see that they do.
    pub fn end_open(&mut self, serial: u64, id: Id, host: usize) {
        let is_there = self.opens.iter().any(|open| open.serial == serial)
            || self.mappings.iter().any(|map| map.open == serial);
        let locks = &mut self.model.nodes[id].locks;
        if !is_there && (locks.has(Owner::Open(serial)) || locks.has_whole(serial)) {
            locks.release(Owner::Open(serial));
            self.await_release(id, host);
        }
        self.forget(id);
    }

    /// What nobody can reach any more needs no content.
    pub fn forget(&mut self, id: Id) {
        let is_used = self.model.nodes[id].links > 0
            || self.opens.iter().any(|open| open.id == id)
            || self.mappings.iter().any(|map| map.id == id)
            || self.programs.iter().any(|program| program.has_open(id));
        if let (false, Content::File(data)) = (is_used, &mut self.model.nodes[id].content) {
            *data = Vec::new();
        }
    }

    /// Size, links and mode by an open file.
    pub fn look_at_open(&mut self) {
        let Some(open) = self.opens.choose(&mut self.random).cloned() else { return };
        let found = self.expect(open.id, format!("{} fstat", open.name()), open.file.metadata(), 0).unwrap();
        let found = (found.nlink(), found.len(), found.mode() & 0o7777);
        let wanted = self.model.links(open.id);
        let wanted = (wanted, self.model.size(open.id) as u64, self.model.nodes[open.id].guard.mode);
        if found != wanted {
            self.fail(open.id, format!("links, size, mode {found:?}, expected {wanted:?}"));
        }
    }

    /// Everything that is open, compared and closed.
    pub fn close_all(&mut self) {
        for open in self.opens.clone() {
            self.compare_content(&open);
        }
        self.unmap_all();
        while !self.opens.is_empty() {
            self.close(0);
        }
        self.programs.clear();
    }

    /// Must requests past the page cache be whole blocks?
    pub fn wants_blocks(&self, open: &Open) -> bool {
        open.direct && self.kind == Kind::Local
    }

    /// For files that are made without a name.
    pub fn keep_open(&mut self, host: usize, id: Id, path: &str, done: io::Result<File>) {
        let open = self.opened(host, id, path, done, (true, false, false, false));
        self.opens.push(open);
    }
}
