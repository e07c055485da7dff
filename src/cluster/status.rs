//! Who has the volume, from the device alone: for `shoal status`, mkfs and fsck.

use crate::base::{Epoch, Error, Incarnation, Result, SlotId, Token};
use crate::cluster::disk::Disk;
use crate::cluster::view::{bit, dead, live, slots};
use crate::format::cluster::heartbeat::FenceTrouble;
use crate::format::cluster::{FenceClass, Heartbeat, LedgerEntry, SlotState, View};
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
    /// How hosts that die are kept off; `None`: a number that this code does not know.
    pub fence: Option<FenceClass>,
    /// A host was kept off by the device since its reservation was made.
    pub fenced: bool,
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
        let fence = FenceClass::from_raw(view.fence);
        ClusterStatus { epoch: view.epoch, fence, fenced: view.fenced, hosts }
    }

    /// Members and dead hosts: those whose journals may hold something.
    pub fn occupied(&self) -> impl Iterator<Item = &HostStatus> {
        let occupied = |h: &&HostStatus| matches!(h.state, SlotState::Live { .. } | SlotState::Dead { .. });
        self.hosts.iter().filter(occupied)
    }

    /// Dead hosts that cannot be kept off the disk, as those say that see to them.
    pub fn fence_troubles(&self) -> impl Iterator<Item = &FenceTrouble> {
        let live = self.hosts.iter().filter(|h| matches!(h.state, SlotState::Live { .. }));
        live.filter_map(|h| h.beat.as_ref()?.fencing.as_ref())
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

/// The heartbeat row, byte for byte. A cell that the device cannot read is empty, if it is a sector that was torn, or of
/// a slot that nobody has.
///
/// # Errors
/// The device's.
pub fn heartbeat_row(disk: &Disk) -> Result<Vec<u8>> {
    let (row, lost) = disk.read_heartbeat_row()?;
    if lost {
        let views = disk.read_ballots()?.into_iter().map(|(b, _)| b.decided);
        let taken = views.max_by_key(|v| v.epoch).map_or(u64::MAX, |view| live(&view) | dead(&view));
        let slots = (0..disk.geometry.max_slots).map(SlotId);
        slots.filter(|slot| taken & bit(*slot) != 0).try_for_each(|slot| disk.is_torn_at_most(slot))?;
    }
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

/// The slot that owns each group, by the ledgers; `None` if none does, or its ledger cannot be read.
///
/// # Errors
/// The device's.
pub fn read_owners(disk: &Disk) -> Result<Vec<Option<SlotId>>> {
    let mut owners = vec![(Token(0), None); disk.geometry.ag_count as usize];
    for slot in (0..disk.geometry.max_slots).map(SlotId) {
        let pages = match disk.read_ledger(slot) {
            Ok(pages) => pages,
            Err(e @ Error::Io { .. }) => return Err(e),
            Err(_) => continue,
        };
        let entries = pages.iter().flat_map(|(page, _)| &page.entries);
        for (owner, entry) in owners.iter_mut().zip(entries) {
            let to = match entry {
                LedgerEntry::None => continue,
                LedgerEntry::Own(_) => slot,
                LedgerEntry::Pass { to, .. } => *to,
            };
            if entry.token() > owner.0 {
                *owner = (entry.token(), Some(to));
            }
        }
    }
    Ok(owners.into_iter().map(|(_, slot)| slot).collect())
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
