//! Having the kernel drop an inode's pages while requests wait for its lock.
//!
//! Page invalidation waits for page locks, and requests that wait for the very lock being given up
//! hold such locks (`serving`). Pages of a READ hold nothing yet: they are left out. One that arrives
//! while an invalidation runs is left out by starting over around it; the stuck call finishes later,
//! harmlessly. The last page of a WRITE is locked only if it holds nothing; if it does hold something it
//! must go, perhaps it is even mapped and dirty. That cannot be told from here, so it gets a call of its
//! own that is waited for a little: a page that is not locked does not take long.
//!
//! Notifications never run on a thread that serves requests.

use super::*;
use crossbeam::channel;
use node::{Pages, ParkedRange};
use spawn::try_spawn;
use std::time::Instant;

const PAGE: u64 = 4096;
/// How often a running invalidation looks for requests that arrived in its way.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long the page of a waiting WRITE is given to turn out not to be locked.
const UNLOCKED_AFTER: Duration = Duration::from_millis(100);

/// What the threads tell: this is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Call number so many of a walk.
    Range { walk: u64, at: usize },
    /// The page of this request.
    Page(u64),
}

/// One inode's pages on their way out.
pub(super) struct Invalidation {
    node: Arc<Node>,
    to: Mode,
    done: channel::Receiver<Done>,
    sender: channel::Sender<Done>,
    /// Numbers the walks: calls for one range after the other. Earlier ones are forgotten.
    walk: Arc<AtomicU64>,
    /// What is left of the walk, in order.
    ranges: Vec<(u64, u64)>,
    /// Where it was to begin.
    from: u64,
    walking: bool,
    /// Parked requests that the walk goes around, and up to when their own calls are waited for.
    around: Vec<u64>,
    pages: Vec<(u64, Instant)>,
}

impl Invalidation {
    /// Begin, for a lock that goes down `to` this mode; `X`: it stays, and pages are only to be written back.
    pub fn start(core: &Arc<Core>, node: Arc<Node>, to: Mode) -> Invalidation {
        let (sender, done) = channel::unbounded();
        let mut this = Invalidation {
            node,
            to,
            done,
            sender,
            walk: Arc::default(),
            ranges: Vec::new(),
            from: 0,
            walking: false,
            around: Vec::new(),
            pages: Vec::new(),
        };
        this.launch(core);
        this
    }

    /// Walk over everything from `from` on but the pages of parked requests, forgetting earlier walks.
    fn launch(&mut self, core: &Arc<Core>) {
        let parked = self.node.parked.lock().clone();
        self.ranges = gaps(self.from, parked.iter().map(|r| (r.pages.start, r.pages.end)).collect());
        let before = std::mem::replace(&mut self.around, parked.iter().map(|r| r.id).collect());
        for range in parked.iter().filter(|r| !before.contains(&r.id)) {
            self.try_page(core, range);
        }
        let walk = self.walk.fetch_add(1, Ordering::AcqRel) + 1;
        let (current, ranges, sender) = (self.walk.clone(), self.ranges.clone(), self.sender.clone());
        let (kernel, nodeid) = (core.kernel.clone(), core.nodeid(self.node.ino));
        let calls = move || {
            for (at, (start, length)) in ranges.into_iter().enumerate() {
                if current.load(Ordering::Acquire) != walk {
                    return;
                }
                let _ = kernel.inval_inode(nodeid, start as i64, length as i64);
                let _ = sender.send(Done::Range { walk, at });
            }
        };
        self.walking = try_spawn("inval", calls).is_none();
    }

    /// The page of a request that may not have it locked.
    fn try_page(&mut self, core: &Arc<Core>, range: &ParkedRange) {
        let Pages { start, end, locked } = range.pages;
        if locked || end <= self.from || !self.node.may_show(start, end) {
            return;
        }
        let (kernel, nodeid) = (core.kernel.clone(), core.nodeid(self.node.ino));
        let (id, sender) = (range.id, self.sender.clone());
        let call = move || {
            let _ = kernel.inval_inode(nodeid, start as i64, (end - start) as i64);
            let _ = sender.send(Done::Page(id));
        };
        drop(try_spawn("inval", call));
        self.pages.push((id, Instant::now() + UNLOCKED_AFTER));
    }

    /// Is there a parked request in the way of what is left of the walk?
    fn is_in_the_way(&self) -> bool {
        let parked = self.node.parked.lock();
        parked.iter().any(|r| r.pages.end > self.from && !self.around.contains(&r.id))
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Page(id) => self.pages.retain(|(page, _)| *page != id),
            Done::Range { walk, at } if walk == self.walk.load(Ordering::Acquire) => {
                if at + 1 == self.ranges.len() {
                    (self.walking, self.from) = (false, u64::MAX);
                } else {
                    let (start, length) = self.ranges[at];
                    self.from = start + length;
                }
            }
            Done::Range { .. } => {}
        }
    }

    /// Wait for the pages to be gone.
    pub fn finish(mut self, core: &Arc<Core>) {
        while self.from < u64::MAX {
            match self.done.recv_timeout(LOOK_AGAIN) {
                Ok(done) => self.note(done),
                Err(_) if !self.walking || self.is_in_the_way() => self.launch(core),
                Err(_) => {}
            }
        }
        while let Some(until) = self.pages.iter().map(|(_, until)| *until).max() {
            match self.done.recv_deadline(until) {
                Ok(done) => self.note(done),
                Err(_) => break,
            }
        }
        // Beside writers pages are filled under X alone, so there are none in S either.
        if self.to != Mode::X && self.pages.is_empty() {
            *self.node.filled.lock() = 0..0;
        }
    }
}

/// The page ranges `(start, length)` between `holes`, from `from` on; length 0 means to the end of the
/// file.
fn gaps(from: u64, mut holes: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    holes.sort_unstable();
    let mut ranges = Vec::new();
    let mut at = from;
    for (start, end) in holes {
        let start = start / PAGE * PAGE;
        if start > at {
            ranges.push((at, start - at));
        }
        at = at.max(end.next_multiple_of(PAGE));
    }
    ranges.push((at, 0));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidation_goes_around_parked_pages() {
        assert_eq!(gaps(0, vec![]), [(0, 0)]);
        assert_eq!(gaps(0, vec![(0, 1)]), [(4096, 0)]);
        assert_eq!(gaps(0, vec![(8192, 12288), (4096, 8192)]), [(0, 4096), (12288, 0)]);
        assert_eq!(gaps(0, vec![(5000, 5001), (20000, 30000)]), [(0, 4096), (8192, 8192), (32768, 0)]);
        assert_eq!(gaps(8192, vec![(0, 4096), (12288, 16384)]), [(8192, 4096), (16384, 0)]);
    }
}
