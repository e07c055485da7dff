//! What programs set by FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR (chattr): immutable, append only, no dump, no atime.
//!
//! The kernel checks who may set them (owner, CAP_LINUX_IMMUTABLE) and looks at them nowhere else, for it does not
//! keep them for a FUSE inode: what they forbid is refused here, on every host, for they are attributes under the
//! inode's lock. As in ext4, also to those that have had the file open before; of a mapping, what it has
//! stored before and after is written all the same.

use super::*;
use crate::format::inode::{FLAG_APPEND, FLAG_IMMUTABLE};

fn refuse(attr: &Attr, flags: u32) -> Result<()> {
    if attr.flags & flags == 0 { Ok(()) } else { Err(Error::NotPermitted) }
}

/// May content change, a directory gain names, an access time be set to now?
pub(super) fn may_change(attr: &Attr) -> Result<()> {
    refuse(attr, FLAG_IMMUTABLE)
}

/// May it lose a name, gain one, be cut, or get other attributes; may a directory lose names?
pub(super) fn may_lose(attr: &Attr) -> Result<()> {
    refuse(attr, FLAG_IMMUTABLE | FLAG_APPEND)
}

/// May a file be opened for writing, or written: at its end, or anywhere?
pub(super) fn may_write(attr: &Attr, append: bool) -> Result<()> {
    if append { may_change(attr) } else { may_lose(attr) }
}

/// Names go in `from` and come in `to`: of `source`, and of what it replaces or changes places with.
pub(super) fn may_rename(from: &Attr, to: &Attr, source: &Attr, target: Option<&Attr>) -> Result<()> {
    may_lose(from)?;
    may_lose(source)?;
    match target {
        Some(target) => may_lose(to).and(may_lose(target)),
        None => may_change(to),
    }
}

impl SetAttr {
    /// May an inode's attributes change so?
    pub(super) fn is_permitted(&self, attr: &Attr) -> Result<()> {
        let touches = |time: Option<SetTime>| !matches!(time, Some(SetTime::At(_)));
        let only_touches = self.perm.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.size.is_none()
            && touches(self.atime)
            && touches(self.mtime);
        if only_touches { may_change(attr) } else { may_lose(attr) }
    }
}

/// May `caller` have these flags instead? Immutable and append-only are root's.
fn may_set(before: u32, flags: u32, caller: Caller) -> bool {
    caller.uid == 0 || (before ^ flags) & (FLAG_IMMUTABLE | FLAG_APPEND) == 0
}

impl Fs {
    /// The flags of an inode, and its generation.
    pub fn flags(&self, node: NodeId, reply: impl FnOnce(Result<(u32, Generation)>) + Send + 'static) {
        let ino = self.core.ino(node);
        let body = move |op: &mut Op<'_>| -> Step<(u32, Generation)> {
            let node = op.core.nodes.get(ino);
            let mut state = node.state.lock();
            let attr = op.core.load(&node, &mut state)?;
            Ok((attr.flags, attr.generation))
        };
        op::run(&self.core, inode(ino, Mode::S), body, reply);
    }

    /// Set the flags of an inode.
    ///
    /// # Errors
    /// `NotPermitted` if that would change what only root may, for a caller who is not. The kernel has compared the
    /// flags before it asked, but another host may have set one since.
    pub fn set_flags(
        &self,
        node: NodeId,
        flags: u32,
        caller: Caller,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        let fs = self.core.clone();
        // The kernel does not know that this call changes the ctime.
        let reply = move |outcome: Result<()>| match outcome {
            Ok(()) => fs.after_dropping_attributes(ino, move || reply(Ok(()))),
            Err(e) => reply(Err(e)),
        };
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            let mut state = node.state.lock();
            core.check_kept(&node, &mut state)?;
            let mut attr = core.load(&node, &mut state)?.clone();
            if !may_set(attr.flags, flags, caller) {
                return Err(Error::NotPermitted.into());
            }
            attr.flags = flags;
            touch_ctime(&mut attr, core.now());
            core.store_attr(&node, &mut state, attr)?;
            Ok(())
        };
        op::run(&self.core, inode(ino, Mode::X), body, reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As when root has set one on another host between the kernel's look and its call.
    #[test]
    fn an_owner_takes_away_nothing_that_root_has_set() {
        let by = |uid| Caller { uid, gid: uid, pid: 1 };
        for kept in [FLAG_IMMUTABLE, FLAG_APPEND] {
            assert!(!may_set(kept, 8, by(1000)) && !may_set(0, kept, by(1000)));
            assert!(may_set(kept, kept | 8, by(1000)) && may_set(kept, 8, by(0)));
        }
    }

    #[test]
    fn what_flags_leave_allowed() {
        let attr = |flags| {
            let new = Attr::new(InodeNo(7), Generation(1), FileKind::Regular, 0o644, Timestamp::default());
            Attr { flags, ..new }
        };
        let time = SetTime::At(Timestamp::default());
        let touch = SetAttr { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..SetAttr::default() };
        let others = [
            SetAttr { perm: Some(0o600), ..touch },
            SetAttr { uid: Some(1), ..touch },
            SetAttr { size: Some(0), ..touch },
            SetAttr { mtime: Some(time), ..touch },
        ];
        for (flags, change, lose) in [
            (0, true, true),
            (FLAG_APPEND, true, false),
            (FLAG_IMMUTABLE, false, false),
            (8 | 16, true, true),
        ] {
            let (of, free) = (attr(flags), attr(0));
            assert_eq!(may_write(&of, true).is_ok(), change);
            assert_eq!(may_write(&of, false).is_ok(), lose);
            assert_eq!(touch.is_permitted(&of).is_ok(), change);
            for other in &others {
                assert_eq!(other.is_permitted(&of).is_ok(), lose);
            }
            assert_eq!(may_rename(&of, &free, &free, None).is_ok(), lose);
            assert_eq!(may_rename(&free, &of, &free, None).is_ok(), change);
            assert_eq!(may_rename(&free, &of, &free, Some(&free)).is_ok(), lose);
            assert_eq!(may_rename(&free, &free, &of, None).is_ok(), lose);
            assert_eq!(may_rename(&free, &free, &free, Some(&of)).is_ok(), lose);
        }
    }
}
