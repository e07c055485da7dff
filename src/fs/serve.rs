//! [`Operations`] as the kernel adapter calls them, onto the operations of this room.

use super::operations::{Operations, Reply, Withdraw};
use super::*;
use crate::xattr::SetHow;

impl Operations for Fs {
    fn lookup(&self, parent: NodeId, name: &[u8], reply: impl Reply<LookupReply>) {
        Fs::lookup(self, parent, name.to_vec(), reply);
    }

    fn forget(&self, ino: NodeId, count: u64) {
        Fs::forget(self, ino, count);
    }

    fn getattr(&self, ino: NodeId, fh: Option<u64>, caller: Caller, reply: impl Reply<AttrReply>) {
        Fs::getattr(self, ino, fh.is_some(), caller, reply);
    }

    fn setattr(
        &self,
        ino: NodeId,
        change: SetAttr,
        _caller: Caller,
        _fh: Option<u64>,
        reply: impl Reply<AttrReply>,
    ) {
        Fs::setattr(self, ino, change, reply);
    }

    fn readlink(&self, ino: NodeId, reply: impl Reply<Vec<u8>>) {
        Fs::readlink(self, ino, reply);
    }

    fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        reply: impl Reply<EntryReply>,
    ) {
        Fs::symlink(self, caller, parent, name.to_vec(), target.to_vec(), reply);
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        node: NewNode,
        reply: impl Reply<EntryReply>,
    ) {
        Fs::mknod(self, caller, parent, name.to_vec(), node, reply);
    }

    fn mkdir(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        node: NewNode,
        reply: impl Reply<EntryReply>,
    ) {
        Fs::mknod(self, caller, parent, name.to_vec(), NewNode { kind: FileKind::Directory, ..node }, reply);
    }

    fn unlink(&self, _caller: Caller, parent: NodeId, name: &[u8], reply: impl Reply<()>) {
        Fs::unlink(self, parent, name.to_vec(), reply);
    }

    fn rmdir(&self, _caller: Caller, parent: NodeId, name: &[u8], reply: impl Reply<()>) {
        Fs::rmdir(self, parent, name.to_vec(), reply);
    }

    fn link(&self, _caller: Caller, ino: NodeId, parent: NodeId, name: &[u8], reply: impl Reply<EntryReply>) {
        Fs::link(self, ino, parent, name.to_vec(), reply);
    }

    fn rename(
        &self,
        caller: Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
        reply: impl Reply<()>,
    ) {
        Fs::rename(self, caller, (from.0, from.1.to_vec()), (to.0, to.1.to_vec()), flags, reply);
    }

    fn open(&self, ino: NodeId, flags: i32, _caller: Caller, reply: impl Reply<OpenReply>) {
        Fs::open(self, ino, flags, reply);
    }

    fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        node: NewNode,
        flags: i32,
        reply: impl Reply<(EntryReply, OpenReply)>,
    ) {
        Fs::create(self, caller, parent, name.to_vec(), node, flags, reply);
    }

    fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        node: NewNode,
        flags: i32,
        reply: impl Reply<(EntryReply, OpenReply)>,
    ) {
        Fs::tmpfile(self, caller, parent, node, flags, reply);
    }

    fn read(
        &self,
        ino: NodeId,
        _fh: u64,
        offset: u64,
        size: u32,
        flags: ReadFlags,
        reply: impl Reply<DataBuf>,
    ) {
        Fs::read(self, ino, offset, size, flags, reply);
    }

    fn write(
        &self,
        ino: NodeId,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _caller: Caller,
        reply: impl Reply<u32>,
    ) {
        Fs::write(self, ino, fh, offset, data, flags, reply);
    }

    fn flush(&self, ino: NodeId, fh: u64, owner: u64, reply: impl Reply<()>) {
        let fs = self.clone();
        Fs::flush(self, ino, fh, move |flushed| fs.unlock_ranges(ino, fh, owner, move || reply(flushed)));
    }

    fn release(&self, ino: NodeId, fh: u64, reply: impl Reply<()>) {
        self.unlock_handle(ino, fh);
        Fs::release(self, fh);
        reply(Ok(()));
    }

    fn set_lock(
        &self,
        ino: NodeId,
        fh: u64,
        lock: LockRequest,
        wait: bool,
        reply: impl Reply<()>,
    ) -> Withdraw {
        Fs::set_lock(self, ino, fh, lock, wait, reply)
    }

    fn get_lock(
        &self,
        ino: NodeId,
        fh: u64,
        lock: LockRequest,
        reply: impl Reply<Option<LockFound>>,
    ) -> Withdraw {
        Fs::get_lock(self, ino, fh, lock, reply)
    }

    fn fsync(&self, ino: NodeId, fh: u64, data_only: bool, reply: impl Reply<()>) {
        Fs::fsync(self, ino, fh, data_only, reply);
    }

    fn syncfs(&self, reply: impl Reply<()>) {
        Fs::syncfs(self, reply);
    }

    fn opendir(&self, ino: NodeId, _flags: i32, _caller: Caller, reply: impl Reply<OpenReply>) {
        Fs::opendir(self, ino, reply);
    }

    fn readdir(&self, ino: NodeId, _fh: u64, after: u64, out: Box<dyn DirSink>) {
        Fs::readdir(self, ino, after, out);
    }

    fn releasedir(&self, _ino: NodeId, fh: u64, reply: impl Reply<()>) {
        Fs::releasedir(self, fh);
        reply(Ok(()));
    }

    fn fsyncdir(&self, ino: NodeId, fh: u64, data_only: bool, reply: impl Reply<()>) {
        Fs::fsync(self, ino, fh, data_only, reply);
    }

    fn statfs(&self, reply: impl Reply<Statfs>) {
        Fs::statfs(self, reply);
    }

    fn getxattr(&self, ino: NodeId, name: &[u8], reply: impl Reply<Vec<u8>>) {
        Fs::getxattr(self, ino, name.to_vec(), reply);
    }

    fn setxattr(
        &self,
        ino: NodeId,
        name: &[u8],
        value: &[u8],
        how: SetHow,
        kill_set_gid: bool,
        reply: impl Reply<()>,
    ) {
        Fs::setxattr(self, ino, name.to_vec(), value.to_vec(), how, kill_set_gid, reply);
    }

    fn listxattr(&self, ino: NodeId, caller: Caller, reply: impl Reply<Vec<u8>>) {
        Fs::listxattr(self, ino, caller, reply);
    }

    fn removexattr(&self, ino: NodeId, name: &[u8], _caller: Caller, reply: impl Reply<()>) {
        Fs::removexattr(self, ino, name.to_vec(), reply);
    }

    fn fallocate(
        &self,
        ino: NodeId,
        fh: u64,
        range: (u64, u64),
        mode: i32,
        caller: Caller,
        reply: impl Reply<()>,
    ) {
        Fs::fallocate(self, caller, (ino, fh), range, mode, reply);
    }

    fn lseek(&self, ino: NodeId, _fh: u64, offset: u64, what: SeekWhat, reply: impl Reply<u64>) {
        Fs::seek(self, ino, offset, what == SeekWhat::Data, reply);
    }

    fn flags(&self, ino: NodeId, reply: impl Reply<(u32, Generation)>) {
        Fs::flags(self, ino, reply);
    }

    fn set_flags(&self, ino: NodeId, flags: u32, caller: Caller, reply: impl Reply<()>) {
        Fs::set_flags(self, ino, flags, caller, reply);
    }

    fn trim(&self, range: TrimRange, reply: impl Reply<u64>) -> Withdraw {
        Fs::trim(self, range, reply)
    }

    fn shut_down(&self, caller: Caller, reply: impl Reply<()>) {
        reply(match caller.uid {
            0 => Fs::shut_down(self),
            _ => Err(Error::NotPermitted),
        });
    }

    fn make_writable(&self, reply: impl Reply<()>) {
        reply(Fs::make_writable(self));
    }

    fn copy_file_range(
        &self,
        from: (NodeId, u64, u64),
        to: (NodeId, u64, u64),
        length: u32,
        caller: Caller,
        reply: impl Reply<u32>,
    ) {
        Fs::copy_file_range(self, caller, (from.0, from.2), to, length.into(), reply);
    }
}
