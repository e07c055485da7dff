//! Hosts on a disk array that keeps off whom it is told to: one guest is the array (iSCSI, by the kernel's own
//! target), two are hosts. A host is paused as a whole with writes in flight, the other takes over from it, and
//! nothing of the first lands when it goes on. Its guardian is quicker than the disk, so in every other round it
//! stays stopped. `SHOAL_ROUNDS` says how often (2).

use crate::guest::Guest;
use crate::lab::{COMMAND_MAX, program, said};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const HOSTS: [usize; 2] = [2, 3];
const PATIENCE: Duration = Duration::from_secs(90);
/// Four writers: files of 256 KiB, each synced before its name is noted.
const WRITERS: &str = "
for writer in 1 2 3 4; do
    (
        n=0
        while dd if=/dev/zero of=/mnt/fs/ROUND-$writer-$n bs=64k count=4 conv=fsync 2>/dev/null; do
            echo ROUND-$writer-$n >>/mnt/host/synced3-$writer
            n=$((n + 1))
        done
    ) &
done
wait";

struct San {
    run: tempfile::TempDir,
    switch: Child,
    /// The array, then the hosts.
    guests: Vec<Guest>,
    disk_name: String,
}

impl Drop for San {
    fn drop(&mut self) {
        self.guests.clear();
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}

fn boot(run: &Path, number: usize) -> Guest {
    let switch = run.join("switch");
    let mut devices = vec![format!("eth0=daemon,02:00:00:78:00:0{number},unix,{}", switch.display())];
    if number == 1 {
        devices.push(format!("ubd0c={}", run.join("disk").display()));
    }
    Guest::boot_with(number, run, &devices)
}

impl San {
    fn new() -> San {
        let run = tempfile::Builder::new().prefix("shoal-san").tempdir_in("/dev/shm").unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm");
        for (name, from) in [
            ("san_target.sh", sources.join("san_target.sh")),
            ("san_host.sh", sources.join("san_host.sh")),
            ("shoal", program("shoal")),
            ("mkfs.shoal", program("mkfs_shoal")),
        ] {
            fs::copy(&from, run.path().join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        let made = Command::new(program("mkfs_shoal"))
            .args(["-q", "--timing", &std::env::var("SHOAL_TIMING").unwrap_or("test".into())])
            .arg(run.path().join("disk"))
            .arg("256M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        let socket = run.path().join("switch");
        // It ends when its input does.
        let switch = Command::new("uml_switch")
            .arg("-unix")
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program uml_switch (Debian: uml-utilities)");
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(10), "uml_switch does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let guests = (1..=3).map(|number| boot(run.path(), number)).collect();
        let mut san = San { run, switch, guests, disk_name: String::new() };
        san.guests.iter_mut().for_each(Guest::wait_until_up);
        san.run(1, "HOSTS='2 3' sh /mnt/host/san_target.sh");
        HOSTS.iter().for_each(|host| san.log_in(*host));
        san
    }

    fn log_in(&mut self, host: usize) {
        let told = self.run(host, "sh /mnt/host/san_host.sh 2>/run/login || { cat /run/login; exit 1; }");
        self.disk_name = told.lines().last().expect("a device").to_string();
    }

    /// Power off, and on again.
    fn reboot(&mut self, host: usize) {
        self.guests[host - 1].kill();
        self.guests[host - 1] = boot(self.run.path(), host);
        self.guests[host - 1].wait_until_up();
        self.log_in(host);
    }

    fn run(&mut self, number: usize, script: &str) -> String {
        self.guests[number - 1].run(script, COMMAND_MAX)
    }

    fn mounting(&self, number: usize, options: &str) -> String {
        let disk = &self.disk_name;
        format!(
            "ln -sf /mnt/host/shoal /run/mount.fuse.shoal\n\
             /run/mount.fuse.shoal {disk} /mnt/fs -o name=guest{number},log=/mnt/host/log{number}{options} 2>&1"
        )
    }

    fn mount(&mut self, number: usize, options: &str) {
        let script = self.mounting(number, options);
        self.run(number, &script);
    }

    /// What it says if it fails, as it must.
    fn refused(&mut self, number: usize, script: &str) -> String {
        let job = self.guests[number - 1].start(&format!("{script} 2>&1"));
        let ended = self.guests[number - 1].wait(job, COMMAND_MAX);
        assert_ne!(ended.code, 0, "guest {number}: {script}\n{}", ended.output);
        ended.output
    }

    fn umount(&mut self, number: usize) {
        self.run(number, "/mnt/host/shoal umount /mnt/fs");
    }

    /// What `shoal COMMAND` says of the disk.
    fn shoal(&mut self, number: usize, command: &str) -> String {
        let disk = self.disk_name.clone();
        self.run(number, &format!("/mnt/host/shoal {command} {disk}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    fn log(&self, number: usize) -> String {
        fs::read_to_string(self.file(&format!("log{number}"))).unwrap_or_default()
    }

    /// Wait until the log of a host says any of this, `before` bytes aside.
    fn until_told(&mut self, number: usize, before: usize, what: &[&str]) {
        let begun = Instant::now();
        while !what.iter().any(|what| self.log(number)[before..].contains(what)) {
            assert!(begun.elapsed() < PATIENCE, "guest {number} never says {what:?}:\n{}", self.log(number));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.file("disk")).expect("the disk")
    }

    fn check(&self) {
        let out =
            Command::new(program("fsck_shoal")).args(["-n", "-f"]).arg(self.file("disk")).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "fsck: {}", said(&out));
    }
}

fn rounds() -> usize {
    std::env::var("SHOAL_ROUNDS").map_or(2, |n| n.parse().expect("a number of rounds"))
}

/// One pause: the answer is how long the other host waited.
fn pause(san: &mut San, round: usize) -> Duration {
    let before = [0, 0, san.log(2).len(), san.log(3).len()];
    (1..=4).for_each(|writer| drop(fs::remove_file(san.file(&format!("synced3-{writer}")))));
    let writers = san.guests[2].start(&WRITERS.replace("ROUND", &round.to_string()));
    std::thread::sleep(Duration::from_secs(3));
    let unguarded = round % 2 == 1;
    if unguarded {
        san.run(3, "pkill -STOP shoal-guardian");
    }
    san.guests[2].pause(true);
    let paused = Instant::now();
    san.until_told(2, before[2], &["is recovered"]);
    san.run(2, "touch /mnt/fs/after");
    let waited = paused.elapsed();
    let log = san.log(2)[before[2]..].to_string();
    assert!(log.contains("its key is preempted") && log.contains("it is kept off the disk"), "{log}");
    let synced = synced(san);
    // The other leaves, too: now nobody but the first may write at all, and it may not.
    san.run(2, "/mnt/host/shoal umount /mnt/fs");
    let content = san.content();
    san.guests[2].pause(false);
    match unguarded {
        true => san.until_told(3, before[3], &["reservation conflict"]),
        false => san.until_told(3, before[3], &["this host halts", "this host was stopped for longer"]),
    }
    if unguarded {
        san.until_told(3, before[3], &["this host halts"]);
        san.run(3, "pkill -CONT shoal-guardian");
    }
    san.guests[2].wait(writers, PATIENCE);
    std::thread::sleep(Duration::from_secs(2));
    assert!(san.content() == content, "something of the paused host has landed");
    san.check();
    println!("round {round}: recovered and served after {waited:?}, {synced} files synced before");
    waited
}

/// What the other host has synced is there: so many files.
fn synced(san: &mut San) -> usize {
    let mut synced = 0;
    for writer in 1..=4 {
        let names = fs::read_to_string(san.file(&format!("synced3-{writer}"))).unwrap_or_default();
        let list = format!("/mnt/host/list{writer}");
        let whole: String = names.lines().map(|name| format!("/mnt/fs/{name}\n")).collect();
        fs::write(san.file(&format!("list{writer}")), whole).unwrap();
        let sizes = san.run(2, &format!("cat {list} | xargs -r stat -c %s"));
        assert!(sizes.lines().all(|size| size == "262144"), "{sizes}");
        synced += sizes.lines().count();
    }
    assert!(synced > 0, "nothing was written: nothing was tested");
    synced
}

#[test]
fn nothing_of_a_paused_machine_lands() {
    let mut san = San::new();
    san.mount(2, ",fence=reservation");
    san.mount(3, "");
    let disk = san.disk_name.clone();
    let status = san.run(2, &format!("/mnt/host/shoal status {disk}"));
    assert!(status.contains("fence reservation") && status.contains("write exclusive"), "{status}");
    for host in HOSTS {
        assert!(status.contains(&format!(": guest{host} (slot ")), "{status}");
    }
    for round in 1..=rounds() {
        pause(&mut san, round);
        // It is the old mount that is dead; a new one is welcome.
        let gone = "umount -l /mnt/fs; n=0; while pgrep -f run/mount.fuse.shoal >/dev/null && [ $n -lt 100 ]; do \
                    n=$((n + 1)); sleep 0.1; done; true";
        san.run(3, gone);
        san.mount(2, ",fence=reservation");
        san.mount(3, "");
        // What was written goes, or the volume would be full after some rounds.
        san.run(3, "rm -f /mnt/fs/after /mnt/fs/*-*-* && ls /mnt/fs >/dev/null");
    }
    HOSTS.iter().for_each(|host| drop(san.run(*host, "/mnt/host/shoal umount /mnt/fs")));
    // A host was kept off once: the device stays reserved, until somebody says that nobody is paused.
    let refused = san.run(3, &format!("/mnt/host/shoal fence --clear {disk} </dev/null 2>&1 || true"));
    assert!(refused.contains("nothing was changed"), "{refused}");
    let cleared = san.run(2, &format!("/mnt/host/shoal fence --clear --yes-really {disk}"));
    assert!(cleared.contains("cleared"), "{cleared}");
    let shown = san.run(3, &format!("/mnt/host/shoal fence {disk}"));
    assert!(shown.contains("nobody is registered"), "{shown}");
    san.check();
}

/// Both at once.
fn mount_together(san: &mut San, options: &str) {
    let jobs = HOSTS.map(|host| {
        let script = san.mounting(host, options);
        (host, san.guests[host - 1].start(&script))
    });
    for (host, job) in jobs {
        let ended = san.guests[host - 1].wait(job, COMMAND_MAX);
        assert_eq!(ended.code, 0, "guest {host}: {}\n{}", ended.output, san.log(host));
    }
}

/// On a device that is free: one gets in, it lets the other in, nobody is kept off.
fn mount_both(san: &mut San) {
    mount_together(san, "");
    let status = san.shoal(2, "status");
    assert!(status.contains("fence reservation") && status.contains("write exclusive"), "{status}");
    for host in HOSTS {
        assert!(status.contains(&format!(": guest{host} (slot ")), "{status}");
        assert!(!san.log(host).contains("by time alone"), "{}", san.log(host));
    }
}

/// The keys in what `shoal fence` shows.
fn keys(shown: &str) -> Vec<&str> {
    let words = shown.split_whitespace().filter(|word| word.starts_with("0x"));
    words.map(|word| word.trim_end_matches([':', ','])).collect()
}

/// Nobody asks for a class: reservations where the device has them, leases and a warning where it has not. mkfs
/// and mounts leave the keys of others alone, and name them.
#[test]
fn what_the_device_has_is_taken_unasked() {
    let mut san = San::new();
    let mkfs = format!("/mnt/host/mkfs.shoal --timing test {}", san.disk_name);
    mount_both(&mut san);
    HOSTS.iter().for_each(|host| san.umount(*host));
    let shown = san.shoal(3, "fence");
    assert!(shown.contains("nobody is registered"), "nobody was kept off: {shown}");
    // A host is paused, the other takes over, and leaves.
    mount_both(&mut san);
    let before = san.log(2).len();
    san.guests[2].pause(true);
    san.until_told(2, before, &["is recovered"]);
    san.umount(2);
    let shown = san.shoal(2, "fence");
    // The key is this host's own: what it writes would pass.
    let content = san.content();
    let why = san.refused(2, &format!("{mkfs} -f"));
    assert!(why.contains("is reserved") && why.contains("shoal fence --clear"), "{why}");
    assert!(!keys(&shown).is_empty() && keys(&shown).iter().all(|key| why.contains(key)), "{why}\n{shown}");
    assert!(san.content() == content, "mkfs wrote");
    san.guests[2].pause(false);
    san.until_told(3, 0, &["this host halts", "this host was stopped for longer"]);
    san.shoal(2, "fence --clear --yes-really");
    let made = san.run(2, &format!("{mkfs} -f"));
    assert!(made.contains("by reservations of the device"), "{made}");
    beside_others(&mut san, &mkfs);
    without_reservations(&mut san);
    san.check();
}

/// Something else has registered another host.
fn beside_others(san: &mut San, mkfs: &str) {
    let disk = san.disk_name.clone();
    let persist = format!("sg_persist --out --register {disk}");
    // The first answer may be that the keys were cleared.
    san.run(3, &format!("{persist} --param-sark=abcd || {persist} --param-sark=abcd"));
    let mount = san.mounting(2, "");
    for (script, advice) in [(mount, "mount with fence=lease"), (format!("{mkfs} -f"), "other software")] {
        let why = san.refused(2, &script);
        assert!(why.contains("0x000000000000abcd") && why.contains(advice), "{why}");
    }
    let shown = san.shoal(2, "fence");
    assert_eq!(keys(&shown), ["0x000000000000abcd"], "{shown}");
    san.mount(2, ",fence=lease");
    san.umount(2);
    san.run(3, &format!("{persist} --param-rk=abcd --param-sark=0"));
}

/// The array does not know of them any more.
fn without_reservations(san: &mut San) {
    san.run(1, "echo 0 >/sys/kernel/config/target/core/iblock_0/disk/attrib/emulate_pr");
    let before = san.log(2).len();
    san.mount(2, "");
    assert!(san.log(2)[before..].contains("by time alone"), "{}", san.log(2));
    let status = san.shoal(2, "status");
    assert!(status.contains("fence lease"), "{status}");
    san.umount(2);
}

/// Asks whoever runs the array, which is the test, and waits for its answer.
const OFF: &str = "#!/bin/sh
echo \"$1 $2 $SHOAL_HOST_BOOT\" >/mnt/host/asking && mv /mnt/host/asking /mnt/host/asked
n=0
until [ -e /mnt/host/detached ]; do
    n=$((n + 1))
    [ $n -lt 600 ] || { echo nobody answers >&2; exit 1; }
    sleep 0.1
done
";

/// Host 3 may log in no more, and what it has under way ends.
const DETACH: &str = "
acl=/sys/kernel/config/target/iscsi/iqn.2026-11.test.shoal:array/tpgt_1/acls/iqn.2026-11.test.shoal:guest3
rm $acl/lun_0/disk && rmdir $acl/lun_0 $acl";

/// A host is paused with writes queued, its guardian too; the other has it detached by the command, or believes
/// one that lies; it goes on. Does something of it land?
fn does_anything_land(lies: bool) -> bool {
    let mut san = San::new();
    fs::write(san.file("off"), OFF).unwrap();
    let place = "cp /mnt/host/off /run/off && chmod 755 /run/off";
    for host in HOSTS {
        san.run(host, if lies { "ln -s /bin/true /run/off" } else { place });
        san.mount(host, ",fence=command:/run/off");
    }
    let status = san.shoal(2, "status");
    assert!(status.contains("fence command"), "{status}");
    let boot = san.run(3, "cat /proc/sys/kernel/random/boot_id");
    let writers = WRITERS.replace("ROUND", "0");
    san.guests[2].start(&writers);
    std::thread::sleep(Duration::from_secs(3));
    san.run(3, "pkill -STOP shoal-guardian");
    san.guests[2].pause(true);
    if !lies {
        let begun = Instant::now();
        while !san.file("asked").exists() {
            assert!(begun.elapsed() < PATIENCE, "nobody asks:\n{}", san.log(2));
            std::thread::sleep(Duration::from_millis(50));
        }
        let asked = fs::read_to_string(san.file("asked")).unwrap();
        assert_eq!(asked, format!("guest3 00000000-0000-0000-0000-000000000003 {boot}"));
        std::thread::sleep(Duration::from_secs(5));
        assert!(!san.log(2).contains("is fenced"), "before the command has said so: {}", san.log(2));
        san.run(1, DETACH);
        fs::write(san.file("detached"), "").unwrap();
    }
    san.until_told(2, 0, &["is recovered"]);
    let log = san.log(2);
    assert!(log.contains("says that it is off the disk") && log.contains("it is kept off the disk"), "{log}");
    let synced = synced(&mut san);
    san.umount(2);
    let content = san.content();
    san.guests[2].pause(false);
    std::thread::sleep(Duration::from_secs(10));
    san.guests[2].kill();
    let landed = san.content() != content;
    if !lies {
        san.check();
    }
    println!("{synced} files synced before; something landed: {landed}");
    landed
}

#[test]
fn nothing_of_a_machine_that_a_command_detaches_lands() {
    assert!(!does_anything_land(false), "something of the paused host has landed");
}

/// The test would see it.
#[test]
fn what_a_command_that_lies_leaves_attached_lands() {
    assert!(does_anything_land(true));
}

/// A command that never succeeds, and tells that it was run.
fn never_to_be_run(san: &mut San, host: usize) {
    san.run(host, "printf '#!/bin/sh\\ntouch /mnt/host/ran\\nexit 1\\n' >/run/off && chmod 755 /run/off");
}

/// It was seen to ask, or has said what became of its last mount: whichever was read first.
fn knows(log: &str, seen: &str) -> bool {
    log.contains(seen) || log.contains("has said in the lobby that it is over")
}

/// Its daemon dies, and it mounts at once: the command would hit a machine that is well.
#[test]
fn a_machine_that_mounts_again_is_not_given_to_the_command() {
    let mut san = San::new();
    for host in HOSTS {
        never_to_be_run(&mut san, host);
        san.mount(host, ",fence=command:/run/off");
    }
    san.run(
        3,
        "echo kept >/mnt/fs/f && sync /mnt/fs/f && pkill -KILL -f run/mount.fuse.shoal; umount -l /mnt/fs",
    );
    san.mount(3, ",fence=command:/run/off");
    assert_eq!(san.run(3, "cat /mnt/fs/f"), "kept\n");
    assert!(knows(&san.log(2), "has the device to itself, and mounts again"), "{}", san.log(2));
    // The power of all fails; they come back together.
    for host in HOSTS {
        san.run(host, &format!("echo {host} >/mnt/fs/f{host} && sync /mnt/fs/f{host}"));
    }
    for host in HOSTS {
        san.guests[host - 1].kill();
    }
    for host in HOSTS {
        san.reboot(host);
        never_to_be_run(&mut san, host);
    }
    mount_together(&mut san, ",fence=command:/run/off");
    assert_eq!(san.run(2, "cat /mnt/fs/f /mnt/fs/f2 /mnt/fs/f3"), "kept\n2\n3\n");
    let logs = HOSTS.map(|host| san.log(host)).concat();
    assert!(knows(&logs, "has been started anew, and mounts again"), "{logs}");
    assert!(!san.file("ran").exists(), "{logs}");
    HOSTS.iter().for_each(|host| san.umount(*host));
    san.check();
}
