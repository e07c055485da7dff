//! The multi-mount random tester: each operation on a random host, every answer compared with a model, the final tree
//! compared on all hosts and after a remount. One file per kind of operation.
//!
//! `SHOAL_SEED` and `SHOAL_OPS` repeat or lengthen a run. `the_model_is_right` runs the same on a local filesystem,
//! which says whether a difference is the model's.

mod acl;
mod attributes;
mod compare;
mod content;
mod copy;
mod direct;
mod history;
mod locks;
mod mapping;
mod nameless;
mod names;
mod opens;
mod programs;
mod space;

use crate::model::{Id, Model, Place};
use crate::rig::Cluster;
use history::History;
use mapping::Mapping;
use opens::Open;
use programs::Program;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const NAMES: [&str; 5] = ["a", "b", "c", "dd", "a-longer-name-that-takes-more-room-in-a-page"];
/// Hosts that operations are done on.
const HOSTS: usize = 3;

/// What operations are done on, and what of it must be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cluster,
    /// One local filesystem, which all hosts share; less may be asked of it.
    Local,
}

struct Tester {
    kind: Kind,
    random: StdRng,
    model: Model,
    hosts: Vec<PathBuf>,
    /// One on each host: POSIX locks are a process's, and so is the umask.
    programs: Vec<Program>,
    opens: Vec<Open>,
    mappings: Vec<Mapping>,
    history: History,
    umask: u32,
    serial: u64,
    /// Turns of direct readers and writers, and how many of these were shared.
    direct_turns: (u64, u64),
}

/// A host, and a directory with a name in it, which is there or not.
struct Turn {
    host: usize,
    places: Vec<Place>,
    dir: Id,
    path: String,
    name: String,
    there: Option<Id>,
}

impl Tester {
    fn new(kind: Kind, hosts: Vec<PathBuf>, seed: u64) -> Tester {
        let programs = hosts.iter().map(|_| Program::start()).collect();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let umask =
            status.lines().find_map(|line| line.strip_prefix("Umask:")).expect("known since Linux 4.7");
        Tester {
            kind,
            random: StdRng::seed_from_u64(seed),
            model: Model::new(),
            hosts,
            programs,
            opens: Vec::new(),
            mappings: Vec::new(),
            history: History::new(seed),
            umask: u32::from_str_radix(umask.trim(), 8).unwrap(),
            serial: 0,
            direct_turns: (0, 0),
        }
    }

    fn at(&self, host: usize, path: &str) -> PathBuf {
        self.hosts[host].join(path.trim_start_matches('/'))
    }

    /// Compare an outcome with the errno expected (0: success). `id` is what the operation is about.
    fn expect<T>(&mut self, id: Id, what: String, done: io::Result<T>, errno: i32) -> Option<T> {
        self.history.push(id, what);
        let found = done.as_ref().map_or_else(|e| e.raw_os_error().unwrap_or(-1), |_| 0);
        if found != errno {
            self.history.fail(id, format!("errno {found}, expected {errno}"));
        }
        done.ok()
    }

    /// The operation just done has come to something else than it should.
    fn fail(&self, id: Id, how: String) -> ! {
        self.history.fail(id, how)
    }

    fn host(&mut self) -> usize {
        self.random.random_range(0..self.hosts.len())
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.random).expect("not empty")
    }

    fn turn(&mut self) -> Turn {
        let host = self.host();
        let (at, dir) = self.model.directories().choose(&mut self.random).unwrap().clone();
        let name = self.pick(&NAMES).to_string();
        let there = self.model.children(dir).get(&name).copied();
        Turn { host, places: self.model.places(), dir, path: format!("{at}/{name}"), name, there }
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let mut data = vec![0; self.random.random_range(1..=max)];
        self.random.fill(&mut data[..]);
        data
    }

    fn step(&mut self) {
        let turn = self.turn();
        match self.random.random_range(0..100) {
            0..24 => self.change_names(&turn),
            24..26 => self.create_nameless(&turn),
            26..50 => self.change_content(&turn),
            50..55 => self.change_space(&turn),
            55..58 => self.copy(&turn),
            58..61 => self.take_direct_turns(&turn),
            61..68 => self.use_mappings(&turn),
            68..73 => self.change_opens(&turn),
            73..85 => self.use_locks(&turn),
            85..88 => self.xattr(&turn),
            88..93 => self.change_guard(&turn),
            _ => self.look(&turn),
        }
    }

    /// All operations, and what is open in the end compared and closed.
    fn run(&mut self, operations: u64) {
        (0..operations).for_each(|_| self.step());
        self.close_all();
        self.compare_all();
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Random operations on the first hosts, all compared with the model; then all of it again after a
/// remount, and fsck.
fn random_operations(cluster: &Cluster, operations: u64) {
    let seed = number("SHOAL_SEED", 20261121);
    println!("SHOAL_SEED={seed} SHOAL_OPS={operations}");
    let hosts = (0..HOSTS).map(|host| cluster.at(host)).collect();
    let mut tester = Tester::new(Kind::Cluster, hosts, seed);
    tester.run(operations);
    (0..HOSTS).for_each(|host| cluster.umount(host));
    (0..HOSTS).for_each(|host| cluster.mount(host));
    tester.compare_all();
    (0..HOSTS).for_each(|host| cluster.umount(host));
    let (turns, shared) = tester.direct_turns;
    println!("{turns} turns of direct readers and writers, {shared} of them shared");
    assert!(turns < 60 || shared > 0, "no direct writers ever shared a file");
}

#[test]
fn random_operations_on_three_hosts() {
    let operations = number("SHOAL_OPS", 3000);
    let cluster = Cluster::new("1G", HOSTS, Duration::from_secs(120 + operations / 20));
    random_operations(&cluster, operations);
    cluster.check();
}

#[test]
fn random_operations_while_a_fourth_host_comes_and_goes() {
    let operations = number("SHOAL_OPS", 3000) / 2;
    let cluster = Cluster::new("1G", HOSTS, Duration::from_secs(120 + operations / 10));
    let done = AtomicBool::new(false);
    let visits = std::thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            let mut visits = 0;
            while !done.load(Ordering::Acquire) {
                cluster.mount(HOSTS);
                // Takes locks from the others, and groups when it writes.
                let at = cluster.at(HOSTS);
                let names: Vec<_> = fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()).collect();
                names.iter().for_each(|path| drop(fs::symlink_metadata(path)));
                cluster.umount(HOSTS);
                visits += 1;
            }
            visits
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| random_operations(&cluster, operations)));
        done.store(true, Ordering::Release);
        let visits = visitor.join();
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        visits.expect("the visitor came and went")
    });
    println!("{visits} visits");
    assert!(visits > 2, "only {visits} visits: nothing was tested");
    cluster.check();
}

/// The same on a local filesystem with ACLs and O_DIRECT (ext4, XFS): a directory in `SHOAL_LOCAL`.
#[test]
#[ignore = "wants a directory of ext4 in SHOAL_LOCAL"]
fn the_model_is_right() {
    let on = std::env::var("SHOAL_LOCAL").expect("SHOAL_LOCAL names a directory");
    let directory = tempfile::tempdir_in(Path::new(&on)).unwrap();
    let seed = number("SHOAL_SEED", 20261121);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), mode).unwrap();
    let hosts = vec![directory.path().canonicalize().unwrap(); HOSTS];
    Tester::new(Kind::Local, hosts, seed).run(number("SHOAL_OPS", 3000));
}
