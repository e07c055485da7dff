//! The multi-mount random tester: each operation on a random mount, every result compared with a
//! model, the final tree compared on all mounts and after a remount.
//!
//! `SHOAL_SEED` and `SHOAL_OPS` repeat or lengthen a run.

use crate::model::{Content, Id, Model, Place};
use crate::rig::Cluster;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const NAMES: [&str; 5] = ["a", "b", "c", "dd", "a-longer-name-that-takes-more-room-in-a-page"];
const DIRECTORIES_MAX: usize = 25;

struct Tester {
    random: StdRng,
    model: Model,
    mounts: Vec<PathBuf>,
    /// The last operations, for the report of a difference.
    log: VecDeque<String>,
    seed: u64,
}

/// One operation's surroundings.
struct Turn {
    mount: PathBuf,
    places: Vec<Place>,
    /// A directory and a name in it, there or not.
    dir: Id,
    path: String,
    name: String,
    there: Option<Id>,
}

impl Turn {
    fn at(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }
}

impl Tester {
    fn fail(&self, what: String) -> ! {
        let log: Vec<&str> = self.log.iter().map(String::as_str).collect();
        panic!("seed {}: {what}; the last operations:\n  {}", self.seed, log.join("\n  "));
    }

    /// Compare an outcome with the errno expected (0: success).
    fn expect<T>(&mut self, what: String, done: io::Result<T>, errno: i32) -> Option<T> {
        self.log.push_back(what.clone());
        if self.log.len() > 30 {
            self.log.pop_front();
        }
        let found = done.as_ref().map_or_else(|e| e.raw_os_error().unwrap_or(-1), |_| 0);
        if found != errno {
            self.fail(format!("{what}: errno {found}, expected {errno}"));
        }
        done.ok()
    }

    fn turn(&mut self) -> Turn {
        let mount = self.mounts.choose(&mut self.random).unwrap().clone();
        let (at, dir) = self.model.directories().choose(&mut self.random).unwrap().clone();
        let name = NAMES.choose(&mut self.random).unwrap().to_string();
        let there = self.model.children(dir).get(&name).copied();
        Turn { mount, places: self.model.places(), dir, path: format!("{at}/{name}"), name, there }
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let mut data = vec![0; self.random.random_range(1..=max)];
        self.random.fill(&mut data[..]);
        data
    }

    fn step(&mut self) {
        let turn = self.turn();
        let what = format!("{} {}", turn.mount.file_name().unwrap().to_str().unwrap(), turn.path);
        match self.random.random_range(0..100) {
            0..30 => self.change_names(&turn, what),
            30..85 => self.change_file(&turn),
            85..92 => self.xattr(&turn),
            _ => self.look(&turn, what),
        }
    }

    fn change_names(&mut self, turn: &Turn, what: String) {
        let at = turn.at(&turn.path);
        let taken = if turn.there.is_some() { libc::EEXIST } else { 0 };
        let there_dir = turn.there.is_some_and(|id| self.model.is_dir(id));
        let new = match self.random.random_range(0..12) {
            0..4 => {
                self.expect(format!("create {what}"), File::create_new(&at), taken);
                Some((Content::File(Vec::new()), 0o644))
            }
            4..6 => {
                if self.model.directories().len() > DIRECTORIES_MAX {
                    return;
                }
                self.expect(format!("mkdir {what}"), fs::create_dir(&at), taken);
                Some((Content::Directory(BTreeMap::new()), 0o755))
            }
            6 => {
                let target = "t".repeat(*[5, 100, 1500].choose(&mut self.random).unwrap());
                self.expect(format!("symlink {what}"), symlink(&target, &at), taken);
                Some((Content::Symlink(target), 0o777))
            }
            7 | 8 => {
                let errno = match turn.there {
                    None => libc::ENOENT,
                    Some(_) if there_dir => libc::EISDIR,
                    Some(_) => 0,
                };
                if self.expect(format!("unlink {what}"), fs::remove_file(&at), errno).is_some() {
                    self.unname(turn.dir, &turn.name);
                }
                None
            }
            9 => {
                let errno = match turn.there {
                    None => libc::ENOENT,
                    Some(_) if !there_dir => libc::ENOTDIR,
                    Some(id) if !self.model.children(id).is_empty() => libc::ENOTEMPTY,
                    Some(_) => 0,
                };
                if self.expect(format!("rmdir {what}"), fs::remove_dir(&at), errno).is_some() {
                    self.unname(turn.dir, &turn.name);
                }
                None
            }
            10 => return self.link(turn, what),
            _ => return self.rename(turn, what),
        };
        if let (Some((content, mode)), None) = (new, turn.there) {
            let id = self.model.add(content, mode);
            self.model.children_mut(turn.dir).insert(turn.name.clone(), id);
        }
    }

