//! Checks across inodes: every name leads to an inode, every inode has the names it counts, and the
//! root leads to all of them.

use crate::finding::{Code, Findings, Place};
use crate::groups::Groups;
use crate::image::Image;
use crate::inode::{Gathered, Known, Link};
use crate::tree::{self, Root};
use shoal::base::{Generation, InodeNo, LockName};
use shoal::format::BlockKind;
use shoal::format::item::{ItemKey, ItemKind};
use shoal::format::value::{Dirent, FileKind};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// Paths that are looked up for messages; each costs a walk through its directories.
const PATHS_MAX: u32 = 200;
/// Longest path that is followed upwards.
const DEPTH_MAX: usize = 256;

/// All inodes and names of the volume.
pub struct Names<'a> {
    image: &'a Image,
    groups: &'a Groups,
    /// Every group could be read: what was not seen is not there.
    complete: bool,
    /// By number.
    inodes: &'a [Known],
    /// By child.
    links: &'a [Link],
    root: InodeNo,
    paths_left: Cell<u32>,
}

/// Check all names. `orphans`: inodes that some slot's list names.
pub fn check(
    image: &Image,
    groups: &Groups,
    all: &Gathered,
    orphans: &BTreeSet<(InodeNo, Generation)>,
    findings: &mut Findings,
) {
    let root = InodeNo(image.superblock.root_inode);
    let names = Names {
        image,
        groups,
        complete: groups.all.iter().all(|g| g.known),
        inodes: &all.inodes,
        links: &all.links,
        root,
        paths_left: Cell::new(PATHS_MAX),
    };
    names.check_root(findings);
    for link in names.links {
        names.check_link(link, findings);
    }
    let subdirectories = names.subdirectories();
    let reached = names.reached();
    for inode in names.inodes {
        names.check_inode(inode, &subdirectories, &reached, orphans, findings);
    }
}

