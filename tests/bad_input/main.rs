//! Bad input: devices that are no Shoal volume, or not this one, or damaged, or read-only, or failing.
//! Each is refused, or survived, with one line that says what it is and what to do. Needs root and
//! /dev/fuse, and `cargo build --workspace` before.
#![cfg(feature = "fuse")]

mod corrupt;
mod disk;
mod failing;
mod faulty;
mod groups;
mod older_life;
mod readonly;
mod refused;
mod stalls;

#[allow(dead_code)]
#[path = "../cluster/rig.rs"]
mod rig;
#[allow(dead_code)]
#[path = "../cluster/rig_xattr.rs"]
mod rig_xattr;

use std::io;
use std::process::Output;
use std::time::Duration;

/// Longest time of one test.
const LIMIT: Duration = Duration::from_secs(120);

/// The errno that something failed with; 0 if it did not.
fn errno<T>(done: io::Result<T>) -> i32 {
    done.err().map_or(0, |e| e.raw_os_error().unwrap_or(-1))
}

/// Exit code 32, and one line with all of `words`.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let said = rig::stderr(output);
    assert_eq!(output.status.code(), Some(32), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one line: {said}");
    for word in words {
        assert!(said.contains(word), "'{word}' is missing: {said}");
    }
}
