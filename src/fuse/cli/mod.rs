//! The commands around a mounted volume, in one program that looks at the name it was called by:
//! `shoal`, `mount.fuse.shoal` (called by mount(8)), `umount.fuse.shoal` (called by umount(8)).

mod again;
mod fence;
mod mount;
mod status;
mod tune;
mod umount;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Exit codes of mount(8).
const USAGE: u8 = 1;
const FAILED: u8 = 32;

/// Mount, unmount and look at Shoal volumes.
#[derive(Parser)]
#[command(name = "shoal", version)]
struct Shoal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount a volume at a directory.
    Mount(mount::Arguments),
    /// Unmount a volume and wait until this host has left it.
    Umount(umount::Arguments),
    /// Show volumes mounted on this machine, or the hosts that have a given one.
    Status(status::Arguments),
    /// List the hosts of a volume in short: who lives, who is dead, and who takes over from whom.
    Nodes(status::NodesArguments),
    /// Change the heartbeat and lease times of a volume that no host has mounted.
    Tune(tune::Arguments),
    /// Show who is registered with a device that keeps dead hosts off, or free it.
    Fence(fence::Arguments),
}

/// Runs the command that the first argument names and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let name = arguments.first().and_then(|a| Path::new(a).file_name()).unwrap_or_default().to_owned();
    // The helpers are the subcommands under the names that mount(8) and umount(8) look for.
    let helper = match name.to_str() {
        Some("mount.fuse.shoal" | "mount.fuseblk.shoal" | "mount.shoal") => Some("mount"),
        Some("umount.fuse.shoal" | "umount.fuseblk.shoal" | "umount.shoal") => Some("umount"),
        _ => None,
    };
    if let Some(subcommand) = helper {
        arguments.splice(..1, ["shoal".into(), subcommand.into()]);
    }
    let name = helper.map_or("shoal".into(), |_| name.to_string_lossy().into_owned());
    match Shoal::try_parse_from(arguments) {
        Ok(Shoal { command: Command::Mount(a) }) => mount::run(&name, a),
        Ok(Shoal { command: Command::Umount(a) }) => umount::run(&name, &a),
        Ok(Shoal { command: Command::Status(a) }) => status::run(&name, &a),
        Ok(Shoal { command: Command::Nodes(a) }) => status::run_nodes(&name, &a),
        Ok(Shoal { command: Command::Tune(a) }) => tune::run(&name, &a),
        Ok(Shoal { command: Command::Fence(a) }) => fence::run(&name, &a),
        Err(e) => {
            // Help and version are no errors to clap's printing, which goes to the right stream.
            let _ = e.print();
            if e.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        }
    }
}

/// Says what failed, in one line after the command's name.
fn complain(name: &str, what: impl std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("{name}: {what}");
    ExitCode::from(code)
}
