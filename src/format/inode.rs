//! The inode block: header, fixed attributes, item page.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 64 | block header, kind inode, owner = own number |
//! | 64 | 256 | attributes ([`DiskAttr`]) |
//! | 320 | 3776 | root item page (`format/item.rs`) |

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the root item page in the inode block.
pub const ROOT_PAGE: usize = 64 + size_of::<DiskAttr>();
/// Offset of the item page in a tree page block.
pub const TREE_PAGE: usize = 64;

/// A time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiskTime {
    pub seconds: I64,
    pub nanos: U32,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiskAttr {
    pub generation: U64,
    /// Bytes on the disk; never more than what has been written.
    pub size: U64,
    /// Data blocks of 4096 bytes.
    pub blocks: U64,
    /// Type and permission bits as in `st_mode`.
    pub mode: U32,
    pub uid: U32,
    pub gid: U32,
    pub nlink: U32,
    pub rdev: U32,
    /// Bit 0: a truncation to `truncate_target` is under way. The others are set by programs.
    pub flags: U32,
    /// For directories: the inode of `..`.
    pub parent: U64,
    pub truncate_target: U64,
    pub atime: DiskTime,
    pub mtime: DiskTime,
    pub ctime: DiskTime,
    pub btime: DiskTime,
    pub project: U32,
    pub zero: [u8; 60],
    pub spare: [u8; 64],
    pub zero2: [u8; 16],
}

const _: () = assert!(size_of::<DiskAttr>() == 256);

/// Flag of [`DiskAttr::flags`]: whoever holds X and sees it finishes the truncation first.
pub const FLAG_TRUNCATING: u32 = 1;
/// Neither the inode nor its content nor, of a directory, its names may be changed.
pub const FLAG_IMMUTABLE: u32 = 2;
/// The file may only grow by appends; a directory may only gain names.
pub const FLAG_APPEND: u32 = 4;
/// Not for backups (for programs, nothing here looks at it).
pub const FLAG_NODUMP: u32 = 8;
/// Reading does not change the access time (which it does not anyway).
pub const FLAG_NOATIME: u32 = 16;
/// Those that programs set.
pub const FLAGS_OF_PROGRAMS: u32 = FLAG_IMMUTABLE | FLAG_APPEND | FLAG_NODUMP | FLAG_NOATIME;
