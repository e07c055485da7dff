//! The threads of a mount: from the first lock that is waited for to the last that is given up.

use super::*;
use std::thread::JoinHandle;

/// Ends after the others: they may be waiting for what a dead host has until it is recovered.
const RECOVERY: &str = "shoal-recovery";

impl Core {
    pub(super) fn start_threads(self: &Arc<Self>) -> Result<()> {
        let mut threads = self.threads.lock();
        let mut start = |name: &str, work: fn(&Arc<Core>)| {
            let core = self.clone();
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&core));
            thread.map(|t| threads.push(t)).map_err(|e| Error::Device(format!("cannot start a thread: {e}")))
        };
        start("shoal-writeback", Core::run_writeback)?;
        start("shoal-reaper", Core::run_reaper)?;
        start("shoal-walks", Core::run_walks)?;
        start("shoal-lapse", Core::run_lapse)?;
        start(RECOVERY, Core::run_recovery)?;
        start("shoal-report", Core::run_report)
    }

    /// End all but the recovery thread.
    pub(super) fn stop_workers(&self) {
        self.stopping.store(true, Ordering::Release);
        self.writeback.stop();
        self.reaper.stop();
        self.walks.stop();
        self.join_threads(|name| name != RECOVERY);
    }

    /// End the recovery thread, when it is done with what it is at.
    pub(super) fn stop_recovery(&self) {
        self.recovery.stop();
        self.join_threads(|name| name == RECOVERY);
    }

    fn join_threads(&self, which: impl Fn(&str) -> bool) {
        let is_named = |t: &mut JoinHandle<()>| t.thread().name().is_some_and(&which);
        // Not waited for under the lock.
        let ending: Vec<_> = self.threads.lock().extract_if(.., is_named).collect();
        for thread in ending {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
