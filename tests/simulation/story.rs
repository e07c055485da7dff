//! A run that was recorded: operations of hosts on one disk, every request that reached the disk, and
//! what the volume may hold after a power cut at any of them.
//!
//! What is promised. *Names*: each host's changes become durable in their order; a change that builds
//! on another host's change is never there without it. *fsync*: when it has returned, everything
//! done to that inode before is there. *Rename* over an existing file: the new one's data is there with
//! the name. *Data* that was not synced is old, new or absent, sector by
//! sector, never anything else; a file never ends behind what was written to it.

use crate::common::simdisk::{Event, History, SimDisk};
use crate::host::{Host, How};
use crate::model::{Id, Model, Op, Refusal, bytes};
use crate::tree::{self, Found, Names};
use shoal::base::Error;
use shoal::format::superblock::TimingProfile;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

const SECTOR: usize = 512;

/// An operation as it was run.
pub struct Step {
    pub host: usize,
    pub op: Op,
    /// Requests before it began, and when it had returned.
    pub start: usize,
    pub end: usize,
    touched: Vec<Id>,
    /// What it made durable.
    synced: Option<Id>,
    /// The file that took an existing one's name: its data goes first.
    replacing: Option<Id>,
}

/// A run in the making.
pub struct Recorder {
    pub disk: Arc<SimDisk>,
    history: History,
    pub hosts: Vec<Host>,
    steps: Vec<Step>,
    states: Vec<Model>,
    /// Operations that found no space; they must leave nothing behind.
    pub full: usize,
}

/// A finished run.
pub struct Story {
    pub history: History,
    pub events: Vec<Event>,
    pub steps: Vec<Step>,
    /// Before the first step, and after each.
    states: Vec<Model>,
    /// Requests after which everything is durable: all hosts have left.
    left: usize,
    names: parking_lot::Mutex<HashMap<Vec<usize>, Option<Arc<Candidate>>>>,
    /// Of each host, for each number of all steps: how many of all steps must have happened, of each host, if its
    /// own before that have.
    needed: Vec<Vec<Vec<usize>>>,
}

/// What was found of files: by path, node, and the step from which its lives count.
type Looked = HashMap<(String, Id, usize), Result<(), String>>;

/// A state that the names may be in.
struct Candidate {
    names: Names,
    ids: BTreeMap<String, Id>,
}

/// A fresh volume of so many MiB with so many slots.
pub fn volume(mib: u64, slots: u16) -> Arc<SimDisk> {
    let disk = SimDisk::new(mib << 20);
    let identity = shoal_mkfs::Identity { format_id: 77, uuid: [7; 16], hash_seed: [3; 16], created: 0 };
    let options = shoal_mkfs::Options {
        slots: Some(slots),
        timing: TimingProfile::Test,
        identity: Some(identity),
        ..shoal_mkfs::Options::default()
    };
    shoal_mkfs::make(&*disk, &options).expect("mkfs");
    disk
}

impl Recorder {
    /// Mount a fresh volume on so many hosts; the mounting is part of the record.
    pub fn new(mib: u64, hosts: usize) -> Recorder {
        Recorder::with_commits(mib, hosts, Duration::from_secs(1))
    }

    /// As [`Recorder::new`]; the hosts commit after `commit` at the latest.
    pub fn with_commits(mib: u64, hosts: usize, commit: Duration) -> Recorder {
        let disk = volume(mib, hosts.max(2) as u16);
        let history = disk.record();
        let mount = |n| Host::mount_with(&disk, &format!("host{n}"), commit).expect("mount");
        let hosts = (0..hosts).map(mount).collect();
        Recorder { disk, history, hosts, steps: Vec::new(), states: vec![Model::new()], full: 0 }
    }

