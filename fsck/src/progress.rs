//! Telling how far a check is.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two lines or redraws.
const PAUSE: Duration = Duration::from_millis(200);

/// Told by the checks; from several threads.
pub trait Progress: Sync {
    /// A new phase begins.
    fn phase(&self, name: &str);
    /// `done` of `total` units of this phase.
    fn step(&self, done: u64, total: u64);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: &str) {}
    fn step(&self, _: u64, _: u64) {}
}

struct State {
    pass: u32,
    name: String,
    told: Option<Instant>,
}

/// Writes to a file, for a person as one line that is drawn again and again, or for a program as
/// fsck(8) has it: `pass done total device`.
pub struct Teller<W: Write + Send> {
    out: Mutex<(W, State)>,
    device: String,
    person: bool,
}

impl<W: Write + Send> Teller<W> {
    /// `person`: draw for one.
    pub fn new(out: W, device: &str, person: bool) -> Teller<W> {
        let state = State { pass: 0, name: String::new(), told: None };
        Teller { out: Mutex::new((out, state)), device: device.into(), person }
    }

    /// Wipe what was drawn.
    pub fn end(&self) {
        if self.person
            && let Ok(mut held) = self.out.lock()
        {
            // A terminal that is gone is no reason to fail a check.
            let _ = write!(held.0, "\r\x1b[K").and_then(|()| held.0.flush());
        }
    }
}

impl<W: Write + Send> Progress for Teller<W> {
    fn phase(&self, name: &str) {
        if let Ok(mut held) = self.out.lock() {
            held.1 = State { pass: held.1.pass + 1, name: name.into(), told: None };
        }
        self.step(0, 1);
    }

    fn step(&self, done: u64, total: u64) {
        let Ok(mut held) = self.out.lock() else { return };
        let (out, state) = &mut *held;
        if done < total && state.told.is_some_and(|t| t.elapsed() < PAUSE) {
            return;
        }
        state.told = Some(Instant::now());
        let told = if self.person {
            let percent = done * 100 / total.max(1);
            write!(out, "\r\x1b[K{}: {}: {percent}%", self.device, state.name).and_then(|()| out.flush())
        } else {
            writeln!(out, "{} {done} {total} {}", state.pass, self.device)
        };
        let _ = told;
    }
}
