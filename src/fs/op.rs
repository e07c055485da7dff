//! How an operation runs: with a set of pinned locks and a space reservation, restarted from the
//! beginning when it finds that it needs more.
//!
//! An operation is a closure that may run several times. It asks for what it needs
//! ([`Op::need`], [`Op::space`]); what is not at hand makes it unwind with [`Stop`], everything
//! undone, and the engine gets the larger set in lock order (or the space, holding nothing) before
//! it runs the closure again. So no thread ever blocks on a cluster lock inside an operation, and
//! an operation that is waited for by a demotion never waits for that demotion.

use crate::alloc::{Reservation, Want};
use crate::base::{Error, LockName, Mode, Result};
use crate::fs::Core;
use crate::inode::tree_costs;
use crate::lock::{LockSet, Pins};
use smallvec::SmallVec;
use std::sync::Arc;

/// Why an operation's closure gave up.
#[derive(Debug)]
pub enum Stop {
    /// Run again with this lock as well.
    Need(LockName, Mode),
    /// Run again with space for this.
    Space(Want),
    /// Run again with space for this, or knowing that there is none.
    SpaceIfAny(Want),
    /// What was learned is out of date; run again as it is.
    Again,
    /// The operation's own result.
    Fail(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        match e {
            // Undone: the emergency share of the groups held did not suffice.
            Error::NeedSpace => Stop::Space(Want { data: 0, meta: tree_costs::NEW_BLOCKS, near: None }),
            e => Stop::Fail(e),
        }
    }
}

/// Result inside an operation.
pub type Step<T> = std::result::Result<T, Stop>;

/// How an operation has to do with the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// A program's request: it fails if the lease is not renewed for long.
    Minute,
    /// What it brings was accepted long ago, and is perhaps nowhere else: it waits for as long as the lease may be
    /// renewed. Not on threads that read requests.
    Endless,
    /// It is not to wait here at all.
    Nothing,
}

/// How an operation is run.
#[derive(Clone, Copy)]
pub struct Manner {
    /// The volume has been found to be full.
    pub full: bool,
    pub patience: Patience,
}

const USUAL: Manner = Manner { full: false, patience: Patience::Minute };

/// How often an operation may restart before we call it a livelock of our own making.
const RESTARTS_MAX: u32 = 10_000;

/// How often an operation that must wait for a lock first gives back the space it has got: a group with
/// space promised is not handed over, and whoever has the lock may be waiting for that group before it
/// can give the lock up. In the end it is kept, lest two hosts take the space from each other for ever.
const SPACE_DROPS: u32 = 4;

/// What an operation's closure works with.
pub struct Op<'a> {
    pub core: &'a Arc<Core>,
    locks: &'a LockSet,
    extra: SmallVec<[Pins; 2]>,
    space: &'a mut Option<Reservation>,
    manner: Manner,
}

