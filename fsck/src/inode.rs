//! One inode: its attributes, and that every item in its tree is one that it can have.

use crate::finding::{Code, Findings, Place};
use crate::groups::{Groups, Use};
use crate::image::{Image, words};
use crate::tree::{self, Root, Visitor};
use shoal::base::{BlockNo, Generation, InodeNo, LockName};
use shoal::format::block::crc32c;
use shoal::format::extent::Extent;
use shoal::format::inode::{DiskAttr, FLAG_TRUNCATING, FLAGS_OF_PROGRAMS};
use shoal::format::item::{ItemKey, ItemKind, Key};
use shoal::format::value::{BLOB_BYTES_PER_BLOCK, Blob, Content, Dirent, FileKind, Xattr};
use shoal::format::value::{KEYS_PER_HASH, dirent_key, xattr_key};
use shoal::format::{Block, BlockKind};

/// Longest target of a symbolic link.
const SYMLINK_MAX: u64 = 4095;

/// What the checks across inodes need of one. Kept for every inode of the volume.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub ino: InodeNo,
    pub generation: Generation,
    /// Directories: the inode of `..`.
    pub parent: InodeNo,
    pub nlink: u32,
    /// `None` if the mode is none of a file's.
    pub kind: Option<FileKind>,
}

/// A name. Kept for every name of the volume, so without the name itself.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub child: InodeNo,
    pub dir: InodeNo,
    pub generation: Generation,
    /// Key of the entry in the directory.
    pub key: u64,
    pub kind: FileKind,
}

/// What one thread gathers.
#[derive(Default)]
pub struct Gathered {
    pub inodes: Vec<Known>,
    pub links: Vec<Link>,
    pub findings: Findings,
    /// Runs of blocks that were claimed a second time.
    pub twice: Vec<(BlockNo, u64)>,
    /// Bytes in files.
    pub bytes: u64,
}

/// Look through the inode in `block`, which was verified, and add what it tells to `out`.
pub fn check(image: &Image, groups: &Groups, ino: InodeNo, block: &Block, out: &mut Gathered) {
    let attr = block.body_as::<DiskAttr>();
    let known = Known {
        ino,
        generation: Generation(attr.generation.get()),
        parent: InodeNo(attr.parent.get()),
        nlink: attr.nlink.get(),
        kind: FileKind::from_mode(attr.mode.get()),
    };
    out.inodes.push(known);
    check_attr(attr, known, groups, out);
    let root = Root { ino, cover: LockName::Inode(ino), block };
    let mut content = ContentCheck::new(image, groups, root, known, out);
    tree::walk(image, root, &mut content);
    content.finish(attr);
}

fn check_attr(attr: &DiskAttr, known: Known, groups: &Groups, out: &mut Gathered) {
    let mut fault = |what: String| out.findings.add(Code::InodeDamaged, Place::Inode(known.ino), what);
    if known.kind.is_none() {
        fault(format!("its mode is {:o}", attr.mode.get()));
    }
    for (what, size) in [("size", attr.size.get()), ("truncation target", attr.truncate_target.get())] {
        if size > i64::MAX as u64 {
            fault(format!("its {what} is {size}"));
        }
    }
    if attr.flags.get() & !(FLAG_TRUNCATING | FLAGS_OF_PROGRAMS) != 0 {
        fault(format!("its flags are {:#x}", attr.flags.get()));
    }
    for (what, time) in
        [("atime", attr.atime), ("mtime", attr.mtime), ("ctime", attr.ctime), ("btime", attr.btime)]
    {
        if time.nanos.get() >= 1_000_000_000 {
            fault(format!("its {what} has {} nanoseconds", time.nanos));
        }
    }
    let clock = groups.locate(known.ino.block()).filter(|(g, ..)| g.known).map(|(g, ..)| g.vclock);
    if let Some(clock) = clock.filter(|c| known.generation.0 > *c) {
        let what = format!("its generation is {}, the clock of its group {clock}", known.generation);
        out.findings.add(Code::GroupClock, Place::Inode(known.ino), what);
    }
    out.bytes += if known.kind == Some(FileKind::Regular) { attr.size.get() } else { 0 };
}

