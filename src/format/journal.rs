//! The journal on disk: one extent per slot, a ring of transactions behind two header copies.
//!
//! ```text
//! block 0, 1 of the extent   journal header, copy A and B
//! block 2 ..                 the ring: transactions one behind the other, wrapping
//! ```
//! Positions count ring blocks over the whole life of the journal and never restart; position `p`
//! is stored at ring block `p % ring_blocks`. Transaction numbers never restart either, so what an
//! earlier turn of the ring left behind is never taken for a record of this turn.
//!
//! A transaction is a *stream* of whole blocks, then one *commit block*:
//!
//! ```text
//! stream   TxnHeader (64 bytes), `entries` TxnEntry (40 bytes each), then the images: of each entry
//!          the 64-byte lines whose bit is set in `lines`, in order; absent lines are zeros
//! commit   TxnCommit (64 bytes), zeros
//! ```
//! The commit block is written together with the stream, whose crc it holds: a last transaction whose
//! stream has another crc was cut short by a power failure and never counted. Every fixed record lies
//! in the first 512 bytes of its block, so that it is written whole or not at all on any device.
//!
//! The crc of an image's own header is not kept (0 in the log): whoever writes it in place seals it.

use crate::base::{BLOCK_SIZE, BlockNo, LockName, SlotId, TxnId, Version};
use crate::format::block::{Block, BlockHeader, BlockKind, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a journal header.
pub const HEADER_MAGIC: [u8; 4] = *b"SHJH";
/// First bytes of a transaction's stream.
pub const TXN_MAGIC: [u8; 4] = *b"SHJT";
/// First bytes of a commit block.
pub const COMMIT_MAGIC: [u8; 4] = *b"SHJC";
/// Blocks at the start of the extent that hold the header copies.
pub const HEADER_BLOCKS: u64 = 2;
/// Smallest extent that can be opened: header copies and a ring that holds one small change.
pub const EXTENT_BLOCKS_MIN: u64 = 256;
/// Bytes of one line of a block image; a block has 64 of them, one bit each in [`TxnEntry::lines`].
pub const LINE_SIZE: usize = BLOCK_SIZE / 64;
/// The only record version so far.
pub const JOURNAL_VERSION: u16 = 1;

/// Where the oldest transaction stands that may not be in place yet. Both copies are written, A
/// first, B after A has been flushed; the valid one with the higher sequence counts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct JournalHeader {
    pub magic: [u8; 4],
    /// crc32c of the 64 bytes with this field as zero.
    pub crc: U32,
    pub format_id: U64,
    /// First block of the extent, and its length in blocks, header copies included.
    pub extent_start: U64,
    pub extent_blocks: U64,
    /// Grows with every header write.
    pub sequence: U64,
    /// The transaction expected at `tail_position`; all before it are in place.
    pub tail_txn: U64,
    pub tail_position: U64,
    pub slot: U16,
    pub version: U16,
    pub zero: [u8; 4],
}

/// Start of a transaction's stream.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TxnHeader {
    pub magic: [u8; 4],
    /// crc32c of these 64 bytes with this field as zero.
    pub crc: U32,
    pub format_id: U64,
    pub txn: U64,
    /// Position of this block.
    pub position: U64,
    /// Bytes of the stream without the padding of its last block.
    pub stream_bytes: U64,
    /// Blocks of the stream; the commit block stands behind them.
    pub stream_blocks: U32,
    pub entries: U32,
    pub slot: U16,
    pub version: U16,
    pub zero: [u8; 12],
}

/// One block image of a transaction.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TxnEntry {
    pub block: U64,
    pub version: U64,
    pub cover_id: U64,
    /// Bit i: line i of the image follows in the stream; clear: it is all zeros.
    pub lines: U64,
    pub kind: U16,
    pub cover_class: u8,
    pub zero: [u8; 5],
}

/// Makes the transaction before it count.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TxnCommit {
    pub magic: [u8; 4],
    /// crc32c of these 64 bytes with this field as zero.
    pub crc: U32,
    pub format_id: U64,
    pub txn: U64,
    /// Position of the stream's first block.
    pub position: U64,
    /// crc32c of the stream, padding included.
    pub stream_crc: U32,
    pub slot: U16,
    pub version: U16,
    pub zero: [u8; 24],
}

