//! One host: production code from the operations down, on a port of a simulated disk. No kernel:
//! each call looks its path up, does its work and forgets.

mod kept;

use crate::common::port::Port;
use crate::common::simdisk::SimDisk;
use shoal::base::{Error, Result};
use shoal::device::Fitness;
use shoal::device::probe::Identity;
use shoal::fs::mount::{Backing, start_wrapped};
use shoal::fs::operations::Operations;
use shoal::fs::{
    Caller, DirEntryOut, DirSink, EntryReply, FenceWish, Fs, KernelCache, LookupReply, MountOptions, NewNode,
    NodeId, ReadFlags, RenameFlags, SetAttr, Statfs, TrimRange, WriteFlags,
};
use shoal::inode::FileKind;
use shoal::lock::Demoter;
use shoal::xattr::SetHow;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

/// A request that is not answered for so long hangs.
const HANG: Duration = Duration::from_secs(90);
const READ_BYTES: u32 = 1 << 20;
/// The whole volume, to be trimmed.
pub const ALL: TrimRange = TrimRange { start: 0, length: u64::MAX, least: 0 };

/// A kernel that remembers nothing.
pub struct NoKernel;

impl KernelCache for NoKernel {
    fn inval_inode(&self, _: NodeId, _: i64, _: i64) -> io::Result<()> {
        Ok(())
    }
    fn abort(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A mount.
pub struct Host {
    pub fs: Arc<Fs>,
    pub port: Arc<Port>,
}

type Answer<T> = Box<dyn FnOnce(Result<T>) + Send>;

fn ask<T: Send + 'static>(what: &str, go: impl FnOnce(Answer<T>)) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    go(Box::new(move |result| {
        let _ = sender.send(result);
    }));
    match receiver.recv_timeout(HANG) {
        Ok(result) => result,
        Err(e) => panic!("{what} was not answered: {e}"),
    }
}

/// How a file is opened for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Buffered,
    Direct,
    Sync,
    DataSync,
    Append,
}

impl How {
    fn flags(self) -> i32 {
        libc::O_RDWR
            | match self {
                How::Buffered => 0,
                How::Direct => libc::O_DIRECT,
                How::Sync => libc::O_SYNC,
                How::DataSync => libc::O_DSYNC,
                How::Append => libc::O_APPEND,
            }
    }
}

/// Inodes that a call has looked up.
struct Known<'a> {
    host: &'a Host,
    found: Vec<NodeId>,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.found.drain(..).for_each(|node| Operations::forget(&*self.host.fs, node, 1));
    }
}

/// Parent path and name.
pub fn split(path: &str) -> (&str, &[u8]) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (dir, name.as_bytes())
}

impl Known<'_> {
    fn keep(&mut self, entry: EntryReply) -> EntryReply {
        self.found.push(entry.ino);
        entry
    }

    fn lookup(&mut self, dir: NodeId, name: &[u8]) -> Result<EntryReply> {
        match ask("lookup", |reply| Operations::lookup(&*self.host.fs, dir, name, reply))? {
            LookupReply::Found(entry) => Ok(self.keep(entry)),
            LookupReply::Missing { .. } => Err(Error::NotFound),
        }
    }

    fn walk(&mut self, path: &str) -> Result<NodeId> {
        let mut at = NodeId::ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = self.lookup(at, name.as_bytes())?.ino;
        }
        Ok(at)
    }

    /// Do something with an open file.
    fn with_open<T>(
        &mut self,
        path: &str,
        flags: i32,
        f: impl FnOnce(NodeId, u64) -> Result<T>,
    ) -> Result<T> {
        let node = self.walk(path)?;
        let fs = &*self.host.fs;
        let open = ask("open", |reply| Operations::open(fs, node, flags, Caller::default(), reply))?;
        let result = f(node, open.fh);
        let flushed = ask("flush", |reply| Operations::flush(fs, node, open.fh, 0, reply));
        ask("release", |reply| Operations::release(fs, node, open.fh, reply))?;
        result.and_then(|value| flushed.map(|()| value))
    }
}

/// Names of one listing, each with its cookie.
type Listed = Vec<(Vec<u8>, u64)>;

struct Names {
    found: Listed,
    done: mpsc::Sender<Result<Listed>>,
}

