//! What one host has done, the other sees as soon as the call has returned.

use crate::rig::Cluster;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const ROUNDS: usize = 20;

fn two() -> (Cluster, PathBuf, PathBuf) {
    let cluster = Cluster::new("256M", 2, LIMIT);
    let (a, b) = (cluster.at(0), cluster.at(1));
    (cluster, a, b)
}

fn names(dir: &PathBuf) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn writes_sizes_and_times() {
    let (cluster, a, b) = two();
    fs::write(a.join("f"), b"start").unwrap();
    let mut reader = File::open(b.join("f")).unwrap();
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let text = format!("round {round} {}", "x".repeat(round * 977));
        let before = fs::metadata(to.join("f")).unwrap();
        fs::write(from.join("f"), &text).unwrap();
        let after = fs::metadata(to.join("f")).unwrap();
        assert_eq!(after.len(), text.len() as u64, "round {round}");
        assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
        assert_eq!(fs::read_to_string(to.join("f")).unwrap(), text);
        let mut seen = String::new();
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, text, "through a handle that stayed open");
    }
    drop(reader);
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn names_come_and_go() {
    let (cluster, a, b) = two();
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        // A negative entry is cached on the other host first.
        assert_eq!(fs::metadata(to.join("n")).unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(from.join("n"), [round as u8]).unwrap();
        assert!(fs::metadata(to.join("n")).is_ok());
        assert_eq!(names(to), ["n"]);
        fs::write(to.join("m"), b"replaced").unwrap();
        fs::rename(from.join("n"), from.join("m")).unwrap();
        assert_eq!(fs::read(to.join("m")).unwrap(), [round as u8]);
        assert_eq!(names(to), ["m"]);
        fs::hard_link(to.join("m"), to.join("l")).unwrap();
        assert_eq!(fs::metadata(from.join("m")).unwrap().nlink(), 2);
        fs::remove_file(from.join("l")).unwrap();
        assert_eq!(fs::metadata(to.join("m")).unwrap().nlink(), 1);
        fs::remove_file(from.join("m")).unwrap();
        assert!(names(to).is_empty());
    }
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn attributes_and_truncation() {
    let (_cluster, a, b) = two();
    fs::write(a.join("f"), vec![7; 10_000]).unwrap();
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let mode = 0o600 + round as u32 % 8;
        fs::set_permissions(from.join("f"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(to.join("f")).unwrap().permissions().mode() & 0o7777, mode);
        let size = 10_000 - round as u64 * 400;
        OpenOptions::new().write(true).open(from.join("f")).unwrap().set_len(size).unwrap();
        assert_eq!(fs::metadata(to.join("f")).unwrap().len(), size);
        assert_eq!(fs::read(to.join("f")).unwrap(), vec![7; size as usize]);
    }
}

#[test]
fn appends_from_both_hosts_lose_nothing() {
    let (_cluster, a, b) = two();
    const RECORDS: usize = 1000;
    let writers: Vec<_> = [(a.clone(), 'a'), (b, 'b')]
        .into_iter()
        .map(|(at, who)| {
            std::thread::spawn(move || {
                let mut log = OpenOptions::new().append(true).create(true).open(at.join("log")).unwrap();
                for i in 0..RECORDS {
                    log.write_all(format!("{who} {i:06}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|w| w.join().unwrap());
    let log = fs::read_to_string(a.join("log")).unwrap();
    for who in ['a', 'b'] {
        let own: Vec<&str> = log.lines().filter(|l| l.starts_with(who)).collect();
        let expected: Vec<String> = (0..RECORDS).map(|i| format!("{who} {i:06}")).collect();
        assert_eq!(own, expected);
    }
    assert_eq!(log.len(), 2 * RECORDS * "a 000000\n".len());
}

#[test]
fn an_unlinked_file_stays_while_the_other_host_has_it_open() {
    let (cluster, a, b) = two();
    let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    fs::write(a.join("f"), &content).unwrap();
    let open = OpenOptions::new().read(true).write(true).open(b.join("f")).unwrap();
    fs::remove_file(a.join("f")).unwrap();
    // Whatever takes its blocks now must not show in it.
    (0..20).for_each(|i| fs::write(a.join(format!("other{i}")), vec![0xee; 100_000]).unwrap());
    let mut seen = vec![0; content.len()];
    open.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == content);
    open.write_all_at(b"still here", 5).unwrap();
    drop(open);
    assert!(fs::metadata(b.join("f")).is_err());
    cluster.umount(0);
    cluster.umount(1);
}

#[test]
fn both_hosts_create_in_one_directory() {
    let (cluster, a, b) = two();
    let makers: Vec<_> = [(a.clone(), 'a'), (b.clone(), 'b')]
        .into_iter()
        .map(|(at, who)| {
            std::thread::spawn(move || {
                (0..150).for_each(|i| fs::write(at.join(format!("{who}{i}")), [i]).unwrap())
            })
        })
        .collect();
    makers.into_iter().for_each(|m| m.join().unwrap());
    assert_eq!(names(&a).len(), 300);
    assert_eq!(names(&a), names(&b));
    cluster.umount(0);
    cluster.umount(1);
}
