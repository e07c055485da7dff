//! What a volume holds, in one form for three sources: a disk image read with the library alone, a
//! mounted host, the model.

use crate::common::simdisk::SimDisk;
use crate::host::Host;
use crate::model::{Content, Id, Model, Node};
use shoal::base::{InodeNo, SlotId};
use shoal::dir::Directory;
use shoal::file::{FileState, PagePool};
use shoal::format::superblock::{self, Superblock};
use shoal::format::volume;
use shoal::inode::{Attr, FileKind, Tree};
use shoal::journal::{DeviceSink, replay};
use shoal::store::Store;
use shoal::xattr;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: char,
    pub links: u32,
    pub mode: u32,
    /// Of a symbolic link.
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same inode.
    pub same: String,
}

/// All paths.
pub type Names = BTreeMap<String, Entry>;

/// A whole tree.
#[derive(Debug, Default)]
pub struct Found {
    pub names: Names,
    /// Content of files, by their first path.
    pub data: BTreeMap<String, Vec<u8>>,
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::Regular => 'f',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        _ => '?',
    }
}

/// The model's paths, and whose node each is.
pub fn of_model(model: &Model) -> (Names, BTreeMap<String, Id>) {
    let mut first: BTreeMap<Id, String> = BTreeMap::new();
    let (mut names, mut ids) = (Names::new(), BTreeMap::new());
    for (path, id) in model.paths() {
        let same = first.entry(id).or_insert_with(|| path.clone()).clone();
        ids.insert(path.clone(), id);
        names.insert(path, of_node(&model.nodes[&id], same));
    }
    (names, ids)
}

/// A node of a model, whose first name is `same`.
pub fn of_node(node: &Node, same: String) -> Entry {
    let (kind, target) = match &node.content {
        Content::File(_) => ('f', Vec::new()),
        Content::Directory(_) => ('d', Vec::new()),
        Content::Symlink(target) => ('l', target.clone()),
    };
    Entry { kind, links: node.links, mode: node.mode, target, xattrs: node.xattrs.clone(), same }
}

/// A volume read with the library, its journals replayed.
pub struct Image {
    pub store: Arc<Store>,
    superblock: Superblock,
    pool: Arc<PagePool>,
}

/// Check everything, without a write.
///
/// # Errors
/// What fsck finds.
pub fn fsck(disk: &Arc<SimDisk>) -> Result<(), String> {
    let options = shoal_fsck::Options { force: true };
    let report = shoal_fsck::check(disk.clone(), &options, &shoal_fsck::Silent).map_err(|e| e.to_string())?;
    if report.is_sound() {
        return Ok(());
    }
    let found: Vec<String> = report.findings.iter().take(8).map(|f| format!("{f:?}")).collect();
    Err(format!("fsck: {:?} {:?} {found:#?}", report.counts, report.stopped))
}

impl Image {
    /// Load and replay.
    pub fn open(disk: &Arc<SimDisk>) -> Result<Image, String> {
        let (superblock, _) = superblock::load(&**disk).map_err(|e| e.to_string())?;
        let volume = volume::load(&**disk, &superblock).map_err(|e| e.to_string())?;
        let store = Store::new(disk.clone(), superblock.format_id, superblock.geometry, 32 << 20);
        for (slot, extents) in volume.slots.iter().enumerate() {
            let mut sink = DeviceSink::new(&store, Duration::ZERO);
            let extent = (extents.journal_start, extents.journal_blocks);
            replay(&store, extent, SlotId(slot as u16), &mut sink).map_err(|e| format!("replay: {e}"))?;
        }
        Ok(Image { store, superblock, pool: PagePool::new(1 << 20) })
    }

    /// Everything below the root.
    pub fn walk(&self) -> Result<Found, String> {
        let mut found = Found::default();
        let mut first: BTreeMap<InodeNo, String> = BTreeMap::new();
        let mut todo = vec![(String::new(), InodeNo(self.superblock.root_inode))];
        while let Some((path, ino)) = todo.pop() {
            let named = |e: shoal::base::Error| format!("{path} (inode {ino}): {e}");
            let tree = Tree::of(ino);
            let attr = tree.read_attr(&*self.store).map_err(named)?;
            let same = first.entry(ino).or_insert_with(|| path.clone()).clone();
            let target = match attr.kind {
                FileKind::Symlink => tree.read_symlink(&*self.store).map_err(named)?,
                _ => Vec::new(),
            };
            let entry = Entry {
                kind: letter(attr.kind),
                links: attr.nlink,
                mode: attr.mode,
                target,
                xattrs: self.xattrs(&tree).map_err(named)?,
                same: same.clone(),
            };
            found.names.insert(path.clone(), entry);
            if attr.kind == FileKind::Directory {
                for (name, child, generation) in self.children(ino).map_err(named)? {
                    let known = Tree::of(child).read_attr(&*self.store).map_err(named)?;
                    if known.generation != generation {
                        return Err(format!("{path}/{name} names another life of inode {child}"));
                    }
                    todo.push((format!("{path}/{name}"), child));
                }
            } else if attr.kind == FileKind::Regular && same == path {
                found.data.insert(path.clone(), self.data(tree, &attr).map_err(named)?);
            }
        }
        normalise(&mut found);
        Ok(found)
    }

