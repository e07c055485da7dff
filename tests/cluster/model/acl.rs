//! Access control lists, as POSIX.1e draft 17 and Linux have them.

use std::collections::BTreeMap;

/// Bits of read, write and execute.
pub type Access = u16;

/// An access or default list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    pub owner: Access,
    pub users: BTreeMap<u32, Access>,
    pub group: Access,
    pub groups: BTreeMap<u32, Access>,
    pub mask: Option<Access>,
    pub other: Access,
}

impl Acl {
    /// The value of the extended attribute.
    pub fn bytes(&self) -> Vec<u8> {
        const NOBODY: u32 = u32::MAX;
        let mut entries = vec![(1u16, self.owner, NOBODY)];
        entries.extend(self.users.iter().map(|(id, access)| (2, *access, *id)));
        entries.push((4, self.group, NOBODY));
        entries.extend(self.groups.iter().map(|(id, access)| (8, *access, *id)));
        entries.extend(self.mask.map(|access| (0x10, access, NOBODY)));
        entries.push((0x20, self.other, NOBODY));
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, access, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(access.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// Does it say no more than nine bits of a mode can?
    fn is_mode(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask.is_none()
    }

    /// The mode's bits for the group are those of the mask, if there is one.
    fn mode(&self) -> u32 {
        let group = self.mask.unwrap_or(self.group);
        u32::from(self.owner) << 6 | u32::from(group) << 3 | u32::from(self.other)
    }

    fn class(&mut self) -> &mut Access {
        self.mask.as_mut().unwrap_or(&mut self.group)
    }
}

/// What decides who may use a node.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Without the type.
    pub mode: u32,
    pub access: Option<Acl>,
    pub default: Option<Acl>,
}

impl Guard {
    /// Of something without lists.
    pub fn of_mode(mode: u32) -> Guard {
        Guard { mode, ..Guard::default() }
    }

    pub fn chmod(&mut self, mode: u32) {
        self.mode = mode;
        if let Some(list) = &mut self.access {
            list.owner = (mode >> 6 & 7) as Access;
            *list.class() = (mode >> 3 & 7) as Access;
            list.other = (mode & 7) as Access;
        }
    }

    pub fn set_access(&mut self, list: Acl) {
        self.mode = self.mode & !0o777 | list.mode();
        self.access = (!list.is_mode()).then_some(list);
    }

    /// Of what is created in a directory that has this one.
    pub fn of_child(&self, mode: u32, umask: u32, is_dir: bool) -> Guard {
        let Some(default) = &self.default else { return Guard::of_mode(mode & !umask) };
        let mut list = default.clone();
        list.owner &= (mode >> 6) as Access;
        *list.class() &= (mode >> 3) as Access;
        list.other &= mode as Access;
        let mode = mode & !0o777 | list.mode();
        let default = is_dir.then(|| default.clone());
        Guard { mode, access: (!list.is_mode()).then_some(list), default }
    }
}
