//! What mkfs does not overwrite: other filesystems without -f, a mounted Shoal volume ever.

use crate::plan::Options;
use shoal::base::{Error, Result, SlotId};
use shoal::device::{BlockDevice, foreign_signature};
use shoal::format::Block;
use shoal::format::cluster::{Ballot, SlotState};
use shoal::format::superblock::{self, Superblock, TimingProfile};
use std::time::Duration;

/// Refuse what must not be overwritten. Takes a few heartbeats if hosts are named as members.
///
/// # Errors
/// `Device` with what is there and what to do.
pub fn check_overwrite(dev: &dyn BlockDevice, _options: &Options, force: bool) -> Result<()> {
    if let Ok((sb, _)) = superblock::load(dev) {
        return refuse_live(dev, &sb);
    }
    match foreign_signature(dev)? {
        Some(what) if !force => Err(Error::Device(format!(
            "{}: there is {what} on it; use -f to overwrite it, or wipefs to remove it first",
            dev.name()
        ))),
        _ => Ok(()),
    }
}

/// Does the newest decided view name members?
fn has_members(dev: &dyn BlockDevice, sb: &Superblock) -> Result<bool> {
    let mut newest = None;
    for slot in (0..sb.geometry.max_slots).map(SlotId) {
        for copy in 0..2 {
            let mut block = Block::zeroed();
            dev.read(sb.geometry.ballot(slot, copy).byte(), &mut block.0)?;
            if let Ok((ballot, _)) = Ballot::from_block(&block, sb.format_id, &sb.geometry, slot, copy)
                && newest.as_ref().is_none_or(|(epoch, _)| *epoch < ballot.decided.epoch)
            {
                let live = ballot.decided.slots.iter().any(|s| matches!(s.state, SlotState::Live { .. }));
                newest = Some((ballot.decided.epoch, live));
            }
        }
    }
    Ok(newest.is_some_and(|(_, live)| live))
}

fn heartbeats(dev: &dyn BlockDevice, sb: &Superblock) -> Result<Vec<u8>> {
    let g = &sb.geometry;
    let bytes = usize::from(g.max_slots) * g.cell_pitch as usize;
    let mut row = vec![0; bytes.next_multiple_of(shoal::base::BLOCK_SIZE)];
    dev.read(g.heartbeat_cell(SlotId(0)), &mut row)?;
    row.truncate(bytes);
    Ok(row)
}

fn refuse_live(dev: &dyn BlockDevice, sb: &Superblock) -> Result<()> {
    if !has_members(dev, sb)? {
        return Ok(());
    }
    let beat = match sb.timing {
        TimingProfile::Test => Duration::from_millis(200),
        TimingProfile::Default => Duration::from_secs(1),
        TimingProfile::San => Duration::from_secs(2),
    };
    let before = heartbeats(dev, sb)?;
    for _ in 0..4 {
        std::thread::sleep(beat);
        if heartbeats(dev, sb)? != before {
            return Err(Error::Device(format!(
                "{}: hosts have this Shoal volume mounted ('shoal status {}' names them); unmount it everywhere first",
                dev.name(),
                dev.name()
            )));
        }
    }
    Ok(())
}
