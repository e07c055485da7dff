//! WRITEs on their way that the kernel has put into its pages already.
//!
//! A page that holds something stays unlocked while the write is on its way. An invalidation may drop it
//! then, and a reader on this host bring it back, with the bytes from before the write: whoever wrote
//! would read those. So a read that gives the kernel bytes marks the writes it crosses, and these are
//! answered when the pages are dropped once more. Their own request does not keep those locked: another one
//! has just filled them.

use crate::fs::node::Node;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

const PAGE: u64 = crate::fs::io::PAGE;

struct Way {
    id: u64,
    /// Bytes whose pages it changes, whole pages.
    pages: Range<u64>,
    /// Of these, what a read has brought since, and what lies between.
    crossed: Option<Range<u64>>,
}

/// Those of one inode.
#[derive(Default)]
pub struct Flights {
    ways: Mutex<Vec<Way>>,
}

impl Flights {
    /// A read is about to get bytes of `range`. The inode's state is locked, as it is when a write changes
    /// them: so a read that gets old ones marks the write.
    pub fn cross(&self, range: Range<u64>) {
        let pages = whole_pages(&range);
        for way in self.ways.lock().iter_mut() {
            let common = way.pages.start.max(pages.start)..way.pages.end.min(pages.end);
            if !common.is_empty() {
                let before = way.crossed.get_or_insert_with(|| common.clone());
                *before = before.start.min(common.start)..before.end.max(common.end);
            }
        }
    }

    fn take(&self, id: u64) -> Option<Range<u64>> {
        let mut ways = self.ways.lock();
        let at = ways.iter().position(|way| way.id == id)?;
        ways.swap_remove(at).crossed
    }
}

fn whole_pages(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE * PAGE..range.end.div_ceil(PAGE).saturating_mul(PAGE)
}

/// One WRITE on its way.
pub struct Flight {
    node: Arc<Node>,
    id: u64,
}

impl Flight {
    /// It has come; nobody has changed anything for it. `id` is nobody else's.
    pub fn begin(node: Arc<Node>, id: u64, range: Range<u64>) -> Flight {
        node.flights.ways.lock().push(Way { id, pages: whole_pages(&range), crossed: None });
        Flight { node, id }
    }

    /// The change is made. What must be dropped before the answer.
    pub fn end(self) -> Option<Range<u64>> {
        self.node.flights.take(self.id)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.node.flights.take(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::InodeNo;
    use crate::fs::node::NodeTable;

    #[test]
    fn reads_mark_the_writes_they_cross() {
        let node = NodeTable::default().get(InodeNo(5));
        let begin = |id, range| Flight::begin(node.clone(), id, range);
        let (small, long, apart) =
            (begin(1, 5000..5010), begin(2, 100..3 * PAGE), begin(3, 9 * PAGE..10 * PAGE));
        node.flights.cross(PAGE..PAGE + 10);
        node.flights.cross(2 * PAGE..9 * PAGE);
        assert_eq!(small.end(), Some(PAGE..2 * PAGE));
        assert_eq!(long.end(), Some(PAGE..3 * PAGE));
        node.flights.cross(0..0);
        assert_eq!(apart.end(), None);
        let late = begin(4, 0..1);
        drop(late);
        assert!(node.flights.ways.lock().is_empty());
        node.flights.cross(0..u64::MAX);
    }
}
