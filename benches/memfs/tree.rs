//! A filesystem in memory behind the same adapter: what FUSE and the adapter alone can do (the ceiling
//! of benchmarks), and a partner for the adapter's tests. No limits, no durability.

use parking_lot::{Mutex, RwLock};
use shoal::base::{Error, Generation, InodeNo, Result};
use shoal::file::DataBuf;
use shoal::fs::operations::{Operations, Reply};
use shoal::fs::types::*;
use shoal::inode::{Attr, FileKind, Timestamp};
use shoal::xattr::SetHow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};
use std::time::{Duration, SystemTime};

/// How long the kernel may keep attributes: as long as Shoal's leases last. (Names: not at all, as Shoal has it.)
const VALID: Duration = Duration::from_secs(2);
const SHARDS: usize = 16;

/// One inode.
struct Node {
    attr: Attr,
    /// Lookups that the kernel has not forgotten.
    lookups: u64,
    names: BTreeMap<Vec<u8>, (u64, FileKind, u64)>,
    /// By cookie, so that listings go on where they stopped.
    order: BTreeMap<u64, Vec<u8>>,
    parent: u64,
    bytes: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Shared = Arc<Mutex<Node>>;

/// The filesystem.
pub struct MemFs {
    shards: [RwLock<HashMap<u64, Shared>>; SHARDS],
    next: AtomicU64,
    /// Renames are rare: one at a time.
    renaming: Mutex<()>,
}

fn now() -> Timestamp {
    let d = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: d.as_secs() as i64, nanos: d.subsec_nanos() }
}

impl Node {
    fn new(ino: u64, kind: FileKind, mode: u32, caller: Caller, parent: u64) -> Node {
        let mut attr = Attr::new(InodeNo(ino), Generation(1), kind, mode, now());
        (attr.uid, attr.gid) = (caller.uid, caller.gid);
        attr.nlink = if kind == FileKind::Directory { 2 } else { 1 };
        Node {
            attr,
            lookups: 0,
            names: BTreeMap::new(),
            order: BTreeMap::new(),
            parent,
            bytes: Vec::new(),
            xattrs: BTreeMap::new(),
        }
    }

    fn changed(&mut self) {
        self.attr.mtime = now();
        self.attr.ctime = self.attr.mtime;
    }

    fn attr(&self) -> AttrReply {
        let mut attr = self.attr.clone();
        if attr.kind != FileKind::Directory {
            attr.size = self.bytes.len() as u64;
            attr.blocks = attr.size.div_ceil(4096);
        }
        AttrReply { ino: NodeId(attr.ino.0), attr, in_inode: 0, attr_valid: VALID }
    }

    fn entry(&mut self) -> EntryReply {
        self.lookups += 1;
        let AttrReply { ino, attr, in_inode, attr_valid } = self.attr();
        EntryReply { ino, generation: Generation(1), attr, in_inode, entry_valid: Duration::ZERO, attr_valid }
    }

    fn insert(&mut self, name: &[u8], ino: u64, kind: FileKind, cookie: u64) -> Result<()> {
        self.names.insert(name.to_vec(), (ino, kind, cookie));
        self.order.insert(cookie, name.to_vec());
        self.attr.nlink += u32::from(kind == FileKind::Directory);
        self.changed();
        Ok(())
    }

    fn take(&mut self, name: &[u8]) -> Option<(u64, FileKind)> {
        let (ino, kind, cookie) = self.names.remove(name)?;
        self.order.remove(&cookie);
        self.attr.nlink -= u32::from(kind == FileKind::Directory);
        self.changed();
        Some((ino, kind))
    }
}

impl MemFs {
    /// An empty one.
    pub fn new() -> MemFs {
        let fs = MemFs {
            shards: std::array::from_fn(|_| RwLock::default()),
            next: AtomicU64::new(2),
            renaming: Mutex::new(()),
        };
        fs.put(Node::new(1, FileKind::Directory, 0o755, Caller::default(), 1));
        fs
    }

    fn shard(&self, ino: u64) -> &RwLock<HashMap<u64, Shared>> {
        &self.shards[ino as usize % SHARDS]
    }

    fn put(&self, node: Node) {
        let ino = node.attr.ino.0;
        self.shard(ino).write().insert(ino, Arc::new(Mutex::new(node)));
    }

    fn get(&self, ino: NodeId) -> Result<Shared> {
        self.shard(ino.0).read().get(&ino.0).cloned().ok_or(Error::Stale)
    }

    fn with<T>(&self, ino: NodeId, f: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        f(&mut self.get(ino)?.lock())
    }

