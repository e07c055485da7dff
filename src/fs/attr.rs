//! setattr: chmod, chown, utimes, truncate.

use super::*;
use crate::alloc::Want;
use crate::file::{Progress, StepLimit};
use crate::inode::tree_costs;
use serving::Late;

/// Blocks one bounded step of a truncation or another long change may touch.
pub const STEP_BLOCKS: u32 = 64 + 2 * tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS;
/// What such a step may do.
pub const STEP: StepLimit = StepLimit::within(64);

impl SetAttr {
    /// Is there anything but the size to change?
    fn changes_more_than_size(&self) -> bool {
        !SetAttr { size: None, ..*self }.is_nothing()
    }

    /// Is there nothing to change?
    fn is_nothing(&self) -> bool {
        SetAttr { kill_set_id: false, ..*self } == SetAttr::default()
    }

    /// Apply everything but the size.
    fn apply(&self, attr: &mut Attr, now: Timestamp) {
        if let Some(perm) = self.perm {
            attr.mode = u32::from(perm) & 0o7777;
        }
        // A change of nothing: the kernel wants the privileges gone.
        let owner_changes = self.uid.is_some() || self.gid.is_some() || self.is_nothing();
        if owner_changes && self.perm.is_none() && attr.kind != FileKind::Directory {
            // chown takes the privileges along (POSIX), as Linux has it of all but directories; setgid
            // without group execute is not one.
            attr.mode = privileges::without_set_id(attr.mode);
        }
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        let time = |set: Option<SetTime>, old: Timestamp| match set {
            None => old,
            Some(SetTime::Now) => now,
            Some(SetTime::At(t)) => t,
        };
        attr.atime = time(self.atime, attr.atime);
        attr.mtime = time(self.mtime, attr.mtime);
        touch_ctime(attr, now);
    }
}

impl Core {
    /// Write changed attributes of an inode whose state is locked.
    pub(super) fn store_attr(&self, node: &Node, state: &mut NodeState, attr: Attr) -> Result<()> {
        let mut txn = self.change(Reservation::empty(), 2)?;
        self.tree(node.ino).write_attr(&mut txn, &attr)?;
        state.last_txn = txn.finish()?;
        state.attr = Some(attr);
        state.attr_dirty = false;
        Ok(())
    }

    /// May an inode be changed whose lock is pinned X? One without a name only by a host that keeps it from
    /// being freed: that has the file open, or removed its last name. Others would write to a block that
    /// is perhaps another inode's already.
    pub(super) fn check_kept(&self, node: &Node, state: &mut NodeState) -> Result<()> {
        let attr = self.load(node, state)?;
        let (nlink, generation) = (attr.nlink, attr.generation);
        // An iopen lock is not given up in the middle of this: whoever waits for it needs the inode's too.
        if nlink > 0 || node.opens.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        match self.orphaned(node.ino)? == Some(generation) {
            true => Ok(()),
            false => Err(Error::Stale),
        }
    }

    /// One change of a file in a transaction that may free: `work` gets the transaction and the
    /// attributes, which become the inode's when it is finished.
    pub(super) fn change_file<T>(
        &self,
        state: &mut NodeState,
        space: Option<Reservation>,
        work: impl FnOnce(&FileState, &mut Transaction, &mut Attr) -> Result<T>,
    ) -> Result<T> {
        let (Some(file), Some(mut attr)) = (&state.file, state.attr.clone()) else {
            return Err(Error::Invalid("no file data loaded"));
        };
        let mut change = self.change_freeing(space, STEP_BLOCKS)?;
        let result = work(file, &mut change.txn, &mut attr)?;
        state.last_txn = change.txn.finish()?;
        state.attr = Some(attr);
        Ok(result)
    }

    /// Finish a truncation that a crash or a lost lock interrupted.
    pub(super) fn finish_truncation(&self, node: &Node, state: &mut NodeState) -> Result<()> {
        match self.load(node, state)?.truncating {
            Some(target) => self.shrink(node, state, target),
            None => Ok(()),
        }
    }

    /// Cut to `size` bytes in as many bounded transactions as it takes.
    pub(super) fn shrink(&self, node: &Node, state: &mut NodeState, size: u64) -> Result<()> {
        loop {
            self.file(node, state)?;
            let progress =
                self.change_file(state, None, |file, txn, attr| file.truncate_apply(txn, attr, size, STEP))?;
            self.file(node, state)?.truncate_done(size, progress);
            if progress == Progress::Done {
                self.trim_space(state);
                return Ok(());
            }
        }
    }

