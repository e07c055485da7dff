//! New inodes: create, mknod, mkdir, symlink.

use super::*;
use crate::alloc::Want;
use crate::inode::tree_costs;
use handles::OpenFlags;

/// What a new inode is to be.
#[derive(Clone)]
struct Plan {
    dir: InodeNo,
    name: Vec<u8>,
    kind: FileKind,
    /// Permission bits, the umask already applied.
    mode: u32,
    rdev: u32,
    target: Option<Vec<u8>>,
    caller: Caller,
}

/// Most a symbolic link's target may have.
const SYMLINK_MAX: usize = 4095;

impl Plan {
    fn want(&self, core: &Core) -> Want {
        let value = if self.target.is_some() { 2 } else { 0 };
        Want { data: 0, meta: 1 + value + tree_costs::NEW_BLOCKS, near: core.group(self.dir) }
    }

    fn attr(&self, ino: InodeNo, generation: Generation, dir: &Attr, now: Timestamp) -> Attr {
        let mut attr = Attr::new(ino, generation, self.kind, self.mode, now);
        attr.uid = self.caller.uid;
        attr.gid = self.caller.gid;
        attr.rdev = self.rdev;
        if dir.mode & libc::S_ISGID != 0 {
            attr.gid = dir.gid;
            if self.kind == FileKind::Directory {
                attr.mode |= libc::S_ISGID;
            }
        }
        if self.kind == FileKind::Directory {
            attr.nlink = 2;
            attr.parent = self.dir;
        }
        if let Some(target) = &self.target {
            attr.size = target.len() as u64;
        }
        attr
    }

    /// Insert the inode and its name in one transaction.
    fn execute(&self, op: &mut Op<'_>) -> Step<(InodeNo, Attr)> {
        check_name(&self.name)?;
        let core = op.core.clone();
        let space = op.space(self.want(&core))?;
        let node = core.nodes.get(self.dir);
        let mut state = node.state.lock();
        let mut dir_attr = core.load_dir(&node, &mut state)?.clone();
        if dir_attr.nlink == 0 {
            return Err(Error::NotFound.into());
        }
        let dir = core.dir(self.dir);
        if dir.lookup(&*core.store, &self.name)?.is_some() {
            return Err(Error::Exists.into());
        }
        if self.kind == FileKind::Directory && dir_attr.nlink == u32::MAX {
            return Err(Error::TooManyLinks.into());
        }
        let blocks = 4 + tree_costs::LOG_BLOCKS + tree_costs::NEW_BLOCKS;
        let mut txn = core.change(space, blocks)?;
        let (ino, generation) = txn.alloc_inode(self.dir.block())?;
        op.need_inode(ino, Mode::X)?;
        let now = core.now();
        let attr = self.attr(ino, generation, &dir_attr, now);
        core.tree(ino).create(&mut txn, &attr)?;
        if let Some(target) = &self.target {
            core.tree(ino).write_symlink(&mut txn, target)?;
        }
        dir.insert(&mut txn, &self.name, ino, generation, self.kind)?;
        if self.kind == FileKind::Directory {
            dir_attr.nlink += 1;
        }
        touch(&mut dir_attr, now);
        core.tree(self.dir).write_attr(&mut txn, &dir_attr)?;
        let id = txn.finish()?;
        state.attr = Some(dir_attr);
        state.last_txn = id;
        drop(state);
        core.adopt_new(ino, attr.clone(), id);
        Ok((ino, attr))
    }
}

impl Core {
    /// A fresh inode enters memory with its attributes known.
    fn adopt_new(&self, ino: InodeNo, attr: Attr, txn: crate::base::TxnId) {
        let node = self.nodes.get(ino);
        let mut state = node.state.lock();
        node.generation.store(attr.generation.0, Ordering::Release);
        node.stale_pages.store(true, Ordering::Release);
        state.file.load(attr.size);
        state.attr_dirty = false;
        state.write_error = None;
        state.attr = Some(attr);
        state.last_txn = txn;
    }
}

impl Fs {
    fn make(&self, plan: Plan, reply: impl FnOnce(Result<EntryReply>) + Send + 'static) {
        let locks = inode(plan.dir, Mode::X);
        let body = move |op: &mut Op<'_>| -> Step<EntryReply> {
            let (ino, attr) = plan.execute(op)?;
            Ok(op.core.entry_of(ino, attr))
        };
        op::run(&self.core, locks, Box::new(body), Box::new(reply));
    }

    /// Make a regular file, device node, fifo or socket. `mode` holds type and permission bits.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: Vec<u8>,
        mode: u32,
        rdev: u32,
        reply: impl FnOnce(Result<EntryReply>) + Send + 'static,
    ) {
        let Some(kind) = FileKind::from_mode(mode).filter(|k| *k != FileKind::Directory && *k != FileKind::Symlink)
        else {
            return reply(Err(Error::Invalid("file type")));
        };
        let dir = self.core.ino(parent);
        self.make(Plan { dir, name, kind, mode: mode & 0o7777, rdev, target: None, caller }, reply);
    }

    /// Make a directory.
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: Vec<u8>,
        mode: u32,
        reply: impl FnOnce(Result<EntryReply>) + Send + 'static,
    ) {
        let (dir, kind) = (self.core.ino(parent), FileKind::Directory);
        self.make(Plan { dir, name, kind, mode: mode & 0o7777, rdev: 0, target: None, caller }, reply);
    }

    /// Make a symbolic link.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: u64,
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
        let (dir, kind) = (self.core.ino(parent), FileKind::Symlink);
        self.make(Plan { dir, name, kind, mode: 0o777, rdev: 0, target: Some(target), caller }, reply);
    }

    /// Make a regular file and open it. A name that has appeared meanwhile is opened unless
    /// O_EXCL was asked for.
    pub fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: Vec<u8>,
        mode: u32,
        flags: i32,
        reply: impl FnOnce(Result<(EntryReply, OpenReply)>) + Send + 'static,
    ) {
        let dir = self.core.ino(parent);
        let plan = Plan { dir, name, kind: FileKind::Regular, mode: mode & 0o7777, rdev: 0, target: None, caller };
        let body = move |op: &mut Op<'_>| -> Step<(EntryReply, OpenReply)> {
            let core = op.core.clone();
            let (ino, attr) = match plan.execute(op) {
                Err(Stop::Fail(Error::Exists)) if flags & libc::O_EXCL == 0 => {
                    let found = core.dir(dir).lookup(&*core.store, &plan.name)?;
                    let ino = found.ok_or(Stop::Again)?.ino;
                    op.need_inode(ino, Mode::X)?;
                    let node = core.nodes.get(ino);
                    let attr = core.visible(&node, &mut node.state.lock())?;
                    (ino, attr)
                }
                other => other?,
            };
            let open = core.open_handle(op, ino, OpenFlags::new(flags))?;
            Ok((core.entry_of(ino, attr), open))
        };
        op::run(&self.core, inode(dir, Mode::X), Box::new(body), Box::new(reply));
    }
}
