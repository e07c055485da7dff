//! The program itself: what it prints, what it refuses, what it leaves behind.

use shoal::base::{Incarnation, SlotId};
use shoal::device::{Access, BlockDevice, FileDevice};
use shoal::format::cluster::Heartbeat;
use shoal::format::superblock::{self, TimingProfile};
use shoal::format::volume;
use shoal_mkfs::{Options, make};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("image")
    }
}

/// Standard output, or standard error if it failed.
fn mkfs(args: &[&str], image: &Path) -> Result<String, String> {
    let (before, after) = args.split_at(args.iter().position(|a| *a == "SIZE").unwrap_or(args.len()));
    let out = Command::new(env!("CARGO_BIN_EXE_mkfs_shoal"))
        .args(before)
        .arg(image)
        .args(after.iter().skip(1))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
}

#[test]
fn an_image_is_created_with_what_was_asked_for() {
    let dir = Dir::new();
    let uuid = "6f1c2d3e-0000-4000-8000-0123456789ab";
    let args = ["-L", "projects", "-U", uuid, "-N", "3", "-J", "8M", "--timing", "test", "SIZE", "256M"];
    let out = mkfs(&args, &dir.image()).unwrap();
    assert!(out.contains(uuid) && out.contains("projects"), "{out}");
    let dev = FileDevice::open(dir.image(), Access::Read).unwrap();
    assert_eq!(dev.size(), 256 << 20);
    let (sb, _) = superblock::load(&dev).unwrap();
    let volume = volume::load(&dev, &sb).unwrap();
    assert_eq!((volume.label.as_str(), volume.slots.len()), ("projects", 3));
    assert_eq!(volume.slots[0].journal_blocks, 2048);
    assert_eq!(sb.timing, TimingProfile::Test);
}

#[test]
fn the_printed_layout() {
    let dir = Dir::new();
    let uuid = "6f1c2d3e-0000-4000-8000-0123456789ab";
    let out = mkfs(&["-n", "-L", "snap", "-U", uuid, "SIZE", "64M"], &dir.image()).unwrap();
    assert!(!dir.image().exists(), "-n writes nothing");
    let lines: Vec<&str> = out.lines().skip(1).collect();
    let expected = [
        "uuid        6f1c2d3e-0000-4000-8000-0123456789ab",
        "label       snap",
        "size        64 MiB (16384 blocks of 4096 bytes)",
        "cells       4096 bytes apart, for up to 4 slots",
        "groups      8 of 8 MiB, from block 512",
        "timing      default",
        "root inode  1024",
        "heartbeat   block 3",
        "ballots     block 7",
        "ledgers     block 15",
        "inbox       block 23",
        "overflow    block 39",
        "lobby       block 103",
        "slot 0      journal 4 MiB at block 1536 (group 0), inode 1025",
        "slot 1      journal 4 MiB at block 7680 (group 3), inode 7168",
    ];
    assert_eq!(lines, expected, "a change here is a change of where a new volume's parts are: {out}");
}

#[test]
fn quiet_is_quiet() {
    let dir = Dir::new();
    assert_eq!(mkfs(&["-q", "SIZE", "64M"], &dir.image()).unwrap(), "");
}

#[test]
fn wishes_that_cannot_be_met_leave_nothing_behind() {
    for (args, why) in [
        (&["SIZE", "63M"][..], "64 MiB"),
        (&["SIZE", "12X"], "unknown unit"),
        (&["-N", "9", "SIZE", "64M"], "1 to 4"),
        (&["-J", "1M", "SIZE", "64M"], "4 to 4096"),
        (&["-U", "nonsense", "SIZE", "64M"], "invalid"),
        (&["--timing", "fast", "SIZE", "64M"], "default, san or test"),
        (&["--cell-pitch", "1000", "SIZE", "64M"], "1000"),
        (
            &["-L", "a label of more than sixty-four bytes, which no superblock has room for", "SIZE", "64M"],
            "label",
        ),
        (&[], "give a size"),
    ] {
        let dir = Dir::new();
        let e = mkfs(args, &dir.image()).unwrap_err();
        assert!(e.contains(why), "{args:?}: {e}");
        assert!(!dir.image().exists(), "{args:?}");
    }
}

