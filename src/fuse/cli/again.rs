//! A second directory for a block device that this machine has mounted: as with the kernel's own filesystems it shows the
//! volume that is mounted already, and makes no other host of it. (An image file may be mounted many times, each time as a
//! host.)

use crate::device::local::{self, DeviceIdentity, Running, Stage};
use crate::device::mountinfo;
use crate::fuse::mount;
use crate::fuse::options::Request;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long, and how often it is looked, whether one that is being mounted has been: the mounts of a table may all begin
/// at once.
const JOINING_MAX: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

/// Shows the volume at `mountpoint`, too. `None`: it is not mounted where it could be seen from here.
pub(super) fn mount(request: &Request, mountpoint: &Path) -> Option<Result<(), String>> {
    let identity = DeviceIdentity::of(&request.volume.device).ok().filter(|identity| identity.rdev != 0)?;
    let daemon = mounted(identity)?.daemon;
    let places = mountinfo::places_of(daemon.connection?).ok()?;
    let shown = request.volume.device.display();
    let there = places.first()?.mountpoint.display();
    if let Some(why) = daemon.halted {
        return Some(Err(format!(
            "{shown}: mounted on {there}, where this host has halted ({why}): unmount it first"
        )));
    }
    if places[0].read_only && !request.volume.read_only {
        return Some(Err(format!(
            "{shown}: mounted read-only on {there}: unmount it there to mount it read-write"
        )));
    }
    let mut failed = None;
    for place in &places {
        match mount::mount_again(place, mountpoint, request.flags) {
            Ok(()) => {
                if request.is_for_volume() && std::io::stderr().is_terminal() {
                    eprintln!(
                        "{shown} is mounted on {there} already, and the options that it has there stand"
                    );
                }
                return Some(Ok(()));
            }
            // Another one may be easier to reach.
            Err(e) => failed = Some(format!("{shown}: mounted on {there}, and not here as well: {e}")),
        }
    }
    failed.map(Err)
}

/// The daemon that has the device mounted, once it has.
fn mounted(identity: DeviceIdentity) -> Option<Running> {
    let begun = Instant::now();
    loop {
        let its = |r: &Running| r.daemon.identity == identity && r.stage != Stage::Leaving;
        let found = local::running().ok()?.into_iter().find(its)?;
        if found.stage == Stage::Mounted || begun.elapsed() > JOINING_MAX {
            return Some(found).filter(|found| found.stage == Stage::Mounted);
        }
        std::thread::sleep(POLL);
    }
}
