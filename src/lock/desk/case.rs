//! One lock about which something is going on: who waits, and the way down.

use super::{Desk, Effect, Ticket, TicketNo, Work};
use crate::base::{LockName, Mode};
use crate::lock::table::Held;
use crate::lock::{DemoteAnswer, DemoteJob};
use std::collections::VecDeque;
use std::time::Duration;

/// Does this host want to give a lock up of its own accord?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shed {
    No,
    /// If nobody uses it now.
    Idle,
    /// As soon as its pins are gone.
    Must,
}

/// See the head of the file.
#[derive(Clone, Hash)]
pub(super) struct Case {
    pub waiters: VecDeque<(TicketNo, Mode)>,
    /// Asked for although no operation waits for it yet.
    pub ahead: Mode,
    /// The mode the master wants us to come down to; `X` = none.
    pub cap: Mode,
    /// We want to give it up ourselves.
    pub shed: Shed,
    /// Grants (or cancelled demotions) that the file system is being told of.
    pub telling: u32,
    /// A demotion to this mode is in the file system's hands, since the lock had seen so many late
    /// pins.
    pub demoting: Option<(Mode, u32)>,
    /// The last demotion was answered 'busy'; not before this time again.
    pub busy: bool,
    pub retry_at: Duration,
    pub timer: Option<Duration>,
    /// Use count when it was last looked at during the minimum hold.
    pub idle_mark: Option<u64>,
    /// Since when we ask for a stronger mode.
    pub asked_at: Option<Duration>,
    /// Whoever waits to read it: it will be written (`habits`).
    pub to_write: bool,
    /// The lock has come for what is handed in and goes on: others may have to hand in, too, before anybody looks.
    pub handing: bool,
}

impl Default for Case {
    fn default() -> Case {
        Case {
            waiters: VecDeque::new(),
            ahead: Mode::N,
            cap: Mode::X,
            shed: Shed::No,
            telling: 0,
            demoting: None,
            busy: false,
            retry_at: Duration::ZERO,
            timer: None,
            idle_mark: None,
            asked_at: None,
            to_write: false,
            handing: false,
        }
    }
}

impl Case {
    /// The mode to come down to, from `mode`.
    fn goal(&self, mode: Mode) -> Mode {
        match () {
            () if self.shed != Shed::No || self.is_crossed(mode) => Mode::N,
            () if mode.is_within(self.cap) => mode,
            () if mode.covers(self.cap) => self.cap,
            () => Mode::N,
        }
    }

    /// Does an operation wait for a mode that this one must be given up for first?
    fn is_crossed(&self, mode: Mode) -> bool {
        self.waiters.iter().any(|(_, wanted)| wanted.crosses(mode))
    }

    /// What to ask for: the strongest mode that an operation waits for. An exclusive want of an
    /// `IOpen` may stand for ever, so a shared one goes first there. Between direct writes and all else whoever
    /// came first decides; nothing is asked for while something is held that goes without it.
    pub fn wanted(&self, name: LockName, held: Mode) -> Mode {
        let modes = || self.waiters.iter().map(|(_, mode)| *mode).chain([self.ahead]);
        if self.is_crossed(held) {
            return Mode::N;
        }
        if modes().next() == Some(Mode::DW) {
            return Mode::DW;
        }
        let modes = || modes().filter(|mode| *mode != Mode::DW);
        if matches!(name, LockName::IOpen(_)) && modes().any(|m| m == Mode::S) && !held.covers(Mode::S) {
            return Mode::S;
        }
        match modes().fold(Mode::N, |a, mode| if a.covers(mode) { a } else { mode }) {
            Mode::S if self.to_write => Mode::X,
            wanted => wanted,
        }
    }

    fn is_over(&self) -> bool {
        self.waiters.is_empty()
            && self.ahead == Mode::N
            && self.cap == Mode::X
            && self.shed == Shed::No
            && self.telling == 0
            && self.demoting.is_none()
            && !self.busy
    }
}

