//! What must not be overwritten: a mounted device, a Shoal volume that any host uses, and, unless
//! forced, anything recognisable.

use shoal::base::{Error, Result, SlotId};
use shoal::cluster::{Disk, profile, status};
use shoal::device::{BlockDevice, FileDevice, local, probe};
use shoal::format::cluster::Heartbeat;
use shoal::format::foreign;
use shoal::format::superblock::{self, Remains, Superblock, TimingProfile};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn refuse<T>(dev: &dyn BlockDevice, what: impl std::fmt::Display) -> Result<T> {
    Err(Error::Device(format!("{}: {what}", dev.name())))
}

/// How long a host of this machine that is leaving is waited for.
const LEAVING_PATIENCE: Duration = Duration::from_secs(60);

/// Wait for daemons of this machine that are unmounted but not done; refuse what the machine has mounted or swaps to.
/// To be asked before the device is opened.
///
/// # Errors
/// `Device` saying where it is mounted.
pub fn check_unused(path: &Path) -> Result<()> {
    let late = |e| Error::Device(format!("{}: {e}", path.display()));
    local::wait_for_leaving(path, LEAVING_PATIENCE).map_err(late)?;
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
    let unloadable = match superblock::load(&**dev) {
        Ok((volume, _)) => return check_volume(dev, &volume, force),
        Err(e) => e,
    };
    match superblock::remains(&**dev)? {
        // Where its hosts would beat is not known, so nothing shows that there are none.
        Some(Remains::OtherVersion) => {
            return refuse(&**dev, format_args!("{unloadable}; to give it up, wipefs -a it first"));
        }
        Some(Remains::Unreadable) if !force => {
            let what = format_args!("contains a Shoal volume ({unloadable}); use -f to overwrite it");
            return refuse(&**dev, what);
        }
        _ => {}
    }
    let found = foreign::signatures(&**dev)?;
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
    // Each mount of this machine locks its cell; none can begin while we hold them all. A filesystem
    // without such locks proves nothing.
    if let Ok(false) = dev.try_lock_range(g.heartbeat_cell(SlotId(0)), row) {
        return refuse(&**dev, "a Shoal volume that this machine has mounted; not touched");
    }
    if !force {
        let state = if was_left_clean(dev, volume) { "" } else { " that was not unmounted cleanly" };
        return refuse(&**dev, format_args!("contains a Shoal volume{state}; use -f to overwrite it"));
    }
    let names = alive(dev, volume)?;
    if names.is_empty() {
        return Ok(());
    }
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

/// Hosts whose heartbeat moves, or who are mounting. Listens only if any host ever was here.
fn alive(dev: &Arc<FileDevice>, volume: &Superblock) -> Result<Vec<String>> {
    let disk = Disk { device: dev.clone(), format_id: volume.format_id, geometry: volume.geometry };
    // A cell that cannot be read may be one that is being written.
    let beaten = disk.read_heartbeats()?.iter().any(|h| h.as_ref().is_none_or(|h| h.incarnation.0 != 0));
    let claimed = disk.read_lobby()?.iter().any(|c| c.as_ref().is_none_or(|c| c.incarnation.0 != 0));
    if !beaten && !claimed {
        return Ok(Vec::new());
    }
    let (row, lobby) = (status::heartbeat_row(&disk)?, disk.read_lobby()?);
    std::thread::sleep(listening_time(profile(&disk, volume.timing).unwrap_or(volume.timing)));
    let moved = status::moved_cells(&disk, &row, &status::heartbeat_row(&disk)?);
    let name = |(slot, beat): (SlotId, Option<Heartbeat>)| {
        let name = beat.map_or("an unreadable host".into(), |b| b.name);
        format!("{name} (slot {slot})")
    };
    let mut names: Vec<String> = moved.into_iter().map(name).collect();
    if lobby != disk.read_lobby()? {
        names.push("a host that is just mounting it".into());
    }
    Ok(names)
}
