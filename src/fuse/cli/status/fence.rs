//! How hosts that die are kept off, as `shoal status` and `shoal fence` tell it.

use super::volume::VolumeStatus;
use crate::base::SlotId;
use crate::cluster::keys::{is_of_volume, key_of};
use crate::device::reservation::{Kind, Report};
use crate::format::cluster::FenceClass;
use serde_json::{Value, json};

/// What a class covers and what not.
pub fn covers(class: FenceClass) -> &'static str {
    match class {
        FenceClass::Lease => {
            "by time alone. Covered: hosts that crash, hang, lose the disk or are stopped. Not covered: a machine \
             that is paused as a whole and goes on with writes queued: do not pause, suspend or roll back hosts that \
             have it mounted"
        }
        FenceClass::Reservation => {
            "by the device itself. Covered: whatever becomes of a host, a machine that is paused as a whole included"
        }
        FenceClass::Command => {
            "by the administrator's command. Covered: whatever that makes certain; where it fails, nothing is taken over"
        }
    }
}

fn name(class: Option<FenceClass>) -> &'static str {
    class.map_or("of a later release", FenceClass::name)
}

/// Whose a key is, as far as the volume tells.
fn owner(volume: &VolumeStatus, key: u64) -> String {
    let format_id = volume.superblock.format_id;
    let of = volume.cluster.hosts.iter().find(|h| key_of(format_id, h.incarnation) == key);
    match of {
        Some(host) => {
            let name = host.beat.as_ref().map_or("?", |b| &b.name);
            format!("{name} (slot {})", host.slot)
        }
        None if key == 0 => "a host that has left".into(),
        None if is_of_volume(format_id, key) => "a mount of this volume that is over, or begins".into(),
        None => "not of this volume".into(),
    }
}

/// The reservation in words.
pub fn reservation(report: &Report) -> &'static str {
    match report.held.map(|held| held.kind) {
        None => "none",
        Some(None) => "of another kind than this program makes",
        Some(Some(Kind::AllRegistrants)) => "write exclusive, all registrants",
        Some(Some(Kind::RegistrantsOnly)) => "write exclusive, registrants only",
    }
}

/// One line for each key.
pub fn keys(volume: &VolumeStatus, report: &Report) -> Vec<String> {
    let line = |key: &u64| format!("  key {key:#018x}: {}", owner(volume, *key));
    let mut lines = vec![format!("  reservation: {}", reservation(report))];
    lines.extend(report.keys.iter().map(line));
    lines
}

/// For a person.
pub fn text(volume: &VolumeStatus) -> Vec<String> {
    let class = volume.cluster.fence;
    let mut lines = vec![match class {
        Some(class) => format!("fence {}: dead hosts are kept off {}", class.name(), covers(class)),
        None => format!("fence {}", name(class)),
    }];
    let reserved = |report: &&Report| report.held.is_some() || !report.keys.is_empty();
    match volume.keys.as_ref().filter(reserved) {
        Some(report) => lines.extend(keys(volume, report)),
        None if class == Some(FenceClass::Reservation) => lines.push(match &volume.keys {
            Some(_) => "  nobody is registered with the device".into(),
            None => "  the keys cannot be read from here".into(),
        }),
        None => {}
    }
    for trouble in volume.cluster.fence_troubles() {
        let of = |h: &&crate::cluster::HostStatus| h.slot == trouble.slot;
        let beat = volume.cluster.hosts.iter().find(of).and_then(|h| h.beat.as_ref());
        let name = beat.map_or("?", |b| &b.name);
        lines.push(format!(
            "  CANNOT BE KEPT OFF: {name} (slot {}), {} attempts: {}; what it held stays locked",
            trouble.slot, trouble.attempts, trouble.error
        ));
    }
    lines
}

/// For a program.
pub fn json(volume: &VolumeStatus) -> Value {
    let class = volume.cluster.fence;
    let slot = |s: SlotId| s.0;
    let keys = volume.keys.as_ref().map(|report| {
        let key = |key: &u64| json!({ "key": format!("{key:#018x}"), "owner": owner(volume, *key) });
        json!({ "reservation": reservation(report), "keys": report.keys.iter().map(key).collect::<Vec<_>>() })
    });
    let failing: Vec<Value> = volume
        .cluster
        .fence_troubles()
        .map(|t| json!({ "slot": slot(t.slot), "attempts": t.attempts, "error": t.error }))
        .collect();
    json!({
        "class": name(class), "covers": class.map(covers), "device": keys, "failing": failing,
        "somebody_was_kept_off": volume.cluster.fenced,
    })
}