const _: () = assert!(size_of::<JournalHeader>() == 64);
const _: () = assert!(size_of::<TxnHeader>() == 64);
const _: () = assert!(size_of::<TxnEntry>() == 40);
const _: () = assert!(size_of::<TxnCommit>() == 64);

/// crc32c of a 64-byte record whose bytes 4..8 are the crc itself.
fn record_crc(bytes: &[u8]) -> u32 {
    let mut copy = [0u8; 64];
    copy.copy_from_slice(bytes);
    copy[4..8].fill(0);
    crc32c(&copy)
}

fn record<T: FromBytes + KnownLayout + Immutable + Unaligned + Copy>(block: &[u8]) -> Option<T> {
    let bytes = block.get(..64)?;
    let stored = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
    (stored == record_crc(bytes)).then_some(*T::ref_from_bytes(bytes).ok()?)
}

fn sealed<T: IntoBytes + Immutable>(record: &T) -> Block {
    let mut b = Block::zeroed();
    b.0[..64].copy_from_slice(record.as_bytes());
    let crc = record_crc(&b.0[..64]);
    b.0[4..8].copy_from_slice(&crc.to_le_bytes());
    b
}

/// Whose journal, and where: what every record of it must agree with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalPlace {
    pub format_id: u64,
    pub slot: SlotId,
    /// First block of the extent.
    pub start: BlockNo,
    /// Blocks of the extent, header copies included.
    pub blocks: u64,
}

impl JournalPlace {
    /// Blocks of the ring.
    pub fn ring_blocks(&self) -> u64 {
        self.blocks - HEADER_BLOCKS
    }

    /// The block on the volume where `position` is stored.
    pub fn block_at(&self, position: u64) -> BlockNo {
        self.start.plus(HEADER_BLOCKS + position % self.ring_blocks())
    }

    /// Does `block` lie in the extent?
    pub fn contains(&self, block: BlockNo) -> bool {
        block >= self.start && block.0 - self.start.0 < self.blocks
    }

    /// A header block that says: everything before `tail_txn` is in place.
    pub fn header(&self, sequence: u64, tail_txn: TxnId, tail_position: u64) -> Block {
        sealed(&JournalHeader {
            magic: HEADER_MAGIC,
            crc: U32::new(0),
            format_id: U64::new(self.format_id),
            extent_start: U64::new(self.start.0),
            extent_blocks: U64::new(self.blocks),
            sequence: U64::new(sequence),
            tail_txn: U64::new(tail_txn.0),
            tail_position: U64::new(tail_position),
            slot: U16::new(self.slot.0),
            version: U16::new(JOURNAL_VERSION),
            zero: [0; 4],
        })
    }

    /// The blocks of an empty journal: what mkfs writes (the ring needs no initialisation, records
    /// of an earlier life bear another format id). Goes to `start` and `start + 1`.
    pub fn empty(&self) -> [Block; HEADER_BLOCKS as usize] {
        [self.header(1, TxnId(1), 0), self.header(1, TxnId(1), 0)]
    }

    /// The header in `block`, if it is one of this journal.
    pub fn read_header(&self, block: &Block) -> Option<JournalHeader> {
        let h: JournalHeader = record(&block.0)?;
        (h.magic == HEADER_MAGIC
            && h.format_id.get() == self.format_id
            && h.slot.get() == self.slot.0
            && h.version.get() == JOURNAL_VERSION
            && h.extent_start.get() == self.start.0
            && h.extent_blocks.get() == self.blocks)
            .then_some(h)
    }

    /// The sealed first 64 bytes of a transaction's stream.
    pub fn txn_header(&self, txn: TxnId, position: u64, stream_bytes: u64, entries: u32) -> [u8; 64] {
        let block = sealed(&TxnHeader {
            magic: TXN_MAGIC,
            crc: U32::new(0),
            format_id: U64::new(self.format_id),
            txn: U64::new(txn.0),
            position: U64::new(position),
            stream_bytes: U64::new(stream_bytes),
            stream_blocks: U32::new(stream_bytes.div_ceil(BLOCK_SIZE as u64) as u32),
            entries: U32::new(entries),
            slot: U16::new(self.slot.0),
            version: U16::new(JOURNAL_VERSION),
            zero: [0; 12],
        });
        block.0[..64].try_into().expect("64 bytes")
    }

