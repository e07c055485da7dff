use super::heartbeat::{DeviceFile, FenceTrouble, Refusal, Replaying};
use super::inbox::{RegisterCell, encode_register};
use super::lobby::ClaimKind;
use super::*;
use crate::base::{AgNo, Epoch, LockName, Mode, Token};
use crate::format::block::Block;
use std::collections::HashMap;

fn geometry(pitch: u32) -> Geometry {
    Geometry {
        total_blocks: 1 << 20,
        max_slots: 4,
        cell_pitch: pitch,
        ledger_pages: 2,
        ag_blocks: 1 << 11,
        ag_count: 300,
    }
}

fn entry(i: u64) -> Entry {
    Entry {
        lock: LockName::Ag(AgNo(i as u32)),
        kind: EntryKind::Grant,
        mode: Mode::S,
        held: Mode::X,
        cap: Mode::DW,
        flags: 7,
        token: Token(i + 1),
        number: i * 3,
        seq: u64::MAX - i,
    }
}

#[test]
fn heartbeat_round_trip_and_damage() {
    for pitch in [512, 4096] {
        let g = geometry(pitch);
        let beat = Heartbeat {
            slot: SlotId(3),
            incarnation: Incarnation(77),
            counter: 9,
            host: [1; 16],
            boot: [2; 16],
            epoch: Epoch(5),
            ack: Epoch(4),
            excluded: 6,
            ledger_sequence: 12,
            refused: Some((Incarnation(5), Refusal::NoSlot)),
            protocols: (1, 2),
            flags: heartbeat::FLAG_LEAVING,
            journal_head: 8,
            journal_tail: 7,
            free_data: 1,
            free_meta: 2,
            groups: 3,
            wall_ms: 44,
            file: DeviceFile { dev: 1, ino: 2, rdev: 3 },
            reservation_key: 99,
            fencing: Some(FenceTrouble { slot: SlotId(5), attempts: 6, error: "no".into() }),
            replaying: Some(Replaying { slot: SlotId(4), since_ms: 45, done: 46, total: 47 }),
            name: "köln".into(),
            device: "/dev/x".into(),
        };
        let mut cell = beat.to_cell(5, &g);
        assert_eq!(cell.len(), pitch as usize);
        assert_eq!(Heartbeat::from_cell(&cell, 5, &g, SlotId(3)).unwrap(), beat);
        assert!(Heartbeat::from_cell(&cell, 6, &g, SlotId(3)).is_err(), "other format id");
        assert!(Heartbeat::from_cell(&cell, 5, &g, SlotId(2)).is_err(), "other place");
        for at in 0..cell.len() {
            cell[at] ^= 1;
            assert!(Heartbeat::from_cell(&cell, 5, &g, SlotId(3)).is_err(), "byte {at}");
            cell[at] ^= 1;
        }
    }
}

#[test]
fn long_names_are_cut_at_characters() {
    let g = geometry(512);
    let beat = Heartbeat { name: "ä".repeat(40), ..Heartbeat::default() };
    let read = Heartbeat::from_cell(&beat.to_cell(1, &g), 1, &g, SlotId(0)).unwrap();
    assert_eq!(read.name, "ä".repeat(32));
}

#[test]
fn registers_of_every_length() {
    for pitch in [512, 4096] {
        let g = geometry(pitch);
        let stamp = Stamp { slot: SlotId(1), incarnation: Incarnation(4), sequence: 3 };
        for n in [0, 1, 10, 11, 100, 101, 112, 113, REGISTER_ENTRIES_MAX] {
            let entries: Vec<_> = (0..n as u64).map(entry).collect();
            let image = encode_register(5, &g, SlotId(2), Incarnation(8), stamp, &entries);
            assert!(image.overflow.len() <= 4 * 4096);
            let cell = RegisterCell::from_cell(&image.cell, 5, &g, SlotId(2), SlotId(1)).unwrap();
            assert_eq!((cell.stamp, cell.meant_for), (stamp, Incarnation(8)));
            assert_eq!(cell.overflow_bytes(), image.overflow.len());
            assert_eq!(cell.entries(&image.overflow).unwrap(), entries);
        }
    }
}