    fn make(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        new: NewNode,
        fill: &[u8],
    ) -> Result<EntryReply> {
        if name.len() > 255 {
            return Err(Error::NameTooLong);
        }
        let ino = self.next.fetch_add(1, Ordering::Relaxed);
        let mut node = Node::new(ino, new.kind, u32::from(new.perm & !new.umask), caller, parent.0);
        (node.attr.rdev, node.bytes) = (new.rdev, fill.to_vec());
        self.with(parent, |dir| {
            if dir.names.contains_key(name) {
                return Err(Error::Exists);
            }
            let reply = node.entry();
            dir.insert(name, ino, new.kind, ino + 2)?;
            self.put(node);
            Ok(reply)
        })
    }

    fn drop_link(&self, ino: u64) {
        if let Ok(node) = self.get(NodeId(ino)) {
            let mut node = node.lock();
            node.attr.nlink = match node.attr.kind {
                FileKind::Directory => 0,
                _ => node.attr.nlink - 1,
            };
            node.attr.ctime = now();
            if node.attr.nlink == 0 && node.lookups == 0 {
                self.shard(ino).write().remove(&ino);
            }
        }
    }

    fn remove(&self, parent: NodeId, name: &[u8], directory: bool) -> Result<()> {
        let (ino, _) = self.with(parent, |dir| {
            let (ino, kind, _) = *dir.names.get(name).ok_or(Error::NotFound)?;
            match (directory, kind == FileKind::Directory) {
                (true, false) => return Err(Error::NotDirectory),
                (false, true) => return Err(Error::IsDirectory),
                _ => {}
            }
            if directory && self.with(NodeId(ino), |d| Ok(!d.names.is_empty()))? {
                return Err(Error::NotEmpty);
            }
            dir.take(name).ok_or(Error::NotFound)
        })?;
        self.drop_link(ino);
        Ok(())
    }

    fn move_name(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), flags: RenameFlags) -> Result<()> {
        let _one = self.renaming.lock();
        if flags.exchange || flags.whiteout {
            return Err(Error::Unsupported("exchange and whiteout"));
        }
        let source = self.with(from.0, |d| d.names.get(from.1).copied().ok_or(Error::NotFound))?;
        let target = self.with(to.0, |d| Ok(d.names.get(to.1).copied()))?;
        match target {
            Some(_) if flags.no_replace => return Err(Error::Exists),
            Some((ino, ..)) if ino == source.0 => return Ok(()),
            Some((_, kind, _)) => self.remove(to.0, to.1, kind == FileKind::Directory)?,
            None => {}
        }
        self.with(from.0, |d| Ok(d.take(from.1)))?;
        let cookie = self.next.fetch_add(1, Ordering::Relaxed) + 2;
        self.with(to.0, |d| d.insert(to.1, source.0, source.1, cookie))?;
        self.with(NodeId(source.0), |n| {
            n.parent = to.0.0;
            Ok(())
        })
    }

    fn list(&self, ino: NodeId, after: u64, out: &mut dyn DirSink) -> Result<()> {
        let dir = self.get(ino)?;
        let (parent, batch) = {
            let dir = dir.lock();
            let rest = dir.order.range((Excluded(after.max(2)), Unbounded));
            let batch: Vec<_> = rest.take(1024).map(|(c, n)| (*c, n.clone(), dir.names[n])).collect();
            (dir.parent, batch)
        };
        for (cookie, name, ino) in [(1, &b"."[..], ino.0), (2, b"..", parent)] {
            let dot = DirEntryOut { ino: NodeId(ino), kind: FileKind::Directory, name, cookie, entry: None };
            if after < cookie && !out.add(&dot) {
                return Ok(());
            }
        }
        for (cookie, name, (ino, kind, _)) in batch {
            let ino = NodeId(ino);
            let entry = match out.wants_attributes() {
                true => Some(self.with(ino, |n| Ok(n.entry()))?),
                false => None,
            };
            let counted = entry.is_some();
            if !out.add(&DirEntryOut { ino, kind, name: &name, cookie, entry }) {
                if counted {
                    self.forget(ino, 1);
                }
                break;
            }
        }
        Ok(())
    }
}

/// Handles carry nothing.
const OPENED: OpenReply =
    OpenReply { fh: 0, direct_io: false, keep_cache: true, parallel_direct: false, cache_dir: false };

