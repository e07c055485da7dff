//! stat, listings and extended attributes of users.

use super::{Kind, Tester, Turn};
use crate::model::{Content, Place};
use crate::rig_xattr as xattr;
use rand::seq::IndexedRandom;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

impl Tester {
    /// A place that may have extended attributes: no symbolic link.
    pub fn attributed(&mut self, turn: &Turn) -> Option<Place> {
        let fit = |p: &&Place| !matches!(self.model.nodes[p.id].content, Content::Symlink(_));
        let fitting: Vec<Place> = turn.places.iter().filter(fit).cloned().collect();
        fitting.choose(&mut self.random).cloned()
    }

    pub fn xattr(&mut self, turn: &Turn) {
        let Some(place) = self.attributed(turn) else { return };
        let name = format!("user.{}", self.pick(&["a", "b", "c"]));
        let at = self.at(turn.host, &place.path);
        let what = format!("h{} {} {name}", turn.host, place.path);
        let there = self.model.nodes[place.id].xattrs.get(&name).cloned();
        let errno = if there.is_some() { 0 } else { libc::ENODATA };
        if self.chance(40) {
            // ext4 has room for little.
            let sizes: &[usize] = match self.kind {
                Kind::Cluster => &[0, 10, 900, 1200, 5000, 60_000],
                Kind::Local => &[0, 10, 100, 500],
            };
            let size = self.pick(sizes);
            let value: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
            self.expect(place.id, format!("setxattr {what} {size}"), xattr::set(&at, &name, &value), 0);
            self.model.nodes[place.id].xattrs.insert(name, value);
        } else if self.chance(20) {
            self.expect(place.id, format!("removexattr {what}"), xattr::remove(&at, &name), errno);
            self.model.nodes[place.id].xattrs.remove(&name);
        } else {
            let found = xattr::get(&at, &name);
            let found = self.expect(place.id, format!("getxattr {what}"), found, errno);
            if found != there {
                self.fail(place.id, "another value".into());
            }
        }
    }

    /// All values; who lists the names is `compare_guard`.
    pub fn compare_xattrs(&mut self, host: usize, place: &Place) {
        let at = self.at(host, &place.path);
        for (name, value) in self.model.nodes[place.id].xattrs.clone() {
            let what = format!("h{host} getxattr {} {name}", place.path);
            if self.expect(place.id, what, xattr::get(&at, &name), 0) != Some(value) {
                self.fail(place.id, "another value".into());
            }
        }
    }

    pub fn look(&mut self, turn: &Turn) {
        if self.chance(30) {
            let directory = turn.path.rsplit_once('/').map_or("", |(directory, _)| directory);
            return self.compare_listing(turn.host, directory, turn.dir);
        }
        if self.chance(30) {
            return self.look_at_open();
        }
        let errno = if turn.there.is_some() { 0 } else { libc::ENOENT };
        let found = fs::symlink_metadata(self.at(turn.host, &turn.path));
        let what = format!("h{} stat {}", turn.host, turn.path);
        let found = self.expect(turn.there.unwrap_or(turn.dir), what, found, errno);
        let (Some(found), Some(id)) = (found, turn.there) else { return };
        let size = if self.model.is_file(id) { self.model.size(id) as u64 } else { found.len() };
        let octal = |mode: u32| format!("{mode:o}");
        let wanted = (self.model.links(id), size, octal(self.model.nodes[id].guard.mode));
        let found = (found.nlink(), found.len(), octal(found.permissions().mode() & 0o7777));
        if found != wanted {
            self.fail(id, format!("links, size, mode {found:?}, expected {wanted:?}"));
        }
    }
}
