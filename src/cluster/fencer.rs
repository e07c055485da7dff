//! Keeping dead hosts off the disk by other means than time, beside the protocol thread: attempts take
//! seconds, fail, and are made again, each later than the one before. What cannot be kept off is never
//! recovered.

use crate::base::{Clock, Error, Incarnation, Result, SlotId};
use crate::cluster::anew::Again;
use crate::format::cluster::heartbeat::{DeviceFile, FenceTrouble};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Tells an attempt that its host is out: it is not begun, and what is under way is ended as far as it can be.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Is it so?
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// It tells nothing of the victim.
impl PartialEq for Cancel {
    fn eq(&self, _: &Cancel) -> bool {
        true
    }
}

impl Eq for Cancel {}

/// A mount that is to be kept off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Victim {
    pub slot: SlotId,
    pub incarnation: Incarnation,
    /// Lasting identity of its machine, and of that boot of it; zero if it never beat.
    pub host: [u8; 16],
    pub boot: [u8; 16],
    pub name: String,
    /// What it called the device, where that is known, and which file that was.
    pub device: String,
    pub file: DeviceFile,
    /// For certain, as far as was seen: another mount's heartbeat stands in its cell, or none.
    pub never_beat: bool,
    /// We saw its heartbeat move: it lived beside us.
    pub lived: bool,
    /// Its machine asks to be let in at this moment.
    pub again: Option<Again>,
    /// Its machine has said that it is over.
    pub over: bool,
    /// Somebody with its machine's identity, but of this name, asks to be let in at this moment.
    pub alias: Option<String>,
    pub cancel: Cancel,
}

/// A host that is kept off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// For the log.
    pub how: String,
    /// How long what it sent before may still take to land.
    pub settle: Duration,
}

/// The means.
pub trait Fence: Send + Sync {
    /// Keep this mount off, for ever. May take long; may be called again for the same one.
    ///
    /// # Errors
    /// It is not certain. [`Error::Fenced`]: it is this host that is kept off.
    fn cut(&self, victim: &Victim) -> Result<Cut>;

    /// Is this host itself still let through?
    ///
    /// # Errors
    /// [`Error::Fenced`] if not.
    fn verify(&self) -> Result<()> {
        Ok(())
    }
}

/// What is tried again waits so long at first, then twice that, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// An attempt that takes longer than this is told of, again and again.
const SLOW: Duration = Duration::from_secs(10);

/// One that takes longer than any command may is stuck in the kernel's hands.
const HUNG: Duration = Duration::from_secs(200);
/// Failures in a row after which another host is to try.
const FAILURES_MAX: u32 = 5;

/// How far one victim is.
#[derive(Clone, Debug, Default)]
struct Attempt {
    /// Somebody asks for it still.
    wanted: bool,
    failures: u32,
    error: String,
    /// Under way since then.
    since: Option<Duration>,
    /// Asked for since then, where that was begun before.
    asked: Duration,
    told: Duration,
    not_before: Duration,
    /// Done: nothing lands from then on.
    over: Option<Duration>,
}

#[derive(Default)]
struct State {
    attempts: BTreeMap<(SlotId, Incarnation), Attempt>,
    verifying: bool,
    /// Nothing is begun after this.
    lease_end: Option<Duration>,
    /// This host is kept off itself: why.
    fenced: Option<String>,
}

/// Attempts under way and done.
pub struct Fencer {
    fence: Arc<dyn Fence>,
    clock: Arc<dyn Clock>,
    verify_every: Duration,
    next_verify: Duration,
    state: Arc<Mutex<State>>,
    cancel: Cancel,
}

/// Whoever is no member any more keeps nobody off: others do, and a late attempt would hit who is back and well.
impl Drop for Fencer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fencer {
    /// Nobody is to be kept off yet.
    pub fn new(fence: Arc<dyn Fence>, clock: Arc<dyn Clock>, verify_every: Duration) -> Fencer {
        let next_verify = clock.now() + verify_every;
        Fencer { fence, clock, verify_every, next_verify, state: Arc::default(), cancel: Cancel::default() }
    }

    /// This host is out.
    pub fn stop(&self) {
        self.cancel.cancel();
    }

    /// This host is a member until then, at least.
    pub fn permit(&self, lease_end: Duration) {
        self.state.lock().lease_end = Some(lease_end);
    }

    /// Is there one that fails again and again here, or does not come to an end? Another host may do better.
    pub fn is_hopeless(&self) -> bool {
        let now = self.clock.now();
        let state = self.state.lock();
        let waited = || state.attempts.values().filter(|a| a.wanted && a.over.is_none());
        let lasts = |a: &Attempt| a.since.is_some_and(|since| now >= since.max(a.asked) + HUNG);
        // What is under way is not begun elsewhere beside that.
        let idle = waited().all(|a| a.since.is_none() || lasts(a));
        idle && waited().any(|a| a.failures >= FAILURES_MAX || lasts(a))
    }

