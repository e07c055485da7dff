//! `shoal status [--json] [DEVICE]`: the mounts of this machine, or who has a volume. The second
//! needs nothing but the device.

use crate::base::Result;
use crate::cluster::{ClusterStatus, Disk, HostStatus, Timing, read_status};
use crate::device::local::{self, Running, Stage};
use crate::device::{Access, FileDevice};
use crate::format::cluster::SlotState;
use crate::format::superblock::{self, LoadedFrom, Superblock, TimingProfile};
use crate::format::volume::{self, Volume};
use crate::fuse::cli::{USAGE, complain};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Arguments {
    /// Block device or image file; without it, what is mounted on this machine.
    device: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Do not wait to see whose heartbeat moves.
    #[arg(long)]
    quick: bool,
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
                        "pid": r.daemon.pid, "stage": stage(r) })
            })
            .collect();
        return Ok(json!({ "mounts": list }).to_string());
    }
    if found.is_empty() {
        return Ok("no Shoal volume is mounted on this machine".into());
    }
    let line = |r: &Running| {
        let (device, mountpoint) = (r.daemon.device.display(), r.daemon.mountpoint.display());
        format!("{device} on {mountpoint}: {}, process {}", stage(r), r.daemon.pid)
    };
    Ok(found.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn volume_status(device: &Path, arguments: &Arguments) -> std::result::Result<String, String> {
    let (superblock, volume, status) = read(device, arguments.quick).map_err(|e| e.to_string())?;
    let uuid = uuid::Uuid::from_bytes(superblock.uuid).to_string();
    if arguments.json {
        let hosts: Vec<Value> = status.hosts.iter().map(host_json).collect();
        return Ok(json!({
            "device": device, "uuid": uuid, "label": volume.label, "blocks": volume.total_blocks,
            "groups": volume.ag_count, "slots": volume.slots.len(), "epoch": status.epoch.0,
            "clean": status.is_clean(), "hosts": hosts,
        })
        .to_string());
    }
    let mut lines = vec![format!(
        "{}: volume {uuid}, label '{}', {} MiB in {} groups, {} slots, view {}",
        device.display(),
        volume.label,
        volume.total_blocks >> 8,
        volume.ag_count,
        volume.slots.len(),
        status.epoch,
    )];
    lines.extend(status.occupied().map(host_line));
    if status.is_clean() {
        lines.push("no host has it mounted; it was left in order".into());
    }
    Ok(lines.join("\n"))
}

fn read(path: &Path, quick: bool) -> Result<(Superblock, Volume, ClusterStatus)> {
    let device = Arc::new(FileDevice::open(path, Access::Read)?);
    let (superblock, from) = superblock::load(&*device)?;
    if let LoadedFrom::Backup(block) = from {
        let path = path.display();
        eprintln!(
            "{path}: the superblock is damaged; using its backup in block {block}. Run fsck.shoal on the unmounted volume"
        );
    }
    let volume = volume::load(&*device, &superblock)?;
    let timing = match volume.timing {
        TimingProfile::Default => Timing::DEFAULT,
        TimingProfile::San => Timing::SAN,
        TimingProfile::Test => Timing::TEST,
    };
    let disk = Disk { device, format_id: superblock.format_id, geometry: superblock.geometry };
    let look = (!quick).then(|| timing.heartbeat * 5 / 2);
    let status = read_status(&disk, look)?;
    Ok((superblock, volume, status))
}

fn state(host: &HostStatus) -> &'static str {
    match host.state {
        SlotState::Empty => "empty",
        SlotState::Live { .. } => "member",
        SlotState::Dead { .. } => "dead",
        SlotState::Clean { .. } => "left",
    }
}

fn host_json(host: &HostStatus) -> Value {
    let beat = host.beat.as_ref();
    json!({
        "slot": host.slot.0, "state": state(host), "incarnation": host.incarnation.0.to_string(),
        "beating": host.moving, "name": beat.map(|b| &b.name), "device": beat.map(|b| &b.device),
        "free_data_blocks": beat.map(|b| b.free_data), "groups": beat.map(|b| b.groups),
        "journal_head": beat.map(|b| b.journal_head), "journal_tail": beat.map(|b| b.journal_tail),
    })
}

fn host_line(host: &HostStatus) -> String {
    let beating = match host.moving {
        Some(true) => ", beating",
        Some(false) => ", no heartbeat seen",
        None => "",
    };
    match &host.beat {
        Some(b) => format!(
            "  slot {}: {} ({}){beating}, {} groups, {} MiB free",
            host.slot,
            b.name,
            state(host),
            b.groups,
            b.free_data >> 8
        ),
        None => format!("  slot {}: {}{beating}", host.slot, state(host)),
    }
}
