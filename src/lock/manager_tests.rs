//! Lock managers of several hosts in one process, their registers carried by a thread. The
//! demoters keep a cache over a common disk, so that a stale read or a lost write shows.

use super::*;
use crate::base::{AgNo, Clock, Incarnation, InodeNo, LockName, Mode, Result, SlotId, SystemClock, Token};
use crate::cluster::{LockPort, Membership, Owner};
use crate::format::cluster::{SlotState, View};
use crate::format::layout::Geometry;
use crate::lock::files::{FileAnswer, FileLock, FileRequest, Job, LockKind, Owner as LockOwner, Span};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const GEOMETRY: Geometry = Geometry {
    total_blocks: 40_000,
    max_slots: 4,
    cell_pitch: 512,
    ledger_pages: 1,
    ag_blocks: 8192,
    ag_count: 3,
};

fn inode(ag: u32, n: u64) -> LockName {
    LockName::Inode(InodeNo(GEOMETRY.ag_start(AgNo(ag)).0 + 700 + n))
}

fn iopen(ag: u32) -> LockName {
    LockName::IOpen(InodeNo(GEOMETRY.ag_start(AgNo(ag)).0 + 700))
}

/// What is on the disk, and the truth: the number of increments of each lock's value.
#[derive(Default)]
struct Disk {
    values: Mutex<HashMap<LockName, u64>>,
    truth: Mutex<HashMap<LockName, Arc<AtomicU64>>>,
}

impl Disk {
    fn truth(&self, name: LockName) -> Arc<AtomicU64> {
        self.truth.lock().entry(name).or_default().clone()
    }
}

#[derive(Default)]
struct Cache {
    disk: Arc<Disk>,
    values: Mutex<HashMap<LockName, (Mode, u64)>>,
    in_flight: Mutex<BTreeSet<LockName>>,
    /// How many times still to answer 'busy'.
    busy: AtomicU32,
    slow: AtomicU32,
    kept: AtomicU32,
    batches: AtomicU32,
    /// It need not hear of grants; nothing is cached then.
    deaf: AtomicBool,
}

impl Cache {
    fn read(&self, name: LockName) -> u64 {
        self.values.lock()[&name].1
    }

    fn increment(&self, name: LockName) {
        let mut values = self.values.lock();
        let (mode, value) = values.get_mut(&name).expect("granted before it is pinned");
        assert_eq!(*mode, Mode::X);
        *value += 1;
        self.disk.truth(name).fetch_add(1, Ordering::SeqCst);
    }

    fn demote_one(&self, job: &DemoteJob) -> DemoteAnswer {
        assert!(self.in_flight.lock().insert(job.name), "two demotions of one lock");
        let less = |n: u32| n.checked_sub(1);
        let busy = self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        if !busy && !self.deaf.load(Ordering::SeqCst) {
            let mut values = self.values.lock();
            let (mode, value) = values[&job.name];
            assert_eq!(mode, job.from);
            if mode == Mode::X {
                self.disk.values.lock().insert(job.name, value);
            }
            match job.to {
                Mode::N => _ = values.remove(&job.name),
                to => _ = values.insert(job.name, (to, value)),
            }
        }
        self.in_flight.lock().remove(&job.name);
        if busy { DemoteAnswer::Busy } else { DemoteAnswer::Done }
    }
}

impl Demoter for Cache {
    fn hears_of(&self, _name: LockName) -> bool {
        !self.deaf.load(Ordering::SeqCst)
    }

    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst).into()));
        batch.iter().map(|job| self.demote_one(job)).collect()
    }

    fn granted(&self, name: LockName, mode: Mode) {
        let from_disk = self.disk.values.lock().get(&name).copied().unwrap_or(0);
        let mut values = self.values.lock();
        let value = values.get(&name).map_or(from_disk, |(_, value)| *value);
        values.insert(name, (mode, value));
    }

    fn kept(&self, _name: LockName, _mode: Mode) {
        self.kept.fetch_add(1, Ordering::SeqCst);
    }
}

struct Cluster {
    managers: Vec<Arc<LockManager>>,
    caches: Vec<Arc<Cache>>,
    disk: Arc<Disk>,
    stop: Arc<AtomicBool>,
    courier: Option<JoinHandle<()>>,
}

fn membership(me: u16, hosts: u16) -> Membership {
    let mut view = View::initial(4, 4);
    for slot in 0..hosts {
        let entry = &mut view.slots[slot as usize];
        (entry.state, entry.incarnation) =
            (SlotState::Live { former: None }, Incarnation(7 + u64::from(slot)));
    }
    let owner = |ag: u32| (Owner::Master(SlotId(ag as u16 % hosts)), Token(2));
    Membership {
        me: SlotId(me),
        incarnation: Incarnation(7 + u64::from(me)),
        view: Arc::new(view),
        silent: 0,
        owners: Arc::new((0..GEOMETRY.ag_count).map(owner).collect()),
    }
}

