//! A direct writer dies, and it takes a while before nothing of it can land any more.

use super::*;
use crate::fenced::{eventually, mount};
use shoal::fs::FenceWish;
use std::path::PathBuf;
use std::sync::mpsc;

/// A program that keeps a host off once it is allowed to.
struct Off {
    place: tempfile::TempDir,
}

impl Off {
    fn new() -> Off {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().expect("a directory");
        let body = format!("#!/bin/sh\ncd {}\necho \"$1\" >>asked\n[ -e allowed ]\n", place.path().display());
        std::fs::write(place.path().join("off"), body).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(place.path().join("off"), mode).expect("executable");
        Off { place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn wish(&self) -> FenceWish {
        FenceWish::Command(self.path("off"))
    }

    fn allow(&self) {
        std::fs::write(self.path("allowed"), "").expect("written");
    }

    /// Of two that have written directly beside each other, the one that is left.
    fn survivor(&self, disk: &Arc<SimDisk>) -> Place {
        let mut places: Vec<_> = ["a", "b"].map(|name| Place::new(mount(disk, name, self.wish()))).into();
        share(&places);
        places[1].write(3, 9).expect("write");
        places[0].write(4, 9).expect("write");
        let before = places[0].words();
        places[0].write(4, 10).expect("write");
        assert!(places[0].words() <= before + 1, "not shared");
        let victim = places.pop().expect("two");
        victim.host.crash();
        eventually("it is to be kept off", || self.path("asked").exists());
        places.pop().expect("one")
    }
}

/// What the dead host has sent may land over what it had sent it for, not over what others write afterwards.
#[test]
fn nothing_is_written_beside_a_dead_host_before_it_is_kept_off() {
    let (off, disk) = (Off::new(), written());
    let place = off.survivor(&disk);
    let (sender, written) = mpsc::channel();
    std::thread::scope(|scope| {
        let place = &place;
        scope.spawn(move || sender.send(place.write(3, 10)));
        let early = written.recv_timeout(Duration::from_secs(1));
        off.allow();
        assert!(early.is_err(), "written while the other's write may still land: {early:?}");
        written.recv().expect("an answer").expect("write");
    });
    assert!(place.read(3).expect("read") == content(3, 10));
    place.leave();
    tree::fsck(&disk).expect("a sound volume");
}

/// The time of the last direct write is not worth waiting for a host that nobody can keep off.
#[test]
fn leaving_does_not_wait_for_a_fence_to_hand_in_times() {
    let (off, disk) = (Off::new(), written());
    let place = off.survivor(&disk);
    let (sender, left) = mpsc::channel();
    let leaving = std::thread::spawn(move || {
        place.leave();
        let _ = sender.send(());
    });
    let in_time = left.recv_timeout(Duration::from_secs(20));
    off.allow();
    assert!(in_time.is_ok(), "still there");
    leaving.join().expect("a clean leave");
    mount(&disk, "c", off.wish()).stop().expect("a clean leave");
    tree::fsck(&disk).expect("a sound volume");
}
