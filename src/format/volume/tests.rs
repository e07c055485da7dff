use super::*;
use crate::device::{Access, FileDevice};
use crate::format::Geometry;

fn superblock() -> Superblock {
    Superblock {
        format_id: 5,
        uuid: [0; 16],
        hash_seed: [0; 16],
        compat: 0,
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
        timing: TimingProfile::Default,
        created: 0,
        root_inode: 1024,
    }
}

fn volume() -> Volume {
    let slot = |start, inode| SlotExtents {
        journal_start: BlockNo(start),
        journal_blocks: 1024,
        inode: InodeNo(inode),
    };
    Volume {
        sequence: 1,
        features: 6,
        total_blocks: 16384,
        ag_count: 8,
        timing: TimingProfile::Test,
        label: "schön".into(),
        slots: vec![slot(1536, 1025), slot(7680, 7168)],
    }
}

fn device() -> (tempfile::NamedTempFile, FileDevice) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let dev = FileDevice::open(file.path(), Access::Mount).unwrap();
    (file, dev)
}

#[test]
fn copies_alternate_and_the_newest_valid_one_counts() {
    let (sb, (_f, dev)) = (superblock(), device());
    assert!(load(&dev, &sb).is_err());
    let mut v = volume();
    for label in ["a", "b", "c"] {
        let older = v.sequence;
        v.label = label.into();
        store(&dev, &sb, &mut v).unwrap();
        assert_eq!(v.sequence, older + 1);
        assert_eq!(load(&dev, &sb).unwrap(), v);
    }
    // The write of the next copy tears: the one before it counts.
    let (place, mut block) = Volume { sequence: v.sequence + 1, ..v.clone() }.to_block(sb.format_id);
    block.0[600..].fill(0x11);
    dev.write(place.byte(), &block.0).unwrap();
    assert_eq!(load(&dev, &sb).unwrap(), v);
}

#[test]
fn an_older_life_of_the_disk_does_not_speak() {
    let (sb, (_f, dev)) = (superblock(), device());
    store(&dev, &sb, &mut volume()).unwrap();
    assert!(load(&dev, &Superblock { format_id: 6, ..sb }).is_err());
}

#[test]
fn impossible_values_are_refused() {
    type Change = fn(&mut DiskVolume);
    let changes: [(&str, Change); 9] = [
        ("slots", |d| d.slots = U16::new(0)),
        ("slots", |d| d.slots = U16::new(5)),
        ("timing", |d| d.timing = 9),
        ("groups", |d| d.ag_count = U32::new(0)),
        ("within the volume", |d| d.total_blocks = U64::new(600)),
        ("journal inside", |d| d.slot_table[1].journal_start = U64::new(16000)),
        ("journal inside", |d| d.slot_table[1].journal_blocks = U64::new(u64::MAX)),
        ("possible size", |d| d.slot_table[0].journal_blocks = U64::new(3)),
        ("slot inode", |d| d.slot_table[0].inode = U64::new(9)),
    ];
    let sb = superblock();
    for (what, change) in changes {
        let (place, mut block) = volume().to_block(sb.format_id);
        change(block.body_as_mut::<DiskVolume>());
        block.seal();
        let e = Volume::from_block(&block, &sb, place).unwrap_err().to_string();
        assert!(e.contains(what), "{what}: {e}");
    }
}

#[test]
fn a_grown_volume_has_its_own_geometry() {
    let sb = superblock();
    let grown = Volume { total_blocks: 32768, ag_count: 16, ..volume() };
    let (place, block) = grown.to_block(sb.format_id);
    let g = Volume::from_block(&block, &sb, place).unwrap().geometry(&sb);
    assert_eq!((g.total_blocks, g.ag_count, g.groups_start()), (32768, 16, sb.geometry.groups_start()));
}
