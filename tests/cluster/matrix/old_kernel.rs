//! A host for which the kernel is one before 6.16: no name is cached, for no notification could end
//! that. Its daemon is this test program, started once more.

use shoal::fs::mount::start;
use shoal::fs::{KernelCache, MountOptions, NodeId};
use shoal::fuse::adapter::Adapter;
use shoal::fuse::mount::open_device;
use shoal::fuse::{Notifier, daemon};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Tells the daemon to be what to mount, and where.
const IMAGE: &str = "SHOAL_OLD_KERNEL_IMAGE";
const AT: &str = "SHOAL_OLD_KERNEL_AT";

/// The kernel without INC_EPOCH.
struct OldKernel(Arc<Notifier>);

impl KernelCache for OldKernel {
    fn inval_inode(&self, ino: NodeId, offset: i64, length: i64) -> io::Result<()> {
        self.0.inval_inode(ino, offset, length)
    }
    fn inval_entry(&self, parent: NodeId, name: &[u8]) -> io::Result<()> {
        self.0.inval_entry(parent, name)
    }
    fn inc_epoch(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn supports_epoch(&self) -> bool {
        false
    }
    fn abort(&self) -> io::Result<()> {
        self.0.abort()
    }
}

/// Start the daemon of such a host. It ends when its mount does, with success if it has left in order.
pub fn spawn(image: &Path, at: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "matrix::old_kernel::the_daemon"])
        .env(IMAGE, image)
        .env(AT, at)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the daemon of a host on an old kernel, started by the tests of the matrix"]
fn the_daemon() {
    let (Some(image), Some(at)) = (std::env::var_os(IMAGE), std::env::var_os(AT)) else {
        panic!("{IMAGE} and {AT} say what to mount, and where");
    };
    let device = open_device().unwrap();
    let notifier = Arc::new(Notifier::new(&device).unwrap());
    let mut options = MountOptions::new(image.clone().into());
    options.host_name = Path::new(&at).file_name().map(|n| n.to_string_lossy().into_owned());
    let fs = start(&options, Arc::new(OldKernel(notifier.clone()))).unwrap();
    let adapter = Adapter::new(fs.clone(), notifier.clone());
    let served = daemon::begin(adapter, device, notifier, (&image, Path::new(&at)), 0, 2).unwrap();
    served.run().unwrap();
    fs.stop().unwrap();
}
