//! Several guests that share one disk.

use crate::guest::Guest;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Longest time of one command in a guest.
pub const COMMAND_MAX: Duration = Duration::from_secs(120);

/// A disk, and the guests that have it.
pub struct Lab {
    run: tempfile::TempDir,
    pub guests: Vec<Guest>,
}

pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_shoal")).with_file_name(name)
}

pub fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

impl Lab {
    /// A fresh volume and guests that are up and have mounted it at /mnt/fs.
    pub fn new(size: &str, guests: usize) -> Lab {
        let run = tempfile::Builder::new().prefix("shoal-vm").tempdir_in("/dev/shm").unwrap();
        for (name, from) in [
            ("worker.py", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/worker.py")),
            ("shoal", program("shoal")),
        ] {
            fs::copy(&from, run.path().join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        let mut lab = Lab { run, guests: Vec::new() };
        let made = Command::new(program("mkfs_shoal"))
            .args(["-q", "--timing", "test"])
            .arg(lab.disk())
            .arg(size)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        for number in 1..=guests {
            lab.guests.push(Guest::boot(number, lab.run.path(), &lab.disk()));
        }
        for number in 1..=guests {
            lab.guest(number).wait_until_up();
            lab.mount(number);
        }
        lab
    }

    fn disk(&self) -> PathBuf {
        self.run.path().join("disk")
    }

    /// A file that guests see as /mnt/host/`name`.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    /// Guest `number`, from 1 on.
    pub fn guest(&mut self, number: usize) -> &mut Guest {
        &mut self.guests[number - 1]
    }

    /// Run a script that must succeed in a guest.
    pub fn run(&mut self, number: usize, script: &str) -> String {
        self.guest(number).run(script, COMMAND_MAX)
    }

    /// Mount the volume in a guest.
    pub fn mount(&mut self, number: usize) {
        self.run(
            number,
            &format!(
                "ln -sf /mnt/host/shoal /run/mount.fuse.shoal\n\
                 /run/mount.fuse.shoal /dev/ubda /mnt/fs -o name=guest{number},log=/mnt/host/log{number}"
            ),
        );
    }

    /// Leave in order.
    pub fn umount(&mut self, number: usize) {
        self.run(number, "/mnt/host/shoal umount /mnt/fs");
    }

    /// Power on again after a cut.
    pub fn reboot(&mut self, number: usize) {
        let guest = Guest::boot(number, self.run.path(), &self.disk());
        self.guests[number - 1] = guest;
        self.guest(number).wait_until_up();
    }

    /// The volume is sound. Replays the journals first if `replay`; nobody may have it mounted.
    pub fn check(&self, replay: bool) {
        let mode: &[&str] = if replay { &["-p"] } else { &["-n"] };
        let out = Command::new(program("fsck_shoal")).args(mode).arg("-f").arg(self.disk()).output().unwrap();
        let fine = out.status.code() == Some(0) || (replay && out.status.code() == Some(1));
        assert!(fine, "fsck {mode:?}: {:?}\n{}", out.status.code(), said(&out));
    }
}
