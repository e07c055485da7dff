//! A file system in memory, as far as the random operations need one.

pub mod acl;
pub mod locks;

use acl::Guard;
use locks::Locks;
use std::collections::BTreeMap;

/// Number of a node in the model.
pub type Id = usize;

/// What a node is.
pub enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<String, Id>),
    Symlink(String),
}

/// A file, directory or link.
pub struct Node {
    pub content: Content,
    pub links: u64,
    /// Made without a name, and not given one yet: what has lost its last name gets none any more.
    pub nameless: bool,
    pub guard: Guard,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub locks: Locks,
}

/// All of it; node 0 is the root.
pub struct Model {
    pub nodes: Vec<Node>,
}

/// One name in the tree.
#[derive(Clone)]
pub struct Place {
    pub path: String,
    pub parent: Id,
    pub name: String,
    pub id: Id,
}

impl Model {
    pub fn new() -> Model {
        let mut model = Model { nodes: Vec::new() };
        model.add(Content::Directory(BTreeMap::new()), Guard::of_mode(0o755));
        model
    }

    /// A node with one name, which the caller gives it.
    pub fn add(&mut self, content: Content, guard: Guard) -> Id {
        let (xattrs, locks) = (BTreeMap::new(), Locks::default());
        self.nodes.push(Node { content, links: 1, nameless: false, guard, xattrs, locks });
        self.nodes.len() - 1
    }

    pub fn children(&self, id: Id) -> &BTreeMap<String, Id> {
        match &self.nodes[id].content {
            Content::Directory(children) => children,
            _ => panic!("node {id} is no directory"),
        }
    }

    pub fn children_mut(&mut self, id: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.nodes[id].content {
            Content::Directory(children) => children,
            _ => panic!("node {id} is no directory"),
        }
    }

    pub fn data(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.nodes[id].content {
            Content::File(data) => data,
            _ => panic!("node {id} is no file"),
        }
    }

    pub fn size(&self, id: Id) -> usize {
        match &self.nodes[id].content {
            Content::File(data) => data.len(),
            _ => panic!("node {id} is no file"),
        }
    }

    /// Overwrite, growing by zeros as far as it takes.
    pub fn put(&mut self, id: Id, offset: usize, data: &[u8]) {
        let file = self.data(id);
        if file.len() < offset + data.len() {
            file.resize(offset + data.len(), 0);
        }
        file[offset..offset + data.len()].copy_from_slice(data);
    }

    /// What a read gets.
    pub fn get(&self, id: Id, offset: usize, length: usize) -> Vec<u8> {
        match &self.nodes[id].content {
            Content::File(data) => data.iter().skip(offset).take(length).copied().collect(),
            _ => panic!("node {id} is no file"),
        }
    }

    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[id].content, Content::Directory(_))
    }

    pub fn is_file(&self, id: Id) -> bool {
        matches!(self.nodes[id].content, Content::File(_))
    }

    /// Every name below the root.
    pub fn places(&self) -> Vec<Place> {
        let mut found = Vec::new();
        let mut todo = vec![(0, String::new())];
        while let Some((parent, at)) = todo.pop() {
            for (name, id) in self.children(parent) {
                let path = format!("{at}/{name}");
                if self.is_dir(*id) {
                    todo.push((*id, path.clone()));
                }
                found.push(Place { path, parent, name: name.clone(), id: *id });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Every directory: path and node.
    pub fn directories(&self) -> Vec<(String, Id)> {
        let mut all = vec![(String::new(), 0)];
        all.extend(self.places().into_iter().filter(|p| self.is_dir(p.id)).map(|p| (p.path, p.id)));
        all
    }

    /// What `st_nlink` must be.
    pub fn links(&self, id: Id) -> u64 {
        match &self.nodes[id].content {
            Content::Directory(c) => 2 + c.values().filter(|i| self.is_dir(**i)).count() as u64,
            _ => self.nodes[id].links,
        }
    }
}
