//! rename, with NOREPLACE, EXCHANGE and WHITEOUT.
//!
//! A directory that moves between parents changes its `..`, so the cluster's rename lock is held:
//! under it ancestry stands still, and the new parent's ancestors can be walked to make sure that
//! the directory does not move below itself.
//!
//! Programs replace a file by writing a new one and renaming it over the old one, often without fsync.
//! After a crash there must be the old content or the new, so the data of the new file goes out before
//! the rename is done. It goes out without the directories' locks.
//!
//! With RENAME_WHITEOUT a character device 0:0 takes the old name, in the same transaction: overlayfs, whose layers
//! below have that name too, hides it by that.

use super::*;
use crate::alloc::{PickedInode, Want};
use crate::dir::DirEntry;
use crate::inode::tree_costs;
use create::Plan;
use node::NodeState;
use op::Reply;
use remove::count_subdirectories;

/// Log blocks, those of an inode that is left behind among them.
const RENAME_BLOCKS: u32 = 12 + 4 * tree_costs::LOG_BLOCKS + 2 * tree_costs::NEW_BLOCKS;
/// Deeper than any path the kernel lets a program name; a longer chain is a loop on the disk.
const ANCESTORS_MAX: usize = 100_000;

/// The arguments.
#[derive(Clone)]
struct Rename {
    from: InodeNo,
    name: Vec<u8>,
    to: InodeNo,
    new_name: Vec<u8>,
    no_replace: bool,
    exchange: bool,
    /// What is to stand at the old name.
    whiteout: Option<Plan>,
    /// The source's data has been written already, but for what has come since.
    flushed: bool,
}

/// What came of running it.
enum Outcome {
    /// The name has moved; this inode has lost its last one.
    Moved(Option<InodeNo>),
    /// Nothing was done: the data of this inode has to be written first.
    Unwritten(InodeNo),
}

/// The attributes of the up to four inodes, under their locked states.
struct Parties {
    from: Attr,
    to: Attr,
    source: Attr,
    target: Option<Attr>,
    /// Made by the change.
    whiteout: Option<Attr>,
}

impl Rename {
    fn find(&self, core: &Core) -> Step<(DirEntry, Option<DirEntry>)> {
        let look = |dir: InodeNo, name: &[u8]| -> Result<Option<DirEntry>> {
            let node = core.nodes.get(dir);
            let mut state = node.state.lock();
            core.load_dir(&node, &mut state)?;
            core.dir(dir).lookup(&*core.store, name)
        };
        let source = look(self.from, &self.name)?.ok_or(Error::NotFound)?;
        let target = look(self.to, &self.new_name)?;
        match (&target, self.no_replace, self.exchange) {
            (Some(_), true, _) => Err(Error::Exists.into()),
            (None, _, true) => Err(Error::NotFound.into()),
            _ => Ok((source, target)),
        }
    }

    /// Would `moved` become its own ancestor? The rename lock is held.
    fn check_ancestors(&self, op: &mut Op<'_>, moved: InodeNo, new_parent: InodeNo) -> Step<()> {
        let core = op.core.clone();
        let mut at = new_parent;
        for _ in 0..ANCESTORS_MAX {
            if at == moved {
                return Err(Error::Invalid("a directory cannot move below itself").into());
            }
            if at == core.root {
                return Ok(());
            }
            op.need_inode(at, Mode::S)?;
            let node = core.nodes.get(at);
            let mut state = node.state.lock();
            // The kernel names the new parent. The others are found by their children: it may know another
            // inode, long gone, by the number.
            let found = match at == new_parent {
                true => core.load_dir(&node, &mut state)?,
                false => core.load_named(&node, &mut state)?,
            };
            if found.kind != FileKind::Directory {
                let what = "it is the parent of a directory, and none itself".into();
                return Err(Error::Damaged { inode: at, what }.into());
            }
            // Removed, and kept by who has it open: what was above it may be anything by now.
            if found.nlink == 0 {
                return Err(Error::NotFound.into());
            }
            let next = found.parent;
            drop(state);
            at = next;
        }
        Err(Error::Damaged {
            inode: new_parent,
            what: "its chain of parents does not end at the root".into(),
        }
        .into())
    }

