//! WRITEs on their way that the kernel has put into its pages already.
//!
//! A page that holds something stays unlocked while the write is on its way. An invalidation may drop it
//! then, and a reader on this host bring it back, with the bytes from before the write: whoever wrote
//! would read those. So a read that gives the kernel bytes marks the writes it crosses, and these are
//! answered when the pages are dropped once more. Their own request does not keep those locked: another one
//! has just filled them.
//!
//! Of a write past its pages that makes the file longer the kernel hears with the answer. Who asks for the attributes before
//! is told the size from before: the kernel would take the new one over, go on, and only then drop what is
//! behind it in its pages (`fuse_change_attributes` has let its lock go by then). If that thread does not run for a
//! while, those are pages with the bytes of the next write, and who has made that one reads zeros. For writes
//! through its pages the kernel sees to this itself (`FUSE_I_SIZE_UNSTABLE`). Nor may anybody be told the new size when it
//! is answered, before the thread that wrote has run on and the kernel has it: that is waited for (`heard`).

use crate::fs::append;
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
    /// Before and after it, if it is past the pages and has made the file longer.
    growth: Option<Growth>,
}

#[derive(Clone, Copy)]
struct Growth {
    before: u64,
    after: u64,
}

/// A WRITE past the pages that has been answered.
struct Answered {
    /// Up to where the file went with it.
    size: u64,
    by: Part,
}

/// What a WRITE past the pages may be of a write(2), of which the kernel sends one part after the other and hears of the
/// size when the last is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The thread of a program that makes it, as its requests show it; 0: not known.
    pub thread: u32,
    /// Where the kernel believes it to begin.
    pub offset: u64,
    pub length: u64,
}

impl Part {
    /// May it be the part behind this one?
    fn continues(self, before: Part) -> bool {
        let Part { thread, offset, length } = before;
        append::is_full(length) && (thread, offset + length) == (self.thread, self.offset)
    }
}

/// Those of one inode.
#[derive(Default)]
pub struct Flights {
    ways: Mutex<Vec<Way>>,
    /// The last that made the file longer, unless the kernel is known to have heard of it.
    answered: Mutex<Option<Answered>>,
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

    /// A write past the pages has made the file longer, or not. The inode's state is still locked.
    pub fn grows(&self, id: u64, before: u64, after: u64) {
        let mut ways = self.ways.lock();
        if let Some(way) = ways.iter_mut().find(|way| way.id == id && before < after) {
            way.growth = Some(Growth { before, after });
        }
    }

    /// The size to tell the kernel of a file of this size.
    pub fn told(&self, size: u64) -> u64 {
        let ways = self.ways.lock();
        ways.iter().filter_map(|way| way.growth).map(|growth| growth.before).fold(size, u64::min)
    }

    /// Another host will see what is on its way, so everybody here must.
    pub fn are_seen(&self) {
        self.ways.lock().iter_mut().for_each(|way| way.growth = None);
        self.heard();
    }

    /// The kernel has heard of all that was answered.
    pub fn heard(&self) {
        *self.answered.lock() = None;
    }

    /// It has heard of those up to this size.
    pub fn heard_of(&self, size: u64) {
        self.answered.lock().take_if(|last| last.size <= size);
    }

    /// The size with which a write was answered, if the kernel may not have heard of that when `thread` asks; 0 is any
    /// thread, for instance of another PID namespace.
    pub fn unheard(&self, thread: u32) -> Option<u64> {
        let mut answered = self.answered.lock();
        answered.take_if(|last| last.by.thread == thread && thread != 0);
        answered.as_ref().map(|last| last.size)
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
        let way = Way { id, pages: whole_pages(&range), crossed: None, growth: None };
        node.flights.ways.lock().push(way);
        Flight { node, id }
    }

    /// The same for one past the pages. The kernel has the file to itself for it, or it is not to make it longer: so it has
    /// heard of the last one's answer, unless that was a part of the same write(2).
    pub fn begin_past_pages(node: Arc<Node>, id: u64, part: Part) -> Flight {
        node.flights.answered.lock().take_if(|last| !part.continues(last.by));
        Flight::begin(node, id, 0..0)
    }

