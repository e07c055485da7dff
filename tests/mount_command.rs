//! `shoal mount`, `umount`, `status` as programs: what they print and return, and that a mount which was
//! reported is usable. Needs root and /dev/fuse, and `mkfs_shoal` built beside `shoal`
//! (`cargo build --workspace`); where something is missing it fails and says so.
#![cfg(feature = "fuse")]

use parking_lot::RwLock;
use shoal::device::local;
use shoal::device::mountinfo;
use shoal::fuse::mount::{self, Unmount};
use std::any::Any;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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
    let fake = command("shoal", &["mount", "-f", "-s", image, at, "-o", "rw,quota"]);
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
