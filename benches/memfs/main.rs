//! Mounts a filesystem in memory at a directory until it is unmounted: the ceiling for benchmarks.
//!
//! `cargo bench --bench memfs -- DIRECTORY [-o threads=N,...]`

use shoal::fuse::adapter::Adapter;
use shoal::fuse::options::Request;
use shoal::fuse::{Notifier, daemon, mount};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

mod tree;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // cargo adds a word of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let Some(directory) = args.first() else {
        println!("memfs: give a directory to mount at");
        return Ok(());
    };
    let mut request = Request::new(PathBuf::from("memfs"));
    if let [_, flag, list] = &args[..] {
        assert_eq!(flag, "-o");
        request.parse(list, false)?;
    }
    let signals = daemon::Signals::block();
    let mountpoint = std::fs::canonicalize(directory)?;
    let device = mount::open_device()?;
    let notifier = Arc::new(Notifier::new(&device)?);
    let adapter = Adapter::new(Arc::new(tree::MemFs::new()));
    let source = OsStr::new("memfs");
    let place = mount::Place { source, mountpoint: &mountpoint, flags: request.flags, claim: None };
    let served = daemon::begin(adapter, device, notifier, place, request.threads)?;
    served.unmount_on_signals(signals)?;
    println!("mounted");
    served.run()?;
    Ok(())
}
