//! Mappings of a file that another host counts in, cuts, extends, writes: what the program that maps it sees, and which
//! signal it gets, is as on a local filesystem.

use super::map::Map;
use super::{Pair, ROUNDS};
use crate::file_locks::program::{Child, wait};
use libc::{F_UNLCK, F_WRLCK};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const PAGE: usize = 4096;
const PAGES: usize = 4;
const SOON: Duration = Duration::from_secs(30);

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn word(map: &Map, at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| map.load(at + i)))
}

/// One number that both hosts count up through their mappings; only the file lock keeps them apart, nobody calls msync.
#[test]
fn one_counter_of_both_hosts_under_a_file_lock() {
    const COUNTS: u64 = 300;
    const AT: usize = PAGE + 1000;
    let pair = Pair::new();
    fs::write(pair.a.join("f"), vec![0; 2 * PAGE]).unwrap();
    let count = |at: &Path| {
        let file = open(&at.join("f"));
        std::thread::spawn(move || {
            let (map, mut last) = (Map::new(&file, 2 * PAGE, true), 0);
            for _ in 0..COUNTS {
                wait(&file, F_WRLCK, 0, 1).unwrap();
                let number = word(&map, AT);
                assert!(number >= last, "{last} was there, {number} is");
                last = number + 1;
                last.to_le_bytes().into_iter().enumerate().for_each(|(i, byte)| map.store(AT + i, byte));
                wait(&file, F_UNLCK, 0, 1).unwrap();
            }
        })
    };
    [count(&pair.a), count(&pair.b)].into_iter().for_each(|t| t.join().unwrap());
    for at in [&pair.a, &pair.b] {
        let seen = fs::read(at.join("f")).unwrap();
        assert_eq!(u64::from_le_bytes(seen[AT..AT + 8].try_into().unwrap()), 2 * COUNTS);
    }
    pair.finish();
}

/// The signal a program dies of that loads, or stores, the first byte of a page; 0: none.
fn signal_of(map: &Map, page: usize, store: bool) -> i32 {
    let mut child = Child::start(|| {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a system call on a structure of ours: no core files of tests.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
        let byte = map.load(page * PAGE);
        if store {
            map.store(page * PAGE, byte);
        }
        0
    });
    let status = child.end(SOON);
    assert!(libc::WIFSIGNALED(status) || status == 0, "wait status {status:#x}");
    if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
}

/// A file of four pages is mapped at `mapped` and touched, cut to `length` through `cutter`, and grown again: the signals and
/// the bytes that the mapping gives after either.
fn cut_and_grown(mapped: &Path, cutter: &Path, length: usize) -> (Vec<[i32; 2]>, Vec<u8>, Vec<u8>) {
    let file = open(mapped);
    file.write_all_at(&[0x55; PAGES * PAGE], 0).unwrap();
    let map = Map::new(&file, PAGES * PAGE, true);
    // A dirty one, a clean one, in turn.
    (0..PAGES).for_each(|page| assert_eq!(map.load(page * PAGE), 0x55));
    (0..PAGES).step_by(2).for_each(|page| map.store(page * PAGE + 9, 0x55));
    open(cutter).set_len(length as u64).unwrap();
    let signals = (0..PAGES).map(|page| [false, true].map(|store| signal_of(&map, page, store))).collect();
    let left = (0..length.next_multiple_of(PAGE)).map(|i| map.load(i)).collect();
    open(cutter).set_len((PAGES * PAGE) as u64).unwrap();
    // A fault does not ask where the end is by now.
    assert_eq!(file.metadata().unwrap().len(), (PAGES * PAGE) as u64);
    let grown = (0..PAGES * PAGE).map(|i| map.load(i)).collect();
    (signals, left, grown)
}

#[test]
fn a_mapping_that_the_other_host_cuts() {
    let pair = Pair::new();
    let local = tempfile::NamedTempFile::new().unwrap();
    fs::write(pair.a.join("f"), b"").unwrap();
    let mut round = 0;
    for length in [0, 1, 100, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 700, 3 * PAGE, PAGES * PAGE - 1] {
        let want = cut_and_grown(local.path(), local.path(), length);
        let dead = want.0.iter().filter(|signals| **signals == [libc::SIGBUS; 2]).count();
        assert_eq!(dead, PAGES - length.div_ceil(PAGE), "the local filesystem at {length}");
        assert!(want.1[length..].iter().all(|b| *b == 0), "the local filesystem's last page at {length}");
        for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            let got = cut_and_grown(&to.join("f"), &from.join("f"), length);
            assert_eq!(got.0, want.0, "signals, cut to {length}, round {round}");
            assert!(got.1 == want.1, "bytes, cut to {length}, round {round}");
            assert!(got.2 == want.2, "bytes, cut to {length} and grown, round {round}");
            round += 1;
        }
    }
    pair.finish();
}

