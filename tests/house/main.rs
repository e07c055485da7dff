//! The house rules, held from the first commit: imports point down the level table in `src/lib.rs`,
//! certain crates are used in certain places only, files and functions stay short.

mod source;

use source::{Source, all_sources};
use std::collections::BTreeMap;

/// Lines of a file and of a function, at most.
const FILE_MAX: usize = 500;
const FUNCTION_MAX: usize = 70;

/// Crates that live in certain places only, and what to use elsewhere.
const LANDLORDS: &[(&str, &[&str], &str)] = &[
    ("fuser", &[], "fuse::wire and fuse::session"),
    ("bincode", &["src/format/codec.rs"], "format::codec, or zerocopy structs"),
    (
        "libc",
        &["src/base/clock.rs", "src/device/", "src/fs/", "src/fuse/", "mkfs/src/", "fsck/src/"],
        "std, or a call of the room below",
    ),
    ("clap", &["src/fuse/cli/", "mkfs/src/main.rs", "fsck/src/"], "plain arguments"),
];

/// What the programs beside the daemon may use of it.
const TOOLS: &[(&str, &[&str])] = &[
    ("mkfs/src/", &["base", "cluster", "device", "format", "store", "inode"]),
    ("fsck/src/", &["base", "cluster", "device", "format", "store", "journal", "inode"]),
];

/// Room to level, from the table in `src/lib.rs`.
fn levels() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string("src/lib.rs").unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("//! |")?.split('|').map(str::trim);
        Some((cells.next()?.parse().ok()?, cells.next()?.to_string()))
    };
    text.lines().filter_map(row).map(|(level, room)| (room, level)).collect()
}

fn report(what: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{what}:\n  {}\n", faults.join("\n  "));
}

#[test]
fn the_table_names_every_room() {
    let levels = levels();
    assert!(levels.len() > 10, "the table was not understood: {levels:?}");
    let mut rooms: Vec<String> = std::fs::read_dir("src")
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir() && p.file_name().unwrap() != "bin")
        .map(|p| p.file_name().unwrap().to_str().unwrap().to_string())
        .collect();
    rooms.sort();
    assert_eq!(rooms, levels.keys().cloned().collect::<Vec<_>>());
}

#[test]
fn imports_point_down() {
    let levels = levels();
    let mut faults = Vec::new();
    for source in all_sources(&["src"]) {
        // Tests may stand on anything: they are at the top.
        let Some(room) = source.room().filter(|_| !source.is_test()) else { continue };
        for (line, other) in source.paths_from("crate") {
            let Some(level) = levels.get(&other) else { continue };
            if other != room && *level >= levels[&room] {
                faults.push(format!("{}:{line}: {room} imports {other}", source.path));
            }
        }
    }
    report("an import points to a lower level only (upward calls go through a trait declared below)", faults);
}

#[test]
fn tools_use_only_what_is_theirs() {
    let mut faults = Vec::new();
    for source in all_sources(&["mkfs/src", "fsck/src"]) {
        let (_, allowed) = TOOLS.iter().find(|(place, _)| source.path.starts_with(place)).unwrap();
        for (line, room) in source.paths_from("shoal") {
            if !allowed.contains(&room.as_str()) {
                faults.push(format!("{}:{line}: {room}", source.path));
            }
        }
    }
    report("mkfs and fsck share declarations with the daemon, not its traversal", faults);
}

#[test]
fn crates_stay_with_their_landlords() {
    let mut faults = Vec::new();
    for source in all_sources(&["src", "mkfs/src", "fsck/src"]) {
        for (krate, places, instead) in LANDLORDS {
            if places.iter().any(|p| source.path.starts_with(p)) {
                continue;
            }
            for line in source.uses_of(krate) {
                faults.push(format!("{}:{line}: {krate} (use {instead})", source.path));
            }
        }
    }
    report("a crate outside its place", faults);
}

#[test]
fn files_are_short() {
    let faults = every_source()
        .filter(|s| s.lines > FILE_MAX)
        .map(|s| format!("{}: {} lines, {FILE_MAX} at most: these are two rooms", s.path, s.lines))
        .collect();
    report("long files", faults);
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    for source in every_source() {
        for (line, name, length) in source.functions() {
            if length > FUNCTION_MAX {
                faults.push(format!("{}:{line}: fn {name}: {length} lines", source.path));
            }
        }
    }
    report("functions over 70 lines are two thoughts", faults);
}

#[test]
fn every_file_begins_with_what_it_gives() {
    let faults = every_source()
        .filter(|s| s.path.starts_with("src/") && !s.is_test() && !s.text.starts_with("//!"))
        .map(|s| s.path)
        .collect();
    report("no `//!` head", faults);
}

fn every_source() -> impl Iterator<Item = Source> {
    all_sources(&["src", "mkfs/src", "fsck/src", "tests", "benches"]).into_iter()
}