impl Operations for MemFs {
    fn lookup(&self, parent: NodeId, name: &[u8], reply: impl Reply<LookupReply>) {
        let found = self.with(parent, |d| Ok(d.names.get(name).map(|(ino, ..)| NodeId(*ino))));
        reply(found.and_then(|found| match found {
            Some(ino) => self.with(ino, |n| Ok(LookupReply::Found(n.entry()))),
            None => Ok(LookupReply::Missing { entry_valid: Duration::ZERO }),
        }));
    }

    fn forget(&self, ino: NodeId, count: u64) {
        if let Ok(node) = self.get(ino) {
            let mut node = node.lock();
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 && node.attr.nlink == 0 {
                self.shard(ino.0).write().remove(&ino.0);
            }
        }
    }

    fn getattr(&self, ino: NodeId, _fh: Option<u64>, _caller: Caller, reply: impl Reply<AttrReply>) {
        reply(self.with(ino, |n| Ok(n.attr())));
    }

    fn setattr(
        &self,
        ino: NodeId,
        c: SetAttr,
        _caller: Caller,
        _fh: Option<u64>,
        reply: impl Reply<AttrReply>,
    ) {
        let time = |t: SetTime| match t {
            SetTime::Now => now(),
            SetTime::At(t) => t,
        };
        reply(self.with(ino, |n| {
            if let Some(size) = c.size {
                n.bytes.resize(size as usize, 0);
                n.changed();
            }
            n.attr.mode = c.perm.map_or(n.attr.mode, u32::from);
            n.attr.uid = c.uid.unwrap_or(n.attr.uid);
            n.attr.gid = c.gid.unwrap_or(n.attr.gid);
            n.attr.atime = c.atime.map_or(n.attr.atime, time);
            n.attr.mtime = c.mtime.map_or(n.attr.mtime, time);
            n.attr.ctime = now();
            Ok(n.attr())
        }));
    }

    fn readlink(&self, ino: NodeId, reply: impl Reply<Vec<u8>>) {
        reply(self.with(ino, |n| Ok(n.bytes.clone())));
    }

    fn symlink(&self, c: Caller, parent: NodeId, name: &[u8], target: &[u8], reply: impl Reply<EntryReply>) {
        let new = NewNode { kind: FileKind::Symlink, perm: 0o777, umask: 0, rdev: 0 };
        reply(self.make(c, parent, name, new, target));
    }

    fn mknod(&self, c: Caller, parent: NodeId, name: &[u8], new: NewNode, reply: impl Reply<EntryReply>) {
        reply(self.make(c, parent, name, new, b""));
    }

    fn mkdir(&self, c: Caller, parent: NodeId, name: &[u8], new: NewNode, reply: impl Reply<EntryReply>) {
        reply(self.make(c, parent, name, new, b""));
    }

    fn unlink(&self, _c: Caller, parent: NodeId, name: &[u8], reply: impl Reply<()>) {
        reply(self.remove(parent, name, false));
    }

    fn rmdir(&self, _c: Caller, parent: NodeId, name: &[u8], reply: impl Reply<()>) {
        reply(self.remove(parent, name, true));
    }

    fn link(&self, _c: Caller, ino: NodeId, parent: NodeId, name: &[u8], reply: impl Reply<EntryReply>) {
        let cookie = self.next.fetch_add(1, Ordering::Relaxed) + 2;
        let kind = self.with(ino, |n| Ok(n.attr.kind));
        let made = kind.and_then(|kind| {
            self.with(parent, |dir| match dir.names.contains_key(name) {
                true => Err(Error::Exists),
                false => dir.insert(name, ino.0, kind, cookie),
            })
        });
        reply(made.and_then(|()| {
            self.with(ino, |n| {
                n.attr.nlink += 1;
                n.attr.ctime = now();
                Ok(n.entry())
            })
        }));
    }

    fn rename(
        &self,
        _c: Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
        reply: impl Reply<()>,
    ) {
        reply(self.move_name(from, to, flags));
    }

    fn open(&self, _ino: NodeId, _flags: i32, _c: Caller, reply: impl Reply<OpenReply>) {
        reply(Ok(OPENED));
    }

    fn create(
        &self,
        c: Caller,
        parent: NodeId,
        name: &[u8],
        new: NewNode,
        _flags: i32,
        reply: impl Reply<(EntryReply, OpenReply)>,
    ) {
        reply(self.make(c, parent, name, new, b"").map(|entry| (entry, OPENED)));
    }

    fn read(&self, ino: NodeId, _fh: u64, offset: u64, size: u32, _f: ReadFlags, reply: impl Reply<DataBuf>) {
        reply(self.with(ino, |n| {
            let start = n.bytes.len().min(offset as usize);
            let end = n.bytes.len().min(start + size as usize);
            Ok(n.bytes[start..end].to_vec().into())
        }));
    }

