//! `shoal tune DEVICE [--timing PROFILE]`: what is the same for all hosts of a volume, changed while none of them
//! has it mounted.

use crate::device::{local, probe};
use crate::format::superblock::TimingProfile;
use crate::fs::tune::set_timing;
use crate::fuse::cli::status::volume::VolumeStatus;
use crate::fuse::cli::{USAGE, complain};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon of an unmounted volume is waited for.
const LEAVING_MAX: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Arguments {
    /// Block device or image file.
    device: PathBuf,
    /// Heartbeat and lease times: default, san or test. Without it, what they are.
    #[arg(long, value_name = "PROFILE", value_parser = TimingProfile::parse)]
    timing: Option<TimingProfile>,
}

/// Changes, and says what.
pub fn run(name: &str, arguments: &Arguments) -> ExitCode {
    match work(arguments) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(what) => complain(name, format_args!("{}: {what}", arguments.device.display()), USAGE),
    }
}

fn work(arguments: &Arguments) -> Result<String, String> {
    let device = &arguments.device;
    let Some(to) = arguments.timing else {
        let volume = VolumeStatus::read(device, true).map_err(|e| e.to_string())?;
        return Ok(format!("timing {}", volume.volume.timing.name()));
    };
    local::wait_for_leaving(device, LEAVING_MAX).map_err(|e| e.to_string())?;
    if let Some(how) = probe::in_use(device).map_err(|e| e.to_string())? {
        return Err(format!("{how}: unmount it on every host first"));
    }
    let before = set_timing(device, to).map_err(|e| e.to_string())?;
    Ok(match before == to {
        true => format!("timing {}, as it was", to.name()),
        false => format!("timing {}, was {}", to.name(), before.name()),
    })
}
