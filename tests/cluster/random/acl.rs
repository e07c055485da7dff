//! chmod, and access control lists beside it: lists as bytes, what mode and mask make of each other, what is inherited.

use super::{Tester, Turn};
use crate::model::Place;
use crate::model::acl::{Access, Acl};
use crate::rig_xattr as xattr;
use rand::Rng;
use std::collections::BTreeMap;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const IDS: [u32; 4] = [0, 1, 99, 65_534];

impl Tester {
    pub fn change_guard(&mut self, turn: &Turn) {
        let Some(place) = self.attributed(turn) else { return };
        match self.random.random_range(0..10) {
            0..2 => self.chmod(turn, &place),
            2..4 => self.set_access(turn, &place),
            4..6 => self.set_default(turn, &place),
            6 => self.remove_list(turn, &place),
            _ => self.compare_guard(turn.host, &place),
        }
    }

    fn chmod(&mut self, turn: &Turn, place: &Place) {
        let mode = self.random.random_range(0..0o1000);
        let mode = self.pick(&[mode, mode, 0o755, 0o640, 0o4711, 0o1777]);
        let done = set_permissions(self.at(turn.host, &place.path), Permissions::from_mode(mode));
        self.expect(place.id, format!("h{} chmod {} {mode:o}", turn.host, place.path), done, 0);
        self.model.nodes[place.id].guard.chmod(mode);
    }

    fn list(&mut self) -> Acl {
        let mut access = || self.random.random_range(0..8) as Access;
        let [owner, group, mask, other] = [access(), access(), access(), access()];
        let mut list =
            Acl { owner, group, other, users: BTreeMap::new(), groups: BTreeMap::new(), mask: None };
        for _ in 0..self.random.random_range(0..3) {
            let (id, access) = (self.pick(&IDS), self.random.random_range(0..8));
            if self.chance(60) {
                list.users.insert(id, access)
            } else {
                list.groups.insert(id, access)
            };
        }
        // Entries with names want a mask.
        if !(list.users.is_empty() && list.groups.is_empty()) || self.chance(30) {
            list.mask = Some(mask);
        }
        list
    }

    fn set_access(&mut self, turn: &Turn, place: &Place) {
        let list = self.list();
        let done = xattr::set(&self.at(turn.host, &place.path), ACCESS, &list.bytes());
        self.expect(place.id, format!("h{} setfacl {} {list:?}", turn.host, place.path), done, 0);
        self.model.nodes[place.id].guard.set_access(list);
    }

    fn set_default(&mut self, turn: &Turn, place: &Place) {
        let list = self.list();
        let done = xattr::set(&self.at(turn.host, &place.path), DEFAULT, &list.bytes());
        let errno = if self.model.is_dir(place.id) { 0 } else { libc::EACCES };
        let what = format!("h{} setfacl default {} {list:?}", turn.host, place.path);
        if self.expect(place.id, what, done, errno).is_some() {
            self.model.nodes[place.id].guard.default = Some(list);
        }
    }

    /// The mode stays as the list has made it.
    fn remove_list(&mut self, turn: &Turn, place: &Place) {
        let default = self.model.is_dir(place.id) && self.chance(50);
        let name = if default { DEFAULT } else { ACCESS };
        let done = xattr::remove(&self.at(turn.host, &place.path), name);
        self.expect(place.id, format!("h{} remove {name} of {}", turn.host, place.path), done, 0);
        let guard = &mut self.model.nodes[place.id].guard;
        if default { guard.default = None } else { guard.access = None }
    }

    /// Mode, lists, and the names of all extended attributes.
    pub fn compare_guard(&mut self, host: usize, place: &Place) {
        let at = self.at(host, &place.path);
        let node = &self.model.nodes[place.id];
        let (guard, mut wanted) = (node.guard.clone(), node.xattrs.keys().cloned().collect::<Vec<_>>());
        for (name, list) in [(ACCESS, guard.access), (DEFAULT, guard.default)] {
            let errno = if list.is_some() { 0 } else { libc::ENODATA };
            let what = format!("h{host} getfacl {} {name}", place.path);
            let found = self.expect(place.id, what, xattr::get(&at, name), errno);
            wanted.extend(list.is_some().then(|| name.to_string()));
            if found != list.as_ref().map(Acl::bytes) {
                self.fail(
                    place.id,
                    format!("{found:?}, expected {list:?}: {:?}", list.as_ref().map(Acl::bytes)),
                );
            }
        }
        wanted.sort();
        let what = format!("h{host} listxattr {}", place.path);
        let mut found = self.expect(place.id, what, xattr::list(&at), 0).unwrap();
        found.sort();
        if found != wanted {
            self.fail(place.id, format!("{found:?}, expected {wanted:?}"));
        }
        let mode = std::fs::symlink_metadata(&at).map(|m| m.permissions().mode() & 0o7777);
        let mode = self.expect(place.id, format!("h{host} stat {}", place.path), mode, 0).unwrap();
        if mode != guard.mode {
            self.fail(place.id, format!("mode {mode:o}, expected {:o}", guard.mode));
        }
    }
}
