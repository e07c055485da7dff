//! File locks: POSIX locks of programs, locks of open files (OFD), flock. Nobody waits: each request is refused or
//! granted at once, as the model says.

use super::programs::{Request, SLOTS};
use super::{Tester, Turn};
use crate::file_locks::program::{fcntl, flock};
use crate::model::locks::{BYTES, Owner, Range};
use crate::model::{Id, Place};
use libc::{F_RDLCK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The kernel tells of a closed file without waiting for an answer; the descriptor may have copies for a moment in
/// processes that other tests start.
const RELEASED: Duration = Duration::from_secs(20);

/// A lock as fcntl has it: exclusive, shared or none.
fn kind(how: Option<bool>) -> i32 {
    match how {
        Some(true) => F_WRLCK,
        Some(false) => F_RDLCK,
        None => F_UNLCK,
    }
}

fn result<T>(done: Result<T, i32>) -> io::Result<T> {
    done.map_err(io::Error::from_raw_os_error)
}

fn test_lock(file: &File, exclusive: bool, range: Range) -> io::Result<(i32, i64, i64)> {
    let (start, length) = range.fcntl();
    let found = fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, kind(Some(exclusive)), start, length);
    result(found).map(|found| (i32::from(found.l_type), found.l_start, found.l_len))
}

impl Tester {
    pub fn use_locks(&mut self, turn: &Turn) {
        match self.random.random_range(0..20) {
            0..3 => self.change_slots(turn),
            3..9 => self.lock_of_program(),
            9..15 => self.lock_of_open(),
            _ => self.flock(),
        }
    }

    fn range(&mut self) -> Range {
        let start = self.random.random_range(0..BYTES);
        let length = self.random.random_range(1..=BYTES - start);
        Range::new(start, self.pick(&[length, length, length.min(5), 0]))
    }

    fn how(&mut self) -> Option<bool> {
        self.pick(&[Some(true), Some(true), Some(false), Some(false), None])
    }

    /// A program opens or closes something. A close ends all of its locks on the file, whatever it is open by.
    fn change_slots(&mut self, turn: &Turn) {
        let host = turn.host;
        let slot = self.random.random_range(0..SLOTS);
        if let Some(id) = self.programs[host].open[slot].take() {
            let done = self.programs[host].ask(Request::Close { slot }, Path::new(""));
            self.expect(id, format!("h{host} program closes {slot}"), done, 0);
            self.model.nodes[id].locks.release(Owner::Program(host));
            return self.forget(id);
        }
        // What others have open or locked.
        let is_used = |p: &&Place| {
            self.opens.iter().any(|open| open.id == p.id) || self.programs.iter().any(|o| o.has_open(p.id))
        };
        let files = self.files(turn);
        let used: Vec<Place> = files.iter().filter(is_used).cloned().collect();
        let among = if !used.is_empty() && self.chance(80) { used } else { files };
        let Some(place) = among.choose(&mut self.random).cloned() else { return };
        let done = self.programs[host].ask(Request::Open { slot }, &self.at(host, &place.path));
        self.expect(place.id, format!("h{host} program opens {} as {slot}", place.path), done, 0);
        self.programs[host].open[slot] = Some(place.id);
    }

    fn lock_of_program(&mut self) {
        let all: Vec<(usize, usize, Id)> = (0..self.programs.len())
            .flat_map(|host| (0..SLOTS).map(move |slot| (host, slot)))
            .filter_map(|(host, slot)| self.programs[host].open[slot].map(|id| (host, slot, id)))
            .collect();
        let Some((host, slot, id)) = all.choose(&mut self.random).copied() else { return };
        let (range, how, owner) = (self.range(), self.how(), Owner::Program(host));
        let (start, length) = range.fcntl();
        let name = format!("h{host} program, by {slot},");
        if let (Some(exclusive), true) = (how, self.chance(30)) {
            let request = Request::TestLock { slot, how: kind(how), start, length };
            let found = self.programs[host].ask(request, Path::new(""));
            return self.compare_lock(id, name, owner, exclusive, range, found);
        }
        let errno = if self.model.nodes[id].locks.set(owner, how, range) { 0 } else { libc::EAGAIN };
        let request = Request::SetLock { slot, how: kind(how), start, length };
        let done = self.programs[host].ask(request, Path::new(""));
        self.expect(id, format!("{name} lock {how:?} {start} +{length}"), done, errno);
    }

