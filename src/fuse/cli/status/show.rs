//! A volume's status for a person, and for a program.

use super::fence;
use super::nodes::{progress, replaying_json};
use super::volume::{GroupStatus, VolumeStatus};
use crate::base::SlotId;
use crate::cluster::HostStatus;
use crate::format::cluster::SlotState;
use crate::format::cluster::heartbeat::{FLAG_FENCING, FLAG_LEAVING, FLAG_RECOVERING, FLAG_REPLAYING};
use serde_json::{Value, json};

/// MiB of blocks.
fn mib(blocks: u64) -> u64 {
    blocks >> 8
}

/// What is said of a host. How far a dead one is, its adopter's heartbeat tells.
pub fn state(volume: &VolumeStatus, host: &HostStatus) -> &'static str {
    let flags_of = |host: &HostStatus| host.beat.as_ref().map_or(0, |b| b.flags);
    let flags = flags_of(host);
    let adopter = |slot| volume.cluster.hosts.iter().find(|h| h.slot == slot).map_or(0, flags_of);
    match host.state {
        SlotState::Empty => "empty",
        SlotState::Live { .. } if host.moving == Some(false) => "stalled",
        SlotState::Live { .. } if flags & FLAG_LEAVING != 0 => "leaving",
        SlotState::Live { .. } if flags & FLAG_RECOVERING != 0 => "recovering",
        SlotState::Live { .. } => "member",
        SlotState::Dead { adopter: by } if adopter(by) & FLAG_REPLAYING != 0 => "replaying",
        SlotState::Dead { adopter: by } if adopter(by) & FLAG_FENCING != 0 => "fencing",
        SlotState::Dead { .. } => "dead",
        SlotState::Clean { .. } => "clean",
    }
}

/// Groups of an owner: how many, their blocks, their free blocks.
fn space(volume: &VolumeStatus, owner: Option<SlotId>) -> (usize, u64, u64) {
    let of = volume.groups.iter().filter(|g| g.owner == owner);
    of.fold((0, 0, 0), |(n, size, free), g| (n + 1, size + g.blocks, free + g.free.unwrap_or(0)))
}

