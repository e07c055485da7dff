//! unlink and rmdir. The last link gone, a small file that nobody has open is freed in the same transaction;
//! any other inode becomes an orphan in it, and the reaper frees it when nobody anywhere holds it open.

use super::*;
use crate::alloc::Want;
use crate::dir::DirEntry;
use crate::inode::tree_costs;

/// Blocks a removal may change: two inodes, the directory's path, the orphan's path.
const REMOVE_BLOCKS: u32 = 4 + tree_costs::REMOVE_BLOCKS + tree_costs::LOG_BLOCKS;

/// A name that is going, and what it leads to. All is locked.
struct Removal<'a> {
    dir: InodeNo,
    entry: &'a DirEntry,
    parent: &'a Node,
    child: &'a Node,
}

type States<'a> = [(InodeNo, MutexGuard<'a, NodeState>)];

/// A directory gains or loses subdirectories.
///
/// # Errors
/// `Damaged` if its link count cannot be right: it would wrap, and the directory could end up as one
/// without a link. `TooManyLinks`.
pub(super) fn count_subdirectories(dir: &mut Attr, gain: i64) -> Result<()> {
    let count = i64::from(dir.nlink) + gain;
    if count < 1 {
        let what = format!("{} links, and a subdirectory to lose", dir.nlink);
        return Err(Error::Damaged { inode: dir.ino, what });
    }
    dir.nlink = u32::try_from(count).map_err(|_| Error::TooManyLinks)?;
    Ok(())
}

impl Core {
    /// Make an orphan of an inode whose last link goes in `txn`. The slot inode is locked.
    fn orphan(&self, change: &mut FreeingChange<'_>, ino: InodeNo, generation: Generation) -> Result<()> {
        reap::insert_orphan(&self.slot_tree, &mut change.txn, ino, generation)
    }

    /// One name of `ino` goes: count links, orphan the inode if it was the last.
    pub(super) fn drop_link(
        &self,
        change: &mut FreeingChange<'_>,
        attr: &mut Attr,
        now: Timestamp,
    ) -> Result<()> {
        attr.nlink = if attr.kind == FileKind::Directory { 0 } else { attr.nlink.saturating_sub(1) };
        touch_ctime(attr, now);
        if attr.nlink == 0 {
            self.orphan(change, attr.ino, attr.generation)?;
        }
        self.tree(attr.ino).write_attr(&mut change.txn, attr)
    }

    /// Shared by unlink and rmdir. Returns the inode if it has become an orphan.
    fn remove_name(
        &self,
        op: &mut Op<'_>,
        dir: InodeNo,
        name: &[u8],
        directory: bool,
    ) -> Step<Option<InodeNo>> {
        check_name(name)?;
        let parent = self.nodes.get(dir);
        let mut state = parent.state.lock();
        self.load_dir(&parent, &mut state)?;
        let found = self.dir(dir).lookup(&*self.store, name)?.ok_or(Error::NotFound)?;
        if let Err(stop) = op.need_inode(found.ino, Mode::X) {
            drop(state);
            self.missed_in(dir, found.ino);
            return Err(stop);
        }
        let child = self.nodes.get(found.ino);
        let mut states = if dir < found.ino {
            // In order already.
            SmallVec::from_iter([(dir, state), (found.ino, child.state.lock())])
        } else {
            drop(state);
            let states = lock_states(&[&parent, &child]);
            if self.dir(dir).lookup(&*self.store, name)?.as_ref() != Some(&found) {
                return Err(Stop::Again);
            }
            states
        };
        flags::may_lose(self.load(&parent, state_of(&mut states, dir))?)?;
        let attr = self.load_named(&child, state_of(&mut states, found.ino))?;
        flags::may_lose(attr)?;
        let kind = attr.kind;
        match (directory, kind == FileKind::Directory) {
            (true, false) => return Err(Error::NotDirectory.into()),
            (false, true) => return Err(Error::IsDirectory.into()),
            (true, true) if !self.dir(found.ino).is_empty(&*self.store)? => {
                return Err(Error::NotEmpty.into());
            }
            _ => {}
        }
        let removal = Removal { dir, entry: &found, parent: &parent, child: &child };
        match self.remove_with_inode(&removal, &mut states) {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            // Undone: as an orphan it has all that it may need for its end.
            Err(e) => tracing::debug!(inode = found.ino.0, "not freed together with its name: {e}"),
        }
        self.remove_and_orphan(op, &removal, &mut states)
    }

