//! `shoal status [--json] [DEVICE]`: the mounts of this machine, or who has a volume. The second
//! needs nothing but the device, and works from any host.

pub mod fence;
mod nodes;
mod show;
pub mod volume;

use crate::device::local::{self, Running, Stage};
use crate::fuse::cli::{USAGE, complain};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use volume::VolumeStatus;

#[derive(clap::Args)]
pub struct Arguments {
    /// Block device or image file; without it, what is mounted on this machine.
    device: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// List every allocation group.
    #[arg(long)]
    groups: bool,
    /// Do not wait to see whose heartbeat moves.
    #[arg(long)]
    quick: bool,
}

/// Of `shoal nodes`.
#[derive(clap::Args)]
pub struct NodesArguments {
    /// Block device or image file.
    device: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the hosts of a volume, the dead and those who left included, and who waits for whom.
pub fn run_nodes(name: &str, arguments: &NodesArguments) -> ExitCode {
    match VolumeStatus::read(&arguments.device, false) {
        Ok(volume) if arguments.json => println!("{}", nodes::json(&volume)),
        Ok(volume) => println!("{}", nodes::text(&volume)),
        Err(e) => return complain(name, e, USAGE),
    }
    ExitCode::SUCCESS
}

/// Prints what was asked.
pub fn run(name: &str, arguments: &Arguments) -> ExitCode {
    let shown = match &arguments.device {
        Some(device) => volume_status(device, arguments),
        None => mounts_status(arguments.json),
    };
    match shown {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(what) => complain(name, what, USAGE),
    }
}

fn stage(running: &Running) -> &'static str {
    match running.stage {
        Stage::Joining => "joining",
        Stage::Mounted => "mounted",
        Stage::Leaving => "leaving",
    }
}

fn mounts_status(as_json: bool) -> std::result::Result<String, String> {
    let found = local::running().map_err(|e| e.to_string())?;
    if as_json {
        let list: Vec<Value> = found
            .iter()
            .map(|r| {
                json!({ "device": r.daemon.device, "mountpoint": r.daemon.mountpoint,
                        "pid": r.daemon.pid, "stage": stage(r), "halted": r.daemon.halted })
            })
            .collect();
        return Ok(json!({ "mounts": list }).to_string());
    }
    if found.is_empty() {
        return Ok("no Shoal volume is mounted on this machine".into());
    }
    let line = |r: &Running| {
        let (device, mountpoint) = (r.daemon.device.display(), r.daemon.mountpoint.display());
        let stage = match &r.daemon.halted {
            Some(why) => format!("halted: {why}; unmount it and mount it again"),
            None => stage(r).to_string(),
        };
        format!("{device} on {mountpoint}: {stage}, process {}", r.daemon.pid)
    };
    Ok(found.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn volume_status(path: &Path, arguments: &Arguments) -> std::result::Result<String, String> {
    let volume = VolumeStatus::read(path, arguments.quick).map_err(|e| e.to_string())?;
    Ok(match arguments.json {
        true => show::json(&volume).to_string(),
        false => show::text(&volume, arguments.groups),
    })
}
