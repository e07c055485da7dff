//! What a kernel does by the numbers it remembers, without looking a path up again.

use super::*;

impl Host {
    /// Look a path up and stay with it, as the kernel does; [`Host::forget`] ends that.
    pub fn keep(&self, path: &str) -> Result<NodeId> {
        let mut known = self.known();
        let node = known.walk(path)?;
        known.found.retain(|n| *n != node);
        Ok(node)
    }

    /// Attributes of a node that is kept.
    pub fn stat_kept(&self, node: NodeId) -> Result<shoal::inode::Attr> {
        ask("getattr", |r| Operations::getattr(&*self.fs, node, None, Caller::default(), r))
            .map(|reply| reply.attr)
    }

    /// Open a node that is kept; [`Host::close_kept`] ends that.
    pub fn open_kept(&self, node: NodeId, how: How) -> Result<u64> {
        let caller = Caller::default();
        ask("open", |r| Operations::open(&*self.fs, node, how.flags(), caller, r)).map(|open| open.fh)
    }

    /// The same to read only.
    pub fn open_to_read_kept(&self, node: NodeId) -> Result<u64> {
        let caller = Caller::default();
        ask("open", |r| Operations::open(&*self.fs, node, libc::O_RDONLY, caller, r)).map(|open| open.fh)
    }

    /// Bytes from the beginning of a node that is kept, with one request.
    pub fn read_kept(&self, node: NodeId, fh: u64, bytes: u32) -> Result<Vec<u8>> {
        let flags = ReadFlags { fills_cache: true, open: 0 };
        ask("read", |r| Operations::read(&*self.fs, node, fh, 0, bytes, flags, r)).map(|part| part.to_vec())
    }

    /// Write past the kernel's pages, as O_DIRECT does.
    pub fn write_direct_kept(&self, node: NodeId, fh: u64, offset: u64, data: &[u8]) -> Result<()> {
        let (caller, open) = (Caller::default(), How::Direct.flags());
        let flags = WriteFlags { open, past_cache: true, ..WriteFlags::default() };
        ask("write", |r| Operations::write(&*self.fs, node, fh, offset, data, flags, caller, r)).map(|_| ())
    }

    /// Read past the kernel's pages.
    pub fn read_direct_kept(&self, node: NodeId, fh: u64, offset: u64, bytes: u32) -> Result<Vec<u8>> {
        let flags = ReadFlags { fills_cache: false, open: How::Direct.flags() };
        ask("read", |r| Operations::read(&*self.fs, node, fh, offset, bytes, flags, r))
            .map(|part| part.to_vec())
    }

    pub fn fsync_kept(&self, node: NodeId, fh: u64) -> Result<()> {
        ask("fsync", |r| Operations::fsync(&*self.fs, node, fh, false, r))
    }

    /// What close(2) of a descriptor says.
    pub fn flush_kept(&self, node: NodeId, fh: u64) -> Result<()> {
        ask("flush", |r| Operations::flush(&*self.fs, node, fh, 0, r))
    }

    pub fn close_kept(&self, node: NodeId, fh: u64) -> Result<()> {
        let flushed = self.flush_kept(node, fh);
        ask("release", |r| Operations::release(&*self.fs, node, fh, r))?;
        flushed
    }

    /// Change a node that is kept.
    pub fn set_kept(&self, node: NodeId, change: SetAttr) -> Result<()> {
        let caller = Caller::default();
        ask("setattr", |r| Operations::setattr(&*self.fs, node, change, caller, None, r)).map(|_| ())
    }

    /// Sectors that stat shows of a node that is kept.
    pub fn sectors_kept(&self, node: NodeId) -> Result<u64> {
        let reply = ask("getattr", |r| Operations::getattr(&*self.fs, node, None, Caller::default(), r))?;
        Ok(reply.attr.blocks * 8 + reply.in_inode)
    }

    /// Names of a directory that is kept, with one request.
    pub fn list_kept(&self, node: NodeId) -> Result<usize> {
        let (done, answer) = mpsc::channel();
        Operations::readdir(&*self.fs, node, 0, 0, Box::new(Names { found: Vec::new(), done }));
        answer.recv_timeout(HANG).expect("readdir was not answered").map(|names| names.len())
    }

    /// Copy between nodes that are kept, to an open one; how much was.
    pub fn copy_kept(&self, from: (NodeId, u64), to: (NodeId, u64, u64), length: u32) -> Result<u32> {
        let (caller, fs) = (Caller::default(), &*self.fs);
        ask("copy_file_range", |r| {
            Operations::copy_file_range(fs, (from.0, 0, from.1), to, length, caller, r);
        })
    }

    /// Allocate, punch or zero in an open node.
    pub fn fallocate_kept(&self, (node, fh): (NodeId, u64), range: (u64, u64), mode: i32) -> Result<()> {
        let (caller, fs) = (Caller::default(), &*self.fs);
        ask("fallocate", |r| Operations::fallocate(fs, node, fh, range, mode, caller, r))
    }

    /// Write to a node that is kept, as a program with its own open file does.
    pub fn write_kept(&self, node: NodeId, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let (caller, flags) = (Caller::default(), WriteFlags { open: libc::O_RDWR, ..WriteFlags::default() });
        ask("write", |r| Operations::write(&*self.fs, node, fh, offset, data, flags, caller, r))
    }

    /// What a mapping has stored comes back. Answered whenever it is.
    pub fn launder_kept(
        &self,
        node: NodeId,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> mpsc::Receiver<Result<u32>> {
        let (done, answer) = mpsc::channel();
        let flags = WriteFlags { from_cache: true, open: libc::O_RDWR, ..WriteFlags::default() };
        Operations::write(&*self.fs, node, fh, offset, data, flags, Caller::default(), move |written| {
            let _ = done.send(written);
        });
        answer
    }

    pub fn forget(&self, node: NodeId) {
        Operations::forget(&*self.fs, node, 1);
    }

    /// Move an entry of the root into a directory that is kept.
    pub fn rename_into_kept(&self, from: &[u8], dir: NodeId) -> Result<()> {
        let (caller, flags) = (Caller::default(), RenameFlags::default());
        ask("rename", |r| Operations::rename(&*self.fs, caller, (NodeId::ROOT, from), (dir, from), flags, r))
    }
}
