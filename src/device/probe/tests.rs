use super::*;
#[test]
fn identity_tells_files_apart_and_mounts_are_read() {
    let (a, b) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let id = |f: &tempfile::NamedTempFile| identity(f.as_file()).unwrap();
    assert_eq!(id(&a), id(&a));
    assert_ne!(id(&a), id(&b));
    assert_eq!(in_use(a.path()).unwrap(), None);
    let line = "36 35 0:42 / /mnt/a\\040b rw,noatime shared:1 - fuse.shoal /dev/my\\134disk rw";
    let mount = Mount::parse(line).unwrap();
    assert_eq!((mount.at.as_str(), mount.source.as_str()), ("/mnt/a b", "/dev/my\\disk"));
    assert_eq!(mount.device, Some(libc::makedev(0, 42)));
}

#[test]
fn a_machine_without_an_identity_has_none() {
    assert_eq!(machine_id_in("000102030405060708090a0b0c0d0e0f\n"), Some(std::array::from_fn(|n| n as u8)));
    for none in ["", "uninitialized\n", "00000000000000000000000000000000\n", "0001"] {
        assert_eq!(machine_id_in(none), None, "{none:?}");
    }
}
