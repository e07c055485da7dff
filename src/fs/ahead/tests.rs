use super::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

const SECOND: Duration = Duration::from_secs(1);

/// Inodes in an order of listing that has nothing to do with their numbers.
fn seen(count: u64) -> Seen {
    let listed = (0..count).map(|i| InodeNo(1000 + i * 7919 % count)).collect();
    let entries = Some(Entries::new(SECOND, listed));
    Seen { misses: 3, entries, ..Seen::new(InodeNo(5), SECOND) }
}

/// Go through `order`, all locks asked for are there at once: how many misses, and how many asked.
fn go(seen: &mut Seen, order: &[InodeNo]) -> (usize, usize) {
    let mut held = std::collections::HashSet::new();
    let (mut misses, mut asked) = (0, 0);
    for ino in order {
        if !held.insert(*ino) {
            continue;
        }
        (misses, seen.misses) = (misses + 1, seen.misses + 1);
        let Some((next, most, order)) = seen.next(*ino, 0, false, false) else { continue };
        let mut looked_at = 0;
        let mut room = most;
        for other in next {
            if room == 0 {
                break;
            }
            looked_at += 1;
            if held.insert(other) {
                (room, asked) = (room - 1, asked + 1);
            }
        }
        seen.asked(*ino, 0, order, looked_at);
    }
    (misses, asked)
}

#[test]
fn sequences_in_either_order_are_followed() {
    let mut by_number = seen(2000);
    let numbers: Vec<_> = (0..2000).map(|i| InodeNo(1000 + i)).collect();
    let (misses, asked) = go(&mut by_number, &numbers);
    assert!(misses < 40 && asked > 1900, "{misses} misses, {asked} asked for");
    let mut by_list = seen(2000);
    let listed = by_list.entries.as_ref().unwrap().listed.clone();
    let (misses, asked) = go(&mut by_list, &listed);
    assert!(misses < 40 && asked > 1900, "{misses} misses, {asked} asked for");
}

#[test]
fn a_directory_gone_through_in_any_order_is_met_in_time() {
    let mut all = seen(2000);
    let mut scattered: Vec<_> = (0..2000).map(|i| InodeNo(1000 + i)).collect();
    scattered.shuffle(&mut StdRng::seed_from_u64(1));
    let (misses, _) = go(&mut all, &scattered);
    assert!(misses < 150, "{misses} misses");
}

#[test]
fn after_changes_locks_are_asked_for_in_the_mode_of_changes() {
    let mut seen = seen(10);
    let mut tree = Duration::ZERO;
    assert_eq!(seen.mode(Mode::S, SECOND, None), Mode::S);
    for _ in 1..CHANGES_FIRST {
        assert_eq!(seen.mode(Mode::X, SECOND, None), Mode::X);
    }
    assert_eq!(seen.mode(Mode::S, SECOND, None), Mode::S, "others only look");
    for _ in 0..CHANGES_FIRST {
        assert_eq!(seen.mode(Mode::X, SECOND, Some(&mut tree)), Mode::X);
    }
    assert_eq!(seen.mode(Mode::S, SECOND + PAUSE_MAX / 2, None), Mode::X);
    assert_eq!(seen.mode(Mode::S, SECOND * 3, Some(&mut tree)), Mode::S);
    let mut other = super::Seen { changed_until: Duration::ZERO, ..seen };
    assert_eq!(other.mode(Mode::S, SECOND + PAUSE_MAX / 2, None), Mode::S);
    assert_eq!(other.mode(Mode::S, SECOND + PAUSE_MAX / 2, Some(&mut tree)), Mode::X, "of one tree");
}

#[test]
fn a_few_files_of_a_large_directory_ask_for_nothing() {
    let mut large = seen(100_000);
    let few: Vec<_> = (0..40).map(|i| InodeNo(1000 + i * 2111)).collect();
    assert_eq!(go(&mut large, &few), (40, 0));
}

#[test]
fn in_a_tree_a_small_directory_is_asked_for_at_the_first_miss() {
    let ahead = Ahead::default();
    let now = Duration::from_secs(10);
    for dir in 0..u64::from(STREAK) - 1 {
        assert_eq!(ahead.count(InodeNo(dir), InodeNo(77), now), None, "directory {dir}");
    }
    assert!(ahead.count(InodeNo(90), InodeNo(77), now).is_some() && ahead.is_streak(now));
    assert!(!ahead.is_streak(now + PAUSE_MAX * 2));
    let (next, most, _) = seen(10).next(InodeNo(1005), 0, true, false).unwrap();
    assert_eq!((next.len(), most, next[0]), (10, AHEAD_MAX, InodeNo(1005)));
    assert!(seen(1000).next(InodeNo(1500), 0, true, false).is_none(), "a large one");
}

#[test]
fn inodes_near_each_other_are_a_sequence() {
    let mut known = Known::default();
    let at = Duration::from_secs;
    let windows: Vec<_> =
        [5000, 5001, 5004, 5200, 9000, 9001, 8999].map(|n| known.follow(InodeNo(n), at(10))).into();
    assert_eq!(windows, [0, 8, 16, 32, 0, 8, 0]);
    assert_eq!(known.follow(InodeNo(9000), at(20)), 0, "long after");
}

#[test]
fn misses_are_counted_anew_after_a_pause_and_lists_are_made_anew_in_time() {
    let ahead = Ahead::default();
    let dir = InodeNo(5);
    let at = |ms: u64| Duration::from_millis(10_000 + ms);
    assert_eq!(ahead.count(dir, InodeNo(1), at(0)), None);
    assert_eq!(ahead.count(dir, InodeNo(2), at(10)), None);
    assert_eq!(ahead.count(dir, InodeNo(3), at(2000)), None, "a pause");
    assert_eq!(ahead.count(dir, InodeNo(4), at(2010)), None);
    assert_eq!(ahead.count(dir, InodeNo(5), at(2020)), Some(FIRST));
    assert_eq!(ahead.count(dir, InodeNo(5), at(2021)), None, "under way");
    ahead.list(dir, Entries::new(at(2020), vec![InodeNo(1), InodeNo(6)]));
    assert_eq!(ahead.count(dir, InodeNo(6), at(4100)), None, "in the list");
    assert_eq!(ahead.count(dir, InodeNo(7), at(4000)), None, "too young");
    assert_eq!(ahead.count(dir, InodeNo(7), at(4100)), Some(FIRST));
    let long = Entries { took: SECOND, rest: 99, ..Entries::new(at(4200), vec![InodeNo(1)]) };
    ahead.list(dir, long);
    (0..30).for_each(|i| assert_eq!(ahead.count(dir, InodeNo(7), at(4200 + i * 500)), None, "it took long"));
    assert_eq!(ahead.count(dir, InodeNo(7), at(24_300)), Some(99), "the rest");
    ahead.forget_old(at(25_000));
    assert_eq!(ahead.seen.lock().len(), 1);
    ahead.forget_old(at(60_000));
    assert!(ahead.seen.lock().is_empty());
}
