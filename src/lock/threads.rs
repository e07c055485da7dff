//! The threads around the desk: one tells of grants and runs timers, one adopts groups, a few
//! demote, a pool runs the operations that had to wait.
//!
//! Demotions have lanes, because the work of one may wait for a lock of a later class that another
//! host gives up only after *its* work: were all threads busy with inodes, no group could ever be
//! given up, on both hosts.

use crate::base::{AgNo, LockName, Mode, Result, Token};
use crate::lock::desk::{Desk, Effect, TicketNo};
use crate::lock::files::{FileAnswer, RequestNo};
use crate::lock::table::PinTable;
use crate::lock::{DemoteAnswer, DemoteJob, Demoter, LockConfig, LockSet, Pins};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

/// Demotion threads by class: whole-volume locks, inodes, groups.
pub const LANES: [usize; 3] = [1, 4, 2];

/// Who has waited for longer than this waits for something that takes its time.
const LATELY: Duration = Duration::from_millis(100);

/// What happens once a set is pinned.
pub(super) enum Then {
    Run(Box<dyn FnOnce(Result<Pins>) + Send>),
    Send(Sender<Result<Pins>>),
}

/// What happens once a request for a file lock is answered. Called on any thread, perhaps the protocol
/// thread: it must not wait for anything.
pub type FileThen = Box<dyn FnOnce(FileAnswer) + Send>;

type Wake = Arc<dyn Fn() + Send + Sync>;
type Adopt = Arc<dyn Fn(AgNo) -> Result<Token> + Send + Sync>;
type Job = Box<dyn FnOnce() + Send>;

/// A grant, or a demotion that is not needed, to tell the file system of.
struct Tell {
    name: LockName,
    mode: Mode,
    kept: bool,
}

struct State {
    desk: Desk,
    /// When something was last done at the desk.
    now: Duration,
    thens: HashMap<TicketNo, Then>,
    file_thens: HashMap<RequestNo, FileThen>,
    tells: VecDeque<Tell>,
    lanes: [VecDeque<DemoteJob>; 3],
    /// Demotions under way.
    demoting: usize,
    adoptions: VecDeque<AgNo>,
    pool: VecDeque<Job>,
    /// When the teller wakes by itself.
    timer: Option<Duration>,
    stop: bool,
}

/// See the head of the file.
pub(super) struct Hub {
    cfg: LockConfig,
    table: Arc<PinTable>,
    demoter: Arc<dyn Demoter>,
    state: Mutex<State>,
    teller: Condvar,
    demoters: [Condvar; 3],
    adopter: Condvar,
    workers: Condvar,
    /// Somebody waits for a file lock, and for nothing else.
    awaiting: AtomicBool,
    /// When somebody last asked for a file lock (nanoseconds since boot).
    asked: AtomicU64,
    wake: RwLock<Option<Wake>>,
    adopt: RwLock<Option<Adopt>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Hub {
    pub fn start(cfg: LockConfig, table: Arc<PinTable>, desk: Desk, demoter: Arc<dyn Demoter>) -> Arc<Hub> {
        let state = State {
            desk,
            now: cfg.clock.now(),
            thens: HashMap::new(),
            file_thens: HashMap::new(),
            tells: VecDeque::new(),
            lanes: Default::default(),
            demoting: 0,
            adoptions: VecDeque::new(),
            pool: VecDeque::new(),
            timer: None,
            stop: false,
        };
        let hub = Arc::new(Hub {
            cfg,
            table,
            demoter,
            state: Mutex::new(state),
            teller: Condvar::new(),
            demoters: Default::default(),
            adopter: Condvar::new(),
            workers: Condvar::new(),
            awaiting: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            wake: RwLock::new(None),
            adopt: RwLock::new(None),
            threads: Mutex::new(Vec::new()),
        });
        hub.spawn("lock-tell", Hub::run_teller);
        hub.spawn("lock-adopt", Hub::run_adopter);
        for (lane, count) in LANES.into_iter().enumerate() {
            for _ in 0..count {
                hub.spawn("lock-demote", move |hub| hub.run_demoter(lane));
            }
        }
        for _ in 0..hub.cfg.workers.max(1) {
            hub.spawn("lock-work", Hub::run_worker);
        }
        hub
    }

    fn spawn(self: &Arc<Hub>, name: &str, run: impl FnOnce(Arc<Hub>) + Send + 'static) {
        let hub = self.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(hub));
        self.threads.lock().push(thread.expect("a thread at start-up"));
    }

