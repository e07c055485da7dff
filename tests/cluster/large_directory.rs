//! A directory with very many entries, used from two hosts. `SHOAL_ENTRIES` says how many; for a million,
//! let `SHOAL_TEST_DIR` name a place with 8 GiB.

use crate::rig::Cluster;
use crate::rig_stream::Stream;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

fn name(i: usize) -> String {
    format!("entry-{i:07}")
}

fn number(name: &str) -> Option<usize> {
    name.strip_prefix("entry-")?.parse().ok()
}

/// Says what took how long, for whoever runs it by hand.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, what: &str, count: usize) {
        let took = std::mem::replace(&mut self.0, Instant::now()).elapsed();
        println!(
            "{what}: {count} in {:.1} s, {:.0} per second",
            took.as_secs_f64(),
            count as f64 / took.as_secs_f64()
        );
    }
}

/// Everything that is in the directory, and where the stream was after each.
fn list(at: &Path) -> Vec<(usize, i64)> {
    let mut stream = Stream::open(at);
    let entries = std::iter::from_fn(|| stream.next());
    let listed: Vec<(usize, i64)> = entries.filter_map(|(name, at)| Some((number(&name)?, at))).collect();
    let once: HashSet<usize> = listed.iter().map(|(i, _)| *i).collect();
    assert_eq!(once.len(), listed.len(), "names are listed twice");
    listed
}

/// Positions from before half of the entries went still lead to the same places.
fn assert_positions_hold(at: &Path, listed: &[(usize, i64)], is_left: fn(usize) -> bool) {
    let mut stream = Stream::open(at);
    for i in (0..listed.len()).step_by(listed.len() / 20) {
        stream.seek(listed[i].1);
        let next = std::iter::from_fn(|| stream.next()).filter_map(|(name, _)| number(&name)).take(50);
        let left = listed[i + 1..].iter().map(|(i, _)| *i).filter(|i| is_left(*i)).take(50);
        assert!(next.eq(left), "behind entry {i} of the listing");
    }
}

#[test]
fn a_large_directory() {
    let entries = std::env::var("SHOAL_ENTRIES").map_or(20_000, |n| n.parse().expect("a number of entries"));
    let size = format!("{}M", 256 + entries / 160);
    let limit = Duration::from_secs(200 + entries as u64 / 100);
    let cluster = Cluster::new(&size, 2, limit);
    let [a, b] = [cluster.at(0).join("large"), cluster.at(1).join("large")];
    let mut clock = Clock(Instant::now());
    fs::create_dir(&a).unwrap();
    (0..entries).for_each(|i| drop(File::create_new(a.join(name(i))).unwrap()));
    clock.lap("create", entries);
    let listed = list(&b);
    assert_eq!(listed.len(), entries);
    clock.lap("list on the other host", entries);
    let mut random = StdRng::seed_from_u64(5);
    let lookups = entries / 10;
    for _ in 0..lookups {
        let i = random.random_range(0..entries);
        assert!(fs::symlink_metadata(b.join(name(i))).unwrap().is_file());
    }
    clock.lap("look up on the other host", lookups);
    assert!(fs::symlink_metadata(b.join("entry-none")).is_err());
    assert_eq!(fs::remove_dir(&b).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    (0..entries).filter(|i| i % 2 == 1).for_each(|i| fs::remove_file(b.join(name(i))).unwrap());
    clock.lap("remove half on the other host", entries / 2);
    assert!(list(&a).iter().all(|(i, _)| i % 2 == 0));
    assert_eq!(list(&a).len(), entries.div_ceil(2));
    assert_positions_hold(&a, &listed, |i| i % 2 == 0);
    assert_positions_hold(&b, &listed, |i| i % 2 == 0);
    clock.lap("list what is left, on both", 4);
    (0..entries).filter(|i| i % 2 == 0).for_each(|i| fs::remove_file(a.join(name(i))).unwrap());
    clock.lap("remove the rest", entries / 2);
    fs::remove_dir(&b).unwrap();
    assert_eq!(fs::read_dir(cluster.at(0)).unwrap().count(), 0);
    cluster.umount(0);
    cluster.umount(1);
    clock.lap("leave", 2);
    cluster.check();
    clock.lap("fsck", 1);
}
