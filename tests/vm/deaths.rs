//! Guests that die or are frozen while another one works.

use crate::WORKER;
use crate::lab::{COMMAND_MAX, Lab};
use std::fs;
use std::time::{Duration, Instant};

/// Longer than it takes to take over, many times.
const PATIENCE: Duration = Duration::from_secs(60);

/// Wait until the log of a guest says this behind its first `from` bytes.
fn until_told(lab: &Lab, number: usize, from: usize, what: &str) {
    let begun = Instant::now();
    let told = || fs::read_to_string(lab.shared(&format!("log{number}"))).unwrap_or_default();
    while !told().get(from..).is_some_and(|log| log.contains(what)) {
        assert!(begun.elapsed() < PATIENCE, "guest {number} never says '{what}':\n{}", told());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn logged(lab: &Lab, number: usize) -> usize {
    fs::metadata(lab.shared(&format!("log{number}"))).map_or(0, |log| log.len() as usize)
}

/// `SHOAL_ROUNDS`: how often. Prints for how long the survivor stood still, in the directory that both work in
/// and in one that the dead guest has never been in.
#[test]
fn a_guest_dies_again_and_again_and_the_other_goes_on() {
    let rounds = std::env::var("SHOAL_ROUNDS").map_or(2, |n| n.parse().expect("a number of rounds"));
    let mut lab = Lab::new("512M", 2);
    lab.run(1, "mkdir /mnt/fs/load /mnt/fs/quiet && touch /mnt/fs/quiet/f");
    for round in 0..rounds {
        let before = logged(&lab, 1);
        lab.guest(2).start(&format!("{WORKER} promise /mnt/fs/load 2 /mnt/host/promised2 {round}"));
        let probes =
            ["load", "quiet"].map(|at| (at, lab.guest(1).start(&format!("{WORKER} probe /mnt/fs/{at} 14"))));
        std::thread::sleep(Duration::from_secs(4));
        lab.guest(2).kill();
        until_told(&lab, 1, before, "is recovered");
        for (at, probe) in probes {
            let ended = lab.guest(1).wait(probe, COMMAND_MAX);
            assert_eq!(ended.code, 0, "{}", ended.output);
            println!("round {round}, {at}: {}", ended.output.trim());
        }
        let kept = lab.run(1, &format!("{WORKER} keep /mnt/fs/load /mnt/host/promised2"));
        assert!(kept.trim().parse::<usize>().expect("a count") >= 5, "only {kept}: nothing was tested");
        fs::remove_file(lab.shared("promised2")).unwrap();
        lab.reboot(2);
        lab.mount(2);
        lab.run(2, "rm -r /mnt/fs/load && mkdir /mnt/fs/load");
    }
    (1..=2).for_each(|number| lab.umount(number));
    lab.check(false);
}

/// Guardian and all. Nothing is on its way below the daemon at that moment: what is, may land within the write
/// life or, from a machine that is frozen as a whole, when it goes on, and this class of fence does not keep it
/// off (`san` does). What was only in memory must not land.
#[test]
fn a_guest_that_was_frozen_past_its_lease_halts_and_writes_nothing() {
    let mut lab = Lab::new("256M", 2);
    lab.run(
        2,
        "mkdir /mnt/fs/d && dd if=/dev/zero of=/mnt/fs/d/synced bs=64k count=16 conv=fsync && sleep 2",
    );
    let before = [0, 1, 2].map(|number| logged(&lab, number));
    lab.run(2, "dd if=/dev/zero bs=64k count=16 2>/dev/null | tr '\\0' x >/mnt/fs/d/unsynced");
    lab.guest(2).pause(true);
    let frozen = Instant::now();
    until_told(&lab, 1, before[1], "is recovered");
    let content = "cd /mnt/fs && find . -type f | sort | xargs sha256sum && stat -c '%n %s %Y' d/*";
    lab.run(1, "echo other >/mnt/fs/d/other && sync /mnt/fs/d/other");
    println!("recovered and worked upon {:.1} s after it was frozen", frozen.elapsed().as_secs_f32());
    let seen = lab.run(1, content);
    lab.guest(2).pause(false);
    let late = lab.guest(2).start("dd if=/dev/zero of=/mnt/fs/d/late bs=4k count=1 conv=fsync");
    assert_ne!(lab.guest(2).wait(late, COMMAND_MAX).code, 0, "it writes as if nothing had happened");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lab.run(1, content), seen);
    let log = fs::read_to_string(lab.shared("log2")).unwrap();
    let told =
        ["this host halts", "stopped for longer than its lease"].iter().any(|w| log[before[2]..].contains(w));
    assert!(told, "{log}");
    lab.run(2, "umount -l /mnt/fs && sleep 1");
    lab.mount(2);
    assert_eq!(lab.run(2, content), seen);
    (1..=2).for_each(|number| lab.umount(number));
    lab.check(false);
}
