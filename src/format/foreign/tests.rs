use super::*;
use crate::device::{Access, FileDevice};
use std::os::unix::fs::FileExt;

fn image(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn seen(file: &tempfile::NamedTempFile) -> Vec<Signature> {
    signatures(&FileDevice::open(file.path(), Access::Read).unwrap()).unwrap()
}

#[test]
fn nothing_is_seen_where_nothing_is() {
    for size in [0, 512, 4096, 300 << 10, 8 << 20] {
        assert_eq!(seen(&image(size)), [], "{size}");
    }
}

#[test]
fn each_magic_of_the_table_is_seen_and_its_sectors_hold_it() {
    for (what, offset, magic) in FIXED {
        let file = image(8 << 20);
        file.as_file().write_all_at(magic, *offset).unwrap();
        let found = seen(&file);
        assert!(found.iter().any(|s| s.what == *what && s.offset == *offset), "{what}: {found:?}");
        for sector in [512, 4096] {
            let (start, length) = found[0].sectors(sector);
            assert!(start <= *offset && offset + magic.len() as u64 <= start + length);
            assert!(start.is_multiple_of(sector.into()) && length.is_multiple_of(sector.into()));
        }
    }
}

#[test]
fn what_stands_at_the_end_is_seen() {
    let size = (8 << 20) + 512 * 3;
    for (what, offset, magic) in [
        ("GPT partition table (backup)", size - 512, &b"EFI PART"[..]),
        ("MD RAID member", (size & !0xffff) - 0x10000, b"\xfc\x4e\x2b\xa9"),
        ("MD RAID member", (size - 8192) & !0xfff, b"\xfc\x4e\x2b\xa9"),
        ("ZFS pool member", (7 << 20) + (768 << 10) + (130 << 10), b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
        ("ZFS pool member", 200 << 10, b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    ] {
        let file = image(size);
        file.as_file().write_all_at(magic, offset).unwrap();
        assert!(seen(&file).iter().any(|s| s.what == what && s.offset == offset), "{what} at {offset}");
    }
}

#[test]
fn a_boot_mark_alone_is_no_partition_table() {
    let file = image(1 << 20);
    file.as_file().write_all_at(b"\x55\xaa", 510).unwrap();
    assert_eq!(seen(&file), []);
    file.as_file().write_all_at(b"\x80\0\0\0\x83\0\0\0\0\x08\0\0\0\0\x10\0", 446).unwrap();
    assert_eq!(seen(&file)[0].what, "DOS partition table");
}
