//! Hosts that are stopped or die while others live.

use crate::rig::{Cluster, run};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub fn signal(pid: u32, number: i32) {
    // SAFETY: a system call with numbers; the process is a daemon of this test's.
    let sent = unsafe { libc::kill(pid as i32, number) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

pub fn pid(cluster: &Cluster, host: usize) -> u32 {
    cluster.daemon(host).expect("it is mounted").daemon.pid
}

/// The guardian of a daemon, which is its child.
fn guardian(daemon: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    children.split_whitespace().next().expect("a daemon has a guardian").parse().unwrap()
}

/// Is a process gone, or nobody's business any more but that of whoever should have reaped it?
fn is_over(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn eventually(what: &str, limit: Duration, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn a_daemon_that_is_stopped_for_longer_than_its_lease_never_runs_again() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let at = cluster.at(0);
    let mut synced = File::create(at.join("synced")).unwrap();
    synced.write_all(b"lasting").and_then(|()| synced.sync_all()).unwrap();
    fs::write(at.join("cached"), vec![3; 10_000]).unwrap();
    let mut cached = File::open(at.join("cached")).unwrap();
    cached.read_exact(&mut [0; 4096]).unwrap();
    let (daemon, guard) = (pid(&cluster, 0), guardian(pid(&cluster, 0)));
    // Shorter than the lease: nothing happens.
    signal(daemon, libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(600));
    signal(daemon, libc::SIGCONT);
    fs::write(at.join("alive"), b"still").unwrap();
    signal(daemon, libc::SIGSTOP);
    eventually("the guardian ends it", Duration::from_secs(5), || is_over(daemon));
    eventually("and then itself", Duration::from_secs(5), || is_over(guard));
    assert!(cluster.log(0).contains("stopped for longer than its lease"), "{}", cluster.log(0));
    // Neither new requests nor what the kernel has cached are answered.
    assert_eq!(errno(fs::create_dir(at.join("late"))), Some(libc::ENOTCONN));
    std::thread::sleep(Duration::from_secs(2));
    assert!(cached.read_exact(&mut [0; 4096]).is_err(), "read from the cache of a dead host");
    drop((synced, cached));
    cluster.cut_off(0);
    cluster.mount(0);
    assert_eq!(fs::read(at.join("synced")).unwrap(), b"lasting");
    assert!(!at.join("late").exists());
    let (daemon, guard) = (pid(&cluster, 0), guardian(pid(&cluster, 0)));
    assert!(cluster.try_umount(0).status.success());
    eventually("a clean leave ends both", Duration::from_secs(5), || is_over(daemon) && is_over(guard));
    cluster.check();
}

#[test]
fn a_host_without_its_guardian_halts() {
    let cluster = Cluster::new("128M", 1, Duration::from_secs(60));
    let at = cluster.at(0);
    let synced = at.join("synced");
    let mut file = File::create(&synced).unwrap();
    file.write_all(b"lasting").and_then(|()| file.sync_all()).unwrap();
    signal(guardian(pid(&cluster, 0)), libc::SIGKILL);
    let mut tries = 0..;
    eventually("it halts", Duration::from_secs(5), move || {
        let name = format!("late{}", tries.next().expect("endless"));
        errno(fs::create_dir(at.join(name))) == Some(libc::EIO)
    });
    assert!(cluster.log(0).contains("this host halts: its guardian"), "{}", cluster.log(0));
    let shown = String::from_utf8(run("shoal", &["status"]).stdout).unwrap();
    let ours = cluster.at(0).display().to_string();
    let line = shown.lines().find(|l| l.contains(&ours)).expect("it is mounted still");
    assert!(line.contains("halted: its guardian"), "{line}");
    drop(file);
    cluster.cut_off(0);
    cluster.mount(0);
    assert_eq!(fs::read(synced).unwrap(), b"lasting");
    assert!(cluster.try_umount(0).status.success());
}

/// Makes files and fsyncs them until `stop` or an error; answers with what was promised, and the longest
/// time that one took.
fn work(at: PathBuf, who: &str, stop: &AtomicBool) -> (BTreeMap<String, Vec<u8>>, Duration) {
    let (mut promised, mut longest) = (BTreeMap::new(), Duration::ZERO);
    for i in 0u64.. {
        // Reading them all back on another host must not take longer than dying.
        std::thread::sleep(Duration::from_millis(15));
        let name = format!("{who}-{i}");
        let content: Vec<u8> = (0..(i * 7919) % 40_000).map(|n| (n * 31 + i) as u8).collect();
        let begun = Instant::now();
        let made = File::create(at.join(format!("{name}.new"))).and_then(|mut f| {
            f.write_all(&content)?;
            f.sync_all()?;
            // Durable with what the directory's fsync covers.
            fs::rename(at.join(format!("{name}.new")), at.join(&name))?;
            File::open(&at)?.sync_all()
        });
        longest = longest.max(begun.elapsed());
        match made {
            Ok(()) if !stop.load(Ordering::Acquire) => drop(promised.insert(name, content)),
            _ => break,
        }
    }
    (promised, longest)
}

fn check_promises(at: &Path, promised: &BTreeMap<String, Vec<u8>>) {
    for (name, content) in promised {
        let found = fs::read(at.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found == *content, "{name} differs");
    }
}

/// A host is killed in the middle of its work; another works on in the same directory.
fn one_of_two_dies(options: &str, limit: Duration) {
    let cluster = Cluster::unmounted("512M", Duration::from_secs(120));
    (0..2).for_each(|host| assert!(cluster.try_mount(host, &cluster.image(), options).status.success()));
    let load = |host: usize| cluster.at(host).join("load");
    fs::create_dir(load(0)).unwrap();
    // Unlinked and still open on the host that dies: nobody else can free it.
    let mut open = File::create(load(0).join("open")).unwrap();
    open.write_all(&vec![1; 1 << 20]).and_then(|()| open.sync_all()).unwrap();
    fs::remove_file(load(0).join("open")).unwrap();
    let stop = AtomicBool::new(false);
    let (first, second) = std::thread::scope(|scope| {
        let workers = [0, 1].map(|host| {
            let (at, stop) = (load(host), &stop);
            scope.spawn(move || work(at, &format!("h{host}"), stop))
        });
        std::thread::sleep(Duration::from_millis(1500));
        cluster.kill(&[0]);
        std::thread::sleep(limit);
        stop.store(true, Ordering::Release);
        let [first, second] = workers.map(|w| w.join().unwrap());
        (first, second)
    });
    drop(open);
    println!("{options}: {} + {} files, longest wait {:?}", first.0.len(), second.0.len(), second.1);
    assert!(second.1 < limit, "the survivor waited {:?}", second.1);
    assert!(first.0.len() > 3 && second.0.len() > 3, "{} {}", first.0.len(), second.0.len());
    let log = cluster.log(1);
    for told in ["it is excluded", "is dead by view", "is fenced", "replayed", "is recovered"] {
        assert!(log.contains(told), "the log does not tell '{told}':\n{log}");
    }
    check_promises(&load(1), &first.0);
    check_promises(&load(1), &second.0);
    cluster.mount(0);
    check_promises(&load(0), &second.0);
    cluster.umount(1);
    cluster.umount(0);
    cluster.check();
}

#[test]
fn the_survivor_of_two_goes_on_when_the_lease_of_the_other_is_over() {
    one_of_two_dies("fence=lease", Duration::from_secs(12));
}

#[test]
fn the_survivor_of_two_goes_on_at_once_when_the_other_is_gone_for_certain() {
    one_of_two_dies("fence=auto", Duration::from_secs(10));
}

/// What `shoal status` says of a host.
fn state_of(cluster: &Cluster, name: &str) -> String {
    let image = cluster.image();
    let out = run("shoal", &["status", "--json", "--quick", image.to_str().unwrap()]);
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let host = shown["hosts"].as_array().unwrap().iter().find(|h| h["name"] == name).expect("it is listed");
    host["state"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_of_a_host_that_was_stopped_for_too_long_lands_later() {
    let cluster = Cluster::new("256M", 2, Duration::from_secs(90));
    let (a, b) = (cluster.at(0), cluster.at(1));
    fs::write(b.join("shared"), vec![b'o'; 100_000]).unwrap();
    let mut held = File::options().write(true).open(a.join("shared")).unwrap();
    held.write_all(&vec![b'a'; 100_000]).unwrap();
    fs::write(a.join("unsynced"), vec![b'a'; 100_000]).unwrap();
    let daemon = pid(&cluster, 0);
    signal(daemon, libc::SIGSTOP);
    let begun = Instant::now();
    // Its lock is taken from it.
    fs::write(b.join("shared"), vec![b'b'; 50_000]).unwrap();
    println!("waited {:?}", begun.elapsed());
    assert_eq!(state_of(&cluster, "host0"), "clean");
    assert_eq!(state_of(&cluster, "host1"), "member");
    fs::create_dir(b.join("directory")).unwrap();
    let after = fs::read(b.join("shared")).unwrap();
    // The guardian may have been quicker.
    // SAFETY: a system call with numbers; if the process is gone, its number is not in use again yet.
    unsafe { libc::kill(daemon as i32, libc::SIGCONT) };
    assert!(held.write_all(b"late").and_then(|()| held.sync_all()).is_err());
    std::thread::sleep(Duration::from_secs(3));
    assert!(after == vec![b'b'; 50_000] && fs::read(b.join("shared")).unwrap() == after);
    assert!(cluster.log(0).contains("stopped for longer than its lease"), "{}", cluster.log(0));
    drop(held);
    cluster.cut_off(0);
    cluster.mount(0);
    assert!(fs::read(a.join("shared")).unwrap() == after && a.join("directory").is_dir());
    if let Ok(rest) = fs::read(a.join("unsynced")) {
        assert!(rest.is_empty() || rest == vec![b'a'; 100_000], "{} bytes", rest.len());
    }
    cluster.umount(1);
    assert!(cluster.try_umount(0).status.success());
    cluster.check();
}

/// How long it stands still is not for long enough to be seen for certain.
#[test]
fn the_short_list_tells_what_becomes_of_a_host() {
    let cluster = Cluster::new("128M", 2, Duration::from_secs(60));
    let image = cluster.image();
    let of_host0 = || {
        let shown = String::from_utf8(run("shoal", &["nodes", image.to_str().unwrap()]).stdout).unwrap();
        let line = shown.lines().find(|l| l.starts_with("   0  host0"));
        line.unwrap_or_else(|| panic!("{shown}")).to_owned()
    };
    assert!(of_host0().contains("member"), "{}", of_host0());
    signal(pid(&cluster, 0), libc::SIGSTOP);
    eventually("it is recovered", Duration::from_secs(20), || {
        let line = of_host0();
        let notes = [
            ("member", ""),
            ("stalled", "what it holds is waited for"),
            ("dead", "host1 takes over from it"),
            ("fencing", "host1 takes over from it"),
            ("replaying", "host1 takes over from it"),
            ("clean", "its space is looked after by host1"),
        ];
        let note = notes.iter().find(|(state, _)| line.contains(state));
        assert!(note.is_some_and(|(_, note)| line.contains(note)), "{line}");
        line.contains("clean")
    });
    cluster.cut_off(0);
    cluster.umount(1);
}

#[test]
fn the_heir_dies_too() {
    let cluster = Cluster::new("512M", 3, Duration::from_secs(120));
    let load = |host: usize| cluster.at(host).join("load");
    fs::create_dir(load(0)).unwrap();
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let workers = [0, 1, 2].map(|host| {
            let (at, stop) = (load(host), &stop);
            scope.spawn(move || work(at, &format!("h{host}"), stop))
        });
        std::thread::sleep(Duration::from_millis(1000));
        // The lowest that lives takes over: the next to go.
        cluster.kill(&[0]);
        std::thread::sleep(Duration::from_millis(700));
        cluster.kill(&[1]);
        std::thread::sleep(Duration::from_secs(10));
        stop.store(true, Ordering::Release);
        workers.map(|w| w.join().unwrap())
    });
    println!("longest wait {:?}", done[2].1);
    done.iter().for_each(|(promised, _)| check_promises(&load(2), promised));
    cluster.umount(2);
    cluster.check();
}
