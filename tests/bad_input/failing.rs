//! Devices that fail under a mount: EIO, a halt with its reason in the log, a clean unmount, and after
//! the device is back a mount that has everything that was promised.

use crate::faulty::{EVERYTHING, FLUSHES, Faulty, NOTHING, READS, WRITES};
use crate::rig::{Cluster, stderr};
use crate::{LIMIT, assert_refused, errno};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// The lease of the test profile, and then some.
const LEASE_IS_OVER: Duration = Duration::from_secs(4);

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

struct Rig {
    cluster: Cluster,
    device: Faulty,
}

impl Rig {
    /// Mounted as host 0, with a file that is on the disk.
    fn new() -> Rig {
        let cluster = Cluster::unmounted("64M", LIMIT);
        let device = Faulty::new(&cluster.image());
        let rig = Rig { cluster, device };
        rig.mount();
        write_synced(&rig.cluster.at(0).join("promised"), &[7; 300_000]).unwrap();
        rig
    }

    fn mount(&self) {
        let out = self.cluster.try_mount(0, &self.device.path(), "rw");
        assert!(out.status.success(), "{}", stderr(&out));
    }

    /// The log has the line that says why this host does no more.
    #[track_caller]
    fn assert_halted(&self, words: &[&str]) {
        let log = self.cluster.log(0);
        let line = log.lines().find(|l| l.contains("ERROR") && l.contains("this host halts: "));
        let line = line.unwrap_or_else(|| panic!("no halt in\n{log}"));
        words.iter().for_each(|w| assert!(line.contains(w), "'{w}' is missing: {line}"));
        let panics = log.lines().filter(|l| l.contains("panicked") || l.contains("this host stops here"));
        assert_eq!(panics.count(), 0, "{log}");
    }