/// As JSON: sizes in blocks of 4096 bytes, times in milliseconds.
pub fn json(volume: &VolumeStatus) -> Value {
    let hosts: Vec<Value> = volume.cluster.hosts.iter().map(|h| host_json(volume, h)).collect();
    let group = |g: &GroupStatus| json!({ "group": g.ag.0, "owner": g.owner.map(|s| s.0), "blocks": g.blocks, "free": g.free });
    json!({
        "device": volume.path,
        "uuid": uuid::Uuid::from_bytes(volume.superblock.uuid).to_string(),
        "label": volume.volume.label,
        "blocks": volume.volume.total_blocks,
        "slots": volume.volume.slots.len(),
        "timing": volume.volume.timing,
        "fence": fence::json(volume),
        "epoch": volume.cluster.epoch.0,
        "clean": volume.cluster.is_clean(),
        "hosts": hosts,
        "groups": volume.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

fn host_json(volume: &VolumeStatus, host: &HostStatus) -> Value {
    let beat = host.beat.as_ref();
    let (groups, blocks, free) = space(volume, Some(host.slot));
    let journal = volume.journal(host.slot);
    json!({
        "slot": host.slot.0, "state": state(volume, host), "incarnation": host.incarnation.0.to_string(),
        "beating": host.moving, "name": beat.map(|b| &b.name), "device": beat.map(|b| &b.device),
        "last_beat_ms": beat.map(|b| b.wall_ms), "groups": groups, "blocks": blocks, "free": free,
        "journal_used": journal.map(|(used, _)| used), "journal_blocks": journal.map(|(_, ring)| ring),
        "replay": replaying_json(volume, host.slot),
    })
}

/// For a person; `groups`: one line for each group, too.
pub fn text(volume: &VolumeStatus, groups: bool) -> String {
    let v = &volume.volume;
    let mut lines = vec![format!(
        "{}: volume {}, label '{}', {} MiB in {} groups, {} slots, view {}, timing {}",
        volume.path.display(),
        uuid::Uuid::from_bytes(volume.superblock.uuid),
        v.label,
        mib(v.total_blocks),
        v.ag_count,
        v.slots.len(),
        volume.cluster.epoch,
        v.timing.name(),
    )];
    lines.extend(fence::text(volume));
    lines.push(row(["slot", "host", "state", "last beat", "groups", "free", "journal"].map(String::from)));
    let hosts: Vec<&HostStatus> = volume.cluster.occupied().collect();
    lines.extend(hosts.iter().map(|h| host_row(volume, h)));
    lines.push(others_row(volume, &hosts));
    lines.extend(hosts.iter().filter_map(|h| {
        let name = h.beat.as_ref().map_or("?", |b| &b.name);
        progress(volume, h.slot).map(|told| format!("{name} (slot {}): {told}", h.slot))
    }));
    if volume.cluster.is_clean() {
        lines.push("no host has it mounted; it was left in order".into());
    }
    if groups {
        lines.extend(volume.groups.iter().map(group_line));
    }
    lines.join("\n")
}

fn row(cells: [String; 7]) -> String {
    let [slot, host, state, beat, groups, free, journal] = cells;
    let line = format!("{slot:>4}  {host:<16} {state:<10} {beat:<12} {groups:>6}  {free:<20} {journal}");
    line.trim_end().to_string()
}

fn free_of(blocks: u64, free: u64) -> String {
    format!("{} of {} MiB", mib(free), mib(blocks))
}

fn host_row(volume: &VolumeStatus, host: &HostStatus) -> String {
    let (groups, blocks, free) = space(volume, Some(host.slot));
    let beat = host.beat.as_ref();
    let journal = volume.journal(host.slot).map_or("?".into(), |(used, ring)| {
        format!("{}% of {} MiB", used * 100 / ring.max(1), ring.div_ceil(256))
    });
    row([
        host.slot.to_string(),
        beat.map_or("?".into(), |b| b.name.clone()),
        state(volume, host).into(),
        beat.map_or("never".into(), |b| age(volume.now_ms, b.wall_ms)),
        groups.to_string(),
        free_of(blocks, free),
        journal,
    ])
}

/// The groups that no host of the list has.
fn others_row(volume: &VolumeStatus, hosts: &[&HostStatus]) -> String {
    let listed = |g: &&GroupStatus| !hosts.iter().any(|h| Some(h.slot) == g.owner);
    let rest: Vec<&GroupStatus> = volume.groups.iter().filter(listed).collect();
    let (blocks, free) =
        rest.iter().fold((0, 0), |(size, free), g| (size + g.blocks, free + g.free.unwrap_or(0)));
    let [none, nobody] = ["-".to_string(), "(nobody)".to_string()];
    let empty = String::new();
    row([none, nobody, empty.clone(), empty.clone(), rest.len().to_string(), free_of(blocks, free), empty])
}

/// By the clocks of two hosts, which need not agree.
pub fn age(now_ms: u64, then_ms: u64) -> String {
    match now_ms.checked_sub(then_ms) {
        None => "now".into(),
        Some(ms) if ms < 10_000 => format!("{}.{} s ago", ms / 1000, ms % 1000 / 100),
        Some(ms) if ms < 600_000 => format!("{} s ago", ms / 1000),
        Some(ms) if ms < 172_800_000 => format!("{} min ago", ms / 60_000),
        Some(ms) => format!("{} days ago", ms / 86_400_000),
    }
}

fn group_line(g: &GroupStatus) -> String {
    let owner = g.owner.map_or("nobody".into(), |s| format!("slot {s}"));
    let free = g.free.map_or("unreadable".into(), |free| free_of(g.blocks, free));
    format!("group {:>5}  {owner:<8} {free}", g.ag.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_fitting_units() {
        assert_eq!(age(1000, 2000), "now");
        assert_eq!(age(10_250, 7000), "3.2 s ago");
        assert_eq!(age(100_000, 0), "100 s ago");
        assert_eq!(age(3_600_000, 0), "60 min ago");
        assert_eq!(age(864_000_000, 0), "10 days ago");
    }
}
