//! What a mount can do about hosts that die, from its options and its device; and how it ends when it is
//! the one that is kept off.

use super::mount::{self, Backing};
use super::types::{FenceWish, MountOptions};
use crate::base::{Error, Result};
use crate::cluster::command::Command;
use crate::cluster::fencer::Fence;
use crate::cluster::{FenceOptions, Timing, Wanted};
use crate::device::{Fitness, Sentinel};
use crate::format::cluster::FenceClass;
use crate::store::Store;
use std::sync::Arc;

/// What `options` ask for, and what this device allows.
///
/// # Errors
/// If they ask for what this device cannot have.
pub fn options(backing: &Backing, options: &MountOptions, timing: &Timing) -> Result<FenceOptions> {
    let device = options.device.display();
    let refuse = |what: String| Err(Error::Device(format!("{device}: {what}")));
    let mut command: Option<Arc<dyn Fence>> = None;
    let wanted = match &options.fence {
        FenceWish::Auto => Wanted::Auto,
        FenceWish::Lease => Wanted::Class(FenceClass::Lease),
        FenceWish::Reservation => Wanted::Class(FenceClass::Reservation),
        FenceWish::Command(_) if backing.identity.rdev == 0 => {
            return refuse("fence=command: the hosts of an image file are kept off by leases".into());
        }
        FenceWish::Command(path) => {
            let Some(host) = backing.identity.machine_id else {
                return refuse("fence=command: this machine has no /etc/machine-id to be known by".into());
            };
            let (path, boot) = (path.clone(), backing.identity.boot_id);
            let (device, name) = (device.to_string(), mount::host_name(options));
            command = Some(Arc::new(Command::new(path, device, host, boot, name, timing)?));
            Wanted::Class(FenceClass::Command)
        }
    };
    let asked = wanted == Wanted::Class(FenceClass::Reservation);
    let (reservations, reluctance) = match &backing.fitness {
        Fitness::Fit => (backing.reservations.clone(), None),
        Fitness::OnRequest(why) => (backing.reservations.clone(), Some(why.clone())),
        Fitness::Unfit(why) if asked => return refuse(format!("fence=reservation: {why}")),
        Fitness::Unfit(why) => (None, Some(why.clone())),
    };
    Ok(FenceOptions { wanted, reservations, reluctance, command })
}

/// From now on a write that the device refuses halts this host: another one has taken over from it. So does a flush
/// that fails, whoever wanted it: of what any room has written before some may be lost, and the next flush,
/// which succeeds, says nothing of that.
pub fn halt_when_fenced(device: &Sentinel, store: &Arc<Store>) {
    let store = Arc::downgrade(store);
    device.on_refusal(move |why| {
        if let Some(store) = store.upgrade() {
            let what = match why {
                Error::Fenced { .. } => "another host has taken over from this one",
                _ => "the device could not flush",
            };
            store.cut_off(format!("{what}: {why}"));
        }
    });
}
