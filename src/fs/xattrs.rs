//! Extended attributes.

use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;
use crate::xattr;

/// Blocks that changing one attribute may touch.
pub(super) const XATTR_BLOCKS: u32 =
    4 + 2 * tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS + 2 * xattr::VALUE_BLOCKS_MAX;

/// On the root, for administrators: what this mount has asked of the device, and how often operations
/// have waited for locks. Not listed, not stored.
/// Does a change take space, or go on a full volume too?
#[derive(Clone, Copy)]
enum Need {
    Space,
    Nothing,
}

const IO_COUNTS: &[u8] = b"trusted.shoal.io";

const TRUSTED: &[u8] = b"trusted.";

impl Fs {
    /// One attribute's value.
    pub fn getxattr(
        &self,
        nodeid: NodeId,
        name: Vec<u8>,
        reply: impl FnOnce(Result<Vec<u8>>) + Send + 'static,
    ) {
        let ino = self.core.ino(nodeid);
        if ino == self.core.root && name == IO_COUNTS {
            let (io, waits) = (self.core.store.device().report(), self.core.locks.waits());
            return reply(Ok(format!("{io} lock_waits={waits}").into_bytes()));
        }
        let body = move |op: &mut Op<'_>| -> Step<Vec<u8>> {
            let node = op.core.nodes.get(ino);
            let mut state = node.state.lock();
            op.core.load(&node, &mut state)?;
            Ok(xattr::get(&op.core.tree(ino), &*op.core.store, &name)?)
        };
        // Asked for before writes; it does not change while they are shared.
        op::run(&self.core, inode(ino, self.core.looking_mode(ino)), body, reply);
    }

    /// All names, each followed by a zero byte; to others than root without those that only root may read.
    pub fn listxattr(
        &self,
        nodeid: NodeId,
        caller: Caller,
        reply: impl FnOnce(Result<Vec<u8>>) + Send + 'static,
    ) {
        let ino = self.core.ino(nodeid);
        let body = move |op: &mut Op<'_>| -> Step<Vec<u8>> {
            let node = op.core.nodes.get(ino);
            let mut state = node.state.lock();
            op.core.load(&node, &mut state)?;
            let mut names = xattr::list(&op.core.tree(ino), &*op.core.store)?;
            if caller.uid != 0 {
                names = names
                    .split_inclusive(|byte| *byte == 0)
                    .filter(|name| !name.starts_with(TRUSTED))
                    .flatten()
                    .copied()
                    .collect();
            }
            Ok(names)
        };
        op::run(&self.core, inode(ino, Mode::S), body, reply);
    }

    /// Set an attribute. `how`: whether it may or must exist. `kill_set_gid`: an access ACL costs the
    /// file's set-group-id bit.
    pub fn setxattr(
        &self,
        nodeid: NodeId,
        name: Vec<u8>,
        value: Vec<u8>,
        how: xattr::SetHow,
        kill_set_gid: bool,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let change = move |core: &Core, txn: &mut Transaction, attr: &mut Attr| match &name[..] {
            xattr::acl::ACCESS => core.set_access_acl(txn, attr, &value, kill_set_gid),
            _ => xattr::set(&core.tree(attr.ino), txn, &name, &value, how),
        };
        self.change_xattr(nodeid, Need::Space, Box::new(change), reply);
    }

    /// Remove an attribute.
    pub fn removexattr(
        &self,
        nodeid: NodeId,
        name: Vec<u8>,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let change = move |core: &Core, txn: &mut Transaction, attr: &mut Attr| {
            match xattr::remove(&core.tree(attr.ino), txn, &name) {
                // No list is what is wanted, as on ext4 and XFS.
                Err(Error::NoAttribute) if [xattr::acl::ACCESS, xattr::acl::DEFAULT].contains(&&name[..]) => {
                    Ok(())
                }
                done => done,
            }
        };
        self.change_xattr(nodeid, Need::Nothing, Box::new(change), reply);
    }

    #[allow(clippy::type_complexity)]
    fn change_xattr(
        &self,
        nodeid: NodeId,
        need: Need,
        mut change: Box<dyn FnMut(&Core, &mut Transaction, &mut Attr) -> Result<()> + Send>,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let ino = self.core.ino(nodeid);
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let core = op.core.clone();
            let meta = tree_costs::NEW_BLOCKS + xattr::VALUE_BLOCKS_MAX;
            let want = Want { data: 0, meta, near: core.group(ino) };
            let space = match need {
                Need::Space => Some(op.space(want)?),
                Need::Nothing => op.space_if_any(want)?,
            };
            let node = core.nodes.get(ino);
            let mut state = node.state.lock();
            core.check_kept(&node, &mut state)?;
            state.unprivileged = false;
            let mut attr = core.load(&node, &mut state)?.clone();
            flags::may_lose(&attr)?;
            let mut freeing = core.change_freeing(space, XATTR_BLOCKS)?;
            change(&core, &mut freeing.txn, &mut attr)?;
            touch_ctime(&mut attr, core.now());
            core.tree(ino).write_attr(&mut freeing.txn, &attr)?;
            state.last_txn = freeing.txn.finish()?;
            state.attr = Some(attr);
            state.default_acl = None;
            Ok(())
        };
        op::run(&self.core, inode(ino, Mode::X), body, reply);
    }
}