/// What the items of an inode add up to.
struct ContentCheck<'a> {
    image: &'a Image,
    groups: &'a Groups,
    root: Root<'a>,
    known: Known,
    out: &'a mut Gathered,
    /// File block behind the last extent.
    extents_end: u64,
    data_blocks: u64,
    inline: Option<usize>,
    symlink: Option<u64>,
    names: u64,
    /// Names under the hash that was last seen.
    same_hash: (u64, Vec<Vec<u8>>),
    whole: bool,
}

impl<'a> ContentCheck<'a> {
    fn new(
        image: &'a Image,
        groups: &'a Groups,
        root: Root<'a>,
        known: Known,
        out: &'a mut Gathered,
    ) -> ContentCheck<'a> {
        ContentCheck {
            image,
            groups,
            root,
            known,
            out,
            extents_end: 0,
            data_blocks: 0,
            inline: None,
            symlink: None,
            names: 0,
            same_hash: (0, Vec::new()),
            whole: true,
        }
    }

    fn fault(&mut self, code: Code, what: String) {
        self.out.findings.add(code, Place::Inode(self.known.ino), what);
    }

    fn claim(&mut self, start: BlockNo, blocks: u64, of: Use, what: &str) -> bool {
        let place = Place::Inode(self.known.ino);
        let claimed = self.groups.claim(start, blocks, of, (place, what), &mut self.out.findings);
        let alone = claimed.twice.is_empty();
        self.out.twice.extend(claimed.twice);
        alone
    }

    fn may_have(&self, item: ItemKind) -> bool {
        match item {
            ItemKind::Xattr => true,
            ItemKind::Symlink => self.known.kind == Some(FileKind::Symlink),
            ItemKind::Inline | ItemKind::Extent => self.known.kind == Some(FileKind::Regular),
            ItemKind::Dirent => self.known.kind == Some(FileKind::Directory),
            ItemKind::Orphan | ItemKind::DeferredFree => false,
        }
    }

    fn extent(&mut self, id: u64, value: &[u8]) {
        let extent = match Extent::decode(value) {
            Ok(extent) => extent,
            Err(fault) => return self.fault(Code::ItemWrong, format!("extent {id}: {fault}")),
        };
        if extent.logical != id {
            let what = format!("the extent of file block {} is filed under {id}", extent.logical);
            self.fault(Code::ItemWrong, what);
        }
        if extent.shared {
            self.fault(Code::ItemWrong, format!("extent {id} is shared, which this release never makes"));
        }
        if extent.logical < self.extents_end {
            let what = format!("file block {} is in two extents", extent.logical);
            self.fault(Code::ExtentsOverlap, what);
        }
        self.extents_end = self.extents_end.max(extent.end());
        self.data_blocks += extent.blocks;
        self.claim(extent.physical, extent.blocks, Use::Data, "data");
    }

    fn dirent(&mut self, id: u64, value: &[u8]) {
        let entry = match Dirent::decode(id, value) {
            Ok(entry) => entry,
            Err(fault) => return self.fault(Code::ItemWrong, fault),
        };
        let name = entry.name.escape_ascii().to_string();
        self.is_filed_right(id, dirent_key(&self.image.superblock.hash_seed, &entry.name), || {
            (
                Code::DirentMisfiled,
                format!("the entry \"{name}\" is filed under a key that is not its name's"),
            )
        });
        if self.is_second(id, &entry.name) {
            self.fault(Code::DirentTwice, format!("the name \"{name}\" is there twice"));
        }
        self.names += 1;
        self.out.links.push(Link {
            child: entry.ino,
            dir: self.known.ino,
            generation: entry.generation,
            key: id,
            kind: entry.kind,
        });
    }

    fn is_filed_right(&mut self, id: u64, first: u64, fault: impl FnOnce() -> (Code, String)) {
        if !(first..first + KEYS_PER_HASH).contains(&id) {
            let (code, what) = fault();
            self.fault(code, what);
        }
    }

    /// Was the same name seen under this hash?
    fn is_second(&mut self, id: u64, name: &[u8]) -> bool {
        let hash = id / KEYS_PER_HASH;
        if self.same_hash.0 != hash || self.same_hash.1.is_empty() {
            self.same_hash = (hash, vec![name.to_vec()]);
            return false;
        }
        let again = self.same_hash.1.iter().any(|n| n == name);
        self.same_hash.1.push(name.to_vec());
        again
    }

    fn xattr(&mut self, id: u64, value: &[u8]) {
        let xattr = match Xattr::decode(value) {
            Ok(xattr) => xattr,
            Err(fault) => return self.fault(Code::ItemWrong, fault),
        };
        let name = xattr.name.escape_ascii().to_string();
        self.is_filed_right(id, xattr_key(&xattr.name), || {
            (Code::XattrWrong, format!("the attribute {name} is filed under a key that is not its name's"))
        });
        if self.is_second(id, &xattr.name) {
            self.fault(Code::XattrWrong, format!("the attribute {name} is there twice"));
        }
        if let Content::Long(blob) = &xattr.content {
            self.blob(blob, &format!("the value of {name}"));
        }
    }

    fn target(&mut self, id: u64, value: &[u8]) {
        let content = Content::decode_symlink(value).filter(|_| id == 0);
        self.symlink = Some(match content {
            None => return self.fault(Code::ItemWrong, "a malformed target".into()),
            Some(Content::Here(target)) => target.len() as u64,
            Some(Content::Long(blob)) => {
                self.blob(&blob, "its target");
                blob.length.into()
            }
        });
    }

    fn blob(&mut self, blob: &Blob, what: &str) {
        let mut value = Vec::with_capacity(blob.length as usize);
        for block in &blob.blocks {
            if !self.claim(*block, 1, Use::Metadata, what) {
                return;
            }
            let (owner, cover) = (self.root.ino.0, self.root.cover);
            match self.image.read_verified(*block, BlockKind::Blob, owner, cover) {
                Ok(b) => {
                    let n = BLOB_BYTES_PER_BLOCK.min(blob.length as usize - value.len());
                    value.extend_from_slice(&b.body()[..n]);
                }
                Err(e) => return self.fault(Code::BlobDamaged, format!("{what}: {}", words(&e))),
            }
        }
        if crc32c(&value) != blob.crc {
            self.fault(Code::BlobDamaged, format!("{what} has the wrong checksum"));
        }
    }

    /// What the sums must be.
    fn finish(mut self, attr: &DiskAttr) {
        // What lies in pages that could not be read is in no sum.
        if !self.whole {
            return;
        }
        let (size, blocks) = (attr.size.get(), attr.blocks.get());
        if blocks != self.data_blocks {
            let what = format!("it counts {blocks} data blocks and has {}", self.data_blocks);
            self.fault(Code::BlocksWrong, what);
        }
        if let Some(inline) = self.inline {
            if self.data_blocks > 0 {
                self.fault(Code::InlineWrong, "it has both data in the inode and extents".into());
            }
            if inline as u64 > size {
                self.fault(Code::InlineWrong, format!("{inline} bytes lie in an inode of size {size}"));
            }
        }
        if self.known.kind == Some(FileKind::Symlink) {
            match self.symlink {
                Some(n) if n == size && (1..=SYMLINK_MAX).contains(&n) => {}
                Some(n) => {
                    let what = format!("its target has {n} bytes, its size is {size}");
                    self.fault(Code::SymlinkWrong, what);
                }
                // An orphan is freed in steps, and this is the first.
                None if self.known.nlink == 0 => {}
                None => self.fault(Code::SymlinkWrong, "it has no target".into()),
            }
        }
        if self.known.nlink == 0 && self.names > 0 {
            let what = format!("a removed directory has {} names", self.names);
            self.fault(Code::LinkCount, what);
        }
    }
}

impl Visitor for ContentCheck<'_> {
    fn item(&mut self, key: ItemKey, value: &[u8]) {
        if !self.may_have(key.kind) {
            let what = format!("an item of kind {:?} in an inode of kind {:?}", key.kind, self.known.kind);
            self.fault(Code::ItemWrong, what);
        }
        match key.kind {
            ItemKind::Xattr => self.xattr(key.id, value),
            ItemKind::Symlink => self.target(key.id, value),
            ItemKind::Inline => self.inline = Some(value.len()),
            ItemKind::Extent => self.extent(key.id, value),
            ItemKind::Dirent => self.dirent(key.id, value),
            ItemKind::Orphan | ItemKind::DeferredFree => {}
        }
    }

    fn page(&mut self, block: BlockNo) -> bool {
        let alone = self.claim(block, 1, Use::Metadata, "a page of its item tree");
        self.whole &= alone;
        alone
    }

    fn broken(&mut self, what: String) {
        self.whole = false;
        self.fault(Code::TreeDamaged, what);
    }

    fn unknown(&mut self, key: Key) {
        self.fault(Code::ItemWrong, format!("an item of the unknown kind {}", key.kind));
    }
}
