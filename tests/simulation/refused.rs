//! A mount that fails when the others have let it in already.

use crate::host::Host;
use crate::story::volume;
use shoal::base::{Error, SlotId};
use shoal::cluster::{Disk, read_status};
use shoal::device::BlockDevice;
use shoal::format::{superblock, volume as volume_block};
use std::time::Duration;

/// Its slot's journal cannot be used. It goes again, so nobody waits for its word, and with the
/// journal whole again the slot is as good as any.
#[test]
fn who_cannot_open_its_journal_leaves_again() {
    let disk = volume(64, 2);
    let a = Host::mount(&disk, "a").expect("mount");
    a.create("/before").expect("create");
    let (superblock, _) = superblock::load(&*disk).expect("superblock");
    let slots = volume_block::load(&*disk, &superblock).expect("volume block").slots;
    let headers = slots[1].journal_start.byte();
    let mut whole = vec![0; 8192];
    disk.read(headers, &mut whole).expect("read");
    disk.write(headers, &[0x77; 8192]).expect("write");
    for _ in 0..2 {
        let error = Host::mount(&disk, "b").err().expect("it must be refused");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        let coordination =
            Disk { device: disk.clone(), format_id: superblock.format_id, geometry: superblock.geometry };
        let status = read_status(&coordination, None).expect("status");
        let there: Vec<SlotId> = status.occupied().map(|host| host.slot).collect();
        assert_eq!(there, [SlotId(0)], "only a");
    }
    // Longer than a silent member takes to be noticed; then everything of a's must still go.
    std::thread::sleep(Duration::from_secs(3));
    for n in 0..50 {
        a.mkdir(&format!("/d{n}")).expect("mkdir");
    }
    disk.write(headers, &whole).expect("write");
    let b = Host::mount(&disk, "b").expect("mount");
    b.create("/after").expect("create");
    b.stop().expect("a clean leave");
    a.stop().expect("a clean leave");
}
