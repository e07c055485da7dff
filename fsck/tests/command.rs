//! The program itself: what it prints, what it refuses, its exit codes.

use shoal::base::{Incarnation, SlotId};
use shoal::device::{Access, BlockDevice, FileDevice};
use shoal::format::cluster::Heartbeat;
use shoal::format::layout::BACKUP_SUPERBLOCK;
use shoal::format::superblock::{self, TimingProfile};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Image(tempfile::TempDir);

impl Image {
    fn new() -> Image {
        let image = Image(tempfile::tempdir().unwrap());
        FileDevice::create_image(image.path(), 64 << 20).unwrap();
        let options = shoal_mkfs::Options { timing: TimingProfile::Test, ..Default::default() };
        shoal_mkfs::make(&image.open(), &options).unwrap();
        image
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn open(&self) -> FileDevice {
        FileDevice::open(self.path(), Access::Mount).unwrap()
    }

    fn rot(&self, at: u64) {
        let (dev, mut block) = (self.open(), vec![0; 4096]);
        dev.read(at, &mut block).unwrap();
        block[2000] ^= 1;
        dev.write(at, &block).unwrap();
    }
}

fn fsck(arguments: &[&str], image: &Path) -> (i32, String, String) {
    let out = command(arguments, image).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Output { status, stdout, stderr } = out;
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

fn command(arguments: &[&str], image: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fsck_shoal"));
    command.args(arguments).arg(image);
    command
}

#[test]
fn a_clean_volume_is_passed_over_unless_forced() {
    let image = Image::new();
    let (code, said, _) = fsck(&["-p"], &image.path());
    assert!(code == 0 && said.contains("clean") && said.contains("-f"), "{said}");
    let (code, said, _) = fsck(&["-f", "-n"], &image.path());
    assert!(code == 0 && said.contains("sound; 0 files, 1 directories"), "{said}");
    // mkfs alone has written: no host was ever there, so nothing is listened for.
    let (code, said, _) = fsck(&["-f", "-y"], &image.path());
    assert!(code == 0 && said.contains("sound"), "{said}");
}

#[test]
fn damage_is_named_and_is_exit_code_4() {
    let image = Image::new();
    image.rot(BACKUP_SUPERBLOCK.byte());
    let (code, said, _) = fsck(&["-n", "-f"], &image.path());
    assert!(code == 4 && said.contains("[superblock-backup-damaged] block 4094"), "{code}: {said}");
    image.rot(4096);
    image.rot(8192);
    let (code, said, _) = fsck(&["-f"], &image.path());
    assert!(code == 4 && said.contains("[volume-copy-damaged]") && said.contains("any further"), "{said}");
}

#[test]
fn what_is_no_volume_is_exit_code_8_and_wrong_usage_16() {
    let dir = tempfile::tempdir().unwrap();
    let blank = dir.path().join("blank");
    FileDevice::create_image(&blank, 64 << 20).unwrap();
    let (code, _, why) = fsck(&["-n"], &blank);
    assert!(code == 8 && why.contains("not a Shoal volume"), "{code}: {why}");
    let (code, _, why) = fsck(&["-n"], &dir.path().join("missing"));
    assert!(code == 8 && why.contains("missing"), "{code}: {why}");
    assert_eq!(fsck(&["-z"], &blank).0, 16);
    assert_eq!(fsck(&["-n", "-y"], &blank).0, 16);
    let (code, said, _) = fsck(&["--codes"], &blank);
    assert!(code == 0 && said.lines().count() > 30 && said.contains("block-shared "), "{said}");
}

#[test]
fn a_mount_of_this_machine_is_seen_by_its_lock() {
    let image = Image::new();
    let host = image.open();
    let (sb, _) = superblock::load(&host).unwrap();
    let at = sb.geometry.heartbeat_cell(SlotId(1));
    assert!(host.try_lock_range(at, sb.geometry.cell_pitch.into()).unwrap());
    for arguments in [&["-n"][..], &["-f"]] {
        let (code, _, why) = fsck(arguments, &image.path());
        assert!(code == 8 && why.contains("on this machine"), "{arguments:?}: {code}: {why}");
    }
    drop(host);
    assert_eq!(fsck(&["-f"], &image.path()).0, 0);
}

#[test]
fn a_host_that_comes_during_a_check_makes_its_findings_void() {
    let image = Image::new();
    let dev = image.open();
    let (sb, _) = superblock::load(&dev).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for counter in 1.. {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                let h = Heartbeat { incarnation: Incarnation(9), counter, ..Heartbeat::default() };
                let cell = h.to_cell(sb.format_id, &sb.geometry);
                dev.write(sb.geometry.heartbeat_cell(SlotId(0)), &cell).unwrap();
            }
        });
        let (code, _, why) = fsck(&["-n", "-f"], &image.path());
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(code == 8 && why.contains("void"), "{code}: {why}");
    });
}

#[test]
fn progress_is_told_as_fsck_wants_it_and_a_closed_pipe_is_no_crash() {
    let image = Image::new();
    let out = command(&["-f", "-n", "-C", "1"], &image.path()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.lines().any(|l| l.starts_with("1 0 1 ")) && said.contains("sound"), "{said}");
    let mut child = command(&["--codes"], &image.path()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn hosts_that_only_a_command_keeps_off_are_for_a_mount_to_recover() {
    use shoal::cluster::Disk;
    use shoal::format::cluster::{FenceClass, SlotState};
    let image = Image::new();
    let (superblock, _) = superblock::load(&image.open()).unwrap();
    let disk = Disk {
        device: std::sync::Arc::new(image.open()),
        format_id: superblock.format_id,
        geometry: superblock.geometry,
    };
    let (mut ballot, sequence) = disk.read_ballots().unwrap()[0].clone();
    ballot.decided.epoch.0 += 1;
    ballot.decided.fence = FenceClass::Command as u8;
    ballot.decided.slots[0].state = SlotState::Live { former: None };
    ballot.decided.slots[0].incarnation = Incarnation(7);
    for next in 1..=2 {
        disk.write_ballot(SlotId(0), Incarnation(7), sequence + next, &ballot).unwrap();
    }
    drop(disk);
    let (code, _, said) = fsck(&[], &image.path());
    assert!(code != 0 && said.contains("fence=command:PATH"), "{code}: {said}");
}
