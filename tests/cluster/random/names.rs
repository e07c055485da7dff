//! Names: create, mkdir, symlink, link, unlink, rmdir, and rename with its flags.

use super::programs::Request;
use super::{Tester, Turn};
use crate::model::{Content, Id, Place};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

const DIRECTORIES_MAX: usize = 25;

fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    // SAFETY: two strings that outlive the call.
    let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Tester {
    pub fn change_names(&mut self, turn: &Turn) {
        match self.random.random_range(0..13) {
            0..4 => self.create(turn, false),
            4..6 if self.model.directories().len() <= DIRECTORIES_MAX => self.create(turn, true),
            6 => self.symlink(turn),
            7 | 8 => self.unlink(turn),
            9 => self.rmdir(turn),
            10 => self.link(turn),
            _ => self.rename(turn),
        }
    }

    /// By the host's program, which has a umask of its own.
    fn create(&mut self, turn: &Turn, is_dir: bool) {
        let taken = if turn.there.is_some() { libc::EEXIST } else { 0 };
        let mode = self.pick(if is_dir { &[0o755, 0o777, 0o700] } else { &[0o644, 0o666, 0o777, 0o600] });
        let umask = self.pick(&[0, 0o22, 0o27, 0o77]);
        let request = match is_dir {
            true => Request::Mkdir { mode, umask },
            false => Request::Create { mode, umask },
        };
        let done = self.programs[turn.host].ask(request, &self.at(turn.host, &turn.path));
        let kind = if is_dir { "mkdir" } else { "create" };
        let what = format!("h{} {kind} {} {mode:o} umask {umask:o}", turn.host, turn.path);
        if self.expect(turn.there.unwrap_or(turn.dir), what, done, taken).is_some() {
            let guard = self.model.nodes[turn.dir].guard.of_child(mode, umask, is_dir);
            let content = match is_dir {
                true => Content::Directory(BTreeMap::new()),
                false => Content::File(Vec::new()),
            };
            let id = self.model.add(content, guard);
            self.name_node(turn, id);
        }
    }

    fn symlink(&mut self, turn: &Turn) {
        let target = "t".repeat(self.pick(&[5, 100, 1500]));
        let taken = if turn.there.is_some() { libc::EEXIST } else { 0 };
        let done = symlink(&target, self.at(turn.host, &turn.path));
        let what = format!("h{} symlink {} to {} bytes", turn.host, turn.path, target.len());
        if self.expect(turn.there.unwrap_or(turn.dir), what, done, taken).is_some() {
            let guard = crate::model::acl::Guard::of_mode(0o777);
            let id = self.model.add(Content::Symlink(target), guard);
            self.name_node(turn, id);
        }
    }

    fn name_node(&mut self, turn: &Turn, id: Id) {
        self.model.children_mut(turn.dir).insert(turn.name.clone(), id);
        self.history.push(id, format!("    {} is #{id}", turn.path));
    }

    fn unlink(&mut self, turn: &Turn) {
        let errno = match turn.there {
            None => libc::ENOENT,
            Some(id) if self.model.is_dir(id) => libc::EISDIR,
            Some(_) => 0,
        };
        let done = fs::remove_file(self.at(turn.host, &turn.path));
        let what = format!("h{} unlink {}", turn.host, turn.path);
        if self.expect(turn.there.unwrap_or(turn.dir), what, done, errno).is_some() {
            self.unname(turn.dir, &turn.name);
        }
    }

    fn rmdir(&mut self, turn: &Turn) {
        let errno = match turn.there {
            None => libc::ENOENT,
            Some(id) if !self.model.is_dir(id) => libc::ENOTDIR,
            Some(id) if !self.model.children(id).is_empty() => libc::ENOTEMPTY,
            Some(_) => 0,
        };
        let done = fs::remove_dir(self.at(turn.host, &turn.path));
        let what = format!("h{} rmdir {}", turn.host, turn.path);
        if self.expect(turn.there.unwrap_or(turn.dir), what, done, errno).is_some() {
            self.unname(turn.dir, &turn.name);
        }
    }

    fn unname(&mut self, dir: Id, name: &str) {
        if let Some(id) = self.model.children_mut(dir).remove(name) {
            self.model.nodes[id].links -= 1;
            self.forget(id);
        }
    }

    fn link(&mut self, turn: &Turn) {
        let Some(from) = self.files(turn).choose(&mut self.random).cloned() else { return };
        let errno = if turn.there.is_some() { libc::EEXIST } else { 0 };
        let done = fs::hard_link(self.at(turn.host, &from.path), self.at(turn.host, &turn.path));
        let what = format!("h{} link {} to {}", turn.host, from.path, turn.path);
        if self.expect(from.id, what, done, errno).is_some() {
            self.model.nodes[from.id].links += 1;
            self.model.children_mut(turn.dir).insert(turn.name.clone(), from.id);
        }
    }

    fn rename(&mut self, turn: &Turn) {
        let Some(from) = turn.places.choose(&mut self.random).cloned() else { return };
        let flags =
            self.pick(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT]);
        let errno = self.errno_of_rename(turn, &from, flags);
        let dir = |id| self.model.is_dir(id);
        let (old, new) = (self.at(turn.host, &from.path), self.at(turn.host, &turn.path));
        let mut done = rename(&old, &new, flags);
        // The kernel cannot follow a directory that another host has moved while it renames (README).
        let is_stale = done.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE));
        if is_stale && from.parent != turn.dir && (dir(from.id) || turn.there.is_some_and(dir)) {
            [&old, &new].into_iter().for_each(|at| drop(fs::symlink_metadata(at)));
            done = rename(&old, &new, flags);
        }
        let what = format!("h{} rename {} to {} flags {flags}", turn.host, from.path, turn.path);
        let done = self.expect(from.id, what, done, errno);
        if done.is_none() || turn.there == Some(from.id) {
            return;
        }
        if flags == libc::RENAME_WHITEOUT {
            self.remove_whiteout(&from.path);
        }
        match turn.there {
            Some(there) if flags == libc::RENAME_EXCHANGE => {
                self.model.children_mut(from.parent).insert(from.name.clone(), there);
            }
            _ => {
                self.unname(turn.dir, &turn.name);
                self.model.children_mut(from.parent).remove(&from.name);
            }
        }
        self.model.children_mut(turn.dir).insert(turn.name.clone(), from.id);
    }

    /// What a rename has left at the old name is there on any host; it goes, so that the model need not know it.
    fn remove_whiteout(&mut self, path: &str) {
        let host = self.host();
        let at = self.at(host, path);
        let left = fs::symlink_metadata(&at).map(|found| (found.mode(), found.rdev()));
        assert_eq!(left.ok(), Some((libc::S_IFCHR, 0)), "h{host} {path} after a rename with a whiteout");
        fs::remove_file(at).unwrap();
    }

    fn errno_of_rename(&self, turn: &Turn, from: &Place, flags: u32) -> i32 {
        let dir = |id| self.model.is_dir(id);
        let below = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        let exchanges = flags == libc::RENAME_EXCHANGE;
        match turn.there {
            Some(_) if flags == libc::RENAME_NOREPLACE => libc::EEXIST,
            None if exchanges => libc::ENOENT,
            _ if dir(from.id) && below(&turn.path, &from.path) => libc::EINVAL,
            Some(id) if id == from.id => 0,
            Some(id) if exchanges && dir(id) && below(&from.path, &turn.path) => libc::EINVAL,
            Some(_) if exchanges => 0,
            Some(id) if dir(id) && below(&from.path, &turn.path) => libc::ENOTEMPTY,
            Some(id) if dir(from.id) && !dir(id) => libc::ENOTDIR,
            Some(id) if !dir(from.id) && dir(id) => libc::EISDIR,
            Some(id) if dir(id) && !self.model.children(id).is_empty() => libc::ENOTEMPTY,
            _ => 0,
        }
    }
}