impl Desk {
    /// Look at one lock: open or close it, serve who waits, start the demotion that is due.
    pub(super) fn evaluate(&mut self, now: Duration, name: LockName) {
        let Some(case) = self.cases.get_mut(&name) else { return };
        if case.telling > 0 || case.demoting.is_some() {
            return; // looked at again when that is over
        }
        let held = self.table.get(name).unwrap_or_default();
        if held.mode == Mode::N || case.shed == Shed::Idle && (held.pins() > 0 || !case.waiters.is_empty()) {
            case.shed = Shed::No;
        }
        if held.mode.covers(case.ahead) || held.mode == Mode::DW {
            case.ahead = Mode::N;
        }
        let due = case.goal(held.mode);
        // Shared pins of an `IOpen` may stay for ever, and new ones pass an exclusive want.
        let stays = matches!(name, LockName::IOpen(_)) && held.pins() > 0 && case.shed == Shed::No;
        // One that no program's lock is behind is not kept beside others.
        let unused = matches!(name, LockName::FileLocks(_)) && held.pins() == 0;
        let goal = match due {
            Mode::N if stays => Mode::S,
            Mode::S if unused && held.mode == Mode::X => Mode::N,
            due => due,
        };
        if goal == held.mode {
            if case.busy {
                // The file system had begun to give it up; it must know before new pins come.
                (case.busy, case.telling) = (false, 1);
                self.effects.push_back(Effect::Kept { name, mode: held.mode });
                return;
            }
            (case.idle_mark, case.handing) = (None, false);
            self.table.set_limit(name, held.mode, due != goal);
            self.serve(name);
            if due != goal && self.table.get(name).is_none_or(|h| h.pins() == 0) {
                self.evaluate_soon(name); // unpinned before we asked to be told
            }
        } else if !self.may_close(now, name, &held) {
            self.table.set_limit(name, held.mode, false);
            self.serve(name);
        } else {
            self.close_for(now, name, goal);
        }
        self.request(now, name);
        if self.cases.get(&name).is_some_and(Case::is_over)
            && let Some(case) = self.cases.remove(&name)
            && let Some(at) = case.timer
        {
            self.timers.remove(&(at, name));
        }
    }

    /// Is the time come to refuse new pins?
    fn may_close(&mut self, now: Duration, name: LockName, held: &Held) -> bool {
        let case = self.cases.get_mut(&name).expect("evaluate has it");
        if case.shed != Shed::No || case.busy || case.handing || now >= held.hold_until {
            return true;
        }
        let mark = (held.pins() == 0).then(|| self.table.used(name));
        match case.idle_mark {
            Some(_) if case.timer.is_some() && case.idle_mark == mark => return false,
            Some(before) => {
                let idle = mark == Some(before);
                self.habits.waited(name, !idle);
                if idle {
                    return true;
                }
            }
            None => {
                // One that was asked for to be written is kept until it is.
                let may = mark.is_some() && (held.mode != Mode::X || held.written);
                if may && self.habits.is_brief(now, name) {
                    return true;
                }
            }
        }
        case.idle_mark = mark;
        self.set_timer(name, held.hold_until.min(now + self.times.idle));
        false
    }

    /// Refuse new pins above `goal`, and have the lock demoted once the old ones are gone.
    fn close_for(&mut self, now: Duration, name: LockName, goal: Mode) {
        let limit = self.table.get(name).map_or(Mode::N, |held| held.limit);
        let limit = if goal.covers(limit) { limit } else { goal };
        self.table.set_limit(name, limit, true);
        self.serve(name);
        let Some(held) = self.table.get(name) else { return };
        let case = self.cases.get_mut(&name).expect("evaluate has it");
        if now < case.retry_at {
            let at = case.retry_at;
            self.set_timer(name, at);
        } else if held.pins_above(goal) == 0 {
            (case.demoting, case.idle_mark) = (Some((goal, held.late_pins)), None);
            // Wanted elsewhere: no operation of ours has shown to need it.
            case.ahead = Mode::N;
            let asked = !held.mode.is_within(case.cap);
            let may_stay = !asked && case.shed == Shed::Idle;
            if !held.written && (goal == Mode::N || held.mode == Mode::X) {
                self.habits.only_read(name);
            }
            self.tell_lowering(name);
            if matches!(name, LockName::FileLocks(_)) {
                // Nothing of it is cached outside this room.
                self.finish_demotion(now, name, DemoteAnswer::Done);
                return self.evaluate_soon(name);
            }
            let job = DemoteJob { name, from: held.mode, to: goal, asked, may_stay };
            self.effects.push_back(Effect::Demote(job));
        }
    }

    /// Give pins to all waiting operations that the limit allows.
    pub(super) fn serve(&mut self, name: LockName) {
        let Some(case) = self.cases.get_mut(&name) else { return };
        let table = &self.table;
        let (mut served, mut rest) = (Vec::new(), VecDeque::new());
        for (ticket, mode) in case.waiters.drain(..) {
            if table.pin(name, mode) { served.push(ticket) } else { rest.push_back((ticket, mode)) }
        }
        case.waiters = rest;
        self.go_on(served);
    }

    /// Group locks only: operations that wait may hold space in the very group that is being given
    /// up, and the demotion stays busy until they are through. New space is refused by the
    /// allocator, so this ends.
    fn serve_while_busy(&mut self, name: LockName) {
        self.serve_held(name, |_| true);
    }