    /// Run one operation; model and host must agree on whether it can be done.
    pub fn run(&mut self, host: usize, op: Op) {
        let number = self.steps.len();
        let mut model = self.states.last().expect("at least the first").clone();
        let before = model.clone();
        let start = self.disk.event_count();
        let done = execute(&self.hosts[host], &before, number, &op);
        let end = self.disk.event_count();
        let mut wanted = model.apply(number, &op);
        match (&done, &wanted) {
            (Ok(()), Ok(_)) | (Err(_), Err(_)) => {}
            (Err(Error::NoSpace), Ok(_)) => {
                self.full += 1;
                (model, wanted) = (before.clone(), Err(Refusal::Full));
            }
            _ => panic!("step {number}, {op:?}: {done:?}, the model says {wanted:?}"),
        }
        let mut synced = None;
        if let (Op::Fsync(path) | Op::Write { path, how: How::Sync, .. }, Ok(_)) = (&op, &wanted) {
            synced = Some(before.find(path).expect("it was synced"));
        }
        let replacing = match (&op, &wanted) {
            (Op::Rename { from, to, exchange: false }, Ok(_)) => {
                let (from, to) = (before.find(from).ok(), before.find(to).ok());
                from.filter(|_| to.is_some() && to != from)
            }
            _ => None,
        };
        let touched = wanted.unwrap_or_default();
        self.steps.push(Step { host, op, start, end, touched, synced, replacing });
        self.states.push(model);
    }

    /// The newest state.
    pub fn model(&self) -> &Model {
        self.states.last().expect("at least the first")
    }

    /// All hosts leave.
    pub fn finish(mut self) -> Story {
        for host in self.hosts.drain(..) {
            host.stop().expect("a clean leave");
        }
        let left = self.disk.event_count();
        self.told(left)
    }

    /// The hosts that are left die now: nothing more is promised than was.
    pub fn cut(mut self) -> Story {
        self.hosts.drain(..).for_each(Host::crash);
        self.told(usize::MAX)
    }

    fn told(self, left: usize) -> Story {
        Story {
            needed: needed(&self.steps),
            history: self.history,
            events: self.disk.events(),
            steps: self.steps,
            states: self.states,
            left,
            names: parking_lot::Mutex::default(),
        }
    }
}

/// Do `op` on a host; `model` is the state before.
pub fn execute(host: &Host, model: &Model, number: usize, op: &Op) -> shoal::base::Result<()> {
    match op {
        Op::Create(path) => host.create(path),
        Op::Mkdir(path) => host.mkdir(path),
        Op::Symlink { path, target } => host.symlink(path, target),
        Op::Link { from, to } => host.link(from, to),
        Op::Unlink(path) => host.unlink(path),
        Op::Rmdir(path) => host.rmdir(path),
        Op::Rename { from, to, exchange } => host.rename(from, to, *exchange),
        Op::Write { path, offset, length, how } => {
            let end = model.find(path).ok().and_then(|id| model.data(id)).map_or(0, |d| d.len() as u64);
            let at = if *how == How::Append { end } else { *offset };
            host.write(path, at, &bytes(number, at, *length), *how)
        }
        Op::Truncate { path, size } => host.truncate(path, *size),
        Op::Fallocate { path, offset, length, mode } => host.fallocate(path, (*offset, *length), *mode),
        Op::Chmod { path, mode } => host.chmod(path, *mode),
        Op::SetXattr { path, name, length } => host.set_xattr(path, name, &bytes(number, 0, *length)),
        Op::RemoveXattr { path, name } => host.remove_xattr(path, name),
        Op::Fsync(path) => host.fsync(path),
        Op::Trim => host.trim().map(|_| ()),
        Op::Rest(ms) => {
            std::thread::sleep(Duration::from_millis(*ms));
            Ok(())
        }
    }
}

/// See [`Story::needed`]. A change of names builds on those before it that touched one of its nodes.
fn needed(steps: &[Step]) -> Vec<Vec<Vec<usize>>> {
    let hosts = steps.iter().map(|s| s.host + 1).max().unwrap_or(1);
    let mut needed = vec![vec![vec![0; hosts]]; hosts];
    for (at, step) in steps.iter().enumerate() {
        let mut least = needed[step.host][at].clone();
        let builds_on = |before: &Step| {
            changes_names(&before.op) && before.touched.iter().any(|id| step.touched.contains(id))
        };
        if changes_names(&step.op) {
            for (t, before) in steps[..at].iter().enumerate().filter(|(_, before)| builds_on(before)) {
                least[before.host] = least[before.host].max(t + 1);
            }
        }
        for (host, needed) in needed.iter_mut().enumerate() {
            let next = if host == step.host { least.clone() } else { needed[at].clone() };
            needed.push(next);
        }
    }
    needed
}

