//! O_TMPFILE: a regular file without a name, an orphan from birth. linkat(2) may give it one while it is open
//! here: then the orphan's item goes in the transaction that brings the name. If this host dies before, the file is
//! freed like any orphan of its slot.

use super::acl::Inherited;
use super::create::Plan;
use super::*;
use crate::alloc::Want;
use crate::inode::{ItemKey, ItemKind, tree_costs};
use handles::OpenFlags;

/// Log blocks: the inode with what it inherits, and the path of the orphan's item.
const BLOCKS: u32 = 2 + 2 * (tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS);

impl Core {
    /// Make the inode and open it.
    fn make_nameless(&self, op: &mut Op<'_>, plan: &Plan, flags: i32) -> Step<(Arc<Node>, Attr, OpenReply)> {
        let parent = self.nodes.get(plan.dir);
        let mut state = parent.state.lock();
        let dir_attr = self.load_dir(&parent, &mut state)?.clone();
        let inherited = Inherited::new(&plan.new, self.default_acl(plan.dir, &mut state)?.as_deref());
        let meta = 1 + inherited.blocks() + 2 * tree_costs::NEW_BLOCKS;
        let mut space = op.space(Want { data: 0, meta, near: self.group(plan.dir) })?;
        drop(state);
        if dir_attr.nlink == 0 {
            return Err(Error::NotFound.into());
        }
        flags::may_change(&dir_attr)?;
        let picked = self.alloc.pick_inode(&mut space, plan.dir.block())?;
        let ino = picked.ino();
        // As for a file with a name: its locks before there is a block for it.
        op.need_inode(ino, Mode::X)?;
        let iopen = op.pin_apart(LockName::IOpen(ino), Mode::S)?;
        let mut change = self.change_freeing(Some(space), BLOCKS + inherited.blocks())?;
        let generation = change.txn.use_inode(picked)?;
        let attr = Attr { ino, generation, nlink: 0, ..plan.attr(inherited.mode, &dir_attr, self.now()) };
        self.tree(ino).create(&mut change.txn, &attr)?;
        inherited.store(&self.tree(ino), &mut change.txn)?;
        reap::insert_orphan(&self.slot_tree, &mut change.txn, ino, generation)?;
        let id = change.txn.finish()?;
        let node = self.adopt_new(ino, attr.clone(), id);
        node.nameless.store(true, Ordering::Release);
        let open = self.open_handle(op, node.clone(), OpenFlags::new(flags), Some(iopen))?;
        Ok((node, attr, open))
    }

    /// The orphan's item of an inode that gets its first name.
    pub(super) fn adopt_nameless(&self, change: &mut FreeingChange<'_>, ino: InodeNo) -> Result<()> {
        // Were it left, it would be a hint that leads to nothing.
        self.slot_tree.remove(&mut change.txn, ItemKey::new(ItemKind::Orphan, ino.0)).map(drop)
    }
}

impl Fs {
    /// Make a regular file without a name in the filesystem of `parent`, with what one in it would inherit, and open it.
    pub fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        new: NewNode,
        flags: i32,
        reply: impl FnOnce(Result<(EntryReply, OpenReply)>) + Send + 'static,
    ) {
        let plan = Plan::new(&self.core, caller, parent, Vec::new(), new);
        let locks = inode(plan.dir, Mode::S);
        let body = move |op: &mut Op<'_>| -> Step<(EntryReply, OpenReply)> {
            let core = op.core.clone();
            let (node, attr, open) = core.make_nameless(op, &plan, flags)?;
            Ok((core.entry_of(&node, (attr, 0)), open))
        };
        op::run(&self.core, locks, body, reply);
    }
}
