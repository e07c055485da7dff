//! The sizes of a new volume.

use shoal::base::{AgNo, BLOCK_SIZE, BlockNo, Error, InodeNo, Result, SlotId};
use shoal::device::BlockDevice;
use shoal::format::Geometry;
use shoal::format::layout::{
    BACKUP_SUPERBLOCK, CHUNK_BLOCKS, GROUPS_MAX, LEDGER_ENTRIES_PER_PAGE, SLOTS_MAX,
};
use shoal::format::superblock::{Superblock, TimingProfile};
use shoal::format::volume::{LABEL_MAX, SlotExtents, Volume};
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Smallest volume.
pub const SIZE_MIN: u64 = 64 * MIB;
const AG_MIN: u64 = 8 * MIB;
const AG_MAX: u64 = 64 * GIB;
const JOURNAL_MIN: u64 = 4 * MIB;
const JOURNAL_MAX: u64 = 128 * MIB;
/// Groups that each host should be able to call its own.
const GROUPS_PER_SLOT: u64 = 4;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the volume; `None`: the whole device.
    pub size: Option<u64>,
    pub label: String,
    /// `None`: random.
    pub uuid: Option<[u8; 16]>,
    /// Hosts that can mount at once; `None`: by size.
    pub slots: Option<u16>,
    /// Bytes of each journal; `None`: by size.
    pub journal: Option<u64>,
    pub timing: TimingProfile,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            size: None,
            label: String::new(),
            uuid: None,
            slots: None,
            journal: None,
            timing: TimingProfile::Default,
        }
    }
}

/// What a used chunk of the new volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Journals, backup superblock.
    System,
    /// The first inodes; so many blocks of it are used.
    Inodes(u64),
}

/// A volume to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub superblock: Superblock,
    pub volume: Volume,
    /// Per group: chunk number and use, the group's own chunks aside.
    pub chunks: BTreeMap<AgNo, BTreeMap<u64, Use>>,
}

/// Read a size such as `512M`, `2T` or plain bytes.
///
/// # Errors
/// A sentence for the user.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("'{text}' is not a size (a number, with K, M, G or T for KiB to TiB)");
    let trimmed = text.trim().trim_end_matches("iB").trim_end_matches('B');
    let (digits, shift) = match trimmed.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let shift = "KMGT".find(unit.to_ascii_uppercase()).ok_or_else(wrong)?;
            (&trimmed[..at], 10 * (shift as u32 + 1))
        }
        _ => (trimmed, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_shl(shift).filter(|n| n >> shift == number).ok_or_else(wrong)
}

fn default_slots(size: u64) -> u16 {
    match size {
        s if s >= 4 * GIB => 64,
        s if s >= 512 * MIB => 16,
        s if s >= 128 * MIB => 4,
        _ => 2,
    }
}

fn geometry(dev: &dyn BlockDevice, size: u64, slots: u16) -> Result<Geometry> {
    let total_blocks = size / BLOCK_SIZE as u64;
    let target =
        (size / (u64::from(slots) * GROUPS_PER_SLOT)).clamp(AG_MIN, AG_MAX).max(size / u64::from(GROUPS_MAX));
    let ag_bytes = if target.is_power_of_two() { target } else { target.next_power_of_two() / 2 };
    let ag_bytes = ag_bytes.max((size / u64::from(GROUPS_MAX)).next_power_of_two()).clamp(AG_MIN, AG_MAX);
    let ag_blocks = ag_bytes / BLOCK_SIZE as u64;
    let about = total_blocks.div_ceil(ag_blocks);
    let growth = (about * 16).clamp(LEDGER_ENTRIES_PER_PAGE, GROUPS_MAX.into());
    let mut g = Geometry {
        total_blocks,
        max_slots: slots,
        cell_pitch: dev.physical_block().max(dev.logical_block()),
        ledger_pages: growth.div_ceil(LEDGER_ENTRIES_PER_PAGE) as u32,
        ag_blocks,
        ag_count: 1,
    };
    let start = g.groups_start().0;
    let room = total_blocks.saturating_sub(start);
    // A rest too small for its own header and some use is left alone.
    let rest = room % ag_blocks;
    let count = room / ag_blocks + u64::from(rest >= 2 * CHUNK_BLOCKS);
    if count == 0 {
        return Err(Error::Device(format!(
            "{}: {slots} slots leave no room for data on {size} bytes; ask for fewer with -N",
            dev.name()
        )));
    }
    g.ag_count = u32::try_from(count).ok().filter(|n| *n <= GROUPS_MAX).ok_or_else(|| {
        Error::Device(format!("{}: {size} bytes are more than {GROUPS_MAX} groups of 64 GiB", dev.name()))
    })?;
    Ok(g)
}

/// Places chunks one after the other in the groups.
struct Placer<'a> {
    geometry: &'a Geometry,
    chunks: BTreeMap<AgNo, BTreeMap<u64, Use>>,
}