    /// Give back what is reserved beyond what the dirty data needs.
    pub(super) fn trim_space(&self, state: &mut NodeState) {
        let want = state.file.as_ref().map(FileState::space_want).unwrap_or_default();
        if let Some(space) = &mut state.space {
            space.shrink(want.data, want.meta.into());
        }
    }

    /// Grow by a hole; the disk learns of it with the next flush.
    pub(super) fn grow(&self, op: &mut Op<'_>, node: &Node, state: &mut NodeState, size: u64) -> Step<()> {
        let plan = self.file(node, state)?.plan_grow(&*self.store, size)?;
        self.write_planned(op, node, state, plan, &[])
    }

    /// Reserve what a write needs and do it. On a full volume, as `op` knows it, the gate is held alone.
    pub(super) fn write_planned(
        &self,
        op: &mut Op<'_>,
        node: &Node,
        state: &mut NodeState,
        mut plan: WritePlan,
        data: &[u8],
    ) -> Step<()> {
        let want = Want { data: plan.need.data, meta: plan.need.meta, near: self.group(node.ino) };
        let space = match plan.need.is_zero() {
            true => None,
            false if !plan.only_converts() => Some(op.space(want)?),
            false => match op.space_if_any(want)?.filter(|space| space.meta() >= want.meta.into()) {
                Some(space) => Some(space),
                None => {
                    let core = op.core.clone();
                    plan = core.zero_out(&core.nodes.get(node.ino), state, plan)?;
                    None
                }
            },
        };
        self.file(node, state)?.write(plan, &*self.store, &*self.store, data)?;
        if let Some(space) = space {
            state.space.get_or_insert_default().merge(space);
        }
        Ok(())
    }

    /// Change the size of a regular file. The inode is pinned X and its gate is held alone.
    fn resize(&self, op: &mut Op<'_>, node: &Node, state: &mut NodeState, size: u64) -> Step<()> {
        self.finish_truncation(node, state)?;
        let old = self.file(node, state)?.size();
        if size > old {
            self.grow(op, node, state, size)?;
        } else if size < old {
            self.shrink(node, state, size)?;
        }
        self.note_write(node, state);
        Ok(())
    }
}

impl Fs {
    /// Change attributes; answers with the new ones.
    pub fn setattr(
        &self,
        node: NodeId,
        set: SetAttr,
        reply: impl FnOnce(Result<AttrReply>) + Send + 'static,
    ) {
        let ino = self.core.ino(node);
        if set.size.is_some() {
            // The kernel has the file to itself, and may make it shorter than it was.
            self.core.nodes.get(ino).flights.heard();
        }
        let body = move |op: &mut Op<'_>| -> Step<AttrReply> {
            let core = op.core.clone();
            let node = core.nodes.get(ino);
            let _alone = set.size.map(|_| node.gate.write());
            let mut state = node.state.lock();
            let attr = core.load(&node, &mut state)?;
            let kind = attr.kind;
            set.is_permitted(attr)?;
            core.check_writable()?;
            core.check_kept(&node, &mut state)?;
            // Earlier than what is set now.
            core.hand_in(&node, &mut state)?;
            if let Some(size) = set.size {
                match kind {
                    FileKind::Regular => {
                        core.drop_privileges(&node, &mut state, || !set.kill_set_id)?;
                        core.resize(op, &node, &mut state, size)?;
                    }
                    FileKind::Directory => return Err(Error::IsDirectory.into()),
                    _ => return Err(Error::Invalid("only regular files have a size to set").into()),
                }
            }
            if set.changes_more_than_size() || set.size.is_none() {
                state.unprivileged = false;
                let mut attr = core.load(&node, &mut state)?.clone();
                set.apply(&mut attr, core.now());
                match set.perm {
                    Some(_) => core.store_chmod(op, &node, &mut state, attr)?,
                    None => core.store_attr(&node, &mut state, attr)?,
                }
            }
            core.attr_reply(&node, &mut state)
        };
        // Only a new size keeps dirty pages from being written back, which a demotion waits for.
        match set.size {
            Some(_) => {
                let core = self.core.clone();
                let reply = move |done| core.after_telling(ino, move || reply(done));
                serving::run_late(&self.core, ino, Late::Size, Box::new(body), Box::new(reply));
            }
            None => op::run(&self.core, inode(ino, Mode::X), body, reply),
        }
    }
}
