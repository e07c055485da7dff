//! What was done, for the report of a difference.

use crate::model::Id;
use std::collections::VecDeque;

/// Operations that are remembered, and how many of these are told: the last ones, and the last ones about the node of
/// the difference.
const KEPT: usize = 20_000;
const TOLD: usize = 30;

pub struct History {
    seed: u64,
    done: u64,
    last: VecDeque<(u64, Id, String)>,
}

impl History {
    pub fn new(seed: u64) -> History {
        History { seed, done: 0, last: VecDeque::new() }
    }

    /// An operation on a node, before its outcome is judged.
    pub fn push(&mut self, id: Id, what: String) {
        self.done += 1;
        self.last.push_back((self.done, id, what));
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    /// The last operation has come to something that it should not.
    pub fn fail(&self, id: Id, how: String) -> ! {
        let line = |(no, id, what): &(u64, Id, String)| format!("{no} #{id} {what}");
        let tell = |lines: Vec<String>| lines.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        let of_node = self.last.iter().rev().filter(|(_, other, _)| *other == id).take(TOLD).map(line);
        let what = self.last.back().map_or("nothing", |(_, _, what)| what);
        panic!(
            "seed {}: {what}: {how}\nthe last operations on #{id}:\n  {}\nthe last operations:\n  {}",
            self.seed,
            tell(of_node.collect()),
            tell(self.last.iter().rev().take(TOLD).map(line).collect())
        );
    }
}