impl Cluster {
    fn start(hosts: u16) -> Cluster {
        let disk = Arc::new(Disk::default());
        let caches: Vec<_> =
            (0..hosts).map(|_| Arc::new(Cache { disk: disk.clone(), ..Cache::default() })).collect();
        let managers: Vec<_> = (0u16..)
            .zip(&caches)
            .map(|(slot, cache)| {
                let cfg = LockConfig::new(Arc::new(SystemClock));
                let manager = LockManager::new(cfg, GEOMETRY, SlotId(slot), cache.clone());
                manager.on_view(&membership(slot, hosts));
                manager
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let courier = std::thread::spawn({
            let (managers, stop) = (managers.clone(), stop.clone());
            move || carry(&managers, &stop)
        });
        Cluster { managers, caches, disk, stop, courier: Some(courier) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let carried = self.courier.take().expect("taken once").join();
        self.managers.iter().for_each(|m| m.shutdown());
        assert!(carried.is_ok() || std::thread::panicking());
    }
}

fn carry(managers: &[Arc<LockManager>], stop: &AtomicBool) {
    let mut last = HashMap::new();
    while !stop.load(Ordering::SeqCst) {
        for (from, sender) in (0u16..).zip(managers) {
            for (to, receiver) in (0u16..).zip(managers) {
                let entries = if from == to { continue } else { sender.outgoing(&[SlotId(to)]) };
                if last.insert((from, to), entries.clone()).as_ref() != Some(&entries) {
                    receiver.on_entries(SystemClock.now(), SlotId(from), &entries[0]);
                }
            }
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn ask(manager: &LockManager, set: LockSet) -> Receiver<Result<Pins>> {
    let (sender, receiver) = channel();
    manager.acquire(set, Box::new(move |pins| sender.send(pins).unwrap_or(())));
    receiver
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn reads_see_the_last_write_on_all_hosts() {
    let cluster = Cluster::start(3);
    let names: Vec<_> = (0..3).flat_map(|ag| [inode(ag, 0), inode(ag, 1), LockName::Ag(AgNo(ag))]).collect();
    std::thread::scope(|scope| {
        for worker in 0..6u64 {
            let (cluster, names) = (&cluster, &names);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(worker);
                let host = worker as usize % 3;
                let (manager, cache) = (&cluster.managers[host], &cluster.caches[host]);
                let deadline = Instant::now() + Duration::from_secs(3);
                let mut done = 0;
                while Instant::now() < deadline {
                    let count = rng.random_range(1..4);
                    let mode = |rng: &mut StdRng| if rng.random_bool(0.4) { Mode::X } else { Mode::S };
                    let set: LockSet = (0..count)
                        .map(|_| (names[rng.random_range(0..names.len())], mode(&mut rng)))
                        .collect();
                    if rng.random_bool(0.02) {
                        cache.busy.store(2, Ordering::SeqCst);
                        manager.shrink(0);
                    }
                    let pins = manager.acquire_wait(set.clone()).unwrap();
                    for (name, mode) in set.iter() {
                        if mode == Mode::X {
                            cache.increment(name);
                        } else {
                            // Local writers may run beside us: the values move together.
                            let truth = cluster.disk.truth(name);
                            let (before, read, after) = (
                                truth.load(Ordering::SeqCst),
                                cache.read(name),
                                truth.load(Ordering::SeqCst),
                            );
                            assert!(before <= read + 8 && read <= after + 8, "{before} {read} {after}");
                            if before == after {
                                assert!(read.abs_diff(before) <= 1, "{name:?}: read {read}, truth {before}");
                            }
                        }
                    }
                    drop(pins);
                    done += 1;
                }
                assert!(done > 20, "{done}");
            });
        }
    });
    for manager in &cluster.managers {
        manager.release_all().unwrap();
        assert_eq!(manager.cached(), 0);
        assert!(manager.acquire_wait(LockSet::one(names[0], Mode::S)).is_err());
    }
    let values = cluster.disk.values.lock();
    for name in names {
        let truth = cluster.disk.truth(name).load(Ordering::SeqCst);
        assert_eq!(values.get(&name).copied().unwrap_or(0), truth, "{name:?}");
    }
}

#[test]
fn a_stream_of_local_operations_does_not_starve_another_host() {
    let cluster = Cluster::start(2);
    let (name, stop) = (inode(0, 0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let pins = cluster.managers[0].acquire_wait(LockSet::one(name, Mode::X)).unwrap();
                    std::thread::sleep(Duration::from_micros(300));
                    drop(pins);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(30));
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let before = Instant::now();
            let pins = ask(&cluster.managers[1], LockSet::one(name, Mode::X)).recv_timeout(LONG);
            slowest = slowest.max(before.elapsed());
            drop(pins);
        }
        stop.store(true, Ordering::SeqCst);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    });
}

#[test]
fn shared_opens_pass_an_exclusive_want_that_waits() {
    let cluster = Cluster::start(3);
    let shared = LockSet::one(iopen(0), Mode::S);
    let first = cluster.managers[1].acquire_wait(shared.clone()).unwrap();
    let reaper = ask(&cluster.managers[2], LockSet::one(iopen(0), Mode::X));
    std::thread::sleep(Duration::from_millis(50));
    // On the host that has it open, on the master, and on the reaper's own host.
    let others: Vec<_> =
        [1, 0, 2].map(|m| ask(&cluster.managers[m], shared.clone()).recv_timeout(LONG)).into();
    assert!(others.iter().all(|o| o.as_ref().is_ok_and(|pins| pins.is_ok())));
    assert!(reaper.try_recv().is_err());
    drop((first, others));
    let pins = reaper.recv_timeout(LONG).unwrap().unwrap();
    assert!(pins.covers(iopen(0), Mode::X));
    assert_eq!([0, 1].map(|m| cluster.managers[m].mode(iopen(0))), [Mode::N; 2]);
}

#[test]
fn a_busy_group_serves_those_who_already_wait() {
    let cluster = Cluster::start(2);
    let group = LockSet::one(LockName::Ag(AgNo(0)), Mode::X);
    drop(cluster.managers[0].acquire_wait(group.clone()).unwrap());
    cluster.caches[0].busy.store(u32::MAX, Ordering::SeqCst);
    let other = ask(&cluster.managers[1], group.clone());
    let deadline = Instant::now() + LONG;
    while cluster.managers[0].try_pin(&group).is_some() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    // It is on its way down, but what keeps it busy may be waiting for it.
    let pins = ask(&cluster.managers[0], group.clone()).recv_timeout(LONG).unwrap().unwrap();
    assert!(cluster.managers[0].try_pin_revoked(LockName::Ag(AgNo(0)), Mode::X).is_some());
    assert!(other.try_recv().is_err());
    cluster.caches[0].busy.store(0, Ordering::SeqCst);
    drop(pins);
    assert!(other.recv_timeout(LONG).unwrap().is_ok());
    assert!(cluster.managers[0].try_pin_revoked(LockName::Ag(AgNo(0)), Mode::X).is_none());
}

#[test]
fn a_pin_during_the_demotion_has_it_run_again() {
    let cluster = Cluster::start(2);
    let name = inode(0, 0);
    drop(cluster.managers[0].acquire_wait(LockSet::one(name, Mode::X)).unwrap());
    cluster.caches[0].slow.store(60, Ordering::SeqCst);
    let other = ask(&cluster.managers[1], LockSet::one(name, Mode::X));
    let deadline = Instant::now() + LONG;
    while cluster.caches[0].batches.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline);
    }
    // A laundering write that comes and goes while the demotion runs.
    let late = cluster.managers[0].try_pin_revoked(name, Mode::X).unwrap();
    cluster.caches[0].increment(name);
    drop(late);
    // The cache of this test forgets at the first pass; the second one must find it there again.
    cluster.caches[0].busy.store(1, Ordering::SeqCst);
    assert!(other.recv_timeout(LONG).unwrap().is_ok());
    assert!(cluster.caches[0].batches.load(Ordering::SeqCst) >= 2);
    assert_eq!(cluster.caches[1].read(name), 1);
}

#[test]
fn unrelated_locks_do_not_wait_for_a_slow_one() {
    let cluster = Cluster::start(2);
    for n in 0..2 {
        drop(cluster.managers[0].acquire_wait(LockSet::one(inode(0, n), Mode::X)).unwrap());
    }
    cluster.caches[0].slow.store(1500, Ordering::SeqCst);
    let slow = ask(&cluster.managers[1], LockSet::one(inode(0, 0), Mode::S));
    let deadline = Instant::now() + LONG;
    while cluster.caches[0].batches.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline);
    }
    std::thread::sleep(Duration::from_millis(20));
    cluster.caches[0].slow.store(0, Ordering::SeqCst);
    assert!(
        ask(&cluster.managers[1], LockSet::one(inode(0, 1), Mode::S)).recv_timeout(LONG).unwrap().is_ok()
    );
    assert!(slow.try_recv().is_err());
    assert!(slow.recv_timeout(LONG).unwrap().is_ok());
}

