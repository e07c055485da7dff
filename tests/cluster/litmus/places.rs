//! Where programs are, and what is mounted there, stays so whatever other hosts change around it.

use super::Pair;
use shoal::device::mountinfo;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Names come and go there, on the one host and the other.
fn stir(root: &Path, other: &Path, round: usize) {
    let name = format!("x{round}");
    File::create(root.join(&name)).unwrap();
    fs::metadata(other.join(&name)).unwrap();
    fs::remove_file(other.join(name)).unwrap();
}

/// A mount of something else on a directory of the volume.
pub struct Below<'a>(&'a Path);

impl<'a> Below<'a> {
    pub fn mount(at: &'a Path) -> Below<'a> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success());
        Below(at)
    }
}

impl Drop for Below<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).stderr(Stdio::null()).status();
    }
}

#[test]
fn what_is_mounted_on_a_directory_stays() {
    let pair = Pair::new();
    let at = pair.a.join("d");
    fs::create_dir(&at).unwrap();
    let below = Below::mount(&at);
    let device = fs::metadata(&at).unwrap().dev();
    for round in 0..20 {
        stir(&pair.b, &pair.a, round);
        fs::write(pair.b.join("d/of the volume"), "x").unwrap();
        assert_eq!(fs::metadata(&at).unwrap().dev(), device, "the mount is gone after {round} changes");
    }
    assert!(mountinfo::mounted_at(&at).unwrap().is_some());
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "the volume shows through");
    drop(below);
    assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
    pair.finish();
}

/// A child of this test, killed with it.
struct Shell(Child);

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// getcwd(2) of a program in a directory of the volume, while others walk there and another host changes what is above.
#[test]
fn a_working_directory_has_its_name_at_all_times() {
    let pair = Pair::new();
    let at = pair.a.join("d/e");
    fs::create_dir_all(&at).unwrap();
    // Until it is told another place than this.
    let asks = r#"while [ "$(readlink /proc/$$/cwd)" = "$0" ]; do :; done"#;
    let shell = Command::new("sh").args(["-c", asks]).arg(&at).current_dir(&at).spawn();
    let mut shell = Shell(shell.unwrap());
    for round in 0..300 {
        stir(&pair.b, &pair.a, round);
        fs::metadata(&at).unwrap();
        assert!(shell.0.try_wait().unwrap().is_none(), "it has lost its place after {round} changes");
    }
    drop(shell);
    pair.finish();
}