#[test]
fn old_overflow_behind_a_new_cell_is_torn() {
    let g = geometry(512);
    let stamp = Stamp { slot: SlotId(1), incarnation: Incarnation(4), sequence: 3 };
    let old: Vec<_> = (0..50).map(entry).collect();
    let new: Vec<_> = (1..51).map(entry).collect();
    let image = |entries: &[Entry]| encode_register(5, &g, SlotId(2), Incarnation(8), stamp, entries);
    let cell = RegisterCell::from_cell(&image(&new).cell, 5, &g, SlotId(2), SlotId(1)).unwrap();
    assert!(cell.entries(&image(&old).overflow).is_err());
    assert!(cell.entries(&[]).is_err());
    assert_eq!(cell.entries(&image(&new).overflow).unwrap(), new);
}

#[test]
fn views_of_every_state() {
    let g = geometry(512);
    let mut view = View::initial(4, 2);
    view.slots[0].state = SlotState::Live { former: Some(SlotId(2)) };
    view.slots[1].state = SlotState::Live { former: None };
    view.slots[2].state = SlotState::Dead { adopter: SlotId(0) };
    view.slots[3].state = SlotState::Clean { adopter: Adopter::Slot(SlotId(1)) };
    view.slots[3].incarnation = Incarnation(u64::MAX);
    let ballot = Ballot { mbal: 65, bal: 64, input: Some(view), decided: View::initial(4, 4) };
    let (place, block) = ballot.to_block(9, &g, SlotId(3), Incarnation(1), 7);
    assert_eq!(place, g.ballot(SlotId(3), 1));
    assert_eq!(Ballot::from_block(&block, 9, &g, SlotId(3), 1).unwrap(), (ballot, 7));
    assert!(Ballot::from_block(&block, 9, &g, SlotId(3), 0).is_err());
    for (at, value) in [(64 + 64 + 18, 65), (64 + 64 + 64, 9), (64 + 64 + 66, 9)] {
        let mut wrong: Block = block.clone();
        wrong.0[at] = value;
        wrong.0[at + 1] = 0;
        wrong.seal();
        assert!(Ballot::from_block(&wrong, 9, &g, SlotId(3), 1).is_err(), "byte {at}");
    }
}

#[test]
fn claims_round_trip() {
    let g = geometry(4096);
    let claim = Claim {
        kind: ClaimKind::Join,
        over: vec![Incarnation(5), Incarnation(6)],
        incarnation: Incarnation(3),
        sequence: 2,
        boot: [6; 16],
        file: DeviceFile { dev: 7, ino: 8, rdev: 9 },
        host: [9; 16],
        protocols: (1, 1),
        name: "a".into(),
    };
    let cell = claim.to_cell(1, &g, 63);
    assert_eq!(Claim::from_cell(&cell, 1, &g, 63).unwrap(), claim);
    assert!(Claim::from_cell(&cell, 1, &g, 62).is_err());
}

#[test]
fn what_mkfs_writes_reads_back() {
    for pitch in [512, 4096] {
        let g = geometry(pitch);
        let mut disk: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut end = 0;
        initial_regions(1, &g, 3, &mut |at, bytes| {
            assert!(at >= end, "ascending");
            assert_eq!(at % 512, 0);
            end = at + bytes.len() as u64;
            disk.insert(at, bytes.to_vec());
            Ok(())
        })
        .unwrap();
        assert!(end <= crate::base::BlockNo(g.regions().end).byte());
        let block = |no: crate::base::BlockNo| Block::new(disk[&no.byte()][..].try_into().unwrap());
        let mut owners = vec![];
        for slot in (0..4).map(SlotId) {
            for copy in [0, 1] {
                let (ballot, _) =
                    Ballot::from_block(&block(g.ballot(slot, copy)), 1, &g, slot, copy).unwrap();
                assert_eq!(ballot.decided, View::initial(4, 3));
                for page in 0..2 {
                    let (ledger, _) =
                        LedgerPage::from_block(&block(g.ledger(slot, page, copy)), 1, &g, slot, page, copy)
                            .unwrap();
                    let owned = ledger.entries.iter().enumerate().filter(|(_, e)| e.token() == Token(1));
                    owners.extend(owned.map(|(i, _)| (page as usize * 252 + i, slot, copy)));
                }
            }
            let row = &disk[&g.inbox_cell(slot, SlotId(0))];
            for (i, cell) in row.chunks(pitch as usize).enumerate() {
                let cell = RegisterCell::from_cell(cell, 1, &g, slot, SlotId(i as u16)).unwrap();
                assert_eq!(cell.entries(&[]).unwrap(), []);
            }
        }
        owners.sort();
        let expected: Vec<_> =
            (0..300).flat_map(|ag| [0, 1].map(|copy| (ag, SlotId((ag % 3) as u16), copy))).collect();
        assert_eq!(owners, expected);
    }
}
