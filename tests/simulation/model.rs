//! What a file system should hold: operations on it, and its state after each.
//!
//! States share what did not change, so that one per operation can be kept.

use crate::host::How;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of a node; 0 is the root. Never used again.
pub type Id = usize;

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    File(Arc<Vec<u8>>),
    Directory(BTreeMap<String, Id>),
    Symlink(Vec<u8>),
}

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub content: Content,
    pub links: u32,
    pub mode: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create(String),
    Mkdir(String),
    Symlink {
        path: String,
        target: Vec<u8>,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink(String),
    Rmdir(String),
    Rename {
        from: String,
        to: String,
        exchange: bool,
    },
    Write {
        path: String,
        offset: u64,
        length: usize,
        how: How,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Fallocate {
        path: String,
        offset: u64,
        length: u64,
        mode: i32,
    },
    Chmod {
        path: String,
        mode: u16,
    },
    SetXattr {
        path: String,
        name: String,
        length: usize,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
    Fsync(String),
    /// Nothing, for so many milliseconds: the background threads have their turn.
    Rest(u64),
    /// Nothing that shows: the device is told of what is free.
    Trim,
}

/// Why the model refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Missing,
    Taken,
    WrongKind,
    NotEmpty,
    IntoItself,
    /// The volume, not the model.
    Full,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: BTreeMap<Id, Arc<Node>>,
}

/// What a write of this number puts at byte `at`: recognisable, and like no other write's.
pub fn pattern(write: usize, at: u64) -> u8 {
    let word =
        (write as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at / 8).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    // Never zero: that is what holes read as.
    (word >> (8 * (at % 8))) as u8 | 1
}

/// The bytes of a write.
pub fn bytes(write: usize, offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64).map(|at| pattern(write, at)).collect()
}

impl Model {
    pub fn new() -> Model {
        let root = Node {
            content: Content::Directory(BTreeMap::new()),
            links: 2,
            mode: 0o755,
            xattrs: BTreeMap::new(),
        };
        Model { nodes: BTreeMap::from([(0, Arc::new(root))]) }
    }

