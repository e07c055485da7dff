//! The kernel deadlock matrix: every operation waits for each lock that it needs, while the lock of each
//! thing that it touches is taken away by another host. Each cell ends.
//!
//! A cell is an operation, what it is robbed of, and what it waits for. In each of its rounds one host
//! does the operation and the other takes the first lock away without end and the second now and
//! then. A round begins with all locks and dirty mapped pages on the one host, or all on the other; for
//! operations by handle also with a file that the other host has unlinked. Cells run beside each
//! other, half of them in the opposite direction.

mod hammer;
mod kernel;
mod operations;
mod place;

use crate::rig::Cluster;
use hammer::Hammer;
use operations::{Operation, Role, TABLE};
use place::{Pages, Place};
use shoal::device::mountinfo;
use shoal::fuse::mount;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
/// Longest time of a round, on a machine that does other things as well.
const ROUND_MAX: Duration = Duration::from_secs(30);
/// The same where a deadlock is planted.
const PLANTED_MAX: Duration = Duration::from_secs(8);
/// Cells at a time.
const LANES: usize = 6;
/// Threads that do an operation by handle at once.
const CALLERS: usize = 2;

/// Who has the locks when a round begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Here,
    There,
    /// There, and the file has no name any more.
    Unlinked,
}

#[derive(Clone, Copy)]
struct Cell {
    operation: &'static Operation,
    robbed: Role,
    waits: Role,
    /// The host that does the operation: 0 or 1.
    host: usize,
}

impl Cell {
    fn name(&self) -> String {
        let Cell { operation, robbed, waits, host } = self;
        format!("{:?} on host {host}, robbed of {robbed:?}, waiting for {waits:?}", operation.name)
    }
}

/// Those with `wanted` in their names.
fn cells(wanted: &str) -> Vec<Cell> {
    let mut cells = Vec::new();
    for operation in TABLE {
        for robbed in operation.roles {
            for waits in operation.roles {
                let host = cells.len() % 2;
                cells.push(Cell { operation, robbed: *robbed, waits: *waits, host });
            }
        }
    }
    cells.retain(|cell: &Cell| cell.name().contains(wanted));
    cells
}

fn wanted_cells() -> Vec<Cell> {
    cells(&std::env::var("SHOAL_CELLS").unwrap_or_default())
}

/// The cells of one pair of mounts.
struct Matrix {
    mounts: [PathBuf; 2],
    cells: Vec<Cell>,
    round_max: Duration,
    next: AtomicUsize,
    rounds: AtomicUsize,
    /// What each lane is at, and since when.
    lanes: [Mutex<Option<(String, Instant)>>; LANES],
    faults: Mutex<Vec<String>>,
    slowest: Mutex<(Duration, String)>,
    cut: AtomicBool,
}

impl Matrix {
    fn new(cluster: &Cluster, cells: Vec<Cell>, round_max: Duration) -> Matrix {
        Matrix {
            mounts: [cluster.at(0), cluster.at(1)],
            cells,
            round_max,
            next: AtomicUsize::new(0),
            rounds: AtomicUsize::new(0),
            lanes: Default::default(),
            faults: Mutex::default(),
            slowest: Mutex::default(),
            cut: AtomicBool::new(false),
        }
    }

    /// All cells, none of which may fail.
    fn pass(&self) {
        let faults = self.run();
        assert!(faults.is_empty(), "{} cells failed:\n{}", faults.len(), faults.join("\n"));
        let (rounds, slowest) = (self.rounds.load(Ordering::Acquire), self.slowest.lock().unwrap());
        println!("{} cells, {rounds} rounds; the slowest took {slowest:?}", self.cells.len());
    }

