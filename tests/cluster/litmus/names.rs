//! Names: created, removed, renamed, linked.

use super::{Pair, ROUNDS, errno, names};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

#[test]
fn names_come_and_go() {
    let pair = Pair::new();
    let (a, b) = (pair.a.clone(), pair.b.clone());
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
    pair.finish();
}

/// A failed stat may be remembered by the kernel; whatever then makes the name must end that.
#[test]
fn names_that_were_missing_a_moment_ago() {
    let pair = Pair::new();
    fs::create_dir(pair.a.join("d")).unwrap();
    pair.alternate(ROUNDS, |round, from, to| {
        let missing =
            |name: &str| assert_eq!(errno(fs::symlink_metadata(to.join(name))), libc::ENOENT, "{name}");
        let there = |name: &str| {
            let found = fs::symlink_metadata(to.join(name));
            assert!(found.is_ok(), "round {round}: {name} does not show");
            found.unwrap()
        };
        for name in ["file", "dir", "dir/inner", "sym", "hard", "moved", "d/over"] {
            missing(name);
            missing(name);
        }
        drop(File::create_new(from.join("file")).unwrap());
        assert!(there("file").is_file());
        fs::create_dir(from.join("dir")).unwrap();
        assert!(there("dir").is_dir());
        missing("dir/inner");
        drop(File::create_new(from.join("dir/inner")).unwrap());
        there("dir/inner");
        assert_eq!(names(&to.join("dir")), ["inner"]);
        symlink("file", from.join("sym")).unwrap();
        assert_eq!(fs::read_link(to.join("sym")).unwrap(), Path::new("file"));
        fs::hard_link(from.join("file"), from.join("hard")).unwrap();
        assert_eq!(there("hard").ino(), there("file").ino());
        fs::rename(from.join("file"), from.join("moved")).unwrap();
        there("moved");
        missing("file");
        fs::rename(from.join("moved"), from.join("d/over")).unwrap();
        there("d/over");
        missing("moved");
        assert_eq!(names(to), ["d", "dir", "hard", "sym"]);
        fs::remove_file(from.join("d/over")).unwrap();
        fs::remove_file(from.join("hard")).unwrap();
        fs::remove_file(from.join("sym")).unwrap();
        fs::remove_dir_all(from.join("dir")).unwrap();
        assert_eq!(names(to), ["d"]);
    });
    pair.finish();
}

#[test]
fn renames_over_existing_names() {
    let pair = Pair::new();
    for at in ["x", "y"] {
        fs::create_dir(pair.a.join(at)).unwrap();
    }
    fs::write(pair.a.join("y/target"), b"first").unwrap();
    pair.alternate(2 * ROUNDS, |round, from, to| {
        let old = fs::metadata(to.join("y/target")).unwrap().ino();
        let open = File::open(to.join("y/target")).unwrap();
        let text = format!("round {round}");
        fs::write(from.join("x/source"), &text).unwrap();
        let new = fs::metadata(from.join("x/source")).unwrap().ino();
        fs::rename(from.join("x/source"), from.join("y/target")).unwrap();
        assert_ne!(old, new);
        assert_eq!(fs::metadata(to.join("y/target")).unwrap().ino(), new, "round {round}");
        assert_eq!(fs::read_to_string(to.join("y/target")).unwrap(), text);
        assert_eq!(errno(fs::metadata(to.join("x/source"))), libc::ENOENT);
        assert!(names(&to.join("x")).is_empty());
        assert_eq!(names(&to.join("y")), ["target"]);
        assert_eq!(open.metadata().unwrap().nlink(), 0, "round {round}: the handle is of the old one");
    });
    pair.finish();
}

#[test]
fn renames_of_directories() {
    let pair = Pair::new();
    for at in ["p", "q", "p/dir", "p/dir/sub"] {
        fs::create_dir(pair.a.join(at)).unwrap();
    }
    fs::write(pair.a.join("p/dir/sub/f"), b"inside").unwrap();
    pair.alternate(2 * ROUNDS, |round, from, to| {
        let (here, there) = if round % 2 == 0 { ("p", "q") } else { ("q", "p") };
        assert_eq!(fs::read(to.join(here).join("dir/sub/f")).unwrap(), b"inside");
        assert_eq!(errno(fs::metadata(to.join(there).join("dir/sub/f"))), libc::ENOENT);
        fs::rename(from.join(here).join("dir"), from.join(there).join("dir")).unwrap();
        assert_eq!(fs::read(to.join(there).join("dir/sub/f")).unwrap(), b"inside", "round {round}");
        assert_eq!(errno(fs::metadata(to.join(here).join("dir"))), libc::ENOENT, "round {round}");
        let parent = fs::metadata(to.join(there).join("dir/..")).unwrap().ino();
        assert_eq!(parent, fs::metadata(to.join(there)).unwrap().ino(), "round {round}: ..");
        let links = |name: &str| fs::metadata(to.join(name)).unwrap().nlink();
        assert_eq!((links(here), links(there)), (2, 3), "round {round}");
        // Over an empty directory.
        fs::create_dir(to.join("empty")).unwrap();
        fs::rename(from.join(there).join("dir/sub"), from.join("empty")).unwrap();
        assert_eq!(fs::read(to.join("empty/f")).unwrap(), b"inside");
        fs::rename(to.join("empty"), to.join(there).join("dir/sub")).unwrap();
        assert_eq!(names(&from.join(there).join("dir")), ["sub"]);
    });
    pair.finish();
}