    fn lock_of_open(&mut self) {
        let Some(open) = self.opens.choose(&mut self.random).cloned() else { return };
        let (range, how, owner) = (self.range(), self.how(), Owner::Open(open.serial));
        let (start, length) = range.fcntl();
        if let (Some(exclusive), true) = (how, self.chance(30)) {
            let found = test_lock(&open.file, exclusive, range);
            return self.compare_lock(open.id, open.name(), owner, exclusive, range, found);
        }
        let errno = match how {
            // An exclusive lock is for who may write.
            Some(true) if !open.writes => libc::EBADF,
            _ if self.model.nodes[open.id].locks.set(owner, how, range) => 0,
            _ => libc::EAGAIN,
        };
        let done = fcntl(open.file.as_raw_fd(), libc::F_OFD_SETLK, kind(how), start, length);
        self.expect(open.id, format!("{} lock {how:?} {start} +{length}", open.name()), result(done), errno);
    }

    /// What a test has found is one of the locks that are in the way, as a whole; or nothing, if there is none.
    fn compare_lock(
        &mut self,
        id: Id,
        name: String,
        owner: Owner,
        exclusive: bool,
        range: Range,
        found: io::Result<(i32, i64, i64)>,
    ) {
        let (start, length) = range.fcntl();
        let what = format!("{name} test lock, exclusive {exclusive}, {start} +{length}");
        let found = self.expect(id, what, found, 0).unwrap();
        if !self.is_right(id, owner, exclusive, range, found) {
            let wanted = self.model.nodes[id].locks.test(owner, exclusive, range);
            self.fail(id, format!("found {found:?}, in the way are {wanted:?}"));
        }
    }

    fn is_right(&self, id: Id, owner: Owner, exclusive: bool, range: Range, found: (i32, i64, i64)) -> bool {
        let wanted = self.model.nodes[id].locks.test(owner, exclusive, range);
        let as_found = |(_, held, range): &(Owner, bool, Range)| {
            let (start, length) = range.fcntl();
            (kind(Some(*held)), start, length)
        };
        match wanted.is_empty() {
            true => found.0 == F_UNLCK,
            false => wanted.iter().map(as_found).any(|lock| lock == found),
        }
    }

    fn flock(&mut self) {
        let Some(open) = self.opens.choose(&mut self.random).cloned() else { return };
        let how = self.how();
        let operation = match how {
            Some(true) => LOCK_EX,
            Some(false) => LOCK_SH,
            None => LOCK_UN,
        };
        let done = result(flock(&open.file, operation | LOCK_NB));
        let errno = if self.model.nodes[open.id].locks.flock(open.serial, how) { 0 } else { libc::EAGAIN };
        self.expect(open.id, format!("{} flock {how:?}", open.name()), done, errno);
    }

    /// A file of this host has been closed, and its locks must go soon; who sees that has the file open elsewhere, or
    /// can open it.
    pub fn await_release(&mut self, id: Id, host: usize) {
        let other = self.opens.iter().filter(|open| open.id == id).max_by_key(|open| open.host != host);
        let place = self.model.places().into_iter().find(|place| place.id == id);
        let other = match (other, place) {
            (Some(open), _) => open.again(),
            (None, Some(place)) => self.at((host + 1) % self.hosts.len(), &place.path),
            (None, None) => return,
        };
        let probe = File::options().read(true).write(true).open(other);
        let probe = self.expect(id, "    looks for what it had locked".into(), probe, 0).unwrap();
        let (all, nobody) = (Range::new(0, 0), Owner::Open(0));
        let locks = &self.model.nodes[id].locks;
        let [exclusive, shared] = [true, false].map(|exclusive| locks.may_flock(exclusive));
        let end = Instant::now() + RELEASED;
        loop {
            let right = [true, false].into_iter().all(|exclusive| {
                test_lock(&probe, exclusive, all).is_ok_and(|f| self.is_right(id, nobody, exclusive, all, f))
            });
            let whole = match (exclusive, shared) {
                (true, _) => flock(&probe, LOCK_EX | LOCK_NB).is_ok(),
                (_, true) => flock(&probe, LOCK_SH | LOCK_NB).is_ok(),
                _ => true,
            };
            if right && whole {
                break;
            }
            if Instant::now() > end {
                self.fail(id, format!("locked for ever: ranges {}, flock {}", !right, !whole));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = flock(&probe, LOCK_UN);
        self.expect(id, "    unlocks again".into(), result(done), 0);
    }
}
