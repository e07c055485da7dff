//! The inode block: block header, fixed attributes, root page of the item tree.
//!
//! | offset in the block | size | field |
//! |---|---|---|
//! | 0 | 64 | block header, kind inode, owner = own number |
//! | 64 | 256 | [`RawAttr`] |
//! | 320 | 3776 | item page (`format/item.rs`); all zero = empty |

use crate::base::{BLOCK_SIZE, Generation, InodeNo};
use crate::format::Block;
use crate::format::block::HEADER_SIZE;
use crate::format::item::{PAGE_HEADER_SIZE, SLOT_SIZE};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of [`RawAttr`].
pub const ATTR_SIZE: usize = 256;
/// Offset of the root page in the inode block.
pub const ROOT_PAGE_OFFSET: usize = HEADER_SIZE + ATTR_SIZE;
/// Bytes of the root page.
pub const ROOT_PAGE_SIZE: usize = BLOCK_SIZE - ROOT_PAGE_OFFSET;
/// Longest inline data: what a root page holds if it holds nothing else.
pub const INLINE_MAX: usize = ROOT_PAGE_SIZE - PAGE_HEADER_SIZE - SLOT_SIZE;

/// Set while blocks beyond `truncate_target` are still to be freed.
pub const FLAG_TRUNCATING: u32 = 1 << 0;

/// The attributes as they stand on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawAttr {
    /// 0: file type and permission bits as in `st_mode`.
    pub mode: U32,
    /// 4
    pub uid: U32,
    /// 8
    pub gid: U32,
    /// 12
    pub nlink: U32,
    /// 16: bytes; for data, what has reached the disk.
    pub size: U64,
    /// 24: data blocks (4096 bytes) allocated.
    pub blocks: U64,
    /// 32, 40, 48, 56: whole seconds since 1970.
    pub atime: I64,
    pub mtime: I64,
    pub ctime: I64,
    pub btime: I64,
    /// 64, 68, 72, 76: nanoseconds, below 10^9.
    pub atime_ns: U32,
    pub mtime_ns: U32,
    pub ctime_ns: U32,
    pub btime_ns: U32,
    /// 80: tells two lives of the number apart.
    pub generation: U64,
    /// 88: `FLAG_*`.
    pub flags: U32,
    /// 92: project id.
    pub project: U32,
    /// 96: device number of device files.
    pub rdev: U32,
    /// 100: zero.
    pub zero: U32,
    /// 104: of directories, the directory that holds this one (`..`); else 0.
    pub parent: U64,
    /// 112: with FLAG_TRUNCATING, the size beyond which nothing may remain; else 0.
    pub truncate_target: U64,
    /// 120: metadata blocks beside this one: tree pages and value blocks. Kept by the tree.
    pub pages: U64,
    /// 128: spare, zero.
    pub spare: [u8; 128],
}

const _: () = assert!(size_of::<RawAttr>() == ATTR_SIZE);
const _: () = assert!(std::mem::offset_of!(RawAttr, generation) == 80);
const _: () = assert!(std::mem::offset_of!(RawAttr, parent) == 104);
const _: () = assert!(std::mem::offset_of!(RawAttr, spare) == 128);
const _: () = assert!(ROOT_PAGE_SIZE == 3776);

impl RawAttr {
    /// Root-owned attributes of a new inode, all times `now`: what mkfs makes. Everything not named
    /// is zero. `mode` includes the file type bits.
    pub fn new(mode: u32, nlink: u32, generation: Generation, parent: InodeNo, now: (i64, u32)) -> RawAttr {
        let mut a = RawAttr::new_zeroed();
        a.mode = U32::new(mode);
        a.nlink = U32::new(nlink);
        a.generation = U64::new(generation.0);
        a.parent = U64::new(parent.0);
        for s in [&mut a.atime, &mut a.mtime, &mut a.ctime, &mut a.btime] {
            *s = I64::new(now.0);
        }
        for ns in [&mut a.atime_ns, &mut a.mtime_ns, &mut a.ctime_ns, &mut a.btime_ns] {
            *ns = U32::new(now.1);
        }
        a
    }
}

/// The attributes in an inode block.
pub fn attr(block: &Block) -> &RawAttr {
    block.body_as()
}

/// The attributes in an inode block, to be changed. On a zeroed body, setting them is all it takes
/// to make an inode: an empty root page is all zero.
pub fn attr_mut(block: &mut Block) -> &mut RawAttr {
    block.body_as_mut()
}

/// The root page of an inode block.
pub fn root_page(block: &Block) -> &[u8] {
    &block.0[ROOT_PAGE_OFFSET..]
}

/// The root page of an inode block.
pub fn root_page_mut(block: &mut Block) -> &mut [u8] {
    &mut block.0[ROOT_PAGE_OFFSET..]
}

/// What an inode is. The numbers are those of `st_mode >> 12`, also on disk in directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FileKind {
    Fifo = 1,
    CharDevice = 2,
    Directory = 4,
    BlockDevice = 6,
    Regular = 8,
    Symlink = 10,
    Socket = 12,
}

impl FileKind {
    /// From the on-disk number.
    pub fn from_raw(raw: u8) -> Option<FileKind> {
        use FileKind::*;
        [Fifo, CharDevice, Directory, BlockDevice, Regular, Symlink, Socket]
            .into_iter()
            .find(|k| *k as u8 == raw)
    }

    /// From `st_mode`; `None` if its type bits are no type.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        FileKind::from_raw(u8::try_from(mode >> 12).ok()?)
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        u32::from(self as u8) << 12
    }
}