fn changes_names(op: &Op) -> bool {
    use Op::{Fallocate, Fsync, Rest, Trim, Truncate, Write};
    !matches!(op, Write { .. } | Truncate { .. } | Fallocate { .. } | Fsync(_) | Rest(_) | Trim)
}

impl Story {
    fn hosts(&self) -> usize {
        self.steps.iter().map(|s| s.host + 1).max().unwrap_or(1)
    }

    /// Steps that may have left a trace in the first `count` requests.
    fn started(&self, count: usize) -> usize {
        self.steps.iter().take_while(|s| s.start < count).count()
    }

    /// For each host: its steps up to the one with this index are durable (as a count of all steps).
    fn floors(&self, count: usize) -> Vec<usize> {
        let mut floors = vec![0; self.hosts()];
        if count >= self.left {
            floors.fill(self.steps.len());
            return floors;
        }
        for (at, step) in self.steps.iter().enumerate().filter(|(_, s)| s.end <= count) {
            let Some(id) = step.synced else { continue };
            for (t, touch) in self.steps[..=at].iter().enumerate() {
                if touch.touched.contains(&id) && changes_names(&touch.op) {
                    floors[touch.host] = floors[touch.host].max(t + 1);
                }
            }
        }
        floors
    }

    /// Is what `ends` includes complete: nothing in it builds on something left out?
    fn is_closed(&self, ends: &[usize]) -> bool {
        let own = ends.iter().zip(&self.needed);
        own.into_iter().all(|(end, needed)| needed[*end].iter().zip(ends).all(|(least, end)| least <= end))
    }

    /// The names if of each host's steps those before `ends` had happened.
    fn candidate(&self, ends: &[usize]) -> Option<Arc<Candidate>> {
        if ends.len() > 1 && !self.is_closed(ends) {
            return None;
        }
        if let Some(known) = self.names.lock().get(ends) {
            return known.clone();
        }
        let made = self.make_candidate(ends).map(Arc::new);
        self.names.lock().insert(ends.to_vec(), made.clone());
        made
    }

    fn make_candidate(&self, ends: &[usize]) -> Option<Candidate> {
        if ends.len() == 1 {
            let (names, ids) = tree::of_model(&self.states[ends[0]]);
            return Some(Candidate { names, ids });
        }
        let mut model = Model::new();
        for (at, step) in self.steps.iter().enumerate().filter(|(at, s)| *at < ends[s.host]) {
            if changes_names(&step.op) && !step.touched.is_empty() {
                model.apply(at, &step.op).ok()?;
            }
        }
        let (names, ids) = tree::of_model(&model);
        Some(Candidate { names, ids })
    }

    /// Every combination of what may have become durable, the newest first.
    fn ends(&self, count: usize) -> Vec<Vec<usize>> {
        let (floors, started) = (self.floors(count), self.started(count));
        let mut all: Vec<Vec<usize>> = vec![vec![]];
        for (host, floor) in floors.iter().enumerate() {
            let own = |at: &usize| self.steps[*at].host == host && changes_names(&self.steps[*at].op);
            let mut choices: Vec<usize> = (*floor..started).filter(own).map(|at| at + 1).collect();
            choices.push(*floor);
            choices.sort_unstable_by(|a, b| b.cmp(a));
            choices.dedup();
            all = all.iter().flat_map(|head| choices.iter().map(|c| [&head[..], &[*c]].concat())).collect();
        }
        all
    }

