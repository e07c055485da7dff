//! Hosts with something of their own between daemon and kernel. Their daemon is this test program,
//! started once more.

use shoal::fs::mount::start;
use shoal::fs::{KernelCache, MountOptions, NodeId};
use shoal::fuse::adapter::Adapter;
use shoal::fuse::mount::{Place, open_device};
use shoal::fuse::{Notifier, daemon};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Tells the daemon to be what to mount, and where.
const IMAGE: &str = "SHOAL_MATRIX_IMAGE";
const AT: &str = "SHOAL_MATRIX_AT";

/// A planted bug: pages of requests that wait for the lock are not left out when all others go.
struct Careless(Arc<Notifier>);

impl KernelCache for Careless {
    fn inval_inode(&self, ino: NodeId, offset: i64, length: i64) -> io::Result<()> {
        let (offset, length) = if offset > 0 { (0, 0) } else { (offset, length) };
        self.0.inval_inode(ino, offset, length)
    }
    fn abort(&self) -> io::Result<()> {
        self.0.abort()
    }
}

/// Start the daemon of such a host. It ends when its mount does, with success if it has left in order.
pub fn spawn(image: &Path, at: &Path) -> Child {
    let mut daemon = Command::new(std::env::current_exe().unwrap());
    daemon.args(["--exact", "--ignored", "matrix::kernel::the_daemon"]);
    daemon.env(IMAGE, image).env(AT, at).stdin(Stdio::null()).stdout(Stdio::null());
    daemon.spawn().unwrap()
}

#[test]
#[ignore = "a daemon, started by the tests of the matrix"]
fn the_daemon() {
    let (Some(image), Some(at)) = (std::env::var_os(IMAGE), std::env::var_os(AT)) else {
        panic!("{IMAGE} and {AT} say what to mount, and where");
    };
    let device = open_device().unwrap();
    let notifier = Arc::new(Notifier::new(&device).unwrap());
    let mut options = MountOptions::new(image.clone().into());
    options.host_name = Path::new(&at).file_name().map(|n| n.to_string_lossy().into_owned());
    let fs = start(&options, Arc::new(Careless(notifier.clone()))).unwrap();
    let adapter = Adapter::new(fs.clone());
    let place = Place { source: &image, mountpoint: Path::new(&at), flags: 0, claim: None };
    let served = daemon::begin(adapter, device, notifier, place, 2).unwrap();
    served.run().unwrap();
    fs.stop().unwrap();
}