impl DirSink for Names {
    fn wants_attributes(&self) -> bool {
        false
    }
    fn add(&mut self, entry: &DirEntryOut<'_>) -> bool {
        self.found.push((entry.name.to_vec(), entry.cookie));
        self.found.len() < 100
    }
    fn done(self: Box<Self>, result: Result<()>) {
        let Names { found, done } = *self;
        let _ = done.send(result.map(|()| found));
    }
}

impl Host {
    /// Mount what is on `disk`. All hosts are one machine, so the dead are provably gone.
    pub fn mount(disk: &Arc<SimDisk>, name: &str) -> Result<Host> {
        Host::mount_with(disk, name, Duration::from_secs(1))
    }

    /// As [`Host::mount`]; changes are committed after `commit` at the latest.
    pub fn mount_with(disk: &Arc<SimDisk>, name: &str, commit: Duration) -> Result<Host> {
        Host::mount_wrapped(disk, name, commit, &|demoter| demoter)
    }

    /// As [`Host::mount_with`], with something between the locks and what their loss empties.
    pub fn mount_wrapped(
        disk: &Arc<SimDisk>,
        name: &str,
        commit: Duration,
        wrap: &dyn Fn(Arc<dyn Demoter>) -> Arc<dyn Demoter>,
    ) -> Result<Host> {
        Host::mount_on(Port::new(disk), name, commit, Arc::new(NoKernel), wrap)
    }

    /// As [`Host::mount`], with a kernel of one's own before it.
    pub fn mount_before(disk: &Arc<SimDisk>, name: &str, kernel: Arc<dyn KernelCache>) -> Result<Host> {
        Host::mount_on(Port::new(disk), name, Duration::from_secs(1), kernel, &|demoter| demoter)
    }

    /// As [`Host::mount`], on a port that somebody may cut meanwhile.
    pub fn mount_by(port: Arc<Port>, name: &str) -> Result<Host> {
        Host::mount_on(port, name, Duration::from_secs(1), Arc::new(NoKernel), &|demoter| demoter)
    }

    fn mount_on(
        port: Arc<Port>,
        name: &str,
        commit: Duration,
        kernel: Arc<dyn KernelCache>,
        wrap: &dyn Fn(Arc<dyn Demoter>) -> Arc<dyn Demoter>,
    ) -> Result<Host> {
        let mut options = MountOptions::new("simulated".into());
        options.host_name = Some(name.into());
        options.commit_interval = commit;
        options.cache_bytes = 8 << 20;
        options.dirty_bytes = 16 << 20;
        let machine_id = Some([9; 16]);
        let identity =
            Identity { dev: 1, ino: 1, rdev: 0, boot_id: [1; 16], machine_id, local_filesystem: true };
        Host::mount_as(port, options, kernel, identity, wrap)
    }

    /// On a machine of its own, whose device keeps hosts off if it is asked to.
    pub fn mount_elsewhere(port: Arc<Port>, name: &str, fence: FenceWish) -> Result<Host> {
        let mut options = MountOptions::new("simulated".into());
        options.host_name = Some(name.into());
        options.cache_bytes = 8 << 20;
        options.dirty_bytes = 16 << 20;
        options.fence = fence;
        let (machine_id, boot_id) = (Some(rand::random()), rand::random());
        let identity = Identity { dev: 1, ino: 1, rdev: 7, boot_id, machine_id, local_filesystem: false };
        Host::mount_as(port, options, Arc::new(NoKernel), identity, &|demoter| demoter)
    }

    fn mount_as(
        port: Arc<Port>,
        options: MountOptions,
        kernel: Arc<dyn KernelCache>,
        identity: Identity,
        wrap: &dyn Fn(Arc<dyn Demoter>) -> Arc<dyn Demoter>,
    ) -> Result<Host> {
        let fitness = match identity.rdev {
            0 => Fitness::Unfit("an image".into()),
            _ => Fitness::Fit,
        };
        let reservations = Some(port.reservations());
        let (device, claim, unlocked) = (port.clone(), port.clone(), false);
        let backing = Backing { device, claim, identity, reservations, fitness, unlocked };
        let fs = start_wrapped(backing, &options, kernel, wrap)?;
        Ok(Host { fs, port })
    }

    /// Leave cleanly.
    pub fn stop(self) -> Result<()> {
        self.fs.stop()
    }

    /// Its power is cut.
    pub fn crash(self) {
        self.port.cut();
        self.fs.halt("its power is cut");
        let _ = self.fs.stop();
    }