fn rename2(from: &Path, to: &Path, flags: u32) -> i32 {
    let [from, to] = [from, to].map(|p| CString::new(p.as_os_str().as_bytes()).unwrap());
    // SAFETY: both strings end in NUL and outlive the call.
    let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if done == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
}

#[test]
fn exchanges() {
    let pair = Pair::new();
    fs::write(pair.a.join("f"), b"file").unwrap();
    fs::create_dir(pair.a.join("d")).unwrap();
    pair.alternate(2 * ROUNDS, |round, from, to| {
        let (file, dir) = if round % 2 == 0 { ("f", "d") } else { ("d", "f") };
        assert!(fs::metadata(to.join(file)).unwrap().is_file());
        assert!(fs::metadata(to.join(dir)).unwrap().is_dir());
        assert_eq!(rename2(&from.join("f"), &from.join("d"), libc::RENAME_NOREPLACE), libc::EEXIST);
        assert_eq!(rename2(&from.join("f"), &from.join("d"), libc::RENAME_EXCHANGE), 0);
        assert!(fs::metadata(to.join(file)).unwrap().is_dir(), "round {round}");
        assert_eq!(fs::read(to.join(dir)).unwrap(), b"file", "round {round}");
    });
    pair.finish();
}

/// What overlayfs hides a name of a lower layer by: a character device 0:0 that nobody may use.
fn is_whiteout(at: &Path) -> bool {
    let found = fs::symlink_metadata(at).unwrap();
    (found.mode(), found.rdev(), found.nlink()) == (libc::S_IFCHR, 0, 1)
}

#[test]
fn renames_that_leave_whiteouts() {
    let pair = Pair::new();
    ["d", "d/sub"].into_iter().for_each(|dir| fs::create_dir(pair.a.join(dir)).unwrap());
    let flags = libc::RENAME_WHITEOUT;
    pair.alternate(ROUNDS, |round, from, to| {
        let links = |at: &Path, dir: &str| fs::metadata(at.join(dir)).unwrap().nlink();
        fs::write(from.join("f"), b"moves").unwrap();
        fs::write(to.join("d/g"), b"goes").unwrap();
        // Into another directory, over another file.
        assert_eq!(rename2(&from.join("f"), &from.join("d/g"), flags), 0, "round {round}");
        assert!(is_whiteout(&to.join("f")), "round {round}");
        assert_eq!(fs::read(to.join("d/g")).unwrap(), b"moves", "round {round}");
        // Within one, and a directory out of it.
        assert_eq!(rename2(&to.join("d/g"), &to.join("d/h"), flags), 0, "round {round}");
        assert!(is_whiteout(&from.join("d/g")));
        assert_eq!(rename2(&to.join("d/sub"), &to.join("sub"), flags), 0, "round {round}");
        assert!(is_whiteout(&from.join("d/sub")) && fs::metadata(from.join("sub")).unwrap().is_dir());
        assert_eq!((links(from, "d"), links(to, "d")), (2, 2), "round {round}");
        // A whiteout is a name like any other: it goes, or is replaced.
        ["f", "d/g", "d/h"].into_iter().for_each(|name| fs::remove_file(from.join(name)).unwrap());
        assert_eq!(rename2(&from.join("sub"), &from.join("d/sub"), 0), libc::ENOTDIR);
        fs::remove_file(to.join("d/sub")).unwrap();
        fs::rename(from.join("sub"), from.join("d/sub")).unwrap();
        // One inode under two names: nothing is done, and nothing left.
        fs::write(from.join("one"), b"").unwrap();
        fs::hard_link(from.join("one"), from.join("two")).unwrap();
        assert_eq!(rename2(&to.join("one"), &to.join("two"), flags), 0);
        assert_eq!(fs::metadata(to.join("one")).unwrap().nlink(), 2);
        ["one", "two"].into_iter().for_each(|name| fs::remove_file(to.join(name)).unwrap());
        let exchange = flags | libc::RENAME_EXCHANGE;
        assert_eq!(rename2(&from.join("d"), &from.join("d"), exchange), libc::EINVAL);
    });
    pair.finish();
}

#[test]
fn link_counts() {
    let pair = Pair::new();
    fs::write(pair.a.join("f0"), b"linked").unwrap();
    fs::create_dir(pair.a.join("d")).unwrap();
    pair.alternate(ROUNDS, |round, from, to| {
        let count = |at: &Path, name: &str| fs::metadata(at.join(name)).unwrap().nlink();
        fs::hard_link(from.join(format!("f{round}")), from.join(format!("f{}", round + 1))).unwrap();
        (0..=round + 1).for_each(|i| assert_eq!(count(to, &format!("f{i}")), round as u64 + 2));
        fs::create_dir(from.join(format!("d/{round}"))).unwrap();
        assert_eq!(count(to, "d"), round as u64 + 3);
    });
    pair.alternate(ROUNDS, |round, from, to| {
        fs::remove_file(from.join(format!("f{round}"))).unwrap();
        let last = fs::metadata(to.join(format!("f{ROUNDS}"))).unwrap();
        assert_eq!(last.nlink() as usize, ROUNDS - round);
        fs::remove_dir(from.join(format!("d/{round}"))).unwrap();
        assert_eq!(fs::metadata(to.join("d")).unwrap().nlink() as usize, ROUNDS - round + 1);
    });
    pair.finish();
}
