//! Where access control lists meet the operations: what a new file inherits, chmod, and what a list
//! does to the mode. Lists are attributes like others for the rest.

use super::xattrs::XATTR_BLOCKS;
use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;
use crate::xattr::acl::{ACCESS, Acl, DEFAULT};
use crate::xattr::{self, SetHow};

/// Permissions and lists of a new file.
pub(super) struct Inherited {
    pub mode: u32,
    lists: Vec<(&'static [u8], Vec<u8>)>,
}

impl Inherited {
    /// What a file gets that is asked for with `new` in a directory with the default list `default`.
    /// Only without a list the umask counts.
    pub fn new(new: &NewNode, default: Option<&Acl>) -> Inherited {
        let asked = u32::from(new.perm) & 0o7777;
        let Some(default) = default.filter(|_| new.kind != FileKind::Symlink) else {
            return Inherited { mode: asked & !u32::from(new.umask), lists: Vec::new() };
        };
        let (own, mode) = default.inherited(asked);
        let mut lists = Vec::new();
        if own.exceeds_mode() {
            lists.push((ACCESS, own.encode()));
        }
        if new.kind == FileKind::Directory {
            lists.push((DEFAULT, default.encode()));
        }
        Inherited { mode, lists }
    }

    /// Blocks that the lists need: few lists are long, and both together fit beside a new inode's
    /// attributes, or their descriptors do.
    pub fn blocks(&self) -> u32 {
        self.lists.iter().map(|(_, value)| xattr::value_blocks(value.len())).sum()
    }

    /// Give the lists to the new inode of `tree`.
    pub fn store(&self, tree: &Tree, txn: &mut Transaction) -> Result<()> {
        self.lists.iter().try_for_each(|(name, value)| xattr::set(tree, txn, name, value, SetHow::Create))
    }
}

impl Core {
    fn acl(&self, ino: InodeNo, name: &[u8]) -> Result<Option<Acl>> {
        match xattr::get(&self.tree(ino), &*self.store, name) {
            Ok(value) => match Acl::decode(&value) {
                Ok(acl) => Ok(Some(acl)),
                Err(e) => Err(Error::Damaged { inode: ino, what: e.to_string() }),
            },
            Err(Error::NoAttribute) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The list that new files of a directory inherit. Its lock is pinned.
    pub(super) fn default_acl(&self, dir: InodeNo, state: &mut NodeState) -> Result<Option<Arc<Acl>>> {
        if state.default_acl.is_none() {
            state.default_acl = Some(self.acl(dir, DEFAULT)?.map(Arc::new));
        }
        Ok(state.default_acl.clone().flatten())
    }

    /// Write attributes after a chmod, which changes the list of a file as well if there is one.
    pub(super) fn store_chmod(
        &self,
        op: &mut Op<'_>,
        node: &Node,
        state: &mut NodeState,
        attr: Attr,
    ) -> Step<()> {
        let Some(acl) = self.acl(node.ino, ACCESS)? else {
            return Ok(self.store_attr(node, state, attr)?);
        };
        let value = acl.chmod(attr.mode).encode();
        let meta = tree_costs::NEW_BLOCKS + xattr::value_blocks(value.len());
        // The list is as long as it was: a full volume has room for it.
        let space = op.space_if_any(Want { data: 0, meta, near: self.group(node.ino) })?;
        let mut change = self.change_freeing(space, XATTR_BLOCKS)?;
        let tree = self.tree(node.ino);
        xattr::set(&tree, &mut change.txn, ACCESS, &value, SetHow::Either)?;
        tree.write_attr(&mut change.txn, &attr)?;
        state.last_txn = change.txn.finish()?;
        state.attr = Some(attr);
        state.attr_dirty = false;
        Ok(())
    }

    /// `value` becomes the list of a file: its mode follows, and a list that says no more than the
    /// mode is not kept. Like chmod, it may cost the set-group-id bit: the kernel knows the caller's groups.
    pub(super) fn set_access_acl(
        &self,
        txn: &mut Transaction,
        attr: &mut Attr,
        value: &[u8],
        kill_set_gid: bool,
    ) -> Result<()> {
        let acl = Acl::decode(value)?;
        attr.mode = acl.mode(attr.mode);
        if kill_set_gid {
            attr.mode &= !libc::S_ISGID;
        }
        let tree = self.tree(attr.ino);
        if acl.exceeds_mode() {
            return xattr::set(&tree, txn, ACCESS, value, SetHow::Either);
        }
        match xattr::remove(&tree, txn, ACCESS) {
            Err(Error::NoAttribute) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_umask_counts_only_without_a_list() {
        let new = NewNode { kind: FileKind::Regular, perm: 0o666, umask: 0o077, rdev: 0 };
        assert_eq!(Inherited::new(&new, None).mode, 0o600);
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, perm) in [(1u16, 7u16), (4, 6), (0x20, 4)] {
            value.extend([tag.to_le_bytes(), perm.to_le_bytes(), [0xff; 2], [0xff; 2]].concat());
        }
        let default = Acl::decode(&value).unwrap();
        let file = Inherited::new(&new, Some(&default));
        assert_eq!((file.mode, file.lists.len()), (0o664, 0));
        let directory = NewNode { kind: FileKind::Directory, ..new };
        assert_eq!(Inherited::new(&directory, Some(&default)).lists, [(DEFAULT, value)]);
        let link = NewNode { kind: FileKind::Symlink, perm: 0o777, umask: 0, ..new };
        assert_eq!(Inherited::new(&link, Some(&default)).mode, 0o777);
    }
}