    fn known(&self) -> Known<'_> {
        Known { host: self, found: Vec::new() }
    }

    fn make(&self, path: &str, kind: FileKind, perm: u16) -> Result<EntryReply> {
        let mut known = self.known();
        let (dir, name) = split(path);
        let parent = known.walk(dir)?;
        let new = NewNode { kind, perm, umask: 0, rdev: 0 };
        let (fs, caller) = (&*self.fs, Caller::default());
        let entry = match kind {
            FileKind::Directory => ask("mkdir", |r| Operations::mkdir(fs, caller, parent, name, new, r)),
            _ => ask("mknod", |r| Operations::mknod(fs, caller, parent, name, new, r)),
        }?;
        Ok(known.keep(entry))
    }

    pub fn create(&self, path: &str) -> Result<()> {
        self.make(path, FileKind::Regular, 0o644).map(|_| ())
    }

    /// What open(2) does with O_CREAT for a name that the kernel believes free.
    pub fn create_open(&self, path: &str, flags: i32) -> Result<()> {
        let mut known = self.known();
        let (dir, name) = split(path);
        let parent = known.walk(dir)?;
        let new = NewNode { kind: FileKind::Regular, perm: 0o644, umask: 0, rdev: 0 };
        let (entry, open) = ask("create", |r| {
            Operations::create(&*self.fs, Caller::default(), parent, name, new, flags, r);
        })?;
        let node = known.keep(entry).ino;
        ask("release", |r| Operations::release(&*self.fs, node, open.fh, r))
    }

    pub fn mkdir(&self, path: &str) -> Result<()> {
        self.make(path, FileKind::Directory, 0o755).map(|_| ())
    }

    pub fn symlink(&self, path: &str, target: &[u8]) -> Result<()> {
        let mut known = self.known();
        let (dir, name) = split(path);
        let parent = known.walk(dir)?;
        let made = ask("symlink", |r| {
            Operations::symlink(&*self.fs, Caller::default(), parent, name, target, r);
        })?;
        known.keep(made);
        Ok(())
    }

    pub fn readlink(&self, path: &str) -> Result<Vec<u8>> {
        let mut known = self.known();
        let node = known.walk(path)?;
        ask("readlink", |r| Operations::readlink(&*self.fs, node, r))
    }

    pub fn link(&self, from: &str, to: &str) -> Result<()> {
        let mut known = self.known();
        let node = known.walk(from)?;
        let (dir, name) = split(to);
        let parent = known.walk(dir)?;
        let made = ask("link", |r| Operations::link(&*self.fs, Caller::default(), node, parent, name, r))?;
        known.keep(made);
        Ok(())
    }

    pub fn unlink(&self, path: &str) -> Result<()> {
        let mut known = self.known();
        let (dir, name) = split(path);
        let parent = known.walk(dir)?;
        ask("unlink", |r| Operations::unlink(&*self.fs, Caller::default(), parent, name, r))
    }

    pub fn rmdir(&self, path: &str) -> Result<()> {
        let mut known = self.known();
        let (dir, name) = split(path);
        let parent = known.walk(dir)?;
        ask("rmdir", |r| Operations::rmdir(&*self.fs, Caller::default(), parent, name, r))
    }

    pub fn rename(&self, from: &str, to: &str, exchange: bool) -> Result<()> {
        let mut known = self.known();
        let ((from_dir, old), (to_dir, new)) = (split(from), split(to));
        let (from_dir, to_dir) = (known.walk(from_dir)?, known.walk(to_dir)?);
        let flags = RenameFlags { exchange, ..RenameFlags::default() };
        let caller = Caller::default();
        ask("rename", |r| Operations::rename(&*self.fs, caller, (from_dir, old), (to_dir, new), flags, r))
    }

    pub fn write(&self, path: &str, offset: u64, data: &[u8], how: How) -> Result<()> {
        let flags = WriteFlags { open: how.flags(), ..WriteFlags::default() };
        self.known().with_open(path, how.flags(), |node, fh| {
            let caller = Caller::default();
            let written =
                ask("write", |r| Operations::write(&*self.fs, node, fh, offset, data, flags, caller, r))?;
            assert_eq!(written as usize, data.len(), "a write is whole or fails");
            Ok(())
        })
    }

    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.known().with_open(path, libc::O_RDONLY, |node, fh| {
            let mut all = Vec::new();
            loop {
                let (at, flags) = (all.len() as u64, ReadFlags { fills_cache: true, open: 0 });
                let part = ask("read", |r| Operations::read(&*self.fs, node, fh, at, READ_BYTES, flags, r))?;
                all.extend_from_slice(&part);
                if part.len() < READ_BYTES as usize {
                    return Ok(all);
                }
            }
        })
    }

    pub fn truncate(&self, path: &str, size: u64) -> Result<()> {
        self.set(path, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    pub fn chmod(&self, path: &str, perm: u16) -> Result<()> {
        self.set(path, SetAttr { perm: Some(perm), ..SetAttr::default() })
    }

    fn set(&self, path: &str, change: SetAttr) -> Result<()> {
        let mut known = self.known();
        let node = known.walk(path)?;
        let caller = Caller::default();
        ask("setattr", |r| Operations::setattr(&*self.fs, node, change, caller, None, r)).map(|_| ())
    }

    pub fn fallocate(&self, path: &str, range: (u64, u64), mode: i32) -> Result<()> {
        self.known().with_open(path, libc::O_RDWR, |node, fh| {
            let caller = Caller::default();
            ask("fallocate", |r| Operations::fallocate(&*self.fs, node, fh, range, mode, caller, r))
        })
    }

    pub fn fsync(&self, path: &str) -> Result<()> {
        let mut known = self.known();
        let node = known.walk(path)?;
        ask("fsync", |r| Operations::fsync(&*self.fs, node, 0, false, r))
    }

    pub fn syncfs(&self) -> Result<()> {
        ask("syncfs", |r| Operations::syncfs(&*self.fs, r))
    }

    pub fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        let mut known = self.known();
        let node = known.walk(path)?;
        let (fs, name) = (&*self.fs, name.as_bytes());
        ask("setxattr", |r| Operations::setxattr(fs, node, name, value, SetHow::Either, false, r))
    }

    pub fn get_xattr(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        let mut known = self.known();
        let node = known.walk(path)?;
        ask("getxattr", |r| Operations::getxattr(&*self.fs, node, name.as_bytes(), r))
    }

    pub fn list_xattrs(&self, path: &str) -> Result<Vec<u8>> {
        self.list_xattrs_as(path, 0)
    }

    /// What a user sees.
    pub fn list_xattrs_as(&self, path: &str, uid: u32) -> Result<Vec<u8>> {
        let mut known = self.known();
        let (node, caller) = (known.walk(path)?, Caller { uid, ..Caller::default() });
        ask("listxattr", |r| Operations::listxattr(&*self.fs, node, caller, r))
    }

    pub fn remove_xattr(&self, path: &str, name: &str) -> Result<()> {
        let mut known = self.known();
        let (node, caller) = (known.walk(path)?, Caller::default());
        ask("removexattr", |r| Operations::removexattr(&*self.fs, node, name.as_bytes(), caller, r))
    }

    /// Attributes by path.
    pub fn stat(&self, path: &str) -> Result<shoal::inode::Attr> {
        let mut known = self.known();
        let node = known.walk(path)?;
        ask("getattr", |r| Operations::getattr(&*self.fs, node, None, Caller::default(), r))
            .map(|reply| reply.attr)
    }

    /// Names in a directory but `.` and `..`, sorted.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let mut known = self.known();
        let node = known.walk(path)?;
        let (mut names, mut after) = (Vec::new(), 0);
        loop {
            let (done, answer) = mpsc::channel();
            let sink = Box::new(Names { found: Vec::new(), done });
            Operations::readdir(&*self.fs, node, 0, after, sink);
            let batch = answer.recv_timeout(HANG).expect("readdir was not answered")?;
            let Some((_, last)) = batch.last() else { break };
            after = *last;
            names.extend(batch.into_iter().map(|(name, _)| String::from_utf8(name).expect("our names")));
        }
        names.retain(|n| n != "." && n != "..");
        names.sort();
        Ok(names)
    }

    /// Discard what is free, all over the volume; the answer: bytes.
    pub fn trim(&self) -> Result<u64> {
        ask("trim", |r| drop(Operations::trim(&*self.fs, ALL, r)))
    }

    /// The same without waiting for it.
    pub fn trim_beside(&self) {
        drop(Operations::trim(&*self.fs, ALL, |_| ()));
    }

    pub fn statfs(&self) -> Result<Statfs> {
        ask("statfs", |r| Operations::statfs(&*self.fs, r))
    }
}