    /// Get what the rename of `source` over `target` needs, and check ancestry.
    fn prepare(&self, op: &mut Op<'_>, source: &DirEntry, target: Option<&DirEntry>) -> Step<()> {
        let crosses = self.from != self.to;
        let moves_directory = |e: &DirEntry| e.kind == FileKind::Directory && crosses;
        if moves_directory(source) || (self.exchange && target.is_some_and(moves_directory)) {
            op.need(LockName::Rename, Mode::X)?;
        }
        op.need_inode(source.ino, Mode::X)?;
        if let Some(t) = target {
            op.need_inode(t.ino, Mode::X)?;
        }
        if moves_directory(source) {
            self.check_ancestors(op, source.ino, self.to)?;
        }
        if let Some(t) = target.filter(|t| self.exchange && moves_directory(t)) {
            self.check_ancestors(op, t.ino, self.from)?;
        }
        Ok(())
    }

    fn check_kinds(&self, core: &Core, p: &Parties) -> Result<()> {
        let Some(target) = p.target.as_ref().filter(|_| !self.exchange) else { return Ok(()) };
        match (p.source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
            (true, false) => Err(Error::NotDirectory),
            (false, true) => Err(Error::IsDirectory),
            (true, true) if !core.dir(target.ino).is_empty(&*core.store)? => Err(Error::NotEmpty),
            _ => Ok(()),
        }
    }

    /// Would the change put unwritten data in the place of a file?
    fn replaces_by_unwritten(&self, core: &Core, source: &DirEntry, target: &DirEntry) -> bool {
        let source = core.nodes.find(source.ino);
        target.kind == FileKind::Regular
            && !self.flushed
            && source.is_some_and(|n| n.state.lock().file.as_ref().is_some_and(|f| f.is_dirty()))
    }

    /// Is the source's data out, so that it may take the place of `target`? Many programs replace a file
    /// without fsync: after a crash the name has all of the old file or all of the new one.
    fn is_written(&self, core: &Arc<Core>, source: &DirEntry, target: &DirEntry) -> Step<bool> {
        if self.exchange {
            return Ok(true);
        }
        if self.replaces_by_unwritten(core, source, target) {
            return Ok(false);
        }
        if source.kind == FileKind::Regular {
            // The data's transaction comes before ours in the log. What was overwritten in place has none of
            // its own, and must not come after ours either.
            match core.flush_node(&core.nodes.get(source.ino)) {
                Err(Error::NeedSpace) => return Ok(false),
                flushed => flushed?,
            }
            core.store.order_overwrites();
        }
        Ok(true)
    }

    /// What the change may take. What replaces nothing frees nothing: it has no part in the share that is kept for
    /// removals, nor has what leaves a new inode behind.
    fn space(&self, op: &mut Op<'_>, replaces: bool) -> Step<Option<Reservation>> {
        let whiteout = u32::from(self.whiteout.is_some());
        let want =
            Want { data: 0, meta: 2 * tree_costs::NEW_BLOCKS + whiteout, near: op.core.group(self.to) };
        match replaces && self.whiteout.is_none() {
            true => op.space_if_any(want),
            false => op.space(want).map(Some),
        }
    }

    /// The number of what is to stand at the old name, its lock held: whoever had it may be on his way out.
    fn pick(&self, op: &mut Op<'_>, space: Option<&mut Reservation>) -> Step<Option<PickedInode>> {
        let Some((_, space)) = self.whiteout.as_ref().zip(space) else { return Ok(None) };
        let picked = op.core.alloc.pick_inode(space, self.from.block())?;
        op.need_inode(picked.ino(), Mode::X)?;
        Ok(Some(picked))
    }