#[test]
fn halting_answers_everybody() {
    let cluster = Cluster::start(2);
    let name = inode(1, 0);
    let held = cluster.managers[1].acquire_wait(LockSet::one(name, Mode::X)).unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|n| ask(&cluster.managers[0], LockSet::one(inode(0, n), Mode::X).with(name, Mode::S)))
        .collect();
    std::thread::sleep(Duration::from_millis(20));
    cluster.managers[0].halt("test");
    for answer in waiting {
        assert!(matches!(answer.recv_timeout(LONG), Ok(Err(crate::base::Error::Halted(_)))));
    }
    assert!(cluster.managers[0].acquire_wait(LockSet::one(inode(0, 99), Mode::S)).is_err());
    drop(held);
}

#[test]
fn own_locks_cost_no_message_and_hundreds_of_requests_fit() {
    let cluster = Cluster::start(2);
    let set = |n| LockSet::one(LockName::Freeze, Mode::S).with(inode(0, n), Mode::X);
    drop(cluster.managers[0].acquire_wait(set(0)).unwrap()); // opens the group
    assert!((1..600).all(|n| cluster.managers[0].try_pin(&set(n)).is_some()));
    assert_eq!(cluster.managers[0].cached(), 601);
    let (start, again) = (Instant::now(), set(5));
    assert!((0..100_000).all(|_| cluster.managers[0].try_pin(&again).is_some()));
    println!("{} ns for a cached pair of locks", start.elapsed().as_nanos() / 100_000);
    assert!(cluster.managers[0].outgoing(&[SlotId(1)])[0].is_empty());
    let answers: Vec<_> = (0..600).map(|n| ask(&cluster.managers[1], set(n))).collect();
    for answer in answers {
        assert!(answer.recv_timeout(LONG).unwrap().is_ok());
    }
    assert_eq!(
        cluster.managers[1].snapshot().iter().filter(|i| i.mode == Mode::X && !i.mastered).count(),
        600
    );
}

