//! The values of items, all but the extent's (`extent.rs`): directory entries, extended attributes,
//! symbolic links, descriptors of long values, orphans, deferred frees. And the hashes that file
//! names and attribute names under keys.
//!
//! Decoding checks all that can be checked without looking elsewhere.

use crate::base::{BLOCK_SIZE, BlockNo, Generation, InodeNo, Version};
use crate::format::block::HEADER_SIZE;
use crate::format::group::DeferredFreeRecord;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// What is wrong with a value, in words.
pub type ValueFault = String;

/// Type of a file. Numbers are on disk, in directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    Regular = 1,
    Directory = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
}

const KINDS: [(FileKind, u32); 7] = [
    (FileKind::Regular, 0o100000),
    (FileKind::Directory, 0o040000),
    (FileKind::Symlink, 0o120000),
    (FileKind::Fifo, 0o010000),
    (FileKind::Socket, 0o140000),
    (FileKind::CharDevice, 0o020000),
    (FileKind::BlockDevice, 0o060000),
];
const TYPE_MASK: u32 = 0o170000;

impl FileKind {
    /// From the type bits of `st_mode`.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        KINDS.iter().find(|(_, bits)| *bits == mode & TYPE_MASK).map(|(kind, _)| *kind)
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, bits)| *bits)
    }

    /// From the byte in directory entries.
    pub fn from_raw(raw: u8) -> Option<FileKind> {
        KINDS.iter().map(|(kind, _)| *kind).find(|kind| *kind as u8 == raw)
    }
}

/// Entries or attributes that may share one hash; the index among them is the key's low byte.
pub const KEYS_PER_HASH: u64 = 256;

/// The first key of a hash; 54 bits of hash and 8 of index leave directory cookies below 2^63.
fn first_key(mut hasher: SipHasher24, name: &[u8]) -> u64 {
    hasher.write(name);
    (hasher.finish() >> 10) << 8
}

/// Longest file name in bytes.
pub const NAME_MAX: usize = 255;
const DIRENT_FIXED: usize = 17;
/// Greatest key of a directory entry.
const DIRENT_KEY_MAX: u64 = (1 << 62) - 1;

/// The key of the first directory entry with the hash of `name`; the others follow.
pub fn dirent_key(seed: &[u8; 16], name: &[u8]) -> u64 {
    first_key(SipHasher24::new_with_key(seed), name)
}

/// May a directory hold this name? The kernel sends no others; a damaged disk might.
pub fn is_possible_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// The value of a DIRENT item: inode u64, generation u64, kind u8, name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    pub ino: InodeNo,
    pub generation: Generation,
    pub kind: FileKind,
    pub name: Vec<u8>,
}

impl Dirent {
    /// The on-disk form.
    pub fn encode(ino: InodeNo, generation: Generation, kind: FileKind, name: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(DIRENT_FIXED + name.len());
        value.extend(ino.0.to_le_bytes());
        value.extend(generation.0.to_le_bytes());
        value.push(kind as u8);
        value.extend_from_slice(name);
        value
    }

    /// From the item with the key `id`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(id: u64, value: &[u8]) -> Result<Dirent, ValueFault> {
        if value.len() <= DIRENT_FIXED || value.len() > DIRENT_FIXED + NAME_MAX {
            return Err(format!("a directory entry of {} bytes", value.len()));
        }
        if id > DIRENT_KEY_MAX {
            return Err(format!("a directory entry with the impossible key {id}"));
        }
        let number = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("8 bytes"));
        let kind = FileKind::from_raw(value[16])
            .ok_or_else(|| format!("a directory entry of kind {}", value[16]))?;
        let name = &value[DIRENT_FIXED..];
        if number(0) < 2 || !is_possible_name(name) {
            return Err(format!("a directory entry of inode {} called {}", number(0), name.escape_ascii()));
        }
        Ok(Dirent { ino: InodeNo(number(0)), generation: Generation(number(8)), kind, name: name.to_vec() })
    }
}

/// Bytes of a long value in one of its blocks.
pub const BLOB_BYTES_PER_BLOCK: usize = BLOCK_SIZE - HEADER_SIZE;
/// Longest value.
pub const BLOB_BYTES_MAX: usize = 65536;

/// Where a long value is. Descriptor: length u32, crc32c u32, then one u64 block number per
/// [`BLOB_BYTES_PER_BLOCK`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub length: u32,
    /// crc32c of the whole value.
    pub crc: u32,
    pub blocks: Vec<BlockNo>,
}

impl Blob {
    /// Blocks that a value of `length` bytes takes.
    pub fn blocks_for(length: usize) -> usize {
        length.div_ceil(BLOB_BYTES_PER_BLOCK)
    }

