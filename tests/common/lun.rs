//! Persistent reservations of a simulated device, as SPC-4 5.13 has them for Write Exclusive, Registrants Only
//! and All Registrants. A nexus is a number.

use parking_lot::{Mutex, RwLock};
use shoal::device::reservation::{Answer, Held, Kind, Refused, Report, Reservations};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[derive(Default)]
struct State {
    keys: BTreeMap<u64, u64>,
    held: Option<(u64, Kind)>,
    /// Writes that it let through, by nexus.
    landed: BTreeMap<u64, u64>,
}

impl State {
    fn drop_keys(&mut self, gone: impl Fn(u64, u64) -> bool) -> usize {
        let before = self.keys.len();
        self.keys.retain(|nexus, key| !gone(*nexus, *key));
        self.held = self.held.filter(|(holder, kind)| match kind {
            Kind::AllRegistrants => !self.keys.is_empty(),
            Kind::RegistrantsOnly => self.keys.contains_key(holder),
        });
        before - self.keys.len()
    }
}

/// What a device has of it, shared by all its nexuses.
#[derive(Default)]
pub struct Lun {
    state: Mutex<State>,
    /// Held shared by each write in the device.
    flight: RwLock<()>,
    pub no_all_registrants: AtomicBool,
    pub no_abort: AtomicBool,
    /// Aborts are not certain.
    pub best_effort: AtomicBool,
    pub unreadable: AtomicBool,
    /// Its list of keys is empty for now, though they are there.
    pub forgetful: AtomicBool,
    /// So many reports fail.
    pub misread: AtomicU32,
    /// It has no reservations at all.
    pub none: AtomicBool,
    /// Nexuses register, but cannot reserve it.
    pub unreservable: AtomicBool,
    /// So many preemptions fail.
    pub failing: AtomicU32,
    /// Told of each report, and of each reservation that is made or asked for.
    listener: Mutex<Option<Arc<Listener>>>,
}

type Listener = dyn Fn(&str) + Send + Sync;

impl Lun {
    pub fn new() -> Arc<Lun> {
        Arc::default()
    }

    pub fn nexus(self: &Arc<Lun>, nexus: u64) -> Nexus {
        Nexus { lun: self.clone(), nexus }
    }

    /// Call `tell` with "report" after each report, with "preempt" when a key has been taken away, and with "reserve" whenever a nexus finds that it has the
    /// reservation, or makes it.
    pub fn listen(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        *self.listener.lock() = Some(Arc::new(tell));
    }

    fn tell(&self, what: &str) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener {
            listener(what);
        }
    }

    /// Do a write of `nexus` in the device; `None`: it is refused.
    pub fn write<T>(&self, nexus: u64, write: impl FnOnce() -> T) -> Option<T> {
        let _flight = self.flight.read();
        let allowed = {
            let mut state = self.state.lock();
            let allowed = state.held.is_none() || state.keys.contains_key(&nexus);
            *state.landed.entry(nexus).or_default() += u64::from(allowed);
            allowed
        };
        allowed.then(write)
    }

    /// Writes of `nexus` that were let through.
    pub fn landed(&self, nexus: u64) -> u64 {
        self.state.lock().landed.get(&nexus).copied().unwrap_or(0)
    }

    /// As an administrator does who knows that nobody is paused.
    pub fn free(&self) {
        *self.state.lock() = State::default();
    }

    /// As targets do that forget the holder with its session.
    pub fn lose_reservation(&self) {
        self.state.lock().held = None;
    }

    pub fn keys(&self) -> Vec<u64> {
        self.state.lock().keys.values().copied().collect()
    }

    pub fn held(&self) -> Option<Kind> {
        self.state.lock().held.map(|(_, kind)| kind)
    }
}

