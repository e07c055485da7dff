//! The hosts of a volume in short: who lives, who is dead, and who takes over from whom.

use super::show::{age, state};
use super::volume::VolumeStatus;
use crate::base::SlotId;
use crate::cluster::HostStatus;
use crate::format::cluster::heartbeat::Replaying;
use crate::format::cluster::{Adopter, SlotState};
use serde_json::{Value, json};

/// Slots that a host has, or had.
fn known(volume: &VolumeStatus) -> impl Iterator<Item = &HostStatus> {
    let clean = |h: &&HostStatus| matches!(h.state, SlotState::Clean { .. }) && h.beat.is_some();
    let occupied = |h: &&HostStatus| matches!(h.state, SlotState::Live { .. } | SlotState::Dead { .. });
    volume.cluster.hosts.iter().filter(move |h| occupied(h) || clean(h))
}

fn name(volume: &VolumeStatus, slot: SlotId) -> String {
    let beat = volume.cluster.hosts.iter().find(|h| h.slot == slot).and_then(|h| h.beat.as_ref());
    beat.map_or_else(|| format!("slot {slot}"), |beat| beat.name.clone())
}

/// How far the journal of `slot` is replayed, by whoever is at it.
fn replaying(volume: &VolumeStatus, slot: SlotId) -> Option<&Replaying> {
    let live = volume.cluster.hosts.iter().filter(|h| matches!(h.state, SlotState::Live { .. }));
    let told = live.filter_map(|h| h.beat.as_ref()?.replaying.as_ref());
    told.filter(|r| r.slot == slot).max_by_key(|r| r.since_ms)
}

/// The same in words.
pub fn progress(volume: &VolumeStatus, slot: SlotId) -> Option<String> {
    let r = replaying(volume, slot)?;
    let since = age(volume.now_ms, r.since_ms);
    Some(match r.total {
        0 => format!("its journal is being read, begun {since}"),
        total => format!("{} of {total} blocks of its journal replayed, begun {since}", r.done),
    })
}

/// As JSON; null if nothing is under way.
pub fn replaying_json(volume: &VolumeStatus, slot: SlotId) -> Value {
    let told = |r: &Replaying| json!({ "done": r.done, "total": r.total, "since_ms": r.since_ms });
    replaying(volume, slot).map_or(Value::Null, told)
}

/// Who replays the journal of a dead host.
fn adopter(host: &HostStatus) -> Option<SlotId> {
    match host.state {
        SlotState::Dead { adopter } => Some(adopter),
        _ => None,
    }
}

/// What is to be said beside the state.
fn note(volume: &VolumeStatus, host: &HostStatus) -> String {
    let recovering = |h: &&HostStatus| adopter(h) == Some(host.slot);
    let dead: Vec<String> =
        volume.cluster.hosts.iter().filter(recovering).map(|h| name(volume, h.slot)).collect();
    match host.state {
        SlotState::Dead { adopter } => {
            let progress = progress(volume, host.slot).map_or(String::new(), |told| format!(": {told}"));
            format!("{} takes over from it{progress}", name(volume, adopter))
        }
        SlotState::Live { .. } if replaying(volume, host.slot).is_some() => {
            progress(volume, host.slot).unwrap_or_default()
        }
        SlotState::Live { .. } if host.moving == Some(false) => "what it holds is waited for".into(),
        SlotState::Live { .. } if !dead.is_empty() => format!("takes over from {}", dead.join(", ")),
        SlotState::Clean { adopter: Adopter::Slot(by) } => {
            format!("its space is looked after by {}", name(volume, by))
        }
        _ => String::new(),
    }
}

/// As JSON.
pub fn json(volume: &VolumeStatus) -> Value {
    let node = |h: &HostStatus| {
        json!({ "slot": h.slot.0, "name": h.beat.as_ref().map(|b| &b.name), "state": state(volume, h),
                "last_beat_ms": h.beat.as_ref().map(|b| b.wall_ms), "adopter": adopter(h).map(|s| s.0),
                "replay": replaying_json(volume, h.slot) })
    };
    json!({ "nodes": known(volume).map(node).collect::<Vec<_>>() })
}

/// For a person.
pub fn text(volume: &VolumeStatus) -> String {
    let row = |slot: &str, name: &str, state: &str, beat: &str, note: &str| {
        format!("{slot:>4}  {name:<16} {state:<10} {beat:<12} {note}").trim_end().to_string()
    };
    let mut lines = vec![row("slot", "host", "state", "last beat", "")];
    lines.extend(known(volume).map(|host| {
        let beat = host.beat.as_ref().map_or("never".into(), |b| age(volume.now_ms, b.wall_ms));
        let name = name(volume, host.slot);
        row(&host.slot.to_string(), &name, state(volume, host), &beat, &note(volume, host))
    }));
    lines.join("\n")
}
