//! The two background threads: commit after the interval, checkpoint when due.
//!
//! They hold the journal weakly: dropping it without shutdown (a crash, to the disk) ends them.

use super::Journal;
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Wanted {
    stop: bool,
    commit_at: Option<Instant>,
    /// The log is half used, or memory is: write in place now.
    checkpoint_now: bool,
    /// The first and the last commit since the log was last written in place: due after the quiet time, or
    /// when the first has waited for long enough.
    first_commit: Option<Instant>,
    last_commit: Option<Instant>,
}

/// What the threads are told.
#[derive(Default)]
pub(super) struct Signal {
    wanted: Mutex<Wanted>,
    committer: Condvar,
    checkpointer: Condvar,
}

impl Signal {
    /// The running transaction has its first change: commit it in `after`.
    pub fn changed(&self, after: Duration) {
        let mut w = self.wanted.lock();
        if w.commit_at.is_none() {
            w.commit_at = Some(Instant::now() + after);
            self.committer.notify_one();
        }
    }

    /// A transaction is durable.
    pub fn committed(&self, due_now: bool) {
        let mut w = self.wanted.lock();
        let asleep = w.last_commit.is_none();
        let now = Instant::now();
        w.first_commit.get_or_insert(now);
        w.last_commit = Some(now);
        if due_now && !w.checkpoint_now {
            w.checkpoint_now = true;
            self.checkpointer.notify_one();
        } else if asleep {
            self.checkpointer.notify_one();
        }
    }

    /// End the threads.
    pub fn stop(&self) {
        self.wanted.lock().stop = true;
        self.committer.notify_all();
        self.checkpointer.notify_all();
    }

    /// Sleep until a commit is due. False: stop.
    fn await_commit(&self) -> bool {
        let mut w = self.wanted.lock();
        loop {
            if w.stop {
                return false;
            }
            match w.commit_at {
                None => self.committer.wait(&mut w),
                Some(at) if at <= Instant::now() => {
                    w.commit_at = None;
                    return true;
                }
                Some(at) => {
                    self.committer.wait_until(&mut w, at);
                }
            }
        }
    }

    /// Sleep until a checkpoint is due. False: stop.
    fn await_checkpoint(&self, quiet: Duration, latest: Duration) -> bool {
        let mut w = self.wanted.lock();
        loop {
            if w.stop {
                return false;
            }
            let quiet_at = w.last_commit.map(|at| at + quiet);
            let due = quiet_at.map(|at| at.min(w.first_commit.map_or(at, |first| first + latest)));
            if w.checkpoint_now || due.is_some_and(|at| at <= Instant::now()) {
                w.checkpoint_now = false;
                (w.first_commit, w.last_commit) = (None, None);
                return true;
            }
            match due {
                None => self.checkpointer.wait(&mut w),
                Some(at) => {
                    self.checkpointer.wait_until(&mut w, at);
                }
            }
        }
    }
}

/// Start both threads of `journal`.
pub(super) fn start(journal: &Arc<Journal>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let (quiet, latest) = (journal.config.checkpoint_quiet, journal.config.checkpoint_latest);
    let commit = {
        let (weak, signal) = (Arc::downgrade(journal), journal.signal.clone());
        move || run(&weak, || signal.await_commit(), |j| j.commit(j.running()))
    };
    let checkpoint = {
        let (weak, signal) = (Arc::downgrade(journal), journal.signal.clone());
        move || run(&weak, || signal.await_checkpoint(quiet, latest), Journal::checkpoint_durable)
    };
    Ok(vec![
        std::thread::Builder::new().name("shoal-commit".into()).spawn(commit)?,
        std::thread::Builder::new().name("shoal-checkpt".into()).spawn(checkpoint)?,
    ])
}

fn run(journal: &Weak<Journal>, due: impl Fn() -> bool, work: impl Fn(&Journal) -> crate::base::Result<()>) {
    while due() {
        let Some(journal) = journal.upgrade() else { return };
        if let Err(e) = work(&journal) {
            // The halt latch has told everybody who waits; nothing is left to do here.
            tracing::error!("journal thread ends: {e}");
            return;
        }
    }
}
