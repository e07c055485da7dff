//! Which other filesystem or table lives on a device: known magic numbers at known places.
//!
//! The table covers what administrators keep on shared disks; offsets and bytes as libblkid has them.

use super::BlockDevice;
use crate::base::Result;

/// Offset in bytes, magic, name.
const SIGNATURES: [(u64, &[u8], &str); 19] = [
    (1080, &[0x53, 0xef], "ext2, ext3 or ext4"),
    (0, b"XFSB", "XFS"),
    (65600, b"_BHRfS_M", "Btrfs"),
    (65536, &[0x01, 0x16, 0x19, 0x70], "GFS2"),
    (4096, b"OCFSV2", "OCFS2"),
    (8192, b"OCFSV2", "OCFS2"),
    (1024, b"OCFSV2", "OCFS2"),
    (2048, b"OCFSV2", "OCFS2"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (54, b"FAT1", "FAT"),
    (82, b"FAT32   ", "FAT32"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (536, b"LVM2 001", "an LVM physical volume"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "an md RAID member"),
    (4086, b"SWAPSPACE2", "swap"),
    (32769, b"CD001", "ISO 9660"),
    (512, b"EFI PART", "a GPT partition table"),
];

/// The name of what is on the device, if it is something known that is not ours.
///
/// # Errors
/// `Io`.
pub fn foreign_signature(dev: &dyn BlockDevice) -> Result<Option<&'static str>> {
    const LOOK: u64 = 68 << 10;
    let unit = u64::from(dev.logical_block());
    let mut head = vec![0; (LOOK.min(dev.size()) / unit * unit) as usize];
    dev.read(0, &mut head)?;
    let at =
        |offset: u64, magic: &[u8]| head.get(offset as usize..).is_some_and(|rest| rest.starts_with(magic));
    for (offset, magic, name) in SIGNATURES {
        if at(offset, magic) {
            return Ok(Some(name));
        }
    }
    // An MBR is only its boot mark; a used partition entry makes it a table.
    let used = (0..4).any(|i| head.get(450 + i * 16).is_some_and(|kind| *kind != 0));
    Ok((at(510, &[0x55, 0xaa]) && used).then_some("an MBR partition table"))
}
