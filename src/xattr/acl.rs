//! POSIX access control lists, as far as a filesystem works with them. The kernel checks permissions by
//! them (it reads them as the attributes named below); what it leaves to us is what a new file inherits,
//! what chmod does to a list, and what a list does to the mode.
//!
//! The attribute's value is the kernel's: version u32 = 2, then entries of tag u16, permissions u16 and
//! id u32, little-endian.

use crate::base::{Error, Result};

/// The attribute that holds the list of a file.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what a directory's new files inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o777;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A list that is complete: an owner, a group, others, and a mask where there are further entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// From an attribute's value.
    ///
    /// # Errors
    /// `Invalid` if it is not a complete list.
    pub fn decode(value: &[u8]) -> Result<Acl> {
        const WRONG: Error = Error::Invalid("access control list");
        let (version, rest) = value.split_first_chunk::<4>().ok_or(WRONG)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return Err(WRONG);
        }
        let entry = |e: &[u8]| Entry {
            tag: u16::from_le_bytes([e[0], e[1]]),
            perm: u16::from_le_bytes([e[2], e[3]]),
            id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
        };
        let acl = Acl(rest.chunks_exact(8).map(entry).collect());
        let count = |tag: u16| acl.0.iter().filter(|e| e.tag == tag).count();
        let known = USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER;
        let named = count(USER) + count(GROUP) > 0;
        let complete = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
            && (usize::from(named)..=1).contains(&count(MASK))
            && acl.0.iter().all(|e| e.tag & known == e.tag && e.tag.count_ones() == 1 && e.perm <= 7);
        if complete { Ok(acl) } else { Err(WRONG) }
    }

    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            out.extend(e.tag.to_le_bytes());
            out.extend(e.perm.to_le_bytes());
            out.extend(e.id.to_le_bytes());
        }
        out
    }

    /// Does the list say more than a mode can?
    pub fn exceeds_mode(&self) -> bool {
        self.0.iter().any(|e| !matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The entry that the mode's group bits stand for: the mask, else the owning group's.
    fn group_class(&self) -> u16 {
        if self.exceeds_mode() && self.0.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ }
    }

    /// The entries that the mode shows, each with its shift there.
    fn shown(&mut self) -> impl Iterator<Item = (&mut Entry, u32)> {
        let group = self.group_class();
        self.0.iter_mut().filter_map(move |e| match e.tag {
            USER_OBJ => Some((e, 6)),
            OTHER => Some((e, 0)),
            tag if tag == group => Some((e, 3)),
            _ => None,
        })
    }

    /// `mode` with the permissions that the list gives.
    pub fn mode(&self, mode: u32) -> u32 {
        let shown: u32 = self.clone().shown().map(|(e, shift)| u32::from(e.perm) << shift).sum();
        mode & !PERMISSIONS | shown
    }

    /// What chmod to `mode` makes of the list.
    #[must_use]
    pub fn chmod(mut self, mode: u32) -> Acl {
        self.shown().for_each(|(e, shift)| e.perm = (mode >> shift & 7) as u16);
        self
    }

    /// What a file created with `mode` gets from this list of its directory: its own list, and its mode.
    /// Each permission is kept where both agree.
    pub fn inherited(&self, mode: u32) -> (Acl, u32) {
        let mut acl = self.clone();
        acl.shown().for_each(|(e, shift)| e.perm &= (mode >> shift & 7) as u16);
        let mode = acl.mode(mode);
        (acl, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        let bytes = Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect()).encode();
        Acl::decode(&bytes).unwrap()
    }

    fn rich() -> Acl {
        let none = u32::MAX;
        acl(&[(USER_OBJ, 7, none), (USER, 6, 99), (GROUP_OBJ, 5, none), (MASK, 7, none), (OTHER, 4, none)])
    }

    #[test]
    fn the_group_bits_are_the_masks_where_there_is_one() {
        assert_eq!(rich().mode(0o2000), 0o2774);
        assert_eq!(rich().chmod(0o640), acl_with_mask(6, 4, 0));
        let plain = acl(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        assert!(!plain.exceeds_mode() && rich().exceeds_mode());
        assert_eq!(plain.mode(0), 0o654);
        assert_eq!(plain.chmod(0o123).mode(0), 0o123);
    }

    fn acl_with_mask(user: u16, mask: u16, other: u16) -> Acl {
        let none = u32::MAX;
        acl(&[
            (USER_OBJ, user, none),
            (USER, 6, 99),
            (GROUP_OBJ, 5, none),
            (MASK, mask, none),
            (OTHER, other, none),
        ])
    }

    #[test]
    fn a_new_file_gets_what_both_the_list_and_the_creator_allow() {
        assert_eq!(rich().inherited(0o666), (acl_with_mask(6, 6, 4), 0o664));
        assert_eq!(rich().inherited(0o4700), (acl_with_mask(7, 0, 0), 0o4700));
    }

    #[test]
    fn incomplete_lists_are_refused() {
        for wrong in [
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0)][..],
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 8, 0)],
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 7, 0), (USER, 7, 5)],
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 7, 0), (OTHER, 7, 0)],
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 7, 0), (0x40, 7, 0)],
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 7, 0), (MASK, 7, 0), (MASK, 7, 0)],
        ] {
            let bytes = Acl(wrong.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect()).encode();
            assert!(Acl::decode(&bytes).is_err(), "{wrong:?}");
        }
        let good = rich().encode();
        (0..good.len()).for_each(|length| assert!(Acl::decode(&good[..length]).is_err(), "{length}"));
        assert_eq!(Acl::decode(&good), Ok(rich()));
    }
}
