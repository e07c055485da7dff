//! What must not be overwritten: a mounted device, a Shoal volume that any host uses, and, unless
//! forced, anything recognisable.

use shoal::base::{Error, Result, SlotId};
use shoal::cluster::{Disk, status};
use shoal::device::{BlockDevice, FileDevice, probe};
use shoal::format::cluster::Heartbeat;
use shoal::format::superblock::{self, Superblock, TimingProfile};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn refuse<T>(dev: &dyn BlockDevice, what: impl std::fmt::Display) -> Result<T> {
    Err(Error::Device(format!("{}: {what}", dev.name())))
}

/// Refuse what the machine has mounted or swaps to. To be asked before the device is opened.
///
/// # Errors
/// `Device` saying where it is mounted.
pub fn check_unused(path: &Path) -> Result<()> {
    match probe::in_use(path)? {
        None => Ok(()),
        Some(how) => Err(Error::Device(format!("{}: {how}; not touched", path.display()))),
    }
}

/// May a volume be made here? `force` overrides what is merely recognisable, never what is in use.
///
/// # Errors
/// `Device` naming what stands there.
pub fn check(dev: &Arc<FileDevice>, force: bool) -> Result<()> {
    if let Ok((volume, _)) = superblock::load(&**dev) {
        return check_volume(dev, &volume, force);
    }
    let found = probe::signatures(&**dev)?;
    if force || found.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = found.iter().map(|s| s.what).collect();
    names.dedup();
    refuse(&**dev, format_args!("contains {}; use -f to overwrite it", names.join(", ")))
}

fn check_volume(dev: &Arc<FileDevice>, volume: &Superblock, force: bool) -> Result<()> {
    let g = &volume.geometry;
    let row = u64::from(g.max_slots) * u64::from(g.cell_pitch);
    // Each mount of this machine locks its cell. A filesystem without such locks proves nothing.
    if let Ok(free) = dev.try_lock_range(g.heartbeat_cell(SlotId(0)), row) {
        if !free {
            return refuse(&**dev, "a Shoal volume that this machine has mounted; not touched");
        }
        dev.unlock_range(g.heartbeat_cell(SlotId(0)), row)?;
    }
    if !force {
        let state = if was_left_clean(dev, volume) { "" } else { " that was not unmounted cleanly" };
        return refuse(&**dev, format_args!("contains a Shoal volume{state}; use -f to overwrite it"));
    }
    let alive = beating(dev, volume)?;
    if alive.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = alive.iter().map(|h| format!("{} (slot {})", h.name, h.slot)).collect();
    refuse(&**dev, format_args!("a Shoal volume that is mounted by {}; not touched", names.join(", ")))
}

/// Does the newest decided view name no member and no dead host?
fn was_left_clean(dev: &Arc<FileDevice>, volume: &Superblock) -> bool {
    let disk = Disk { device: dev.clone(), format_id: volume.format_id, geometry: volume.geometry };
    status::read_status(&disk, None).is_ok_and(|status| status.is_clean())
}

/// Long enough for several heartbeats of a living host.
fn listening_time(timing: TimingProfile) -> Duration {
    match timing {
        TimingProfile::Default => Duration::from_secs(5),
        TimingProfile::San => Duration::from_secs(10),
        TimingProfile::Test => Duration::from_secs(1),
    }
}

/// Hosts whose heartbeat moves. Listens only if any host ever mounted the volume.
fn beating(dev: &Arc<FileDevice>, volume: &Superblock) -> Result<Vec<Heartbeat>> {
    let disk = Disk { device: dev.clone(), format_id: volume.format_id, geometry: volume.geometry };
    // A cell that cannot be read may be one that is being written.
    if disk.read_heartbeats()?.iter().all(|h| h.as_ref().is_some_and(|h| h.incarnation.0 == 0)) {
        return Ok(Vec::new());
    }
    let before = status::heartbeat_row(&disk)?;
    std::thread::sleep(listening_time(volume.timing));
    let moved = status::moved_cells(&disk, &before, &status::heartbeat_row(&disk)?);
    let unreadable = |slot| Heartbeat { slot, name: "an unreadable host".into(), ..Heartbeat::default() };
    Ok(moved.into_iter().map(|(slot, beat)| beat.unwrap_or_else(|| unreadable(slot))).collect())
}
