//! What cannot be read: is it lost, or is a part of the device out of reach? Lost are single blocks in the middle of
//! others that can be read all the while; what comes back later may bear what was acknowledged, or is newer.

use crate::base::{BLOCK_SIZE, BlockNo, Error, Result};
use crate::format::Block;
use crate::store::{AlignedBuf, Store};
use std::time::Duration;

/// At least so long something must be unreadable to count as lost; the write life of the volume, if that is longer.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(5);
/// Pause between two looks at that.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// So many blocks on each side are looked at: other legs of a striped volume are among them, or its stripes are so
/// large that most of these are unreadable too.
const AROUND: u64 = 64;
/// So many blocks among them may be unreadable: the physical blocks of some devices are of 16 KiB.
const LOST_BLOCKS: usize = 4;

/// Fails unless `block`, which could not be read just now, is one of few among many that can be.
pub(super) fn check_around(store: &Store, block: BlockNo, failed: &Error) -> Result<()> {
    let (total, all) = (store.geometry().total_blocks, 2 * AROUND + 1);
    let from = block.0.saturating_sub(AROUND).min(total.saturating_sub(all));
    let to = (from + all).min(total);
    let mut unreadable = vec![block];
    find_unreadable(store, from, block.0, &mut unreadable)?;
    find_unreadable(store, block.0 + 1, to, &mut unreadable)?;
    if unreadable.len() <= LOST_BLOCKS {
        return Ok(());
    }
    unreadable.sort_unstable();
    let named: Vec<String> = unreadable.iter().map(BlockNo::to_string).collect();
    let cause = if let Error::Io { cause, .. } = failed { cause } else { "" };
    let what = format!(
        "{cause}; blocks {}, and perhaps more, of {from} to {} cannot be read, so a part of the device is out of reach: \
         nothing of it was given up, see to the device's paths and try again",
        named.join(", "),
        to - 1
    );
    Err(unread(block, what))
}

/// The error for a block that is not to be given up.
pub(super) fn unread(block: BlockNo, cause: impl Into<String>) -> Error {
    Error::Io { op: "read", offset: block.byte(), length: BLOCK_SIZE as u64, cause: cause.into() }
}

/// Adds those of these blocks that cannot be read; no further than is too many.
fn find_unreadable(store: &Store, from: u64, to: u64, unreadable: &mut Vec<BlockNo>) -> Result<()> {
    let mut all = AlignedBuf::new((to - from) as usize);
    if from == to || store.read_data(BlockNo(from), all.bytes_mut()).is_ok() {
        return Ok(());
    }
    let mut one = Block::zeroed();
    for block in (from..to).map(BlockNo) {
        if unreadable.len() > LOST_BLOCKS {
            break;
        }
        match store.read_data(block, &mut one.0) {
            Err(Error::Io { .. }) => unreadable.push(block),
            other => other?,
        }
    }
    Ok(())
}