    fn execute(&self, op: &mut Op<'_>) -> Step<Outcome> {
        check_name(&self.name)?;
        check_name(&self.new_name)?;
        let core = op.core.clone();
        let (source, target) = self.find(&core)?;
        let mut space = self.space(op, target.is_some())?;
        self.prepare(op, &source, target.as_ref())?;
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            return Ok(Outcome::Moved(None));
        }
        if let Some(target) = &target
            && !self.is_written(&core, &source, target)?
        {
            return Ok(Outcome::Unwritten(source.ino));
        }
        let picked = self.pick(op, space.as_mut())?;
        let involved = [Some(self.from), Some(self.to), Some(source.ino), target.as_ref().map(|t| t.ino)];
        let nodes: Vec<_> = involved.into_iter().flatten().map(|i| core.nodes.get(i)).collect();
        let refs: Vec<&Arc<Node>> = nodes.iter().collect();
        let mut states = lock_states(&refs);
        for (dir, name, expected) in [
            (self.from, &self.name, Some(source.ino)),
            (self.to, &self.new_name, target.as_ref().map(|t| t.ino)),
        ] {
            if core.dir(dir).lookup(&*core.store, name)?.map(|e| e.ino) != expected {
                return Err(Stop::Again);
            }
        }
        let mut attr = |ino: InodeNo| -> Result<Attr> {
            let node = core.nodes.get(ino);
            let state = state_of(&mut states, ino);
            let by_number = ino == self.from || ino == self.to;
            if by_number { core.load(&node, state) } else { core.load_named(&node, state) }.cloned()
        };
        let mut parties = Parties {
            from: attr(self.from)?,
            to: attr(self.to)?,
            source: attr(source.ino)?,
            target: target.as_ref().map(|t| attr(t.ino)).transpose()?,
            whiteout: None,
        };
        if parties.to.nlink == 0 {
            return Err(Error::NotFound.into());
        }
        flags::may_rename(&parties.from, &parties.to, &parties.source, parties.target.as_ref())?;
        self.check_kinds(&core, &parties)?;
        let mut change = core.change_freeing(space, RENAME_BLOCKS)?;
        if self.exchange {
            self.swap(&core, &mut change, &mut parties)?;
        } else {
            self.replace(&core, &mut change, &mut parties, picked)?;
        }
        let id = change.txn.finish()?;
        drop(change._slot);
        let orphan = parties.target.as_ref().filter(|t| t.nlink == 0).map(|t| t.ino);
        let whiteout = parties.whiteout.take();
        self.keep(&mut states, parties, id);
        drop(states);
        if let Some(attr) = whiteout {
            core.adopt_new(attr.ino, attr, id);
        }
        Ok(Outcome::Moved(orphan))
    }

    /// Run it. Data that must be written first is, and it runs once more.
    fn start(self, core: &Arc<Core>, reply: Reply<()>) {
        let mut locks = inode(self.from, Mode::X);
        locks.add(LockName::Inode(self.to), Mode::X);
        let job = self.clone();
        let body = move |op: &mut Op<'_>| -> Step<Outcome> { job.execute(op) };
        let again = core.clone();
        let done = move |outcome: Result<Outcome>| match outcome {
            Ok(Outcome::Moved(orphan)) => {
                if let Some(orphan) = orphan {
                    again.reaper.unlinked(&again, orphan);
                }
                reply(Ok(()));
            }
            Ok(Outcome::Unwritten(ino)) => Rename { flushed: true, ..self }.flush_first(&again, ino, reply),
            Err(e) => reply(Err(e)),
        };
        op::run(core, locks, body, done);
    }

    fn flush_first(self, core: &Arc<Core>, ino: InodeNo, reply: Reply<()>) {
        let body = move |op: &mut Op<'_>| -> Step<()> {
            let (core, node) = (op.core.clone(), op.core.nodes.get(ino));
            core.flush_in(op, &node, Core::flush_node)
        };
        let again = core.clone();
        let done = move |flushed: Result<()>| match flushed {
            Ok(()) => self.start(&again, reply),
            Err(e) => reply(Err(e)),
        };
        op::run(core, inode(ino, Mode::X), body, done);
    }

    /// The ordinary case: the name moves, what stood at the new name loses a link.
    fn replace(
        &self,
        core: &Core,
        change: &mut FreeingChange<'_>,
        p: &mut Parties,
        picked: Option<PickedInode>,
    ) -> Result<()> {
        let now = core.now();
        match self.whiteout.as_ref().zip(picked) {
            Some((plan, picked)) => p.whiteout = Some(self.leave(core, change, &p.from, (plan, picked))?),
            None => drop(core.dir(self.from).remove(&mut change.txn, &self.name)?),
        }
        if let Some(target) = &mut p.target {
            core.dir(self.to).remove(&mut change.txn, &self.new_name)?;
            if target.kind == FileKind::Directory {
                count_subdirectories(&mut p.to, -1)?;
                if self.from == self.to {
                    count_subdirectories(&mut p.from, -1)?;
                }
            }
            core.drop_link(change, target, now)?;
        }
        let s = &mut p.source;
        core.dir(self.to).insert(&mut change.txn, &self.new_name, s.ino, s.generation, s.kind)?;
        touch_ctime(s, now);
        if s.kind == FileKind::Directory && self.from != self.to {
            count_subdirectories(&mut p.from, -1)?;
            count_subdirectories(&mut p.to, 1)?;
            s.parent = self.to;
        }
        core.tree(s.ino).write_attr(&mut change.txn, s)?;
        self.write_parents(core, change, p, now)
    }

    /// RENAME_WHITEOUT: a new inode takes the old name.
    fn leave(
        &self,
        core: &Core,
        change: &mut FreeingChange<'_>,
        dir: &Attr,
        (plan, picked): (&Plan, PickedInode),
    ) -> Result<Attr> {
        let ino = picked.ino();
        let generation = change.txn.use_inode(picked)?;
        let attr = Attr { ino, generation, ..plan.attr(0, dir, core.now()) };
        core.tree(ino).create(&mut change.txn, &attr)?;
        core.dir(self.from).replace(&mut change.txn, &self.name, ino, generation, attr.kind)?;
        Ok(attr)
    }

    /// RENAME_EXCHANGE: both names stay, their inodes change places.
    fn swap(&self, core: &Core, change: &mut FreeingChange<'_>, p: &mut Parties) -> Result<()> {
        let now = core.now();
        let target = p.target.as_mut().expect("find() insists on it for an exchange");
        let s = &mut p.source;
        core.dir(self.from).replace(
            &mut change.txn,
            &self.name,
            target.ino,
            target.generation,
            target.kind,
        )?;
        core.dir(self.to).replace(&mut change.txn, &self.new_name, s.ino, s.generation, s.kind)?;
        if self.from != self.to {
            for (moved, parent) in [(&mut *s, self.to), (&mut *target, self.from)] {
                if moved.kind == FileKind::Directory {
                    moved.parent = parent;
                }
            }
            let gain =
                i64::from(s.kind == FileKind::Directory) - i64::from(target.kind == FileKind::Directory);
            count_subdirectories(&mut p.to, gain)?;
            count_subdirectories(&mut p.from, -gain)?;
        }
        for moved in [s, target] {
            touch_ctime(moved, now);
            core.tree(moved.ino).write_attr(&mut change.txn, moved)?;
        }
        self.write_parents(core, change, p, now)
    }

    fn write_parents(
        &self,
        core: &Core,
        change: &mut FreeingChange<'_>,
        p: &mut Parties,
        now: Timestamp,
    ) -> Result<()> {
        touch(&mut p.from, now);
        core.tree(self.from).write_attr(&mut change.txn, &p.from)?;
        if self.from == self.to {
            return Ok(());
        }
        touch(&mut p.to, now);
        core.tree(self.to).write_attr(&mut change.txn, &p.to)
    }

    /// The new attributes enter memory.
    fn keep(&self, states: &mut [(InodeNo, MutexGuard<'_, NodeState>)], p: Parties, id: crate::base::TxnId) {
        let same = self.from == self.to;
        let all = [Some(p.from), (!same).then_some(p.to), Some(p.source), p.target];
        for attr in all.into_iter().flatten() {
            let state = state_of(states, attr.ino);
            state.attr = Some(attr);
            state.last_txn = id;
        }
    }
}

impl Fs {
    /// Rename or exchange. An existing target is replaced atomically. With `whiteout` a character device 0:0 of
    /// `caller` takes the old name.
    pub fn rename(
        &self,
        caller: Caller,
        (parent, name): (NodeId, Vec<u8>),
        (new_parent, new_name): (NodeId, Vec<u8>),
        flags: RenameFlags,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        if flags.exchange && (flags.whiteout || flags.no_replace) {
            return reply(Err(Error::Invalid("rename flags")));
        }
        let core = &self.core;
        let new = NewNode { kind: FileKind::CharDevice, perm: 0, umask: 0, rdev: 0 };
        let whiteout = flags.whiteout.then(|| Plan::new(core, caller, parent, Vec::new(), new));
        let job = Rename {
            from: core.ino(parent),
            name,
            to: core.ino(new_parent),
            new_name,
            no_replace: flags.no_replace,
            exchange: flags.exchange,
            whiteout,
            flushed: false,
        };
        job.start(core, Box::new(reply));
    }
}
