//! Every finding has a test that damages a volume in just that way, and no damage is a panic.

mod cases;
mod volume;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal::base::{BlockNo, SlotId};
use shoal::format::BlockKind;
use shoal::format::item::ItemKind;
use shoal::format::journal::JournalPlace;
use shoal_fsck::{Code, Finding, Report};
use std::collections::BTreeSet;
use volume::{Damaged, blocks, crashed, replayed};

#[test]
fn a_sound_volume_is_sound() {
    let disk = Damaged::of(replayed());
    let report = disk.check();
    assert!(report.is_sound(), "{report:#?}");
    assert!(report.replayed.is_empty() && !report.was_clean && report.orphans == 1);
    let t = report.totals;
    assert_eq!((t.files, t.directories, t.others), (405 - 1, 4, 2), "{t:?}");
}

#[test]
fn a_crashed_volume_is_sound_after_replay_into_memory() {
    let report = Damaged::of(crashed()).check();
    assert!(report.is_sound() && report.replayed.len() == 1, "{report:#?}");
}

/// A journal that is out of reach, its headers too, is a finding, and the rest is looked at all the same.
#[test]
fn a_journal_that_cannot_be_read_ends_no_check() {
    for (from, code) in [(0, Code::JournalHeader), (2, Code::JournalDamaged)] {
        let disk = Damaged::of(crashed());
        let slot = disk.volume.slots[0];
        disk.lose(slot.journal_start.plus(from)..slot.journal_start.plus(slot.journal_blocks));
        let report = disk.quick_check();
        assert!(report.counts.contains_key(&Code::JournalDamaged), "{report:#?}");
        assert!(report.counts.contains_key(&code) && report.totals.directories > 0, "{report:#?}");
    }
}

/// What a replay gives up may have been acknowledged: nobody else tells of it afterwards.
#[test]
fn what_a_replay_gives_up_is_a_finding() {
    let disk = Damaged::of(crashed());
    let (slot, id) = (disk.volume.slots[0], SlotId(0));
    let place = JournalPlace {
        format_id: disk.sb.format_id,
        slot: id,
        start: slot.journal_start,
        blocks: slot.journal_blocks,
    };
    let begins =
        |at: &u64| Some((place.read_txn_header(&disk.block(place.block_at(*at)).0, *at)?.txn.get(), *at));
    let (_, last) = (0..place.ring_blocks()).filter_map(|at| begins(&at)).max().unwrap();
    let bad = place.block_at(last);
    disk.lose(bad..bad.plus(1));
    let report = disk.quick_check();
    let lost = |f: &&Finding| f.code == Code::JournalDamaged && f.what.contains("is lost");
    assert_eq!(report.findings.iter().filter(lost).count(), 1, "{report:#?}");
    let mut found = Report::default();
    report.replayed.iter().for_each(|journal| found.note_lost(journal));
    assert!(!found.is_sound() && found.findings.len() == 1, "{found:#?}");
}

/// A host that dies while it frees a symbolic link leaves it without a target.
#[test]
fn an_orphan_on_its_way_out_may_have_lost_its_target() {
    let disk = Damaged::of(replayed());
    cases::remove(&disk, disk.ino("short").block(), ItemKind::Symlink);
    disk.attr("short", |a| a.nlink = 0);
    let found = disk.check().counts;
    assert!(!found.contains_key(&Code::SymlinkWrong), "{found:?}");
    assert!(found.contains_key(&Code::LinkCount), "it still has its name: {found:?}");
}

#[test]
fn every_damage_is_found_under_its_code() {
    let mut failures = Vec::new();
    for (name, code, damage) in cases::ALL {
        let disk = Damaged::of(replayed());
        damage(&disk);
        let report = disk.check();
        if !report.counts.contains_key(code) {
            failures.push(format!("{name}: expected {code}, got {:#?}", report.findings));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_code_has_a_case() {
    let have: BTreeSet<Code> = cases::ALL.iter().map(|(_, code, _)| *code).collect();
    let missing: Vec<&Code> = Code::ALL.iter().filter(|c| !have.contains(c)).collect();
    assert!(missing.is_empty(), "no damage shows {missing:?}");
    let names: BTreeSet<&str> = Code::ALL.iter().map(|c| c.name()).collect();
    assert_eq!(names.len(), Code::ALL.len(), "a name stands for two codes");
}

/// Metadata blocks with wrong bytes and a right checksum: whatever they say, fsck answers.
#[test]
fn no_content_of_a_block_is_a_panic() {
    let rounds = std::env::var("SHOAL_ROUNDS").map_or(300, |n| n.parse().expect("a number of rounds"));
    let seed = std::env::var("SHOAL_SEED").map_or(7, |n| n.parse().expect("a seed"));
    let (sound, original) = (Damaged::of(replayed()), Damaged::of(replayed()));
    let metadata = |at: &BlockNo| {
        sound.block(*at).kind().is_some_and(|k| sound.block(*at).verify(sound.sb.format_id, *at, k).is_ok())
    };
    let all: Vec<BlockNo> = (0..blocks(replayed())).map(BlockNo).filter(metadata).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let mut found = 0;
    for round in 0..rounds {
        let at = all[random.random_range(0..all.len())];
        println!("SHOAL_SEED={seed} round {round}: block {at}");
        for _ in 0..random.random_range(1..4) {
            let byte = random.random_range(64..4096);
            let value = if random.random_bool(0.3) { 0xff } else { random.random() };
            sound.edit(at, |b| b.0[byte] = value);
        }
        // The superblock in use fixes what is looked at: other sizes are refused as a whole.
        if sound.block(at).kind() != Some(BlockKind::Superblock) {
            let report = sound.quick_check();
            found += u32::from(!report.is_sound());
        }
        sound.put(at, &original.block(at));
    }
    assert!(found > rounds / 4, "only {found} of {rounds} damages were noticed");
}
