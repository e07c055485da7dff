//! Set-id bits and file capabilities: they go when somebody changes the file's content.
//!
//! The kernel left this to us at INIT (HANDLE_KILLPRIV_V2); otherwise it would ask for
//! `security.capability` before every write. What it still does:
//! - A WRITE, and a SETATTR of the size, bear a flag if their caller may not keep set-id bits.
//! - Where its own copy of the mode shows such bits and the caller may not keep them (write, fallocate,
//!   copy), and for a chown to nobody new, a SETATTR without any change comes first. For a fallocate and a copy, which
//!   bear no flag, that is not enough: the bits may be another host's, set since. There we look at the caller.
//! - Capabilities that it knows of it removes itself; those that another host has set, we do.

use super::*;
use crate::xattr;

const CAPABILITIES: &[u8] = b"security.capability";

/// The mode without set-user-id, and without set-group-id where that means what it says (without group
/// execution it is something else).
pub(super) fn without_set_id(mode: u32) -> u32 {
    let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
    mode & !(libc::S_ISUID | group)
}

/// May set-id bits stay?
#[derive(Clone, Copy)]
pub(super) enum SetId {
    Stays,
    Goes,
    /// If this caller may keep them.
    AsFor(Caller),
}

impl SetId {
    pub fn stays(self) -> bool {
        match self {
            SetId::Stays => true,
            SetId::Goes => false,
            SetId::AsFor(Caller { uid, pid, .. }) => capabilities::has_as(pid, uid, capabilities::FSETID),
        }
    }
}

impl Core {
    fn is_capable(&self, node: &Node) -> Result<bool> {
        match xattr::get(&self.tree(node.ino), &*self.store, CAPABILITIES) {
            Ok(_) => Ok(true),
            Err(Error::NoAttribute) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Has the file set-id bits? Whoever is about to take them has to tell the kernel, also if that is done in one of
    /// several attempts.
    pub(super) fn has_set_id(&self, node: &Node, state: &mut NodeState) -> Result<bool> {
        let mode = self.load(node, state)?.mode;
        Ok(mode != without_set_id(mode))
    }

    /// Has [`Core::drop_privileges`] nothing to do? Changes nothing.
    pub(super) fn is_unprivileged(
        &self,
        node: &Node,
        state: &mut NodeState,
        keep_set_id: bool,
    ) -> Result<bool> {
        if state.unprivileged {
            return Ok(true);
        }
        let mode = self.load(node, state)?.mode;
        let (plain, capable) = (mode == without_set_id(mode), self.is_capable(node)?);
        state.unprivileged = plain && !capable;
        Ok(!capable && (plain || keep_set_id))
    }

    /// The content of a regular file is about to change: its capabilities go, and its set-id bits
    /// unless `keep_set_id` says that the caller may keep them. True if the mode has changed; a direct
    /// write does not make the kernel doubt the one it knows.
    pub(super) fn drop_privileges(
        &self,
        node: &Node,
        state: &mut NodeState,
        keep_set_id: impl FnOnce() -> bool,
    ) -> Result<bool> {
        if state.unprivileged {
            return Ok(false);
        }
        let mut attr = self.load(node, state)?.clone();
        let (old, plain) = (attr.mode, without_set_id(attr.mode));
        if old != plain && !keep_set_id() {
            attr.mode = plain;
        }
        let tree = self.tree(node.ino);
        let capable = self.is_capable(node)?;
        state.unprivileged = attr.mode == plain;
        let changed = attr.mode != old;
        if capable {
            let mut change = self.change_freeing(None, xattrs::XATTR_BLOCKS)?;
            xattr::remove(&tree, &mut change.txn, CAPABILITIES)?;
            touch_ctime(&mut attr, self.now());
            tree.write_attr(&mut change.txn, &attr)?;
            state.last_txn = change.txn.finish()?;
            state.attr = Some(attr);
        } else if changed {
            touch_ctime(&mut attr, self.now());
            self.store_attr(node, state, attr)?;
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_group_id_without_group_execution_is_no_privilege() {
        assert_eq!(without_set_id(0o6755), 0o755);
        assert_eq!(without_set_id(0o6745), 0o2745);
        assert_eq!(without_set_id(0o1644), 0o1644);
    }
}
