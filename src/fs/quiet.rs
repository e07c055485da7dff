//! What is kept of an inode that the kernel knows and nobody has asked about for a while. The kernel may
//! remember millions, so this is small: 12 bytes each, in lines of neighbours, for inodes lie side by side
//! in their chunks.

use crate::base::{Generation, InodeNo};
use crate::store::BlockHash;
use std::collections::HashMap;

/// Inodes of a line.
pub const LINE: u64 = 8;
/// Most lookups that fit.
pub const LOOKUPS_MAX: u64 = (1 << COUNT_BITS) - 1;

const COUNT_BITS: u32 = 29;
const MIXED: u32 = 1 << COUNT_BITS;
const STALE_PAGES: u32 = 1 << (COUNT_BITS + 1);
const HAS_PAGES: u32 = 1 << (COUNT_BITS + 2);

/// One inode; without lookups it is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quiet {
    /// Generation that the kernel knows, and was last told.
    pub generation: Generation,
    pub lookups: u64,
    pub mixed: bool,
    pub stale_pages: bool,
    pub has_pages: bool,
}

#[derive(Clone, Copy, Default)]
#[repr(C, packed(4))]
struct Packed {
    generation: u64,
    bits: u32,
}

const _: () = assert!(size_of::<Packed>() == 12);

impl Packed {
    fn new(quiet: Quiet) -> Packed {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = flag(quiet.mixed, MIXED)
            | flag(quiet.stale_pages, STALE_PAGES)
            | flag(quiet.has_pages, HAS_PAGES);
        Packed { generation: quiet.generation.0, bits: quiet.lookups as u32 | flags }
    }

    fn get(self) -> Option<Quiet> {
        let lookups = u64::from(self.bits) & LOOKUPS_MAX;
        let is_set = |bit: u32| self.bits & bit != 0;
        (lookups > 0).then(|| Quiet {
            generation: Generation(self.generation),
            lookups,
            mixed: is_set(MIXED),
            stale_pages: is_set(STALE_PAGES),
            has_pages: is_set(HAS_PAGES),
        })
    }
}

type Line = Box<[Packed; LINE as usize]>;

/// Quiet inodes by number.
#[derive(Default)]
pub struct QuietTable {
    lines: HashMap<u64, Line, BlockHash>,
}

impl QuietTable {
    /// Put one in that is not there. It has from one to [`LOOKUPS_MAX`] lookups.
    pub fn insert(&mut self, ino: InodeNo, quiet: Quiet) {
        debug_assert!((1..=LOOKUPS_MAX).contains(&quiet.lookups));
        self.lines.entry(ino.0 / LINE).or_default()[(ino.0 % LINE) as usize] = Packed::new(quiet);
    }

    /// One that is there.
    pub fn get(&self, ino: InodeNo) -> Option<Quiet> {
        self.lines.get(&(ino.0 / LINE))?[(ino.0 % LINE) as usize].get()
    }

    /// Take one out.
    pub fn remove(&mut self, ino: InodeNo) -> Option<Quiet> {
        let line = self.lines.get_mut(&(ino.0 / LINE))?;
        let quiet = std::mem::take(&mut line[(ino.0 % LINE) as usize]).get();
        if line.iter().all(|other| other.get().is_none()) {
            self.lines.remove(&(ino.0 / LINE));
            if self.lines.len() * 4 < self.lines.capacity() {
                self.lines.shrink_to(self.lines.len() * 2);
            }
        }
        quiet
    }

    /// All of them.
    pub fn inodes(&self) -> Vec<InodeNo> {
        let of = |(number, line): (&u64, &Line)| {
            let (number, line) = (*number, **line);
            (0..LINE)
                .filter(move |i| line[*i as usize].get().is_some())
                .map(move |i| InodeNo(number * LINE + i))
        };
        self.lines.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out() {
        let mut table = QuietTable::default();
        let quiet = |n: u64| Quiet {
            generation: Generation(u64::MAX - n),
            lookups: if n == 3 { LOOKUPS_MAX } else { n + 1 },
            mixed: n & 1 > 0,
            stale_pages: n & 2 > 0,
            has_pages: n & 4 > 0,
        };
        (0..100).for_each(|n| table.insert(InodeNo(n), quiet(n)));
        let mut all = table.inodes();
        all.sort();
        assert_eq!(all, (0..100).map(InodeNo).collect::<Vec<_>>());
        for n in 0..100 {
            assert_eq!(table.get(InodeNo(n)), Some(quiet(n)));
            assert_eq!(table.remove(InodeNo(n)), Some(quiet(n)));
            assert_eq!((table.get(InodeNo(n)), table.remove(InodeNo(n))), (None, None));
        }
        assert!(table.lines.is_empty() && table.lines.capacity() < 16, "{}", table.lines.capacity());
    }
}