    fn unname(&mut self, dir: Id, name: &str) {
        if let Some(id) = self.model.children_mut(dir).remove(name) {
            self.model.nodes[id].links -= 1;
        }
    }

    fn link(&mut self, turn: &Turn, what: String) {
        let files: Vec<&Place> = turn.places.iter().filter(|p| self.model.is_file(p.id)).collect();
        let Some(from) = files.choose(&mut self.random) else { return };
        let errno = if turn.there.is_some() { libc::EEXIST } else { 0 };
        let done = fs::hard_link(turn.at(&from.path), turn.at(&turn.path));
        if self.expect(format!("link {} to {what}", from.path), done, errno).is_some() {
            self.model.nodes[from.id].links += 1;
            self.model.children_mut(turn.dir).insert(turn.name.clone(), from.id);
        }
    }

    fn rename(&mut self, turn: &Turn, what: String) {
        let Some(from) = turn.places.choose(&mut self.random).cloned() else { return };
        let dir = |id| self.model.is_dir(id);
        let below = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        let errno = match turn.there {
            _ if dir(from.id) && below(&turn.path, &from.path) => libc::EINVAL,
            Some(id) if id == from.id => 0,
            Some(id) if dir(id) && below(&from.path, &turn.path) => libc::ENOTEMPTY,
            Some(id) if dir(from.id) && !dir(id) => libc::ENOTDIR,
            Some(id) if !dir(from.id) && dir(id) => libc::EISDIR,
            Some(id) if dir(id) && !self.model.children(id).is_empty() => libc::ENOTEMPTY,
            _ => 0,
        };
        let (old, new) = (turn.at(&from.path), turn.at(&turn.path));
        let mut done = fs::rename(&old, &new);
        // The kernel cannot follow a directory that another host has moved while it renames (README).
        let is_stale = done.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ESTALE));
        if is_stale && from.parent != turn.dir && (dir(from.id) || turn.there.is_some_and(dir)) {
            [&old, &new].into_iter().for_each(|at| drop(fs::symlink_metadata(at)));
            done = fs::rename(&old, &new);
        }
        let done = self.expect(format!("rename {} to {what}", from.path), done, errno);
        if done.is_some() && turn.there != Some(from.id) {
            self.unname(turn.dir, &turn.name);
            self.model.children_mut(from.parent).remove(&from.name);
            self.model.children_mut(turn.dir).insert(turn.name.clone(), from.id);
        }
    }

    fn change_file(&mut self, turn: &Turn) {
        let files: Vec<Place> = turn.places.iter().filter(|p| self.model.is_file(p.id)).cloned().collect();
        let Some(file) = files.choose(&mut self.random).cloned() else { return };
        let what = format!("{} {}", turn.mount.file_name().unwrap().to_str().unwrap(), file.path);
        let at = turn.at(&file.path);
        let size = self.model.data(file.id).len();
        match self.random.random_range(0..20) {
            0..6 => {
                let offset =
                    *[0, size, self.random.random_range(0..200_000)].choose(&mut self.random).unwrap();
                let data = self.bytes(60_000);
                let done = OpenOptions::new()
                    .write(true)
                    .open(&at)
                    .and_then(|f| f.write_all_at(&data, offset as u64));
                self.expect(format!("write {what} {offset} +{}", data.len()), done, 0);
                put(self.model.data(file.id), offset, &data);
            }
            6..8 => {
                let data = self.bytes(5000);
                let done = OpenOptions::new()
                    .append(true)
                    .open(&at)
                    .and_then(|mut f| io::Write::write_all(&mut f, &data));
                self.expect(format!("append {what} +{}", data.len()), done, 0);
                self.model.data(file.id).extend(&data);
            }
            8..10 => {
                let to = match self.random.random_bool(0.6) {
                    true => self.random.random_range(0..=size),
                    false => size + self.random.random_range(0..20_000),
                };
                let done = OpenOptions::new().write(true).open(&at).and_then(|f| f.set_len(to as u64));
                self.expect(format!("truncate {what} {size} to {to}"), done, 0);
                self.model.data(file.id).resize(to, 0);
            }
            10..12 => self.fallocate(&what, &at, file.id),
            12 => {
                let done = File::open(&at).and_then(|f| f.sync_all());
                self.expect(format!("fsync {what}"), done, 0);
            }
            13 => {
                let mode = *[0o600, 0o755, 0o640].choose(&mut self.random).unwrap();
                let done = fs::set_permissions(&at, fs::Permissions::from_mode(mode));
                self.expect(format!("chmod {what}"), done, 0);
                self.model.nodes[file.id].mode = mode;
            }
            14 => self.map_write(&what, &at, file.id),
            _ => {
                let found = self.expect(format!("read {what}"), fs::read(&at), 0).unwrap();
                if found != *self.model.data(file.id) {
                    let wanted = self.model.data(file.id).clone();
                    let first = found.iter().zip(&wanted).position(|(a, b)| a != b);
                    self.fail(format!(
                        "{what}: {} bytes, expected {size}, first difference {first:?}",
                        found.len()
                    ));
                }
            }
        }
    }

    fn fallocate(&mut self, what: &str, at: &PathBuf, id: Id) {
        let (offset, length) =
            (self.random.random_range(0..150_000usize), self.random.random_range(1..100_000usize));
        let keep = self.random.random_bool(0.5);
        let kind =
            *[0, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE].choose(&mut self.random).unwrap();
        let keep = keep || kind == libc::FALLOC_FL_PUNCH_HOLE;
        let mode = kind | if keep { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
        let done = OpenOptions::new().write(true).open(at).and_then(|f| {
            // SAFETY: the descriptor is open; no pointers.
            match unsafe { libc::fallocate(f.as_raw_fd(), mode, offset as i64, length as i64) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        self.expect(format!("fallocate {what} mode {mode:#x} {offset} +{length}"), done, 0);
        let data = self.model.data(id);
        let end = offset + length;
        if kind != 0 && offset < data.len() {
            let stop = end.min(data.len());
            data[offset..stop].fill(0);
        }
        if !keep && end > data.len() {
            data.resize(end, 0);
        }
    }

    /// A store through a shared mapping, without msync half of the time.
    fn map_write(&mut self, what: &str, at: &PathBuf, id: Id) {
        let size = self.model.data(id).len();
        if size == 0 {
            return;
        }
        let offset = self.random.random_range(0..size);
        let data = self.bytes((size - offset).min(9000));
        let sync = self.random.random_bool(0.5);
        let done = OpenOptions::new().read(true).write(true).open(at).and_then(|f| {
            // SAFETY: a fresh shared mapping of the open file, `size` bytes, which nobody truncates
            // meanwhile; it is unmapped before it goes out of scope.
            unsafe {
                let map = libc::mmap(
                    std::ptr::null_mut(),
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    f.as_raw_fd(),
                    0,
                );
                if map == libc::MAP_FAILED {
                    return Err(io::Error::last_os_error());
                }
                std::ptr::copy_nonoverlapping(data.as_ptr(), map.cast::<u8>().add(offset), data.len());
                if sync {
                    libc::msync(map, size, libc::MS_SYNC);
                }
                libc::munmap(map, size);
            }
            Ok(())
        });
        self.expect(format!("mmap store {what} {offset} +{} sync {sync}", data.len()), done, 0);
        put(self.model.data(id), offset, &data);
    }

    fn xattr(&mut self, turn: &Turn) {
        let usable: Vec<Place> = turn
            .places
            .iter()
            .filter(|p| !matches!(self.model.nodes[p.id].content, Content::Symlink(_)))
            .cloned()
            .collect();
        let Some(place) = usable.choose(&mut self.random).cloned() else { return };
        let name = format!("user.{}", ["a", "b", "c"].choose(&mut self.random).unwrap());
        let at = turn.at(&place.path);
        let what = format!("{} {} {name}", turn.mount.file_name().unwrap().to_str().unwrap(), place.path);
        if self.random.random_bool(0.5) {
            let size = *[0, 10, 900, 1200, 5000, 60_000].choose(&mut self.random).unwrap();
            let value: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
            self.expect(format!("setxattr {what} {size}"), crate::rig_xattr::set(&at, &name, &value), 0);
            self.model.nodes[place.id].xattrs.insert(name, value);
            return;
        }
        let wanted = self.model.nodes[place.id].xattrs.get(&name).cloned();
        let errno = if wanted.is_some() { 0 } else { libc::ENODATA };
        let found = self.expect(format!("getxattr {what}"), crate::rig_xattr::get(&at, &name), errno);
        if found != wanted {
            self.fail(format!("{what}: another value"));
        }
    }

    fn look(&mut self, turn: &Turn, what: String) {
        if self.random.random_bool(0.5) {
            let dir = turn.path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
            return self.compare_listing(&turn.at(&dir), turn.dir, &what);
        }
        let errno = if turn.there.is_some() { 0 } else { libc::ENOENT };
        let found = self.expect(format!("stat {what}"), fs::symlink_metadata(turn.at(&turn.path)), errno);
        let (Some(found), Some(id)) = (found, turn.there) else { return };
        let size = if self.model.is_file(id) { self.model.data(id).len() as u64 } else { found.len() };
        let node = &self.model.nodes[id];
        let wanted = (self.model.links(id), size, node.mode);
        let found = (found.nlink(), found.len(), found.permissions().mode() & 0o7777);
        if found != wanted {
            self.fail(format!("{what}: links, size, mode {found:?}, expected {wanted:?}"));
        }
    }

    fn compare_listing(&mut self, at: &PathBuf, dir: Id, what: &str) {
        let listed = fs::read_dir(at).and_then(|entries| {
            entries.map(|e| e.map(|e| e.file_name().into_string().unwrap())).collect::<io::Result<Vec<_>>>()
        });
        let mut found = self.expect(format!("list {what}"), listed, 0).unwrap();
        found.sort();
        let wanted: Vec<String> = self.model.children(dir).keys().cloned().collect();
        if found != wanted {
            self.fail(format!("listing of {}: {found:?}, expected {wanted:?}", at.display()));
        }
    }

    fn compare_all(&mut self) {
        for mount in self.mounts.clone() {
            for (path, dir) in self.model.directories() {
                self.compare_listing(&mount.join(path.trim_start_matches('/')), dir, "finally");
            }
            for place in self.model.places() {
                let at = mount.join(place.path.trim_start_matches('/'));
                let same = match &self.model.nodes[place.id].content {
                    Content::File(data) => fs::read(&at).is_ok_and(|found| found == *data),
                    Content::Symlink(target) => {
                        fs::read_link(&at).is_ok_and(|t| t.as_os_str() == target.as_str())
                    }
                    Content::Directory(_) => true,
                };
                if !same {
                    self.fail(format!("finally {} differs", at.display()));
                }
            }
        }
    }
}

/// Overwrite, growing by zeros as far as it takes.
fn put(file: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if file.len() < offset + data.len() {
        file.resize(offset + data.len(), 0);
    }
    file[offset..offset + data.len()].copy_from_slice(data);
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Random operations on hosts 0 to 2, all compared with the model; then all of it again after a
/// remount, and fsck.
fn random_operations(cluster: &Cluster, operations: u64) {
    let seed = number("SHOAL_SEED", 20261121);
    println!("SHOAL_SEED={seed} SHOAL_OPS={operations}");
    let mounts = (0..3).map(|host| cluster.at(host)).collect();
    let random = StdRng::seed_from_u64(seed);
    let mut tester = Tester { random, model: Model::new(), mounts, log: VecDeque::new(), seed };
    for _ in 0..operations {
        tester.step();
    }
    tester.compare_all();
    (0..3).for_each(|host| cluster.umount(host));
    (0..3).for_each(|host| cluster.mount(host));
    tester.compare_all();
    (0..3).for_each(|host| cluster.umount(host));
}

#[test]
fn random_operations_on_three_hosts() {
    let operations = number("SHOAL_OPS", 4000);
    let cluster = Cluster::new("1G", 3, Duration::from_secs(120 + operations / 20));
    random_operations(&cluster, operations);
    cluster.check();
}

#[test]
fn random_operations_while_a_fourth_host_comes_and_goes() {
    let operations = number("SHOAL_OPS", 4000) / 2;
    let cluster = Cluster::new("1G", 3, Duration::from_secs(120 + operations / 10));
    let done = AtomicBool::new(false);
    let visits = std::thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            let mut visits = 0;
            while !done.load(Ordering::Acquire) {
                cluster.mount(3);
                // Takes locks from the others, and groups when it writes.
                let at = cluster.at(3);
                let names: Vec<_> = fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()).collect();
                names.iter().for_each(|path| drop(fs::symlink_metadata(path)));
                cluster.umount(3);
                visits += 1;
            }
            visits
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| random_operations(&cluster, operations)));
        done.store(true, Ordering::Release);
        let visits = visitor.join();
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        visits.expect("the visitor came and went")
    });
    println!("{visits} visits");
    assert!(visits > 2, "only {visits} visits: nothing was tested");
    cluster.check();
}
