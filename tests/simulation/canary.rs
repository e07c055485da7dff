//! Planted bugs: were there such a one, the simulation would find it.

use crate::common::port::Weather;
use shoal::base::{LockName, Mode};
use shoal::lock::{DemoteAnswer, DemoteJob, Demoter};
use std::sync::Arc;
use std::time::Duration;

/// How long after the word that a lock is free its changes reach the disk, where they do so late.
const LATE: Duration = Duration::from_millis(20);

/// What is wrong with the hosts or their disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    None,
    /// The disk acknowledges flushes that it forgets.
    LostFlushes,
    /// A host goes on with blocks as it has read them first.
    StaleReads,
    /// A host writes back what it changed, gives the lock up, and goes on with what it has in memory.
    CachesKept,
    /// A host says that a lock is free before it has written back what it changed under it.
    LateWriteBack,
    /// Blocks are discarded when they may be somebody's again.
    LateDiscards,
}

impl Canary {
    pub const ALL: [Canary; 5] = [
        Canary::LostFlushes,
        Canary::StaleReads,
        Canary::CachesKept,
        Canary::LateWriteBack,
        Canary::LateDiscards,
    ];

    /// The weather with what is wrong with the disk.
    pub fn spoil(self, weather: Weather) -> Weather {
        Weather {
            lost_flushes: self == Canary::LostFlushes,
            stale_reads: self == Canary::StaleReads,
            late_discards: self == Canary::LateDiscards,
            ..weather
        }
    }

    /// What the locks are told instead of what a host's file system says.
    pub fn wrap(self, demoter: Arc<dyn Demoter>) -> Arc<dyn Demoter> {
        match self {
            Canary::CachesKept => Arc::new(CachesKept(demoter)),
            Canary::LateWriteBack => Arc::new(LateWriteBack(demoter)),
            _ => demoter,
        }
    }
}

struct CachesKept(Arc<dyn Demoter>);

impl Demoter for CachesKept {
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        let as_if_read = |job: &DemoteJob| match job.name {
            LockName::Inode(_) => DemoteJob { to: Mode::S, ..*job },
            _ => *job,
        };
        self.0.demote(&batch.iter().map(as_if_read).collect::<Vec<_>>())
    }

    fn granted(&self, name: LockName, mode: Mode) {
        self.0.granted(name, mode);
    }

    fn kept(&self, name: LockName, mode: Mode) {
        self.0.kept(name, mode);
    }
}

struct LateWriteBack(Arc<dyn Demoter>);

impl Demoter for LateWriteBack {
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer> {
        if !batch.iter().all(|job| matches!(job.name, LockName::Inode(_))) {
            return self.0.demote(batch);
        }
        let (inner, late) = (self.0.clone(), batch.to_vec());
        std::thread::spawn(move || {
            std::thread::sleep(LATE);
            inner.demote(&late);
        });
        vec![DemoteAnswer::Done; batch.len()]
    }

    fn granted(&self, name: LockName, mode: Mode) {
        self.0.granted(name, mode);
    }

    fn kept(&self, name: LockName, mode: Mode) {
        self.0.kept(name, mode);
    }
}
