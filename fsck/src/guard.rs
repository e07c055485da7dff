//! Nobody may have the volume mounted while it is checked.

use shoal::base::{Epoch, Error, Result, SlotId};
use shoal::cluster::{Disk, Timing, status};
use shoal::device::{FileDevice, local, probe};
use shoal::format::cluster::Heartbeat;
use shoal::format::cluster::heartbeat::FLAG_LEAVING;
use shoal::format::superblock::Superblock;
use shoal::format::volume::Volume;
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

/// Stands before a check and behind it.
pub struct Guard {
    disk: Disk,
    name: String,
    before: Option<(Epoch, Vec<u8>)>,
}

impl Guard {
    /// Refuses a volume that any host has mounted: on this machine by the locks that each mount
    /// holds, elsewhere by listening for heartbeats. With `hold`, mounts of this machine are kept
    /// off for as long as the device is open.
    ///
    /// # Errors
    /// `Device` saying who has it.
    pub fn new(device: &Arc<FileDevice>, sb: &Superblock, volume: &Volume, hold: bool) -> Result<Guard> {
        use shoal::device::BlockDevice;
        let g = sb.geometry;
        let disk = Disk { device: device.clone(), format_id: sb.format_id, geometry: g };
        let guard = Guard { disk, name: device.name(), before: None };
        let (start, row) = (g.heartbeat_cell(SlotId(0)), u64::from(g.max_slots) * u64::from(g.cell_pitch));
        let free = match hold {
            true => device.try_lock_range(start, row),
            false => device.is_range_locked(start, row).map(|locked| !locked),
        };
        if let Ok(false) = free {
            return guard.refuse("a host on this machine has it mounted");
        }
        // A filesystem without such locks proves nothing.
        let here_only = free.is_ok() && probe::identity(device.file())?.local_filesystem;
        if !here_only && guard.was_ever_mounted()? {
            guard.listen(Timing::of(volume.timing).heartbeat * 4)?;
        }
        Ok(guard)
    }

    fn refuse<T>(&self, what: &str) -> Result<T> {
        Err(Error::Device(format!("{}: {what}; unmount it on every host first", self.name)))
    }

    /// The check begins: remember what hosts write.
    ///
    /// # Errors
    /// The device's.
    pub fn begin(&mut self) -> Result<()> {
        self.before = Some(self.look()?);
        Ok(())
    }

    /// The check has ended: it means something only if no host has come meanwhile.
    ///
    /// # Errors
    /// `Device` if one has.
    pub fn end(&self) -> Result<()> {
        match &self.before {
            Some(before) if *before != self.look()? => {
                self.refuse("a host has mounted it during the check, whose findings are void")
            }
            _ => Ok(()),
        }
    }

    fn look(&self) -> Result<(Epoch, Vec<u8>)> {
        // Ballots that cannot be read are the check's to report.
        let epoch = status::read_status(&self.disk, None).map_or(Epoch(0), |s| s.epoch);
        Ok((epoch, status::heartbeat_row(&self.disk)?))
    }

    fn was_ever_mounted(&self) -> Result<bool> {
        let row = self.disk.read_heartbeats()?;
        Ok(row.iter().any(|h| h.as_ref().is_none_or(|h| h.incarnation.0 != 0)))
    }

    /// Until nothing has moved for `quiet`; a host that moves is an error unless it is leaving.
    fn listen(&self, quiet: Duration) -> Result<()> {
        let patience = Instant::now() + LEAVING_PATIENCE;
        let mut row = status::heartbeat_row(&self.disk)?;
        let mut still_since = Instant::now();
        while still_since.elapsed() < quiet {
            std::thread::sleep(Duration::from_millis(100).min(quiet / 4));
            let now = status::heartbeat_row(&self.disk)?;
            let moved = status::moved_cells(&self.disk, &row, &now);
            if let Some((slot, beat)) = moved.first() {
                let leaving = beat.as_ref().is_some_and(|h| h.flags & FLAG_LEAVING != 0);
                if !leaving || Instant::now() > patience {
                    return self.refuse(&beating(*slot, beat.as_ref()));
                }
                still_since = Instant::now();
            }
            row = now;
        }
        Ok(())
    }
}

fn beating(slot: SlotId, beat: Option<&Heartbeat>) -> String {
    let name = beat.map_or("an unreadable host", |h| h.name.as_str());
    format!("{name} (slot {slot}) has it mounted")
}