    /// One past the pages is about to be answered: the size may be told.
    pub fn answer(self, by: Part) {
        let flights = &self.node.flights;
        let mut ways = flights.ways.lock();
        let growth = ways.iter().find(|way| way.id == self.id).and_then(|way| way.growth);
        // Without pages there is nothing that could be dropped.
        if let Some(Growth { after, .. }) = growth.filter(|_| !self.node.filled.lock().is_empty()) {
            *flights.answered.lock() = Some(Answered { size: after, by });
        }
        ways.retain(|way| way.id != self.id);
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

    #[test]
    fn a_size_is_told_with_the_answer_to_the_write_that_made_it() {
        let node = NodeTable::default().get(InodeNo(5));
        let told = |size| node.flights.told(size);
        let part = |thread| Part { thread, offset: 0, length: 1 };
        let first = Flight::begin_past_pages(node.clone(), 1, part(1));
        let second = Flight::begin_past_pages(node.clone(), 2, part(2));
        assert_eq!(told(10), 10, "nothing has changed yet");
        node.flights.grows(1, 10, 20);
        node.flights.cross(0..u64::MAX);
        assert_eq!(told(20), 10);
        node.flights.grows(2, 20, 30);
        assert_eq!(told(30), 10);
        first.answer(part(1));
        assert_eq!((told(30), told(5)), (20, 5), "the first is answered; truncated meanwhile");
        node.flights.are_seen();
        assert_eq!(told(30), 30);
        node.flights.grows(7, 1, 2);
        node.flights.grows(2, 30, 30);
        second.answer(part(2));
        assert_eq!((told(30), node.flights.unheard(0)), (30, None));
    }

    #[test]
    fn an_answer_is_heard_of_when_its_thread_asks_or_another_write_comes() {
        let node = NodeTable::default().get(InodeNo(5));
        let part = |thread, offset| Part { thread, offset, length: 1 };
        let write = |id, after| {
            let by = part(100, after - 1);
            let flight = Flight::begin_past_pages(node.clone(), id, by);
            node.flights.grows(id, after - 1, after);
            flight.answer(by);
        };
        write(1, 10);
        assert_eq!(node.flights.unheard(7), None, "nobody has pages");
        node.fills(0, 1);
        write(2, 20);
        assert_eq!((node.flights.unheard(7), node.flights.unheard(7)), (Some(20), Some(20)));
        assert_eq!((node.flights.unheard(100), node.flights.unheard(7)), (None, None));
        let nameless = Flight::begin_past_pages(node.clone(), 6, part(0, 20));
        node.flights.grows(6, 20, 25);
        nameless.answer(part(0, 20));
        assert_eq!((node.flights.unheard(0), node.flights.unheard(0)), (Some(25), Some(25)));
        write(3, 30);
        let next = Flight::begin_past_pages(node.clone(), 4, part(100, 30));
        assert_eq!(node.flights.unheard(7), None);
        drop(next);
        write(5, 40);
        node.flights.heard();
        assert_eq!(node.flights.unheard(7), None);
    }

    #[test]
    fn of_a_write_in_parts_the_kernel_hears_when_the_last_is_answered() {
        const FULL: u64 = 1 << 20;
        let node = NodeTable::default().get(InodeNo(5));
        node.fills(0, 1);
        let begin = |id, part: Part| {
            let flight = Flight::begin_past_pages(node.clone(), id, part);
            node.flights.grows(id, part.offset, part.offset + part.length);
            flight
        };
        let first = Part { thread: 100, offset: 10, length: FULL };
        let second = Part { thread: 100, offset: 10 + FULL, length: 5 };
        begin(1, first).answer(first);
        let flight = begin(2, second);
        assert_eq!((node.flights.told(FULL + 15), node.flights.unheard(7)), (FULL + 10, Some(FULL + 10)));
        flight.answer(second);
        assert_eq!((node.flights.told(FULL + 15), node.flights.unheard(7)), (FULL + 15, Some(FULL + 15)));
        // Not one that was not cut, nor one elsewhere, nor another thread's: the kernel has the file to itself for each.
        let third = Part { thread: 100, offset: FULL + 15, length: FULL };
        drop(begin(3, third));
        assert_eq!(node.flights.unheard(7), None);
        for next in [Part { offset: 0, ..second }, Part { thread: 7, ..second }] {
            begin(4, first).answer(first);
            assert!(node.flights.unheard(8).is_some());
            drop(begin(5, next));
            assert_eq!(node.flights.unheard(8), None);
        }
    }
}
