//! Files that are unlinked while somebody has them open.

use super::Pair;
use crate::rig_stream::Stream;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn an_unlinked_file_stays_while_the_other_host_has_it_open() {
    let pair = Pair::new();
    let (a, b) = (pair.a.clone(), pair.b.clone());
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
    pair.finish();
}

fn free(at: &Path) -> u64 {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: statvfs is plain data; the string and the result outlive the call.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(at.as_ptr(), &mut found), 0);
        found.f_bfree * found.f_frsize
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// However the last name goes, and whoever has it open: its space comes back after the last close.
#[test]
fn the_space_of_an_unlinked_file_comes_back_after_the_last_close() {
    const SIZE: u64 = 20 << 20;
    let pair = Pair::new();
    let before = free(&pair.a);
    for round in 0..4 {
        let (opener, remover) = if round % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        let mut options = OpenOptions::new();
        let file = options.create_new(true).write(true).read(true).open(opener.join("big")).unwrap();
        (0..SIZE >> 20).for_each(|i| file.write_all_at(&vec![i as u8 + 1; 1 << 20], i << 20).unwrap());
        file.sync_all().unwrap();
        let second = File::open(remover.join("big")).unwrap();
        match round {
            0 | 1 => fs::remove_file(remover.join("big")).unwrap(),
            _ => {
                fs::write(remover.join("other"), b"").unwrap();
                fs::rename(remover.join("other"), remover.join("big")).unwrap();
                fs::remove_file(remover.join("big")).unwrap();
            }
        }
        assert_eq!((file.metadata().unwrap().nlink(), second.metadata().unwrap().nlink()), (0, 0));
        drop(second);
        std::thread::sleep(Duration::from_millis(1500));
        let mut seen = vec![0; 1 << 20];
        for i in 0..SIZE >> 20 {
            file.read_exact_at(&mut seen, i << 20).unwrap();
            assert!(seen.iter().all(|b| *b == i as u8 + 1), "round {round}: MiB {i}");
        }
        assert!(free(opener) <= before - SIZE + (6 << 20), "round {round}: freed while it is open");
        drop(file);
        for at in [&pair.a, &pair.b] {
            wait_until("the space of a removed file does not come back", || free(at) + (6 << 20) >= before);
        }
    }
    pair.finish();
}

/// A directory that another host removed may be freed at any time, and its block be another inode's: a
/// handle of it is no way to write there. Where it was removed it is kept.
#[test]
fn a_removed_directory_is_changed_by_nobody_but_the_host_that_keeps_it() {
    let pair = Pair::new();
    let (a, b) = (pair.a.clone(), pair.b.clone());
    let chmod = |dir: &File| dir.set_permissions(Permissions::from_mode(0o711));
    for round in 0..3 {
        let name = format!("d{round}");
        fs::create_dir(a.join(&name)).unwrap();
        let (here, there) = (File::open(a.join(&name)).unwrap(), File::open(b.join(&name)).unwrap());
        chmod(&there).unwrap();
        fs::remove_dir(a.join(&name)).unwrap();
        chmod(&here).unwrap();
        assert_eq!(chmod(&there).unwrap_err().raw_os_error(), Some(libc::ESTALE));
        drop(here);
        // The block is a new file's, sooner or later.
        (0..30).for_each(|i| fs::write(a.join(format!("f{round}-{i}")), b"new").unwrap());
        assert_eq!(chmod(&there).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    }
    pair.finish();
}

/// It was empty, and the number may be another inode's by now: there is nothing more to list.
#[test]
fn the_listing_of_a_directory_that_another_host_removes_ends() {
    let pair = Pair::new();
    for round in 0..3 {
        fs::create_dir(pair.a.join("d")).unwrap();
        let mut listed = Stream::open(&pair.b.join("d"));
        fs::remove_dir(pair.a.join("d")).unwrap();
        (0..30).for_each(|i| fs::write(pair.a.join(format!("f{round}-{i}")), b"new").unwrap());
        assert_eq!(listed.rest(), [""; 0]);
    }
    pair.finish();
}