    pub fn table(&self) -> &PinTable {
        &self.table
    }

    pub fn set_wake(&self, wake: Wake) {
        *self.wake.write() = Some(wake);
    }

    pub fn set_adopt(&self, adopt: Adopt) {
        let _state = self.state.lock(); // so that the adopter is not between looking and waiting
        *self.adopt.write() = Some(adopt);
        self.adopter.notify_all();
    }

    /// Does a program here wait for a file lock that it has asked for a moment ago, and is nothing else to be done about
    /// locks?
    pub fn is_awaiting(&self, now: Duration) -> bool {
        let asked = Duration::from_nanos(self.asked.load(Ordering::Relaxed));
        self.awaiting.load(Ordering::Relaxed) && now <= asked + LATELY
    }

    /// Do something at the desk, then see to what follows from it.
    pub fn with_desk<T>(self: &Arc<Hub>, f: impl FnOnce(&mut Desk, Duration) -> T) -> T {
        // Before the mutex is taken: where the clock is a system call, others would wait for that.
        let now = self.cfg.clock.now();
        self.at_desk(now, |desk| f(desk, now))
    }

    /// Where the time is known.
    pub fn at_desk<T>(self: &Arc<Hub>, now: Duration, f: impl FnOnce(&mut Desk) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state.desk);
        self.finish(state, now);
        result
    }

    /// Where it is of no interest.
    pub fn at_desk_any_time<T>(self: &Arc<Hub>, f: impl FnOnce(&mut Desk) -> T) -> T {
        let mut state = self.state.lock();
        let (result, now) = (f(&mut state.desk), state.now);
        self.finish(state, now);
        result
    }

    pub fn acquire(self: &Arc<Hub>, set: LockSet, then: Then) {
        self.acquire_by(Desk::acquire, set, then);
    }

    pub fn acquire_first(self: &Arc<Hub>, set: LockSet, then: Then) {
        self.acquire_by(Desk::acquire_first, set, then);
    }

    fn acquire_by(
        self: &Arc<Hub>,
        by: fn(&mut Desk, Duration, LockSet) -> TicketNo,
        set: LockSet,
        then: Then,
    ) {
        let now = self.cfg.clock.now();
        let mut state = self.state.lock();
        let ticket = by(&mut state.desk, now, set);
        state.thens.insert(ticket, then);
        self.finish(state, now);
    }

    /// Make a request for a file lock with `ask`, and do `then` when it is answered. `None`: there was nothing
    /// to ask.
    pub fn ask_file(
        self: &Arc<Hub>,
        ask: impl FnOnce(&mut Desk, Duration) -> Option<RequestNo>,
        then: FileThen,
    ) -> Option<RequestNo> {
        let now = self.cfg.clock.now();
        // Beside one that has waited for long, a wait begins.
        if !self.is_awaiting(now) {
            self.awaiting.store(false, Ordering::Relaxed);
        }
        self.asked.store(now.as_nanos() as u64, Ordering::Relaxed);
        let mut state = self.state.lock();
        let request = ask(&mut state.desk, now)?;
        state.file_thens.insert(request, then);
        self.finish(state, now);
        Some(request)
    }

    /// The fast path, and its second step for locks that nobody else is interested in.
    pub fn pin(self: &Arc<Hub>, name: LockName, mode: Mode) -> bool {
        if self.table.pin(name, mode) {
            return true;
        }
        if !self.demoter.hears_of(name) {
            return self.with_desk(|desk, _| desk.claim_pinned(name, mode));
        }
        let Some(grant) = self.with_desk(|desk, _| desk.claim(name, mode)) else { return false };
        self.demoter.granted(name, grant);
        self.with_desk(|desk, now| desk.told(now, name));
        self.table.pin(name, mode)
    }

    /// Pin as many of these as can be had without waiting; the others are taken out.
    pub fn pin_each(self: &Arc<Hub>, wanted: &mut Vec<(LockName, Mode)>) {
        let mut missing = false;
        let mut pinned: Vec<bool> = Vec::with_capacity(wanted.len());
        for (name, mode) in wanted.iter() {
            let got = self.table.pin(*name, *mode);
            missing |= !got;
            pinned.push(got);
        }
        if missing {
            self.with_desk(|desk, _| {
                for ((name, mode), got) in wanted.iter().zip(&mut pinned).filter(|(_, got)| !**got) {
                    *got = !self.demoter.hears_of(*name) && desk.claim_pinned(*name, *mode);
                }
            });
        }
        let mut pinned = pinned.into_iter();
        wanted.retain(|_| pinned.next() == Some(true));
    }

    pub fn unpin(self: &Arc<Hub>, pinned: &[(LockName, Mode)]) {
        for (name, mode) in pinned {
            if self.table.unpin(*name, *mode) {
                self.with_desk(|desk, now| desk.unpinned(now, *name));
            }
        }
    }

    /// Hand the desk's effects to the threads, and wake whom it concerns.
    fn finish(self: &Arc<Hub>, mut state: MutexGuard<'_, State>, now: Duration) {
        state.now = state.now.max(now);
        let (mut answered, now) = (Vec::new(), state.now);
        while let Some(effect) = state.desk.next_effect() {
            match effect {
                Effect::Tell { name, .. } | Effect::Kept { name, .. } if !self.demoter.hears_of(name) => {
                    state.desk.told(now, name);
                }
                Effect::Tell { name, mode } => state.tells.push_back(Tell { name, mode, kept: false }),
                Effect::Kept { name, mode } => state.tells.push_back(Tell { name, mode, kept: true }),
                Effect::Demote(job) => {
                    let lane = lane_of(job.name);
                    state.lanes[lane].push_back(job);
                    self.demoters[lane].notify_one();
                }
                Effect::Adopt(ag) => {
                    state.adoptions.push_back(ag);
                    self.adopter.notify_one();
                }
                Effect::Complete { ticket, result } => self.complete(&mut state, ticket, result),
                Effect::FileLock { request, answer } => {
                    // Nobody waits for what the desk asks of its own accord.
                    answered.extend(state.file_thens.remove(&request).map(|then| (then, answer)));
                }
            }
        }
        let deadline = state.desk.deadline();
        let sooner = deadline.is_some_and(|at| state.timer.is_none_or(|timer| at < timer));
        if sooner || !state.tells.is_empty() {
            self.teller.notify_one();
        }
        let dirty = !state.desk.take_dirty().is_empty();
        // Whoever waits for a lock of the cluster is told by threads here, and so are those it is taken from: they
        // need the processor.
        let idle =
            state.thens.is_empty() && state.lanes.iter().all(VecDeque::is_empty) && state.demoting == 0;
        let awaiting = idle && !state.file_thens.is_empty();
        // Whoever hears others may be asleep until the next look is due to one for whom nobody waits.
        let begins = !self.awaiting.swap(awaiting, Ordering::Relaxed) && awaiting;
        drop(state);
        if (dirty || begins)
            && let Some(wake) = self.wake.read().clone()
        {
            wake();
        }
        answered.into_iter().for_each(|(then, answer)| then(answer));
    }

    fn complete(self: &Arc<Hub>, state: &mut State, ticket: TicketNo, result: Result<LockSet>) {
        let then = state.thens.remove(&ticket).expect("a ticket is answered once");
        let result = result.map(|set| Pins::new(self.clone(), set));
        match then {
            Then::Run(then) => state.pool.push_back(Box::new(move || then(result))),
            Then::Send(sender) => {
                let Err(unsent) = sender.send(result) else { return };
                state.pool.push_back(Box::new(move || drop(unsent))); // not here: the mutex is held
            }
        }
        self.workers.notify_one();
    }

    fn run_teller(self: Arc<Hub>) {
        loop {
            let mut state = self.state.lock();
            while state.tells.is_empty() && !state.stop {
                let now = self.cfg.clock.now();
                state.timer = state.desk.deadline();
                match state.timer {
                    Some(at) if at <= now => break,
                    Some(at) => _ = self.teller.wait_for(&mut state, at - now),
                    None => self.teller.wait(&mut state),
                }
            }
            if state.stop {
                return;
            }
            let tells = std::mem::take(&mut state.tells);
            let now = self.cfg.clock.now();
            state.desk.tick(now);
            self.finish(state, now);
            for tell in &tells {
                match tell.kept {
                    true => self.demoter.kept(tell.name, tell.mode),
                    false => self.demoter.granted(tell.name, tell.mode),
                }
                self.with_desk(|desk, now| desk.told(now, tell.name));
            }
        }
    }

    fn run_demoter(self: Arc<Hub>, lane: usize) {
        loop {
            let mut state = self.state.lock();
            while state.lanes[lane].is_empty() && !state.stop {
                self.demoters[lane].wait(&mut state);
            }
            if state.stop {
                return;
            }
            let count = state.lanes[lane].len().min(self.cfg.batch_max.max(1));
            let mut batch: Vec<_> = state.lanes[lane].drain(..count).collect();
            state.demoting += count;
            drop(state);
            batch.sort_by_key(|job| job.name);
            let answers = self.demoter.demote(&batch);
            assert_eq!(answers.len(), batch.len(), "one answer per demotion");
            let now = self.cfg.clock.now();
            let mut state = self.state.lock();
            state.demoting -= count;
            for (job, answer) in batch.iter().zip(answers) {
                state.desk.demoted(now, job.name, answer);
            }
            self.finish(state, now);
        }
    }

    fn run_adopter(self: Arc<Hub>) {
        loop {
            let mut state = self.state.lock();
            let adopt = loop {
                if state.stop {
                    return;
                }
                let adopt = self.adopt.read().clone();
                match adopt {
                    Some(adopt) if !state.adoptions.is_empty() => break adopt,
                    _ => self.adopter.wait(&mut state),
                }
            };
            let ag = state.adoptions.pop_front().expect("just seen");
            drop(state);
            let token = adopt(ag);
            if let Err(error) = &token {
                tracing::warn!(%ag, %error, "cannot adopt a group, trying again");
                std::thread::sleep(Duration::from_millis(100));
            }
            self.with_desk(|desk, now| desk.adopted(now, ag, token.is_ok()));
        }
    }

    fn run_worker(self: Arc<Hub>) {
        loop {
            let mut state = self.state.lock();
            while state.pool.is_empty() && !state.stop {
                self.workers.wait(&mut state);
            }
            let Some(job) = state.pool.pop_front() else { return };
            drop(state);
            job();
        }
    }

    /// End the threads; those of the pool first run what waits.
    pub fn stop(self: &Arc<Hub>) {
        self.state.lock().stop = true;
        self.teller.notify_all();
        self.demoters.iter().for_each(|c| _ = c.notify_all());
        self.adopter.notify_all();
        self.workers.notify_all();
        let me = std::thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The last user of the manager may be one of its own threads.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of the lock manager has panicked");
            }
        }
        while let Some(job) = {
            let mut state = self.state.lock();
            state.pool.pop_front()
        } {
            job();
        }
    }
}

fn lane_of(name: LockName) -> usize {
    match name {
        LockName::Freeze | LockName::Volume | LockName::Slot(_) | LockName::Rename => 0,
        LockName::Inode(_) | LockName::IOpen(_) | LockName::FileLocks(_) => 1,
        LockName::Ag(_) => 2,
    }
}

/// What a demoter that has nothing to empty answers.
pub fn all_done(batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
    vec![DemoteAnswer::Done; batch.len()]
}
