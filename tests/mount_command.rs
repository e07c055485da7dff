//! `shoal mount`, `umount`, `status` as programs: what they print and return, and that a mount which was
//! reported is usable. Needs root and /dev/fuse, and `mkfs_shoal` built beside `shoal`
//! (`cargo build --workspace`); where something is missing it fails and says so.
#![cfg(feature = "fuse")]

use parking_lot::RwLock;
use shoal::base::{Epoch, Incarnation, SlotId};
use shoal::cluster::Disk;
use shoal::device::{Access, FileDevice, local, mountinfo};
use shoal::format::cluster::heartbeat::{self, Replaying};
use shoal::format::cluster::{Ballot, Heartbeat, SlotState, SlotView, View};
use shoal::format::superblock::{self, TimingProfile};
use shoal::fuse::mount::{self, Unmount};
use std::any::Any;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest time of one command.
const LIMIT: Duration = Duration::from_secs(60);

/// A new mount namespace has all mounts of its moment, those of other tests too: its test runs alone.
static NAMESPACES: RwLock<()> = RwLock::new(());

/// A volume in an image file, and a directory to mount it at.
struct Volume {
    directory: tempfile::TempDir,
    _turn: Box<dyn Any>,
}

impl Volume {
    fn new() -> Volume {
        Volume::in_turn(Box::new(NAMESPACES.read()))
    }