impl Names<'_> {
    fn find(&self, ino: InodeNo) -> Option<&Known> {
        self.inodes.binary_search_by_key(&ino, |i| i.ino).ok().map(|at| &self.inodes[at])
    }

    /// The names of an inode.
    fn links_to(&self, ino: InodeNo) -> &[Link] {
        let from = self.links.partition_point(|l| l.child < ino);
        let to = self.links.partition_point(|l| l.child <= ino);
        &self.links[from..to]
    }

    /// Does the inode lie in a group that could not be read?
    fn is_unknown(&self, ino: InodeNo) -> bool {
        self.groups.locate(ino.block()).is_some_and(|(group, ..)| !group.known)
    }

    fn is_directory(&self, ino: InodeNo) -> bool {
        self.find(ino).is_some_and(|i| i.kind == Some(FileKind::Directory))
    }

    fn check_root(&self, findings: &mut Findings) {
        let fault = match self.find(self.root) {
            None if self.is_unknown(self.root) => return,
            None => "there is no valid inode",
            Some(root) if root.kind != Some(FileKind::Directory) => "it is no directory",
            Some(root) if root.parent != self.root => "its '..' is not itself",
            Some(_) if !self.links_to(self.root).is_empty() => "it has a name",
            Some(_) => return,
        };
        findings.add(Code::RootDamaged, Place::Inode(self.root), format!("the root directory: {fault}"));
    }

    fn check_link(&self, link: &Link, findings: &mut Findings) {
        let place = Place::Inode(link.dir);
        let Some(child) = self.find(link.child) else {
            if self.is_unknown(link.child) {
                return;
            }
            let what = format!("{} names inode {}, which is none", self.path(link), link.child);
            return findings.add(Code::DirentDangling, place, what);
        };
        if child.generation != link.generation {
            let what = format!(
                "{} names generation {} of inode {}, which is of generation {}",
                self.path(link),
                link.generation,
                link.child,
                child.generation
            );
            findings.add(Code::DirentDangling, place, what);
        } else if child.kind.is_some_and(|kind| kind != link.kind) {
            let what = format!(
                "{} is said to be {:?}, inode {} is {:?}",
                self.path(link),
                link.kind,
                link.child,
                child.kind
            );
            findings.add(Code::DirentKind, place, what);
        }
    }

    /// Directories in each directory.
    fn subdirectories(&self) -> BTreeMap<InodeNo, u32> {
        let mut counts = BTreeMap::new();
        for link in self.links.iter().filter(|l| self.is_directory(l.child)) {
            *counts.entry(link.dir).or_default() += 1;
        }
        counts
    }

    /// Directories that the root leads to.
    fn reached(&self) -> BTreeSet<InodeNo> {
        let mut below: BTreeMap<InodeNo, Vec<InodeNo>> = BTreeMap::new();
        for link in self.links.iter().filter(|l| self.is_directory(l.child)) {
            below.entry(link.dir).or_default().push(link.child);
        }
        let mut reached = BTreeSet::from([self.root]);
        let mut open = vec![self.root];
        while let Some(dir) = open.pop() {
            for child in below.get(&dir).into_iter().flatten() {
                if reached.insert(*child) {
                    open.push(*child);
                }
            }
        }
        reached
    }

    fn check_inode(
        &self,
        inode: &Known,
        subdirectories: &BTreeMap<InodeNo, u32>,
        reached: &BTreeSet<InodeNo>,
        orphans: &BTreeSet<(InodeNo, Generation)>,
        findings: &mut Findings,
    ) {
        let (ino, place) = (inode.ino, Place::Inode(inode.ino));
        let links = self.links_to(ino);
        let names = links.len() as u64;
        let directory = inode.kind == Some(FileKind::Directory);
        if inode.nlink == 0 && names == 0 {
            if !orphans.contains(&(ino, inode.generation)) {
                findings.add(Code::OrphanUnlisted, place, "it has no links, and no slot will free it");
            }
            return;
        }
        // Names and subdirectories in a group that could not be read are not in the sums.
        if !self.complete {
            return;
        }
        if names == 0 && ino != self.root {
            let what = format!("it counts {} links, but has no name", inode.nlink);
            return findings.add(Code::Unreachable, place, what);
        }
        let expected = match directory {
            true => 2 + u64::from(subdirectories.get(&ino).copied().unwrap_or(0)),
            false => names,
        };
        if u64::from(inode.nlink) != expected {
            let name = links.first().map_or_else(|| "the root directory".into(), |l| self.path(l));
            let what = format!("{name} counts {} links, {expected} are right", inode.nlink);
            findings.add(Code::LinkCount, place, what);
        }
        if directory && ino != self.root {
            self.check_directory(inode, links, reached, findings);
        }
    }

    fn check_directory(
        &self,
        inode: &Known,
        links: &[Link],
        reached: &BTreeSet<InodeNo>,
        findings: &mut Findings,
    ) {
        let place = Place::Inode(inode.ino);
        if let [first, second, ..] = links {
            let what = format!("{} and {} are one directory", self.path(first), self.path(second));
            findings.add(Code::DirectoryLinks, place, what);
        }
        if links.iter().all(|l| l.dir != inode.parent) {
            let what = format!("'..' of {} is inode {}", self.path(&links[0]), inode.parent);
            findings.add(Code::DirectoryParent, place, what);
        }
        if !reached.contains(&inode.ino) {
            findings.add(Code::Unreachable, place, "the root does not lead to this directory");
        }
    }

    /// The path of a name, for a message.
    fn path(&self, link: &Link) -> String {
        let plain = || format!("an entry of directory {}", link.dir);
        if self.paths_left.get() == 0 {
            return plain();
        }
        self.paths_left.set(self.paths_left.get() - 1);
        let mut parts = Vec::new();
        let mut passed = BTreeSet::new();
        let mut at = *link;
        // A circle has no beginning.
        while parts.len() < DEPTH_MAX && passed.insert(at.dir) {
            let Some(name) = self.name(&at) else { return plain() };
            parts.push(name);
            if at.dir == self.root {
                parts.reverse();
                return format!("/{}", parts.join("/"));
            }
            match self.links_to(at.dir) {
                [above, ..] => at = *above,
                [] => break,
            }
        }
        parts.reverse();
        format!("\"{}\" of directory {}", parts.join("/"), at.dir)
    }

    fn name(&self, link: &Link) -> Option<String> {
        let cover = LockName::Inode(link.dir);
        let block = self.image.read_verified(link.dir.block(), BlockKind::Inode, link.dir.0, cover).ok()?;
        let key = ItemKey::new(ItemKind::Dirent, link.key);
        let value = tree::find(self.image, Root { ino: link.dir, cover, block: &block }, key)?;
        Some(Dirent::decode(link.key, &value).ok()?.name.escape_ascii().to_string())
    }
}
