//! The header of every metadata block, and its verification after each read and before each write.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `SHOL` |
//! | 4 | 4 | crc32c of the whole block with this field as zero |
//! | 8 | 8 | format_id: random, one per mkfs, so that an older life of the disk never speaks |
//! | 16 | 8 | own block number |
//! | 24 | 8 | owner: inode number for inodes and their trees, group number for group blocks |
//! | 32 | 8 | id of the covering lock |
//! | 40 | 8 | version |
//! | 48 | 2 | kind |
//! | 50 | 1 | class of the covering lock |
//! | 51 | 13 | zero |

use crate::base::{BLOCK_SIZE, BlockNo, Error, LockName, Result, Version};
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every metadata block.
pub const MAGIC: [u8; 4] = *b"SHOL";
/// Bytes of the header; the content of a block begins here.
pub const HEADER_SIZE: usize = 64;

/// One block in memory. Aligned as any heap memory is: page alignment would double what an `Arc` of it
/// takes, any other costs the allocator a detour, and devices bounce what the kernel refuses anyway.
#[repr(C, align(8))]
pub struct Block(pub [u8; BLOCK_SIZE], AtomicBool);

impl Block {
    /// Of these bytes.
    pub fn new(bytes: [u8; BLOCK_SIZE]) -> Block {
        Block(bytes, AtomicBool::new(false))
    }

    /// All zeros.
    pub fn zeroed() -> Block {
        Block::new([0; BLOCK_SIZE])
    }

    /// Has somebody found the item page in this image to be sound? A copy, to be changed, begins anew.
    pub fn is_sound(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }

    /// The item page in this image is sound. Whoever changes it in place leaves a sound one.
    pub fn set_sound(&self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

impl Clone for Block {
    fn clone(&self) -> Block {
        Block::new(self.0)
    }
}

impl Default for Block {
    fn default() -> Self {
        Block::zeroed()
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({:?})", self.header())
    }
}

/// What a metadata block is. Numbers are on disk and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum BlockKind {
    /// A freed metadata block: the tombstone that carries its last version.
    Free = 1,
    Superblock = 2,
    Volume = 3,
    GroupHeader = 4,
    ChunkPage = 5,
    Inode = 6,
    /// An interior or leaf page of an inode's item tree.
    TreePage = 7,
    /// Part of a long xattr value or symlink target.
    Blob = 8,
    Ballot = 9,
    Ledger = 10,
}

impl BlockKind {
    /// From the on-disk number.
    pub fn from_raw(raw: u16) -> Option<BlockKind> {
        use BlockKind::*;
        [Free, Superblock, Volume, GroupHeader, ChunkPage, Inode, TreePage, Blob, Ballot, Ledger]
            .into_iter()
            .find(|k| *k as u16 == raw)
    }
}

impl std::fmt::Display for BlockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BlockKind::Free => "freed block",
            BlockKind::Superblock => "superblock",
            BlockKind::Volume => "volume block",
            BlockKind::GroupHeader => "group header",
            BlockKind::ChunkPage => "chunk page",
            BlockKind::Inode => "inode",
            BlockKind::TreePage => "item page",
            BlockKind::Blob => "value block",
            BlockKind::Ballot => "ballot",
            BlockKind::Ledger => "ledger page",
        })
    }
}

/// The header, read in place.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    pub magic: [u8; 4],
    pub crc: U32,
    pub format_id: U64,
    pub block: U64,
    pub owner: U64,
    pub cover_id: U64,
    pub version: U64,
    pub kind: U16,
    pub cover_class: u8,
    pub zero: [u8; 13],
}

impl BlockHeader {
    /// With a crc of zero.
    pub fn new(
        format_id: u64,
        block: BlockNo,
        kind: BlockKind,
        owner: u64,
        cover: LockName,
        version: Version,
    ) -> BlockHeader {
        let (class, id) = cover.to_raw();
        BlockHeader {
            magic: MAGIC,
            crc: U32::new(0),
            format_id: U64::new(format_id),
            block: U64::new(block.0),
            owner: U64::new(owner),
            cover_id: U64::new(id),
            version: U64::new(version.0),
            kind: U16::new(kind as u16),
            cover_class: class,
            zero: [0; 13],
        }
    }
}