/// What a mapping stores behind the end of the file is nobody's, also when the other host moves the end behind it.
#[test]
fn stores_behind_the_end_do_not_become_data() {
    let pair = Pair::new();
    pair.alternate(ROUNDS, |round, from, to| {
        let name = format!("f{round}");
        fs::write(from.join(&name), [1; 100]).unwrap();
        let file = open(&to.join(&name));
        let map = Map::new(&file, PAGE, true);
        map.store(50, 2);
        map.store(200, 0xaa);
        if round % 4 < 2 {
            map.sync();
        }
        open(&from.join(&name)).set_len(PAGE as u64).unwrap();
        let mut want = vec![0; PAGE];
        want[..100].fill(1);
        want[50] = 2;
        assert!(fs::read(from.join(&name)).unwrap() == want, "round {round}: who moved the end");
        let loaded: Vec<u8> = (0..PAGE).map(|i| map.load(i)).collect();
        assert!(loaded == want, "round {round}: the mapping");
    });
    pair.finish();
}

/// The last page is mapped when the other host appends; what is stored behind the former end, by a program that has not
/// asked for the size since, stays.
#[test]
fn stores_into_a_page_that_the_other_host_has_filled_up() {
    let pair = Pair::new();
    pair.alternate(4 * ROUNDS, |round, from, to| {
        let name = format!("f{round}");
        fs::write(from.join(&name), [1; 100]).unwrap();
        let file = open(&to.join(&name));
        let map = Map::new(&file, PAGE, true);
        assert_eq!(map.load(0), 1);
        let length = [PAGE, 300, PAGE + 500][round % 3];
        let appended = open(&from.join(&name));
        match round % 2 {
            0 => appended.write_all_at(&vec![2; length - 100], 100).unwrap(),
            _ => appended.set_len(length as u64).unwrap(),
        }
        assert_eq!(map.load(200), [2, 0][round % 2], "round {round}");
        map.store(200, 7);
        if round % 4 < 2 {
            map.sync();
        }
        let seen = fs::read(from.join(&name)).unwrap();
        assert_eq!((seen.len(), seen[100], seen[200]), (length, [2, 0][round % 2], 7), "round {round}");
        assert_eq!(map.load(200), 7, "round {round}: where it was stored");
        // Once more, now that both have been told.
        map.store(250, 8);
        assert_eq!(fs::read(from.join(&name)).unwrap()[250], 8, "round {round}");
        assert_eq!(file.metadata().unwrap().len(), length as u64, "round {round}");
    });
    pair.finish();
}

/// A private mapping sees the file, with what other hosts write, but for the pages it has stored into; nobody sees those.
#[test]
fn private_mappings() {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), vec![0; 2 * PAGE]).unwrap();
    pair.alternate(ROUNDS, |round, from, to| {
        let (before, value) = (round as u8, round as u8 + 1);
        let file = open(&to.join("f"));
        let map = Map::private(&file, 2 * PAGE);
        assert_eq!((map.load(0), map.load(PAGE)), (before, before), "round {round}");
        map.store(0, 0xee);
        map.store(PAGE - 1, 0xee);
        open(&from.join("f")).write_all_at(&[value; 2 * PAGE], 0).unwrap();
        assert_eq!(
            (map.load(0), map.load(1), map.load(PAGE - 1)),
            (0xee, before, 0xee),
            "round {round}: its own"
        );
        assert!((PAGE..2 * PAGE).all(|i| map.load(i) == value), "round {round}: the file's");
        for at in [from, to] {
            assert!(fs::read(at.join("f")).unwrap() == [value; 2 * PAGE], "round {round}: the file");
        }
    });
    pair.finish();
}

/// A program that hears of growth through the mapping itself, as databases do that keep their length in the first page.
#[test]
fn pages_behind_the_former_end() {
    let pair = Pair::new();
    pair.alternate(ROUNDS, |round, from, to| {
        let name = format!("f{round}");
        fs::write(from.join(&name), [1; PAGE]).unwrap();
        let file = open(&to.join(&name));
        let map = Map::new(&file, PAGES * PAGE, true);
        assert_eq!(map.load(0), 1);
        let grown = open(&from.join(&name));
        grown.set_len((PAGES * PAGE) as u64).unwrap();
        grown.write_all_at(&[PAGES as u8], 0).unwrap();
        assert_eq!(map.load(0), PAGES as u8, "round {round}");
        map.store((PAGES - 1) * PAGE + 7, 9);
        assert_eq!(fs::read(from.join(&name)).unwrap()[(PAGES - 1) * PAGE + 7], 9, "round {round}");
    });
    pair.finish();
}
