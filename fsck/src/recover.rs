//! Replaying the journals of hosts that died onto the disk, as the first mount does: by becoming the
//! only member. So no living host can be taken for dead, none comes in meanwhile, and a host that was
//! only silent finds itself excluded when it is back.

use crate::journals::Replayed;
use shoal::base::{Error, Result, SystemClock};
use shoal::cluster::{Cluster, Disk, FenceOptions, JoinOptions, SlotClaim, StoreLease, Timing};
use shoal::device::pr::KernelReservations;
use shoal::device::{FileDevice, Fitness, fitness, probe};
use shoal::format::cluster::heartbeat::DeviceFile;
use shoal::format::superblock::Superblock;
use shoal::format::volume::Volume;
use shoal::journal::{DeviceSink, replay};
use shoal::store::Store;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The store is only a way to the device here.
const CACHE_BYTES: usize = 1 << 20;
/// How long living members are asked to let us in: they are not to be disturbed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Byte-range locks on the open device file.
struct Claim(Arc<FileDevice>);

impl SlotClaim for Claim {
    fn try_hold(&self, offset: u64, length: u64) -> Result<bool> {
        self.0.try_lock_range(offset, length)
    }

    fn release(&self, _offset: u64, _length: u64) -> Result<()> {
        // The check goes on under the locks that keep mounts of this machine off.
        Ok(())
    }
}

/// Join as the first host, replay every journal that a dead one left, leave.
///
/// # Errors
/// `Device` if a host lives; `Corrupt` if a journal is damaged (it is left as it is, and so is the
/// membership: the check says more); `Io`.
pub fn recover(
    device: &Arc<FileDevice>,
    path: &Path,
    sb: &Superblock,
    volume: &Volume,
) -> Result<Vec<Replayed>> {
    let geometry = volume.geometry(sb);
    let store = Store::new(device.clone(), sb.format_id, geometry, CACHE_BYTES);
    let disk = Disk { device: device.clone(), format_id: sb.format_id, geometry };
    let (cluster, report) = Cluster::join(disk, options(device, path, volume, &store)?)?;
    if !report.first {
        cluster.leave()?;
        let what = "a host has it mounted; unmount it on every host first";
        return Err(Error::Device(format!("{}: {what}", path.display())));
    }
    let mut replayed = Vec::new();
    for slot in &report.replay {
        let extents = &volume.slots[usize::from(slot.0)];
        let extent = (extents.journal_start, extents.journal_blocks);
        let write_life = Timing::of(volume.timing).claim_wait();
        let mut sink = DeviceSink::new(&store, Duration::ZERO).last_resort(write_life);
        let done = replay(&store, extent, *slot, &mut sink)?;
        replayed.extend(Replayed::of(*slot, done));
    }
    cluster.recovered(&report.replay)?;
    cluster.leave()?;
    Ok(replayed)
}

/// A check takes part in what the hosts do, and chooses nothing for them.
fn fence(device: &Arc<FileDevice>) -> FenceOptions {
    let leases = FenceOptions::leases("a check chooses nothing");
    match fitness(device) {
        Fitness::Unfit(why) => FenceOptions { reluctance: Some(why), ..leases },
        Fitness::Fit | Fitness::OnRequest(_) => {
            FenceOptions { reservations: Some(Arc::new(KernelReservations::new(device.clone()))), ..leases }
        }
    }
}

fn options(
    device: &Arc<FileDevice>,
    path: &Path,
    volume: &Volume,
    store: &Arc<Store>,
) -> Result<JoinOptions> {
    let id = probe::identity(device.file())?;
    let claim: Arc<dyn SlotClaim> = Arc::new(Claim(device.clone()));
    let slots = volume.slots.len();
    Ok(JoinOptions {
        usable: if slots >= 64 { u64::MAX } else { (1 << slots) - 1 },
        timing: Timing::of(volume.timing),
        profile: Some(volume.timing),
        host: id.machine_id.unwrap_or(id.boot_id),
        boot: id.boot_id,
        name: "fsck.shoal".into(),
        device: path.display().to_string(),
        file: DeviceFile { dev: id.dev, ino: id.ino, rdev: id.rdev },
        local: id.local_filesystem,
        prove: id.rdev == 0 || device.is_present(),
        fence: fence(device),
        claim: id.local_filesystem.then_some(claim),
        clock: Arc::new(SystemClock),
        lease: Arc::new(StoreLease(store.clone())),
        patience: PATIENCE,
    })
}
