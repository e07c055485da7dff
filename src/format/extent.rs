//! The value of an EXTENT item: which blocks of the volume hold a run of a file's blocks.
//!
//! The item's id is the run's first file block, so a lookup is one floor search. The value repeats
//! it: an item that was filed under a wrong key is found out.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | logical: first block of the file, in units of 4096 bytes |
//! | 8 | 8 | physical: first block of the volume |
//! | 16 | 4 | length in blocks, at least 1 |
//! | 20 | 4 | flags: 1 unwritten (reads as zeros), 2 shared (not written in place) |

use crate::base::{BLOCK_SIZE, BlockNo};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of a file: 8 EiB less one block, so that every offset fits a signed 64-bit integer.
pub const FILE_SIZE_MAX: u64 = (1 << 63) - BLOCK_SIZE as u64;
/// Most blocks of a file.
pub const FILE_BLOCKS_MAX: u64 = FILE_SIZE_MAX / BLOCK_SIZE as u64;
/// Most blocks of one extent: a whole group of the largest size.
pub const EXTENT_BLOCKS_MAX: u32 = 1 << 24;
/// Most blocks of an unwritten extent that is made: 128 MiB. On a full volume it is written with zeros as a whole, when
/// there is no block left to note a part of it as written. Larger ones are valid.
pub const UNWRITTEN_BLOCKS_MAX: u32 = 1 << 15;
/// Bytes of the value.
pub const EXTENT_SIZE: usize = 24;

const UNWRITTEN: u32 = 1;
const SHARED: u32 = 2;

/// The value as it stands in an item.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentRecord {
    pub logical: U64,
    pub physical: U64,
    pub length: U32,
    pub flags: U32,
}

const _: () = assert!(size_of::<ExtentRecord>() == EXTENT_SIZE);

/// A run of a file's blocks in one run of the volume's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block of the file.
    pub logical: u64,
    /// First block of the volume.
    pub physical: BlockNo,
    /// Blocks, 1 to [`EXTENT_BLOCKS_MAX`].
    pub blocks: u64,
    /// Allocated but never written: reads as zeros.
    pub unwritten: bool,
    /// Used by another file as well: must be copied before it is changed.
    pub shared: bool,
}

impl Extent {
    /// The file block behind the last one.
    pub fn end(&self) -> u64 {
        self.logical + self.blocks
    }

    /// The block of the volume that holds file block `logical` of this extent.
    pub fn place_of(&self, logical: u64) -> BlockNo {
        debug_assert!((self.logical..self.end()).contains(&logical));
        self.physical.plus(logical - self.logical)
    }

    /// The part that holds file blocks `from..to`; both lie inside.
    pub fn part(&self, from: u64, to: u64) -> Extent {
        debug_assert!(self.logical <= from && from < to && to <= self.end());
        Extent { logical: from, physical: self.place_of(from), blocks: to - from, ..*self }
    }

    /// Can `self` and `next`, its neighbour in the file, be one extent?
    pub fn joins(&self, next: &Extent) -> bool {
        let most = if self.unwritten { UNWRITTEN_BLOCKS_MAX } else { EXTENT_BLOCKS_MAX };
        self.end() == next.logical
            && self.physical.plus(self.blocks) == next.physical
            && self.unwritten == next.unwritten
            && self.shared == next.shared
            && self.blocks + next.blocks <= most.into()
    }

    /// The on-disk form.
    pub fn encode(&self) -> [u8; EXTENT_SIZE] {
        debug_assert!(self.blocks >= 1 && self.blocks <= EXTENT_BLOCKS_MAX.into());
        let flags = if self.unwritten { UNWRITTEN } else { 0 } | if self.shared { SHARED } else { 0 };
        let record = ExtentRecord {
            logical: self.logical.into(),
            physical: self.physical.0.into(),
            length: (self.blocks as u32).into(),
            flags: flags.into(),
        };
        zerocopy::transmute!(record)
    }

    /// Reads and checks a value. Whether the place lies inside the volume is the caller's to check.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(value: &[u8]) -> Result<Extent, &'static str> {
        let record = ExtentRecord::read_from_bytes(value).map_err(|_| "an extent of a wrong size")?;
        let (logical, length, flags) = (record.logical.get(), record.length.get(), record.flags.get());
        if length == 0 || length > EXTENT_BLOCKS_MAX {
            return Err("an extent of an impossible length");
        }
        if logical >= FILE_BLOCKS_MAX || FILE_BLOCKS_MAX - logical < length.into() {
            return Err("an extent beyond the largest file");
        }
        if record.physical.get().checked_add(length.into()).is_none() {
            return Err("an extent beyond every volume");
        }
        if flags & !(UNWRITTEN | SHARED) != 0 {
            return Err("an extent with unknown flags");
        }
        Ok(Extent {
            logical,
            physical: BlockNo(record.physical.get()),
            blocks: length.into(),
            unwritten: flags & UNWRITTEN != 0,
            shared: flags & SHARED != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Extent {
        Extent { logical: 0x0102, physical: BlockNo(0x030405), blocks: 0x06, unwritten: true, shared: false }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        assert_eq!(bytes, [2, 1, 0, 0, 0, 0, 0, 0, 5, 4, 3, 0, 0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(Extent::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = |change: &dyn Fn(&mut ExtentRecord)| {
            let mut record = ExtentRecord::read_from_bytes(&sample().encode()).unwrap();
            change(&mut record);
            Extent::decode(record.as_bytes()).is_err()
        };
        assert!(!bad(&|_| ()));
        assert!(bad(&|r| r.length.set(0)));
        assert!(bad(&|r| r.length.set(EXTENT_BLOCKS_MAX + 1)));
        assert!(bad(&|r| r.flags.set(4)));
        assert!(bad(&|r| r.logical.set(FILE_BLOCKS_MAX - 5)));
        assert!(!bad(&|r| r.logical.set(FILE_BLOCKS_MAX - 6)));
        assert!(bad(&|r| r.logical.set(u64::MAX)));
        assert!(bad(&|r| r.physical.set(u64::MAX)));
        assert!(Extent::decode(&sample().encode()[1..]).is_err());
    }

    #[test]
    fn only_true_neighbours_join() {
        let a = sample();
        let b = Extent { logical: a.end(), physical: a.physical.plus(a.blocks), ..a };
        assert!(a.joins(&b) && !b.joins(&a));
        assert!(!a.joins(&Extent { unwritten: false, ..b }));
        assert!(!a.joins(&Extent { shared: true, ..b }));
        assert!(!a.joins(&Extent { physical: b.physical.plus(1), ..b }));
        assert!(!a.joins(&Extent { blocks: UNWRITTEN_BLOCKS_MAX.into(), ..b }));
        let written = |extent| Extent { unwritten: false, ..extent };
        assert!(written(a).joins(&Extent { blocks: UNWRITTEN_BLOCKS_MAX.into(), ..written(b) }));
        assert!(!written(a).joins(&Extent { blocks: EXTENT_BLOCKS_MAX.into(), ..written(b) }));
        assert_eq!(a.part(a.logical + 2, a.end()).physical, a.physical.plus(2));
    }
}
