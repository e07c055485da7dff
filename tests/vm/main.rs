//! Several kernels on one disk: User-Mode Linux guests that share an image. `make test-vm`.

mod deaths;
mod guest;
mod lab;
mod san;

use lab::{COMMAND_MAX, Lab};
use std::fs;
use std::time::Duration;

const WORKER: &str = "python3 /mnt/host/worker.py";

#[test]
fn what_one_kernel_did_another_sees_at_once() {
    let mut lab = Lab::new("256M", 2);
    // What guest `a` does, and what must hold in guest `b` right afterwards; then with the roles changed.
    let steps = [
        ("printf one >f", r#"[ "$(cat f)" = one ] && [ "$(stat -c %s f)" = 3 ]"#),
        ("printf two-more >f", r#"[ "$(cat f)" = two-more ] && [ "$(stat -c %s f)" = 8 ]"#),
        ("printf +tail >>f", r#"[ "$(cat f)" = two-more+tail ]"#),
        ("[ ! -e later ]", "[ ! -e later ] && touch later"),
        ("[ -e later ] && rm later", "[ ! -e later ]"),
        ("mkdir -p d && touch d/a d/b", r#"[ "$(ls d | tr '\n' ' ')" = "a b " ]"#),
        ("mv d/a d/c", r#"[ ! -e d/a ] && [ -e d/c ] && [ "$(ls d | tr '\n' ' ')" = "b c " ]"#),
        ("printf x >d/x && mv d/x d/b", r#"[ "$(cat d/b)" = x ] && [ ! -e d/x ]"#),
        (
            "truncate -s 100000 f",
            r#"[ "$(stat -c %s f)" = 100000 ] && [ "$(tail -c 1 f | od -An -tx1)" = " 00" ]"#,
        ),
        ("truncate -s 3 f", r#"[ "$(cat f)" = two ]"#),
        ("chmod 640 f && chown 7:8 f", r#"[ "$(stat -c %a:%u:%g f)" = 640:7:8 ]"#),
        ("touch -d @1000000000 f", r#"[ "$(stat -c %Y f)" = 1000000000 ]"#),
        ("ln f g", r#"[ "$(stat -c %h f)" = 2 ] && [ "$(stat -c %i f)" = "$(stat -c %i g)" ]"#),
        ("rm g", r#"[ "$(stat -c %h f)" = 1 ] && [ ! -e g ]"#),
        ("ln -s f s", r#"[ "$(readlink s)" = f ]"#),
        ("rm s d/b d/c && rmdir d", "[ ! -e d ]"),
        (
            "head -c 20000 /dev/zero >m && python3 /mnt/host/worker.py mapped m 9000 77",
            r#"[ "$(python3 /mnt/host/worker.py mapped m 9000 -)" = 77 ] && [ "$(od -An -tu1 -j 9000 -N 1 m)" = "  77" ]"#,
        ),
        (
            "python3 /mnt/host/worker.py mapped m 9000 78",
            r#"[ "$(python3 /mnt/host/worker.py mapped m 9000 -)" = 78 ] && rm f m"#,
        ),
    ];
    for (number, (a, b)) in [(1, 2), (2, 1)].into_iter().enumerate() {
        lab.run(a, &format!("mkdir /mnt/fs/t{number}"));
        for (does, holds) in steps {
            lab.run(a, &format!("cd /mnt/fs/t{number} && {does}"));
            lab.run(b, &format!("cd /mnt/fs/t{number} && {holds}"));
        }
    }
    (1..=2).for_each(|number| lab.umount(number));
    lab.check(false);
}

#[test]
fn kernels_that_append_to_one_file_lose_nothing() {
    const EACH: usize = 300;
    let mut lab = Lab::new("256M", 4);
    let jobs: Vec<_> =
        (1..=4).map(|n| lab.guest(n).start(&format!("{WORKER} append /mnt/fs/log {n} {EACH}"))).collect();
    for (n, job) in (1..=4).zip(jobs) {
        let ended = lab.guest(n).wait(job, COMMAND_MAX);
        assert_eq!(ended.code, 0, "guest {n}: {}", ended.output);
    }
    let log = lab.run(3, "cat /mnt/fs/log");
    for n in 1..=4 {
        let mut own = log.lines().filter(|l| l.starts_with(&format!("{n} ")));
        assert!(
            (0..EACH).all(|i| own.next() == Some(&format!("{n} {i:06}"))) && own.next().is_none(),
            "{log}"
        );
    }
    assert_eq!(log.lines().count(), 4 * EACH);
    (1..=4).for_each(|number| lab.umount(number));
    lab.check(false);
}

#[test]
fn what_was_synced_survives_a_power_cut_of_all_guests() {
    let rounds = std::env::var("SHOAL_ROUNDS").map_or(2, |n| n.parse().expect("a number of rounds"));
    let mut lab = Lab::new("512M", 2);
    lab.run(1, "mkdir /mnt/fs/load");
    for round in 0..rounds {
        for n in 1..=2 {
            lab.guest(n).start(&format!("{WORKER} promise /mnt/fs/load {n} /mnt/host/promised{n} {round}"));
        }
        std::thread::sleep(Duration::from_secs(4));
        lab.guests.iter_mut().for_each(guest::Guest::kill);
        if round % 2 == 1 {
            lab.check(true);
        }
        for n in 1..=2 {
            lab.reboot(n);
            lab.mount(n);
        }
        let mut kept = 0;
        for n in 1..=2 {
            let counted = lab.run(3 - n, &format!("{WORKER} keep /mnt/fs/load /mnt/host/promised{n}"));
            kept += counted.trim().parse::<usize>().expect("a count");
            fs::remove_file(lab.shared(&format!("promised{n}"))).unwrap();
        }
        assert!(kept >= 10, "only {kept} files were promised: nothing was tested");
        lab.run(1, "rm -r /mnt/fs/load && mkdir /mnt/fs/load");
    }
    (1..=2).for_each(|number| lab.umount(number));
    lab.check(false);
}
