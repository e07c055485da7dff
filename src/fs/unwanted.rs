//! Mounts that come to nothing when they are members already: because somebody has told them to end, for one.

use super::*;
use crate::cluster::UNWANTED;
use std::sync::mpsc::{RecvTimeoutError, channel};

/// An error once somebody has told the mount to end.
pub fn check_wanted(kernel: &dyn KernelCache) -> Result<()> {
    match kernel.is_unwanted() {
        true => Err(Error::Device(UNWANTED.into())),
        false => Ok(()),
    }
}

/// Do `leave`, which may have to wait for locks that other hosts have: for as long as others take to recover one
/// that dies, and then no more. To them this host has crashed then.
pub fn in_time(core: &Arc<Core>, leave: impl FnOnce() -> Result<()>) -> Result<()> {
    let (left, is_over) = channel::<()>();
    let (core, limit) = (core.clone(), core.recovery.patience * 2);
    let watch = move || {
        if is_over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            core.store.halt().trip("the mount failed, and others do not let it leave");
        }
    };
    let watch = std::thread::Builder::new().name("shoal-leave".into()).spawn(watch);
    let done = leave();
    drop(left);
    // Without a thread it waits for as long as it takes.
    if let Ok(watch) = watch {
        let _ = watch.join();
    }
    done
}
