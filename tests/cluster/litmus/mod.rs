//! What one host has done, the other sees as soon as the call has returned.

mod append;
mod attributes;
mod cut;
mod data;
mod directories;
mod ends;
mod executed;
pub mod map;
mod mapped;
mod names;
mod parked;
mod places;
mod unlinked;

use crate::rig::{Cluster, errno};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(150);
const ROUNDS: usize = 20;

/// Two mounts of one volume.
struct Pair {
    cluster: Cluster,
    a: PathBuf,
    b: PathBuf,
}

impl Pair {
    fn new() -> Pair {
        let cluster = Cluster::new("256M", 2, LIMIT);
        let (a, b) = (cluster.at(0), cluster.at(1));
        Pair { cluster, a, b }
    }

    /// `work(round, from, to)`, each mount being the one that acts every other time.
    fn alternate(&self, rounds: usize, mut work: impl FnMut(usize, &Path, &Path)) {
        for round in 0..rounds {
            let (from, to) = if round % 2 == 0 { (&self.a, &self.b) } else { (&self.b, &self.a) };
            work(round, from, to);
        }
    }

    /// Both leave without an error in their logs, and the volume is sound.
    fn finish(self) {
        self.cluster.umount(0);
        self.cluster.umount(1);
        self.cluster.check();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
