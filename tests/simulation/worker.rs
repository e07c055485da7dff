//! A worker of the cluster simulation: random operations in a tree of its own, each on any host, with
//! a model of what must be there.

use crate::cluster::Sim;
use crate::draw::{self, Draw};
use crate::host::How;
use crate::model::{Content, Id, Model, Op};
use crate::runs::Until;
use crate::story::{check_file, execute};
use crate::tree::{self, Entry, Found};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::Error;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Beside so many operations a trim begins.
const TRIMS: f64 = 1.0 / 60.0;

/// How a worker's time ended.
pub enum Ended {
    Done,
    /// With the power, or its host: the last operation may have happened.
    Cut,
}

/// See the head of the file.
pub struct Worker {
    number: usize,
    random: StdRng,
    /// States since the past was forgotten, the newest last.
    states: Vec<Model>,
    /// Which host did what led to each state.
    hosts: Vec<usize>,
    /// Number of the next operation.
    next: usize,
    /// fsyncs that have returned: path and node, as of which state.
    synced: Vec<(String, Id, usize)>,
    log: VecDeque<String>,
}

impl Worker {
    pub fn new(number: usize, seed: u64) -> Worker {
        let mut model = Model::new();
        let home = format!("/w{number}");
        model.apply(0, &Op::Mkdir("/shared".into())).expect("new");
        model.apply(1, &Op::Mkdir(home)).expect("new");
        let random = StdRng::seed_from_u64(seed ^ ((number as u64 + 1) << 48));
        Worker {
            number,
            random,
            states: vec![model],
            hosts: vec![0],
            next: 2,
            synced: vec![],
            log: VecDeque::new(),
        }
    }

    /// The directory that is this worker's.
    pub fn home(&self) -> String {
        draw::home(self.number)
    }

    /// Everything so far is durable.
    pub fn forget_past(&mut self) {
        self.states.drain(..self.states.len() - 1);
        self.hosts.drain(..self.hosts.len() - 1);
        self.synced.clear();
    }

    fn model(&self) -> &Model {
        self.states.last().expect("at least one")
    }

    fn is_own(&self, path: &str) -> bool {
        draw::is_own(self.number, path)
    }

    /// Operations until `until`.
    pub fn work(&mut self, sim: &Sim, until: Until) -> Result<Ended, String> {
        while !until.is_over(sim) && !sim.down.load(Ordering::Acquire) {
            let at = self.random.random_range(0..sim.hosts.len());
            let Some(place) = sim.hosts[at].try_read() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let Some(host) = &*place else { continue };
            let looked = if self.random.random_bool(0.35) { self.look(host, at) } else { Ok(()) };
            let done = looked.and_then(|()| {
                if self.random.random_bool(TRIMS) {
                    host.trim_beside();
                }
                let op = self.draw(|mut d| d.op());
                self.step(host, at, op)
            });
            sim.done.fetch_add(1, Ordering::Relaxed);
            if let Err(e) = done {
                if sim.down.load(Ordering::Acquire) || host.port.failed() > 0 {
                    return Ok(Ended::Cut);
                }
                let log: Vec<_> = self.log.iter().map(String::as_str).collect();
                return Err(format!(
                    "{e}; the last operations of worker {}:\n  {}",
                    self.number,
                    log.join("\n  ")
                ));
            }
        }
        Ok(Ended::Done)
    }