    /// The descriptor's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 8 * self.blocks.len());
        out.extend(self.length.to_le_bytes());
        out.extend(self.crc.to_le_bytes());
        for b in &self.blocks {
            out.extend(b.0.to_le_bytes());
        }
        out
    }

    /// From a descriptor; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Blob> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        if length as usize > BLOB_BYTES_MAX || rest.len() != 8 * Blob::blocks_for(length as usize) {
            return None;
        }
        let blocks =
            rest.chunks_exact(8).map(|c| BlockNo(u64::from_le_bytes(c.try_into().expect("8 bytes"))));
        Some(Blob { length, crc: u32::from_le_bytes(*crc), blocks: blocks.collect() })
    }
}

/// A value, or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Here(Vec<u8>),
    Long(Blob),
}

const HERE: u8 = 0;
const LONG: u8 = 1;

impl Content {
    fn form(&self) -> u8 {
        match self {
            Content::Here(_) => HERE,
            Content::Long(_) => LONG,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Content::Here(v) => v.clone(),
            Content::Long(b) => b.encode(),
        }
    }

    fn from_form(form: u8, bytes: &[u8]) -> Option<Content> {
        match form {
            HERE => Some(Content::Here(bytes.to_vec())),
            LONG => Blob::decode(bytes).map(Content::Long),
            _ => None,
        }
    }

    /// The value of a SYMLINK item: form u8, then the target or a descriptor.
    pub fn encode_symlink(&self) -> Vec<u8> {
        let mut out = vec![self.form()];
        out.extend(self.bytes());
        out
    }

    /// From the value of a SYMLINK item; `None` if it is not one.
    pub fn decode_symlink(value: &[u8]) -> Option<Content> {
        let (form, rest) = value.split_first()?;
        Content::from_form(*form, rest)
    }
}

/// The key of the first attribute with the hash of `name`. A crc would not do: 256 user attributes
/// made to share the key of a security attribute would keep it from being set. No seed is needed,
/// only a hash that is hard to aim.
pub fn xattr_key(name: &[u8]) -> u64 {
    first_key(SipHasher24::new(), name)
}

/// The value of an XATTR item: form u8, name length u8, name, then the content or its descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// With its prefix (`user.` and so on).
    pub name: Vec<u8>,
    pub content: Content,
}

impl Xattr {
    /// From an item.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(value: &[u8]) -> Result<Xattr, ValueFault> {
        let wrong = || "a malformed extended attribute".to_string();
        let [form, length, rest @ ..] = value else { return Err(wrong()) };
        let (name, rest) = rest.split_at_checked((*length).into()).ok_or_else(wrong)?;
        if name.is_empty() || name.contains(&0) {
            return Err(wrong());
        }
        let content = Content::from_form(*form, rest).ok_or_else(wrong)?;
        Ok(Xattr { name: name.to_vec(), content })
    }

    /// The on-disk form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.content.form(), self.name.len() as u8];
        out.extend_from_slice(&self.name);
        out.extend(self.content.bytes());
        out
    }
}

/// The value of an ORPHAN item: the generation of the inode that the id names.
pub fn encode_orphan(generation: Generation) -> [u8; 8] {
    generation.0.to_le_bytes()
}

/// From the value of an ORPHAN item; `None` if it is not one.
pub fn decode_orphan(value: &[u8]) -> Option<Generation> {
    Some(Generation(u64::from_le_bytes(value.try_into().ok()?)))
}

/// Blocks that are free but whose group was not held when they became so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredFree {
    pub start: BlockNo,
    pub blocks: u64,
    /// For one metadata block: its last version, which its tombstone must exceed.
    pub version: Option<Version>,
}

/// Most frees that one item of the slot inode holds.
pub const DEFERRED_PER_ITEM: usize = 40;

impl DeferredFree {
    /// The item value for at most [`DEFERRED_PER_ITEM`] frees.
    pub fn encode(frees: &[DeferredFree]) -> Vec<u8> {
        assert!(frees.len() <= DEFERRED_PER_ITEM);
        let record = |f: &DeferredFree| DeferredFreeRecord {
            start: U64::new(f.start.0),
            blocks: U64::new(f.blocks),
            version: U64::new(f.version.map_or(0, |v| v.0)),
        };
        frees.iter().flat_map(|f| record(f).as_bytes().to_vec()).collect()
    }

    /// The frees in an item value; `None` if it is not one.
    pub fn decode(value: &[u8]) -> Option<Vec<DeferredFree>> {
        let records = <[DeferredFreeRecord]>::ref_from_bytes(value).ok()?;
        let free = |r: &DeferredFreeRecord| {
            let version = Some(Version(r.version.get())).filter(|v| v.0 != 0);
            let free = DeferredFree { start: BlockNo(r.start.get()), blocks: r.blocks.get(), version };
            let possible = free.blocks > 0 && free.start.0.checked_add(free.blocks).is_some();
            (possible && (version.is_none() || free.blocks == 1)).then_some(free)
        };
        records.iter().map(free).collect()
    }
}
