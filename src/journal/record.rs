//! A transaction's images to its stream in the log and back. Pure.

use crate::base::{BLOCK_SIZE, BlockNo, TxnId};
use crate::format::block::{Block, crc32c};
use crate::format::journal::{JournalPlace, LINE_SIZE, TxnEntry, TxnHeader};
use crate::store::{AlignedBuf, Image as Sealed};
use zerocopy::{FromBytes, IntoBytes};

const HEADER_BYTES: usize = size_of::<TxnHeader>();
const ENTRY_BYTES: usize = size_of::<TxnEntry>();

/// Ring blocks that a transaction of `images` block images takes at most, commit block included.
pub(super) fn log_blocks_max(images: u64) -> u64 {
    let bytes = HEADER_BYTES as u64 + images * (ENTRY_BYTES + BLOCK_SIZE) as u64;
    bytes.div_ceil(BLOCK_SIZE as u64) + 1
}

/// A transaction ready to be written.
pub(super) struct Stream {
    /// The stream, and its commit block behind it.
    pub buf: AlignedBuf,
    /// Blocks of the stream, without the commit block.
    pub blocks: u64,
}

/// Encode the images of `txn` for `position`.
pub(super) fn encode(
    place: &JournalPlace,
    txn: TxnId,
    position: u64,
    images: &[(BlockNo, Sealed)],
) -> Stream {
    // The crc of a header does not count: it is not kept in the log, but its line is never empty anyway.
    let lines: Vec<u64> = images.iter().map(|(_, b)| b.lines()).collect();
    let payload: usize = lines.iter().map(|l| l.count_ones() as usize * LINE_SIZE).sum();
    let bytes = HEADER_BYTES + images.len() * ENTRY_BYTES + payload;
    let blocks = bytes.div_ceil(BLOCK_SIZE);
    let mut buf = AlignedBuf::new(blocks + 1);
    let (out, commit) = buf.bytes_mut().split_at_mut(blocks * BLOCK_SIZE);
    out[..HEADER_BYTES].copy_from_slice(&place.txn_header(txn, position, bytes as u64, images.len() as u32));
    let (entries, payload) = out[HEADER_BYTES..].split_at_mut(images.len() * ENTRY_BYTES);
    let mut at = 0;
    for (i, ((_, image), lines)) in images.iter().zip(&lines).enumerate() {
        let entry = TxnEntry::of(image.header(), *lines);
        entries[i * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(entry.as_bytes());
        let first = at;
        at += image.copy_lines(*lines, &mut payload[at..]);
        if *lines & 1 != 0 {
            payload[first + 4..first + 8].fill(0);
        }
    }
    commit.copy_from_slice(&place.commit_block(txn, position, crc32c(out)).0);
    Stream { buf, blocks: blocks as u64 }
}

/// One image of a decoded transaction, as compact as in the log: a block that was freed takes a line
/// or two, and replay keeps very many of them.
pub(super) struct Image {
    pub entry: TxnEntry,
    lines: Box<[u8]>,
}

impl Image {
    /// The whole block. Its header's crc is 0.
    pub fn block(&self) -> Block {
        let mut block = Block::zeroed();
        let present = self.entry.lines.get();
        let places = block.0.chunks_exact_mut(LINE_SIZE).enumerate().filter(|(n, _)| present & (1 << n) != 0);
        for ((_, place), line) in places.zip(self.lines.chunks_exact(LINE_SIZE)) {
            place.copy_from_slice(line);
        }
        block
    }
}

/// The images of a stream whose crc is right; what is wrong with it otherwise.
pub(super) fn decode(header: &TxnHeader, stream: &[u8]) -> Result<Vec<Image>, String> {
    let count = header.entries.get() as usize;
    let bytes = stream.get(..header.stream_bytes.get() as usize).ok_or("stream is cut short")?;
    let entries =
        bytes.get(HEADER_BYTES..HEADER_BYTES + count * ENTRY_BYTES).ok_or("entries are cut short")?;
    let mut payload = &bytes[HEADER_BYTES + count * ENTRY_BYTES..];
    let mut images = Vec::with_capacity(count);
    for raw in entries.chunks_exact(ENTRY_BYTES) {
        let entry = TxnEntry::read_from_bytes(raw).map_err(|_| "entry size")?;
        let bytes = entry.lines.get().count_ones() as usize * LINE_SIZE;
        let (lines, rest) = payload.split_at_checked(bytes).ok_or("images are cut short")?;
        payload = rest;
        let image = Image { entry, lines: lines.into() };
        let block = image.block();
        let h = block.header();
        if h.block.get() != entry.block.get() || h.version.get() != entry.version.get() {
            return Err(format!("image of block {} does not agree with its entry", entry.block.get()));
        }
        if entry.kind().is_none() || entry.cover().is_none() {
            return Err(format!("image of block {} is of no known kind or cover", entry.block.get()));
        }
        images.push(image);
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{InodeNo, LockName, SlotId, Version};
    use crate::format::BlockKind;
    use proptest::prelude::*;
    use std::sync::Arc;

    const PLACE: JournalPlace =
        JournalPlace { format_id: 5, slot: SlotId(0), start: BlockNo(100), blocks: 4098 };

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(
            blocks in proptest::collection::vec(
                (1000u64..2000, 1u64..100, proptest::collection::vec((64usize..4096, any::<u8>()), 0..30)), 0..20)
        ) {
            let images: Vec<_> = blocks.iter().map(|(no, version, bytes)| {
                let cover = LockName::Inode(InodeNo(*no));
                let mut b = Block::init(5, BlockNo(*no), BlockKind::Inode, *no, cover, Version(*version));
                for (at, value) in bytes {
                    b.0[*at] = *value;
                }
                (BlockNo(*no), Arc::new(b))
            }).collect();
            let sealed: Vec<_> = images.iter().enumerate().map(|(i, (no, b))| {
                (*no, if i % 2 == 0 { Sealed::of(b) } else { Sealed::Whole(b.clone()) })
            }).collect();
            let s = encode(&PLACE, TxnId(3), 77, &sealed);
            prop_assert!(s.blocks < log_blocks_max(images.len() as u64));
            let h = PLACE.read_txn_header(s.buf.bytes(), 77).unwrap();
            prop_assert_eq!(u64::from(h.stream_blocks.get()), s.blocks);
            let (stream, commit) = s.buf.bytes().split_at(s.blocks as usize * BLOCK_SIZE);
            let commit = PLACE.read_commit(commit, TxnId(3), 77).unwrap();
            prop_assert_eq!(commit.stream_crc.get(), crc32c(stream));
            let back = decode(&h, stream).unwrap();
            prop_assert_eq!(back.len(), images.len());
            for (image, (no, original)) in back.iter().zip(&images) {
                prop_assert_eq!(image.entry.block.get(), no.0);
                prop_assert!(image.block().0 == original.0);
                prop_assert!(image.lines.len() == Sealed::of(original).lines().count_ones() as usize * LINE_SIZE);
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(
            stream in proptest::collection::vec(any::<u8>(), 0..5000), entries in 0u32..200, bytes in 0u64..6000
        ) {
            let header = PLACE.txn_header(TxnId(1), 0, bytes, entries);
            let h = TxnHeader::read_from_bytes(&header).unwrap();
            let _ = decode(&h, &stream);
        }
    }
}