    fn in_turn(turn: Box<dyn Any>) -> Volume {
        let mkfs = program("mkfs_shoal");
        assert!(
            Path::new("/dev/fuse").exists() && fs::metadata("/proc/self").unwrap().uid() == 0,
            "this test needs root and /dev/fuse"
        );
        assert!(mkfs.exists(), "{} is missing: cargo build --workspace", mkfs.display());
        let directory = tempfile::tempdir().unwrap();
        let volume = Volume { directory, _turn: turn };
        fs::create_dir(volume.mountpoint()).unwrap();
        let image = volume.image();
        let made = command("mkfs_shoal", &["-q", "--timing", "test", image.to_str().unwrap(), "64M"]);
        assert!(made.status.success(), "{}", stderr(&made));
        volume
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn mountpoint(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join("mount point")
    }

    fn mount(&self, options: &str) -> Output {
        let (image, at) = (self.image(), self.mountpoint());
        // The log of a test is nobody's business but the test's.
        let options = format!("{options},log={}", self.directory.path().join("log").display());
        command("shoal", &["mount", image.to_str().unwrap(), at.to_str().unwrap(), "-o", &options])
    }

    fn umount(&self) -> Output {
        command("shoal", &["umount", self.mountpoint().to_str().unwrap()])
    }

    fn is_mounted(&self) -> bool {
        mountinfo::mounted_at(&self.mountpoint()).unwrap().is_some()
    }

    fn daemon(&self) -> Option<local::Running> {
        let at = self.mountpoint();
        local::running().unwrap().into_iter().find(|r| r.daemon.mountpoint == at)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        while let Ok(Some(entry)) = mountinfo::mounted_at(&self.mountpoint()) {
            let _ = mount::abort(entry.connection());
            mount::unmount(&self.mountpoint(), Unmount::Lazy).unwrap();
        }
    }
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_shoal")).with_file_name(name)
}

/// Runs a program to its end, which must come within the limit.
fn command(name: &str, arguments: &[&str]) -> Output {
    let mut child = Command::new(program(name))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{name} {arguments:?} takes longer than {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // The daemon has let go of both, or this would wait for it.
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_silent_success(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn what_cannot_be_mounted_is_refused_with_the_reason() {
    let v = Volume::new();
    let at = v.mountpoint();
    let at = at.to_str().unwrap();
    let image = v.image();
    let image = image.to_str().unwrap();
    let other = v.directory.path().join("other");
    fs::write(&other, vec![b'x'; 1 << 20]).unwrap();
    let other = other.to_str().unwrap();
    for (arguments, code, word) in [
        (vec!["mount", "/no/such/image", at], 32, "/no/such/image"),
        (vec!["mount", other, at], 32, "not a Shoal volume"),
        (vec!["mount", image, "/no/such/directory"], 32, "/no/such/directory"),
        (vec!["mount", image, image], 32, "not a directory"),
        (vec!["mount", image, at, "-o", "rw,quota"], 1, "'quota'"),
        (vec!["mount", image], 1, "DIRECTORY"),
        (vec!["mount", image, at, "-o", "remount,ro"], 32, "no Shoal volume is mounted"),
        (vec!["umount", at], 32, "no Shoal volume is mounted"),
        (vec!["status", other], 1, "not a Shoal volume"),
    ] {
        let output = command("shoal", &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
        assert!(!v.is_mounted());
    }
    let fake = command("shoal", &["mount", "-f", "-s", image, at, "-o", "rw,nonsense"]);
    assert_silent_success(&fake);
    assert!(!v.is_mounted() && v.daemon().is_none());
}

#[test]
fn a_mount_is_usable_when_the_command_returns_and_gone_when_umount_does() {
    let v = Volume::new();
    assert_silent_success(&v.mount("rw,nosuid"));
    let entry = mountinfo::mounted_at(&v.mountpoint()).unwrap().unwrap();
    assert_eq!((entry.fs_type.to_str(), Path::new(&entry.source)), (Some("fuse.shoal"), v.image().as_path()));
    fs::write(v.mountpoint().join("f"), b"lasting").unwrap();
    let daemon = v.daemon().unwrap();
    assert_eq!((daemon.stage, daemon.daemon.connection), (local::Stage::Mounted, Some(entry.connection())));
    let status = command("shoal", &["status", "--json"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains(v.image().to_str().unwrap()), "{status:?}");
    assert_silent_success(&v.umount());
    assert!(!v.is_mounted());
    assert!(daemon.wait(Duration::ZERO), "umount waits for the daemon");
    assert!(!v.log().contains("ERROR"), "{}", v.log());

    assert_silent_success(&v.mount("ro"));
    assert_eq!(fs::read(v.mountpoint().join("f")).unwrap(), b"lasting");
    let refused = fs::write(v.mountpoint().join("g"), b"").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_silent_success(&v.umount());
}

#[test]
fn busy_mounts_stay_and_can_be_remounted() {
    let v = Volume::new();
    assert_silent_success(&v.mount("rw"));
    let open = fs::File::create(v.mountpoint().join("f")).unwrap();
    let busy = v.umount();
    assert_eq!(busy.status.code(), Some(32));
    assert!(stderr(&busy).contains("busy"), "{}", stderr(&busy));
    drop(open);
    // The last close reaches the kernel's mount a moment after the program.
    let (image, at) = (v.image(), v.mountpoint());
    let remount =
        |options| command("shoal", &["mount", image.to_str().unwrap(), at.to_str().unwrap(), "-o", options]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !remount("remount,ro").status.success() {
        assert!(Instant::now() < deadline, "{}", stderr(&remount("remount,ro")));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::write(at.join("g"), b"").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_silent_success(&remount("remount,rw,relatime"));
    fs::write(at.join("g"), b"").unwrap();
    assert_silent_success(&v.umount());
}

/// As of a program that was killed with asynchronous I/O under way.
#[test]
fn a_file_that_is_let_go_a_moment_later_does_not_keep_a_mount() {
    let v = Volume::new();
    assert_silent_success(&v.mount("rw"));
    let open = fs::File::create(v.mountpoint().join("f")).unwrap();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(open);
    });
    assert_silent_success(&v.umount());
    later.join().unwrap();
}

#[test]
fn a_signal_unmounts_and_leaves_in_order() {
    let v = Volume::new();
    assert_silent_success(&v.mount("rw"));
    fs::write(v.mountpoint().join("f"), b"lasting").unwrap();
    let daemon = v.daemon().unwrap();
    // SAFETY: the daemon that this test started, found by its own record.
    assert_eq!(unsafe { libc::kill(daemon.daemon.pid as i32, libc::SIGTERM) }, 0);
    assert!(daemon.wait(LIMIT));
    assert!(!v.is_mounted());
    let status = command("shoal", &["status", "--quick", "--json", v.image().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("\"clean\":true"), "{status:?}\n{}", v.log());
    assert_silent_success(&v.mount("rw"));
    assert_eq!(fs::read(v.mountpoint().join("f")).unwrap(), b"lasting");
    assert_silent_success(&v.umount());
}

#[test]
fn a_mount_that_lives_on_in_another_namespace_is_named_and_not_waited_for() {
    let volume = Volume::in_turn(Box::new(NAMESPACES.write()));
    assert_silent_success(&volume.mount("rw"));
    // As a container or a service with a /tmp of its own does.
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "60"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let namespace = format!("/proc/{}/ns/mnt", other.id());
    let begun = Instant::now();
    while fs::read_link(&namespace).is_ok_and(|n| n == own) {
        assert!(begun.elapsed() < LIMIT, "no namespace of its own");
        std::thread::sleep(Duration::from_millis(5));
    }
    let daemon = volume.daemon().unwrap();
    let out = volume.umount();
    let said = stderr(&out);
    let alive = !daemon.wait(Duration::from_millis(100));
    let _ = other.kill();
    let _ = other.wait();
    assert!(out.status.success() && !volume.is_mounted(), "{said}");
    assert!(said.contains("another mount namespace") && said.contains("(process "), "{said}");
    assert!(alive, "the daemon left a mount alone");
    assert!(daemon.wait(LIMIT), "the last unmount is the end of the daemon");
}

/// The cluster's part of a volume; and slot 0's ballot, as `change` makes it.
fn with_ballot(volume: &Volume, change: impl FnOnce(&mut Ballot)) -> Disk {
    let device = Arc::new(FileDevice::open(volume.image(), Access::Mount).unwrap());
    let (superblock, _) = superblock::load(&*device).unwrap();
    let (format_id, geometry) = (superblock.format_id, superblock.geometry);
    let disk = Disk { device, format_id, geometry };
    let (mut ballot, sequence) = disk.read_ballots().unwrap()[0].clone();
    change(&mut ballot);
    for n in 1..=2 {
        disk.write_ballot(SlotId(0), Incarnation(1), sequence + n, &ballot).unwrap();
    }
    disk
}

/// A mount that waits for what takes long.
fn waiting(volume: &Volume, arguments: &[&str]) -> Child {
    let (image, at) = (volume.image(), volume.mountpoint());
    let mut mount = Command::new(program("shoal"))
        .arg("mount")
        .args(arguments)
        .args([&image, &at])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(mount.try_wait().unwrap(), None, "it waits for longer");
    mount
}

/// It is told to end.
fn end(volume: &Volume, arguments: &[&str], signal: i32) {
    let image = volume.image();
    let mut mount = waiting(volume, arguments);
    let told = Instant::now();
    // SAFETY: the process that this test started and has not waited for.
    assert_eq!(unsafe { libc::kill(mount.id() as i32, signal) }, 0);
    while mount.try_wait().unwrap().is_none() && told.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (took, output) = (told.elapsed(), mount.wait_with_output().unwrap());
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(32), "{arguments:?}: {said}");
    // In the foreground the log is there, too.
    let told: Vec<_> = said.lines().filter(|line| line.contains("told to end")).collect();
    assert!(matches!(&told[..], [one] if one.contains(image.to_str().unwrap())), "{arguments:?}: {said}");
    assert!(arguments == ["--foreground"] || said.lines().count() == 1, "{said}");
    let deadline = Instant::now() + LIMIT;
    while volume.daemon().is_some() {
        assert!(Instant::now() < deadline, "its daemon goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!volume.is_mounted());
}

/// Whoever mounts it waits for a host that is dead, as it seems.
fn left_behind() -> Volume {
    let volume = Volume::new();
    let image = volume.image();
    let slow = command("shoal", &["tune", image.to_str().unwrap(), "--timing", "default"]);
    assert!(slow.status.success(), "{}", stderr(&slow));
    drop(with_ballot(&volume, |ballot| {
        let newest = ballot.decided.epoch.0;
        ballot.decided.epoch.0 = newest + 9;
        ballot.decided.timing = Some(TimingProfile::Default);
        let state = SlotState::Live { former: None };
        ballot.decided.slots[0] = SlotView { state, incarnation: Incarnation(1) };
    }));
    volume
}

#[test]
fn a_signal_ends_a_mount_that_waits() {
    let volume = left_behind();
    end(&volume, &["--foreground"], libc::SIGTERM);
    // Whoever presses Ctrl-C reaches the command alone: its daemon is in a session of its own.
    let log = format!("log={}", volume.directory.path().join("log").display());
    end(&volume, &["-o", &log], libc::SIGINT);
}

/// Its daemon hangs, and says nothing.
#[test]
fn a_second_signal_ends_the_command_alone() {
    let volume = left_behind();
    let log = format!("log={}", volume.directory.path().join("log").display());
    let mut mount = waiting(&volume, &["-o", &log]);
    let daemon = volume.daemon().unwrap();
    // SAFETY: the daemon that this test started, found by its own record, and the command, which was not waited for.
    let kill = |pid: u32, signal| assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    kill(daemon.daemon.pid, libc::SIGSTOP);
    let second = Duration::from_secs(1);
    kill(mount.id(), libc::SIGINT);
    std::thread::sleep(second);
    let waits = mount.try_wait().unwrap().is_none();
    kill(mount.id(), libc::SIGINT);
    std::thread::sleep(second);
    let ended = mount.try_wait().unwrap().and_then(|status| status.code());
    kill(daemon.daemon.pid, libc::SIGCONT);
    assert!(daemon.wait(LIMIT), "it does not end");
    // The daemon had its stderr, too.
    let said = stderr(&mount.wait_with_output().unwrap());
    assert!(waits && ended == Some(32), "{waits} {ended:?}: {said}");
    assert!(said.contains("not waited for") && said.lines().count() == 1, "{said}");
    assert!(!volume.is_mounted());
}

/// The daemon of the last mount here is not done. It is this very process, as its record says.
#[test]
fn a_signal_ends_a_mount_that_waits_for_a_daemon_to_leave() {
    let volume = Volume::new();
    let mut record = local::Registration::new(&volume.image(), Path::new("/nowhere")).unwrap();
    record.set_mounted(u64::MAX).unwrap();
    record.set_leaving().unwrap();
    let log = format!("log={}", volume.directory.path().join("log").display());
    end(&volume, &["-o", &log], libc::SIGINT);
    drop(record);
    assert_silent_success(&volume.mount("rw"));
    assert_silent_success(&volume.umount());
}

/// `shoal tune` was killed when the view with the other times had been accepted, but was not known to be decided.
#[test]
fn a_mount_that_completes_a_change_of_the_times_goes_by_them() {
    let volume = Volume::new();
    drop(with_ballot(&volume, |ballot| {
        let epoch = Epoch(ballot.decided.epoch.0 + 1);
        let next = View { epoch, timing: Some(TimingProfile::Default), ..ballot.decided.clone() };
        (ballot.mbal, ballot.bal, ballot.input) = (64, 64, Some(next));
    }));
    let mounted = volume.mount("rw");
    assert!(mounted.status.success(), "{}", stderr(&mounted));
    let status = command("shoal", &["status", volume.image().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("timing default"), "{status:?}");
    assert_silent_success(&volume.umount());
}

/// Who replays says how far it is; there is nothing but the disk to go by.
#[test]
fn a_replay_is_shown_with_its_progress() {
    let volume = Volume::new();
    let disk = with_ballot(&volume, |ballot| {
        let states = [SlotState::Dead { adopter: SlotId(1) }, SlotState::Live { former: None }];
        for (slot, state) in states.into_iter().enumerate() {
            ballot.decided.slots[slot] = SlotView { state, incarnation: Incarnation(slot as u64 + 1) };
        }
        ballot.decided.epoch.0 += 1;
    });
    let shown = |done, total| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let replaying = Replaying { slot: SlotId(0), since_ms: now - 60_000, done, total };
        for (slot, name, replaying) in [(0, "alpha", None), (1, "beta", Some(replaying))] {
            let (slot, incarnation) = (SlotId(slot), Incarnation(u64::from(slot) + 1));
            let flags = heartbeat::FLAG_REPLAYING;
            let beat =
                Heartbeat { slot, incarnation, flags, name: name.into(), replaying, ..Heartbeat::default() };
            disk.write_heartbeat(&beat).unwrap();
        }
        ["nodes", "status"].map(|verb| {
            let output = command("shoal", &[verb, volume.image().to_str().unwrap()]);
            assert!(output.status.success(), "{}", stderr(&output));
            String::from_utf8(output.stdout).unwrap()
        })
    };
    for text in shown(0, 0) {
        assert!(text.contains("its journal is being read, begun 6"), "{text}");
    }
    let [nodes, status] = shown(250, 1000);
    let told = "250 of 1000 blocks of its journal replayed, begun 6";
    assert!(nodes.contains(&format!("beta takes over from it: {told}")), "{nodes}");
    assert!(status.contains("replaying") && status.contains(&format!("alpha (slot 0): {told}")), "{status}");
    let json = command("shoal", &["status", "--json", volume.image().to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let replay = |slot: usize| &json["hosts"][slot]["replay"];
    assert_eq!((&replay(0)["done"], &replay(0)["total"]), (&250.into(), &1000.into()));
    assert!(replay(1).is_null(), "{json}");
}

#[test]
fn the_timing_profile_is_changed_while_nobody_has_the_volume() {
    let volume = Volume::new();
    let image = volume.image();
    let tune = |to: &[&str]| {
        let output = command("shoal", &[&["tune", image.to_str().unwrap()], to].concat());
        (output.status.success(), format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output)))
    };
    assert_eq!(tune(&[]), (true, "timing test\n".into()));
    assert_eq!(tune(&["--timing", "default"]), (true, "timing default, was test\n".into()));
    assert!(!tune(&["--timing", "fast"]).0);
    assert!(volume.mount("name=alpha").status.success(), "{}", volume.log());
    let status = command("shoal", &["status", image.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("timing default"));
    let (done, why) = tune(&["--timing", "test"]);
    assert!(!done && why.contains("mounted"), "{why}");
    assert!(volume.umount().status.success());
    assert_eq!(tune(&["--timing", "default"]), (true, "timing default, as it was\n".into()));
    assert_eq!(tune(&["--timing", "test"]), (true, "timing test, was default\n".into()));
    let checked = command("fsck_shoal", &["-n", "-f", image.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    // What was written for those who cannot read the views is the same.
    let device = FileDevice::open(&image, Access::Read).unwrap();
    let (superblock, _) = superblock::load(&device).unwrap();
    assert_eq!(shoal::format::volume::load(&device, &superblock).unwrap().timing.name(), "test");
}
