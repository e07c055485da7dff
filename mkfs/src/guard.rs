//! What must not be overwritten: a mounted device, a Shoal volume that any host uses, and, unless
//! forced, anything recognisable.

use shoal::base::{Error, Result, SlotId};
use shoal::device::{BlockDevice, FileDevice, probe};
use shoal::format::cluster::{Ballot, Heartbeat, SlotState, View};
use shoal::format::superblock::{self, Superblock, TimingProfile};
use shoal::format::{Block, Geometry};
use std::path::Path;
use std::time::Duration;

fn refuse<T>(dev: &dyn BlockDevice, what: impl std::fmt::Display) -> Result<T> {
    Err(Error::Device(format!("{}: {what}", dev.name())))
}

/// Refuse what the machine has mounted or swaps to. To be asked before the device is opened.
///
/// # Errors
/// `Device` saying where it is mounted.
pub fn check_unused(path: &Path) -> Result<()> {
    match probe::in_use(path)? {
        None => Ok(()),
        Some(how) => Err(Error::Device(format!("{}: {how}; not touched", path.display()))),
    }
}

/// May a volume be made here? `force` overrides what is merely recognisable, never what is in use.
///
/// # Errors
/// `Device` naming what stands there.
pub fn check(dev: &FileDevice, force: bool) -> Result<()> {
    if let Ok((volume, _)) = superblock::load(dev) {
        return check_volume(dev, &volume, force);
    }
    let found = probe::signatures(dev)?;
    if force || found.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = found.iter().map(|s| s.what).collect();
    names.dedup();
    refuse(dev, format_args!("contains {}; use -f to overwrite it", names.join(", ")))
}

fn check_volume(dev: &FileDevice, volume: &Superblock, force: bool) -> Result<()> {
    let g = &volume.geometry;
    let row = u64::from(g.max_slots) * u64::from(g.cell_pitch);
    // Each mount of this machine locks its cell. A filesystem without such locks proves nothing.
    if let Ok(free) = dev.try_lock_range(g.heartbeat_cell(SlotId(0)), row) {
        if !free {
            return refuse(dev, "a Shoal volume that this machine has mounted; not touched");
        }
        dev.unlock_range(g.heartbeat_cell(SlotId(0)), row)?;
    }
    if !force {
        let state = if was_left_clean(dev, volume) { "" } else { " that was not unmounted cleanly" };
        return refuse(dev, format_args!("contains a Shoal volume{state}; use -f to overwrite it"));
    }
    let alive = beating(dev, volume)?;
    if alive.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = alive.iter().map(|h| format!("{} (slot {})", h.name, h.slot)).collect();
    refuse(dev, format_args!("a Shoal volume that is mounted by {}; not touched", names.join(", ")))
}

/// Does the newest decided view name no member and no dead host?
fn was_left_clean(dev: &dyn BlockDevice, volume: &Superblock) -> bool {
    let Some(view) = newest_view(dev, volume) else { return false };
    !view.slots.iter().any(|s| matches!(s.state, SlotState::Live { .. } | SlotState::Dead { .. }))
}

fn newest_view(dev: &dyn BlockDevice, volume: &Superblock) -> Option<View> {
    let g = &volume.geometry;
    let read = |slot: SlotId, copy: u8| {
        let mut block = Block::zeroed();
        dev.read(g.ballot(slot, copy).byte(), &mut block.0).ok()?;
        Ballot::from_block(&block, volume.format_id, g, slot, copy).ok()
    };
    let slots = (0..g.max_slots).map(SlotId);
    let ballots = slots.flat_map(|s| [read(s, 0), read(s, 1)]).flatten();
    ballots.map(|(ballot, _)| ballot.decided).max_by_key(|view| view.epoch)
}

/// Long enough for several heartbeats of a living host.
fn listening_time(timing: TimingProfile) -> Duration {
    match timing {
        TimingProfile::Default => Duration::from_secs(5),
        TimingProfile::San => Duration::from_secs(10),
        TimingProfile::Test => Duration::from_secs(1),
    }
}

/// Hosts whose heartbeat moves. Listens only if any host ever mounted the volume.
fn beating(dev: &dyn BlockDevice, volume: &Superblock) -> Result<Vec<Heartbeat>> {
    let g = &volume.geometry;
    let before = read_row(dev, g)?;
    let cell = |row: &[u8], slot: u16| {
        let pitch = g.cell_pitch as usize;
        row[usize::from(slot) * pitch..][..pitch].to_vec()
    };
    let decode = |row: &[u8], slot: u16| {
        Heartbeat::from_cell(&cell(row, slot), volume.format_id, g, SlotId(slot)).ok()
    };
    // A cell that cannot be read may be one that is being written.
    let ever = (0..g.max_slots).any(|s| decode(&before, s).is_none_or(|h| h.incarnation.0 != 0));
    if !ever {
        return Ok(Vec::new());
    }
    std::thread::sleep(listening_time(volume.timing));
    let after = read_row(dev, g)?;
    let moved = (0..g.max_slots).filter(|s| cell(&before, *s) != cell(&after, *s));
    Ok(moved
        .map(|s| {
            decode(&after, s).unwrap_or_else(|| Heartbeat {
                slot: SlotId(s),
                name: "an unreadable host".into(),
                ..Heartbeat::default()
            })
        })
        .collect())
}

fn read_row(dev: &dyn BlockDevice, g: &Geometry) -> Result<Vec<u8>> {
    let mut row = vec![0; usize::from(g.max_slots) * g.cell_pitch as usize];
    dev.read(g.heartbeat_cell(SlotId(0)), &mut row)?;
    Ok(row)
}
