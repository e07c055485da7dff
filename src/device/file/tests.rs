use super::*;

fn image(size: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    FileDevice::create_image(&path, size).unwrap();
    (dir, path)
}

#[test]
fn any_buffer_alignment_reads_what_was_written() {
    let (_d, path) = image(1 << 20);
    let dev = FileDevice::open(&path, Access::Mount).unwrap();
    let unit = dev.logical_block() as usize;
    let data: Vec<u8> = (0..unit * 9).map(|i| (i % 251) as u8).collect();
    for shift in [0, 1, 511] {
        let mut padded = vec![0; shift];
        padded.extend(&data);
        dev.write(unit as u64 * 3, &padded[shift..]).unwrap();
        let mut back = vec![0xff; shift + data.len()];
        dev.read(unit as u64 * 3, &mut back[shift..]).unwrap();
        assert_eq!(&back[shift..], &data[..], "{shift}");
    }
}

#[test]
fn requests_beyond_the_end_are_errors_that_name_the_place() {
    let (_d, path) = image(8192);
    let dev = FileDevice::open(&path, Access::Read).unwrap();
    match dev.read(8192, &mut [0; 4096]) {
        Err(Error::Io { op: "read", offset: 8192, length: 4096, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(dev.write(0, &[0; 4096]).is_err(), "opened for reading only");
}

#[test]
fn cleared_ranges_read_as_zeros_and_nothing_else_does() {
    let (_d, path) = image(1 << 20);
    let dev = FileDevice::open(&path, Access::Mount).unwrap();
    for clear in [FileDevice::write_zeros, FileDevice::discard] {
        dev.write(0, &[7; 1 << 16]).unwrap();
        clear(&dev, 4096, 8192).unwrap();
        dev.flush().unwrap();
        let mut back = vec![1; 1 << 16];
        dev.read(0, &mut back).unwrap();
        let zeros = back.iter().filter(|b| **b == 0).count();
        assert_eq!((zeros, back[4095], back[4096 + 8192]), (8192, 7, 7));
    }
    crate::base::block_device::write_zeros_by_hand(&dev, 0, 512 << 10).unwrap();
    let mut back = vec![1; 512 << 10];
    dev.read(0, &mut back).unwrap();
    assert!(back.iter().all(|b| *b == 0));
    assert_eq!(dev.size(), 1 << 20);
}

#[test]
fn byte_range_locks_are_of_the_open_description() {
    let (_d, path) = image(1 << 20);
    let a = FileDevice::open(&path, Access::Mount).unwrap();
    let b = FileDevice::open(&path, Access::Mount).unwrap();
    assert!(a.try_lock_range(4096, 512).unwrap());
    assert!(a.try_lock_range(4096, 512).unwrap(), "one's own lock is no obstacle");
    assert!(!b.try_lock_range(4096, 512).unwrap());
    assert!(!b.try_lock_range(0, 1 << 20).unwrap());
    assert!(b.try_lock_range(4608, 512).unwrap());
    a.unlock_range(4096, 512).unwrap();
    assert!(b.try_lock_range(4096, 512).unwrap());
    drop(b);
    assert!(a.try_lock_range(0, 1 << 20).unwrap(), "closing gives up all");
}

#[test]
fn images_are_extended_never_shortened() {
    let (dir, path) = image(8192);
    FileDevice::create_image(&path, 16384).unwrap();
    FileDevice::create_image(&path, 4096).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 16384);
    assert!(FileDevice::create_image(dir.path(), 4096).is_err());
}

#[test]
fn what_is_no_device_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("none"), "/dev/null".into()] {
        let e = FileDevice::open(&path, Access::Read).err().unwrap().to_string();
        assert!(e.contains(path.to_str().unwrap()), "{e}");
    }
}

#[test]
fn requests_are_counted() {
    let (_d, path) = image(1 << 20);
    let dev = FileDevice::open(&path, Access::Mount).unwrap();
    dev.write(0, &[1; 8192]).unwrap();
    dev.read(0, &mut [0; 4096]).unwrap();
    dev.read(4096, &mut [0; 4096]).unwrap();
    dev.flush().unwrap();
    let expected = IoCounts { reads: 2, read_bytes: 8192, writes: 1, written_bytes: 8192, flushes: 1 };
    assert_eq!(dev.counts(), expected);
    assert_eq!(expected.to_string(), "reads=2 read_bytes=8192 writes=1 written_bytes=8192 flushes=1");
}