    /// The lock has come. Whoever waits is served before any cap is looked at. But if there is one, what is to be
    /// handed in is all that is done: the next host may have to hand in before whoever waits here looks, or sets
    /// times.
    pub(super) fn serve_grant(&mut self, name: LockName) {
        let hands_in = self.hands_in(name);
        let Some(case) = self.cases.get_mut(&name) else { return };
        case.handing = hands_in && case.cap != Mode::X;
        let handing = case.handing;
        self.table.change(name, |held| {
            (held.told, held.limit) = (held.mode, if handing { Mode::N } else { held.mode })
        });
        match handing {
            true => self.serve_held(name, |ticket| ticket.first),
            false => self.serve(name),
        }
    }

    /// Does an operation wait that comes before all others of this host?
    pub(super) fn hands_in(&self, name: LockName) -> bool {
        let is_first = |ticket: &TicketNo| self.tickets.get(ticket).is_some_and(|ticket| ticket.first);
        self.cases.get(&name).is_some_and(|case| case.waiters.iter().any(|(ticket, _)| is_first(ticket)))
    }

    /// Give pins of what is held, whatever the limit is, to those waiting operations.
    fn serve_held(&mut self, name: LockName, whom: impl Fn(&Ticket) -> bool) {
        let Some(case) = self.cases.get_mut(&name) else { return };
        let (table, tickets) = (&self.table, &self.tickets);
        let (mut served, mut rest) = (Vec::new(), VecDeque::new());
        for (ticket, mode) in case.waiters.drain(..) {
            let may = tickets.get(&ticket).is_some_and(&whom);
            if may && table.pin_held(name, mode) {
                served.push(ticket)
            } else {
                rest.push_back((ticket, mode))
            }
        }
        case.waiters = rest;
        self.go_on(served);
    }

    fn go_on(&mut self, served: Vec<TicketNo>) {
        for number in served {
            if let Some(ticket) = self.tickets.get_mut(&number) {
                ticket.next += 1;
            }
            self.work.push_back(Work::Advance(number));
        }
    }

    pub(super) fn finish_demotion(&mut self, now: Duration, name: LockName, answer: DemoteAnswer) {
        let Some(case) = self.cases.get_mut(&name) else { return };
        let Some((goal, late_pins)) = case.demoting.take() else { return };
        match answer {
            // A pin may have come by `pin_held` meanwhile: what it changed must be demoted too.
            DemoteAnswer::Done => {
                (case.busy, case.handing, case.retry_at) = (false, false, Duration::ZERO);
                if self.table.lower(name, goal, late_pins) && goal == Mode::N {
                    case.shed = Shed::No;
                }
            }
            DemoteAnswer::Busy => {
                case.busy = true;
                case.retry_at = now + self.times.busy_retry;
                match name {
                    LockName::Ag(_) => self.serve_while_busy(name),
                    // What it has cannot be written, and nobody waits for that: not to be tried again and again.
                    LockName::Inode(_) if case.shed == Shed::Idle => case.shed = Shed::No,
                    _ => {}
                }
            }
        }
        self.tell_lowered(now, name);
        self.files_touch(name);
    }

    /// A grant has come: the mode rises, the file system is told, then pins are given.
    pub(super) fn arrive(&mut self, now: Duration, name: LockName, mode: Mode) {
        let case = self.cases.entry(name).or_default();
        if case.demoting.is_some() {
            // Ours as the master, while a demotion runs: it ends with a word to the master about
            // what we hold and want, and the grant is made anew.
            return;
        }
        if matches!(name, LockName::FileLocks(_)) {
            // The rest of this host hears nothing of it, and need not hold it for a while.
            case.asked_at = None;
            self.table.change(name, |held| (held.mode, held.told, held.limit) = (mode, mode, mode));
            self.serve(name);
            self.files_touch(name);
            return self.evaluate_soon(name);
        }
        let waited = case.asked_at.take().map_or(Duration::ZERO, |at| now.saturating_sub(at));
        let hold = match waited.is_zero() {
            true => Duration::ZERO,
            false => (waited * 2).clamp(self.times.hold_min, self.times.hold_max),
        };
        (case.telling, case.to_write) = (case.telling + 1, false);
        let upgraded = self.table.change(name, |held| {
            let upgraded = held.mode == Mode::S && mode == Mode::X && !waited.is_zero();
            held.mode = mode;
            held.hold_until = now + hold;
            upgraded
        });
        if upgraded {
            self.habits.upgraded(name);
        }
        self.effects.push_back(Effect::Tell { name, mode });
    }

    pub(super) fn set_cap(&mut self, name: LockName, cap: Mode) {
        if cap == Mode::X && !self.cases.contains_key(&name) {
            return;
        }
        self.cases.entry(name).or_default().cap = cap;
        self.evaluate_soon(name);
    }

    pub(super) fn set_timer(&mut self, name: LockName, at: Duration) {
        let case = self.cases.get_mut(&name).expect("timers belong to cases");
        if let Some(old) = case.timer.replace(at) {
            self.timers.remove(&(old, name));
        }
        self.timers.insert((at, name));
    }
}
