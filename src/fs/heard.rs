//! Waiting until the kernel has heard of a write past its pages that has been answered (`flight`).
//!
//! It takes the new size over when the thread that wrote runs on. Whoever is told that size before has the kernel take it
//! over instead, and drop what is behind it in its pages at any time after that.

use super::size::apart;
use super::*;
use std::time::Instant;

/// How long an answer that bears a size waits at most. Who wrote has not run for so long then.
const HEARD_MAX: Duration = Duration::from_millis(100);
const LOOK_AGAIN: Duration = Duration::from_micros(50);

impl Core {
    /// Do `then`, an answer that bears the size of an inode, when the kernel knows that size from the write that made it.
    /// `thread` asks, 0: nobody knows who.
    pub(super) fn after_hearing(
        self: &Arc<Self>,
        ino: InodeNo,
        thread: u32,
        then: impl FnOnce() + Send + 'static,
    ) {
        let Some(node) = self.nodes.find(ino) else { return then() };
        if node.flights.unheard(thread).is_none() || self.looks.is_blind() {
            return then();
        }
        let core = self.clone();
        let wait = move |(node, then): (Arc<Node>, Box<dyn FnOnce() + Send>)| {
            core.await_hearing(&node);
            drop(node);
            then();
        };
        let then: Box<dyn FnOnce() + Send> = Box::new(then);
        apart((node, then), wait, |(_, then)| then());
    }

    fn await_hearing(self: &Arc<Self>, node: &Node) {
        let deadline = Instant::now() + HEARD_MAX;
        let Some(view) = self.look(node.ino, HEARD_MAX) else { return };
        while let Some(size) = node.flights.unheard(0)
            && Instant::now() < deadline
        {
            if view.size().is_ok_and(|known| known >= size) {
                return node.flights.heard_of(size);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}
