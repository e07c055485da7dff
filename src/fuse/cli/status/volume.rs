//! What a volume's device says about its hosts and its space.

use crate::base::{AgNo, Result, SlotId};
use crate::cluster::{ClusterStatus, Disk, Timing, profile, read_status, status};
use crate::device::pr::KernelReservations;
use crate::device::reservation::{Report, Reservations};
use crate::device::{Access, FileDevice, Medium};
use crate::format::Geometry;
use crate::format::group;
use crate::format::journal::HEADER_BLOCKS;
use crate::format::superblock::{self, LoadedFrom, Superblock};
use crate::format::volume::{self, Volume};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A group and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct GroupStatus {
    pub ag: AgNo,
    pub owner: Option<SlotId>,
    pub blocks: u64,
    /// As its header says, which is seconds old where a host works in it; `None` if it cannot be read.
    pub free: Option<u64>,
}

/// Everything that `shoal status DEVICE` shows.
pub struct VolumeStatus {
    pub path: PathBuf,
    pub superblock: Superblock,
    pub volume: Volume,
    pub cluster: ClusterStatus,
    pub groups: Vec<GroupStatus>,
    /// The keys registered with the device, where it has reservations and tells.
    pub keys: Option<Report>,
    /// Milliseconds since 1970, by this host.
    pub now_ms: u64,
}

impl VolumeStatus {
    /// Look at a device; unless `quick`, long enough to see whose heartbeat moves.
    ///
    /// # Errors
    /// `Device` if it holds no volume; `Io`.
    pub fn read(path: &Path, quick: bool) -> Result<VolumeStatus> {
        let device = Arc::new(FileDevice::open(path, Access::Read)?);
        let (superblock, from) = superblock::load(&*device)?;
        if let LoadedFrom::Backup(block) = from {
            let path = path.display();
            eprintln!(
                "{path}: the superblock is damaged; using its backup in block {block}. Run fsck.shoal on the \
                 unmounted volume"
            );
        }
        let mut volume = volume::load(&*device, &superblock)?;
        let (geometry, format_id) = (volume.geometry(&superblock), superblock.format_id);
        let keys = match device.medium() {
            Medium::Block => KernelReservations::new(device.clone()).report().ok(),
            Medium::File => None,
        };
        let disk = Disk { device, format_id, geometry };
        volume.timing = profile(&disk, volume.timing)?;
        let timing = Timing::of(volume.timing);
        let cluster = read_status(&disk, (!quick).then(|| timing.heartbeat * 5 / 2))?;
        let groups = groups(&disk, &geometry)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Ok(VolumeStatus { path: path.to_owned(), superblock, volume, cluster, groups, keys, now_ms })
    }

    /// Blocks in use and blocks of the ring of a slot's journal.
    pub fn journal(&self, slot: SlotId) -> Option<(u64, u64)> {
        let host = self.cluster.hosts.iter().find(|h| h.slot == slot)?;
        let beat = host.beat.as_ref()?;
        let extents = self.volume.slots.get(usize::from(slot.0))?;
        let ring = extents.journal_blocks.saturating_sub(HEADER_BLOCKS);
        Some((beat.journal_head.saturating_sub(beat.journal_tail).min(ring), ring))
    }
}

fn groups(disk: &Disk, geometry: &Geometry) -> Result<Vec<GroupStatus>> {
    let owners = status::read_owners(disk)?;
    let look = |(i, owner): (usize, Option<SlotId>)| {
        let ag = AgNo(i as u32);
        let header = group::read_header(&*disk.device, geometry, disk.format_id, ag);
        let free = header.ok().map(|h| h.free_blocks());
        GroupStatus { ag, owner, blocks: geometry.ag_len(ag), free }
    };
    Ok(owners.into_iter().enumerate().map(look).collect())
}