#[test]
fn foreign_content_needs_force() {
    let dir = Dir::new();
    let file = std::fs::File::create(dir.image()).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"\x53\xef", 1080).unwrap();
    file.write_all_at(b"EFI PART", (64 << 20) - 512).unwrap();
    let e = mkfs(&[], &dir.image()).unwrap_err();
    assert!(e.contains("ext2/3/4") && e.contains("GPT") && e.contains("-f"), "{e}");
    mkfs(&["-f"], &dir.image()).unwrap();
    let dev = FileDevice::open(dir.image(), Access::Read).unwrap();
    assert_eq!(shoal::format::foreign::signatures(&dev).unwrap(), [], "nothing of it is left");
}

#[test]
fn an_unmounted_volume_needs_force_and_a_living_one_is_never_touched() {
    let dir = Dir::new();
    mkfs(&["--timing", "test", "SIZE", "64M"], &dir.image()).unwrap();
    let e = mkfs(&[], &dir.image()).unwrap_err();
    assert!(e.contains("contains a Shoal volume;"), "{e}");
    mkfs(&["-f", "--timing", "test"], &dir.image()).unwrap();

    // A host elsewhere: its cell moves, and no lock of it is seen on this machine.
    let dev = FileDevice::open(dir.image(), Access::Mount).unwrap();
    let (sb, _) = superblock::load(&dev).unwrap();
    let beat = |counter| {
        let name = "elsewhere".to_string();
        let slot = SlotId(1);
        let h = Heartbeat { slot, incarnation: Incarnation(9), counter, name, ..Heartbeat::default() };
        dev.write(sb.geometry.heartbeat_cell(slot), &h.to_cell(sb.format_id, &sb.geometry)).unwrap();
    };
    beat(1);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for counter in 2.. {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                beat(counter);
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        });
        let e = mkfs(&["-f"], &dir.image()).unwrap_err();
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(e.contains("mounted by elsewhere (slot 1)"), "{e}");
    });
    // It fell silent: -f may.
    mkfs(&["-f", "--timing", "test"], &dir.image()).unwrap();

    // A mount of this machine: its lock is seen, whether it beats or not.
    let (sb, _) = superblock::load(&dev).unwrap();
    let at = sb.geometry.heartbeat_cell(SlotId(0));
    assert!(dev.try_lock_range(at, sb.geometry.cell_pitch.into()).unwrap());
    let e = mkfs(&["-f"], &dir.image()).unwrap_err();
    assert!(e.contains("this machine has mounted"), "{e}");
}

#[test]
fn a_damaged_superblock_is_told_from_a_foreign_one() {
    let dir = Dir::new();
    FileDevice::create_image(dir.image(), 64 << 20).unwrap();
    let dev = FileDevice::open(dir.image(), Access::Exclusive).unwrap();
    make(&dev, &Options::default()).unwrap();
    let file = std::fs::File::options().write(true).open(dir.image()).unwrap();
    // One rotten bit: the backup serves, and the caller is told.
    let mut block = vec![0; 4096];
    dev.read(0, &mut block).unwrap();
    block[2000] ^= 1;
    dev.write(0, &block).unwrap();
    let (_, from) = superblock::load(&dev).unwrap();
    assert_ne!(from, superblock::LoadedFrom::Primary);
    // Another filesystem was made here: the backup must not bring the old volume back to life.
    file.write_all_at(&[0; 4096], 0).unwrap();
    file.write_all_at(b"\x53\xef", 1080).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let e = superblock::load(&dev).unwrap_err().to_string();
    assert!(e.contains("not a Shoal volume") && e.contains("backup superblock"), "{e}");
}

#[test]
fn a_volume_that_cannot_be_read_is_not_taken_for_a_blank_disk() {
    let dir = Dir::new();
    mkfs(&["--timing", "test", "SIZE", "128M"], &dir.image()).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(dir.image()).unwrap();
    // Cut short: it may be the device that is wrong, not the volume.
    file.set_len(100 << 20).unwrap();
    let e = mkfs(&[], &dir.image()).unwrap_err();
    assert!(e.contains("contains a Shoal volume") && e.contains("-f"), "{e}");
    file.set_len(128 << 20).unwrap();
    // Of another release: its hosts cannot be heard.
    let dev = FileDevice::open(dir.image(), Access::Mount).unwrap();
    let mut block = shoal::format::Block::zeroed();
    dev.read(0, &mut block.0).unwrap();
    block.body_as_mut::<superblock::DiskSuperblock>().version.set(2);
    block.seal();
    dev.write(0, &block.0).unwrap();
    for arguments in [&[][..], &["-f"]] {
        let e = mkfs(arguments, &dir.image()).unwrap_err();
        assert!(e.contains("format version 2") && e.contains("wipefs"), "{e}");
    }
}
