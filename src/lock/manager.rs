//! API (bodies follow).
use crate::base::clock::Clock;
use crate::base::{AgNo, LockName, Mode, Result, SlotId, Token};
use crate::format::layout::Geometry;
use crate::lock::LockSet;
use std::sync::Arc;
use std::time::Duration;

/// Settings of the lock manager.
#[derive(Clone)]
pub struct LockConfig {
    pub clock: Arc<dyn Clock>,
    /// Bounds of the minimum hold after a grant.
    pub hold_min: Duration,
    pub hold_max: Duration,
    /// Pause before a busy demotion is tried again.
    pub busy_retry: Duration,
    /// Threads that run operations whose locks had to be waited for.
    pub workers: usize,
    /// Most demotions in one call.
    pub batch_max: usize,
}

impl LockConfig {
    pub fn new(clock: Arc<dyn Clock>) -> LockConfig {
        LockConfig {
            clock,
            hold_min: Duration::from_millis(10),
            hold_max: Duration::from_millis(200),
            busy_retry: Duration::from_millis(7),
            workers: 8,
            batch_max: 256,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoteJob {
    pub name: LockName,
    pub from: Mode,
    pub to: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoteAnswer {
    Done,
    Busy,
}

pub trait Demoter: Send + Sync {
    fn demote(&self, batch: &[DemoteJob]) -> Vec<DemoteAnswer>;
    fn granted(&self, name: LockName, mode: Mode);
    fn kept(&self, _name: LockName, _mode: Mode) {}
}

#[derive(Clone, Debug)]
pub struct LockInfo {
    pub name: LockName,
    pub mode: Mode,
    pub pins: u32,
    pub waiting: u32,
    pub demoting: bool,
}

pub struct Pins {
    set: LockSet,
}
impl Pins {
    pub fn set(&self) -> &LockSet {
        &self.set
    }
}

pub struct LockManager {
    demoter: Arc<dyn Demoter>,
}

impl LockManager {
    pub fn new(
        _cfg: LockConfig,
        _geometry: Geometry,
        _slot: SlotId,
        demoter: Arc<dyn Demoter>,
    ) -> Arc<LockManager> {
        Arc::new(LockManager { demoter })
    }
    pub fn on_wake(&self, _wake: Box<dyn Fn() + Send + Sync>) {}
    pub fn on_adopt(&self, _adopt: Box<dyn Fn(AgNo) -> Result<Token> + Send + Sync>) {}
    pub fn try_pin(&self, _set: &LockSet) -> Option<Pins> {
        let _ = &self.demoter;
        None
    }
    pub fn acquire(&self, _set: LockSet, _then: Box<dyn FnOnce(Result<Pins>) + Send>) {}
    pub fn acquire_wait(&self, _set: LockSet) -> Result<Pins> {
        Err(crate::base::Error::Unsupported("locks"))
    }
    pub fn try_pin_revoked(&self, _name: LockName, _mode: Mode) -> Option<Pins> {
        None
    }
    pub fn mode(&self, _name: LockName) -> Mode {
        Mode::N
    }
    pub fn cached(&self) -> usize {
        0
    }
    pub fn shrink(&self, _target: usize) {}
    pub fn snapshot(&self) -> Vec<LockInfo> {
        Vec::new()
    }
    pub fn halt(&self, _reason: &str) {}
    pub fn release_all(&self) -> Result<()> {
        Ok(())
    }
    pub fn shutdown(&self) {}
}