    fn write(
        &self,
        ino: NodeId,
        _fh: u64,
        offset: u64,
        data: &[u8],
        _flags: WriteFlags,
        _c: Caller,
        reply: impl Reply<u32>,
    ) {
        reply(self.with(ino, |n| {
            let end = offset as usize + data.len();
            if n.bytes.len() < end {
                n.bytes.resize(end, 0);
            }
            n.bytes[offset as usize..end].copy_from_slice(data);
            n.changed();
            Ok(data.len() as u32)
        }));
    }

    fn flush(&self, _ino: NodeId, _fh: u64, _owner: u64, reply: impl Reply<()>) {
        reply(Ok(()));
    }

    fn release(&self, _ino: NodeId, _fh: u64, reply: impl Reply<()>) {
        reply(Ok(()));
    }

    fn fsync(&self, _ino: NodeId, _fh: u64, _data_only: bool, reply: impl Reply<()>) {
        reply(Ok(()));
    }

    fn syncfs(&self, reply: impl Reply<()>) {
        reply(Ok(()));
    }

    fn opendir(&self, _ino: NodeId, _flags: i32, _c: Caller, reply: impl Reply<OpenReply>) {
        reply(Ok(OPENED));
    }

    fn readdir(&self, ino: NodeId, _fh: u64, after: u64, mut out: Box<dyn DirSink>) {
        let result = self.list(ino, after, &mut *out);
        out.done(result);
    }

    fn releasedir(&self, _ino: NodeId, _fh: u64, reply: impl Reply<()>) {
        reply(Ok(()));
    }

    fn fsyncdir(&self, _ino: NodeId, _fh: u64, _data_only: bool, reply: impl Reply<()>) {
        reply(Ok(()));
    }

    fn statfs(&self, reply: impl Reply<Statfs>) {
        reply(Ok(Statfs {
            blocks: 1 << 30,
            blocks_free: 1 << 29,
            blocks_available: 1 << 29,
            files: 1 << 30,
            files_free: 1 << 29,
            block_size: 4096,
            name_max: 255,
            fragment_size: 4096,
        }));
    }

    fn getxattr(&self, ino: NodeId, name: &[u8], reply: impl Reply<Vec<u8>>) {
        reply(self.with(ino, |n| n.xattrs.get(name).cloned().ok_or(Error::NoAttribute)));
    }

    fn setxattr(
        &self,
        ino: NodeId,
        name: &[u8],
        value: &[u8],
        how: SetHow,
        _kill_set_gid: bool,
        reply: impl Reply<()>,
    ) {
        reply(self.with(ino, |n| match (how, n.xattrs.contains_key(name)) {
            (SetHow::Create, true) => Err(Error::Exists),
            (SetHow::Replace, false) => Err(Error::NoAttribute),
            _ => {
                n.xattrs.insert(name.to_vec(), value.to_vec());
                Ok(())
            }
        }));
    }

    fn listxattr(&self, ino: NodeId, _c: Caller, reply: impl Reply<Vec<u8>>) {
        reply(self.with(ino, |n| Ok(n.xattrs.keys().flat_map(|k| [&k[..], b"\0"].concat()).collect())));
    }

    fn removexattr(&self, ino: NodeId, name: &[u8], _c: Caller, reply: impl Reply<()>) {
        reply(self.with(ino, |n| n.xattrs.remove(name).map(drop).ok_or(Error::NoAttribute)));
    }

    fn fallocate(
        &self,
        _ino: NodeId,
        _fh: u64,
        _range: (u64, u64),
        _mode: i32,
        _c: Caller,
        reply: impl Reply<()>,
    ) {
        reply(Err(Error::Unsupported("fallocate")));
    }

    fn lseek(&self, ino: NodeId, _fh: u64, offset: u64, what: SeekWhat, reply: impl Reply<u64>) {
        reply(self.with(ino, |n| match (n.bytes.len() as u64, what) {
            (size, _) if offset >= size => Err(Error::NoData),
            (_, SeekWhat::Data) => Ok(offset),
            (size, SeekWhat::Hole) => Ok(size),
        }));
    }

    fn copy_file_range(
        &self,
        _from: (NodeId, u64, u64),
        _to: (NodeId, u64, u64),
        _length: u32,
        _c: Caller,
        reply: impl Reply<u32>,
    ) {
        reply(Err(Error::Unsupported("copy_file_range")));
    }
}