    fn draw<T>(&mut self, f: impl FnOnce(Draw<'_>) -> T) -> T {
        let model = self.states.last().expect("at least one");
        f(Draw { worker: self.number, random: &mut self.random, model })
    }

    fn note(&mut self, what: String) {
        self.log.push_back(what);
        if self.log.len() > 25 {
            self.log.pop_front();
        }
    }

    fn step(&mut self, host: &crate::host::Host, at: usize, op: Op) -> Result<(), String> {
        let number = self.next;
        self.next += 1;
        self.note(format!("{number} host {at}: {op:?}"));
        let mut model = self.model().clone();
        let wanted = model.apply(number, &op);
        let done = execute(host, self.model(), number, &op);
        // Remembered also when it failed for other reasons than the model's: it may have happened.
        let before = self.model().clone();
        if wanted.is_ok() {
            self.states.push(model);
            self.hosts.push(at);
        }
        match (&done, &wanted) {
            (Err(e), Err(_)) if !matches!(e, Error::Io { .. } | Error::Halted(_)) => Ok(()),
            (Ok(()), Ok(_)) => {
                if let Op::Fsync(path) | Op::Write { path, how: How::Sync, .. } = &op
                    && let Ok(id) = before.find(path)
                {
                    self.synced.push((path.clone(), id, self.states.len() - 1));
                }
                Ok(())
            }
            _ => Err(format!("{op:?} on host {at}: {done:?}, the model says {wanted:?}")),
        }
    }

    /// Compare something with the model: a file's bytes, a directory's names, attributes.
    fn look(&mut self, host: &crate::host::Host, at: usize) -> Result<(), String> {
        let Some(path) = self.draw(|mut d| d.any_path(|_, _| true)) else { return Ok(()) };
        let id = self.model().find(&path).expect("just found");
        let node = self.model().nodes[&id].clone();
        self.note(format!("     host {at}: look at {path}"));
        let named = |e: Error| format!("looking at {path} on host {at}: {e}");
        let attr = host.stat(&path).map_err(named)?;
        if (attr.nlink, attr.mode) != (node.links, node.mode) {
            let found = (attr.nlink, attr.mode);
            return Err(format!(
                "{path} on host {at}: links and mode {found:?}, expected {:?}",
                (node.links, node.mode)
            ));
        }
        match &node.content {
            Content::File(data) => {
                let found = host.read(&path).map_err(named)?;
                if found != **data {
                    let first = found.iter().zip(&**data).position(|(a, b)| a != b);
                    let (is, was) = (found.len(), data.len());
                    return Err(format!(
                        "{path} on host {at}: {is} bytes, expected {was}, first difference {first:?}"
                    ));
                }
            }
            Content::Directory(children) => {
                let found = host.list(&path).map_err(named)?;
                let wanted: Vec<String> = children.keys().cloned().collect();
                if found != wanted {
                    return Err(format!("{path} on host {at} lists {found:?}, expected {wanted:?}"));
                }
            }
            Content::Symlink(target) => {
                if host.readlink(&path).map_err(named)? != *target {
                    return Err(format!("{path} on host {at}: another target"));
                }
            }
        }
        for (name, value) in &node.xattrs {
            if host.get_xattr(&path, name).map_err(named)? != *value {
                return Err(format!("{path} on host {at}: another value of {name}"));
            }
        }
        Ok(())
    }

    /// The volume holds exactly the newest state.
    pub fn check_exactly(&self, found: &Found) -> Result<(), String> {
        let (names, ids) = tree::of_model(self.model());
        let own = |names: &tree::Names| -> tree::Names {
            names.iter().filter(|(p, _)| self.is_own(p)).map(|(p, e)| (p.clone(), e.clone())).collect()
        };
        let lines = tree::difference(&own(&found.names), &own(&names));
        if !lines.is_empty() {
            return Err(format!("worker {}: {:#?}", self.number, &lines[..lines.len().min(6)]));
        }
        for (path, data) in found.data.iter().filter(|(p, _)| self.is_own(p)) {
            if self.model().data(ids[path]).is_none_or(|d| **d != *data) {
                return Err(format!("worker {}: {path} has other bytes", self.number));
            }
        }
        Ok(())
    }

    /// The volume holds what may be left after a power cut. Each name has one of the lives it had
    /// since it was last synced, or, where a directory above it has been moved, had in that directory; each file the
    /// bytes of one of its lives, sector by sector.
    pub fn check_after_cut(&self, found: &Found) -> Result<(), String> {
        let lives: Vec<_> = self.states.iter().map(tree::of_model).collect();
        let mut paths: BTreeSet<&String> = found.names.keys().filter(|p| self.is_own(p)).collect();
        paths.extend(lives.iter().flat_map(|(names, _)| names.keys()).filter(|p| self.is_own(p)));
        for path in paths {
            let floor = self.synced.iter().rev().find(|(p, ..)| p == path).map_or(0, |(.., at)| *at);
            let there = found.names.get(path);
            let fits = |names: &tree::Names| alike(there, names.get(path));
            let mut fitting: BTreeSet<Option<Id>> = lives[floor..]
                .iter()
                .filter(|(names, _)| fits(names))
                .map(|(_, ids)| ids.get(path).copied())
                .collect();
            if fitting.is_empty() {
                fitting = self.moved(path, there, floor);
            }
            if fitting.is_empty() {
                let newest = lives.last().and_then(|(names, _)| names.get(path));
                return Err(format!(
                    "worker {}: {path} (synced in state {floor} of {}) is {there:?}, last it was {newest:?}",
                    self.number,
                    lives.len()
                ));
            }
            let Some(data) = found.data.get(path) else { continue };
            let checked: Vec<_> = fitting.iter().flatten().map(|id| self.check_bytes(*id, data)).collect();
            if !checked.iter().any(Result::is_ok) {
                return Err(format!("worker {}: {path}: {:?}", self.number, checked));
            }
        }
        Ok(())
    }

    /// What `path` may lead to, each name on the way taken from any state since it was synced: directories are moved by
    /// one host while others work below them, and what one has not synced may be lost alone.
    fn resolve(&self, path: &str, floor: usize) -> BTreeSet<Id> {
        let names = path.split('/').filter(|n| !n.is_empty());
        names.fold(BTreeSet::from([0]), |dirs, name| {
            let below = |m: &Model| -> Vec<Id> {
                let here = dirs.iter().filter(|d| m.nodes.contains_key(d));
                here.filter_map(|d| m.children(*d).ok()?.get(name).copied()).collect()
            };
            self.states[floor..].iter().flat_map(below).collect()
        })
    }

    /// As which nodes `there` may stand at `path`: what the directory had by that name at any time since, wherever the
    /// directory itself was then. Where nothing above was moved, that is what the path led to; and where one host has done
    /// all of it, nothing of that is lost but the end.
    fn moved(&self, path: &str, there: Option<&Entry>, floor: usize) -> BTreeSet<Option<Id>> {
        let (dir, name) = path.rsplit_once('/').expect("a path");
        let dirs = self.resolve(dir, floor);
        let mut fitting = BTreeSet::new();
        if self.hosts[floor + 1..].windows(2).all(|two| two[0] == two[1]) {
            return fitting;
        }
        for (at, model) in self.states.iter().enumerate().skip(floor) {
            for dir in dirs.iter().filter(|d| model.nodes.contains_key(d)) {
                let Ok(children) = model.children(*dir) else { continue };
                let id = children.get(name).copied();
                let synced = self.synced.iter().filter(|(_, i, _)| Some(*i) == id).map(|(.., at)| *at).max();
                let entry = id.map(|id| tree::of_node(&model.nodes[&id], path.to_owned()));
                if at >= synced.unwrap_or(0) && alike(there, entry.as_ref()) {
                    fitting.insert(id);
                }
            }
        }
        fitting
    }

    fn check_bytes(&self, id: Id, data: &[u8]) -> Result<(), String> {
        let floor = self.synced.iter().rev().find(|(_, i, _)| *i == id).map_or(0, |(.., at)| *at);
        let versions: Vec<&Vec<u8>> = self.states[floor..]
            .iter()
            .filter_map(|m| m.nodes.contains_key(&id).then(|| m.data(id).map(|d| &**d)).flatten())
            .collect();
        check_file(data, &versions)
    }
}

/// The same but for which other names the inode has.
fn alike(a: Option<&Entry>, b: Option<&Entry>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            let brief = |e: &Entry| (e.kind, e.links, e.mode, e.target.clone(), e.xattrs.clone());
            brief(a) == brief(b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/w0/a/f";

    fn done(worker: &mut Worker, host: usize, op: &Op) {
        let mut model = worker.model().clone();
        model.apply(worker.next, op).expect("it may be done");
        worker.next += 1;
        worker.states.push(model);
        worker.hosts.push(host);
    }

    fn rename(from: &str, to: &str) -> Op {
        Op::Rename { from: from.into(), to: to.into(), exchange: false }
    }

    /// A directory is moved away, another one made in its place, and a file in that by another host.
    fn worker() -> Worker {
        let mut worker = Worker::new(0, 1);
        for op in [Op::Mkdir("/w0/a".into()), rename("/w0/a", "/w0/b"), Op::Mkdir("/w0/a".into())] {
            done(&mut worker, 1, &op);
        }
        done(&mut worker, 2, &Op::Create(FILE.into()));
        worker
    }

    fn check_without_the_file(worker: &Worker) -> Result<(), String> {
        let (mut names, _) = tree::of_model(worker.model());
        names.remove(FILE);
        worker.check_after_cut(&Found { names, data: BTreeMap::new() })
    }

    #[test]
    fn a_synced_name_is_missed_whatever_stood_there_before() {
        let mut worker = worker();
        check_without_the_file(&worker).expect("it was not synced");
        let id = worker.model().find(FILE).expect("just made");
        worker.synced.push((FILE.into(), id, worker.states.len() - 1));
        check_without_the_file(&worker).expect_err("it was synced");
    }

    #[test]
    fn what_another_host_did_below_a_directory_that_is_moved_may_be_lost_alone() {
        for (host, fits) in [(2, true), (1, false)] {
            let mut worker = worker();
            worker.forget_past();
            let mut without = worker.model().clone();
            done(&mut worker, host, &Op::Unlink(FILE.into()));
            done(&mut worker, 1, &rename("/w0/a", "/w0/c"));
            without.apply(99, &rename("/w0/a", "/w0/c")).expect("it may be done");
            let found = Found { names: tree::of_model(&without).0, data: BTreeMap::new() };
            assert_eq!(worker.check_after_cut(&found).is_ok(), fits, "host {host}");
        }
    }
}
