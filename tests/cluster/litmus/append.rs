//! Appending from both hosts at once.

use super::Pair;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Record `i` of a writer: of many lengths, some over a block's end, each recognisable.
fn record(who: char, i: usize) -> String {
    format!("{who} {i:06} {}\n", who.to_string().repeat(i * 37 % 200))
}

/// Both write their records at once; none may be lost, torn, mixed or out of its writer's order.
fn both_append(pair: Pair, records: usize, open: fn(&Path) -> File) {
    drop(File::create(pair.a.join("log")).unwrap());
    let writer = |at: &Path, who| {
        let at = at.join("log");
        std::thread::spawn(move || {
            let mut log = open(&at);
            (0..records).for_each(|i| log.write_all(record(who, i).as_bytes()).unwrap());
        })
    };
    for writer in [writer(&pair.a, 'a'), writer(&pair.b, 'b')] {
        writer.join().unwrap();
    }
    for at in [&pair.a, &pair.b] {
        let log = fs::read_to_string(at.join("log")).unwrap();
        let mut next = [0; 2];
        for line in log.split_inclusive('\n') {
            let who = line.chars().next().unwrap();
            let i = &mut next[usize::from(who == 'b')];
            assert_eq!(line, record(who, *i), "after {next:?}");
            next[usize::from(who == 'b')] += 1;
        }
        assert_eq!(next, [records; 2]);
    }
    pair.finish();
}

#[test]
fn appends_from_both_hosts_lose_nothing() {
    both_append(Pair::new(), 10_000, |at| OpenOptions::new().append(true).open(at).unwrap());
}

/// The descriptor begins without O_APPEND, so the kernel caches its writes where it believes the end.
#[test]
fn appends_of_descriptors_that_became_appending() {
    both_append(Pair::new(), 2000, |at| {
        let file = OpenOptions::new().write(true).open(at).unwrap();
        // SAFETY: fcntl on an open descriptor without pointers.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) }, 0);
        file
    });
}
