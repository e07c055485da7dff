//! Power cuts in the middle of replaying the journal of a host that died, behind every write and every flush:
//! of the member that takes over, and of the first mount when nobody is left. Then somebody else replays, and
//! what was promised must be there.
//!
//! `SHOAL_REPLAYS` says how many points each run looks at (0: all of them, each kept, lost, and torn in three
//! ways), `SHOAL_SEED` which, and what the hosts did.

use crate::common::simdisk::{Event, Unflushed};
use crate::common::sweep::Sweep;
use crate::host::How;
use crate::model::Op;
use crate::points::{check_image, check_mounted};
use crate::story::{Recorder, Story};
use crate::workloads::work_at_random;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use shoal::base::SlotId;
use shoal::cluster::{Disk, read_status};
use shoal::format::superblock;
use std::time::{Duration, Instant};

/// Points of a run unless asked otherwise, and of so many one is mounted as well.
const POINTS: u64 = 120;
const MOUNT_EVERY: usize = 30;
const WAIT_MAX: Duration = Duration::from_secs(40);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Two hosts that have handed blocks to each other for a while; the first has files open without a name.
fn busy(seed: u64) -> Recorder {
    crate::deaths::tell();
    let mut random = StdRng::seed_from_u64(seed);
    // Seldom committed, so that much is in the journals only.
    let run = Recorder::with_commits(64, 2, Duration::from_millis(random.random_range(30..300)));
    let mut run = work_at_random(run, &mut random, 60);
    for n in 0..6 {
        let path = format!("/nameless{n}");
        run.run(0, Op::Create(path.clone()));
        run.run(0, Op::Write { path: path.clone(), offset: 0, length: 50_000, how: How::Buffered });
        run.run(0, Op::Fsync(path.clone()));
        let host = &run.hosts[0];
        host.open_kept(host.keep(&path).expect("lookup"), How::Buffered).expect("open");
        run.run(n % 2, Op::Unlink(path));
    }
    run.run(0, Op::Fsync("/".into()));
    run
}

/// Who is a member, or dead and not recovered.
fn occupied(run: &Recorder) -> Vec<SlotId> {
    let (superblock, _) = superblock::load(&*run.disk).expect("superblock");
    let disk =
        Disk { device: run.disk.clone(), format_id: superblock.format_id, geometry: superblock.geometry };
    let status = read_status(&disk, None).expect("status");
    status.occupied().map(|host| host.slot).collect()
}

/// Every request from `from` on with all that was not flushed, each flush with nothing of it, each with parts.
fn points(events: &[Event], from: usize, seed: u64) -> Vec<(usize, Unflushed)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    for (at, event) in events.iter().enumerate().skip(from) {
        if matches!(event, Event::Flush) {
            all.push((at, Unflushed::Lost));
        }
        let torn: [u64; 3] = random.random();
        all.extend([
            (at + 1, Unflushed::Kept),
            (at + 1, Unflushed::Torn(torn[0])),
            (at + 1, Unflushed::Torn(torn[1])),
            (at + 1, Unflushed::Subset(torn[2])),
        ]);
    }
    let wanted = match number("SHOAL_REPLAYS", POINTS) {
        0 => all.len(),
        some => some as usize,
    };
    let mut chosen = all.into_iter().choose_multiple(&mut random, wanted);
    chosen.sort_by_key(|(at, _)| *at);
    chosen
}

fn look(name: &str, story: &Story, from: usize, seed: u64) {
    let chosen = points(&story.events, from, seed);
    let (began, mut sweep) = (Instant::now(), Sweep::new(&story.history, &story.events));
    for (n, (at, how)) in chosen.iter().enumerate() {
        let disk = sweep.crash_at(*at, *how);
        let again = n.is_multiple_of(MOUNT_EVERY).then(|| disk.snapshot());
        let place = |way: &str, e: String| {
            panic!(
                "{name}, SHOAL_SEED={seed}, {way} behind request {at} of {}, {how:?}: {e}",
                story.events.len()
            )
        };
        check_image(story, *at, &disk).unwrap_or_else(|e| place("cut", e));
        if let Some(disk) = again {
            check_mounted(story, *at, &disk).unwrap_or_else(|e| place("cut and mounted", e));
        }
    }
    let requests = story.events.len() - from;
    println!("{name}, seed {seed}: {} points in {requests} requests, {:?}", chosen.len(), began.elapsed());
    assert!(requests > 30 && !chosen.is_empty(), "nothing was tested");
}

#[test]
fn the_one_who_takes_over_may_die_at_any_request() {
    let seed = number("SHOAL_SEED", 1);
    let mut run = busy(seed);
    let from = run.disk.event_count();
    run.hosts.remove(0).crash();
    let end = Instant::now() + WAIT_MAX;
    while occupied(&run) != [SlotId(1)] {
        assert!(Instant::now() < end, "it is never recovered");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The reaper frees what was taken over.
    std::thread::sleep(Duration::from_millis(300));
    look("take-over", &run.cut(), from, seed);
}

#[test]
fn the_first_mount_of_two_dead_hosts_may_die_at_any_request() {
    let seed = number("SHOAL_SEED", 1);
    let mut run = busy(seed);
    run.hosts.drain(..).for_each(|host| host.crash());
    let from = run.disk.event_count();
    let host = crate::host::Host::mount(&run.disk, "first").expect("mount");
    std::thread::sleep(Duration::from_millis(300));
    host.crash();
    look("first mount", &run.cut(), from, seed);
}
