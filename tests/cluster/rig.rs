//! Several mounts of one image as several hosts. Cleans up what it started, also when a test fails;
//! a watchdog cuts the mounts of a test that hangs.

use shoal::device::local;
use shoal::device::mountinfo;
use shoal::fuse::mount::{self, Unmount};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
        let _ = mount::abort(entry.device.1);
        if mount::unmount(at, Unmount::Lazy).is_err() {
            return;
        }
    }
}

impl Cluster {
    /// A fresh volume of `size`, mounted as `hosts` hosts. The test must end within `limit`.
    pub fn new(size: &str, hosts: usize, limit: Duration) -> Cluster {
        let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        assert!(root && Path::new("/dev/fuse").exists(), "this test needs root and /dev/fuse");
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let cluster = Cluster { directory, done: Arc::default() };
        let mkfs = program("mkfs_shoal");
        assert!(mkfs.exists(), "{} is missing: cargo build --workspace", mkfs.display());
        let made = Command::new(mkfs)
            .args(["-q", "--timing", "test"])
            .arg(cluster.image())
            .arg(size)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (0..hosts).for_each(|host| cluster.mount(host));
        cluster.watch(limit);
        cluster
    }

    fn watch(&self, limit: Duration) {
        let (done, base) = (self.done.clone(), self.directory.path().to_owned());
        std::thread::spawn(move || {
            let end = Instant::now() + limit;
            while !done.load(Ordering::Acquire) {
                if Instant::now() > end {
                    eprintln!("the test did not end within {limit:?}; its mounts are cut");
                    (0..8).for_each(|host| cut(&base.join(format!("host{host}"))));
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where a host has the volume.
    pub fn at(&self, host: usize) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(format!("host{host}"))
    }

    /// Mount as one more host.
    pub fn mount(&self, host: usize) {
        let at = self.at(host);
        std::fs::create_dir_all(&at).unwrap();
        let log = self.directory.path().join(format!("log{host}"));
        let options = format!("name=host{host},log={}", log.display());
        let out = Command::new(program("shoal"))
            .arg("mount")
            .arg(self.image())
            .arg(&at)
            .args(["-o", &options])
            .output();
        let out = out.unwrap();
        assert!(out.status.success(), "mount of host {host}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Leave cleanly.
    pub fn umount(&self, host: usize) {
        let out = Command::new(program("shoal")).arg("umount").arg(self.at(host)).output().unwrap();
        assert!(out.status.success(), "umount of host {host}: {}", String::from_utf8_lossy(&out.stderr));
        let log =
            std::fs::read_to_string(self.directory.path().join(format!("log{host}"))).unwrap_or_default();
        let errors: Vec<&str> = log.lines().filter(|l| l.contains("ERROR")).collect();
        assert!(errors.is_empty(), "host {host} logged {errors:#?}");
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
        (0..8).for_each(|host| cut(&self.at(host)));
    }
}
