//! The values of items, except EXTENT's (`format/extent.rs`). All are read in place.
//!
//! | item | value |
//! |---|---|
//! | XATTR | name length u8, stored u8, name, then content |
//! | SYMLINK | stored u8, then content |
//! | DIRENT | inode u64, generation u64, file kind u8, name |
//! | ORPHAN | generation u64 |
//! | DEFERRED_FREE | blocks u64, kind u16 (0: data), zero [6] |
//!
//! `stored` tells what content is: [`STORED_HERE`], the bytes themselves; [`STORED_BLOB`], a
//! [`BlobHead`] followed by block numbers (u64), each of which holds [`BLOB_PAYLOAD`] bytes of it.

use crate::base::{BLOCK_SIZE, BlockNo, Generation, InodeNo};
use crate::format::block::HEADER_SIZE;
use crate::format::inode::FileKind;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The content follows.
pub const STORED_HERE: u8 = 0;
/// A blob reference follows.
pub const STORED_BLOB: u8 = 1;
/// Longest blob: the longest extended attribute.
pub const BLOB_MAX: usize = 65536;
/// Content bytes of one blob block.
pub const BLOB_PAYLOAD: usize = BLOCK_SIZE - HEADER_SIZE;
/// Longest name of a directory entry or extended attribute.
pub const NAME_MAX: usize = 255;

/// First bytes of a reference to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlobHead {
    /// Content bytes.
    pub length: U32,
    /// crc32c of the content.
    pub crc: U32,
}

/// A reference to content in blob blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Content bytes, 1 to [`BLOB_MAX`].
    pub length: usize,
    /// crc32c of the content.
    pub crc: u32,
    /// Where it is: `length / BLOB_PAYLOAD` blocks, rounded up.
    pub blocks: Vec<BlockNo>,
}

impl BlobRef {
    /// The on-disk form.
    pub fn encode(&self) -> Vec<u8> {
        let head = BlobHead { length: U32::new(self.length as u32), crc: U32::new(self.crc) };
        let mut out = head.as_bytes().to_vec();
        self.blocks.iter().for_each(|b| out.extend_from_slice(&b.0.to_le_bytes()));
        out
    }

    /// The inverse; `None` if length and block list contradict each other.
    pub fn decode(bytes: &[u8]) -> Option<BlobRef> {
        let (head, rest) = BlobHead::read_from_prefix(bytes).ok()?;
        let length = head.length.get() as usize;
        let blocks = <[U64]>::ref_from_bytes(rest).ok()?;
        let fits = (1..=BLOB_MAX).contains(&length) && blocks.len() == length.div_ceil(BLOB_PAYLOAD);
        fits.then(|| BlobRef {
            length,
            crc: head.crc.get(),
            blocks: blocks.iter().map(|b| BlockNo(b.get())).collect(),
        })
    }
}

/// Content as an item holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    Here(&'a [u8]),
    Blob(BlobRef),
}

impl<'a> Content<'a> {
    /// From the `stored` byte and what follows it; `None` if it makes no sense.
    pub fn decode(stored: u8, rest: &'a [u8]) -> Option<Content<'a>> {
        match stored {
            STORED_HERE => Some(Content::Here(rest)),
            STORED_BLOB => BlobRef::decode(rest).map(Content::Blob),
            _ => None,
        }
    }

    /// The `stored` byte.
    pub fn stored(&self) -> u8 {
        match self {
            Content::Here(_) => STORED_HERE,
            Content::Blob(_) => STORED_BLOB,
        }
    }

    /// The bytes behind the `stored` byte.
    pub fn encode_rest(&self) -> Vec<u8> {
        match self {
            Content::Here(bytes) => bytes.to_vec(),
            Content::Blob(blob) => blob.encode(),
        }
    }
}

/// An XATTR value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrValue<'a> {
    pub name: &'a [u8],
    pub content: Content<'a>,
}

impl<'a> XattrValue<'a> {
    /// Bytes before the name.
    pub const HEAD: usize = 2;

    /// The on-disk form. The name has 1 to [`NAME_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.name.len() as u8, self.content.stored()];
        out.extend_from_slice(self.name);
        out.extend_from_slice(&self.content.encode_rest());
        out
    }

    /// The inverse; `None` if it makes no sense.
    pub fn decode(value: &'a [u8]) -> Option<XattrValue<'a>> {
        let [len, stored, rest @ ..] = value else { return None };
        let (name, rest) = rest.split_at_checked(usize::from(*len))?;
        (!name.is_empty()).then_some(())?;
        Some(XattrValue { name, content: Content::decode(*stored, rest)? })
    }
}

/// First bytes of a DIRENT value; the name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirentHead {
    pub inode: U64,
    pub generation: U64,
    pub kind: u8,
}

/// A DIRENT value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirentValue<'a> {
    pub inode: InodeNo,
    pub generation: Generation,
    pub kind: FileKind,
    pub name: &'a [u8],
}

impl<'a> DirentValue<'a> {
    /// The on-disk form. The name has 1 to [`NAME_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let head = DirentHead {
            inode: U64::new(self.inode.0),
            generation: U64::new(self.generation.0),
            kind: self.kind as u8,
        };
        let mut out = Vec::with_capacity(size_of::<DirentHead>() + self.name.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(self.name);
        out
    }

    /// The inverse; `None` if it makes no sense (no inode, unknown kind, no possible name).
    pub fn decode(value: &'a [u8]) -> Option<DirentValue<'a>> {
        let (head, name) = DirentHead::ref_from_prefix(value).ok()?;
        let possible = head.inode.get() > 1
            && (1..=NAME_MAX).contains(&name.len())
            && name != b"."
            && name != b".."
            && !name.iter().any(|b| matches!(b, 0 | b'/'));
        possible.then_some(())?;
        Some(DirentValue {
            inode: InodeNo(head.inode.get()),
            generation: Generation(head.generation.get()),
            kind: FileKind::from_raw(head.kind)?,
            name,
        })
    }
}

/// A DEFERRED_FREE value: a run of blocks in a group that the freeing host did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DeferredFreeValue {
    /// Blocks from the one in the key on.
    pub blocks: U64,
    /// The `BlockKind` of a metadata block (then `blocks` is 1); 0 for data.
    pub kind: U16,
    pub zero: [u8; 6],
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(x) = XattrValue::decode(&bytes) {
                prop_assert_eq!(x.encode(), bytes.clone());
            }
            if let Some(d) = DirentValue::decode(&bytes) {
                prop_assert_eq!(d.encode(), bytes.clone());
            }
            let _ = BlobRef::decode(&bytes);
        }
    }

    #[test]
    fn blob_references_round_trip() {
        let blob = BlobRef { length: BLOB_PAYLOAD + 1, crc: 5, blocks: vec![BlockNo(9), BlockNo(11)] };
        let x = XattrValue { name: b"user.a", content: Content::Blob(blob.clone()) };
        assert_eq!(XattrValue::decode(&x.encode()), Some(x));
        let short = BlobRef { length: BLOB_PAYLOAD, ..blob };
        assert_eq!(BlobRef::decode(&short.encode()), None, "one block too many");
    }
}
