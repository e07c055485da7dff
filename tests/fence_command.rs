//! A command of the administrator that keeps hosts off: which programs are taken, how it is called, and what
//! counts as success. Root: it must belong to root.

use shoal::base::{Incarnation, SlotId};
use shoal::cluster::Timing;
use shoal::cluster::anew::Again;
use shoal::cluster::command::Command;
use shoal::cluster::fencer::{Fence, Victim};
use shoal::device::child;
use shoal::format::cluster::heartbeat::DeviceFile;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One test at a time: a program that is being written cannot be run, and a process that another test starts
/// just then inherits the open file (ETXTBSY).
static ALONE: Mutex<()> = Mutex::new(());

struct Place(tempfile::TempDir, #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Place {
    fn new() -> Place {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Place(tempfile::tempdir().unwrap(), alone)
    }

    fn program(&self, name: &str, body: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        chmod(&path, 0o755);
        path
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn command(path: &Path) -> shoal::base::Result<Command> {
    Command::new(path.to_owned(), "/dev/disk".into(), [1; 16], [2; 16], "here".into(), &Timing::TEST)
}

const FILE: DeviceFile = DeviceFile { dev: 3, ino: 4, rdev: 5 };

fn victim() -> Victim {
    Victim {
        slot: SlotId(3),
        incarnation: Incarnation(77),
        host: [9; 16],
        boot: [8; 16],
        name: "other".into(),
        device: "/dev/its".into(),
        file: FILE,
        ..Victim::default()
    }
}

#[test]
fn it_is_told_whom_to_keep_off() {
    let place = Place::new();
    let seen = place.0.path().join("seen");
    let body = format!(
        "printf '%s\\n' \"$@\" \"$SHOAL_HOST_NAME\" \"$SHOAL_HOST_UUID\" \"$SHOAL_SLOT\" \
         \"$SHOAL_INCARNATION\" \"$SHOAL_DEVICE\" \"$SHOAL_HOST_DEVICE\" \"$SHOAL_HOST_BOOT\" \
         \"${{OTHER-unset}}\" >{}",
        seen.display()
    );
    let cut = command(&place.program("off", &body)).unwrap().cut(&victim()).unwrap();
    assert!(cut.how.contains("off the disk"), "{}", cut.how);
    assert!(cut.settle >= Timing::TEST.write_life, "what it had sent may be in the device");
    let [uuid, boot] = ["09", "08"].map(|b| [4, 2, 2, 2, 6].map(|n| b.repeat(n)).join("-"));
    let once = format!("other\n{uuid}\n3\n77\n/dev/disk\n");
    assert_eq!(fs::read_to_string(&seen).unwrap(), format!("{once}{once}/dev/its\n{boot}\nunset\n"));
    let option = Victim { name: "--all".into(), ..victim() };
    command(&place.0.path().join("off")).unwrap().cut(&option).unwrap();
    assert!(fs::read_to_string(&seen).unwrap().starts_with("_-all\n"), "no option of the program's");
}

#[test]
fn anything_but_zero_in_time_is_a_failure() {
    let place = Place::new();
    let why = |body: &str| {
        let command = command(&place.program("off", body)).unwrap().with_timeout(Duration::from_millis(500));
        command.cut(&victim()).unwrap_err().to_string()
    };
    let said = why("echo first >&2; echo 'the cloud says no' >&2; exit 3");
    assert!(said.contains("the cloud says no") && said.contains('3'), "{said}");
    assert!(why("kill -9 $$").contains("signal"));
    let begun = Instant::now();
    assert!(why("exec sleep 60").contains("killed"));
    assert!(begun.elapsed() < Duration::from_secs(20));
    // A child that goes on does not make the failure, or the success, wait.
    assert!(why("sleep 30 & echo no >&2; exit 1").contains("exit status: 1"));
    // What it has started is killed with it.
    let late = place.0.path().join("late");
    assert!(why(&format!("(sleep 2; touch {}) & wait", late.display())).contains("killed"));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!late.exists(), "a child of a command that took too long goes on");
    let command = command(&place.program("off", "yes | head -c 1000000 >&2")).unwrap();
    assert!(command.cut(&victim()).is_ok(), "a lot is said");
}

#[test]
fn only_root_may_be_able_to_change_it() {
    let place = Place::new();
    let refused = |path: &Path| command(path).err().expect("it was taken").to_string();
    let good = place.program("off", "exit 0");
    assert!(command(&good).is_ok());
    assert!(refused(Path::new("relative/off")).contains("absolute"));
    assert!(refused(&place.0.path().join("nothing")).contains("No such file"));
    assert!(refused(place.0.path()).contains("executable file"));
    for (mode, what) in [(0o644, "executable"), (0o775, "write"), (0o757, "write")] {
        chmod(&good, mode);
        assert!(refused(&good).contains(what), "{mode:o}");
    }
    chmod(&good, 0o755);
    std::os::unix::fs::chown(&good, Some(1234), None).unwrap();
    assert!(refused(&good).contains("belong to root"));
    std::os::unix::fs::chown(&good, Some(0), None).unwrap();
    // Who may write to a folder puts another file there.
    let taken = command(&good).unwrap();
    chmod(place.0.path(), 0o777);
    assert!(refused(&good).contains("others than root may write to"));
    assert!(taken.cut(&victim()).is_err(), "it is looked at again");
    chmod(place.0.path(), 0o700);
    std::os::unix::fs::symlink(&good, place.0.path().join("link")).unwrap();
    let link = command(&place.0.path().join("link")).unwrap();
    assert!(link.cut(&victim()).is_ok());
    // What was looked at is what runs, not what the link leads to a moment later.
    let ran = place.0.path().join("ran");
    place.program("off", &format!("echo $0 >{}", ran.display()));
    link.cut(&victim()).unwrap();
    assert_eq!(fs::read_to_string(&ran).unwrap().trim(), good.canonicalize().unwrap().to_str().unwrap());
    // Whatever it leads to by the next time is looked at.
    let other = place.program("other", "exit 0");
    chmod(&other, 0o777);
    fs::remove_file(place.0.path().join("link")).unwrap();
    std::os::unix::fs::symlink(&other, place.0.path().join("link")).unwrap();
    assert!(link.cut(&victim()).is_err());
}

#[test]
fn nobody_switches_itself_off() {
    let place = Place::new();
    let ran = place.0.path().join("ran");
    let command = command(&place.program("off", &format!("touch {}", ran.display()))).unwrap();
    let here = Victim { host: [1; 16], name: "here".into(), ..victim() };
    let cut = command.cut(&here).unwrap();
    assert!(cut.how.contains("started anew"), "an earlier boot");
    assert!(cut.settle >= Timing::TEST.write_life, "what that boot sent may be in the device");
    assert!(command.cut(&Victim { boot: [2; 16], ..here.clone() }).is_err());
    let boot = [0; 16];
    assert!(command.cut(&Victim { boot, ..here.clone() }).is_err(), "nobody knows which boot that was");
    let why = command.cut(&Victim { name: "was".into(), ..here }).unwrap_err().to_string();
    assert!(why.contains("-o name=was"), "a clone has another name: {why}");
    // Who never beat never had a lease.
    for host in [[0; 16], [1; 16]] {
        let never = command.cut(&Victim { host, boot, never_beat: true, ..victim() }).unwrap();
        assert!(never.settle >= Timing::TEST.wait());
    }
    assert!(!ran.exists());
    // But its first heartbeat may be queued for as long as its machine is paused.
    assert!(command.cut(&Victim { never_beat: true, ..victim() }).is_ok() && ran.exists());
}

/// A mount blocks the signals that end it; a program that ends another by one of them would wait for ever. And what
/// is ended so has a group of its own.
#[test]
fn a_program_can_end_what_it_starts_and_is_ended_with_all_of_it() {
    let place = Place::new();
    // SAFETY: a sigset_t is plain data that sigemptyset initialises; only this thread's mask changes.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    let begun = Instant::now();
    let off =
        command(&place.program("off", "timeout 1 sleep 30")).unwrap().with_timeout(Duration::from_secs(9));
    assert!(off.cut(&victim()).unwrap_err().to_string().contains("exit status: 124"));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let late = place.0.path().join("late");
    let body = format!("echo waiting >&2; timeout 30 sh -c 'sleep 3; touch {}'", late.display());
    let off = command(&place.program("off", &body)).unwrap().with_timeout(Duration::from_secs(1));
    let why = off.cut(&victim()).unwrap_err().to_string();
    assert!(why.contains("was killed: waiting"), "{why}");
    // It is run again after a failure: what it began before must not go on beside that.
    let body = format!("(sleep 3; touch {}) & exit 1", late.display());
    assert!(command(&place.program("off", &body)).unwrap().cut(&victim()).is_err());
    std::thread::sleep(Duration::from_secs(5));
    assert!(!late.exists(), "what a command has started goes on");
    // SAFETY: takes numbers only. Whoever starts a mount may have left it so.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    assert!(command(&place.program("off", "exit 0")).unwrap().cut(&victim()).is_ok());
}

/// What the daemon was given: how soon the out-of-memory killer takes it, and whose its files are.
#[test]
fn it_runs_as_a_shell_would_have_started_it() {
    let place = Place::new();
    let seen = place.0.path().join("seen");
    let body = format!("(cat /proc/self/oom_score_adj; umask) >{}", seen.display());
    let off = command(&place.program("off", &body)).unwrap();
    let score = |adjustment: &str| fs::write("/proc/self/oom_score_adj", adjustment).unwrap();
    score("500");
    // SAFETY: takes numbers only; no other test makes files meanwhile.
    let mask = unsafe { libc::umask(0o077) };
    let cut = off.cut(&victim());
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    score("0");
    cut.unwrap();
    assert_eq!(fs::read_to_string(&seen).unwrap(), "0\n0022\n");
}

#[test]
fn the_end_of_what_it_says_is_told() {
    let place = Place::new();
    let off =
        command(&place.program("off", "yes | head -c 100000 >&2; echo no such host >&2; exit 3")).unwrap();
    let why = off.cut(&victim()).unwrap_err().to_string();
    assert!(why.ends_with("exit status: 3: no such host"), "{why}");
}

#[test]
fn no_earlier_boot_of_this_machine_lived_beside_it() {
    let place = Place::new();
    let off = command(&place.program("off", "exit 0")).unwrap();
    let why = off.cut(&Victim { host: [1; 16], lived: true, ..victim() }).unwrap_err().to_string();
    assert!(why.contains("machine-id"), "{why}");
}

/// Its heartbeat is damaged, and its claim gone. The program can say no.
#[test]
fn who_cannot_be_known_has_a_uuid_of_zeros() {
    let place = Place::new();
    let unknown = Victim { host: [0; 16], boot: [0; 16], name: "slot 3".into(), ..victim() };
    let body = "[ $2 != 00000000-0000-0000-0000-000000000000 ] || { echo who is that >&2; exit 1; }";
    let off = command(&place.program("off", body)).unwrap();
    assert!(off.cut(&unknown).unwrap_err().to_string().contains("who is that"));
    assert!(off.cut(&victim()).is_ok());
    assert!(
        command(&place.program("off", "exit 0")).unwrap().cut(&unknown).is_ok(),
        "an administrator knows"
    );
}

#[test]
fn a_machine_that_mounts_again_is_not_cut() {
    let place = Place::new();
    let off = command(&place.program("off", "exit 1")).unwrap();
    let again = |boot: u8, file| Victim { again: Some(Again { boot: [boot; 16], file }), ..victim() };
    for gone in [again(7, FILE), again(7, DeviceFile::default()), again(8, FILE)] {
        assert!(off.cut(&gone).unwrap().settle >= Timing::TEST.write_life);
        let unread = Victim { boot: [0; 16], ..gone };
        assert!(off.cut(&unread).is_err(), "nobody knows which boot that was");
    }
    for other in [DeviceFile { ino: 9, ..FILE }, DeviceFile { rdev: 9, ..FILE }] {
        assert!(off.cut(&again(8, other)).is_err(), "it may have both open");
    }
    assert!(off.cut(&Victim { over: true, ..victim() }).unwrap().settle >= Timing::TEST.write_life);
    let image = DeviceFile { rdev: 0, ..FILE };
    assert!(off.cut(&Victim { file: image, ..again(8, image) }).is_err(), "an image has no presence lock");
}

#[test]
fn nothing_is_run_while_a_machine_of_the_same_identity_asks_under_another_name() {
    let place = Place::new();
    let ran = place.0.path().join("ran");
    let off = command(&place.program("off", &format!("touch {}", ran.display()))).unwrap();
    let alias = Victim { alias: Some("renamed".into()), ..victim() };
    let why = off.cut(&alias).unwrap_err().to_string();
    assert!(why.starts_with("renamed asks") && why.contains("-o name=other") && !ran.exists(), "{why}");
    let again = Some(Again { boot: [7; 16], file: FILE });
    assert!(off.cut(&Victim { again, ..alias }).is_ok(), "it asks under its own as well");
}

/// The host that runs it may die: its daemon's threads end.
#[test]
fn a_program_ends_with_the_thread_that_started_it() {
    let starts = || child::start(std::process::Command::new("sleep").arg("60")).unwrap();
    let mut started = std::thread::spawn(starts).join().unwrap();
    let begun = Instant::now();
    assert_eq!(started.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// Others run it by then: a late one would hit a machine that is back and well.
#[test]
fn a_host_that_is_out_begins_nothing_and_ends_what_it_has_begun() {
    let place = Place::new();
    let (began, late) = (place.0.path().join("began"), place.0.path().join("late"));
    let body = format!("touch {}; sleep 1; touch {}", began.display(), late.display());
    let off = command(&place.program("off", &body)).unwrap();
    let out = victim();
    out.cancel.cancel();
    let why = off.cut(&out).unwrap_err().to_string();
    assert!(why.contains("not run") && !began.exists(), "{why}");
    let out = victim();
    let why = std::thread::scope(|scope| {
        let run = scope.spawn(|| off.cut(&out).unwrap_err().to_string());
        let limit = Instant::now() + Duration::from_secs(30);
        while !began.exists() {
            assert!(Instant::now() < limit, "it never began");
            std::thread::sleep(Duration::from_millis(5));
        }
        out.cancel.cancel();
        run.join().unwrap()
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(why.contains("killed") && !late.exists(), "{why}");
}