    /// Compare what is there after a power cut behind `count` requests with what was promised.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self, count: usize, found: &Found) -> Result<(), String> {
        // The names may be the same in thousands of states; of a file there are few lives.
        let mut looked = Looked::new();
        let mut wrong_data = None;
        let all = self.ends(count);
        for ends in &all {
            let Some(candidate) = self.candidate(ends) else { continue };
            if candidate.names == found.names {
                match self.check_data(count, ends, found, &candidate.ids, &mut looked) {
                    Ok(()) => return Ok(()),
                    Err(e) => wrong_data = Some(e),
                }
            }
        }
        if let Some(e) = wrong_data {
            return Err(e);
        }
        let candidates = all.iter().filter_map(|ends| self.candidate(ends));
        let differences = candidates.map(|c| tree::difference(&found.names, &c.names));
        let closest = differences.min_by_key(Vec::len).unwrap_or_default();
        Err(format!(
            "no state that the names may be in; the closest differs by {:#?}",
            &closest[..closest.len().min(8)]
        ))
    }

    /// The data, if of each host's steps those before `ends` have happened.
    fn check_data(
        &self,
        count: usize,
        ends: &[usize],
        found: &Found,
        ids: &BTreeMap<String, Id>,
        looked: &mut Looked,
    ) -> Result<(), String> {
        let started = self.started(count);
        for (path, data) in &found.data {
            let id = ids[path];
            let is_floor = |at: &usize| {
                let s = &self.steps[*at];
                (s.synced == Some(id) && s.end <= count) || (s.replacing == Some(id) && *at < ends[s.host])
            };
            let synced = (0..started).rev().find(is_floor);
            let from = if count >= self.left { self.steps.len() } else { synced.map_or(0, |at| at + 1) };
            let key = (path.clone(), id, from);
            if let Some(known) = looked.get(&key) {
                known.clone()?;
                continue;
            }
            let versions: Vec<&Vec<u8>> = self.states[from..=started.max(from)]
                .iter()
                .filter_map(|m| m.nodes.contains_key(&id).then(|| m.data(id).map(|d| &**d)).flatten())
                .collect();
            let fits = check_file(data, &versions).map_err(|e| {
                let first = synced.unwrap_or(0).saturating_sub(3);
                let steps = self.steps[first..started].iter().enumerate();
                let touching = steps.filter(|(_, s)| s.touched.contains(&id) || s.synced == Some(id));
                let lines: Vec<_> = touching.map(|(n, s)| format!("{}: {:?}", first + n, s.op)).collect();
                format!("{path} (node {id}, synced in step {synced:?}): {e}; it saw {lines:#?}")
            });
            looked.entry(key).or_insert(fits).clone()?;
        }
        Ok(())
    }
}

/// Has the file been cut at or before byte `at`, which it had? The zeros behind the new end go to the
/// disk with the rest of their block, perhaps before the new size does (as on other journaling file
/// systems): who cuts a file has given those bytes up.
fn was_cut(versions: &[&Vec<u8>], at: usize) -> bool {
    let had = versions.iter().position(|v| v.len() > at);
    had.is_some_and(|first| versions[first..].iter().any(|v| v.len() <= at))
}

/// May a file hold `data`, if these are its possible lives since it was last synced?
pub fn check_file(data: &[u8], versions: &[&Vec<u8>]) -> Result<(), String> {
    if versions.iter().rev().any(|v| ***v == *data) {
        return Ok(());
    }
    let sizes = || versions.iter().map(|v| v.len());
    let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
    if data.len() < least || data.len() > most {
        return Err(format!("{} bytes, which should be {least} to {most}", data.len()));
    }
    for (n, sector) in data.chunks(SECTOR).enumerate() {
        let at = n * SECTOR;
        let fits = |v: &&Vec<u8>| {
            let there = v.get(at..).unwrap_or_default();
            let (same, rest) = sector.split_at(sector.len().min(there.len()));
            !there.is_empty() && same == &there[..same.len()] && rest.iter().all(|b| *b == 0)
        };
        let zeros = sector.iter().all(|b| *b == 0);
        let known = versions.iter().any(fits) || (zeros && was_cut(versions, at));
        if !known {
            let what = if zeros { "zeros" } else { "bytes" };
            return Err(format!("byte {at} of {}: {what} that never were there", data.len()));
        }
    }
    Ok(())
}