    /// The transaction header at the start of `stream`, if it is one of this journal at `position`
    /// with lengths that can be.
    pub fn read_txn_header(&self, stream: &[u8], position: u64) -> Option<TxnHeader> {
        let h: TxnHeader = record(stream)?;
        let bytes = h.stream_bytes.get();
        let blocks = u64::from(h.stream_blocks.get());
        let least = 64 + u64::from(h.entries.get()) * size_of::<TxnEntry>() as u64;
        (h.magic == TXN_MAGIC
            && h.format_id.get() == self.format_id
            && h.slot.get() == self.slot.0
            && h.version.get() == JOURNAL_VERSION
            && h.position.get() == position
            && blocks < self.ring_blocks()
            && blocks == bytes.div_ceil(BLOCK_SIZE as u64)
            && bytes >= least)
            .then_some(h)
    }

    /// The commit block of a transaction.
    pub fn commit_block(&self, txn: TxnId, position: u64, stream_crc: u32) -> Block {
        sealed(&TxnCommit {
            magic: COMMIT_MAGIC,
            crc: U32::new(0),
            format_id: U64::new(self.format_id),
            txn: U64::new(txn.0),
            position: U64::new(position),
            stream_crc: U32::new(stream_crc),
            slot: U16::new(self.slot.0),
            version: U16::new(JOURNAL_VERSION),
            zero: [0; 24],
        })
    }

    /// The commit record in `block`, if it is that of `txn` at `position`.
    pub fn read_commit(&self, block: &[u8], txn: TxnId, position: u64) -> Option<TxnCommit> {
        let c: TxnCommit = record(block)?;
        (c.magic == COMMIT_MAGIC
            && c.format_id.get() == self.format_id
            && c.slot.get() == self.slot.0
            && c.version.get() == JOURNAL_VERSION
            && c.txn.get() == txn.0
            && c.position.get() == position)
            .then_some(c)
    }
}

impl TxnEntry {
    /// The entry of an image with this header.
    pub fn of(h: &BlockHeader, lines: u64) -> TxnEntry {
        TxnEntry {
            block: h.block,
            version: h.version,
            cover_id: h.cover_id,
            lines: U64::new(lines),
            kind: h.kind,
            cover_class: h.cover_class,
            zero: [0; 5],
        }
    }

    /// The covering lock, if it is one.
    pub fn cover(&self) -> Option<LockName> {
        LockName::from_raw(self.cover_class, self.cover_id.get())
    }

    /// The kind, if it is one.
    pub fn kind(&self) -> Option<BlockKind> {
        BlockKind::from_raw(self.kind.get())
    }

    /// The version of the image.
    pub fn version(&self) -> Version {
        Version(self.version.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> JournalPlace {
        JournalPlace { format_id: 77, slot: SlotId(3), start: BlockNo(512), blocks: 1024 }
    }

    #[test]
    fn records_are_recognised_and_only_in_their_place() {
        let p = place();
        let [a, _] = p.empty();
        let h = p.read_header(&a).unwrap();
        assert_eq!((h.tail_txn.get(), h.tail_position.get()), (1, 0));
        assert!(JournalPlace { slot: SlotId(4), ..p }.read_header(&a).is_none());
        assert!(JournalPlace { format_id: 78, ..p }.read_header(&a).is_none());

        let t = p.txn_header(TxnId(9), 5000, 300, 2);
        assert!(p.read_txn_header(&t, 5000).is_some());
        assert!(p.read_txn_header(&t, 5001).is_none());
        assert!(p.read_txn_header(&p.txn_header(TxnId(9), 5000, 100, 2), 5000).is_none());

        let c = p.commit_block(TxnId(9), 5000, 1);
        assert!(p.read_commit(&c.0, TxnId(9), 5000).is_some());
        assert!(p.read_commit(&c.0, TxnId(10), 5000).is_none());
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let p = place();
        let [a, _] = p.empty();
        for bit in 0..64 * 8 {
            let mut b = a.clone();
            b.0[bit / 8] ^= 1 << (bit % 8);
            assert!(p.read_header(&b).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn positions_wrap_in_the_ring() {
        let p = place();
        assert_eq!(p.block_at(0), BlockNo(514));
        assert_eq!(p.block_at(1021), BlockNo(1535));
        assert_eq!(p.block_at(1022), BlockNo(514));
    }
}