impl Placer<'_> {
    fn is_free(&self, ag: AgNo, chunk: u64) -> bool {
        chunk >= self.geometry.ag_own_chunks(ag)
            && !self.chunks.get(&ag).is_some_and(|c| c.contains_key(&chunk))
    }

    /// `count` neighbouring chunks in `ag`.
    fn in_group(&mut self, ag: AgNo, count: u64, what: Use) -> Option<BlockNo> {
        let last = self.geometry.ag_chunks(ag).checked_sub(count)?;
        let first = (0..=last).find(|c| (*c..c + count).all(|c| self.is_free(ag, c)))?;
        let used = self.chunks.entry(ag).or_default();
        used.extend((first..first + count).map(|c| (c, what)));
        Some(shoal::format::group::chunk_start(self.geometry, ag, first))
    }

    /// `count` neighbouring chunks, in `near` or the next group that has them.
    fn near(&mut self, near: u32, count: u64, what: Use) -> Option<BlockNo> {
        let groups = self.geometry.ag_count;
        (0..groups).find_map(|i| self.in_group(AgNo((near + i) % groups), count, what))
    }
}

/// Choose all sizes and places.
///
/// # Errors
/// `Device` in words for the user.
pub fn plan(dev: &dyn BlockDevice, options: &Options) -> Result<Plan> {
    let refuse = |what: String| Error::Device(format!("{}: {what}", dev.name()));
    let size = options.size.unwrap_or(dev.size()) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    if size > dev.size() {
        return Err(refuse(format!("{size} bytes asked for, the device has {}", dev.size())));
    }
    if size < SIZE_MIN {
        return Err(refuse(format!("too small: {size} bytes, a volume needs at least {SIZE_MIN} (64 MiB)")));
    }
    if options.label.len() > LABEL_MAX {
        return Err(refuse(format!("the label has {} bytes, {LABEL_MAX} at most", options.label.len())));
    }
    let slots = options.slots.unwrap_or_else(|| default_slots(size));
    if !(1..=SLOTS_MAX).contains(&slots) {
        return Err(refuse(format!("{slots} slots asked for, 1 to {SLOTS_MAX} are possible")));
    }
    let geometry = geometry(dev, size, slots)?;
    let journal = options.journal.unwrap_or((size / 32 / u64::from(slots)).clamp(JOURNAL_MIN, JOURNAL_MAX));
    let chunk_bytes = CHUNK_BLOCKS * BLOCK_SIZE as u64;
    if journal < JOURNAL_MIN {
        return Err(refuse(format!(
            "a journal of {journal} bytes asked for, {JOURNAL_MIN} (4 MiB) at least"
        )));
    }
    let mut placer = Placer { geometry: &geometry, chunks: BTreeMap::new() };
    if let Some(ag) = geometry.ag_of(BACKUP_SUPERBLOCK) {
        let chunk = (BACKUP_SUPERBLOCK.0 - geometry.ag_start(ag).0) / CHUNK_BLOCKS;
        if chunk >= geometry.ag_own_chunks(ag) && chunk < geometry.ag_chunks(ag) {
            placer.chunks.entry(ag).or_default().insert(chunk, Use::System);
        }
    }
    let inodes = placer
        .in_group(AgNo(0), 1, Use::Inodes(1 + u64::from(slots)))
        .ok_or_else(|| refuse("no room for the first inodes".into()))?;
    let mut table = Vec::new();
    for slot in 0..slots {
        let start =
            placer.near(u32::from(slot), journal.div_ceil(chunk_bytes), Use::System).ok_or_else(|| {
                refuse(format!(
                    "no room for {slots} journals of {journal} bytes; ask for fewer (-N) or smaller ones (-J)"
                ))
            })?;
        table.push(SlotExtents {
            journal_start: start,
            journal_blocks: journal.div_ceil(chunk_bytes) * CHUNK_BLOCKS,
            inode: InodeNo(inodes.0 + 1 + u64::from(SlotId(slot).0)),
        });
    }
    let random = || *uuid::Uuid::new_v4().as_bytes();
    let [a, b] = [random(), random()];
    let format_id = u64::from_le_bytes(a[..8].try_into().expect("8 of 16 bytes")) | 1;
    let created =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let superblock = Superblock {
        format_id,
        uuid: options.uuid.unwrap_or_else(random),
        hash_seed: b,
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        geometry,
        timing: options.timing,
        created,
        root_inode: inodes.0,
    };
    let volume = Volume {
        sequence: 1,
        features: 0,
        ag_count: geometry.ag_count,
        label: options.label.clone(),
        slots: table,
    };
    Ok(Plan { superblock, volume, chunks: placer.chunks })
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("2TiB"), Ok(2 << 40));
        for bad in ["", "M", "12Q", "-1", "1.5G", "99999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
