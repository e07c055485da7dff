//! Several mounts of one image as several hosts. Cleans up what it started, also when a test fails;
//! a watchdog cuts the mounts of a test that hangs.

use shoal::device::local;
use shoal::device::mountinfo;
use shoal::fuse::mount::{self, Unmount};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most hosts of a test.
const HOSTS_MAX: usize = 8;
/// Longest time of one command.
const COMMAND_MAX: Duration = Duration::from_secs(100);

/// A volume and the places to mount it at.
pub struct Cluster {
    directory: tempfile::TempDir,
    done: Arc<AtomicBool>,
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_shoal")).with_file_name(name)
}

fn cut(at: &Path) {
    while let Ok(Some(entry)) = mountinfo::mounted_at(at) {
        let _ = mount::abort(entry.connection());
        if mount::unmount(at, Unmount::Lazy).is_err() {
            return;
        }
    }
}

/// Run one of the project's programs to its end, which must come in time.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    let path = program(name);
    assert!(path.exists(), "{} is missing: cargo build --workspace", path.display());
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + COMMAND_MAX;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{name} {arguments:?} takes longer than {COMMAND_MAX:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// The errno that something failed with; 0 if it did not.
pub fn errno<T>(done: std::io::Result<T>) -> i32 {
    done.err().map_or(0, |e| e.raw_os_error().unwrap_or(-1))
}

/// What a program complained of.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Cluster {
    /// A fresh volume of `size`, mounted as `hosts` hosts. The test must end within `limit`.
    pub fn new(size: &str, hosts: usize, limit: Duration) -> Cluster {
        let cluster = Cluster::unmounted(size, limit);
        (0..hosts).for_each(|host| cluster.mount(host));
        cluster
    }

    /// A fresh volume of `size`.
    pub fn unmounted(size: &str, limit: Duration) -> Cluster {
        let cluster = Cluster::empty(limit);
        cluster.mkfs(size);
        cluster
    }

    /// A place for a volume.
    pub fn empty(limit: Duration) -> Cluster {
        let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        assert!(root && Path::new("/dev/fuse").exists(), "this test needs root and /dev/fuse");
        let wanted = std::env::var("SHOAL_TEST_DIR").unwrap_or("/dev/shm".into());
        let directory = match Path::new(&wanted).is_dir() {
            true => tempfile::tempdir_in(wanted).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let cluster = Cluster { directory, done: Arc::default() };
        cluster.watch(limit);
        cluster
    }

    /// Make the volume, over whatever is there.
    pub fn mkfs(&self, size: &str) {
        let made = run("mkfs_shoal", &["-q", "-f", "--timing", "test", text(&self.image()), size]);
        assert!(made.status.success(), "{}", stderr(&made));
    }

    fn watch(&self, limit: Duration) {
        let (done, base) = (self.done.clone(), self.directory.path().to_owned());
        std::thread::spawn(move || {
            let end = Instant::now() + limit;
            while !done.load(Ordering::Acquire) {
                if Instant::now() > end {
                    eprintln!("the test did not end within {limit:?}; its mounts are cut");
                    (0..HOSTS_MAX).for_each(|host| cut(&base.join(format!("host{host}"))));
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }

    /// The image.
    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where a host has the volume.
    pub fn at(&self, host: usize) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(format!("host{host}"))
    }

    fn log_file(&self, host: usize) -> PathBuf {
        self.directory.path().join(format!("log{host}"))
    }

    /// What a host has logged over all its mounts.
    pub fn log(&self, host: usize) -> String {
        std::fs::read_to_string(self.log_file(host)).unwrap_or_default()
    }

    /// Mount as one more host.
    pub fn mount(&self, host: usize) {
        let out = self.try_mount(host, &self.image(), "rw");
        assert!(out.status.success(), "mount of host {host}: {}", stderr(&out));
    }

    /// Mount `device` with `options` besides the rig's own.
    pub fn try_mount(&self, host: usize, device: &Path, options: &str) -> Output {
        let at = self.at(host);
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("name=host{host},log={},{options}", self.log_file(host).display());
        run("shoal", &["mount", text(device), text(&at), "-o", &options])
    }

    /// Leave cleanly.
    pub fn umount(&self, host: usize) {
        let out = self.try_umount(host);
        assert!(out.status.success(), "umount of host {host}: {}", stderr(&out));
        let log = self.log(host);
        let errors: Vec<&str> = log.lines().filter(|l| l.contains("ERROR")).collect();
        assert!(errors.is_empty(), "host {host} logged {errors:#?}");
    }

    /// Take the mount out of the tree; what is open stays so.
    pub fn umount_lazily(&self, host: usize) {
        mount::unmount(&self.at(host), Unmount::Lazy).unwrap();
    }

    /// Does a host's daemon end within `limit`?
    pub fn is_gone(&self, host: usize, limit: Duration) -> bool {
        self.daemon(host).is_none_or(|r| r.wait(limit))
    }

    /// Leave, whatever was logged.
    pub fn try_umount(&self, host: usize) -> Output {
        // Another test may be between fork and exec, with a copy of every descriptor of this process.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let out = run("shoal", &["umount", text(&self.at(host))]);
            if !stderr(&out).contains("busy") || Instant::now() > deadline {
                return out;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The daemon of a host.
    pub fn daemon(&self, host: usize) -> Option<local::Running> {
        let at = self.at(host);
        local::running().unwrap().into_iter().find(|r| r.daemon.mountpoint == at)
    }

    /// Cut a host's connection to its kernel; the daemon must leave the cluster in order all the same.
    pub fn cut_off(&self, host: usize) {
        let at = self.at(host);
        let running = local::running().unwrap();
        cut(&at);
        for daemon in running.iter().filter(|r| r.daemon.mountpoint == at) {
            assert!(daemon.wait(Duration::from_secs(10)), "the daemon of host {host} did not leave");
        }
    }

    /// Kill the daemons of these hosts as a power cut would, all at once.
    pub fn kill(&self, hosts: &[usize]) {
        let places: Vec<PathBuf> = hosts.iter().map(|h| self.at(*h)).collect();
        let running = local::running().unwrap();
        for daemon in running.iter().filter(|r| places.contains(&r.daemon.mountpoint)) {
            let killed = Command::new("kill").args(["-9", &daemon.daemon.pid.to_string()]).status().unwrap();
            assert!(killed.success());
        }
        places.iter().for_each(|at| cut(at));
        for daemon in running.iter().filter(|r| places.contains(&r.daemon.mountpoint)) {
            assert!(daemon.wait(Duration::from_secs(10)), "a killed daemon did not end");
        }
    }

    /// The volume, which no host has mounted, is sound to the last bit; journals are replayed in
    /// memory.
    pub fn check(&self) {
        self.fsck(&["-n", "-f"]);
    }

    /// Run fsck, which must find nothing.
    pub fn fsck(&self, arguments: &[&str]) {
        let fsck = program("fsck_shoal");
        assert!(fsck.exists(), "{} is missing: cargo build --workspace", fsck.display());
        let out = Command::new(fsck).args(arguments).arg(self.image()).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "fsck {arguments:?}: {:?}\n{stdout}{stderr}", out.status);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        (0..HOSTS_MAX).for_each(|host| cut(&self.at(host)));
    }
}