    /// Every call comes back, and none pretends.
    #[track_caller]
    fn assert_dead(&self) {
        let at = self.cluster.at(0);
        let begun = Instant::now();
        assert_eq!(errno(write_synced(&at.join("new"), b"x")), libc::EIO);
        assert_eq!(errno(fs::remove_file(at.join("promised"))), libc::EIO);
        assert_eq!(errno(fs::create_dir(at.join("d"))), libc::EIO);
        assert_eq!(errno(fs::read_dir(&at).and_then(|list| list.collect::<Result<Vec<_>, _>>())), libc::EIO);
        assert_eq!(errno(fs::read(at.join("promised"))), libc::EIO, "caches do not outlive the lease");
        assert_eq!(errno(fs::metadata(at.join("promised"))), libc::EIO, "caches do not outlive the lease");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    /// Unmounts, and with the device back everything that was promised is there.
    #[track_caller]
    fn assert_revivable(&self) {
        let begun = Instant::now();
        let left = self.cluster.try_umount(0);
        assert!(left.status.success(), "{}", stderr(&left));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        self.device.fail(NOTHING);
        self.mount();
        let at = self.cluster.at(0);
        assert_eq!(fs::read(at.join("promised")).unwrap(), vec![7; 300_000]);
        write_synced(&at.join("afterwards"), b"goes on").unwrap();
        let left = self.cluster.try_umount(0);
        assert!(left.status.success(), "{}", stderr(&left));
        assert!(self.cluster.log(0).lines().last().unwrap().ends_with("left"), "{}", self.cluster.log(0));
        self.cluster.check();
    }
}

#[test]
fn writes_fail() {
    let rig = Rig::new();
    let at = rig.cluster.at(0);
    rig.device.fail(WRITES);
    let failed = errno(write_synced(&at.join("lost"), &[8; 100_000]));
    assert_eq!(failed, libc::EIO);
    std::thread::sleep(LEASE_IS_OVER);
    rig.assert_halted(&["write"]);
    rig.assert_dead();
    rig.assert_revivable();
}

#[test]
fn flushes_fail() {
    let rig = Rig::new();
    let at = rig.cluster.at(0);
    rig.device.fail(FLUSHES);
    assert_eq!(errno(write_synced(&at.join("lost"), &[8; 100_000])), libc::EIO);
    // A flush that succeeds later says nothing of what the failed one lost.
    rig.device.fail(NOTHING);
    rig.assert_halted(&["flush"]);
    rig.assert_dead();
    rig.assert_revivable();
}

#[test]
fn everything_fails_with_writes_on_their_way() {
    let rig = Rig::new();
    let at = rig.cluster.at(0);
    let writer = std::thread::spawn({
        let at = at.clone();
        move || {
            let mut promised = VecDeque::new();
            for i in 0.. {
                let name = format!("w{i}");
                match write_synced(&at.join(&name), name.repeat(5000).as_bytes()) {
                    Ok(()) => promised.push_back(name),
                    Err(e) => return (promised, e),
                }
                // The volume is small, and the machine may be fast.
                if promised.len() > 300
                    && let Some(oldest) = promised.pop_front()
                    && let Err(e) = fs::remove_file(at.join(oldest))
                {
                    return (promised, e);
                }
            }
            unreachable!("the numbers do not end")
        }
    });
    std::thread::sleep(Duration::from_millis(700));
    rig.device.fail(EVERYTHING);
    let (promised, error) = writer.join().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(!promised.is_empty());
    std::thread::sleep(LEASE_IS_OVER);
    rig.assert_halted(&[]);
    rig.assert_dead();
    rig.assert_revivable();
    rig.mount();
    for name in promised {
        assert_eq!(fs::read_to_string(at.join(&name)).unwrap(), name.repeat(5000), "{name}");
    }
    rig.cluster.try_umount(0);
}

/// Nobody expelled it meanwhile: an outage of the whole store expels nobody.
#[test]
fn an_outage_longer_than_the_lease_is_survived_alone() {
    let rig = Rig::new();
    let at = rig.cluster.at(0);
    // Nothing is dirty and the journal is empty.
    std::thread::sleep(Duration::from_secs(6));
    rig.device.fail(READS);
    std::thread::sleep(LEASE_IS_OVER);
    rig.device.fail(NOTHING);
    std::thread::sleep(Duration::from_millis(600));
    write_synced(&at.join("afterwards"), b"goes on").unwrap();
    assert_eq!(fs::read(at.join("promised")).unwrap(), vec![7; 300_000]);
    let log = rig.cluster.log(0);
    assert_eq!(log.lines().filter(|l| l.contains("cannot be read or written")).count(), 1, "{log}");
    rig.cluster.umount(0);
}

#[test]
fn a_short_outage_of_an_idle_host_is_survived() {
    let rig = Rig::new();
    let at = rig.cluster.at(0);
    // Nothing is dirty and the journal is empty.
    std::thread::sleep(Duration::from_secs(6));
    rig.device.fail(EVERYTHING);
    std::thread::sleep(Duration::from_millis(600));
    rig.device.fail(NOTHING);
    std::thread::sleep(Duration::from_millis(600));
    write_synced(&at.join("afterwards"), b"goes on").unwrap();
    assert_eq!(fs::read(at.join("promised")).unwrap(), vec![7; 300_000]);
    assert!(!rig.cluster.log(0).contains("halts"), "{}", rig.cluster.log(0));
    rig.cluster.umount(0);
}

#[test]
fn data_that_cannot_be_read_is_eio_and_no_more() {
    let cluster = Cluster::unmounted("64M", LIMIT);
    let device = Faulty::new(&cluster.image());
    let rig = Rig { cluster, device };
    rig.mount();
    let at = rig.cluster.at(0);
    (0..40).for_each(|i| write_synced(&at.join(format!("f{i}")), &[i; 50_000]).unwrap());
    rig.cluster.umount(0);
    rig.mount();
    rig.device.fail(READS);
    assert_eq!(errno(fs::read(at.join("f1"))), libc::EIO);
    rig.device.fail(NOTHING);
    assert_eq!(fs::read(at.join("f1")).unwrap(), vec![1; 50_000], "a failed read is not remembered");
    assert!(!rig.cluster.log(0).contains("halts"), "{}", rig.cluster.log(0));
    assert!(rig.cluster.log(0).contains("I/O error: read at byte"), "{}", rig.cluster.log(0));
    assert!(rig.cluster.try_umount(0).status.success());
}

#[test]
fn the_device_is_pulled_out() {
    let mut rig = Rig::new();
    let at = rig.cluster.at(0);
    let mut open = File::create(at.join("open")).unwrap();
    open.write_all(&[1; 100_000]).unwrap();
    rig.device.pull();
    assert_eq!(errno(open.sync_all()), libc::EIO);
    std::thread::sleep(LEASE_IS_OVER);
    rig.assert_halted(&[]);
    rig.assert_dead();
    drop(open);
    let left = rig.cluster.try_umount(0);
    assert!(left.status.success(), "{}", stderr(&left));
    rig.device = Faulty::new(&rig.cluster.image());
    rig.mount();
    assert_eq!(fs::read(at.join("promised")).unwrap(), vec![7; 300_000]);
    assert!(rig.cluster.try_umount(0).status.success());
}

#[test]
fn a_device_that_fails_while_mounting() {
    let rig = Rig::new();
    assert!(rig.cluster.try_umount(0).status.success());
    let shown = rig.device.path();
    for (what, word) in [(READS, "read"), (WRITES, "write"), (FLUSHES, "flush"), (EVERYTHING, "read")] {
        rig.device.fail(what);
        let refused = rig.cluster.try_mount(0, &rig.device.path(), "rw");
        assert_refused(&refused, &[shown.to_str().unwrap(), "I/O error", word]);
        rig.device.fail(NOTHING);
    }
    rig.mount();
    assert_eq!(fs::read(rig.cluster.at(0).join("promised")).unwrap(), vec![7; 300_000]);
    assert!(rig.cluster.try_umount(0).status.success());
}

#[test]
fn the_image_is_cut_to_nothing() {
    let cluster = Cluster::new("64M", 1, LIMIT);
    let at = cluster.at(0);
    write_synced(&at.join("f"), &[7; 300_000]).unwrap();
    cluster.umount(0);
    cluster.mount(0);
    File::options().write(true).open(cluster.image()).unwrap().set_len(0).unwrap();
    assert_eq!(errno(fs::read(at.join("f"))), libc::EIO);
    assert_eq!(errno(write_synced(&at.join("g"), b"x")), libc::EIO);
    std::thread::sleep(LEASE_IS_OVER);
    let log = cluster.log(0);
    let told = ["cannot be read or written", "this host halts"].iter().any(|w| log.contains(w));
    assert!(told && log.contains("failed to fill whole buffer"), "{log}");
    let left = cluster.try_umount(0);
    assert!(left.status.success(), "{}", stderr(&left));
    assert_refused(&cluster.try_mount(0, &cluster.image(), "rw"), &["not a Shoal volume"]);
}