impl Op<'_> {
    /// Wait for the lease, if it is over.
    fn confirm(&self) -> Step<()> {
        let store = &self.core.store;
        match self.manner.patience {
            Patience::Minute => store.permit().confirm()?,
            Patience::Endless => store.permit().confirm_written(store.halt())?,
            Patience::Nothing if store.permit().lease_left().is_zero() => return Err(Stop::Again),
            Patience::Nothing => {}
        }
        Ok(())
    }

    /// Run the closure, unless this host has halted: what it has in memory may be out of date then. So
    /// may it be while the lease is over; that is waited for. Before its result goes anywhere as well: a
    /// read may have hung for so long that what it brings is another file's by now.
    fn run<T>(&mut self, body: &mut dyn FnMut(&mut Op<'_>) -> Step<T>) -> Step<T> {
        self.core.store.halt().check()?;
        self.confirm()?;
        let outcome = body(self);
        match outcome {
            // It stands: a handle has been opened, a name is in. The kernel must hear of that, however long
            // the store stands still.
            Ok(_) => self.core.store.permit().confirm_standing()?,
            Err(Stop::Fail(_)) => self.confirm()?,
            Err(_) => {}
        }
        outcome
    }

    /// The mode in which the operation has asked for `name`.
    pub fn pinned(&self, name: LockName) -> Mode {
        self.locks.mode(name)
    }

    /// Go on only with `name` pinned in at least `mode`.
    pub fn need(&mut self, name: LockName, mode: Mode) -> Step<()> {
        if self.locks.covers(name, mode) {
            return Ok(());
        }
        // Out of lock order, but it never waits: most locks are mastered here and free.
        let one = LockSet::one(name, mode);
        if self.locks.mode(name) == Mode::N
            && let Some(pins) = self.core.locks.try_pin(&one)
        {
            self.extra.push(pins);
            return Ok(());
        }
        Err(Stop::Need(name, mode))
    }

    /// Pin a lock for longer than the operation.
    pub fn pin_apart(&mut self, name: LockName, mode: Mode) -> Step<Pins> {
        match self.core.locks.try_pin(&LockSet::one(name, mode)) {
            Some(pins) => Ok(pins),
            None if self.locks.covers(name, mode) => Err(Stop::Again),
            None => Err(Stop::Need(name, mode)),
        }
    }

    /// Space for a change that mostly frees: what there is, or none on a full volume, where such
    /// changes live on the emergency share of the groups held.
    pub fn space_if_any(&mut self, want: Want) -> Step<Option<Reservation>> {
        if self.manner.full {
            return Ok(self.space.take());
        }
        match self.space(want) {
            Ok(space) => Ok(Some(space)),
            Err(Stop::Space(want)) => Err(Stop::SpaceIfAny(want)),
            Err(stop) => Err(stop),
        }
    }

    /// Has it been seen that the volume is full?
    pub fn is_full(&self) -> bool {
        self.manner.full
    }

    /// What has been got for the operation, if it was stopped for space.
    pub fn granted(&mut self) -> Option<Reservation> {
        self.space.take()
    }

    /// The operation's reservation: what was got for it over restarts, filled up to `want`.
    pub fn space(&mut self, want: Want) -> Step<Reservation> {
        let mut have = self.space.take().unwrap_or_default();
        let more = Want {
            data: want.data.saturating_sub(have.data()),
            meta: want.meta.saturating_sub(u32::try_from(have.meta()).unwrap_or(u32::MAX)),
            near: want.near,
        };
        // Not even a look at the groups: what we have may lie in one that is being taken from us.
        if more.data == 0 && more.meta == 0 {
            return Ok(have);
        }
        match self.core.alloc.reserve_at_home(more) {
            Ok(rest) => {
                have.merge(rest);
                Ok(have)
            }
            Err(Error::NeedSpace) => {
                // Asked for as a whole: what we have may be what keeps a group from us.
                Err(Stop::Space(want))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// A closure that is an operation.
pub type Body<T> = Box<dyn FnMut(&mut Op<'_>) -> Step<T> + Send>;
/// Where its result goes. Called while the locks are still pinned.
pub type Reply<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// Run `body` once with what the caller has pinned (`locks` names it) and the space it has. It may stop.
pub fn attempt<T>(
    core: &Arc<Core>,
    locks: &LockSet,
    space: &mut Option<Reservation>,
    body: &mut dyn FnMut(&mut Op<'_>) -> Step<T>,
) -> Step<T> {
    attempt_with(USUAL, core, locks, space, body)
}

/// The same in another manner.
pub fn attempt_with<T>(
    manner: Manner,
    core: &Arc<Core>,
    locks: &LockSet,
    space: &mut Option<Reservation>,
    body: &mut dyn FnMut(&mut Op<'_>) -> Step<T>,
) -> Step<T> {
    let mut op = Op { core, locks, extra: SmallVec::new(), space, manner };
    op.run(body)
}

struct Job<T> {
    core: Arc<Core>,
    locks: LockSet,
    space: Option<Reservation>,
    manner: Manner,
    body: Body<T>,
    reply: Reply<T>,
    restarts: u32,
}

/// Run `body` with `locks` pinned; `reply` hears the result, on this thread if nothing has to be
/// waited for, else on a thread of the lock manager's pool. Both are put on the heap only if something has.
pub fn run<T: 'static>(
    core: &Arc<Core>,
    locks: LockSet,
    body: impl FnMut(&mut Op<'_>) -> Step<T> + Send + 'static,
    reply: impl FnOnce(Result<T>) + Send + 'static,
) {
    run_with(Patience::Minute, core, locks, body, reply);
}

/// The same with another patience.
pub fn run_with<T: 'static>(
    patience: Patience,
    core: &Arc<Core>,
    locks: LockSet,
    mut body: impl FnMut(&mut Op<'_>) -> Step<T> + Send + 'static,
    reply: impl FnOnce(Result<T>) + Send + 'static,
) {
    let manner = Manner { patience, ..USUAL };
    let Some(pins) = core.locks.try_pin(&locks) else {
        let (body, reply) = (Box::new(body), Box::new(reply));
        return Job { core: core.clone(), locks, space: None, manner, body, reply, restarts: 0 }.acquire();
    };
    let mut space = None;
    if let Some((stop, reply)) = once(core, &locks, pins, manner, &mut space, &mut body, reply) {
        let (body, reply) = (Box::new(body), Box::new(reply));
        Job { core: core.clone(), locks, space, manner, body, reply, restarts: 0 }.again(stop);
    }
}

/// Run `body` once under `pins`. `reply` hears the result, or comes back with the reason for another attempt.
fn once<T, R: FnOnce(Result<T>)>(
    core: &Arc<Core>,
    locks: &LockSet,
    pins: Pins,
    manner: Manner,
    space: &mut Option<Reservation>,
    body: &mut dyn FnMut(&mut Op<'_>) -> Step<T>,
    reply: R,
) -> Option<(Stop, R)> {
    let mut op = Op { core, locks, extra: SmallVec::new(), space, manner };
    let outcome = op.run(body);
    let extra = std::mem::take(&mut op.extra);
    match outcome {
        Ok(value) => {
            reply(Ok(value));
            drop((extra, pins));
            None
        }
        Err(Stop::Fail(e)) => {
            drop((extra, pins));
            reply(Err(e));
            None
        }
        Err(stop) => {
            drop((extra, pins));
            Some((stop, reply))
        }
    }
}

impl<T: 'static> Job<T> {
    fn start(mut self) {
        match self.core.locks.try_pin(&self.locks) {
            Some(pins) => self.go(pins),
            None => {
                if self.restarts <= SPACE_DROPS {
                    self.space = None;
                }
                self.acquire();
            }
        }
    }

    fn acquire(self) {
        let core = self.core.clone();
        core.ask_ahead(&self.locks);
        core.locks.acquire(
            self.locks.clone(),
            Box::new(move |pins| match pins {
                Ok(pins) => self.go(pins),
                Err(e) => (self.reply)(Err(e)),
            }),
        );
    }

    fn go(self, pins: Pins) {
        let Job { core, locks, mut space, manner, mut body, reply, restarts } = self;
        if let Some((stop, reply)) = once(&core, &locks, pins, manner, &mut space, &mut *body, reply) {
            Job { core, locks, space, manner, body, reply, restarts }.again(stop);
        }
    }

    fn again(mut self, stop: Stop) {
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            let why = format!("an operation restarted {RESTARTS_MAX} times ({stop:?})");
            tracing::error!("{why}");
            return (self.reply)(Err(Error::TimedOut(why)));
        }
        match stop {
            Stop::Need(name, mode) => {
                self.locks.add(name, mode);
                self.start();
            }
            Stop::Space(want) | Stop::SpaceIfAny(want) => {
                let (core, must) = (self.core.clone(), matches!(stop, Stop::Space(_)));
                let then = move |got| match got {
                    Ok(reservation) => {
                        self.space = Some(reservation);
                        self.start();
                    }
                    // A damaged group is not known to be full, but has nothing to give either.
                    Err(Error::NoSpace | Error::Corrupt { .. }) if !must => {
                        self.manner.full = true;
                        self.start();
                    }
                    Err(e) => (self.reply)(Err(e)),
                };
                crate::fs::space::acquire(&core, want, Box::new(then));
            }
            Stop::Again => self.start(),
            Stop::Fail(e) => (self.reply)(Err(e)),
        }
    }
}
