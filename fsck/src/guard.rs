//! Nobody may have the volume mounted while it is checked.

use shoal::base::{Error, Result, SlotId};
use shoal::cluster::{Disk, Timing, status};
use shoal::device::{FileDevice, local, probe};
use shoal::format::Geometry;
use shoal::format::cluster::Heartbeat;
use shoal::format::cluster::heartbeat::FLAG_LEAVING;
use shoal::format::superblock::{self, Superblock, TimingProfile};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a host that is leaving is waited for.
const LEAVING_PATIENCE: Duration = Duration::from_secs(60);

/// Waits for daemons of this machine that are unmounted but not done, and refuses what is mounted
/// here. To be asked before the device is opened, which an exclusive open needs.
///
/// # Errors
/// `Device` saying who has it.
pub fn check_machine(path: &Path) -> Result<()> {
    let error = |e: &dyn std::fmt::Display| Error::Device(format!("{}: {e}", path.display()));
    local::wait_for_leaving(path, LEAVING_PATIENCE).map_err(|e| error(&e))?;
    match probe::in_use(path)? {
        None => Ok(()),
        Some(how) => Err(error(&format_args!("{how}; unmount it on every host first"))),
    }
}

/// Refuses a volume that any host has mounted. With `hold`, mounts of this machine are kept off for
/// as long as the device is open, and hosts that are silent are waited for as long as their writes
/// may still land.
///
/// # Errors
/// `Device` saying who has it.
pub fn check_cluster(device: &Arc<FileDevice>, path: &Path, hold: bool) -> Result<()> {
    let (sb, _) = superblock::load(&**device)?;
    let g = sb.geometry;
    let row = u64::from(g.max_slots) * u64::from(g.cell_pitch);
    let start = g.heartbeat_cell(SlotId(0));
    // A filesystem without such locks proves nothing.
    match device.try_lock_range(start, row) {
        Ok(false) => {
            let what = "a host on this machine has it mounted; unmount it on every host first";
            return Err(Error::Device(format!("{}: {what}", path.display())));
        }
        Ok(true) if !hold => device.unlock_range(start, row)?,
        Ok(true) | Err(_) => {}
    }
    let here_only = probe::identity(device.file())?.local_filesystem;
    let disk = Disk { device: device.clone(), format_id: sb.format_id, geometry: g };
    if here_only || !was_ever_mounted(&disk)? {
        return Ok(());
    }
    let timing = timing(&sb);
    let silent_ones = status::read_status(&disk, None).map_or(true, |s| !s.is_clean());
    let quiet = if hold && silent_ones { timing.wait() } else { timing.heartbeat * 4 };
    listen(&disk, &g, quiet, path)
}

fn was_ever_mounted(disk: &Disk) -> Result<bool> {
    Ok(disk.read_heartbeats()?.iter().any(|h| h.as_ref().is_none_or(|h| h.incarnation.0 != 0)))
}

fn timing(sb: &Superblock) -> Timing {
    match sb.timing {
        TimingProfile::Default => Timing::DEFAULT,
        TimingProfile::San => Timing::SAN,
        TimingProfile::Test => Timing::TEST,
    }
}

/// Until nothing has moved for `quiet`; a host that moves is an error unless it is leaving.
fn listen(disk: &Disk, g: &Geometry, quiet: Duration, path: &Path) -> Result<()> {
    let patience = Instant::now() + LEAVING_PATIENCE;
    let mut row = status::heartbeat_row(disk)?;
    let mut still_since = Instant::now();
    while still_since.elapsed() < quiet {
        std::thread::sleep(Duration::from_millis(100).min(quiet / 4));
        let now = status::heartbeat_row(disk)?;
        let moved = status::moved_cells(disk, &row, &now);
        if let Some((slot, beat)) = moved.first() {
            let leaving = beat.as_ref().is_some_and(|h| h.flags & FLAG_LEAVING != 0);
            if !leaving || Instant::now() > patience {
                return Err(beating(*slot, beat.as_ref(), path, g));
            }
            still_since = Instant::now();
        }
        row = now;
    }
    Ok(())
}

fn beating(slot: SlotId, beat: Option<&Heartbeat>, path: &Path, g: &Geometry) -> Error {
    let name = beat.map_or("an unreadable host", |h| h.name.as_str());
    Error::Device(format!(
        "{}: {name} (slot {slot} of {}) has it mounted; unmount it on every host first",
        path.display(),
        g.max_slots
    ))
}