    fn children(&self, ino: InodeNo) -> shoal::base::Result<Vec<(String, InodeNo, shoal::base::Generation)>> {
        let dir = Directory { tree: Tree::of(ino), seed: &self.superblock.hash_seed };
        let mut all = Vec::new();
        dir.list(&*self.store, 0, &mut |e| {
            all.push((String::from_utf8_lossy(&e.name).into_owned(), e.ino, e.generation));
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    fn xattrs(&self, tree: &Tree) -> shoal::base::Result<BTreeMap<String, Vec<u8>>> {
        let names = xattr::list(tree, &*self.store)?;
        let names = names.split(|b| *b == 0).filter(|n| !n.is_empty());
        names
            .map(|n| Ok((String::from_utf8_lossy(n).into_owned(), xattr::get(tree, &*self.store, n)?)))
            .collect()
    }

    fn data(&self, tree: Tree, attr: &Attr) -> shoal::base::Result<Vec<u8>> {
        let geometry = self.superblock.geometry;
        let state = FileState::load(&*self.store, tree, &geometry, self.pool.clone(), attr.size)?;
        state
            .plan_read(&*self.store, 0, attr.size as usize)?
            .read(&self.pool, &*self.store)
            .map(|b| b.to_vec())
    }
}

/// Which of an inode's paths came first depends on the walk: let it be the least.
fn normalise(found: &mut Found) {
    let mut least: BTreeMap<String, String> = BTreeMap::new();
    for (path, entry) in &found.names {
        let known = least.entry(entry.same.clone()).or_insert_with(|| path.clone());
        if path < known {
            *known = path.clone();
        }
    }
    found.names.values_mut().for_each(|e| e.same = least[&e.same].clone());
    let data = std::mem::take(&mut found.data);
    found.data = data.into_iter().map(|(path, bytes)| (least[&path].clone(), bytes)).collect();
}

/// What a mounted host shows.
pub fn of_host(host: &Host) -> Result<Found, String> {
    let mut found = Found::default();
    let mut first: BTreeMap<InodeNo, String> = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(path) = todo.pop() {
        let named = |e: shoal::base::Error| format!("{path}: {e}");
        let attr = host.stat(&path).map_err(named)?;
        let same = first.entry(attr.ino).or_insert_with(|| path.clone()).clone();
        let mut xattrs = BTreeMap::new();
        let listed = host.list_xattrs(&path).map_err(named)?;
        for name in listed.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let name = String::from_utf8_lossy(name).into_owned();
            let value = host.get_xattr(&path, &name).map_err(named)?;
            xattrs.insert(name, value);
        }
        let mut target = Vec::new();
        match attr.kind {
            FileKind::Directory => {
                let names = host.list(&path).map_err(named)?;
                todo.extend(names.into_iter().map(|n| format!("{path}/{n}")));
            }
            FileKind::Symlink => target = host.readlink(&path).map_err(named)?,
            _ if same == path => {
                let data = host.read(&path).map_err(named)?;
                if data.len() as u64 != attr.size {
                    return Err(format!("{path}: {} bytes read of {}", data.len(), attr.size));
                }
                found.data.insert(path.clone(), data);
            }
            _ => {}
        }
        let kind = letter(attr.kind);
        found.names.insert(path, Entry { kind, links: attr.nlink, mode: attr.mode, target, xattrs, same });
    }
    normalise(&mut found);
    Ok(found)
}

/// The first differences of two sets of names, for people.
pub fn difference(found: &Names, wanted: &Names) -> Vec<String> {
    let brief = |e: &Entry| {
        let xattrs: Vec<_> = e.xattrs.iter().map(|(n, v)| format!("{n}[{}]", v.len())).collect();
        format!("{}{:o} x{} {:?} same {}", e.kind, e.mode, e.links, xattrs, e.same)
    };
    let mut lines = Vec::new();
    for (path, entry) in found {
        match wanted.get(path) {
            None => lines.push(format!("{path}: found {}, expected nothing", brief(entry))),
            Some(w) if w != entry => {
                lines.push(format!("{path}: found {}, expected {}", brief(entry), brief(w)));
            }
            _ => {}
        }
    }
    let missing = wanted.keys().filter(|p| !found.contains_key(*p));
    lines.extend(missing.map(|p| format!("{p}: expected, not found")));
    lines
}
