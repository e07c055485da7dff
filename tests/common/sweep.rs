//! Many crashes of one history, in ascending order, each for the price of what changed since.

use super::simdisk::{Blocks, Event, History, SimDisk, Unflushed, apply, survive, unflushed_writes};
use std::sync::Arc;

/// Walks a history from its start to its end.
pub struct Sweep<'a> {
    size: u64,
    events: &'a [Event],
    /// What is durable at `flushed`.
    durable: Blocks,
    /// Events up to and including the last flush seen.
    flushed: usize,
    /// Events looked at.
    seen: usize,
}

impl<'a> Sweep<'a> {
    /// At the start of `history`, whose events are `events`.
    pub fn new(history: &History, events: &'a [Event]) -> Sweep<'a> {
        Sweep { size: history.size, events, durable: history.base.clone(), flushed: 0, seen: 0 }
    }

    /// The disk after a power cut behind the first `count` events. `count` must not fall.
    pub fn crash_at(&mut self, count: usize, unflushed: Unflushed) -> Arc<SimDisk> {
        assert!(count >= self.seen, "crash points are visited in ascending order");
        for at in self.seen..count {
            if matches!(self.events[at], Event::Flush) {
                for event in &self.events[self.flushed..at] {
                    for (offset, data) in event.writes() {
                        apply(&mut self.durable, offset, data);
                    }
                }
                self.flushed = at + 1;
            }
        }
        self.seen = count;
        let mut blocks = self.durable.clone();
        let mut pending = unflushed_writes(&self.events[self.flushed..count]);
        survive(&mut blocks, &mut pending, unflushed);
        SimDisk::with(self.size, blocks)
    }
}
