//! Programs that run from the volume while another host replaces or overwrites them.

use super::{Pair, errno};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program large enough that most of it is not in memory before it is used: a shell that does what it is told.
const SHELL: &str = "/bin/bash";
/// What only pages tell that are read after the change, and the answer.
const TASK: &str = "x=abcabc; printf '%s %d' \"${x//b/-}\" $((6 * 7)); exit 7\n";
const ANSWER: &str = "a-ca-c 42";

fn install(from: &Path, at: &Path) {
    fs::write(at, fs::read(from).unwrap()).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The program, running: it has answered once.
struct Running {
    child: std::process::Child,
}

impl Running {
    fn start(path: &Path) -> Running {
        let mut command = Command::new(path);
        command.args(["--norc", "--noprofile"]).env_clear();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"echo\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Running { child }
    }

    /// It does its task from pages that have to be read anew.
    fn works(mut self, what: &str) {
        self.child.stdin.take().unwrap().write_all(TASK.as_bytes()).unwrap();
        let mut said = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((said.as_str(), self.child.wait().unwrap().code()), (ANSWER, Some(7)), "{what}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_program_that_the_other_host_replaces_goes_on_as_the_old_one() {
    let pair = Pair::new();
    pair.alternate(6, |round, from, to| {
        install(Path::new(SHELL), &from.join("program"));
        let running = Running::start(&to.join("program"));
        install(Path::new("/bin/true"), &from.join("new"));
        fs::rename(from.join("new"), from.join("program")).unwrap();
        // The old one has no name any more; its blocks are not given away as long as it runs.
        fs::write(from.join("filler"), vec![0xff; 8 << 20]).unwrap();
        File::open(from.join("filler")).unwrap().sync_all().unwrap();
        let new = Command::new(to.join("program")).args(["-c", "exit 9"]).status().unwrap();
        assert_eq!(new.code(), Some(0), "round {round}: the new program");
        running.works("the old program");
        ["filler", "program"].iter().for_each(|name| fs::remove_file(to.join(name)).unwrap());
    });
    pair.finish();
}

#[test]
fn a_program_that_the_other_host_overwrites_harms_itself_at_most() {
    let pair = Pair::new();
    let shell = fs::read(SHELL).unwrap();
    pair.alternate(6, |round, from, to| {
        let program = to.join("program");
        install(Path::new(SHELL), &from.join("program"));
        let running = Running::start(&program);
        assert_eq!(errno(File::options().write(true).open(&program)), libc::ETXTBSY, "where it runs");
        // The other host knows nothing of that. The same bytes do no harm.
        let writer = File::options().write(true).open(from.join("program")).unwrap();
        writer.write_all_at(&shell, 0).unwrap();
        running.works("overwritten with itself");
        let mut running = Running::start(&program);
        let garbage = vec![round as u8; shell.len()];
        match round % 2 {
            0 => writer.write_all_at(&garbage, 0).unwrap(),
            _ => writer.set_len(100).unwrap(),
        }
        // However it takes that, the host does not mind.
        let _ = running.child.stdin.take().unwrap().write_all(TASK.as_bytes());
        running.child.wait().unwrap();
        drop((running, writer));
        let want = if round % 2 == 0 { &garbage[..] } else { &shell[..100] };
        assert!(fs::read(&program).unwrap() == want, "round {round}: what the other host wrote");
        let failed = errno(Command::new(&program).status());
        assert!(failed == libc::ENOEXEC || failed == libc::EIO, "round {round}: {failed}");
        fs::remove_file(&program).unwrap();
    });
    pair.finish();
}
