//! What a program has given up, nobody is refused by, whichever host serves the inode.

use super::program::{flock, is_locked, set};
use super::{LIMIT, leave_and_check, opened};
use crate::rig::Cluster;

/// One gives up, and the next one, told by other means (here: it is the same test), tries at once.
#[test]
fn whoever_hears_of_an_unlock_finds_it_free() {
    let cluster = Cluster::new("256M", 3, LIMIT);
    // The first host made it, and serves.
    let files: [_; 3] = opened(&cluster, "file");
    for turn in 0..300 {
        let (one, next) = (&files[turn % 3], &files[(turn + 1 + turn / 3 % 2) % 3]);
        set(one, libc::F_WRLCK, 0, 10).unwrap_or_else(|e| panic!("turn {turn}: {e}"));
        assert!(turn % 50 > 0 || is_locked(next, 5, 1), "turn {turn}");
        set(one, libc::F_UNLCK, 0, 10).unwrap();
        match turn % 4 {
            0 => assert!(!is_locked(next, 5, 1), "turn {turn}"),
            _ => {
                set(next, libc::F_WRLCK, 5, 20).unwrap_or_else(|e| panic!("turn {turn}: {e}"));
                set(next, libc::F_UNLCK, 0, 0).unwrap();
            }
        }
        flock(one, libc::LOCK_EX).unwrap();
        flock(one, libc::LOCK_UN).unwrap();
        flock(next, libc::LOCK_EX | libc::LOCK_NB).unwrap_or_else(|e| panic!("turn {turn}: flock {e}"));
        flock(next, libc::LOCK_UN).unwrap();
    }
    drop(files);
    leave_and_check(&cluster, 3);
}
