//! Invalidation of the kernel's caches: one writev on a duplicate of the session's device.
//!
//! ENOENT is passed on, because coherence must see it: a reply that makes the inode known may still be
//! on its way.

use crate::base::Generation;
use crate::fs::types::{InodeView, KernelCache, NodeId};
use crate::fuse::channel::Channel;
use crate::fuse::daemon::Signals;
use crate::fuse::guardian::Lease;
use crate::fuse::view::{self, View};
use crate::fuse::wire::{FuseNotifyInvalInodeOut, NotifyCode};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use zerocopy::IntoBytes;

/// The kernel's caches of one mount.
pub struct Notifier {
    channel: Channel,
    /// The connection's number while it is mounted, else 0.
    connection: AtomicU64,
    /// Where it is mounted.
    mountpoint: OnceLock<PathBuf>,
    /// Who must know how long the caches may be trusted.
    guardian: OnceLock<Arc<Lease>>,
}

impl Notifier {
    /// A notifier for the connection of `device` (an open /dev/fuse).
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub fn new(device: impl AsFd) -> io::Result<Notifier> {
        Ok(Notifier {
            channel: Channel::duplicate_of(device)?,
            connection: AtomicU64::new(0),
            mountpoint: OnceLock::new(),
            guardian: OnceLock::new(),
        })
    }

    /// The guardian hears of the lease from now on.
    pub fn set_guardian(&self, lease: Arc<Lease>) {
        let _ = self.guardian.set(lease);
    }

    /// The mount is complete.
    pub fn set_mounted(&self, connection: u64, mountpoint: &Path) {
        let _ = self.mountpoint.set(mountpoint.to_owned());
        self.set_connection(connection);
    }

    /// The kernel has let go of the mount: its number may be another one's soon, and nobody may cut that.
    pub fn set_unmounted(&self) {
        self.set_connection(0);
    }

    fn set_connection(&self, connection: u64) {
        self.connection.store(connection, Ordering::Release);
        if let Some(guardian) = self.guardian.get() {
            guardian.set_mounted(connection);
        }
    }

    fn send(&self, code: NotifyCode, body: &[&[u8]]) -> io::Result<()> {
        self.channel.send(code as i32, 0, body)
    }
}

impl KernelCache for Notifier {
    fn inval_inode(&self, ino: NodeId, offset: i64, length: i64) -> io::Result<()> {
        let body = FuseNotifyInvalInodeOut { ino: ino.0, off: offset, len: length };
        self.send(NotifyCode::InvalInode, &[body.as_bytes()])
    }

    fn abort(&self) -> io::Result<()> {
        match self.connection.load(Ordering::Acquire) {
            0 => Err(io::ErrorKind::NotConnected.into()),
            connection => super::mount::abort(connection),
        }
    }

    fn view(&self, ino: NodeId, generation: Generation) -> io::Result<Arc<dyn InodeView>> {
        match (self.connection.load(Ordering::Acquire), self.mountpoint.get()) {
            (0, _) | (_, None) => Err(io::ErrorKind::NotConnected.into()),
            (connection, Some(at)) => Ok(Arc::new(View::open(at, connection, ino, generation)?)),
        }
    }

    fn caller(&self) -> u32 {
        view::thread()
    }

    fn is_unwanted(&self) -> bool {
        Signals::are_pending()
    }

    fn trusted_until(&self, lease_end: Duration, guard: Duration) {
        if let Some(guardian) = self.guardian.get() {
            guardian.renewed(lease_end, guard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn sent(notify: impl FnOnce(&Notifier)) -> Vec<u8> {
        let (mut reader, writer) = io::pipe().unwrap();
        let notifier = Notifier::new(&writer).unwrap();
        notify(&notifier);
        drop((notifier, writer));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn notifications_as_the_kernel_reads_them() {
        let head = |length: u32, code: i32| {
            [&length.to_ne_bytes()[..], &code.to_ne_bytes(), &0u64.to_ne_bytes()].concat()
        };
        let inode = sent(|n| n.inval_inode(NodeId(7), -1, 0).unwrap());
        let expected = [&head(40, 2)[..], &7u64.to_ne_bytes(), &(-1i64).to_ne_bytes(), &[0; 8]].concat();
        assert_eq!(inode, expected);
    }
}