#[test]
fn a_lock_named_twice_among_many_is_pinned_once() {
    let cluster = Cluster::start(2);
    cluster.caches[0].deaf.store(true, Ordering::SeqCst);
    drop(cluster.managers[0].acquire_wait(LockSet::one(inode(0, 9), Mode::S)).unwrap()); // opens the group
    // Once not held before, once held; twice and thrice by the same name, as hard links are.
    for _ in 0..2 {
        let names = [1, 0, 2, 0, 1, 0].map(|n| inode(0, n));
        let pins = cluster.managers[0].try_pin_each(names.into_iter(), Mode::S);
        assert_eq!(pins.set().len(), 3);
    }
    assert!(cluster.managers[0].snapshot().iter().all(|lock| lock.pins == 0));
    let all = LockSet::from_iter([0, 1, 2].map(|n| (inode(0, n), Mode::X)));
    assert!(ask(&cluster.managers[1], all).recv_timeout(LONG).unwrap().is_ok());
}

/// A byte of `inode(0, 0)` for a program of that host.
fn take_byte(manager: &LockManager, (host, id): (u16, u64), byte: u64) -> Receiver<FileAnswer> {
    let LockName::Inode(ino) = inode(0, 0) else { unreachable!() };
    let owner = LockOwner { host: SlotId(host), id };
    let span = Span { start: byte, end: byte };
    let lock = FileLock { kind: LockKind::Range, owner, mode: Mode::X, span };
    let request = FileRequest { ino, job: Job::Set { wait: true }, lock, handle: 1, process: 1 };
    let (sender, receiver) = channel();
    manager.file_lock(&request, Box::new(move |answer| sender.send(answer).unwrap_or(())));
    receiver
}

/// Whoever hears the others pauses as long as nobody waits, so it has to be told when somebody begins to.
#[test]
fn a_wait_for_a_file_lock_wakes_who_hears_the_others_though_there_is_nothing_to_say() {
    let cluster = Cluster::start(2);
    // The host that decides the name serves the file's locks once both have some.
    for (host, byte) in [(0, 7), (1, 0)] {
        let answer = take_byte(&cluster.managers[usize::from(host)], (host, 1), byte);
        assert_eq!(answer.recv_timeout(LONG), Ok(FileAnswer::Granted));
    }
    let woken = Arc::new(AtomicU32::new(0));
    let server = &cluster.managers[0];
    server.on_wake(Box::new({
        let woken = woken.clone();
        move || _ = woken.fetch_add(1, Ordering::SeqCst)
    }));
    // The second begins to wait beside one that has for long.
    for program in [1, 2] {
        let mut last = u32::MAX;
        while std::mem::replace(&mut last, woken.load(Ordering::SeqCst)) != last {
            std::thread::sleep(Duration::from_millis(150));
        }
        let said = server.outgoing(&[SlotId(1)]);
        let answer = take_byte(server, (0, program), 0);
        assert_eq!(server.outgoing(&[SlotId(1)]), said, "nothing to say");
        assert!(woken.load(Ordering::SeqCst) > last, "program {program}");
        assert!(answer.try_recv().is_err(), "the other host has that byte");
    }
}
