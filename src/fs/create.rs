//! New inodes: create, mknod, mkdir, symlink.

use super::acl::Inherited;
use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;
use crate::lock::Pins;
use handles::OpenFlags;

/// What a new inode is to be.
#[derive(Clone)]
pub(super) struct Plan {
    pub dir: InodeNo,
    name: Vec<u8>,
    pub new: NewNode,
    target: Option<Vec<u8>>,
    caller: Caller,
}

/// Most a symbolic link's target may have.
const SYMLINK_MAX: usize = 4095;

impl Plan {
    pub fn new(core: &Core, caller: Caller, parent: NodeId, name: Vec<u8>, new: NewNode) -> Plan {
        Plan { dir: core.ino(parent), name, new, target: None, caller }
    }

    fn want(&self, core: &Core, inherited: &Inherited) -> Want {
        let value = if self.target.is_some() { 2 } else { 0 } + inherited.blocks();
        Want { data: 0, meta: 1 + value + tree_costs::NEW_BLOCKS, near: core.group(self.dir) }
    }

    /// The attributes, all but those that come with the number.
    pub fn attr(&self, mode: u32, dir: &Attr, now: Timestamp) -> Attr {
        let mut attr = Attr::new(InodeNo(0), Generation(0), self.new.kind, mode, now);
        attr.uid = self.caller.uid;
        attr.gid = self.caller.gid;
        attr.rdev = self.new.rdev;
        if dir.mode & libc::S_ISGID != 0 {
            attr.gid = dir.gid;
            if self.new.kind == FileKind::Directory {
                attr.mode |= libc::S_ISGID;
            }
        }
        if self.new.kind == FileKind::Directory {
            attr.nlink = 2;
            attr.parent = self.dir;
        }
        if let Some(target) = &self.target {
            attr.size = target.len() as u64;
        }
        attr
    }

    /// Insert the inode and its name in one transaction.
    /// With `open` its iopen lock comes along: once the name is in, nothing may be missing any more.
    fn execute(&self, op: &mut Op<'_>, open: bool) -> Step<(Arc<Node>, Attr, Option<Pins>)> {
        check_name(&self.name)?;
        let core = op.core.clone();
        let node = core.nodes.get(self.dir);
        let mut state = node.state.lock();
        let mut dir_attr = core.load_dir(&node, &mut state)?.clone();
        let inherited = Inherited::new(&self.new, core.default_acl(self.dir, &mut state)?.as_deref());
        let mut space = op.space(self.want(&core, &inherited))?;
        if dir_attr.nlink == 0 {
            return Err(Error::NotFound.into());
        }
        let dir = core.dir(self.dir);
        let vacancy = dir.vacancy(&*core.store, &self.name)?;
        flags::may_change(&dir_attr)?;
        if self.new.kind == FileKind::Directory && dir_attr.nlink == u32::MAX {
            return Err(Error::TooManyLinks.into());
        }
        let blocks = 4 + tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS + inherited.blocks();
        let picked = core.alloc.pick_inode(&mut space, self.dir.block())?;
        let ino = picked.ino();
        // Before there is a block for it: the lock of one that had the number may be on its way out, and
        // what is cached under it with it.
        op.need_inode(ino, Mode::X)?;
        let iopen = if open { Some(op.pin_apart(LockName::IOpen(ino), Mode::S)?) } else { None };
        let mut txn = core.change(space, blocks)?;
        let generation = txn.use_inode(picked)?;
        let now = core.now();
        let attr = Attr { ino, generation, ..self.attr(inherited.mode, &dir_attr, now) };
        core.tree(ino).create(&mut txn, &attr)?;
        inherited.store(&core.tree(ino), &mut txn)?;
        if let Some(target) = &self.target {
            core.tree(ino).write_symlink(&mut txn, target)?;
        }
        dir.fill(&mut txn, vacancy, &self.name, ino, generation, self.new.kind)?;
        if self.new.kind == FileKind::Directory {
            dir_attr.nlink += 1;
        }
        touch(&mut dir_attr, now);
        core.tree(self.dir).write_attr(&mut txn, &dir_attr)?;
        let id = txn.finish()?;
        state.attr = Some(dir_attr);
        state.last_txn = id;
        drop(state);
        Ok((core.adopt_new(ino, attr.clone(), id), attr, iopen))
    }
}

impl Core {
    /// A fresh inode enters memory with its attributes known.
    pub(super) fn adopt_new(&self, ino: InodeNo, attr: Attr, txn: crate::base::TxnId) -> Arc<Node> {
        let node = self.nodes.get(ino);
        let mut state = node.state.lock();
        node.stale_pages.store(true, Ordering::Release);
        node.nameless.store(false, Ordering::Release);
        *state = NodeState { attr: Some(attr), last_txn: txn, ..NodeState::default() };
        drop(state);
        node
    }
}

impl Fs {
    fn make(&self, plan: Plan, reply: impl FnOnce(Result<EntryReply>) + Send + 'static) {
        let locks = inode(plan.dir, Mode::X);
        let body = move |op: &mut Op<'_>| -> Step<EntryReply> {
            let (node, attr, _) = plan.execute(op, false)?;
            Ok(op.core.entry_of(&node, (attr, 0)))
        };
        op::run(&self.core, locks, body, reply);
    }

    /// Make a regular file, directory, device node, fifo or socket.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Vec<u8>,
        new: NewNode,
        reply: impl FnOnce(Result<EntryReply>) + Send + 'static,
    ) {
        if new.kind == FileKind::Symlink {
            return reply(Err(Error::Invalid("file type")));
        }
        self.make(Plan::new(&self.core, caller, parent, name, new), reply);
    }

    /// Make a symbolic link.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Vec<u8>,
        target: Vec<u8>,
        reply: impl FnOnce(Result<EntryReply>) + Send + 'static,
    ) {
        if target.is_empty() {
            return reply(Err(Error::NotFound));
        }
        if target.len() > SYMLINK_MAX {
            return reply(Err(Error::NameTooLong));
        }
        let new = NewNode { kind: FileKind::Symlink, perm: 0o777, umask: 0, rdev: 0 };
        let plan = Plan { target: Some(target), ..Plan::new(&self.core, caller, parent, name, new) };
        self.make(plan, reply);
    }

    /// Make a regular file and open it. If the name has appeared since the kernel looked and O_EXCL was not
    /// asked for, the kernel is sent to look again: then it checks permissions and truncates, as for any
    /// file, which it does not for one that it takes for new.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Vec<u8>,
        new: NewNode,
        flags: i32,
        reply: impl FnOnce(Result<(EntryReply, OpenReply)>) + Send + 'static,
    ) {
        let plan = Plan::new(&self.core, caller, parent, name, new);
        let dir = plan.dir;
        let body = move |op: &mut Op<'_>| -> Step<(EntryReply, OpenReply)> {
            let core = op.core.clone();
            // Locks that opening needs come before anything is changed.
            let (node, attr, iopen) = match plan.execute(op, true) {
                Err(Stop::Fail(Error::Exists)) if flags & libc::O_EXCL == 0 => {
                    return Err(Error::Stale.into());
                }
                made => made?,
            };
            let open = core.open_handle(op, node.clone(), OpenFlags::new(flags), iopen)?;
            Ok((core.entry_of(&node, (attr, 0)), open))
        };
        op::run(&self.core, inode(dir, Mode::X), body, reply);
    }
}