const _: () = assert!(size_of::<BlockHeader>() == HEADER_SIZE);

impl Block {
    /// The header as it stands, verified or not.
    pub fn header(&self) -> &BlockHeader {
        BlockHeader::ref_from_bytes(&self.0[..HEADER_SIZE]).expect("size is asserted")
    }

    /// The header, to be changed; only block constructors and the journal do.
    pub fn header_mut(&mut self) -> &mut BlockHeader {
        BlockHeader::mut_from_bytes(&mut self.0[..HEADER_SIZE]).expect("size is asserted")
    }

    /// Everything behind the header.
    pub fn body(&self) -> &[u8] {
        &self.0[HEADER_SIZE..]
    }

    /// Everything behind the header.
    pub fn body_mut(&mut self) -> &mut [u8] {
        &mut self.0[HEADER_SIZE..]
    }

    /// The body read as `T` from its first byte (`T` no larger than the body).
    pub fn body_as<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self) -> &T {
        T::ref_from_prefix(self.body()).expect("body types are smaller than a block").0
    }

    /// The body as a mutable `T` from its first byte.
    pub fn body_as_mut<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned>(&mut self) -> &mut T {
        T::mut_from_prefix(self.body_mut()).expect("body types are smaller than a block").0
    }

    /// A zeroed block with its header filled in (crc still zero: [`Block::seal`] sets it).
    pub fn init(
        format_id: u64,
        block: BlockNo,
        kind: BlockKind,
        owner: u64,
        cover: LockName,
        version: Version,
    ) -> Block {
        let mut b = Block::zeroed();
        *b.header_mut() = BlockHeader::new(format_id, block, kind, owner, cover, version);
        b
    }

    /// The version in the header.
    pub fn version(&self) -> Version {
        Version(self.header().version.get())
    }

    /// The kind in the header, if it is one.
    pub fn kind(&self) -> Option<BlockKind> {
        BlockKind::from_raw(self.header().kind.get())
    }

    /// The covering lock, if it is one.
    pub fn cover(&self) -> Option<LockName> {
        LockName::from_raw(self.header().cover_class, self.header().cover_id.get())
    }

    /// crc32c of the block with the crc field as zero.
    pub fn computed_crc(&self) -> u32 {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.0[..4]);
        digest.update(&[0; 4]);
        digest.update(&self.0[8..]);
        digest.finalize() as u32
    }

    /// Set the crc. The last thing before a write.
    pub fn seal(&mut self) {
        let crc = self.computed_crc();
        self.header_mut().crc = U32::new(crc);
    }

    /// Is this what must stand at `block`?
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the first thing that is wrong.
    pub fn verify(&self, format_id: u64, block: BlockNo, kind: BlockKind) -> Result<()> {
        let h = self.header();
        if h.magic != MAGIC {
            return Err(Error::corrupt(block, kind, "magic SHOL", format!("{:02x?}", h.magic)));
        }
        if h.format_id.get() != format_id {
            return Err(Error::corrupt(
                block,
                kind,
                format_args!("format id {format_id:016x}"),
                format_args!("{:016x}", h.format_id.get()),
            ));
        }
        let crc = self.computed_crc();
        if h.crc.get() != crc {
            return Err(Error::corrupt(
                block,
                kind,
                format_args!("crc {crc:08x}"),
                format_args!("{:08x}", h.crc.get()),
            ));
        }
        if h.block.get() != block.0 {
            return Err(Error::corrupt(block, kind, format_args!("own number {block}"), h.block.get()));
        }
        if h.kind.get() != kind as u16 {
            let found = self.kind().map_or_else(|| format!("kind {}", h.kind.get()), |k| k.to_string());
            return Err(Error::corrupt(block, kind, kind, found));
        }
        Ok(())
    }

    /// What replay compares: the version if the block bears this volume's header for this place,
    /// 0 if it does not, `None` if it does but its crc is wrong (torn).
    pub fn replay_version(&self, format_id: u64, block: BlockNo) -> Option<Version> {
        let h = self.header();
        if h.magic != MAGIC || h.format_id.get() != format_id || h.block.get() != block.0 {
            return Some(Version(0));
        }
        (h.crc.get() == self.computed_crc()).then(|| self.version())
    }
}

/// crc32c of any bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}