    pub fn find(&self, path: &str) -> Result<Id, Refusal> {
        let mut at = 0;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = *self.children(at)?.get(name).ok_or(Refusal::Missing)?;
        }
        Ok(at)
    }

    pub fn children(&self, id: Id) -> Result<&BTreeMap<String, Id>, Refusal> {
        match &self.nodes[&id].content {
            Content::Directory(children) => Ok(children),
            _ => Err(Refusal::WrongKind),
        }
    }

    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[&id].content, Content::Directory(_))
    }

    pub fn data(&self, id: Id) -> Option<&Arc<Vec<u8>>> {
        match &self.nodes[&id].content {
            Content::File(data) => Some(data),
            _ => None,
        }
    }

    fn node(&mut self, id: Id) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&id).expect("found before"))
    }

    fn names(&mut self, id: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.node(id).content {
            Content::Directory(children) => children,
            _ => panic!("node {id} is no directory"),
        }
    }

    /// Directory and name of a path.
    fn place(&self, path: &str) -> Result<(Id, String), Refusal> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.find(dir)?;
        self.children(dir)?;
        Ok((dir, name.to_owned()))
    }

    fn add(&mut self, path: &str, id: Id, content: Content, mode: u32) -> Result<Id, Refusal> {
        let (dir, name) = self.place(path)?;
        if self.children(dir)?.contains_key(&name) {
            return Err(Refusal::Taken);
        }
        let is_dir = matches!(content, Content::Directory(_));
        let links = if is_dir { 2 } else { 1 };
        self.nodes.insert(id, Arc::new(Node { content, links, mode, xattrs: BTreeMap::new() }));
        self.names(dir).insert(name, id);
        self.node(dir).links += u32::from(is_dir);
        Ok(id)
    }

    /// One name less for `id`, which was in `dir`.
    fn unname(&mut self, dir: Id, id: Id) {
        if self.is_dir(id) {
            self.node(dir).links -= 1;
            self.nodes.remove(&id);
            return;
        }
        self.node(id).links -= 1;
        if self.nodes[&id].links == 0 {
            self.nodes.remove(&id);
        }
    }

    /// Do `op`, the operation of number `number` of the whole run. Answers with the nodes touched.
    pub fn apply(&mut self, number: usize, op: &Op) -> Result<Vec<Id>, Refusal> {
        match op {
            Op::Create(path) => {
                let id = self.add(path, number + 1, Content::File(Arc::default()), 0o644)?;
                Ok(vec![self.place(path)?.0, id])
            }
            Op::Mkdir(path) => {
                let id = self.add(path, number + 1, Content::Directory(BTreeMap::new()), 0o755)?;
                Ok(vec![self.place(path)?.0, id])
            }
            Op::Symlink { path, target } => {
                let id = self.add(path, number + 1, Content::Symlink(target.clone()), 0o777)?;
                Ok(vec![self.place(path)?.0, id])
            }
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink(path) | Op::Rmdir(path) => self.remove(path, matches!(op, Op::Rmdir(_))),
            Op::Rename { from, to, exchange } => self.rename(from, to, *exchange),
            Op::Rest(_) | Op::Trim => Ok(vec![]),
            Op::Fsync(path) => Ok(vec![self.find(path)?]),
            Op::Chmod { path, mode } => {
                let id = self.find(path)?;
                self.node(id).mode = u32::from(*mode);
                Ok(vec![id])
            }
            Op::SetXattr { path, name, length } => {
                let id = self.find(path)?;
                self.node(id).xattrs.insert(name.clone(), bytes(number, 0, *length));
                Ok(vec![id])
            }
            Op::RemoveXattr { path, name } => {
                let id = self.find(path)?;
                self.node(id).xattrs.remove(name).ok_or(Refusal::Missing)?;
                Ok(vec![id])
            }
            Op::Write { .. } | Op::Truncate { .. } | Op::Fallocate { .. } => self.change_data(number, op),
        }
    }

    fn link(&mut self, from: &str, to: &str) -> Result<Vec<Id>, Refusal> {
        let id = self.find(from)?;
        let (dir, name) = self.place(to)?;
        if self.is_dir(id) {
            return Err(Refusal::WrongKind);
        }
        if self.children(dir)?.contains_key(&name) {
            return Err(Refusal::Taken);
        }
        self.names(dir).insert(name, id);
        self.node(id).links += 1;
        Ok(vec![dir, id])
    }

    fn remove(&mut self, path: &str, as_dir: bool) -> Result<Vec<Id>, Refusal> {
        let (dir, name) = self.place(path)?;
        let id = self.find(path)?;
        if self.is_dir(id) != as_dir {
            return Err(Refusal::WrongKind);
        }
        if as_dir && !self.children(id)?.is_empty() {
            return Err(Refusal::NotEmpty);
        }
        self.names(dir).remove(&name);
        self.unname(dir, id);
        Ok(vec![dir, id])
    }

    fn rename(&mut self, from: &str, to: &str, exchange: bool) -> Result<Vec<Id>, Refusal> {
        let (moved, there) = (self.find(from)?, self.find(to).ok());
        let ((old_dir, old), (new_dir, new)) = (self.place(from)?, self.place(to)?);
        let below = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        if below(to, from) || (exchange && below(from, to)) {
            return Err(Refusal::IntoItself);
        }
        if there == Some(moved) {
            return Ok(vec![]);
        }
        let mut touched = vec![old_dir, new_dir, moved];
        touched.extend(there);
        if exchange {
            let there = there.ok_or(Refusal::Missing)?;
            self.names(old_dir).insert(old, there);
            self.names(new_dir).insert(new, moved);
            let (a, b) = (u32::from(self.is_dir(moved)), u32::from(self.is_dir(there)));
            self.node(old_dir).links = self.nodes[&old_dir].links + b - a;
            self.node(new_dir).links = self.nodes[&new_dir].links + a - b;
            return Ok(touched);
        }
        if let Some(there) = there {
            if self.is_dir(there) && (below(from, to) || !self.children(there)?.is_empty()) {
                return Err(Refusal::NotEmpty);
            }
            if self.is_dir(there) != self.is_dir(moved) {
                return Err(Refusal::WrongKind);
            }
            self.names(new_dir).remove(&new);
            self.unname(new_dir, there);
        }
        self.names(old_dir).remove(&old);
        self.names(new_dir).insert(new, moved);
        if self.is_dir(moved) {
            self.node(old_dir).links -= 1;
            self.node(new_dir).links += 1;
        }
        Ok(touched)
    }

    fn change_data(&mut self, number: usize, op: &Op) -> Result<Vec<Id>, Refusal> {
        let (Op::Write { path, .. } | Op::Truncate { path, .. } | Op::Fallocate { path, .. }) = op else {
            return Err(Refusal::WrongKind);
        };
        let id = self.find(path)?;
        let Content::File(data) = &mut self.node(id).content else { return Err(Refusal::WrongKind) };
        let data = Arc::make_mut(data);
        match op {
            Op::Write { offset, length, how, .. } => {
                let at = if *how == How::Append { data.len() } else { *offset as usize };
                if data.len() < at + length {
                    data.resize(at + length, 0);
                }
                data[at..at + length].copy_from_slice(&bytes(number, at as u64, *length));
            }
            Op::Truncate { size, .. } => data.resize(*size as usize, 0),
            Op::Fallocate { offset, length, mode, .. } => {
                let end = (offset + length) as usize;
                if mode & !libc::FALLOC_FL_KEEP_SIZE != 0 && (*offset as usize) < data.len() {
                    let stop = end.min(data.len());
                    data[*offset as usize..stop].fill(0);
                }
                if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > data.len() {
                    data.resize(end, 0);
                }
            }
            _ => {}
        }
        Ok(vec![id])
    }

    /// Every path and its node, the root as "".
    pub fn paths(&self) -> Vec<(String, Id)> {
        let mut found = vec![(String::new(), 0)];
        let mut next = 0;
        while let Some((path, id)) = found.get(next).cloned() {
            next += 1;
            if let Ok(children) = self.children(id) {
                found.extend(children.iter().map(|(name, id)| (format!("{path}/{name}"), *id)));
            }
        }
        found.sort();
        found
    }
}
