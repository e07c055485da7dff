//! Crash points: the disk after any request of a recorded run, with any part of what was not
//! flushed, must hold what was promised.
//!
//! `SHOAL_POINTS` is how many points all runs together look at, `SHOAL_SEED` which.

use crate::common::simdisk::{Event, SimDisk, Unflushed};
use crate::common::sweep::Sweep;
use crate::host::Host;
use crate::story::Story;
use crate::tree::{self, Image};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::Error;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Points that a run looks at unless asked otherwise.
const POINTS: usize = 250;
/// Runs of given operations, and of random ones with one seed, that share `SHOAL_POINTS`.
const RUNS: usize = 19;
/// Points above which there are more random runs instead of more points of each.
const POINTS_MAX: usize = 1000;
/// Of so many points one is mounted as well.
const MOUNT_EVERY: usize = 25;
/// Of so many mounted points one is cut again while it recovers, at so many places.
const AGAIN_EVERY: usize = 5;
const AGAIN: usize = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Points of each run, and seeds of the random ones.
fn share() -> (usize, u64) {
    let Some(all) = number("SHOAL_POINTS") else { return (POINTS, 1) };
    let each = (all as usize).div_ceil(RUNS).min(POINTS_MAX);
    let left = (all as usize).saturating_sub(each * RUNS);
    (each, 1 + left.div_ceil(4 * each) as u64)
}

/// Seeds of the random runs.
pub fn seeds() -> std::ops::Range<u64> {
    let first = number("SHOAL_SEED").unwrap_or(1);
    first..first + share().1
}

/// A crash: behind so many requests, and what became of those not flushed.
pub type Point = (usize, Unflushed);

/// Points of a run, in the order of the run: each request with all of it kept and each flush with
/// nothing kept, if there are not too many, and the rest by chance.
fn choose(events: &[Event], count: usize, seed: u64) -> Vec<Point> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all: Vec<(usize, u8, Unflushed)> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        all.push((at + 1, 0, Unflushed::Kept));
        if matches!(event, Event::Flush) {
            all.push((at, 1, Unflushed::Lost));
        }
    }
    let mut chosen = BTreeSet::new();
    while all.len() > count / 2 {
        all.swap_remove(random.random_range(0..all.len()));
    }
    let fixed = all.len();
    for _ in fixed..count {
        let (at, tear) = (random.random_range(1..=events.len()), random.random::<u64>());
        let how = if random.random_bool(0.5) { Unflushed::Torn(tear) } else { Unflushed::Subset(tear) };
        chosen.insert((at, tear));
        all.push((at, 2, how));
    }
    all.sort_by_key(|(at, ..)| *at);
    all.into_iter().map(|(at, _, how)| (at, how)).collect()
}

/// Check, replay with the library, walk, compare.
pub fn check_image(story: &Story, count: usize, disk: &Arc<SimDisk>) -> Result<(), String> {
    tree::fsck(disk)?;
    let volume = Image::open(disk)?;
    story.check(count, &volume.walk()?)
}

/// Mount, walk, compare, work, leave; then look at the image again.
pub fn check_mounted(story: &Story, count: usize, disk: &Arc<SimDisk>) -> Result<(), String> {
    let host = Host::mount(disk, "after").map_err(|e| format!("mount: {e}"))?;
    let looked = tree::of_host(&host).and_then(|found| story.check(count, &found));
    let worked = looked.and_then(|()| match work(&host) {
        Ok(()) | Err(Error::NoSpace) => Ok(()),
        Err(e) => Err(format!("work after recovery: {e}")),
    });
    let left = host.stop().map_err(|e| format!("leaving after recovery: {e}"));
    worked?;
    left?;
    tree::fsck(disk)
}

/// The power is cut again while the volume recovers: what was promised holds all the same.
fn check_again(story: &Story, count: usize, disk: &Arc<SimDisk>, seed: u64) -> Result<(), String> {
    let history = disk.record();
    let host = Host::mount(disk, "recovers").map_err(|e| format!("mount: {e}"))?;
    host.stop().map_err(|e| format!("leaving after recovery: {e}"))?;
    let events = disk.events();
    let mut sweep = Sweep::new(&history, &events);
    for (at, how) in choose(&events, AGAIN, seed) {
        let disk = sweep.crash_at(at, how);
        let place = |e| format!("cut again behind request {at} of {}, {how:?}: {e}", events.len());
        check_image(story, count, &disk).map_err(place)?;
    }
    Ok(())
}

fn work(host: &Host) -> shoal::base::Result<()> {
    use crate::host::How;
    host.create("/after-the-crash")?;
    host.write("/after-the-crash", 0, &[7; 30_000], How::Buffered)?;
    host.fsync("/after-the-crash")?;
    assert_eq!(host.read("/after-the-crash")?, [7; 30_000]);
    host.unlink("/after-the-crash")
}

/// Point number `n`.
fn check_point(story: &Story, sweep: &mut Sweep<'_>, (count, how): Point, n: usize) -> Result<(), String> {
    let disk = sweep.crash_at(count, how);
    let mounted = n.is_multiple_of(MOUNT_EVERY).then(|| disk.snapshot());
    let again = n.is_multiple_of(MOUNT_EVERY * AGAIN_EVERY).then(|| disk.snapshot());
    let fails = |way: &str, e: String| {
        let step = story.steps.iter().rposition(|s| s.start < count);
        let op = step.map(|at| format!("{:?} of host {}", story.steps[at].op, story.steps[at].host));
        let events = story.events.len();
        format!("{way}, crash behind request {count} of {events}, {how:?}, in step {step:?} {op:?}: {e}")
    };
    check_image(story, count, &disk).map_err(|e| fails("replayed", e))?;
    if let Some(disk) = mounted {
        check_mounted(story, count, &disk).map_err(|e| fails("mounted", e))?;
    }
    match again {
        Some(disk) => check_again(story, count, &disk, n as u64).map_err(|e| fails("recovering", e)),
        None => Ok(()),
    }
}

/// Look at the points of a finished run.
pub fn sweep(name: &str, story: &Story) {
    let count = share().0;
    let seed = number("SHOAL_SEED").unwrap_or(1);
    let points = choose(&story.events, count, seed);
    let mut sweep = Sweep::new(&story.history, &story.events);
    let began = std::time::Instant::now();
    let mut faults = Vec::new();
    for (n, point) in points.iter().enumerate() {
        if let Err(e) = check_point(story, &mut sweep, *point, n) {
            faults.push(e);
            if faults.len() == 3 {
                break;
            }
        }
    }
    println!("{name}: {} points of {} requests in {:?}", points.len(), story.events.len(), began.elapsed());
    assert!(faults.is_empty(), "{name}, SHOAL_SEED={seed}:\n{}", faults.join("\n"));
}