    /// All cells; a round that does not end has its mounts cut, which ends everything. What went wrong.
    fn run(&self) -> Vec<String> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.watch(&done));
            std::thread::scope(|scope| {
                (0..LANES).for_each(|lane| drop(scope.spawn(move || self.work(lane))));
            });
            done.store(true, Ordering::Release);
        });
        std::mem::take(&mut *self.faults.lock().unwrap())
    }

    fn watch(&self, done: &AtomicBool) {
        while !done.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(50));
            for lane in &self.lanes {
                let late =
                    lane.lock().unwrap().as_ref().filter(|(_, t)| t.elapsed() > self.round_max).cloned();
                let Some((name, _)) = late.filter(|_| !self.cut.load(Ordering::Acquire)) else { continue };
                self.fault(format!("{name}: it does not end"));
                self.cut.store(true, Ordering::Release);
                self.mounts.iter().for_each(|at| cut(at));
            }
        }
    }

    /// Said at once, past the test's own capture: what follows may end the process.
    fn fault(&self, what: String) {
        if !self.cut.load(Ordering::Acquire) {
            let _ = writeln!(io::stderr(), "matrix: {what}");
            self.faults.lock().unwrap().push(what);
        }
    }

    fn work(&self, lane: usize) {
        while !self.cut.load(Ordering::Acquire) {
            let number = self.next.fetch_add(1, Ordering::AcqRel);
            let Some(cell) = self.cells.get(number) else { return };
            let starts = [Start::There, Start::Here, Start::Unlinked];
            for start in starts.into_iter().filter(|s| *s != Start::Unlinked || cell.operation.by_handle) {
                let (name, began) = (format!("{}, starting {start:?}", cell.name()), Instant::now());
                *self.lanes[lane].lock().unwrap() = Some((name.clone(), began));
                if let Err(e) = self.round(cell, &format!("{number}-{start:?}"), start) {
                    self.fault(format!("{name}: {e}"));
                }
                *self.lanes[lane].lock().unwrap() = None;
                self.rounds.fetch_add(1, Ordering::AcqRel);
                let mut slowest = self.slowest.lock().unwrap();
                *slowest = std::mem::take(&mut *slowest).max((began.elapsed(), name));
            }
        }
    }

    fn round(&self, cell: &Cell, directory: &str, start: Start) -> io::Result<()> {
        let [here, there] = [cell.host, 1 - cell.host].map(|host| self.mounts[host].join(directory));
        let mut place = Place::new(here.clone());
        let furnishing = if start == Start::Here { &here } else { &there };
        Place::new(furnishing.clone()).furnish()?;
        let robber = Hammer::new(cell.robbed, &there)?;
        let other = (cell.waits != cell.robbed).then(|| Hammer::new(cell.waits, &there)).transpose()?;
        if cell.operation.by_handle {
            place.open()?;
        }
        let pages = match start {
            Start::Here if cell.operation.by_handle => {
                let pages = Pages::map(place.file())?;
                pages.store().map(|()| Some(pages))?
            }
            Start::Unlinked => fs::remove_file(there.join("p/file")).map(|()| None)?,
            _ => None,
        };
        let (done, blows) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| robber.run(&done, &blows[0], false));
            if let Some(other) = &other {
                scope.spawn(|| other.run(&done, &blows[1], true));
            }
            if start != Start::Here {
                self.wait_for(&blows[..1 + usize::from(other.is_some())]);
            }
            let callers = if cell.operation.by_handle { CALLERS } else { 1 };
            let calls: Vec<_> = (0..callers).map(|_| scope.spawn(|| (cell.operation.run)(&place))).collect();
            let ended: io::Result<()> = calls.into_iter().try_for_each(|c| c.join().expect("no panics"));
            done.store(true, Ordering::Release);
            ended
        });
        drop((pages, place, robber, other));
        ended.and_then(|()| fs::remove_dir_all(here))
    }

    /// Each hammer has fallen once at least: it has what it wants.
    fn wait_for(&self, blows: &[AtomicUsize]) {
        while blows.iter().any(|b| b.load(Ordering::Acquire) == 0) && !self.cut.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn cut(at: &Path) {
    if let Ok(Some(entry)) = mountinfo::mounted_at(at) {
        let _ = mount::abort(entry.connection());
    }
}

/// Two hosts with a daemon of this program's own.
fn hosts(cluster: &Cluster) -> Vec<Child> {
    let mount = |host| {
        fs::create_dir(cluster.at(host)).unwrap();
        let daemon = kernel::spawn(&cluster.image(), &cluster.at(host));
        let began = Instant::now();
        while mountinfo::mounted_at(&cluster.at(host)).unwrap().is_none() {
            assert!(began.elapsed() < ROUND_MAX, "host {host} does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    };
    (0..2).map(mount).collect()
}

#[test]
fn no_operation_deadlocks_with_a_revoke() {
    let cluster = Cluster::new("1G", 2, LIMIT);
    Matrix::new(&cluster, wanted_cells(), ROUND_MAX).pass();
    (0..2).for_each(|host| cluster.umount(host));
    cluster.check();
}

/// What the matrix is for: a host whose demotions wait for the pages of requests that wait for the very
/// lock is found out.
#[test]
fn a_planted_deadlock_is_found() {
    let cluster = Cluster::unmounted("1G", LIMIT);
    let mut daemons = hosts(&cluster);
    let faults = Matrix::new(&cluster, cells("write"), PLANTED_MAX).run();
    daemons.iter_mut().for_each(|daemon| drop(daemon.kill().and_then(|()| daemon.wait())));
    assert!(faults.iter().any(|f| f.contains("does not end")), "no cell hung: {faults:?}");
    println!("{}", faults.join("\n"));
}