    /// The entry goes, and with it the inode, if this was its last name, nobody has it open and it can be
    /// freed here and now. `false`: nothing has happened.
    fn remove_with_inode(&self, removal: &Removal<'_>, states: &mut States<'_>) -> Result<bool> {
        let Removal { dir, entry, parent, child } = *removal;
        let mut attr = self.load_named(child, state_of(states, entry.ino))?.clone();
        let Some(unused) = self.unused(child, &attr) else { return Ok(false) };
        let mut dir_attr = self.load(parent, state_of(states, dir))?.clone();
        let now = self.now();
        let mut change = self.change_freeing(None, REMOVE_BLOCKS)?;
        // First: what is set aside for frees is enough for it.
        if !self.free_unused(&mut change, entry.ino, &unused)? {
            return Ok(false);
        }
        self.dir(dir).remove_entry(&mut change.txn, entry)?;
        touch(&mut dir_attr, now);
        self.tree(dir).write_attr(&mut change.txn, &dir_attr)?;
        // Before anybody can find the block free.
        self.alloc.withhold(entry.ino);
        let id = change.txn.finish().inspect_err(|_| self.alloc.admit(entry.ino))?;
        let state = state_of(states, dir);
        (state.attr, state.last_txn) = (Some(dir_attr), id);
        attr.nlink = 0;
        touch_ctime(&mut attr, now);
        let state = state_of(states, entry.ino);
        state.last_txn = id;
        self.has_gone(child, state, attr);
        Ok(true)
    }

    /// The entry goes, and one link of what it leads to.
    fn remove_and_orphan(
        &self,
        op: &mut Op<'_>,
        removal: &Removal<'_>,
        states: &mut States<'_>,
    ) -> Step<Option<InodeNo>> {
        let Removal { dir, entry, parent, child } = *removal;
        // The orphan's item may need a block.
        let space = op.space_if_any(Want { data: 0, meta: tree_costs::NEW_BLOCKS, near: self.group(dir) })?;
        let mut dir_attr = self.load(parent, state_of(states, dir))?.clone();
        let mut child_attr = self.load_named(child, state_of(states, entry.ino))?.clone();
        let now = self.now();
        let mut change = self.change_freeing(space, REMOVE_BLOCKS)?;
        self.dir(dir).remove_entry(&mut change.txn, entry)?;
        self.drop_link(&mut change, &mut child_attr, now)?;
        if child_attr.kind == FileKind::Directory {
            count_subdirectories(&mut dir_attr, -1)?;
        }
        touch(&mut dir_attr, now);
        self.tree(dir).write_attr(&mut change.txn, &dir_attr)?;
        let id = change.txn.finish()?;
        let orphaned = (child_attr.nlink == 0).then_some(entry.ino);
        for (ino, attr) in [(dir, dir_attr), (entry.ino, child_attr)] {
            let state = state_of(states, ino);
            (state.attr, state.last_txn) = (Some(attr), id);
        }
        Ok(orphaned)
    }
}

impl Fs {
    fn remove(
        &self,
        parent: NodeId,
        name: Vec<u8>,
        directory: bool,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let dir = self.core.ino(parent);
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let core = op.core.clone();
            if let Some(ino) = core.remove_name(op, dir, &name, directory)? {
                core.reaper.unlinked(&core, ino);
            }
            Ok(())
        };
        op::run(&self.core, inode(dir, Mode::X), body, reply);
    }

    /// Remove a name that is not a directory's.
    pub fn unlink(&self, parent: NodeId, name: Vec<u8>, reply: impl FnOnce(Result<()>) + Send + 'static) {
        self.remove(parent, name, false, reply);
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: Vec<u8>, reply: impl FnOnce(Result<()>) + Send + 'static) {
        self.remove(parent, name, true, reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_never_loses_its_own_links() {
        let now = Timestamp::default();
        let mut dir = Attr::new(InodeNo(7), Generation(1), FileKind::Directory, 0o755, now);
        let mut counted = |nlink, gain| {
            dir.nlink = nlink;
            count_subdirectories(&mut dir, gain).map(|()| dir.nlink)
        };
        assert_eq!(counted(3, -1), Ok(2));
        assert_eq!(counted(2, 0), Ok(2));
        assert_eq!(counted(2, 1), Ok(3));
        assert_eq!(counted(u32::MAX, 1), Err(Error::TooManyLinks));
        for damaged in [0, 1] {
            let lost = counted(damaged, -1);
            assert!(matches!(lost, Err(Error::Damaged { inode: InodeNo(7), .. })), "{lost:?}");
        }
    }
}
