//! Who has the volume, from the device alone: for `shoal status`, mkfs and fsck.

use crate::base::{Epoch, Incarnation, Result, SlotId};
use crate::cluster::disk::Disk;
use crate::cluster::view::slots;
use crate::format::cluster::{Heartbeat, SlotState, View};
use std::time::Duration;

/// One slot that has, or has had, a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    pub slot: SlotId,
    pub state: SlotState,
    pub incarnation: Incarnation,
    /// The last heartbeat of that incarnation, if it ever beat.
    pub beat: Option<Heartbeat>,
    /// Did the heartbeat move while we looked? `None` if it was looked at once.
    pub moving: Option<bool>,
}

/// The newest view, slot by slot (those that never had a host left out).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    pub epoch: Epoch,
    pub hosts: Vec<HostStatus>,
}

impl ClusterStatus {
    pub(super) fn new(
        view: &View,
        row: &[Option<Heartbeat>],
        moving: impl Fn(SlotId) -> Option<bool>,
    ) -> ClusterStatus {
        let host = |(slot, s): (SlotId, &crate::format::cluster::SlotView)| {
            let beat = row.get(usize::from(slot.0)).cloned().flatten();
            let beat = beat.filter(|h| h.incarnation == s.incarnation && h.incarnation.0 != 0);
            HostStatus { slot, state: s.state, incarnation: s.incarnation, beat, moving: moving(slot) }
        };
        let hosts = slots(view).filter(|(_, s)| s.incarnation.0 != 0).map(host).collect();
        ClusterStatus { epoch: view.epoch, hosts }
    }

    /// Members and dead hosts: those whose journals may hold something.
    pub fn occupied(&self) -> impl Iterator<Item = &HostStatus> {
        let occupied = |h: &&HostStatus| matches!(h.state, SlotState::Live { .. } | SlotState::Dead { .. });
        self.hosts.iter().filter(occupied)
    }

    /// Does any member's heartbeat move?
    pub fn is_anybody_alive(&self) -> bool {
        self.occupied().any(|h| h.moving == Some(true))
    }

    /// Did everybody leave in order, so that no journal holds anything?
    pub fn is_clean(&self) -> bool {
        self.occupied().next().is_none()
    }
}

/// The heartbeat row, byte for byte.
///
/// # Errors
/// The device's.
pub fn heartbeat_row(disk: &Disk) -> Result<Vec<u8>> {
    let g = &disk.geometry;
    let mut row = vec![0; usize::from(g.max_slots) * g.cell_pitch as usize];
    disk.device.read(g.heartbeat_cell(SlotId(0)), &mut row)?;
    Ok(row)
}

/// Slots whose cell is another in `now` than in `before`, with what it says if it can be read. An
/// unreadable cell that stands still is damage, not life.
pub fn moved_cells(disk: &Disk, before: &[u8], now: &[u8]) -> Vec<(SlotId, Option<Heartbeat>)> {
    let g = &disk.geometry;
    let pitch = g.cell_pitch as usize;
    let cells = before.chunks_exact(pitch).zip(now.chunks_exact(pitch));
    let moved = (0..g.max_slots).map(SlotId).zip(cells).filter(|(_, (a, b))| a != b);
    moved.map(|(slot, (_, b))| (slot, Heartbeat::from_cell(b, disk.format_id, g, slot).ok())).collect()
}

/// Read the view and the heartbeats; with `look`, read the heartbeats again after that time to see
/// which move (take two heartbeats of the slowest profile, or the volume's own).
///
/// # Errors
/// The device's, or unreadable ballots.
pub fn read_status(disk: &Disk, look: Option<Duration>) -> Result<ClusterStatus> {
    let before = disk.read_heartbeats()?;
    let now = match look {
        Some(pause) => {
            std::thread::sleep(pause);
            disk.read_heartbeats()?
        }
        None => before.clone(),
    };
    let ballots = disk.read_ballots()?;
    let views = ballots.into_iter().map(|(b, _)| b.decided);
    let view = views.max_by_key(|v| v.epoch).unwrap_or_else(|| View::initial(0, 0));
    let moved = |slot: SlotId| {
        let at = usize::from(slot.0);
        look.map(|_| match (&before[at], &now[at]) {
            (Some(a), Some(b)) => (a.incarnation, a.counter) != (b.incarnation, b.counter),
            // Unreadable at one of the looks: somebody was writing it.
            _ => true,
        })
    };
    Ok(ClusterStatus::new(&view, &now, moved))
}
