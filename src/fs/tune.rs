//! Changing what is the same for all hosts of a volume while nobody has it mounted.

use super::Result;
use super::mount::{Backing, Opened, joining, load};
use super::types::MountOptions;
use crate::base::Error;
use crate::cluster::{Cluster, JoinReport, LeaseSink, StoreLease, profile, tune};
use crate::device::Exclusive;
use crate::format::superblock::TimingProfile;
use crate::format::volume;
use crate::store::Store;
use std::path::Path;
use std::sync::Arc;

/// The store is only a way to the device here.
const CACHE_BYTES: usize = 1 << 20;

/// Have all hosts go by `to`. The answer: what they went by before.
///
/// # Errors
/// `Device` if the volume is mounted or was not left in order, saying by whom; `Busy`: somebody is mounting it;
/// `Io`.
pub fn set_timing(device: &Path, to: TimingProfile) -> Result<TimingProfile> {
    let options =
        MountOptions { host_name: Some("shoal tune".into()), ..MountOptions::new(device.to_owned()) };
    let backing = Backing::open(device)?;
    let _claim = Exclusive::take(device)?;
    let mut opened = load(backing, &options)?;
    let before = opened.volume.timing;
    let (device, superblock) = (opened.backing.device.clone(), opened.superblock.clone());
    let store = Store::new(device.clone(), superblock.format_id, superblock.geometry, CACHE_BYTES);
    let (disk, join) = joining(&opened, &options, Arc::new(StoreLease(store)))?;
    // The view is what counts. This is for whoever cannot read it.
    let is_stored = volume::load(&*device, &superblock)?.timing == to;
    let mut store = || {
        let stored = volume::load(&*device, &superblock).and_then(|there| {
            opened.volume.timing = to;
            if there.timing != to { volume::store(&*device, &superblock, &mut opened.volume) } else { Ok(()) }
        });
        if let Err(e) = stored {
            tracing::warn!(
                "hosts go by the profile {} from now on, but the volume block does not tell: {e}",
                to.name()
            );
        }
    };
    tune(disk, join, to, is_stored, &mut store)?;
    Ok(before)
}

/// Become a member. Somebody may have changed the times since they were read, or been cut off while doing so: then
/// by those that count now.
pub(super) fn join(
    opened: &mut Opened,
    options: &MountOptions,
    lease: Arc<dyn LeaseSink>,
) -> Result<(Cluster, JoinReport)> {
    let before = opened.volume.timing;
    let (disk, join) = joining(opened, options, lease.clone())?;
    let changed = match Cluster::join(disk.clone(), join) {
        Err(e @ Error::Busy(_)) => e,
        other => return other,
    };
    opened.volume.timing = profile(&disk, before)?;
    if opened.volume.timing == before {
        return Err(changed);
    }
    tracing::info!("{changed}: going by the profile {}", opened.volume.timing.name());
    let (disk, join) = joining(opened, options, lease)?;
    Cluster::join(disk, join)
}