fn take_one(of: &AtomicU32) -> bool {
    of.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

/// One nexus of it.
pub struct Nexus {
    pub lun: Arc<Lun>,
    pub nexus: u64,
}

impl Nexus {
    /// With our key, if it is that.
    fn as_registrant(&self, key: u64) -> Answer<parking_lot::MutexGuard<'_, State>> {
        self.is_there()?;
        let state = self.lun.state.lock();
        if state.keys.get(&self.nexus) == Some(&key) { Ok(state) } else { Err(Refused::Conflict) }
    }

    fn is_there(&self) -> Answer<()> {
        match self.lun.none.load(Ordering::Relaxed) {
            true => Err(Refused::Unsupported("no reservations here".into())),
            false => Ok(()),
        }
    }
}

impl Reservations for Nexus {
    fn register(&self, old: u64, new: u64) -> Answer<()> {
        self.is_there()?;
        let mut state = self.lun.state.lock();
        if state.keys.get(&self.nexus).copied().unwrap_or(0) != old {
            return Err(Refused::Conflict);
        }
        if new == 0 {
            state.drop_keys(|nexus, _| nexus == self.nexus);
        } else {
            state.keys.insert(self.nexus, new);
        }
        Ok(())
    }

    fn replace(&self, new: u64) -> Answer<()> {
        self.is_there()?;
        self.lun.state.lock().keys.insert(self.nexus, new);
        Ok(())
    }

    fn unregister(&self, key: u64) -> Answer<()> {
        self.register(key, 0)
    }

    fn reserve(&self, key: u64, kind: Kind) -> Answer<()> {
        let mut state = self.as_registrant(key)?;
        if self.lun.unreservable.load(Ordering::Relaxed) {
            return Err(Refused::Failed("status 2".into()));
        }
        if kind == Kind::AllRegistrants && self.lun.no_all_registrants.load(Ordering::Relaxed) {
            return Err(Refused::Failed("status 2".into()));
        }
        match state.held {
            None => state.held = Some((self.nexus, kind)),
            Some((_, Kind::AllRegistrants)) if kind == Kind::AllRegistrants => {}
            Some((holder, there)) if holder == self.nexus && there == kind => {}
            Some(_) => return Err(Refused::Conflict),
        }
        drop(state);
        self.lun.tell("reserve");
        Ok(())
    }

    fn preempt(&self, key: u64, victim: u64, kind: Kind, abort: bool) -> Answer<()> {
        if take_one(&self.lun.failing) {
            return Err(Refused::Failed("the test wants it".into()));
        }
        if abort && self.lun.no_abort.load(Ordering::Relaxed) {
            return Err(Refused::Unsupported("no abort".into()));
        }
        let mut state = self.as_registrant(key)?;
        assert_ne!(key, victim, "a nexus preempts itself");
        let of_holder = match state.held {
            Some((holder, Kind::RegistrantsOnly)) => state.keys.get(&holder) == Some(&victim),
            _ => false,
        };
        if state.drop_keys(|_, key| key == victim) == 0 {
            return Err(Refused::Conflict);
        }
        if of_holder {
            state.held = Some((self.nexus, kind));
        }
        drop(state);
        self.lun.tell("preempt");
        if abort {
            drop(self.lun.flight.write());
        }
        Ok(())
    }

    fn is_abort_certain(&self) -> bool {
        !self.lun.best_effort.load(Ordering::Relaxed)
    }

    fn clear(&self, key: u64) -> Answer<()> {
        let mut state = self.as_registrant(key)?;
        *state = State::default();
        Ok(())
    }

    fn report(&self) -> Answer<Report> {
        self.is_there()?;
        if self.lun.unreadable.load(Ordering::Relaxed) {
            return Err(Refused::Unsupported("unreadable".into()));
        }
        if take_one(&self.lun.misread) {
            return Err(Refused::Failed("the test wants it".into()));
        }
        if self.lun.forgetful.load(Ordering::Relaxed) {
            return Ok(Report::default());
        }
        let state = self.lun.state.lock();
        let held = state.held.map(|(holder, kind)| {
            let key = if kind == Kind::AllRegistrants { 0 } else { state.keys[&holder] };
            Held { key, kind: Some(kind) }
        });
        let report = Report { keys: state.keys.values().copied().collect(), held };
        drop(state);
        self.lun.tell("report");
        Ok(report)
    }
}
