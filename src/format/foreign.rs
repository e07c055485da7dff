//! What other owners write on a device: the signatures of their formats.
//!
//! The table is our own: mkfs must not depend on `blkid` being installed.

use crate::base::{BlockDevice, Result};

/// Something recognised on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// For people: `ext2/3/4`, `GPT partition table`.
    pub what: &'static str,
    /// Byte offset of the magic.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

impl Signature {
    /// Offset and length in bytes of the sectors that hold it.
    pub fn sectors(&self, sector: u32) -> (u64, u64) {
        let unit = u64::from(sector);
        let start = self.offset / unit * unit;
        (start, (self.offset + self.length).next_multiple_of(unit) - start)
    }
}

/// Magics at fixed offsets from the start.
const FIXED: &[(&str, u64, &[u8])] = &[
    ("XFS", 0, b"XFSB"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("squashfs", 0, b"hsqs"),
    ("Ceph BlueStore", 0, b"bluestore block device\n"),
    ("MD RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("APFS", 32, b"NXSB"),
    ("FAT", 54, b"FAT12   "),
    ("FAT", 54, b"FAT16   "),
    ("FAT", 82, b"FAT32   "),
    ("BFS", 0, b"\xce\xfa\xad\x1b"),
    ("cramfs", 0, b"\x45\x3d\xcd\x28"),
    ("cramfs", 0, b"\x28\xcd\x3d\x45"),
    ("cramfs", 512, b"\x45\x3d\xcd\x28"),
    ("LVM physical volume", 0, b"LABELONE"),
    ("LVM physical volume", 512, b"LABELONE"),
    ("LVM physical volume", 1024, b"LABELONE"),
    ("LVM physical volume", 1536, b"LABELONE"),
    ("GPT partition table", 512, b"EFI PART"),
    ("GPT partition table", 4096, b"EFI PART"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("HFS+", 1024, b"H+\x00\x04"),
    ("Minix", 1040, b"\x7f\x13"),
    ("Minix", 1040, b"\x8f\x13"),
    ("Minix", 1040, b"\x68\x24"),
    ("Minix", 1040, b"\x78\x24"),
    ("Minix", 1048, b"\x5a\x4d"),
    ("NILFS2", 1030, b"\x34\x34"),
    ("ext2/3/4", 1080, b"\x53\xef"),
    ("OCFS2", 1024, b"OCFSV2"),
    ("OCFS2", 2048, b"OCFSV2"),
    ("OCFS2", 4096, b"OCFSV2"),
    ("OCFS2", 8192, b"OCFSV2"),
    ("MD RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("bcachefs", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 4086, b"SWAP-SPACE"),
    ("swap", 65526, b"SWAPSPACE2"),
    ("suspended machine", 4086, b"S1SUSPEND"),
    ("JFS", 32768, b"JFS1"),
    ("ISO 9660", 32769, b"CD001"),
    ("UDF", 32769, b"BEA01"),
    ("UDF", 34817, b"NSR0"),
    ("GFS2", 65536, b"\x01\x16\x19\x70\x00\x00\x00\x01"),
    ("ReiserFS", 65588, b"ReIsEr"),
    ("btrfs", 65600, b"_BHRfS_M"),
    ("VMFS", 2097152, b"\x0d\xd0\x01\xc0"),
];

/// First bytes of the device in which every fixed magic but the farthest lies.
const HEAD: usize = 256 << 10;
/// Bytes of one request.
const STEP: usize = 64 << 10;

/// All foreign signatures on the device. Shoal's own is not among them.
///
/// # Errors
/// `Io` if the device cannot be read.
pub fn signatures(dev: &dyn BlockDevice) -> Result<Vec<Signature>> {
    let head = read_at(dev, 0, HEAD)?;
    let mut found = Vec::new();
    for (what, offset, magic) in FIXED {
        let seen = match head.get(*offset as usize..*offset as usize + magic.len()) {
            Some(bytes) => bytes == *magic,
            None => read_at(dev, *offset, magic.len())?.starts_with(magic),
        };
        if seen {
            found.push(Signature { what, offset: *offset, length: magic.len() as u64 });
        }
    }
    if let Some(signature) = partition_table(&head) {
        found.push(signature);
    }
    found.extend(zfs(&head, 0));
    found.extend(tail(dev)?);
    Ok(found)
}

/// The first foreign signature within the device's first bytes, as far as `head` has them.
pub fn in_head(head: &[u8]) -> Option<Signature> {
    let seen = |(_, offset, magic): &&(&str, u64, &[u8])| {
        head.get(*offset as usize..*offset as usize + magic.len()).is_some_and(|bytes| bytes == *magic)
    };
    let fixed = FIXED.iter().find(seen);
    fixed
        .map(|(what, offset, magic)| Signature { what, offset: *offset, length: magic.len() as u64 })
        .or_else(|| partition_table(head))
}

/// `length` bytes from `offset`, widened to whole sectors; empty behind the end.
fn read_at(dev: &dyn BlockDevice, offset: u64, length: usize) -> Result<Vec<u8>> {
    let unit = u64::from(dev.logical_block());
    let start = offset / unit * unit;
    let end = (offset + length as u64).next_multiple_of(unit).min(dev.size() / unit * unit);
    if end <= offset {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; (end - start) as usize];
    for (i, part) in bytes.chunks_mut(STEP).enumerate() {
        dev.read(start + (i * STEP) as u64, part)?;
    }
    bytes.drain(..(offset - start) as usize);
    bytes.truncate(length);
    Ok(bytes)
}

/// A partition table of the DOS kind: the mark, and at least one entry that makes sense. A boot
/// sector of FAT or NTFS bears the mark too, but they are found by their own magic.
fn partition_table(head: &[u8]) -> Option<Signature> {
    let sector = head.get(..512)?;
    (sector[510..] == [0x55, 0xaa]).then_some(())?;
    let entry = |i: usize| &sector[446 + 16 * i..446 + 16 * (i + 1)];
    let sane = (0..4).all(|i| matches!(entry(i)[0], 0 | 0x80));
    let any = (0..4).any(|i| entry(i)[4] != 0 && entry(i)[12..16] != [0; 4]);
    (sane && any).then_some(Signature { what: "DOS partition table", offset: 510, length: 2 })
}

/// A pool's uberblock in the label that begins at `label` of `bytes`: its place in the ring varies.
fn zfs(bytes: &[u8], label: u64) -> Option<Signature> {
    const RING: usize = 128 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let ring = bytes.get(RING..HEAD)?;
    let at = ring.chunks(1024).position(|slot| {
        let magic = u64::from_le_bytes(slot[..8].try_into().expect("8 bytes"));
        magic == MAGIC || magic.swap_bytes() == MAGIC
    })?;
    Some(Signature { what: "ZFS pool member", offset: label + (RING + at * 1024) as u64, length: 8 })
}

/// What stands near the end: backup GPT, RAID superblocks, ZFS labels.
fn tail(dev: &dyn BlockDevice) -> Result<Vec<Signature>> {
    const MD: &[u8] = b"\xfc\x4e\x2b\xa9";
    let size = dev.size() / 512 * 512;
    let mut places: Vec<(&'static str, u64, &[u8])> = vec![
        ("GPT partition table (backup)", size.saturating_sub(512), b"EFI PART"),
        ("GPT partition table (backup)", size.saturating_sub(4096), b"EFI PART"),
        // Version 0.90: the last whole 64 KiB; 1.0: 8 KiB before the end, on a 4 KiB boundary.
        ("MD RAID member", (size & !0xffff).saturating_sub(0x10000), MD),
        ("MD RAID member", size.saturating_sub(8192) & !0xfff, MD),
    ];
    places.retain(|(_, offset, _)| *offset > HEAD as u64);
    let mut found = Vec::new();
    for (what, offset, magic) in places {
        if read_at(dev, offset, magic.len())? == magic {
            found.push(Signature { what, offset, length: magic.len() as u64 });
        }
    }
    for back in [1, 2] {
        let Some(label) = (size & !(HEAD as u64 - 1)).checked_sub(back * HEAD as u64) else { continue };
        if label > 0 {
            found.extend(zfs(&read_at(dev, label, HEAD)?, label));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
