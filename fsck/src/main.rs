//! fsck.shoal. Checking is not built yet: it refuses, so that nobody takes a volume for checked.

use std::process::ExitCode;

/// Exit code of fsck(8) for an operational error.
const OPERATIONAL: u8 = 8;

fn main() -> ExitCode {
    let device = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_else(|| "DEVICE".into());
    eprintln!(
        "fsck.shoal: {device}: not checked: this release cannot check volumes yet. \
         Mounting replays the journals of hosts that died; nothing else is needed after a crash."
    );
    ExitCode::from(OPERATIONAL)
}
