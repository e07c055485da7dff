//! A worker of the cluster simulation: random operations in a tree of its own, each on any host, with
//! a model of what must be there.

use crate::cluster::Sim;
use crate::host::How;
use crate::model::{Content, Id, Model, Op};
use crate::story::{check_file, execute};
use crate::tree::{self, Entry, Found};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shoal::base::Error;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const NAMES: [&str; 5] = ["a", "b", "c", "dd", "a-longer-name-that-takes-more-room-in-a-page"];
const DIRECTORIES_MAX: usize = 12;

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
        Worker { number, random, states: vec![model], next: 2, synced: vec![], log: VecDeque::new() }
    }

    /// The directory that is this worker's.
    pub fn home(&self) -> String {
        format!("/w{}", self.number)
    }

    /// Everything so far is durable.
    pub fn forget_past(&mut self) {
        self.states.drain(..self.states.len() - 1);
        self.synced.clear();
    }

    fn model(&self) -> &Model {
        self.states.last().expect("at least one")
    }

    fn is_own(&self, path: &str) -> bool {
        path.starts_with(&self.home()) || path.starts_with(&format!("/shared/{}-", self.number))
    }

    /// Operations until `until`.
    pub fn work(&mut self, sim: &Sim, until: Instant) -> Result<Ended, String> {
        while Instant::now() < until && !sim.down.load(Ordering::Acquire) {
            let at = self.random.random_range(0..sim.hosts.len());
            let Some(place) = sim.hosts[at].try_read() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let Some(host) = &*place else { continue };
            let looked = if self.random.random_bool(0.35) { self.look(host, at) } else { Ok(()) };
            let done = looked.and_then(|()| {
                let op = self.draw();
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

    fn any_path(&mut self, wanted: impl Fn(&Model, Id) -> bool) -> Option<String> {
        let model = self.model().clone();
        let all: Vec<String> = model
            .paths()
            .into_iter()
            .filter(|(path, id)| self.is_own(path) && *path != self.home() && wanted(&model, *id))
            .map(|(path, _)| path)
            .collect();
        all.choose(&mut self.random).cloned()
    }

    /// A name somewhere, there or not.
    fn new_path(&mut self) -> String {
        if self.random.random_bool(0.2) {
            return format!("/shared/{}-{}", self.number, self.random.random_range(0..6));
        }
        let model = self.model();
        let dirs: Vec<String> = model
            .paths()
            .into_iter()
            .filter(|(path, id)| path.starts_with(&self.home()) && model.is_dir(*id))
            .map(|(path, _)| path)
            .collect();
        let name = NAMES.choose(&mut self.random).expect("some");
        let dir = dirs.choose(&mut self.random).expect("home at least");
        format!("{dir}/{name}")
    }

    fn draw(&mut self) -> Op {
        let path = self.new_path();
        match self.random.random_range(0..100) {
            0..12 => Op::Create(path),
            12..16 => {
                let dirs = self.model().paths().iter().filter(|(_, id)| self.model().is_dir(*id)).count();
                if dirs < DIRECTORIES_MAX { Op::Mkdir(path) } else { Op::Create(path) }
            }
            16..18 => {
                let length = *[5, 100, 3000].choose(&mut self.random).expect("some");
                Op::Symlink { path, target: vec![b't'; length] }
            }
            18..26 => Op::Unlink(path),
            26..29 => Op::Rmdir(path),
            29..34 => match self.any_path(|m, id| !m.is_dir(id)) {
                Some(from) => Op::Link { from, to: path },
                None => Op::Create(path),
            },
            34..44 => match self.any_path(|_, _| true) {
                // Directories stay at home: the shared one has no room for other workers' models.
                Some(from) => {
                    let id = self.model().find(&from).expect("just found");
                    let to = if self.model().is_dir(id) {
                        path.replace("/shared/", &format!("{}/", self.home()))
                    } else {
                        path
                    };
                    let exchange = self.random.random_bool(0.2)
                        && !to.starts_with("/shared")
                        && !from.starts_with("/shared");
                    Op::Rename { from, to, exchange }
                }
                None => Op::Create(path),
            },
            44..50 => match self.any_path(|m, id| !matches!(m.nodes[&id].content, Content::Symlink(_))) {
                Some(path) => self.attribute(path),
                None => Op::Create(path),
            },
            _ => match self.any_path(|m, id| m.data(id).is_some()) {
                Some(path) => self.data(path),
                None => Op::Create(path),
            },
        }
    }

    fn attribute(&mut self, path: String) -> Op {
        let name = format!("user.{}", ["a", "b", "c"].choose(&mut self.random).expect("some"));
        match self.random.random_range(0..4) {
            0 => Op::RemoveXattr { path, name },
            1 => Op::Chmod { path, mode: *[0o600, 0o755, 0o640].choose(&mut self.random).expect("some") },
            _ => {
                let length = *[0, 10, 900, 1200, 5000, 20_000].choose(&mut self.random).expect("some");
                Op::SetXattr { path, name, length }
            }
        }
    }

    fn data(&mut self, path: String) -> Op {
        let id = self.model().find(&path).expect("just found");
        let size = self.model().data(id).map_or(0, |d| d.len()) as u64;
        let random = &mut self.random;
        match random.random_range(0..20) {
            0..9 => {
                let offset = *[0, size, random.random_range(0..150_000)].choose(random).expect("some");
                let how =
                    *[How::Buffered, How::Buffered, How::Buffered, How::Sync].choose(random).expect("some");
                let most = [100, 5000, 60_000][random.random_range(0..3)];
                let length = random.random_range(1..most);
                Op::Write { path, offset, length, how }
            }
            9 => {
                let (page, pages) = (random.random_range(0..40) * 4096, random.random_range(1..8));
                Op::Write { path, offset: page, length: pages * 4096, how: How::Direct }
            }
            10..12 => Op::Write { path, offset: 0, length: random.random_range(1..5000), how: How::Append },
            12..14 => Op::Truncate { path, size: random.random_range(0..=size + 10_000) },
            14..16 => {
                let keep = libc::FALLOC_FL_KEEP_SIZE;
                let mode = *[0, keep, libc::FALLOC_FL_PUNCH_HOLE | keep, libc::FALLOC_FL_ZERO_RANGE]
                    .choose(random)
                    .expect("some");
                let (offset, length) = (random.random_range(0..120_000), random.random_range(1..80_000));
                Op::Fallocate { path, offset, length, mode }
            }
            _ => Op::Fsync(path),
        }
    }

    /// Compare something with the model: a file's bytes, a directory's names, attributes.
    fn look(&mut self, host: &crate::host::Host, at: usize) -> Result<(), String> {
        let Some(path) = self.any_path(|_, _| true) else { return Ok(()) };
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
    /// since it was last synced; each file the bytes of one of its lives, sector by sector.
    pub fn check_after_cut(&self, found: &Found) -> Result<(), String> {
        let lives: Vec<_> = self.states.iter().map(tree::of_model).collect();
        let mut paths: BTreeSet<&String> = found.names.keys().filter(|p| self.is_own(p)).collect();
        paths.extend(lives.iter().flat_map(|(names, _)| names.keys()).filter(|p| self.is_own(p)));
        for path in paths {
            let floor = self.synced.iter().rev().find(|(p, ..)| p == path).map_or(0, |(.., at)| *at);
            let there = found.names.get(path);
            let fits = |names: &tree::Names| alike(there, names.get(path));
            let fitting: BTreeSet<Option<Id>> = lives[floor..]
                .iter()
                .filter(|(names, _)| fits(names))
                .map(|(_, ids)| ids.get(path).copied())
                .collect();
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
