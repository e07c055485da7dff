use super::*;
use crate::device::{Access, FileDevice};
use zerocopy::FromBytes;

fn superblock() -> Superblock {
    Superblock {
        format_id: 0x1122_3344_5566_7788,
        uuid: *b"0123456789abcdef",
        hash_seed: [0xa5; 16],
        compat: 1,
        ro_compat: 0,
        incompat: 0,
        geometry: Geometry {
            total_blocks: 16384,
            max_slots: 4,
            cell_pitch: 512,
            ledger_pages: 1,
            ag_blocks: 2048,
            ag_count: 8,
        },
        timing: TimingProfile::San,
        created: 1_700_000_000,
        root_inode: 1024,
    }
}

fn device(blocks: &[(BlockNo, Block)]) -> (tempfile::NamedTempFile, FileDevice) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let dev = FileDevice::open(file.path(), Access::Mount).unwrap();
    for (place, block) in blocks {
        dev.write(place.byte(), &block.0).unwrap();
    }
    (file, dev)
}

#[test]
fn round_trip_and_own_place() {
    let sb = superblock();
    for place in [SUPERBLOCK, BACKUP_SUPERBLOCK, BlockNo(2560)] {
        let block = sb.to_block(place);
        assert_eq!(Superblock::from_block(&block, place).unwrap(), sb);
        assert!(Superblock::from_block(&block, BlockNo(place.0 + 1)).is_err());
    }
}

#[test]
fn each_flipped_bit_is_damage_never_a_panic() {
    let good = superblock().to_block(SUPERBLOCK);
    for bit in 0..600 * 8 {
        let mut b = good.clone();
        b.0[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::from_block(&b, SUPERBLOCK).is_err(), "bit {bit}");
    }
}

/// Values that no mkfs writes, under a good checksum: a newer or a broken program wrote them.
#[test]
fn impossible_values_are_refused() {
    type Change = fn(&mut DiskSuperblock);
    let changes: [(&str, Change); 15] = [
        ("version", |d| d.version = U32::new(2)),
        ("blocks of 8192", |d| d.block_size = U32::new(8192)),
        ("slots", |d| d.max_slots = U16::new(65)),
        ("slots", |d| d.max_slots = U16::new(0)),
        ("pitch", |d| d.cell_pitch = U32::new(1024)),
        ("groups of", |d| d.ag_blocks = U64::new(3000)),
        ("groups of", |d| d.ag_blocks = U64::new(0)),
        ("16384 groups", |d| d.ag_count = U32::new(16385)),
        ("16384 groups", |d| d.ag_count = U32::new(0)),
        ("within the volume", |d| d.ag_count = U32::new(9)),
        ("within the volume", |d| d.total_blocks = U64::new(u64::MAX)),
        ("within the volume", |d| d.total_blocks = U64::new(1 << 52)),
        ("ledgers", |d| d.ledger_pages = U32::new(0)),
        ("ledgers", |d| d.ledger_pages = U32::new(u32::MAX)),
        ("timing", |d| d.timing = 3),
    ];
    for (what, change) in changes {
        let mut block = superblock().to_block(SUPERBLOCK);
        change(DiskSuperblock::mut_from_prefix(block.body_mut()).unwrap().0);
        block.seal();
        let e = Superblock::from_block(&block, SUPERBLOCK).unwrap_err().to_string();
        assert!(e.contains(what), "{what}: {e}");
    }
}

#[test]
fn features_refuse_by_bit() {
    let with = |incompat, ro_compat, compat| Superblock { incompat, ro_compat, compat, ..superblock() };
    assert!(with(0, 0, u64::MAX).check_features(true).is_ok());
    let e = with(0x20, 0, 0).check_features(false).unwrap_err().to_string();
    assert!(e.contains("0x20"), "{e}");
    assert!(with(0, 4, 0).check_features(false).is_ok());
    let e = with(0, 4, 0).check_features(true).unwrap_err().to_string();
    assert!(e.contains("0x4") && e.contains("-o ro"), "{e}");
}

#[test]
fn backups_stand_in_for_a_torn_primary_in_order() {
    let sb = superblock();
    let second = sb.geometry.group_backup_superblock().unwrap();
    let mut torn = sb.to_block(SUPERBLOCK);
    torn.0[512..].fill(0x77);
    let all = [SUPERBLOCK, BACKUP_SUPERBLOCK, second].map(|p| (p, sb.to_block(p)));
    let (_f, dev) = device(&all);
    assert_eq!(load(&dev).unwrap(), (sb.clone(), LoadedFrom::Primary));
    dev.write(0, &torn.0).unwrap();
    assert_eq!(load(&dev).unwrap(), (sb.clone(), LoadedFrom::Backup(BACKUP_SUPERBLOCK)));
    dev.write(BACKUP_SUPERBLOCK.byte(), &[0; 4096]).unwrap();
    assert_eq!(load(&dev).unwrap(), (sb, LoadedFrom::Backup(second)));
    dev.write(second.byte(), &[0; 4096]).unwrap();
    assert!(load(&dev).unwrap_err().to_string().contains("damaged"));
}

#[test]
fn a_truncated_device_is_refused_with_both_sizes() {
    let sb = superblock();
    let (file, _) = device(&[(SUPERBLOCK, sb.to_block(SUPERBLOCK))]);
    file.as_file().set_len((64 << 20) - 4096).unwrap();
    let dev = FileDevice::open(file.path(), Access::Read).unwrap();
    let e = load(&dev).unwrap_err().to_string();
    assert!(e.contains("67108864") && e.contains("67104768"), "{e}");
    file.as_file().set_len(4096).unwrap();
    let dev = FileDevice::open(file.path(), Access::Read).unwrap();
    assert!(load(&dev).unwrap_err().to_string().contains("not a Shoal volume"));
}

/// An image in memory on a disk of 4 KiB blocks.
struct Native4k(Vec<u8>);

impl BlockDevice for Native4k {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn logical_block(&self) -> u32 {
        4096
    }
    fn physical_block(&self) -> u32 {
        4096
    }
    fn name(&self) -> String {
        "native".into()
    }
}

#[test]
fn cells_that_the_device_cannot_write_alone_are_refused() {
    let on_4k = |cell_pitch| {
        let sb = Superblock { geometry: Geometry { cell_pitch, ..superblock().geometry }, ..superblock() };
        let mut bytes = vec![0; 64 << 20];
        bytes[..4096].copy_from_slice(&sb.to_block(SUPERBLOCK).0);
        load(&Native4k(bytes))
    };
    assert!(on_4k(4096).is_ok());
    let e = on_4k(512).unwrap_err().to_string();
    assert!(e.contains("512") && e.contains("4096"), "{e}");
}
