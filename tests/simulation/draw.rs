//! Random operations in one worker's trees: a home of its own, and its names in a shared directory.

use crate::host::How;
use crate::model::{Content, Id, Model, Op};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const NAMES: [&str; 5] = ["a", "b", "c", "dd", "a-longer-name-that-takes-more-room-in-a-page"];
const DIRECTORIES_MAX: usize = 12;

/// The directory that is a worker's own.
pub fn home(worker: usize) -> String {
    format!("/w{worker}")
}

/// Is this path that worker's?
pub fn is_own(worker: usize, path: &str) -> bool {
    path.starts_with(&home(worker)) || path.starts_with(&format!("/shared/{worker}-"))
}

/// Draws the operations of a worker.
pub struct Draw<'a> {
    pub worker: usize,
    pub random: &'a mut StdRng,
    pub model: &'a Model,
}

impl Draw<'_> {
    fn home(&self) -> String {
        home(self.worker)
    }

    /// A path of the worker's but its home, of a node that `wanted` says yes to.
    pub fn any_path(&mut self, wanted: impl Fn(&Model, Id) -> bool) -> Option<String> {
        let model = self.model;
        let all: Vec<String> = model
            .paths()
            .into_iter()
            .filter(|(path, id)| is_own(self.worker, path) && *path != self.home() && wanted(model, *id))
            .map(|(path, _)| path)
            .collect();
        all.choose(self.random).cloned()
    }

    /// A name somewhere, there or not.
    fn new_path(&mut self) -> String {
        if self.random.random_bool(0.2) {
            return format!("/shared/{}-{}", self.worker, self.random.random_range(0..6));
        }
        let model = self.model;
        let dirs: Vec<String> = model
            .paths()
            .into_iter()
            .filter(|(path, id)| path.starts_with(&self.home()) && model.is_dir(*id))
            .map(|(path, _)| path)
            .collect();
        let name = NAMES.choose(self.random).expect("some");
        let dir = dirs.choose(self.random).expect("home at least");
        format!("{dir}/{name}")
    }

    /// The next operation.
    pub fn op(&mut self) -> Op {
        let path = self.new_path();
        match self.random.random_range(0..100) {
            0..12 => Op::Create(path),
            12..16 => {
                let dirs = self.model.paths().iter().filter(|(_, id)| self.model.is_dir(*id)).count();
                if dirs < DIRECTORIES_MAX { Op::Mkdir(path) } else { Op::Create(path) }
            }
            16..18 => {
                let length = *[5, 100, 3000].choose(self.random).expect("some");
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
                    let id = self.model.find(&from).expect("just found");
                    let to = if self.model.is_dir(id) {
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
        let name = format!("user.{}", ["a", "b", "c"].choose(self.random).expect("some"));
        match self.random.random_range(0..4) {
            0 => Op::RemoveXattr { path, name },
            1 => Op::Chmod { path, mode: *[0o600, 0o755, 0o640].choose(self.random).expect("some") },
            _ => {
                let length = *[0, 10, 900, 1200, 5000, 20_000].choose(self.random).expect("some");
                Op::SetXattr { path, name, length }
            }
        }
    }

    fn data(&mut self, path: String) -> Op {
        let id = self.model.find(&path).expect("just found");
        let size = self.model.data(id).map_or(0, |d| d.len()) as u64;
        let random = &mut *self.random;
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
}