    /// Go on with these, and with no others. The answer: who of them is kept off for certain by now. Does
    /// not block.
    ///
    /// # Errors
    /// [`Error::Fenced`]: this host is kept off itself.
    pub fn tend(&mut self, victims: &[Victim]) -> Result<Vec<(SlotId, Incarnation)>> {
        let now = self.clock.now();
        self.verify(now);
        let mut state = self.state.lock();
        if state.fenced.is_some() {
            return Err(Error::Fenced { op: "registration", offset: 0 });
        }
        // One that is under way is not begun a second time, though nobody asks for it meanwhile.
        state.attempts.retain(|mount, attempt| {
            let wanted = victims.iter().any(|v| (v.slot, v.incarnation) == *mount);
            if wanted && !std::mem::replace(&mut attempt.wanted, wanted) {
                attempt.asked = now;
            }
            attempt.wanted = wanted;
            attempt.wanted || attempt.since.is_some()
        });
        let mut done = Vec::new();
        for victim in victims {
            let attempt = state.attempts.entry((victim.slot, victim.incarnation)).or_default();
            attempt.wanted = true;
            match (attempt.over, attempt.since) {
                (Some(over), _) if now >= over => done.push((victim.slot, victim.incarnation)),
                (Some(_), _) => {}
                (None, Some(since)) if now >= since.max(attempt.told) + SLOW => {
                    attempt.told = now;
                    let seconds = (now - since).as_secs();
                    tracing::error!("keeping {} off the disk is under way for {seconds} s", victim.name);
                }
                (None, None) if now >= attempt.not_before => {
                    attempt.not_before = now + PAUSE_MIN;
                    attempt.since = self.start(victim.clone()).then_some(now);
                }
                _ => {}
            }
        }
        Ok(done)
    }

    /// What goes wrong, for the heartbeat: what fails most often, or else what does not come to an end.
    pub fn trouble(&self) -> Option<FenceTrouble> {
        let now = self.clock.now();
        let state = self.state.lock();
        let lasts = |a: &Attempt| a.since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let bad = |a: &&Attempt| a.wanted && a.over.is_none() && (a.failures > 0 || lasts(a) >= SLOW);
        let failing = state.attempts.iter().filter(|(_, a)| bad(a));
        let ((slot, _), a) = failing.max_by_key(|(_, a)| (a.failures, lasts(a)))?;
        let (mut attempts, mut error) = (a.failures, a.error.clone());
        if lasts(a) >= SLOW {
            attempts += 1;
            let before = if error.is_empty() { String::new() } else { format!(" (before: {error})") };
            error = format!("under way for {} s{before}", lasts(a).as_secs());
        }
        Some(FenceTrouble { slot: *slot, attempts, error })
    }

    /// `false`: there is no thread for it now.
    fn start(&self, victim: Victim) -> bool {
        let (fence, clock, state) = (self.fence.clone(), self.clock.clone(), self.state.clone());
        let slot = victim.slot;
        let victim = Victim { cancel: self.cancel.clone(), ..victim };
        let body = move || {
            // This thread may have been stopped until now.
            let expired = state.lock().lease_end.is_some_and(|end| clock.now() > end);
            let result = match expired || victim.cancel.is_cancelled() {
                true => Err(Error::Device("this host's own lease is over".into())),
                false => fence.cut(&victim),
            };
            note(&mut state.lock(), &victim, result, clock.now());
        };
        let started = std::thread::Builder::new().name("shoal-fence".into()).spawn(body);
        if let Err(e) = &started {
            tracing::error!("no thread to keep slot {slot} off the disk: {e}");
        }
        started.is_ok()
    }

    fn verify(&mut self, now: Duration) {
        if now < self.next_verify || std::mem::replace(&mut self.state.lock().verifying, true) {
            return;
        }
        self.next_verify = now + self.verify_every;
        let (fence, state) = (self.fence.clone(), self.state.clone());
        let body = move || {
            let result = fence.verify();
            let mut state = state.lock();
            state.verifying = false;
            if let Err(e) = result {
                state.fenced = Some(e.to_string());
            }
        };
        if std::thread::Builder::new().name("shoal-verify".into()).spawn(body).is_err() {
            self.state.lock().verifying = false;
        }
    }
}

/// An attempt is over.
fn note(state: &mut State, victim: &Victim, result: Result<Cut>, now: Duration) {
    if let Err(e @ Error::Fenced { .. }) = &result {
        state.fenced = Some(e.to_string());
    }
    // Recovered by another meanwhile, or the slot has a new mount.
    let Some(attempt) = state.attempts.get_mut(&(victim.slot, victim.incarnation)) else { return };
    attempt.since = None;
    match result {
        Ok(cut) => {
            tracing::info!("{} (slot {}): {}", victim.name, victim.slot, cut.how);
            attempt.over = Some(now + cut.settle);
        }
        Err(e) => {
            attempt.failures += 1;
            attempt.error = e.to_string();
            let pause = (PAUSE_MIN * 2u32.pow(attempt.failures.min(10) - 1)).min(PAUSE_MAX);
            attempt.not_before = now + pause;
            tracing::error!(
                "{} (slot {}) cannot be kept off the disk (attempt {}), so what it held stays locked; tried \
                 again in {pause:?}: {e}",
                victim.name,
                victim.slot,
                attempt.failures
            );
        }
    }
}
