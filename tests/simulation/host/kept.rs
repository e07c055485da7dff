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
        ask("getattr", |r| Operations::getattr(&*self.fs, node, None, r)).map(|reply| reply.attr)
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

    pub fn close_kept(&self, node: NodeId, fh: u64) -> Result<()> {
        let flushed = ask("flush", |r| Operations::flush(&*self.fs, node, fh, 0, r));
        ask("release", |r| Operations::release(&*self.fs, node, fh, r))?;
        flushed
    }

    /// Change a node that is kept.
    pub fn set_kept(&self, node: NodeId, change: SetAttr) -> Result<()> {
        let caller = Caller::default();
        ask("setattr", |r| Operations::setattr(&*self.fs, node, change, caller, None, r)).map(|_| ())
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
