//! Listings while others change the directory; cookies.

use super::{Pair, names};
use crate::rig_stream::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};

#[test]
fn both_hosts_create_in_one_directory() {
    let pair = Pair::new();
    let (a, b) = (pair.a.clone(), pair.b.clone());
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
    pair.finish();
}

/// What is there throughout is listed once; nothing is listed twice.
#[test]
fn a_listing_while_the_other_host_inserts_and_removes() {
    const NAMES: usize = 3000;
    let pair = Pair::new();
    (0..NAMES).for_each(|i| drop(File::create(pair.a.join(format!("old{i}"))).unwrap()));
    for (reader, changer, round) in [(&pair.a, &pair.b, 1), (&pair.b, &pair.a, 2)] {
        let mut stream = Stream::open(reader);
        let mut listed: Vec<String> = (0..100).map(|_| stream.next().unwrap().0).collect();
        (0..500).for_each(|i| drop(File::create(changer.join(format!("new{round}-{i}"))).unwrap()));
        (0..NAMES).filter(|i| i % 10 == round).for_each(|i| {
            fs::remove_file(changer.join(format!("old{i}"))).unwrap();
        });
        listed.extend(stream.rest());
        let once: BTreeSet<&String> = listed.iter().collect();
        assert_eq!(once.len(), listed.len(), "a name is listed twice");
        for i in (0..NAMES).filter(|i| !(1..=round).contains(&(i % 10))) {
            assert!(once.contains(&format!("old{i}")), "old{i} is missing");
        }
        // A rewound stream shows how it is now.
        stream.seek(0);
        let now: BTreeSet<String> = stream.rest().into_iter().filter(|n| !n.starts_with('.')).collect();
        assert_eq!(now, names(changer).into_iter().collect());
    }
    pair.finish();
}

/// A position stands for the same place on every host, whatever is inserted and removed around it.
#[test]
fn positions_hold_on_all_hosts() {
    const NAMES: usize = 2000;
    let pair = Pair::new();
    (0..NAMES).for_each(|i| drop(File::create(pair.a.join(format!("n{i}"))).unwrap()));
    let mut stream = Stream::open(&pair.a);
    let order: Vec<(String, i64)> = std::iter::from_fn(|| stream.next()).collect();
    let mut other = Stream::open(&pair.b);
    let seen: Vec<(String, i64)> = std::iter::from_fn(|| other.next()).collect();
    assert!(order == seen, "the hosts list in different orders or with different positions");
    let places: BTreeMap<&String, usize> = order.iter().enumerate().map(|(i, (n, _))| (n, i)).collect();
    // Every third goes, and as many others come.
    for i in (0..NAMES).step_by(3) {
        fs::remove_file(pair.b.join(format!("n{i}"))).unwrap();
        drop(File::create(pair.a.join(format!("m{i}"))).unwrap());
    }
    let gone = |name: &str| name.strip_prefix('n').is_some_and(|i| i.parse::<usize>().unwrap() % 3 == 0);
    for at in [&pair.a, &pair.b] {
        let mut stream = Stream::open(at);
        for (i, (_, position)) in order.iter().enumerate().step_by(37) {
            stream.seek(*position);
            let rest: Vec<String> = stream.rest().into_iter().filter(|n| places.contains_key(n)).collect();
            let expected: Vec<&String> = order[i + 1..].iter().map(|(n, _)| n).filter(|n| !gone(n)).collect();
            assert!(rest.iter().collect::<Vec<_>>() == expected, "behind entry {i}");
        }
    }
    drop((stream, other));
    pair.finish();
}
